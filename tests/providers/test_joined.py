"""What a provider or a face that has joined still lacks: said in one list each, before any test of what it does."""

from __future__ import annotations

from typing import Any

import pytest

from relay.core.errors import ConfigError
from relay.providers import NAMES
from relay.providers.arkloop.provider import Arkloop
from relay.providers.complete import missing
from relay.providers.seekrflow.provider import SeekrFlow
from relay.settings import kinds, load
from relay.web.faces.mounts import FACES as MOUNTED
from tests.providers.joined import FACES, NUMBERED, THREADED, Numbered, Threaded
from tests.providers.played import FOLDER, cases
from tests.support.needs import ROOT

SYSTEMS: list[Numbered | Threaded] = [*NUMBERED, *THREADED]


@pytest.mark.parametrize("system", SYSTEMS, ids=str)
def test_a_provider_lacks_nothing(system: Numbered | Threaded) -> None:
    lacks = missing(system.provider)
    covered: set[str] = set()
    for file in system.fixtures:
        path = FOLDER / f"{file}.yaml"
        if path.exists():
            covered |= {name for case in cases(path) for name in case.covers}
        else:
            lacks.append(f"tests/providers/fixtures/{file}.yaml")
    lacks += [f"a fixture of the status {name!r}" for name in sorted(set(system.provider.statuses) - covered)]
    lacks += [f"a fixture of a name nobody told us of (`covers: {name}`)" for name in {"unknown"} - covered]
    if not (ROOT / system.wire).is_file():
        lacks.append(f"what is known of its wire, in {system.wire}")
    assert not lacks, f"{system} lacks:\n  " + "\n  ".join(lacks)


def test_everything_that_is_here_has_joined() -> None:
    joined = [str(system) for system in SYSTEMS]
    assert set(NAMES) <= set(joined), "add a line to tests/providers/joined.py"
    assert len(joined) == len(set(joined))
    assert {*MOUNTED, "native"} == {face.name for face in FACES}, "add a line to tests/providers/joined.py"


# --- what is said of one that lacks something --------------------------------------------------------------------------
def test_missing_says_what() -> None:
    class Half(Arkloop):
        statuses: Any = property()

        def events(self, run_id: str) -> Any:  # type: ignore[override]
            return None

    half: Any = Half()
    Half.cancel_run = None  # type: ignore[assignment,method-assign]
    del Half.statuses
    found = missing(half)
    assert "events(run_id, after_seq, follow), not (run_id)" in found
    assert "cancel_run(run_id, last_seen_seq)" in found
    assert len(found) == 2
    [lack] = missing(object())
    assert lack.startswith("durable_seq: True if the system numbers its events durably")
    assert missing(Arkloop()) == missing(SeekrFlow()) == []


class Nameless(Arkloop):
    name = "Not A Name"


def test_a_name_must_fit_where_it_is_used() -> None:
    assert missing(Nameless()) == ["name: 1 to 32 of a-z 0-9 -"]


# --- joining by an entry point ------------------------------------------------------------------------------------------
CONFIG = {"RELAY_UPSTREAMS": '[{"name": "main", "provider": "%s", "base_url": "http://h"}]'}


def configured(provider: str) -> Any:
    return load(None, {name: value % provider for name, value in CONFIG.items()})


def test_a_provider_of_another_package_is_known_by_its_entry_point(installed: Any) -> None:
    with pytest.raises(ConfigError, match="'tally' is unknown"):
        configured("tally")
    installed("relay-tally", tally="tally:Tally")
    assert configured("tally").upstreams[0].provider == "tally"
    found = kinds.find("tally")
    assert (found.name, found.durable_seq) == ("tally", True)
    assert kinds.find("tally") is found
    assert "tally" in kinds.names()


def test_relays_own_names_are_its_own(installed: Any) -> None:
    installed("evil", arkloop="tally:Tally")
    assert isinstance(kinds.find("arkloop"), Arkloop)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("gone", "no_such_module:X", "cannot be loaded: ModuleNotFoundError"),
        ("gone", "tally:NoSuchThing", "cannot be loaded: AttributeError"),
        ("other", "tally:Tally", "lacks: the name of its entry point, 'other'"),
        ("plain", "builtins:object", "lacks: durable_seq"),
        ("tests", "tests.providers.test_joined:Nameless", "lacks: name: 1 to 32 of a-z 0-9 -"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_reason(installed: Any, name: str, value: str, says: str) -> None:
    installed("broken", **{name: value})
    with pytest.raises(ConfigError) as error:
        configured(name)
    assert says in str(error.value)
    assert configured("arkloop"), "and only where it is wanted"


def test_two_of_one_name_are_told_apart_by_the_operator(installed: Any) -> None:
    installed("one", tally="tally:Tally")
    installed("two", tally="tally:Tally")
    with pytest.raises(ConfigError, match="two packages bring the provider 'tally'"):
        configured("tally")


def test_the_examples_project_declares_what_it_brings() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "examples" / "tally" / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["relay.providers"] == {"tally": "tally:Tally"}
