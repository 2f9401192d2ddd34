"""Keeps one relay alive: `python -m relay serve` as our child, on one port, started again at once whenever it dies.

Here live its settings, its start, its deaths and its end. Not here: what is shown of all that (show.py).

Linux ends the child together with us, kill -9 included; elsewhere only an orderly end of ours ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from relay.core.errors import ConfigError, RelayError, StartupError
from relay.store.tied import tie

HOST = "127.0.0.1"
_POLL_S = 0.02
_GRACE_S = 8.0
"""How long a relay may take to drain before it is killed; longer than `drain.window_s` and `drain.close_s`."""


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else one of the next few, else (and for 0) any."""
    candidates = (*range(wanted, min(wanted + 20, 65536)), 0) if wanted else (0,)
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the relay binds it
            probe.bind((HOST, port))
            return int(probe.getsockname()[1])
    raise StartupError(f"no port is free on {HOST}")


@dataclass(frozen=True, slots=True)
class Patience:
    """How many quick deaths in a row are borne; one that comes late forgives those before it."""

    most: int = 5
    quick_s: float = 2.0
    deaths: int = 0

    def died(self, lived_s: float) -> Patience:
        return replace(self, deaths=self.deaths + 1 if lived_s < self.quick_s else 0)

    @property
    def over(self) -> bool:
        return self.deaths >= self.most

    @property
    def pause_s(self) -> float:
        """None after the first: whoever watches should not notice."""
        return 0.2 * max(0, self.deaths - 1)


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """What the kept relay is told."""

    home: Path
    """A directory of its own, with a short path: its data, its log."""
    port: int
    upstream: str
    """Base URL of the demo upstream."""
    token: str
    """What the demo upstream wants to hear."""

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "relay.log"

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """Ours without any RELAY_ setting: the demo is the same whatever the shell was prepared for."""
        settings = {
            "SERVER__HOST": HOST,
            "SERVER__PORT": str(self.port),
            "SERVER__ADMIN_PORT": "0",
            "EMBEDDED__DATA_DIR": str(self.data),
            "UPSTREAMS__0__NAME": "demo",
            "UPSTREAMS__0__PROVIDER": "arkloop",
            "UPSTREAMS__0__BASE_URL": self.upstream,
            "UPSTREAMS__0__TOKEN": self.token,
            "INGEST__LINGER_S": "2",  # the demo's titles come 0.4 s after the end
            "INGEST__LEASE_S": "1",  # how long the next relay waits for a killed one's runs; a fleet wants more calm
            "LOG__LEVEL": "warning",
            "LOG__FORMAT": "json",
        }
        kept = {name: value for name, value in ours.items() if not name.startswith("RELAY_")}
        return kept | {f"RELAY_{name}": value for name, value in settings.items()}


class Keeper:
    """One relay, as often as it takes; `async with` starts it and ends it. Enter it in the main thread."""

    def __init__(self, options: RelayOptions, say: Callable[[str], None]) -> None:
        """`say` gets a sentence for people whenever the relay was started again."""
        self._options = options
        self._say = say
        self._process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._options.port}"

    @property
    def pid(self) -> int:
        return self._running.pid

    async def __aenter__(self) -> Self:
        """Returns when the relay listens. Raises what it could not start for, in its own words."""
        try:
            await self._start()
            listens = await self._listens()
        except BaseException:
            await self._end()
            raise
        if not listens:
            raise self._refusal()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def keep(self) -> None:
        """For ever: wait for its death, start it again. Raises StartupError once that is useless."""
        patience, clock = Patience(), asyncio.get_running_loop().time
        while True:
            born = clock()
            status = await self._running.wait()
            patience = patience.died(clock() - born)
            if patience.over:
                raise StartupError(f"the relay died {patience.deaths} times in a row: {self._last_words()}")
            await asyncio.sleep(patience.pause_s)
            await self._start()
            if await self._listens():
                fate = "was killed" if status < 0 else f"ended (status {status})"
                self._say(f"relay {fate}; started again (pid {self.pid})")

    async def _start(self) -> None:
        with self._options.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tie(sys.platform),
                *(sys.executable, "-m", "relay", "serve"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._options.environment(os.environ),
                start_new_session=True,  # Ctrl-C is for us, who still show the run and then end the relay
            )

    async def _listens(self) -> bool:
        """Wait until it does; False if it died before."""
        while not await _answers(self._options.port):
            if self._running.returncode is not None:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    @property
    def _running(self) -> Process:
        assert self._process is not None
        return self._process

    def _refusal(self) -> RelayError:
        sentence = self._last_words(lines=1).removeprefix("relay: ")
        return ConfigError(sentence) if self._running.returncode == 2 else StartupError(sentence)

    def _last_words(self, lines: int = 5) -> str:
        said = self._options.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join([line for line in said if line.strip()][-lines:]) or "it said nothing"

    async def _end(self) -> None:
        """Politely, then by force; returns when its server is gone too, so that nothing writes to `home` any more."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                while _is_locked(self._options.data / "server.pid"):  # noqa: ASYNC110  (a file has no event)
                    await asyncio.sleep(_POLL_S)


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


def _is_locked(path: Path) -> bool:
    """The embedded server holds a lock on its server.pid for as long as it lives (store/embedded.py)."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
