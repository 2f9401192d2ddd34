"""The Assistants shape -> observations and native runs (C2, C3 and D of the SeekrFlow/Minds reference)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.core.observed import Call, Ends, Extra, Observation, Odd, Opens, Outcome, Snapshot, Text
from relay.core.sse import Message
from relay.providers import OWN_SEQ
from relay.providers.openai.events import _EVENTS
from relay.providers.own import Page, ThreadQuery

ASSISTANTS = OWN_SEQ["openai"]
MINDS = {
    "id": "mdb_run_8b42", "assistant_id": "mdb_asst_cfde", "cancelled_at": None, "completed_at": None,
    "created_at": 1718885800,
    "expires_at": None, "failed_at": None, "incomplete_details": None, "instructions": "", "last_error": None,
    "max_completion_tokens": None, "max_prompt_tokens": None, "metadata": None, "model": "", "object": "thread.run",
    "required_action": None, "response_format": None, "started_at": None, "status": "queued",
    "thread_id": "mdb_thread_cfa0",
    "tool_choice": None, "tools": [], "truncation_strategy": None, "usage": None, "temperature": None, "top_p": None,
}  # fmt: skip
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"q": 1}'}}


def read(event: str, data: object) -> list[Observation]:
    return ASSISTANTS.reader()(Message(data if isinstance(data, bytes) else json.dumps(data).encode(), event, ""))


def run(status: str, **more: Any) -> dict[str, Any]:
    return {**MINDS, "status": status, **more}


def test_all_24_names_are_known() -> None:
    families = {"thread.run.": 10, "thread.run.step.": 7, "thread.message.": 5}
    steps = [name for name in _EVENTS if name.startswith("thread.run.step.")]
    runs = [name for name in _EVENTS if name.startswith("thread.run.") and name not in steps]
    messages = [name for name in _EVENTS if name.startswith("thread.message.")]
    assert [len(runs), len(steps), len(messages)] == list(families.values())
    assert len(_EVENTS) == 24


@pytest.mark.parametrize(
    ("event", "status", "native", "ends"),
    [
        ("in_progress", "in_progress", "running", False),
        ("requires_action", "requires_action", "waiting_for_input", True),
        ("completed", "completed", "completed", True),
        ("incomplete", "incomplete", "failed", True),
        ("failed", "failed", "failed", True),
        ("cancelled", "cancelled", "cancelled", True),
        ("cancelled", "canceled", "cancelled", True),
        ("expired", "expired", "failed", True),
    ],
)
def test_an_event_with_a_run_tells_what_it_is_and_ends_only_the_stream(
    event: str, status: str, native: str, ends: bool
) -> None:
    [snapshot, *rest] = read(f"thread.run.{event}", run(status))
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.status, snapshot.raw_status, snapshot.known) == (native, status, True)
    assert rest == ([Ends("run")] if ends else [])


@pytest.mark.parametrize(
    ("event", "data", "seen"),
    [
        ("thread.created", {"id": "t"}, []),
        ("thread.run.created", run("queued"), [Opens()]),
        ("thread.run.queued", run("queued"), []),
        ("thread.run.step.created", {}, []),
        ("thread.run.step.in_progress", {}, []),
        ("thread.run.step.delta", {"delta": {}}, []),
        ("thread.message.created", {"id": "m"}, []),
        ("thread.message.in_progress", {"id": "m"}, []),
        (
            "thread.message.delta",
            {"id": "m", "delta": {"content": [{"index": 1, "type": "text", "text": {"value": "x", "annotations": []}}]}},
            [Text("x", "m:1", data={"message_id": "m", "index": 1})],
        ),
        (
            "thread.message.delta",
            {"id": "m", "delta": {"content": [{"index": 0, "type": "image_file", "image_file": {}}]}},
            [Extra("provider.event", {"upstream_type": "thread.message.delta",
                                      "chunk": {"index": 0, "type": "image_file", "image_file": {}}})],
        ),
        (
            "thread.message.completed",
            {"id": "m", "status": "completed", "created_at": 1718885800.5,
             "content": [{"type": "text", "text": {"value": "x"}}]},
            [Text("x", "m:0", whole=True, final=True, data={"message_id": "m", "index": 0}, at="2024-06-20T12:16:40.500Z")],
        ),
        (
            "thread.message.incomplete",
            {"id": "m", "status": "incomplete", "content": [{"type": "text", "text": {"value": "x"}}]},
            [Text("x", "m:0", whole=True, data={"message_id": "m", "index": 0})],
        ),
        ("error", {"error": {"message": "nested"}}, [Ends("error", "nested")]),
        ("error", {"message": "flat"}, [Ends("error", "flat")]),
        ("done", b"[DONE]", [Ends("done")]),
        ("", b"[DONE]", [Ends("done")]),
        ("no.such", {"a": 1}, [Extra("provider.event", {"upstream_type": "no.such", "chunk": {"a": 1}})]),
        ("", {"event": "error", "data": {"message": "wrapped"}}, [Ends("error", "wrapped")]),
        ("thread.message.delta", {"id": 7, "delta": {}}, [Odd("wrong_types")]),
        ("thread.message.delta", {"id": "m", "delta": {"content": [7]}}, [Odd("wrong_types")]),
        ("thread.run.completed", {"status": "completed"}, [Odd("wrong_types")]),
        ("thread.run.completed", b"{", [Odd("undecodable")]),
    ],
)  # fmt: skip
def test_the_table_of_events(event: str, data: object, seen: list[Observation]) -> None:
    assert read(event, data) == seen


@pytest.mark.parametrize(
    ("status", "output", "outcome"),
    [
        ("completed", "42", [Outcome("c", "42")]),
        ("completed", None, []),
        ("failed", None, [Outcome("c", error="broke")]),
        ("cancelled", "42", [Outcome("c", error="broke")]),
        ("expired", None, [Outcome("c", error="broke")]),
    ],
)
def test_a_steps_calls_and_their_results(status: str, output: str | None, outcome: list[Observation]) -> None:
    item = {**CALL, "function": {**CALL["function"], "output": output}}  # type: ignore[dict-item]
    step = {
        "status": status,
        "last_error": {"message": "broke"},
        "step_details": {"type": "tool_calls", "tool_calls": [item]},
    }
    call = Call("c", "f", {"q": 1}, {"arguments_json": '{"q": 1}'})
    name = {"completed": "completed"}.get(status, status)
    assert read(f"thread.run.step.{name}", step) == [call, *outcome]


def test_what_minds_says_in_native_names() -> None:
    native = ASSISTANTS.run(MINDS)
    expected = {
        "run_id": "mdb_run_8b42", "thread_id": "mdb_thread_cfa0", "agent_id": "mdb_asst_cfde", "status": "queued",
        "model": None, "instructions": None, "metadata": {}, "created_at": "2024-06-20T12:16:40.000Z", "usage": None,
        "ended_at": None, "duration_ms": None, "required_action": None, "error": None, "tools": [],
    }  # fmt: skip
    assert {name: native[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (run("failed", last_error={"code": "server_error", "message": "m"}), {"code": "server_error", "message": "m"}),
        (run("expired"), {"code": "expired", "message": None}),
        (run("incomplete", incomplete_details={"reason": "max_prompt_tokens"}),
         {"code": "incomplete:max_prompt_tokens", "message": None}),
    ],
)  # fmt: skip
def test_why_a_run_failed(answer: dict[str, Any], error: dict[str, Any]) -> None:
    assert ASSISTANTS.run(answer)["error"] == error


def test_a_question_is_a_snapshot_with_calls() -> None:
    action = {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": [CALL, {"id": ""}, 7]}}
    snapshot = ASSISTANTS.snapshot(ASSISTANTS.run(run("requires_action", required_action=action)))
    assert snapshot.calls == (Call("c", "f", {"q": 1}, {"arguments_json": '{"q": 1}'}),)


def test_messages_without_a_run_id_are_told_by_their_time() -> None:
    """Minds may leave it out; a thread has one run at a time."""
    native = ASSISTANTS.run(run("completed", completed_at=1718885830))

    def message(name: str, at: float, run_id: str | None = None) -> dict[str, Any]:
        return {
            "id": name,
            "role": "assistant",
            "run_id": run_id,
            "created_at": at,
            "content": [{"type": "text", "text": {"value": name}}],
        }

    messages = [
        message("before", 1718885700.0),
        message("mine", 1718885810.5),
        message("after", 1718885900.0),
        message("other", 1718885810.0, "another"),
    ]
    assert [one.text for one in ASSISTANTS.reconciled(native, messages, None, final=True) if isinstance(one, Text)] == [
        "mine"
    ]


def test_pages_of_messages_go_on_behind_the_last() -> None:
    page = ASSISTANTS.page({"data": [{"id": "m"}, 7], "has_more": True, "last_id": "m-9"})
    assert page == Page(({"id": "m"},), 2, "m-9", more=True)
    assert ASSISTANTS.messages("t", "r", page, 2).query["after"] == "m-9"
    assert ASSISTANTS.steps("t", "r", page).query["after"] == "m-9"  # type: ignore[union-attr]
    assert ASSISTANTS.page({"data": [{"id": "m"}]}) == Page(({"id": "m"},), 1, "m", more=True), "it does not say"
    assert not ASSISTANTS.page({"data": [{"id": "m"}], "has_more": False, "last_id": "m"}).more


def test_a_page_begins_behind_no_id_that_is_none() -> None:
    """It goes into a query of our own, with our credentials."""
    for last in ("../x", 7, "", "m\n", None):
        page = ASSISTANTS.page({"data": [{"id": last}], "has_more": True, "last_id": last})
        assert page.last_id is None
        assert "after" not in ASSISTANTS.messages("t", "r", page, 1).query


def test_paths_are_below_whatever_base_an_sdk_takes() -> None:
    assert ASSISTANTS.get_run("t", "r").path == "/threads/t/runs/r"
    assert ASSISTANTS.list_thread_runs("t", ThreadQuery(5, "asc", 0, "a", "b")).query == {
        "limit": "5", "order": "asc", "after": "a", "before": "b",
    }  # fmt: skip
