"""How the OpenAI Assistants face tells a run: `event:` and `data:`, never `id:` or `retry:` (its SDK breaks on both).

A fold over native events: a run opens with `thread.run.created`, text is a message (created, deltas, completed with the
whole text), a tool call is a step. Ids come from the seq of what opened a thing, so that every replay has the same ones.
The stream ends with the run, or where it waits for input and nothing more is there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from relay.core.events import Event, encode, is_final
from relay.core.faces import FaceWire, nothing
from relay.core.wires import Notice
from relay.providers import native
from relay.providers.native import Said, appended
from relay.providers.openai import face

PING: Final = b": ping\n"
"""One line end: with two, the SDK delivers an empty event and cannot parse it."""
DONE: Final = b"event: done\ndata: [DONE]\n\n"


def _words(notice: Notice) -> bytes:
    if notice.type == "relay.end":
        return DONE
    if notice.type == "relay.reset":
        # The nested form is the one the SDK raises; a flat one it would pass over, and the hole with it.
        lost = f"events {notice.data['from_seq']} to {notice.data['to_seq']} of this run can no longer be had"
        error = {"message": lost, "type": "server_error", "param": None, "code": "relay.reset"}
        return _frame("error", {"error": error})
    return b""


WIRE: Final = FaceWire("openai", 20, PING, nothing, _words)


def _frame(event: str, data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), encode(data))


# --- the state ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Message:
    id: str
    step_id: str
    created_at: int | None
    part: str
    """The upstream's name of the text; another one is another message."""
    text: tuple[str, ...] = ()
    """Its text so far, in few pieces."""


@dataclass(frozen=True, slots=True)
class Tool:
    step_id: str
    created_at: int | None
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Told:
    """What a reader has been told so far."""

    opened: bool = False
    status: str = "queued"
    agent: str = ""
    model: str = ""
    """What the run's own first event says of it, if its row did not."""
    started_at: int | None = None
    message: Message | None = None
    tools: tuple[Tool, ...] = ()
    asked: frozenset[str] = frozenset()
    """The calls of the last question."""
    answered: frozenset[str] = frozenset()
    """The calls this reader has answered: the question they were asked with is no question to it."""
    silent: bool = False
    """That question is still to come, and the reader knows what lies before it."""
    gap: str = ""
    """Why something of the run could not be had: from then on in the run's metadata."""
    over: bool = False


def answered(told: Told, calls: Iterable[str]) -> Told:
    """Where somebody stands who was told so much of a run, and has just answered these calls."""
    these = frozenset(calls)
    return replace(told, opened=True, status="queued", answered=these, silent=told.asked != these)


class RunFold:
    """One run told in this shape; `run` is its native form, of which only what never changes is used."""

    def __init__(self, run: dict[str, Any], *, start: Told | None = None) -> None:
        """`start`: where the telling begins, if not at the run's beginning."""
        blank = dict.fromkeys(("usage", "error", "total_input_tokens", "total_output_tokens"))
        ends = dict.fromkeys(("started_at", "completed_at", "failed_at", "cancelled_at"))
        still = {**run, **blank, **ends, "status": "queued", "raw_status": "queued", "incomplete_details": None}
        self.run = face.run(still)
        self._start = start or Told()
        self._key = (encode(self.run), self._start)

    @property
    def key(self) -> Hashable:
        return self._key

    def begin(self) -> Told:
        return self._start

    def tell(self, state: Told, event: Event) -> tuple[bytes, Told]:
        turn = self.turn(state, event)
        return b"".join([_frame(name, data) for name, data in turn.said]), turn.state

    def turn(self, state: Told, event: Event) -> _Turn:
        turn = _Turn(self.run, state, native.read(event))
        if not state.over:
            turn.take()
        return turn

    def over(self, state: Told) -> bool:
        return state.over

    def resting(self, state: Told) -> bool:
        return state.status == "requires_action"


