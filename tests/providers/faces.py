"""Native events for the tests of faces, as short as a table wants them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from relay.core.events import Event, encode

AT = "2026-01-01T00:00:00Z"
AT_S = 1767225600
RUN = {
    "run_id": "r1",
    "thread_id": "t1",
    "agent_id": "a1",
    "model": "m1",
    "status": "running",
    "raw_status": "running",
    "created_at": AT,
}

Row = tuple[str, dict[str, Any]]


def event(seq: int, kind: str, data: dict[str, Any], **more: Any) -> Event:
    body = {"seq": seq, "type": kind, "data": data, "created_at": AT, "run_id": "r1", **more}
    return Event(seq, kind, encode(body))


def events(rows: Iterable[Row]) -> list[Event]:
    return [event(seq, kind, data) for seq, (kind, data) in enumerate(rows, 1)]


def say(text: str, **more: Any) -> Row:
    return "message.delta", {"content": text, "role": "assistant", **more}


def call(call_id: str = "c1", **arguments: Any) -> Row:
    return "tool.call", {"tool_call_id": call_id, "tool_name": "look", "arguments": arguments}


def result(call_id: str = "c1", **more: Any) -> Row:
    return "tool.result", {"tool_call_id": call_id, "tool_name": "look", **more}


STARTED: Row = ("run.started", {"persona_id": "p1", "model": "m9"})
ASKED: Row = ("run.waiting_for_input", {"request_id": "q1", "message": "Which?", "requestedSchema": {"type": "object"}})
ANSWERED: Row = ("run.input_provided", {"content": "this"})
DONE: Row = ("run.completed", {"usage": {"input_tokens": 3, "output_tokens": 4}})
NESTED_END: Row = ("run.completed", {"delegate_layer": "acp", "agent": "inner"})


def frames(data: bytes) -> list[tuple[str | None, Any]]:
    """(event, JSON) of each frame; the bytes must be frames of exactly these lines."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        lines = block.split("\n")
        name = lines.pop(0).removeprefix("event: ") if lines[0].startswith("event: ") else None
        [line] = lines
        text = line.removeprefix("data: ")
        assert line != text, block
        found.append((name, text if text == "[DONE]" else json.loads(text)))
    return found
