"""A client that takes nothing is told so after `delivery.slow_s`, however much comes meanwhile, and in whatever coding."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from relay.core.events import Event
from relay.core.goodbye import SLOW
from relay.core.ids import RunKey
from relay.core.many import RunWire
from relay.core.vector import Tally
from relay.core.wires import Wire
from relay.delivery.compression import Compressed
from relay.delivery.multiplex import Multiplex
from relay.delivery.options import DeliveryOptions
from relay.delivery.stream import Farewell, Stream
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic
from relay.store.log import LogState
from tests.delivery.test_crowds import FakeConnection

SLOW_S = 5.0
CODINGS = [None, "gzip"]


class Busy:
    """A run that says a kilobyte every second, on a connection that is never full."""

    def __init__(self, coding: Any) -> None:
        self.topic = Topic(RunKey("main", "run"), lambda: 1 << 30)
        self.topic.start(LogState())
        self.plain = FakeConnection(1 << 30)
        self.plain.part = lambda: None  # type: ignore[attr-defined]
        self.connection: Any = Compressed(self.plain, coding, chunked=True) if coding else self.plain  # type: ignore[arg-type]
        self.options = DeliveryOptions(slow_s=SLOW_S)
        self.seq = 0
        self.task: asyncio.Task[Any]

    def subscription(self, wire: Any) -> Subscription:
        history: Any = None  # the window holds everything
        return Subscription(self.topic, history, 0, wire, None, 1 << 20)

    async def speak(self) -> None:
        self.seq += 1
        had = len(self.plain.got)
        words = os.urandom(64).hex().encode() * 8  # what repeats within an event is what a coding takes away
        self.topic.publish([Event(self.seq, "message.delta", b'{"seq":%d,"data":"%b"}' % (self.seq, words))])
        while len(self.plain.got) == had and not self.task.done():
            await asyncio.sleep(0.001)


async def cut_unless_it_takes(busy: Busy, reader: Stream | Multiplex, *, takes: bool) -> None:
    task = busy.task = asyncio.create_task(reader.run())
    now = asyncio.get_running_loop().time()
    for second in range(12):
        await busy.speak()
        reader.beat(now + second)
        if takes:
            busy.plain.took(400)
        for _ in range(3):
            await asyncio.sleep(0)
        if task.done():
            break
    assert task.done() is not takes
    if takes:
        reader.say_goodbye(SLOW)
    with pytest.raises(Farewell):
        await task
    assert takes or SLOW_S <= second <= SLOW_S + 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("coding", CODINGS)
async def test_a_reader_of_one_run(coding: str | None, takes: bool) -> None:
    busy = Busy(coding)
    stream = Stream(busy.subscription(Wire("sse")), busy.connection, busy.options)
    await cut_unless_it_takes(busy, stream, takes=takes)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("takes", [False, True])
@pytest.mark.parametrize("coding", CODINGS)
async def test_a_reader_of_many_runs(coding: str | None, takes: bool) -> None:
    busy = Busy(coding)
    multiplex = Multiplex(busy.connection, "many-sse", busy.options, Tally())
    multiplex.add(RunKey("main", "run"), busy.subscription(RunWire("many-sse", "run")), lambda: None)
    await cut_unless_it_takes(busy, multiplex, takes=takes)
