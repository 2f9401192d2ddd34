"""`relay demo` as a stranger runs it: a real process, its real relay, killed, refused and interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.core.errors import ConfigError
from relay.demo.keeper import Patience, RelayOptions, free_port
from relay.demo.runs import SCRIPTS
from relay.demo.show import ACTS, ShowOptions
from tests.support import ports

LINUX = sys.platform == "linux"
BOUND_S = 120.0

SAID = "".join(
    str(step.data["content_delta"])
    for step in SCRIPTS["writer"].steps
    if step.type == "message.delta" and "channel" not in step.data
)


class Demo:
    """A running `relay demo`, whose output may be read while it grows."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._out, self._err = directory / "out", directory / "err"
        self.temporary = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # pytest's own is too long for a socket
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "FORCE_"))}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "relay", "demo", *arguments],
                stdout=out,
                stderr=err,
                env={**environment, "TMPDIR": str(self.temporary), "PYTHONUTF8": "1", "RELAY_SERVER__PORT": "nonsense"},
            )

    @property
    def out(self) -> str:
        return self._out.read_text("utf-8")

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8")

    def until(self, pattern: str) -> str:
        """The first group of a pattern, once the output has it."""
        wait_until(lambda: bool(re.search(pattern, self.out)) or self.process.poll() is not None)
        found = re.search(pattern, self.out)
        assert found is not None, self.out + self.err
        return found[1]

    def ended(self) -> int:
        return self.process.wait(BOUND_S)


StartDemo = Callable[..., Demo]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[StartDemo]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Demo:
            one = Demo(tmp_path, "--port", str(ports.free_port()), *arguments)
            stack.callback(shutil.rmtree, one.temporary, ignore_errors=True)  # what a kill -9 left
            stack.callback(one.process.wait)
            stack.callback(one.process.kill)
            return one

        yield start


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def squeezed(text: str) -> str:
    """Without white space and without the remarks of the demo: what is left was said by the run."""
    return "".join("".join(line for line in text.splitlines() if not line.startswith("  ↻")).split())


def recorded(path: Path, *texts: str, end_ms: int = 5) -> Path:
    rows = [("run.started", {}), *(("message.delta", {"content_delta": text, "role": "assistant"}) for text in texts)]
    rows.append(("run.completed", {}))
    lines = [{"seq": seq, "type": kind, "data": data, "dt_ms": 5} for seq, (kind, data) in enumerate(rows, start=1)]
    lines[-1]["dt_ms"] = end_ms
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def cancel(relay: str, run_id: str) -> None:
    with urllib.request.urlopen(
        urllib.request.Request(f"{relay}/v1/runs/{run_id}:cancel", method="POST"), timeout=60
    ) as got:
        assert got.status == 200


