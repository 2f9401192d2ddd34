"""Server-sent events on the wire: bytes in, messages out, and back. WHATWG HTML §9.2.5 (syntax), §9.2.6 (meaning).

The rules of this file:
- Any split of the bytes into chunks gives the same messages. The decoder never waits, logs or raises.
- One event's way: `feed` cuts the chunk into lines, `_read` finds each field in a table, the blank line dispatches.
- Bytes stay bytes until a field is known to be text: one bad UTF-8 byte spoils one character, never the stream.
- `bytes.splitlines` splits at CR, LF and CRLF only, as the format does (`str.splitlines` also splits at U+2028).
- Held between two chunks: a line without its end and a block without its blank line, together at most `max_bytes` and
  a few fields. Data beyond that is only counted; the block's id and event are kept, so that a reader can go on after it.
- A stream's end needs no call: what is held then is an event cut short and must not be delivered. Drop the decoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

_USUAL = re.compile(rb"(?:id: ([^\n\0]*)\n)?(?:event: ([^\n]*)\n)?data: ([^\n]*)\n\n")
"""A block with one data line, written in the usual order with the usual spaces; LF only is made sure of before."""

PING = b": ping\n"
"""A comment with one line end: with a second one (an empty block), httpx-sse and openai deliver an empty event."""

MAX_FIELD_BYTES = 64 * 1024
"""An id, event or retry value longer than this is ignored, as if its line had not been sent."""

MAX_RETRY_MS = 2**31 - 1
"""A larger `retry` means this (24.8 days: the longest timer of a browser)."""

_BOM = b"\xef\xbb\xbf"
_HEAD = len(b"data: ")  # enough of a line to know that it is data, and where its value begins
# As numbers, not bytes: `int in bytes` is a memchr; `bytes in bytes` makes and drops a TypeError first (0.2 us).
_LF, _CR, _NUL = b"\n\r\0"


class Message(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event."""

    data: bytes
    """The data lines joined by LF, exactly as received: possibly no UTF-8. Empty if `oversize`."""
    event: str
    """The event's type; "" if the stream named none, which browsers call `message`."""
    id: str
    """The last event id at dispatch: of this event, or of the last one before it that had an id."""
    oversize: int = 0
    """0, or the length of the data in bytes, which was over the limit and thrown away."""

    @property
    def text(self) -> str:
        """The data as text, each malformed sequence as U+FFFD."""
        return self.data.decode("utf-8", "replace")


