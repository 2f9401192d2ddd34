"""Starting: from the moment a process is made until /readyz says 200, with a Redis that is there; and what it weighs then.

As an installed package starts: with its bytecode on disk. A first start, which is not counted, writes it. Beside relay
the spine of it: a Python that imports the web server and the Redis client, and does nothing with them.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median

from benchmarks import machine
from benchmarks.contest import Contestant, Place, Stand, environment, started
from benchmarks.measure import Arena, Row, Shape

_SPINE = "import aiohttp.web, redis.asyncio, sys; print('ready', flush=True); sys.stdin.read()"
_LOOK_EVERY_S = 0.005
_WITHIN_S = 30.0


@dataclass(slots=True)
class Spine:
    """No contestant: the floor of what a server made of these two packages takes."""

    place: Place
    name: str = "spine"
    label: str = "python -c 'import aiohttp.web, redis.asyncio'"

    @asynccontextmanager
    async def up(self, runs: int) -> AsyncIterator[Stand]:
        pipe = asyncio.subprocess.PIPE
        process = await started(
            [sys.executable, "-c", _SPINE],
            self.place,
            "spine",
            env={**os.environ, **_bytecode(self.place)},
            stdin=pipe,
            stdout=pipe,
        )
        try:
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readline(), _WITHIN_S)
            yield Stand(port=0, pids=[process.pid], publisher="", live="")
        finally:
            await machine.end(process)


async def start(arena: Arena, who: Contestant, shape: Shape) -> Row:
    """The medians of so many starts, after one that is not counted."""
    up = who if isinstance(who, Spine) else _Relay(arena.place)
    taken = [await _once(up) for _ in range(1 + shape.starts)][1:]
    ready, cpu, rss = (median(column) for column in zip(*taken, strict=True))
    return {"ready_ms": ready, "start_cpu_ms": cpu, "base_rss_mb": rss, "starts": shape.starts, "faults": []}


async def _once(who: Spine | _Relay) -> tuple[float, float, float]:
    """Milliseconds until ready, milliseconds of CPU until then, MB once it has come to rest."""
    began = time.monotonic()
    async with who.up(0) as stand:
        ready = time.monotonic() - began
        cpu = machine.cpu_s(stand.pids)
        await machine.settled(stand.pids)
        return 1000 * ready, 1000 * cpu, machine.rss_kb(stand.pids) / 1024


@dataclass(slots=True)
class _Relay:
    """`relay serve` and nothing else: no upstream is asked before somebody wants a run."""

    place: Place

    @asynccontextmanager
    async def up(self, _: int) -> AsyncIterator[Stand]:
        port, admin = machine.free_port(), machine.free_port()
        nobody = f"http://127.0.0.1:{machine.free_port()}"
        settings = environment(port, admin, nobody, self.place.redis_url, _bytecode(self.place))
        process = await started([sys.executable, "-m", "relay", "serve"], self.place, "relay", env=settings)
        try:
            await machine.until(lambda: _ready(admin), _WITHIN_S, "relay is ready", every_s=_LOOK_EVERY_S)
            yield Stand(port=port, pids=[process.pid], publisher="", live="")
        finally:
            await machine.end(process)


async def _ready(port: int) -> bool:
    """Asked by hand: a client of its own would take longer than what it asks."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        head = await reader.readline()
        writer.close()
        return b" 200 " in head
    except OSError:
        return False


def _bytecode(place: Place) -> dict[str, str]:
    """Where it is written, whatever this shell says about it."""
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(place.directory / "bytecode")}
