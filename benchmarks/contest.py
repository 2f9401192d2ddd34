"""The contestants as one shape: made ready for runs, fed with stamped events, watched by viewers, their CPU time read.

Relay is fed by its real upstream (the scripted one, over HTTP and SSE) and keeps its log in a real Redis; the servers it
is compared with get the same number of equally large events over a trivial binary socket and keep them in memory. That
is in their favour: what relay does beyond fan-out (parse, order, make durable, read back) is in relay's numbers.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import orjson
import redis.asyncio

from benchmarks import machine
from benchmarks.load import FIRST, ROOT
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.options import RedisOptions
from tests.support.upstream_client import UpstreamClient

DATA_BYTES = 200
"""Size of an event's `data` at the upstream; what viewers get is larger (envelope, native names) and measured."""


class Contestant(Protocol):
    name: str
    label: str

    @property
    def pid(self) -> int:
        """The process whose CPU time counts."""

    @property
    def port(self) -> int: ...

    def path(self, tag: str) -> str:
        """Where viewers find the runs of this tag, from their first event; %d stands for the run's number."""

    async def prepare(self, tag: str, runs: int) -> None:
        """The runs exist and have no events yet."""

    async def play(self, tag: str, runs: int, *, count: int, rate: float | None, burst: int = 1) -> None:
        """Write `count` events to each run, `rate` a second on each (None: as fast as it goes). Waits for the last."""


# --- relay -----------------------------------------------------------------------------------------------------------
class Relay:
    """`relay serve` with the product's defaults, its upstream and its Redis."""

    name = "relay"
    label = "relay (upstream SSE → Redis → viewers)"

    def __init__(self, process: asyncio.subprocess.Process, port: int, up: UpstreamClient, redis_url: str) -> None:
        self._process = process
        self.port = port
        self.up = up
        self.redis_url = redis_url
        self.redis = redis.asyncio.Redis.from_url(redis_url)
        self._keys = Keys(RedisOptions().prefix, RedisOptions().partitions)

    @property
    def pid(self) -> int:
        return self._process.pid

    def path(self, tag: str) -> str:
        return f"/v1/runs/{tag}-%d/events"

    def run_ids(self, tag: str, runs: int) -> list[str]:
        return [f"{tag}-{number}" for number in range(runs)]

    def log_key(self, run_id: str) -> str:
        return self._keys.log(RunKey("main", run_id))

    async def prepare(self, tag: str, runs: int) -> None:
        await self.up.synth(self.run_ids(tag, runs), rate=None, count=0, end=False, wait=True)

    async def play(self, tag: str, runs: int, *, count: int, rate: float | None, burst: int = 1) -> None:
        ids = self.run_ids(tag, runs)
        await self.up.synth(ids, rate=rate, count=count, burst=burst, size=DATA_BYTES, end=False, wait=True)

    async def page(self, session: aiohttp.ClientSession, run_id: str) -> bytes:
        """The first page of a run, as JSON; asking for it makes relay pump the run for a while."""
        url = f"http://127.0.0.1:{self.port}/v1/runs/{run_id}/events?limit=1"
        async with session.get(url, headers={"Accept": "application/json"}) as response:
            body = await response.read()
            if response.status != 200:
                raise RuntimeError(f"relay answered {response.status}: {body[:300]!r}")
            return body

    async def event_bytes(self) -> int:
        """How large an event is on its way to a viewer, so that all contestants send as much."""
        await self.prepare("probe", 1)
        await self.play("probe", 1, count=1, rate=None)
        async with aiohttp.ClientSession() as session:
            events = orjson.loads(await self.page(session, "probe-0"))["events"]
        return len(orjson.dumps(events[0]))

    async def durable(self, run_ids: Sequence[str]) -> int:
        """How many events the logs of these runs hold."""
        pipe = self.redis.pipeline(transaction=False)
        for run_id in run_ids:
            pipe.xlen(self.log_key(run_id))
        return sum(await pipe.execute())


@asynccontextmanager
async def relay(redis_url: str, directory: Path, *, pin: bool) -> AsyncIterator[Relay]:
    port, admin = machine.free_port(), machine.free_port()
    with machine.core(machine.REST_CORE, pin):
        upstream = UpstreamClient.spawn()
        up = await upstream.__aenter__()
    try:
        log = directory / "relay.log"
        with machine.core(machine.SERVER_CORE, pin), log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "relay", "serve", cwd=ROOT, stdout=file, stderr=file,
                env=_environment(port, admin, up.url, redis_url),
            )  # fmt: skip
        contestant = Relay(process, port, up, redis_url)
        try:
            await _ready(process, admin, log)
            yield contestant
        finally:
            await contestant.redis.aclose()
            await _end(process)
    finally:
        await upstream.__aexit__(None, None, None)


