"""P1 and P3 under everything an upstream can do: two hundred restless viewers, one recording, one following connection."""

from __future__ import annotations

import asyncio
import json
import random

import aiohttp
import pytest

from tests.support import upstream_faults as faults
from tests.support.needs import recording
from tests.support.upstream import ScriptedUpstream
from tests.support.upstream_faults import Fault
from tests.system.rig import crowd, relay_here, seeds
from tests.system.watching import KINDS, Kind, Truth, Viewer, native

pytestmark = pytest.mark.system

RECORDINGS = (
    "code-interpreter",
    "long-answer",
    "mcp-tools",
    "provider-error",
    "reasoning",
    "shell-skills",
    "web-search",
)


def everything_goes_wrong(chance: random.Random) -> list[Fault]:
    """Each kind of fault at least once, in random order, each letting the reader resume."""
    schedule = [
        faults.cut(after_events=chance.randint(0, 40)),
        faults.cut(after_bytes=chance.randint(0, 5000)),
        faults.cut(after_events=chance.randint(0, 40), how="drop"),
        faults.clean_eof(after_events=chance.randint(1, 40)),
        faults.clean_eof(after_bytes=chance.randint(1, 5000)),
        faults.junk_eof(after_events=chance.randint(1, 40)),
        faults.half_frame(after_events=chance.randint(0, 40)),
        faults.half_frame(after_events=chance.randint(0, 40), then="eof"),
        faults.stall(after_events=chance.randint(0, 40), for_s=0.4),
        faults.max_age(0.2),
        faults.status(500),
        faults.status(502),
        faults.status(503, retry_after=0),
        faults.status(401),
        faults.status(429, retry_after=1),
        faults.html(),
        faults.html(status=403),
        faults.content_type("application/json"),
        faults.drip() | faults.cut(after_events=chance.randint(5, 30)),
        faults.chunks(seed=chance.getrandbits(30)) | faults.max_age(0.3),
        faults.crlf() | faults.cut(after_events=chance.randint(5, 40)),
        faults.drip() | faults.crlf() | faults.cut(after_events=chance.randint(5, 30)),
        faults.duplicates(chance.randint(1, 50)) | faults.max_age(0.2),
        faults.ignore_after_seq() | faults.max_age(0.3),
        faults.ignore_after_seq() | faults.half_frame(after_events=chance.randint(0, 300)),
    ]
    chance.shuffle(schedule)
    return schedule


@pytest.mark.parametrize("seed", seeds(2))
async def test_two_hundred_restless_viewers_see_exactly_the_recording(
    upstream: ScriptedUpstream, redis_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run([("run.started", {})])
        for fault in everything_goes_wrong(chance):
            upstream.fault(fault, run_id)
        async with crowd(relay.events(run_id)) as people:
            for i in range(200):
                kind: Kind = chance.choices(KINDS, (100, 60, 20, 20))[0]
                people.join(kind, chance=random.Random(seed * 1000 + i), within_s=4.0)
            script = [event for event in recording("long-answer") if event["seq"] > 1]
            upstream.play(script, run_id=run_id, rate=200)
            await people.ended()
            assert len(upstream.truth(run_id)) == 817
            people.check(upstream.truth(run_id))
        counters = upstream.counters(run_id)
        assert counters["max_following"] == 1
        assert counters["max_draining"] == 1
        assert len(upstream.fired) >= 6, "the faults were hardly met: this proves nothing"


@pytest.mark.parametrize("seed", seeds(2))
async def test_random_faults_reach_no_viewer(upstream: ScriptedUpstream, redis_url: str, seed: int) -> None:
    chance = random.Random(seed)
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run([("run.started", {})])
        upstream.chaos(seed, run_id, count=40, stall_s=0.2)
        async with crowd(relay.events(run_id)) as people:
            for i in range(40):
                people.join(chance.choice(KINDS), chance=random.Random(seed * 1000 + i), within_s=2.0)
            script = [event for event in recording("reasoning") if event["seq"] > 1]
            upstream.play(script, run_id=run_id, rate=250)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) <= 1
        assert upstream.counters(run_id)["max_draining"] <= 1
        assert upstream.fired


@pytest.mark.parametrize("name", RECORDINGS)
async def test_a_recording_is_json_equal_at_the_far_end_on_every_wire(
    upstream: ScriptedUpstream, redis_url: str, name: str
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.play(recording(name), rate=2000)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.ended()
            people.join_all()  # and of a run that is over
            await people.ended()
            truth = upstream.truth(run_id)
            people.check(truth)
            assert await by_pages(people.session, relay.events(run_id), limit=100) == [native(e) for e in truth]
            for kind in ("sse", "ndjson"):
                assert await at_once(people.session, relay.events(run_id, "follow=false"), kind) == truth_seqs(truth)


async def by_pages(session: aiohttp.ClientSession, url: str, *, limit: int) -> list[dict[str, object]]:
    """The whole run, page by page, until a page says that it has ended."""
    events: list[dict[str, object]] = []
    cursor = 0
    for _ in range(1000):
        query = {"after_seq": str(cursor), "limit": str(limit), "wait": "5"}
        async with session.get(url, params=query, headers={"Accept": "application/json"}) as response:
            assert response.status == 200
            page = json.loads(await response.read())
        assert len(page["events"]) <= limit
        events += page["events"]
        cursor = page["next_after_seq"]
        if page["ended"]:
            return events
    raise AssertionError("no page says that the run has ended")


async def at_once(session: aiohttp.ClientSession, url: str, kind: Kind) -> list[int]:
    """The seqs of one body that does not follow."""
    viewer = Viewer(url, kind)
    async with asyncio.timeout(60):
        await viewer.once(session)
    return viewer.seqs


def truth_seqs(truth: list[dict[str, object]]) -> list[object]:
    return [event["seq"] for event in truth]


@pytest.mark.parametrize("kind", ["sse", "ndjson"])
async def test_who_does_not_follow_gets_all_there_is_of_a_run_nobody_watched_yet(
    upstream: ScriptedUpstream, redis_url: str, kind: Kind
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "x"})] * 2000)
        upstream.finish(run_id)
        upstream.fault(faults.chunks(1000), run_id, times=None)  # the upstream has it all, but tells it slowly
        async with aiohttp.ClientSession() as session:
            seqs = await at_once(session, relay.events(run_id, "follow=false"), kind)
        assert (len(seqs), seqs[-1]) == (2002, 2002), "a body that ended properly holds only a part of the run"


async def test_pages_of_a_run_nobody_watched_yet_hold_all_of_it(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "x" * 50})] * 3000)
        upstream.finish(run_id)
        async with aiohttp.ClientSession() as session:
            events = await by_pages(session, relay.events(run_id), limit=1000)
        truth = upstream.truth(run_id)
        assert events == [native(event) for event in truth]
        assert Truth(truth).seqs == list(range(1, 3003))
