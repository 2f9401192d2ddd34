"""The chunked transfer coding of HTTP/1.1 (RFC 9112 §7.1), taken off: bytes in, the body's bytes out.

Any split of the bytes gives the same body. For a connection that carries one answer and is closed afterwards: what comes
behind the end is dropped, trailers are skipped, extensions ignored.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_SIZE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?")
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
    """The usual case: whole chunks. Where they end; what follows is left to the rules."""
    at = 0
    while (end := data.find(b"\r\n", at, at + 18)) > 0:
        size = _size(data[at:end])
        stop = end + 2 + size
        if not size or data[stop : stop + 2] != b"\r\n":
            break
        parts.append(data[end + 2 : stop])
        at = stop + 2
    return at


@lru_cache(maxsize=4096)
def _size(line: bytes) -> int:
    found = _SIZE.fullmatch(line)
    if found is None:
        raise ValueError("not the size of a chunk")
    return int(found[1], 16)
