"""Runs as the SeekrFlow and Assistants systems describe them -> native runs and snapshots (table D of their reference).

`ThreadSystem` is what providers of such systems have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Self

from relay.core.errors import UpstreamError
from relay.core.events import decode
from relay.core.ids import is_id
from relay.core.observed import Call, Snapshot
from relay.core.times import rfc3339, unix
from relay.providers.contract import Ask
from relay.providers.conversation import Message
from relay.providers.own import Page

_TIMES: Final = ("created_at", "started_at", "completed_at", "failed_at", "cancelled_at", "expires_at")
_STAMPS: Final = {"cancelled_at": "cancelled", "failed_at": "failed", "completed_at": "completed"}
"""Which timestamp speaks of which end, the strongest word first (C1, polling mode)."""
_NATIVE: Final[tuple[str, ...]] = (
    "org_id",
    "persona_id",
    "total_cost_usd",
    "cache_hit_rate",
    "credits_used",
    "created_by_user_id",
    "created_by_user_name",
    "created_by_email",
)
"""Fields of a native run these systems do not know."""
_RENAMED: Final = {
    "id": "run_id",
    "meta_data": "metadata",
    "assistant_id": "agent_id",
    "max_completion_tokens": "max_output_tokens",
    "max_prompt_tokens": "max_input_tokens",
}

MARK: Final = "relay_mark"
"""Where runs made through relay carry their mark in their metadata; shown to nobody."""
_ENTRIES: Final = 16
"""Most entries the metadata of a run may have (OpenAI; SeekrFlow names no bound)."""


class ThreadSystem:
    """What these systems have in common: paths below a thread, one kind of run, lists in pages."""

    durable_seq: Literal[False] = False
    page_limit = 100
    creates: tuple[str, ...] = ("runs",)
    statuses: Mapping[str, str]
    root: ClassVar[str]
    """What comes before `/threads`."""
    headers: ClassVar[dict[str, str]] = {}
    """What every request carries."""

    def creating(self, how: str) -> Self:
        return self

    def thread(self, thread_id: str) -> Ask | None:
        return None

    def busy_with(self, answer: object) -> str | None:
        if not isinstance(answer, dict):
            raise UpstreamError("the upstream's answer is not a thread")
        found = answer.get("active_run_id")
        return found if isinstance(found, str) and is_id(found) else None

    def get_run(self, thread_id: str, run_id: str) -> Ask:
        return self._get(f"/threads/{thread_id}/runs/{run_id}")

    def created(self, answer: object) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise UpstreamError("the upstream's answer names no run")
        return {**answer, "run_id": run_id_of(answer)}

    def marked(self, body: dict[str, Any], mark: str) -> dict[str, Any] | None:
        return marked(body, mark)

    def marked_run(self, answer: object, mark: str) -> dict[str, Any] | None:
        return marked_run(answer, mark)

    def run(self, answer: object) -> dict[str, Any]:
        return native_run(answer, self.statuses)

    def runs(self, answer: object) -> list[dict[str, Any]]:
        return [self.run(item) for item in list_of(answer, "runs")]

    def snapshot(self, run: Mapping[str, Any]) -> Snapshot:
        return snapshot_of(run, self.statuses)

    def page(self, answer: object) -> Page:
        rows = list_of(answer, "messages or steps")
        items = tuple(row for row in rows if isinstance(row, dict))
        said = answer if isinstance(answer, dict) else {}
        last = said.get("last_id") or (items[-1].get("id") if items else None)
        more = bool(rows) and said.get("has_more") is not False  # a bare array does not say
        return Page(items, len(rows), last if isinstance(last, str) and is_id(last) else None, more)

    def owns(self, run: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
        return bool(message.get("run_id") == run["run_id"])

    def is_past(self, run: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> bool:
        """A thread is locked while it has a run, so what a run writes stands together; what is older, is older."""
        began, own = unix(run["created_at"]), False
        for message in messages:
            mine = self.owns(run, message)
            other = not mine and (message.get("run_id") is not None or message.get("role") == "user")
            made = unix(message.get("created_at"))
            if (own and other) or (not mine and made is not None and began is not None and made < int(began) - 1):
                return True
            own = own or mine
        return False

    def _get(self, path: str, query: Mapping[str, str] | None = None, accept: str = "application/json") -> Ask:
        return Ask("GET", self.root + path, dict(query or {}), {"Accept": accept, **self.headers})

    def _post(self, path: str, body: bytes, accept: str = "application/json") -> Ask:
        return Ask("POST", self.root + path, {}, {"Accept": accept, **self.headers}, body)


def native_run(answer: object, statuses: Mapping[str, str]) -> dict[str, Any]:
    """`statuses`: the system's status -> ours. An unknown one is shown as running: never a guessed end."""
    if not isinstance(answer, dict):
        raise UpstreamError("the upstream's answer is not a run")
    run_id = run_id_of(answer)
    raw = answer.get("status")
    raw = raw if isinstance(raw, str) else ""
    renamed: dict[str, Any] = {_RENAMED.get(str(name), str(name)): value for name, value in answer.items()}
    unknown: dict[str, Any] = dict.fromkeys(_NATIVE)
    run: dict[str, Any] = {
        **unknown,
        **renamed,
        **{name: rfc3339(answer.get(name)) for name in _TIMES},
        "run_id": run_id,
        "thread_id": _thread_id(answer),
        "agent_id": _text(renamed.get("agent_id")),
        "status": statuses.get(raw, "running"),
        "raw_status": raw,
        "model": _text(answer.get("model")),
        "instructions": _text(answer.get("instructions")),
        "metadata": {name: value for name, value in _metadata(answer).items() if name != MARK},
        "tools": answer["tools"] if isinstance(answer.get("tools"), list) else [],
        "usage": _usage(answer.get("usage")),
        "error": _error(answer, raw),
        "required_action": _object(answer.get("required_action")),
    }
    return run | _derived(run)


