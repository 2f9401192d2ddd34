"""One run of a connection that reads many: its subscription, and whether it waits for its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from relay.core.ids import RunKey
from relay.fanout.subscription import Subscription

SLICE_BYTES: Final = 65_536
"""About how much one run gives before it is the turn of the next; an event is never cut."""


class Strand:
    """One run of a connection."""

    __slots__ = ("_ring", "expires_at", "key", "leave", "own_right", "queued", "sub", "told")

    def __init__(
        self,
        key: RunKey,
        sub: Subscription,
        ring: Callable[[Strand], None],
        leave: Callable[[], None],
        expires_at: float | None,
        own_right: bool,
    ) -> None:
        self.key = key
        self.sub = sub
        self.leave = leave
        """Lets go of the run."""
        self.expires_at = expires_at
        """When the right to read this run ends, by our monotonic clock; None for never."""
        self.own_right = own_right
        """It is not the connection's: other credentials of the connection change nothing."""
        self.queued = False
        """It has its place among those who have something, and need not ring."""
        self.told = sub.cursor
        """The last seq the client knows of."""
        self._ring = ring

    def flush(self) -> None:
        """Called by the topic: there is something new."""
        if not self.queued:
            self._ring(self)

    @property
    def has_more(self) -> bool:
        return self.sub.cursor < self.sub.topic.window.last_seq
