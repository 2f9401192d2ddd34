"""The contestants as one shape, and relay as the first of them.

Everybody starts anew for each measurement: no history, no memory and no warm cache of the one before. Relay is fed by its
real upstream (the scripted one, over HTTP and SSE) and keeps its log in a real Redis; the servers it is compared with get
the same number of equally large events over a socket (rivals.py) and keep them in memory, which is in their favour.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import orjson
import redis.asyncio

from benchmarks import machine
from benchmarks.load import FIRST, ROOT
from benchmarks.upstream import PREFIX
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.options import RedisOptions


@dataclass(frozen=True, slots=True)
class Place:
    """What all contestants share."""

    directory: Path
    redis_url: str
    redis_pid: int
    pin: bool


@dataclass(slots=True)
class Stand:
    """A contestant that is up, with its runs and no events."""

    port: int
    pids: list[int]
    """Whose CPU time and memory count."""
    publisher: str
    """Where the load client publishes, as its `--pub`."""
    live: str
    """The path of a run for a viewer that takes part from now on; %d stands for the run's number."""
    write: Callable[[int, int, int], Awaitable[None]] | None = None
    """`await write(run, count, size)`: a history, as fast as it is taken."""
    history: str | None = None
    """The path for a viewer that begins at the first event, where there is such a thing."""
    websocket: str | None = None
    grown: int = 0
    """Bytes the contestant adds to each payload: it gets so much smaller ones, and all viewers see equal events."""


class Contestant(Protocol):
    name: str
    label: str

    def up(self, runs: int) -> AbstractAsyncContextManager[Stand]: ...


def payload(number: int, size: int) -> bytes:
    """The event of this number, as the load client writes it: stamped now, `size` bytes."""
    head = b'{"t":%d,"s":%d,"p":"' % (time.monotonic_ns(), FIRST + number)
    return head + b"x" * max(0, size - len(head) - 2) + b'"}'


async def started(command: Sequence[Any], place: Place, name: str, **how: Any) -> asyncio.subprocess.Process:
    """A process of the measured side, on its core; what it says is in <name>.log."""
    with machine.core(machine.SERVER_CORE, place.pin), (place.directory / f"{name}.log").open("ab") as log:
        words = [str(word) for word in command]
        return await asyncio.create_subprocess_exec(*words, **{"stdout": log, "stderr": log, "cwd": ROOT, **how})


