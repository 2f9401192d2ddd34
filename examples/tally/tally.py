"""A provider for a made-up system, Tally, whose jobs write numbered lines: all a new system needs (docs/providers.md).

Tally's API: `POST /queues/{q}/jobs`, `GET /queues/{q}/jobs`, `GET /jobs`, `GET /jobs/{j}`, `POST /jobs/{j}/stop`,
`POST /jobs/{j}/answer {"text"}`, and `GET /jobs/{j}/lines?from=N&live=0|1`, which is SSE: `data:` is one line,
`{"n", "kind", "at", …}`. A job's lines are numbered 1, 2, 3… for ever, so relay's seq is Tally's `n`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from relay.core.errors import RelayError, UpstreamError
from relay.core.events import MAX_SEQ, Draft, decode, encode
from relay.core.ids import is_id
from relay.core.sse import Message
from relay.providers.contract import Ask, RunsQuery
from relay.providers.refusal import refused

# Tally's kind of line -> the native type, and what each of its fields is called there.
KINDS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "began": ("run.started", {}),
    "said": ("message.delta", {"text": "content"}),
    "used": ("tool.call", {"call": "tool_call_id", "tool": "tool_name", "with": "arguments"}),
    "got": ("tool.result", {"call": "tool_call_id", "text": "result"}),
    "asked": ("run.waiting_for_input", {"text": "message"}),
    "finished": ("run.completed", {}),
    "broke": ("run.failed", {"text": "message"}),
    "stopped": ("run.cancelled", {}),
}
_JSON: Final = {"Accept": "application/json"}


class Tally:
    name = "tally"
    list_limit = 50
    active: tuple[str | None, ...] = (None,)  # its list knows no filter by state
    durable_seq: Literal[True] = True
    statuses: Mapping[str, str] = {
        "waiting": "queued", "busy": "running", "asking": "waiting_for_input", "finished": "completed",
        "broke": "failed", "stopped": "cancelled",
    }  # fmt: skip

    def authorization(self, token: str) -> dict[str, str]:
        return {"X-Tally-Key": token}

    # --- how to ask -------------------------------------------------------------------------------------------------
    def events(self, run_id: str, *, after_seq: int, follow: bool) -> Ask:
        query = {"from": str(after_seq + 1), "live": "1" if follow else "0"}
        return Ask("GET", f"/jobs/{run_id}/lines", query, {"Accept": "text/event-stream"})

    def get_run(self, run_id: str) -> Ask:
        return Ask("GET", f"/jobs/{run_id}", {}, _JSON)

    def list_runs(self, query: RunsQuery) -> Ask:
        return Ask("GET", "/jobs", {"max": str(query.limit), "skip": str(query.offset)}, _JSON)

    def list_thread_runs(self, thread_id: str, *, limit: int) -> Ask:
        return Ask("GET", f"/queues/{thread_id}/jobs", {"max": str(limit)}, _JSON)

    def create_run(self, thread_id: str, body: bytes | None) -> Ask:
        return Ask("POST", f"/queues/{thread_id}/jobs", {}, _JSON, body)

    def cancel_run(self, run_id: str, *, last_seen_seq: int) -> Ask:
        return Ask("POST", f"/jobs/{run_id}/stop", {}, _JSON)

    def provide_input(self, run_id: str, content: str) -> Ask:
        return Ask("POST", f"/jobs/{run_id}/answer", {}, _JSON, encode({"text": content}))

    # --- how to read ------------------------------------------------------------------------------------------------
    def drafts(self, message: Message, *, run_id: str, received_at: str) -> list[Draft]:
        try:
            line = decode(message.data)
        except ValueError:
            return []  # what is no line has no number, and so no place
        seq = line.get("n") if isinstance(line, dict) else None
        if type(seq) is not int or not 1 <= seq <= MAX_SEQ:
            return []
        kind = line["kind"] if isinstance(line.get("kind"), str) and line["kind"] else "unknown"
        native, fields = KINDS.get(kind, (kind, {}))
        said = {name: value for name, value in line.items() if name not in ("n", "kind", "at")}
        data = {**said, **{ours: said[theirs] for theirs, ours in fields.items() if theirs in said}}
        at = line["at"] if isinstance(line.get("at"), str) else received_at
        body = {"seq": seq, "type": native, "data": data, "created_at": at, "run_id": run_id, "upstream_type": kind}
        return [Draft(seq, native, body)]

    def created(self, answer: object) -> dict[str, Any]:
        return {"run_id": _job_of(answer)}

    def run(self, answer: object) -> dict[str, Any]:
        run_id = _job_of(answer)
        assert isinstance(answer, dict)
        state = str(answer.get("state", ""))
        about = {"run_id": run_id, "thread_id": answer.get("queue"), "created_at": answer.get("made_at")}
        return {**answer, **about, "status": self.statuses.get(state, "running"), "raw_status": state}

    def runs(self, answer: object) -> list[dict[str, Any]]:
        return [self.run(row) for row in _rows(answer)]

    def rows(self, answer: object) -> list[dict[str, Any] | None]:
        return [self.run(row) if _is_job(row) else None for row in _rows(answer)]

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError:
        return refused(status, headers, message=answer.get("why") if isinstance(answer, dict) else None)


def _is_job(answer: object) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("job"), str) and is_id(answer["job"])


def _job_of(answer: object) -> str:
    if not isinstance(answer, dict) or not _is_job(answer):
        raise UpstreamError("the upstream's answer is not a job")
    return str(answer["job"])


def _rows(answer: object) -> list[Any]:
    if not isinstance(answer, list):
        raise UpstreamError("the upstream's answer is not a list of jobs")
    return answer
