"""The SeekrFlow face: run objects, the spelling of a status, refusals, and its stream chunk by chunk."""

from __future__ import annotations

from typing import Any

import pytest

from relay.core import errors, wires
from relay.core.goodbye import DRAIN
from relay.providers.seekrflow import face
from relay.providers.seekrflow.face_stream import WIRE, RunFold, Told
from tests.providers.faces import (
    ANSWERED,
    ASKED,
    AT,
    DONE,
    NESTED_END,
    RUN,
    STARTED,
    Row,
    call,
    event,
    events,
    frames,
    result,
    say,
)


def told(rows: list[Row]) -> list[dict[str, Any]]:
    fold = RunFold(RUN)
    state, data = fold.begin(), b""
    for one in events(rows):
        frame, state = fold.tell(state, one)
        data += frame
    assert all(name is None for name, _ in frames(data))
    return [chunk for _, chunk in frames(data)]


def types(rows: list[Row]) -> list[str]:
    return [chunk["type"] for chunk in told(rows)]


TEXT = ["start-step", "text-start", "text-delta"]
CALL = ["tool-input-start", "tool-input-available"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([STARTED], ["start"]),
        ([say("a")], ["start", *TEXT]),  # a run whose head is lost still starts
        ([STARTED, say("a"), say("b")], ["start", *TEXT, "text-delta"]),
        ([STARTED, say("")], ["start"]),
        ([STARTED, say("a", part="0"), say("b", part="1")], ["start", *TEXT, "text-end", "text-start", "text-delta"]),
        ([STARTED, say("h", channel="thinking")], ["start", "start-step", "reasoning-start", "reasoning-delta"]),
        ([STARTED, ("reasoning.delta", {"content": "h"})], ["start", "start-step", "reasoning-start", "reasoning-delta"]),
        ([STARTED, say("h", channel="thinking"), say("a")],
         ["start", "start-step", "reasoning-start", "reasoning-delta", "reasoning-end", "text-start", "text-delta"]),
        ([STARTED, say("a"), DONE], ["start", *TEXT, "text-end", "finish-step", "finish"]),
        ([STARTED, say("a"), ("llm.turn.completed", {}), say("b")],
         ["start", *TEXT, "text-end", "finish-step", *TEXT]),
        ([STARTED, call()], ["start", "start-step", *CALL]),
        ([STARTED, say("a"), call()], ["start", *TEXT, "text-end", *CALL]),
        ([STARTED, call(), result(result=1)], ["start", "start-step", *CALL, "tool-output-available"]),
        ([STARTED, call(), result(error="no")], ["start", "start-step", *CALL, "tool-output-error"]),
        ([STARTED, result(result=1)], ["start", "start-step", *CALL, "tool-output-available"]),
        ([STARTED, say("a"), ASKED], ["start", *TEXT, "text-end", "data-waiting-for-input"]),
        ([STARTED, ASKED, ANSWERED, say("a")], ["start", "data-waiting-for-input", *TEXT]),
        ([STARTED, ("run.cancelled", {})], ["start", "abort", "finish"]),
        ([STARTED, ("run.failed", {"message": "x"})], ["start", "error", "finish"]),
        ([STARTED, ("run.interrupted", {})], ["start", "error", "finish"]),
        ([STARTED, DONE, say("late")], ["start", "finish"]),
        ([STARTED, NESTED_END], ["start"]),
        ([STARTED, say("in", delegate_layer="acp")], ["start", "start-step", "data-nestedToolEvent"]),
        ([STARTED, ("thread.title.updated", {"title": "x"})], ["start"]),
        ([STARTED, say("a"), ("message.reset", {"part": "0"})], ["start", *TEXT, "text-end", "data-message-reset"]),
        ([STARTED, ("run.gap", {"reason": "x"})], ["start", "data-run-gap"]),
    ],
)  # fmt: skip
def test_what_each_event_says(rows: list[Row], said: list[str]) -> None:
    assert types(rows) == said


def test_chunks_carry_what_the_events_said() -> None:
    chunks = told([STARTED, say("a"), call(x=1), result(result={"n": 2}), DONE])
    start, _, opened, delta, closed, _, available, output, _, finish = chunks
    about = {"run_id": "r1", "thread_id": "t1", "agent_id": "a1"}
    assert start == {"type": "start", "messageId": "r1", "messageMetadata": {"metadata": about}}
    assert opened["id"] == delta["id"] == closed["id"] == "text-2"
    assert delta["delta"] == "a"
    assert available == {"type": "tool-input-available", "toolCallId": "c1", "toolName": "look", "input": {"x": 1}}
    assert output == {"type": "tool-output-available", "toolCallId": "c1", "output": {"n": 2}}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert finish == {"type": "finish", "finishReason": "stop", "messageMetadata": {"usage": usage}}


def test_a_failure_says_why() -> None:
    chunks = told([STARTED, ("run.failed", {"error_class": "c", "message": "no answer"})])
    assert chunks[1] == {"type": "error", "errorText": "no answer"}
    assert chunks[2]["finishReason"] == "error"


def test_a_nested_agents_words_stay_its_own() -> None:
    [chunk] = told([STARTED, say("in", delegate_layer="acp", agent="inner")])[2:]
    assert chunk["data"]["sourceToolName"] == "inner"
    assert chunk["data"]["chunk"] == {"type": "text-delta", "id": "nested-text", "delta": "in"}


