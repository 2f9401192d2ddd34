"""P4: the end is told once, and only the end; and what is between the beginning and the end is neither lost nor made up."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from relay.demo import wire
from relay.store.embedded import EmbeddedServer
from tests.support import upstream_faults as faults
from tests.support.relay import RunningRelay
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import at_rest, crowd, flush, metrics, relay_here
from tests.system.watching import Truth, Viewer

pytestmark = pytest.mark.system

FEW = [("run.started", {}), *[("message.delta", {"content_delta": "a"})] * 9]
Events = list[dict[str, Any]]


def events_of(viewer: Viewer) -> Events:
    return [json.loads(text) for _, text in viewer.events]


async def watched(relay: RunningRelay, run_id: str) -> list[Viewer]:
    """One viewer of each kind, to the end."""
    async with crowd(relay.events(run_id)) as people:
        people.join_all()
        return await people.ended()


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled", "interrupted"])
async def test_each_terminal_type_ends_a_run_with_its_status(
    upstream: ScriptedUpstream, redis_url: str, kind: str
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            upstream.finish(run_id, f"run.{kind}", {"message": "so be it"})
            await people.ended()
            people.check(upstream.truth(run_id))
            for viewer in people.viewers:
                assert viewer.ended == {"last_seq": 11, "status": kind}


async def test_a_nested_agents_end_does_not_end_the_run(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            nested = upstream.append(run_id, "run.completed", {"delegate_layer": "acp"})
            await people.all_saw(lambda viewer: viewer.cursor == nested)
            await asyncio.sleep(1.0)  # three times the linger
            assert not any(viewer.ended for viewer in people.viewers)
            upstream.append(run_id, "message.delta", {"content_delta": "and on"})
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_what_comes_after_the_terminal_event_comes_before_the_end(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with relay_here(upstream.url, redis_url, ingest={"linger_s": 1.5}) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            done = upstream.finish(run_id)
            await people.all_saw(lambda viewer: viewer.cursor == done)
            assert not any(viewer.ended for viewer in people.viewers)
            upstream.append(run_id, "thread.title.updated", {"title": "Late"})
            await people.ended()
            people.check(upstream.truth(run_id))
            assert {viewer.events[-1][0] for viewer in people.viewers} == {12}


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "interrupted"])
async def test_a_run_that_ends_silently_gets_one_marked_end(
    upstream: ScriptedUpstream, redis_url: str, status: str
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            await upstream.until(lambda: upstream.following(run_id) == 1)
            upstream.set_status(run_id, status)
            await people.ended()
            for viewer in people.viewers:
                marked(viewer, list(range(1, 12)), status)
            people.join_all()  # later readers get the very same
            await people.ended()
            assert len({text for viewer in people.viewers for _, text in viewer.events[-1:]}) == 1
        assert upstream.max_following(run_id) == 1


def marked(viewer: Viewer, seqs: list[int], status: str) -> None:
    events = events_of(viewer)
    assert viewer.seqs == seqs
    assert [event["seq"] for event in events if event.get("synthesized")] == seqs[-1:]
    assert events[-1]["type"] == f"run.{status}"
    assert viewer.ended == {"last_seq": seqs[-1], "status": status}


async def test_a_run_pruned_upstream_ends_with_one_marked_event(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        upstream.finish(run_id)
        upstream.prune(run_id)
        for viewer in await watched(relay, run_id):
            marked(viewer, [1], "completed")


async def test_a_run_that_vanishes_fails_after_three_times_404(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            await upstream.until(lambda: upstream.following(run_id) == 1)
            before = len(upstream.requests)
            upstream.remove_run(run_id)
            upstream.cut_now(run_id)
            await people.ended()
            for viewer in people.viewers:
                marked(viewer, list(range(1, 12)), "failed")
        asked = [one for one in upstream.requests[before:] if one.path == f"/v1/runs/{run_id}"]
        assert len(asked) == 3


async def test_one_404_of_a_load_balancer_ends_nothing(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            upstream.fault(faults.status(404, target="any"), run_id, times=2)
            upstream.cut_now(run_id)
            await upstream.until(lambda: upstream.following(run_id) == 1)
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_a_gateways_junk_is_not_taken_for_the_end_of_the_history(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """The run has ended properly, but each read is cut by the gateway: junk in the stream, and then a clean EOF."""
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            upstream.fault(faults.junk_eof(), run_id, times=8)
            upstream.cut_now(run_id)
            upstream.append(run_id, "message.delta", {"content_delta": "the last words"})
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_holes_of_old_runs_are_confirmed_once_and_passed_on(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            before = upstream.drains(run_id)
            for seq in (14, 15, 40, 90, 91, 200):
                upstream.append(run_id, "message.delta", {"content_delta": str(seq)}, seq=seq)
                await people.all_saw(lambda viewer, seq=seq: viewer.cursor == seq)
            assert upstream.drains(run_id) == before + 1
            upstream.append(run_id, "run.completed", {}, seq=333)
            await people.ended()
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_a_run_of_the_global_sequence_starts_anywhere(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        events = [{"type": "message.delta", "data": {"content_delta": "a"}, "seq": 5000 + 7 * i} for i in range(1, 50)]
        run_id = upstream.add_run([{"type": "run.started", "seq": 5000}, *events])
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 5343)
            upstream.finish(run_id)
            await people.ended()
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))


@pytest.mark.parametrize("when", ["to the first readers", "to later readers"])
async def test_a_pruned_head_is_announced(upstream: ScriptedUpstream, redis_url: str, when: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW + [("message.delta", {"content_delta": "b"})] * 40)
        upstream.prune(run_id, 20)
        upstream.finish(run_id)
        if when == "to later readers":
            await watched(relay, run_id)
            await at_rest(relay.session, relay.admin_url)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            middle = people.join("sse", after_seq=10)
            beyond = people.join("sse", after_seq=20)
            await people.ended()
            truth = Truth(upstream.truth(run_id))
            truth.check(beyond, after_seq=20, resets=0)
            for viewer in people.viewers[:4]:
                truth.check(viewer, after_seq=20, resets=1)
                (reset,) = viewer.said("relay.reset")
                assert (reset["from_seq"], reset["to_seq"]) == (1, 20)
            truth.check(middle, after_seq=20, resets=1)
            assert middle.said("relay.reset")[0]["from_seq"] == 11


async def test_a_head_trimmed_while_the_run_is_watched_is_fetched_again(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """The log's cap cuts its head off: a reader behind it gets it from the upstream and hears of nothing."""
    sections = {"retention": {"live_events": 1000}, "fanout": {"window_bytes": 1, "check_s": 60.0}}
    async with relay_here(upstream.url, redis_url, **sections) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            live = people.join("sse")
            await live.until(lambda viewer: viewer.cursor == 10)
            for _ in range(5000):
                upstream.append(run_id, "message.delta", {"content_delta": "x"})
            await live.until(lambda viewer: viewer.cursor == 5010)
            late = people.join("sse")
            await late.until(lambda viewer: viewer.cursor == 5010)
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_a_loss_on_the_wire_is_healed(upstream: ScriptedUpstream, redis_url: str) -> None:
    """The live stream leaves an event out that the upstream has: the step is read again and nothing is missing."""
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            await upstream.until(lambda: any(follower.resting for follower in upstream.traffic.followers(run_id)))
            drains = upstream.drains(run_id)
            (follower,) = upstream.traffic.followers(run_id)
            run = upstream.run(run_id)
            event = {"data": {"content_delta": "lost"}, "event_id": "e11", "run_id": run_id, "seq": 11}
            event |= {"ts": "2026-04-26T03:19:07.12Z", "type": "message.delta"}
            run.store(11, wire.frame(11, "message.delta", wire.to_json(event)))
            follower.cursor = 11  # as if it had been sent
            upstream.append(run_id, "message.delta", {"content_delta": "seen"})
            await people.all_saw(lambda viewer: viewer.cursor == 12)
            assert upstream.drains(run_id) == drains + 1
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1


