"""One watched run in this process: its window, what is known of its state, and the live streams that get its events.

`publish` is the only way events come in, in seq order, from the follower alone. It never waits and never fails for a
reader's sake: all live streams of a topic are flushed together, at most once per turn of the event loop, however many
events that turn brought, and a stream that cannot take more leaves and catches up by itself. Live streams that are told
alike stand together in a crowd; under load the flushes of a topic are paced (relay.fanout.pace).
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from relay.core.events import Event
from relay.core.filters import Types
from relay.core.fold import Fold
from relay.core.ids import RunKey
from relay.core.window import Slice, Window
from relay.fanout.crowd import Crowd, Member
from relay.fanout.pace import Flushes, Pace
from relay.store.log import LogState, Seen

if TYPE_CHECKING:
    from relay.fanout.subscription import Subscription

UNSEEN_BYTES: Final = 4096.0
"""How large we take an event of a run to be before we have seen one."""


class Live(Protocol):
    """What follows a topic in a way of its own, outside the crowds."""

    def flush(self) -> None:
        """Write what is new, now, without waiting. Must not raise."""


class Topic:
    __slots__ = (
        "_changed",
        "_later",
        "_limit",
        "_pace",
        "_refresh",
        "_waiting",
        "bell",
        "crowds",
        "fold",
        "folding",
        "key",
        "left",
        "live",
        "mean_bytes",
        "readers",
        "ready",
        "snapshots",
        "state",
        "unreachable",
        "unwatched",
        "window",
    )

    def __init__(
        self,
        key: RunKey,
        limit: Callable[[], int],
        refresh: Callable[[Topic], Awaitable[None]] | None = None,
        flushes: Flushes | None = None,
    ) -> None:
        """`limit`: bytes its window may have now. `flushes`: those of all runs of the process."""
        self.key = key
        self.window = Window(0)
        self.state = LogState()
        self.crowds: dict[tuple[int, Hashable], Crowd] = {}
        """The live streams, by where they stand and how they are told; one that is alone, by where it stood once."""
        self.live: set[Live] = set()
        self._later: asyncio.TimerHandle | None = None
        """Rings when a crowd that takes its time is due."""
        self.fold: Fold | None = None
        """Of what was published here, once somebody asked for a snapshot; kept by `fanout.snapshots` alone."""
        self.folding = asyncio.Lock()
        self.snapshots: dict[tuple[int, Types | None], Slice] = {}
        self.readers = 0
        """Open subscriptions; the hub lets go of a topic without any."""
        self.left: Callable[[], None] = _nothing
        """What a reader calls when it goes; the hub's, one for all readers."""
        self.unwatched: Callable[[], None] = _nothing
        """What one calls who had made the run wanted."""
        self.ready = asyncio.Event()
        """Set once the bell is heard and the log's position is known: nothing can be missed from here on."""
        self.unreachable: dict[int, float] = {}
        """Cursors behind which the log was trimmed and nothing was fetched yet, and until when (monotonic) that is taken
        for still true: a crowd that waits at one cursor asks once. Void as soon as something is fetched."""
        self.bell = -1
        """The seq that its bell told last since it was subscribed; -1: none yet."""
        self.mean_bytes = UNSEEN_BYTES
        """About how large an event of this run is; decides how many are read at once."""
        self._limit = limit
        self._refresh = refresh
        self._changed = asyncio.Event()
        self._pace = Pace(self._flush, flushes)
        self._waiting = 0

    @property
    def last_seq(self) -> int:
        return self.window.last_seq

    @property
    def seen(self) -> Seen:
        """What was shown here, and of which log."""
        return Seen(self.last_seq, self.state.born)

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
        if self._waiting:
            self._wake()

    async def refresh(self) -> None:
        """Learn now where the log stands, instead of at the next bell. Raises StoreUnavailable."""
        if self._refresh is not None:
            await self._refresh(self)

    def publish(self, events: Sequence[Event]) -> int:
        """Add events to the window and let the live streams know. Returns how many were new."""
        mean = self.mean_bytes
        for event in events:
            mean += (len(event.json) - mean) * 0.05
        self.mean_bytes = mean
        fresh = self.window.publish(events, self._limit())
        if fresh:
            self._pace.ask()
        return fresh

    def learn(self, state: LogState) -> None:
        """What Redis says of the run now."""
        changed = state != self.state
        self.state = state
        if changed:
            self.announce()

    def announce(self) -> None:
        """Something changed: wake who waits, and flush the live streams as soon as the pace allows."""
        self._pace.ask()

    def close(self) -> None:
        """Nobody reads it any more. It holds itself no longer: its window is freed now, not when garbage is looked for."""
        self.left = self.unwatched = _nothing
        self._pace = Pace(_nothing)
        if self._later is not None:
            self._later.cancel()
            self._later = None

    # --- the live streams -------------------------------------------------------------------------------------------
    @property
    def live_count(self) -> int:
        return len(self.live) + sum(len(crowd.members) for crowd in self.crowds.values())

    def join(self, member: Member, sub: Subscription) -> Crowd:
        """Nothing is to be done for this reader but to wait; from now on it is told together with all like it."""
        self._place_alone()
        key = (sub.cursor, sub.share)
        crowd = self.crowds.get(key)
        if crowd is None:
            crowd = self.crowds[key] = Crowd(key, copy.copy(sub))
        crowd.add(member)
        return crowd

    def _place_alone(self) -> None:
        """Note where the only crowd stands: until now nobody has asked."""
        if len(self.crowds) == 1:
            [crowd] = self.crowds.values()
            if crowd.key[0] != crowd.front.cursor:
                self.crowds = {}
                self._settle(crowd)

    def leave(self, crowd: Crowd, member: Member) -> None:
        crowd.drop(member)
        if not crowd.members and self.crowds.get(crowd.key) is crowd:
            del self.crowds[crowd.key]

    def _flush(self) -> None:
        if self._waiting:  # seldom: live streams do not wait
            self._wake()
        if self.live:
            for stream in tuple(self.live):
                stream.flush()
        if len(self.crowds) == 1:
            self._move_alone()
        elif self.crowds:
            self._move_all()

    def _move_alone(self) -> None:
        """The only crowd meets no other, so it stays where it is: where it stands is noted when somebody asks."""
        [crowd] = self.crowds.values()
        if crowd.pace_s and crowd.wait_s > 0:
            self._ring_later(crowd)
            return
        onward = False
        try:
            onward = crowd.flush()
        finally:
            if not onward:
                self.crowds.pop(crowd.key, None)
                crowd.dismiss()

    def _move_all(self) -> None:
        moving, self.crowds = self.crowds, {}
        try:
            while moving:
                _, crowd = moving.popitem()
                if crowd.pace_s and crowd.wait_s > 0:
                    self._hold_back(crowd)
                else:
                    self._move(crowd)
        finally:  # one that breaks takes no other with it
            for crowd in moving.values():
                self._settle(crowd)
                self.announce()

    def _move(self, crowd: Crowd) -> None:
        onward = False
        try:
            onward = crowd.flush()
        finally:
            if onward:
                self._settle(crowd)
            else:
                crowd.dismiss()

    def _hold_back(self, crowd: Crowd) -> None:
        self._settle(crowd)
        self._ring_later(crowd)

    def _ring_later(self, crowd: Crowd) -> None:
        loop, wait_s = asyncio.get_running_loop(), crowd.wait_s
        if self._later is not None:
            if self._later.when() <= loop.time() + wait_s:
                return
            self._later.cancel()
        self._later = loop.call_later(wait_s, self._is_due)

    def _is_due(self) -> None:
        self._later = None
        self.announce()

    def _settle(self, crowd: Crowd) -> None:
        """A crowd has moved: where it stands now others may stand already."""
        key = (crowd.front.cursor, crowd.front.share)
        there = self.crowds.get(key)
        if there is not None and len(there.members) < len(crowd.members):
            there.join(crowd)
        elif there is not None:
            crowd.join(there)
            return
        if crowd.members:
            crowd.key = key
            self.crowds[key] = crowd

    async def changed(self, within_s: float) -> bool:
        """Wait for the next change, but not for ever; whether one came. Cancelling one who waits touches no other."""
        self._waiting += 1
        try:
            async with asyncio.timeout(within_s):
                return await self._changed.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1

    def _wake(self) -> None:
        before, self._changed = self._changed, asyncio.Event()
        before.set()


def _nothing() -> None:
    """Nobody but its maker holds this topic."""
