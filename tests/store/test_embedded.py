"""The embedded server, always the real one: it lives and dies with relay, and what was written is there again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from relay.core.errors import StartupError
from relay.store.binaries import find_server
from relay.store.embedded import EmbeddedServer
from relay.store.options import EmbeddedOptions
from tests.store.relay_process import OtherRelay, incremental_file, is_used, wait_until, write, written

LINUX = sys.platform == "linux"

Start = Callable[[Path], EmbeddedServer]
StartRelay = Callable[..., OtherRelay]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def started(directory: Path) -> EmbeddedServer:
            server = EmbeddedServer.start(EmbeddedOptions(str(directory)))
            stack.callback(server.stop)
            return server

        yield started


@pytest.fixture
def start_relay() -> Iterator[StartRelay]:
    with contextlib.ExitStack() as stack:

        def started(directory: Path, tie: str = "tied") -> OtherRelay:
            relay = OtherRelay(directory, tie)
            stack.callback(relay.clear_away)
            return relay

        yield started


@pytest.fixture
def home() -> Iterator[Path]:
    """A data directory with a short path (pytest's own may be too long for a socket)."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as directory:
        yield Path(directory) / "data"


# --- a running server ------------------------------------------------------------------------------------------------
def test_the_server_is_private_and_durable(start: Start, home: Path) -> None:
    server = start(home)
    assert server.alive()
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "aof-load-truncated": "yes",
            "dir": str(home),
        }
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        assert client.info("server")["process_id"] == server.pid
    assert server.url == f"unix://{home}/redis.sock"
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "redis.sock").stat().st_mode & 0o777 == 0o700
    assert "eady to accept connections" in (home / "server.log").read_text()


def test_the_server_says_what_it_is(start: Start, home: Path) -> None:
    program = find_server()[0]
    version = program.version()
    assert version is not None
    assert start(home).describe == f"{version[0]} {version[1]} ({program.origin})"


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_the_server_knows_none_of_our_environment(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_TEST_TOKEN", "s3cret")
    server = start(home)
    assert b"s3cret" not in Path(f"/proc/{server.pid}/environ").read_bytes()
    assert os.getpgid(server.pid) != os.getpgid(0)  # Ctrl-C on our terminal does not reach it


def test_stop_ends_it_and_gives_the_directory_free(start: Start, home: Path) -> None:
    server = start(home)
    server.stop()
    server.stop()  # again is harmless
    assert not server.alive()
    assert not is_used(home)
    assert not (home / "redis.sock").exists()
    assert start(home).alive()


def test_a_server_that_died_is_not_alive(start: Start, home: Path) -> None:
    server = start(home)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.alive())


def test_a_server_that_hangs_is_stopped_by_force(start: Start, home: Path) -> None:
    server = start(home)
    os.kill(server.pid, signal.SIGSTOP)
    server.stop(timeout_s=0.1)
    assert not server.alive()


def test_the_log_starts_anew(start: Start, home: Path) -> None:
    home.mkdir()
    (home / "server.log").write_text("of an earlier life")
    start(home)
    assert "of an earlier life" not in (home / "server.log").read_text()


@pytest.mark.parametrize("name", ["d" * 120, "ü" * 50])
def test_a_path_too_long_for_a_socket_gets_a_short_private_one(start: Start, home: Path, name: str) -> None:
    server = start(home / name)
    socket = Path(server.url.removeprefix("unix://"))
    assert len(os.fsencode(socket)) < 100
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    write(server.url, 1)
    server.stop()
    assert not socket.parent.exists()
    assert written(start(home / name).url) == [1]


