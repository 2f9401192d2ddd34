"""Arkloop's envelope -> native events (Arkloop reference §2.2, §2.8; design.md §4): every type, and hostile ones."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.events import MAX_SEQ, Draft
from relay.core.run import Run
from relay.core.sse import Decoder, Message
from relay.providers.arkloop.events import drafts
from tests.support.needs import ROOT

AT = "2026-04-26T03:19:07.12Z"
RECEIVED = "2026-04-26T03:19:09Z"

TYPES: dict[str, dict[str, Any]] = {
    # terminal
    "run.completed": {"usage": {"input_tokens": 3}, "cost": 0.1, "assistant_message": "hi", "trace_id": "t"},
    "run.failed": {"error_class": "x", "message": "m", "details": {"a": 1}},
    "run.cancelled": {"trace_id": "t"},
    "run.interrupted": {"error_class": "x", "message": "m"},
    # lifecycle
    "run.started": {"route_id": "r", "persona_id": "p", "model": "m", "thread_tail_message_id": None},
    "run.route.selected": {"route_id": "r"},
    "run.cancel_requested": {"last_seen_seq": 3},
    "run.input_requested": {"request_id": "q", "message": "?", "requestedSchema": {"type": "object"}},
    "run.input_provided": {"content": "x"},
    "run.paused": {},
    "run.resumed": {"reason": "input", "request_id": "q"},
    "run.steering_injected": {"n": 1},
    "run.idle_heartbeat": {},
    "run.llm.retry": {"attempt": 2},
    "run.provider_fallback": {"from": "a", "to": "b"},
    "run.context_compact": {"op": "x", "phase": "start"},
    "run.prompt_cache_debug": {"hits": [1, 2]},
    "run.mcp_discovery": {"servers": []},
    "run.channel_delivery_failed": {"channel": "c"},
    "worker.job.received": {"job_id": "j"},
    # output
    "message.delta": {"content_delta": "héllo\n", "role": "assistant", "channel": "thinking"},
    "run.segment.start": {"segment_id": "s", "kind": "k", "display": {"mode": "m", "label": "l"}},
    "run.segment.end": {"segment_id": "s"},
    "llm.turn.completed": {"usage": {}},
    "llm.request": {"input": [{"role": "user", "content": "x" * 5000}], "payload": {}},
    "llm.response.chunk": {"raw": {"a": None}},
    # tools
    "tool.call": {"tool_call_id": "c", "tool_name": "t", "arguments": {"q": "x"}},
    "tool.call.delta": {"tool_call_index": 0, "arguments_delta": '{"q'},
    "tool.result": {"tool_call_id": "c", "tool_name": "t", "result": {"ok": True}, "usage": {}},
    "tool.denied": {"tool_call_id": "c"},
    "todo.updated": {"todos": [{"text": "x", "done": False}]},
    "terminal.stdout_delta": {"session_ref": "s", "chunk": "\u001b[0m"},
    "terminal.stderr_delta": {"session_ref": "s", "chunk": "x"},
    "terminal.stdin_expected": {"session_ref": "s"},
    "terminal.stdin_interaction": {"session_ref": "s"},
    "acp.permission_required": {"options": []},
    # thread
    "thread.title.updated": {"thread_id": "t", "title": "A <title> & more"},
    **{f"title.generation.{name}": {"n": 1} for name in ("started", "completed", "failed", "skipped")},
    # memory
    **{f"memory.{kind}.{name}": {} for kind in ("write", "edit", "forget") for name in ("queued", "completed", "failed")},
    **{
        f"memory.distill.{name}": {}
        for name in ("started", "skipped", "append_failed", "commit_failed", "committed", "snapshot_updated", "snapshot_pending")  # noqa: E501
    },
    "memory.notebook_unavailable": {},
    "notebook.snapshot.read_failed": {},
    "memory.heartbeat.started": {},
    # security
    **{f"security.scan.{name}": {} for name in ("started", "clean", "degraded")},
    "security.injection.detected": {"score": 0.93},
    "security.injection.blocked": {},
    **{f"security.tool_output.{name}": {} for name in ("detected", "clean", "degraded")},
    "security.tool_injection.detected": {},
    # desktop, slow stages
    **{
        f"run.{name}": {"ms": 12}
        for name in (
            "input_loader", "heartbeat_schedule", "tool_provider_bindings", "spawn_agent", "persona_resolution",
            "channel_context", "channel_admin_tag", "channel_group_user_merge", "channel_group_context_trim",
            "channel_telegram_tools", "sub_agent_context", "skill_context", "memory_injection", "runtime_context",
        )
    },
    # any plugin may emit any
    "agent.parallel_dispatch": {"n": 3},
    "agent.parallel_complete": {"n": 3},
    "Ein Typ mit Leerzeichen · 🦊": {"a": {"b": [None, True, 1.5]}},
    "relay.end": {"forged": True},
}  # fmt: skip


def one(envelope: dict[str, Any] | bytes, *, event: str = "", last_id: str = "", oversize: int = 0) -> Draft:
    data = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    [draft] = drafts(Message(data, event, last_id, oversize), run_id="r-1", received_at=RECEIVED)
    return draft


def envelope_of(kind: str, data: object, **more: Any) -> dict[str, Any]:
    return {"data": data, "event_id": "e-1", "run_id": "r-1", "seq": 7, "ts": AT, "type": kind, **more}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_passes_with_everything_it_said(kind: str) -> None:
    theirs = envelope_of(kind, TYPES[kind], tool_name="t", error_class="x", odd={"new": [1]})
    draft = one(theirs, event=kind, last_id="7")
    body = draft.body
    native = "run.waiting_for_input" if kind == "run.input_requested" else kind
    assert (draft.seq, draft.type, body["type"]) == (7, native, native)
    assert (body.get("upstream_type") == kind) is (native != kind)
    assert body["created_at"] == AT
    assert body["run_id"] == "r-1"
    added = {"created_at", "upstream_type"}
    assert {name: value for name, value in body.items() if name not in {*added, "type", "data"}} == {
        name: value for name, value in theirs.items() if name not in ("type", "data")
    }
    more = {"content": "héllo\n"} if kind == "message.delta" else {}
    assert body["data"] == {**TYPES[kind], **more}


def test_the_table_holds_every_type_the_reference_lists() -> None:
    for place in (ROOT / "docs" / "upstreams" / "arkloop.md", ROOT.parent / "shared" / "upstreams" / "arkloop.md"):
        section = re.search(r"### 2\.8 .*?(?=### 2\.9)", place.read_text("utf-8"), re.S) if place.exists() else None
        if section is not None:
            break
    else:
        pytest.skip("the Arkloop reference with its section 2.8 is not in this repository")
    listed = set(
        re.findall(r"\b(?:run|tool|message|llm|thread|security|terminal|todo|acp|worker)\.[a-z_.]*[a-z_]\b", section[0])
    )
    assert listed - set(TYPES) - {"run.failed", "tool.injection"} - _families(set(TYPES)) == set()


def _families(types: set[str]) -> set[str]:
    """`security.scan` of `security.scan.started|clean`."""
    return {".".join(kind.split(".")[:n]) for kind in types for n in (1, 2, 3)}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"role": "assistant"},
        {"content_delta": "a", "content": "theirs"},
        {"content_delta": None},
        {"content_delta": ""},
    ],
)
def test_content_is_added_beside_content_delta_and_never_over_theirs(data: dict[str, Any]) -> None:
    body = one(envelope_of("message.delta", data)).body
    expected = dict(data)
    if "content_delta" in data:
        expected.setdefault("content", data["content_delta"])
    assert body["data"] == expected
    assert one(envelope_of("other.delta", data)).body["data"] == data


@pytest.mark.parametrize("data", [None, 1, "text", [], [1], True, 1.5])
def test_data_that_is_no_object_passes_as_it_is(data: object) -> None:
    assert one(envelope_of("x", data)).body["data"] == data
    assert one(envelope_of("message.delta", data)).body["data"] == data
    [event] = Run("r-1", last_seq=6).admit([one(envelope_of("run.completed", data))]).events
    assert event.seq == 7


def test_absent_data_is_an_empty_object() -> None:
    theirs = envelope_of("x", None)
    del theirs["data"]
    assert one(theirs).body["data"] == {}


@pytest.mark.parametrize("type_of_it", [None, 7, [], {}, "", True])
def test_a_type_that_is_no_text_is_read_from_the_event_line(type_of_it: object) -> None:
    assert one(envelope_of("x", {}) | {"type": type_of_it}, event="from.line").type == "from.line"
    assert one(envelope_of("x", {}) | {"type": type_of_it}).type == "unknown"


@pytest.mark.parametrize("seq", [True, False, 0, -1, 2**63, 2**64, 10**40, 1.0, 7.5, "7", None, [], {}])
def test_a_seq_that_is_none_is_read_from_the_id_line(seq: object) -> None:
    assert one(envelope_of("x", {}) | {"seq": seq}, last_id="7").seq == 7
    assert one(envelope_of("x", {}) | {"seq": seq}, last_id="7").body["seq"] == 7
    message = Message(json.dumps(envelope_of("x", {}) | {"seq": seq}).encode(), "", "abc:7", 0)
    assert drafts(message, run_id="r-1", received_at=RECEIVED) == []


@pytest.mark.parametrize("last_id", ["", "0", "-1", "+1", " 1", "1.0", "٣", "9223372036854775808", "9" * 5000, "1\x00"])
def test_an_id_line_that_is_no_seq_is_no_event(last_id: str) -> None:
    assert drafts(Message(b"{}", "x", last_id, 0), run_id="r-1", received_at=RECEIVED) == []


def test_the_largest_seq_passes() -> None:
    assert one(envelope_of("x", {}) | {"seq": MAX_SEQ}).seq == MAX_SEQ == one(b"{}", last_id=str(MAX_SEQ)).seq


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"[1]",
        b"1",
        b"null",
        b'"text"',
        b"{",
        b"NaN",
        b"{'a':1}",
        b'{"a":NaN}',
        b"[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_envelope_keeps_its_seq(raw: bytes) -> None:
    """P1: no seq is ever dropped; the reader sees that something was there."""
    draft = one(raw, event="tool.result", last_id="9")
    assert (draft.seq, draft.type) == (9, "tool.result")
    assert draft.body["data"] == {"undecodable": True, "bytes": len(raw)}
    assert draft.body["created_at"] == RECEIVED
    assert draft.body["run_id"] == "r-1"


def test_an_oversize_event_is_truncated_but_not_lost() -> None:
    draft = one(b"", event="llm.request", last_id="12", oversize=9_000_000)
    assert (draft.seq, draft.type) == (12, "llm.request")
    assert draft.body["data"] == {"truncated": True, "bytes": 9_000_000}


def test_an_oversize_end_still_ends_the_run() -> None:
    run = Run("r-1", last_seq=11)
    run.admit([one(b"", event="run.completed", last_id="12", oversize=9_000_000)])
    assert run.ended


@pytest.mark.parametrize("depth", [100, 254, 300, 900, 990, 1010, 1022, 5000, 100_000])
def test_a_deeply_nested_event_stops_nobody(depth: int) -> None:
    raw = b'{"seq":3,"type":"x","data":' + b"[" * depth + b"]" * depth + b"}"
    [event] = Run("r-1", last_seq=2).admit([one(raw, event="x", last_id="3")]).events
    assert event.seq == 3
    if depth <= 100:
        assert json.loads(event.json)["data"] != {"undecodable": True, "bytes": len(raw)}


def test_hostile_text_reaches_the_viewer_as_valid_json() -> None:
    raw = rb'{"seq":1,"type":"\ud800","data":{"a":"\udfff","\ud800":1,"z":"\u0000\u2028</script>"},"ts":"t","run_id":"r-1"}'
    [event] = Run("r-1").admit([one(raw)]).events
    assert json.loads(event.json)["data"] == {"a": "\udfff", "\ud800": 1, "z": "\0\u2028</script>"}
    event.json.decode("utf-8", "strict")
    assert b"\n" not in event.json


@pytest.mark.parametrize("field", ["ts", "created_at"])
@pytest.mark.parametrize("value", [7, ["x"], {"a": 1}, True])
def test_created_at_is_text_whatever_upstream_called_a_time(field: str, value: object) -> None:
    body = one(envelope_of("x", {}) | {field: value}).body
    assert isinstance(body["created_at"], str)


@pytest.mark.parametrize("value", [7, ["x"], {"a": 1}, True, None, ""])
def test_run_id_is_text_whatever_upstream_said(value: object) -> None:
    assert one(envelope_of("x", {}) | {"run_id": value}).body["run_id"] == "r-1"


def test_an_upstream_cannot_claim_what_only_relay_says() -> None:
    """`upstream_type` and `synthesized` are marks of ours: an upstream's field of that name must not be taken for them."""
    body = one(envelope_of("run.input_requested", {}, upstream_type="theirs")).body
    assert body["upstream_type"] == "run.input_requested"