def alive(pid: int) -> bool:
    """Zombies nobody reaps (this may run without an init) do not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def server_of(relay: int) -> int:
    return int(Path(f"/proc/{relay}/task/{relay}/children").read_text().split()[0])


# --- one run ---------------------------------------------------------------------------------------------------------
def test_once_shows_one_whole_run_in_plain_text(demo: StartDemo) -> None:
    one = demo("--once", "--port", "0", "--speed", "20")
    assert one.ended() == 0, one.err
    assert re.search(r"http://127\.0\.0\.1:\d+/ui\n", one.out)
    # Other blocks stand between the paragraphs; each paragraph is whole and there once.
    assert all(one.out.count(line) == 1 for line in SAID.splitlines() if line)
    assert "— completed, seq" in one.out
    assert "\x1b" not in one.out
    assert one.err == ""


@pytest.mark.skipif(not LINUX, reason="the relay's server may outlive its kill -9 for a moment elsewhere")
def test_a_killed_relay_comes_back_and_nothing_is_missed_or_repeated(demo: StartDemo, tmp_path: Path) -> None:
    words = [f"word{n:04d} " for n in range(600)]
    endless = recorded(tmp_path / "long.jsonl", *words, end_ms=3_600_000)  # it goes on for as long as the kills take
    one = demo("--once", "--recording", str(endless))
    first = int(one.until(r"kill -9 (\d+)"))
    one.until("(word0100)")
    os.kill(first, signal.SIGKILL)
    second = int(one.until(r"relay was killed; started again \(pid (\d+)\)"))
    one.until("(word0300)")
    os.kill(second, signal.SIGKILL)
    third = int(one.until(rf"pid {second}[\s\S]*relay was killed; started again \(pid (\d+)\)"))
    one.until(f"({words[-1].strip()})")
    cancel(one.until(r"(http://127\.0\.0\.1:\d+)/ui#run="), one.until(r"/ui#run=(\S+)"))
    assert one.ended() == 0, one.err
    assert "— cancelled, seq" in one.out
    assert len({first, second, third}) == 3
    assert "".join(words).replace(" ", "") in squeezed(one.out)


def test_a_recording_is_played_instead(demo: StartDemo, tmp_path: Path) -> None:
    path = recorded(tmp_path / "mine.jsonl", "Ein ", "Test ", "reicht.")
    one = demo("--once", "--recording", str(path))
    assert one.ended() == 0, one.err
    assert "the recording mine" in one.out
    assert "\nEin Test reicht.\n" in one.out


def test_it_goes_on_with_further_runs(demo: StartDemo) -> None:
    one = demo("--speed", "50")
    one.until(f"({ACTS['writer']}[\\s\\S]*{ACTS['asks']}[\\s\\S]*{ACTS['failing']}[\\s\\S]*{ACTS['writer']})")
    assert "? waiting for input" in one.out
    assert "■ failed: tool.unavailable" in one.out


# --- ends ------------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_nothing_outlives_the_demo(demo: StartDemo, number: int, status: int) -> None:
    one = demo()
    relay = int(one.until(r"kill -9 (\d+)"))
    server = server_of(relay)
    one.until("(run started)")
    one.process.send_signal(number)
    assert one.ended() == status
    wait_until(lambda: not alive(relay) and not alive(server))
    if number != signal.SIGKILL:
        assert list(one.temporary.iterdir()) == []
        assert one.err == ""


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_the_end_may_come_while_the_relay_is_being_started_again(demo: StartDemo) -> None:
    one = demo()
    relay = int(one.until(r"kill -9 (\d+)"))
    one.until("(run started)")
    os.kill(relay, signal.SIGKILL)
    one.process.send_signal(signal.SIGINT)
    assert one.ended() == 130
    assert list(one.temporary.iterdir()) == []


def test_a_relay_that_dies_again_and_again_is_given_up(demo: StartDemo) -> None:
    one = demo("--speed", "0.01")
    killed: set[str] = set()
    while one.process.poll() is None:
        pids = set(re.findall(r"(?:kill -9|pid) (\d+)", one.out)) - killed
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)
        killed |= pids
        time.sleep(0.02)
    assert one.process.returncode == 1
    assert len(killed) >= Patience().most
    assert re.search(r"^relay: the relay died 5 times in a row: [^\n]*\n\Z", one.err, re.MULTILINE)


ENDLESS = "\n".join(
    json.dumps({"seq": seq, "type": kind, "data": data, "dt_ms": 0})
    for seq, (kind, data) in enumerate([("run.started", {}), ("run.completed", {"delegate_layer": "acp"})], 1)
)


# --- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "none.jsonl cannot be read: No such file"),
        ("{", "line 1: not JSON"),
        ("", "no events"),
        (ENDLESS, "none.jsonl has no event that ends its run"),
    ],
)
def test_a_bad_recording_is_refused_in_one_line(
    demo: StartDemo, tmp_path: Path, text: str | None, complaint: str
) -> None:
    path = tmp_path / "none.jsonl"
    if text is not None:
        path.write_text(text)
    one = demo("--once", "--recording", str(path))
    assert one.ended() == 2
    assert one.err.startswith("relay: --recording: ")
    assert complaint in one.err
    assert one.err.count("\n") == 1
    assert one.out == ""


@pytest.mark.parametrize("wrong", [{"port": 65536}, {"port": -1}, {"speed": 0.0}, {"speed": float("nan")}])
def test_what_cannot_be_played_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        ShowOptions(**wrong)  # type: ignore[arg-type]  # fields by name


# --- the keeper's rules ----------------------------------------------------------------------------------------------
def test_a_taken_port_gives_way_to_the_next() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_patience_ends_with_quick_deaths_only() -> None:
    patience = Patience(most=3)
    for lived_s in (0.1, 0.1, 60.0, 0.1, 0.1):
        patience = patience.died(lived_s)
        assert not patience.over
    assert patience.died(0.1).over


def test_the_shells_own_settings_stay_outside(tmp_path: Path) -> None:
    options = RelayOptions(home=tmp_path, port=1, upstream="http://127.0.0.1:2", token="t")
    told = options.environment({"RELAY_CONFIG": "mine.yaml", "RELAY_REDIS__URL": "redis://prod", "PATH": "/bin"})
    assert told["PATH"] == "/bin"
    assert "RELAY_CONFIG" not in told
    assert "RELAY_REDIS__URL" not in told