def marked(body: dict[str, Any], mark: str) -> dict[str, Any] | None:
    """The body of a create with a mark in its metadata; None if it has no room for one, or is none that would be taken."""
    given = body.get("metadata")
    metadata = {} if given is None else given
    if not isinstance(metadata, dict) or len(metadata) >= _ENTRIES:
        return None
    return {**body, "metadata": {**metadata, MARK: mark}}


def marked_run(answer: object, mark: str) -> dict[str, Any] | None:
    """The run of a list answer that was made with this mark."""
    for item in list_of(answer, "runs"):
        if isinstance(item, dict) and _metadata(item).get(MARK) == mark:
            return {"run_id": run_id_of(item), "thread_id": _thread_id(item), "status": item.get("status")}
    return None


def run_id_of(answer: Mapping[str, Any]) -> str:
    """`id`, or `run_id` as SeekrFlow's create and cancel answers have it."""
    for name in ("run_id", "id"):
        found = answer.get(name)
        if isinstance(found, str) and is_id(found):
            return found
    raise UpstreamError("the upstream's answer names no run")


def list_of(answer: object, what: str) -> list[Any]:
    """The items of a bare array, or of a list envelope."""
    items = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(items, list):
        raise UpstreamError(f"the upstream's answer is not a list of {what}")
    return items


def snapshot_of(run: Mapping[str, Any], statuses: Mapping[str, str]) -> Snapshot:
    stamped = next((status for name, status in _STAMPS.items() if run.get(name)), None)
    return Snapshot(
        status=run["status"],
        raw_status=run["raw_status"],
        known=run["raw_status"] in statuses,
        created_at=run["created_at"],
        started_at=run["started_at"],
        ended_at=run["ended_at"],
        stamped=stamped,
        usage=run["usage"],
        error=run["error"],
        calls=_required_calls(run["required_action"]),
    )