class _Turn:
    """One event being told: what is said, and the state as it moves."""

    __slots__ = ("_at", "_event", "_run", "said", "state")

    def __init__(self, run: dict[str, Any], state: Told, event: Said) -> None:
        self.state = state
        self.said: list[tuple[str, dict[str, Any]]] = []
        self._run = run
        self._event = event
        self._at = face.seconds(event.created_at)

    def take(self) -> None:
        if not self.state.silent:
            self._tell()
        elif self._is_old_question():
            self._close_message("completed")
            self._speak_up()
        elif self._follows_answer():
            self._close_message("completed")
            self._speak_up()
            self._tell()
        else:
            self._tell()
            self.said.clear()

    def _speak_up(self) -> None:
        self._move(silent=False, status="queued")
        self.said.clear()

    def _is_old_question(self) -> bool:
        asked = native.asked(self._event) if self._event.type == "run.waiting_for_input" else None
        return asked is not None and self.state.answered == frozenset(call.id for call in asked.calls)

    def _follows_answer(self) -> bool:
        """Where a reader who has answered begins to listen if nobody saw the question in time."""
        if self._event.type == "tool.result":
            return native.result(self._event).id in self.state.answered
        return self._event.type == "run.input_provided" or is_final(self._event.type, self._event.data)

    def _tell(self) -> None:
        if not self.state.opened:
            self._open()
        if is_final(self._event.type, self._event.data):
            self._end()
        elif not self._event.nested:  # an agent inside the run has no place in this shape
            told = _TELL.get(self._event.type)
            if told is not None:
                told(self)

    # --- the run ----------------------------------------------------------------------------------------------------
    def _open(self) -> None:
        said = self._event.data if self._event.type == "run.started" else {}
        self._move(agent=native.agent_of(said), model=native.text_of(said.get("model")))
        self._say_run("created", "queued")
        self._say_run("queued", "queued")
        self._move(opened=True, started_at=self._at)
        self._say_run("in_progress", "in_progress")

    def _go_on(self) -> None:
        """Something moves in a run that was waiting (or that was just answered)."""
        if self.state.status in ("requires_action", "queued"):
            self._say_run("in_progress", "in_progress")

    def _wait(self) -> None:
        self._close_message("completed")
        asked = native.asked(self._event)
        self._move(asked=frozenset(call.id for call in asked.calls))
        self._say_run("requires_action", "requires_action", required_action=face.action(asked))

    def _gap(self) -> None:
        self._move(gap=native.text_of(self._event.data.get("reason")) or "unknown")

    def _cancelling(self) -> None:
        if self.state.status != "cancelling":
            self._say_run("cancelling", "cancelling")

    def _end(self) -> None:
        status, more = _ending(self._event)
        usage = native.usage(self._event.data.get("usage"))
        step_ends = {"completed": "completed", "cancelled": "cancelled", "expired": "expired"}
        self._close_message("completed" if status == "completed" else "incomplete", step_ends.get(status, "failed"))
        for tool in self.state.tools:
            self._close_tool(tool, step_ends.get(status, "failed"), None)
        ended = {"completed": "completed_at", "cancelled": "cancelled_at", "expired": "expires_at"}
        self._say_run(status, status, usage=usage, **{ended.get(status, "failed_at"): self._at}, **more)
        self._move(over=True)

    def _say_run(self, name: str, status: str, **more: Any) -> None:
        self._move(status=status)
        known = {
            "created_at": self._run["created_at"] or self._at or 0,
            "assistant_id": self._assistant,
            "model": self._run["model"] or self.state.model,
            "status": status,
            "started_at": self.state.started_at,
        }
        if self.state.gap:
            known["metadata"] = {**self._run["metadata"], "relay_gap": self.state.gap}
        self._say(f"thread.run.{name}", {**self._run, **known, **more})

    @property
    def _assistant(self) -> str:
        return str(self._run["assistant_id"]) or self.state.agent

    # --- messages ---------------------------------------------------------------------------------------------------
    def _speak(self) -> None:
        text = native.content(self._event)
        if not text or not native.is_speech(self._event):
            return
        self._go_on()
        part = native.text_of(self._event.data.get("part"))
        if self.state.message is not None and self.state.message.part != part:
            self._close_message("completed")
        message = self.state.message or self._open_message(part)
        self._move(message=replace(message, text=appended(message.text, text)))
        piece = {"index": 0, "type": "text", "text": {"value": text, "annotations": []}}
        self._say(
            "thread.message.delta",
            {"id": message.id, "object": "thread.message.delta", "delta": {"content": [piece]}},
        )

    def _rewrite(self) -> None:
        """The upstream took back what it said: what comes is another message."""
        self._close_message("incomplete", "failed")

    def _open_message(self, part: str) -> Message:
        message = Message(self._id("msg"), self._id("step"), self._at, part)
        self._move(message=message)
        self._say_step("created", self._creation(message))
        self._say_step("in_progress", self._creation(message))
        self._say("thread.message.created", self._message(message, "in_progress"))
        self._say("thread.message.in_progress", self._message(message, "in_progress"))
        return message

    def _close_message(self, status: str, step_status: str = "completed") -> None:
        message = self.state.message
        if message is None:
            return
        self._move(message=None)
        self._say(f"thread.message.{status}", self._message(message, status))
        self._say_step(step_status, {**self._creation(message), **self._ended(step_status)})

    def open_message(self, message: Message) -> dict[str, Any]:
        """A message that is still being written, with its text so far."""
        return self._message(message, "in_progress")

    def _message(self, message: Message, status: str) -> dict[str, Any]:
        text = "".join(message.text)
        content = [{"type": "text", "text": {"value": text, "annotations": []}}] if text else []
        return {
            "id": message.id,
            "object": "thread.message",
            "created_at": message.created_at,
            "thread_id": self._run["thread_id"],
            "assistant_id": self._assistant,
            "run_id": self._run["id"],
            "role": "assistant",
            "status": status,
            "content": content,
            "attachments": [],
            "metadata": {},
            "completed_at": self._at if status == "completed" else None,
            "incomplete_at": self._at if status == "incomplete" else None,
            "incomplete_details": {"reason": "run_failed"} if status == "incomplete" else None,
        }

    def _creation(self, message: Message) -> dict[str, Any]:
        details = {"type": "message_creation", "message_creation": {"message_id": message.id}}
        return self._step(message.step_id, "message_creation", message.created_at, details)

    # --- tools ------------------------------------------------------------------------------------------------------
    def _call(self) -> None:
        self._go_on()
        call = native.call(self._event)
        self._close_message("completed")
        self._open_tool(call)

    def _open_tool(self, call: native.Call) -> Tool:
        tool = Tool(self._id("step"), self._at, call.id, call.name, face.words(call.arguments))
        self._move(tools=(*self.state.tools, tool))
        empty = self._step(tool.step_id, "tool_calls", tool.created_at, {"type": "tool_calls", "tool_calls": []})
        self._say_step("created", empty)
        self._say_step("in_progress", empty)
        details = {"type": "tool_calls", "tool_calls": [{"index": 0, **_shown(tool, None)}]}
        self._say(
            "thread.run.step.delta",
            {"id": tool.step_id, "object": "thread.run.step.delta", "delta": {"step_details": details}},
        )
        return tool

    def _result(self) -> None:
        self._go_on()
        result = native.result(self._event)
        tool = next((one for one in self.state.tools if one.id == result.id), None)
        if tool is None:
            tool = self._open_tool(native.Call(result.id, result.name, {}))
        output = face.words(result.output) if result.error is None else result.error
        self._close_tool(tool, "completed" if result.error is None else "failed", output)

    def _close_tool(self, tool: Tool, status: str, output: str | None) -> None:
        self._move(tools=tuple(one for one in self.state.tools if one is not tool))
        details = {"type": "tool_calls", "tool_calls": [_shown(tool, output)]}
        step = self._step(tool.step_id, "tool_calls", tool.created_at, details)
        error = {"code": "server_error", "message": output or "the run failed"} if status == "failed" else None
        self._say_step(status, {**step, "last_error": error, **self._ended(status)})

    # --- small ------------------------------------------------------------------------------------------------------
    def _step(self, step_id: str, kind: str, created_at: int | None, details: dict[str, Any]) -> dict[str, Any]:
        ends = dict.fromkeys(("completed_at", "failed_at", "cancelled_at", "expired_at", "last_error", "usage"))
        return {
            "id": step_id,
            "object": "thread.run.step",
            "created_at": created_at,
            "run_id": self._run["id"],
            "assistant_id": self._assistant,
            "thread_id": self._run["thread_id"],
            "type": kind,
            "status": "in_progress",
            "step_details": details,
            "metadata": {},
            **ends,
        }

    def _ended(self, status: str) -> dict[str, Any]:
        return {"status": status, f"{status}_at": self._at}

    def _say_step(self, name: str, step: dict[str, Any]) -> None:
        self._say(f"thread.run.step.{name}", step)

    def _say(self, name: str, data: dict[str, Any]) -> None:
        self.said.append((name, data))

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._run['id']}_{self._event.seq}"

    def _move(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)


