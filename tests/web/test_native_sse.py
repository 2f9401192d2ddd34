"""`GET /v1/runs/{r}/events` byte for byte (design.md §4): frames, headers, cursor, ends, and every representation."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import httpx
import httpx_sse
import pytest

from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import Raw, connection, events, fetch, frames, notices

STARTED = ("run.started", {"persona_id": "p"})
DELTA = ("message.delta", {"content_delta": "hé\u2028llo\r\n", "role": "assistant"})
DONE = ("run.completed", {"usage": {"input_tokens": 1}})
WHOLE = (STARTED, DELTA, DONE)


def target(run_id: str, query: str = "") -> str:
    return f"/v1/runs/{run_id}/events{'?' + query if query else ''}"


async def sealed(relay: RunningRelay, run_id: str) -> dict[str, Any]:
    """Watch a finished run to its end, so that it is sealed; its relay.end."""
    raw = await fetch(relay.url, target(run_id))
    [(_, end)] = notices(raw.body, "relay.end")
    return end


# --- frames ----------------------------------------------------------------------------------------------------------
async def test_the_first_bytes_come_at_once_and_end_in_one_line_feed(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run()  # a run without a single event
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id))
        await raw.until(b"\n")
        assert raw.body == b": ping\n"
        assert raw.raw_body == b"7\r\n: ping\n\r\n"
        await upstream.until(lambda: upstream.following(run_id) == 1)


async def test_a_frame_is_id_and_data_and_nothing_else(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id))
    body = raw.body
    assert b"\r" not in body
    pings, _, rest = body.partition(b"id: 1\n")
    assert pings == b": ping\n"
    blocks = (b"id: 1\n" + rest).split(b"\n\n")
    assert blocks.pop() == b""
    for seq, block in enumerate(blocks[:3], 1):
        lines = block.split(b"\n")
        assert lines[0] == b"id: %d" % seq
        assert lines[1].startswith(b'data: {"')
        assert len(lines) == 2
        event = json.loads(lines[1][6:])
        assert {"seq", "type", "data", "created_at", "run_id"} <= event.keys()
        assert event["seq"] == seq
        assert event["run_id"] == run_id
    truth = upstream.truth(run_id)
    for event, true in zip(events(body), truth, strict=True):
        assert {name: event[name] for name in true if name != "data"} == {n: v for n, v in true.items() if n != "data"}
        assert {name: event["data"][name] for name in true["data"]} == true["data"]
        assert event["created_at"] == true["ts"]
    assert events(body)[1]["data"]["content"] == DELTA[1]["content_delta"]


async def test_event_lines_are_sent_only_with_named(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        for query in ("", "named=0", "named=false"):
            raw = await fetch(relay.url, target(run_id, query))
            assert b"event: run." not in raw.body
            assert b"event: message" not in raw.body
        raw = await fetch(relay.url, target(run_id, "named=1"))
    own = [frame for frame in frames(raw.body) if not frame["event"].startswith("relay.")]
    assert [frame["event"] for frame in own] == ["run.started", "message.delta", "run.completed"]
    assert b"id: 1\nevent: run.started\ndata: {" in raw.body


async def test_a_hostile_type_cannot_forge_a_frame(upstream: ScriptedUpstream, redis_url: str) -> None:
    hostile = "x\n\nid: 999\nevent: relay.end\ndata: {}\n\n"
    run_id = upstream.add_run([STARTED])
    row = upstream.run(run_id)  # the upstream's own event: line must stay whole, so the type is only in its JSON
    row.store(2, b"id: 2\nevent: x\ndata: " + json.dumps({"seq": 2, "type": hostile, "data": {}}).encode() + b"\n\n")
    row.append("run.completed", {})
    async with running(upstream.url, redis_url) as relay:
        for query in ("", "named=1"):
            raw = await fetch(relay.url, target(run_id, query))
            assert [event["seq"] for event in events(raw.body)] == [1, 2, 3]
            assert len(notices(raw.body, "relay.end")) == 1
            assert "999" not in [frame.get("id") for frame in frames(raw.body)]
        raw = await fetch(relay.url, target(run_id), {"Accept": "application/x-ndjson"})
        lines = [json.loads(line) for line in raw.body.split(b"\n") if line]
        assert [line["type"] for line in lines] == ["run.started", hostile, "run.completed", "relay.end"]


# --- headers ---------------------------------------------------------------------------------------------------------
async def test_headers_of_a_stream(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id))
        await raw.until(b"id: 1\n")
        assert raw.status == 200
        assert raw.headers["content-type"] == "text/event-stream"
        assert raw.headers["cache-control"] == "no-store"
        assert raw.headers["x-accel-buffering"] == "no"
        assert raw.headers["transfer-encoding"] == "chunked"
        assert len(raw.headers["x-trace-id"]) == 32
        assert set(raw.headers["x-trace-id"]) <= set("0123456789abcdef")
        assert "content-length" not in raw.headers
        assert "content-encoding" not in raw.headers


async def test_a_stream_is_never_compressed(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id), {"Accept-Encoding": "gzip, deflate, br"})
    assert "content-encoding" not in raw.headers
    assert len(events(raw.body)) == 3


# --- the cursor ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("query", "header", "first"),
    [
        ("", None, 1),
        ("after_seq=0", None, 1),
        ("after_seq=", None, 1),
        ("after_seq=2", None, 3),
        ("", "2", 3),
        ("after_seq=1", "2", 3),
        ("after_seq=2", "1", 3),
        ("after_seq=2", "", 3),
        ("after_seq=0002", "1", 3),
    ],
)
async def test_the_cursor_is_the_larger_of_query_and_header(
    upstream: ScriptedUpstream, redis_url: str, query: str, header: str | None, first: int
) -> None:
    run_id = upstream.add_run([STARTED, DELTA, DELTA, DONE])
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id, query), {"Last-Event-ID": header} if header is not None else {})
    assert [event["seq"] for event in events(raw.body)] == list(range(first, 5))


async def test_a_cursor_beyond_the_end_waits_for_what_comes_behind_it(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED, DELTA])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id, "after_seq=4"))
        async with connection(relay.url) as other:  # shows that everything up to 4 was there to be seen
            await other.ask(target(run_id))
            upstream.append(run_id, "message.delta", {"content_delta": "3"})
            upstream.append(run_id, "message.delta", {"content_delta": "4"})
            await other.until(b"id: 4\n")
            assert raw.body == b": ping\n"[: len(raw.body)]
            upstream.append(run_id, "message.delta", {"content_delta": "5"})
            await raw.until(b"id: 5\n")
            assert [event["seq"] for event in events(raw.body)] == [5]
        asked = [one for one in upstream.requests if one.path.endswith(run_id)]
        assert len(asked) <= 2


# --- follow=false ----------------------------------------------------------------------------------------------------
async def test_without_follow_the_body_ends_properly_at_what_there_is(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED, DELTA])
    async with running(upstream.url, redis_url) as relay:
        for follow in ("false", "0"):
            raw = await fetch(relay.url, target(run_id, f"follow={follow}"))
            assert raw.finished
            assert [event["seq"] for event in events(raw.body)] == [1, 2]
            assert notices(raw.body, "relay.end") == []  # no more yet is not no more ever
        raw = await fetch(relay.url, target(run_id, "follow=false&after_seq=2"))
        assert raw.finished
        assert frames(raw.body) == []


async def test_without_follow_the_end_of_a_sealed_run_is_still_told(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        await sealed(relay, run_id)
        raw = await fetch(relay.url, target(run_id, "follow=false"))
        assert raw.finished
        [(at, end)] = notices(raw.body, "relay.end")
        assert (at, end["last_seq"], end["status"]) == ("3", 3, "completed")


async def test_without_follow_a_long_history_is_whole(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, *[("message.delta", {"content_delta": "x" * 300})] * 3000])
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id, "follow=false"))
    assert [event["seq"] for event in events(raw.body)] == list(range(1, 3002))


# --- types and relay.position ----------------------------------------------------------------------------------------
async def test_types_let_through_only_what_matches(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, DELTA, ("tool.call", {"tool_call_id": "t"}), DELTA, DONE])
    async with running(upstream.url, redis_url) as relay:
        for query, expected in {
            "types=run.*": [1, 5],
            "types=tool.call,run.completed": [3, 5],
            "types=*": [1, 2, 3, 4, 5],
            "types=*.delta": [2, 4],
            "types=": [1, 2, 3, 4, 5],
            "types=nothing": [],
        }.items():
            raw = await fetch(relay.url, target(run_id, query))
            assert [event["seq"] for event in events(raw.body)] == expected, query
            [(at, _)] = notices(raw.body, "relay.end")
            assert at == "5"


async def test_a_type_in_native_words_matches_what_the_upstream_calls_otherwise(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED, ("run.input_requested", {"request_id": "r"}), DONE])
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id, "types=run.waiting_for_input"))
        [event] = events(raw.body)
        assert (event["type"], event["upstream_type"]) == ("run.waiting_for_input", "run.input_requested")
        raw = await fetch(relay.url, target(run_id, "types=run.input_requested"))
        assert events(raw.body) == []


async def test_position_is_told_while_filtered_events_pass(upstream: ScriptedUpstream, redis_url: str) -> None:
    """A reader that nothing passed to still learns where it stands: `id:` moves, as a frame `onmessage` never sees."""
    run_id = upstream.add_run([DELTA, DELTA, DELTA])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id, "types=run.*"))
        await raw.until(b"relay.position")
        await raw.until(b"\n\n")
        assert (at := notices(raw.body, "relay.position")[-1]) == ("3", {"seq": 3}), at
        assert events(raw.body) == []


async def test_position_is_told_when_filtered_events_follow_one_that_passed(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """The last `id:` the client got is that of the event that passed (1), not of the batch that brought it (5)."""
    run_id = upstream.add_run([STARTED, DELTA, DELTA, DELTA, DELTA])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id, "types=run.*"))
        await raw.until(b'data: {"seq":5}\n\n')
        assert notices(raw.body, "relay.position") == [("5", {"seq": 5})]


async def test_position_closes_a_filtered_read_that_does_not_follow(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, DELTA, DELTA])
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id, "types=run.*&follow=false"))
    assert [event["seq"] for event in events(raw.body)] == [1]
    assert notices(raw.body, "relay.position") == [("3", {"seq": 3})]


async def test_a_reader_without_a_filter_gets_no_position(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id))
    assert b"relay.position" not in raw.body


# --- the end ---------------------------------------------------------------------------------------------------------
async def test_the_end_carries_id_and_retry_and_a_proper_last_chunk(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id))
    last = frames(raw.body)[-1]
    assert last.keys() == {"id", "event", "retry", "data"}
    assert (last["id"], last["event"]) == ("3", "relay.end")
    assert 1000 <= int(last["retry"]) <= 10000
    assert json.loads(last["data"]) == {"last_seq": 3, "status": "completed"}
    assert raw.finished
    assert raw.raw_body.endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled", "interrupted"])
async def test_the_end_says_how_the_run_ended(upstream: ScriptedUpstream, redis_url: str, kind: str) -> None:
    run_id = upstream.add_run([STARTED, (f"run.{kind}", {})])
    async with running(upstream.url, redis_url) as relay:
        assert await sealed(relay, run_id) == {"last_seq": 2, "status": kind}


async def test_a_nested_end_is_no_end(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, ("run.completed", {"delegate_layer": "acp"})])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id))
        await raw.until(b"id: 2\n")
        upstream.append(run_id, "run.failed", {"error_class": "x"})
        await raw.answer()
        assert notices(raw.body, "relay.end") == [("3", {"last_seq": 3, "status": "failed"})]


async def test_trailing_events_come_before_the_end(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, ingest={"linger_s": 0.6}) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id))
        await raw.until(b"id: 1\n")
        upstream.finish(run_id)
        await raw.until(b"id: 2\n")
        upstream.append(run_id, "thread.title.updated", {"title": "late"})
        await raw.answer()
    assert [event["seq"] for event in events(raw.body)] == [1, 2, 3]
    assert notices(raw.body, "relay.end") == [("3", {"last_seq": 3, "status": "completed"})]


# --- 204 -------------------------------------------------------------------------------------------------------------
async def test_204_only_for_a_last_event_id_with_nothing_left_of_a_sealed_run(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        await sealed(relay, run_id)
        for at in ("3", "4", "9223372036854775807"):
            raw = await fetch(relay.url, target(run_id), {"Last-Event-ID": at})
            assert raw.status == 204, at
            assert raw.raw_body == b""
            assert "x-trace-id" in raw.headers
        for at in ("2", "0"):
            raw = await fetch(relay.url, target(run_id), {"Last-Event-ID": at})
            assert raw.status == 200, at
            assert [event["seq"] for event in events(raw.body)] == list(range(int(at) + 1, 4))
        raw = await fetch(relay.url, target(run_id, "after_seq=3"), {"Last-Event-ID": "1"})
        assert raw.status == 204  # the cursor is the larger one


async def test_without_the_header_a_finished_run_answers_200_and_the_end(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        await sealed(relay, run_id)
        for query, headers in (("after_seq=3", {}), ("after_seq=3", {"Last-Event-ID": ""}), ("after_seq=99", {})):
            raw = await fetch(relay.url, target(run_id, query), headers)
            assert raw.status == 200
            assert events(raw.body) == []
            assert notices(raw.body, "relay.end") == [("3", {"last_seq": 3, "status": "completed"})]
            assert raw.finished


async def test_no_204_while_the_run_goes_on(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, DELTA])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id), {"Last-Event-ID": "2"})
        await raw.until(b": ping\n")
        assert raw.status == 200
        upstream.finish(run_id)
        await raw.until(b"id: 3\n")


async def test_204_is_for_event_streams_only(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        await sealed(relay, run_id)
        page = await fetch(relay.url, target(run_id), {"Last-Event-ID": "3", "Accept": "application/json"})
        assert (page.status, page.json()) == (200, {"events": [], "next_after_seq": 3, "ended": True})
        lines = await fetch(relay.url, target(run_id), {"Last-Event-ID": "3", "Accept": "application/x-ndjson"})
        assert lines.status == 200


# --- heartbeats ------------------------------------------------------------------------------------------------------
async def test_silence_is_filled_with_comments(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, delivery={"heartbeat_s": 1.0}) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id))
        await raw.until(b"id: 1\n")
        await raw.until(b"\n\n: ping\n: ping\n")
        assert raw.body.count(b"\n\n") == 1  # comments end in one LF: with two, clients deliver an empty event


async def test_httpx_sse_sees_no_empty_event_over_a_whole_run(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    seen: list[httpx_sse.ServerSentEvent] = []
    pings = 0
    async with running(upstream.url, redis_url, delivery={"heartbeat_s": 1.0}) as relay:
        async with httpx.AsyncClient(timeout=20) as client, connection(relay.url) as watch:
            await watch.ask(target(run_id))  # tells when two heartbeats have passed
            async with httpx_sse.aconnect_sse(client, "GET", relay.events(run_id)) as source:
                assert source.response.status_code == 200
                async with asyncio.TaskGroup() as tasks:

                    async def rest_of_the_run() -> None:
                        nonlocal pings
                        await watch.until(b"\n\n: ping\n: ping\n")
                        upstream.append(run_id, *DELTA)
                        await watch.until(b"id: 2\n")
                        upstream.finish(run_id)

                    tasks.create_task(rest_of_the_run())
                    async for event in source.aiter_sse():
                        seen.append(event)
    assert [(one.event, one.id) for one in seen] == [
        ("message", "1"),
        ("message", "2"),
        ("message", "3"),
        ("relay.end", "3"),
    ]
    assert all(one.data for one in seen)
    assert [json.loads(one.data)["seq"] for one in seen[:3]] == [1, 2, 3]


# --- mid-run ---------------------------------------------------------------------------------------------------------
async def drain_while(upstream: ScriptedUpstream, redis_url: str, version: str) -> Raw:
    """A connection that was open, mid-run, when the relay was told to stop; read to its end."""
    run_id = upstream.add_run([STARTED])
    async with AsyncExitStack() as outer:
        async with running(upstream.url, redis_url) as relay:
            raw = await outer.enter_async_context(connection(relay.url))
            await raw.ask(target(run_id), version=version)
            await raw.until(b"id: 1\n")
            await raw.until(b"\n\n")
        await raw.rest()
    return raw


async def test_a_stream_that_is_ended_mid_run_has_no_last_chunk(upstream: ScriptedUpstream, redis_url: str) -> None:
    raw = await drain_while(upstream, redis_url, "1.1")
    assert not raw.finished
    assert b"0\r\n\r\n" not in raw.raw_body
    [(at, goodbye)] = notices(raw.body, "relay.goodbye")
    assert at is None
    assert goodbye["code"] == "drain"
    assert goodbye["reconnect"] is True
    assert frames(raw.body)[-1]["retry"] == str(goodbye["after_ms"])


async def test_http_1_0_is_not_chunked_and_ended_by_a_reset_mid_run(upstream: ScriptedUpstream, redis_url: str) -> None:
    raw = await drain_while(upstream, redis_url, "1.0")
    assert "transfer-encoding" not in raw.headers
    assert raw.body.startswith(b": ping\nid: 1\ndata: {")
    assert raw.was_reset  # a FIN would say: this is the whole body


async def test_http_1_0_ends_with_the_connection_at_the_end(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id), version="1.0")
        await raw.rest()
    assert not raw.was_reset
    assert "transfer-encoding" not in raw.headers
    assert "content-length" not in raw.headers
    assert [event["seq"] for event in events(raw.body)] == [1, 2, 3]
    assert len(notices(raw.body, "relay.end")) == 1


async def test_a_viewer_that_leaves_harms_nobody(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as stays:
        await stays.ask(target(run_id))
        await stays.until(b"id: 1\n")
        for _ in range(20):
            async with connection(relay.url) as raw:
                await raw.ask(target(run_id))
                await raw.until(b"id: 1\n")
        upstream.append(run_id, *DELTA)
        await stays.until(b"id: 2\n")
        assert upstream.max_following(run_id) == 1


async def test_a_relay_told_to_stop_while_a_run_is_being_claimed_stops(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """The viewer is answered before the pump has its lease: whatever the pump is at, it must hear that it is over."""
    for _ in range(5):
        run_id = upstream.add_run([STARTED])
        async with asyncio.timeout(60):
            async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
                await raw.ask(target(run_id))
                await raw.until(b": ping\n")


# --- too many --------------------------------------------------------------------------------------------------------
async def test_a_full_house_refuses_before_the_200_and_evicts_nobody(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, limits={"connections": 1}) as relay, connection(relay.url) as first:
        await first.ask(target(run_id))
        await first.until(b"id: 1\n")
        for accept in ("text/event-stream", "application/x-ndjson"):
            raw = await fetch(relay.url, target(run_id), {"Accept": accept})
            assert raw.status == 503
            assert raw.json()["code"] == "limits.connections"
            assert 1 <= int(raw.headers["retry-after"]) <= 60
        page = await fetch(relay.url, target(run_id), {"Accept": "application/json"})
        assert page.status == 200  # a page holds no stream
        upstream.append(run_id, *DELTA)
        await first.until(b"id: 2\n")


async def test_the_limit_also_holds_for_viewers_that_come_at_the_same_instant(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, limits={"connections": 5}) as relay:

        async def open_one() -> tuple[int, aiohttp.ClientResponse]:
            response = await relay.session.get(relay.events(run_id))
            return response.status, response

        opened = await asyncio.gather(*(open_one() for _ in range(40)))
        await upstream.until(lambda: upstream.following(run_id) == 1)
        for _, response in opened:
            response.close()
    assert sorted(status for status, _ in opened) == [200] * 5 + [503] * 35


# --- representations -------------------------------------------------------------------------------------------------
SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, SSE),
        ("", SSE),
        ("*/*", SSE),
        ("text/event-stream", SSE),
        ("TEXT/Event-Stream", SSE),
        ("text/event-stream; charset=utf-8", SSE),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", SSE),
        ("application/json", JSON),
        ("application/x-ndjson", NDJSON),
        ("application/x-ndjson, */*;q=0.1", NDJSON),
        ("application/json;q=0.1, text/event-stream", SSE),
        ("application/json, text/event-stream;q=0", JSON),
        ("text/event-stream;q=0, application/json", JSON),
    ],
)
async def test_accept_chooses_the_representation(
    upstream: ScriptedUpstream, redis_url: str, accept: str | None, content_type: str
) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id), {} if accept is None else {"Accept": accept})
    assert (raw.status, raw.headers["content-type"]) == (200, content_type)


@pytest.mark.parametrize(
    "accept", ["image/png", "text/html", "application/xml, text/plain", "x", "text/*, text/event-stream;q=0"]
)
async def test_an_accept_we_cannot_serve_is_406(upstream: ScriptedUpstream, redis_url: str, accept: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target("r"), {"Accept": accept})
    assert raw.status == 406
    assert raw.json()["trace_id"] == raw.headers["x-trace-id"]
    assert upstream.requests == []


async def test_a_page_holds_events_next_cursor_and_whether_it_is_the_end(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED, *[DELTA] * 5, DONE])
    accept = {"Accept": "application/json"}
    async with running(upstream.url, redis_url) as relay:
        await sealed(relay, run_id)
        at, pages = 0, []
        while not pages or not pages[-1]["ended"]:
            raw = await fetch(relay.url, target(run_id, f"limit=3&after_seq={at}"), accept)
            assert raw.headers["cache-control"].startswith("public, max-age=")  # tests/web/test_snapshots.py
            pages.append(raw.json())
            at = pages[-1]["next_after_seq"]
        assert [[event["seq"] for event in page["events"]] for page in pages] == [[1, 2, 3], [4, 5, 6], [7]]
        assert [page["next_after_seq"] for page in pages] == [3, 6, 7]
        assert [page["ended"] for page in pages] == [False, False, True]
        assert all(page.keys() == {"events", "next_after_seq", "ended"} for page in pages)
        filtered = (await fetch(relay.url, target(run_id, "types=run.*"), accept)).json()
        assert [event["seq"] for event in filtered["events"]] == [1, 7]
        assert filtered["next_after_seq"] == 7
        beyond = (await fetch(relay.url, target(run_id, "after_seq=99"), accept)).json()
        assert beyond == {"events": [], "next_after_seq": 99, "ended": True}


async def test_a_page_of_a_run_that_goes_on_is_not_the_end(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, DELTA])
    async with running(upstream.url, redis_url) as relay:
        page = (await fetch(relay.url, target(run_id), {"Accept": "application/json"})).json()
        assert [event["seq"] for event in page["events"]] == [1, 2]
        assert (page["next_after_seq"], page["ended"]) == (2, False)
        page = (await fetch(relay.url, target(run_id, "after_seq=2"), {"Accept": "application/json"})).json()
        assert page == {"events": [], "next_after_seq": 2, "ended": False}


async def test_a_page_waits_for_its_first_event_but_not_longer_than_asked(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED])
    clock = asyncio.get_running_loop().time
    async with running(upstream.url, redis_url) as relay:
        began = clock()
        raw = await fetch(relay.url, target(run_id, "after_seq=1&wait=0.5"), {"Accept": "application/json"})
        assert raw.json()["events"] == []
        assert 0.5 <= clock() - began < 30
        async with connection(relay.url) as waiting, connection(relay.url) as other:
            await waiting.ask(target(run_id, "after_seq=1&wait=60"), {"Accept": "application/json"})
            await other.ask(target(run_id))
            await other.until(b"id: 1\n")
            upstream.append(run_id, *DELTA)
            await waiting.answer()
            assert [event["seq"] for event in waiting.json()["events"]] == [2]
            assert waiting.json()["next_after_seq"] == 2


async def test_a_waiting_page_is_told_the_end_at_once(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as waiting:
        await waiting.ask(target(run_id, "after_seq=2&wait=60"), {"Accept": "application/json"})
        async with connection(relay.url) as other:
            await other.ask(target(run_id))
            await other.until(b"id: 1\n")
            upstream.finish(run_id)
            await waiting.answer()
    assert waiting.json() == {"events": [], "next_after_seq": 2, "ended": True}


async def test_ndjson_is_one_event_a_line_and_ends_with_the_end(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id), {"Accept": "application/x-ndjson"})
    assert raw.finished
    lines = [json.loads(line) for line in raw.body.split(b"\n") if line]
    assert [line["type"] for line in lines] == ["run.started", "message.delta", "run.completed", "relay.end"]
    assert lines[-1]["last_seq"] == 3
    assert raw.headers["cache-control"] == "no-store"


async def test_the_native_face_is_also_at_native(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, "/native" + target(run_id))
        assert [event["seq"] for event in events(raw.body)] == [1, 2, 3]


# --- WebSocket -------------------------------------------------------------------------------------------------------
async def test_websocket_sends_each_event_as_text_and_closes_1000_after_the_end(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        async with relay.session.ws_connect(relay.events(run_id)) as socket:
            seen = [json.loads(await socket.receive_str(timeout=60)) for _ in range(4)]
            assert (await socket.receive(timeout=60)).type is aiohttp.WSMsgType.CLOSE
    assert [one.get("seq") for one in seen] == [1, 2, 3, None]
    assert seen[3] == {"type": "relay.end", "last_seq": 3, "status": "completed"}
    assert socket.close_code == 1000


async def test_websocket_is_told_to_come_back_when_we_drain(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with aiohttp.ClientSession() as session:
        async with running(upstream.url, redis_url) as relay:
            socket = await session.ws_connect(relay.events(run_id))
            assert json.loads(await socket.receive_str(timeout=60))["seq"] == 1
            listening = asyncio.create_task(goodbye_of(socket))
        said = await listening
    assert said[-1]["type"] == "relay.goodbye"
    assert said[-1]["code"] == "drain"
    assert socket.close_code == 1012


async def goodbye_of(socket: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    return [json.loads(message.data) async for message in socket]


async def test_a_client_that_talks_too_much_on_a_websocket_is_cut(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay:
        async with relay.session.ws_connect(relay.events(run_id)) as socket:
            await socket.send_str("x" * 100_000)
            async with asyncio.timeout(60):
                async for _ in socket:
                    pass
            assert socket.close_code == 1009
        raw = await fetch(relay.url, target(run_id, "follow=false"))
        assert raw.status == 200
