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
    envelope = _envelope(message)
    seq = _seq(envelope.get("seq"), message.id)
    if seq is None:
        return []
    given = envelope.get("type")
    kind = given if isinstance(given, str) and given else message.event or "unknown"
    return [_draft(seq, kind, envelope, run_id=run_id, received_at=received_at)]


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


def _seq(given: object, last_event_id: str) -> int | None:
    if type(given) is int and 1 <= given <= MAX_SEQ:
        return given
    if last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 19:
        seq = int(last_event_id)
        return seq if 1 <= seq <= MAX_SEQ else None
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _draft(seq: int, kind: str, envelope: dict[str, Any], *, run_id: str, received_at: str) -> Draft:
    native = NATIVE_TYPE.get(kind, kind)
    data = envelope.get("data", {})
    if kind in NATIVE_FIELD and isinstance(data, dict):
        theirs, ours = NATIVE_FIELD[kind]
        if theirs in data and ours not in data:
            data[ours] = data[theirs]
    # The envelope is ours alone: it was decoded for this one draft, which is made of it in place.
    envelope["seq"] = seq
    envelope["type"] = native
    envelope["data"] = data
    envelope["created_at"] = _text(envelope.get("created_at")) or _text(envelope.get("ts")) or received_at
    envelope["run_id"] = _text(envelope.get("run_id")) or run_id
    if native != kind:
        envelope["upstream_type"] = kind
    return Draft(seq, native, envelope)
