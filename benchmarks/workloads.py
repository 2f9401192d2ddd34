"""The workloads: a title, a shape, whose turn it is and which number the ratios are about.

W1 to W6 and `slow` are those of the load client's README, so that ratios can be compared with everybody else's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.contest import Contestant
from benchmarks.ingest import ingest
from benchmarks.late import late
from benchmarks.measure import Arena, Row, Shape, idle, join, live
from benchmarks.start import start


@dataclass(frozen=True, slots=True)
class Turn:
    """One row of a workload: who, under which name, and what is different for it."""

    who: str
    label: str = ""
    """How the row is called, where that is not who it is."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the shape: slow peers get less of the same, so that nobody waits for them for minutes."""

    @property
    def name(self) -> str:
        return self.label or self.who


Measure = Callable[[Arena, Contestant, Shape], Awaitable[Row]]


@dataclass(frozen=True, slots=True)
class Workload:
    title: str
    what: str
    """With {fields} of the shape."""
    shape: Shape
    short: Mapping[str, Any]
    """What is different in the short form."""
    turns: tuple[Turn, ...]
    """Relay first."""
    measure: Measure
    metric: str
    """The number the ratios are about."""
    columns: tuple[str, ...]
    """The other numbers of the table."""
    less_is_better: bool = False

    def shaped(self, *, short: bool) -> Shape:
        return replace(self.shape, **self.short) if short else self.shape

    def told(self, shape: Shape) -> str:
        return self.what.format(**{name: getattr(shape, name) for name in Shape.__slots__})


def _turns(*names: str, **changes: Mapping[str, Any]) -> tuple[Turn, ...]:
    return tuple(Turn(name, changes=changes.get(name.replace("-", "_"), {})) for name in names)


_RATE = ("delivered_per_s", "cpu_pct", "p50_ms", "p99_ms", "p999_ms", "redis_us_per_event")
_FLOOD = ("delivered_per_s", "cpu_pct", "client_cpu_pct", "p99_ms", "redis_us_per_event")
_SLOW_PEERS: dict[str, Mapping[str, Any]] = {
    "nchan": {"events": 2_000},
    "node": {"events": 5_000},
    "aiohttp_sse": {"events": 600},
    "aiohttp_queue": {"events": 1_000},
    "fastapi": {"events": 400},
}

