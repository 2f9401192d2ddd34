"""Arkloop's runs API: its run objects -> native runs, its refusals -> our errors. By table; never guesses an end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from relay.core.errors import RelayError, UpstreamError
from relay.core.ids import is_id
from relay.providers.refusal import refused

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
    return refused(
        status, headers, message=envelope.get("message"), code=envelope.get("code"), details=_details(envelope)
    )


def _details(envelope: Mapping[str, Any]) -> dict[str, Any] | None:
    details = envelope.get("details")
    return details if isinstance(details, dict) else None
