"""config/relay.yaml is the defaults, key for key, and every worked example loads."""

from __future__ import annotations

import itertools
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.core.options import Secret
from relay.ingest.options import UpstreamOptions
from relay.settings import Settings, load, masked
from relay.settings.rules import RULES
from relay.settings.schema import is_section, kind_of, known_keys, pattern
from relay.web.options import KeyOptions
from tests.settings.loading import SECRET, loaded

CONFIG = Path(__file__).parents[2] / "config"


# --- the documented defaults -----------------------------------------------------------------------------------------
def test_the_documented_file_is_exactly_the_defaults() -> None:
    assert loaded({}, CONFIG / "relay.yaml") == Settings() == loaded({})


def test_the_documented_file_shows_every_key_with_its_default() -> None:
    tree = yaml.safe_load((CONFIG / "relay.yaml").read_text(encoding="utf-8"))
    assert tree == masked(Settings())  # masked() walks the classes, so a key missing in the file would differ


@pytest.mark.parametrize(("first_key", "cls"), [("- name: main", UpstreamOptions), ("- name: dashboard", KeyOptions)])
def test_the_documented_file_shows_every_key_of_a_list_item(first_key: str, cls: type[Any]) -> None:
    (item,) = yaml.safe_load(_example(first_key))
    assert list(item) == [option.name for option in fields(cls)]
    for option in fields(cls):
        assert option.default is MISSING or option.default is None or item[option.name] == option.default


def _example(first_key: str) -> str:
    """The commented lines after `# Example:` that hold this key, uncommented."""
    for block in (CONFIG / "relay.yaml").read_text(encoding="utf-8").split("# Example:\n")[1:]:
        example = "\n".join(line.strip()[2:] for line in block.split("\n\n")[0].splitlines() if "#" in line)
        if first_key in example:
            return example
    raise AssertionError(first_key)


def test_every_key_is_documented_in_words() -> None:
    lines = [line.strip(" #") for line in (CONFIG / "relay.yaml").read_text(encoding="utf-8").splitlines()]
    keys = {f"{option.name}: " for section in _sections() for option in fields(section)}
    bare = {
        line.split(":")[0].strip("- ")
        for before, line in itertools.pairwise(lines)
        if line.strip("- ").startswith(tuple(keys)) and before.strip("- ").startswith(tuple(keys))
    }
    assert bare == {"admin_port", "backoff_cap_s", "retry_max_ms"}  # told together with the key above them


def _sections() -> list[Any]:
    kinds = [kind_of(key) for key in known_keys()]
    return [kind for kind in kinds if is_section(kind)]


def test_every_rule_belongs_to_a_key() -> None:
    known = {pattern(key) for key in known_keys()}
    assert RULES.keys() <= known


# --- worked examples -------------------------------------------------------------------------------------------------
EXAMPLE_ENVIRON = {
    "UPSTREAM_TOKEN": "one",
    "STAGING_TOKEN": "two",
    "REDIS_URL": "rediss://relay:pw@redis.internal:6379/0",
    "TOKEN_SECRET": SECRET,
}


def _mounted(example: str, tmp_path: Path) -> Path:
    """The example, with /run/secrets standing in the test's directory."""
    (tmp_path / "redis-url").write_text("redis://redis:6379/0\n")
    (tmp_path / "upstream-token").write_text("token\n")
    text = (CONFIG / "examples" / example).read_text(encoding="utf-8")
    path = tmp_path / example
    path.write_text(text.replace("/run/secrets", str(tmp_path)), encoding="utf-8")
    return path


@pytest.mark.parametrize("example", sorted(path.name for path in (CONFIG / "examples").glob("*.yaml")))
def test_every_example_loads(example: str, tmp_path: Path) -> None:
    settings = load(_mounted(example, tmp_path), EXAMPLE_ENVIRON)
    assert settings.upstreams[0].token is not None


def test_the_sidecar_example_reads_mounted_secrets_without_their_newline(tmp_path: Path) -> None:
    settings = load(_mounted("sidecar.yaml", tmp_path), {})
    assert settings.redis.url == Secret("redis://redis:6379/0")
    assert settings.upstreams[0].token == Secret("token")
