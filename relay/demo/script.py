"""A run written down: what happens, and how long after the step before. Pure data, and the words to write it with.

A script reads like the run it is: `script("writer", started(…), think("…"), say("…"), completed(…), title("…"))`. Each word
gives the steps it stands for; `script` strings them together and fills in what only the whole can know, the final message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from relay.demo import wire

_WORDS = re.compile(r"\s*\S+\s*")
_ARGUMENT_PIECES = re.compile(r".{1,14}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """One event, and the pause before it."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    dt_ms: float = 0.0
    seq: int | None = None
    """None: the next one. Recordings and gap tests name it."""
    answer: str | None = None
    """The run waits here for POST input; after `patience_s` this is taken for the answer."""
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Script:
    """A whole run, ready to be played any number of times."""

    name: str
    steps: tuple[Step, ...]

    def paced(self, rate: float) -> Script:
        """The same run at an even `rate` events per second."""
        return replace(self, steps=tuple(replace(step, dt_ms=1000.0 / rate) for step in self.steps))

    @property
    def ends(self) -> bool:
        """Whether an event of it ends its run; a nested agent's end does not."""
        return any(wire.is_terminal(step.type, step.data) for step in self.steps)

    def about(self, key: str) -> str | None:
        """What the first step says of the run: its `model`, its `persona_id`."""
        value = self.steps[0].data.get(key) if self.steps else None
        return value if isinstance(value, str) else None


def script(name: str, *parts: Step | Iterable[Step]) -> Script:
    """String the parts together; `run.completed` gets the text said so far."""
    steps: list[Step] = []
    for part in parts:
        steps.extend([part] if isinstance(part, Step) else part)
    said = "".join(step.data["content_delta"] for step in steps if _is_speech(step))
    whole = [
        replace(step, data={"assistant_message": {"role": "assistant", "content": said}, **step.data})
        if wire.is_terminal(step.type, step.data) and step.type == "run.completed"
        else step
        for step in steps
    ]
    return Script(name, tuple(whole))


def _is_speech(step: Step) -> bool:
    return step.type == "message.delta" and "channel" not in step.data


def started(*, persona: str, model: str = "demo-1") -> Step:
    return Step("run.started", {"model": model, "persona_id": persona})


def think(text: str) -> list[Step]:
    """Thinking, a few words at a time."""
    return [_delta(piece, channel="thinking") for piece in _pieces(text, 3)]


def say(text: str) -> list[Step]:
    """The answer, word by word."""
    return [_delta(piece) for piece in _pieces(text, 2)]


def call(call_id: str, tool: str, arguments: Mapping[str, Any], *, gives: Any, takes_ms: float = 240) -> list[Step]:
    """One tool call: its arguments as they stream in, the call, the result."""
    whole = orjson.dumps(arguments).decode()
    shared = {"tool_call_id": call_id, "tool_name": tool}
    pieces = [
        Step("tool.call.delta", {"arguments_delta": piece, "tool_call_index": 0, **shared}, 22)
        for piece in _ARGUMENT_PIECES.findall(whole)
    ]
    return [
        *pieces,
        Step("tool.call", {"arguments": dict(arguments), **shared}, 20),
        Step("tool.result", {"result": gives, **shared}, takes_ms),
    ]


def ask(request_id: str, message: str, *, answer: str, patience_s: float = 8.0) -> Step:
    """Stop and wait for the user; go on with `answer` when nobody speaks."""
    schema = {"type": "object", "properties": {"content": {"type": "string"}}, "required": ["content"]}
    data = {"request_id": request_id, "message": message, "requestedSchema": schema}
    return Step("run.input_requested", data, 60, answer=answer, patience_s=patience_s)


def nested(agent: str) -> Step:
    """The end of an agent inside this run, told in this run's stream: not the end of the run."""
    return Step("run.completed", {"delegate_layer": "acp", "agent": agent}, 180)


def completed(*, input_tokens: int, output_tokens: int) -> Step:
    return Step("run.completed", {"usage": {"input_tokens": input_tokens, "output_tokens": output_tokens}}, 40)


def failed(error_class: str, message: str) -> Step:
    return Step("run.failed", {"error_class": error_class, "message": message}, 40)


def title(text: str) -> Step:
    """The thread's title; it comes after the end, as the real one does."""
    return Step("thread.title.updated", {"title": text}, 400)


def _delta(piece: str, **more: str) -> Step:
    # An uneven but repeatable pace, 20 to 40 ms: longer words take longer.
    pace = 20 + min(20, 2 * len(piece.strip()))
    return Step("message.delta", {"content_delta": piece, "role": "assistant", **more}, pace)


def _pieces(text: str, words: int) -> list[str]:
    found = _WORDS.findall(text)
    return ["".join(found[at : at + words]) for at in range(0, len(found), words)]