def test_a_long_temporary_directory_is_avoided_too(start: Start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = home / ("t" * 120)
    long.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert start(home / ("d" * 120)).alive()
    assert list(long.iterdir()) == []


def test_any_character_may_be_in_the_path(start: Start, home: Path) -> None:
    server = start(home / "a \"b\" 'c' #?%41 \\x41 ü")
    write(server.url, 1)
    assert written(server.url) == [1]


# --- what survives ---------------------------------------------------------------------------------------------------
def test_kill_9_of_relay_ends_the_server_and_loses_nothing(start: Start, start_relay: StartRelay, home: Path) -> None:
    relay = start_relay(home)
    write(relay.url, *range(1, 201))
    time.sleep(1.2)  # appendfsync everysec
    relay.kill()
    if LINUX:
        wait_until(lambda: not is_used(home))
    assert written(start(home).url) == list(range(1, 201))


def test_the_next_start_waits_for_the_dying_server(start: Start, start_relay: StartRelay, home: Path) -> None:
    relay = start_relay(home)
    write(relay.url, 1, 2)
    relay.kill()
    server = start(home)  # at once: the old server may still be writing
    assert server.pid != relay.server_pid
    assert written(server.url) == [1, 2]


def test_kill_9_of_relay_and_server_loses_nothing_synced(start: Start, start_relay: StartRelay, home: Path) -> None:
    relay = start_relay(home)
    write(relay.url, 1, 2, 3)
    time.sleep(1.2)  # appendfsync everysec
    os.kill(relay.server_pid, signal.SIGKILL)
    relay.kill()
    assert written(start(home).url) == [1, 2, 3]


def test_a_write_cut_in_the_middle_is_dropped(start: Start, home: Path) -> None:
    server = start(home)
    write(server.url, 1, 2)
    server.stop()
    with incremental_file(home).open("ab") as file:
        file.write(b"*5\r\n$4\r\nXADD\r\n$3\r\nlog\r\n$3\r\n3-")
    assert written(start(home).url) == [1, 2]


def test_a_broken_file_is_reported_in_the_servers_own_words(start: Start, home: Path) -> None:
    server = start(home)
    write(server.url, 1)
    server.stop()
    path = incremental_file(home)
    path.write_bytes(b"no such thing\r\n" + path.read_bytes())
    with pytest.raises(StartupError, match=r"ended at once \(status 1\); its last words: .*Bad file format"):
        start(home)
    assert not is_used(home)


# --- orphans ---------------------------------------------------------------------------------------------------------
def test_an_orphan_is_ended_before_the_next_start(start: Start, start_relay: StartRelay, home: Path) -> None:
    relay = start_relay(home, "untied")
    write(relay.url, 1, 2)
    relay.kill()
    time.sleep(0.2)
    assert is_used(home)
    assert written(relay.url) == [1, 2]  # it runs on, as on a system without PDEATHSIG
    server = start(home)
    assert server.pid != relay.server_pid
    assert written(server.url) == [1, 2]


def test_the_short_socket_of_an_orphan_is_cleared_away(start: Start, start_relay: StartRelay, home: Path) -> None:
    relay = start_relay(home / ("d" * 120), "untied")
    relay.kill()
    server = start(home / ("d" * 120))
    assert server.url != relay.url
    assert not Path(relay.url.removeprefix("unix://")).parent.exists()


def test_an_orphan_that_does_not_answer_is_not_touched(start_relay: StartRelay, home: Path) -> None:
    relay = start_relay(home, "untied")
    os.kill(relay.server_pid, signal.SIGSTOP)
    try:
        relay.kill()
        with pytest.raises(StartupError, match=rf"\(pid {relay.server_pid}\) of an earlier relay still runs on {home}"):
            EmbeddedServer.start(EmbeddedOptions(str(home)), timeout_s=0.1)
    finally:
        os.kill(relay.server_pid, signal.SIGKILL)


def test_the_pid_of_a_stranger_is_left_alone(start: Start, home: Path) -> None:
    home.mkdir()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (home / "server.pid").write_text(f"{stranger.pid} {home}/redis.sock\n")  # a pid used again after a reboot
        start(home)
        assert stranger.poll() is None
        stranger.kill()


# --- who may start ---------------------------------------------------------------------------------------------------
def test_a_second_relay_on_the_same_directory_is_refused(start: Start, start_relay: StartRelay, home: Path) -> None:
    relay = start_relay(home)
    with pytest.raises(StartupError, match=rf"another relay \(pid {relay.process.pid}\) uses {home}"):
        start(home)
    write(relay.url, 1)  # undisturbed


def test_a_second_server_in_the_same_process_is_refused(start: Start, home: Path) -> None:
    start(home)
    with pytest.raises(StartupError, match=rf"pid {os.getpid()}"):
        start(home)


def test_a_worker_thread_may_not_start_it(home: Path) -> None:
    caught: list[Exception] = []

    def work() -> None:
        try:
            EmbeddedServer.start(EmbeddedOptions(str(home)))
        except StartupError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])
    assert not home.exists()


def test_a_directory_that_cannot_be_used_is_named(start: Start, home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(StartupError, match=f"cannot use {home}"):
        start(home)
