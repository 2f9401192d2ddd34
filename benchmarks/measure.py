"""The ways to measure: one contestant, started anew and loaded as a shape says, gives one row of numbers.

What must be true for the numbers of relay to count is checked here: every viewer got every event exactly once and in
order, or a Violation ends the benchmark. Which workloads there are is in workloads.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import machine
from benchmarks.contest import Contestant, Place, Sourced, Stand
from benchmarks.load import SMALLEST, Load, Seen, Violation
from benchmarks.profile import Profile

Row = dict[str, Any]
"""One measurement: `contestant` and its numbers."""


@dataclass(slots=True)
class Arena:
    """What a turn finds ready."""

    load: Load
    place: Place
    event_bytes: int
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a workload is. A field that a workload has no use for says nothing."""

    viewers: int = 1000
    runs: int = 1
    rate: float | None = None
    """Events a second on each run (open loop); None: bursts, the next when the one before the last is delivered."""
    secs: float = 6
    events: int = 0
    burst: int = 100
    stalled: int = 0
    """So many of the viewers never read."""
    websocket: bool = False
    snapshot: bool = False
    """Late joiners ask for one."""
    settle_ms: int = 1500
    """Between the last connect and the first event; runs are followed upstream by then."""
    size: int | None = None
    """Bytes of an event as viewers get it; None: the campaign's size."""
    starts: int = 0
    """How often a process is started."""
    payload: int | None = None
    """Bytes of an event as it is published, whatever a contestant adds; goes before `size`."""


@asynccontextmanager
async def noted(name: str, failed: dict[str, str]) -> AsyncIterator[None]:
    """What went wrong with relay is written down (and the benchmark has failed), and the next one has its turn."""
    try:
        yield
    except (Violation, TimeoutError, RuntimeError, OSError) as error:
        failed[name] = f"{type(error).__name__}: {error}"
        print(f"\nFAILED: {name}: {failed[name]}\n", flush=True)


async def live(arena: Arena, who: Contestant, shape: Shape) -> Row:
    """Everybody is there, events arrive: open or closed loop, SSE or WebSocket, with or without readers that stall."""
    async with who.up(shape.runs) as stand:
        redis_cpu = machine.cpu_s([arena.place.redis_pid])
        async with watched(arena, stand, shape):
            seen = await _viewed(arena, stand, shape)
        row = {**_counted(who, seen, _planned(shape)), "stalled": shape.stalled}
        if isinstance(stand, Sourced):
            used = machine.cpu_s([arena.place.redis_pid]) - redis_cpu
            row["redis_us_per_event"] = 1e6 * used / max(1, seen.sent)
        return row


def watched(arena: Arena, stand: Stand, shape: Shape) -> Any:
    return (arena.profile or Profile()).of(stand.pids[0], after_s=shape.settle_ms / 1000 + 0.5)


async def _viewed(arena: Arena, stand: Stand, shape: Shape) -> Seen:
    pace = (
        {"events": shape.events, "burst": shape.burst, "window": 2 * shape.burst}
        if shape.rate is None
        else {"rate": shape.rate, "secs": shape.secs}
    )
    path = stand.websocket if shape.websocket else stand.live
    return await arena.load.run(
        *(["--ws"] if shape.websocket else []),
        port=stand.port, path=path, pub=stand.publisher, conns=shape.viewers, runs=shape.runs, stalled=shape.stalled,
        inflight=min(shape.viewers, 128), size=payload_bytes(arena, stand, shape), settle_ms=shape.settle_ms,
        pids=_list(stand.pids), limit=60 + shape.settle_ms / 250, **pace,
    )  # fmt: skip


def _planned(shape: Shape) -> int:
    """Events the publisher should send."""
    return shape.events if shape.rate is None else int(shape.rate * shape.runs * shape.secs)


def payload_bytes(arena: Arena, stand: Stand, shape: Shape) -> int:
    return shape.payload or max(SMALLEST, (shape.size or arena.event_bytes) - stand.grown)


def _list(pids: list[int]) -> str:
    return ",".join(map(str, pids))


