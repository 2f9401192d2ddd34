"""A reader's place in a run: a cursor and how to move it. Owns no queue and no task.

Replay, catching up and live are one piece of code: `take` gives what the window holds behind the cursor, `read_back`
what only the log still has, or the upstream. Nothing is handed over between history and live, so nothing can fall in
between.
"""

from __future__ import annotations

from collections.abc import Hashable

from relay.core.filters import Types
from relay.core.window import Slice
from relay.core.wires import AnyWire, Notice, reset
from relay.fanout.history import Gone, History, Page
from relay.fanout.topic import Topic


class Subscription:
    __slots__ = ("_history", "_max_bytes", "cursor", "topic", "types", "wire")

    def __init__(
        self, topic: Topic, history: History, cursor: int, wire: AnyWire, types: Types | None, max_bytes: int
    ) -> None:
        self.topic = topic
        self.cursor = cursor
        """The last seq this reader has seen, filtered ones included."""
        self.wire = wire
        self.types = types
        self._history = history
        self._max_bytes = max_bytes

    early = False
    """Whether it may end before its run is sealed."""

    @property
    def share(self) -> Hashable:
        """Readers with equal shares who stand at one cursor are told the very same bytes."""
        return (self.wire.key, self.types, self._max_bytes)

    def follow(self, front: Subscription) -> None:
        """Stand where this one stands, which shares with it."""
        self.cursor = front.cursor

    @property
    def waiting(self) -> bool:
        """It has all there is, of a run (or of a face's telling) that is not over: nothing is to be done but to wait."""
        topic = self.topic
        return self.cursor >= topic.window.last_seq and not ((topic.state.sealed or self.early) and self.ended)

    @property
    def behind(self) -> bool:
        """What comes next is not in the window: the log has it, or what was fetched again, or nobody any more."""
        return self.cursor < self.topic.window.floor

    @property
    def ended(self) -> bool:
        """No more ever, and this reader has all of it."""
        return self.topic.sealed and self.cursor >= self.topic.state.last_seq

    def take(self) -> Slice | None:
        """The next events of the window; None at the live edge, or behind."""
        found = self.topic.window.after(self.cursor, self.wire, self.types, self._max_bytes)
        if found is not None:
            self.cursor = found.upto
        return found

    async def read_back(self) -> Slice | Notice | None:
        """The next events before the window, or the notice that they are gone; None if they cannot be had right now."""
        if self.topic.state.rewritten(self.cursor):
            return self._missed(self.topic.state.generation - 1, "rewritten")
        page = await self._history.page(self.topic, self.cursor)
        if page is None:
            return None
        if isinstance(page, Gone):
            await self.topic.refresh()  # is it a new generation?
            return self._missed(page.upto, "rewritten" if self.topic.state.rewritten(self.cursor) else "trimmed")
        return self._slice_of(page)

    def _slice_of(self, page: Page) -> Slice:
        found = page.slice(self.wire, self.types)
        self.cursor = found.upto
        return found

    def _missed(self, upto: int, reason: str) -> Slice | Notice:
        """Go on behind what cannot be had; who has seen nothing of what was rewritten need not be told of it."""
        before, self.cursor = self.cursor, upto
        if reason == "rewritten" and not before:
            return Slice(b"", upto, 0, 0)
        return reset(before + 1, upto, reason)
