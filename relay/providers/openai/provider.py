"""How to ask a system of the Assistants shape, and which reader reads which answer.

Paths are relative to a base URL of the kind the openai SDK takes: with `/v1` for OpenAI, without for Minds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

from relay.core.errors import InvalidRequest, RelayError, UpstreamError
from relay.core.events import encode
from relay.core.observed import Observation, Snapshot, Text
from relay.core.sse import Message
from relay.core.times import unix
from relay.providers import threads
from relay.providers.contract import Ask
from relay.providers.openai import events
from relay.providers.openai.events import STATUS
from relay.providers.own import MessagesPage, ThreadQuery
from relay.providers.refusal import refused

_HEADERS: Final = {"Accept": "application/json", "OpenAI-Beta": "assistants=v2"}
_STREAM: Final = {"Accept": "text/event-stream", "OpenAI-Beta": "assistants=v2"}
_PAGE: Final = "100"


class Assistants:
    name = "openai"
    list_limit = 100
    durable_seq: Literal[False] = False
    named_parts = True
    streams_on_create = True
    pages_by: Literal["offset", "id"] = "id"

    def authorization(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    def create_run(self, thread_id: str, body: dict[str, Any]) -> Ask:
        return Ask("POST", f"/threads/{thread_id}/runs", {}, _STREAM, encode({**body, "stream": True}))

    def created(self, answer: object) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise UpstreamError("the upstream's answer names no run")
        return {
            "run_id": threads.run_id_of(answer),
            "thread_id": answer.get("thread_id"),
            "status": answer.get("status"),
        }

    def created_in(self, message: Message) -> dict[str, Any] | None:
        body = events.run_in(message)
        return self.created(body) if body is not None else None

    def get_run(self, thread_id: str, run_id: str) -> Ask:
        return Ask("GET", f"/threads/{thread_id}/runs/{run_id}", {}, _HEADERS)

    def list_thread_runs(self, thread_id: str, query: ThreadQuery) -> Ask:
        wanted = {"limit": str(query.limit), "order": query.order}
        wanted |= {name: value for name, value in (("after", query.after), ("before", query.before)) if value}
        return Ask("GET", f"/threads/{thread_id}/runs", wanted, _HEADERS)

    def cancel_run(self, thread_id: str, run: Mapping[str, Any]) -> Ask:
        return Ask("POST", f"/threads/{thread_id}/runs/{run['run_id']}/cancel", {}, _HEADERS, b"{}")

    def provide_input(self, thread_id: str, run: Mapping[str, Any], body: Mapping[str, Any]) -> Ask | None:
        outputs = _outputs(run, body)
        path = f"/threads/{thread_id}/runs/{run['run_id']}/submit_tool_outputs"
        return Ask("POST", path, {}, _HEADERS, encode({"tool_outputs": outputs}))

    def attach(self, thread_id: str, run_id: str) -> Ask | None:
        return None

    def messages(self, thread_id: str, run_id: str, *, after: str | None) -> Ask:
        query = {"run_id": run_id, "order": "desc", "limit": _PAGE} | ({"after": after} if after else {})
        return Ask("GET", f"/threads/{thread_id}/messages", query, _HEADERS)

    def steps(self, thread_id: str, run_id: str) -> Ask | None:
        return Ask("GET", f"/threads/{thread_id}/runs/{run_id}/steps", {"order": "asc", "limit": _PAGE}, _HEADERS)

    def run(self, answer: object) -> dict[str, Any]:
        return threads.native_run(answer, STATUS)

    def runs(self, answer: object) -> list[dict[str, Any]]:
        return [self.run(item) for item in threads.list_of(answer, "runs")]

    def snapshot(self, run: Mapping[str, Any]) -> Snapshot:
        return threads.snapshot_of(run, STATUS)

    def reader(self) -> Callable[[Message], list[Observation]]:
        return events.read

    def messages_page(self, answer: object) -> MessagesPage:
        items = tuple(item for item in threads.list_of(answer, "messages") if isinstance(item, dict))
        more = isinstance(answer, dict) and answer.get("has_more") is True
        last = answer.get("last_id") if isinstance(answer, dict) else None
        return MessagesPage(items, last if more and isinstance(last, str) else None)

    def reconciled(
        self, run: Mapping[str, Any], messages: list[dict[str, Any]] | None, steps: object, *, final: bool
    ) -> list[Observation]:
        """In the order of the steps, each of which made one message or called tools; then what no step names."""
        texts = _texts(run, messages or (), final=final)
        seen: list[Observation] = []
        for step in _items(steps):
            details = step.get("step_details")
            made = details.get("message_creation") if isinstance(details, dict) else None
            message_id = made.get("message_id") if isinstance(made, dict) else None
            seen += texts.pop(str(message_id), ()) if message_id else events.calls_of_step(step)
        return seen + [text for rest in texts.values() for text in rest]

    def error(self, status: int, headers: Mapping[str, str], answer: object) -> RelayError:
        given = answer.get("error") if isinstance(answer, dict) else None
        given = given if isinstance(given, dict) else answer if isinstance(answer, dict) else {}
        message = given.get("message") or given.get("detail")
        return refused(status, headers, message=message if isinstance(message, str) else None, details=_param(given))


def _param(given: Mapping[str, Any]) -> dict[str, Any] | None:
    kept = {name: given[name] for name in ("type", "param", "code") if isinstance(given.get(name), str)}
    return kept or None


def _items(answer: object) -> Iterable[dict[str, Any]]:
    items = answer.get("data") if isinstance(answer, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else ()


def _texts(run: Mapping[str, Any], messages: Iterable[dict[str, Any]], *, final: bool) -> dict[str, list[Text]]:
    """The texts of the run's own messages, by message id, in order."""
    found: dict[str, list[Text]] = {}
    for message in messages:
        if isinstance(message.get("id"), str) and message.get("role") == "assistant" and _is_of(run, message):
            complete = final or message.get("status") == "completed"
            found[message["id"]] = events.texts_of_message(message, final=complete)
    return found


def _is_of(run: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """By `run_id`; where a system leaves it out, by time: a thread has one run at a time."""
    if message.get("run_id") is not None:
        return bool(message["run_id"] == run["run_id"])
    made, began, ended = (unix(value) for value in (message.get("created_at"), run["created_at"], run["ended_at"]))
    return made is not None and began is not None and int(began) <= made and (ended is None or made <= ended + 1)


def _outputs(run: Mapping[str, Any], body: Mapping[str, Any]) -> list[dict[str, str]]:
    """`tool_outputs` as they are; `content` alone answers the one call that is waited for."""
    given = body.get("tool_outputs")
    if given is None:
        wanted = threads.snapshot_of(run, STATUS).calls
        if len(wanted) != 1 or not isinstance(body.get("content"), str):
            raise InvalidRequest.field(
                "tool_outputs", "needed", "a list of {tool_call_id, output}, one per waiting call"
            )
        return [{"tool_call_id": wanted[0].id, "output": body["content"]}]
    well = isinstance(given, list) and all(
        isinstance(one, dict) and isinstance(one.get("tool_call_id"), str) and isinstance(one.get("output"), str)
        for one in given
    )
    if not well or not given:
        raise InvalidRequest.field("tool_outputs", "not well-formed", "a list of {tool_call_id, output}, both text")
    return [{"tool_call_id": one["tool_call_id"], "output": one["output"]} for one in given]