def _counted(who: Contestant, seen: Seen, planned: int = 0) -> Row:
    """Raises Violation: relay must be whole, always; of others it is said how much they delivered."""
    faults = seen.faults
    if seen.sent < planned:
        faults.append(f"only {seen.sent} of {planned} events published in time")
    if faults and who.name == "relay":
        raise Violation(f"relay: {', '.join(faults)} ({seen.delivered} of {seen.expected} delivered)")
    return {
        "deliveries_per_cpu_s": seen.deliv_per_srv_cpu_s,
        "delivered_per_s": seen.deliv_per_s,
        "cpu_pct": seen.srv_cpu_pct,
        "us_per_delivery": 1e6 / seen.deliv_per_srv_cpu_s if seen.deliv_per_srv_cpu_s else 0.0,
        **{name: getattr(seen, name) for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")},
        "client_cpu_pct": seen.cli_cpu_pct,
        "late_publishes": seen.late_pub,
        "rss_mb": seen.rss2_kb / 1024,
        "rss_grown_mb": (seen.rss2_kb - seen.rss1_kb) / 1024,
        "delivered_share": round(seen.share, 4),
        "faults": faults,
    }


async def join(arena: Arena, who: Contestant, shape: Shape) -> Row:
    """A run with a long history, and many who join at its start at once; then the same while others watch a live run."""
    async with who.up(2) as stand:
        size = payload_bytes(arena, stand, shape)
        assert stand.write is not None
        await stand.write(1, shape.events, size)
        if isinstance(stand, Sourced):
            await stand.pumped(2)
            await stand.durable(stand.keys(2), shape.events)
        await machine.settled(stand.pids)
        async with watched(arena, stand, replace(shape, settle_ms=0)):
            seen = await _joined(arena, stand, shape)
        row = {**_counted(who, seen), "all_caught_up_s": seen.secs, "mbytes_per_s": seen.MBps}
        if shape.rate is not None:
            row["live_p99_ms"] = await _live_meanwhile(arena, who, stand, shape)
        return row


async def _joined(arena: Arena, stand: Stand, shape: Shape) -> Seen:
    assert stand.history is not None
    path = stand.history.replace("%d", "1")
    return await arena.load.run(
        port=stand.port, path=path, conns=shape.viewers, runs=1, inflight=shape.viewers, replay=shape.events,
        pids=_list(stand.pids),
    )  # fmt: skip


async def _live_meanwhile(arena: Arena, who: Contestant, stand: Stand, shape: Shape) -> float:
    """p99 in ms of 100 viewers of another run, 50 events/s, while wave after wave of joiners catches up."""
    on_live = replace(shape, viewers=min(100, shape.viewers), runs=1)
    watching = asyncio.create_task(_viewed(arena, stand, on_live))
    try:
        await asyncio.sleep(shape.settle_ms / 1000)
        while not watching.done():
            seen = await _joined(arena, stand, shape)
            _counted(who, seen)
        seen = await watching
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    _counted(who, seen, _planned(on_live))
    return float(seen.p99_ms)


async def idle(arena: Arena, who: Contestant, shape: Shape) -> Row:
    """Viewers connect as fast as they are accepted, and nothing happens."""
    async with who.up(1) as stand, watched(arena, stand, replace(shape, settle_ms=0)):
        seen = await arena.load.run(
            port=stand.port, path=stand.live, conns=shape.viewers, runs=1, idle=shape.secs, settle_ms=0,
            pids=_list(stand.pids), pub="none",
        )  # fmt: skip
    failed = [fault for fault in seen.faults if "connections" in fault]
    if failed and who.name == "relay":
        raise Violation(f"relay: {', '.join(failed)}")
    return {
        "kb_per_viewer": seen.rss_per_conn_b / 1024,
        "accepts_per_s": seen.conn_per_s,
        "us_per_accept": seen.conn_srv_cpu_us,
        "rss_mb": seen.rss1_kb / 1024,
        "viewers": shape.viewers,
        "faults": failed,
    }
