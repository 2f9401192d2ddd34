"""Arkloop's event envelope -> native events, by table. Nothing upstream sent is dropped, nothing inside `data` altered.

The envelope is `{"data", "event_id", "run_id", "seq", "ts", "type", "tool_name"?, "error_class"?}`. We add the names of
the native vocabulary beside its own: `created_at` for `ts`, `data.content` for `data.content_delta`, and where a type
has a native counterpart, `type` becomes that and `upstream_type` keeps the original.
"""

from __future__ import annotations

from typing import Any, Final

from relay.core.events import MAX_SEQ, Draft, decode
from relay.core.sse import Message

NATIVE_TYPE: Final = {"run.input_requested": "run.waiting_for_input"}
"""Arkloop type -> native type; every other type passes under its own name (the set is open)."""

NATIVE_FIELD: Final = {"message.delta": ("content_delta", "content")}
"""Arkloop type -> (its field of `data`, the native field added beside it)."""


def drafts(message: Message, *, run_id: str, received_at: str) -> list[Draft]:
    """The one event of a message, made of its envelope in place: that was decoded for this and is nobody else's."""
    envelope = _envelope(message)
    seq = envelope.get("seq")
    if type(seq) is not int or not 1 <= seq <= MAX_SEQ:
        seq = envelope["seq"] = _seq(message.id)
        if seq is None:
            return []
    kind = envelope.get("type")
    if type(kind) is not str or not kind:
        kind = envelope["type"] = message.event or "unknown"
    native = NATIVE_TYPE.get(kind, kind)
    _complete(envelope, kind, run_id, received_at)
    if native != kind:
        envelope["type"] = native
        envelope["upstream_type"] = kind
    return [Draft(seq, native, envelope)]


def _complete(envelope: dict[str, Any], kind: str, run_id: str, received_at: str) -> None:
    """Add what every native event has. Only what is missing is written, for nearly every event has most of it."""
    data = envelope.setdefault("data", {})
    fields = NATIVE_FIELD.get(kind)
    if fields is not None and type(data) is dict:
        theirs, ours = fields
        if theirs in data and ours not in data:
            data[ours] = data[theirs]
    created_at = envelope.get("created_at")
    if type(created_at) is not str or not created_at:
        ts = envelope.get("ts")
        envelope["created_at"] = ts if type(ts) is str and ts else received_at
    given = envelope.get("run_id")
    if type(given) is not str or not given:
        envelope["run_id"] = run_id


def _envelope(message: Message) -> dict[str, Any]:
    """The JSON object of a message; for what is none, an envelope that says so, so that no seq is ever lost."""
    if message.oversize:
        return {"data": {"truncated": True, "bytes": message.oversize}}
    try:
        envelope = decode(message.data)
    except ValueError:
        envelope = None
    if isinstance(envelope, dict):
        return envelope
    return {"data": {"undecodable": True, "bytes": len(message.data)}}


def _seq(last_event_id: str) -> int | None:
    """The number of an event whose envelope has none."""
    if last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 19:
        seq = int(last_event_id)
        return seq if 1 <= seq <= MAX_SEQ else None
    return None
