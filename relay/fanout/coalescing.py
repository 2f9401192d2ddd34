"""A subscription that gets adjacent deltas merged: always and at a pace, or only while its client takes less than there is.

Merging and pace are steps that few readers differ in, so those who ask for about the same stand in one crowd.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Final

from relay.core.deltas import coalesced
from relay.core.events import Event
from relay.core.filters import Types
from relay.core.window import Slice
from relay.core.wires import AnyWire
from relay.fanout.history import History, Page
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic

_STEPS_MS: Final = (10_000, 5000, 2000, 1000, 500, 200, 100, 50, 20, 10)


@dataclass(frozen=True, slots=True)
class Coalesce:
    """How a reader takes merged deltas (`core.deltas`)."""

    pace_ms: int = 0
    """Always, and about this often at most (the next shorter step). 0: only while its connection is under pressure."""

    @property
    def step_s(self) -> float:
        return next((step for step in _STEPS_MS if step <= self.pace_ms), 0) / 1000


class CoalescingSubscription(Subscription):
    __slots__ = ("_merging", "_under_pressure_only", "pace_s")

    def __init__(
        self, topic: Topic, history: History, cursor: int, wire: AnyWire, types: Types | None, max_bytes: int,
        coalesce: Coalesce,
    ) -> None:  # fmt: skip
        super().__init__(topic, history, cursor, wire, types, max_bytes)
        self.pace_s = coalesce.step_s
        self._under_pressure_only = not coalesce.pace_ms
        self._merging = not self._under_pressure_only

    @property
    def _key(self) -> Hashable:
        """Of the wire as it is now: a WebSocket learns only in its handshake which one it is."""
        return ("coalesced", self.wire.key, self.types)

    @property
    def share(self) -> Hashable:
        return (self._key, self._max_bytes, self.pace_s) if self._merging else super().share

    def pressed(self, *, yes: bool) -> None:
        if self._under_pressure_only:
            self._merging = yes

    def take(self) -> Slice | None:
        if not self._merging:
            return super().take()
        found: Slice | None = self.topic.window.told(self.cursor, self._key, self._max_bytes, self._merged)
        if found is not None:
            self.cursor = found.upto
        return found

    def _slice_of(self, page: Page) -> Slice:
        if not self._merging:
            return super()._slice_of(page)
        found: Slice = page.told(self._key, self._merged)
        self.cursor = found.upto
        return found

    def _merged(self, events: Sequence[Event]) -> Slice:
        wanted = [event for event in events if self.types is None or self.types.allows(event.type)]
        merged = coalesced(wanted)
        return Slice(self.wire.events(merged), events[-1].seq, len(merged), wanted[-1].seq if wanted else 0)
