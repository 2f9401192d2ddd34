"""One events connection of the scripted upstream: frames in, bytes out, shaped and ended as its fault says.

The body is written with HTTP chunks of our own choosing. `Over` unwinds to `serve`, which then does the ending, so that the
code that writes never has to ask whether the stream is still there.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from bisect import bisect_right
from contextlib import suppress

from aiohttp import web

from relay.demo import wire
from relay.demo.ledger import Run
from tests.support.upstream_faults import JUNK, RANDOM_SIZES, Fault

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_HIGH_WATER = 1 << 18


class Over(Exception):
    """The fault's moment has come."""


class Stream:
    """A prepared response and what has been written to it."""

    def __init__(self, response: web.StreamResponse, transport: asyncio.Transport, run: Run, fault: Fault) -> None:
        self.response = response
        self.transport = transport
        self.run = run
        self.fault = fault
        self.cursor = 0
        self.resting = False
        self.over = False
        """The fault's ending was reached."""
        self.events = 0
        self.bytes = 0
        self._last_write = 0.0
        self._clock = asyncio.get_running_loop().time
        self._sizes = random.Random(fault.seed)

    # ── the life of the stream ──────────────────────────────────────────────────────────────────────────────

    async def serve(self, after_seq: int, *, follow: bool, heartbeat_s: float) -> None:
        """Everything from the first byte to the end the fault gives it; returns when the body is to end properly."""
        self.cursor = self._rewound(after_seq)
        try:
            async with asyncio.timeout(self.fault.max_age_s):
                await self._pour(follow=follow, heartbeat_s=heartbeat_s)
        except (Over, TimeoutError):
            self.over = True
            await self._end()

    def _rewound(self, after_seq: int) -> int:
        seqs = self.run.seqs
        at = bisect_right(seqs, after_seq) - self.fault.rewind
        if self.fault.rewind == 0:
            return after_seq
        return seqs[at - 1] if at > 0 else 0

    async def _pour(self, *, follow: bool, heartbeat_s: float) -> None:
        await asyncio.sleep(self.fault.first_byte_s)
        if follow:
            await self._ping()
        if self.fault.immediate and not self.fault.half:
            raise Over
        while True:
            grown = self.run.grown
            rows = self.run.after(self.cursor)
            for seq, framed in rows:
                await self._frame(framed)
                self.cursor = seq
            if rows:
                continue
            if not follow:
                return
            await self._rest(grown, heartbeat_s)

    async def _rest(self, grown: asyncio.Event, heartbeat_s: float) -> None:
        clock = asyncio.get_running_loop().time
        self.resting = not self.fault.shapes
        try:
            async with asyncio.timeout_at(self._last_write + heartbeat_s):
                await grown.wait()
        except TimeoutError:
            if clock() - self._last_write >= heartbeat_s:
                await self._ping()
        finally:
            self.resting = False

    def take(self, seq: int, framed: bytes) -> bool:
        """Write a new frame straight to the socket, if this stream rests at the end of the log and keeps up."""
        # A follower may have left since it was listed; uvloop raises on a write to it, and the whole load would end.
        if not self.resting or self.transport.is_closing() or self.transport.get_write_buffer_size() > _HIGH_WATER:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(framed), framed))
        self.cursor = seq
        self._last_write = self._clock()
        return True

    # ── writing ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _ping(self) -> None:
        if self.fault.pings:
            await self._write(wire.PING)
        self._last_write = asyncio.get_running_loop().time()

    async def _frame(self, framed: bytes) -> None:
        fault = self.fault
        if fault.after_events == self.events or (fault.immediate and fault.half):
            await self._write(framed[: len(framed) // 2] if fault.half else b"")
            raise Over
        await self._write(framed)
        self.events += 1
        if fault.after_events == self.events and not fault.half:
            raise Over

    async def _write(self, data: bytes) -> None:
        if self.fault.crlf:
            data = data.replace(b"\n", b"\r\n")
        limit = self.fault.after_bytes
        left = len(data) if limit is None else min(len(data), limit - self.bytes)
        await self._write_pieces(data[:left])
        self.bytes += left
        self._last_write = asyncio.get_running_loop().time()
        if limit is not None and self.bytes >= limit:
            raise Over

    async def _write_pieces(self, data: bytes) -> None:
        if self.fault.chunk is None:
            await self.response.write(data)
            return
        at = 0
        while at < len(data):
            size = self._sizes.randint(1, 64) if self.fault.chunk == RANDOM_SIZES else self.fault.chunk
            await self.response.write(data[at : at + size])
            await asyncio.sleep(0)  # let the socket send it before the next one
            at += size

    # ── ending ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _end(self) -> None:
        match self.fault.end:
            case "stall":
                await asyncio.sleep(1e9 if self.fault.stall_s is None else self.fault.stall_s)
                reset(self.transport)
            case "junk":
                await self.response.write(JUNK)
            case "eof":
                pass
            case "drop":
                self.transport.close()
            case _:
                await self._flush()
                reset(self.transport)

    async def _flush(self) -> None:
        """What was written before a reset has left for the kernel (a reader that does not read loses it, as in life)."""
        async with asyncio.timeout(1.0):
            while self.transport.get_write_buffer_size() and not self.transport.is_closing():
                await asyncio.sleep(0.001)


def reset(transport: asyncio.WriteTransport) -> None:
    """RST, now. A transport that is closed already stays so."""
    if (sock := transport.get_extra_info("socket")) is not None:
        with suppress(OSError, ValueError):  # its descriptor is gone: OSError from asyncio, ValueError from uvloop
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
