"""What is written in this process is not read back: readers are told once Redis has confirmed it, and see the very same."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from relay.core.events import Event
from relay.core.ids import RunKey
from relay.core.window import Slice
from relay.core.wires import Wire
from relay.fanout.bells import Bell
from relay.fanout.hub import Hub
from relay.fanout.options import FanoutOptions
from relay.fanout.topic import Topic
from relay.ingest.committer import Committer
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, LogState, Seen
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store
from tests.fanout.test_fanout import CountingLog, Wanted

KEY = RunKey("main", "r1")


@dataclass
class Process:
    """A hub and a committer over one log, as `relay serve` has them."""

    log: CountingLog
    hub: Hub
    committer: Committer

    async def owned(self) -> Lease:
        claim = await self.log.claim(KEY)
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        return claim.lease

    async def write(self, lease: Lease, prev: int, events: Sequence[Event], **fields: str) -> None:
        await self.committer.append(Append(lease, prev, events, fields))


class World:
    def __init__(self, redis_url: str, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        self._url, self._stack, self._tasks = redis_url, stack, tasks
        self._prefix = f"t{secrets.token_hex(4)}"

    async def process(self, *, check_s: float = 60.0, told: bool = True) -> Process:
        store = Store(self._url, RedisOptions(prefix=self._prefix))
        self._stack.push_async_callback(store.close)
        await store.check()
        log = CountingLog(store, Keys(self._prefix, 8), RetentionOptions(), lease_s=0.05, want_s=60.0)
        hub = Hub(store, log, Wanted(), FanoutOptions(check_s=check_s))
        committer = Committer(log)
        if told:
            committer.durable = hub.durable
        for forever in (hub.run(), committer.run()):
            self._stack.callback(self._tasks.create_task(forever).cancel)
        return Process(log, hub, committer)


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        yield World(redis_url, stack, tasks)


def events(*seqs: int, kind: str = "message.delta") -> list[Event]:
    return [Event(seq, kind, b'{"seq":%d,"who":"%b"}' % (seq, secrets.token_hex(2).encode())) for seq in seqs]


async def reached(topic: Topic, seq: int) -> None:
    async with asyncio.timeout(20):
        while topic.last_seq < seq:
            await topic.changed(0.5)


async def test_what_was_written_here_is_not_read_back(world: World) -> None:
    here = await world.process()
    async with here.hub.topic(KEY) as topic:
        lease = await here.owned()
        for seq in range(1, 50):
            await here.write(lease, seq - 1, events(seq))
            assert topic.last_seq == seq, "shown as soon as it is confirmed"
        asked = here.log.reads
        await here.write(lease, 49, [], primed="1")  # its bell says nothing new of the events
        async with asyncio.timeout(20):
            while not topic.state.primed:
                await topic.changed(0.5)
    # A bell may be heard a moment before the answer to its append; of most events nothing is asked.
    assert asked < 25


async def test_what_was_refused_is_shown_to_nobody(world: World) -> None:
    here, there = await world.process(), await world.process()
    async with here.hub.topic(KEY) as topic:
        old = await here.owned()
        await here.write(old, 0, events(1))
        await asyncio.sleep(0.06)
        new = await there.owned()
        theirs = events(2)
        await there.write(new, 1, theirs)
        with pytest.raises(Exception, match="another owner"):
            await here.write(old, 1, events(2, 3))
        await reached(topic, 2)
        assert list(topic.window.behind(1)) == theirs


async def test_what_does_not_follow_is_read(world: World) -> None:
    """A hole of the upstream's, and a name that Redis spells in its own way."""
    here = await world.process()
    async with here.hub.topic(KEY) as topic:
        lease = await here.owned()
        await here.write(lease, 0, events(1))
        await here.write(lease, 1, events(5), contiguous="0")
        await reached(topic, 5)
        await here.write(lease, 5, events(6, kind="caf\udce9"))
        await reached(topic, 6)
        assert [event.type for event in topic.window.behind(1)] == ["message.delta", "caf?"]


@pytest.mark.parametrize("seed", range(6))
async def test_told_or_read_it_is_the_same(world: World, seed: int) -> None:
    """Two owners in turns, bells lost, confirmations lost, fields alone, batches: both processes show the log."""
    chance = random.Random(seed)
    pair = [await world.process(check_s=0.2), await world.process(check_s=0.2, told=bool(seed % 2))]
    for process in pair:
        _forgetful(process, chance)
    async with pair[0].hub.topic(KEY) as one, pair[1].hub.topic(KEY) as other:
        written: list[Event] = []
        for _ in range(12):
            process = chance.choice(pair)
            async with asyncio.timeout(20):
                while not isinstance(claim := await process.log.claim(KEY), Claim):
                    await asyncio.sleep(0.01)
            assert claim.lease is not None
            for _ in range(chance.randint(1, 12)):
                count = chance.choice((0, 1, 1, 2, 30))
                new = events(*range(len(written) + 1, len(written) + 1 + count))
                await process.write(claim.lease, len(written), new, status="running")
                written += new
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
        for topic in (one, other):
            await reached(topic, len(written))
            assert list(topic.window.behind(0)) == written


