"""Redis loses everything, freezes, dies and comes back: live viewers notice nothing, later ones get everything (P5)."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path

import pytest

from relay.core.ids import RunKey
from relay.store.embedded import EmbeddedServer
from relay.store.keys import Keys
from tests.support.needs import recording
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import RedisProcess, command, crowd, flush, relay_here
from tests.system.watching import KINDS, Truth, Viewer

pytestmark = pytest.mark.system


async def test_a_flush_in_the_middle_of_a_run_is_seen_by_nobody(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    async with relay_here(upstream.url, own_redis.url) as relay:
        run_id = upstream.play(recording("long-answer"), rate=200, hold=300)
        async with crowd(relay.events(run_id)) as people:
            for i in range(20):
                people.join(KINDS[i % 4], chance=random.Random(i) if i >= 8 else None, within_s=1.0)
            for seen in (100, 250, 500):
                await people.all_saw(lambda viewer, seen=seen: viewer.cursor > seen)
                await flush(own_redis.url)
                people.join_all()
            await upstream.go_on(run_id)
            await people.ended()
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1
        assert upstream.counters(run_id)["max_draining"] <= 1


async def test_a_flush_while_the_run_waits_for_input(upstream: ScriptedUpstream, own_redis: EmbeddedServer) -> None:
    async with relay_here(upstream.url, own_redis.url) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "a"})] * 30)
        asked = upstream.append(run_id, "run.input_requested", {"request_id": "r", "message": "?"})
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.all_saw(lambda viewer: viewer.cursor == asked)
            await flush(own_redis.url)
            people.join_all()  # at once, while nothing is there
            await people.all_saw(lambda viewer: viewer.cursor == asked)
            upstream.append(run_id, "run.input_provided", {"content": "yes"})
            upstream.finish(run_id)
            await people.ended()
            people.check(upstream.truth(run_id))
        assert upstream.max_following(run_id) == 1


async def test_a_flush_between_the_seal_and_a_later_reader(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    async with relay_here(upstream.url, own_redis.url) as relay:
        run_id = upstream.play(recording("web-search"), rate=2000)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.ended()
            await flush(own_redis.url)
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_a_flush_while_history_is_read(upstream: ScriptedUpstream, own_redis: EmbeddedServer) -> None:
    async with relay_here(upstream.url, own_redis.url, fanout={"page_bytes": 10_000}) as relay:
        events = [("message.delta", {"content_delta": "x" * 1000})] * 6000
        run_id = upstream.add_run([("run.started", {}), *events])
        upstream.finish(run_id)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.ended()  # sealed
            for kind in KINDS:
                people.join(kind)
            halfway = people.viewers[4:]
            await asyncio.gather(*(viewer.until(lambda viewer: viewer.cursor > 500) for viewer in halfway))
            assert min(viewer.cursor for viewer in halfway) < 5000, "they were too quick: this proves nothing"
            await flush(own_redis.url)
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_a_lagging_replica_took_over_while_the_run_is_idle(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    """The log's tail is gone, its head is not; no new event comes that would show it."""
    async with relay_here(upstream.url, own_redis.url, redis={"prefix": "lag"}) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "a"})] * 29)
        async with crowd(relay.events(run_id)) as people:
            early = people.join("sse")
            await early.until(lambda viewer: viewer.cursor == 30)
            await people.leave()
            await forget_tail(own_redis.url, run_id, keep=20)
            await asyncio.sleep(1.5)  # renewals and position checks come by
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            people.join("sse", after_seq=30)
            await asyncio.gather(*(viewer.until(lambda viewer: viewer.cursor == 30) for viewer in people.viewers[:4]))
            upstream.finish(run_id)
            await people.ended()
            truth = Truth(upstream.truth(run_id))
            for viewer in people.viewers[:4]:
                truth.check(viewer)
            truth.check(people.viewers[4], after_seq=30)


async def test_a_lagging_replica_took_over_after_the_seal(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    """Neither the tail nor the seal is there, and no pump is left to notice; somebody still watches."""
    async with relay_here(
        upstream.url, own_redis.url, redis={"prefix": "lag"}, fanout={"window_bytes": 1, "page_bytes": 1}
    ) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "x" * 5000})] * 3000)
        upstream.finish(run_id)
        async with crowd(relay.events(run_id)) as people:
            people.join("sse")
            await people.ended()
            reader = people.join("sse")
            await reader.until(lambda viewer: viewer.cursor > 10)
            await forget_tail(own_redis.url, run_id, keep=2800)
            await people.ended()
            people.check(upstream.truth(run_id))


async def test_the_log_of_a_finished_run_is_gone_but_not_what_was_said_of_it(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    """Nobody renews it, and its state says that it is whole: only who looks finds nothing."""
    async with relay_here(upstream.url, own_redis.url, redis={"prefix": "lag"}) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "a"})] * 50)
        upstream.finish(run_id)
        async with crowd(relay.events(run_id)) as people:
            people.join_all()
            await people.ended()
            key = RunKey("main", run_id)
            await command(own_redis.url, "DEL", Keys("lag", 64).log(key))
            people.join_all()
            await people.ended()
            people.check(upstream.truth(run_id))
            await command(own_redis.url, "DEL", Keys("lag", 64).log(key))
            resumed = people.join("websocket", after_seq=20)
            await resumed.until(lambda viewer: viewer.ended)
            Truth(upstream.truth(run_id)).check(resumed, after_seq=20)


