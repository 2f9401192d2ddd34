"""How to ask SeekrFlow, and which reader reads which answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from relay.core.errors import RelayError, UpstreamError
from relay.core.events import encode
from relay.core.observed import Observation, Snapshot, Texts
from relay.core.sse import Message
from relay.providers import threads
from relay.providers.contract import Ask
from relay.providers.own import MessagesPage, ThreadQuery
from relay.providers.refusal import refused
from relay.providers.seekrflow import chunks

STATUS: Final = {
    "queued": "queued",
    "running": "running",
    "completed": "completed",
    "failed": "failed",
    "canceled": "cancelled",
    "cancelled": "cancelled",
}
"""SeekrFlow status -> native status; both spellings are in its own enum."""
_JSON: Final = {"Accept": "application/json"}
_STREAM: Final = {"Accept": "text/event-stream"}
_MESSAGES: Final = 100


class SeekrFlow:
    name = "seekrflow"
    list_limit = 100
    durable_seq: Literal[False] = False
    named_parts = False
    """Its text ids may be made anew on every connection, and its messages have others."""
    streams_on_create = False
    pages_by: Literal["offset", "id"] = "offset"

    def authorization(self, token: str) -> dict[str, str]:
        return {"Authorization": token}

    def create_run(self, thread_id: str, body: dict[str, Any]) -> Ask:
        return Ask("POST", f"/v1/threads/{thread_id}/runs", {}, _JSON, encode(body))

    def created(self, answer: object) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise UpstreamError("the upstream's answer names no run")
        return {**answer, "run_id": threads.run_id_of(answer)}

    def created_in(self, message: Message) -> dict[str, Any] | None:
        return None  # its streams do not say which run they are

    def get_run(self, thread_id: str, run_id: str) -> Ask:
        return Ask("GET", f"/v1/threads/{thread_id}/runs/{run_id}", {}, _JSON)

    def list_thread_runs(self, thread_id: str, query: ThreadQuery) -> Ask:
        wanted = {"limit": str(query.limit), "order": query.order, "offset": str(query.offset)}
        return Ask("GET", f"/v1/threads/{thread_id}/runs", wanted, _JSON)

    def cancel_run(self, thread_id: str, run: Mapping[str, Any]) -> Ask:
        # Its body is a RunRequest with the run's agent, the rest defaults, and every key present (A1).
        body: dict[str, Any] = {
            "agent_id": run.get("agent_id") or "default_agent",
            "model_settings": {},
            "response_format": None,
            "group": "default_group",
            "metadata": None,
        }
        return Ask("POST", f"/v1/threads/{thread_id}/runs/{run['run_id']}/cancel", {}, _JSON, encode(body))

    def provide_input(self, thread_id: str, run: Mapping[str, Any], body: Mapping[str, Any]) -> Ask | None:
        return None  # neither its SDK nor its documentation has such a call

    def attach(self, thread_id: str, run_id: str) -> Ask | None:
        return Ask("GET", f"/v1/threads/{thread_id}/runs/{run_id}/attach", {}, _STREAM)

    def messages(self, thread_id: str, run_id: str, *, after: str | None) -> Ask:
        # Newest first: it filters by no run, and a run's messages are the last ones of its thread.
        query = {"limit": str(_MESSAGES), "order": "desc"}
        return Ask("GET", f"/v1/threads/{thread_id}/messages", query, _JSON)

    def steps(self, thread_id: str, run_id: str) -> Ask | None:
        return None

    def run(self, answer: object) -> dict[str, Any]:
        return threads.native_run(answer, STATUS)

    def runs(self, answer: object) -> list[dict[str, Any]]:
        return [self.run(item) for item in threads.list_of(answer, "runs")]

    def snapshot(self, run: Mapping[str, Any]) -> Snapshot:
        return threads.snapshot_of(run, STATUS)

    def reader(self) -> Callable[[Message], list[Observation]]:
        return chunks.read

    def messages_page(self, answer: object) -> MessagesPage:
        items = threads.list_of(answer, "messages")
        return MessagesPage(tuple(item for item in items if isinstance(item, dict)))

    def reconciled(
        self, run: Mapping[str, Any], messages: list[dict[str, Any]] | None, steps: object, *, final: bool
    ) -> list[Observation]:
        texts = [
            "".join(text for _, text in threads.text_of(message.get("content")))
            for message in messages or ()
            if message.get("run_id") == run["run_id"] and message.get("role") == "assistant"
        ]
        # A run without a message says nothing of its text: some of them only call tools, some lists are late.
        return [Texts(tuple(texts), final)] if any(texts) else []

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError:
        detail = answer.get("detail") if isinstance(answer, dict) else None
        if isinstance(detail, list):
            return refused(
                status, headers, message="the upstream found the request invalid", details={"detail": detail}
            )
        return refused(status, headers, message=detail if isinstance(detail, str) else None)
