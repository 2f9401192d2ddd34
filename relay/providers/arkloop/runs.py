"""Arkloop's runs API: its run objects -> native runs, its refusals -> our errors. By table; never guesses an end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from relay.core.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    RelayError,
    TooLarge,
    TooManyRequests,
    UpstreamError,
    UpstreamUnavailable,
)
from relay.core.ids import is_id

STATUS: Final = {
    "queued": "queued",
    "running": "running",
    "cancelling": "cancelling",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "interrupted",
}
"""Arkloop status -> native status. An unknown one is shown as running (with `raw_status`): never a guessed end."""

_ERRORS: Final[dict[int, type[RelayError]]] = {
    400: InvalidRequest,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: TooManyRequests,
    502: UpstreamUnavailable,
    503: UpstreamUnavailable,
    504: UpstreamUnavailable,
}
_CODE = re.compile(r"[a-z0-9_]{1,40}(\.[a-z0-9_]{1,40}){0,3}", re.ASCII)
_NULLABLE: Final = (
    "thread_id",
    "model",
    "persona_id",
    "total_input_tokens",
    "total_output_tokens",
    "total_cost_usd",
    "duration_ms",
    "cache_hit_rate",
    "credits_used",
    "completed_at",
    "failed_at",
    "created_by_user_id",
    "created_by_user_name",
    "created_by_email",
)
"""Fields of a native run that Arkloop omits when null."""


def native_run(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict) or not _names_a_run(answer):
        raise UpstreamError("the upstream's answer is not a run")
    raw = str(answer.get("status", ""))
    known = dict.fromkeys(_NULLABLE)
    return {
        "run_id": answer["run_id"],
        "org_id": answer.get("account_id"),
        **known,
        **answer,
        "status": STATUS.get(raw, "running"),
        "raw_status": raw,
    }


def created(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict) or not _names_a_run(answer):
        raise UpstreamError("the upstream's answer names no run")
    return answer


def _names_a_run(answer: dict[str, Any]) -> bool:
    run_id = answer.get("run_id")
    return isinstance(run_id, str) and is_id(run_id)


def native_runs(answer: object) -> list[dict[str, Any]]:
    return [native_run(item) for item in _items(answer)]


def native_rows(answer: object) -> list[dict[str, Any] | None]:
    return [native_run(item) if isinstance(item, dict) and _names_a_run(item) else None for item in _items(answer)]


def _items(answer: object) -> list[Any]:
    items = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(items, list):
        raise UpstreamError("the upstream's answer is not a list of runs")
    return items


def refusal(status: int, headers: Mapping[str, str], answer: object) -> RelayError:
    envelope = answer if isinstance(answer, dict) else {}
    message = str(envelope.get("message") or f"the upstream answered {status}")[:500]
    code = envelope.get("code")
    if status == 401:
        # It is our service token that was refused, not the caller's: never pass that on as the caller's fault.
        return UpstreamError("the upstream refused the relay's credentials", code="upstream.unauthorized")
    kind = _ERRORS.get(status)
    if kind is None:
        return UpstreamError(message, code="upstream.error", details={"upstream_status": status})
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        code = kind.code
    return kind(message, code=code, details=_details(envelope), retry_after_s=_retry_after(headers))


def _details(envelope: Mapping[str, Any]) -> dict[str, Any] | None:
    details = envelope.get("details")
    return details if isinstance(details, dict) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return min(float(text), 3600.0) if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) else None
