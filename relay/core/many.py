"""How many runs look on one connection (`/v1/events`): SSE with one cursor for all of them, or WebSocket messages.

The bytes of a run's events are the same for every reader and are shared like those of any wire. What differs from reader
to reader is put around them: over SSE the last frame of each write gets the reader's own `id:`, the vector cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from relay.core import sse
from relay.core.events import Event, encode
from relay.core.wires import Notice, websocket_frame, websocket_messages

ManyForm = Literal["many-sse", "many-websocket", "many-websocket-deflate"]
_KEYS: Final[dict[str, int]] = {"many-sse": -1, "many-websocket": -2, "many-websocket-deflate": -3}
"""Below those of all wires of single runs, whose keys are not negative."""


@dataclass(frozen=True, slots=True)
class RunWire:
    """One run of many: what `core.wires.Wire` is to a connection of its own. Nothing is framed for HTTP here."""

    form: ManyForm
    run_id: str

    @property
    def key(self) -> int:
        return _KEYS[self.form]

    @property
    def chunked(self) -> bool:
        return False

    @property
    def ping(self) -> bytes:
        return self.unframed_ping

    @property
    def unframed_ping(self) -> bytes:
        return sse.PING if self.form == "many-sse" else websocket_frame(0x9, b"")

    def events(self, events: Sequence[Event]) -> bytes:
        if self.form == "many-sse":
            return b"".join([b"data: %b\n\n" % event.json for event in events])
        head = b'{"op":"event","run_id":"%b","event":' % self.run_id.encode()
        squeeze = self.form == "many-websocket-deflate"
        return websocket_messages([b"%b%b}" % (head, event.json) for event in events], deflate=squeeze)

    def notice(self, notice: Notice) -> bytes:
        """A frame of our own about this run."""
        name = notice.type.removeprefix("relay.")
        return said(self.form, name, {"run_id": self.run_id, **notice.data}, notice.retry_ms)

    def wrap(self, payload: bytes) -> bytes:
        return payload


def said(form: ManyForm, name: str, data: dict[str, Any], retry_ms: int | None = None) -> bytes:
    """`event: relay.<name>`, or `{"op": name, …}`."""
    if form == "many-sse":
        return sse.frame(None, encode(data), f"relay.{name}", retry_ms)
    return websocket_frame(0x1, encode({"op": name, **data}))


def stamped(frames: bytes, cursor: bytes) -> bytes:
    """SSE frames, the last of which says how far the reader is in all of its runs."""
    return b"%bid: %b\n\n" % (frames[:-1], cursor)
