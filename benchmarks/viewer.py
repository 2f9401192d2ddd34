"""One connection of the Python load client, and what all of them saw together. Finds the stamps, checks the order."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

from benchmarks.load import FIRST

_EVENT = re.compile(rb'^data:[^\n]*?"t":(\d+),"s":(\d+)', re.M)
_MESSAGE = re.compile(rb'"t":(\d+),"s":(\d+)')
_UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Tally:
    """What all viewers saw together."""

    def __init__(self, replay: int, *, per_event: bool) -> None:
        self.replay = replay
        """How many events each viewer is to get from the first one on; 0: what there will be, from where it comes in."""
        self.per_event = per_event
        self.delivered = self.gaps = self.dups = self.bad = self.errs = self.closed = self.bytes = self.done = 0
        self.latencies: list[int] = []
        self.last_ns = 0

    def told(self) -> dict[str, Any]:
        ranked = sorted(self.latencies) or [0]

        def quantile(q: float) -> float:
            return round(ranked[min(len(ranked) - 1, int(q * len(ranked)))] / 1e6, 3)

        marks = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
        counts = ("delivered", "gaps", "dups", "bad", "errs", "closed")
        return {name: getattr(self, name) for name in counts} | {name: quantile(q) for name, q in marks.items()}


class Viewer(asyncio.Protocol):
    """Takes an HTTP/1.1 response or a WebSocket apart just far enough to find the events."""

    def __init__(self, tally: Tally, path: str, port: int, *, ws: bool) -> None:
        self._tally = tally
        wanted = _UPGRADE if ws else "Accept: text/event-stream\r\n"
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{wanted}\r\n".encode()
        self._status = b" 101 " if ws else b" 200 "
        self._ws = ws
        self._raw = b""
        self._text = b""
        self._chunked: bool | None = None
        """None until the head is complete."""
        self._next = FIRST if tally.replay else None
        self._count = 0
        self._began = time.monotonic_ns()
        self.established: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done with the head of the response; ConnectionError if that is no welcome."""

    def stall(self) -> None:
        self._transport.pause_reading()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.established.done():
            self.established.set_exception(ConnectionError("closed before its response"))
        elif not self._tally.replay or self._count < self._tally.replay:
            self._tally.closed += 1

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._tally.bytes += len(data)
        self._raw += data
        if self._chunked is None and not self._head():
            return
        found = self._messages() if self._ws else self._events()
        for stamp, number in found:
            self._see(now, int(stamp), int(number))

    def _head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return False
        if self._status not in head.split(b"\r\n")[0]:
            self.established.set_exception(ConnectionError(head[:100].decode("latin-1")))
            self._transport.abort()
            return False
        self._chunked = b"transfer-encoding: chunked" in head.lower()
        self._raw = rest
        self.established.set_result(None)
        return True

    def _events(self) -> list[tuple[bytes, bytes]]:
        self._text += self._unchunked() if self._chunked else self._raw
        if not self._chunked:
            self._raw = b""
        cut = self._text.rfind(b"\n") + 1
        lines, self._text = self._text[:cut], self._text[cut:]
        return _EVENT.findall(lines)

    def _unchunked(self) -> bytes:
        parts: list[bytes] = []
        while True:
            size, found, rest = self._raw.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                return b"".join(parts)
            parts.append(rest[:length])
            self._raw = rest[length + 2 :]

    def _messages(self) -> list[tuple[bytes, bytes]]:
        """Of the complete frames; a server's are not masked."""
        found = []
        while len(self._raw) >= 2:
            short = self._raw[1] & 127
            head = {126: 4, 127: 10}.get(short, 2)
            size = short if head == 2 else int.from_bytes(self._raw[2:head], "big")
            if len(self._raw) < head + size:
                break
            if self._raw[0] & 15 <= 2:
                found += _MESSAGE.findall(self._raw[head : head + size])
            self._raw = self._raw[head + size :]
        return found

    def _see(self, now: int, stamp: int, number: int) -> None:
        tally = self._tally
        if self._next is not None:
            tally.gaps += number > self._next
            tally.dups += number < self._next
        self._next = number + 1
        self._count += 1
        tally.delivered += 1
        tally.last_ns = now
        if tally.per_event:
            tally.latencies.append(now - stamp)
        if self._count == tally.replay:
            tally.done += 1
            if not tally.per_event:
                tally.latencies.append(now - self._began)