# --- the binary feed -------------------------------------------------------------------------------------------------
class Writer:
    """Writes `[u32 run][u32 size][payload]…` to whoever takes that, relay's upstream among them."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(self, run: int, count: int, size: int) -> None:
        """A history of one run, as fast as it is taken."""
        await self.play([run], count, size, burst=100)

    async def play(
        self, runs: Sequence[int], count: int, size: int, *, rate: float | None = None, burst: int = 1, first: int = 0
    ) -> None:
        """Events `first` to `first + count` on each run, `burst` at a time, `rate` a second (None: as fast as it goes)."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        rounds = -(-count // burst)
        units = rounds * len(runs)
        per_s = None if rate is None else rate * len(runs) / burst
        began, done = time.monotonic(), 0
        while done < units:
            due = units if per_s is None else min(units, int((time.monotonic() - began) * per_s) + 1)
            stop = min(due, done + 64)
            for unit in range(done, stop):
                start = first + burst * (unit // len(runs))
                writer.write(_burst(runs[unit % len(runs)], range(start, min(start + burst, first + count)), size))
            await writer.drain()
            done = stop
            idle = 0.0 if per_s is None or done < due else began + done / per_s - time.monotonic()
            await asyncio.sleep(max(idle, 0.0005) if idle else 0)
        writer.close()
        await writer.wait_closed()


def _burst(run: int, numbers: range, size: int) -> bytes:
    events = [payload(number, size) for number in numbers]
    return b"".join(struct.pack("<II", run, len(event)) + event for event in events)


# --- behind the scripted upstream ------------------------------------------------------------------------------------
@dataclass(slots=True)
class Sourced(Stand):
    """Up behind the scripted upstream, with its logs in Redis."""

    upstream: str = ""
    redis: Any = None
    writer: Writer = field(default_factory=lambda: Writer(0))
    key: Callable[[str], str] = str
    """Run id -> its stream in Redis."""
    process: asyncio.subprocess.Process | None = None
    """The upstream's."""

    async def awake(self) -> None:
        """Wait until the upstream serves. Raises RuntimeError."""
        assert self.process is not None
        assert self.process.stdout is not None
        if await asyncio.wait_for(self.process.stdout.readline(), 30) != b"ready\n":
            raise RuntimeError("the upstream did not start")

    def keys(self, runs: int) -> list[str]:
        return [self.key(f"{PREFIX}{run}") for run in range(runs)]

    async def durable(self, keys: Sequence[str], events: int, every_s: float = 0.05) -> float:
        """Wait until these logs hold so many events in all; the monotonic time at which they did."""
        return await machine.until(lambda: self._hold(keys, events), 120, f"{events} events are durable", every_s)

    async def _hold(self, keys: Sequence[str], events: int) -> bool:
        pipe = self.redis.pipeline(transaction=False)
        for key in keys:
            pipe.xlen(key)
        return bool(sum(await pipe.execute()) >= events)

    async def pumped(self, runs: int) -> None:
        """Make relay pump these runs although nobody watches them, and wait until it has nothing more to do."""
        gate = asyncio.Semaphore(250)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(run: int) -> None:
                async with gate:
                    await self.page(session, run)

            await asyncio.gather(*(ask(run) for run in range(runs)))
        await machine.settled(self.pids)

    async def page(self, session: aiohttp.ClientSession, run: int) -> bytes:
        """Relay's first page of a run, as JSON; asking for it makes relay pump the run for a while."""
        url = f"http://127.0.0.1:{self.port}/v1/runs/{PREFIX}{run}/events?limit=1"
        async with session.get(url, headers={"Accept": "application/json"}) as response:
            body = await response.read()
            if response.status != 200:
                raise RuntimeError(f"relay answered {response.status}: {body[:300]!r}")
            return body


@asynccontextmanager
async def sourced(place: Place, runs: int) -> AsyncIterator[Sourced]:
    """An empty Redis and an upstream that is about to come up (`awake`); who reads the one and writes to the other is
    still to come, and may start meanwhile."""
    client = redis.asyncio.Redis.from_url(place.redis_url)
    await client.flushall()
    port, feed = machine.free_port(), machine.free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", "--runs", runs, "--port", port, "--feed", feed]
    with machine.core(machine.REST_CORE, place.pin):
        process = await asyncio.create_subprocess_exec(*map(str, command), cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        writer = Writer(feed)
        yield Sourced(
            port=0, pids=[], publisher=f"bin:{feed}", live="", write=writer, redis=client, writer=writer,
            upstream=f"http://127.0.0.1:{port}", process=process,
        )  # fmt: skip
    finally:
        await machine.end(process)
        await client.aclose()


# --- relay -----------------------------------------------------------------------------------------------------------
class Relay:
    """`relay serve` with the product's defaults."""

    name = "relay"
    label = "relay: upstream over HTTP and SSE → Redis → viewers"

    def __init__(self, place: Place, settings: Mapping[str, str] | None = None, *, grown: int = 0) -> None:
        """`settings`: RELAY_ variables besides the few that a benchmark needs. `grown`: see Stand."""
        self._place = place
        self._settings = dict(settings or {})
        self._grown = grown

    def with_settings(self, **settings: str) -> Relay:
        return Relay(self._place, {**self._settings, **settings}, grown=self._grown)

    @asynccontextmanager
    async def up(self, runs: int) -> AsyncIterator[Sourced]:
        async with sourced(self._place, runs) as stand, self._serving(stand.upstream) as (process, port):
            stand.port, stand.pids, stand.grown = port, [process.pid], self._grown
            stand.live = stand.history = stand.websocket = f"/v1/runs/{PREFIX}%d/events"
            stand.key = _log_key
            await stand.awake()
            yield stand

    @asynccontextmanager
    async def _serving(self, upstream: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
        port, admin = machine.free_port(), machine.free_port()
        process = await started(
            [sys.executable, "-m", "relay", "serve"],
            self._place,
            "relay",
            env=environment(port, admin, upstream, self._place.redis_url, self._settings),
        )
        try:
            await _ready(process, admin, self._place.directory / "relay.log")
            yield process, port
        finally:
            # Nobody is left to be told goodbye, and the next measurement starts with an empty Redis.
            await machine.end(process)

    async def growth(self) -> int:
        """How many bytes an event gains on its way to a viewer."""
        async with self.up(1) as stand, aiohttp.ClientSession() as session:
            await stand.writer(0, 1, 200)
            await stand.page(session, 0)
            await stand.durable(stand.keys(1), 1)
            events = orjson.loads(await stand.page(session, 0))["events"]
            return len(orjson.dumps(events[0])) - 200


def _log_key(run_id: str) -> str:
    options = RedisOptions()
    return Keys(options.prefix, options.partitions).log(RunKey("main", run_id))


def environment(port: int, admin: int, upstream: str, redis_url: str, more: Mapping[str, str]) -> dict[str, str]:
    # Whatever RELAY_ variables this shell has, they are not what is measured.
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return {
        **bare,
        "RELAY_SERVER__PORT": str(port),
        "RELAY_SERVER__ADMIN_PORT": str(admin),
        "RELAY_REDIS__URL": redis_url,
        "RELAY_UPSTREAMS": orjson.dumps([{"name": "main", "provider": "arkloop", "base_url": upstream}]).decode(),
        "RELAY_LOG__LEVEL": "warning",
        **more,
    }


async def _ready(process: asyncio.subprocess.Process, admin: int, log: Path) -> None:
    async with aiohttp.ClientSession() as session:

        async def ready() -> bool:
            if process.returncode is not None:
                raise RuntimeError(f"relay ended with {process.returncode}:\n{log.read_text('utf-8')[-2000:]}")
            try:
                async with session.get(f"http://127.0.0.1:{admin}/readyz") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await machine.until(ready, 20, "relay is ready", every_s=0.05)
