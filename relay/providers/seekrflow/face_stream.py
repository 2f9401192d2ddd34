"""How the SeekrFlow face tells a run: Vercel UI-message chunks, one `data:` line each and nothing else.

No `id:`, `event:`, `retry:` or comment may be in these bytes: the SDK takes every line for JSON. A fold over
native events: parts are opened and closed around what they hold, their ids come from the seq that opened them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Final

from relay.core.events import Event, is_final
from relay.core.faces import FaceWire, nothing
from relay.core.wires import Notice
from relay.providers import native
from relay.providers.native import Said
from relay.providers.seekrflow.face import ascii_json

PING: Final = b"\n"
DONE: Final = b"data: [DONE]\n\n"


def chunk(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % ascii_json(data)


def _words(notice: Notice) -> bytes:
    if notice.type == "relay.end":
        return DONE
    if notice.type == "relay.reset":
        return chunk({"type": "data-relay-reset", "data": notice.data})
    return b""  # whoever is sent away is cut off: a tidy end would look like success


WIRE: Final = FaceWire("seekrflow", 30, PING, nothing, _words)


@dataclass(frozen=True, slots=True)
class Told:
    """What a reader has been told so far."""

    opened: bool = False
    step: bool = False
    part: tuple[str, str, str] | None = None
    """The open part: "text" or "reasoning", its id, and the upstream's name of it."""
    calls: frozenset[str] = frozenset()
    """Tool calls without a result."""
    over: bool = False


class RunFold:
    """One run told in this shape."""

    def __init__(self, run: dict[str, Any]) -> None:
        agent_id = native.agent_of(run) or "default_agent"
        self.about = {"run_id": run["run_id"], "thread_id": run.get("thread_id"), "agent_id": agent_id}
        self._key = ascii_json(self.about)

    @property
    def key(self) -> Hashable:
        return self._key

    def begin(self) -> Told:
        return Told()

    def tell(self, state: Told, event: Event) -> tuple[bytes, Told]:
        turn = _Turn(self.about, state, native.read(event))
        if not state.over:
            turn.take()
        return b"".join([chunk(data) for data in turn.said]), turn.state

    def over(self, state: Told) -> bool:
        return state.over

    def resting(self, _: Told) -> bool:
        return False


