"""A log that lost its head to its cap: readers notice nothing, the upstream is asked once for everybody.

What nobody has any more is announced, once and with its true bounds; an upstream that is merely away has lost nothing.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.core.ids import RunKey
from relay.store.embedded import EmbeddedServer
from relay.store.keys import Keys
from tests.support import upstream_faults as faults
from tests.support.relay import RelayProcess, RunningRelay
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import Crowd, command, crowd, flush, metrics, plain, relay_here, seeds
from tests.system.watching import KINDS, Truth, Viewer, native

pytestmark = pytest.mark.system

SMALL: dict[str, dict[str, Any]] = {"retention": {"live_events": 300}, "fanout": {"window_bytes": 1, "check_s": 0.3}}
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
    async with asyncio.timeout(60):
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


async def test_filtered_readers_get_theirs_and_keep_their_place(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        await trimmed(relay, upstream, redis_url, run_id)
        upstream.finish(run_id)
        async with crowd(relay.events(run_id, "types=tool.*,run.completed")) as people:
            for kind in KINDS:
                people.join(kind)
                people.join(kind, after_seq=500)
            await people.ended()
            wanted = [e["seq"] for e in upstream.truth(run_id) if e["type"] in ("tool.call", "run.completed")]
            for viewer in people.viewers[::2]:
                assert viewer.seqs == wanted
            for viewer in people.viewers[1::2]:
                assert viewer.seqs == [seq for seq in wanted if seq > 500]
            assert not any(viewer.said("relay.reset") or viewer.polite_ends for viewer in people.viewers)


@pytest.mark.parametrize("seed", seeds(2))
async def test_readers_that_come_and_go_while_the_run_outruns_its_log(
    upstream: ScriptedUpstream, redis_url: str, seed: int
) -> None:
    """The log is trimmed all the time, below and above readers who leave and resume anywhere."""
    chance = random.Random(seed)
    async with small_relay(upstream, redis_url, fanout={"page_bytes": 5000}) as relay:
        run_id = long_run(upstream, 600, seed=seed)
        async with crowd(relay.events(run_id)) as people:
            for i in range(12):
                people.join(KINDS[i % 4], chance=random.Random(100 * seed + i), within_s=2.0)
            for _ in range(60):
                for _ in range(chance.randint(1, 60)):
                    upstream.append(run_id, "message.delta", {"content_delta": "x" * chance.randint(1, 50)})
                await asyncio.sleep(chance.random() * 0.1)
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1


# ── readers who do not follow ───────────────────────────────────────────────────────────────────────────────────────
async def pages(relay: RunningRelay, run_id: str, query: str = "", *, after_seq: int = 0) -> list[dict[str, Any]]:
    """Every page behind a cursor, as a client would turn them."""
    found: list[dict[str, Any]] = []
    while not found or (found[-1]["events"] and not found[-1]["ended"]):
        cursor = found[-1]["next_after_seq"] if found else after_seq
        url = relay.events(run_id, f"after_seq={cursor}&{query}")
        async with relay.session.get(url, headers={"Accept": "application/json"}) as response:
            assert response.status == 200
            found.append(await response.json())
    return found


@pytest.mark.parametrize("ended", [False, True])
async def test_json_pages_lead_from_the_fetched_head_into_the_log(
    upstream: ScriptedUpstream, redis_url: str, ended: bool
) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        floor = await trimmed(relay, upstream, redis_url, run_id)
        if ended:
            upstream.finish(run_id)
            async with crowd(relay.events(run_id)) as people:
                people.join("sse", after_seq=SIZE)
                await people.ended()
        before = len(upstream.requests)
        for cursor in (0, floor - 1, floor, 700):
            turned = await pages(relay, run_id, "limit=300", after_seq=cursor)
            events = [event for page in turned for event in page["events"]]
            assert events == [native(event) for event in upstream.truth(run_id) if event["seq"] > cursor]
            assert turned[-1]["ended"] is ended
            assert not any(page["ended"] for page in turned[:-1])
            assert not any("reset" in page for page in turned)
        assert [cursor for cursor in drains_of(upstream, run_id, before) if cursor < floor] == [0]


@pytest.mark.parametrize("kind", ["sse", "ndjson"])
async def test_who_does_not_follow_gets_all_there_is(upstream: ScriptedUpstream, redis_url: str, kind: Any) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        await trimmed(relay, upstream, redis_url, run_id)
        viewer = Viewer(relay.events(run_id) + "?follow=false", kind)
        await viewer.once(relay.session)
        assert viewer.seqs == list(range(1, SIZE + 1))
        assert viewer.polite_ends == 1


async def test_who_does_not_follow_is_told_not_now_while_the_upstream_is_away(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.web.events._PRIMED_S", 1.0)
    monkeypatch.setattr("relay.delivery.page._PATIENCE_S", 1.0)
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        upstream.finish(run_id)
        floor = await sealed(relay, upstream, redis_url, run_id)
        await upstream.refuse()
        for accept in ("text/event-stream", "application/x-ndjson"):
            async with relay.session.get(relay.events(run_id, "follow=false"), headers={"Accept": accept}) as response:
                assert response.status == 503
                assert "Retry-After" in response.headers
        (page,) = await pages(relay, run_id)
        assert page == {"events": [], "next_after_seq": 0, "ended": False}
        (page,) = await pages(relay, run_id, "limit=1000", after_seq=floor)
        assert page["ended"] is True  # what the log has needs no upstream
        await upstream.accept()
        monkeypatch.undo()  # it is tried again every two seconds: now there is time for that
        turned = await pages(relay, run_id)
        assert sum(len(page["events"]) for page in turned) == SIZE + 1


async def sealed(relay: RunningRelay, upstream: ScriptedUpstream, redis_url: str, run_id: str) -> int:
    """Has an ended run pumped to its seal, and gives its log's floor."""
    async with crowd(relay.events(run_id)) as people:
        people.join("sse", after_seq=upstream.truth(run_id)[-1]["seq"] - 1)
        await people.ended()
    return int((await state_of(redis_url, relay, run_id))["floor"])


