"""A late joiner of one long run: what it costs to be up to date, with a snapshot and without.

One viewer after the other, each on a connection of its own and with one request. Correct is: the snapshot holds exactly the
text of all deltas up to its seq, and the events after it follow without gap up to the run's last one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import aiohttp
import orjson

from benchmarks import machine
from benchmarks.contest import Contestant, Sourced
from benchmarks.load import Violation
from benchmarks.measure import Arena, Row, Shape, payload_bytes, watched
from benchmarks.upstream import DELTA
from relay.core.sse import Decoder


@dataclass(slots=True)
class Joined:
    """What one late joiner saw."""

    first_ms: float = 0.0
    """From the request to the first whole frame with content."""
    whole_ms: float = 0.0
    bytes: int = 0
    """Of the body, until it was up to date."""
    text: list[str] = field(default_factory=list)
    """In pieces."""
    seq: int = 0


async def late(arena: Arena, who: Contestant, shape: Shape) -> Row:
    async with who.up(1) as stand:
        assert isinstance(stand, Sourced)
        await stand.writer(0, shape.events, payload_bytes(arena, stand, shape))
        await stand.pumped(1)
        await stand.durable(stand.keys(1), shape.events)
        await machine.settled(stand.pids)
        cpu = machine.cpu_s(stand.pids)
        async with watched(arena, stand, Shape(settle_ms=0)):
            seen = [await _join(stand, shape) for _ in range(shape.viewers)]
        used = machine.cpu_s(stand.pids) - cpu
    for one in seen:
        if one.seq != shape.events or "".join(one.text) != DELTA * shape.events:
            raise Violation(f"relay: a late joiner is at seq {one.seq} of {shape.events}, or has another text")
    size = median(one.bytes for one in seen)
    return {
        "late_kb": size / 1024,
        "bytes_beyond_text": max(0.0, size - 4096) / len(DELTA * shape.events),
        "first_frame_ms": median(one.first_ms for one in seen),
        "caught_up_ms": median(one.whole_ms for one in seen),
        "cpu_ms_per_joiner": 1000 * used / len(seen),
        "faults": [],
    }


async def _join(stand: Sourced, shape: Shape) -> Joined:
    joined, decoder, began = Joined(), Decoder(), time.monotonic()
    url = f"http://127.0.0.1:{stand.port}{stand.live.replace('%d', '0')}"
    query = {"snapshot": "1"} if shape.snapshot else {}
    async with aiohttp.ClientSession() as session, session.get(url, params=query) as response:
        if response.status != 200:
            raise RuntimeError(f"relay answered {response.status}: {(await response.read())[:300]!r}")
        async for chunk in response.content.iter_any():
            joined.bytes += len(chunk)
            for message in decoder.feed(chunk):
                joined.first_ms = joined.first_ms or 1000 * (time.monotonic() - began)
                _take(joined, message.event, orjson.loads(message.data))
            if joined.seq >= shape.events:
                break
    joined.whole_ms = 1000 * (time.monotonic() - began)
    return joined


def _take(joined: Joined, kind: str, data: dict[str, Any]) -> None:
    if kind == "relay.snapshot":
        joined.seq = data["as_of_seq"]
        joined.text = [message["text"] for message in data["messages"]]
    elif data.get("type") == "message.delta":
        if data["seq"] != joined.seq + 1:
            raise Violation(f"relay: seq {data['seq']} after {joined.seq}")
        joined.seq = data["seq"]
        joined.text.append(data["data"]["content"])