class Decoder:
    """One response body's decoder; the next connection takes a new one, with this one's `last_event_id`.

    `max_bytes` bounds the data of one event; see `Message.oversize`.
    """

    last_event_id: str
    """Where to resume. Moves when an event is dispatched, not when its id is read: a cut event is asked for again."""
    retry_ms: int | None
    """The last reconnection time received, at most `MAX_RETRY_MS`; None: none yet."""

    def __init__(self, *, max_bytes: int = 8 * 1024 * 1024, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms = None
        self._bom: bytes | None = b""  # the first bytes, while they may become a BOM; None from then on
        self._cr = False  # the last chunk ended in CR: an LF that comes first belongs to it
        self._line = _Line()
        self._max = max_bytes
        self._id: str | None = None  # the block's fields so far; None: not seen
        self._event: str | None = None
        self._data: bytes | bytearray = b""
        self._size = 0  # of the spec's data buffer, in which an LF follows each line: 0 means no data line

    @property
    def pending(self) -> bool:
        """Is an incomplete line, or a block without its blank line, held that the stream's end would discard?"""
        block = self._size or self._event is not None or self._id is not None
        return bool(block or self._line.size or self._bom)

    def feed(self, chunk: bytes) -> list[Message]:
        """Take the next bytes of the stream; return the messages they complete, in order."""
        if self._bom is not None:
            chunk = self._without_bom(chunk)
        if not chunk:
            return []
        messages: list[Message] = []
        if not (self._line.size or self._cr or self._size or self._id is not None or self._event is not None):
            chunk = self._read_usual(chunk, messages)
        if chunk:
            messages += self._feed(chunk)
        return messages

    def _feed(self, chunk: bytes) -> list[Message]:
        if self._cr:
            chunk = chunk.removeprefix(b"\n")
        self._cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()
        tail = lines.pop() if lines and not chunk.endswith((b"\n", b"\r")) else b""
        if lines and self._line.size:
            lines[0] = self._end_line(lines[0])
        messages = self._read(lines)
        if tail:
            self._line.extend(tail, room=self._max - self._size)
        return messages

    def _read_usual(self, chunk: bytes, messages: list[Message]) -> bytes:
        """Whole blocks as nearly every server writes them, one match each; what follows them is left to the rules."""
        if _CR in chunk or len(chunk) > min(self._max, MAX_FIELD_BYTES):
            return chunk
        at, last_id = 0, self.last_event_id
        try:
            while (found := _USUAL.match(chunk, at)) is not None:
                named, event, data = found.groups()
                given = last_id if named is None else named.decode()
                messages.append(Message(data, event.decode() if event else "", given))
                at, last_id = found.end(), given
        except UnicodeDecodeError:  # an id or a type with bad bytes in it: a rule, too
            pass
        self.last_event_id = last_id
        return chunk[at:]

    def _without_bom(self, chunk: bytes) -> bytes:
        start = (self._bom or b"") + chunk
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._bom = start
            return b""
        self._bom = None
        return start.removeprefix(_BOM)

    def _end_line(self, rest: bytes) -> bytes:
        """The held line with its end; a comment (nothing) in place of a line that was too long to hold."""
        self._line.extend(rest, room=self._max - self._size)
        line, unseen = self._line.take()
        if not unseen:
            return line
        if line.startswith(b"data:"):
            self._size += len(line.removeprefix(b"data:").removeprefix(b" ")) + unseen + 1
            self._data = b""
        return b":"

    def _read(self, lines: Iterable[bytes]) -> list[Message]:
        messages = []
        fields = _FIELDS
        for line in lines:
            if line:
                name, _, value = line.partition(b": ")  # the usual form, or no colon at all
                if name not in fields:
                    name, _, value = line.partition(b":")  # a known name here has no space after it: see above
                if on_field := fields.get(name):  # a comment's name is empty and in no table
                    on_field(self, value)
            elif (message := self._dispatch()) is not None:
                messages.append(message)
        return messages

    def _on_data(self, value: bytes) -> None:
        first = self._size == 0
        self._size += len(value) + 1
        if self._size - 1 > self._max:
            self._data = b""
        elif first:
            self._data = value
        else:
            if not isinstance(self._data, bytearray):
                self._data = bytearray(self._data)
            self._data += b"\n" + value

    def _on_event(self, value: bytes) -> None:
        if len(value) <= MAX_FIELD_BYTES:
            self._event = value.decode("utf-8", "replace")

    def _on_id(self, value: bytes) -> None:
        if _NUL not in value and len(value) <= MAX_FIELD_BYTES:
            self._id = value.decode("utf-8", "replace")

    def _on_retry(self, value: bytes) -> None:
        if value.isdigit() and len(value) <= MAX_FIELD_BYTES:  # bytes.isdigit: ASCII only, False when empty
            digits = value.lstrip(b"0")[:11]  # int() refuses thousands of digits; eleven are over the maximum
            self.retry_ms = min(int(digits or b"0"), MAX_RETRY_MS)

    def _dispatch(self) -> Message | None:
        """§9.2.6 "dispatch the event": the id counts even without data, an event type does not."""
        if self._id is not None:
            self.last_event_id = self._id
        size, data, event = self._size, self._data, self._event or ""
        self._size, self._data, self._event, self._id = 0, b"", None, None
        if not size:
            return None
        oversize = size - 1 if size - 1 > self._max else 0
        return Message(bytes(data), event, self.last_event_id, oversize)


_FIELDS: dict[bytes, Callable[[Decoder, bytes], None]] = {
    b"data": Decoder._on_data,
    b"event": Decoder._on_event,
    b"id": Decoder._on_id,
    b"retry": Decoder._on_retry,
}


class _Line:
    """A line whose end has not arrived: kept as long as its field may accept it, then only its head and its size.

    The limits here are never too low; the exact ones are in the fields, where every line ends up.
    One growing buffer: each byte is appended once and read once, however small the chunks are.
    """

    def __init__(self) -> None:
        self.size = 0
        self._kept = bytearray()

    def extend(self, part: bytes, *, room: int) -> None:
        """Add the next bytes. `room`: how much more data the block may hold."""
        self.size += len(part)
        self._kept += part
        data = _HEAD + room if self._kept.startswith(b"data:") else 0
        if self.size > max(data, _HEAD + MAX_FIELD_BYTES + 1):
            del self._kept[_HEAD:]

    def take(self) -> tuple[bytes, int]:
        """The line and 0, or its head and the number of bytes thrown away; then this is the next line, empty."""
        line = bytes(self._kept)
        unseen = self.size - len(line)
        self.size = 0
        self._kept.clear()
        return line, unseen


def frame(seq: int | None, data: bytes, event: str | None = None, retry_ms: int | None = None) -> bytes:
    """One event in our own form: id, event, retry (each only if given), one data line; LF only.

    Raises ValueError for data or an event with a line end in it, and for a negative retry: a reader would see other
    fields, or none.
    """
    if _LF in data or _CR in data:
        raise ValueError("data holds a line end")
    head = b"" if seq is None else b"id: %d\n" % seq
    if event:
        head += _event_line(event)
    if retry_ms is not None:
        head += _retry_line(retry_ms)
    return b"%bdata: %b\n\n" % (head, data)


def _event_line(event: str) -> bytes:
    if "\n" in event or "\r" in event:
        raise ValueError(f"event type holds a line end: {event!r}")
    return b"event: %b\n" % event.encode()


def _retry_line(retry_ms: int) -> bytes:
    if retry_ms < 0:
        raise ValueError(f"retry_ms is negative: {retry_ms}")
    return b"retry: %d\n" % retry_ms
