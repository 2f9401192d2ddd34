"""The Arkloop face: the envelope comes back as it came, ours is put into one, and queries are read as Go reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.core import wires
from relay.core.errors import InvalidRequest
from relay.core.goodbye import DRAIN
from relay.core.run import Run
from relay.core.sse import Decoder, Message
from relay.providers.arkloop import events as arkloop_events
from relay.providers.arkloop import face
from tests.providers.faces import AT, RUN, event

ENVELOPE = {"event_id": "e-1", "run_id": "r1", "seq": 7, "ts": "2026-01-01T00:00:00.12Z"}


@pytest.mark.parametrize(
    ("kind", "data", "more"),
    [
        ("run.started", {"model": "m"}, {}),
        ("message.delta", {"content_delta": "x<&>\u2028", "role": "assistant"}, {}),
        ("message.delta", {"content_delta": "x", "channel": "thinking"}, {}),
        ("message.delta", {"content_delta": "x", "content": "other"}, {}),
        ("run.input_requested", {"request_id": "q", "message": "?"}, {}),
        ("tool.result", {"tool_call_id": "c", "result": [1, 2.5, None]}, {"tool_name": "look"}),
        ("run.failed", {"error_class": "x", "message": "y"}, {"error_class": "x"}),
        ("run.completed", {"delegate_layer": "acp"}, {}),
        ("any.lua.type", {}, {}),
        ("thread.title.updated", {"title": "\ud800"}, {}),
    ],
)
def test_what_an_arkloop_upstream_sent_comes_back_equal(kind: str, data: dict[str, Any], more: dict[str, Any]) -> None:
    sent = {**ENVELOPE, "type": kind, "data": data, **more}
    drafts = arkloop_events.drafts(Message(json.dumps(sent).encode(), kind, "7"), run_id="r1", received_at=AT)
    [native] = Run("r1", last_seq=6).admit(drafts).events
    [message] = Decoder().feed(face.WIRE.events([native]))
    assert json.loads(message.data) == sent
    assert (message.event, message.id) == (kind, "7")


def test_a_frame_is_as_the_reference_has_it() -> None:
    raw = face.WIRE.events([event(3, "run.started", {"b": 1, "a": "ü"}, ts=AT, event_id="e")])
    assert raw == (
        b'id: 3\nevent: run.started\ndata: {"data":{"a":"\xc3\xbc","b":1},"event_id":"e","run_id":"r1","seq":3,'
        b'"ts":"2026-01-01T00:00:00Z","type":"run.started"}\n\n'
    )


def test_an_event_of_another_upstream_is_put_into_the_envelope() -> None:
    [message] = Decoder().feed(face.WIRE.events([event(3, "message.delta", {"content": "x", "role": "assistant"})]))
    envelope = json.loads(message.data)
    assert envelope.keys() == {"data", "event_id", "run_id", "seq", "ts", "type"}
    assert envelope["data"] == {"content_delta": "x", "role": "assistant"}
    assert envelope["ts"] == AT
    again = Decoder().feed(face.WIRE.events([event(3, "message.delta", {"content": "x"})]))[0]
    assert json.loads(again.data)["event_id"] == envelope["event_id"]  # the same event, the same id
    [waiting] = Decoder().feed(face.WIRE.events([event(4, "run.waiting_for_input", {"tool_calls": []})]))
    assert (waiting.event, json.loads(waiting.data)["type"]) == ("run.input_requested", "run.input_requested")


def test_a_type_cannot_forge_a_frame() -> None:
    raw = face.WIRE.events([event(1, "x\n\nid: 99\r\ndata: {}", {})])
    assert len(Decoder().feed(raw)) == 1


@pytest.mark.parametrize(
    "notice", [wires.reset(1, 2, "trimmed"), wires.goodbye(DRAIN, 5), wires.end(9, "completed", 1)]
)
def test_our_own_words_are_comments(notice: wires.Notice) -> None:
    raw = face.WIRE.notice(notice)
    assert raw.startswith(b": relay.")
    assert raw.endswith(b"\n\n")
    assert raw.count(b"\n") == 2
    assert Decoder().feed(raw) == []


def test_a_run_has_no_nulls_and_nothing_of_ours() -> None:
    given = {**RUN, "org_id": "o", "upstream": "main", "provider": "arkloop", "last_seq": 3, "ended": False}
    shown = face.run({**given, "persona_id": None, "status": "waiting_for_input"}, trace_id="t")
    assert shown == {
        "account_id": "o", "run_id": "r1", "thread_id": "t1", "agent_id": "a1", "model": "m1", "status": "running",
        "created_at": AT, "trace_id": "t",
    }  # fmt: skip
    assert face.thread_item(given) == {"run_id": "r1", "status": "running", "created_at": AT}


@pytest.mark.parametrize(
    ("text", "number"),
    [(None, 0), ("", 0), (" ", 0), ("0", 0), ("12abc", 12), ("5.9", 5), ("+5", 5), ("0x10", 0), ("007", 7)],
)
def test_after_seq_is_read_as_go_scans_it(text: str | None, number: int) -> None:
    assert face.after_seq(text) == number


@pytest.mark.parametrize("text", ["-1", "abc", "9223372036854775808", "9" * 60, "²"])
def test_after_seq_it_cannot_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        face.after_seq(text)
