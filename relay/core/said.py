"""One native event, read leniently for a fold: `data` is the upstream's own, whatever it holds.

Most of a run are deltas of text, and a fold wants little of them: their text and what that belongs to (`Spoken`). All
else of such an event is passed over without becoming an object.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.core.deltas import DELTAS
from relay.core.events import Event, decode, encode
from relay.core.folded import SHOWN

VALUE_BYTES: Final = 262_144
"""Largest value (arguments, a result, what an end says) that is kept whole."""


TEXTS: Final = {kind: fields for kind, fields in DELTAS.items() if kind != "tool.call.delta"}
"""Deltas whose text goes to a message, and its fields."""
_OUTPUT: Final = frozenset(kind for kind, fields in TEXTS.items() if fields == ("chunk",))
"""Those that say it in `chunk`; all others in `content`, or only in `content_delta`."""
_FIELDS: Final = frozenset(field for fields in TEXTS.values() for field in fields)
_Piece: Any = msgspec.defstruct(
    "_Piece", [*((name, Any, None) for name in SHOWN), *((name, Any, "") for name in _FIELDS)]
)
"""All of a delta's `data` that a fold looks at."""
_Delta: Any = msgspec.defstruct(
    "_Delta", [("data", _Piece, msgspec.field(default_factory=_Piece)), ("seq_from", int, 0)]
)


class _Plain(msgspec.Struct):
    data: dict[str, Any] = {}
    seq_from: int = 0


class _Written(msgspec.Struct):
    data: dict[str, Raw] = {}


_DELTA: Final = msgspec.json.Decoder(_Delta)
_PLAIN: Final = msgspec.json.Decoder(_Plain)
_WRITTEN: Final = msgspec.json.Decoder(_Written)


class Spoken:
    """A delta of text. Two with equal `place` belong together."""

    __slots__ = ("place", "seq", "seq_from", "text", "type")

    def __init__(self, event: Event) -> None:
        self.seq = self.seq_from = event.seq
        self.type = event.type
        try:
            body = _DELTA.decode(event.json)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            plain = _leniently(event.json)
            wanted = {name: value for name, value in plain.data.items() if name in _Piece.__struct_fields__}
            body = _Delta(_Piece(**wanted), plain.seq_from)
        data = self.place = body.data
        if event.type in _OUTPUT:
            text, data.chunk = data.chunk, ""
        else:
            text = data.content or data.content_delta
            data.content = data.content_delta = ""
        self.text = text if isinstance(text, str) else ""
        if 0 < body.seq_from < self.seq:
            self.seq_from = body.seq_from

    def plain(self, name: str) -> str | float | None:
        """A field that may name something: a text or a number."""
        value = getattr(self.place, name)
        return value if isinstance(value, str | int | float) else None


class Said:
    """One event, read leniently: `data` is the upstream's own. Values are read for a delta, else kept as written."""

    __slots__ = ("data", "seq", "seq_from", "type")

    def __init__(self, event: Event) -> None:
        self.seq = self.seq_from = event.seq
        self.type = event.type
        self.data: dict[str, Any] = {}
        try:
            if event.type in DELTAS:
                self._read(_PLAIN.decode(event.json))
            else:
                self.data = _WRITTEN.decode(event.json).data
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._read(_leniently(event.json))

    def _read(self, body: _Plain) -> None:
        self.data = body.data
        if 0 < body.seq_from < self.seq:
            self.seq_from = body.seq_from

    def value(self, name: str) -> Any:
        value = self.data.get(name)
        return decode(bytes(value)) if isinstance(value, Raw) else value

    def raw(self, name: str) -> Raw:
        value = self.data[name]
        return bounded(bytes(value) if isinstance(value, Raw) else encode(value))

    def word(self, *names: str) -> str:
        """The first of these fields that is a text with something in it."""
        for name in names:
            value = self.value(name)
            if isinstance(value, str) and value:
                return value
        return ""

    def plain(self, name: str) -> str | float | None:
        """A field that may name something: a text or a number."""
        value = self.value(name)
        return value if isinstance(value, str | int | float) else None

    def kept(self) -> dict[str, Any]:
        return {"seq": self.seq, "data": bounded(encode(self.data))}

    @property
    def nested(self) -> bool:
        """It is of an agent inside this run."""
        return bool(self.value("delegate_layer") == "acp")


def _leniently(data: bytes) -> _Plain:
    try:
        body = decode(data)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    inner, start = body.get("data"), body.get("seq_from")
    return _Plain(inner if isinstance(inner, dict) else {}, start if type(start) is int else 0)


def bounded(written: bytes) -> Raw:
    """A JSON value; of one that is too large only how large it was."""
    return Raw(written if len(written) <= VALUE_BYTES else encode({"truncated": True, "bytes": len(written)}))