def _environment(port: int, admin: int, upstream: str, redis_url: str) -> dict[str, str]:
    # Whatever RELAY_ variables this shell has, they are not what is measured.
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return {
        **bare,
        "RELAY_SERVER__PORT": str(port),
        "RELAY_SERVER__ADMIN_PORT": str(admin),
        "RELAY_REDIS__URL": redis_url,
        "RELAY_UPSTREAMS": orjson.dumps([{"name": "main", "provider": "arkloop", "base_url": upstream}]).decode(),
        "RELAY_LOG__LEVEL": "warning",
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

        await machine.until(ready, 20, "relay is ready", every_s=0.1)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()


# --- servers fed over a socket ---------------------------------------------------------------------------------------
class Fed:
    """A server that takes `[u32 run][u32 size][event]…` on one port and serves /sse/<run> on another."""

    def __init__(self, name: str, label: str, command: Sequence[str | Path], event_bytes: int, *, pin: bool) -> None:
        """`command` gets the two ports where it says HTTP and FEED."""
        self.name = name
        self.label = label
        self.port = 0
        self._command = command
        self._event_bytes = event_bytes
        self._pin = pin
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def path(self, tag: str) -> str:
        return "/sse/%d?from=0"

    async def prepare(self, tag: str, runs: int) -> None:
        """A new process each time: its history is in its memory."""
        await self.close()
        self.port, feed = machine.free_port(), machine.free_port()
        words = [{"HTTP": str(self.port), "FEED": str(feed)}.get(str(word), str(word)) for word in self._command]
        with machine.core(machine.SERVER_CORE, self._pin):
            self._process = await asyncio.create_subprocess_exec(*words, cwd=ROOT)
        await machine.listening(self.port)
        _, self._writer = await asyncio.open_connection("127.0.0.1", feed)

    async def play(self, tag: str, runs: int, *, count: int, rate: float | None, burst: int = 1) -> None:
        assert self._writer is not None
        total, began, done = runs * count, time.monotonic(), 0
        while done < total:
            due = total if rate is None else min(total, int((time.monotonic() - began) * rate * runs) + 1)
            stop = min(due, done + 64)
            self._writer.writelines([self._message(at % runs, FIRST + at // runs) for at in range(done, stop)])
            await self._writer.drain()
            done = stop
            idle = 0.0 if rate is None or done < due else began + done / (rate * runs) - time.monotonic()
            await asyncio.sleep(max(idle, 0.0005) if idle else 0)

    def _message(self, run: int, number: int) -> bytes:
        head = b'{"t":%d,"s":%d,"p":"' % (time.monotonic_ns(), number)
        event = head + b"x" * (self._event_bytes - len(head) - 2) + b'"}'
        return struct.pack("<II", run, len(event)) + event

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is not None:
            await _end(self._process)
            self._process = None


def peers(cfan: Path | None, event_bytes: int, *, pin: bool) -> list[Fed]:
    """Everybody relay is compared with on this machine."""
    found = []
    if cfan is not None:
        for mode, what in (("each", "one send per event"), ("batch", "one send per read")):
            command = [cfan, "HTTP", "FEED", mode]
            found.append(Fed(f"c-{mode}", f"C, epoll, {what}, memory only", command, event_bytes, pin=pin))
    queue = [sys.executable, "-m", "benchmarks.peers.aiohttp_queue", "HTTP", "FEED"]
    found.append(
        Fed("aiohttp-queue", "aiohttp, a queue and a task per viewer, memory only", queue, event_bytes, pin=pin)
    )
    return found


# --- a pump written by hand ------------------------------------------------------------------------------------------
@asynccontextmanager
async def redis_pump(relay: Relay, tag: str, runs: int, *, pin: bool) -> AsyncIterator[int]:
    """`peers/redis_pump.py` on the same upstream and Redis; gives its pid once it follows every run."""
    command: list[Any] = [sys.executable, "-m", "benchmarks.peers.redis_pump"]
    command += [relay.up.url, relay.redis_url, f"{tag}-", str(runs)]
    with machine.core(machine.SERVER_CORE, pin):
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = await asyncio.wait_for(process.stdout.readline(), 30)
        if said != b"ready\n":
            raise RuntimeError("the pump written by hand did not start")
        yield process.pid
    finally:
        await _end(process)
