"""What is measured: who does what to whom, in which order, and what must be true for the numbers to count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks import contest, machine
from benchmarks.contest import Contestant, Relay
from benchmarks.load import FIRST, Load, Outcome, Violation

Row = dict[str, Any]
"""One measurement: `contestant` and its numbers."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large each workload is."""

    viewers: int
    rate: float
    """Events a second, on the one run of `fanout` and on each run of `many`."""
    secs: float
    history: int
    joiners: int
    runs: int
    ingest_rate: float
    flood: int
    """Events on each run, as fast as the upstream can, in the second half of `ingest`."""


FULL = Size(
    viewers=1000, rate=50, secs=10, history=5000, joiners=200, runs=1000, ingest_rate=5, flood=100
)  # fmt: skip
SHORT = Size(viewers=200, rate=50, secs=3, history=1000, joiners=40, runs=100, ingest_rate=10, flood=100)


@dataclass(slots=True)
class Arena:
    """What a workload finds ready."""

    relay: Relay
    peers: Sequence[Contestant]
    load: Load
    size: Size
    redis_pid: int
    pin: bool

    def contestants(self, *names: str) -> list[Contestant]:
        """Relay, and those of the named that exist here."""
        return [self.relay, *(peer for peer in self.peers if peer.name in names)]


# --- fan-out: everybody is there, events arrive ----------------------------------------------------------------------
async def fanout(arena: Arena, turn: str) -> list[Row]:
    """1 run × many viewers × 50 events/s (W1)."""
    size = arena.size
    rows = []
    for who in arena.contestants("c-each", "aiohttp-queue"):
        rows.append(await _live(arena, who, f"fan{turn}", 1, size.viewers, size.rate, int(size.rate * size.secs)))
    return rows


async def many(arena: Arena, turn: str) -> list[Row]:
    """Many runs × 2 viewers × a few events/s (W3)."""
    size = arena.size
    rows = []
    for who in arena.contestants("c-each", "aiohttp-queue"):
        count = int(size.ingest_rate * size.secs)
        rows.append(await _live(arena, who, f"many{turn}", size.runs, 2 * size.runs, size.ingest_rate, count))
    return rows


async def _live(
    arena: Arena, who: Contestant, tag: str, runs: int, viewers: int, rate: float, count: int
) -> Row:  # fmt: skip
    await who.prepare(tag, runs)
    idle_files = machine.open_files(who.pid)
    limit_s = count / rate + 60
    watching = asyncio.create_task(
        arena.load.view(who.port, who.path(tag), conns=viewers, runs=runs, events=count, limit_s=limit_s)
    )
    try:
        # A few less than all, because connections of our own may have been closing when we counted; then until it rests:
        # runs must be followed upstream before the first event, or connecting would be measured as latency.
        await machine.until(
            lambda: watching.done() or machine.open_files(who.pid) >= idle_files + viewers - 4, 60, "viewers connected"
        )
        await _settled(who.pid)
        cpu, redis_cpu = machine.cpu_s(who.pid), machine.cpu_s(arena.redis_pid)
        began = time.monotonic()
        playing = asyncio.create_task(who.play(tag, runs, count=count, rate=rate))
        outcome = await watching
        secs = time.monotonic() - began
        await playing
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    outcome.check(f"{who.name} in {tag}")
    used = machine.cpu_s(who.pid) - cpu
    return {
        "contestant": who.name,
        "deliveries_per_cpu_s": outcome.delivered / used,
        "delivered_per_s": outcome.delivered / secs,
        "cpu_pct": 100 * used / secs,
        "redis_cpu_pct": 100 * (machine.cpu_s(arena.redis_pid) - redis_cpu) / secs,
        **_latency(outcome),
    }


async def _settled(pid: int) -> None:
    """Wait until a process has nothing more to do than its background work."""
    await asyncio.sleep(0.3)
    for _ in range(60):
        before = machine.cpu_s(pid)
        await asyncio.sleep(0.5)
        if machine.cpu_s(pid) - before < 0.1:
            return
    raise TimeoutError("the server does not come to rest with all viewers connected and no event")


