"""The scripted upstream's faults do what they say, as a client of raw sockets sees them, which hides nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web

from relay.demo.ledger import Run
from tests.support import upstream_faults as faults
from tests.support.upstream import ScriptedUpstream
from tests.support.upstream_client import UpstreamClient
from tests.support.upstream_faults import Fault
from tests.support.upstream_stream import Stream, reset

PING = b": ping\n\n"
THREE = [("run.started", {}), ("message.delta", {"content_delta": "a"}), ("message.delta", {"content_delta": "b"})]


@dataclass
class Got:
    """What came over one connection, and how it ended."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    end: str = ""
    """`eof` last chunk seen, `fin` closed before it, `rst`, `quiet` still open."""

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Complete frames only, as the standard has it."""
        blocks = self.body.replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
        return [json.loads(block.partition(b"\ndata: ")[2]) for block in blocks if b"\ndata: " in block]

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]


async def ask(
    up: ScriptedUpstream, path: str, *, method: str = "GET", body: str = "", token: str = "", quiet_s: float = 5.0
) -> Got:
    """One request on a connection of its own; reading ends with the connection, the body, or `quiet_s` without a byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", up.port)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nAccept: text/event-stream\r\n"
    writer.write((head + (f"Authorization: Bearer {token}\r\n" if token else "") + "\r\n" + body).encode())
    got = Got()
    try:
        await _read(reader, got, quiet_s)
    except ConnectionResetError:
        got.end = "rst"
    except asyncio.IncompleteReadError as error:
        got.chunks.append(error.partial)
        got.end = "fin"
    except TimeoutError:
        got.end = "quiet"
    writer.transport.abort()
    return got


async def _read(reader: asyncio.StreamReader, got: Got, quiet_s: float) -> None:
    async with asyncio.timeout(quiet_s) as quiet:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        got.status = int(head[0].split()[1])
        got.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        if "content-length" in got.headers:
            got.chunks.append(await reader.readexactly(int(got.headers["content-length"])))
        while "content-length" not in got.headers:
            quiet.reschedule(asyncio.get_running_loop().time() + quiet_s)
            size = int(await reader.readuntil(b"\r\n"), 16)
            chunk = (await reader.readexactly(size + 2))[:-2]
            if not size:
                break
            got.chunks.append(chunk)
    got.end = "eof"


@pytest.fixture
async def up() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream() as upstream:
        upstream.add_run(THREE, run_id="r")
        yield upstream


EVENTS = "/v1/runs/r/events"
DRAIN = EVENTS + "?follow=false"


# ── endings ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fault", "end", "seqs"),
    [
        (faults.cut(after_events=2), "rst", [1, 2]),
        (faults.cut(after_events=1, how="drop"), "fin", [1]),
        (faults.cut(), "rst", []),
        (faults.clean_eof(after_events=2), "eof", [1, 2]),
        (faults.clean_eof(after_events=0), "eof", []),
        (faults.junk_eof(after_events=1), "eof", [1]),
        (faults.half_frame(after_events=1), "rst", [1]),
        (faults.half_frame(after_events=2, then="eof"), "eof", [1, 2]),
        (faults.half_frame(then="drop"), "fin", []),
        (faults.stall(after_events=1, for_s=0.05), "rst", [1]),
        (faults.max_age(0.05), "rst", [1, 2, 3]),
        (faults.cut(after_events=99) | faults.max_age(0.05), "rst", [1, 2, 3]),
    ],
)
async def test_endings_come_at_their_point(up: ScriptedUpstream, fault: Fault, end: str, seqs: list[int]) -> None:
    up.fault(fault)
    got = await ask(up, EVENTS)
    assert (got.status, got.end, got.seqs) == (200, end, seqs)
    await up.until(lambda: up.fired == [("r", fault)])
    assert up.following("r") == 0
    healthy = await ask(up, DRAIN)
    assert (healthy.end, healthy.seqs) == ("eof", [1, 2, 3])


@pytest.mark.parametrize("at", [0, 1, 7, 8, 60, 200])
@pytest.mark.parametrize("end", ["rst", "drop", "eof"])
async def test_byte_cuts_are_exact(up: ScriptedUpstream, at: int, end: Any) -> None:
    whole = (await ask(up, DRAIN)).body
    up.fault(Fault(end=end, after_bytes=at))
    got = await ask(up, EVENTS)
    assert got.body == (PING + whole)[:at]
    assert got.end == {"rst": "rst", "drop": "fin", "eof": "eof"}[end]


