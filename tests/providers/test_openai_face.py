"""The OpenAI Assistants face: run objects, lists, refusals, and its stream event by event."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from relay.core import errors, wires
from relay.core.errors import RelayError
from relay.core.goodbye import SLOW
from relay.providers import native
from relay.providers.native import appended
from relay.providers.openai import face
from relay.providers.openai.face_stream import DONE as DONE_BYTES
from relay.providers.openai.face_stream import WIRE, RunFold, Told, answered, things
from tests.providers.faces import (
    ANSWERED,
    ASKED,
    AT,
    AT_S,
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


def told(rows: list[Row], fold: RunFold | None = None) -> tuple[list[tuple[str | None, Any]], Told]:
    fold = fold or RunFold(RUN)
    state, data = fold.begin(), b""
    for one in events(rows):
        frame, state = fold.tell(state, one)
        data += frame
    return frames(data), state


def names(rows: list[Row]) -> list[str]:
    return [str(name).removeprefix("thread.") for name, _ in told(rows)[0]]


OPEN = ["run.created", "run.queued", "run.in_progress"]
MESSAGE = ["run.step.created", "run.step.in_progress", "message.created", "message.in_progress", "message.delta"]
MESSAGE_END = ["message.completed", "run.step.completed"]
TOOL = ["run.step.created", "run.step.in_progress", "run.step.delta"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([STARTED], OPEN),
        ([say("a")], [*OPEN, *MESSAGE]),  # a run whose head is lost still opens
        ([STARTED, say("a"), say("b")], [*OPEN, *MESSAGE, "message.delta"]),
        ([STARTED, say("hm", channel="thinking")], OPEN),
        ([STARTED, say("a", role="user")], OPEN),
        ([STARTED, say("")], OPEN),
        ([STARTED, say("a", delegate_layer="acp")], OPEN),
        ([STARTED, NESTED_END, say("a")], [*OPEN, *MESSAGE]),
        ([STARTED, say("a"), DONE], [*OPEN, *MESSAGE, *MESSAGE_END, "run.completed"]),
        ([STARTED, say("a", part="0"), say("b", part="1")], [*OPEN, *MESSAGE, *MESSAGE_END, *MESSAGE]),
        ([STARTED, call()], [*OPEN, *TOOL]),
        ([STARTED, call(), result(result=1)], [*OPEN, *TOOL, "run.step.completed"]),
        ([STARTED, call(), result(error="no")], [*OPEN, *TOOL, "run.step.failed"]),
        ([STARTED, result(result=1)], [*OPEN, *TOOL, "run.step.completed"]),  # its call is lost
        ([STARTED, say("a"), call()], [*OPEN, *MESSAGE, *MESSAGE_END, *TOOL]),
        ([STARTED, call(), DONE], [*OPEN, *TOOL, "run.step.completed", "run.completed"]),
        ([STARTED, say("a"), ASKED], [*OPEN, *MESSAGE, *MESSAGE_END, "run.requires_action"]),
        ([STARTED, ASKED, ANSWERED], [*OPEN, "run.requires_action", "run.in_progress"]),
        ([STARTED, ASKED, say("a")], [*OPEN, "run.requires_action", "run.in_progress", *MESSAGE]),
        ([STARTED, ("run.cancel_requested", {}), ("run.cancelled", {})], [*OPEN, "run.cancelling", "run.cancelled"]),
        ([STARTED, ("run.failed", {"message": "x"})], [*OPEN, "run.failed"]),
        ([STARTED, say("a"), ("run.failed", {})], [*OPEN, *MESSAGE, "message.incomplete", "run.step.failed", "run.failed"]),
        ([STARTED, ("run.interrupted", {})], [*OPEN, "run.failed"]),
        ([STARTED, ("run.failed", {"reason": "expired"})], [*OPEN, "run.expired"]),
        ([STARTED, ("run.failed", {"reason": "incomplete:max_completion_tokens"})], [*OPEN, "run.incomplete"]),
        ([STARTED, ("thread.title.updated", {"title": "x"})], OPEN),
        ([STARTED, DONE, ("thread.title.updated", {}), say("late")], [*OPEN, "run.completed"]),
        ([STARTED, say("a"), ("message.reset", {})], [*OPEN, *MESSAGE, "message.incomplete", "run.step.failed"]),
    ],
)  # fmt: skip
def test_what_each_event_says(rows: list[Row], said: list[str]) -> None:
    assert names(rows) == said


def test_a_run_object_names_the_agent_its_first_event_names() -> None:
    run = {**RUN, "agent_id": None, "model": None}
    found, _ = told([STARTED, say("a"), DONE], RunFold(run))
    assert {data["assistant_id"] for _, data in found if "assistant_id" in data} == {"p1"}
    assert {data["model"] for name, data in found if str(name).count(".") == 2 and "run" in str(name)} == {"m9"}


def test_text_is_a_delta_each_and_whole_in_the_end() -> None:
    found, _ = told([STARTED, say("Gru\u2028"), say("\U0001f642"), say("ß"), DONE])
    deltas = [data["delta"]["content"][0]["text"]["value"] for name, data in found if name == "thread.message.delta"]
    assert deltas == ["Gru\u2028", "\U0001f642", "ß"]
    created = next(data for name, data in found if name == "thread.message.created")
    completed = next(data for name, data in found if name == "thread.message.completed")
    assert (created["content"], created["status"], created["id"]) == ([], "in_progress", "msg_r1_2")
    assert completed["content"] == [{"type": "text", "text": {"value": "Gru\u2028\U0001f642ß", "annotations": []}}]
    assert (completed["status"], completed["completed_at"], completed["run_id"]) == ("completed", AT_S, "r1")
    assert found[-1][1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert (found[-1][1]["status"], found[-1][1]["completed_at"], found[-1][1]["started_at"]) == (
        "completed",
        AT_S,
        AT_S,
    )


def test_a_tool_call_is_a_step_with_its_arguments_and_its_output() -> None:
    found, _ = told([STARTED, call(place="here"), result(result={"n": 1})])
    delta = next(data for name, data in found if name == "thread.run.step.delta")
    [shown] = delta["delta"]["step_details"]["tool_calls"]
    assert shown == {
        "index": 0, "id": "c1", "type": "function",
        "function": {"name": "look", "arguments": '{"place":"here"}', "output": None},
    }  # fmt: skip
    step = found[-1][1]
    assert (step["id"], step["status"], step["completed_at"]) == (delta["id"], "completed", AT_S)
    assert step["step_details"]["tool_calls"][0]["function"]["output"] == '{"n":1}'


def test_a_run_that_waits_says_what_for() -> None:
    found, state = told([STARTED, ASKED])
    [one] = found[-1][1]["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert (one["id"], one["function"]["name"]) == ("q1", "request_input")
    assert one["function"]["arguments"] == '{"message":"Which?","requestedSchema":{"type":"object"}}'
    assert RunFold(RUN).resting(state)
    assert not RunFold(RUN).over(state)
    assert not RunFold(RUN).resting(told([STARTED, ASKED, ANSWERED])[1])


def test_calls_of_an_upstream_of_this_shape_are_asked_for_as_they_are() -> None:
    calls = [{"id": "x", "name": "f", "arguments": {"a": 1}}, {"id": "y", "name": "g", "arguments": "raw"}]
    found, _ = told([STARTED, ("run.waiting_for_input", {"tool_calls": calls})])
    shown = found[-1][1]["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [(one["id"], one["function"]["arguments"]) for one in shown] == [("x", '{"a":1}'), ("y", "raw")]


def test_a_failure_keeps_its_words_in_a_code_the_shape_has() -> None:
    found, _ = told([STARTED, ("run.failed", {"error_class": "tool.unavailable", "message": "no answer"})])
    assert found[-1][1]["last_error"] == {"code": "server_error", "message": "tool.unavailable: no answer"}
    found, _ = told([STARTED, ("run.failed", {"reason": "rate_limit_exceeded", "message": "slow"})])
    assert found[-1][1]["last_error"] == {"code": "rate_limit_exceeded", "message": "slow"}


def test_a_gap_is_in_every_run_object_after_it() -> None:
    found, _ = told([STARTED, ("run.gap", {"reason": "no messages"}), DONE])
    assert [data["metadata"] for _, data in found] == [{}, {}, {}, {"relay_gap": "no messages"}]


def test_frames_have_a_name_and_data_and_nothing_else() -> None:
    fold = RunFold(RUN)
    data, _ = fold.tell(fold.begin(), events([STARTED])[0])
    for line in data.split(b"\n"):
        assert not line or line.startswith((b"event: thread.", b"data: {")), line


HISTORY = [STARTED, say("one "), say("two"), call(), result(result=1), ASKED, ANSWERED, say("three"), say("!"), DONE]


@pytest.mark.parametrize("cut", range(len(HISTORY) + 1))
def test_two_readers_told_in_other_portions_hear_the_same(cut: int) -> None:
    """The state follows from the events alone: so bytes can be shared by cursor."""
    fold, other = RunFold(RUN), RunFold(dict(RUN))
    assert fold.key == other.key
    state = fold.begin()
    for one in events(HISTORY)[:cut]:
        _, state = fold.tell(state, one)
    again = other.begin()
    for one in events(HISTORY)[:cut]:
        _, again = other.tell(again, one)
    assert state == again


@pytest.mark.parametrize("cut", range(1, len(HISTORY)))
def test_whoever_begins_in_the_middle_gets_whole_frames(cut: int) -> None:
    """The SDK raises for a delta without its message, and for a step's delta without its step."""
    fold = RunFold(RUN, start=answered(Told(), ["c"]))
    state, data = fold.begin(), b""
    for one in events(HISTORY)[cut:]:
        frame, state = fold.tell(state, one)
        data += frame
    known: set[str] = set()
    for name, body in frames(data):
        if str(name).endswith(".created"):
            known.add(body["id"])
        if str(name).startswith(("thread.message", "thread.run.step")):
            assert body["id"] in known, name
    assert frames(data)[-1][0] == "thread.run.completed"


