"""Readers in crowds, out of them and between them: whatever they do, each gets every event once, in order (one law)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import telemetry
from relay.core.events import Event
from relay.core.filters import Types
from relay.core.ids import RunKey
from relay.core.wires import Form, Wire
from relay.delivery.options import DeliveryOptions
from relay.delivery.stream import Flow, Stream
from relay.delivery.turns import Turns
from relay.delivery.viewer import Viewer
from relay.fanout.crowd import Crowd, Way
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic
from relay.store.log import LogState

KINDS = ("message.delta", "tool.call", "run.note")
FILTERS = (None, Types(("message.*",)), Types(("tool.*", "run.*")))
FORMS: tuple[Form, ...] = ("sse", "sse-named", "sse")


class FakeConnection:
    """A kernel that takes `room` bytes, then none until it is emptied. Says so from within `write`, as transports do."""

    def __init__(self, room: int) -> None:
        self.got = b""
        self.closing = False
        self._room = room
        self._held = 0
        self._flow: Flow | None = None
        self.full = False
        self.ways: Callable[[], Way] = lambda: Way(self.write, self.write)

    @property
    def way(self) -> Way:
        return self.ways()

    @property
    def backlog(self) -> int:
        return self._held

    def given(self, written: int) -> int:
        return written

    @property
    def ready(self) -> bool:
        return not (self.full or self.closing)

    def write(self, data: bytes) -> None:
        if self.closing:
            return
        self.got += data
        self._held += len(data)
        if self._held > self._room and not self.full:
            self.full = True
            if self._flow is not None:
                self._flow.paused()

    put = write

    def taken(self) -> None:
        """The client has read everything."""
        self._held = 0
        if self.full:
            self.full = False
            if self._flow is not None:
                self._flow.resumed()

    def took(self, count: int) -> None:
        """The client has read some."""
        self._held = max(1, self._held - count)

    def leaves(self) -> None:
        self.closing = True
        if self._flow is not None:
            self._flow.lost()

    async def drained(self) -> None: ...

    def attend(self, listener: Flow | None) -> None:
        self._flow = listener

    def abort(self) -> None:
        self.leaves()


class Narrow(FakeConnection):
    """One that crowds write to directly: its kernel takes a part or refuses, its transport keeps the rest."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self._left = room // 2
        """How many bytes the kernel takes until it is emptied."""
        self._buffer = b""
        self.ways = lambda: Way(self._directly, self.write, (lambda: len(self._buffer)) if self._buffer else None)

    @property
    def backlog(self) -> int:
        return len(self._buffer)

    def _directly(self, data: bytes) -> int:
        if self.closing:
            raise ConnectionResetError
        assert not self._buffer, "what is queued is overtaken"
        if not self._left:
            raise BlockingIOError
        count = min(self._left, len(data))
        self.got, self._left = self.got + data[:count], self._left - count
        return count

    def write(self, data: bytes) -> None:
        if self.closing:
            return
        count = 0 if self._buffer or not self._left else self._directly(data)
        self._buffer += data[count:]
        if len(self._buffer) > self._room // 4 and not self.full:
            self.full = True
            if self._flow is not None:
                self._flow.paused()

    put = write

    def taken(self) -> None:
        self.got, self._buffer, self._left = self.got + self._buffer, b"", self._room // 2
        super().taken()


class Reader:
    def __init__(self, topic: Topic, cursor: int, kind: int, room: int, turns: Turns) -> None:
        self.began, self.types = cursor, FILTERS[kind]
        self.connection = Narrow(room) if room % 2 else FakeConnection(room)
        history: Any = None  # the window holds everything
        self.sub = Subscription(topic, history, cursor, Wire(FORMS[kind]), self.types, 200)
        self.stream = Stream(self.sub, self.connection, DeliveryOptions(), turns=turns)
        self.task = asyncio.ensure_future(self._run())
        self.end: Any = None

    async def _run(self) -> None:
        try:
            self.end = await self.stream.run()
        except ConnectionError:
            pass

    @property
    def seqs(self) -> list[int]:
        found = re.findall(rb"id: (\d+)\n(?!event: relay)", self.connection.got)
        return [int(seq) for seq in found]

    def wanted(self, events: list[Event]) -> list[int]:
        types = self.types
        return [one.seq for one in events if one.seq > self.began and (types is None or types.allows(one.type))]