async def test_a_stream_that_does_not_follow_is_cut_if_the_rest_cannot_be_fetched(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.delivery.stream._PATIENCE_S", 1.0)
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        upstream.finish(run_id)
        await sealed(relay, upstream, redis_url, run_id)
        upstream.fault(faults.stall(after_events=200, for_s=0.5), run_id)
        upstream.fault(faults.status(503), run_id, times=10_000)
        viewer = Viewer(relay.events(run_id) + "?follow=false", "ndjson")
        reading = asyncio.ensure_future(viewer.once(relay.session))
        with pytest.raises(aiohttp.ClientError):
            await reading
        assert viewer.seqs == list(range(1, len(viewer.seqs) + 1))
        assert 0 < len(viewer.seqs) <= 200
        assert viewer.polite_ends == 0
        upstream.heal(run_id)


# ── the upstream's troubles ─────────────────────────────────────────────────────────────────────────────────────────
async def test_an_upstream_that_is_away_has_lost_nothing(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        upstream.finish(run_id)
        await sealed(relay, upstream, redis_url, run_id)
        upstream.fault(faults.cut(after_events=300), run_id)
        upstream.fault(faults.status(503), run_id, times=10_000)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor > 0)
            await upstream.refuse()
            upstream.heal(run_id)
            await asyncio.sleep(2.0)
            late = people.join("sse", after_seq=1000)
            await asyncio.sleep(0.5)
            assert not late.events
            assert not any(viewer.ended or viewer.notices for viewer in people.viewers)
            before = len(upstream.requests)
            await upstream.accept()
            await people.ended()
            truth = Truth(upstream.truth(run_id))
            check_each(people, truth, {viewer: 1000 if viewer is late else 0 for viewer in people.viewers})
            assert len(drains_of(upstream, run_id, before)) == 1


@pytest.mark.parametrize("seed", seeds(3))
async def test_an_upstream_in_chaos_costs_nobody_an_event(
    upstream: ScriptedUpstream, redis_url: str, seed: int
) -> None:
    """Cuts, stalls, junk, clean ends at any event: nothing of it makes a hole or a reset."""
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream, seed=seed)
        upstream.finish(run_id)
        await sealed(relay, upstream, redis_url, run_id)
        for fault in faults.chaos(seed, 16, stall_s=0.1):
            if fault.status is None and fault.max_age_s is None:
                more = (fault.after_events or 0) * 17
                upstream.fault(fault | faults.Fault(after_events=more or None), run_id)
        async with crowd(relay.events(run_id)) as people:
            for i in range(8):
                people.join(KINDS[i % 4], chance=random.Random(seed + i))
            await people.ended(90)
            people.check(upstream.truth(run_id))


