"""A run's events as one JSON page: `{"events": […], "next_after_seq", "ended"}`, with an optional wait for the first.

`ended` is true only for the last page of a sealed run: "no more yet" and "no more ever" never look alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from relay.core.events import Event, encode
from relay.core.filters import Types
from relay.core.wires import reset
from relay.fanout.topic import Topic
from relay.store.log import Log

_PAGE_BYTES = 4 * 1_048_576


async def page(topic: Topic, log: Log, cursor: int, *, limit: int, types: Types | None, wait_s: float) -> bytes:
    """The JSON of the page behind `cursor`; waits up to `wait_s` for a first event of a run that goes on."""
    deadline = time.monotonic() + wait_s
    missed: dict[str, object] | None = None
    await topic.refresh()
    while True:
        if topic.state.floor > cursor:
            missed = reset(cursor + 1, topic.state.floor, "trimmed").data
            cursor = topic.state.floor
        events, cursor = await _wanted(topic, log, cursor, limit, types)
        ended = topic.sealed and cursor >= topic.state.last_seq
        left = deadline - time.monotonic()
        if events or ended or left <= 0:
            return _json(events, cursor, ended=ended, missed=missed)
        if topic.last_seq <= cursor:  # else something came while we read
            await topic.changed(left)


async def _wanted(topic: Topic, log: Log, cursor: int, limit: int, types: Types | None) -> tuple[list[Event], int]:
    """Up to `limit` events that pass the filter, and the cursor behind what was looked at."""
    found: list[Event] = []
    size = 0
    while len(found) < limit and size < _PAGE_BYTES:
        most = max(1, min(limit, int(_PAGE_BYTES / topic.mean_bytes)))
        events = (await log.read([(topic.key, cursor, most)]))[0]
        for event in events:
            cursor = event.seq
            if types is None or types.allows(event.type):
                found.append(event)
                size += len(event.json)
            if len(found) >= limit or size >= _PAGE_BYTES:
                break
        if len(events) < most:
            break
    return found, cursor


def _json(events: Sequence[Event], cursor: int, *, ended: bool, missed: dict[str, object] | None) -> bytes:
    tail = {"next_after_seq": cursor, "ended": ended} | ({"reset": missed} if missed else {})
    return b'{"events":[%b],%b' % (b",".join([event.json for event in events]), encode(tail)[1:])