STEP = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 6)),
    st.tuples(st.just("join"), st.integers(0, 2), st.integers(0, 400), st.integers(0, 5)),
    st.tuples(st.just("taken"), st.integers(0, 50)),
    st.tuples(st.just("leaves"), st.integers(0, 50)),
    st.tuples(st.just("turns"), st.integers(1, 4)),
    st.tuples(st.just("beat"), st.integers(0, 1)),
)


class World:
    def __init__(self) -> None:
        self.topic = Topic(RunKey("main", "run"), lambda: 1 << 30)
        self.topic.start(LogState())
        self.events: list[Event] = []
        self.readers: list[Reader] = []
        self.turns = Turns(400, 200)

    def publish(self, count: int) -> None:
        new = []
        for _ in range(count):
            seq = len(self.events) + len(new) + 1
            new.append(Event(seq, KINDS[seq * 7 % 3], b'{"seq":%d}' % seq))
        self.events += new
        self.topic.publish(new)

    def join(self, kind: int, room: int, behind: int) -> None:
        self.readers.append(Reader(self.topic, max(0, len(self.events) - behind), kind, room, self.turns))

    def taken(self, number: int) -> None:
        if self.readers:
            self.readers[number % len(self.readers)].connection.taken()

    def leaves(self, number: int) -> None:
        if self.readers:
            self.readers[number % len(self.readers)].connection.leaves()

    def beat(self, silent: int) -> None:
        for reader in self.readers:
            if not reader.task.done():
                reader.stream._read_off()
                reader.stream._written_at -= 100 * silent
                reader.stream.beat(asyncio.get_running_loop().time())

    async def until(self, fact: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not fact():
                for reader in self.readers:
                    reader.connection.taken()
                await asyncio.sleep(0.001)


@given(steps=st.lists(STEP, max_size=60))
def test_whatever_readers_do_each_gets_every_event_once_and_in_order(steps: list[tuple[Any, ...]]) -> None:
    async def check() -> None:
        world = World()
        for name, *arguments in steps:
            if name == "turns":
                for _ in range(arguments[0]):
                    await asyncio.sleep(0)
            else:
                getattr(world, name)(*arguments)
            for reader in world.readers:  # at every moment: nothing skipped, repeated or out of order
                assert reader.seqs == reader.wanted(world.events)[: len(reader.seqs)]
        staying = [reader for reader in world.readers if not reader.connection.closing]
        await world.until(lambda: all(one.seqs == one.wanted(world.events) for one in staying))
        at_edge = [reader for reader in staying if reader.stream._crowd is not None]
        crowds = world.topic.crowds.values()
        assert sorted(id(one.stream) for one in at_edge) == sorted(id(m) for crowd in crowds for m in crowd.members)
        assert all(crowd.members for crowd in crowds)
        for reader in at_edge:
            reader.stream._read_off()
            assert reader.sub.cursor == max(len(world.events), reader.began)
            assert reader.stream._written == len(reader.connection.got)
        world.topic.learn(LogState(last_seq=len(world.events), status="completed", sealed=True))
        await world.until(lambda: all(reader.task.done() for reader in world.readers))
        assert all(reader.end is not None for reader in staying)
        assert not world.topic.crowds
        assert world.topic.live_count == 0

    asyncio.run(check())


async def test_who_joins_a_crowd_that_has_moved_alone_stands_in_it_at_once() -> None:
    world = World()
    world.join(0, 10_000, 0)
    for _ in range(3):
        world.publish(2)
        await world.until(lambda: world.readers[0].seqs == world.readers[0].wanted(world.events))
    world.join(0, 10_000, 0)
    world.join(1, 10_000, 0)  # told otherwise
    await world.until(lambda: world.topic.live_count == 3)
    assert sorted(len(crowd.members) for crowd in world.topic.crowds.values()) == [1, 2]
    assert {key[0] for key in world.topic.crowds} == {6}
    world.readers[1].connection.leaves()
    world.readers[2].connection.leaves()
    world.publish(3)
    await world.until(lambda: world.readers[0].seqs == world.readers[0].wanted(world.events))
    world.readers[0].connection.leaves()
    await world.until(lambda: all(reader.task.done() for reader in world.readers))
    assert not world.topic.crowds, "found again where it stood once"


async def test_what_crowds_and_single_readers_are_given_is_counted_when_somebody_looks() -> None:
    def counted() -> float:
        return telemetry.REGISTRY.get_sample_value("relay_events_delivered_total", {"wire": "sse"}) or 0.0

    world, before = World(), counted()
    world.publish(4)
    for behind in (0, 1, 4):  # given alone what each lacks
        world.join(0, 10_000, behind)
    await world.until(lambda: world.topic.live_count == 3)
    assert counted() - before == 5
    for count in (1, 2):  # to the crowd
        world.publish(count)
        await world.until(lambda: all(one.seqs == one.wanted(world.events) for one in world.readers))
    assert counted() - before == 5 + 3 * 3
    assert counted() - before == 5 + 3 * 3, "looking adds nothing"
    for reader in world.readers:
        reader.connection.leaves()
    await world.until(lambda: all(reader.task.done() for reader in world.readers))


async def test_readers_at_one_place_are_written_the_very_same_bytes_object() -> None:
    world = World()
    got: list[list[bytes]] = [[], [], []]
    for number in range(3):
        world.join(0, 10_000, 0)
        world.readers[number].connection.ways = partial(Way, got[number].append, got[number].append)
    for _ in range(3):
        await asyncio.sleep(0)
    for count in (1, 5):
        world.publish(count)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [len(one) for one in got] == [2, 2, 2]
    assert all(first is second is third for first, second, third in zip(*got, strict=True))
    assert len(world.topic.crowds) == 1
    for reader in world.readers:
        reader.connection.leaves()
    await world.until(lambda: all(reader.task.done() for reader in world.readers))


@pytest.mark.parametrize("broken", [{0}, {4}, {0, 1}, {1, 3, 4}, set(range(5))])
async def test_whoever_of_a_crowd_raises_is_the_one_that_is_cut(broken: set[int]) -> None:
    world = World()
    for _ in range(5):
        world.join(0, 10_000, 0)
    asked = [0] * 5

    def writing(number: int, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        def written(data: bytes) -> None:
            asked[number] += 1
            if number in broken:
                raise RuntimeError("no transport")
            write(data)

        return written

    for number, reader in enumerate(world.readers):
        write = writing(number, reader.connection.write)
        reader.connection.ways = partial(Way, write, write)
    for _ in range(3):
        await asyncio.sleep(0)
    world.publish(2)
    await world.until(lambda: all(asked))
    world.publish(2)
    await world.until(lambda: all(count == 2 for number, count in enumerate(asked) if number not in broken))
    assert [reader.seqs for reader in world.readers] == [[] if n in broken else [1, 2, 3, 4] for n in range(5)]
    assert [reader.connection.closing for reader in world.readers] == [n in broken for n in range(5)]
    assert [count for number, count in enumerate(asked) if number in broken] == [1] * len(broken)
    for reader in world.readers:
        reader.connection.leaves()
    await world.until(lambda: all(reader.task.done() for reader in world.readers))


@pytest.mark.parametrize("error", [RuntimeError("no transport"), OSError(9, "bad"), MemoryError()])
async def test_one_whose_write_raises_is_cut_and_the_others_get_their_bytes(error: Exception) -> None:
    world = World()
    for _ in range(3):
        world.join(0, 10_000, 0)

    def broken(_: bytes) -> None:
        raise error

    world.readers[1].connection.ways = partial(Way, broken, broken)
    for _ in range(3):
        await asyncio.sleep(0)
    for count in (2, 3):
        world.publish(count)
        await world.until(lambda: world.readers[2].seqs == world.readers[2].wanted(world.events))
    assert [reader.seqs for reader in world.readers] == [[1, 2, 3, 4, 5], [], [1, 2, 3, 4, 5]]
    assert world.readers[1].connection.closing
    await world.until(world.readers[1].task.done)
    for reader in world.readers:
        reader.connection.leaves()
    await world.until(lambda: all(reader.task.done() for reader in world.readers))


class Told:
    """A member that takes as many bytes of each write as it is told, or raises, and queues the rest."""

    def __init__(self, *takes: int | Exception) -> None:
        self.got, self.queued, self.is_cut = b"", b"", False
        self._takes = list(takes)

    @property
    def way(self) -> Way:
        return Way(self._write, self._queue, (lambda: len(self.queued)) if self.queued else None)

    def _write(self, data: bytes) -> int:
        assert not self.queued, "what is queued is overtaken"
        take = self._takes.pop(0) if self._takes else len(data)
        if isinstance(take, Exception):
            raise take
        self.got += data[:take]
        return min(take, len(data))

    def _queue(self, data: bytes) -> None:
        self.queued += data

    def cut(self) -> None:
        self.is_cut = True

    def dismissed(self) -> None: ...
    def moved(self, crowd: Crowd) -> None: ...


TAKES = st.one_of(st.integers(0, 9), st.just(BlockingIOError()), st.just(BrokenPipeError()), st.just(RuntimeError()))


@given(takes=st.lists(st.lists(TAKES, max_size=4), min_size=1, max_size=6), seqs=st.integers(1, 6))
def test_what_is_not_taken_is_queued_and_nothing_overtakes_it(takes: list[list[int | Exception]], seqs: int) -> None:
    async def check() -> None:
        topic = Topic(RunKey("main", "run"), lambda: 1 << 30)
        topic.start(LogState())
        crowd = Crowd((0, None), Subscription(topic, cast(Any, None), 0, Wire("ndjson"), None, 1 << 20))
        members = [Told(*some) for some in takes]
        for member in members:
            crowd.add(member)
        wanted = b""
        for seq in range(1, seqs + 1):
            wanted += b'{"seq":%d}\n' % seq
            topic.publish([Event(seq, "message.delta", b'{"seq":%d}' % seq)])
            crowd.flush()
            for member in members:
                if member.is_cut:  # it was given nothing of what it was cut by, and leaves
                    assert wanted.startswith(member.got)
                    assert not member.queued
                    crowd.drop(member)
                else:
                    assert member.got + member.queued == wanted
            if seq % 2:  # their transports are rid of what they held
                for member in members:
                    member.got, member.queued = member.got + member.queued, b""

    asyncio.run(check())


@pytest.mark.parametrize("broken", [{0}, {1, 2}])
async def test_who_has_no_way_any_more_is_cut_and_the_others_get_their_bytes(broken: set[int]) -> None:
    topic = Topic(RunKey("main", "run"), lambda: 1 << 30)
    topic.start(LogState())
    crowd = Crowd((0, None), Subscription(topic, cast(Any, None), 0, Wire("ndjson"), None, 1 << 20))

    class Lost(Told):
        @property
        def way(self) -> Way:
            raise RuntimeError("the transport is gone")

        def cut(self) -> None:
            super().cut()
            crowd.drop(self)

    members = [Lost() if number in broken else Told() for number in range(4)]
    for member in members:
        crowd.add(member)
    for seq in (1, 2):
        topic.publish([Event(seq, "message.delta", b'{"seq":%d}' % seq)])
        crowd.flush()
    assert [member.is_cut for member in members] == [number in broken for number in range(4)]
    assert all(member.got == (b"" if member.is_cut else b'{"seq":1}\n{"seq":2}\n') for member in members)


async def test_a_heartbeat_that_is_not_taken_whole_is_not_overtaken_by_the_next_event() -> None:
    world = World()
    world.join(0, 4001, 0)
    reader = world.readers[0]
    await world.until(lambda: world.topic.live_count == 1)
    world.publish(1)
    await world.until(lambda: reader.seqs == [1])
    before, ping = reader.connection.got, reader.sub.wire.ping
    reader.connection._left = 3
    world.beat(silent=1)
    assert (reader.connection.got, reader.connection.backlog) == (before + ping[:3], len(ping) - 3)
    world.publish(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert reader.connection.got == before + ping[:3]
    reader.connection.taken()
    assert reader.connection.got.startswith(before + ping + b"id: 2\n")
    reader.connection.leaves()
    await world.until(reader.task.done)


async def test_who_is_full_by_the_position_it_was_told_stands_in_no_crowd() -> None:
    """It would be written to however little it takes: nobody says a second time that it is full."""
    world = World()
    world.publish(20)
    filtered = Subscription(world.topic, cast(Any, None), 0, Wire("sse"), Types(("nothing",)), 200)
    connection = FakeConnection(5)
    stream = Stream(filtered, connection, DeliveryOptions(), turns=world.turns)
    stream._told_at -= 2
    answer = SimpleNamespace(stream=lambda _: stream, over=lambda one: one.leave(), wire=filtered.wire, stay_s=0.0)
    tasks = []
    viewer = Viewer(cast(Any, answer), cast(Any, connection), lambda work: tasks.append(asyncio.ensure_future(work)))
    viewer.start()
    await asyncio.gather(*tasks)
    assert b"relay.position" in connection.got
    assert connection.full
    assert not world.topic.crowds
    connection.taken()
    await asyncio.gather(*tasks)
    assert world.topic.live_count == 1
    stream.leave()
