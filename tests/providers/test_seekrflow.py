"""SeekrFlow's wire -> observations and native runs (C2, C3 and D of the SeekrFlow/Minds reference)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.core.observed import Asked, Break, Call, Ends, Extra, Observation, Odd, Opens, Outcome, Started, Text, Texts
from relay.core.sse import Message
from relay.providers import OWN_SEQ

SEEKRFLOW = OWN_SEQ["seekrflow"]


def read(chunk: object) -> list[Observation]:
    return SEEKRFLOW.reader()(Message(chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode(), "", ""))


META = {"providerMetadata": {"metadata": {"agent_id": "a", "parent_agent_id": "p", "x": 1}}}
AGENT = {"agent_id": "a", "parent_agent_id": "p"}


@pytest.mark.parametrize(
    ("chunk", "seen"),
    [
        # Vercel
        ({"type": "start", "messageId": "m"}, [Opens(), Started()]),
        ({"type": "start-step"}, []),
        ({"type": "finish-step"}, []),
        ({"type": "text-start", "id": "1"}, [Break("text:1")]),
        ({"type": "text-end", "id": "1"}, []),
        ({"type": "message-metadata", "messageMetadata": {}}, []),
        ({"type": "text-delta", "id": "1", "delta": "x"}, [Text("x", "text:1")]),
        ({"type": "text-delta", "id": "1", "delta": "x", **META}, [Text("x", "text:1", data=AGENT)]),
        ({"type": "text-delta", "id": "mermaid-1", "delta": "x"}, []),
        ({"type": "reasoning-start", "id": "r"}, [Break("reasoning:r")]),
        ({"type": "reasoning-delta", "id": "r", "delta": "x"}, [Text("x", "reasoning:r", "reasoning")]),
        ({"type": "reasoning-end", "id": "r"}, []),
        ({"type": "tool-input-start", "toolCallId": "c", "toolName": "t"}, []),
        ({"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": "{"}, []),
        (
            {"type": "tool-input-available", "toolCallId": "c", "toolName": "t", "input": {"q": 1}},
            [Call("c", "t", {"q": 1})],
        ),
        (
            {"type": "tool-input-error", "toolCallId": "c", "toolName": "t", "input": {}, "errorText": "bad"},
            [Call("c", "t", {}), Outcome("c", error="bad")],
        ),
        ({"type": "tool-output-available", "toolCallId": "c", "output": [1]}, [Outcome("c", [1])]),
        (
            {"type": "tool-output-available", "toolCallId": "c", "output": 1, "preliminary": True},
            [Extra("tool.result.preliminary", {"tool_call_id": "c", "result": 1})],
        ),
        ({"type": "tool-output-error", "toolCallId": "c", "errorText": "e"}, [Outcome("c", error="e")]),
        ({"type": "tool-output-denied", "toolCallId": "c"}, [Outcome("c", error="denied")]),
        (
            {"type": "tool-approval-request", "approvalId": "a", "toolCallId": "c"},
            [Asked(("approval:a",), {"approval_id": "a", "tool_call_id": "c"})],
        ),
        ({"type": "reset-step"}, [Extra("message.reset", {"scope": "step"})]),
        ({"type": "error", "errorText": "boom"}, [Ends("error", "boom")]),
        ({"type": "abort"}, [Ends("abort")]),
        ({"type": "finish"}, [Ends("finish")]),
        ({"type": "done"}, [Ends("finish")]),
        # legacy
        ({"type": "user_prompt"}, [Opens(), Started(), Break("")]),
        ({"type": "node_header", "node_type": "n", "description": ""}, [Opens(), Started(), Break("")]),
        ({"type": "part_start_event", "part_index": 0, "part_content": "TextPart('x')"}, [Break("")]),
        ({"type": "text_delta", "text": "x"}, [Text("x")]),
        ({"type": "streaming_chunk", "text": "x"}, [Text("x")]),
        ({"type": "streaming_chunk", "data": {"type": "text_delta", "text": "x"}, "meta_data": {}}, [Text("x")]),
        ({"type": "streaming_chunk", "data": {"text": "x"}, "meta_data": {}}, [Text("x")]),
        ({"type": "stream_reasoning", "reasoning": "x"}, [Text("x", "reasoning", "reasoning")]),
        ({"type": "tool_call_part_delta", "part_index": 0, "args_delta": "{"}, []),
        (
            {"type": "streaming_tool_request", "tool_id": "c", "tool_name": "t", "tool_args": '{"q":1}'},
            [Call("c", "t", {"q": 1}, {"arguments_json": '{"q":1}'})],
        ),
        ({"type": "streaming_tool_response", "tool_id": "c", "tool_output": "o"}, [Outcome("c", "o")]),
        (
            {"type": "streaming_tool", "tool_id": "c", "tool_name": "t", "tool_output": "o"},
            [Outcome("c", "o", call=Call("c", "t"))],
        ),
        ({"type": "final_result_event"}, []),
        ({"type": "end_node", "final_output": "all"}, [Texts(("all",)), Ends("finish")]),
        ({"type": "end_node", "final_output": {"a": 1}}, [Ends("finish")]),
        # neither
        (b"[DONE]", [Ends("done")]),
        (b"", []),
        (b"<html>", [Odd("undecodable")]),
        ([1], [Odd("not_a_chunk")]),
        ({"typ": "x"}, [Odd("no_type")]),
        ({"type": "text-delta", "delta": 7}, [Odd("wrong_types")]),
        ({"type": "tool-input-available", "toolName": "t"}, [Odd("wrong_types")]),
    ],
)
def test_the_table_of_chunks(chunk: object, seen: list[Observation]) -> None:
    assert read(chunk) == seen


@pytest.mark.parametrize(
    "kind", ["source-url", "source-document", "file", "data-anything", "tool-approval-response", "steering-message",
             "custom", "reasoning-file", "something-new"]
)  # fmt: skip
def test_what_has_no_counterpart_passes_under_a_name_of_its_own(kind: str) -> None:
    chunk = {"type": kind, "odd": [1]}
    assert read(chunk) == [Extra("provider.event", {"upstream_type": kind, "chunk": chunk})]


def nested(inner: dict[str, Any]) -> dict[str, Any]:
    data = {"toolCallPath": ["c1", "c2"], "depth": 2, "sourceToolName": "sub", "chunk": inner}
    return {"type": "data-nestedToolEvent", "data": data}


def test_a_nested_agents_tools_are_tools_and_its_text_is_not_the_answer() -> None:
    where = {"path": ["c1", "c2"], "source_tool_name": "sub"}
    assert read(nested({"type": "tool-input-available", "toolCallId": "n", "toolName": "t", "input": 1})) == [
        Call("n", "t", 1, where)
    ]
    [text] = read(nested({"type": "text-delta", "id": "1", "delta": "x"}))
    assert isinstance(text, Text)
    assert text.lane == "nested:c1/c2"
    for ending in ("start", "finish", "error", "abort"):
        assert read(nested({"type": ending})) == [], "neither its beginning nor its end is the run's"
    deep: dict[str, Any] = {"type": "text-delta", "delta": "x"}
    for _ in range(100):
        deep = nested(deep)
    assert read(deep) == [Odd("nested")]


SEED = {
    "id": "run-1", "created_at": "2023-11-07T05:31:56Z", "agent_id": "agent", "thread_id": "t-1", "model": "m",
    "temperature": 1, "top_p": 1, "parallel_tool_calls": True, "object": "thread.run", "is_active": False,
    "started_at": "2023-11-07T05:31:57", "completed_at": "2023-11-07T05:31:59.5", "status": "completed",
    "instructions": "do", "tools": [{}], "meta_data": {"a": "b"}, "max_completion_tokens": 123,
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, "response_format": "auto",
    "tool_choice": "auto",
}  # fmt: skip


def test_a_run_in_native_names() -> None:
    run = SEEKRFLOW.run(SEED)
    expected = {
        "run_id": "run-1", "thread_id": "t-1", "agent_id": "agent", "status": "completed", "raw_status": "completed",
        "created_at": "2023-11-07T05:31:56.000Z", "started_at": "2023-11-07T05:31:57.000Z",
        "completed_at": "2023-11-07T05:31:59.500Z", "ended_at": "2023-11-07T05:31:59.500Z", "duration_ms": 2500,
        "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}, "total_input_tokens": 1,
        "total_output_tokens": 2, "metadata": {"a": "b"}, "max_output_tokens": 123, "failed_at": None, "org_id": None,
        "persona_id": None, "error": None, "is_active": False, "tools": [{}], "tool_choice": "auto",
    }  # fmt: skip
    assert {name: run[name] for name in expected} == expected
    assert "meta_data" not in run
    assert "id" not in run


def test_a_created_run_is_named_by_run_id() -> None:
    answer = {"run_id": "r-1", "thread_id": "t-1", "status": "queued", "group": "g"}
    assert SEEKRFLOW.created(answer) == answer


def test_messages_are_the_runs_own_and_the_assistants() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": {"value": "b"}}]
    messages = [
        {"run_id": None, "role": "user", "content": "hi"},
        {"run_id": "other", "role": "assistant", "content": "no"},
        {"run_id": "r-1", "role": "assistant", "content": parts},
        {"run_id": "r-1", "role": "assistant", "content": "c"},
    ]  # fmt: skip
    run = SEEKRFLOW.run({"id": "r-1", "status": "running"})
    assert SEEKRFLOW.reconciled(run, messages, None, final=True) == [Texts(("ab", "c"), True)]
    assert SEEKRFLOW.reconciled(run, None, None, final=True) == []
