"""A TCP proxy that fails on demand: one `Link` per connection kind and peer.

Faults of a link: latency, bandwidth, `cut` (RST on both sides), a partition per direction (bytes, and also FIN and RST,
are held back; they arrive when it heals, as TCP's retransmissions would), and refusal (a new connection is reset at
once). A tap sees the bytes of a connection: upwards when they leave towards the server, downwards when they arrive from
it, so that what a tap times is an outer bound of what the server did.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_HIGH_WATER = 1 << 18


class Tap(Protocol):
    def up(self, data: bytes, came: float) -> None:
        """Bytes leave for the server; `came`: when we had them of the client (monotonic seconds)."""

    def down(self, data: bytes) -> None: ...
    def closed(self) -> None: ...


def reset(transport: asyncio.Transport | None) -> None:
    if transport is None or transport.is_closing():
        return
    if (sock := transport.get_extra_info("socket")) is not None:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        except (OSError, ValueError):  # closed meanwhile
            pass
    transport.abort()


class _Flow:
    """One direction of one connection: what came in waits here for its time."""

    def __init__(self, link: Link, way: str, seen: Callable[[bytes, float], None] | None) -> None:
        self.link = link
        self.way = way
        self.seen = seen
        """Told of bytes, and of when they came, at the moment they leave."""
        self.out: asyncio.Transport | None = None
        self.into: asyncio.Transport | None = None
        self._queue: deque[tuple[float, bytes | None, float]] = deque()
        """When it is due, what, and when it came."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._held = 0

    def push(self, data: bytes | None) -> None:
        """None: the sender is gone."""
        link = self.link
        if not self._queue and self.out is not None and not link.slow and self.way not in link.dark:
            self._send(data, time.monotonic())
            return
        now = asyncio.get_running_loop().time()
        size = len(data or b"")
        self._due = max(self._due, now + link.latency_s)
        if link.bandwidth:
            self._due += size / link.bandwidth
        self._queue.append((self._due, data, time.monotonic()))
        self._held += size
        if self._held > _HIGH_WATER and self.into is not None and not self.into.is_closing():
            self.into.pause_reading()
        self.pump()

    def pump(self) -> None:
        """Send what is due; called again at the next due time, and whenever the link's faults change."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.out is None or self.way in self.link.dark:
            return
        loop = asyncio.get_running_loop()
        hurry = not self.link.slow
        while self._queue and (hurry or self._queue[0][0] <= loop.time()):
            _, data, came = self._queue.popleft()
            self._held -= len(data or b"")
            self._send(data, came)
        if self._queue:
            self._timer = loop.call_at(self._queue[0][0], self.pump)
        elif self.into is not None and not self.into.is_closing():
            self.into.resume_reading()

    def _send(self, data: bytes | None, came: float) -> None:
        assert self.out is not None
        if data is None:
            if not self.out.is_closing():
                self.out.close()
            return
        if self.seen is not None:
            self.seen(data, came)
        if not self.out.is_closing():
            self.out.write(data)

    def stop(self) -> None:
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()


class _Side(asyncio.Protocol):
    """One socket of a connection."""

    def __init__(self, pair: _Pair, inward: _Flow, outward: _Flow) -> None:
        self.pair = pair
        self.inward = inward  # what this socket sends us
        self.outward = outward  # what we send to it
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        if (sock := transport.get_extra_info("socket")) is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.inward.into = transport
        self.outward.out = transport
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.pair.made(self)

    def data_received(self, data: bytes) -> None:
        self.pair.came(self, data)

    def pause_writing(self) -> None:
        if self.outward.into is not None and not self.outward.into.is_closing():
            self.outward.into.pause_reading()

    def resume_writing(self) -> None:
        if self.outward.into is not None and not self.outward.into.is_closing():
            self.outward.into.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self.pair.lost(self)


class _Pair:
    """A client's connection and ours to the server."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.tap: Tap | None = None
        self.up = _Flow(link, "up", lambda data, came: self.tap.up(data, came) if self.tap else None)
        self.down = _Flow(link, "down", None)
        self.client = _Side(self, self.up, self.down)
        self.server = _Side(self, self.down, self.up)
        self.task: asyncio.Task[None] | None = None
        self.over = False
        self.owner: object = None

    def made(self, side: _Side) -> None:
        if side is self.server:
            self.up.pump()
            return
        if self.link.refusing:
            self.over = True
            reset(side.transport)
            return
        self.link.pairs.add(self)
        self.task = asyncio.get_running_loop().create_task(self._connect())

    async def _introduce(self) -> None:
        """Who is it? Looking takes milliseconds, and after a failover everybody connects at once: not in this thread."""
        assert self.client.transport is not None
        peer = self.client.transport.get_extra_info("peername")
        self.owner = self.link.owner
        if self.link.who and isinstance(peer, tuple):
            self.owner = await asyncio.to_thread(self.link.who, peer[1], self.link.port)
        self.tap = self.link.tap(self.owner) if self.link.tap else None

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await self._introduce()
        while "up" in self.link.dark and not self.over:
            await asyncio.sleep(0.02)  # a SYN that nobody answers
        try:
            if not self.over:
                await loop.create_connection(lambda: self.server, *self.link.target)
        except OSError:
            self.cut()
            return
        if self.over or self.client.transport is None or self.client.transport.is_closing():
            self.cut()

    def came(self, side: _Side, data: bytes) -> None:
        if side is self.server and self.tap is not None:
            self.tap.down(data)
        side.inward.push(data)

    def lost(self, side: _Side) -> None:
        if not self.over and self.tap is not None:
            self.tap.closed()
            self.tap = None if side is self.server else self.tap
        side.inward.push(None)
        if all(s.transport is None or s.transport.is_closing() for s in (self.client, self.server)):
            self._finish()

    def cut(self) -> None:
        reset(self.client.transport)
        reset(self.server.transport)
        self._finish()

    def _finish(self) -> None:
        if self.over:
            return
        self.over = True
        self.up.stop()
        self.down.stop()
        if self.tap is not None:
            self.tap.closed()
        self.link.pairs.discard(self)


class Link:
    """A listening port that leads to a server."""

    def __init__(
        self,
        name: str,
        target: tuple[str, int],
        *,
        owner: object = None,
        tap: Callable[[object], Tap | None] | None = None,
        who: Callable[[int, int], object] | None = None,
    ) -> None:
        self.name = name
        self.target = target
        self.owner = owner
        self.tap = tap
        self.who = who
        """Who connects, by the client's port and ours; used where several share the link."""
        self.pairs: set[_Pair] = set()
        self.latency_s = 0.0
        self.bandwidth = 0.0
        self.dark: frozenset[str] = frozenset()
        self.refusing = False
        self.port = 0
        self._server: asyncio.Server | None = None

    @property
    def slow(self) -> bool:
        return self.latency_s > 0 or self.bandwidth > 0

    async def open(self, port: int = 0) -> Link:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Pair(self).client, "127.0.0.1", port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def fail(
        self, *, latency_s: float = 0.0, bandwidth: float = 0.0, dark: tuple[str, ...] = (), refusing: bool = False
    ) -> None:
        """The link's state from now on; no argument heals it."""
        self.latency_s, self.bandwidth, self.dark, self.refusing = latency_s, bandwidth, frozenset(dark), refusing
        for pair in tuple(self.pairs):
            pair.up.pump()
            pair.down.pump()

    def cut(self, owner: object = None) -> int:
        """Reset every open connection (of one owner); how many."""
        pairs = [pair for pair in self.pairs if owner is None or pair.owner == owner]
        for pair in pairs:
            pair.cut()
        return len(pairs)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
