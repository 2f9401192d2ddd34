"""A run folded: what a reader who joins late must know, in O(state), whatever the run's history is.

Messages with their text, tool calls with their (streamed) arguments and results, the question a run waits with, status and
usage. Pure, from events alone, O(1) per delta. Two laws, for every run and every cut (docs/protocol.md, "Snapshots"):
`fold(snapshot) + tail == fold(all)`, and coalescing (`core.deltas`) changes nothing.

What a run says freely is bounded here: a text keeps its end (`core.text`), a value beyond `core.said.VALUE_BYTES` its size
only, and beyond `STATE_BYTES` the oldest messages and tool calls go; all of it is said, and none of it depends on how the
text came in pieces. An event's own JSON values are kept as they were written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.core.events import FINAL_STATUS, MOVING_STATUS, TERMINAL, Event, decode
from relay.core.filters import Types
from relay.core.folded import KEY, SHOWN, Call, Message, object_of, objects_of
from relay.core.said import TEXTS, Said, Spoken
from relay.core.text import Text

STATE_BYTES: Final = 2_097_152
"""About how large messages and tool calls may be together; the oldest are left out beyond it."""
_OF_CALL: Final = ("arguments", "input", "delegate_layer", "agent_id", "parent_agent_id")
_OF_RESULT: Final = ("result", "output", "error", "is_error", "reason")
_TOOLS: Final = ("tool.call", "tool.call.delta", "tool.result", "tool.denied")
_TOLD: Final = ("started", "final")
_LATEST: Final = ("thread.title.updated", "todo.updated", "run.gap")
"""Types of which the last event is kept as it was."""


class Fold:
    def __init__(self, since_seq: int = 0) -> None:
        self.as_of_seq = since_seq
        """The last seq that is folded in."""
        self.since_seq = since_seq
        """Events up to here are not: 0, or the last one that cannot be had (or was rewritten)."""
        self.status = "running" if since_seq else "queued"
        self._messages: list[Message] = []
        self._parts: dict[tuple[Any, ...], Message] = {}
        self._open: Message | None = None
        """The message the next delta may go on with; those with a `part` are found by it."""
        self._last: tuple[str, object, Message] | None = None
        """Where the text of the last delta went: one with the same place need not be looked at closely."""
        self._calls: dict[str | int, Call] = {}
        self._asked: dict[str, Any] | None = None
        self._usage: Raw | None = None
        self._told: dict[str, dict[str, Any]] = {}
        """The first event's data, and the last one's."""
        self._latest: dict[str, dict[str, Any]] = {}
        self._left_out = {"messages": 0, "tool_calls": 0}
        self._weight = 0

    def extend(self, events: Iterable[Event]) -> Fold:
        """More events, in order; what was folded in already changes nothing. Never raises for what an event holds.

        Texts that go to one place, one after the other, are added as one: most of a run are these.
        """
        texts: list[str] = []
        last, seq = self._last, 0
        for event in events:
            if event.seq <= self.as_of_seq:
                continue
            spoken = Spoken(event) if event.type in TEXTS else None
            if spoken is not None and last is not None and last[1] == spoken.place and last[0] == spoken.type:
                self.as_of_seq = event.seq
                if spoken.text:
                    texts.append(spoken.text)
                    seq = event.seq
                continue
            if texts:
                self._go_on(texts, seq)
                texts = []
            self._fold(event, spoken)
            last = self._last
        if texts:
            self._go_on(texts, seq)
        return self

    def take(self, event: Event) -> None:
        """One more event."""
        self.extend((event,))

    def _fold(self, event: Event, spoken: Spoken | None) -> None:
        self.as_of_seq = event.seq
        if self.status == "queued":
            self.status = "running"
        if spoken is not None:
            self._on_delta(spoken)
        elif (tell := _TELL.get(event.type)) is not None:
            tell(self, Said(event))
            self._open = self._last = None

    def skip(self, upto: int) -> None:
        """Events up to here cannot be had: whatever they said is missing."""
        self.since_seq = max(self.since_seq, upto)
        self.as_of_seq = max(self.as_of_seq, upto)
        self._open = self._last = None
        if self.status == "queued":
            self.status = "running"

    # --- text -------------------------------------------------------------------------------------------------------
    def _on_delta(self, said: Spoken) -> None:
        if said.text:
            message = self._message(said)
            self._last = (said.type, said.place, message)
            self._grow(message, message.text, said.text, said.seq)

    def _go_on(self, texts: list[str], seq: int) -> None:
        """More text where the last delta's went."""
        assert self._last is not None
        message = self._last[2]
        self._grow(message, message.text, "".join(texts), seq)

    def _message(self, said: Spoken) -> Message:
        """What a delta's text belongs to: its part, else what was said just before, else something new."""
        place = {name: value for name in SHOWN if (value := said.plain(name)) is not None}
        key = (said.type, *[place.get(name) for name in KEY])
        message = self._parts.get(key) if "part" in place else self._open
        if message is None or message.key != key:
            message = Message(said.type, place, said.seq_from)
            self._adopt(message)
        self._open = None if "part" in place else message
        return message

    def _adopt(self, message: Message) -> None:
        self._messages.append(message)
        self._weight += message.weight
        if "part" in message.place:
            self._parts[message.key] = message

    def _on_message_reset(self, said: Said) -> None:
        """What was said of a part is not what the upstream says now: its text begins anew, where it stands."""
        part, lane = said.plain("part"), said.plain("lane")
        for message in self._messages:
            if message.place.get("part") == part and message.place.get("lane") == lane:
                self._weight -= message.text.kept
                message.text, message.seq = Text(), said.seq

    def _grow(self, entry: Message | Call, grown: Text, text: str, seq: int) -> None:
        before = grown.kept
        grown.add(text)
        entry.seq = seq
        self._weight += grown.kept - before
        if self._weight > STATE_BYTES:
            self._leave_out(entry)

    # --- tools ------------------------------------------------------------------------------------------------------
    def _on_arguments(self, said: Said) -> None:
        text = said.word("arguments_delta")
        index = said.plain("tool_call_index")
        call = self._call(said.word("tool_call_id", "id") or (index if isinstance(index, int) else 0), said)
        call.name = call.name or said.word("tool_name", "name")
        if call.state == "streaming" and text:
            self._grow(call, call.streamed, text, said.seq)

    def _on_call(self, said: Said) -> None:
        call = self._called(said)
        if call.state == "streaming":
            call.state = "called"
            self._weight -= call.streamed.kept
            call.streamed = Text()
        self._set(call, said, _OF_CALL)

    def _on_result(self, said: Said) -> None:
        call = self._called(said)
        if call.state == "streaming":
            self._weight -= call.streamed.kept
            call.streamed = Text()
        call.state = "denied" if said.type == "tool.denied" else "done"
        self._set(call, said, _OF_RESULT)

    def _called(self, said: Said) -> Call:
        """The call an event names; the oldest that streams without an id, if this one is new."""
        named = said.word("tool_call_id", "id") or f"call_{said.seq}"
        if named not in self._calls:
            nameless = next((key for key in self._calls if isinstance(key, int)), None)
            if nameless is not None:
                self._calls[nameless].key = named
                self._calls = {call.key: call for call in self._calls.values()}
        return self._call(named, said)

    def _call(self, key: str | int, said: Said) -> Call:
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = Call(key, said.seq_from)
            self._weight += call.weight
        call.seq = said.seq
        return call

    def _set(self, call: Call, said: Said, names: tuple[str, ...]) -> None:
        self._weight -= call.weight
        call.name = said.word("tool_name", "name") or call.name
        call.fields |= {name: said.raw(name) for name in names if name in said.data}
        self._weight += call.weight
        if self._weight > STATE_BYTES:
            self._leave_out(call)

    # --- the run ----------------------------------------------------------------------------------------------------
    def _on_run(self, said: Said) -> None:
        if said.nested:
            return
        if self.status not in TERMINAL:
            self.status = FINAL_STATUS.get(said.type) or MOVING_STATUS.get(said.type, self.status)
        if said.type == "run.started":
            self._told.setdefault("started", said.kept())
        elif said.type == "run.waiting_for_input":
            self._asked = said.kept()
        elif said.type != "run.cancel_requested":
            self._asked = None
        if said.type in FINAL_STATUS:
            self._on_final(said)

    def _on_final(self, said: Said) -> None:
        self._on_usage(said)
        answer = said.word("assistant_message")
        if answer and self._has_said(answer):
            del said.data["assistant_message"]
        self._told.setdefault("final", {"type": said.type, **said.kept()})

    def _has_said(self, answer: str) -> bool:
        """Whether the end only says again what the deltas said."""
        texts = [str(one.text) for one in self._messages if one.type == "message.delta" and "channel" not in one.place]
        return bool(texts) and (texts[-1] == answer or "".join(texts) == answer)

    def _on_usage(self, said: Said) -> None:
        if isinstance(said.value("usage"), dict) and not said.nested:
            self._usage = said.raw("usage")

    def _on_latest(self, said: Said) -> None:
        self._latest[said.type] = said.kept()

    # --- bounds -----------------------------------------------------------------------------------------------------
    def _leave_out(self, growing: Message | Call) -> None:
        """Let go of the oldest, never of what grows right now."""
        while self._weight > STATE_BYTES:
            message = next((one for one in self._messages[:2] if one is not growing), None)
            call = next((one for one in self._calls.values() if one is not growing), None)
            if message is not None and (call is None or message.seq_from < call.seq_from):
                self._messages.remove(message)
                self._parts.pop(message.key, None)
                self._left_out["messages"] += 1
                self._weight -= message.weight
            elif call is not None:
                del self._calls[call.key]
                self._left_out["tool_calls"] += 1
                self._weight -= call.weight
            else:
                return

    # --- out and in -------------------------------------------------------------------------------------------------
    def data(self, types: Types | None = None) -> dict[str, Any]:
        """What a snapshot says, ready for `encode`. `types` leaves out messages and tool calls a reader does not want."""
        tools = types is None or any(types.allows(kind) for kind in _TOOLS)
        out: dict[str, Any] = {
            "as_of_seq": self.as_of_seq,
            "since_seq": self.since_seq,
            "status": self.status,
            "messages": [
                one.shown(is_open=one is self._open)
                for one in self._messages
                if types is None or types.allows(one.type)
            ],
            "tool_calls": [one.shown() for one in self._calls.values()] if tools else [],
            "pending_input": self._asked,
            "usage": self._usage,
            **{name: self._told[name] for name in _TOLD if name in self._told},
        }
        if self._latest:
            out["latest"] = self._latest
        if any(self._left_out.values()):
            out["left_out"] = self._left_out
        return out

    @classmethod
    def restored(cls, data: bytes) -> Fold | None:
        """The fold whose `data` (of all types) these bytes are; None if they are not."""
        try:
            return _restored(cls(), object_of(data) or {})
        except (msgspec.MsgspecError, ValueError, KeyError, TypeError, AttributeError):
            return None


