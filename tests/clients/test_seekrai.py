"""seekrai, unchanged: its base URL is our SeekrFlow face, and an Arkloop upstream is behind it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.web.admit import hash_of
from relay.web.options import KeyOptions
from tests.clients import stage
from tests.clients.cutting import cutting
from tests.clients.stage import SAID
from tests.clients.threaded import Threaded
from tests.support import upstream_faults as faults
from tests.support.arkloop_threads import vendor
from tests.support.needs import sdk
from tests.support.relay import RelayProcess, RunningRelay, running
from tests.support.upstream import ScriptedUpstream

FACE = "seekrflow"
CLIENTS = {"async": "seekrai (async)", "sync": "seekrai (sync)"}

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(90),
    pytest.mark.filterwarnings("ignore"),  # its dependencies warn of each other
]
AGENT = "p1"
Chunk = dict[str, Any]


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> str:
    sdk("seekrai")  # before anything is started
    return str(request.param)


class Seekr:
    """Both of its clients, driven alike."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        seekrai = sdk("seekrai")
        make = seekrai.AsyncSeekrFlow if kind == "async" else seekrai.SeekrFlow
        self._threaded = kind == "sync"
        agents = make(**{"api_key": "k", "base_url": f"{url}/seekrflow", **options}).agents
        self._runs, self._threads = agents.runs, agents.threads

    async def call(self, name: str, *args: Any, **named: Any) -> Any:
        return await self._call(getattr(self._runs, name), *args, **named)

    async def thread(self, name: str, *args: Any, **named: Any) -> Any:
        return await self._call(getattr(self._threads, name), *args, **named)

    async def _call(self, method: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if self._threaded:
            return await asyncio.to_thread(method, *args, **named)
        return await method(*args, **named)

    async def run_stream(self, thread_id: str) -> AsyncIterator[Chunk]:
        stream = await self.call("run", AGENT, thread_id, stream=True)
        async for chunk in self._each(stream.raw_events()):
            yield chunk

    async def attach(self, run_id: str, thread_id: str) -> AsyncIterator[Chunk]:
        async for chunk in self._each(await self.call("attach", run_id, thread_id)):
            yield chunk

    async def _each(self, items: Any) -> AsyncIterator[Chunk]:
        async for chunk in Threaded(items) if self._threaded else items:
            yield chunk


@pytest.fixture
async def stand(kind: str, upstream: ScriptedUpstream, redis_url: str) -> AsyncIterator[tuple[RunningRelay, Seekr]]:
    async with running(upstream.url, redis_url, delivery={"heartbeat_s": 3.0}) as relay:
        yield relay, Seekr(kind, relay.url)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


async def heard(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in chunks]


def check_whole(chunks: list[Chunk]) -> None:
    """Everything once, in order, ended; every part opened before it goes on and closed after it."""
    assert (chunks[0]["type"], chunks[-1]["type"]) == ("start", "finish")
    assert text_of(chunks) == SAID
    [text_id] = [chunk["id"] for chunk in chunks if chunk["type"] == "text-start"]
    assert {chunk["id"] for chunk in chunks if chunk["type"] in ("text-delta", "text-end")} == {text_id}
    assert [chunk["type"] for chunk in chunks if chunk["type"] == "text-end"] == ["text-end"]


def started_by(chunks: list[Chunk]) -> str:
    return str(chunks[0]["messageMetadata"]["metadata"]["run_id"])


@pytest.mark.cell("create")
async def test_create(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    answer = await seekr.call("run", AGENT, "t1")
    assert [(run_id, body) for run_id, body in upstream.created] == [(answer.run_id, {"persona_id": AGENT})]
    assert (answer.thread_id, answer.status) == ("t1", "queued")


@pytest.mark.cell("create + stream")
async def test_create_and_stream(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    upstream.every_create = stage.whole(dt_ms=3)
    chunks = await heard(seekr.run_stream("t1"))
    check_whole(chunks)
    assert "reasoning-delta" in [chunk["type"] for chunk in chunks]
    [call] = [chunk for chunk in chunks if chunk["type"] == "tool-input-available"]
    [output] = [chunk for chunk in chunks if chunk["type"] == "tool-output-available"]
    assert (call["toolName"], call["input"], output["output"]) == ("look", {"at": "sky"}, {"n": 7})
    assert call["toolCallId"] == output["toolCallId"]


async def test_its_own_printer_prints_the_run(
    stand: Any, kind: str, upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    _, seekr = stand
    upstream.every_create = stage.whole()
    stream = await seekr.call("run", AGENT, "t1", stream=True)
    await (asyncio.to_thread(stream.pretty_print) if kind == "sync" else stream.pretty_print())
    assert "rain" in capsys.readouterr().out


@pytest.mark.cell("retrieve")
async def test_retrieve(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    run_id = upstream.play(stage.whole(), thread_id="t1")
    await heard(seekr.attach(run_id, "t1"))
    run = await seekr.call("retrieve", run_id, "t1")
    assert (run.id, run.status.value, run.agent_id, run.model, run.is_active) == (
        run_id,
        "completed",
        "p1",
        "m1",
        False,
    )
    error = sdk("seekrai.error")
    for thread_id, unknown in (("t1", "nope"), ("other", run_id)):
        with pytest.raises(error.InvalidRequestError):
            await seekr.call("retrieve", unknown, thread_id)


@pytest.mark.cell("list")
async def test_list(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    made = [upstream.add_run([("run.started", {})], thread_id="t1") for _ in range(25)]
    assert [run.id for run in await seekr.call("list", "t1")] == made[
        :-21:-1
    ]  # it asks for no page: 20 is the vendor's
    assert await seekr.call("list", "empty") == []


@pytest.mark.cell("cancel")
async def test_cancel(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    upstream.on_create.append(stage.opening("Hel"))
    chunks: list[Chunk] = []
    async for chunk in seekr.run_stream("t1"):
        chunks.append(chunk)
        if chunk["type"] == "text-delta":
            run_id = started_by(chunks)
            assert await seekr.call("cancel", AGENT, run_id, "t1") == {"status": "canceled", "run_id": run_id}
            upstream.finish(run_id, "run.cancelled")
    assert [chunk["type"] for chunk in chunks[-4:]] == ["text-end", "finish-step", "abort", "finish"]
    run = await seekr.call("retrieve", run_id, "t1")
    assert run.status.value == "cancelled"  # the only spelling this version reads


@pytest.mark.cell("late join")
async def test_late_join(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    run_id = upstream.play(stage.opening(SAID[:20]), thread_id="t1")
    await upstream.played(run_id)
    chunks: list[Chunk] = []
    second = None
    async for chunk in seekr.attach(run_id, "t1"):
        chunks.append(chunk)
        if text_of(chunks) == SAID[:20] and second is None:
            second = asyncio.create_task(heard(seekr.attach(run_id, "t1")))
            await asyncio.sleep(0.2)
            stage.finish(upstream, run_id, SAID[20:])
    check_whole(chunks)
    assert second is not None
    assert await second == chunks
    assert await heard(seekr.attach(run_id, "t1")) == chunks
    assert upstream.max_following(run_id) == 1


@pytest.mark.cell("failed run")
async def test_failed_run(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    run_id = upstream.play(stage.opening("Hel"), thread_id="t1")
    await upstream.played(run_id)
    upstream.finish(run_id, "run.failed", {"error_class": "x.y", "message": "no luck"})
    chunks = await heard(seekr.attach(run_id, "t1"))
    assert {"type": "error", "errorText": "no luck"} in chunks
    assert chunks[-1]["finishReason"] == "error"
    assert (await seekr.call("retrieve", run_id, "t1")).status.value == "failed"


@pytest.mark.cell("input answered")
async def test_a_run_that_waits_is_answered(stand: Any, upstream: ScriptedUpstream) -> None:
    """The vendor's API cannot answer; this face takes an answer where Arkloop does, and the stream goes on."""
    relay, seekr = stand
    run_id = upstream.play(stage.opening(SAID[:9]), thread_id="t1")
    await upstream.played(run_id)
    chunks: list[Chunk] = []
    async for chunk in seekr.attach(run_id, "t1"):
        chunks.append(chunk)
        if text_of(chunks) == SAID[:9] and chunk["type"] == "text-delta":
            stage.asks(upstream, run_id)
        elif chunk["type"] == "data-waiting-for-input":
            assert (await seekr.call("retrieve", run_id, "t1")).status.value == "running"
            url = f"{relay.url}/seekrflow/v1/threads/t1/runs/{run_id}/input"
            async with relay.session.post(url, json={"content": "left"}) as response:
                assert response.status == 200
            stage.finish(upstream, run_id, SAID[9:])
    assert text_of(chunks) == SAID
    assert stage.answers(upstream, run_id) == ["left"]


@pytest.mark.cell("upstream cut")
async def test_upstream_cuts_are_not_noticed(stand: Any, upstream: ScriptedUpstream) -> None:
    _, seekr = stand
    upstream.every_create = stage.whole(dt_ms=60)
    for fault in (
        faults.cut(after_events=2), faults.clean_eof(after_events=2), faults.half_frame(after_events=1),
        faults.junk_eof(after_events=1), faults.status(503),
    ):  # fmt: skip
        upstream.fault(faults.Fault(follow=True) | fault)
    check_whole(await heard(seekr.run_stream("t1")))
    assert upstream.pending() == 0


@pytest.mark.cell("stall")
async def test_a_silent_run_is_kept_alive(kind: str, upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url, delivery={"heartbeat_s": 3.0}) as relay:
        seekr = Seekr(kind, relay.url, timeout=2.5)  # shorter than the silence
        run_id = upstream.play(stage.opening(SAID[:9]), thread_id="t1")
        await upstream.played(run_id)
        chunks: list[Chunk] = []
        async for chunk in seekr.attach(run_id, "t1"):
            chunks.append(chunk)
            if text_of(chunks) == SAID[:9] and chunk["type"] == "text-delta":
                asyncio.get_running_loop().call_later(6.0, stage.finish, upstream, run_id, SAID[9:])
        check_whole(chunks)


@pytest.mark.cell("relay restart")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_relay_that_is_restarted(
    kind: str, upstream: ScriptedUpstream, tmp_path: Path, number: signal.Signals
) -> None:
    """The stream breaks with an error, never with a tidy end; attached again, it is whole."""
    run_id = upstream.play(stage.opening(SAID[:9]), thread_id="t1")
    await upstream.played(run_id)
    async with RelayProcess(upstream.url, tmp_path) as relay:
        seekr = Seekr(kind, relay.url, max_retries=8)
        chunks: list[Chunk] = []
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):  # noqa: PT012
            async for chunk in seekr.attach(run_id, "t1"):
                chunks.append(chunk)
                if text_of(chunks) == SAID[:9] and chunk["type"] == "text-delta":
                    await relay.signal(number)
        starting = asyncio.create_task(relay.start())
        run = await seekr.call("retrieve", run_id, "t1")
        await starting
        assert run.status.value == "running"
        stage.finish(upstream, run_id, SAID[9:])
        check_whole(await heard(seekr.attach(run_id, "t1")))


@pytest.mark.cell("blind resend")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_create_sent_again_makes_one_run(
    kind: str, upstream: ScriptedUpstream, redis_url: str, stream: bool
) -> None:
    upstream.every_create = stage.whole(dt_ms=3) if stream else stage.opening()
    upstream.fault(faults.Fault(target="create", delay_s=1.2), times=None)
    async with running(upstream.url, redis_url) as relay, cutting(relay.url, after_s=0.2, times=2) as url:
        seekr = Seekr(kind, url)
        if stream:
            check_whole(await heard(seekr.run_stream("t1")))
        else:
            await seekr.call("run", AGENT, "t1")
        assert len(upstream.created) == 1
        [(run_id, _)] = upstream.created
        if not stream:
            upstream.finish(run_id)
        await heard(seekr.attach(run_id, "t1"))
        # Another turn with the very same words, once the first run is over, is another run.
        await seekr.call("run", AGENT, "t1")
    assert len(upstream.created) == 2


@pytest.mark.cell("threads, messages")
async def test_threads_and_messages(kind: str, redis_url: str) -> None:
    async with vendor() as found, running(found.url, redis_url) as relay:
        seekr = Seekr(kind, relay.url, api_key="viewer")
        thread = await seekr.thread("create")
        await seekr.thread("create_message", thread.id, "user", "one")
        found.add(thread.id, "assistant", "two", run_id="r1")
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
