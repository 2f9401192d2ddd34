"""The demo upstream speaks the Arkloop wire, byte for byte (arkloop.md; the section is in each test's name or comment)."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.demo import wire
from relay.demo.recording import RecordingError, read_recording
from relay.demo.runs import SCRIPTS
from relay.demo.script import Script, Step, ask, completed, say, script, started, title
from relay.demo.upstream import DemoUpstream
from tests.support.needs import recordings

FAST = 10_000.0
SHORT = script("short", started(persona="short"), say("One word more."), completed(input_tokens=3, output_tokens=4))


@pytest.fixture
async def up() -> AsyncIterator[DemoUpstream]:
    async with DemoUpstream(token="secret", heartbeat_s=0.05, speed=FAST) as upstream:
        yield upstream


@pytest.fixture
async def http(up: DemoUpstream) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": "Bearer secret"}
    async with httpx.AsyncClient(base_url=up.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


async def drained(http: httpx.AsyncClient, run_id: str, after_seq: int | str = 0) -> list[dict[str, Any]]:
    answer = await http.get(f"/v1/runs/{run_id}/events", params={"after_seq": after_seq, "follow": "false"})
    assert answer.status_code == 200, answer.text
    return [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: ")]


async def finished(up: DemoUpstream, chosen: Script = SHORT) -> str:
    run_id = up.play(chosen)
    await up.played(run_id)
    return run_id


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# ── frames (2.2) ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_frame_bytes_are_those_of_the_real_server(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_id = up.play(Script("one", (Step("message.delta", {"role": "assistant", "content_delta": "a < b & é\u2028"}),)))
    answer = await http.get(f"/v1/runs/{run_id}/events?follow=false")
    frame = re.compile(
        rb'id: 1\nevent: message\.delta\ndata: {"data":{"content_delta":"a \\u003c b \\u0026 \xc3\xa9\\u2028",'
        rb'"role":"assistant"},"event_id":"[0-9a-f-]{36}","run_id":"%b","seq":1,'
        rb'"ts":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,2}[1-9])?Z","type":"message.delta"}\n\n' % run_id.encode()
    )
    assert frame.fullmatch(answer.content)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-trace-id"])


@pytest.mark.parametrize(
    ("microseconds", "written"),
    [(0, "07Z"), (120_000, "07.12Z"), (123_999, "07.123Z"), (900, "07Z"), (50_000, "07.05Z")],
)
def test_ts_has_three_decimals_with_trailing_zeros_cut(microseconds: int, written: str) -> None:
    at = datetime(2026, 4, 26, 5, 19, 7, microseconds, tzinfo=timezone(timedelta(hours=2)))
    assert wire.timestamp(at) == f"2026-04-26T03:19:{written}"


async def test_envelope_names_tool_and_error_class(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    events = await drained(http, await finished(up, SCRIPTS["failing"]))
    assert {event["tool_name"] for event in events if event["type"].startswith("tool.")} == {
        "gauge.read",
        "chart.render",
    }
    assert events[-1]["error_class"] == events[-1]["data"]["error_class"] == "tool.unavailable"
    assert all("tool_name" not in event for event in events if not event["type"].startswith("tool."))


# ── replay, follow, end (2.4) ───────────────────────────────────────────────────────────────────────────────────


async def test_follow_begins_with_a_ping_pings_in_silence_and_outlives_the_end(
    up: DemoUpstream, http: httpx.AsyncClient
) -> None:
    run_id = await finished(up)
    body = b""
    async with http.stream("GET", f"/v1/runs/{run_id}/events") as answer:
        async for piece in answer.aiter_raw():
            body += piece
            if body.count(wire.PING) == 4:
                break
    assert body.startswith(b": ping\n\nid: 1\nevent: run.started\n")
    assert b"run.completed" in body
    assert body.endswith(wire.PING * 3)


async def test_drain_sends_what_is_after_the_cursor_and_ends(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_id = await finished(up)
    seqs = [event["seq"] for event in await drained(http, run_id)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert [event["seq"] for event in await drained(http, run_id, 2)] == seqs[2:]
    assert await drained(http, run_id, 10**9) == []


async def test_follower_and_late_joiner_see_the_same_run(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_id = up.play(SCRIPTS["writer"], speed=100)
    live: list[dict[str, Any]] = []
    async with http.stream("GET", f"/v1/runs/{run_id}/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                live.append(json.loads(line[6:]))
            if live and live[-1]["type"] == "thread.title.updated":
                break
    assert live == await drained(http, run_id)


@pytest.mark.parametrize(
    ("text", "seq"),
    [("", 0), ("12abc", 12), ("5.9", 5), ("+5", 5), ("0x10", 0), ("007", 7), (str(2**63 - 1), 2**63 - 1)],
)
def test_after_seq_is_scanned_as_go_does(text: str, seq: int) -> None:
    assert wire.after_seq(text) == seq


@pytest.mark.parametrize(
    "query", ["after_seq=-1", "after_seq=abc", f"after_seq={2**63}", "follow=yes", "follow=TRUE", "after_seq=٣"]
)
async def test_bad_stream_query_is_refused_before_the_stream(
    up: DemoUpstream, http: httpx.AsyncClient, query: str
) -> None:
    answer = await http.get(f"/v1/runs/{await finished(up)}/events?{query}")
    assert code(answer) == (422, "validation.error")


async def test_stop_aborts_open_streams() -> None:
    upstream = DemoUpstream(speed=FAST)
    await upstream.start()
    run_id = upstream.play(SHORT)
    async with httpx.AsyncClient(base_url=upstream.url, timeout=60, trust_env=False) as http:
        async with http.stream("GET", f"/v1/runs/{run_id}/events") as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            await upstream.stop()
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                async for _ in pieces:
                    pass


# ── who may come in, and what is there (1.1) ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (None, "auth.missing_token"),
        ("Basic c2VjcmV0", "auth.invalid_authorization"),
        ("Bearer", "auth.invalid_authorization"),
        ("Bearer wrong", "auth.invalid_token"),
    ],
)
async def test_wrong_tokens_are_refused(up: DemoUpstream, authorization: str | None, expected: str) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with httpx.AsyncClient(base_url=up.url, trust_env=False) as http:
        answer = await http.get("/v1/runs", headers=headers)
    assert code(answer) == (401, expected)
    assert list(answer.json()) == ["code", "message", "trace_id"]
    assert answer.json()["trace_id"] == answer.headers["x-trace-id"]


async def test_checks_come_in_the_order_of_the_real_server(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    absent = uuid.uuid4()
    nobody = {"Authorization": ""}
    assert code(await http.get("/v1/runs/not-a-uuid/nonsense", headers=nobody)) == (422, "validation.error")
    assert code(await http.get(f"/v1/runs/{absent}/cancel", headers=nobody)) == (404, "http.not_found")
    assert code(await http.delete(f"/v1/runs/{absent}", headers=nobody)) == (405, "http.method_not_allowed")
    assert code(await http.get(f"/v1/runs/{absent}?x", headers=nobody)) == (401, "auth.missing_token")
    assert code(await http.get(f"/v1/runs/{absent}/events?follow=what")) == (404, "runs.not_found")
    assert code(await http.get("/v2/anything")) == (404, "http.not_found")


async def test_run_ids_are_read_as_uuid_parse_does(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_id = await finished(up)
    for spelled in (run_id, run_id.replace("-", ""), run_id.upper(), f"urn:uuid:{run_id}".replace(":", "%3A")):
        answer = await http.get(f"/v1/runs/{spelled}/")
        # The action is split at the first colon, so the URN form never arrives whole.
        assert answer.status_code == (422 if spelled.startswith("urn") else 200), spelled


# ── JSON calls (1.2 to 1.7) ─────────────────────────────────────────────────────────────────────────────────────


async def test_post_starts_the_run_its_persona_names(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/threads/t1/runs", json={"persona_id": "failing@2"})
    assert answer.status_code == 201
    assert set(answer.json()) == {"run_id", "trace_id"}
    run_id = answer.json()["run_id"]
    assert (await drained(http, run_id))[0]["type"] == "run.started"
    await up.played(run_id)
    run = (await http.get(f"/v1/runs/{run_id}")).json()
    assert (run["status"], run["thread_id"]) == ("failed", "t1")


async def test_posts_without_a_persona_take_the_scripts_in_turn(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_ids = [(await http.post("/v1/threads/t/runs")).json()["run_id"] for _ in range(3)]
    firsts = [(await drained(http, run_id))[0]["data"]["persona_id"] for run_id in run_ids]
    assert firsts == ["writer", "asks", "failing"]
    listed = (await http.get("/v1/threads/t/runs?limit=2")).json()
    assert len(listed) == 2
    assert set(listed[0]) == {"run_id", "status", "created_at"}


@pytest.mark.parametrize("body", [b'{"nonsense": 1}', b'{"persona_id": 3}', b'{"persona_id": "-x"}', b"[1]", b"{"])
async def test_bad_post_bodies_are_refused(http: httpx.AsyncClient, body: bytes) -> None:
    assert code(await http.post("/v1/threads/t/runs", content=body)) == (422, "validation.error")


async def test_run_list_is_offset_paged_and_filtered(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_ids = [await finished(up) for _ in range(3)] + [await finished(up, SCRIPTS["failing"])]
    for row, run_id in enumerate(run_ids):
        up.ledger.get(run_id).created_at = datetime(2026, 1, 1 + row, tzinfo=UTC)  # type: ignore[union-attr]
    page = (await http.get("/v1/runs?limit=2&offset=1")).json()
    assert [item["run_id"] for item in page["data"]] == run_ids[1:3][::-1]
    assert page["total"] == 4
    failures = (await http.get("/v1/runs?status=failed")).json()
    assert [item["run_id"] for item in failures["data"]] == [run_ids[3]]
    assert "org_id" not in failures["data"][0]
    assert {"account_id", "failed_at", "duration_ms"} < failures["data"][0].keys()
    assert None not in page["data"][0].values()
    assert page["data"][0]["total_input_tokens"] == 3
    assert (await http.get(f"/v1/runs?run_id={run_ids[0][:8]}&since=2025-12-31T00:00:00Z")).json()["total"] == 1
    assert code(await http.get("/v1/runs?limit=201")) == (422, "validation.error")


async def test_cancel_needs_a_body_and_ends_the_run(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_id = up.play(SCRIPTS["writer"], speed=0.01)
    for body in (b"", b"{}", b'{"last_seen_seq": -1}', b'{"last_seen_seq": 1, "x": 2}', b'{"last_seen_seq": true}'):
        assert code(await http.post(f"/v1/runs/{run_id}:cancel", content=body)) == (422, "validation.error")
    for _ in range(2):  # idempotent
        assert (await http.post(f"/v1/runs/{run_id}:cancel", json={"last_seen_seq": 1})).json() == {"ok": True}
    await up.played(run_id)
    events = await drained(http, run_id)
    assert [event["type"] for event in events] == ["run.started", "run.cancel_requested", "run.cancelled"]
    assert events[1]["data"]["visible_seq_cutoff"] == 1
    assert (await http.get(f"/v1/runs/{run_id}")).json()["status"] == "cancelled"


async def test_input_is_checked_told_and_awaited(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    question = ask("r", "Well?", answer="auto", patience_s=1e9)
    run_id = up.play(script("q", started(persona="q"), question, completed(input_tokens=1, output_tokens=1)))
    run = up.ledger.get(run_id)
    assert run is not None
    assert await run.until(lambda run: run.last_seq == 2, 60)
    for content in ("", "  ", "é" * 16_385, 7):
        assert code(await http.post(f"/v1/runs/{run_id}/input", json={"content": content})) == (422, "validation.error")
    assert (await http.post(f"/v1/runs/{run_id}/input", json={"content": "é" * 16_384})).json() == {"ok": True}
    await up.played(run_id)
    assert [event["type"] for event in await drained(http, run_id)][1:] == [
        "run.input_requested", "run.input_provided", "run.completed",
    ]  # fmt: skip
    assert code(await http.post(f"/v1/runs/{run_id}/input", json={"content": "late"})) == (409, "runs.not_active")


# ── the runs themselves ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_of_a_size_to_watch(name: str) -> None:
    steps = SCRIPTS[name].steps
    assert 70 <= len(steps) <= 150
    deltas = [step.dt_ms for step in steps if step.type == "message.delta"]
    assert all(20 <= pace <= 40 for pace in deltas)


async def test_a_nested_end_does_not_end_the_run(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    events = await drained(http, await finished(up, SCRIPTS["writer"]))
    ends = [event for event in events if event["type"] == "run.completed"]
    assert [event["data"].get("delegate_layer") for event in ends] == ["acp", None]
    assert "assistant_message" not in ends[0]["data"]
    spoken = "".join(
        event["data"]["content_delta"]
        for event in events
        if event["type"] == "message.delta" and "channel" not in event["data"]
    )
    assert ends[1]["data"]["assistant_message"]["content"] == spoken
    assert events[-1]["type"] == "thread.title.updated"
    assert any(event["data"].get("channel") == "thinking" for event in events)


async def test_streamed_arguments_add_up_to_the_call(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    events = await drained(http, await finished(up, SCRIPTS["asks"]))
    for call in (event["data"] for event in events if event["type"] == "tool.call"):
        streamed = "".join(
            event["data"]["arguments_delta"]
            for event in events
            if event["type"] == "tool.call.delta" and event["data"]["tool_call_id"] == call["tool_call_id"]
        )
        assert json.loads(streamed) == call["arguments"]


async def test_an_unanswered_question_answers_itself(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    events = await drained(http, await finished(up, SCRIPTS["asks"]))
    at = [event["type"] for event in events].index("run.input_requested")
    assert events[at + 1]["type"] == "run.input_provided"
    assert events[at + 1]["data"]["content"] == "One of us is vegetarian."


async def test_a_broken_script_is_told_by_stop() -> None:
    upstream = DemoUpstream()
    await upstream.start()
    run_id = upstream.play(Script("bad", (Step("run.started"), Step("message.delta", {"x": object()}))), speed=FAST)
    with pytest.raises(TypeError):
        await upstream.played(run_id)
    with pytest.raises(TypeError):
        await upstream.stop()


# ── recordings ──────────────────────────────────────────────────────────────────────────────────────────────────


def recorded(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


async def test_a_recording_plays_as_it_was(up: DemoUpstream, http: httpx.AsyncClient, tmp_path: Path) -> None:
    rows = [
        {"seq": 1, "type": "run.started", "data": {"model": "m"}, "dt_ms": 0},
        {"seq": 4, "type": "message.delta", "data": {"content_delta": "line\u2028sep"}, "dt_ms": 1.5},
        {"seq": 5, "type": "run.completed", "data": {}, "dt_ms": 2},
    ]
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    events = await drained(http, await finished(up, read_recording(path)))
    assert [(event["seq"], event["type"], event["data"]) for event in events] == [
        (row["seq"], row["type"], row["data"]) for row in rows
    ]


GOOD = {"seq": 1, "type": "run.started", "data": {}, "dt_ms": 0}


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ([], "line 2: not an object"),
        ({**GOOD, "seq": "2"}, "line 2: `seq` is missing or wrong: '2'"),
        ({**GOOD, "seq": True}, "line 2: `seq` is missing or wrong: True"),
        ({**GOOD, "seq": 2, "type": None}, "line 2: `type` is missing or wrong: None"),
        ({**GOOD, "seq": 2, "dt_ms": -1}, "line 2: seq must be at least 1 and dt_ms at least 0"),
        (GOOD, "line 2: seq 1 does not follow 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: object, complaint: str) -> None:
    with pytest.raises(RecordingError, match=re.escape(complaint)):
        read_recording(recorded(tmp_path / "run.jsonl", GOOD, bad))


def test_an_empty_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no events"):
        read_recording(recorded(tmp_path / "run.jsonl", ""))


def test_all_shared_recordings_can_be_read() -> None:
    lengths = {path.stem: len(read_recording(path).steps) for path in recordings().glob("*.jsonl")}
    assert lengths["long-answer"] == 817
    assert lengths["provider-error"] == 2


async def test_title_names_the_thread(up: DemoUpstream, http: httpx.AsyncClient) -> None:
    run_id = up.play(Script("t", (Step("run.started"), title("New"))), thread_id="t9")
    await up.played(run_id)
    assert (await drained(http, run_id))[-1]["data"] == {"thread_id": "t9", "title": "New"}
