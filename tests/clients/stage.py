"""What the tests with real clients stand on: an upstream that plays what is asked, and a relay before it."""

from __future__ import annotations

from typing import Any

from relay.demo.script import Script, Step
from tests.support.upstream import ScriptedUpstream

SAID = "Fog in the valley\u2028— sun above it. ☀️ And then \U0001f3d4 rain."
"""What a run says, in pieces; with a line separator that some clients split at."""


def pieces(text: str = SAID, size: int = 5) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def started() -> Step:
    return Step("run.started", {"persona_id": "p1", "model": "m1"})


def says(text: str = SAID, dt_ms: float = 0.0) -> list[Step]:
    return [Step("message.delta", {"content_delta": piece, "role": "assistant"}, dt_ms) for piece in pieces(text)]


def calls() -> list[Step]:
    shared = {"tool_call_id": "c1", "tool_name": "look"}
    return [
        Step("tool.call", {"arguments": {"at": "sky"}, **shared}),
        Step("tool.result", {"result": {"n": 7}, **shared}),
    ]


def completed() -> Step:
    return Step("run.completed", {"usage": {"input_tokens": 3, "output_tokens": 4}})


def whole(dt_ms: float = 0.0) -> Script:
    """A run that thinks, calls a tool, speaks and completes."""
    thinking = Step("message.delta", {"content_delta": "hm", "role": "assistant", "channel": "thinking"})
    return Script("whole", (started(), thinking, *calls(), *says(dt_ms=dt_ms), completed()))


def opening(text: str = "") -> Script:
    """A run that begins and waits for the test."""
    return Script("opening", (started(), *(says(text) if text else ())))


def asks(up: ScriptedUpstream, run_id: str) -> int:
    data = {"request_id": "q1", "message": "Which way?", "requestedSchema": {"type": "object"}}
    return up.append(run_id, "run.input_requested", data)


def finish(up: ScriptedUpstream, run_id: str, text: str = SAID) -> None:
    for piece in pieces(text):
        up.append(run_id, "message.delta", {"content_delta": piece, "role": "assistant"})
    up.finish(run_id, "run.completed", {"usage": {"input_tokens": 3, "output_tokens": 4}})


def answers(up: ScriptedUpstream, run_id: str) -> list[Any]:
    """What a run was told while it waited."""
    return [event["data"]["content"] for event in up.truth(run_id) if event["type"] == "run.input_provided"]
