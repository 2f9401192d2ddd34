"""Models of Arkloop's web client, TUI and Go CLI on our Arkloop face, whatever upstream is behind it.

What they ask for beside the stream is the same request from all three. An Arkloop upstream's answers and envelopes come
back JSON-equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.providers.arkloop import face
from tests.clients.arkloop_models import CLI, TUI, WEB, Client, GaveUp
from tests.clients.behind import TOKEN, Behind, relay_before, relay_before_talks
from tests.clients.stage import AGENT, ASKS, CANCELLED, COMPLETES, MODEL, SAID, WHOLE, says
from tests.clients.watchers import Arkloop as Watching
from tests.support import upstream_faults as faults
from tests.support.arkloop_threads import vendor
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream

FACE = Watching.face
CLIENTS = Watching.NAMES
HEADERS = {"Authorization": f"Bearer {TOKEN}"}

pytestmark = [pytest.mark.clients]


@pytest.fixture
async def stand(behind: Behind, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningRelay]:
    monkeypatch.setattr(face, "STAY_S", 0.6)
    async with relay_before(behind, redis_url) as relay:
        yield relay


@pytest.fixture
async def relay(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningRelay]:
    monkeypatch.setattr(face, "STAY_S", 3.5)
    async with running(upstream.url, redis_url, delivery={"heartbeat_s": 0.3}) as relay:
        yield relay


def client(kind: str, relay: Any, run_id: str) -> Client:
    return Client(Watching.MODELS[kind], f"{relay.url}/arkloop", run_id, quiet_scale=0.2, stay_scale=0.02)


async def answered(relay: RunningRelay, method: str, path: str, body: object = None) -> tuple[int, Any]:
    async with relay.session.request(method, f"{relay.url}/arkloop{path}", json=body) as response:
        return response.status, await response.json()


async def theirs(relay: RunningRelay, behind: Behind, path: str) -> Any:
    async with relay.session.get(f"{behind.url}{path}", headers=HEADERS) as response:
        return await response.json()


def whole(events: list[dict[str, Any]], truth: list[dict[str, Any]] | None, status: str = "completed") -> None:
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == f"run.{status}"
    assert truth is None or events == truth


def said(events: list[dict[str, Any]]) -> str:
    deltas = [event["data"] for event in events if event["type"] == "message.delta"]
    return "".join(data["content_delta"] for data in deltas if not data.get("channel"))


async def until(fact: Any) -> None:
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.02)


@pytest.mark.cell("create")
async def test_create(stand: RunningRelay, behind: Behind) -> None:
    model = {"model": MODEL} if behind.takes_model else {}
    status, answer = await answered(stand, "POST", "/v1/threads/t1/runs", {"persona_id": "p@1", **model})
    assert (status, answer.keys()) == (201, {"run_id", "trace_id"})
    [(run_id, body)] = behind.created
    assert (run_id, body[behind.agent_field], body.get("model")) == (answer["run_id"], "p@1", model.get("model"))


@pytest.mark.cell("create + stream")
@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_whole_run(kind: str, stand: RunningRelay, behind: Behind) -> None:
    behind.makes(*WHOLE, dt_ms=5)
    _, answer = await answered(stand, "POST", "/v1/threads/t1/runs", {"persona_id": AGENT})
    watching = client(kind, stand, answer["run_id"])
    events = await watching.follow()
    whole(events, behind.truth(answer["run_id"]))
    assert said(events) == SAID
    assert watching.requests == 1


@pytest.mark.cell("retrieve")
async def test_retrieve(stand: RunningRelay, behind: Behind) -> None:
    run_id = await behind.has(*((says("a"), ASKS) if behind.waits else (says("a"),)))
    await answered(stand, "GET", "/v1/threads/t1/runs")  # where its clients have runs from
    status, ours = await answered(stand, "GET", f"/v1/runs/{run_id}")
    assert (status, ours["run_id"], ours["thread_id"], ours["status"]) == (200, run_id, "t1", "running")
    if behind.kind == "arkloop":
        assert {**ours, "trace_id": ""} == {**await theirs(stand, behind, f"/v1/runs/{run_id}"), "trace_id": ""}
    for run, code in (("nope", 404), ("a..b", 422)):
        status, body = await answered(stand, "GET", f"/v1/runs/{run}")
        assert (status, list(body)[:3]) == (code, ["code", "message", "trace_id"])


@pytest.mark.cell("list")
async def test_list(stand: RunningRelay, behind: Behind) -> None:
    made = [await behind.has() for _ in range(5)]
    path = "/v1/threads/t1/runs?limit=3"
    status, listed = await answered(stand, "GET", path)
    assert (status, [run["run_id"] for run in listed]) == (200, made[:-4:-1])
    for everywhere in ("/v1/runs?limit=3&offset=2", "/v1/runs?thread_id=t1"):
        status, found = await answered(stand, "GET", everywhere)
        if behind.kind == "arkloop":
            assert (status, found) == (200, await theirs(stand, behind, everywhere))
        else:
            assert (status, found["code"]) == (501, "upstream.unsupported")  # it lists by thread only
    assert behind.kind != "arkloop" or listed == await theirs(stand, behind, path)


@pytest.mark.cell("cancel")
async def test_cancel(stand: RunningRelay, behind: Behind) -> None:
    run_id = await behind.has(says("Hel"))
    await answered(stand, "GET", "/v1/threads/t1/runs")
    watching = client("tui", stand, run_id)
    following = asyncio.create_task(watching.follow())
    await until(lambda: said(watching.seen) == "Hel")
    assert (await answered(stand, "POST", f"/v1/runs/{run_id}:cancel"))[0] == 422  # last_seen_seq is required
    body = {"last_seen_seq": 2, "client_cancelled_at": "2026-01-01T00:00:00Z"}
    assert await answered(stand, "POST", f"/v1/runs/{run_id}:cancel", body) == (200, {"ok": True})
    assert behind.cancels() == 1
    behind.play(run_id, CANCELLED)
    whole(await following, behind.truth(run_id), "cancelled")


@pytest.mark.cell("input answered")
async def test_a_run_that_waits_is_answered(stand: RunningRelay, behind: Behind) -> None:
    run_id = await behind.has(says(SAID[:9]), *([ASKS] if behind.waits else []))
    await answered(stand, "GET", "/v1/threads/t1/runs")
    watching = client("cli", stand, run_id)
    following = asyncio.create_task(watching.follow())
    await until(lambda: said(watching.seen) == SAID[:9])
    status, answer = await answered(stand, "POST", f"/v1/runs/{run_id}/input", {"content": "left"})
    assert (status, answer.get("code")) == ((200, None) if behind.waits else (501, "upstream.unsupported"))
    assert (await answered(stand, "POST", f"/v1/runs/{run_id}/input", {"content": " "}))[0] == 422
    behind.play(run_id, says(SAID[9:]), COMPLETES)
    events = await following
    whole(events, behind.truth(run_id))
    assert said(events) == SAID
    asked = [event["seq"] for event in events if event["type"] == "run.input_requested"]
    assert len(asked) == behind.waits
    assert behind.answers(run_id) == (["left"] if behind.waits else [])


@pytest.mark.cell("blind resend")
async def test_a_create_sent_again_makes_one_run(stand: RunningRelay, behind: Behind) -> None:
    """None of its clients resends by itself; two that do at once get one run all the same."""
    behind.slow_create(0.4)
    body = {"persona_id": AGENT}
    both = await asyncio.gather(*(answered(stand, "POST", "/v1/threads/t1/runs", body) for _ in range(2)))
    assert {answer["run_id"] for _, answer in both} == {run_id for run_id, _ in behind.created}
    assert len(behind.created) == 1


@pytest.mark.cell("threads, messages")
@pytest.mark.parametrize("behind", ["arkloop"], indirect=True)
async def test_threads_and_messages_are_passed_on(behind: Behind, redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        relay.session.headers["Authorization"] = "Bearer viewer"
        status, thread = await answered(relay, "POST", "/v1/threads", {"title": "x"})
        assert (status, thread["is_private"]) == (201, False)
        assert (await answered(relay, "POST", f"/v1/threads/{thread['id']}/messages", {"content": "one"}))[0] == 201
        assert [item["content"] for item in found.threads[thread["id"]]] == ["one"]


@pytest.mark.cell("threads, messages")
@pytest.mark.parametrize("behind", ["seekrflow", "openai"], indirect=True)
async def test_threads_and_messages_of_another_upstream(behind: Behind, redis_url: str) -> None:
    async with relay_before_talks(behind, redis_url) as (relay, talks):
        relay.session.headers["Authorization"] = "Bearer viewer"
        status, thread = await answered(relay, "POST", "/v1/threads", {"title": "x"})
        assert (status, thread["title"], thread["is_private"]) == (201, None, False)
        path = f"/v1/threads/{thread['id']}"
        for text in ("one", "two"):
            status, message = await answered(relay, "POST", f"{path}/messages", {"content": text})
            assert (status, message["role"], message["content"]) == (201, "user", text)
        talks.add(thread["id"], "assistant", "three", run_id="r1")
        _, listed = await answered(relay, "GET", f"{path}/messages", None)
        told = [(item["role"], item["content"], item.get("run_id")) for item in listed]
        assert told == [("user", "one", None), ("user", "two", None), ("assistant", "three", "r1")]
        _, newest = await answered(relay, "GET", f"{path}/messages?limit=1", None)
        assert newest == listed[-1:]
        assert (await answered(relay, "GET", path, None))[1]["id"] == thread["id"]
        for bad, code in (
            ({"content": "x", "attachments": [1]}, 501),
            ({"content": " "}, 422),
            ({"content": ["x"]}, 422),
        ):
            assert (await answered(relay, "POST", f"{path}/messages", bad))[0] == code
        async with relay.session.delete(f"{relay.url}/arkloop{path}") as response:
            assert (response.status, await response.read()) == (204, b"")
        assert (await answered(relay, "GET", path, None))[0] == 404


async def test_the_web_client_hears_what_comes_late(relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    """It stays thirty seconds after the end, for the thread's title."""
    run_id = upstream.add_run([("run.started", {}), ("run.completed", {})], thread_id="t1")
    watching = client("web", relay, run_id)
    watching.stay_scale = 0.1
    following = asyncio.create_task(watching.follow())
    await until(lambda: watching.ended)
    upstream.append(run_id, "thread.title.updated", {"title": "late"})
    await until(lambda: watching.seen[-1]["type"] == "thread.title.updated")
    assert await following == upstream.truth(run_id)


