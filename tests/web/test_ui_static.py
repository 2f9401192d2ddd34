"""The dashboard keeps what its Content-Security-Policy and its readers rely on."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

UI = Path(__file__).parents[2] / "relay" / "web" / "ui"
FILES = ("index.html", "app.js", "app.css")
OURS = {"/ui/app.js", "/ui/app.css"}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.feed(read("index.html"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in {"script", "style"} and self.cdata_elem and data.strip():
            self.inline.append(data)


def read(name: str) -> str:
    return (UI / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_files_are_small(name: str) -> None:
    assert (UI / name).stat().st_size < 60_000


def test_nothing_else_is_served() -> None:
    assets = (path.name for path in UI.iterdir() if path.suffix != ".py" and path.name != "__pycache__")
    assert sorted(assets) == sorted(FILES)


def test_no_inline_script_style_or_handler() -> None:
    page = Page()
    assert page.inline == []
    for tag, attributes in page.tags:
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert not (tag == "script" and not attributes.get("src"))


@pytest.mark.parametrize("name", FILES)
def test_no_external_address(name: str) -> None:
    assert not re.search(r"(?i)\b(?:https?|wss?|ftp):|[\"'(]//", read(name))
    assert not re.search(r"@import|url\(", read(name))


def test_the_page_loads_only_its_own_files() -> None:
    loaded = {a.get("src") or a.get("href") for tag, a in Page().tags if tag in {"script", "link", "img"}}
    assert {address for address in loaded if address and not address.startswith("data:image/")} == OURS


def test_text_can_only_become_text() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|setHTML"
        r"|\beval\b|new Function|javascript:|set(?:Timeout|Interval)\(\s*[\"'`]|\.style\b|setAttribute\(\s*[\"']on"
    )
    assert not re.search(forbidden, read("app.js"))


def test_the_key_never_enters_an_address() -> None:
    script = read("app.js")
    uses = [line.strip() for line in script.splitlines() if re.search(r"\$\{(?:key|used)\}", line)]
    assert uses == ["if (used) headers.Authorization = `Bearer ${used}`;"]
    assert "localStorage" not in script
    assert "document.cookie" not in script


def test_every_control_has_a_name_and_every_id_is_there_once() -> None:
    tags = Page().tags
    ids = [a["id"] for _, a in tags if a.get("id")]
    assert len(ids) == len(set(ids))
    labelled = {a.get("for") for tag, a in tags if tag == "label"}
    for tag, attributes in tags:
        if tag in {"textarea", "input"} and attributes.get("type") != "checkbox":
            assert attributes["id"] in labelled
    asked = set(re.findall(r"\$\(\"([a-z-]+)\"\)", read("app.js")))
    assert asked <= set(ids)


def test_both_colour_schemes_define_the_same_colours() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", read("app.css"), re.DOTALL)
    names = [set(re.findall(r"(--[a-z-]+): #", block)) for block in (light, dark)]
    assert names[0] == names[1]
