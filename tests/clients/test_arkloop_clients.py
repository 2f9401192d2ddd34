"""Models of Arkloop's web client, TUI and Go CLI on our Arkloop face; the browser's EventSource is tested natively.

Exactly what the upstream wrote, once and in order: its envelopes come back JSON-equal.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.providers.arkloop import face
from tests.clients import stage
from tests.clients.arkloop_models import CLI, TUI, WEB, Client, GaveUp
from tests.clients.stage import SAID
from tests.support import upstream_faults as faults
from tests.support.arkloop_threads import vendor
from tests.support.relay import RelayProcess, RunningRelay, running
from tests.support.upstream import ScriptedUpstream

FACE = "arkloop"
MODELS = {"web": WEB, "tui": TUI, "cli": CLI}
CLIENTS = {"web": "Arkloop web (model)", "tui": "Arkloop TUI (model)", "cli": "Arkloop CLI (model)"}

pytestmark = [pytest.mark.clients, pytest.mark.timeout(90)]


@pytest.fixture(params=CLIENTS)
async def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def relay(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunningRelay]:
    monkeypatch.setattr(face, "STAY_S", 4.0)
    async with running(upstream.url, redis_url, delivery={"heartbeat_s": 3.0}) as relay:
        yield relay


def client(kind: str, relay: Any, run_id: str) -> Client:
    return Client(MODELS[kind], f"{relay.url}/arkloop", run_id)


async def answered(relay: RunningRelay, method: str, path: str, body: object = None) -> tuple[int, Any]:
    async with relay.session.request(method, f"{relay.url}/arkloop{path}", json=body) as response:
        return response.status, await response.json()


def once(events: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    assert events == truth[: len(events)]
    assert events[-1]["type"] in ("run.completed", "run.failed", "run.cancelled", "thread.title.updated")


async def until(fact: Any) -> None:
    async with asyncio.timeout(20):
        while not fact():
            await asyncio.sleep(0.02)


@pytest.mark.cell("create")
async def test_create(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    status, answer = await answered(relay, "POST", "/v1/threads/t1/runs", {"persona_id": "p@1", "model": "m"})
    assert (status, answer.keys()) == (201, {"run_id", "trace_id"})
    assert upstream.created == [(answer["run_id"], {"persona_id": "p@1", "model": "m"})]


@pytest.mark.cell("create + stream")
async def test_a_whole_run(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    upstream.every_create = stage.whole(dt_ms=5)
    _, answer = await answered(relay, "POST", "/v1/threads/t1/runs")
    watching = client(kind, relay, answer["run_id"])
    events = await watching.follow()
    once(events, upstream.truth(answer["run_id"]))
    assert watching.requests == 1


@pytest.mark.cell("retrieve")
async def test_retrieve(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    run_id = upstream.add_run([("run.started", {}), ("run.input_requested", {"request_id": "q"})], thread_id="t1")
    async with relay.session.get(f"{upstream.url}/v1/runs/{run_id}", headers=TOKEN) as response:
        theirs = await response.json()
    status, ours = await answered(relay, "GET", f"/v1/runs/{run_id}")
    assert status == 200
    assert {**ours, "trace_id": ""} == {**theirs, "trace_id": ""}
    for run, code in (("nope", 404), ("a..b", 422)):
        status, body = await answered(relay, "GET", f"/v1/runs/{run}")
        assert (status, list(body)[:3]) == (code, ["code", "message", "trace_id"])


TOKEN = {"Authorization": "Bearer upstream-secret"}


@pytest.mark.cell("list")
@pytest.mark.parametrize("path", ["/v1/threads/t1/runs?limit=3", "/v1/runs?limit=3&offset=2", "/v1/runs?thread_id=t1"])
async def test_list(kind: str, relay: RunningRelay, upstream: ScriptedUpstream, path: str) -> None:
    for _ in range(5):
        upstream.add_run([("run.started", {})], thread_id="t1", model="m")
    async with relay.session.get(f"{upstream.url}{path}", headers=TOKEN) as response:
        theirs = await response.json()
    assert await answered(relay, "GET", path) == (200, theirs)


@pytest.mark.cell("cancel")
async def test_cancel(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    run_id = upstream.play(stage.opening("Hel"), thread_id="t1")
    await upstream.played(run_id)
    watching = client(kind, relay, run_id)
    following = asyncio.create_task(watching.follow())
    await until(lambda: watching.seen)
    assert (await answered(relay, "POST", f"/v1/runs/{run_id}:cancel"))[0] == 422  # last_seen_seq is required
    body = {"last_seen_seq": 2, "client_cancelled_at": "2026-01-01T00:00:00Z"}
    assert await answered(relay, "POST", f"/v1/runs/{run_id}:cancel", body) == (200, {"ok": True})
    upstream.finish(run_id, "run.cancelled")
    once(await following, upstream.truth(run_id))


@pytest.mark.cell("late join")
async def test_late_join(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    run_id = upstream.play(stage.opening(SAID[:20]), thread_id="t1")
    await upstream.played(run_id)
    first = client(kind, relay, run_id)
    following = asyncio.create_task(first.follow())
    await until(lambda: len(first.seen) > 3)
    second = client(kind, relay, run_id)
    joined = asyncio.create_task(second.follow())
    await until(lambda: len(second.seen) > 3)
    stage.finish(upstream, run_id, SAID[20:])
    for events in (await following, await joined, await client(kind, relay, run_id).follow()):
        once(events, upstream.truth(run_id))
    assert upstream.max_following(run_id) == 1


@pytest.mark.cell("failed run")
async def test_failed_run(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    run_id = upstream.play(stage.opening("Hel"), thread_id="t1")
    await upstream.played(run_id)
    upstream.finish(run_id, "run.failed", {"error_class": "x.y", "message": "no luck"})
    events = await client(kind, relay, run_id).follow()
    once(events, upstream.truth(run_id))
    assert events[-1]["data"]["message"] == "no luck"


@pytest.mark.cell("input answered")
async def test_a_run_that_waits_is_answered(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    run_id = upstream.play(stage.opening("Hel"), thread_id="t1")
    await upstream.played(run_id)
    watching = client(kind, relay, run_id)
    following = asyncio.create_task(watching.follow())
    stage.asks(upstream, run_id)
    await until(lambda: any(event["type"] == "run.input_requested" for event in watching.seen))
    assert await answered(relay, "POST", f"/v1/runs/{run_id}/input", {"content": "left"}) == (200, {"ok": True})
    assert (await answered(relay, "POST", f"/v1/runs/{run_id}/input", {"content": " "}))[0] == 422
    stage.finish(upstream, run_id, "lo")
    once(await following, upstream.truth(run_id))
    assert stage.answers(upstream, run_id) == ["left"]


@pytest.mark.cell("upstream cut")
async def test_upstream_cuts_are_not_noticed(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    """One of these alone ends the web client behind Arkloop's own gateway, and six of them any of the others."""
    upstream.every_create = stage.whole(dt_ms=60)
    for fault in (
        faults.cut(after_events=2), faults.clean_eof(after_events=2), faults.half_frame(after_events=1),
        faults.junk_eof(after_events=1), faults.cut(after_events=1), faults.cut(after_events=1), faults.status(503),
    ):  # fmt: skip
        upstream.fault(faults.Fault(follow=True) | fault)
    _, answer = await answered(relay, "POST", "/v1/threads/t1/runs")
    watching = client(kind, relay, answer["run_id"])
    once(await watching.follow(), upstream.truth(answer["run_id"]))
    assert watching.requests == 1
    assert upstream.pending() == 0