async def test_the_stream_stays_open_after_the_end_with_heartbeats(
    relay: RunningRelay, upstream: ScriptedUpstream
) -> None:
    run_id = upstream.add_run([("run.started", {}), ("run.completed", {})])
    async with relay.session.get(f"{relay.url}/arkloop/v1/runs/{run_id}/events") as response:
        began = asyncio.get_running_loop().time()
        assert response.headers["Content-Type"] == "text/event-stream"
        body = (await response.read()).decode()  # ends properly: it is the end
        stayed = asyncio.get_running_loop().time() - began
    assert stayed >= 3.4
    assert body.startswith(": ping\n\nid: 1\nevent: run.started\ndata: {")
    assert body.count(": ping\n\n") >= 2
    assert ": relay.end " in body


async def test_a_reader_who_does_not_follow_gets_all_and_a_proper_end(
    relay: RunningRelay, upstream: ScriptedUpstream
) -> None:
    run_id = upstream.add_run([("run.started", {}), ("message.delta", {"content_delta": "x"})])
    for query, seqs in (("follow=false", [1, 2]), ("follow=0&after_seq=1x", [2]), ("follow=false&after_seq=9", [])):
        async with relay.session.get(f"{relay.url}/arkloop/v1/runs/{run_id}/events?{query}") as response:
            body = (await response.read()).decode()
        assert [int(line[4:]) for line in body.split("\n") if line.startswith("id: ")] == seqs


