"""The openai SDK, unchanged: its base URL is our OpenAI face, and any of the upstreams is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.web.options import KeyOptions
from tests.clients.behind import Behind, relay_before, relay_before_talks
from tests.clients.cutting import cutting
from tests.clients.openai_client import CLIENTS, FACE, attach, check_whole, client_of, heard, text_of
from tests.clients.stage import ASKS, CANCELLED, COMPLETES, SAID, WHOLE, says
from tests.support.arkloop_threads import vendor
from tests.support.needs import sdk
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream

__all__ = ["CLIENTS", "FACE"]
pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> str:
    sdk("openai")  # before anything is started
    return str(request.param)


@pytest.fixture
async def stand(kind: str, behind: Behind, redis_url: str) -> AsyncIterator[tuple[RunningRelay, Any]]:
    """A relay, and the SDK's threads on it."""
    async with relay_before(behind, redis_url) as relay, client_of(kind, relay.url) as client:
        yield relay, client.beta.threads


@pytest.mark.cell("create")
async def test_create(stand: Any, behind: Behind) -> None:
    _, threads = stand
    model = {"model": "m1"} if behind.takes_model else {}
    run = await threads.runs.create("t1", assistant_id="p1", **model)
    [(run_id, body)] = behind.created
    assert (run.id, run.thread_id, run.object) == (run_id, "t1", "thread.run")
    assert (body[behind.agent_field], body.get("model")) == ("p1", model.get("model"))
    assert (run.status, run.assistant_id) in (("in_progress", "p1"), ("in_progress", ""))


@pytest.mark.cell("create + stream")
async def test_create_and_stream(stand: Any, behind: Behind) -> None:
    _, threads = stand
    behind.makes(*WHOLE, dt_ms=3)
    check_whole(await heard(await threads.runs.create("t1", assistant_id="p1", stream=True)))
    async with threads.runs.stream(thread_id="t2", assistant_id="p1") as stream:
        said = "".join([piece async for piece in stream.text_deltas])
        run = await stream.get_final_run()
        [message] = await stream.get_final_messages()
        steps = await stream.get_final_run_steps()
    assert (said, message.content[0].text.value) == (SAID, SAID)
    assert (run.status, run.usage.total_tokens) == ("completed", 7)
    [tool] = [step for step in steps if step.type == "tool_calls"]
    arguments = sdk("pydantic_core").from_json(tool.step_details.tool_calls[0].function.arguments)
    assert arguments == behind.arguments


@pytest.mark.cell("create + stream")
async def test_create_and_poll(stand: Any, behind: Behind) -> None:
    _, threads = stand
    behind.makes(*WHOLE, dt_ms=20)
    run = await threads.runs.create_and_poll(thread_id="t1", assistant_id="p1", poll_interval_ms=50)
    assert run.status == "completed"
    messages = await threads.messages.list("t1", run_id=run.id)
    assert SAID in [message.content[0].text.value for message in messages.data]
    steps = await threads.runs.steps.list(run.id, thread_id="t1")
    assert {step.step_details.type for step in steps.data} == {"message_creation", "tool_calls"}


@pytest.mark.cell("retrieve")
async def test_retrieve(stand: Any, behind: Behind) -> None:
    _, threads = stand
    run_id = await behind.has(*WHOLE)
    await heard(await attach(threads, run_id, "t1"))
    run = await threads.runs.retrieve(run_id, thread_id="t1")
    assert (run.id, run.status, run.assistant_id, run.model) == (run_id, "completed", "p1", "m1")
    openai = sdk("openai")
    for thread_id, unknown in (("t1", "nope"), ("other", run_id)):
        with pytest.raises(openai.NotFoundError) as caught:
            await threads.runs.retrieve(unknown, thread_id=thread_id)
        assert caught.value.body["code"] == "runs.not_found"


@pytest.mark.cell("list")
async def test_list_pages_through_all_runs(stand: Any, behind: Behind) -> None:
    _, threads = stand
    made = [await behind.has() for _ in range(7)]
    await behind.has(thread_id="other")
    assert [run.id async for run in threads.runs.list("t1", limit=3)] == made[::-1]
    assert [run.id async for run in threads.runs.list("t1", limit=2, order="asc")] == made
    page = await threads.runs.list("t1", limit=3)
    assert (page.has_more, page.first_id, page.last_id) == (True, made[6], made[4])
    assert [run.id for run in (await threads.runs.list("t1", before=made[5])).data] == [made[6]]
    assert [run.id async for run in threads.runs.list("empty")] == []


@pytest.mark.cell("cancel")
async def test_cancel(stand: Any, behind: Behind) -> None:
    _, threads = stand
    behind.makes(says("Hel"))
    stream = await threads.runs.create("t1", assistant_id="p1", stream=True)
    events: list[Any] = []
    async for event in stream:
        events.append(event)
        if text_of(events) == "Hel" and event.event == "thread.message.delta":
            run = await threads.runs.cancel(events[0].data.id, thread_id="t1")
            assert run.status == "cancelling"
            behind.play(run.id, CANCELLED)
    assert [event.event for event in events[-2:]] == ["thread.run.step.cancelled", "thread.run.cancelled"]
    assert (await threads.runs.retrieve(run.id, thread_id="t1")).status == "cancelled"


async def test_a_viewer_that_leaves_cancels_nothing(stand: Any, behind: Behind) -> None:
    _, threads = stand
    behind.makes(says("Hel"))
    stream = await threads.runs.create("t1", assistant_id="p1", stream=True)
    async for event in stream:
        if event.event == "thread.message.delta":
            break
    await stream.close()
    await asyncio.sleep(0.3)
    [(run_id, _)] = behind.created
    assert behind.cancels() == 0
    behind.play(run_id, says("lo"), COMPLETES)
    assert text_of(await heard(await attach(threads, run_id, "t1"))) == "Hello"


