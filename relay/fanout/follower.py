"""From bells to events: hears that logs grew, reads what is new (many runs per round trip), publishes it to topics.

The order that loses nothing: subscription acknowledged -> position read -> wait. A bell carries no truth and may be lost;
once a second the position of every followed log is compared with Redis, which also finds seals, and logs that lost what
we have already shown. The work per bell does not grow with the number of followed runs. What this process has written
itself, and Redis confirmed, comes without a read (`durable`), if it is what follows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from relay import telemetry
from relay.core.errors import StoreUnavailable
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.fanout.bells import Bell, BellListener
from relay.fanout.options import FanoutOptions
from relay.fanout.topic import Topic
from relay.store.log import Log, LogState
from relay.store.redis import Store

_EVENTS = 512
_BATCH = 256
"""Most runs read in one round trip."""


class Follower:
    def __init__(self, store: Store, log: Log, options: FanoutOptions, orphaned: Callable[[RunKey], None]) -> None:
        self._bells = BellListener(store, self._heard)
        self._log = log
        self._options = options
        self._orphaned = orphaned
        self._topics: dict[RunKey, Topic] = {}
        self._channels: dict[bytes, Topic] = {}
        self._rung: dict[Topic, float] = {}
        """Topics whose log may have grown, and since when we know."""
        self._stateful: set[Topic] = set()
        """Those of them whose state is asked for too."""
        self._work = asyncio.Event()

    def follow(self, topic: Topic) -> None:
        """From now on this topic gets its run's events; `topic.ready` is set when it does."""
        channel = self._log.keys.bell(topic.key).encode()
        self._topics[topic.key] = topic
        self._channels[channel] = topic
        self._bells.add(channel)

    def unfollow(self, topic: Topic) -> None:
        channel = self._log.keys.bell(topic.key).encode()
        if self._topics.get(topic.key) is topic:
            del self._topics[topic.key], self._channels[channel]
            self._rung.pop(topic, None)
            self._stateful.discard(topic)
            self._bells.remove(channel)

    def durable(self, key: RunKey, prev: int, events: Sequence[Event]) -> None:
        """What was written here behind `prev` is what a read behind `prev` would bring: it need not be read back.

        Only if it is what comes next, and nothing else is to be found out. In all other cases its bell has it read.
        """
        topic = self._topics.get(key)
        if topic is None or topic.window.last_seq != prev or _steps(topic, events, prev):
            return
        if not (prev or topic.ready.is_set()):
            return
        for event in events:
            if not event.type.isascii():  # Redis may have kept another spelling
                return
        self._publish_to(topic, events)
        if self._rung and topic.bell <= topic.window.last_seq and topic not in self._stateful:
            self._rung.pop(topic, None)

    async def refresh(self, topic: Topic) -> None:
        """Learn now where the log stands, instead of at the next bell."""
        await self._check([topic])
        if topic.state.last_seq > topic.last_seq:
            await self._publish([topic], {topic: time.monotonic()})

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._bells.run(), name="bells")
            tasks.create_task(self._read_for_ever(), name="log reader")
            tasks.create_task(self._check_for_ever(), name="position check")

    # --- bells ------------------------------------------------------------------------------------------------------
    def _heard(self, bells: Sequence[Bell]) -> None:
        topics = self._channels
        for channel, payload in bells:
            topic = topics.get(channel)
            if topic is None:
                continue
            if payload is None or not payload.isdigit():
                self._told(topic, payload)
                continue
            seq, before = int(payload), topic.bell
            topic.bell = seq
            if before not in (-1, seq) and 0 < seq <= topic.window.last_seq:
                continue  # it was written here, and is shown already
            # Without a new event, as far as is known: something else of the run has changed (`primed`, its status).
            self._ring(topic, state=before in (-1, seq) or not topic.ready.is_set())

    def _told(self, topic: Topic, payload: bytes | None) -> None:
        """A bell that says more than how far its log has grown."""
        if payload == b"old":
            topic.fetched()
            return
        if payload == b"released":
            self._orphaned(topic.key)  # its owner let go: whoever follows it is the first to know
        if payload is None:
            topic.bell = -1
        # Or just subscribed: from now on nothing can be missed, so this is the moment to look where the log stands.
        self._ring(topic, state=True)

    def _ring(self, topic: Topic, *, state: bool) -> None:
        if state:
            self._stateful.add(topic)
        self._rung.setdefault(topic, time.monotonic())
        self._work.set()

    # --- reading ----------------------------------------------------------------------------------------------------
    async def _read_for_ever(self) -> None:
        while True:
            await self._work.wait()
            await asyncio.sleep(0)  # the answer to an append of our own may come a moment behind its bell
            batch = {topic: self._rung.pop(topic) for topic in list(self._rung)[:_BATCH]}
            if not self._rung:
                self._work.clear()
            stateful = [topic for topic in batch if topic in self._stateful]
            self._stateful.difference_update(stateful)
            try:
                await self._learn(stateful)
                await self._publish([topic for topic in batch if topic.ready.is_set()], batch)
            except StoreUnavailable:
                for topic in batch:
                    if topic.key in self._topics:
                        self._ring(topic, state=True)
                await asyncio.sleep(0.25)

    async def _learn(self, topics: Sequence[Topic]) -> None:
        if topics:
            known = [topic.last_seq for topic in topics]
            states = await self._log.states([topic.key for topic in topics])
            for topic, state, seq in zip(topics, states, known, strict=True):
                self._compare(topic, state, seq)

    async def _publish(self, topics: Sequence[Topic], since: dict[Topic, float]) -> None:
        if not topics:
            return
        wanted = [(topic.key, topic.last_seq, self._count(topic)) for topic in topics]
        pages = await self._log.read(wanted)
        for i, (topic, page) in enumerate(zip(topics, pages, strict=True)):
            if _steps(topic, page, wanted[i][1]):
                pages[i] = list(await self._across(topic, wanted[i][2]))
        telemetry.FOLLOW_LAG.observe(time.monotonic() - min([since[topic] for topic in topics]))
        for topic, (_, _, most), events in zip(topics, wanted, pages, strict=True):
            self._publish_to(topic, events)
            if len(events) == most and self._topics.get(topic.key) is topic:
                self._ring(topic, state=False)

    def _publish_to(self, topic: Topic, events: Sequence[Event]) -> None:
        if topic.publish(events) and not topic.state.last_seq:  # followed before there was a log: which one is it?
            self._ring(topic, state=True)

    async def _across(self, topic: Topic, most: int) -> Sequence[Event]:
        """A step: the upstream's own hole, or a head trimmed before we read it? A window has none but the former."""
        found = await self._log.behind(topic.key, topic.last_seq, most)
        if found is None:
            return ()
        if found.where == "log":
            return found.events
        if found.floor > topic.last_seq:
            topic.restart(found.floor)
            self._ring(topic, state=True)
        return ()

    def _count(self, topic: Topic) -> int:
        # XRANGE is bounded by entries, memory by bytes: runs with large events are read a few at a time.
        return max(4, min(_EVENTS, int(self._options.page_bytes / topic.mean_bytes)))

    # --- healing ----------------------------------------------------------------------------------------------------
    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._options.check_s)
            topics = list(self._topics.values())
            for start in range(0, len(topics), _BATCH):
                ready = [topic for topic in topics[start : start + _BATCH] if topic.ready.is_set()]
                await self._check(ready)
                await self._check_sealed([topic for topic in ready if topic.sealed and topic.state.last_seq])

    async def _check(self, topics: Sequence[Topic]) -> None:
        known = [topic.last_seq for topic in topics]
        try:
            states = await self._log.states([topic.key for topic in topics])
        except StoreUnavailable:
            return
        for topic, state, seq in zip(topics, states, known, strict=True):
            if state is not None and state.last_seq > topic.last_seq == seq and topic not in self._rung:
                telemetry.BELLS_LOST.inc()
            self._compare(topic, state, seq)

    async def _check_sealed(self, topics: Sequence[Topic]) -> None:
        """Nobody renews a sealed log, so only its readers can notice that it is gone while its state is still there."""
        if not topics:
            return
        try:
            ends = await self._log.read([(topic.key, topic.state.last_seq - 1, 1) for topic in topics])
        except StoreUnavailable:
            return
        for topic, end in zip(topics, ends, strict=True):
            if not end and topic.sealed and self._topics.get(topic.key) is topic:
                self._orphaned(topic.key)

    def _compare(self, topic: Topic, state: LogState | None, known: int) -> None:
        """Act on where Redis says the run is; `known` is the seq we had published when we asked."""
        if self._topics.get(topic.key) is not topic:
            return
        if not topic.ready.is_set():
            topic.start(state or LogState())
            return
        if state is None:
            # Never pumped yet, or everything is gone: somebody must bring it (back); what we know stays true meanwhile.
            self._orphaned(topic.key)
            return
        if known <= state.last_seq < topic.last_seq:
            return  # an answer from before events that we have published meanwhile
        if state.lacks(topic.seen._replace(seq=known)):
            self._orphaned(topic.key)  # an owner must begin a new generation; until then nothing it says is of our log
            return
        topic.learn(state)
        if state.last_seq > topic.last_seq:
            self._ring(topic, state=False)
        elif state.last_seq < known:
            self._orphaned(topic.key)  # Redis lost what we have shown already; an owner fills it again


def _steps(topic: Topic, events: Sequence[Event], after: int) -> bool:
    """Whether something may be missing in between. A run whose holes are confirmed has them anywhere but at the front."""
    if not events:
        return False
    if topic.state.contiguous:  # a step inside may be a new generation: its readers must hear of it before they see it
        return events[-1].seq != after + len(events)
    return events[0].seq > after + 1