FORGET_TAIL = """
local kept = redis.call('XRANGE', KEYS[1], '-', ARGV[1] .. '-0')
redis.call('DEL', KEYS[1])
for _, entry in ipairs(kept) do redis.call('XADD', KEYS[1], entry[1], unpack(entry[2])) end
redis.call('PEXPIRE', KEYS[1], 60000)
redis.call('HSET', KEYS[2], 'last_seq', ARGV[1], 'status', 'running')
redis.call('HDEL', KEYS[2], 'sealed')
"""


async def forget_tail(url: str, run_id: str, *, keep: int) -> None:
    """What a failover to a replica that lags behind does to one run."""
    key, keys = RunKey("main", run_id), Keys("lag", 64)
    await command(url, "EVAL", FORGET_TAIL, 2, keys.log(key), keys.run(key), keep)


async def test_a_frozen_redis_is_waited_for(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "redis") as server:
        async with relay_here(upstream.url, server.url, delivery={"heartbeat_s": 1.0}) as relay:
            run_id = upstream.play(recording("long-answer"), rate=200, hold=300)
            async with crowd(relay.events(run_id)) as people:
                people.join_all()
                await people.all_saw(lambda viewer: viewer.cursor > 200)
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(2.0)
                assert all(viewer.connections == 1 for viewer in people.viewers)
                server.signal(signal.SIGCONT)
                await upstream.go_on(run_id)
                await people.ended()
                people.check(upstream.truth(run_id))
                assert all(viewer.connections == 1 for viewer in people.viewers)
            assert upstream.max_following(run_id) == 1


@pytest.mark.parametrize("fsync", ["always", "no"])
async def test_a_killed_redis_comes_back(upstream: ScriptedUpstream, tmp_path: Path, fsync: str) -> None:
    with RedisProcess(tmp_path / "redis", fsync=fsync) as server:
        async with relay_here(upstream.url, server.url) as relay:
            run_id = upstream.play(recording("long-answer"), rate=150, hold=300)
            async with crowd(relay.events(run_id)) as people:
                people.join_all()
                for seen in (150, 350):
                    await people.all_saw(lambda viewer, seen=seen: viewer.cursor > seen)
                    server.kill()
                    await asyncio.sleep(0.7)
                    await asyncio.to_thread(server.start)
                    people.join_all()
                await upstream.go_on(run_id)
                await people.ended()
                people.check(upstream.truth(run_id))
                first = people.viewers[:4]
                assert all(viewer.connections == 1 for viewer in first), "a Redis outage is no reason to drop anybody"
            assert upstream.max_following(run_id) == 1


async def test_a_redis_that_comes_back_empty(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with RedisProcess(tmp_path / "redis") as server:
        async with relay_here(upstream.url, server.url) as relay:
            run_id = upstream.play(recording("long-answer"), rate=150, hold=300)
            async with crowd(relay.events(run_id)) as people:
                people.join_all()
                await people.all_saw(lambda viewer: viewer.cursor > 150)
                server.kill()
                await asyncio.to_thread(server.start_empty)
                people.join_all()
                await upstream.go_on(run_id)
                await people.ended()
                people.check(upstream.truth(run_id))
            assert upstream.max_following(run_id) == 1


async def test_pages_read_while_the_log_is_refilled_never_say_the_end_too_early(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    async with relay_here(upstream.url, own_redis.url) as relay:
        run_id = upstream.add_run([("run.started", {})] + [("message.delta", {"content_delta": "x" * 300})] * 5000)
        upstream.finish(run_id)
        async with crowd(relay.events(run_id)) as people:
            people.join("sse")
            await people.ended()
            await flush(own_redis.url)
            seqs: list[int] = []
            ended = False
            async with asyncio.timeout(60):
                while not ended:
                    cursor = seqs[-1] if seqs else 0
                    url = relay.events(run_id, f"after_seq={cursor}&limit=1000&wait=1")
                    async with people.session.get(url, headers={"Accept": "application/json"}) as response:
                        page = json.loads(await response.read())
                    seqs += [event["seq"] for event in page["events"]]
                    ended = page["ended"]
            assert seqs == Truth(upstream.truth(run_id)).seqs


async def test_who_leaves_and_resumes_while_the_log_is_refilled(
    upstream: ScriptedUpstream, own_redis: EmbeddedServer
) -> None:
    """A cursor beyond what the log holds at that moment waits; it is never ended, reset or given anything twice."""
    async with relay_here(upstream.url, own_redis.url) as relay:
        events = [("message.delta", {"content_delta": "x" * 300})] * 3000
        run_id = upstream.add_run([("run.started", {}), *events])
        async with crowd(relay.events(run_id)) as people:
            first = people.join("sse")
            await first.until(lambda viewer: viewer.cursor == 3001)
            await people.leave()
            await flush(own_redis.url)
            resumed = people.join("sse", after_seq=3001)
            late = people.join("websocket")
            await late.until(lambda viewer: viewer.cursor == 3001)
            upstream.finish(run_id)
            await asyncio.gather(*(v.until(lambda v: v.ended) for v in (resumed, late)))
            truth = Truth(upstream.truth(run_id))
            truth.check(late)
            truth.check(resumed, after_seq=3001)
            assert isinstance(resumed, Viewer)
