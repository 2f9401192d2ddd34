"""What a native event says, whichever upstream wrote it: read leniently, because `data` is the upstream's own.

Faces read events through this alone, so that any provider may be behind any face.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from relay.core.events import Event, decode


class Said(NamedTuple):
    """One event, read."""

    type: str
    seq: int
    data: dict[str, Any]
    created_at: str
    nested: bool
    """It is of an agent inside this run."""


class Call(NamedTuple):
    id: str
    name: str
    arguments: Any


class Result(NamedTuple):
    id: str
    name: str
    output: Any
    error: str | None


class Asked(NamedTuple):
    """A run waits for an answer to this."""

    calls: tuple[Call, ...]


def read(event: Event) -> Said:
    try:
        body = decode(event.json)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    data = body.get("data")
    data = data if isinstance(data, dict) else {}
    nested = data.get("delegate_layer") == "acp"
    return Said(event.type, event.seq, data, text_of(body.get("created_at")), nested)


def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def content(said: Said) -> str:
    """The text of a delta, whatever it is for."""
    return text_of(said.data.get("content")) or text_of(said.data.get("content_delta"))


def is_speech(said: Said) -> bool:
    """Whether a message.delta is the assistant's answer: neither thinking nor anybody else's words."""
    return not said.data.get("channel") and said.data.get("role", "assistant") == "assistant"


def call(said: Said) -> Call:
    data = said.data
    name = text_of(data.get("tool_name")) or text_of(data.get("name")) or "tool"
    return Call(_call_id(said), name, data.get("arguments", data.get("input", {})))


def result(said: Said) -> Result:
    data = said.data
    error = data.get("error")
    if error is None and data.get("is_error"):
        error = data.get("reason") or data.get("output") or "the tool failed"
    words = None if error is None else error if isinstance(error, str) else _message(error)
    name = text_of(data.get("tool_name")) or text_of(data.get("name")) or "tool"
    return Result(_call_id(said), name, data.get("result", data.get("output")), words)


def _call_id(said: Said) -> str:
    """The upstream's id of a tool call; one of our own, from the seq, if it gave none."""
    return text_of(said.data.get("tool_call_id")) or text_of(said.data.get("id")) or f"call_{said.seq}"


def asked(said: Said) -> Asked:
    """What a run.waiting_for_input waits for. Where the upstream asks in words, that is one call of `request_input`."""
    calls = said.data.get("tool_calls")
    required = said.data.get("required_action")
    if isinstance(required, dict):
        submit = required.get("submit_tool_outputs")
        calls = submit.get("tool_calls") if isinstance(submit, dict) else required.get("tool_calls", calls)
    named = [_call(item) for item in calls if isinstance(item, dict)] if isinstance(calls, list) else []
    if named:
        return Asked(tuple(named))
    request_id = text_of(said.data.get("request_id")) or f"input_{said.seq}"
    words = {name: value for name, value in said.data.items() if name != "request_id"}
    return Asked((Call(request_id, "request_input", words),))


def _call(item: dict[str, Any]) -> Call:
    function = item.get("function")
    function = function if isinstance(function, dict) else item
    call_id = text_of(item.get("id")) or text_of(item.get("tool_call_id"))
    name = text_of(function.get("name")) or text_of(function.get("tool_name")) or "tool"
    return Call(call_id, name, function.get("arguments", {}))


def failure(said: Said) -> tuple[str, str]:
    """Why a run did not complete: a code (possibly empty) and words."""
    data = said.data
    error = data.get("error")
    nested = error if isinstance(error, dict) else data
    code = text_of(nested.get("code")) or text_of(data.get("reason")) or text_of(data.get("error_class"))
    return code, text_of(nested.get("message")) or text_of(error) or code or said.type.removeprefix("run.")


def _message(error: object) -> str:
    return text_of(error.get("message")) or "the tool failed" if isinstance(error, dict) else str(error)


def usage(given: object) -> dict[str, int] | None:
    """`prompt_tokens, completion_tokens, total_tokens` of a usage under any of its names; None if it tells neither."""
    if not isinstance(given, dict):
        return None
    prompt = _count(given, "input_tokens", "prompt_tokens", "total_input_tokens")
    completion = _count(given, "output_tokens", "completion_tokens", "total_output_tokens")
    if prompt is None and completion is None:
        return None
    total = _count(given, "total_tokens")
    prompt, completion = prompt or 0, completion or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion if total is None else total,
    }


def _count(given: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = given.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def usage_of_run(run: dict[str, Any]) -> dict[str, int] | None:
    return usage(run.get("usage")) or usage(run)


def agent_of(run: dict[str, Any]) -> str:
    return text_of(run.get("agent_id")) or text_of(run.get("persona_id"))


def appended(pieces: tuple[str, ...], text: str) -> tuple[str, ...]:
    """One more piece of a text; neighbours are joined as they grow: a long text costs few pieces and little copying."""
    pieces = (*pieces, text)
    while len(pieces) > 1 and len(pieces[-2]) <= 2 * len(pieces[-1]):
        pieces = (*pieces[:-2], pieces[-2] + pieces[-1])
    return pieces
