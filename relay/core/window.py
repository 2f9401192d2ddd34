"""The recent events of one watched run, and the one place where bytes for viewers are made.

A window covers every event with floor < seq <= last_seq. Readers are cursors: `after(cursor, …)` gives the joined bytes
that follow, memoised per cursor, wire and filter, so that a thousand viewers at one cursor share one bytes object. Who
stands below the floor reads the log instead. Bounded in bytes; the head is let go first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import Any, Final, NamedTuple

from relay.core.events import Event
from relay.core.filters import Types
from relay.core.wires import AnyWire

_MEMO = 256
"""Most slices remembered at once: live viewers share a few; readers catching up each ask for their own."""

_SEQ: Final = attrgetter("seq")


class Slice(NamedTuple):
    """What a reader is given in one turn."""

    data: bytes
    """Ready to be written; empty if the filter left nothing."""
    upto: int
    """The reader's cursor afterwards: filtered events count as seen."""
    sent: int
    """How many events `data` holds."""
    told: int
    """The seq of the last of them, which the client would resume from; 0 if there are none."""


def about(events: Sequence[Event], max_bytes: int) -> int:
    """How many of the first events are about `max_bytes`: at least one."""
    size, stop = 0, 0
    for event in events:
        size += len(event.json)
        stop += 1
        if size >= max_bytes:
            break
    return stop


def cut(events: Sequence[Event], wire: AnyWire, types: Types | None, max_bytes: int) -> Slice:
    """The first events of a non-empty sequence, about `max_bytes` of them (always at least one)."""
    if len(events) == 1 and types is None:  # what nearly every live reader is told
        seq = events[0].seq
        return Slice(wire.events(events), seq, 1, seq)
    stop = about(events, max_bytes)
    wanted = [event for event in events[:stop] if types is None or types.allows(event.type)]
    told = wanted[-1].seq if wanted else 0
    return Slice(wire.events(wanted), events[stop - 1].seq, len(wanted), told)


class Window:
    __slots__ = ("_events", "_memo", "_told", "floor", "last_seq", "size")

    def __init__(self, floor: int) -> None:
        self.floor = floor
        """Every event above it, up to last_seq, is here; nothing at or below it is."""
        self.size = 0
        """Bytes of event JSON held."""
        self._events: list[Event] = []
        self._memo: dict[tuple[int, int, int, Types | None], Slice] = {}
        self._told: dict[tuple[int, Hashable], Any] = {}
        self.last_seq = floor
        """Of the newest event here; an attribute, because every delivery asks for it."""

    def __len__(self) -> int:
        return len(self._events)

    def publish(self, events: Sequence[Event], limit: int) -> int:
        """Add what is new, let go of the head beyond `limit` bytes, and return how many events were new.

        `events` in the order of their seqs.
        """
        if not events or events[-1].seq <= self.last_seq:
            return 0
        fresh = events
        if events[0].seq <= self.last_seq:
            fresh = [event for event in events if event.seq > self.last_seq]
        self._memo.clear()
        self._told.clear()
        self._events += fresh
        self.last_seq = fresh[-1].seq
        for event in fresh:
            self.size += len(event.json)
        if self.size > limit:
            self._shrink(limit)
        return len(fresh)

    def after(self, cursor: int, wire: AnyWire, types: Types | None, max_bytes: int) -> Slice | None:
        """The events behind `cursor`; None if there are none, or if the cursor is below the floor (ask the log)."""
        if cursor < self.floor or cursor >= self.last_seq:
            return None
        key = (cursor, max_bytes, wire.key, types)
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            found = cut(self.behind(cursor), wire, types, max_bytes)
            self._memo[key] = found
        return found

    def behind(self, cursor: int) -> Sequence[Event]:
        """The events behind a cursor that is not below the floor."""
        events = self._events
        if cursor >= self.last_seq:
            return ()
        if len(events) == 1 or events[-2].seq <= cursor:
            return events[-1:]  # as for nearly every live reader
        return events[bisect_right(events, cursor, key=_SEQ) :]

    def told(self, cursor: int, key: Hashable, max_bytes: int, tell: Callable[[Sequence[Event]], Any]) -> Any:
        """What `tell` makes of the events behind `cursor`, about `max_bytes` of them, remembered under `key`.

        None if there are none. Whoever gives an equal key must be told the same.
        """
        if cursor < self.floor or cursor >= self.last_seq:
            return None
        at = (cursor, key)
        found = self._told.get(at)
        if found is None:
            if len(self._told) >= _MEMO:
                self._told.clear()
            events = self.behind(cursor)
            found = self._told[at] = tell(events[: about(events, max_bytes)])
        return found

    def _shrink(self, limit: int) -> None:
        # Down to three quarters of the limit at once, so that the cost per published event stays constant.
        stop = 0
        while stop < len(self._events) - 1 and self.size > limit * 3 // 4:
            self.size -= len(self._events[stop].json)
            stop += 1
        if stop:
            self.floor = self._events[stop - 1].seq
            del self._events[:stop]
