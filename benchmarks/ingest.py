"""Ingest: many runs made durable, nobody watching; first paced, then as fast as it goes.

Relay pumps what somebody wants. Each run's first page is asked for once, which makes it wanted for a minute; so what is
measured is reading the upstream, ordering and group commit, without any delivery. Beside it, on the same upstream and
Redis, the pump one writes by hand (peers/redis_pump.py).
"""

from __future__ import annotations

import asyncio
import time

from benchmarks import machine
from benchmarks.contest import Contestant, Sourced
from benchmarks.load import FIRST, Violation
from benchmarks.measure import Arena, Row, Shape, payload_bytes, watched

FLOOD_BURST = 10


async def ingest(arena: Arena, who: Contestant, shape: Shape) -> Row:
    async with who.up(shape.runs) as stand:
        assert isinstance(stand, Sourced)
        if stand.port:
            await stand.pumped(shape.runs)
        async with watched(arena, stand, Shape(settle_ms=0)):
            row = await _both(arena, stand, shape)
        if who.name == "relay":
            await _check_logs(stand, shape)
        return row


async def _both(arena: Arena, stand: Sourced, shape: Shape) -> Row:
    """The first event of each run is not measured: the steady state is, on logs that exist."""
    assert shape.rate is not None
    await _phase(arena, stand, shape, 0, 1, None, 1)
    await machine.settled(stand.pids)
    paced = int(shape.rate * shape.secs)
    return {
        **_prefixed("paced", await _phase(arena, stand, shape, 1, paced, shape.rate, 1)),
        **_prefixed("flood", await _phase(arena, stand, shape, 1 + paced, shape.events, None, FLOOD_BURST)),
        "faults": [],
    }


async def _phase(
    arena: Arena, stand: Sourced, shape: Shape, before: int, count: int, rate: float | None, burst: int
) -> Row:
    redis = [arena.place.redis_pid]
    size = payload_bytes(arena, stand, shape)
    cpu, redis_cpu, began = machine.cpu_s(stand.pids), machine.cpu_s(redis), time.monotonic()
    playing = asyncio.create_task(
        stand.writer.play(range(shape.runs), count, size, rate=rate, burst=burst, first=before)
    )
    if rate is not None:
        await playing
    ended = await stand.durable(stand.keys(shape.runs), (before + count) * shape.runs, every_s=0.1)
    await playing
    events = count * shape.runs
    used = machine.cpu_s(stand.pids) - cpu
    return {
        "events_per_s": events / (ended - began),
        "events_per_cpu_s": events / used,
        "cpu_us_per_event": 1e6 * used / events,
        "redis_us_per_event": 1e6 * (machine.cpu_s(redis) - redis_cpu) / events,
        "cpu_pct": 100 * used / (ended - began),
    }


def _prefixed(prefix: str, row: Row) -> Row:
    return {f"{prefix}_{name}": value for name, value in row.items()}


async def _check_logs(stand: Sourced, shape: Shape) -> None:
    """Every log holds exactly 1, 2, 3… and each entry is the event of that number. Raises Violation."""
    assert shape.rate is not None
    wanted = 1 + int(shape.rate * shape.secs) + shape.events
    for start in range(0, shape.runs, 100):
        pipe = stand.redis.pipeline(transaction=False)
        for key in stand.keys(shape.runs)[start : start + 100]:
            pipe.xrange(key)
        for entries in await pipe.execute():
            whole = len(entries) == wanted and all(
                entry_id == b"%d-0" % (i + 1) and b'"s":%d' % (FIRST + i) in fields[b"event"]
                for i, (entry_id, fields) in enumerate(entries)
            )
            if not whole:
                raise Violation(f"relay's log of a run is not 1..{wanted}: {len(entries)}, {entries[:1]}")
