"""One native event, read leniently for a fold: `data` is the upstream's own, whatever it holds."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from relay.core.deltas import DELTAS
from relay.core.events import Event, decode, encode

VALUE_BYTES: Final = 262_144
"""Largest value (arguments, a result, what an end says) that is kept whole."""


class _Plain(msgspec.Struct):
    data: dict[str, Any] = {}
    seq_from: int = 0


class _Written(msgspec.Struct):
    data: dict[str, Raw] = {}


_PLAIN: Final = msgspec.json.Decoder(_Plain)
_WRITTEN: Final = msgspec.json.Decoder(_Written)


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