def test_every_byte_is_ascii_and_every_line_is_data() -> None:
    """The SDK splits lines like str.splitlines and takes each one for JSON."""
    fold = RunFold({**RUN, "agent_id": "ä"})
    state, data = fold.begin(), b""
    for one in events([STARTED, say("a\u2028b\x85c\r\nd\u2029\U0001f642"), say("\ud83d"), DONE]):
        frame, state = fold.tell(state, one)
        data += frame
    text = data.decode("ascii")
    assert all(line.startswith("data: {") for line in text.splitlines() if line)


HISTORY = [STARTED, say("one "), say("two"), call(), result(result=1), ASKED, ANSWERED, say("three"), say("!"), DONE]


@pytest.mark.parametrize("cut", range(len(HISTORY)))
def test_whoever_begins_in_the_middle_gets_parts_that_open_before_they_go_on(cut: int) -> None:
    fold = RunFold(RUN)
    state, data = fold.begin(), b""
    for one in events(HISTORY)[cut:]:
        frame, state = fold.tell(state, one)
        data += frame
    opened: set[str] = set()
    for _, chunk in frames(data):
        kind = chunk["type"]
        if kind.endswith("-start") and "id" in chunk:
            opened.add(chunk["id"])
        elif kind in ("text-delta", "text-end"):
            assert chunk["id"] in opened
        elif kind == "tool-input-available":
            opened.add(chunk["toolCallId"])
        elif kind.startswith("tool-output"):
            assert chunk["toolCallId"] in opened
    assert frames(data)[-1][1]["type"] == "finish"
    assert fold.over(state)
    assert not fold.resting(state)


def test_hostile_events_do_not_break_a_stream() -> None:
    fold = RunFold(RUN)
    for kind in ("message.delta", "tool.call", "tool.result", "run.waiting_for_input", "run.failed", "run.completed"):
        for data in ({}, {"content": 3}, {"error": {}}, {"error": 3}, {"tool_calls": [3]}, {"usage": "x"}):
            for nested in ({}, {"delegate_layer": "acp"}):
                frames(fold.tell(Told(), event(1, kind, {**data, **nested}))[0])


def test_notices() -> None:
    assert WIRE.notice(wires.end(9, "completed", 1000)) == b"data: [DONE]\n\n"
    [(_, chunk)] = frames(WIRE.notice(wires.reset(1, 5, "trimmed")))
    assert (chunk["type"], chunk["data"]["to_seq"]) == ("data-relay-reset", 5)
    assert WIRE.notice(wires.goodbye(DRAIN, 1000)) == b""
    assert WIRE.ping == b"\n"


# --- objects ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "agent", "shown"),
    [
        ("queued", "", "queued"),
        ("running", "", "running"),
        ("waiting_for_input", "", "running"),
        ("cancelling", "", "running"),
        ("completed", "", "completed"),
        ("failed", "", "failed"),
        ("interrupted", "", "failed"),
        ("cancelled", "", "cancelled"),
        ("cancelled", "curl/8", "cancelled"),
        ("cancelled", "SeekrFlow/v1 PythonBindings/0.35.1", "cancelled"),
        ("cancelled", "SeekrFlow/v1 PythonBindings/0.32.0", "cancelled"),
        ("cancelled", "SeekrFlow/v1 PythonBindings/0.31.1", "canceled"),
        ("cancelled", "SeekrFlow/v1 PythonBindings/0.5.7", "canceled"),
        ("cancelled", "SeekrFlow/v1 PythonBindings/1.0.0", "cancelled"),
        ("running", "SeekrFlow/v1 PythonBindings/0.31.0", "running"),
    ],
)
def test_a_status_is_spelled_as_this_client_can_read_it(status: str, agent: str, shown: str) -> None:
    assert face.run({**RUN, "status": status}, agent)["status"] == shown


def test_a_run_has_every_field_the_sdk_requires() -> None:
    run = face.run({"run_id": "r1", "thread_id": "t1", "status": "running", "created_at": AT})
    assert run == {
        "id": "r1", "object": "thread.run", "created_at": AT, "agent_id": "default_agent", "thread_id": "t1",
        "status": "running", "is_active": True, "started_at": None, "expires_at": None, "cancelled_at": None,
        "failed_at": None, "completed_at": None, "model": "", "instructions": None, "tools": [], "meta_data": {},
        "usage": None, "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": None, "truncation_strategy": {},
        "response_format": "auto", "tool_choice": "auto", "parallel_tool_calls": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (errors.NotFound("no such run"), 404, "no such run"),
        (errors.Unauthenticated("who?"), 401, "who?"),
        (errors.Overloaded("full"), 503, "full"),
        (
            errors.InvalidRequest.field("limit", "out of range", "0 to 5"),
            422,
            [{"loc": ["request", "limit"], "msg": "out of range", "type": "validation.error"}],
        ),
        (errors.InvalidRequest("no"), 422, [{"loc": ["request"], "msg": "no", "type": "validation.error"}]),
    ],
)
def test_refusals(error: errors.RelayError, status: int, detail: Any) -> None:
    assert face.refusal(error) == (status, {"detail": detail}, {})