def _restored(fold: Fold, raw: dict[str, Raw]) -> Fold:
    given = {name: bytes(value) for name, value in raw.items()}
    fold.as_of_seq, fold.since_seq = int(decode(given["as_of_seq"])), int(decode(given["since_seq"]))
    fold.status = str(decode(given["status"]))
    for one in objects_of(given["messages"]):
        message, is_open = Message.restored(one)
        fold._adopt(message)
        fold._open = message if is_open else fold._open
    for one in objects_of(given["tool_calls"]):
        call = Call.restored(one)
        fold._calls[call.key] = call
        fold._weight += call.weight
    fold._asked = object_of(given["pending_input"])
    fold._usage = None if given["usage"] == b"null" else Raw(given["usage"])
    fold._told = {name: found for name in _TOLD if (found := object_of(given.get(name, b"null")))}
    fold._latest = {kind: object_of(one) or {} for kind, one in (object_of(given.get("latest", b"null")) or {}).items()}
    fold._left_out |= decode(given.get("left_out", b"{}"))
    return fold


_TELL: Final[dict[str, Callable[[Fold, Said], None]]] = {
    **dict.fromkeys((*FINAL_STATUS, *MOVING_STATUS), Fold._on_run),
    **dict.fromkeys(_LATEST, Fold._on_latest),
    "message.reset": Fold._on_message_reset,
    "llm.turn.completed": Fold._on_usage,
    "tool.call.delta": Fold._on_arguments,
    "tool.call": Fold._on_call,
    "tool.result": Fold._on_result,
    "tool.denied": Fold._on_result,
}
