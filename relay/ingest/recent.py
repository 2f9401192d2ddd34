"""What passed since an owner last folded a run, of the few runs that grow so fast that it folds them again and again.

It was confirmed by Redis, row behind row, so the next fold need not read it back. A convenience and nothing more: held for
one look, and only so many bytes for all runs together; who finds nothing here, or not from where it needs it, asks the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from relay.core.events import Event
from relay.core.ids import RunKey

_BYTES: Final = 8 * 1_048_576
"""Of events' JSON, for all runs together; what readers here wait for is mostly the same objects."""


class Tail:
    """Events of one run, without a hole, from behind `prev` to `last`."""

    __slots__ = ("events", "last", "prev", "size")

    def __init__(self) -> None:
        self.prev = self.last = -1
        """-1: nothing has come yet, it may go on from anywhere."""
        self.events: list[Event] = []
        self.size = 0

    def reaches(self, seq: int) -> bool:
        """Whether it holds everything behind this seq that the log held when it ended."""
        return 0 <= self.prev <= seq <= self.last


class Recent:
    def __init__(self, most_bytes: int = _BYTES) -> None:
        self._most = most_bytes
        self._size = 0
        self._tails: dict[RunKey, Tail] = {}

    def follow(self, key: RunKey) -> None:
        """Keep what comes of this run from now on."""
        self._tails.setdefault(key, Tail())

    def only(self, keys: Iterable[RunKey]) -> None:
        """Let go of all other runs."""
        kept = set(keys)
        for key in [key for key in self._tails if key not in kept]:
            self.take(key)

    def heard(self, key: RunKey, prev: int, events: Sequence[Event]) -> None:
        """Redis has confirmed these, written behind `prev`."""
        tail = self._tails.get(key)
        if tail is None:
            return
        if tail.last != prev:  # the first, or another owner wrote in between
            self.take(key)
            tail = self._tails[key] = Tail()
            tail.prev = prev
        tail.events += events
        tail.last = events[-1].seq
        size = sum([len(event.json) for event in events])
        tail.size += size
        self._size += size
        if self._size > self._most:
            self.take(key)

    def take(self, key: RunKey) -> Tail:
        """What is held of a run, which is not followed any more; empty if there is nothing."""
        tail = self._tails.pop(key, None) or Tail()
        self._size -= tail.size
        return tail