async def test_junk_is_that_of_the_gateway(up: ScriptedUpstream) -> None:
    up.fault(faults.junk_eof(after_events=3))
    assert (await ask(up, EVENTS)).body.endswith(b'\n\n{"code":"internal.error","message":"internal error"}\n')


async def test_half_a_frame_waits_for_the_frame(up: ScriptedUpstream) -> None:
    up.fault(faults.half_frame(after_events=3, then="eof"))
    asking = asyncio.create_task(ask(up, EVENTS))
    await up.until(lambda: up.following("r") == 1)
    up.append("r", "message.delta", {"content_delta": "half"})
    got = await asking
    assert got.seqs == [1, 2, 3]
    assert got.body.rpartition(b"\n\n")[2].startswith(b"id: 4\nevent: message.delta\ndata: {")


async def test_a_stall_is_silent_and_open_until_the_client_leaves() -> None:
    async with ScriptedUpstream(heartbeat_s=0.02) as up:
        up.add_run(THREE, run_id="r")
        up.fault(faults.stall(after_events=2))
        asking = asyncio.create_task(ask(up, EVENTS, quiet_s=0.3))
        await up.until(lambda: up.following("r") == 1)
        up.append("r", "message.delta", {"content_delta": "unheard"})
        got = await asking
        assert (got.end, got.seqs, got.body.count(PING)) == ("quiet", [1, 2], 1)
        await up.until(lambda: up.following("r") == 0)


async def test_cut_now_resets_open_streams(up: ScriptedUpstream) -> None:
    asking = asyncio.create_task(ask(up, EVENTS))
    await up.until(lambda: up.following("r") == 1)
    assert up.cut_now("other") == 0
    assert up.cut_now("r") == 1
    assert (await asking).end == "rst"


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_drip_makes_every_byte_a_chunk(up: ScriptedUpstream) -> None:
    whole = (await ask(up, DRAIN)).body
    up.fault(faults.drip())
    got = await ask(up, DRAIN)
    assert got.body == whole
    assert {len(chunk) for chunk in got.chunks} == {1}


async def test_random_chunks_are_the_same_for_the_same_seed(up: ScriptedUpstream) -> None:
    whole = (await ask(up, DRAIN)).body
    shapes = []
    for seed in (1, 1, 2):
        up.fault(faults.chunks(seed=seed))
        got = await ask(up, DRAIN)
        assert got.body == whole
        shapes.append([len(chunk) for chunk in got.chunks])
    assert shapes[0] == shapes[1] != shapes[2]


async def test_crlf_and_content_type(up: ScriptedUpstream) -> None:
    whole = (await ask(up, DRAIN)).body
    up.fault(faults.crlf() | faults.content_type("application/octet-stream"))
    got = await ask(up, DRAIN)
    assert got.body == whole.replace(b"\n", b"\r\n")
    assert got.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("fault", "seqs"),
    [(faults.duplicates(1), [2, 3]), (faults.duplicates(9), [1, 2, 3]), (faults.ignore_after_seq(), [1, 2, 3])],
)
async def test_rewinds_send_old_events_again(up: ScriptedUpstream, fault: Fault, seqs: list[int]) -> None:
    up.fault(fault)
    assert (await ask(up, DRAIN + "&after_seq=2")).seqs == seqs
    assert (await ask(up, DRAIN + "&after_seq=2")).seqs == [3]


async def test_slow_first_byte_sends_headers_first(up: ScriptedUpstream) -> None:
    up.fault(faults.slow_first_byte(1e9))
    got = await ask(up, EVENTS, quiet_s=0.2)
    assert (got.status, got.chunks, got.end) == (200, [], "quiet")


async def test_slow_answer_sends_nothing(up: ScriptedUpstream) -> None:
    up.fault(faults.slow_answer(1e9), times=2)
    for path in (EVENTS, "/v1/runs/r"):
        got = await ask(up, path, quiet_s=0.1)
        assert (got.status, got.end) == (0, "quiet")


async def test_an_event_of_several_mib_arrives_whole(up: ScriptedUpstream) -> None:
    up.append("r", "llm.request", {"input": "x" * (5 << 20)})
    got = await ask(up, DRAIN)
    assert len(got.events[-1]["data"]["input"]) == 5 << 20


async def test_raw_json_is_sent_as_it_is(up: ScriptedUpstream) -> None:
    up.append("r", "numbers", b'{"z":123456789012345678901234567890,"a":1.50}')
    assert b'"data":{"z":123456789012345678901234567890,"a":1.50}' in (await ask(up, DRAIN)).body
    assert up.truth("r")[-1]["data"]["z"] == 123456789012345678901234567890


