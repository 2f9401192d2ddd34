"""How the SeekrFlow face tells a run to SDKs before 0.21: the older chunks of `…/runs/stream`, one `data:` line each.

Source: the chunk types of seekrai 0.20 (`types/agents/threads.py`), its `response_parsing.py`, table C3 of the reference.
That parser takes an empty line behind nothing for JSON, and `[DONE]` too (its asynchronous half): so a keepalive is an
empty piece of text, and the end is the last chunk and the end of the body. Nothing is opened or closed but the run: a
header begins it, and its last chunk has all of the text. A failure has no chunk there: it is told by the newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Final

from relay.core.events import Event, is_final
from relay.core.faces import FaceWire, nothing
from relay.core.wires import Notice
from relay.providers import native
from relay.providers.native import Said, appended
from relay.providers.seekrflow.face import ascii_json
from relay.providers.seekrflow.face_stream import chunk

PING: Final = chunk({"type": "text_delta", "text": "", "meta_data": {}})


def _words(notice: Notice) -> bytes:
    if notice.type == "relay.reset":
        return chunk({"type": "data-relay-reset", "data": notice.data, "meta_data": {}})
    return b""


WIRE: Final = FaceWire("seekrflow-legacy", 32, PING, nothing, _words)


@dataclass(frozen=True, slots=True)
class Told:
    """What a reader has been told so far."""

    opened: bool = False
    text: tuple[str, ...] = ()
    """What the run has said, for its last chunk."""
    over: bool = False


class RunFold:
    """One run told in this shape."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._about = {"run_id": run["run_id"], "thread_id": run.get("thread_id"), "agent_id": native.agent_of(run)}
        self._key = ("legacy", ascii_json(self._about))

    @property
    def key(self) -> Hashable:
        return self._key

    def begin(self) -> Told:
        return Told()

    def tell(self, state: Told, event: Event) -> tuple[bytes, Told]:
        if state.over:
            return b"", state
        said = native.read(event)
        chunks: list[dict[str, Any]] = []
        if not state.opened:
            state = replace(state, opened=True)
            chunks += _BEGIN
        if is_final(said.type, said.data):
            state = replace(state, over=True)
            chunks += _end(said, "".join(state.text))
        elif not said.nested:
            told = _TELL.get(said.type)
            more = told(said) if told is not None else []
            for one in more:
                if one["type"] == "text_delta":
                    state = replace(state, text=appended(state.text, one["text"]))
            chunks += more
        return b"".join(chunk({**one, "meta_data": self._about}) for one in chunks), state

    def over(self, state: Told) -> bool:
        return state.over

    def resting(self, _: Told) -> bool:
        return False


_BEGIN: Final = (
    {"type": "user_prompt", "user_prompt": ""},
    {"type": "node_header", "node_type": "run", "description": ""},
)


def _end(said: Said, text: str) -> list[dict[str, Any]]:
    failed = [] if said.type == "run.completed" else [{"type": "error", "errorText": native.failure(said)[1]}]
    return [*failed, {"type": "end_node", "final_output": text}]


def _text(said: Said) -> list[dict[str, Any]]:
    text = native.content(said)
    if not text:
        return []
    if native.is_speech(said):
        return [{"type": "text_delta", "text": text}]
    return _reasoning(said) if said.data.get("channel") == "thinking" else []


def _reasoning(said: Said) -> list[dict[str, Any]]:
    text = native.content(said)
    return [{"type": "stream_reasoning", "reasoning": text}] if text else []


def _call(said: Said) -> list[dict[str, Any]]:
    call = native.call(said)
    given = _object(call.arguments, "input")
    return [{"type": "streaming_tool_request", "tool_id": call.id, "tool_name": call.name, "tool_args": given}]


def _result(said: Said) -> list[dict[str, Any]]:
    result = native.result(said)
    output = _object(result.output, "output") if result.error is None else {"error": result.error}
    return [{"type": "streaming_tool_response", "tool_id": result.id, "tool_output": output}]


def _object(value: object, name: str) -> dict[str, Any]:
    """Its arguments and outputs are objects, whatever the tool's own are."""
    return value if isinstance(value, dict) else {name: value}


_TELL: Final[dict[str, Callable[[Said], list[dict[str, Any]]]]] = {
    "message.delta": _text,
    "reasoning.delta": _reasoning,
    "tool.call": _call,
    "tool.result": _result,
}
