"""The campaign's Redis behaves as an operator's would."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.campaign import servers
from tests.campaign.servers import Cluster, Node, Sentinel
from tests.support.clocks import HOUR, Clock


async def _promoted(redises: Sentinel, old: Node) -> None:
    """Ask for another master until there is one: a sentinel may know no good replica yet, or be at it already."""
    while (await redises.masters()) in ([], [old]):
        with suppress(ResponseError, RedisConnectionError):
            await redises.failover(0)
        await asyncio.sleep(0.5)


@pytest.mark.system
async def test_a_promoted_server_that_restarts_is_no_replica_of_the_old_master(tmp_path: Path) -> None:
    """Else all three follow each other in a ring, which no sentinel can undo."""
    redises = Sentinel(tmp_path, 0, lambda *_: None, lambda *_: None)
    try:
        await redises.start()
        old = (await redises.masters())[0]
        async with asyncio.timeout(90):
            await _promoted(redises, old)
        await redises.whole(90)
        new = (await redises.masters())[0]
        new.kill()
        await new.start()
        assert await new.role() == "master"
    finally:
        await redises.close()


@pytest.mark.system
@pytest.mark.timeout(120)
async def test_a_cluster_whose_clocks_were_set_back_serves_again_after_a_failover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master counts its time without the others by its wall clock, and so would say `fail` for an hour."""
    Clock.needed(tmp_path / "clock")
    monkeypatch.setattr(servers, "_REJOINS_S", 5.0)
    redises = Cluster(tmp_path, 0, lambda *_: None, lambda *_: None)
    restarted: list[Node] = []
    redises.restarted = lambda node, began, ended: restarted.append(node)
    try:
        await redises.start()
        assert not restarted
        set_back, shard = redises.nodes[0], (redises.nodes[4], redises.nodes[1])
        for node in shard:
            node.kill()
        async with asyncio.timeout(30):
            while b"cluster_state:fail" not in await set_back.client.execute_command("CLUSTER", "INFO"):
                await asyncio.sleep(0.1)
        set_back.clock.jump(-HOUR)
        for node in shard:
            await node.start()
        await redises.whole(60)
        assert restarted == [set_back]
    finally:
        await redises.close()
