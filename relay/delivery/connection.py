"""A transport as a stream's connection: shared bytes go to it as they are, nothing is framed twice.

Two kinds, alike for a stream: the one of a request that aiohttp serves, here, and the protocol of the slim listener, who
is one itself (relay.web.slim_connection). Both must say when they are full, can take more, or are gone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Protocol, cast

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol

from relay.delivery.stream import Flow
from relay.fanout.crowd import Way

TAKING_S = 30.0
"""How long a client to whom nothing more is written may take nothing of what was."""


class Telling(BaseProtocol):
    """The base of both listeners' protocols: whoever attends to a connection hears how it fares."""

    __slots__ = ()

    flow: Flow | None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.flow is not None:
            self.flow.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.flow is not None:
            self.flow.resumed()

    def connection_lost(self, exc: BaseException | None) -> None:
        try:
            super().connection_lost(exc)
        finally:  # whatever happens: from here on the descriptor is closed, and given to somebody else (see `way_of`)
            if self.flow is not None:
                self.flow.lost()


class Served(Protocol):
    """aiohttp's protocol, as this listener has it."""

    flow: Flow | None
    ends_by_close: bool
    """What is being answered ends where the connection does, as an HTTP/1.0 body."""

    @property
    def writing_paused(self) -> bool: ...


class TransportConnection:
    __slots__ = ("_drain", "_http_1_1", "_protocol", "_transport")

    def __init__(self, request: web.BaseRequest) -> None:
        if request.transport is None:
            raise ConnectionResetError
        self._protocol = cast(Served, request.protocol)
        self._transport: asyncio.Transport = request.transport
        self._drain = request.writer.drain
        self._http_1_1 = request.version >= (1, 1)

    @property
    def way(self) -> Way:
        return way_of(self._transport, alone=False)  # aiohttp answers pings

    def put(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    @property
    def backlog(self) -> int:
        return self._transport.get_write_buffer_size()

    def given(self, written: int) -> int:
        return written

    @property
    def full(self) -> bool:
        return self._protocol.writing_paused

    @property
    def ready(self) -> bool:
        """Neither closing nor full: may be written to at once."""
        return not (self._protocol.writing_paused or self._transport.is_closing())

    async def drained(self) -> None:
        """Returns when there is room again; raises ConnectionError when the client is gone."""
        await self._drain()
        if self._transport.is_closing():
            raise ConnectionResetError

    def attend(self, listener: Flow | None) -> None:
        self._protocol.flow = listener
        self._protocol.ends_by_close = listener is not None and not self._http_1_1

    def abort(self) -> None:
        """Cut, throwing away what was not sent yet."""
        self._reset_if_ambiguous()
        self._transport.abort()

    def part(self) -> None:
        """Cut after what was written: the missing last chunk tells an HTTP/1.1 client that this was no proper end."""
        self._reset_if_ambiguous()
        close_in_time(self._transport)

    def _reset_if_ambiguous(self) -> None:
        if not self._http_1_1:
            reset_at_close(self._transport)


def way_of(transport: asyncio.Transport, *, alone: bool) -> Way:
    """How a crowd writes to this transport: by its descriptor, where bytes go out as they are and nothing is before them.

    `alone`: nobody writes to it but a stream, and the crowd in which that stands.

    What makes that safe is uvloop's: the descriptor is closed, and may be another client's, only after `connection_lost`
    has returned, and whoever stands in a crowd leaves it in there (`Telling`); and a transport that is aborted still
    counts what it held as pending, so nothing follows a hole. asyncio's own forgets it, and is written to as ever.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or not _is_uvloops(transport) or transport.get_extra_info("sslcontext") is not None:
        return Way(transport.write, transport.write)
    pending = transport.get_write_buffer_size
    return Way(
        partial(os.write, sock.fileno()), partial(_queue, transport), None if alone and not pending() else pending
    )


def _is_uvloops(transport: asyncio.Transport) -> bool:
    return type(transport).__module__.partition(".")[0] == "uvloop"


def _queue(transport: asyncio.Transport, data: bytes) -> None:
    """Raises ConnectionError if it is closing: what it held may be lost, and nothing must follow."""
    transport.write(data)
    if transport.is_closing():
        raise ConnectionResetError


def close_in_time(transport: asyncio.Transport) -> None:
    """Close once what was written is taken. A client that takes nothing of it for so long is cut, and it thrown away."""
    transport.close()
    _watch(transport, transport.get_write_buffer_size())


def _watch(transport: asyncio.Transport, left: int) -> None:
    if left:
        asyncio.get_running_loop().call_later(TAKING_S, _look_again, transport, left)


def _look_again(transport: asyncio.Transport, before: int) -> None:
    left = transport.get_write_buffer_size()
    if left >= before:
        transport.abort()
    else:
        _watch(transport, left)


def reset_at_close(transport: asyncio.Transport) -> None:
    """An HTTP/1.0 body ends where the connection does, so only a reset can say that it did not end properly."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.fileno() < 0:
        return  # or the client is gone, and needs to be told nothing
    # A duplicate, because the loop's own socket object does not let us set options everywhere.
    with suppress(OSError), socket.fromfd(sock.fileno(), sock.family, socket.SOCK_STREAM) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def bound_backlog(sockets: Iterable[socket.socket], most: int) -> None:
    """What these listening sockets accept keeps at most so many unsent bytes in the kernel, where that can be asked for.

    Linux would buffer megabytes for a client that reads nothing, and we would take it for one that keeps up.
    """
    for sock in sockets:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with socket.fromfd(sock.fileno(), sock.family, socket.SOCK_STREAM) as same:
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, most)
