"""A stream compressed for one client: gzip or zstd, flushed with every write, so that no event waits for the next one.

What repeats in events repeats between events, not within one: compressed each by itself an event of a language model
keeps 82 % of its bytes, with a memory of what came before 18 %. So the memory is worth having, it is each client's own,
and compressed bytes cannot be shared as plain ones are: it costs about twice the CPU of the `send`, and 32 KiB a viewer.
Therefore off unless configured (`delivery.compress`).
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

from relay.delivery.stream import Flow
from relay.fanout.crowd import Way

Coding = Literal["gzip", "zstd"]

_ITEM: Final = re.compile(r"\s*([A-Za-z0-9*_-]+)\s*(?:;\s*[qQ]=([01](?:\.[0-9]{0,3})?)\s*)?", re.ASCII)


class Encoder(Protocol):
    def piece(self, data: bytes) -> bytes:
        """All of `data`, to be decompressed at once."""

    def end(self) -> bytes:
        """What makes the body whole."""


class Gzip:
    """The window is 4 KiB, some dozens of events: a larger one gains 1 % and costs 260 KiB a viewer."""

    __slots__ = ("_deflate",)

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(1, zlib.DEFLATED, 16 + 12, 5)

    def piece(self, data: bytes) -> bytes:
        return self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._deflate.flush(zlib.Z_FINISH)


class Zstd:
    __slots__ = ("_compressor", "_flush", "_last")

    def __init__(self) -> None:
        library = _zstd()
        if library is None:
            raise RuntimeError("zstd is not installed")
        kind, knob = library.ZstdCompressor, library.CompressionParameter
        options = {knob.compression_level: 1, knob.window_log: 14, knob.hash_log: 12}
        self._compressor = kind(options=options)
        self._flush, self._last = kind.FLUSH_BLOCK, kind.FLUSH_FRAME

    def piece(self, data: bytes) -> bytes:
        return bytes(self._compressor.compress(data, self._flush))

    def end(self) -> bytes:
        return bytes(self._compressor.compress(b"", self._last))


def _zstd() -> Any:
    """Python's own library (3.14), or the one that brings it to older ones; None if neither is there."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415
        else:
            from backports import zstd  # noqa: PLC0415
    except ImportError:
        return None
    return zstd


_ENCODERS: Final[dict[Coding, Callable[[], Encoder]]] = {"gzip": Gzip, "zstd": Zstd}


def coding_of(accept_encoding: str | None) -> Coding | None:
    """The best coding that a client asks for by name and we have; None for none (RFC 9110 §12.5.3).

    `*` alone asks for nothing in particular, and plain bytes are always in order.
    """
    if not accept_encoding:
        return None
    found = [_ITEM.fullmatch(item) for item in accept_encoding.split(",")[:32]]
    asked = {item[1].lower(): float(item[2] or 1) for item in found if item is not None}
    wanted: list[tuple[float, Coding]] = []
    if asked.get("zstd") and _zstd() is not None:
        wanted.append((asked["zstd"], "zstd"))
    if gzip := asked.get("gzip", asked.get("x-gzip")):
        wanted.append((gzip, "gzip"))
    return max(wanted, key=lambda one: one[0])[1] if wanted else None


class Plain(Protocol):
    """What is below: a connection that takes the body's bytes."""

    @property
    def closing(self) -> bool: ...
    @property
    def backlog(self) -> int: ...
    @property
    def ready(self) -> bool: ...
    @property
    def full(self) -> bool: ...
    def put(self, data: bytes) -> None: ...
    async def drained(self) -> None: ...
    def attend(self, listener: Flow | None) -> None: ...
    def abort(self) -> None: ...
    def part(self) -> None: ...


class Carrying(Plain, Protocol):
    async def finish(self) -> None: ...


class Compressed:
    """A connection for a stream: what is written to it is compressed, and framed for its transfer."""

    __slots__ = ("_below", "_chunked", "_encoder", "_given", "attend", "drained")

    def __init__(self, below: Plain, coding: Coding, *, chunked: bool) -> None:
        self._below = below
        self._encoder = _ENCODERS[coding]()
        self._chunked = chunked
        self._given = 0
        self.attend = below.attend
        self.drained = below.drained

    @property
    def closing(self) -> bool:
        return self._below.closing

    @property
    def backlog(self) -> int:
        return self._below.backlog

    def given(self, written: int) -> int:
        return self._given  # nothing waits in the encoder: each piece is flushed

    @property
    def ready(self) -> bool:
        return self._below.ready

    @property
    def full(self) -> bool:
        return self._below.full

    def put(self, data: bytes) -> None:
        if data and not self._below.closing:
            self._put(self._encoder.piece(data))

    @property
    def way(self) -> Way:
        return Way(self.put, self.put)

    def complete(self) -> None:
        """What makes the body whole; only for a proper end."""
        self._put(self._encoder.end())

    def abort(self) -> None:
        self._below.abort()

    def part(self) -> None:
        self._below.part()

    def _put(self, data: bytes) -> None:
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        self._given += len(framed)
        self._below.put(framed)


class CarrierCompressed(Compressed):
    """The same for a connection that carries one response after the other by itself."""

    __slots__ = ("_finish",)

    def __init__(self, below: Carrying, coding: Coding, *, chunked: bool) -> None:
        super().__init__(below, coding, chunked=chunked)
        self._finish = below.finish

    async def finish(self) -> None:
        self.complete()
        await self._finish()
