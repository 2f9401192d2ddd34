"""Systems without seq and resume through a whole relay: real HTTP, a real log, native viewers."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis as sync_redis

from relay.app import App
from relay.core.ids import RunKey
from relay.core.options import Secret
from relay.ingest.options import UpstreamOptions
from relay.store.embedded import EmbeddedServer
from relay.store.keys import Keys
from tests.support.relay import RelayProcess, RunningRelay, settings_for
from tests.support.sim_world import text_of
from tests.support.thread_server import Fault, ThreadServer, hello, until
from tests.support.upstream import ScriptedUpstream
from tests.support.viewer import Journal, watch_sse
from tests.web.raw import serving

PROVIDER = {"vercel": "seekrflow", "legacy": "seekrflow", "assistants": "openai"}


@asynccontextmanager
async def relay_for(server: ThreadServer, provider: str, redis_url: str, **more: Any) -> AsyncIterator[RunningRelay]:
    settings = settings_for(server.url, ingest={"lease_s": 1.0})
    upstream = UpstreamOptions("main", provider, server.url, Secret("the-key"), poll_s=0.05, **more)
    async with serving(replace(settings, upstreams=(upstream,)), redis_url) as relay:
        yield relay


def types_of(journal: Journal) -> list[str]:
    return [event["type"] for event in journal.events]


def whole(journal: Journal) -> None:
    """What every viewer of a `hello` run must have seen, however it came."""
    kinds = types_of(journal)
    assert kinds[0] == "run.started"
    assert kinds[-1] == "run.completed"
    assert text_of(journal.events).decode("utf-16-le") == "Hello, world! And more."
    assert journal.clean_ends == 0
    assert journal.ended is not None
    assert journal.ended["status"] == "completed"


async def watch(relay: RunningRelay, query: dict[str, str] | None = None, journal: Journal | None = None) -> Journal:
    async with asyncio.timeout(120):
        query = {"thread_id": "thread-1", **(query or {})}
        return await watch_sse(relay.session, relay.events("run-1"), journal or Journal(), query=query)


@pytest.mark.parametrize("shape", ["vercel", "legacy"])
async def test_an_attached_run_is_numbered_and_told_through_a_cut(redis_url: str, shape: str) -> None:
    """The thin thread: attach, cut, attach again (a replay), a native SSE viewer who notices nothing."""
    async with ThreadServer(hello(shape=shape)) as server:
        server.faults["attach"] = [Fault(cut_after=6), Fault(cut_after=14)]
        async with relay_for(server, "seekrflow", redis_url) as relay:
            journals = await asyncio.gather(*(watch(relay) for _ in range(3)))
            for journal in journals:
                whole(journal)
                assert journal.seqs == list(range(1, len(journal.seqs) + 1))
                assert types_of(journal).count("tool.call") == types_of(journal).count("tool.result") == 1
                assert journal.connections == 1
            assert server.most_streams == 1
            assert {headers["Authorization"] for _, _, headers in server.asked} == {"the-key"}


async def test_an_attach_that_joins_late_adds_nothing_and_the_messages_bring_the_rest(redis_url: str) -> None:
    run = hello(attach_replays=False)
    run.at = 2
    async with ThreadServer(run) as server, relay_for(server, "seekrflow", redis_url) as relay:
        whole(await watch(relay))


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_without_attach_a_run_is_looked_at(redis_url: str, status: int) -> None:
    async with ThreadServer(hello()) as server:
        server.always["attach"] = Fault(status=status, body="{}")
        async with relay_for(server, "seekrflow", redis_url) as relay:
            whole(await watch(relay))
            assert server.count("attach") <= 3, "it was tried, and then believed"


async def test_a_run_made_here_streams(redis_url: str) -> None:
    """Assistants: the answer to creating the run is its only stream, and ours to read."""
    async with ThreadServer() as server:
        server.next_run = hello(shape="assistants")
        async with relay_for(server, "openai", redis_url) as relay:
            async with relay.session.post(
                f"{relay.url}/v1/threads/thread-1/runs", json={"assistant_id": "a"}
            ) as response:
                assert response.status == 201
                assert (await response.json())["run_id"] == "run-1"
            journal = await watch(relay)
            whole(journal)
            mark = server.bodies[0].pop("metadata")
            assert (server.bodies[0], mark.keys()) == ({"assistant_id": "a", "stream": True}, {"relay_mark"})
            deltas = [event for event in journal.events if event["type"] == "message.delta"]
            assert len(deltas) >= 4
            assert not any(event.get("synthesized") for event in deltas)
            assert {headers["Authorization"] for _, _, headers in server.asked} == {"Bearer the-key"}


async def test_a_create_stream_is_read_on_while_redis_is_away(own_redis: EmbeddedServer) -> None:
    """It cannot be had again, and blocking it might cancel the run: nothing of it is lost, and nothing told twice."""
    async with ThreadServer() as server:
        run = server.next_run = hello(shape="assistants", partial_messages=False)
        go_on, run.go_on = run.go_on, lambda most=2: None  # type: ignore[method-assign]
        settings = settings_for(server.url, ingest={"lease_s": 1.0}, redis={"timeout_s": 0.3})
        upstream = UpstreamOptions("main", "openai", server.url, poll_s=0.05)
        async with serving(replace(settings, upstreams=(upstream,)), own_redis.url) as relay:
            await ask(relay, "POST", "/v1/threads/thread-1/runs", {})
            viewer = asyncio.create_task(watch(relay))
            await until(lambda: relay.app._pulse.count)
            with sync_redis.Redis.from_url(own_redis.url) as raw:
                raw.execute_command("CLIENT", "PAUSE", 1500, "WRITE")
            run.go_on = go_on  # type: ignore[method-assign]
            await until(lambda: not server.streams)
            journal = await viewer
        whole(journal)
        assert not any(event.get("synthesized") for event in journal.events)
        assert journal.seqs == list(range(1, len(journal.seqs) + 1))


@pytest.mark.parametrize("cut", [2, 5, 9])
async def test_a_create_stream_that_breaks_is_gone_on_with_by_looks(redis_url: str, cut: int) -> None:
    async with ThreadServer() as server:
        server.next_run = hello(shape="assistants")
        server.faults["runs"] = [Fault(cut_after=cut)]
        async with relay_for(server, "openai", redis_url) as relay:
            async with relay.session.post(f"{relay.url}/v1/threads/thread-1/runs", json={}) as response:
                assert response.status == 201
            whole(await watch(relay))


async def test_a_question_is_asked_and_answered(redis_url: str) -> None:
    run = hello(shape="assistants", asks=True)
    async with ThreadServer(run) as server, relay_for(server, "openai", redis_url) as relay:
        viewer = asyncio.create_task(watch(relay))
        await until(lambda: run.waiting)

        async def status() -> str:
            async with relay.session.get(f"{relay.url}/v1/threads/thread-1/runs/run-1") as response:
                found: str = (await response.json())["status"]
                return found

        assert await status() == "waiting_for_input"
        outputs = {"tool_outputs": [{"tool_call_id": "c1", "output": "42"}]}
        async with relay.session.post(f"{relay.url}/v1/runs/run-1/input", json=outputs) as response:
            assert (response.status, await response.json()) == (200, {"ok": True})
        journal = await viewer
        whole(journal)
        assert types_of(journal).count("run.waiting_for_input") == 1
        assert types_of(journal).index("tool.call") < types_of(journal).index("run.waiting_for_input")
        assert server.bodies == [outputs]


async def test_a_flush_begins_a_new_generation_and_readers_are_told(own_redis: EmbeddedServer) -> None:
    """Nobody skips a rewritten event silently: reset, then the whole run again above every seq ever given."""
    run = hello(partial_messages=False)
    async with ThreadServer(run) as server, relay_for(server, "seekrflow", own_redis.url) as relay:
        run.chance.randint = lambda low, high: low  # type: ignore[method-assign]  # the run stands still
        run.at = 4
        seen = Journal()
        viewer = asyncio.create_task(watch(relay, journal=seen))
        with sync_redis.Redis.from_url(own_redis.url) as raw:
            keys = Keys(relay.app.settings.redis.prefix, 64)
            await until(lambda: raw.xlen(keys.log(RunKey("main", "run-1"))) >= 4)
            await until(lambda: len(seen.events) >= 4)
            raw.flushall()
        await asyncio.sleep(1.0)
        del run.chance.randint
        journal = await viewer
        resets = [data for name, data in journal.notices if name == "relay.reset"]
        assert [one["reason"] for one in resets] == ["rewritten"]
        again = [event for event in journal.events if event["seq"] > resets[0]["to_seq"]]
        assert [event["seq"] for event in again] == list(range(resets[0]["to_seq"] + 1, again[-1]["seq"] + 1))
        assert again[0]["seq"] > 2**50
        assert again[0]["type"] == "run.started"
        assert text_of(again).decode("utf-16-le") == "Hello, world! And more."
        fresh = await watch(relay)
        assert fresh.notices[0][0] == "relay.end", "who has seen nothing of it is told of no rewriting"
        assert fresh.seqs == [event["seq"] for event in again]
        async with relay.session.get(
            relay.events("run-1", "thread_id=thread-1&after_seq=3"), headers={"Accept": "application/json"}
        ) as response:
            page = await response.json()
        assert page["reset"]["reason"] == "rewritten"
        assert [event["seq"] for event in page["events"]] == fresh.seqs
        folded = Journal()
        folded.cursor = 3  # of the first life
        async with asyncio.timeout(60):
            await watch_sse(relay.session, relay.events("run-1"), folded, query={"snapshot": "1"})
        assert [name for name, _ in folded.notices] == ["relay.reset", "relay.snapshot", "relay.end"]
        snapshot = folded.notices[1][1]
        assert (snapshot["since_seq"], snapshot["as_of_seq"]) == (fresh.seqs[0] - 1, fresh.seqs[-1])
        assert "".join(one["text"] for one in snapshot["messages"]) == "Hello, world! And more."
        assert folded.events == []
        async with relay.session.get(
            relay.events("run-1", "after_seq=3&snapshot=1"), headers={"Accept": "application/json"}
        ) as response:
            page = await response.json()
        assert (page["reset"]["reason"], page["snapshot"], page["events"]) == ("rewritten", snapshot, [])


@asynccontextmanager
async def member(server: ThreadServer, redis: EmbeddedServer, *, runs: int) -> AsyncIterator[RunningRelay]:
    """One of several relays on one Redis; with no `runs` it only has viewers."""
    settings = settings_for(server.url, ingest={"lease_s": 1.0, "runs": runs}, redis={"prefix": "team"})
    upstream = UpstreamOptions("main", "seekrflow", server.url, poll_s=0.05)
    app = App(
        replace(settings, upstreams=(upstream,)), redis.url, "a-test-secret-of-at-least-32-characters", lambda: True
    )
    stop, started = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks, aiohttp.ClientSession() as session:
        tasks.create_task(app.run(stop, lambda _: started.set()))
        await started.wait()
        yield RunningRelay(app, session)
        stop.set()


@pytest.mark.parametrize("loss", ["failover", "flush"])
async def test_the_next_owner_hears_what_viewers_elsewhere_have_seen(own_redis: EmbeddedServer, loss: str) -> None:
    """Rows and their owner are lost at once, and who takes over has no viewers: those of another process miss nothing."""
    run = hello(partial_messages=False)
    run.chance.randint = lambda low, high: low  # type: ignore[method-assign]  # the run stands still
    run.at = 2
    names = [named(RunKey("main", "run-1")) for keys in [Keys("team", 64)] for named in (keys.log, keys.run)]
    async with ThreadServer(run) as server, member(server, own_redis, runs=0) as watching:
        seen = Journal()
        viewer = asyncio.create_task(watch(watching, journal=seen))
        with sync_redis.Redis.from_url(own_redis.url) as raw:
            async with member(server, own_redis, runs=5):
                await until(lambda: raw.xlen(names[0]) >= 2)
                as_it_was = [raw.dump(name) for name in names]
                run.at = 5
                await until(lambda: raw.xlen(names[0]) >= 6)
                await until(lambda: len(seen.events) >= 6)
            raw.delete(*names)
            for name, value in zip(names, as_it_was if loss == "failover" else (), strict=False):
                raw.restore(name, 0, value)
            if loss == "failover":
                raw.execute_command("REPLICAOF", "127.0.0.1", "1")
                raw.execute_command("REPLICAOF", "NO", "ONE")
        del run.chance.randint  # from here on it is told in other pieces
        async with member(server, own_redis, runs=5):
            journal = await viewer
    resets = [data for name, data in journal.notices if name == "relay.reset"]
    assert [one["reason"] for one in resets] == ["rewritten"]
    before = [event for event in journal.events if event["seq"] <= resets[0]["to_seq"]]
    assert len(before) >= 5, "it had seen what was lost"
    rest = journal.events[len(before) :]
    assert [event["seq"] for event in rest] == [resets[0]["to_seq"] + 1 + i for i in range(len(rest))]
    assert text_of(rest).decode("utf-16-le") == "Hello, world! And more."


async def test_a_run_fetched_again_after_its_log_expired_is_a_new_generation(redis_url: str) -> None:
    """It may be told in other pieces now: a cursor of the first life must not be taken for one of the second."""
    async with ThreadServer(hello()) as server, relay_for(server, "seekrflow", redis_url) as relay:
        first = await watch(relay)
        whole(first)
        with sync_redis.Redis.from_url(redis_url) as raw:
            keys = Keys(relay.app.settings.redis.prefix, 64)
            key = RunKey("main", "run-1")
            assert 0 < raw.pttl(keys.past(key)) <= 30 * 86_400_000
            assert raw.delete(keys.log(key), keys.run(key)) == 2
        returned = Journal()
        returned.cursor = 2
        url = relay.events("run-1")
        async with asyncio.timeout(60):
            await watch_sse(relay.session, url, returned)  # no thread needed any more
        assert [data["reason"] for name, data in returned.notices if name == "relay.reset"] == ["rewritten"]
        assert text_of(returned.events).decode("utf-16-le") == "Hello, world! And more."
        assert returned.seqs[0] > first.seqs[-1]


@pytest.mark.system
async def test_a_killed_relay_goes_on_from_its_cursor(redis_url: str, tmp_path: Path) -> None:
    """kill -9 in the middle of a text: what follows is numbered on, and nothing is told twice."""
    run = hello(partial_messages=False)
    run.chance.randint = lambda low, high: low  # type: ignore[method-assign]  # the run stands still
    run.at = 2
    async with ThreadServer(run) as server:
        process = RelayProcess(server.url, tmp_path, redis_url=redis_url, ingest={"lease_s": 1.0})
        upstream = {"name": "main", "provider": "seekrflow", "base_url": server.url, "token": "k", "poll_s": 0.05}
        process._environment["RELAY_UPSTREAMS"] = json.dumps([upstream])
        process._environment["RELAY_REDIS__PREFIX"] = f"t{secrets.token_hex(4)}"
        journal = Journal()
        async with process, aiohttp.ClientSession() as session:
            url = f"{process.url}/v1/runs/run-1/events"
            viewer = asyncio.create_task(watch_sse(session, url, journal, query={"thread_id": "thread-1"}))
            await until(lambda: len(journal.events) >= 3)
            await process.kill()
            del run.chance.randint
            await process.start()
            async with asyncio.timeout(60):
                await viewer
    whole(journal)
    assert journal.seqs == list(range(1, len(journal.seqs) + 1))
    assert journal.connections >= 2


# --- what must never end or break a run -------------------------------------------------------------------------------
HTML = Fault(status=200, body="<html>busy</html>", content_type="text/html")
ODD = [
    HTML,
    Fault(status=502, body="<html>bad gateway</html>", content_type="text/html"),
    Fault(body='{"id": "run-1", "status": "comp'),
    Fault(body="[]"),
    Fault(body="null"),
    Fault(body='{"id": 7, "status": "completed"}'),
    Fault(body='{"id": "run-1", "status": "finished-ish"}'),
    Fault(body='{"id": "run-1", "status": null}'),
    Fault(body='{"id": "run-1", "status": {"a": 1}}'),
    Fault(status=404, body='{"detail": "Not found"}'),
    Fault(status=429, body="{}", headers={"Retry-After": "0"}),
    Fault(status=500, body=""),
]


@pytest.mark.parametrize("shape", ["vercel", "assistants"])
async def test_bad_answers_end_no_run(redis_url: str, shape: str) -> None:
    """HTML, truncated JSON, wrong types, unknown statuses, a 404 or two: passed over, and counted."""
    run = hello(shape=shape)
    async with ThreadServer(run) as server:
        async with relay_for(server, PROVIDER[shape], redis_url) as relay:
            async with relay.session.get(f"{relay.url}/v1/threads/thread-1/runs/run-1") as response:
                assert response.status == 200
            server.always["attach"] = Fault(status=500, body="")
            server.faults["run"] = [fault for fault in ODD for _ in (1,)]
            server.faults["messages"] = [HTML, Fault(body='{"data": 7}'), Fault(body='[1, null, {"role": []}]')]
            server.faults["steps"] = [HTML, Fault(body='{"data": [1, {"step_details": 7}]}')]
            whole(await watch(relay))
            async with relay.session.get(f"{relay.admin_url}/metrics") as response:
                text = await response.text()
            assert 'relay_upstream_odd_total{upstream="main",what="unknown_status"}' in text
            assert "relay_pump_crashes_total 0.0" in text


async def test_a_run_that_is_gone_fails_after_three_looks(redis_url: str) -> None:
    run = hello()
    async with ThreadServer(run) as server, relay_for(server, "seekrflow", redis_url) as relay:
        run.chance.randint = lambda low, high: low  # type: ignore[method-assign]
        run.at = 2
        viewer = asyncio.create_task(watch(relay))
        await until(lambda: server.count("attach"))
        server.runs.clear()
        journal = await viewer
        assert types_of(journal)[-1] == "run.failed"
        assert journal.events[-1]["data"]["reason"] == "upstream_run_gone"


async def test_an_endless_queue_is_no_end(redis_url: str) -> None:
    run = hello(shape="assistants")
    async with ThreadServer(run) as server, relay_for(server, "openai", redis_url) as relay:
        run.chance.randint = lambda low, high: low  # type: ignore[method-assign]
        journal = Journal()
        query = {"thread_id": "thread-1"}
        viewer = asyncio.create_task(watch_sse(relay.session, relay.events("run-1"), journal, query=query))
        await until(lambda: server.count("run") >= 6)
        assert journal.events == []
        del run.chance.randint
        whole(await viewer)


async def test_the_upstreams_pace_goes_first(redis_url: str) -> None:
    run = hello(shape="assistants")
    async with ThreadServer(run) as server:
        server.always["run"] = Fault(headers={"openai-poll-after-ms": "400"})
        async with relay_for(server, "openai", redis_url) as relay:
            run.chance.randint = lambda low, high: low  # type: ignore[method-assign]
            viewer = asyncio.create_task(watch(relay))
            await until(lambda: server.count("run") >= 2)
            before, began = server.count("run"), time.monotonic()
            await until(lambda: server.count("run") >= before + 4)
            assert time.monotonic() - began > 3 * 0.4
            viewer.cancel()


# --- the runs API ----------------------------------------------------------------------------------------------------
async def ask(relay: RunningRelay, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with relay.session.request(method, relay.url + path, json=body) as response:
        return response.status, json.loads(await response.read())


async def test_a_run_is_found_by_its_thread_and_then_without_it(redis_url: str) -> None:
    async with ThreadServer(hello()) as server, relay_for(server, "seekrflow", redis_url) as relay:
        status, body = await ask(relay, "GET", "/v1/runs/run-1")
        assert (status, body["code"]) == (404, "runs.not_found")
        assert "thread_id=" in body["message"]
        assert server.asked == [], "nothing can be asked without a thread"
        status, body = await ask(relay, "GET", "/v1/runs/run-1?thread_id=another")
        assert (status, body["code"]) == (404, "runs.not_found")
        status, body = await ask(relay, "GET", "/v1/runs/run-1?thread_id=thread-1")
        assert (status, body["run_id"], body["thread_id"], body["provider"]) == (200, "run-1", "thread-1", "seekrflow")
        status, body = await ask(relay, "GET", "/v1/runs/run-1")
        assert status == 200
        status, body = await ask(relay, "GET", "/v1/threads/other/runs/run-1")
        assert status == 404
        status, body = await ask(relay, "GET", "/v1/runs/run-1?thread_id=..%2Fx")
        assert (status, body["code"]) == (422, "validation.error")


async def test_lists_are_by_thread_and_say_so(redis_url: str) -> None:
    async with ThreadServer(hello()) as server, relay_for(server, "seekrflow", redis_url) as relay:
        status, body = await ask(relay, "GET", "/v1/threads/thread-1/runs?limit=5&order=asc")
        assert (status, [run["run_id"] for run in body]) == (200, ["run-1"])
        status, body = await ask(relay, "GET", "/v1/threads/thread-1/runs?limit=5&order=asc&offset=2")
        assert (status, body) == (200, [])
        status, body = await ask(relay, "GET", "/v1/runs")
        assert (status, body["code"]) == (501, "upstream.unsupported")
        assert "thread" in body["message"]
        status, body = await ask(relay, "GET", "/v1/threads/thread-1/runs?after=run-0")
        assert (status, body["details"]["field"]) == (422, "after")


async def test_a_list_of_all_runs_says_whose_are_left_out(redis_url: str, upstream: ScriptedUpstream) -> None:
    mine = upstream.add_run([("run.started", {})])
    async with ThreadServer(hello()) as server:
        settings = settings_for(upstream.url)
        both = (*settings.upstreams, UpstreamOptions("seekr", "seekrflow", server.url))
        async with serving(replace(settings, upstreams=both), redis_url) as relay:
            async with relay.session.get(f"{relay.url}/v1/runs") as response:
                assert [run["run_id"] for run in await response.json()] == [mine]
                assert response.headers["X-Relay-Left-Out"] == "seekr"
            status, body = await ask(relay, "GET", "/v1/runs/nobody-knows")
            assert (status, body["message"]) == (
                404, "no upstream knows this run; a run of seekr is found in its thread: add thread_id="
            )  # fmt: skip
            status, body = await ask(relay, "GET", "/v1/threads/thread-1/runs/run-1?upstream=seekr")
            assert (status, body["upstream"]) == (200, "seekr")


async def test_cancel_tells_the_agent_and_input_is_unsupported(redis_url: str) -> None:
    async with ThreadServer(hello()) as server, relay_for(server, "seekrflow", redis_url, team_id="t-1") as relay:
        await ask(relay, "GET", "/v1/threads/thread-1/runs/run-1")
        status, body = await ask(relay, "POST", "/v1/runs/run-1/input", {"content": "x"})
        assert (status, body["code"]) == (501, "upstream.unsupported")
        status, body = await ask(relay, "POST", "/v1/runs/run-1:cancel", {})
        assert (status, body) == (200, {"ok": True})
        assert server.bodies[-1]["agent_id"] == "default_agent"
        assert {headers["x-team-id"] for _, _, headers in server.asked} == {"t-1"}
        journal = await watch(relay)
        assert types_of(journal)[-1] == "run.cancelled"


async def test_an_unsupported_call_is_tried_once(redis_url: str) -> None:
    async with ThreadServer(hello(shape="assistants")) as server:
        server.always["cancel"] = Fault(status=405, body="{}")
        async with relay_for(server, "openai", redis_url) as relay:
            await ask(relay, "GET", "/v1/threads/thread-1/runs/run-1")
            for _ in range(3):
                status, body = await ask(relay, "POST", "/v1/runs/run-1:cancel", {})
                assert (status, body["code"]) == (501, "upstream.unsupported")
            assert server.count("cancel") == 1


@pytest.mark.parametrize(
    ("authorization", "sent"), [("auto", "the-key"), ("bearer", "Bearer the-key"), ("raw", "the-key")]
)
async def test_the_token_is_written_as_asked(redis_url: str, authorization: str, sent: str) -> None:
    async with ThreadServer(hello()) as server:
        async with relay_for(server, "seekrflow", redis_url, authorization=authorization) as relay:
            await ask(relay, "GET", "/v1/threads/thread-1/runs/run-1")
            assert server.asked[0][2]["Authorization"] == sent


@pytest.mark.parametrize(
    ("key", "tries"), [("the-key", ["the-key"] * 3), ("Bearer the-key", ["the-key", *["Bearer the-key"] * 3])]
)
async def test_how_the_token_is_wanted_is_found_out_once(redis_url: str, key: str, tries: list[str]) -> None:
    """Whether SeekrFlow reads `Bearer` is not documented: as its SDK writes it first, then so."""
    async with ThreadServer(hello()) as server:
        server.key = key
        async with relay_for(server, "seekrflow", redis_url) as relay:
            for _ in range(3):
                status, _ = await ask(relay, "GET", "/v1/threads/thread-1/runs")
                assert status == 200
            assert [headers["Authorization"] for _, _, headers in server.asked] == tries


@pytest.mark.parametrize("authorization", ["auto", "raw", "bearer"])
async def test_a_token_nobody_wants_is_not_tried_for_ever(redis_url: str, authorization: str) -> None:
    async with ThreadServer(hello()) as server:
        server.key = "another"
        async with relay_for(server, "seekrflow", redis_url, authorization=authorization) as relay:
            for _ in range(3):
                status, body = await ask(relay, "GET", "/v1/threads/thread-1/runs")
                assert (status, body["code"]) == (502, "upstream.unauthorized")
            assert len(server.asked) == (4 if authorization == "auto" else 3)


# --- creating with a stream as the answer (SeekrFlow) ------------------------------------------------------------------
WAYS = [("runs/stream/vercel", "vercel"), ("runs/stream", "legacy")]


@pytest.mark.parametrize(("create", "shape"), WAYS)
@pytest.mark.parametrize("tells_active", [True, False])
async def test_a_run_made_with_its_stream_is_named_by_its_thread(
    redis_url: str, create: str, shape: str, tells_active: bool
) -> None:
    """The stream does not say which run it is: its thread does, or that it is the only one made since."""
    async with ThreadServer() as server:
        run = server.next_run = hello(shape=shape, partial_messages=False)
        run.made_at = time.time()
        server.tells_active, server.keeps_metadata = tells_active, False
        async with relay_for(server, "seekrflow", redis_url, create=create) as relay:
            status, body = await ask(relay, "POST", "/v1/threads/thread-1/runs", {"agent_id": "a"})
            assert (status, body["run_id"], body["thread_id"]) == (201, "run-1", "thread-1")
            journal = await watch(relay)
            whole(journal)
            assert server.asked[0][:2] == ("POST", f"/v1/threads/thread-1/{create}")
            assert server.asked[0][2]["Accept"] == "text/event-stream"
            assert [body.keys() for body in server.bodies] == [{"agent_id", "metadata"}]
            assert not any(event.get("synthesized") for event in journal.events), "all of it came from the stream"
            assert server.count("attach") == 0


@pytest.mark.parametrize("cut", [1, 4, 9])
async def test_a_seekrflow_create_stream_that_breaks_is_attached_to(redis_url: str, cut: int) -> None:
    async with ThreadServer() as server:
        server.next_run = hello()
        server.faults["vercel"] = [Fault(cut_after=cut)]
        async with relay_for(server, "seekrflow", redis_url, create="runs/stream/vercel") as relay:
            status, _ = await ask(relay, "POST", "/v1/threads/thread-1/runs", {})
            assert status == 201
            whole(await watch(relay))
            assert server.count("attach") >= 1


async def test_a_run_that_nothing_names_is_not_guessed(redis_url: str) -> None:
    """Two were made since, the thread does not tell: either could be ours."""
    async with ThreadServer() as server:
        run = server.next_run = hello()
        run.made_at = time.time()
        other = server.runs["run-2"] = hello()
        other.run_id, other.made_at = "run-2", time.time()
        server.tells_active = server.keeps_metadata = False
        async with relay_for(server, "seekrflow", redis_url, create="runs/stream/vercel") as relay:
            status, body = await ask(relay, "POST", "/v1/threads/thread-1/runs", {})
            assert (status, body["code"]) == (503, "upstream.unavailable"), "it exists, so it must not be made again"
            assert "which run" in body["message"]
            await until(lambda: not server.streams)


async def test_a_refused_create_is_the_upstreams_refusal(redis_url: str) -> None:
    for provider, body in (
        ("seekrflow", '{"detail": "no such agent"}'),
        ("openai", '{"error": {"message": "no such agent"}}'),
    ):
        async with ThreadServer() as server:
            server.always["runs"] = Fault(status=400, body=body)
            async with relay_for(server, provider, redis_url) as relay:
                status, answer = await ask(relay, "POST", "/v1/threads/thread-1/runs", {})
                assert (status, answer["code"], answer["message"]) == (422, "validation.error", "no such agent")
