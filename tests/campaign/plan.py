"""The schedule of a campaign, decided by the seed alone: which fault, on what, when, for how long. Pure.

Two streams of rounds lie over each other. *Heavy* ones hit a whole process, Redis, or a relay's link; more than half of
them are followed by enough quiet for the next takeover to be measured, the others overlap on purpose. *Light* ones hit one
run's upstream stream or the viewers of one relay, and go on all the time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge


@dataclass(frozen=True, slots=True)
class Round:
    number: int
    at: float
    """Seconds after the start."""
    kind: str
    relay: int
    """Which relay process, where the fault hits one."""
    slot: int
    """Which of the runs then active, where it hits one (or its owner)."""
    seconds: float
    """How long the fault lasts, where it lasts."""
    pick: int
    """Seed of whatever else is chosen."""


@dataclass(frozen=True, slots=True)
class Kind:
    weight: float
    low_s: float = 0.0
    high_s: float = 0.0


HEAVY: dict[str, Kind] = {
    "relay.kill_owner": Kind(5, 0.2, 2.5),
    "relay.kill": Kind(1, 0.2, 2.5),
    "relay.kill_two": Kind(0.5, 0.2, 1.5),
    "relay.stop_owner": Kind(2, 3.5, 6.0),
    "relay.stop_briefly": Kind(1, 0.2, 2.5),
    "relay.drain_owner": Kind(3, 0.2, 1.5),
    "relay.drain": Kind(1, 0.2, 1.5),
    "relay.clock": Kind(1, 0.3, 6.0),
    "redis.kill": Kind(1.5, 0.1, 2.5),
    "redis.stop": Kind(1, 0.3, 4.5),
    "redis.pause": Kind(1, 0.3, 3.0),
    "redis.oom": Kind(0.7, 0.5, 2.5),
    "redis.noreplicas": Kind(0.5, 0.5, 2.5),
    "redis.flushall": Kind(2),
    "redis.lose_log": Kind(1),
    "redis.lose_state": Kind(1),
    "redis.script_flush": Kind(0.5),
    "redis.client_kill": Kind(0.7),
    "redis.bells_kill": Kind(0.7),
    "redis.clock": Kind(1.5, 0.3, 5.0),
    "redis.clock_days": Kind(0.4, 0.3, 5.0),
    "store_link.cut": Kind(1),
    "store_link.dark": Kind(1, 1.0, 6.0),
    "store_link.replies_lost": Kind(1, 0.5, 5.0),
    "store_link.latency": Kind(0.7, 1.0, 4.0),
    "store_link.refuse": Kind(0.7, 0.5, 4.0),
    "upstream_link.cut": Kind(1),
    "upstream_link.dark": Kind(1, 1.0, 6.0),
    "upstream_link.latency": Kind(0.7, 1.0, 4.0),
    "upstream_link.slow": Kind(0.5, 1.0, 4.0),
    "upstream_link.refuse": Kind(0.7, 0.5, 4.0),
    "upstream.outage": Kind(0.7, 0.2, 2.0),
}
LIGHT: dict[str, Kind] = {
    "upstream.cut": Kind(2),
    "upstream.eof": Kind(1),
    "upstream.junk": Kind(1),
    "upstream.half": Kind(2),
    "upstream.stall": Kind(1, 0.5, 6.0),
    "upstream.5xx": Kind(1),
    "upstream.429": Kind(0.7),
    "upstream.html": Kind(0.5),
    "upstream.drip": Kind(0.7),
    "upstream.crlf": Kind(0.5),
    "upstream.slow_answer": Kind(0.7, 0.3, 3.0),
    "upstream.resend": Kind(2),
    "upstream.resend_all": Kind(1),
    "upstream.max_age": Kind(1, 0.05, 0.5),
    "upstream.chaos": Kind(2),
    "reader_link.cut": Kind(2),
    "reader_link.dark": Kind(1, 0.5, 5.0),
    "reader_link.latency": Kind(0.7, 0.5, 3.0),
    "reader_link.slow": Kind(0.7, 0.5, 3.0),
}
FAILOVERS: dict[str, dict[str, Kind]] = {
    "single": {},
    "sentinel": {"redis.failover": Kind(1.5), "redis.kill_master": Kind(2, 4.0, 8.0)},
    "cluster": {"redis.failover": Kind(1.5), "redis.kill_master": Kind(2, 4.0, 8.0)},
}
CLOCKS = ("redis.clock", "redis.clock_days", "relay.clock")
"""Kinds that need libfaketime."""
MEASURED = ("relay.kill_owner", "relay.kill", "relay.drain_owner", "relay.drain")
"""Kinds whose takeover is measured; they are given quiet before and after more often."""


def schedule(
    seed: int,
    rounds: int,
    *,
    topology: str = "single",
    relays: int = 3,
    slots: int = 8,
    seconds: float | None = None,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> list[Round]:
    """The first `rounds` rounds (fewer if `seconds` are over first), of any kind or `only` of these, `without` those."""
    heavy, light = (
        {name: kind for name, kind in kinds.items() if (not only or name in only) and name not in without}
        for kinds in ({**HEAVY, **FAILOVERS[topology]}, LIGHT)
    )
    streams = [
        _stream(random.Random(f"{seed}/{topology}/heavy"), heavy, _heavy_gap),
        _stream(random.Random(f"{seed}/{topology}/light"), light, lambda chance, _: chance.uniform(0.3, 2.0)),
    ]
    planned: list[Round] = []
    for at, kind, length, pick in merge(
        *(stream for stream, kinds in zip(streams, (heavy, light), strict=True) if kinds)
    ):
        if len(planned) >= rounds or (seconds is not None and at > seconds):
            break
        chance = random.Random(pick)
        planned.append(
            Round(len(planned) + 1, at, kind, chance.randrange(relays), chance.randrange(slots), length, pick)
        )
    return planned


def _stream(chance: random.Random, kinds: dict[str, Kind], gap: object) -> Iterator[tuple[float, str, float, int]]:
    assert callable(gap)
    at = 2.0
    names, weights = list(kinds), [kind.weight for kind in kinds.values()]
    name, length = "", 0.0
    while True:
        before = length
        name = chance.choices(names, weights)[0]
        length = chance.uniform(kinds[name].low_s, kinds[name].high_s)
        at += gap(chance, (before, name))
        yield at, name, length, chance.getrandbits(48)


def _heavy_gap(chance: random.Random, around: tuple[float, str]) -> float:
    """Quiet before a measured takeover, more often than not."""
    before, name = around
    quiet = 0.75 if name in MEASURED else 0.4
    if chance.random() < quiet:
        return min(before, 4.0) + chance.uniform(2.0, 4.0)
    return chance.uniform(0.3, 2.0)
