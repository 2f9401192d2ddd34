"""`relay demo`: everything at once, on one machine, with nothing to prepare.

In this process: the demo upstream, the keeper of a relay, and a viewer in the terminal. The relay is a process of its
own, so that a stranger may kill -9 it while the viewer here and the dashboard in a browser go on.

Here: what is shown, in which order, and how it ends. Not here: the runs (runs.py), the relay's life (keeper.py), how an
event looks (relay.watch).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO

import aiohttp

from relay.core.errors import ConfigError, StartupError
from relay.demo.keeper import Keeper, RelayOptions, free_port
from relay.demo.recording import RecordingError, read_recording
from relay.demo.script import Script
from relay.demo.upstream import DemoUpstream
from relay.demo.wire import TERMINAL
from relay.watch import Story, WatchOptions, follow

ACTS = {
    "writer": "a run that thinks, calls tools and answers",
    "asks": "a run that stops to ask: answer it on the dashboard, or wait for 8 s",
    "failing": "a run that fails halfway",
}
"""The runs of runs.py in the order they are shown, for ever."""
THREAD = "demo"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PAUSE_S = 3.0
_CREATE_S = 90.0
"""How long a new run may take to be accepted: a relay that was killed in the middle comes back well within it."""


@dataclass(frozen=True, slots=True)
class ShowOptions:
    once: bool = False
    """Show one run and return."""
    recording: Path | None = None
    """Play this recorded run (JSON lines) instead of our own."""
    port: int = 8080
    """Port of the relay, on loopback; another one if it is taken, any for 0."""
    speed: float = 1.0
    """Runs play this many times as fast as written."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port: {self.port} is not a port; allowed: 0 to 65535")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise ConfigError(f"--speed: {self.speed} is not a speed; allowed: a number greater than 0")


async def show(options: ShowOptions, out: TextIO) -> int:
    """Run the demo until it is over or told to end; then nothing of it is left.

    Returns 0 when one run was shown (`once`), 1 when it could not be, 128 + the signal that ended us (Ctrl-C: 130).
    Raises ConfigError (options, recording) and StartupError (no relay to be had).
    """
    script = None if options.recording is None else _recorded(options.recording)
    story = Story(out, sys.stderr, None)
    demo = asyncio.create_task(_demo(options, script, story))
    with _ending(demo) as told:
        try:
            return await demo
        except asyncio.CancelledError:
            if not told:
                raise
            return 128 + told[0]
        finally:
            story.close()


def _recorded(path: Path) -> Script:
    try:
        script = read_recording(path)
    except OSError as error:
        raise ConfigError(f"--recording: {path} cannot be read: {error.strerror}") from error
    except RecordingError as error:
        raise ConfigError(f"--recording: {error}") from error
    if not script.ends:
        allowed = ", ".join(sorted(TERMINAL))
        raise ConfigError(
            f"--recording: {path} has no event that ends its run, so it would never end; needed: one of {allowed}"
        )
    return script


@contextlib.contextmanager
def _ending(task: asyncio.Task[int]) -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and a closed terminal end the task once; later ones do not disturb that. Gives what came."""
    told: list[int] = []

    def tell(number: int) -> None:
        if not told:
            task.cancel()
        told.append(number)

    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, tell, number)
    try:
        yield told
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)


async def _demo(options: ShowOptions, script: Script | None, story: Story) -> int:
    async with contextlib.AsyncExitStack() as stack:
        home, token = Path(stack.enter_context(_directory())), secrets.token_urlsafe()
        upstream = await stack.enter_async_context(DemoUpstream(token=token, speed=options.speed))
        wanted = RelayOptions(home=home, port=free_port(options.port), upstream=upstream.url, token=token)
        keeper = await stack.enter_async_context(Keeper(wanted, lambda told: story.aside(f"  ↻ {told}", "bold green")))
        if options.port not in (0, wanted.port):
            story.aside(f"port {options.port} is taken: using {wanted.port}", "yellow")
        _header(story, keeper)
        session = await stack.enter_async_context(aiohttp.ClientSession(keeper.url))
        programme = _Programme(session, keeper.url, upstream, story, script)
        return await _until_either(keeper.keep(), programme.play(options))


def _directory() -> tempfile.TemporaryDirectory[str]:
    """Where a socket's path, which may have some 100 bytes, fits in: a long TMPDIR is passed over."""
    short = len(os.fsencode(tempfile.gettempdir())) < 60
    return tempfile.TemporaryDirectory(prefix="relay-demo-", dir=None if short else "/tmp", ignore_cleanup_errors=True)  # noqa: S108


async def _until_either(keeping: Coroutine[Any, Any, None], showing: Coroutine[Any, Any, int]) -> int:
    """What `showing` returns, or what `keeping` raises, whichever is first; the other is over as well then."""
    kept, shown = asyncio.create_task(keeping), asyncio.create_task(showing)
    try:
        await asyncio.wait((kept, shown), return_when=asyncio.FIRST_COMPLETED)
        if kept.done():
            kept.result()
        return await shown
    finally:
        kept.cancel()
        shown.cancel()
        await asyncio.gather(kept, shown, return_exceptions=True)


def _header(story: Story, keeper: Keeper) -> None:
    story.aside("relay demo: an upstream with scripted runs, and a relay between it and you\n", "bold")
    story.aside(f"  dashboard   {keeper.url}/ui", "bold cyan")
    story.aside(f"  by hand     curl -N {keeper.url}/v1/runs/RUN/events   (RUN as below)")
    story.aside(f"  break it    kill -9 {keeper.pid}   (the relay: it comes back, and no reader misses an event)")
    story.aside("  stop        Ctrl-C\n")


class _Programme:
    """One run after the other, each started as any client would, each shown to its end."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, upstream: DemoUpstream, story: Story, script: Script | None
    ) -> None:
        self._session = session
        self._url = url
        self._upstream = upstream
        self._story = story
        self._script = script

    async def play(self, options: ShowOptions) -> int:
        """Returns the status of the only run shown, or never."""
        for persona in cycle(ACTS):
            status = await self._show(persona)
            if options.once:
                return status
            await asyncio.sleep(_PAUSE_S / options.speed)
        raise AssertionError("a cycle has no end")

    async def _show(self, persona: str) -> int:
        if self._script is not None:
            title, run_id = f"the recording {self._script.name}", self._upstream.play(self._script)
        else:
            title, run_id = ACTS[persona], await self._create(persona)
        self._story.aside(f"── {title}", "bold")
        self._story.aside(f"   {self._url}/ui#run={run_id}\n", "dim")
        status = await follow(WatchOptions(run_id=run_id, url=self._url), self._story)
        self._story.aside("")
        return status

    async def _create(self, persona: str) -> str:
        """The id of a new run. Asked for under one key until answered, so that a relay killed meanwhile does no harm."""
        key = secrets.token_hex(16)
        try:
            async with asyncio.timeout(_CREATE_S):
                while (run_id := await self._ask(persona, key)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise StartupError(f"the relay accepted no run for {_CREATE_S:.0f} s") from None
        return run_id

    async def _ask(self, persona: str, key: str) -> str | None:
        """None: ask again."""
        path, headers = f"/v1/threads/{THREAD}/runs", {"Idempotency-Key": key}
        try:
            async with self._session.post(path, json={"persona_id": persona}, headers=headers) as response:
                answer = await response.json()
        except aiohttp.ClientError:
            return None
        if response.status == 201:
            return str(answer["run_id"])
        if response.status == 409 or response.status >= 500:
            return None
        raise StartupError(f"the relay refused the run: {response.status} {answer.get('message')}")
