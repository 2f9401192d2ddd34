"""The clock of a fleet's Redis is set: its owners stay, its dead are replaced in time, its viewers notice nothing."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from relay.core.ids import RunKey
from relay.ingest.clocks import Clocks
from relay.store.keys import Keys
from relay.store.log import Claim, Log
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store
from tests.support.clocks import DAY, HOUR, YEAR, JumpingRedis
from tests.support.relay import RunningRelay, running
from tests.support.stolen import Stopwatch
from tests.support.upstream import ScriptedUpstream
from tests.support.viewer import Journal, watch_sse

LEASE_S = 1.5
INGEST = {"lease_s": LEASE_S, "unwanted_s": 20.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JumpingRedis]:
    with JumpingRedis(tmp_path_factory.mktemp("clock")) as redis:
        yield redis


# ── noticing it ─────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("by_s", [1.0, -1.0, HOUR, -YEAR])
def test_a_jump_is_seen_once(by_s: float) -> None:
    clocks = Clocks()
    assert clocks.jump_s({"a": 1000.0}, 0.0, 0.01) == 0.0
    assert clocks.jump_s({"a": 1001.0}, 1.0, 1.01) == 0.0
    assert clocks.jump_s({"a": 1002.0 + by_s}, 2.0, 2.01) == pytest.approx(by_s, abs=0.02)
    assert clocks.jump_s({"a": 1003.0 + by_s}, 3.0, 3.01) == 0.0


def test_a_slow_answer_is_no_jump() -> None:
    clocks = Clocks()
    assert clocks.jump_s({"a": 1000.0}, 0.0, 0.01) == 0.0
    assert clocks.jump_s({"a": 1001.0}, 1.0, 6.0) == 0.0  # answered at once, heard late
    assert clocks.jump_s({"a": 1011.0}, 7.0, 12.0) == 0.0  # answered late
    assert clocks.jump_s({"a": 1013.0}, 13.0, 13.01) == 0.0


def test_a_clock_that_is_steered_does_not_jump() -> None:
    clocks = Clocks()
    assert [clocks.jump_s({"a": at * 1.0005}, at, at + 0.001) for at in range(1000)] == [0.0] * 1000


def test_the_greatest_of_several_jumps_is_told_and_a_server_that_is_away_is_remembered() -> None:
    clocks = Clocks()
    clocks.jump_s({"a": 1000.0, "b": 5000.0}, 0.0, 0.0)
    assert clocks.jump_s({"a": 1001.0}, 1.0, 1.0) == 0.0
    assert clocks.jump_s({"a": 1012.0, "b": 4900.0}, 2.0, 2.0) == pytest.approx(-102.0)


# ── a fleet of two ──────────────────────────────────────────────────────────────────────────────────────────────────
class Fleet:
    """One relay pumps a run that only the other one has a viewer of."""

    def __init__(self, upstream: ScriptedUpstream, server: JumpingRedis, run_id: str, journal: Journal) -> None:
        self.upstream = upstream
        self.server = server
        self.run_id = run_id
        self.journal = journal

    def follows(self) -> int:
        """How often the run's live stream was opened."""
        live = [asked for asked in self.upstream.requests if asked.query.get("follow") != "false"]
        return sum(asked.path.endswith(f"/{self.run_id}/events") for asked in live)

    async def pause_s(self) -> float:
        """Say one thing upstream; how long until the viewer hears it."""
        async with Stopwatch() as watch, asyncio.timeout(60):
            seq = self.upstream.append(self.run_id, "message.delta", {"content_delta": "."})
            while self.journal.cursor < seq:
                await asyncio.sleep(0.005)
            return watch.spent_s

    async def worst_pause_s(self, during_s: float) -> float:
        until, worst = time.monotonic() + during_s, 0.0
        while time.monotonic() < until:
            worst = max(worst, await self.pause_s())
            await asyncio.sleep(0.05)
        return worst