def _forgetful(process: Process, chance: random.Random) -> None:
    """Now and then a bell is not heard, or a confirmation not passed on."""
    follower, told = process.hub._follower, process.committer.durable
    heard = follower._heard

    def hears(bells: Sequence[Bell]) -> None:
        heard([(channel, payload) for channel, payload in bells if payload is None or chance.random() < 0.8])

    def tells(key: RunKey, prev: int, new: Sequence[Event]) -> None:
        if chance.random() < 0.8:
            told(key, prev, new)

    follower._bells._heard = hears
    process.committer.durable = tells


async def test_an_older_look_at_redis_takes_nothing_back(world: World) -> None:
    """A position that was asked for before an event was written here, and answered after."""
    here = await world.process()
    async with here.hub.topic(KEY) as topic:
        lease = await here.owned()
        await here.write(lease, 0, events(1, 2))
        states, lost = here.log.states, list[RunKey]()
        here.hub._follower._orphaned = lost.append

        async def late(keys: Sequence[RunKey]) -> list[LogState | None]:
            here.log.states = states  # type: ignore[method-assign]
            found = await states(keys)
            await here.write(lease, 2, events(3))
            return found

        here.log.states = late  # type: ignore[method-assign]
        await topic.refresh()
        assert topic.last_seq == 3
        assert lost == []


async def shown_and_primed(topic: Topic, there: Process, lease: Lease) -> None:
    """Two events are shown, and what a later append says of the run alone is learnt."""
    await reached(topic, 2)
    await asyncio.sleep(0.05)  # whatever is still under way may come first
    await there.write(lease, 2, [], primed="1")
    async with asyncio.timeout(60):
        while not topic.state.primed:
            await topic.changed(0.5)


async def test_a_bell_heard_before_the_position_is_known_hides_none_that_comes_later(world: World) -> None:
    """It told the same seq as one without an event does: what that one says is asked for all the same."""
    here, there = await world.process(), await world.process()
    lease = await there.owned()
    await there.write(lease, 0, events(1))
    states, heard = here.log.states, here.hub._follower._bells._heard
    rung = asyncio.Event()

    def hears(bells: Sequence[Bell]) -> None:
        heard(bells)
        if any(payload == b"2" for _, payload in bells):
            rung.set()

    async def late(keys: Sequence[RunKey]) -> list[LogState | None]:
        here.log.states = states  # type: ignore[method-assign]
        found = await states(keys)
        await there.write(lease, 1, events(2))
        await rung.wait()
        return found

    here.log.states = late  # type: ignore[method-assign]
    here.hub._follower._bells._heard = hears
    async with here.hub.topic(KEY) as topic:
        await shown_and_primed(topic, there, lease)


async def test_bells_that_were_lost_with_their_connection_hide_none_that_comes_later(world: World) -> None:
    here, there = await world.process(), await world.process()
    lease = await there.owned()
    await there.write(lease, 0, events(1))
    async with here.hub.topic(KEY) as topic:
        bells, lost = here.hub._follower._bells, asyncio.Event()
        for ear in bells._ears.values():
            ear._heard = lambda bells: lost.set()
        await there.write(lease, 1, events(2))
        await lost.wait()
        for ear in bells._ears.values():
            ear._bells.close()
        await shown_and_primed(topic, there, lease)


async def test_pages_of_a_log_that_is_gone_are_not_read_as_the_beginning_of_another(world: World) -> None:
    """Redis was flushed while nobody watched: the run's events are numbered anew, and cut anew."""
    here = await world.process()
    told: list[bytes] = []
    for count in (3, 5):
        claim = await here.log.claim(KEY, seen=Seen())
        assert isinstance(claim, Claim)
        assert claim.lease is not None
        new = events(*range(1, count + 1))
        await here.write(claim.lease, 0, new)
        async with here.hub.topic(KEY) as topic:
            told = []
            sub = here.hub.subscribe(topic, 0, Wire("ndjson"), None)
            while sub.cursor < count:
                part = await sub.read_back()
                assert isinstance(part, Slice)
                told += part.data.splitlines()
        assert told == [event.json for event in new]
        await here.log._store.run("flush", [("DEL", here.log.keys.log(KEY)), ("DEL", here.log.keys.run(KEY))])


async def test_a_bell_that_tells_more_than_was_written_here_is_not_forgotten_for_it(world: World) -> None:
    """The next owner's append may be heard of before our own is confirmed; positions are checked once a minute here."""
    here, there = await world.process(), await world.process(told=False)
    follower = here.hub._follower
    heard = follower._heard
    follower._bells._heard = lambda bells: heard([bell for bell in bells if bell[1] is None])
    async with here.hub.topic(KEY) as topic:
        lease = await there.owned()
        one, two, three = (events(seq) for seq in (1, 2, 3))
        await there.log.append([Append(lease, 0, one, {})])
        follower.durable(KEY, 0, one)
        async with asyncio.timeout(60):
            while not topic.state.last_seq:
                await topic.changed(0.5)
        await there.log.append([Append(lease, 1, two, {})])
        await there.log.append([Append(lease, 2, three, {})])
        channel = next(channel for channel, of in follower._channels.items() if of is topic)
        topic.bell = 1
        heard([(channel, b"2"), (channel, b"3")])
        follower.durable(KEY, 1, two)
        assert (topic.last_seq, topic in follower._rung) == (2, True)
        await reached(topic, 3)
