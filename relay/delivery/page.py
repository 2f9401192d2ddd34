"""A run's events as one JSON page: `{"events": […], "next_after_seq", "ended"}`, with an optional wait for the first.

`ended` is true only for the last page of a sealed run: "no more yet" and "no more ever" never look alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from msgspec import Raw

from relay.core.deltas import coalesced
from relay.core.events import Event, encode
from relay.core.filters import Types
from relay.core.wires import reset
from relay.fanout.hub import Hub
from relay.fanout.topic import Topic

_PAGE_BYTES = 4 * 1_048_576
_PATIENCE_S = 10.0
"""How long a page waits for events that have to be fetched again, before it says that there are none yet."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a page is asked for."""

    cursor: int
    limit: int
    types: Types | None = None
    wait_s: float = 0.0
    snapshot: bool = False
    """A fold instead of all events so far, for who has seen none (or only such that are void now)."""
    merged: bool = False
    """Adjacent deltas as one event; `limit` counts them before."""


class PageBody(NamedTuple):
    json: bytes
    lasts: Literal["for_ever", "a_while", "not"]
    """Whether the same request is answered with the same bytes later: a full page of a sealed run always is, its last one
    unless something comes behind the end after all."""


async def page(hub: Hub, topic: Topic, wish: Wish) -> PageBody:
    """The page behind a cursor; waits up to `wait_s` for a first event of a run that goes on.

    For events that have to be fetched from the upstream again it waits a little in any case.
    """
    began = time.monotonic()
    await topic.refresh()
    found = _Found(wish)
    while True:
        missing = not await found.fold(hub, topic) or await _collect(hub, topic, found, wish)
        ended = topic.sealed and found.cursor >= topic.state.last_seq
        left = began + (max(wish.wait_s, _PATIENCE_S) if missing else wish.wait_s) - time.monotonic()
        if found.events or found.snapshot or ended or left <= 0:
            return found.body(topic, ended=ended)
        if topic.last_seq > found.cursor:  # something came while we read, or something is being brought back
            left = min(left, 0.5 if missing else 0.05)
        await topic.changed(left)


class _Found:
    """What a page holds so far."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.cursor = wish.cursor
        """Behind what was looked at."""
        self.full = False
        self.snapshot: Raw | None = None
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

    async def fold(self, hub: Hub, topic: Topic) -> bool:
        """The snapshot, if one is asked for; false if it cannot be had right now."""
        rewritten = topic.state.rewritten(self.cursor)
        if not self.wish.snapshot or self.snapshot or (self.cursor and not rewritten):
            return True
        fold = await hub.snapshots.fold(topic)
        if fold is None:
            return False
        if rewritten:
            self.skip(topic.state.generation - 1, "rewritten")
        self.snapshot = Raw(encode(fold.data(self.wish.types)))
        self.cursor = max(self.cursor, fold.as_of_seq)
        return True

    def take(self, events: Sequence[Event]) -> bool:
        """Those that pass the filter, up to the bounds of a page; whether it is full."""
        types = self.wish.types
        for event in events:
            self.cursor = event.seq
            if types is None or types.allows(event.type):
                self.events.append(event)
                self.size += len(event.json)
            if len(self.events) >= self.wish.limit or self.size >= _PAGE_BYTES:
                self.full = True
                return True
        return False

    def body(self, topic: Topic, *, ended: bool) -> PageBody:
        tail: dict[str, object] = {"next_after_seq": self.cursor, "ended": ended}
        if self.missed is not None:
            tail["reset"] = reset(*self.missed, self.reason).data
        if self.snapshot is not None:
            tail["snapshot"] = self.snapshot
        events = coalesced(self.events) if self.wish.merged else self.events
        json = b'{"events":[%b],%b' % (b",".join([event.json for event in events]), encode(tail)[1:])
        if not topic.sealed or self.missed is not None:
            return PageBody(json, "not")
        return PageBody(json, "for_ever" if self.full and not ended else "a_while" if ended else "not")


async def _collect(hub: Hub, topic: Topic, found: _Found, wish: Wish) -> bool:
    """Fill the page; true if what comes next has to be fetched first."""
    if topic.state.rewritten(found.cursor):
        found.skip(topic.state.generation - 1, "rewritten")
    while True:
        most = max(1, min(wish.limit, int(_PAGE_BYTES / topic.mean_bytes)))
        behind = await hub.read(topic, found.cursor, most)
        if behind.where == "gone":
            if found.events:
                return False  # said at the beginning of the next page, where it belongs
            found.skip(behind.gone, "trimmed")
        elif found.take(behind.events):
            return False
        elif not behind.events or found.cursor >= max(topic.last_seq, topic.state.last_seq):
            return behind.where == "missing"
