"""One connection of the slim listener: requests come in, each is answered in its turn, and a viewer writes to it.

It is a viewer's connection itself (`relay.delivery.viewer.Carrier`): nothing stands between a crowd and the transport.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11, web

from relay import telemetry
from relay.delivery.compression import CarrierCompressed
from relay.delivery.connection import Telling, close_in_time, reset_at_close, way_of
from relay.delivery.http import EventStream
from relay.delivery.stream import Flow
from relay.delivery.viewer import Viewer
from relay.fanout.crowd import Way
from relay.web.stream_head import stream_head

if TYPE_CHECKING:
    from relay.web.door import Answer, Route
    from relay.web.slim import Slim

_AHEAD: Final = 65_536
"""Most bytes read of requests that come while one is being answered."""
_HEAD_LIKE: Final = re.compile(rb"[A-Z]{1,16}(?: [^\r\n]*(?:\r\n[^\r\n]*)*\r?)?")
"""What may still become a head; anything else aiohttp is to judge at once."""
_END: Final = b"\r\n\r\n"
IDLE_S: Final = 75.0
"""How long a connection may stay open between two requests, or before the first."""


class Connection(Telling):
    """For as long as only streams are asked for on it."""

    __slots__ = (
        "_ahead",
        "_busy",
        "_http_1_1",
        "_keep_alive",
        "_left",
        "_opening",
        "_queued",
        "_slim",
        "flow",
        "last",
        "write",
    )

    ssl_context = peername = sockname = None
    """Of no interest to any route; asking the system for them would cost every viewer a call."""

    def __init__(self, slim: Slim, loop: asyncio.AbstractEventLoop) -> None:
        Telling.__init__(self, loop)
        self._slim = slim
        self._ahead = b""
        """What was read and belongs to no request yet, or to one that is not whole."""
        self._busy = False
        """A request is being answered."""
        self._queued = False
        """It has its place in the line of those who ask for something; however much it sends, one is enough."""
        self._opening: asyncio.Task[None] | None = None
        self._http_1_1 = self._keep_alive = True
        """Of the request that is being answered."""
        self._left = 0
        """Bytes of the last answer that its client had not taken when we last looked."""
        self.last = False
        """No more requests on this connection."""
        self.flow: Flow | None = None
        self.write: Callable[[bytes], None] = _nowhere

    # --- what the transport says ------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream
        self.transport = transport
        self.write = transport.write
        self._slim.connections.add(self)
        self._slim.await_request(self, IDLE_S)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.write = _nowhere
        try:
            super().connection_lost(exc)
        finally:
            self._slim.forget(self)
            if self._opening is not None:
                self._opening.cancel()

    def data_received(self, data: bytes) -> None:
        if self._busy:
            self._read_ahead(data)
            return
        if not self._ahead and not data.endswith(_END):
            self._slim.await_request(self, self._slim.head_s)
        self._ahead += data
        self._queue()

    def _read_ahead(self, data: bytes) -> None:
        self._ahead += data
        if len(self._ahead) > _AHEAD and not self._reading_paused:
            self._reading_paused = True
            self._pause_transport_reading()

    def eof_received(self) -> None:
        """The client says no more, and we take it for gone: closed politely, an HTTP/1.0 body would look complete."""
        if self._busy and not self._http_1_1:
            self.abort()

    # --- requests ---------------------------------------------------------------------------------------------------
    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._slim.arrivals.take(self._read)

    def _read(self) -> bool:
        """Its turn has come; false if that is too late."""
        self._queued = False
        transport, ahead = self.transport, self._ahead
        if self._busy or not ahead or transport is None or transport.is_closing():
            return False
        end = ahead.find(_END) + len(_END)
        if end >= len(_END):
            self._take(ahead[:end], ahead[end:])
        elif len(ahead) > self._slim.head_bytes or not _HEAD_LIKE.fullmatch(ahead):
            self._hand_over()
        return True

    def _take(self, head: bytes, rest: bytes) -> None:
        slim = self._slim
        found = slim.request(self, head)
        if found is None:
            self._hand_over()
            return
        request, route = found
        self._busy, self._ahead = True, rest
        slim.awaits_no_more(self)
        self._http_1_1, self._keep_alive = request.version >= HttpVersion11, request.keep_alive and not self.last
        try:
            answer = slim.door.at_once(request, route)
            if isinstance(answer, EventStream):
                self._begin(answer)
            else:
                self._opening = slim.spawn(self._answer(request, route, answer))
        except Exception as error:  # as in the task of `_answer`: it breaks this one, and not the line it stood in
            self.abort()
            if not isinstance(error, ConnectionError):
                telemetry.logger().exception("request.crashed")

    def _hand_over(self) -> None:
        """To aiohttp, as if it had been there from the start."""
        transport, ahead = self.transport, self._ahead
        assert transport is not None
        self._slim.forget(self)
        self.transport, self._ahead = None, b""
        protocol = self._slim.aiohttp_protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._paused:  # by what an answer before this request has left behind
            protocol.pause_writing()
        protocol.data_received(ahead)

    async def _answer(self, request: web.Request, route: Route, answer: Answer | None) -> None:
        """Whatever has to be waited for: the answer itself, or that it is written."""
        try:
            if answer is None:
                answer = await self._slim.door.in_time(request, route, route.endpoint)
            self._opening = None  # from here on the client's going is heard of otherwise
            if isinstance(answer, EventStream):
                self._begin(answer)
            else:
                await self._reply(request, answer)
        except ConnectionError:
            self.abort()
        except BaseException:
            self.abort()
            raise

    def _begin(self, answer: EventStream) -> None:
        """The 200, and what there is already."""
        try:
            head = stream_head(answer, http_1_1=self._http_1_1, keep_alive=self._keep_alive)
            answer.trace_id = ""  # a string of every viewer's own
            self._keep_alive = self._keep_alive and self._http_1_1
            if answer.coding is None:
                self.write(head + answer.subscription.wire.ping)
                Viewer(answer, self, self._slim.spawn).start()
                return
            self.write(head)
            coded = CarrierCompressed(self, answer.coding, chunked=self._http_1_1)
            coded.put(answer.wire.ping)
            Viewer(answer, coded, self._slim.spawn).start()
        except BaseException:
            answer.hold.release()
            raise

    async def _reply(self, request: web.Request, answer: web.StreamResponse) -> None:
        await answer.prepare(request)
        await answer.write_eof()
        self._keep_alive = bool(answer.keep_alive) and not self.last
        self._next()

    def _next(self) -> None:
        """The answer is given; another request may come, or be here already."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._busy = False
        if not self._keep_alive or self.last:
            close_in_time(transport)
            return
        self._left = self.backlog
        self._slim.await_request(self, self._slim.head_s if self._ahead else IDLE_S)
        if self._reading_paused:
            self._reading_paused = False
            self._resume_transport_reading()
        if self._ahead:
            self._queue()

    # --- what a stream wants of its connection ----------------------------------------------------------------------
    @property
    def way(self) -> Way:
        assert self.transport is not None, "who stands in a crowd is connected"
        return way_of(self.transport, alone=True)

    def put(self, data: bytes) -> None:
        if not self.closing:
            self.write(data)

    @property
    def closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def backlog(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def given(self, written: int) -> int:
        return written

    @property
    def ready(self) -> bool:
        return not (self._paused or self.closing)

    @property
    def full(self) -> bool:
        return self._paused

    @property
    def takes(self) -> bool:
        """Its client still takes what is left of the last answer, and has taken some since this was last asked."""
        before, self._left = self._left, self.backlog
        return 0 < self._left < before

    async def drained(self) -> None:
        await self._drain_helper()

    def attend(self, listener: Flow | None) -> None:
        self.flow = listener

    async def finish(self) -> None:
        if self._http_1_1:
            self.write(b"0\r\n\r\n")
        self._next()

    def abort(self) -> None:
        if self.transport is not None:
            self._reset_if_ambiguous(self.transport)
            self.transport.abort()

    def retire(self) -> None:
        """It is awaited no longer that something is asked for; what is left of the last answer is still sent."""
        if self.backlog and self.transport is not None:
            close_in_time(self.transport)
        else:
            self.abort()

    def part(self) -> None:
        if self.transport is not None:
            self._reset_if_ambiguous(self.transport)
            close_in_time(self.transport)

    def _reset_if_ambiguous(self, transport: asyncio.Transport) -> None:
        if self._busy and not self._http_1_1:
            reset_at_close(transport)


def _nowhere(_: bytes) -> None:
    """The client is gone."""
