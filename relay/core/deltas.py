"""Deltas: which event types add text to something, and adjacent ones of the same thing as one event.

A merged event is the last of its deltas, with the text of all of them and `seq_from`, the seq of the first. Two deltas are
of the same thing if they differ in nothing but their text and in what is every event's own (its seq, its id, its time).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from relay.core.events import Event, decode, encode

DELTAS: Final[dict[str, tuple[str, ...]]] = {
    "message.delta": ("content", "content_delta"),
    "reasoning.delta": ("content", "content_delta"),
    "nested.message.delta": ("content", "content_delta"),
    "tool.call.delta": ("arguments_delta",),
    "terminal.stdout_delta": ("chunk",),
    "terminal.stderr_delta": ("chunk",),
}
"""Event type -> the fields of `data` that hold its text: the same one, where there are two."""

_OWN: Final[tuple[str, ...]] = ("created_at", "ts", "event_id")
_MERGED_UNITS: Final = 262_144
"""About how long the text of a merged event may grow."""


class _Delta:
    """One delta, or several adjacent ones, taken apart."""

    __slots__ = ("alike", "data", "event", "fields", "first", "own", "pieces", "rest", "size")

    def __init__(self, event: Event, text: str, fields: list[str], data: dict[str, Any], body: dict[str, Any]) -> None:
        self.event = event
        self.first = event.seq
        self.pieces = [text]
        self.size = len(text)
        self.fields = fields
        self.data = data
        self.own = {name: body.pop(name) for name in _OWN if name in body}
        self.rest = body
        self.alike = encode((event.type, fields, data, body))
        """What two deltas of the same thing have in common; as bytes, because 1 and true are equal elsewhere."""

    def join(self, later: _Delta) -> bool:
        """Take another one up, if it is of the same thing."""
        same = later.alike == self.alike and self.size + later.size <= _MERGED_UNITS
        if same:
            self.event, self.own = later.event, later.own
            self.pieces += later.pieces
            self.size += later.size
        return same

    def merged(self) -> Event:
        if len(self.pieces) == 1:
            return self.event
        text = "".join(self.pieces)
        data = self.data | dict.fromkeys(self.fields, text)
        body: dict[str, Any] = {"seq_from": self.first, "seq": self.event.seq, **self.rest, "data": data, **self.own}
        return Event(self.event.seq, self.event.type, encode(body))


def coalesced(events: Sequence[Event]) -> list[Event]:
    """The same events with adjacent deltas of the same thing merged. The fold of a run is unchanged by it."""
    out: list[Event] = []
    open_delta: _Delta | None = None
    for event in events:
        delta = _read(event) if event.type in DELTAS else None
        if open_delta is not None:
            if delta is not None and open_delta.join(delta):
                continue
            out.append(open_delta.merged())
        open_delta = delta
        if delta is None:
            out.append(event)
    if open_delta is not None:
        out.append(open_delta.merged())
    return out


def _read(event: Event) -> _Delta | None:
    """None for a delta whose text is not where it should be, or is none: it stays as it is."""
    try:
        body = decode(event.json)
    except ValueError:
        return None
    data = body.pop("data", None) if isinstance(body, dict) else None
    if not isinstance(data, dict) or body.pop("seq", None) != event.seq or "seq_from" in body:
        return None
    fields = [name for name in DELTAS[event.type] if name in data]
    texts = [data.pop(name) for name in fields]
    if not texts or not isinstance(texts[0], str) or not texts[0] or texts.count(texts[0]) != len(texts):
        return None
    return _Delta(event, texts[0], fields, data, body)
