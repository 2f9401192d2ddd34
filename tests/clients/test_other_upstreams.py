"""The same clients with an upstream that numbers nothing behind the face: SeekrFlow, and the Assistants shape."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients import test_arkloop_clients as arkloop_tests
from tests.clients import test_openai_sdk as openai_tests
from tests.clients import test_seekrai as seekrai_tests
from tests.clients.arkloop_models import CLI, TUI, WEB, Client
from tests.clients.test_openai_sdk import client_of
from tests.clients.test_seekrai import Seekr
from tests.support.thread_server import ThreadServer, hello
from tests.system.test_own_seq import relay_for

pytestmark = [pytest.mark.clients, pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore")]
SAID = "Hello, world! And more."
MODELS = {"web": WEB, "tui": TUI, "cli": CLI}
OPENAI = {"face": "openai", "clients": openai_tests.CLIENTS}
SEEKRAI = {"face": "seekrflow", "clients": seekrai_tests.CLIENTS}
ARKLOOP = {"face": "arkloop", "clients": arkloop_tests.CLIENTS}
BOTH = pytest.mark.parametrize("kind", ["async", "sync"])


UPSTREAMS = pytest.mark.parametrize("upstream_kind", ["seekrflow", "openai"])


def served(kind: str, **more: Any) -> ThreadServer:
    return ThreadServer(hello(shape="vercel" if kind == "seekrflow" else "assistants", **more))


def made(kind: str, **more: Any) -> ThreadServer:
    server = ThreadServer()
    server.next_run = hello(shape="vercel" if kind == "seekrflow" else "assistants", **more)
    return server


@pytest.mark.cell("late join", "retrieve", "list", **OPENAI)
@BOTH
@UPSTREAMS
async def test_openai_attach(upstream_kind: str, kind: str, redis_url: str) -> None:
    async with served(upstream_kind) as server, relay_for(server, upstream_kind, redis_url) as relay:
        async with client_of(kind, relay.url) as client:
            stream = await openai_tests.attach(client.beta.threads, "run-1", "thread-1")
            events = await openai_tests.heard(stream)
            assert openai_tests.text_of(events) == SAID
            assert events[-1].event == "thread.run.completed"
            run = await client.beta.threads.runs.retrieve("run-1", thread_id="thread-1")
            assert (run.id, run.status) == ("run-1", "completed")
            assert [one.id async for one in client.beta.threads.runs.list("thread-1")] == ["run-1"]


@pytest.mark.cell("create + stream", **OPENAI)
@BOTH
@UPSTREAMS
async def test_openai_create_stream(upstream_kind: str, kind: str, redis_url: str) -> None:
    async with made(upstream_kind) as server, relay_for(server, upstream_kind, redis_url) as relay:
        async with client_of(kind, relay.url) as client:
            stream = await client.beta.threads.runs.create("thread-1", assistant_id="a", stream=True)
            events = await openai_tests.heard(stream)
            assert openai_tests.text_of(events) == SAID
            assert events[-1].event == "thread.run.completed"


@pytest.mark.cell("create + stream", "late join", "retrieve", "list", **SEEKRAI)
@BOTH
@UPSTREAMS
async def test_seekrai(upstream_kind: str, kind: str, redis_url: str) -> None:
    async with made(upstream_kind) as server, relay_for(server, upstream_kind, redis_url) as relay:
        seekr = Seekr(kind, relay.url)
        chunks = [chunk async for chunk in seekr.run_stream("thread-1")]
        assert "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta") == SAID
        assert chunks[-1]["type"] == "finish"
        run_id = chunks[0]["messageMetadata"]["metadata"]["run_id"]
        again = [chunk async for chunk in seekr.attach(run_id, "thread-1")]
        assert again == chunks
        assert (await seekr.call("retrieve", run_id, "thread-1")).status.value == "completed"
        assert [run.id for run in await seekr.call("list", "thread-1")] == [run_id]


@pytest.mark.cell("create", "create + stream", **ARKLOOP)
@pytest.mark.parametrize("kind", MODELS)
@UPSTREAMS
async def test_arkloop(upstream_kind: str, kind: str, redis_url: str) -> None:
    async with made(upstream_kind) as server, relay_for(server, upstream_kind, redis_url) as relay:
        async with relay.session.post(
            f"{relay.url}/arkloop/v1/threads/thread-1/runs", json={"persona_id": "a"}
        ) as answer:
            assert answer.status == 201, await answer.text()
            run_id = (await answer.json())["run_id"]
        events = await Client(MODELS[kind], f"{relay.url}/arkloop", run_id, scale=0.3).follow()
        text = "".join(one["data"]["content_delta"] for one in events if one["type"] == "message.delta")
        assert text == SAID
        assert [one["seq"] for one in events] == list(range(1, len(events) + 1))


@pytest.mark.cell("input answered", **OPENAI)
@BOTH
@pytest.mark.parametrize("upstream_kind", ["openai"])
async def test_openai_input(upstream_kind: str, kind: str, redis_url: str) -> None:
    async with made(upstream_kind, asks=True) as server, relay_for(server, upstream_kind, redis_url) as relay:
        async with client_of(kind, relay.url) as client:
            runs = client.beta.threads.runs
            events = await openai_tests.heard(await runs.create("thread-1", assistant_id="a", stream=True))
            assert events[-1].event == "thread.run.requires_action", [e.event for e in events]
            run = events[-1].data
            [call] = run.required_action.submit_tool_outputs.tool_calls
            stream = await runs.submit_tool_outputs(
                run.id, thread_id="thread-1", tool_outputs=[{"tool_call_id": call.id, "output": "42"}], stream=True
            )
            rest = await openai_tests.heard(stream)
            assert openai_tests.text_of(events) + openai_tests.text_of(rest) == SAID
            assert rest[-1].event == "thread.run.completed"
