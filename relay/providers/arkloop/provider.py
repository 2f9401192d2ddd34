"""How to ask Arkloop, and which reader reads which answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from relay.core.errors import RelayError
from relay.core.events import encode
from relay.providers.arkloop import runs
from relay.providers.arkloop.events import drafts
from relay.providers.contract import Ask, RunsQuery

# Arkloop's gateway exempts a stream from its rate limit only if Accept names it and the path ends in /events.
_STREAM: Final = {"Accept": "text/event-stream"}
_JSON: Final = {"Accept": "application/json"}


class Arkloop:
    name = "arkloop"
    list_limit = 200
    # Section 1.5 knows no other status that is not an end; each list is filtered by exactly one.
    active: tuple[str | None, ...] = ("running", "cancelling")
    statuses: Mapping[str, str] = runs.STATUS
    durable_seq: Literal[True] = True

    def authorization(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    def events(self, run_id: str, *, after_seq: int, follow: bool) -> Ask:
        query = {"after_seq": str(after_seq), "follow": "true" if follow else "false"}
        return Ask("GET", f"/v1/runs/{run_id}/events", query, _STREAM)

    drafts = staticmethod(drafts)

    def get_run(self, run_id: str) -> Ask:
        return Ask("GET", f"/v1/runs/{run_id}", {}, _JSON)

    def list_runs(self, query: RunsQuery) -> Ask:
        wanted = {"limit": str(query.limit), "offset": str(query.offset)}
        if query.status is not None:
            # Arkloop has no waiting_for_input: such a run is running there, the shell tells them apart by its log.
            wanted["status"] = "running" if query.status == "waiting_for_input" else query.status
        if query.until is not None:
            wanted["until"] = query.until
        if query.since is not None:
            wanted["since"] = query.since
        if query.thread_id is not None:
            wanted["thread_id"] = query.thread_id
        return Ask("GET", "/v1/runs", wanted, _JSON)

    def list_thread_runs(self, thread_id: str, *, limit: int) -> Ask:
        return Ask("GET", f"/v1/threads/{thread_id}/runs", {"limit": str(limit)}, _JSON)

    def create_run(self, thread_id: str, body: bytes | None) -> Ask:
        return Ask("POST", f"/v1/threads/{thread_id}/runs", {}, _JSON, body)

    def cancel_run(self, run_id: str, *, last_seen_seq: int) -> Ask:
        # The body is required: without last_seen_seq Arkloop answers 422.
        return Ask("POST", f"/v1/runs/{run_id}:cancel", {}, _JSON, encode({"last_seen_seq": last_seen_seq}))

    def provide_input(self, run_id: str, content: str) -> Ask:
        return Ask("POST", f"/v1/runs/{run_id}/input", {}, _JSON, encode({"content": content}))

    def created(self, answer: object) -> dict[str, Any]:
        return runs.created(answer)

    def run(self, answer: object) -> dict[str, Any]:
        return runs.native_run(answer)

    def runs(self, answer: object) -> list[dict[str, Any]]:
        return runs.native_runs(answer)

    def rows(self, answer: object) -> list[dict[str, Any] | None]:
        return runs.native_rows(answer)

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError:
        return runs.refusal(status, headers, answer)