def _latency(outcome: Outcome) -> Row:
    return {
        **{name: getattr(outcome, name) for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")},
        "client_cpu_pct": outcome.client_cpu_pct,
        "gaps": outcome.gaps,
        "dups": outcome.dups,
    }


# --- late joiners: everything is there, viewers arrive ---------------------------------------------------------------
async def joiners(arena: Arena, turn: str) -> list[Row]:
    """A run with a long history, and many who join at its start at once (W4)."""
    size = arena.size
    rows = []
    for who in arena.contestants("c-batch", "aiohttp-queue"):
        tag = f"join{turn}"
        await who.prepare(tag, 1)
        await who.play(tag, 1, count=size.history, rate=None, burst=50)
        if isinstance(who, Relay):
            async with aiohttp.ClientSession() as session:
                await who.page(session, f"{tag}-0")  # the run is pumped from here on
            await _until_durable(who, [f"{tag}-0"], size.history)
        await _settled(who.pid)
        cpu = machine.cpu_s(who.pid)
        outcome = await arena.load.view(
            who.port, who.path(tag), conns=size.joiners, runs=1, events=size.history, limit_s=120, catch_up=True
        )
        outcome.check(f"{who.name} in {tag}")
        rows.append(
            {
                "contestant": who.name,
                "events_per_s": outcome.delivered / outcome.secs,
                "all_caught_up_s": outcome.secs,
                "deliveries_per_cpu_s": outcome.delivered / (machine.cpu_s(who.pid) - cpu),
                "mbytes_per_s": outcome.mbytes_per_s,
                **_latency(outcome),
            }
        )
    return rows


async def _until_durable(relay: Relay, run_ids: Sequence[str], events: int, every_s: float = 0.05) -> float:
    async def whole() -> bool:
        return await relay.durable(run_ids) >= events

    return await machine.until(whole, 120, f"{events} events are durable", every_s)


# --- ingest: nobody watches ------------------------------------------------------------------------------------------
async def ingest(arena: Arena, turn: str) -> list[Row]:
    """Many runs made durable, nobody watching: first paced, then as fast as it goes.

    Relay pumps what somebody wants. Each run's first page is asked for once, which makes it wanted for a minute; so what
    is measured is reading the upstream, ordering and group commit, without any delivery.
    """
    return [await _pumped_by_relay(arena, turn), await _pumped_by_hand(arena, turn)]


async def _pumped_by_relay(arena: Arena, turn: str) -> Row:
    relay, runs, tag = arena.relay, arena.size.runs, f"ingest{turn}"
    ids = relay.run_ids(tag, runs)
    await relay.prepare(tag, runs)
    gate = asyncio.Semaphore(250)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(run_id: str) -> None:
            async with gate:
                await relay.page(session, run_id)

        await asyncio.gather(*(ask(run_id) for run_id in ids))
    await _settled(relay.pid)

    async def durable() -> int:
        return await relay.durable(ids)

    row = await _pumped(arena, "relay", relay.pid, tag, durable)
    await _check_logs(relay, [relay.log_key(run_id) for run_id in ids], b"event", arena.size)
    return row


async def _pumped_by_hand(arena: Arena, turn: str) -> Row:
    relay, runs, tag = arena.relay, arena.size.runs, f"hand{turn}"
    keys = [f"pump:{run_id}" for run_id in relay.run_ids(tag, runs)]
    await relay.prepare(tag, runs)

    async def durable() -> int:
        pipe = relay.redis.pipeline(transaction=False)
        for key in keys:
            pipe.xlen(key)
        return sum(await pipe.execute())

    async with contest.redis_pump(relay, tag, runs, pin=arena.pin) as pid:
        await _settled(pid)
        return await _pumped(arena, "redis-py pump", pid, tag, durable)


async def _pumped(arena: Arena, name: str, pid: int, tag: str, durable: Callable[[], Awaitable[int]]) -> Row:
    size = arena.size
    # The first event of each run is not measured: the steady state is, on logs that exist.
    await _phase(arena, pid, tag, durable, size.runs, 1, None, 1)
    await _settled(pid)
    paced = int(size.ingest_rate * size.secs)
    row: Row = {"contestant": name}
    row |= _prefixed(
        "paced", await _phase(arena, pid, tag, durable, (1 + paced) * size.runs, paced, size.ingest_rate, 1)
    )
    everything = (1 + paced + size.flood) * size.runs
    row |= _prefixed("flood", await _phase(arena, pid, tag, durable, everything, size.flood, None, 10))
    return row


async def _phase(
    arena: Arena, pid: int, tag: str, durable: Callable[[], Awaitable[int]], until: int, count: int,
    rate: float | None, burst: int,
) -> Row:  # fmt: skip
    runs = arena.size.runs
    cpu, redis_cpu, began = machine.cpu_s(pid), machine.cpu_s(arena.redis_pid), time.monotonic()
    playing = asyncio.create_task(arena.relay.play(tag, runs, count=count, rate=rate, burst=burst))
    if rate is not None:
        await playing

    async def whole() -> bool:
        if playing.done():
            playing.result()  # raises what went wrong at the upstream
        return await durable() >= until

    ended = await machine.until(whole, 60, f"{until} events are durable", every_s=0.1)
    await playing
    events = count * runs
    return {
        "events_per_s": events / (ended - began),
        "cpu_us_per_event": 1e6 * (machine.cpu_s(pid) - cpu) / events,
        "redis_us_per_event": 1e6 * (machine.cpu_s(arena.redis_pid) - redis_cpu) / events,
        "cpu_pct": 100 * (machine.cpu_s(pid) - cpu) / (ended - began),
    }


def _prefixed(prefix: str, row: Row) -> Row:
    return {f"{prefix}_{name}": value for name, value in row.items()}


async def _check_logs(relay: Relay, keys: Sequence[str], field: bytes, size: Size) -> None:
    """Every log holds exactly 1, 2, 3… and each entry is the event of that number. Raises Violation."""
    wanted = 1 + int(size.ingest_rate * size.secs) + size.flood
    for start in range(0, len(keys), 100):
        pipe = relay.redis.pipeline(transaction=False)
        for key in keys[start : start + 100]:
            pipe.xrange(key)
        for entries in await pipe.execute():
            whole = len(entries) == wanted and all(
                entry_id == b"%d-0" % (i + 1) and b'"s":%d' % (FIRST + i) in fields[field]
                for i, (entry_id, fields) in enumerate(entries)
            )
            if not whole:
                raise Violation(f"relay's log of a run is not 1..{wanted}: {len(entries)} entries, {entries[:1]}")


WORKLOADS: dict[str, Callable[[Arena, str], Awaitable[list[Row]]]] = {
    "fanout": fanout,
    "joiners": joiners,
    "ingest": ingest,
    "many": many,
}
"""By name, in the order they are run."""

METRIC = {
    "fanout": ("deliveries_per_cpu_s", "deliveries per CPU second"),
    "joiners": ("events_per_s", "events per second"),
    "ingest": ("flood_events_per_s", "durable events per second"),
    "many": ("deliveries_per_cpu_s", "deliveries per CPU second"),
}
"""The number a workload's ratios are about; more is better."""
