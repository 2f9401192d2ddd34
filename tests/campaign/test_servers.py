"""The campaign's Redis behaves as an operator's would."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.campaign.servers import Sentinel


@pytest.mark.system
async def test_a_promoted_server_that_restarts_is_no_replica_of_the_old_master(tmp_path: Path) -> None:
    """Else all three follow each other in a ring, which no sentinel can undo."""
    redises = Sentinel(tmp_path, 0, lambda *_: None, lambda *_: None)
    try:
        await redises.start()
        old = (await redises.masters())[0]
        await redises.failover(0)
        async with asyncio.timeout(20):
            while (await redises.masters())[0] is old:
                await asyncio.sleep(0.1)
        await redises.whole()
        new = (await redises.masters())[0]
        new.kill()
        await new.start()
        assert await new.role() == "master"
    finally:
        await redises.close()
