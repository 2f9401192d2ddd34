"""A reader's place in a run: a cursor and how to move it. Owns no queue and no task.

Replay, catching up and live are one piece of code: `take` gives what the window holds behind the cursor, `read_back`
what only the log still has, or the upstream. Nothing is handed over between history and live, so nothing can fall in
between.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Final

from relay import telemetry
from relay.core.filters import Types
from relay.core.window import Slice
from relay.core.wires import AnyWire, Notice, reset
from relay.fanout.history import Gone, History, Page
from relay.fanout.snapshots import Snapshots
from relay.fanout.topic import Topic

_PRIMED_S: Final = 3.0
"""How long a first snapshot waits for a log that is being filled: a fold of half a history would not spare the rest."""


class Subscription:
    __slots__ = ("_due_since", "_history", "_max_bytes", "_snapshots", "cursor", "topic", "types", "wire")

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
        self._snapshots: Snapshots | None = None
        self._due_since: float | None = None
        """Since when a snapshot comes next, before any event."""

    early = False
    """Whether it may end before its run is sealed."""
    pace_s = 0.0
    """How often it is told at most; 0: whenever there is something new."""

    def folded(self, snapshots: Snapshots) -> None:
        """This reader takes snapshots: now, if it has seen nothing yet, and after every reset."""
        self._snapshots = snapshots
        if not self.cursor:
            self._due_since = time.monotonic()

    def pressed(self, *, yes: bool) -> None:
        """Its connection takes less than there is, or all of it again."""

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
        """What comes next is not in the window: a snapshot; the log has it, or what was fetched again, or nobody."""
        return self._due_since is not None or self.cursor < self.topic.window.floor

    @property
    def lag(self) -> int:
        """How many events it is behind: exact where seqs have no holes."""
        return max(0, self.topic.last_seq - max(self.cursor, self.topic.state.generation - 1))

    @property
    def ended(self) -> bool:
        """No more ever, and this reader has all of it."""
        topic = self.topic  # its properties cost a call each, and this is asked of everybody who comes
        return topic.state.sealed and topic.sealed and self.cursor >= topic.state.last_seq

    def take(self) -> Slice | None:
        """The next events of the window; None at the live edge, or behind."""
        found = self.topic.window.after(self.cursor, self.wire, self.types, self._max_bytes)
        if found is not None:
            self.cursor = found.upto
        return found

    async def read_back(self) -> Slice | Notice | None:
        """The snapshot that is due, the next events before the window, or the notice that they are gone.

        None if that cannot be had right now. Raises StoreUnavailable.
        """
        if self._due_since is not None:
            return await self._snapshot(self._due_since)
        if self.topic.state.rewritten(self.cursor):
            return self._missed(self.topic.state.generation - 1, "rewritten")
        page = await self._history.page(self.topic, self.cursor)
        if page is None:
            return None
        if isinstance(page, Gone):
            await self.topic.refresh()  # is it a new generation?
            return self._missed(page.upto, "rewritten" if self.topic.state.rewritten(self.cursor) else "trimmed")
        return self._slice_of(page)

    async def _snapshot(self, since: float) -> Slice | None:
        assert self._snapshots is not None
        state = self.topic.state
        if not (state.primed or state.sealed or self.cursor) and time.monotonic() - since < _PRIMED_S:
            return None
        found = await self._snapshots.slice(self.topic, self.wire, self.types)
        if found is not None:
            self.cursor, self._due_since = found.upto, None
            telemetry.SNAPSHOTS.labels(self.wire.form).inc()
        return found

    def _slice_of(self, page: Page) -> Slice:
        found = page.slice(self.wire, self.types)
        self.cursor = found.upto
        return found

    def _missed(self, upto: int, reason: str) -> Slice | Notice:
        """Go on behind what cannot be had; who has seen nothing of what was rewritten need not be told of it."""
        before, self.cursor = self.cursor, upto
        if self._snapshots is not None:
            self._due_since = time.monotonic()
        if reason == "rewritten" and not before:
            return Slice(b"", upto, 0, 0)
        return reset(1 if reason == "rewritten" else before + 1, upto, reason)
