"""How the OpenAI Assistants face speaks: run objects, list envelopes, errors. Its stream is in `face_stream.py`.

Facts: docs/faces.md. Times are whole unix seconds; fields this shape requires
and the upstream does not know are null or empty, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from relay.core.errors import InvalidRequest, RelayError, Unsupported
from relay.core.events import encode
from relay.core.times import unix
from relay.providers import native
from relay.providers.conversation import Message, Thread

STATUS: Final = {
    "queued": "queued",
    "running": "in_progress",
    "waiting_for_input": "requires_action",
    "cancelling": "cancelling",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "failed",
}
_OWN_ENDS: Final = ("expired", "incomplete")
"""Ends that only this shape tells apart from a failure; an upstream of this shape says so in `raw_status`."""
_SAME: Final = (
    "temperature",
    "top_p",
    "truncation_strategy",
    "response_format",
    "tool_choice",
    "parallel_tool_calls",
    "incomplete_details",
)
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def run(given: dict[str, Any], *, action: dict[str, Any] | None = None) -> dict[str, Any]:
    """A native run as this shape's Run; `action`: what it waits for, if somebody knows."""
    raw = given.get("raw_status")
    status = raw if raw in _OWN_ENDS else STATUS.get(str(given.get("status")), "in_progress")
    times = ("expires_at", "started_at", "cancelled_at", "failed_at", "completed_at")
    return {
        "id": given["run_id"],
        "object": "thread.run",
        "created_at": seconds(given.get("created_at")) or 0,
        "thread_id": native.text_of(given.get("thread_id")),
        "assistant_id": native.agent_of(given),
        "status": status,
        "required_action": action if status == "requires_action" else None,
        "last_error": _last_error(given) if status == "failed" else None,
        **{name: seconds(given.get(name)) for name in times},
        "model": native.text_of(given.get("model")),
        "instructions": native.text_of(given.get("instructions")),
        "tools": given.get("tools") or [],
        "metadata": given.get("metadata") or {},
        "usage": native.usage_of_run(given),
        "max_prompt_tokens": given.get("max_input_tokens"),
        "max_completion_tokens": given.get("max_output_tokens"),
        **{name: given.get(name) for name in _SAME},
    }


def seconds(value: object) -> int | None:
    """A time as whole unix seconds; None for what is none."""
    found = unix(value)
    return None if found is None else int(found)


def _last_error(given: dict[str, Any]) -> dict[str, str]:
    error = given.get("error")
    if isinstance(error, dict):
        return failed(native.text_of(error.get("code")), native.text_of(error.get("message")))
    return failed("", f"the run {given.get('status')}")


def failed(code: str, message: str) -> dict[str, str]:
    """`last_error`: its codes are a closed set in this shape, so any other one goes into the words."""
    if code in ("server_error", "rate_limit_exceeded", "invalid_prompt"):
        return {"code": code, "message": message}
    return {"code": "server_error", "message": f"{code}: {message}" if code and code != message else message}


def action(asked: native.Asked) -> dict[str, Any]:
    """`required_action` of a run that waits."""
    calls = [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": words(one.arguments)}}
        for one in asked.calls
    ]
    return {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": calls}}


def words(value: object) -> str:
    """Any value as the string this shape wants: a text as it is, everything else as JSON."""
    return value if isinstance(value, str) else encode(value).decode()


def listed(items: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": list(items),
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def thread(given: Thread) -> dict[str, Any]:
    created_at = seconds(given.created_at) or 0
    return {"id": given.id, "object": "thread", "created_at": created_at, "metadata": {}, "tool_resources": {}}


def message(given: Message) -> dict[str, Any]:
    return {
        "id": given.id,
        "object": "thread.message",
        "created_at": seconds(given.created_at) or 0,
        "thread_id": given.thread_id,
        "status": "completed",
        "role": given.role,
        "content": [{"type": "text", "text": {"value": given.content, "annotations": []}}],
        "assistant_id": None,
        "run_id": given.run_id,
        "attachments": [],
        "metadata": {},
        "completed_at": None,
        "incomplete_at": None,
        "incomplete_details": None,
    }


def said(body: Mapping[str, Any]) -> str:
    """The text of a user's message to be made; refused if it is anything else."""
    if body.get("role", "user") != "user":
        raise Unsupported("role: only a user's message can be added", details={"field": "role"})
    for name in ("attachments", "metadata"):
        if body.get(name):
            raise Unsupported(f"{name}: the upstream behind this face cannot keep it", details={"field": name})
    content = body.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(parts) < len(content):
            raise Unsupported("content: only text can be passed on", details={"field": "content"})
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequest.field("content", "missing, empty or not a text", "a text")
    return content


def refusal(error: RelayError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of a refusal. What trying again does not mend says so: the SDK also retries a POST."""
    status = 400 if error.status == 422 else error.status
    param = (error.details or {}).get("field")
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}
    hopeless = error.retry_after_s is None and status in (409, 501)
    return status, body, {"x-should-retry": "false"} if hopeless else {}
