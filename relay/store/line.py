"""A connection whose replies are taken as they arrive, without a task that reads: what append, read and bells are made of.

redis-py opens it (address, TLS, credentials, database) and hands its transport over; from then on bytes go straight into
hiredis and all replies that came at once to `_take`, in order. What breaks the connection is told once, to `_lost`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import hiredis
from redis import exceptions
from redis._parsers.base import BaseParser

_NOT_YET: Final = object()


class Line(asyncio.Protocol):
    def __init__(self, connection: Any) -> None:
        """`connection`: redis-py's, not connected yet, and nobody else's."""
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(
            protocolError=exceptions.InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_NOT_YET
        )

    async def connect(self) -> None:
        """Raises redis-py's exceptions or OSError."""
        try:
            await self._connection.connect()
        except BaseException:
            self._connection._close()
            raise
        # It has read all it asked for, and nothing comes unasked: no byte is left behind in its own buffers.
        self._transport = self._connection._writer.transport
        self._transport.set_protocol(self)

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Never waits. Raises redis-py's ConnectionError if the connection is gone."""
        if self._transport is None or self._transport.is_closing():
            raise exceptions.ConnectionError("the connection is closed")
        self._transport.write(data)

    def end(self, error: Exception) -> None:
        """Close it at once; who still waits is told `error`. May be called again, and before `connect`."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._connection._close()  # or its destructor warns
            self._lost(error)

    # --- for those who build on it ----------------------------------------------------------------------------------
    def _take(self, replies: Sequence[Any]) -> None:
        """One or more replies; redis-py's exception for an error. Raises InvalidResponse for one nobody asked for."""
        raise NotImplementedError

    def _lost(self, error: Exception) -> None:
        """Nothing more will come. Called once."""
        raise NotImplementedError

    # --- asyncio's side ---------------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        replies: list[Any] = []
        try:
            try:
                self._read(data, replies)
            finally:  # what came before bytes that are not understood is an answer all the same
                if replies:
                    self._take(replies)
        except exceptions.InvalidResponse as error:
            self.end(exceptions.ConnectionError(f"the server's answer is not understood: {error}"))

    def _read(self, data: bytes, replies: list[Any]) -> None:
        reader = self._reader
        reader.feed(data)
        while (reply := reader.gets()) is not _NOT_YET:
            replies.append(reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(exceptions.ConnectionError(f"the server closed the connection: {error or 'end of stream'}"))
