"""Clocks that jump: child processes whose wall clock is ours to set, while their monotonic clock stays true.

libfaketime does it, preloaded (LD_PRELOAD): its wheel carries it for Linux x86-64, elsewhere the system's package does.
A file holds the offset; the child reads it at every look at its clock, so a jump is there at once.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from relay.store.binaries import choose
from relay.store.tied import tie
from tests.support.needs import missing

SECOND, MINUTE, HOUR, DAY, YEAR = 1.0, 60.0, 3600.0, 86400.0, 31_536_000.0


# ── the library ─────────────────────────────────────────────────────────────────────────────────────────────────────
@functools.cache
def library() -> Path | None:
    """The first libfaketime that works here; None if none does."""
    return next((path for path in _candidates() if _works(path)), None)


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("libfaketime")
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place) / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"
    for pattern in ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1"):
        yield from map(Path, sorted(glob.glob(pattern)))  # noqa: PTH207  (Path.glob takes no absolute patterns)


def _works(path: Path) -> bool:
    """Whether a child with it lives a day ahead (the wheel for x86-64 installs everywhere, and is only ignored)."""
    if not path.exists():
        return False
    ahead = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import time; print(time.time())"],
        env={**os.environ, "LD_PRELOAD": str(path), "FAKETIME": f"+{DAY:.0f}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ahead.returncode == 0 and abs(float(ahead.stdout) - time.time() - DAY) < 60


class Clock:
    """The wall clock of child processes started with its `environment`."""

    def __init__(self, file: Path) -> None:
        self.offset_s = self.latest_s = 0.0
        """`latest_s`: the furthest ahead it has been."""
        self._file = file
        self.set(0.0)

    @classmethod
    def needed(cls, file: Path) -> Clock:
        """For a test that is nothing without it."""
        if library() is None:
            missing("libfaketime", "pip install libfaketime (Linux x86-64), or apt-get install libfaketime")
        return cls(file)

    @property
    def environment(self) -> dict[str, str]:
        """What a child needs from its start; nothing where there is no libfaketime (its clock cannot jump then)."""
        found = library()
        if found is None:
            return {}
        return {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, offset_s: float) -> None:
        """So far ahead of the true time from now on (behind it, if negative)."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_s:+f}\n")
        fresh.replace(self._file)
        self.offset_s = offset_s
        self.latest_s = max(self.latest_s, offset_s)

    def jump(self, by_s: float) -> None:
        self.set(self.offset_s + by_s)


def forget(pid: int) -> None:
    """What libfaketime leaves in shared memory when its process is killed; a later one of that pid would stumble."""
    for name in (f"/dev/shm/faketime_shm_{pid}", f"/dev/shm/sem.faketime_sem_{pid}"):
        with suppress(OSError):
            Path(name).unlink()


# ── a server ────────────────────────────────────────────────────────────────────────────────────────────────────────
class JumpingRedis:
    """A real server of the test's own, with a clock of the test's own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.clock = Clock.needed(directory / "clock")
        self._directory = directory
        self._socket = directory / "redis.sock"
        self.url = f"unix://{self._socket}"

    def __enter__(self) -> JumpingRedis:
        program, _ = choose()
        words = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._directory), "--save", ""]
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*tie(sys.platform), str(program), *words, "--maxmemory-policy", "noeviction"],
                stdout=log, stderr=log, env={**os.environ, **self.clock.environment},
            )  # fmt: skip
        self.raw = redis.Redis(unix_socket_path=str(self._socket), retry=Retry(NoBackoff(), 0))
        deadline = time.monotonic() + 60
        while not self._up():
            assert time.monotonic() < deadline, (self._directory / "server.log").read_text()[-1000:]
            time.sleep(0.01)
        return self

    def _up(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.raw.ping())
        return False

    def __exit__(self, *_: object) -> None:
        self.raw.close()
        self._process.kill()
        self._process.wait()
        forget(self._process.pid)

    def now_s(self) -> float:
        seconds, micros = self.raw.time()
        return float(seconds) + float(micros) / 1e6

    def jump(self, by_s: float) -> None:
        """Returns when the server itself says so."""
        self.clock.jump(by_s)
        deadline = time.monotonic() + 60
        while abs(self.now_s() - time.time() - self.clock.offset_s) > 0.2:
            assert time.monotonic() < deadline, "the server's clock does not jump"
            time.sleep(0.001)