def _shown(tool: Tool, output: str | None) -> dict[str, Any]:
    function = {"name": tool.name, "arguments": tool.arguments, "output": output}
    return {"id": tool.id, "type": "function", "function": function}


def _ending(event: Said) -> tuple[str, dict[str, Any]]:
    """The status a final event means in this shape, and what a run object then says beside it."""
    if event.type == "run.completed":
        return "completed", {}
    if event.type == "run.cancelled":
        return "cancelled", {}
    code, message = native.failure(event)
    if code == "expired":
        return "expired", {}
    if code.startswith("incomplete:"):
        return "incomplete", {"incomplete_details": {"reason": code.removeprefix("incomplete:")}}
    return "failed", {"last_error": face.failed(code, message)}


_TELL: Final[dict[str, Callable[[_Turn], None]]] = {
    "run.started": _Turn._go_on,
    "run.input_provided": _Turn._go_on,
    "run.resumed": _Turn._go_on,
    "run.waiting_for_input": _Turn._wait,
    "run.cancel_requested": _Turn._cancelling,
    "run.gap": _Turn._gap,
    "message.delta": _Turn._speak,
    "message.reset": _Turn._rewrite,
    "tool.call": _Turn._call,
    "tool.result": _Turn._result,
}


def things(fold: RunFold, state: Told, events: Iterable[Event], found: dict[str, dict[str, Any]]) -> Told:
    """Puts the messages and steps these events make into `found`, each by its id as it is after them."""
    for event in events:
        turn = fold.turn(state, event)
        state = turn.state
        for name, data in turn.said:
            if name.startswith(("thread.message.", "thread.run.step.")) and not name.endswith(".delta"):
                found[data["id"]] = data
        if state.message is not None:
            found[state.message.id] = turn.open_message(state.message)
    return state
