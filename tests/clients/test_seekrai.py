"""seekrai, unchanged: its base URL is our SeekrFlow face, and any of the upstreams is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.web.admit import hash_of
from relay.web.options import KeyOptions
from tests.clients.behind import Behind, relay_before, relay_before_talks
from tests.clients.cutting import cutting
from tests.clients.seekrai_client import (
    CLIENTS,
    FACE,
    LEGACY,
    Chunk,
    Seekr,
    check_whole,
    heard,
    started_by,
    text_of,
)
from tests.clients.stage import AGENT, ASKS, CANCELLED, COMPLETES, SAID, WHOLE, says
from tests.support.needs import sdk
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream

__all__ = ["CLIENTS", "FACE"]
pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore"),  # its dependencies warn of each other
]
new = pytest.mark.skipif(LEGACY, reason="this version has no such call, or reads another spelling")


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> str:
    sdk("seekrai")  # before anything is started
    return str(request.param)


@pytest.fixture
async def stand(kind: str, behind: Behind, redis_url: str) -> AsyncIterator[tuple[RunningRelay, Seekr]]:
    async with relay_before(behind, redis_url) as relay:
        yield relay, Seekr(kind, relay.url)


@pytest.mark.cell("create")
async def test_create(stand: Any, behind: Behind) -> None:
    _, seekr = stand
    answer = await seekr.call("run", AGENT, "t1")
    [(run_id, body)] = behind.created
    assert (answer.run_id, answer.thread_id) == (run_id, "t1")
    assert answer.status in ("queued", "running")
    assert body[behind.agent_field] == AGENT


@pytest.mark.cell("create + stream")
async def test_create_and_stream(stand: Any, behind: Behind) -> None:
    _, seekr = stand
    behind.makes(*WHOLE, dt_ms=3)
    chunks = await heard(seekr.run_stream("t1"))
    check_whole(chunks)
    if LEGACY:
        return
    assert ("reasoning-delta" in [chunk["type"] for chunk in chunks]) == behind.thinks
    [call] = [chunk for chunk in chunks if chunk["type"] == "tool-input-available"]
    [output] = [chunk for chunk in chunks if chunk["type"] == "tool-output-available"]
    assert (call["toolName"], call["input"], output["output"]) == ("look", behind.arguments, behind.output)
    assert call["toolCallId"] == output["toolCallId"]


@new
async def test_its_own_printer_prints_the_run(
    stand: Any, kind: str, behind: Behind, capsys: pytest.CaptureFixture[str]
) -> None:
    _, seekr = stand
    behind.makes(*WHOLE)
    stream = await seekr.call("run", AGENT, "t1", stream=True)
    await (asyncio.to_thread(stream.pretty_print) if kind == "sync" else stream.pretty_print())
    assert "rain" in capsys.readouterr().out


@pytest.mark.cell("retrieve")
async def test_retrieve(stand: Any, behind: Behind) -> None:
    _, seekr = stand
    run_id = await behind.has(*WHOLE)
    await heard(seekr.attach(run_id, "t1"))
    run = await seekr.call("retrieve", run_id, "t1")
    assert (run.id, run.status.value, run.agent_id, run.model, run.is_active) == (
        run_id,
        "completed",
        AGENT,
        "m1",
        False,
    )
    error = sdk("seekrai.error")
    for thread_id, unknown in (("t1", "nope"), ("other", run_id)):
        with pytest.raises(error.InvalidRequestError):
            await seekr.call("retrieve", unknown, thread_id)


@pytest.mark.cell("list")
async def test_list(stand: Any, behind: Behind) -> None:
    _, seekr = stand
    made = [await behind.has() for _ in range(25)]
    # It asks for no page: 20 is the vendor's.
    assert [run.id for run in await seekr.call("list", "t1")] == made[:-21:-1]
    assert await seekr.call("list", "empty") == []


@pytest.mark.cell("cancel")
async def test_cancel(stand: Any, behind: Behind) -> None:
    _, seekr = stand
    behind.makes(says("Hel"))
    chunks: list[Chunk] = []
    async for chunk in seekr.run_stream("t1"):
        chunks.append(chunk)
        if text_of(chunks) == "Hel" and len(behind.created) == 1 and not behind.cancels():
            [(run_id, _)] = behind.created
            assert await seekr.call("cancel", AGENT, run_id, "t1") == {"status": "canceled", "run_id": run_id}
            behind.play(run_id, CANCELLED)
    if not LEGACY:
        assert [chunk["type"] for chunk in chunks[-4:]] == ["text-end", "finish-step", "abort", "finish"]
        assert started_by(chunks) == run_id
    run = await seekr.call("retrieve", run_id, "t1")
    assert run.status.value == ("canceled" if LEGACY else "cancelled")  # each version reads one spelling only


@new
@pytest.mark.cell("input answered")
async def test_a_run_that_waits_is_answered(stand: Any, behind: Behind) -> None:
    """The vendor's API cannot answer; this face takes an answer where the upstream does, and the stream goes on."""
    relay, seekr = stand
    acts = (says(SAID[:9]), ASKS) if behind.waits else (says(SAID[:9]),)
    run_id = await behind.has(*acts)
    url = f"{relay.url}/seekrflow/v1/threads/t1/runs/{run_id}/input"
    chunks: list[Chunk] = []
    answered = False
    async for chunk in seekr.attach(run_id, "t1"):
        chunks.append(chunk)
        waits = chunk["type"] == "data-waiting-for-input" or not behind.waits
        if waits and text_of(chunks) == SAID[:9] and not answered:
            answered = True
            assert (await seekr.call("retrieve", run_id, "t1")).status.value == "running"
            async with relay.session.post(url, json={"content": "left"}) as response:
                assert response.status == (200 if behind.waits else 501)
            behind.play(run_id, says(SAID[9:]), COMPLETES)
    assert text_of(chunks) == SAID
    assert behind.answers(run_id) == (["left"] if behind.waits else [])


