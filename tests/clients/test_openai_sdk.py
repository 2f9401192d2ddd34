"""The openai SDK, unchanged: its base URL is our OpenAI face, and an Arkloop upstream is behind it."""

from __future__ import annotations

import asyncio
import importlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.web.options import KeyOptions
from tests.clients import stage
from tests.clients.cutting import cutting
from tests.clients.stage import SAID
from tests.clients.threaded import Later, Threaded
from tests.support import upstream_faults as faults
from tests.support.arkloop_threads import vendor
from tests.support.needs import sdk
from tests.support.relay import RelayProcess, RunningRelay, running
from tests.support.upstream import ScriptedUpstream

FACE = "openai"
CLIENTS = {"async": "openai 2.54.0 (async)", "sync": "openai 2.54.0 (sync)"}

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@asynccontextmanager
async def client_of(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """The SDK's client; a synchronous one is driven in threads. Each kind under one of the base URLs its users have."""
    openai = sdk("openai")
    if kind == "async":
        async with openai.AsyncOpenAI(**{"api_key": "k", "base_url": f"{url}/openai", **options}) as client:
            yield client
    else:
        with openai.OpenAI(**{"api_key": "k", "base_url": f"{url}/openai/v1", **options}) as client:
            yield Threaded(client)


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> str:
    sdk("openai")  # before anything is started
    return str(request.param)


@pytest.fixture
async def stand(kind: str, upstream: ScriptedUpstream, redis_url: str) -> AsyncIterator[tuple[RunningRelay, Any]]:
    """A relay, and the SDK's threads on it."""
    async with running(upstream.url, redis_url, delivery={"heartbeat_s": 3.0}) as relay:
        async with client_of(kind, relay.url) as client:
            yield relay, client.beta.threads


def attach(threads: Any, run_id: str, thread_id: str) -> Any:
    """The SDK's own stream on our attach route, which its vendor does not have."""
    openai = sdk("openai")
    events = importlib.import_module("openai.types.beta").AssistantStreamEvent
    path = f"/threads/{thread_id}/runs/{run_id}/stream"
    inner = threads._inner if isinstance(threads, Threaded) else threads
    stream = openai.Stream if isinstance(threads, Threaded) else openai.AsyncStream

    def ask() -> Any:
        return inner._client.get(path, cast_to=events, stream=True, stream_cls=stream[events])

    return Later(ask) if isinstance(threads, Threaded) else ask()


async def heard(stream: Any) -> list[Any]:
    return [event async for event in stream]


def text_of(events: list[Any]) -> str:
    deltas = [event.data.delta.content[0].text.value for event in events if event.event == "thread.message.delta"]
    return "".join(deltas)


def check_whole(events: list[Any], status: str = "completed") -> None:
    """Everything once, in order, ended."""
    assert [event.event for event in events[:3]] == [
        "thread.run.created",
        "thread.run.queued",
        "thread.run.in_progress",
    ]
    assert events[-1].event == f"thread.run.{status}"
    assert text_of(events) == SAID
    [message] = [event.data for event in events if event.event == "thread.message.completed"]
    assert message.content[0].text.value == SAID


@pytest.mark.cell("create")
async def test_create(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    run = await threads.runs.create("t1", assistant_id="p1", model="m1")
    [(run_id, body)] = upstream.created
    assert (run.id, run.thread_id, run.object, body) == (
        run_id,
        "t1",
        "thread.run",
        {"persona_id": "p1", "model": "m1"},
    )
    assert (run.status, run.assistant_id) in (("in_progress", "p1"), ("in_progress", ""))


@pytest.mark.cell("create + stream")
async def test_create_and_stream(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.every_create = stage.whole(dt_ms=3)
    check_whole(await heard(await threads.runs.create("t1", assistant_id="p1", stream=True)))
    async with threads.runs.stream(thread_id="t2", assistant_id="p1") as stream:
        said = "".join([piece async for piece in stream.text_deltas])
        run = await stream.get_final_run()
        [message] = await stream.get_final_messages()
        steps = await stream.get_final_run_steps()
    assert (said, message.content[0].text.value) == (SAID, SAID)
    assert (run.status, run.usage.total_tokens) == ("completed", 7)
    [tool] = [step for step in steps if step.type == "tool_calls"]
    assert tool.step_details.tool_calls[0].function.arguments == '{"at":"sky"}'


@pytest.mark.cell("create + stream")
async def test_create_and_poll(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.every_create = stage.whole(dt_ms=20)
    run = await threads.runs.create_and_poll(thread_id="t1", assistant_id="p1", poll_interval_ms=50)
    assert run.status == "completed"
    messages = await threads.messages.list("t1", run_id=run.id)
    assert [message.content[0].text.value for message in messages.data] == [SAID]
    steps = await threads.runs.steps.list(run.id, thread_id="t1")
    assert [step.type for step in steps.data] == ["message_creation", "tool_calls"]


@pytest.mark.cell("retrieve")
async def test_retrieve(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    run_id = upstream.play(stage.whole(), thread_id="t1")
    await heard(await attach(threads, run_id, "t1"))
    run = await threads.runs.retrieve(run_id, thread_id="t1")
    assert (run.id, run.status, run.assistant_id, run.model) == (run_id, "completed", "p1", "m1")
    openai = sdk("openai")
    for thread_id, unknown in (("t1", "nope"), ("other", run_id)):
        with pytest.raises(openai.NotFoundError) as caught:
            await threads.runs.retrieve(unknown, thread_id=thread_id)
        assert caught.value.body["code"] == "runs.not_found"


@pytest.mark.cell("list")
async def test_list_pages_through_all_runs(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    made = [upstream.add_run([("run.started", {})], thread_id="t1") for _ in range(7)]
    upstream.add_run([("run.started", {})], thread_id="other")
    assert [run.id async for run in threads.runs.list("t1", limit=3)] == made[::-1]
    assert [run.id async for run in threads.runs.list("t1", limit=2, order="asc")] == made
    page = await threads.runs.list("t1", limit=3)
    assert (page.has_more, page.first_id, page.last_id) == (True, made[6], made[4])
    assert [run.id for run in (await threads.runs.list("t1", before=made[5])).data] == [made[6]]
    assert [run.id async for run in threads.runs.list("empty")] == []


@pytest.mark.cell("cancel")
async def test_cancel(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.on_create.append(stage.opening("Hel"))
    stream = await threads.runs.create("t1", assistant_id="p1", stream=True)
    events = []
    async for event in stream:
        events.append(event)
        if event.event == "thread.message.delta":
            run = await threads.runs.cancel(events[0].data.id, thread_id="t1")
            assert run.status == "cancelling"
            upstream.finish(run.id, "run.cancelled")
    assert [event.event for event in events[-2:]] == ["thread.run.step.cancelled", "thread.run.cancelled"]
    assert (await threads.runs.retrieve(run.id, thread_id="t1")).status == "cancelled"


async def test_a_viewer_that_leaves_cancels_nothing(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.on_create.append(stage.opening("Hel"))
    stream = await threads.runs.create("t1", assistant_id="p1", stream=True)
    async for event in stream:
        if event.event == "thread.message.delta":
            break
    await stream.close()
    await asyncio.sleep(0.3)
    [(run_id, _)] = upstream.created
    assert not [asked for asked in upstream.requests if "cancel" in asked.path]
    stage.finish(upstream, run_id, "lo")
    assert text_of(await heard(await attach(threads, run_id, "t1"))) == "Hello"


@pytest.mark.cell("late join")
async def test_late_join(stand: Any, upstream: ScriptedUpstream) -> None:
    """In the middle of a run and after its end: all of it, from the run's creation on."""
    _, threads = stand
    run_id = upstream.play(stage.opening("" + SAID[:20]), thread_id="t1")
    await upstream.played(run_id)
    first, second = await attach(threads, run_id, "t1"), None
    events = []
    async for event in first:
        events.append(event)
        if text_of(events) == SAID[:20] and second is None:
            second = asyncio.create_task(heard(await attach(threads, run_id, "t1")))
            await asyncio.sleep(0.2)
            stage.finish(upstream, run_id, SAID[20:])
    check_whole(events)
    assert second is not None
    check_whole(await second)
    check_whole(await heard(await attach(threads, run_id, "t1")))
    assert upstream.max_following(run_id) == 1


@pytest.mark.cell("failed run")
async def test_failed_run(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.on_create.append(stage.opening("Hel"))
    stream = await threads.runs.create("t1", assistant_id="p1", stream=True)
    events = []
    async for event in stream:
        events.append(event)
        if event.event == "thread.message.delta":
            upstream.finish(events[0].data.id, "run.failed", {"error_class": "x.y", "message": "no luck"})
    assert events[-1].event == "thread.run.failed"
    assert events[-1].data.last_error.message == "x.y: no luck"
    run = await threads.runs.retrieve(events[0].data.id, thread_id="t1")
    assert (run.status, run.last_error.message) == ("failed", "x.y: no luck")


@pytest.mark.cell("input answered")
async def test_a_run_that_waits_is_answered(stand: Any, upstream: ScriptedUpstream) -> None:
    """Its stream ends where it waits, as the vendor's does; the answer's own stream goes on with the rest."""
    _, threads = stand
    upstream.on_create.append(stage.opening(SAID[:9]))
    events = []
    async for event in await threads.runs.create("t1", assistant_id="p1", stream=True):
        events.append(event)
        if text_of(events) == SAID[:9] and event.event == "thread.message.delta":
            stage.asks(upstream, events[0].data.id)
    run = events[-1].data
    assert (events[-1].event, run.status) == ("thread.run.requires_action", "requires_action")
    assert (await threads.runs.retrieve(run.id, thread_id="t1")).required_action == run.required_action
    polled = await threads.runs.poll(run.id, thread_id="t1")
    [call] = polled.required_action.submit_tool_outputs.tool_calls
    openai = sdk("openai")
    for wrong in ([], [{"tool_call_id": "other", "output": "x"}], [{"tool_call_id": call.id, "output": ""}]):
        with pytest.raises(openai.BadRequestError):
            await threads.runs.submit_tool_outputs(run.id, thread_id="t1", tool_outputs=wrong)
    outputs = [{"tool_call_id": call.id, "output": "left"}]
    async with threads.runs.submit_tool_outputs_stream(thread_id="t1", run_id=run.id, tool_outputs=outputs) as stream:
        stage.finish(upstream, run.id, SAID[9:])
        rest = [event async for event in stream]
        assert (await stream.get_final_run()).status == "completed"
    assert text_of(events) + text_of(rest) == SAID
    assert rest[0].event == "thread.run.in_progress"
    assert stage.answers(upstream, run.id) == ["left"]
    with pytest.raises(openai.ConflictError):
        await threads.runs.submit_tool_outputs(run.id, thread_id="t1", tool_outputs=outputs)
    # Whoever joins afterwards hears all of it, the question and its answer included, in one stream.
    again = await heard(await attach(threads, run.id, "t1"))
    assert text_of(again) == SAID
    assert "thread.run.requires_action" in [event.event for event in again]


@pytest.mark.cell("input answered")
async def test_a_run_that_waits_is_answered_without_a_stream(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.on_create.append(stage.opening())
    run = await threads.runs.create("t1", assistant_id="p1")
    stage.asks(upstream, run.id)
    run = await threads.runs.poll(run.id, thread_id="t1", poll_interval_ms=50)
    assert run.status == "requires_action"
    outputs = [{"tool_call_id": "q1", "output": "left"}]
    run = await threads.runs.submit_tool_outputs(run.id, thread_id="t1", tool_outputs=outputs)
    assert run.status == "in_progress"
    stage.finish(upstream, run.id)
    assert (await threads.runs.poll(run.id, thread_id="t1", poll_interval_ms=50)).status == "completed"


@pytest.mark.cell("upstream cut")
async def test_upstream_cuts_are_not_noticed(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.every_create = stage.whole(dt_ms=60)
    for fault in (
        faults.cut(after_events=2), faults.clean_eof(after_events=2), faults.half_frame(after_events=1),
        faults.junk_eof(after_events=1), faults.status(503),
    ):  # fmt: skip
        upstream.fault(faults.Fault(follow=True) | fault)
    check_whole(await heard(await threads.runs.create("t1", assistant_id="p1", stream=True)))
    assert upstream.pending() == 0


@pytest.mark.cell("stall")
async def test_a_silent_run_is_kept_alive(stand: Any, upstream: ScriptedUpstream) -> None:
    _, threads = stand
    upstream.on_create.append(stage.opening(SAID[:9]))
    stream = await threads.runs.create("t1", assistant_id="p1", stream=True, timeout=httpx.Timeout(2.5))
    events = []
    async for event in stream:
        events.append(event)
        if text_of(events) == SAID[:9] and event.event == "thread.message.delta":
            asyncio.get_running_loop().call_later(6.0, stage.finish, upstream, events[0].data.id, SAID[9:])
    check_whole(events)


@pytest.mark.cell("threads, messages")
async def test_threads_and_messages(kind: str, redis_url: str) -> None:
    openai = sdk("openai")
    async with vendor() as found, running(found.url, redis_url) as relay:
        async with client_of(kind, relay.url, api_key="viewer") as client:
            threads = client.beta.threads
            thread = await threads.create(messages=[{"role": "user", "content": "one"}])
            await threads.messages.create(thread.id, role="user", content=[{"type": "text", "text": "two"}])
            found.add(thread.id, "assistant", "three", run_id="r1")
            assert (await threads.retrieve(thread.id)).id == thread.id
            listed = [message async for message in threads.messages.list(thread.id, order="asc", limit=2)]
            assert [(item.role, item.content[0].text.value) for item in listed] == [
                ("user", "one"), ("user", "two"), ("assistant", "three")
            ]  # fmt: skip
            assert (await threads.messages.retrieve(listed[2].id, thread_id=thread.id)).run_id == "r1"
            assert (await threads.delete(thread.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await threads.retrieve(thread.id)
            with pytest.raises(openai.InternalServerError) as unsupported:
                await client.beta.assistants.list()
            assert unsupported.value.body["code"] == "upstream.unsupported"


async def test_refusals_are_the_sdks_own_errors(kind: str, upstream: ScriptedUpstream, redis_url: str) -> None:
    """By the door, by a route, by no route, and by an upstream that has no such thing."""
    openai = sdk("openai")
    key = {"name": "k", "hash": "sha256:" + "0" * 64}
    auth = {"mode": "api_keys", "keys": (KeyOptions(**key),)}
    async with running(upstream.url, redis_url, auth=auth) as relay:
        async with client_of(kind, relay.url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.beta.threads.runs.retrieve("r", thread_id="t")
            assert caught.value.body["code"] == "auth.invalid_api_key"
    async with running(upstream.url, redis_url) as relay:
        async with client_of(kind, relay.url) as client:
            with pytest.raises(openai.BadRequestError):
                await client.beta.threads.runs.retrieve("a..b", thread_id="t")
            with pytest.raises(openai.BadRequestError):
                await client.beta.threads.runs.list("t", limit=0)
            with pytest.raises(openai.InternalServerError) as unsupported:
                await client.beta.threads.create(metadata={"a": "b"})
            assert unsupported.value.body["code"] == "upstream.unsupported"
            with pytest.raises(openai.InternalServerError) as unsupported:
                await client.beta.threads.runs.create("t", assistant_id="a", instructions="be nice")
            assert unsupported.value.body["param"] == "instructions"
    assert upstream.created == []


# --- relay restart and blind resends, with a relay that can be killed --------------------------------------------------
@pytest.mark.cell("relay restart")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_relay_that_is_restarted(
    kind: str, upstream: ScriptedUpstream, tmp_path: Path, number: signal.Signals
) -> None:
    """The stream breaks with an error, never with a tidy end; attached again, it is whole."""
    run_id = upstream.play(stage.opening(SAID[:9]), thread_id="t1")
    await upstream.played(run_id)
    async with RelayProcess(upstream.url, tmp_path) as relay:
        async with client_of(kind, relay.url, max_retries=8) as client:  # a refused connection is tried again
            events = []
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):  # noqa: PT012
                async for event in await attach(client.beta.threads, run_id, "t1"):
                    events.append(event)
                    if text_of(events) == SAID[:9] and event.event == "thread.message.delta":
                        await relay.signal(number)
            starting = asyncio.create_task(relay.start())
            run = await client.beta.threads.runs.retrieve(run_id, thread_id="t1")
            await starting
            assert run.status == "in_progress"
            stage.finish(upstream, run_id, SAID[9:])
            check_whole(await heard(await attach(client.beta.threads, run_id, "t1")))


@pytest.mark.cell("blind resend")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_create_sent_again_makes_one_run(
    kind: str, upstream: ScriptedUpstream, redis_url: str, stream: bool
) -> None:
    """The connection breaks before the answer, as often as the SDK tries; only the last try gets through."""
    upstream.every_create = stage.whole(dt_ms=3)
    upstream.fault(faults.Fault(target="create", delay_s=0.7), times=None)
    async with running(upstream.url, redis_url) as relay, cutting(relay.url, after_s=0.4, times=2) as url:
        async with client_of(kind, url) as client:
            answer = await client.beta.threads.runs.create("t1", assistant_id="p1", stream=stream)
            if stream:
                check_whole(await heard(answer))
            # Another turn with the very same words is another run.
            await client.beta.threads.runs.create("t1", assistant_id="p1")
    assert len(upstream.created) == 2
