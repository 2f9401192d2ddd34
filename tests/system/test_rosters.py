"""Runs that nobody named: those of a thread, whenever they start, and the sub-runs of a run."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from relay.core import vector
from relay.core.ids import RunKey
from relay.providers.arkloop.provider import Arkloop
from relay.web import listing, roster
from tests.support.many import SseViewer
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import relay_here
from tests.system.test_many import BRIEF, exact, many, script, session

__all__ = ["session"]
pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the upstream ten times as often as in life."""
    monkeypatch.setattr(roster, "LOOK_S", 0.2)


LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


def asked(upstream: ScriptedUpstream, what: str) -> int:
    return sum(one.path.endswith(what) for one in upstream.requests)


async def test_a_thread_brings_what_is_active_and_what_starts_later(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        history = upstream.add_run(script(3), thread_id="t", created_at=LONG_AGO)
        active = upstream.add_run(script(3)[:-1], thread_id="t")
        elsewhere = upstream.add_run(script(3)[:-1], thread_id="other")
        viewers = [SseViewer(many(relay, "thread=t")) for _ in range(5)]
        tasks = [asyncio.create_task(viewer.once(session)) for viewer in viewers]
        for viewer in viewers:
            await viewer.until(lambda viewer: len(viewer.seqs(active)) == 4)
        later = upstream.add_run(script(5), thread_id="t")
        for viewer in viewers:
            await viewer.until(lambda viewer: later in viewer.ended)
            exact(viewer, upstream, later)
        upstream.finish(active)
        for viewer in viewers:
            await viewer.until(lambda viewer: active in viewer.ended)
            exact(viewer, upstream, active)
            assert set(viewer.events) == {active, later}, (history, elsewhere)
            assert viewer.polite_ends == 0  # more may start
        looks = asked(upstream, "/v1/threads/t/runs")
        assert looks < 60, "five readers of a thread ask once for all of them"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_run_that_started_and_ended_while_its_reader_was_away_is_read_and_nothing_twice(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        just_over = upstream.add_run(script(3), thread_id="t")  # history, and the newest there is
        active = upstream.add_run(script(3)[:-1], thread_id="t", created_at=LONG_AGO)
        viewer = SseViewer(many(relay, "thread=t"))
        await viewer.once(session, leave=lambda viewer: len(viewer.seqs(active)) == 4)
        await asyncio.sleep(0)
        meanwhile = [upstream.add_run(script(4), thread_id="t") for _ in range(3)]
        upstream.finish(active)
        task = asyncio.create_task(viewer.once(session))
        await viewer.until(lambda viewer: {active, *meanwhile} <= set(viewer.ended))
        for run_id in (active, *meanwhile):
            exact(viewer, upstream, run_id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        task = asyncio.create_task(viewer.once(session))
        last = upstream.add_run(script(2), thread_id="t")
        await viewer.until(lambda viewer: last in viewer.ended)
        assert set(viewer.events) == {active, *meanwhile, last}, just_over
        assert viewer.repeated == 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that lists so few runs at once that twenty are a long thread."""
    monkeypatch.setattr(Arkloop, "list_limit", 5)


async def come_and_go(viewer: SseViewer, session: aiohttp.ClientSession, upstream: ScriptedUpstream) -> str:
    """A reader of the thread who has seen a run that is active still, and left."""
    active = upstream.add_run(script(1)[:-1], thread_id="t", created_at=LONG_AGO)
    await viewer.once(session, leave=lambda viewer: len(viewer.seqs(active)) == 2)
    return active


def began_meanwhile(upstream: ScriptedUpstream, count: int, *, step_s: float = 60.0) -> list[str]:
    """So many runs, the first of them long ago, the last of them now; all over."""
    first = datetime.now(UTC) - timedelta(seconds=step_s * count)
    made = (first + timedelta(seconds=step_s * i) for i in range(count))
    return [upstream.add_run(script(1), thread_id="t", created_at=created_at) for created_at in made]


@pytest.mark.usefixtures("short_lists")
@pytest.mark.parametrize("step_s", [60.0, 0.0])
async def test_more_runs_than_a_list_has_began_while_the_reader_was_away_and_all_are_read(
    upstream: ScriptedUpstream,
    redis_url: str,
    session: aiohttp.ClientSession,
    step_s: float,
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF, limits={"runs_per_connection": 4}) as relay:
        viewer = SseViewer(many(relay, "thread=t"))
        active = await come_and_go(viewer, session, upstream)
        meanwhile = began_meanwhile(upstream, 23, step_s=step_s)
        upstream.add_run(script(1), thread_id="another", created_at=LONG_AGO)
        upstream.finish(active)
        task = asyncio.create_task(viewer.once(session))
        await viewer.until(lambda viewer: {active, *meanwhile} <= set(viewer.ended))
        for run_id in (active, *meanwhile):
            exact(viewer, upstream, run_id)
        assert set(viewer.events) == {active, *meanwhile}
        looks = asked(upstream, "/v1/runs")
        later = upstream.add_run(script(1), thread_id="t")
        await viewer.until(lambda viewer: later in viewer.ended)
        assert not step_s or asked(upstream, "/v1/runs") == looks, (
            "who is up to date needs no more than the newest page"
        )
        assert not step_s or max(map(len, viewer.cursors)) < 300, "a cursor speaks of what is read, not of what waits"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("short_lists")
async def test_who_waits_for_room_and_leaves_finds_the_rest_when_it_comes_back(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF, limits={"runs_per_connection": 3}) as relay:
        viewer = SseViewer(many(relay, "thread=t"))
        await come_and_go(viewer, session, upstream)
        meanwhile = began_meanwhile(upstream, 17)
        chance = random.Random(3)
        async with asyncio.timeout(60):
            while not set(meanwhile) <= set(viewer.ended):
                went = len(viewer.order)

                def restless(viewer: SseViewer, went: int = went) -> bool:
                    moved = len(viewer.order) > went and chance.random() < 0.2
                    return moved or set(meanwhile) <= set(viewer.ended)

                await viewer.once(session, leave=restless)
        for run_id in meanwhile:
            exact(viewer, upstream, run_id)


@pytest.mark.usefixtures("short_lists")
async def test_more_runs_than_will_be_listed_are_said_to_be_missed(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_PAGES", 3)
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        viewer = SseViewer(many(relay, "thread=t"))
        ended = upstream.add_run(script(1)[:-1], thread_id="t", created_at=LONG_AGO)
        asyncio.get_running_loop().call_later(0.1, upstream.finish, ended)
        await viewer.once(session, leave=lambda viewer: ended in viewer.ended)
        meanwhile = began_meanwhile(upstream, 23)
        task = asyncio.create_task(viewer.once(session))
        await viewer.until(lambda viewer: viewer.said("error"))
        [missed] = viewer.said("error")
        assert (missed["code"], missed["retrying"]) == ("threads.runs_missed", False)
        before = datetime.fromisoformat(missed["details"]["made_before"])
        newest = {run_id for run_id in meanwhile if upstream.run(run_id).created_at >= before}
        assert len(newest) > 5
        await viewer.until(lambda viewer: newest <= set(viewer.ended))
        assert set(viewer.events) == {ended, *newest}
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        again = asyncio.create_task(viewer.once(session))
        last = upstream.add_run(script(1), thread_id="t")
        await viewer.until(lambda viewer: last in viewer.ended)
        assert len(viewer.said("error")) == 1, "what was missed is said once"
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)


async def test_a_run_that_says_it_is_from_the_future_hides_none_that_comes(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        viewer = SseViewer(many(relay, "thread=t"))
        upstream.add_run(script(1), thread_id="t", created_at=datetime.now(UTC) + timedelta(days=1))
        await come_and_go(viewer, session, upstream)
        meanwhile = upstream.add_run(script(2), thread_id="t")
        task = asyncio.create_task(viewer.once(session))
        await viewer.until(lambda viewer: meanwhile in viewer.ended)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_unknown_thread_is_an_error_and_an_upstream_that_is_away_is_asked_again(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        run_id = upstream.add_run(script(3)[:-1], thread_id="t")
        await upstream.refuse()
        viewer = SseViewer(many(relay, "thread=t"))
        task = asyncio.create_task(viewer.once(session))
        await viewer.until(lambda viewer: viewer.said("error"))
        assert viewer.said("error")[0]["retrying"] is True
        await upstream.accept()
        await viewer.until(lambda viewer: len(viewer.seqs(run_id)) == 4)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "runs"), ("runs=", "runs"), ("runs=a&thread=t", "runs"), ("runs=a/b", "runs"), ("runs=a:x", "runs"),
        ("runs=a,,b", "runs"), ("runs=a&cursor=!", "cursor"), ("runs=a&follow=false", "follow"), ("thread=../x", "thread"),
        ("runs=a&types={", "types"), ("runs=a&children=perhaps", "children"), ("thread=t&upstream=nope", "upstream"),
    ],
)  # fmt: skip
async def test_what_cannot_be_asked_is_refused_by_name(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession, query: str, field: str
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        async with session.get(many(relay, query)) as response:
            assert response.status == 422
            assert (await response.json())["details"]["field"] == field
        async with session.get(many(relay, "runs=a"), headers={"Last-Event-ID": "12"}) as response:
            assert response.status == 422
        async with session.get(many(relay, "runs=a"), headers={"Accept": "application/json"}) as response:
            assert response.status == 406


# ── sub-runs ────────────────────────────────────────────────────────────────────────────────────────────────────────
def named(upstream: ScriptedUpstream, parent: str, *children: str) -> None:
    upstream.run(parent).child_run_ids.extend(children)


async def test_sub_runs_come_with_their_run_and_theirs_with_them(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        parent = upstream.add_run(script(3)[:-1])
        first = upstream.add_run(script(4))
        named(upstream, parent, first)
        viewer = SseViewer(many(relay, f"runs={parent}&children=1"))
        task = asyncio.create_task(viewer.once(session))
        await viewer.until(lambda viewer: first in viewer.ended)
        second, grandchild = upstream.add_run(script(2)), upstream.add_run(script(1))
        named(upstream, parent, second)
        named(upstream, second, grandchild)
        upstream.finish(parent)
        await asyncio.wait_for(task, 60)
        for run_id in (parent, first, second, grandchild):
            exact(viewer, upstream, run_id)
        assert viewer.polite_ends == 1
        await viewer.once(session)
        assert viewer.statuses == [200, 204]
        alone = SseViewer(many(relay, f"runs={parent}"))
        await alone.watch(session)
        assert set(alone.events) == {parent}


async def test_a_resumed_reader_of_sub_runs_gets_the_rest_of_each(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        parent, child = (upstream.play(script(40), rate=60) for _ in range(2))
        named(upstream, parent, child)
        viewer = SseViewer(many(relay, f"runs={parent}&children=1"))
        chance = random.Random(7)
        async with asyncio.timeout(60):
            await viewer.watch(session, leave=lambda _: chance.random() < 0.05)
        for run_id in (parent, child):
            exact(viewer, upstream, run_id)
        assert viewer.connections > 2


async def test_a_place_in_a_run_that_is_still_looked_for_is_not_lost(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    """The first frames of a connection that came back speak of all runs of its cursor, whichever was found first."""
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        parent, child = (upstream.add_run(script(3)[:-1]) for _ in range(2))
        named(upstream, parent, child)
        viewer = SseViewer(many(relay, f"runs={parent}&children=1"))
        await viewer.once(session, leave=lambda viewer: len(viewer.seqs(child)) == 4 and viewer.cursors[-1:] != [])
        task = asyncio.create_task(viewer.once(session))
        while len(viewer.seqs(child)) < 5:  # the cursor may have been cut off with the write it was in
            upstream.append(parent, "message.delta", {"content_delta": "p"})
            upstream.append(child, "message.delta", {"content_delta": "c"})
            before = len(viewer.order)
            await viewer.until(lambda viewer, before=before: len(viewer.order) > before)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        places = {run_id: vector.read("", viewer.cursor).place(RunKey("main", run_id)) for run_id in (parent, child)}
        upstream.append(parent, "message.delta", {"content_delta": "p"})
        await viewer.once(session, leave=lambda _: True)
        after = vector.read("", viewer.cursor)
        assert all(after.place(RunKey("main", run_id)) >= place for run_id, place in places.items())