def test_a_resumed_stream_does_not_create_the_run_again() -> None:
    fold = RunFold(RUN, start=answered(Told(), ["c"]))
    data, _ = fold.tell(fold.begin(), event(7, *ANSWERED))
    assert [name for name, _ in frames(data)] == ["thread.run.in_progress"]


CALL = {"tool_call_id": "c", "tool_name": "look", "arguments": {}}
QUESTION = ("run.waiting_for_input", {"tool_calls": [{"id": "c", "name": "look", "arguments": {}}]})


@pytest.mark.parametrize("asked", [True, False])
def test_who_answers_before_the_log_holds_the_question_hears_what_follows_it(asked: bool) -> None:
    """What came before the question is old to it; a question that nobody saw in time is passed over."""
    rest = [("run.started", {}), ("message.delta", {"content": "old"}), ("tool.call", CALL)]
    rest += [QUESTION] if asked else []
    rest += [("tool.result", {"tool_call_id": "c", "result": "7"}), ("message.delta", {"content": "new"})]
    fold = RunFold(RUN, start=answered(Told(), ["c"]))
    state, data = fold.begin(), b""
    for seq, one in enumerate(rest, 1):
        frame, state = fold.tell(state, event(seq, *one))
        assert not fold.resting(state)
        data += frame
    names = [name for name, _ in frames(data)]
    assert names[:2] == ["thread.run.in_progress", "thread.run.step.completed"]
    assert b"old" not in data
    assert names[-1] == "thread.message.delta"


