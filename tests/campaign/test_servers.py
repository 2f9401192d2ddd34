"""The campaign's Redis behaves as an operator's would."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.campaign.servers import Node, Sentinel


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
