"""How to ask SeekrFlow, and which reader reads which answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from relay.core.errors import RelayError
from relay.core.events import encode
from relay.core.observed import Observation, Texts
from relay.core.sse import Message
from relay.providers.contract import Ask
from relay.providers.own import Page, ThreadQuery
from relay.providers.refusal import refused
from relay.providers.seekrflow import chunks
from relay.providers.threads import ThreadSystem, text_of

STATUS: Final = {
    "queued": "queued",
    "running": "running",
    "completed": "completed",
    "failed": "failed",
    "canceled": "cancelled",
    "cancelled": "cancelled",
}
"""SeekrFlow status -> native status; both spellings are in its own enum."""


class SeekrFlow(ThreadSystem):
    name = "seekrflow"
    list_limit = 100
    statuses: Mapping[str, str] = STATUS
    root = "/v1"
    named_parts = False
    """Its text ids may be made anew on every connection, and its messages have others."""
    tells_waiting = False
    pages_by: Literal["offset", "id"] = "offset"
    creates: tuple[str, ...] = ("runs", "runs/stream/vercel", "runs/stream")
    """Plainly, to be attached to; or with the run's stream as the answer, in either family of chunks (A1)."""

    def __init__(self, how: str = "runs") -> None:
        self._how = how
        self.streams_on_create = how != "runs"

    def creating(self, how: str) -> SeekrFlow:
        return SeekrFlow(how)

    def authorization(self, token: str) -> dict[str, str]:
        return {"Authorization": token}

    def create_run(self, thread_id: str, body: dict[str, Any]) -> Ask:
        accept = "text/event-stream" if self.streams_on_create else "application/json"
        return self._post(f"/threads/{thread_id}/{self._how}", encode(body), accept)

    def created_in(self, message: Message) -> dict[str, Any] | None:
        return None  # its streams do not say which run they are: the thread does

    def thread(self, thread_id: str) -> Ask | None:
        return self._get(f"/threads/{thread_id}")

    def list_thread_runs(self, thread_id: str, query: ThreadQuery) -> Ask:
        wanted = {"limit": str(query.limit), "order": query.order, "offset": str(query.offset)}
        return self._get(f"/threads/{thread_id}/runs", wanted)

    def cancel_run(self, thread_id: str, run: Mapping[str, Any]) -> Ask:
        # Its body is a RunRequest with the run's agent, the rest defaults, and every key present (A1).
        body: dict[str, Any] = {
            "agent_id": run.get("agent_id") or "default_agent",
            "model_settings": {},
            "response_format": None,
            "group": "default_group",
            "metadata": None,
        }
        return self._post(f"/threads/{thread_id}/runs/{run['run_id']}/cancel", encode(body))

    def provide_input(self, thread_id: str, run: Mapping[str, Any], body: Mapping[str, Any]) -> Ask | None:
        return None  # neither its SDK nor its documentation has such a call

    def attach(self, thread_id: str, run_id: str) -> Ask | None:
        return self._get(f"/threads/{thread_id}/runs/{run_id}/attach", accept="text/event-stream")

    def messages(self, thread_id: str, run_id: str, page: Page | None, have: int) -> Ask:
        # It filters by no run, and a run's messages are the last ones of its thread. That messages have an offset, as
        # runs do, is not documented: who ignores it answers the same page again.
        query = {"limit": str(self.page_limit), "order": "desc"} | ({"offset": str(have)} if have else {})
        return self._get(f"/threads/{thread_id}/messages", query)

    def steps(self, thread_id: str, run_id: str, page: Page | None) -> Ask | None:
        return None

    def reader(self) -> Callable[[Message], list[Observation]]:
        return chunks.read

    def reconciled(
        self,
        run: Mapping[str, Any],
        messages: list[dict[str, Any]] | None,
        steps: list[dict[str, Any]] | None,
        *,
        final: bool,
    ) -> list[Observation]:
        texts = [
            "".join(text for _, text in text_of(message.get("content")))
            for message in messages or ()
            if self.owns(run, message) and message.get("role") == "assistant"
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