@pytest.mark.cell("stall")
async def test_a_silent_run_is_kept_alive(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    """The web client takes 45 s without a byte for a dead link (4.5 s here): it must not reconnect in 8 s of silence."""
    run_id = upstream.play(stage.opening(SAID[:9]), thread_id="t1")
    await upstream.played(run_id)
    watching = client(kind, relay, run_id)
    following = asyncio.create_task(watching.follow())
    await asyncio.sleep(8)
    stage.finish(upstream, run_id, SAID[9:])
    once(await following, upstream.truth(run_id))
    assert watching.requests == 1


@pytest.mark.cell("relay restart")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_relay_that_is_restarted(
    kind: str, upstream: ScriptedUpstream, tmp_path: Path, number: signal.Signals
) -> None:
    """They resume by themselves, with what they have seen last."""
    run_id = upstream.play(stage.opening(SAID[:9]), thread_id="t1")
    await upstream.played(run_id)
    async with RelayProcess(upstream.url, tmp_path) as relay:
        watching = client(kind, relay, run_id)
        watching.scale = 1.0
        following = asyncio.create_task(watching.follow())
        await until(lambda: len(watching.seen) > 2)
        await relay.signal(number)
        upstream.append(run_id, "message.delta", {"content_delta": "meanwhile", "role": "assistant"})
        await relay.start()
        stage.finish(upstream, run_id, SAID[9:])
        upstream.append(run_id, "thread.title.updated", {"title": "late"})
        if kind == "web":  # stays thirty seconds after the end, for this
            await until(lambda: watching.seen[-1]["type"] == "thread.title.updated")
            following.cancel()
            once(watching.seen, upstream.truth(run_id))
        else:
            once(await following, upstream.truth(run_id))
        assert watching.ended


@pytest.mark.cell("blind resend")
async def test_a_create_sent_again_makes_one_run(kind: str, relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    """None of its clients resends by itself; two that do at once get one run all the same."""
    upstream.fault(faults.Fault(target="create", delay_s=0.4))
    both = await asyncio.gather(*(answered(relay, "POST", "/v1/threads/t1/runs", {"model": "m"}) for _ in range(2)))
    assert both[0] == both[1]
    assert len(upstream.created) == 1


@pytest.mark.cell("threads, messages")
async def test_threads_and_messages_are_passed_on(kind: str, redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        relay.session.headers["Authorization"] = "Bearer viewer"
        status, thread = await answered(relay, "POST", "/v1/threads", {"title": "x"})
        assert (status, thread["is_private"]) == (201, False)
        assert (await answered(relay, "POST", f"/v1/threads/{thread['id']}/messages", {"content": "one"}))[0] == 201
        assert [item["content"] for item in found.threads[thread["id"]]] == ["one"]


async def test_the_stream_stays_open_after_the_end_with_heartbeats(
    relay: RunningRelay, upstream: ScriptedUpstream
) -> None:
    run_id = upstream.add_run([("run.started", {}), ("run.completed", {})])
    async with relay.session.get(f"{relay.url}/arkloop/v1/runs/{run_id}/events") as response:
        began = asyncio.get_running_loop().time()
        assert response.headers["Content-Type"] == "text/event-stream"
        body = (await response.read()).decode()  # ends properly: it is the end
        stayed = asyncio.get_running_loop().time() - began
    assert stayed >= 3.9
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


async def test_the_models_give_up_where_their_originals_do(relay: RunningRelay, upstream: ScriptedUpstream) -> None:
    """Else these tests would prove nothing: the same clients on the upstream itself."""
    for model, fault in ((TUI, faults.cut(after_events=1)), (CLI, faults.status(503)), (WEB, faults.status(404))):
        run_id = upstream.play(stage.whole(), thread_id="t1")
        upstream.fault(fault, run_id, times=None)
        with pytest.raises(GaveUp):
            await Client(model, upstream.url, run_id, scale=0.01, headers=TOKEN).follow()
    run_id = upstream.play(stage.whole(), thread_id="t1")
    upstream.fault(faults.clean_eof(after_events=3), run_id)
    stopped = Client(WEB, upstream.url, run_id, scale=0.01, headers=TOKEN)
    assert len(await stopped.follow()) == 3
    assert not stopped.ended
