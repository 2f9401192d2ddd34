"""The wall clock of a relay process is set: its viewers stay, its tokens end when they should, its runs end complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.clocks import HOUR, Clock
from tests.support.relay import RelayProcess
from tests.support.stolen import Stopwatch
from tests.support.upstream import ScriptedUpstream
from tests.support.viewer import Journal, watch_sse

pytestmark = pytest.mark.system


class Fixed:
    """A relay process, its clock, and a client."""

    def __init__(self, relay: RelayProcess, clock: Clock, session: aiohttp.ClientSession) -> None:
        self.relay = relay
        self.clock = clock
        self.session = session

    async def token(self, run_id: str, ttl_s: int) -> str:
        url = f"{self.relay.url}/v1/runs/{run_id}/tokens"
        async with self.session.post(url, json={"ttl_s": ttl_s}) as response:
            assert response.status == 201, await response.text()
            return str((await response.json())["token"])

    def events(self, run_id: str, token: str = "") -> str:
        return f"{self.relay.url}/v1/runs/{run_id}/events{'?access_token=' + token if token else ''}"


@pytest.fixture
async def fixed(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Fixed]:
    clock = Clock.needed(tmp_path / "clock")
    relay = RelayProcess(
        upstream.url, tmp_path, environment=clock.environment, ingest={"linger_s": 3.0},
        auth={"token_secret": "a-secret-of-at-least-32-characters"},
    )  # fmt: skip
    async with relay, aiohttp.ClientSession() as session:
        yield Fixed(relay, clock, session)
        assert await relay.stop() == 0
        assert "Traceback" not in relay.log.read_text()


@pytest.mark.parametrize("by_s", [HOUR, -HOUR])
async def test_a_viewer_whose_token_was_good_when_it_came_stays(
    upstream: ScriptedUpstream, fixed: Fixed, by_s: float
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    url = fixed.events(run_id, await fixed.token(run_id, 600))
    async with fixed.session.get(url) as response:
        assert response.status == 200
        for _ in range(3):
            fixed.clock.jump(by_s)
            await asyncio.sleep(1.2)
            seq = upstream.append(run_id, "message.delta", {"content_delta": "."})
            async with asyncio.timeout(60):
                while (line := await response.content.readline()) != b"id: %d\n" % seq:
                    assert b"goodbye" not in line


async def test_a_clock_set_back_does_not_prolong_a_token(upstream: ScriptedUpstream, fixed: Fixed) -> None:
    run_id = upstream.add_run([("run.started", {})])
    began = time.monotonic()
    async with fixed.session.get(fixed.events(run_id, await fixed.token(run_id, 3))) as response:
        fixed.clock.jump(-HOUR)
        async with asyncio.timeout(60):  # else it would last for an hour
            while b"auth.expired" not in await response.content.readline():
                pass
    assert time.monotonic() - began > 1.5


async def test_a_token_of_before_the_clock_was_set_back_still_opens(upstream: ScriptedUpstream, fixed: Fixed) -> None:
    """It seems to come from the future; so does one that another process, whose clock is ahead, has minted."""
    run_id = upstream.add_run([("run.started", {})])
    token = await fixed.token(run_id, 600)
    fixed.clock.jump(-60)
    async with fixed.session.get(fixed.events(run_id, token)) as response:
        assert response.status == 200


@pytest.mark.parametrize("by_s", [HOUR, -HOUR])
async def test_what_follows_the_end_is_awaited_by_the_upstreams_clock(
    upstream: ScriptedUpstream, fixed: Fixed, by_s: float
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    journal = Journal()
    async with asyncio.timeout(60):
        watching = asyncio.create_task(watch_sse(fixed.session, fixed.events(run_id), journal))
        while journal.cursor < 1:
            await asyncio.sleep(0.01)
        fixed.clock.jump(by_s)
        upstream.finish(run_id)
        await asyncio.sleep(0.7)
        upstream.append(run_id, "thread.title.updated", {"title": "late"})
        await watching
    assert journal.seqs == [1, 2, 3]


async def test_a_run_that_ended_long_ago_is_still_not_awaited(upstream: ScriptedUpstream, fixed: Fixed) -> None:
    run_id = upstream.add_run([("run.started", {})])
    upstream.append(run_id, "run.completed", {}, ts="2026-01-01T00:00:00.000Z")
    fixed.clock.jump(-365 * 24 * HOUR)  # to before it happened
    async with Stopwatch() as watch, asyncio.timeout(60):
        await watch_sse(fixed.session, fixed.events(run_id), Journal())
        assert watch.spent_s < 2.5, "it was awaited"
