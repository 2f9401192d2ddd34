"""A whole relay process with an embedded server, to be killed; and what may be asked about a data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis

ROOT = Path(__file__).parents[2]

RELAY = """
import sys, time, types
import relay.store.embedded as embedded
from relay.store.options import EmbeddedOptions
if sys.argv[2] == "untied":  # as on a system without PDEATHSIG
    embedded.sys = types.SimpleNamespace(platform="darwin", executable=sys.executable)
server = embedded.EmbeddedServer.start(EmbeddedOptions(sys.argv[1]))
print(server.pid, server.url, flush=True)
time.sleep(600)
"""
"""Stands for a whole relay process: starts the server and stays."""


class OtherRelay:
    def __init__(self, directory: Path, tie: str) -> None:
        command = [sys.executable, "-c", RELAY, str(directory), tie]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        pid, self.url = self.process.stdout.readline().split()
        self.server_pid = int(pid)

    def kill(self) -> None:
        """kill -9 of relay alone; what becomes of its server is the question."""
        self.process.kill()
        self.process.wait()

    def clear_away(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.url) as client:
            if client.info("server")["process_id"] == self.server_pid:
                os.kill(self.server_pid, signal.SIGKILL)


def write(url: str, *seqs: int) -> None:
    with redis.Redis.from_url(url) as client:
        for seq in seqs:
            client.xadd("log", {"event": "{}"}, id=f"{seq}-0")


def written(url: str) -> list[int]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return [int(entry[0].split("-")[0]) for entry in client.xrange("log")]


def is_used(directory: Path) -> bool:
    """Whether a server runs on the directory. (Asking for its pid would also find a zombie nobody reaped.)"""
    with (directory / "server.pid").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def incremental_file(directory: Path) -> Path:
    (path,) = directory.glob("appendonlydir/*.incr.aof")
    return path