@given(st.dictionaries(st.sampled_from(["data", "seq", "type", "ts", "run_id", "created_at", "odd"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)))  # fmt: skip  # noqa: E501
def test_any_envelope_gives_one_whole_event_and_nothing_is_dropped(envelope: dict[str, Any]) -> None:
    draft = one(envelope, event="x", last_id="5")
    [event] = Run("r-1", contiguous=False).admit([draft]).events
    body = json.loads(event.json)
    assert {"seq", "type", "data", "created_at", "run_id"} <= body.keys()
    assert envelope.keys() <= body.keys()
    assert body.get("odd") == envelope.get("odd") or isinstance(envelope.get("odd"), int)


def test_a_real_stream_through_decoder_and_provider() -> None:
    raw = (
        b": ping\n\n"
        + b"".join(
            b"id: %d\nevent: %b\ndata: %b\n\n"
            % (seq, kind.encode(), json.dumps(envelope_of(kind, data) | {"seq": seq}).encode())
            for seq, (kind, data) in enumerate(TYPES.items(), 1)
        )
        + b'{"code":"internal.error","message":"internal error"}\n'
    )  # what Arkloop's gateway writes at a cut (§2.6)
    found = [draft for message in Decoder().feed(raw) for draft in drafts(message, run_id="r-1", received_at=RECEIVED)]
    assert [draft.seq for draft in found] == list(range(1, len(TYPES) + 1))