# ── answers instead of streams ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "auth.invalid_token"), (403, "policy.denied"), (404, "runs.not_found"), (429, "ratelimit.exceeded"),
     (500, "internal.error"), (503, "overload.busy")],
)  # fmt: skip
async def test_statuses_come_as_often_as_asked(up: ScriptedUpstream, status: int, code: str) -> None:
    up.fault(faults.status(status, retry_after=7), times=2)
    for _ in range(2):
        got = await ask(up, EVENTS)
        assert (got.status, json.loads(got.body)["code"], got.headers["retry-after"]) == (status, code, "7")
    assert (await ask(up, DRAIN)).status == 200
    assert up.counters("r")["follows"] == 0


async def test_targets_and_follow_are_told_apart(up: ScriptedUpstream) -> None:
    up.fault(faults.status(500, target="run"))
    up.fault(faults.status(502, follow=False))
    up.fault(faults.cut(after_events=1) | Fault(follow=True), times=None)
    assert (await ask(up, EVENTS)).end == "rst"
    bad_gateway = await ask(up, DRAIN)
    assert (bad_gateway.status, bad_gateway.body) == (502, b"")
    assert (await ask(up, DRAIN)).seqs == [1, 2, 3]
    assert (await ask(up, "/v1/runs/r")).status == 500
    assert (await ask(up, "/v1/runs/r")).status == 200
    assert (await ask(up, EVENTS)).end == "rst"
    up.heal()
    assert (await ask(up, EVENTS, quiet_s=0.1)).end == "quiet"


async def test_a_lasting_ending_leaves_refusals_whole(up: ScriptedUpstream) -> None:
    up.fault(faults.max_age(0.05), times=None)
    up.fault(faults.status(503))
    refused, cut = await ask(up, EVENTS), await ask(up, EVENTS)
    assert (refused.status, refused.end) == (503, "eof")
    assert (cut.status, cut.end, cut.seqs) == (200, "rst", [1, 2, 3])


async def test_a_runs_own_queue_comes_first(up: ScriptedUpstream) -> None:
    up.fault(faults.status(503))
    up.fault(faults.status(500), "r")
    assert [(await ask(up, DRAIN)).status for _ in range(3)] == [500, 503, 200]
    assert up.pending() == up.pending("r") == 0


async def test_html_and_reset_instead_of_json(up: ScriptedUpstream) -> None:
    up.fault(faults.html())
    page = await ask(up, EVENTS)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    up.fault(Fault(target="run", end="rst"))
    assert (await ask(up, "/v1/runs/r")).end == "rst"


async def test_nobody_listens_and_then_on_the_same_port_again(up: ScriptedUpstream) -> None:
    asking = asyncio.create_task(ask(up, EVENTS))
    await up.until(lambda: up.following("r") == 1)
    await up.refuse()
    assert (await asking).end == "rst"
    with pytest.raises(ConnectionRefusedError):
        await ask(up, DRAIN)
    await up.accept()
    assert (await ask(up, DRAIN)).seqs == [1, 2, 3]


# ── runs, truth and counters ────────────────────────────────────────────────────────────────────────────────────


async def test_truth_is_what_was_sent(up: ScriptedUpstream) -> None:
    up.append("r", "tool.result", {"tool_name": "t", "result": "<ü>"}, ts="2026-01-01T00:00:00Z", event_id="e")
    got = await ask(up, DRAIN)
    assert got.events == up.truth("r")
    assert up.truth("r")[-1] == {
        "data": {"result": "<ü>", "tool_name": "t"}, "event_id": "e", "run_id": "r", "seq": 4, "tool_name": "t",
        "ts": "2026-01-01T00:00:00Z", "type": "tool.result",
    }  # fmt: skip


async def test_seqs_may_be_chosen_repeated_and_late(up: ScriptedUpstream) -> None:
    run_id = up.add_run(
        [{"type": "a", "seq": 5}, {"type": "b", "seq": 9}, {"type": "c", "seq": 9}, {"type": "d", "seq": 7}]
    )
    got = await ask(up, f"/v1/runs/{run_id}/events?follow=0&after_seq=5")
    assert [(event["seq"], event["type"]) for event in got.events] == [(7, "d"), (9, "b"), (9, "c")]
    assert up.append(run_id, "e") == 10