WORKLOADS: dict[str, Workload] = {
    "W1": Workload(
        "One run, many viewers",
        "{runs} run × {viewers:,} viewers × {rate:g} events/s for {secs:g} s.",
        Shape(viewers=1000, rate=50),
        {"viewers": 200, "secs": 1, "settle_ms": 400},
        _turns("relay", "c-each", "nchan", "node", "aiohttp-sse", "fastapi", "aiohttp-queue"),
        live,
        "deliveries_per_cpu_s",
        _RATE,
    ),
    "W1m": Workload(
        "One run, a flood of small events",
        "{runs} run × {viewers:,} viewers × {rate:g} events/s for {secs:g} s.",
        Shape(viewers=500, rate=400),
        {"viewers": 100, "secs": 1, "settle_ms": 400},
        _turns("relay", "c-each", "nchan", "node"),
        live,
        "deliveries_per_cpu_s",
        _RATE,
    ),
    "W2": Workload(
        "One run, as fast as it goes",
        "{runs} run × {viewers:,} viewers, bursts of {burst}; at most two bursts on their way. Slow peers: fewer bursts.",
        Shape(viewers=500, events=30_000),
        {"viewers": 100, "events": 5_000, "settle_ms": 400},
        _turns("relay", "c-batch", "nchan", "node", "aiohttp-sse", "fastapi", "aiohttp-queue", **_SLOW_PEERS),
        live,
        "deliveries_per_cpu_s",
        _FLOOD,
    ),
    "W3": Workload(
        "Many runs, few viewers each",
        "{runs:,} runs × 2 viewers × {rate:g} events/s on each for {secs:g} s.",
        Shape(viewers=2000, runs=1000, rate=10, settle_ms=4000),
        {"viewers": 200, "runs": 100, "rate": 5, "secs": 1, "settle_ms": 800},
        _turns("relay", "c-each", "c-batch", "nchan", "node", "fastapi", "aiohttp-queue"),
        live,
        "deliveries_per_cpu_s",
        _RATE,
    ),
    "W4": Workload(
        "Late joiners",
        "A run with {events:,} events, {viewers} viewers join at its start at once (slow peers: fewer). Then 100 viewers "
        "of another run at {rate:g} events/s for {secs:g} s, while wave after wave of joiners catches up.",
        Shape(viewers=200, events=5000, rate=50, secs=4),
        {"viewers": 40, "events": 1000, "secs": 1, "settle_ms": 300},
        _turns(
            "relay", "c-batch", "nchan", "node", "aiohttp-sse", "aiohttp-queue",
            nchan={"viewers": 40, "rate": None},
            node={"rate": None},
            aiohttp_sse={"viewers": 20, "rate": None},
            aiohttp_queue={"viewers": 20, "rate": None},
        ),
        join,
        "delivered_per_s",
        ("all_caught_up_s", "deliveries_per_cpu_s", "mbytes_per_s", "client_cpu_pct", "live_p99_ms"),
    ),
    "late": Workload(
        "Late joiners with a snapshot",
        "A run with {events:,} deltas, all of them one message; {viewers} viewers join one by one, with `snapshot=1` "
        "or (replay) without.",
        Shape(viewers=20, events=68_000, snapshot=True),
        {"viewers": 5, "events": 5_000},
        (Turn("relay"), Turn("relay", "relay, replay", {"viewers": 3, "snapshot": False})),
        late,
        "late_kb",
        ("bytes_beyond_text", "first_frame_ms", "caught_up_ms", "cpu_ms_per_joiner"),
        less_is_better=True,
    ),
    "W5": Workload(
        "Memory of idle viewers",
        "{viewers:,} viewers of one run, no event (aiohttp-sse, fastapi: 2,000). Kernel memory is not in it.",
        Shape(viewers=5000, secs=1),
        {"viewers": 500, "secs": 0.2},
        _turns(
            "relay", "c-each", "nchan", "node", "aiohttp-sse", "fastapi",
            aiohttp_sse={"viewers": 2000}, fastapi={"viewers": 2000},
        ),
        idle,
        "kb_per_viewer",
        ("rss_mb", "viewers"),
        less_is_better=True,
    ),
    "W6": Workload(
        "Accepting viewers",
        "{viewers:,} viewers of one run connect, 128 at a time (aiohttp-sse, fastapi: 2,000).",
        Shape(viewers=5000, secs=0.1),
        {"viewers": 500},
        _turns(
            "relay", "c-each", "nchan", "node", "aiohttp-sse", "fastapi",
            aiohttp_sse={"viewers": 2000}, fastapi={"viewers": 2000},
        ),
        idle,
        "accepts_per_s",
        ("us_per_accept", "viewers"),
    ),
    "slow": Workload(
        "Readers that stall",
        "W2 with {stalled} of {viewers} viewers never reading; `no stall` has the others alone.",
        Shape(viewers=500, events=20_000, stalled=50),
        {"viewers": 100, "events": 5_000, "stalled": 10, "settle_ms": 400},
        (
            Turn("relay"),
            Turn("relay", "relay, no stall", {"viewers": 450, "stalled": 0}),
            *_turns("c-batch", "nchan", "node", nchan={"events": 4_000}, node={"events": 10_000}),
        ),
        live,
        "deliveries_per_cpu_s",
        ("delivered_per_s", "p99_ms", "rss_grown_mb", "rss_mb"),
    ),
    "stall-1": Workload(
        "One reader that stalls",
        "W1 with {stalled} of {viewers:,} viewers never reading; `no stall` has the others alone. p99 is of the others.",
        Shape(viewers=1000, rate=50, stalled=1),
        {"viewers": 200, "secs": 1, "settle_ms": 400},
        (Turn("relay"), Turn("relay", "relay, no stall", {"viewers": 999, "stalled": 0})),
        live,
        "p99_ms",
        ("deliveries_per_cpu_s", "p50_ms", "p999_ms", "rss_grown_mb"),
        less_is_better=True,
    ),
    "ingest": Workload(
        "Making events durable, nobody watching",
        "{runs:,} runs: {rate:g} events/s on each for {secs:g} s (paced), then {events} on each, 10 at a time, as fast as "
        "the upstream writes (flood).",
        Shape(runs=1000, rate=10, secs=4, events=100),
        {"runs": 100, "secs": 1, "events": 50},
        (Turn("relay"), Turn("redis-py pump")),
        ingest,
        "flood_events_per_cpu_s",
        (
            "flood_cpu_us_per_event", "flood_events_per_s", "paced_cpu_us_per_event", "paced_events_per_s",
            "flood_redis_us_per_event", "paced_redis_us_per_event",
        ),
    ),
    "start": Workload(
        "Starting",
        "{starts} starts of `relay serve` with a Redis that is there, until /readyz says 200; `spine` is a Python that "
        "imports aiohttp's server and redis-py, and does nothing. Bytecode is on disk, as when installed.",
        Shape(starts=11),
        {"starts": 2},
        (Turn("relay"), Turn("spine")),
        start,
        "ready_ms",
        ("start_cpu_ms", "base_rss_mb"),
        less_is_better=True,
    ),
    "W1-ws": Workload(
        "W1 over WebSocket",
        "{runs} run × {viewers:,} viewers × {rate:g} events/s for {secs:g} s. The C reference has SSE only.",
        Shape(viewers=1000, rate=50, websocket=True),
        {"viewers": 200, "secs": 1, "settle_ms": 400},
        _turns("relay", "c-each", "nchan", c_each={"websocket": False}),
        live,
        "deliveries_per_cpu_s",
        _RATE,
    ),
    "W2-ws": Workload(
        "W2 over WebSocket",
        "{runs} run × {viewers:,} viewers, bursts of {burst}; at most two on their way. The C reference has SSE only.",
        Shape(viewers=500, events=30_000, websocket=True),
        {"viewers": 100, "events": 5_000, "settle_ms": 400},
        _turns("relay", "c-batch", "nchan", c_batch={"websocket": False}, nchan={"events": 2_000}),
        live,
        "deliveries_per_cpu_s",
        _FLOOD,
    ),
}  # fmt: skip
"""By name, in the order they are run."""