def call_of(item: object) -> Call | None:
    """A tool call as `required_action` and run steps write it; None for what has no id."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not item["id"]:
        return None
    kind = item.get("type") if isinstance(item.get("type"), str) else "function"
    body = item.get(str(kind))
    body = body if isinstance(body, dict) else {}
    if kind != "function":
        return Call(item["id"], str(kind), body.get("input", body), {"tool_type": kind})
    name = body.get("name")
    parsed, data = arguments_of(body.get("arguments"))
    return Call(item["id"], name if isinstance(name, str) else "", parsed, data)


def arguments_of(given: object) -> tuple[Any, dict[str, Any]]:
    """Arguments as a value, and the text they came as beside it."""
    if not isinstance(given, str):
        return given, {}
    try:
        return decode(given.encode("utf-8", "surrogatepass")), {"arguments_json": given}
    except ValueError:
        return given, {"arguments_json": given}


def text_of(content: object) -> list[tuple[int, str]]:
    """The texts of a message's content, each with its index: a plain string, or a list of typed parts."""
    if isinstance(content, str):
        return [(0, content)]
    found = []
    for index, part in enumerate(content if isinstance(content, list) else []):
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, dict):
            text = text.get("value")
        if isinstance(text, str):
            found.append((index, text))
    return found


def message(answer: object) -> Message:
    """A message as both write it, text only. UpstreamError if it is none."""
    if not isinstance(answer, dict) or not isinstance(answer.get("id"), str) or not answer["id"]:
        raise UpstreamError("the upstream's answer is not a message")
    return Message(
        id=answer["id"],
        thread_id=_text(answer.get("thread_id")) or "",
        role=_text(answer.get("role")) or "",
        content="".join(text for _, text in text_of(answer.get("content"))),
        created_at=rfc3339(answer.get("created_at")) or "",
        run_id=_text(answer.get("run_id")),
    )


# --- fields ----------------------------------------------------------------------------------------------------------
def _thread_id(answer: Mapping[str, Any]) -> str | None:
    found = answer.get("thread_id")
    return found if isinstance(found, str) and is_id(found) else None


def _metadata(answer: Mapping[str, Any]) -> dict[str, Any]:
    return _object(answer.get("metadata")) or _object(answer.get("meta_data")) or {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _object(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _usage(given: object) -> dict[str, Any] | None:
    if not isinstance(given, dict):
        return None
    return {
        "input_tokens": _count(given.get("prompt_tokens")),
        "output_tokens": _count(given.get("completion_tokens")),
        "total_tokens": _count(given.get("total_tokens")),
    }


def _error(answer: Mapping[str, Any], raw: str) -> dict[str, Any] | None:
    given = answer.get("last_error")
    if isinstance(given, dict):
        return {"code": _text(given.get("code")), "message": _text(given.get("message"))}
    if raw == "incomplete":
        details = _object(answer.get("incomplete_details")) or {}
        return {"code": f"incomplete:{_text(details.get('reason')) or 'unknown'}", "message": None}
    return {"code": "expired", "message": None} if raw == "expired" else None


def _required_calls(action: object) -> tuple[Call, ...]:
    submit = action.get("submit_tool_outputs") if isinstance(action, dict) else None
    calls = submit.get("tool_calls") if isinstance(submit, dict) else None
    made = [call_of(item) for item in (calls if isinstance(calls, list) else [])]
    return tuple(call for call in made if call is not None)


def _derived(run: Mapping[str, Any]) -> dict[str, Any]:
    ended_at = next((run[name] for name in _STAMPS if run[name]), None)
    if ended_at is None and run["raw_status"] == "expired":
        ended_at = run["expires_at"]
    began, ended = unix(run["started_at"] or run["created_at"]), unix(ended_at)
    usage = run["usage"] or {}
    return {
        "ended_at": ended_at,
        "duration_ms": max(0, round((ended - began) * 1000)) if began is not None and ended is not None else None,
        "total_input_tokens": usage.get("input_tokens"),
        "total_output_tokens": usage.get("output_tokens"),
    }
