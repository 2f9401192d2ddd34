"""The runs watched in this process: opens a topic with its first reader, lets go of it with the last.

The hub also says that a run is wanted (so that somebody pumps it) for as long as it is watched and not sealed, and bounds
the memory of all windows together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

from relay import telemetry
from relay.core.errors import StoreUnavailable
from relay.core.faces import Fold
from relay.core.filters import Types
from relay.core.hold import Hold
from relay.core.ids import RunKey
from relay.core.wires import AnyWire
from relay.fanout.coalescing import Coalesce, CoalescingSubscription
from relay.fanout.folding import FoldSubscription
from relay.fanout.follower import Follower
from relay.fanout.history import History
from relay.fanout.options import FanoutOptions
from relay.fanout.pace import Flushes
from relay.fanout.snapshots import Snapshots
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic
from relay.store.log import Log, Seen
from relay.store.old import Behind
from relay.store.redis import Store

_READY_S = 5.0


class Wants(Protocol):
    """Who makes sure that wanted runs are pumped."""

    def watch(self, key: RunKey) -> None: ...

    def unwatch(self, key: RunKey) -> None: ...

    def want(self, key: RunKey) -> None: ...

    def orphaned(self, key: RunKey) -> None: ...

    async def probe(self, key: RunKey) -> None: ...

    async def decided(self, key: RunKey) -> None: ...

    def fetch(self, key: RunKey, after_seq: int) -> None:
        """Somebody reads behind `after_seq`, where the log was trimmed: have it fetched again. Said as long as it lasts."""


class Hub:
    def __init__(self, store: Store, log: Log, wants: Wants, options: FanoutOptions) -> None:
        self._options = options
        self._wants = wants
        self._topics: dict[tuple[str, str], Topic] = {}
        """By the parts of its run's name: who asks need not make a name first."""
        self._window_bytes = options.window_bytes
        """What each window may hold: its share of the memory, with so many topics as there are."""
        self._flushes = Flushes()
        self._follower = Follower(store, log, options, wants.orphaned)
        self.durable = self._follower.durable
        """Called with a run, a seq, and the events that this process has written behind it, once Redis has confirmed it.
        Never raises."""
        self._history = History(log, wants.fetch, page_bytes=options.page_bytes, memory_bytes=options.memory_bytes // 4)
        self.snapshots = Snapshots(log, self._history)
        telemetry.WINDOW_BYTES.set_function(lambda: sum(topic.window.size for topic in self._topics.values()))
        telemetry.TOPICS.set_function(lambda: len(self._topics))

    async def run(self) -> None:
        """For ever."""
        await self._follower.run()

    def watched(self, upstream: str, run_id: str) -> RunKey | None:
        """The name of a run that this process follows already (so there is no doubt that it exists); else None."""
        topic = self._topics.get((upstream, run_id))
        return topic.key if topic is not None and topic.window.last_seq > 0 and topic.ready.is_set() else None

    def shown(self, key: RunKey) -> Seen:
        """What was shown of a run to readers here; nothing of one that nobody watches."""
        topic = self._topics.get(key)
        return topic.seen if topic is not None and topic.ready.is_set() else Seen()

    def describe(self) -> list[dict[str, Any]]:
        """Every watched run, for people."""
        return [
            {
                "run": str(topic.key),
                "readers": topic.readers,
                "live": topic.live_count,
                "last_seq": topic.last_seq,
                "status": topic.state.status,
                "sealed": topic.sealed,
                "window_events": len(topic.window),
                "window_bytes": topic.window.size,
            }
            for topic in self._topics.values()
        ]

    @asynccontextmanager
    async def topic(self, key: RunKey) -> AsyncIterator[Topic]:
        """The run's topic, open for as long as the block lasts. Raises StoreUnavailable."""
        with Hold() as hold:
            yield await self.open(key, hold)

    async def open(self, key: RunKey, hold: Hold) -> Topic:
        """The run's topic, open until `hold` is released. Raises StoreUnavailable."""
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(key, self._limit, self._follower.refresh, self._flushes)
            self._share_memory()
            topic.left, topic.unwatched = partial(self._close, topic), partial(self._wants.unwatch, key)
            self._follower.follow(topic)
        topic.readers += 1
        hold.add(topic.left)
        if not topic.ready.is_set():
            await self._until_ready(topic)
        self._watch(topic, hold)
        return topic

    def opened(self, key: RunKey, hold: Hold) -> Topic | None:
        """As `open`, where somebody has it open already; None where nobody has."""
        topic = self._topics.get(key)
        if topic is None or not topic.ready.is_set():
            return None
        topic.readers += 1
        hold.add(topic.left)
        self._watch(topic, hold)
        return topic

    def _watch(self, topic: Topic, hold: Hold) -> None:
        if not (topic.state.sealed and topic.sealed):
            self._wants.watch(topic.key)
            hold.add(topic.unwatched)

    def _close(self, topic: Topic) -> None:
        topic.readers -= 1
        if not topic.readers:
            self._follower.unfollow(topic)
            del self._topics[topic.key]
            self._share_memory()
            topic.close()

    async def primed(self, topic: Topic, within_s: float) -> bool:
        """Wait until the log holds what the upstream has now; whether it came to that in time."""
        try:
            async with asyncio.timeout(within_s):
                if not topic.sealed:
                    await self._wants.decided(topic.key)
                    await topic.refresh()
                while not (topic.state.primed or topic.state.sealed) or topic.last_seq < topic.state.last_seq:
                    await topic.changed(0.5)
                    await topic.refresh()
        except (TimeoutError, StoreUnavailable):
            return False
        return True

    async def read(self, topic: Topic, cursor: int, most: int) -> Behind:
        """Up to `most` events behind `cursor`, wherever they are; has them fetched if they are missing."""
        return await self._history.read(topic, cursor, most)

    async def reachable(self, topic: Topic, cursor: int, within_s: float) -> bool:
        """Wait until what lies behind `cursor` can be read (or is known to be gone); whether it came to that in time."""
        try:
            async with asyncio.timeout(within_s):
                while (await self.read(topic, cursor, 1)).where == "missing":
                    await topic.changed(0.5)
        except (TimeoutError, StoreUnavailable):
            return False
        return True

    async def settle(self, topic: Topic, cursor: int) -> None:
        """Before a reader beyond the end of a sealed run is told that there is no more: make sure that it is so."""
        if not self.settled(topic, cursor):
            await self._wants.probe(topic.key)
            await topic.refresh()

    def settled(self, topic: Topic, cursor: int) -> bool:
        """Whether `settle` has nothing to do."""
        return cursor <= topic.window.last_seq or not topic.sealed

    def subscribe(
        self,
        topic: Topic,
        cursor: int,
        wire: AnyWire,
        types: Types | None,
        *,
        snapshot: bool = False,
        coalesce: Coalesce | None = None,
        slice_bytes: int | None = None,
    ) -> Subscription:
        """A reader behind `cursor`. `snapshot`: a fold first, if it has seen nothing yet, and after every reset.

        `slice_bytes`: about how much the window gives at once; None: as much as a page.
        """
        most = slice_bytes or self._options.page_bytes
        if coalesce is None:
            made = Subscription(topic, self._history, cursor, wire, types, most)
        else:
            made = CoalescingSubscription(topic, self._history, cursor, wire, types, most, coalesce)
        if snapshot:
            made.folded(self.snapshots)
        return made

    def subscribe_fold(self, topic: Topic, cursor: int, wire: AnyWire, fold: Fold) -> FoldSubscription:
        """A reader of a face whose frames have to fit together."""
        return FoldSubscription(topic, self._history, cursor, wire, fold, self._options.page_bytes)

    async def _until_ready(self, topic: Topic) -> None:
        try:
            async with asyncio.timeout(_READY_S):
                await topic.ready.wait()
        except TimeoutError as error:
            raise StoreUnavailable("the event log is not available at the moment", retry_after_s=2.0) from error

    def _share_memory(self) -> None:
        share = self._options.memory_bytes * 3 // 4 // max(1, len(self._topics))
        self._window_bytes = min(self._options.window_bytes, share)

    def _limit(self) -> int:
        return self._window_bytes
