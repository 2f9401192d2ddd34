"""Another master is found by asking, not by waiting for connections to break; and nothing is written to the old one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay import telemetry
from relay.core.errors import StartupError, StoreUnavailable
from relay.store.options import RedisOptions
from relay.store.redis import Store
from tests.campaign.servers import Node, Sentinel
from tests.support.failover import (
    Writer,
    agreed,
    as_user,
    cut_off,
    master_of,
    sentinels,
    until,
    url_of,
    watched,
)
from tests.support.stolen import Stopwatch

pytestmark = pytest.mark.system

WITHIN_S = 2.0
"""From the moment the sentinels agree until we write to the new master."""


@pytest.fixture
async def redises(tmp_path: Path) -> AsyncIterator[Sentinel]:
    async with sentinels(tmp_path) as made:
        yield made


def failovers() -> float:
    return telemetry.REGISTRY.get_sample_value("relay_store_failovers_total") or 0.0


async def port_of(store: Store) -> int:
    """Who answers our commands: the proxy's port in front of it."""
    node = store.node_of("any")
    assert node is not None
    await store.run("test", [("SET", "any", "1")])
    return int(node.name.rpartition(":")[2])


async def test_an_old_master_that_lives_on_apart_is_left_when_another_is_elected(redises: Sentinel) -> None:
    old, before = await master_of(redises), failovers()
    async with watched(url_of(redises)) as store:
        writing = asyncio.create_task((writer := Writer(store)).run())
        await until(lambda: writer.last_at(old))
        await cut_off(old)
        new = await agreed(redises, old)
        at = time.monotonic()  # what it has from before came as a replica of the old one
        async with Stopwatch() as watch:
            await until(lambda: _later(writer, new, at))
            assert watch.spent_s < WITHIN_S
        last_on_old, first_on_new = await writer.last_at(old), await writer.last_at(new)
        await until(lambda: _later(writer, new, first_on_new + 1.0))
        assert await writer.last_at(old) == last_on_old, "the old one is written to again"
        writing.cancel()
    looking = as_user(old)
    assert (await looking.execute_command("ROLE"))[0] == b"master", "it was demoted: this proves nothing"
    await looking.aclose()
    assert failovers() == before + 1


async def _later(writer: Writer, node: Node, at: float) -> bool:
    return await writer.last_at(node) > at


async def test_a_planned_failover_is_followed_though_the_old_master_answers(redises: Sentinel) -> None:
    old = await master_of(redises)
    async with watched(url_of(redises)) as store:
        writing = asyncio.create_task((writer := Writer(store)).run())
        await redises.failover(0)
        new = await agreed(redises, old)
        async with Stopwatch() as watch:
            await until(lambda: _is_at(store, new))
            assert watch.spent_s < WITHIN_S
        at = time.monotonic()
        await until(lambda: _later(writer, new, at))
        writing.cancel()
    await until(lambda: _is_a_replica(old))


async def _is_at(store: Store, node: Node) -> bool:
    return node.link is not None and await port_of(store) == node.link.port


async def _is_a_replica(node: Node) -> bool:
    return await node.role() == "slave"


async def test_commands_under_way_fail_when_their_master_is_left(redises: Sentinel) -> None:
    """They do not wait for their own time limit, and never for the old master's answer."""
    old = await master_of(redises)
    async with watched(url_of(redises)) as store:
        await until(lambda: _sent(store))
        looking = as_user(old)
        await looking.execute_command("CLIENT", "PAUSE", "60000", "WRITE")  # it takes our command and never answers
        began = time.monotonic()
        store._nodes.of("x")._timeout_s = 50.0  # type: ignore[attr-defined]
        under_way = asyncio.create_task(store.run("test", [("SET", "x", "1")]))
        await asyncio.sleep(0.1)
        await cut_off(old)
        await agreed(redises, old)
        with pytest.raises(StoreUnavailable):
            await under_way
        assert time.monotonic() - began < 45, "it waited for its own time limit"
        await store.run("test", [("SET", "x", "1")])
        await looking.aclose()


async def _sent(store: Store) -> bool:
    await store.run("test", [("SET", "x", "0")])
    return True


async def test_a_stale_minority_is_not_believed_by_a_new_process(redises: Sentinel) -> None:
    old = await master_of(redises)
    assert old.link is not None
    await cut_off(old)
    new = await agreed(redises, old)
    stale = redises.others[0].client
    await stale.execute_command("ACL", "SETUSER", "default", "-publish")  # it does not listen to the others
    await stale.execute_command("SENTINEL", "REMOVE", "main")
    await stale.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", old.link.port, 2)
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        async with watched(url_of(redises, order)) as store:
            for _ in range(5):
                assert await port_of(store) == new.link.port  # type: ignore[union-attr]
                await asyncio.sleep(0.3)
    told = await stale.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
    assert int(told[1]) == old.link.port, "the stale sentinel has heard the news: this proves nothing"


async def test_while_all_sentinels_are_away_the_master_we_know_is_kept(redises: Sentinel) -> None:
    async with watched(url_of(redises)) as store:
        known = await port_of(store)
        for sentinel in redises.others:
            sentinel.kill()
        looking = as_user(await _node_at(redises, known))
        for _ in range(3):
            await looking.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.5)
            assert await until(lambda: port_of(store)) == known
        await looking.aclose()


async def _node_at(redises: Sentinel, port: int) -> Node:
    return next(node for node in redises.nodes if node.link is not None and node.link.port == port)


async def test_a_process_that_was_frozen_looks_before_it_writes(redises: Sentinel) -> None:
    """Nothing is watched here, as nothing is while a process is stopped."""
    old = await master_of(redises)
    async with watched(url_of(redises), watch=False) as store:
        writer = Writer(store)
        await port_of(store)
        await cut_off(old)
        new = await agreed(redises, old)
        await asyncio.sleep(3.1)
        await store.run("test", [("XADD", writer.key, "*", "t", "1")])
    assert await writer.last_at(new) == 1
    with pytest.raises(IndexError):
        await writer.last_at(old)


async def test_sentinels_that_want_credentials_get_those_of_the_address(redises: Sentinel) -> None:
    for sentinel in redises.others:
        await sentinel.client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", "+@all")
        await sentinel.client.execute_command("ACL", "SETUSER", "default", "resetpass", ">another")
    async with watched(url_of(redises)) as store:
        await port_of(store)
        await asyncio.sleep(0.7)
        await store.look_again()
    with pytest.raises(StartupError, match="credentials"):
        await Store(url_of(redises).replace("secret", "wrong"), RedisOptions()).check()
