"""An aiohttp request's transport as a stream's connection: shared bytes go to it as they are, nothing is framed twice."""

from __future__ import annotations

import asyncio
import socket
import struct

from aiohttp import web

_FULL = 65536
"""asyncio's own high-water mark: beyond it the transport tells aiohttp to pause, and `drained` really waits."""


class TransportConnection:
    __slots__ = ("_request", "_transport")

    def __init__(self, request: web.BaseRequest) -> None:
        if request.transport is None:
            raise ConnectionResetError
        self._request = request
        self._transport: asyncio.Transport = request.transport

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def backlog(self) -> int:
        return self._transport.get_write_buffer_size()

    @property
    def ready(self) -> bool:
        transport = self._transport
        return not transport.is_closing() and transport.get_write_buffer_size() <= _FULL

    @property
    def full(self) -> bool:
        return self._transport.get_write_buffer_size() > _FULL

    def write(self, data: bytes) -> None:
        transport = self._transport
        if not transport.is_closing():
            transport.write(data)

    async def drained(self) -> None:
        await self._request.writer.drain()
        if self._transport.is_closing():
            raise ConnectionResetError

    def abort(self) -> None:
        """Cut, throwing away what was not sent yet."""
        self._reset_if_ambiguous()
        self._transport.abort()

    def part(self) -> None:
        """Cut after what was written: the missing last chunk tells an HTTP/1.1 client that this was no proper end."""
        self._reset_if_ambiguous()
        self._transport.close()

    def _reset_if_ambiguous(self) -> None:
        # An HTTP/1.0 body ends where the connection does, so only a reset can say that it did not end properly.
        if self._request.version >= (1, 1):
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # A duplicate, because the loop's own socket object does not let us set options everywhere.
            with socket.fromfd(sock.fileno(), sock.family, socket.SOCK_STREAM) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
