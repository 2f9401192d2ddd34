"""A subscription of a face that tells a run as a fold: a cursor, and the fold's state there.

The state follows from the run's events and the place where the reader began, so readers with the same fold, beginning
and cursor share the bytes, and the state after them, through the window and the pages of history like all others.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from relay.core.events import Event
from relay.core.faces import Fold
from relay.core.window import Slice
from relay.core.wires import AnyWire, Notice
from relay.fanout.history import History, Page
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic


class _Telling(NamedTuple):
    slice: Slice
    state: Any


class FoldSubscription(Subscription):
    __slots__ = ("_fold", "_key", "_state")
    early = True

    def __init__(self, topic: Topic, history: History, cursor: int, wire: AnyWire, fold: Fold, max_bytes: int) -> None:
        super().__init__(topic, history, cursor, wire, None, max_bytes)
        self._fold = fold
        self._state = fold.begin()
        self._key: tuple[Hashable, ...] = (wire.key, fold.key, cursor)

    @property
    def share(self) -> Hashable:
        return (self._key, self._max_bytes)

    def follow(self, front: Subscription) -> None:
        assert isinstance(front, FoldSubscription)
        super().follow(front)
        self._state = front._state

    @property
    def over(self) -> bool:
        """All that this face can tell is told, or it ends here for now."""
        if self._fold.over(self._state):
            return True
        at_end = self.cursor >= max(self.topic.last_seq, self.topic.state.last_seq)
        return at_end and self._fold.resting(self._state)

    @property
    def behind(self) -> bool:
        return not self._fold.over(self._state) and super().behind

    @property
    def ended(self) -> bool:
        return self.over or super().ended

    def take(self) -> Slice | None:
        if self._fold.over(self._state):
            return None
        telling = self.topic.window.told(self.cursor, self._key, self._max_bytes, self._tell)
        return None if telling is None else self._moved(telling)

    async def read_back(self) -> Slice | Notice | None:
        part = await super().read_back()
        if isinstance(part, Notice):  # from here on its state is not that of one who saw everything
            self._key = (*self._key, self.cursor)
        return part

    def _slice_of(self, page: Page) -> Slice:
        return self._moved(page.told(self._key, self._tell))

    def _moved(self, telling: _Telling) -> Slice:
        self._state = telling.state
        self.cursor = telling.slice.upto
        return telling.slice

    def _tell(self, events: Sequence[Event]) -> _Telling:
        frames: list[bytes] = []
        state, upto = self._state, self.cursor
        for event in events:
            frame, state = self._fold.tell(state, event)
            upto = event.seq
            frames.append(frame)
            if self._fold.over(state):
                break
        return _Telling(Slice(self.wire.wrap(b"".join(frames)), upto, len(frames), upto), state)