async def test_pruned_events_are_gone_but_true(up: ScriptedUpstream) -> None:
    up.prune("r", 2)
    assert (await ask(up, DRAIN)).seqs == [3]
    up.prune("r")
    assert (await ask(up, DRAIN)).seqs == []
    assert len(up.truth("r")) == 3
    assert (await ask(up, "/v1/runs/r")).status == 200
    up.remove_run("r")
    assert (await ask(up, "/v1/runs/r")).status == 404


async def test_status_follows_the_events_unless_set(up: ScriptedUpstream) -> None:
    async def status() -> str:
        return str(json.loads((await ask(up, "/v1/runs/r")).body)["status"])

    up.append("r", "run.completed", {"delegate_layer": "acp"})
    assert await status() == "running"
    up.append("r", "run.cancel_requested")
    assert await status() == "cancelling"
    up.finish("r", "run.interrupted")
    assert await status() == "interrupted"
    up.set_status("r", "running")
    assert await status() == "running"
    up.set_status("r", None)
    assert await status() == "interrupted"


async def test_streams_are_counted_by_kind(up: ScriptedUpstream) -> None:
    asking = [asyncio.create_task(ask(up, EVENTS)) for _ in range(2)]
    await up.until(lambda: up.following("r") == 2)
    await ask(up, DRAIN)
    up.cut_now()
    await asyncio.gather(*asking)
    await up.until(lambda: up.following("r") == 0)
    assert up.counters("r") == {
        "following": 0, "max_following": 2, "follows": 2, "draining": 0, "max_draining": 1, "drains": 1,
    }  # fmt: skip


async def test_requests_are_written_down(up: ScriptedUpstream) -> None:
    await ask(up, DRAIN + "&after_seq=2", token="abc")
    await ask(up, "/v1/runs/r/input", method="POST", body='{"content":"hi"}')
    stream, post = up.requests
    assert (stream.method, stream.path, stream.query) == ("GET", EVENTS, {"follow": "false", "after_seq": "2"})
    assert (stream.headers["Authorization"], stream.headers["Accept"]) == ("Bearer abc", "text/event-stream")
    assert (post.method, json.loads(post.body)) == ("POST", {"content": "hi"})
    assert up.truth("r")[-1]["type"] == "run.input_provided"


async def test_tokens_own_runs(up: ScriptedUpstream) -> None:
    up.tokens = {"service": None, "alice": {"r"}, "bob": set()}
    answers = [await ask(up, DRAIN, token=token) for token in ("service", "alice", "bob", "eve")]
    assert [got.status for got in answers] == [200, 200, 403, 401]
    refused = json.loads(answers[2].body)
    assert (refused["code"], refused["details"]) == ("policy.denied", {"action": "runs.events"})


async def test_posted_runs_wait_for_the_test(up: ScriptedUpstream) -> None:
    got = await ask(up, "/v1/threads/t/runs", method="POST", body='{"persona_id":"p"}')
    run_id = json.loads(got.body)["run_id"]
    assert up.created == [(run_id, {"persona_id": "p"})]
    assert [event["type"] for event in up.truth(run_id)] == ["run.started"]


async def test_play_paces_events_into_a_run_that_exists(up: ScriptedUpstream) -> None:
    assert up.play([("message.delta", {"n": n}) for n in range(5)], run_id="r", rate=500) == "r"
    assert len(up.truth("r")) == 4
    await up.played("r")
    assert [event["data"].get("n") for event in up.truth("r")[3:]] == [0, 1, 2, 3, 4]


# ── chaos and load ──────────────────────────────────────────────────────────────────────────────────────────────


def test_chaos_is_the_same_for_the_same_seed() -> None:
    assert list(faults.chaos(7, 50)) == list(faults.chaos(7, 50)) != list(faults.chaos(8, 50))


@pytest.mark.parametrize("seed", range(6))
async def test_a_resuming_client_gets_everything_through_chaos(seed: int) -> None:
    async with ScriptedUpstream() as up:
        up.play([("message.delta", {"n": n}) for n in range(60)], run_id="r", rate=200)
        up.chaos(seed, "r", count=15, stall_s=0.02)
        seen: dict[int, dict[str, Any]] = {}
        for _ in range(100):
            got = await ask(up, f"{EVENTS}?after_seq={max(seen, default=0)}", quiet_s=0.1)
            seen |= {event["seq"]: event for event in (got.events if got.status == 200 else [])}
            if not up.pending("r") and len(seen) == 60:
                break
        assert [seen[seq] for seq in sorted(seen)] == up.truth("r")
        assert up.fired