async def test_the_first_of_two_events_with_one_seq_wins(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.add_run(FEW)
        upstream.append(run_id, "message.delta", {"content_delta": "second"}, seq=10)
        upstream.append(run_id, "message.delta", {"content_delta": "after"})
        upstream.finish(run_id)
        before = (await metrics(relay.session, relay.admin_url)).get("relay_events_repeated_total", 0.0)
        for viewer in await watched(relay, run_id):
            assert viewer.seqs == list(range(1, 13))
            assert events_of(viewer)[9]["data"]["content_delta"] == "a"
        assert (await metrics(relay.session, relay.admin_url))["relay_events_repeated_total"] > before


async def test_events_of_several_megabytes_pass_and_too_large_ones_keep_their_place(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with relay_here(upstream.url, redis_url, limits={"event_bytes": 6_000_000}) as relay:
        run_id = upstream.add_run(FEW)
        upstream.append(run_id, "llm.request", {"input": "x" * (5 << 20)})
        upstream.append(run_id, "llm.request", {"input": "y" * (7 << 20)})
        upstream.append(run_id, "message.delta", {"content_delta": "after"})
        upstream.finish(run_id)
        for viewer in await watched(relay, run_id):
            events = events_of(viewer)
            assert viewer.seqs == list(range(1, 15))
            assert events[10]["data"] == {"input": "x" * (5 << 20)}
            assert events[11]["type"] == "llm.request"
            assert events[11]["data"]["truncated"] is True
            assert events[11]["data"]["bytes"] > 7 << 20
            assert events[12]["data"]["content_delta"] == "after"


async def test_a_run_that_waits_for_room_is_pumped_when_its_viewer_comes_back(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with relay_here(upstream.url, redis_url, ingest={"runs": 1, "unwanted_s": 0.5, "lease_s": 0.9}) as relay:
        busy, waits = upstream.add_run(FEW), upstream.add_run(FEW)
        async with crowd(relay.events(busy)) as people, crowd(relay.events(waits)) as others:
            await people.join("sse").until(lambda viewer: viewer.cursor == 10)
            others.join("sse")
            await asyncio.sleep(0.3)
            await others.leave()
            await asyncio.sleep(2.0)  # given up meanwhile
            upstream.finish(busy)
            await people.ended()
        upstream.finish(waits)
        async with crowd(relay.events(waits)) as others:
            others.join("sse")
            await others.ended()
            others.check(upstream.truth(waits))


async def test_a_head_pruned_before_a_flush_is_announced_to_late_joiners_only(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    """Redis lost it all, and the upstream no longer has the head: who saw it notices nothing, who comes is told."""
    async with relay_here(upstream.url, own_redis.url) as relay:
        run_id = upstream.add_run(FEW)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == 10)
            upstream.prune(run_id, 6)
            await flush(own_redis.url)
            upstream.append(run_id, "message.delta", {"content_delta": "on"})
            await people.all_saw(lambda viewer: viewer.cursor == 11)
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        await at_rest(relay.session, relay.admin_url)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id), after_seq=6, resets=1)
