"""What a fold holds: messages and tool calls, how a snapshot shows them, and back."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.core.events import decode, encode
from relay.core.text import Text

ENTRY_BYTES: Final = 256
KEY: Final = ("role", "channel", "lane", "part", "session_ref", "delegate_layer")
"""Fields of a delta's `data` that say what its text belongs to, beside its type."""
SHOWN: Final[tuple[str, ...]] = (*KEY, "message_id", "index", "agent_id", "parent_agent_id")
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw] | None)
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_CALL_OWN: Final = (
    "tool_call_id", "tool_call_index", "tool_name", "state", "arguments_text", "left_out_units", "seq_from", "seq"
)  # fmt: skip


class Message:
    __slots__ = ("place", "seq", "seq_from", "text", "type")

    def __init__(self, kind: str, place: dict[str, Any], seq_from: int, text: Text | None = None) -> None:
        self.type = kind
        self.place = place
        self.seq_from = self.seq = seq_from
        self.text = text or Text()

    @property
    def weight(self) -> int:
        return ENTRY_BYTES + self.text.kept

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.type, *[self.place.get(name) for name in KEY])

    def shown(self, *, is_open: bool) -> dict[str, Any]:
        out = {"type": self.type, **self.place, "text": Raw(encode(str(self.text)))}
        if self.text.left_out:
            out["left_out_units"] = self.text.left_out
        if is_open:
            out["open"] = True
        return out | {"seq_from": self.seq_from, "seq": self.seq}

    @classmethod
    def restored(cls, raw: dict[str, Raw]) -> tuple[Message, bool]:
        """As it was shown, and whether it was open."""
        given = {name: decode(bytes(value)) for name, value in raw.items()}
        place: dict[str, Any] = {name: given[name] for name in SHOWN if name in given}
        text = Text(given["text"], given.get("left_out_units", 0))
        message = cls(given["type"], place, given["seq_from"], text)
        message.seq = given["seq"]
        return message, "open" in given


class Call:
    __slots__ = ("fields", "key", "name", "seq", "seq_from", "state", "streamed")

    def __init__(self, key: str | int, seq_from: int) -> None:
        self.key = key
        """The upstream's id, or while it has given none the call's index."""
        self.name = ""
        self.state = "streaming"
        self.streamed = Text()
        """Its arguments as far as they were streamed; empty once they are there as a whole."""
        self.fields: dict[str, Raw] = {}
        self.seq_from = self.seq = seq_from

    @property
    def weight(self) -> int:
        return ENTRY_BYTES + self.streamed.kept + sum(len(bytes(raw)) for raw in self.fields.values())

    def shown(self) -> dict[str, Any]:
        named = {"tool_call_id" if isinstance(self.key, str) else "tool_call_index": self.key}
        out: dict[str, Any] = {**named, "tool_name": self.name, "state": self.state}
        if self.state == "streaming":
            out["arguments_text"] = Raw(encode(str(self.streamed)))
            if self.streamed.left_out:
                out["left_out_units"] = self.streamed.left_out
        return out | self.fields | {"seq_from": self.seq_from, "seq": self.seq}

    @classmethod
    def restored(cls, raw: dict[str, Raw]) -> Call:
        given = {name: decode(bytes(raw.pop(name))) for name in _CALL_OWN if name in raw}
        call = cls(given["tool_call_id"] if "tool_call_id" in given else given["tool_call_index"], given["seq_from"])
        call.name, call.state, call.seq = given["tool_name"], given["state"], given["seq"]
        call.fields = {name: Raw(bytes(value)) for name, value in raw.items()}
        call.streamed = Text(given.get("arguments_text", ""), given.get("left_out_units", 0))
        return call


def object_of(written: bytes | Raw) -> dict[str, Raw] | None:
    """An object with its values as they are written, on memory of their own; None for null."""
    try:
        found = _OBJECT.decode(written)
    except msgspec.DecodeError:  # a lone surrogate, somewhere
        lenient = decode(bytes(written))
        return {name: Raw(encode(value)) for name, value in lenient.items()}
    return None if found is None else {name: Raw(bytes(value)) for name, value in found.items()}


def objects_of(written: bytes) -> list[dict[str, Raw]]:
    try:
        return _OBJECTS.decode(written)
    except msgspec.DecodeError:
        return [object_of(encode(one)) or {} for one in decode(written)]