async def test_a_refusal_is_tried_again_with_patience(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        upstream.finish(run_id)
        await sealed(relay, upstream, redis_url, run_id)
        upstream.fault(faults.status(404), run_id, times=4)  # of a load balancer: GET run still knows it
        before = len(upstream.requests)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))
        assert len(drains_of(upstream, run_id, before)) == 5


@pytest.mark.parametrize("pruned", [1, 400, SIZE])
async def test_what_the_upstream_lost_too_is_announced_once_with_its_true_bounds(
    upstream: ScriptedUpstream, redis_url: str, pruned: int
) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        upstream.finish(run_id)
        truth = upstream.truth(run_id)
        floor = await sealed(relay, upstream, redis_url, run_id)
        upstream.prune(run_id, pruned)
        gone = min(pruned, floor)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            beyond = people.join("sse", after_seq=gone)
            middle = people.join("sse", after_seq=gone // 2)
            await people.ended()
            for viewer in people.viewers:
                if viewer is beyond:
                    Truth(truth).check(viewer, after_seq=gone)
                    continue
                Truth(truth).check(viewer, after_seq=gone, resets=1)
                (reset,) = viewer.said("relay.reset")
                assert reset["from_seq"] == (gone // 2 + 1 if viewer is middle else 1)
                assert reset["to_seq"] == gone
        turned = await pages(relay, run_id)
        assert turned[0]["reset"] == {"from_seq": 1, "to_seq": gone, "reason": "trimmed"}
        assert not any("reset" in page for page in turned[1:])
        assert sum(len(page["events"]) for page in turned) == SIZE + 1 - gone


async def test_a_run_the_upstream_no_longer_knows_gives_what_its_log_has(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with small_relay(upstream, redis_url) as relay:
        run_id = long_run(upstream)
        upstream.finish(run_id)
        truth = Truth(upstream.truth(run_id))
        floor = await sealed(relay, upstream, redis_url, run_id)
        upstream.remove_run(run_id)
        before = len(upstream.requests)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.ended()
            for viewer in people.viewers:
                truth.check(viewer, after_seq=floor, resets=1)
        assert len(drains_of(upstream, run_id, before)) == 3
        async with crowd(relay.events(run_id)) as people:
            people.join("sse")
            await people.ended()
        assert len(drains_of(upstream, run_id, before)) == 3, "known to be gone: not asked again"


# ── holes that are the upstream's own ───────────────────────────────────────────────────────────────────────────────
async def test_a_run_with_holes_of_its_own_is_fetched_again_with_them(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with small_relay(upstream, redis_url) as relay:
        chance = random.Random(5)
        seq, events = 4999, [{"type": "run.started", "seq": 4999}]
        for _ in range(1500):
            seq += chance.choice([1, 1, 1, 2, 60])
            events.append({"type": "message.delta", "seq": seq, "data": {"content_delta": "a"}})
        run_id = upstream.add_run(events)
        upstream.finish(run_id)
        floor = await sealed(relay, upstream, redis_url, run_id)
        before = len(upstream.requests)
        starts: dict[Viewer, int] = {}
        async with crowd(relay.events(run_id)) as people:
            for cursor in (floor - 200, 0, 4998, 4999, floor - 1, floor):
                viewer = people.join("sse", after_seq=cursor)
                starts[viewer] = cursor
                await viewer.until(lambda viewer: viewer.ended)
            check_each(people, Truth(upstream.truth(run_id)), starts)
        assert set(drains_of(upstream, run_id, before)) <= {floor - 200, 0}


async def test_a_log_without_its_state_is_asked_for_its_head_once(upstream: ScriptedUpstream, redis_url: str) -> None:
    """An operator deleted the hash: a run that starts at 5000, one that was trimmed, one whose head is gone."""
    async with small_relay(upstream, redis_url) as relay:
        late = upstream.add_run([{"type": "run.started", "seq": 5000}, {"type": "message.delta", "seq": 5007}])
        cut = long_run(upstream)
        gone = upstream.add_run([("run.started", {}), *[("message.delta", {"content_delta": "b"})] * 40])
        upstream.prune(gone, 20)
        for run_id, lost in ((late, 0), (cut, 0), (gone, 20)):
            upstream.finish(run_id)
            last = upstream.truth(run_id)[-1]["seq"]
            async with crowd(relay.events(run_id)) as people:
                people.join("sse", after_seq=last - 1)
                await people.ended()
            with plain(redis_url) as client:
                assert client.delete(Keys(prefix_of(relay), 64).run(RunKey("main", run_id)))
            async with crowd(relay.events(run_id)) as people:
                people.join_all()
                await people.ended()
                people.check(upstream.truth(run_id), after_seq=lost, resets=int(lost > 0))
                before = len(upstream.requests)
                await asyncio.to_thread(forget_old, redis_url, relay, run_id)
                people.join_all()
                await people.ended()
                people.check(upstream.truth(run_id), after_seq=lost, resets=int(lost > 0))
            if run_id != cut:
                assert drains_of(upstream, run_id, before) == [], "known by now: not asked again"


def forget_old(redis_url: str, relay: RunningRelay, run_id: str) -> None:
    keys = Keys(prefix_of(relay), 64)
    with plain(redis_url) as client:
        client.delete(keys.old(RunKey("main", run_id)), keys.fill(RunKey("main", run_id)))


async def test_giant_events_of_a_trimmed_head_are_cut_the_same_way(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with small_relay(upstream, redis_url, limits={"event_bytes": 100_000}) as relay:
        run_id = upstream.add_run([("run.started", {})])
        upstream.append(run_id, "llm.request", {"input": "y" * 200_000})
        for _ in range(1000):
            upstream.append(run_id, "message.delta", {"content_delta": "x"})
        async with crowd(relay.events(run_id)) as people:
            live = people.join("ndjson")
            await live.until(lambda viewer: viewer.cursor == 1002)
            upstream.finish(run_id)
            await people.ended()
            await asyncio.to_thread(forget_old, redis_url, relay, run_id)
            late = people.join("ndjson")
            await people.ended()
            assert b'"truncated":true' in late.events[1][1]
            # What was too large to be read has no time of its own: it is when it came.
            assert re.sub(rb'"created_at":"[^"]*"', b"", late.events[1][1]) == re.sub(
                rb'"created_at":"[^"]*"', b"", live.events[1][1]
            )
            assert late.events[0] == live.events[0]
            assert late.events[2:] == live.events[2:]


# ── Redis' troubles ─────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_flush_while_a_head_is_fetched_is_seen_by_nobody(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    async with small_relay(upstream, own_redis.url, fanout={"page_bytes": 5000}) as relay:
        run_id = long_run(upstream, 6000)
        upstream.finish(run_id)
        await sealed(relay, upstream, own_redis.url, run_id)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor > 100)
            assert min(viewer.cursor for viewer in people.viewers) < 5000, "they were too quick: this proves nothing"
            await flush(own_redis.url)
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_what_was_fetched_may_vanish_at_any_time(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with small_relay(upstream, redis_url, fanout={"page_bytes": 5000, "memory_bytes": 100_000}) as relay:
        run_id = long_run(upstream, 4000)
        upstream.finish(run_id)
        await sealed(relay, upstream, redis_url, run_id)
        keys = Keys(prefix_of(relay), 64)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            for i, seen in enumerate((200, 800, 1500)):
                await people.all_saw(lambda viewer, seen=seen: viewer.cursor > seen)
                name = (keys.old, keys.fill)[i % 2](RunKey("main", run_id))
                await command(redis_url, "DEL", name)
            await people.ended()
            people.check(upstream.truth(run_id))


# ── a fleet ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@asynccontextmanager
async def fleet(upstream: ScriptedUpstream, redis_url: str, directory: Path) -> AsyncIterator[list[RelayProcess]]:
    """Two real processes on one Redis."""
    async with AsyncExitStack() as stack:
        relays = []
        for name in ("one", "two"):
            (directory / name).mkdir()
            ingest = {**SMALL.get("ingest", {}), "stall_s": 120.0}  # an upstream that hangs is not given up meanwhile
            relay = RelayProcess(upstream.url, directory / name, redis_url=redis_url, **{**SMALL, "ingest": ingest})
            relays.append(await stack.enter_async_context(relay))
        yield relays
        for relay in relays:
            assert "Traceback" not in relay.log.read_text(), relay.log.read_text()


def events_at(relay: RelayProcess, run_id: str) -> str:
    return f"{relay.url}/v1/runs/{run_id}/events"


async def test_fifty_readers_of_two_processes_cost_one_read(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(upstream, own_redis.url, tmp_path) as relays:
        run_id = long_run(upstream)
        async with crowd(events_at(relays[0], run_id)) as people:
            await people.join("sse", after_seq=SIZE - 1).until(lambda viewer: viewer.cursor == SIZE)
            await people.leave()
        before = len(upstream.requests)
        async with crowd(events_at(relays[0], run_id)) as here, crowd(events_at(relays[1], run_id)) as there:
            for i in range(25):
                here.join(KINDS[i % 4])
                there.join(KINDS[i % 4])
            await asyncio.gather(*(one.all_saw(lambda viewer: viewer.cursor == SIZE) for one in (here, there)))
            assert drains_of(upstream, run_id, before) == [0]
            upstream.finish(run_id)
            await asyncio.gather(here.ended(), there.ended())
            here.check(upstream.truth(run_id))
            there.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1
        assert upstream.counters(run_id)["max_draining"] == 1


async def test_a_filler_that_is_killed_is_followed_by_another_that_goes_on(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(upstream, own_redis.url, tmp_path) as relays:
        run_id = long_run(upstream)
        upstream.finish(run_id)
        async with crowd(events_at(relays[0], run_id)) as people:
            people.join("sse", after_seq=SIZE)
            await people.ended()
        before = len(upstream.requests)
        upstream.fault(faults.stall(after_events=700), run_id)
        async with crowd(events_at(relays[0], run_id)) as here, crowd(events_at(relays[1], run_id)) as there:
            first = here.join("sse")
            await first.until(lambda viewer: viewer.cursor > 500)
            there.join_all()
            await there.all_saw(lambda viewer: viewer.cursor > 500)  # progressively, what the other one fetches
            await relays[0].kill()
            await here.leave()
            await there.ended()
            there.check(upstream.truth(run_id))
        first_read, second_read = drains_of(upstream, run_id, before)
        assert first_read == 0
        assert second_read >= 500
        assert await relays[1].stop() == 0
