"""Cost curves: CPU per delivery, memory and latency against one size at a time, relay beside its peers at each point."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.contest import Contestant, Relay
from benchmarks.measure import Arena, Row, Shape, live, noted

PEERS = ("relay", "c-each", "nchan")


@dataclass(frozen=True, slots=True)
class Curve:
    axis: str
    what: str
    points: tuple[tuple[int, Shape], ...]


def _viewers(count: int) -> Shape:
    # About 20,000 deliveries a second at every point, so that nobody is measured at rest or at his limit.
    return Shape(viewers=count, rate=min(100, 20_000 / count), secs=4, settle_ms=2000)


def _runs(count: int) -> Shape:
    # What the publisher, the upstream, Redis and the viewers can pass on together on one core is what is measured here, or
    # else: the client waits 3 s for what is late, so half of what a quiet machine takes is asked of it.
    return Shape(viewers=count, runs=count, rate=min(50, 2_500 / count), secs=4, settle_ms=1500 + 2 * count)


CURVES: dict[str, Curve] = {
    "viewers": Curve(
        "viewers",
        "One run; about 20,000 deliveries a second at each point (at most 100 events a second).",
        tuple((count, _viewers(count)) for count in (10, 30, 100, 300, 1000, 3000, 10_000)),
    ),
    "runs": Curve(
        "runs",
        "A viewer on each run; 2,500 events a second in all (at most 50 on each run).",
        tuple((count, _runs(count)) for count in (1, 10, 100, 1000, 5000)),
    ),
    "rate": Curve(
        "events/s",
        "One run, 200 viewers.",
        tuple((rate, Shape(viewers=200, rate=rate, secs=4)) for rate in (5, 20, 50, 100, 200, 400, 1000)),
    ),
    "size": Curve(
        "bytes of payload",
        "One run, 50 viewers, 20 events a second. The payload is what is published: relay's events are larger by its "
        "envelope (about 170 bytes), as for its users.",
        tuple(
            (size, Shape(viewers=50, rate=20, secs=4, payload=size))
            for size in (50, 200, 1024, 4096, 16_384, 65_536)
        ),
    ),
}  # fmt: skip


async def draw(name: str, arena: Arena, field: Mapping[str, Contestant], failed: dict[str, str]) -> dict[str, Any]:
    """Every point by everybody who is here; where somebody failed, the point is without him."""
    curve = CURVES[name]
    points = []
    for at, shape in curve.points:
        rows: list[Row] = []
        for who in PEERS:
            async with noted(f"{name} {at:,} {who}", failed):
                rows += [await _point(name, at, who, arena, field, shape)] if who in field else []
        points.append({"at": at, "rows": rows})
    return {"axis": curve.axis, "what": curve.what, "points": points}


async def _point(
    name: str, at: int, who: str, arena: Arena, field: Mapping[str, Contestant], shape: Shape
) -> Row:  # fmt: skip
    began = time.monotonic()
    print(f"{name:8} {at:6,}  {who:8} ", end="", flush=True)
    contestant = field[who]
    if isinstance(contestant, Relay):
        contestant = contestant.with_settings(RELAY_LIMITS__CONNECTIONS="12000")
    row = await live(arena, contestant, shape)
    print(
        f"{row['us_per_delivery']:8.2f} µs/delivery, {row['rss_mb']:6.0f} MB, p99 {row['p99_ms']:.1f} ms"
        f"{'  INCOMPLETE' if row['faults'] else ''}   ({time.monotonic() - began:.0f} s)",
        flush=True,
    )
    return {"contestant": who, **row}
