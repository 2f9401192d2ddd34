"""SeekrFlow's stream chunks -> observations, by table: the Vercel family and the legacy one, told apart by `type`.

Which family `/attach` speaks is not documented, so both are always understood. C3 of the reference is the source of
every line of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from relay.core.events import decode
from relay.core.observed import Asked, Break, Call, Ends, Extra, Observation, Odd, Opens, Outcome, Started, Text, Texts
from relay.core.sse import Message
from relay.providers.threads import arguments_of

Chunk: TypeAlias = Mapping[str, Any]
_DEPTH: Final = 16
"""How deep nested tool events are unwrapped."""


def read(message: Message) -> list[Observation]:
    if message.oversize:
        return [Odd("oversize")]
    data = message.data.strip()
    if not data:
        return []
    if data == b"[DONE]":
        return [Ends("done")]
    try:
        chunk = decode(data)
    except ValueError:
        return [Odd("undecodable")]
    return observe(chunk) if isinstance(chunk, dict) else [Odd("not_a_chunk")]


def observe(chunk: Chunk, depth: int = 0) -> list[Observation]:
    kind = chunk.get("type")
    if not isinstance(kind, str):
        return [Odd("no_type")]
    if kind == "data-nestedToolEvent":
        return _nested(chunk, depth)
    if kind == "streaming_chunk" and isinstance(chunk.get("data"), dict):
        inner = chunk["data"]
        return observe(inner if "type" in inner else {**inner, "type": "streaming_chunk"}, depth + 1)
    make = _CHUNKS.get(kind)
    try:
        return _other(chunk) if make is None else make(chunk)
    except (KeyError, TypeError, AttributeError):
        return [Odd("wrong_types")]


# --- what chunks have in common --------------------------------------------------------------------------------------
def _nothing(_: Chunk) -> list[Observation]:
    return []


def _other(chunk: Chunk) -> list[Observation]:
    return [Extra("provider.event", {"upstream_type": chunk["type"], "chunk": dict(chunk)})]


def _str(chunk: Chunk, name: str) -> str:
    value = chunk[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _id(chunk: Chunk, name: str) -> str:
    value = _str(chunk, name)
    if not value:
        raise KeyError(name)
    return value


def _agent(chunk: Chunk) -> dict[str, Any]:
    """Who is speaking, where a chunk says so."""
    for name in ("providerMetadata", "messageMetadata"):
        given = chunk.get(name)
        inner = given.get("metadata") if isinstance(given, dict) else None
        if isinstance(inner, dict):
            return {key: inner[key] for key in ("agent_id", "parent_agent_id") if isinstance(inner.get(key), str)}
    return {}


def _rest(chunk: Chunk, *known: str) -> dict[str, Any]:
    """What a chunk says beyond what the event's own fields say."""
    return {name: value for name, value in chunk.items() if name not in ("type", *known)} | _agent(chunk)


# --- Vercel ----------------------------------------------------------------------------------------------------------
def _start(_: Chunk) -> list[Observation]:
    return [Opens(), Started()]


def _part_opens(chunk: Chunk) -> list[Observation]:
    lane = "reasoning" if chunk["type"] == "reasoning-start" else "text"
    return [Break(_name(chunk, lane))]


def _name(chunk: Chunk, lane: str) -> str:
    given = chunk.get("id")
    return f"{lane}:{given}" if isinstance(given, str) else lane


def _text_delta(chunk: Chunk) -> list[Observation]:
    if str(chunk.get("id", "")).startswith("mermaid-"):
        return []  # drawn by the vendor's own page, never part of the answer
    return [Text(_str(chunk, "delta"), _name(chunk, "text"), data=_agent(chunk))]


def _reasoning_delta(chunk: Chunk) -> list[Observation]:
    return [Text(_str(chunk, "delta"), _name(chunk, "reasoning"), "reasoning", data=_agent(chunk))]


def _tool_input(chunk: Chunk) -> list[Observation]:
    parsed, data = arguments_of(chunk.get("input"))
    rest = _rest(chunk, "toolCallId", "toolName", "input", "errorText")
    return [Call(_id(chunk, "toolCallId"), _str(chunk, "toolName"), parsed, {**data, **rest})]


def _tool_input_error(chunk: Chunk) -> list[Observation]:
    return [
        *_tool_input(chunk),
        Outcome(_id(chunk, "toolCallId"), error=str(chunk.get("errorText") or "invalid input")),
    ]


def _tool_output(chunk: Chunk) -> list[Observation]:
    if chunk.get("preliminary") is True:
        return [
            Extra("tool.result.preliminary", {"tool_call_id": _id(chunk, "toolCallId"), "result": chunk.get("output")})
        ]
    rest = _rest(chunk, "toolCallId", "output", "preliminary")
    return [Outcome(_id(chunk, "toolCallId"), chunk.get("output"), data=rest)]