@pytest.mark.parametrize("rate", [2000, None])
async def test_synthetic_events_are_stamped_gapless_and_complete(rate: float | None) -> None:
    async with ScriptedUpstream() as up:
        run_ids = [up.add_run(run_id=f"s{n}") for n in range(5)]
        asking = [asyncio.create_task(ask(up, f"/v1/runs/{run_id}/events", quiet_s=0.5)) for run_id in run_ids]
        await up.until(lambda: all(up.following(run_id) for run_id in run_ids))
        await up.synth([*run_ids, "made"], rate=rate, count=40, size=300)
        for run_id, got in zip(run_ids, await asyncio.gather(*asking), strict=True):
            assert got.events == up.truth(run_id)
            assert got.seqs == list(range(1, 42))
            assert len(re.findall(rb'"data":{"t":\d+,"s":10000000\d\d[,}]', got.body)) == 41
            assert len(json.dumps(got.events[0]["data"], separators=(",", ":"))) == pytest.approx(300, abs=3)
            assert got.events[-1]["type"] == "run.completed"


async def test_synthetic_load_may_forget() -> None:
    async with ScriptedUpstream() as up:
        await up.synth(["s"], rate=None, count=1000, keep=50, end=False)
        assert 50 <= len(up.truth("s")) < 100
        assert up.truth("s")[-1]["seq"] == 1000


# ── in a process of its own ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_control_api_does_what_the_methods_do(tmp_path: Path) -> None:
    recording = tmp_path / "one.jsonl"
    recording.write_text('{"seq":1,"type":"run.started","data":{},"dt_ms":0}\n')
    async with UpstreamClient.spawn("--heartbeat", "0.05") as up:
        run_id = await up.add_run(THREE, run_id="r")
        assert await up.append(run_id, "message.delta", {"content_delta": "c"}) == 4
        await up.fault(faults.clean_eof(after_events=2), run_id)
        async with up.session.get(f"{up.url}/v1/runs/r/events") as answer:
            assert (await answer.read()).count(b"\nevent: ") == 2
        assert await up.fired() == [("r", faults.clean_eof(after_events=2))]
        assert (await up.counters("r"))["follows"] == 1
        assert await up.finish("r") == 5
        assert [event["seq"] for event in await up.truth("r")] == [1, 2, 3, 4, 5]
        assert len(await up.chaos(3, count=4)) == await up.pending() == 4
        await up.synth(["s"], rate=None, count=10, wait=True)
        assert len(await up.truth("s")) == 11
        played = await up.play_recording(recording)
        await up.played(played)
        assert [request["path"] for request in await up.requests()] == ["/v1/runs/r/events"]
        with pytest.raises(RuntimeError, match="KeyError"):
            await up.truth("absent")


async def test_an_outage_resets_streams_and_ends_by_itself() -> None:
    async with UpstreamClient.spawn() as up:
        await up.add_run(THREE, run_id="r")
        async with up.session.get(f"{up.url}/v1/runs/r/events") as answer:
            await up.outage(0.1)
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        await up.until_answering()
        assert len(await up.truth("r")) == 3


# ── streams whose client has gone ───────────────────────────────────────────────────────────────────────────────────
def test_a_closed_transport_may_be_reset_and_takes_no_event() -> None:
    """On uvloop, whose transports raise where asyncio's say nothing."""

    async def closed() -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname()[:2])
        server.close()
        transport.close()
        await asyncio.sleep(0.05)
        return transport

    async def scenario() -> None:
        transport = await closed()
        reset(transport)
        stream = Stream(web.StreamResponse(), transport, Run("r", "t"), Fault())
        stream.resting = True
        assert not stream.take(1, b"data: {}\n\n")
        assert stream.cursor == 0

    uvloop.run(scenario())


# ── its end ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("turns", range(6))
def test_who_comes_in_the_moment_it_stops_is_not_forgotten(turns: int) -> None:
    """A connection nobody closes is complained of much later, in the middle of somebody else's test."""

    async def comes_and_is_left(guest: socket.socket) -> None:
        up = ScriptedUpstream()
        await up.start()
        with suppress(BlockingIOError):
            guest.connect(("127.0.0.1", up.port))
        for _ in range(turns):
            await asyncio.sleep(0)
        await up.stop()

    with warnings.catch_warnings(record=True) as said, socket.socket() as guest:
        warnings.simplefilter("always")
        guest.setblocking(False)
        asyncio.run(comes_and_is_left(guest))
        gc.collect()
    assert not [str(one.message) for one in said if "unclosed transport" in str(one.message)]
