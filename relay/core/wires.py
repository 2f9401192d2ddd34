"""How an event and our own notices look on each wire: SSE (plain and named), NDJSON, WebSocket.

A Wire is a value: two viewers with equal wires get the very same bytes object. Each wire joins all it has to say in one
turn and frames it for its transfer (an HTTP chunk) once, for everybody. Rules of the SSE bytes: docs/protocol.md, each
of them there because a real client looped or crashed without it (one LF after a comment; an `id:` on our own frames).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from relay.core import sse
from relay.core.deflate import RSV1, deflated
from relay.core.events import Event, encode
from relay.core.goodbye import Goodbye

Form = Literal["sse", "sse-named", "ndjson", "websocket", "websocket-deflate"]
_FORMS: tuple[Form, ...] = ("sse", "sse-named", "ndjson", "websocket", "websocket-deflate")


@dataclass(frozen=True, slots=True)
class Notice:
    """A frame of our own. It is no event and has no place in the log; `id` is where the reader then stands."""

    type: str
    data: dict[str, Any]
    id: int | None = None
    retry_ms: int | None = None


def end(last_seq: int, status: str, retry_ms: int) -> Notice:
    """No more ever. Only said at the seal."""
    return Notice("relay.end", {"last_seq": last_seq, "status": status}, last_seq, retry_ms)


def position(seq: int) -> Notice:
    """Events up to `seq` were filtered out; coming back need not read them again."""
    return Notice("relay.position", {"seq": seq}, seq)


def snapshot(data: dict[str, Any]) -> Notice:
    """The run so far, folded (`core.fold`): whoever has this needs only what follows it."""
    return Notice("relay.snapshot", data, data["as_of_seq"])


def reset(from_seq: int, to_seq: int, reason: str) -> Notice:
    """Events `from_seq..to_seq` can no longer be had, or (`rewritten`) are void."""
    return Notice("relay.reset", {"from_seq": from_seq, "to_seq": to_seq, "reason": reason}, to_seq)


def goodbye(why: Goodbye, after_ms: int) -> Notice:
    data = {"code": why.code, "reconnect": why.reconnect, "after_ms": after_ms}
    return Notice("relay.goodbye", data, None, after_ms)


class AnyWire(Protocol):
    """What carries a run to a reader: a `Wire` of the native face, or a `core.faces.FaceWire` of another one."""

    @property
    def form(self) -> str: ...

    @property
    def key(self) -> int: ...

    @property
    def chunked(self) -> bool: ...

    @property
    def ping(self) -> bytes: ...

    @property
    def unframed_ping(self) -> bytes: ...

    def events(self, events: Sequence[Event]) -> bytes: ...

    def notice(self, notice: Notice) -> bytes: ...

    def wrap(self, payload: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Wire:
    form: Form
    chunked: bool = False
    """HTTP/1.1 chunk framing around each write."""
    key: int = field(init=False, repr=False, compare=False)
    """Stands for this wire in the keys of what is remembered: an int costs no Python call to hash."""
    ping: bytes = field(init=False, repr=False, compare=False)
    """Ends a silence; no client takes it for an event."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _FORMS.index(self.form) * 2 + self.chunked)
        object.__setattr__(self, "ping", self.wrap(self.unframed_ping))

    def events(self, events: Sequence[Event]) -> bytes:
        """All of them joined, ready to be written; empty bytes for none."""
        if self.form == "websocket-deflate":
            return websocket_messages([event.json for event in events], deflate=True)
        frame = _EVENT[self.form]
        payload = frame(events[0]) if len(events) == 1 else b"".join([frame(event) for event in events])
        return self.wrap(payload) if self.chunked else payload

    def notice(self, notice: Notice) -> bytes:
        return self.wrap(_NOTICE[self.form](notice))

    @property
    def unframed_ping(self) -> bytes:
        return _PING[self.form]

    def wrap(self, payload: bytes) -> bytes:
        if not self.chunked or not payload:
            return payload
        return b"%x\r\n%b\r\n" % (len(payload), payload)


def _sse(event: Event) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (event.seq, event.json)


def _sse_named(event: Event) -> bytes:
    # A type is the upstream's own string (any plugin may emit any): a line break in it would forge a frame.
    name = event.type.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, name, event.json)


def _ndjson(event: Event) -> bytes:
    return event.json + b"\n"


def _websocket(event: Event) -> bytes:
    return websocket_frame(0x1, event.json)


def websocket_messages(payloads: Sequence[bytes], *, deflate: bool) -> bytes:
    """Text messages, compressed where the client takes that and it is worth it."""
    squeezed = deflated(payloads) if deflate else None
    if squeezed is None:
        return b"".join([websocket_frame(0x1, payload) for payload in payloads])
    return b"".join([websocket_frame(0x1 | RSV1, payload) for payload in squeezed])


def websocket_frame(opcode: int, payload: bytes) -> bytes:
    """One final, unmasked (server to client) frame, RFC 6455 §5.2: the same bytes serve every viewer."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return b"%c\x7e%b%b" % (0x80 | opcode, size.to_bytes(2, "big"), payload)
    return b"%c\x7f%b%b" % (0x80 | opcode, size.to_bytes(8, "big"), payload)


def _sse_notice(notice: Notice) -> bytes:
    return sse.frame(notice.id, encode(notice.data), notice.type, notice.retry_ms)


def _notice_json(notice: Notice) -> bytes:
    return encode({"type": notice.type, **notice.data})


_EVENT: dict[Form, Callable[[Event], bytes]] = {
    "sse": _sse,
    "sse-named": _sse_named,
    "ndjson": _ndjson,
    "websocket": _websocket,
    "websocket-deflate": _websocket,
}
_NOTICE: dict[Form, Callable[[Notice], bytes]] = {
    "sse": _sse_notice,
    "sse-named": _sse_notice,
    "ndjson": lambda notice: _notice_json(notice) + b"\n",
    "websocket": lambda notice: websocket_frame(0x1, _notice_json(notice)),
    "websocket-deflate": lambda notice: websocket_frame(0x1, _notice_json(notice)),
}
_PING: dict[Form, bytes] = {
    "sse": sse.PING,
    "sse-named": sse.PING,
    "ndjson": b"\n",
    "websocket": websocket_frame(0x9, b""),
    "websocket-deflate": websocket_frame(0x9, b""),
}
