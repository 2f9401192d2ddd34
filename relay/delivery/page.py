"""A run's events as one JSON page: `{"events": […], "next_after_seq", "ended"}`, with an optional wait for the first.

`ended` is true only for the last page of a sealed run: "no more yet" and "no more ever" never look alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from relay.core.events import Event, encode
from relay.core.filters import Types
from relay.core.wires import reset
from relay.fanout.hub import Hub
from relay.fanout.topic import Topic

_PAGE_BYTES = 4 * 1_048_576
_PATIENCE_S = 10.0
"""How long a page waits for events that have to be fetched again, before it says that there are none yet."""


async def page(hub: Hub, topic: Topic, cursor: int, *, limit: int, types: Types | None, wait_s: float) -> bytes:
    """The JSON of the page behind `cursor`; waits up to `wait_s` for a first event of a run that goes on.

    For events that have to be fetched from the upstream again it waits a little in any case.
    """
    began = time.monotonic()
    await topic.refresh()
    found = _Found(cursor)
    while True:
        missing = await _collect(hub, topic, found, limit, types)
        ended = topic.sealed and found.cursor >= topic.state.last_seq
        left = began + (max(wait_s, _PATIENCE_S) if missing else wait_s) - time.monotonic()
        if found.events or ended or left <= 0:
            return found.json(ended=ended)
        if topic.last_seq > found.cursor:  # something came while we read, or something is being brought back
            left = min(left, 0.5 if missing else 0.05)
        await topic.changed(left)


class _Found:
    """What a page holds so far."""

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        """Behind what was looked at."""
        self.events: list[Event] = []
        self.size = 0
        self.reason = "trimmed"
        self.missed: tuple[int, int] | None = None
        """Events that can no longer be had, before those of the page."""

    def skip(self, upto: int, reason: str) -> None:
        """Go on behind what cannot be had; who has seen nothing of what was rewritten need not be told of it."""
        if self.cursor or reason != "rewritten":
            self.missed = (self.missed[0] if self.missed else self.cursor + 1, upto)
            self.reason = reason
        self.cursor = upto

    def take(self, events: Sequence[Event], limit: int, types: Types | None) -> bool:
        """Those that pass the filter, up to the bounds of a page; whether it is full."""
        for event in events:
            self.cursor = event.seq
            if types is None or types.allows(event.type):
                self.events.append(event)
                self.size += len(event.json)
            if len(self.events) >= limit or self.size >= _PAGE_BYTES:
                return True
        return False

    def json(self, *, ended: bool) -> bytes:
        tail: dict[str, object] = {"next_after_seq": self.cursor, "ended": ended}
        if self.missed is not None:
            tail["reset"] = reset(*self.missed, self.reason).data
        return b'{"events":[%b],%b' % (b",".join([event.json for event in self.events]), encode(tail)[1:])


async def _collect(hub: Hub, topic: Topic, found: _Found, limit: int, types: Types | None) -> bool:
    """Fill the page; true if what comes next has to be fetched first."""
    if topic.state.rewritten(found.cursor):
        found.skip(topic.state.generation - 1, "rewritten")
    while True:
        most = max(1, min(limit, int(_PAGE_BYTES / topic.mean_bytes)))
        behind = await hub.read(topic, found.cursor, most)
        if behind.where == "gone":
            if found.events:
                return False  # said at the beginning of the next page, where it belongs
            found.skip(behind.gone, "trimmed")
        elif found.take(behind.events, limit, types):
            return False
        elif not behind.events or found.cursor >= max(topic.last_seq, topic.state.last_seq):
            return behind.where == "missing"