def test_hostile_events_are_told_without_a_word() -> None:
    fold = RunFold(RUN)
    for data in ({"content": 3}, {"content": None}, {"content": ["x"]}, {"content": {"a": 1}}):
        frame, _ = fold.tell(Told(opened=True), event(1, "message.delta", data))
        assert frame == b""
    for kind in ("tool.call", "tool.result", "run.waiting_for_input", "run.failed", "run.completed"):
        for data in ({}, {"error": {}}, {"error": 3}, {"tool_calls": [3, {}]}, {"required_action": {}}, {"usage": "x"}):
            frames(fold.tell(fold.begin(), event(1, kind, data))[0])


def test_pieces_stay_few_and_whole() -> None:
    pieces: tuple[str, ...] = ()
    for i in range(5000):
        pieces = appended(pieces, f"{i} ")
    assert "".join(pieces) == "".join(f"{i} " for i in range(5000))
    assert len(pieces) < 20


def test_notices() -> None:
    assert WIRE.notice(wires.end(9, "completed", 1000)) == DONE_BYTES == b"event: done\ndata: [DONE]\n\n"
    [(name, body)] = frames(WIRE.notice(wires.reset(1, 5, "trimmed")))
    assert (name, body["error"]["code"]) == ("error", "relay.reset")
    assert WIRE.notice(wires.goodbye(SLOW, 1000)) == b""
    assert WIRE.notice(wires.position(3)) == b""
    assert WIRE.ping == b": ping\n"


