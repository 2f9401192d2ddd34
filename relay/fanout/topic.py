"""One watched run in this process: its window, what is known of its state, and the live streams that get its events.

`publish` is the only way events come in, in seq order, from the follower alone. It never waits and never fails for a
reader's sake: all live streams of a topic are flushed once per turn of the event loop, however many events that turn
brought, and a stream that cannot take more leaves the live set and catches up by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from relay.core.events import Event
from relay.core.ids import RunKey
from relay.core.window import Window
from relay.store.log import LogState


class Live(Protocol):
    """A stream at the live edge."""

    def flush(self) -> None:
        """Write what is new, now, without waiting. Called once per turn; must not raise."""


class Topic:
    __slots__ = (
        "_changed",
        "_limit",
        "_refresh",
        "_scheduled",
        "key",
        "live",
        "mean_bytes",
        "readers",
        "ready",
        "state",
        "unreachable",
        "window",
    )

    def __init__(
        self, key: RunKey, limit: Callable[[], int], refresh: Callable[[Topic], Awaitable[None]] | None = None
    ) -> None:
        self.key = key
        self.window = Window(0)
        self.state = LogState()
        self.live: set[Live] = set()
        self.readers = 0
        """Open subscriptions; the hub lets go of a topic without any."""
        self.ready = asyncio.Event()
        """Set once the bell is heard and the log's position is known: nothing can be missed from here on."""
        self.unreachable: dict[int, float] = {}
        """Cursors behind which the log was trimmed and nothing was fetched yet, and until when (monotonic) that is taken
        for still true: a crowd that waits at one cursor asks once. Void as soon as something is fetched."""
        self.mean_bytes = 4096.0
        """About how large an event of this run is; decides how many are read at once."""
        self._limit = limit
        self._refresh = refresh
        self._changed = asyncio.Event()
        self._scheduled = False

    @property
    def last_seq(self) -> int:
        return self.window.last_seq

    @property
    def sealed(self) -> bool:
        """Nothing more will ever come, and everything there is has been published here."""
        return self.state.sealed and self.window.last_seq >= self.state.last_seq

    def start(self, state: LogState) -> None:
        """The log's position at the moment the bell was first heard; what lies before is read from the log."""
        self.state = state
        self.window = Window(state.last_seq)
        self.ready.set()

    def restart(self, floor: int) -> None:
        """What followed the window was trimmed before it was read here: the window begins anew behind it."""
        self.window = Window(floor)
        self.announce()

    def fetched(self) -> None:
        """Something of the trimmed head was fetched again: wake who waits for it. The live streams do not."""
        self.unreachable = {}
        self._wake()

    async def refresh(self) -> None:
        """Learn now where the log stands, instead of at the next bell. Raises StoreUnavailable."""
        if self._refresh is not None:
            await self._refresh(self)

    def publish(self, events: Sequence[Event]) -> int:
        """Add events to the window and let the live streams know. Returns how many were new."""
        for event in events:
            self.mean_bytes += (len(event.json) - self.mean_bytes) * 0.05
        fresh = self.window.publish(events, self._limit())
        if fresh:
            self.announce()
        return fresh

    def learn(self, state: LogState) -> None:
        """What Redis says of the run now."""
        changed = state != self.state
        self.state = state
        if changed:
            self.announce()

    def announce(self) -> None:
        """Something changed: flush the live streams and wake who waits, once per turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._tell)

    async def changed(self, within_s: float) -> bool:
        """Wait for the next change, but not for ever; whether one came. Cancelling one who waits touches no other."""
        try:
            async with asyncio.timeout(within_s):
                return await self._changed.wait()
        except TimeoutError:
            return False

    def _tell(self) -> None:
        self._scheduled = False
        self._wake()
        for stream in tuple(self.live):
            stream.flush()

    def _wake(self) -> None:
        before, self._changed = self._changed, asyncio.Event()
        before.set()
