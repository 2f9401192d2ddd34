"""Bells are heard at the new master soon after a failover, though the connection to the old one lives on, silent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.fanout.bells import BellListener
from tests.support.failover import agreed, as_user, cut_off, master_of, sentinels, url_of, watched
from tests.support.stolen import Stopwatch

pytestmark = pytest.mark.system

CHANNEL = b"relay:{p00}:bell:main:r1"


async def test_bells_move_to_the_new_master(tmp_path: Path) -> None:
    heard: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with sentinels(tmp_path) as redises, watched(url_of(redises)) as store, asyncio.TaskGroup() as tasks:
        old = await master_of(redises)
        listener = BellListener(store, lambda bells: [heard.put_nowait(payload) for _, payload in bells])
        listener.add(CHANNEL)
        listening = tasks.create_task(listener.run())
        assert await heard.get() is None  # subscribed
        await cut_off(old)
        new = await agreed(redises, old)
        async with Stopwatch() as watch, asyncio.timeout(60):  # the connection to the old one would live for ever
            assert await heard.get() is None
            assert watch.spent_s < 2.5
        looking = as_user(new)
        await looking.execute_command("SPUBLISH", CHANNEL, "7")
        async with asyncio.timeout(60):
            assert await heard.get() == b"7"
        old_ears = as_user(old)
        assert await old_ears.execute_command("PUBSUB", "SHARDNUMSUB", CHANNEL) == [CHANNEL, 0]
        await looking.aclose()
        await old_ears.aclose()
        listening.cancel()