# --- objects ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "raw", "shown"),
    [
        ("queued", "queued", "queued"),
        ("running", "running", "in_progress"),
        ("waiting_for_input", "running", "requires_action"),
        ("cancelling", "cancelling", "cancelling"),
        ("completed", "completed", "completed"),
        ("failed", "failed", "failed"),
        ("failed", "expired", "expired"),
        ("failed", "incomplete", "incomplete"),
        ("cancelled", "canceled", "cancelled"),
        ("interrupted", "interrupted", "failed"),
    ],
)
def test_every_status_has_a_word(status: str, raw: str, shown: str) -> None:
    run = face.run({**RUN, "status": status, "raw_status": raw})
    assert run["status"] == shown
    assert (run["last_error"] is not None) == (shown == "failed")


def test_a_run_has_every_field_of_the_shape() -> None:
    run = face.run({**RUN, "completed_at": "2026-01-01T00:00:03.9Z", "total_input_tokens": 5, "total_output_tokens": 6})
    assert run == {
        "id": "r1", "object": "thread.run", "created_at": AT_S, "thread_id": "t1", "assistant_id": "a1",
        "status": "in_progress", "required_action": None, "last_error": None, "expires_at": None, "started_at": None,
        "cancelled_at": None, "failed_at": None, "completed_at": AT_S + 3, "model": "m1", "instructions": "",
        "tools": [], "metadata": {}, "usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11},
        "max_prompt_tokens": None, "max_completion_tokens": None, "temperature": None, "top_p": None,
        "truncation_strategy": None, "response_format": None, "tool_choice": None, "parallel_tool_calls": None,
        "incomplete_details": None,
    }  # fmt: skip


def test_what_a_run_waits_for_is_shown_only_while_it_waits() -> None:
    action = face.action(native.Asked((native.Call("q", "f", {"a": 1}),)))
    assert face.run({**RUN, "status": "waiting_for_input"}, action=action)["required_action"] == action
    assert face.run(RUN, action=action)["required_action"] is None


def test_lists_name_their_ends() -> None:
    assert face.listed([], has_more=False) == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False
    }  # fmt: skip
    listed = face.listed([{"id": "a"}, {"id": "b"}], has_more=True)
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("a", "b", True)


@pytest.mark.parametrize(
    ("error", "status", "kind", "hopeless"),
    [
        (errors.InvalidRequest.field("limit", "out of range", "1 to 100"), 400, "invalid_request_error", False),
        (errors.Unauthenticated("x"), 401, "authentication_error", False),
        (errors.Forbidden("x"), 403, "permission_error", False),
        (errors.NotFound("x"), 404, "not_found_error", False),
        (errors.MethodNotAllowed("x"), 405, "invalid_request_error", False),
        (errors.Conflict("x"), 409, "invalid_request_error", True),
        (errors.Conflict("x", retry_after_s=1.0), 409, "invalid_request_error", False),
        (errors.TooManyRequests("x"), 429, "rate_limit_error", False),
        (errors.Unsupported("x"), 501, "server_error", True),
        (errors.UpstreamError("x"), 502, "server_error", False),
        (errors.Overloaded("x"), 503, "server_error", False),
    ],
)
def test_refusals(error: RelayError, status: int, kind: str, hopeless: bool) -> None:
    found, body, headers = face.refusal(error)
    assert (found, body["error"]["type"], body["error"]["code"]) == (status, kind, error.code)
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert headers == ({"x-should-retry": "false"} if hopeless else {})
    assert body["error"]["param"] == (error.details or {}).get("field")


def test_things_are_what_a_run_has_made_so_far() -> None:
    fold = RunFold(RUN)
    for cut, _ in itertools.product(range(len(HISTORY) + 1), [0]):
        found: dict[str, Any] = {}
        things(fold, fold.begin(), events(HISTORY)[:cut], found)
        text = [item["content"][0]["text"]["value"] for item in found.values() if item["object"] == "thread.message"]
        said = [data["content"] for kind, data in HISTORY[:cut] if kind == "message.delta"]
        assert "".join(text) == "".join(said)
    assert [item["object"].removeprefix("thread.") for item in found.values()].count("message") == 2
    assert AT
