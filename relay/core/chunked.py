"""The chunked transfer coding of HTTP/1.1 (RFC 9112 §7.1), taken off: bytes in, the body's bytes out.

Any split of the bytes gives the same body. For a connection that carries one answer and is closed afterwards: what comes
behind the end is dropped, trailers are skipped, extensions ignored.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")
_PLAIN_BYTES: Final = 16
"""A size with nothing behind it is no longer."""
_LINE_BYTES: Final = 4096
"""A longer line of a chunk's size and extensions, or of a trailer, is none."""


class Chunked:
    """Feed it; `ended` once the body's proper end was seen."""

    __slots__ = ("_gap", "_held", "_left", "_trailers", "ended")

    def __init__(self) -> None:
        self.ended = False
        self._left = 0  # bytes of the current chunk still to come
        self._gap = False  # the line end behind a chunk is still to come
        self._trailers = False
        self._held = b""  # a line without its end

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in `data`. Raises ValueError for what is not chunked; feed nothing more then."""
        parts: list[bytes] = []
        at = 0
        if not (self._left or self._held or self._gap or self._trailers):
            at = _whole(data, parts)
        if at < len(data):
            self._rest(data[at:] if at else data, parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _rest(self, data: bytes, parts: list[bytes]) -> None:
        data, self._held, at = self._held + data, b"", 0
        while at < len(data) and not self.ended:
            at = self._body(data, at, parts) if self._left else self._line(data, at)

    def _body(self, data: bytes, at: int, parts: list[bytes]) -> int:
        part = data[at : at + self._left]
        parts.append(part)
        self._left -= len(part)
        self._gap = not self._left
        return at + len(part)

    def _line(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at)
        if end < 0:
            self._held = data[at:]
            if len(self._held) > _LINE_BYTES:
                raise ValueError("a line of the chunked coding is too long")
            return len(data)
        self._read(data[at:end])
        return end + 2

    def _read(self, line: bytes) -> None:
        if self._gap:
            if line:
                raise ValueError("a chunk is longer than it said")
            self._gap = False
        elif self._trailers:
            self.ended = not line
        else:
            self._left = _size(line)
            self._trailers = not self._left


def _whole(data: bytes, parts: list[bytes]) -> int:
    """The usual case: whole chunks without CRLF in them. Where they end; what follows is left to the rules.

    One split for all of them: asking for each line's end takes three times as long.
    """
    at = 0
    lines = data.split(b"\r\n")
    for i in range(0, len(lines) - 2, 2):
        line, part = lines[i], lines[i + 1]
        if len(line) > _PLAIN_BYTES:
            break
        size = _size(line)
        if not size or size != len(part):
            break
        parts.append(part)
        at += len(line) + size + 4
    return at


@lru_cache(maxsize=4096)
def _size(line: bytes) -> int:
    found = _SIZE.fullmatch(line)
    if found is None:
        raise ValueError("not the size of a chunk")
    return int(found[1], 16)
