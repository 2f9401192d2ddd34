"""One worker, seen from its parent: its process, what it says, questions to it, its end.

The process ends with us, however we end: Linux sends it SIGTERM (store/tied.py), and everywhere it finds the channel
closed. It has a session of its own: Ctrl-C in a terminal is for the parent alone, who then tells the workers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from relay.core.errors import ConfigError, RelayError, StartupError
from relay.store.tied import tie
from relay.workers.channel import Boot, Question, frame, message_from

_POLL_S: Final = 0.01
_LAST_S: Final = 5.0
"""How long a process that has hung up may take to end."""


class Child:
    def __init__(self, boot: Boot, process: subprocess.Popen[bytes], channel: socket.socket) -> None:
        self.number = boot.number
        self.up = False
        """It answers questions (and is told to stop by a message)."""
        self.serving = False
        """It has started, and listens."""
        self.ended = asyncio.Event()
        self.born = time.monotonic()
        self._boot = boot
        self._process = process
        self._channel = channel
        self._writer: asyncio.StreamWriter | None = None
        self._questions: dict[Question, asyncio.Future[Any]] = {}
        self._spoke = False
        self._refusal: RelayError | None = None

    @classmethod
    def spawn(cls, boot: Boot, listeners: list[socket.socket]) -> Self:
        """Start a worker; `listeners` are its own from now on. Call it in the main thread. Raises OSError."""
        with ExitStack() as ours:
            for listener in listeners:
                ours.callback(listener.close)
            parents, childs = socket.socketpair()
            ours.callback(childs.close)
            inherited = [sock.fileno() for sock in (childs, *listeners)]
            command = [sys.executable, "-P", "-m", "relay.workers", str(childs.fileno()), f"worker-{boot.number}"]
            try:
                process = subprocess.Popen(  # noqa: S603
                    [*tie(sys.platform), *command],
                    stdin=subprocess.DEVNULL,
                    pass_fds=inherited,
                    start_new_session=True,
                    env=_environment(),
                )
            except OSError:
                parents.close()
                raise
            return cls(replace(boot, listeners=tuple(inherited[1:])), process, parents)

    @property
    def pid(self) -> int:
        return self._process.pid

    # --- its life ---------------------------------------------------------------------------------------------------
    async def attend(self, started: Callable[[Child], None]) -> None:
        """From its first word until it is gone, and reaped."""
        try:
            await self._converse(started)
        except (EOFError, OSError):
            pass  # it has hung up, or died
        finally:
            self.up = self.serving = False
            if self._writer is not None:
                self._writer.close()
            await self._reap()
            for question in self._questions.values():
                question.cancel()
            self.ended.set()

    async def _converse(self, started: Callable[[Child], None]) -> None:
        reader, self._writer = await asyncio.open_unix_connection(sock=self._channel)
        self._writer.write(self._boot.frame())
        while True:
            said = await message_from(reader)
            if "answer" in said:
                self._questions.pop(said["answer"]).set_result(said["value"])
            elif "failed" in said:
                self._refusal = _refusal(said["failed"], said["status"])
            elif "started" in said:
                self.serving = True
                started(self)
            elif "up" in said:
                self.up = self._spoke = True

    async def _reap(self) -> None:
        deadline = time.monotonic() + _LAST_S
        while self._process.poll() is None:  # a process that dies has no event on every system; it is about to
            if time.monotonic() > deadline:
                self.kill()
            await asyncio.sleep(_POLL_S)

    # --- what we want of it -------------------------------------------------------------------------------------------
    async def ask(self, what: Question, within_s: float) -> Any:
        """Its answer; None if none came in time. One question of a kind is on its way at a time, however many ask."""
        if not self.up:
            return None
        question = self._questions.get(what)
        if question is None:
            question = self._questions[what] = asyncio.get_running_loop().create_future()
            self._tell({"ask": what})
        await asyncio.wait([question], timeout=within_s)  # unlike wait_for: whoever gives up takes nothing from others
        return question.result() if question.done() and not question.cancelled() else None

    def stop(self, *, alone: bool) -> None:
        """Ask it to drain and end; `alone`: nobody will be left to take over its runs.

        By a message, because a second *signal* means "now", and somebody may have sent the first one already (systemd
        signals whole control groups); by a signal only while it cannot read messages yet.
        """
        if self.up:
            self._tell({"stop": True, "alone": alone})
        else:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(frame(message))

    # --- its end ------------------------------------------------------------------------------------------------------
    @property
    def fate(self) -> dict[str, Any]:
        """How it ended, for the log."""
        status = self._process.returncode
        how: dict[str, Any] = {"status": status} if status >= 0 else {"signal": _signal_name(-status)}
        return how if self._refusal is None else {**how, "error": self._refusal.message}

    @property
    def reason(self) -> str:
        """How it ended, for the metric."""
        if self._process.returncode == 0:
            return "stopped"
        return "killed" if self._process.returncode < 0 else "failed"

    def failure(self) -> RelayError | None:
        """Why it could not start, in its own words if it had any; None if it could, and somebody ended it."""
        if self._refusal is not None:
            return self._refusal
        if self._spoke and self._process.returncode <= 0:
            return None
        fate = ", ".join(f"{key} {value}" for key, value in self.fate.items())
        return StartupError(f"worker {self.number} ended before it served ({fate})")


def _refusal(sentence: str, status: int) -> RelayError:
    return ConfigError(sentence) if status == 2 else StartupError(sentence)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return str(number)


def _environment() -> dict[str, str]:
    """Ours, without settings (they come over the channel), and so that `import relay` finds what we found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return kept | {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