@asynccontextmanager
async def fleet(upstream: ScriptedUpstream, server: JumpingRedis) -> AsyncIterator[Fleet]:
    server.jump(-server.clock.offset_s)
    prefix = f"t{secrets.token_hex(4)}"
    run_id = upstream.add_run([("run.started", {})])
    async with AsyncExitStack() as stack:
        owner, other = [
            await stack.enter_async_context(running(upstream.url, server.url, prefix=prefix, ingest=INGEST))
            for _ in range(2)
        ]
        first, journal = Journal(), Journal()
        leaving = asyncio.create_task(watch_sse(owner.session, owner.events(run_id), first))
        await _until(lambda: first.cursor == 1)
        watching = asyncio.create_task(watch_sse(other.session, other.events(run_id), journal))
        await _until(lambda: journal.cursor == 1)
        leaving.cancel()
        await asyncio.sleep(1.5)  # both have looked at the clock by now
        try:
            yield Fleet(upstream, server, run_id, journal)
            upstream.finish(run_id)
            async with asyncio.timeout(60):
                await watching
            assert journal.seqs == [event["seq"] for event in upstream.truth(run_id)]
        finally:
            watching.cancel()


async def _until(fact: object) -> None:
    assert callable(fact)
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("by_s", [5.0, HOUR, -5.0, -HOUR])
async def test_a_set_clock_moves_no_run(upstream: ScriptedUpstream, server: JumpingRedis, by_s: float) -> None:
    """All leases end at once, and with an hour all wants too; but the owner lives, and somebody watches elsewhere."""
    async with fleet(upstream, server) as two:
        before = two.follows()
        server.jump(by_s)
        assert await two.worst_pause_s(2 * LEASE_S) < 1.0
        assert two.follows() == before
        assert upstream.max_following(two.run_id) == 1


async def test_a_clock_that_jumps_again_and_again_loses_nothing(
    upstream: ScriptedUpstream, server: JumpingRedis
) -> None:
    async with fleet(upstream, server) as two:
        for by_s in (HOUR, -2 * HOUR, 40.0, -7.0, 0.9, -HOUR, 3.0, 20.0):
            server.jump(by_s)
            assert await two.worst_pause_s(0.8) < LEASE_S + 2


async def test_logs_that_a_jump_of_days_ended_are_filled_again(
    upstream: ScriptedUpstream, server: JumpingRedis
) -> None:
    async with fleet(upstream, server) as two:
        await two.pause_s()
        server.jump(2 * DAY)
        assert await two.worst_pause_s(2 * LEASE_S) < LEASE_S + 2
        server.jump(-3 * DAY)
        assert await two.worst_pause_s(2 * LEASE_S) < LEASE_S + 2


@pytest.mark.parametrize("by_s", [-2.0, -HOUR, HOUR])
async def test_a_dead_owner_is_replaced_in_time_whatever_the_clock_does(
    upstream: ScriptedUpstream, server: JumpingRedis, by_s: float
) -> None:
    server.jump(-server.clock.offset_s)
    prefix = f"t{secrets.token_hex(4)}"
    run_id = upstream.add_run([("run.started", {})])
    store = Store(server.url, RedisOptions(prefix=prefix))
    dead = Log(store, Keys(prefix, 64), RetentionOptions(), lease_s=LEASE_S, want_s=20.0)
    try:
        async with running(upstream.url, server.url, prefix=prefix, ingest=INGEST) as relay:
            await asyncio.sleep(1.2)
            assert isinstance(await dead.claim(RunKey("main", run_id)), Claim)
            server.jump(by_s)
            assert await _first_event_s(relay, run_id) < 2 * LEASE_S + 1
    finally:
        await store.close()


async def _first_event_s(relay: RunningRelay, run_id: str) -> float:
    journal = Journal()
    async with Stopwatch() as watch:
        watching = asyncio.create_task(watch_sse(relay.session, relay.events(run_id), journal))
        try:
            await _until(lambda: journal.cursor == 1)
        finally:
            watching.cancel()
        return watch.spent_s
