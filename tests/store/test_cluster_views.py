"""Who holds a slot, where a cluster's nodes do not agree: the higher config epoch, whoever is asked first.

The nodes are played: a real one that is cut off from the others, but not from us, cannot be had on one machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest

from relay.core.errors import StoreUnavailable
from relay.store.bells import Bells
from relay.store.cluster import _owners
from relay.store.options import RedisOptions
from relay.store.redis import Store
from tests.support.failover import until

Range = tuple[int, int, int, int]
"""Config epoch, first and last slot, port."""


@dataclass
class Played:
    """Answers CLUSTER SLOTS and CLUSTER NODES with its view; takes everything else, and notes it."""

    port: int = 0
    view: list[Range] = field(default_factory=list)
    taken: list[list[bytes]] = field(default_factory=list)
    mute: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                parser.feed(data)
                while (words := parser.gets()) is not False:
                    if not self.mute:
                        writer.write(self._answer(words))
        finally:
            writer.close()

    def _answer(self, words: list[bytes]) -> bytes:
        if words[:2] == [b"CLUSTER", b"SLOTS"]:
            return _packed([[first, last, ["127.0.0.1", port, f"id{port}"]] for _, first, last, port in self.view])
        if words[:2] == [b"CLUSTER", b"NODES"]:
            lines = [f"id{p} 127.0.0.1:{p}@1{p} master - 0 0 {e} connected {a}-{b}" for e, a, b, p in self.view]
            return _packed("\n".join(lines))
        if words[0] not in (b"CLIENT", b"SSUBSCRIBE", b"PING"):
            self.taken.append(words)
        return _packed(["ssubscribe", words[1].decode(), 1]) if words[0] == b"SSUBSCRIBE" else b"+OK\r\n"


def _packed(value: Any) -> bytes:
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(map(_packed, value))
    return b":%d\r\n" % value if isinstance(value, int) else b"$%d\r\n%b\r\n" % (len(value.encode()), value.encode())


@pytest.fixture
async def nodes() -> AsyncIterator[list[Played]]:
    """Three nodes that agree: the first has everything, by epoch 5."""
    async with AsyncExitStack() as stack:
        made = [Played() for _ in range(3)]
        for node in made:
            server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
            stack.callback(server.close)
            node.port = server.sockets[0].getsockname()[1]
        for node in made:
            node.view = [(5, 0, 16383, made[0].port)]
        yield made


def promoted(nodes: list[Played], place: int, epoch: int, seen_by: tuple[int, ...]) -> None:
    for i in seen_by:
        nodes[i].view = [(epoch, 0, 16383, nodes[place].port)]


@asynccontextmanager
async def opened(nodes: list[Played]) -> AsyncIterator[Store]:
    store = Store("redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes), RedisOptions())
    try:
        await store.look_again()
        yield store
    finally:
        await store.close()


def holder(store: Store) -> int:
    node = store.node_of("x")
    assert node is not None
    return int(node.name.rpartition(":")[2])


async def test_a_node_that_is_cut_off_is_outbid_though_it_is_asked_first(nodes: list[Played]) -> None:
    async with opened(nodes) as store:
        assert holder(store) == nodes[0].port
        promoted(nodes, 1, 6, seen_by=(1, 2))
        await store.look_again()
        assert holder(store) == nodes[1].port
        await store.run("test", [("SET", "x", "1")])
        assert nodes[1].taken == [[b"SET", b"x", b"1"]]
        assert nodes[0].taken == []


async def test_a_minority_takes_nothing_back(nodes: list[Played]) -> None:
    async with opened(nodes) as store:
        promoted(nodes, 1, 6, seen_by=(1, 2))
        await store.look_again()
        nodes[1].mute = nodes[2].mute = True
        await store.look_again()
        assert holder(store) == nodes[1].port


async def test_a_majority_may_begin_epochs_anew(nodes: list[Played]) -> None:
    async with opened(nodes) as store:
        promoted(nodes, 2, 1, seen_by=(0, 1, 2))
        await store.look_again()
        assert holder(store) == nodes[2].port


async def test_a_failover_is_noticed_without_an_error_and_bells_are_told(nodes: list[Played]) -> None:
    async with opened(nodes) as store, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(store.watch())
        node = store.node_of("x")
        assert node is not None
        bells = Bells(node, lambda _: None)
        await bells.connect()
        promoted(nodes, 1, 6, seen_by=(1, 2))
        with pytest.raises(StoreUnavailable):
            async with asyncio.timeout(60):
                await bells.gone()
        assert await until(lambda: _at(store, nodes[1].port))
        bells.close()
        watching.cancel()


async def _at(store: Store, port: int) -> bool:
    return holder(store) == port


async def test_part_of_the_slots_may_move_and_nobody_is_left(nodes: list[Played]) -> None:
    async with opened(nodes) as store:
        for node in nodes:
            node.view = [(5, 0, 99, nodes[0].port), (5, 100, 16383, nodes[0].port), (6, 100, 16383, nodes[2].port)]
        await store.look_again()
        assert holder(store) == nodes[2].port
        assert {node.name for node in store._nodes.every()} == {f"127.0.0.1:{nodes[i].port}" for i in (0, 2)}


def test_slots_nobody_holds_are_an_outage() -> None:
    with pytest.raises(Exception, match="not every slot"):
        _owners([(1, 0, 16382, ("h", 1))])
