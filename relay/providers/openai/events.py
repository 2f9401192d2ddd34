"""The Assistants stream's events -> observations, by table: all 24 names of the SDK's union, and `done`.

C3 of the reference is the source of every line. An event that carries a run never ends ours: it says that the stream is
over, and GET run decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from relay.core.errors import UpstreamError
from relay.core.events import decode
from relay.core.observed import Call, Ends, Extra, Observation, Odd, Opens, Outcome, Text
from relay.core.sse import Message
from relay.core.times import rfc3339
from relay.providers import threads

Data: TypeAlias = Mapping[str, Any]

STATUS: Final = {
    "queued": "queued",
    "in_progress": "running",
    "requires_action": "waiting_for_input",
    "cancelling": "cancelling",
    "cancelled": "cancelled",
    "canceled": "cancelled",
    "failed": "failed",
    "completed": "completed",
    "incomplete": "failed",
    "expired": "failed",
}


def read(message: Message) -> list[Observation]:
    if message.oversize:
        return [Odd("oversize")]
    data = message.data.strip()
    if data == b"[DONE]" or message.event == "done":
        return [Ends("done")]
    if not data:
        return []
    try:
        body = decode(data)
    except ValueError:
        return [Odd("undecodable")]
    return _observe(message.event, body)


def _observe(name: str, body: object) -> list[Observation]:
    if not name and isinstance(body, dict) and isinstance(body.get("event"), str):
        name, body = body["event"], body.get("data")
    if not isinstance(body, dict):
        return [Odd("not_an_object")]
    make = _EVENTS.get(name)
    try:
        return make(body) if make else [Extra("provider.event", {"upstream_type": name, "chunk": body})]
    except (KeyError, TypeError, AttributeError, UpstreamError):
        return [Odd("wrong_types")]


def run_in(message: Message) -> dict[str, Any] | None:
    """The run that a message carries, whichever of the run events it is."""
    if message.event.startswith("thread.run.") and not message.event.startswith("thread.run.step."):
        try:
            body = decode(message.data)
        except ValueError:
            return None
        return body if isinstance(body, dict) else None
    return None


# --- runs ------------------------------------------------------------------------------------------------------------
def _nothing(_: Data) -> list[Observation]:
    return []


def _opens(_: Data) -> list[Observation]:
    return [Opens()]


def _run(body: Data) -> list[Observation]:
    return [threads.snapshot_of(threads.native_run(body, STATUS), STATUS)]


def _run_over(body: Data) -> list[Observation]:
    return [*_run(body), Ends("run")]


def _cancelling(body: Data) -> list[Observation]:
    return [*_run(body), Extra("run.cancelling", {})]


def _error(body: Data) -> list[Observation]:
    inner = body.get("error")
    words = (inner if isinstance(inner, dict) else body).get("message")
    return [Ends("error", words if isinstance(words, str) else None)]


# --- steps -----------------------------------------------------------------------------------------------------------
def calls_of_step(step: Data) -> list[Observation]:
    """What a run step's tool calls tell: each call, and its result once the step is over."""
    details = step.get("step_details")
    items = details.get("tool_calls") if isinstance(details, dict) else None
    seen: list[Observation] = []
    for item in items if isinstance(items, list) else ():
        call = threads.call_of(item)
        if call is not None:
            seen += [call, *_outcome(call, item, str(step.get("status") or ""), step)]
    return seen


def _outcome(call: Call, item: Data, status: str, step: Data) -> list[Observation]:
    if status in ("failed", "cancelled", "expired"):
        error = step.get("last_error")
        words = error.get("message") if isinstance(error, dict) else None
        return [Outcome(call.id, error=words if isinstance(words, str) and words else status)]
    kind = item.get("type") if isinstance(item.get("type"), str) else "function"
    body = item.get(str(kind))
    body = body if isinstance(body, dict) else {}
    output = next((body[name] for name in ("output", "outputs", "results") if body.get(name) is not None), None)
    if status == "completed" and output is not None:
        return [Outcome(call.id, output)]
    return []


# --- messages --------------------------------------------------------------------------------------------------------
def _delta(body: Data) -> list[Observation]:
    message_id = body["id"]
    if not isinstance(message_id, str):
        raise TypeError("id")
    content = body["delta"]["content"] or ()
    seen: list[Observation] = []
    for part in content:
        index, kind = part.get("index", 0), part.get("type")
        if kind != "text":
            seen.append(Extra("provider.event", {"upstream_type": "thread.message.delta", "chunk": part}))
        elif isinstance(text := (part.get("text") or {}).get("value"), str):
            seen.append(part_of(message_id, index, text))
    return seen


def part_of(message_id: str, index: int, text: str, *, whole: bool = False, final: bool = False) -> Text:
    data = {"message_id": message_id, "index": index}
    return Text(text, f"{message_id}:{index}", whole=whole, final=final, data=data)


def _message(body: Data) -> list[Observation]:
    return list(texts_of_message(body, final=body.get("status") == "completed"))


def texts_of_message(body: Data, *, final: bool) -> list[Text]:
    """Every text of a message as a whole."""
    message_id = body["id"]
    if not isinstance(message_id, str):
        raise TypeError("id")
    if body.get("role", "assistant") != "assistant":
        return []
    at = rfc3339(body.get("created_at"))
    parts = [
        (part_of(message_id, i, text, whole=True, final=final)) for i, text in threads.text_of(body.get("content"))
    ]
    return [Text(one.text, one.name, whole=True, final=final, data=one.data, at=at) for one in parts if one.text]


_EVENTS: Final[dict[str, Callable[[Data], list[Observation]]]] = {
    "thread.created": _nothing,
    "thread.run.created": _opens,
    "thread.run.queued": _nothing,
    "thread.run.in_progress": _run,
    "thread.run.requires_action": _run_over,
    "thread.run.completed": _run_over,
    "thread.run.incomplete": _run_over,
    "thread.run.failed": _run_over,
    "thread.run.cancelling": _cancelling,
    "thread.run.cancelled": _run_over,
    "thread.run.expired": _run_over,
    "thread.run.step.created": _nothing,
    "thread.run.step.in_progress": _nothing,
    "thread.run.step.delta": _nothing,
    "thread.run.step.completed": calls_of_step,
    "thread.run.step.failed": calls_of_step,
    "thread.run.step.cancelled": calls_of_step,
    "thread.run.step.expired": calls_of_step,
    "thread.message.created": _nothing,
    "thread.message.in_progress": _nothing,
    "thread.message.delta": _delta,
    "thread.message.completed": _message,
    "thread.message.incomplete": _message,
    "error": _error,
}
"""Event name -> its reader; every other name passes as `provider.event`."""
