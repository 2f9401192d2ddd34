"""A real relay process is killed, or asked to go, in the middle of runs: viewers go on as if nothing had happened."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest

from tests.support.needs import recording
from tests.support.relay import RelayProcess
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import Crowd, crowd, relay_process
from tests.system.watching import KINDS, Truth, Viewer

pytestmark = pytest.mark.system


def events_of(relay: RelayProcess, run_id: str) -> str:
    return f"{relay.url}/v1/runs/{run_id}/events"


def play(upstream: ScriptedUpstream, rate: float) -> str:
    """Its last part waits until the test says so."""
    return upstream.play(recording("long-answer"), rate=rate, hold=300)


def twenty(people: Crowd, seed: int) -> None:
    for i in range(20):
        people.join(KINDS[i % 4], chance=random.Random(seed + i) if i >= 8 else None, within_s=1.0)


async def test_kill_9_in_the_middle_of_a_run_costs_no_viewer_an_event(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with relay_process(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 120)
        async with crowd(events_of(relay, run_id)) as people:
            twenty(people, 100)
            for seen in (100, 300):
                await people.all_saw(lambda viewer, seen=seen: viewer.cursor > seen)
                await relay.kill()
                await relay.start()
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1
        assert upstream.counters(run_id)["max_draining"] <= 1


async def test_sigterm_tells_viewers_goodbye_and_they_resume_exactly(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with relay_process(upstream.url, tmp_path) as relay:
        run_id = play(upstream, 150)
        async with crowd(events_of(relay, run_id)) as people:
            loyal = people.join_all()
            twenty(people, 200)
            await people.all_saw(lambda viewer: viewer.cursor > 150)
            assert await relay.stop() == 0
            await asyncio.gather(*(viewer.until(lambda viewer: viewer.said("relay.goodbye")) for viewer in loyal))
            await relay.start()
            await upstream.go_on(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
            for viewer in loyal:
                assert viewer.said("relay.goodbye")
                for goodbye in viewer.said(
                    "relay.goodbye"
                ):  # more than one where it came back at once, not when told to
                    assert goodbye["code"] == "drain"
                    assert goodbye["reconnect"] is True
                    assert goodbye["after_ms"] >= 1000
            for closes in [viewer.closes for viewer in loyal if viewer.kind.startswith("websocket")]:
                assert (set(closes[:-1]), closes[-1]) == ({1012}, 1000)
        assert upstream.max_following(run_id) == 1


async def test_kill_9_while_nobody_watches_and_the_run_goes_on(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with relay_process(upstream.url, tmp_path) as relay:
        run_id = upstream.play(recording("web-search"), rate=100, hold=60)
        async with crowd(events_of(relay, run_id)) as people:
            early = people.join("sse")
            await early.until(lambda viewer: viewer.cursor >= 20)
            await people.leave()
        await relay.kill()
        await upstream.go_on(run_id)
        await upstream.played(run_id)
        await relay.start()
        async with crowd(events_of(relay, run_id)) as people:
            people.join_all()
            people.join("sse", after_seq=early.cursor)
            await people.ended()
            truth = Truth(upstream.truth(run_id))
            for viewer in people.viewers[:4]:
                truth.check(viewer)
            truth.check(people.viewers[4], after_seq=early.cursor)
        assert upstream.max_following(run_id) == 1


async def test_kill_9_after_the_seal_and_the_run_is_still_there_without_the_upstream(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with relay_process(upstream.url, tmp_path) as relay:
        run_id = upstream.play(recording("web-search"), rate=1000)
        async with crowd(events_of(relay, run_id)) as people:
            people.join("sse")
            await people.ended()
        await asyncio.sleep(1.1)  # appendfsync everysec
        await relay.kill()
        await upstream.refuse()
        await relay.start()
        async with crowd(events_of(relay, run_id)) as people:
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))
        await upstream.accept()


async def test_what_is_read_without_following_after_a_restart_is_not_stale(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with relay_process(upstream.url, tmp_path) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "a"})] * 9)
        async with crowd(events_of(relay, run_id)) as people:
            await people.join("sse").until(lambda viewer: viewer.cursor == 10)
            await people.leave()
        await relay.kill()
        for _ in range(10):
            upstream.append(run_id, "message.delta", {"content_delta": "b"})
        await relay.start()
        reader = Viewer(events_of(relay, run_id) + "?follow=false", "sse")
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            await reader.once(session)
        assert reader.seqs == list(range(1, 21)), "ended properly with half of what the upstream has"