@new
@pytest.mark.cell("blind resend")
async def test_a_create_sent_again_makes_one_run(kind: str, behind: Behind, redis_url: str) -> None:
    """Another turn with the very same words, once the first run is over, is another run."""
    behind.makes(*WHOLE, dt_ms=3)
    behind.slow_create(1.2)

    async def talk(url: str, thread_id: str, *, stream: bool) -> None:
        async with cutting(url, after_s=0.15, times=2) as cut:
            seekr = Seekr(kind, cut)
            if stream:
                check_whole(await heard(seekr.run_stream(thread_id)))
            else:
                answer = await seekr.call("run", AGENT, thread_id)
                check_whole(await heard(seekr.attach(answer.run_id, thread_id)))
            behind.slow_create(0.0)
            await seekr.call("run", AGENT, thread_id)

    async with relay_before(behind, redis_url, poll_s=1.0) as relay:
        await asyncio.gather(talk(relay.url, "t1", stream=False), talk(relay.url, "t2", stream=True))
    assert len(behind.created) == 4


@pytest.mark.cell("threads, messages")
async def test_threads_and_messages(kind: str, behind: Behind, redis_url: str) -> None:
    async with relay_before_talks(behind, redis_url) as (relay, talks):
        seekr = Seekr(kind, relay.url)
        thread = await seekr.thread("create")
        await seekr.thread("create_message", thread.id, "user", "one")
        talks.add(thread.id, "assistant", "two", run_id="r1")
        assert (await seekr.thread("retrieve", thread.id)).status.value == "available"
        listed = await seekr.thread("list_messages", thread.id, order="asc")
        assert [(item.role, item.content, item.run_id) for item in listed] == [
            ("user", "one", None), ("assistant", "two", "r1")
        ]  # fmt: skip
        assert (await seekr.thread("retrieve_message", thread.id, listed[1].id)).content == "two"
        assert (await seekr.thread("delete", thread.id))["deleted"]


async def test_its_raw_key_lets_it_in_and_refusals_are_its_own_errors(
    kind: str, upstream: ScriptedUpstream, redis_url: str
) -> None:
    error = sdk("seekrai.error")
    auth = {"mode": "api_keys", "keys": (KeyOptions("k", hash_of("the-key")),)}
    run_id = upstream.add_run([("run.started", {})], thread_id="t1")
    async with running(upstream.url, redis_url, auth=auth) as relay:
        assert (await Seekr(kind, relay.url, api_key="the-key").call("retrieve", run_id, "t1")).id == run_id
        with pytest.raises(error.AuthenticationError):
            await Seekr(kind, relay.url, api_key="wrong").call("retrieve", run_id, "t1")
        headers = {"Authorization": "Bearer the-key"}
        async with relay.session.get(f"{relay.url}/seekrflow/v1/threads/t1/runs", headers=headers) as response:
            assert response.status == 200
        # The native face takes it only with its scheme.
        async with relay.session.get(f"{relay.url}/v1/runs/{run_id}", headers={"Authorization": "the-key"}) as response:
            assert (response.status, (await response.json())["code"]) == (401, "auth.invalid_authorization")
        async with relay.session.get(f"{relay.url}/seekrflow/v1/threads/t1/runs") as response:
            assert (response.status, await response.json()) == (
                401, {"detail": "send an API key as Authorization: Bearer"}
            )  # fmt: skip
        url = f"{relay.url}/seekrflow/v1/threads/t1/runs?limit=x"
        async with relay.session.get(url, headers=headers) as response:
            assert (response.status, list(await response.json())) == (422, ["detail"])
