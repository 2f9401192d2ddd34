"""How the SeekrFlow face speaks: run objects, errors, the spelling of a status. Its stream is in `face_stream.py`.

Facts: docs/faces.md. Its SDK validates a Run: what it requires and nobody
knows gets the value that page names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from relay.core.errors import InvalidRequest, RelayError, Unsupported
from relay.providers import native
from relay.providers.conversation import Message, Thread

STATUS: Final = {
    "queued": "queued",
    "running": "running",
    "waiting_for_input": "running",
    "cancelling": "running",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "failed",
}
"""Its enum is closed: a status it does not have is the nearest one it has."""

_AGENT: Final = re.compile(r"PythonBindings/(\d{1,4})\.(\d{1,4})", re.ASCII)
_FIRST_DOUBLE_L: Final = (0, 32)
"""The SDK takes only `canceled` before this version and only `cancelled` from it on."""
_FIRST_VERCEL: Final = (0, 21)
"""The first SDK that reads Vercel chunks."""
_ZERO: Final = "1970-01-01T00:00:00Z"


def status(name: object, user_agent: str) -> str:
    """A native status in this shape, spelled as this client's SDK can read it."""
    spelled = STATUS.get(str(name), "running")
    return "canceled" if spelled == "cancelled" and _is_before(user_agent, _FIRST_DOUBLE_L) else spelled


def reads_legacy(user_agent: str) -> bool:
    """Whether this client's SDK reads the older chunks only."""
    return _is_before(user_agent, _FIRST_VERCEL)


def _is_before(user_agent: str, version: tuple[int, int]) -> bool:
    found = _AGENT.search(user_agent)
    return found is not None and (int(found[1]), int(found[2])) < version


def run(given: dict[str, Any], user_agent: str = "") -> dict[str, Any]:
    """A native run as this shape's Run."""
    times = ("started_at", "expires_at", "cancelled_at", "failed_at", "completed_at")
    active = STATUS.get(str(given.get("status")), "running") in ("queued", "running")
    return {
        "id": given["run_id"],
        "object": "thread.run",
        "created_at": native.text_of(given.get("created_at")) or _ZERO,
        "agent_id": native.agent_of(given) or "default_agent",
        "thread_id": native.text_of(given.get("thread_id")),
        "status": status(given.get("status"), user_agent),
        "is_active": active,
        **{name: given.get(name) for name in times},
        "model": native.text_of(given.get("model")),
        "instructions": given.get("instructions"),
        "tools": given.get("tools") or [],
        "meta_data": given.get("metadata") or {},
        "usage": native.usage_of_run(given),
        "temperature": _number(given.get("temperature")),
        "top_p": _number(given.get("top_p")),
        "max_completion_tokens": given.get("max_output_tokens"),
        "truncation_strategy": given.get("truncation_strategy") or {},
        "response_format": given.get("response_format") or "auto",
        "tool_choice": given.get("tool_choice") or "auto",
        "parallel_tool_calls": given.get("parallel_tool_calls") is not False,
    }


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 1.0


def thread(given: Thread) -> dict[str, Any]:
    return {
        "id": given.id,
        "object": "thread",
        "created_at": given.created_at or _ZERO,
        "status": "locked" if given.active_run_id else "available",
        "active_run_id": given.active_run_id,
        "meta_data": {},
    }


def message(given: Message) -> dict[str, Any]:
    return {
        "id": given.id,
        "object": "thread.message",
        "created_at": given.created_at or _ZERO,
        "thread_id": given.thread_id,
        "role": given.role,
        "content": given.content,
        "agent_id": None,
        "run_id": given.run_id,
        "meta_data": {},
    }


def said(body: Mapping[str, Any]) -> str:
    """The text of a user's message to be made; refused if it is anything else."""
    if body.get("role", "user") != "user":
        raise Unsupported("role: only a user's message can be added", details={"field": "role"})
    if body.get("meta_data"):
        raise Unsupported("meta_data: the upstream behind this face cannot keep it", details={"field": "meta_data"})
    content = body.get("content")
    if isinstance(content, list | dict):
        raise Unsupported("content: only text can be passed on", details={"field": "content"})
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequest.field("content", "missing, empty or not a text", "a text")
    return content


def refusal(error: RelayError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of a refusal, as FastAPI writes them."""
    if error.status != 422:
        return error.status, {"detail": error.message}, {}
    details = error.details or {}
    where = [str(details.get("place", "request")), str(details["field"])] if "field" in details else ["request"]
    item = {"loc": where, "msg": str(details.get("problem") or error.message), "type": error.code}
    return 422, {"detail": [item]}, {}


def ascii_json(value: object) -> bytes:
    """One line of pure ASCII: the SDK cuts lines at U+2028 and its like."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")