def _tool_output_error(chunk: Chunk) -> list[Observation]:
    words = chunk.get("errorText")
    error = words if isinstance(words, str) and words else chunk["type"].removeprefix("tool-output-")
    return [Outcome(_id(chunk, "toolCallId"), error=error, data=_rest(chunk, "toolCallId", "errorText"))]


def _approval(chunk: Chunk) -> list[Observation]:
    data = {"approval_id": _id(chunk, "approvalId"), "tool_call_id": chunk.get("toolCallId")}
    return [Asked((f"approval:{data['approval_id']}",), data)]


def _reset_step(_: Chunk) -> list[Observation]:
    return [Extra("message.reset", {"scope": "step"})]


def _error(chunk: Chunk) -> list[Observation]:
    words = chunk.get("errorText")
    return [Ends("error", words if isinstance(words, str) else None)]


def _abort(_: Chunk) -> list[Observation]:
    return [Ends("abort")]


def _finish(_: Chunk) -> list[Observation]:
    return [Ends("finish")]


def _nested(chunk: Chunk, depth: int) -> list[Observation]:
    """A tool that is an agent itself: its tools are tools of the run, its text is not the run's text."""
    data = chunk.get("data")
    inner = data.get("chunk") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(inner, dict) or depth >= _DEPTH:
        return [Odd("nested")]
    path = [str(one) for one in data["toolCallPath"]] if isinstance(data.get("toolCallPath"), list) else []
    where = {"path": path, "source_tool_name": data.get("sourceToolName")}
    seen = [_inside(one, path, where) for one in observe(inner, depth + 1)]
    return [one for one in seen if one is not None]


def _inside(seen: Observation, path: list[str], where: dict[str, Any]) -> Observation | None:
    if isinstance(seen, Text):
        lane = f"nested:{'/'.join(path)}" + ("" if seen.lane == "text" else f":{seen.lane}")
        return msgspec.structs.replace(seen, lane=lane, name=f"{lane}:{seen.name}", data={**seen.data, **where})
    if isinstance(seen, Call | Outcome | Extra):
        return msgspec.structs.replace(seen, data={**seen.data, **where})
    return seen if isinstance(seen, Odd) else None  # its beginning and its end are not the run's


# --- legacy ----------------------------------------------------------------------------------------------------------
def _legacy_text(chunk: Chunk) -> list[Observation]:
    if chunk["type"] == "streaming_chunk" and not isinstance(chunk.get("text"), str):
        return _other(chunk)
    return [Text(_str(chunk, "text"))]


def _legacy_break(_: Chunk) -> list[Observation]:
    return [Break("")]


def _legacy_header(_: Chunk) -> list[Observation]:
    return [Opens(), Started(), Break("")]


def _legacy_reasoning(chunk: Chunk) -> list[Observation]:
    return [Text(_str(chunk, "reasoning"), "reasoning", "reasoning")]


def _legacy_end(chunk: Chunk) -> list[Observation]:
    output = chunk.get("final_output")
    return [*([Texts((output,))] if isinstance(output, str) and output else []), Ends("finish")]


def _legacy_call(chunk: Chunk) -> list[Observation]:
    parsed, data = arguments_of(chunk.get("tool_args"))
    return [Call(_id(chunk, "tool_id"), str(chunk.get("tool_name") or ""), parsed, data)]


def _legacy_result(chunk: Chunk) -> list[Observation]:
    unseen = _legacy_call(chunk)[0] if chunk["type"] == "streaming_tool" else None
    call = unseen if isinstance(unseen, Call) else None
    return [Outcome(_id(chunk, "tool_id"), chunk.get("tool_output"), call=call)]


_CHUNKS: Final[dict[str, Callable[[Chunk], list[Observation]]]] = {
    "start": _start,
    "start-step": _nothing,
    "finish-step": _nothing,
    "text-start": _part_opens,
    "text-delta": _text_delta,
    "text-end": _nothing,
    "message-metadata": _nothing,
    "reasoning-start": _part_opens,
    "reasoning-delta": _reasoning_delta,
    "reasoning-end": _nothing,
    "tool-input-start": _nothing,
    "tool-input-delta": _nothing,
    "tool-input-available": _tool_input,
    "tool-input-error": _tool_input_error,
    "tool-output-available": _tool_output,
    "tool-output-error": _tool_output_error,
    "tool-output-denied": _tool_output_error,
    "tool-approval-request": _approval,
    "reset-step": _reset_step,
    "error": _error,
    "abort": _abort,
    "finish": _finish,
    "done": _finish,
    # legacy
    "user_prompt": _legacy_header,
    "node_header": _legacy_header,
    "part_start_event": _legacy_break,
    "text_delta": _legacy_text,
    "streaming_chunk": _legacy_text,
    "stream_reasoning": _legacy_reasoning,
    "tool_call_part_delta": _nothing,
    "streaming_tool_request": _legacy_call,
    "streaming_tool_response": _legacy_result,
    "streaming_tool": _legacy_result,
    "final_result_event": _nothing,
    "end_node": _legacy_end,
}
"""Chunk type -> its reader; every other type passes as `provider.event`."""
