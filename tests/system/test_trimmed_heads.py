"""A log that lost its head to its cap: readers notice nothing, the upstream is asked once for everybody.

What nobody has any more is announced, once and with its true bounds; an upstream that is merely away has lost nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from relay.core.ids import RunKey
from relay.store.keys import Keys
from tests.support.relay import RunningRelay
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import Crowd, crowd, metrics, plain, relay_here
from tests.system.watching import KINDS, Truth, Viewer

pytestmark = pytest.mark.system

SMALL: dict[str, dict[str, Any]] = {"retention": {"live_events": 300}, "fanout": {"window_bytes": 1, "check_s": 0.3}}
PREFIX = "heads"
SIZE = 2000


def long_run(upstream: ScriptedUpstream, size: int = SIZE, *, seed: int = 1) -> str:
    """A run of so many events, of two types and all sorts of sizes."""
    chance = random.Random(seed)
    events: list[Any] = [("run.started", {})]
    for i in range(2, size + 1):
        kind = "message.delta" if i % 3 else "tool.call"
        events.append((kind, {"content_delta": chance.choice("aé☃") * chance.randint(1, 400)}))
    return upstream.add_run(events)


@asynccontextmanager
async def small_relay(
    upstream: ScriptedUpstream, redis_url: str, **more: dict[str, Any]
) -> AsyncIterator[RunningRelay]:
    """A relay whose logs are soon trimmed and whose windows hold next to nothing."""
    sections = {name: {**SMALL.get(name, {}), **more.get(name, {})} for name in {*SMALL, *more}}
    async with relay_here(upstream.url, redis_url, **sections) as relay:
        yield relay


def prefix_of(relay: RunningRelay) -> str:
    return relay.app.settings.redis.prefix


async def state_of(redis_url: str, relay: RunningRelay, run_id: str) -> dict[str, str]:
    key = Keys(prefix_of(relay), 64).run(RunKey("main", run_id))

    def look() -> dict[str, str]:
        with plain(redis_url) as client:
            return {name.decode(): value.decode() for name, value in client.hgetall(key).items()}

    return await asyncio.to_thread(look)


async def trimmed(relay: RunningRelay, upstream: ScriptedUpstream, redis_url: str, run_id: str) -> int:
    """Has the run pumped by one reader of its end, and gives the log's floor. Nobody reads there yet."""
    last = upstream.truth(run_id)[-1]["seq"]
    async with crowd(relay.events(run_id)) as people:
        await people.join("sse", after_seq=last - 1).until(lambda viewer: viewer.cursor == last)
        await people.leave()
    await at_rest_but_upstream(relay)
    floor = int((await state_of(redis_url, relay, run_id)).get("floor", 0))
    assert 0 < floor < last, "nothing was trimmed: this proves nothing"
    return floor


async def at_rest_but_upstream(relay: RunningRelay) -> None:
    async with asyncio.timeout(10):
        while (await metrics(relay.session, relay.admin_url)).get("relay_viewers", 0.0):
            await asyncio.sleep(0.02)


def drains_of(upstream: ScriptedUpstream, run_id: str, since: int = 0) -> list[int]:
    """The cursors of all reads without follow, from a point of the record on."""
    path = f"/v1/runs/{run_id}/events"
    asked = [one for one in upstream.requests[since:] if one.path == path and one.query.get("follow") == "false"]
    return [int(one.query["after_seq"]) for one in asked]


def check_each(people: Crowd, truth: Truth, starts: dict[Viewer, int]) -> None:
    for viewer in people.viewers:
        truth.check(viewer, after_seq=starts[viewer])


# ── readers at every place, on every wire ───────────────────────────────────────────────────────────────────────────
async def test_readers_at_any_cursor_get_all_of_it_and_the_upstream_is_read_once(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        floor = await trimmed(relay, upstream, redis_url, run_id)
        before = len(upstream.requests)
        async with crowd(relay.events(run_id)) as people:
            first = people.join("sse")
            await first.until(lambda viewer: viewer.cursor > 0)
            starts = {first: 0}
            for kind in KINDS:
                for cursor in (0, 1, floor // 2, floor - 1, floor, floor + 1, SIZE):
                    starts[people.join(kind, after_seq=cursor)] = cursor
            await people.all_saw(lambda viewer: viewer.cursor == SIZE)
            assert drains_of(upstream, run_id, before) == [0]
            upstream.finish(run_id)
            await people.ended()
            check_each(people, Truth(upstream.truth(run_id)), starts)
        assert upstream.max_following(run_id) == 1


async def test_it_is_read_from_the_lowest_cursor_asked_for_and_again_only_for_who_comes_before(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        floor = await trimmed(relay, upstream, redis_url, run_id)
        before = len(upstream.requests)
        starts: dict[Viewer, int] = {}
        async with crowd(relay.events(run_id)) as people:
            for cursor in (floor - 50, floor - 10, floor - 60, floor - 70, 0, 3):
                viewer = people.join("sse", after_seq=cursor)
                starts[viewer] = cursor
                await viewer.until(lambda viewer: viewer.cursor == SIZE)
            assert drains_of(upstream, run_id, before) == [floor - 50, 0]
            upstream.finish(run_id)
            await people.ended()
            check_each(people, Truth(upstream.truth(run_id)), starts)
