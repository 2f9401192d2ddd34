"""Readers at a pace of their own: as often as they asked for, in one crowd with their like, and none waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from relay.core.events import Event, decode, encode
from relay.core.ids import RunKey
from relay.core.wires import Wire
from relay.fanout.coalescing import Coalesce, CoalescingSubscription
from relay.fanout.crowd import Crowd, Way
from relay.fanout.history import History
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic
from relay.store.log import LogState

NOWHERE = cast(History, None)  # everything is in the window


class Reader:
    """Stands in a crowd and keeps what it is told."""

    def __init__(self, topic: Topic, coalesce: Coalesce | None) -> None:
        self.writes: list[list[dict[str, object]]] = []
        self.dismissals = 0
        wire = Wire("ndjson")
        self.sub: Subscription = (
            Subscription(topic, NOWHERE, 0, wire, None, 1 << 20)
            if coalesce is None
            else CoalescingSubscription(topic, NOWHERE, 0, wire, None, 1 << 20, coalesce)
        )
        self.crowd = topic.join(self, self.sub)

    @property
    def way(self) -> Way:
        def write(data: bytes) -> None:
            self.writes.append([decode(line) for line in data.splitlines()])

        return Way(write, write)

    def dismissed(self) -> None:
        self.dismissals += 1

    def cut(self) -> None:
        raise AssertionError

    def moved(self, crowd: Crowd) -> None:
        self.crowd = crowd

    @property
    def seqs(self) -> list[object]:
        return [event["seq"] for write in self.writes for event in write]


@pytest.fixture
async def topic() -> Topic:
    made = Topic(RunKey("main", "r"), lambda: 1 << 20)
    made.start(LogState())
    return made


def publish(topic: Topic, seq: int) -> None:
    body = {"seq": seq, "type": "message.delta", "data": {"content": f"{seq} "}, "created_at": str(seq), "run_id": "r"}
    topic.publish([Event(seq, "message.delta", encode(body))])


async def until(fact: Callable[[], object], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not fact():
            await asyncio.sleep(0.005)


async def test_the_first_event_after_a_pause_comes_at_once_and_the_rest_as_one(topic: Topic) -> None:
    paced, plain = Reader(topic, Coalesce(200)), Reader(topic, None)
    publish(topic, 1)
    await until(lambda: paced.writes)
    for seq in range(2, 41):
        publish(topic, seq)
        await asyncio.sleep(0.001)
    await until(lambda: plain.seqs == list(range(1, 41)))
    await until(lambda: paced.seqs[-1] == 40)
    assert paced.seqs[0] == 1
    assert len(paced.writes) <= 1 + len(plain.writes) // 2
    first, second = paced.writes[0][0], paced.writes[1][0]
    assert ("seq_from" in first, second["seq_from"]) == (False, 2)


async def test_a_quick_reader_does_not_wait_for_a_slow_one(topic: Topic) -> None:
    slow, quick, slower = [Reader(topic, Coalesce(pace_ms)) for pace_ms in (5_000, 10, 10_000)]
    publish(topic, 1)
    await until(lambda: slow.writes and quick.writes and slower.writes)
    publish(topic, 2)  # all are held back
    await until(lambda: quick.seqs == [1, 2], within_s=4.0)
    assert slow.seqs == slower.seqs == [1]


async def test_readers_who_ask_for_about_the_same_stand_in_one_crowd(topic: Topic) -> None:
    readers = [Reader(topic, Coalesce(pace_ms)) for pace_ms in (100, 120, 199)]
    assert len(topic.crowds) == 1
    Reader(topic, Coalesce(200))
    Reader(topic, None)
    assert len(topic.crowds) == 3
    publish(topic, 1)
    await until(lambda: all(reader.writes for reader in readers))


async def test_one_that_takes_merged_deltas_under_pressure_stands_with_everybody_until_then(topic: Topic) -> None:
    plain, careful = Reader(topic, None), Reader(topic, Coalesce())
    assert plain.crowd is careful.crowd
    careful.sub.pressed(yes=True)
    assert careful.sub.share != plain.sub.share
    for seq in (1, 2, 3):
        publish(topic, seq)
    part = careful.sub.take()
    assert part is not None
    assert (part.sent, part.told, decode(part.data)["seq_from"]) == (1, 3, 1)
    careful.sub.pressed(yes=False)
    assert careful.sub.share == plain.sub.share


async def test_the_end_is_told_to_those_who_were_held_back(topic: Topic) -> None:
    paced = Reader(topic, Coalesce(50))
    publish(topic, 1)
    await until(lambda: paced.writes)
    publish(topic, 2)
    topic.learn(LogState(last_seq=2, status="completed", sealed=True))
    await until(lambda: paced.dismissals)
    assert paced.seqs == [1, 2]


async def test_who_negotiated_compression_after_it_subscribed_shares_nothing_with_who_did_not(topic: Topic) -> None:
    plain, compressed = [
        CoalescingSubscription(topic, NOWHERE, 0, Wire("websocket"), None, 1 << 20, Coalesce(10)) for _ in range(2)
    ]
    compressed.wire = Wire("websocket-deflate")
    assert plain.share != compressed.share
    for seq in range(1, 501):  # enough to be worth compressing
        publish(topic, seq)
    first, second = compressed.take(), plain.take()
    assert first is not None
    assert second is not None
    assert (first.data[0] & 0x40, second.data[0] & 0x40) == (0x40, 0)  # RSV1: compressed
