"""What the JSON calls take and give: rows as the API shows them, list queries, request bodies (arkloop.md 1.2 to 1.7).

Plain functions from a row or a query to a value; they raise `wire.Refusal` and know no sockets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from relay.demo import wire
from relay.demo.ledger import ACCOUNT_ID, USER_ID, Run

MAX_INPUT_BYTES = 32_768
CREATE_FIELDS = frozenset(
    {"route_id", "persona_id", "output_route_id", "output_model_key", "model", "work_dir", "reasoning_mode"}
)
_ROUTE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}(@[A-Za-z0-9._:-]{1,64})?")
_END_FIELDS = {"run.completed": "completed_at", "run.failed": "failed_at"}


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def run_view(run: Run) -> dict[str, Any]:
    """`GET /v1/runs/{id}` (1.5)."""
    return {
        "run_id": run.run_id,
        "account_id": ACCOUNT_ID,
        "thread_id": run.thread_id,
        "created_by_user_id": USER_ID,
        **_present({"parent_run_id": run.parent_run_id, "child_run_ids": run.child_run_ids or None}),
        "status": run.status,
        "created_at": wire.timestamp(run.created_at, 6),
        "trace_id": run.trace_id,
    }


def thread_item(run: Run) -> dict[str, Any]:
    """An item of `GET /v1/threads/{id}/runs` (1.3)."""
    return {"run_id": run.run_id, "status": run.status, "created_at": wire.timestamp(run.created_at, 6)}


def list_item(run: Run) -> dict[str, Any]:
    """An item of `GET /v1/runs`: null fields are left out (1.4)."""
    ended_at = wire.timestamp(run.ended_at, 6) if run.ended_at else None
    facts = {
        "model": run.model,
        "persona_id": run.persona_id,
        "parent_run_id": run.parent_run_id,
        "total_input_tokens": run.usage.get("input_tokens"),
        "total_output_tokens": run.usage.get("output_tokens"),
        "duration_ms": _milliseconds(run),
        _END_FIELDS.get(run.ended or "", "completed_at"): ended_at if run.ended in _END_FIELDS else None,
        "created_by_user_id": USER_ID,
    }
    return {**thread_item(run), "account_id": ACCOUNT_ID, "thread_id": run.thread_id, **_present(facts)}


def _milliseconds(run: Run) -> int | None:
    return round((run.ended_at - run.created_at).total_seconds() * 1000) if run.ended_at else None


def matches(run: Run, query: Mapping[str, str]) -> bool:
    """The filters of `GET /v1/runs` (1.4); ids by prefix, names by part of them, whatever their case."""
    return (
        run.run_id.startswith(query.get("run_id", "").lower())
        and run.thread_id.startswith(query.get("thread_id", ""))
        and query.get("status") in {None, "", run.status}
        and query.get("parent_run_id") in {None, "", run.parent_run_id}
        and _like(run.model, query.get("model"))
        and _like(run.persona_id, query.get("persona_id"))
        and _moment(query, "since", datetime.min.replace(tzinfo=UTC)) <= run.created_at
        and run.created_at <= _moment(query, "until", datetime.max.replace(tzinfo=UTC))
    )


def _like(value: str | None, part: str | None) -> bool:
    return not part or part.lower() in (value or "").lower()


def _moment(query: Mapping[str, str], name: str, default: datetime) -> datetime:
    text = query.get(name)
    if not text:
        return default
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise wire.invalid(f"{name} must be an RFC 3339 time") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def body_fields(raw: bytes, allowed: frozenset[str]) -> dict[str, Any]:
    """A JSON object with known fields only; an empty body is an empty object."""
    if not raw.strip():
        return {}
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise wire.invalid("request body is not JSON") from None
    if not isinstance(fields, dict):
        raise wire.invalid("request body must be an object")
    if unknown := sorted(fields.keys() - allowed):
        raise wire.invalid(f"unknown field: {unknown[0]}")
    return fields


def create_fields(raw: bytes) -> dict[str, str]:
    """The body of `POST …/runs` (1.2): optional, all strings."""
    fields = body_fields(raw, CREATE_FIELDS)
    for name, value in fields.items():
        if not isinstance(value, str):
            raise wire.invalid(f"{name} must be a string")
        if name in {"route_id", "persona_id"} and not _ROUTE.fullmatch(value):
            raise wire.invalid(f"{name} is malformed")
    return fields


def cancel_fields(raw: bytes) -> dict[str, Any]:
    """The body of `:cancel` (1.6): required, with `last_seen_seq`."""
    fields = body_fields(raw, frozenset({"last_seen_seq", "client_cancelled_at"}))
    seen = fields.get("last_seen_seq")
    if not isinstance(seen, int) or isinstance(seen, bool) or seen < 0:
        raise wire.invalid("last_seen_seq must be a non-negative integer")
    _moment(fields, "client_cancelled_at", datetime.now(UTC))
    return fields


def input_content(raw: bytes) -> str:
    """The body of `/input` (1.7)."""
    content = body_fields(raw, frozenset({"content"})).get("content")
    if not isinstance(content, str) or not content.strip():
        raise wire.invalid("content must not be empty")
    if len(content.encode()) > MAX_INPUT_BYTES:
        raise wire.invalid("content too large")
    return content