async def test_last_event_id_counts_too(relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    run_id = upstream.add_run([("run.started", {}), ("message.delta", {}), ("message.delta", {})])
    url = f"{relay.url}/arkloop/v1/runs/{run_id}/events?follow=false&after_seq=1"
    async with relay.session.get(url, headers={"Last-Event-ID": "2"}) as response:
        body = (await response.read()).decode()
    assert "id: 3\n" in body
    assert "id: 2\n" not in body


async def test_the_models_give_up_where_their_originals_do(upstream: ScriptedUpstream) -> None:
    """Else these tests would prove nothing: the same clients on the upstream itself."""
    script = [("run.started", {}), *[("message.delta", {"content_delta": "x"})] * 8, ("run.completed", {})]
    for model, fault in ((TUI, faults.cut(after_events=1)), (CLI, faults.status(503)), (WEB, faults.status(404))):
        run_id = upstream.play(script, thread_id="t1")
        upstream.fault(fault, run_id, times=None)
        with pytest.raises(GaveUp):
            await Client(model, upstream.url, run_id, scale=0.01, headers=HEADERS).follow()
    run_id = upstream.play(script, thread_id="t1")
    upstream.fault(faults.clean_eof(after_events=3), run_id)
    stopped = Client(WEB, upstream.url, run_id, scale=0.01, headers=HEADERS)
    assert len(await stopped.follow()) == 3
    assert not stopped.ended
