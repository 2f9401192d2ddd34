"""How the Arkloop face speaks: its frames, run objects and query values (docs/faces.md, docs/upstreams/arkloop.md).

An event of an Arkloop upstream gets back the very envelope it came in; one of another upstream is put into that envelope.
Notices of ours are comments here: a frame without an id would be taken for an event.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from relay.core.errors import InvalidRequest, Unsupported
from relay.core.events import MAX_SEQ, Event, decode, encode
from relay.core.faces import FaceWire
from relay.core.wires import Notice
from relay.providers.arkloop.events import NATIVE_FIELD, NATIVE_TYPE
from relay.providers.conversation import Message, Thread

PING: Final = b": ping\n\n"
STAY_S: Final = 30.0
"""How long its web client goes on listening after the end, for the thread's title."""

_THEIR_TYPE: Final = {ours: theirs for theirs, ours in NATIVE_TYPE.items()}
_OURS: Final = ("created_at", "upstream_type", "synthesized")
"""Envelope fields that an Arkloop event does not have."""
_ONLY_OURS: Final = frozenset({"org_id", "upstream", "provider", "raw_status", "last_seq", "ended"})
_STATUS: Final = {"queued": "running", "waiting_for_input": "running"}
"""Native statuses it has no word for."""
_INT: Final = re.compile(r"\s*([+-]?[0-9]{1,40})", re.ASCII)


def _frame(event: Event) -> bytes:
    envelope = envelope_of(event)
    name = str(envelope["type"]).replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, name, _json(envelope))


def _words(notice: Notice) -> bytes:
    return b": %b %b\n\n" % (notice.type.encode(), encode(notice.data))


WIRE: Final = FaceWire("arkloop", 40, PING, _frame, _words)


def _json(envelope: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(envelope, order="sorted")
    except (UnicodeEncodeError, RecursionError):
        return encode(envelope)


def envelope_of(event: Event) -> dict[str, Any]:
    """The envelope as Arkloop would have sent it."""
    try:
        body: dict[str, Any] = decode(event.json)
    except ValueError:
        body = {"seq": event.seq, "type": event.type, "data": {"undecodable": True}}
    kind = body.get("upstream_type") or _THEIR_TYPE.get(event.type, event.type)
    envelope = {name: value for name, value in body.items() if name not in _OURS}
    data = body.get("data")
    run_id = str(body.get("run_id", ""))
    return {
        **envelope,
        "type": kind,
        "data": _data(kind, data) if isinstance(data, dict) else data,
        "ts": body.get("ts") or body.get("created_at"),
        "event_id": body.get("event_id") or str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id}/{event.seq}")),
    }


def _data(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    """Arkloop's own name for what we named; our name goes where it only repeats it."""
    theirs, ours = NATIVE_FIELD.get(kind, (None, None))
    if theirs is None or ours is None or ours not in data or data.get(theirs, data[ours]) != data[ours]:
        return data
    return {**{name: value for name, value in data.items() if name != ours}, theirs: data[ours]}


def run(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A native run as Arkloop shows it: null fields are left out."""
    status = _STATUS.get(str(given.get("status")), given.get("status"))
    shown = {"account_id": given.get("org_id"), **given, "status": status, **more}
    return {name: value for name, value in shown.items() if value is not None and name not in _ONLY_OURS}


def thread_item(given: dict[str, Any]) -> dict[str, Any]:
    """An item of a thread's list."""
    shown = run(given)
    return {name: shown[name] for name in ("run_id", "status", "created_at", "resume_from_run_id") if name in shown}


def after_seq(text: str | None) -> int:
    """`after_seq` as Go's `%d` scan reads it: `12abc` is 12, blank is 0; what it cannot read is refused."""
    if text is None or not text.strip():
        return 0
    found = _INT.match(text)
    number = int(found[1]) if found else -1
    if not 0 <= number <= MAX_SEQ:
        raise InvalidRequest.field("after_seq", "not a sequence number", f"0 to {MAX_SEQ}")
    return number


def thread(given: Thread) -> dict[str, Any]:
    """As its server answers (v1_threads.go); a title is nothing the system behind could keep, and it says so."""
    return {
        "id": given.id,
        "account_id": None,
        "created_by_user_id": None,
        "title": None,
        "created_at": given.created_at,
        "active_run_id": given.active_run_id,
        "is_private": False,
    }


def message(given: Message) -> dict[str, Any]:
    """As its server answers (v1_messages.go)."""
    said = {
        "id": given.id,
        "account_id": None,
        "thread_id": given.thread_id,
        "created_by_user_id": None,
        "role": given.role,
        "content": given.content,
        "created_at": given.created_at,
    }
    return {**said, "run_id": given.run_id} if given.run_id else said


def said(body: Mapping[str, Any]) -> str:
    """The text of a user's message to be made; refused if it is anything else."""
    for name in sorted(body.keys() - {"content"}):
        raise Unsupported(f"{name}: the upstream behind this face cannot keep it", details={"field": name})
    content = body.get("content")
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequest.field("content", "missing, empty or not a text", "a text")
    return content
