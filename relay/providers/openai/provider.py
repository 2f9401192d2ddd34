"""How to ask a system of the Assistants shape, and which reader reads which answer.

Paths are relative to a base URL of the kind the openai SDK takes: with `/v1` for OpenAI, without for Minds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from relay.core.errors import InvalidRequest, RelayError
from relay.core.events import encode
from relay.core.observed import Observation, Text
from relay.core.sse import Message
from relay.core.times import unix
from relay.providers import threads
from relay.providers.contract import Ask
from relay.providers.openai import events
from relay.providers.openai.events import STATUS
from relay.providers.own import Page, ThreadQuery
from relay.providers.refusal import refused
from relay.providers.threads import ThreadSystem


class Assistants(ThreadSystem):
    name = "openai"
    list_limit = 100
    statuses: Mapping[str, str] = STATUS
    root = ""
    headers = {"OpenAI-Beta": "assistants=v2"}  # noqa: RUF012  (a ClassVar of the base)
    named_parts = True
    streams_on_create = True
    tells_waiting = True
    pages_by: Literal["offset", "id"] = "id"

    def authorization(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    def create_run(self, thread_id: str, body: dict[str, Any]) -> Ask:
        return self._post(f"/threads/{thread_id}/runs", encode({**body, "stream": True}), "text/event-stream")

    def created(self, answer: object) -> dict[str, Any]:
        made = super().created(answer)
        return {name: made.get(name) for name in ("run_id", "thread_id", "status")}

    def created_in(self, message: Message) -> dict[str, Any] | None:
        body = events.run_in(message)
        return self.created(body) if body is not None else None

    def list_thread_runs(self, thread_id: str, query: ThreadQuery) -> Ask:
        wanted = {"limit": str(query.limit), "order": query.order}
        wanted |= {name: value for name, value in (("after", query.after), ("before", query.before)) if value}
        return self._get(f"/threads/{thread_id}/runs", wanted)

    def cancel_run(self, thread_id: str, run: Mapping[str, Any]) -> Ask:
        return self._post(f"/threads/{thread_id}/runs/{run['run_id']}/cancel", b"{}")

    def provide_input(self, thread_id: str, run: Mapping[str, Any], body: Mapping[str, Any]) -> Ask | None:
        outputs = _outputs(run, body)
        path = f"/threads/{thread_id}/runs/{run['run_id']}/submit_tool_outputs"
        return self._post(path, encode({"tool_outputs": outputs}))

    def attach(self, thread_id: str, run_id: str) -> Ask | None:
        return None

    def messages(self, thread_id: str, run_id: str, page: Page | None, have: int) -> Ask:
        return self._get(f"/threads/{thread_id}/messages", {"run_id": run_id, **self._behind(page, "desc")})

    def steps(self, thread_id: str, run_id: str, page: Page | None) -> Ask | None:
        return self._get(f"/threads/{thread_id}/runs/{run_id}/steps", self._behind(page, "asc"))

    def _behind(self, page: Page | None, order: str) -> dict[str, str]:
        after = {"after": page.last_id} if page is not None and page.last_id else {}
        return {"order": order, "limit": str(self.page_limit), **after}

    def reader(self) -> Callable[[Message], list[Observation]]:
        return events.read

    def owns(self, run: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
        """By `run_id`; where a system leaves it out, by time: a thread has one run at a time."""
        if message.get("run_id") is not None:
            return super().owns(run, message)
        made, began, ended = (unix(value) for value in (message.get("created_at"), run["created_at"], run["ended_at"]))
        assistants = message.get("role", "assistant") == "assistant"
        in_time = made is not None and began is not None and int(began) <= made and (ended is None or made <= ended + 1)
        return assistants and in_time

    def reconciled(
        self,
        run: Mapping[str, Any],
        messages: list[dict[str, Any]] | None,
        steps: list[dict[str, Any]] | None,
        *,
        final: bool,
    ) -> list[Observation]:
        """In the order of the steps, each of which made one message or called tools; then what no step names."""
        texts = _texts([one for one in messages or () if self.owns(run, one)], final=final)
        seen: list[Observation] = []
        for step in steps or ():
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


def _texts(messages: Iterable[dict[str, Any]], *, final: bool) -> dict[str, list[Text]]:
    """The texts of the run's messages, by message id, in order."""
    found: dict[str, list[Text]] = {}
    for message in messages:
        if isinstance(message.get("id"), str) and message.get("role") == "assistant":
            complete = final or message.get("status") == "completed"
            found[message["id"]] = events.texts_of_message(message, final=complete)
    return found


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
