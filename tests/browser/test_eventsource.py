"""A browser's own EventSource, with nothing around it: no library, no retry logic, nobody who closes it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.rig import (
    MARKS,
    Front,
    Source,
    Told,
    Traffic,
    at_origin,
    check_end,
    check_events,
    check_stopped,
    events_path,
    resumed_from,
)
from tests.support.needs import recording
from tests.support.relay import RelayProcess, running
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

pytestmark = MARKS

FEW = [("run.started", {}), *[("message.delta", {"content_delta": "a"})] * 8, ("run.completed", {})]


# ── a whole run ─────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_onmessage_sees_a_whole_run_once_in_order_and_the_end_by_its_name(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    traffic = Traffic.of(page)
    async with running(upstream.url, redis_url) as relay:
        run_id = upstream.play(recording("web-search"), rate=150)
        source = await Source.open(await at_origin(page, relay.url), events_path(run_id))
        await source.until(lambda now: now["ended"])
        truth = upstream.truth(run_id)
        assert len(truth) == 135
        seen = await source.events()
        check_events(seen, truth)
        assert {event.type for event in seen} == {"message"}
        assert [frame.type for frame in await source.frames()] == ["relay.end"]
        await check_end(source, truth[-1]["seq"])
    assert traffic.errors == []


async def test_named_events_come_to_the_listeners_of_their_types(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    async with running(upstream.url, redis_url) as relay:
        run_id = upstream.play(recording("web-search"), rate=1000)
        types = ["run.started", "message.delta", "tool.call", "tool.result", "run.completed"]
        source = await Source.open(await at_origin(page, relay.url), events_path(run_id, "named=1"), types)
        await source.until(lambda now: now["ended"])
        seen = await source.events()
        truth = upstream.truth(run_id)
        check_events(seen, truth)
        assert [event.type for event in seen] == [event["type"] for event in truth]
        await check_end(source, truth[-1]["seq"])


# ── interrupted in the middle ───────────────────────────────────────────────────────────────────────────────────────
async def test_a_relay_that_is_asked_to_go_says_goodbye_and_the_browser_comes_back(
    upstream: ScriptedUpstream, tmp_path: Path, page: Page
) -> None:
    async with RelayProcess(upstream.url, tmp_path, delivery={}) as relay:
        told = Told(upstream, recording("web-search"))
        await told.on(30)
        run_id = told.run_id
        source = await Source.open(await at_origin(page, relay.url), events_path(run_id))
        await source.until(lambda now: now["count"] == 30)
        await told.on(60, rate=60)
        assert await relay.stop() == 0
        await relay.start()
        await source.until(lambda now: now["opened"] == 2)
        await told.on()
        await source.until(lambda now: now["ended"])
        check_events(await source.events(), upstream.truth(run_id))
        (goodbye,) = await source.frames("relay.goodbye")
        assert goodbye.data["code"] == "drain"
        assert goodbye.data["reconnect"] is True


async def test_being_offline_for_a_moment_or_longer_costs_no_event(
    upstream: ScriptedUpstream, redis_url: str, browser: Browser
) -> None:
    """For 300 ms, over before the browser tries again; and for so long that its first try fails."""

    async def one(front: Front, failures: int) -> None:
        context = await browser.new_context()
        page = await context.new_page()
        source = await Source.open(await at_origin(page, front.url), events_path(told.run_id))
        await source.until(lambda now: now["count"] >= 30)
        await context.set_offline(True)
        assert front.cut() > 0
        await asyncio.sleep(0.3)
        assert (await source.until(lambda now: now["errors"] >= failures))["opened"] == 1
        await context.set_offline(False)
        await source.until(lambda now: now["opened"] == 2)
        back.release()
        await source.closed()
        check_events(await source.events(), upstream.truth(told.run_id))
        await check_end(source, 135)
        await context.close()

    async def tell() -> None:
        await told.on(60, rate=20)  # while they are away
        await back.acquire()
        await back.acquire()
        await told.on()

    told, back = Told(upstream, recording("web-search")), asyncio.Semaphore(0)
    async with running(upstream.url, redis_url) as relay, Front(relay.url) as near, Front(relay.url) as far:
        await told.on(30)
        await upstream.played(told.run_id)
        await asyncio.gather(one(near, 1), one(far, 2), tell())


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_it_stops_by_itself_whatever_was_asked_for(
    upstream: ScriptedUpstream, redis_url: str, context: BrowserContext
) -> None:
    """All at once, each in a page of its own: the time goes into watching that nobody comes back."""
    live = upstream.play(recording("web-search"), rate=100)
    done = upstream.add_run(FEW)
    pruned = upstream.add_run(FEW)
    upstream.prune(pruned)
    never = upstream.add_run((), status="completed")
    cases = [
        (live, "", list(range(1, 136)), 135),
        (live, "after_seq=2", list(range(3, 136)), 135),
        (done, "after_seq=2", list(range(3, 11)), 10),
        (done, "after_seq=10", [], 10),
        (done, "types=run.started", [1], 10),
        (done, "types=tool.*", [], 10),
        (done, "types=run.*&named=1", [1, 10], 10),
        (pruned, "", [1], 1),
        (pruned, "types=tool.*", [], 1),
        (never, "", [1], 1),
    ]
    async with running(upstream.url, redis_url) as relay:

        async def one(run_id: str, query: str, wanted: list[int], last_seq: int) -> None:
            page = await context.new_page()
            traffic = Traffic.of(page)
            types = ["run.started", "run.completed"]
            source = await Source.open(await at_origin(page, relay.url), events_path(run_id, query), types)
            await check_stopped(source, traffic, run_id, last_seq)
            assert [seen.data["seq"] for seen in await source.events()] == wanted
            await check_end(source, last_seq)
            assert {request.url for request in traffic.streams(run_id)} == {relay.url + events_path(run_id, query)}
            if run_id in (pruned, never):
                assert all(seen.data["synthesized"] is True for seen in await source.events())
            assert traffic.errors == []

        outcomes = await asyncio.gather(*(one(*case) for case in cases), return_exceptions=True)
    broken = {case[:2]: outcome for case, outcome in zip(cases, outcomes, strict=True) if outcome is not None}
    assert not broken, broken


async def test_filtered_events_move_the_cursor_while_the_run_goes_on_and_to_its_end(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    """Cut off in the middle of what it does not see, the browser comes back behind it, not before it."""
    traffic = Traffic.of(page)
    async with running(upstream.url, redis_url) as relay, Front(relay.url) as front:
        told = Told(upstream, recording("web-search"))
        await told.on(60, rate=30)
        run_id = told.run_id
        source = await Source.open(await at_origin(page, front.url), events_path(run_id, "types=run.started"))
        while not await source.frames("relay.position"):
            await asyncio.sleep(0.05)
        front.cut()
        await told.on(30, rate=30)
        await source.until(lambda now: now["opened"] == 2)
        await told.on()
        await source.closed()
        last_seq = upstream.truth(run_id)[-1]["seq"]
        assert [seen.data["seq"] for seen in await source.events()] == [1]
        positions = await source.frames("relay.position")
        stood = [frame.data["seq"] for frame in positions]
        assert stood == sorted(set(stood))
        assert [frame.last_event_id for frame in positions] == [str(seq) for seq in stood]
        await check_end(source, last_seq)
        resumed = [await resumed_from(request) for request in traffic.streams(run_id)]
        assert resumed[0] is None
        assert int(resumed[1] or 0) in stood
        assert resumed[-1] == str(last_seq)
        assert traffic.answers(run_id) == [200, 200, 204]