@pytest.mark.cell("input answered")
async def test_a_run_that_waits_is_answered(stand: Any, behind: Behind) -> None:
    """Its stream ends where it waits, as the vendor's does; the answer's own stream goes on with the rest."""
    _, threads = stand
    if not behind.waits:
        await check_that_nothing_waits(threads, behind)
        return
    behind.makes(says(SAID[:9]), ASKS, dt_ms=2)
    events = await heard(await threads.runs.create("t1", assistant_id="p1", stream=True))
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
        behind.play(run.id, says(SAID[9:]), COMPLETES)
        rest = [event async for event in stream]
        assert (await stream.get_final_run()).status == "completed"
    assert text_of(events) + text_of(rest) == SAID
    assert rest[0].event == "thread.run.in_progress"
    assert behind.answers(run.id) == ["left"]
    with pytest.raises(openai.ConflictError):
        await threads.runs.submit_tool_outputs(run.id, thread_id="t1", tool_outputs=outputs)
    # Whoever joins afterwards hears all of it, the question and its answer included, in one stream.
    again = await heard(await attach(threads, run.id, "t1"))
    assert text_of(again) == SAID
    assert "thread.run.requires_action" in [event.event for event in again]


@pytest.mark.cell("input answered")
@pytest.mark.parametrize("behind", ["arkloop", "openai"], indirect=True)
async def test_a_run_that_waits_is_answered_without_the_helper(stand: Any, behind: Behind) -> None:
    """By polling, and then with the raw stream of the answer."""
    _, threads = stand
    behind.makes(ASKS)
    run = await threads.runs.create("t1", assistant_id="p1")
    run = await threads.runs.poll(run.id, thread_id="t1", poll_interval_ms=50)
    assert run.status == "requires_action"
    outputs = [{"tool_call_id": run.required_action.submit_tool_outputs.tool_calls[0].id, "output": "left"}]
    run = await threads.runs.submit_tool_outputs(run.id, thread_id="t1", tool_outputs=outputs)
    assert run.status == "in_progress"
    behind.play(run.id, says("a"), ASKS)
    run = await threads.runs.poll(run.id, thread_id="t1", poll_interval_ms=50)
    outputs = [{"tool_call_id": run.required_action.submit_tool_outputs.tool_calls[0].id, "output": "right"}]
    stream = await threads.runs.submit_tool_outputs(run.id, thread_id="t1", tool_outputs=outputs, stream=True)
    behind.play(run.id, says("b"), COMPLETES)
    rest = await heard(stream)
    assert (rest[0].event, text_of(rest), rest[-1].event) == ("thread.run.in_progress", "b", "thread.run.completed")
    assert (await threads.runs.poll(run.id, thread_id="t1", poll_interval_ms=50)).status == "completed"
    assert behind.answers(run.id) == ["left", "right"]


async def check_that_nothing_waits(threads: Any, behind: Behind) -> None:
    run_id = await behind.has(says("a"))
    with pytest.raises(sdk("openai").ConflictError) as caught:
        await threads.runs.submit_tool_outputs(
            run_id, thread_id="t1", tool_outputs=[{"tool_call_id": "c", "output": "x"}]
        )
    assert caught.value.body["code"] == "runs.not_active"


@pytest.mark.cell("blind resend")
async def test_a_create_sent_again_makes_one_run(kind: str, behind: Behind, redis_url: str) -> None:
    """The connection breaks before the answer, as often as the SDK tries; only the last try gets through."""
    behind.makes(*WHOLE, dt_ms=3)
    behind.slow_create(0.9)

    async def talk(url: str, thread_id: str, *, stream: bool) -> None:
        async with cutting(url, after_s=0.15, times=2) as cut, client_of(kind, cut) as client:
            runs = client.beta.threads.runs
            answer = await runs.create(thread_id, assistant_id="p1", stream=stream)
            run_id = check_whole(await heard(answer)) if stream else answer.id
            behind.slow_create(0.0)
            # Another turn with the very same words is another run.
            assert (await runs.create(thread_id, assistant_id="p1")).id != run_id

    async with relay_before(behind, redis_url, poll_s=1.0) as relay:
        await asyncio.gather(talk(relay.url, "t1", stream=False), talk(relay.url, "t2", stream=True))
    assert len(behind.created) == 4


@pytest.mark.cell("threads, messages")
async def test_threads_and_messages(kind: str, behind: Behind, redis_url: str) -> None:
    openai = sdk("openai")
    async with relay_before_talks(behind, redis_url) as (relay, talks), client_of(kind, relay.url) as client:
        threads = client.beta.threads
        thread = await threads.create(messages=[{"role": "user", "content": "one"}])
        await threads.messages.create(thread.id, role="user", content=[{"type": "text", "text": "two"}])
        talks.add(thread.id, "assistant", "three", run_id="r1")
        assert (await threads.retrieve(thread.id)).id == thread.id
        listed = [message async for message in threads.messages.list(thread.id, order="asc", limit=2)]
        assert [(item.role, item.content[0].text.value) for item in listed] == [
            ("user", "one"), ("user", "two"), ("assistant", "three")
        ]  # fmt: skip
        assert (await threads.messages.retrieve(listed[2].id, thread_id=thread.id)).run_id == "r1"
        assert (await threads.delete(thread.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await threads.retrieve(thread.id)


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
    async with vendor() as found, running(found.url, redis_url) as relay:
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
            with pytest.raises(openai.InternalServerError) as unsupported:
                await client.beta.assistants.list()
            assert unsupported.value.body["code"] == "upstream.unsupported"