class _Turn:
    """One event being told: the chunks, and the state as it moves."""

    __slots__ = ("_about", "_event", "said", "state")

    def __init__(self, about: dict[str, Any], state: Told, event: Said) -> None:
        self.state = state
        self.said: list[dict[str, Any]] = []
        self._about = about
        self._event = event

    def take(self) -> None:
        if not self.state.opened:
            self._move(opened=True)
            metadata = {"metadata": self._about}
            self._say("start", messageId=self._about["run_id"], messageMetadata=metadata)
        if is_final(self._event.type, self._event.data):
            self._end()
        elif self._event.nested:
            self._nested()
        else:
            told = _TELL.get(self._event.type)
            if told is not None:
                told(self)

    # --- the run ----------------------------------------------------------------------------------------------------
    def _end(self) -> None:
        self._close_step()
        if self._event.type == "run.cancelled":
            self._say("abort", reason="cancelled")
        elif self._event.type != "run.completed":
            self._say("error", errorText=native.failure(self._event)[1])
        usage = native.usage(self._event.data.get("usage"))
        reason = {"run.completed": "stop", "run.cancelled": "other"}.get(self._event.type, "error")
        more = {"messageMetadata": {"usage": usage}} if usage else {}
        self._say("finish", finishReason=reason, **more)
        self._move(over=True)

    def _wait(self) -> None:
        self._close_part()
        calls = [
            {"id": one.id, "name": one.name, "arguments": one.arguments} for one in native.asked(self._event).calls
        ]
        self._say("data-waiting-for-input", id=f"wait-{self._event.seq}", data={"calls": calls})

    def _notice(self) -> None:
        """Something this shape has no chunk for, and nobody may miss: text taken back, or not to be had."""
        self._close_part()
        self._say(f"data-{self._event.type.replace('.', '-')}", data=self._event.data)

    def _open_step(self) -> None:
        if not self.state.step:
            self._move(step=True)
            self._say("start-step")

    def _close_step(self) -> None:
        self._close_part()
        if self.state.step:
            self._move(step=False)
            self._say("finish-step")

    # --- text -------------------------------------------------------------------------------------------------------
    def _speak(self) -> None:
        text = native.content(self._event)
        if text and native.is_speech(self._event):
            self._delta("text", text)
        elif text and self._event.data.get("channel") == "thinking":
            self._delta("reasoning", text)

    def _think(self) -> None:
        text = native.content(self._event)
        if text:
            self._delta("reasoning", text)

    def _delta(self, kind: str, text: str) -> None:
        part, name = self.state.part, native.text_of(self._event.data.get("part"))
        if part is None or (part[0], part[2]) != (kind, name):
            self._open_step()
            self._close_part()
            part = (kind, f"{kind}-{self._event.seq}", name)
            self._move(part=part)
            self._say(f"{kind}-start", id=part[1])
        self._say(f"{kind}-delta", id=part[1], delta=text)

    def _close_part(self) -> None:
        if self.state.part is not None:
            kind, part_id, _ = self.state.part
            self._move(part=None)
            self._say(f"{kind}-end", id=part_id)

    # --- tools ------------------------------------------------------------------------------------------------------
    def _call(self) -> None:
        self._open_step()
        self._close_part()
        self._say_call(native.call(self._event))

    def _say_call(self, call: native.Call) -> None:
        self._move(calls=self.state.calls | {call.id})
        self._say("tool-input-start", toolCallId=call.id, toolName=call.name)
        self._say("tool-input-available", toolCallId=call.id, toolName=call.name, input=call.arguments)

    def _result(self) -> None:
        result = native.result(self._event)
        self._open_step()
        if result.id not in self.state.calls:  # a client cannot place a result whose call it never saw
            self._say_call(native.Call(result.id, result.name, {}))
        self._move(calls=self.state.calls - {result.id})
        self.said.append(_result_chunk(result))

    def _nested(self) -> None:
        inner = _inner(self._event)
        if inner is not None:
            self._open_step()
            data = {"toolCallPath": [], "depth": 1, "sourceToolName": self._agent(), "chunk": inner}
            self._say("data-nestedToolEvent", data=data)

    def _agent(self) -> str:
        return native.text_of(self._event.data.get("agent")) or native.text_of(self._event.data.get("persona_id"))

    # --- small ------------------------------------------------------------------------------------------------------
    def _say(self, kind: str, **fields: Any) -> None:
        self.said.append({"type": kind, **fields})

    def _move(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)


def _result_chunk(result: native.Result) -> dict[str, Any]:
    if result.error is not None:
        return {"type": "tool-output-error", "toolCallId": result.id, "errorText": result.error}
    return {"type": "tool-output-available", "toolCallId": result.id, "output": result.output}


def _inner(event: Said) -> dict[str, Any] | None:
    """The chunk a nested agent's event is; None for what has no counterpart (its own start and end)."""
    if event.type == "message.delta" and native.content(event):
        kind = "text" if native.is_speech(event) else "reasoning"
        return {"type": f"{kind}-delta", "id": f"nested-{kind}", "delta": native.content(event)}
    if event.type == "tool.call":
        call = native.call(event)
        return {
            "type": "tool-input-available", "toolCallId": call.id, "toolName": call.name, "input": call.arguments
        }  # fmt: skip
    return _result_chunk(native.result(event)) if event.type == "tool.result" else None


_TELL: Final[dict[str, Callable[[_Turn], None]]] = {
    "llm.turn.completed": _Turn._close_step,
    "message.delta": _Turn._speak,
    "message.reset": _Turn._notice,
    "reasoning.delta": _Turn._think,
    "run.gap": _Turn._notice,
    "run.waiting_for_input": _Turn._wait,
    "tool.call": _Turn._call,
    "tool.result": _Turn._result,
}
