"""The slim listener: streams asked for by a plain request are served on a bare protocol, everything else by aiohttp.

    head whole -> a stream's route? (its path, byte for byte) -> parsed (aiohttp's own parser) -> plain? -> the door
               -> answered here, or on a viewer that needs neither task nor aiohttp until its end

A connection whose request is anything else (another path or method, a body, Upgrade, Expect, a head that is malformed
or too large) is given to aiohttp's own protocol, with the bytes read so far, as if it had been there from the start; it
stays there. Nothing is decided twice: the request object, the door, the endpoints and their errors are the same code for
both, and what is answered is the same bytes (tests/web/test_listeners.py runs one contract over both).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias, cast

from aiohttp import hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_writer import StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_urldispatcher import UrlMappingMatchInfo

from relay import telemetry
from relay.delivery.compression import CarrierCompressed
from relay.delivery.connection import TAKING_S, close_in_time, reset_at_close
from relay.delivery.http import EventStream
from relay.delivery.stream import Flow
from relay.delivery.turns import Turns
from relay.delivery.viewer import Viewer
from relay.web.door import Door, Endpoint, Route
from relay.web.options import LimitOptions

_AHEAD: Final = 65_536
"""Most bytes read of requests that come while one is being answered."""
_ARRIVALS: Final = 32
"""So many requests are begun in one turn of the loop: two or three milliseconds."""
_HEAD_LIKE: Final = re.compile(rb"[A-Z]{1,16}(?: [^\r\n]*(?:\r\n[^\r\n]*)*\r?)?")
"""What may still become a head; anything else aiohttp is to judge at once."""
_PARAMETER: Final = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_ID: Final = "[A-Za-z0-9_-]{1,128}"
IDLE_S: Final = 75.0
"""How long a connection may stay open between two requests, or before the first."""

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Slim:
    """What all connections of one listener share."""

    def __init__(
        self, door: Door, limits: LimitOptions, spawn: Spawn,
        aiohttp_protocol: Callable[[], web.RequestHandler],
    ) -> None:  # fmt: skip
        self.door = door
        self.aiohttp_protocol = aiohttp_protocol
        self.head_s = limits.head_s
        self.head_bytes = limits.head_bytes
        self.arrivals = Turns(_ARRIVALS, 1)
        """The line of those who ask for something: a crowd that comes at once is let in between two flushes."""
        self.connections: set[Connection] = set()
        self.deadlines: dict[Connection, float] = {}
        """Those of whom a request is awaited, and until when."""
        self._loop = asyncio.get_running_loop()
        self._spawn = spawn
        self._sweeping: asyncio.TimerHandle | None = None
        self._rows = [(_pattern(route), aio, route) for aio, route in door.known.items() if route.streams]

    def __call__(self) -> Connection:
        return Connection(self, self._loop)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._spawn(_logged(work))

    # --- requests ---------------------------------------------------------------------------------------------------
    def request(self, connection: Connection, head: bytes) -> tuple[web.Request, Endpoint] | None:
        """The request of a whole head, if it is ours to answer."""
        if len(head) > self.head_bytes:
            return None
        for pattern, aio, route in self._rows:
            found = pattern.match(head)
            if found is not None:
                request = self._parsed(connection, head)
                if request is None:
                    return None
                ids = {name: text.decode() for name, text in found.groupdict().items()}
                request._match_info = UrlMappingMatchInfo(ids, aio)  # as aiohttp's application does
                return request, route.endpoint
        return None

    def _parsed(self, connection: Connection, head: bytes) -> web.Request | None:
        most = self.head_bytes
        parser = HttpRequestParser(connection, self._loop, 65_536, max_line_size=most, max_field_size=most)
        try:
            messages, upgraded, _ = parser.feed_data(head)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or upgraded:
            return None
        message, payload = messages[0]
        if payload is not EMPTY_PAYLOAD or hdrs.UPGRADE in message.headers or hdrs.EXPECT in message.headers:
            return None
        writer = StreamWriter(connection, self._loop)
        return web.Request(message, payload, connection, writer, None, self._loop)  # type: ignore[arg-type]

    # --- patience ---------------------------------------------------------------------------------------------------
    def await_request(self, connection: Connection, within_s: float) -> None:
        """A connection that brings no whole head in time is closed."""
        self.deadlines[connection] = self._loop.time() + within_s
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(1.0, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in [one for one, until in self.deadlines.items() if until <= now]:
            if connection.takes:
                self.deadlines[connection] = now + TAKING_S
            else:
                connection.abort()
        self._sweeping = self._loop.call_later(1.0, self._sweep) if self.deadlines else None

    def awaits_no_more(self, connection: Connection) -> None:
        self.deadlines.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        self.deadlines.pop(connection, None)
        self.connections.discard(connection)

    async def shutdown(self, timeout_s: float) -> None:
        """Idle connections are closed at once; the others get `timeout_s` to end their answers."""
        for connection in tuple(self.deadlines):
            connection.retire()
        until = self._loop.time() + timeout_s
        for connection in self.connections:
            connection.last = True
        while self.connections and self._loop.time() < until:  # noqa: ASYNC110  (the end comes once)
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()


class Connection(BaseProtocol):
    """One connection, for as long as only streams are asked for on it. What a `Viewer` wants of one, too."""

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
        super().__init__(loop)
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
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.write = self.transport.write
        self._slim.connections.add(self)
        self._slim.await_request(self, IDLE_S)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.write = _nowhere
        self._slim.forget(self)
        if self._opening is not None:
            self._opening.cancel()
        if self.flow is not None:
            self.flow.lost()

    def data_received(self, data: bytes) -> None:
        if not (self._busy or self._ahead):
            self._slim.await_request(self, self._slim.head_s)
        self._ahead += data
        if not self._busy:
            self._queue()
        elif len(self._ahead) > _AHEAD and not self._reading_paused:
            self._reading_paused = True
            self._pause_transport_reading()

    def eof_received(self) -> None:
        """The client says no more, and we take it for gone: closed politely, an HTTP/1.0 body would look complete."""
        if self._busy and not self._http_1_1:
            self.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.flow is not None:
            self.flow.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.flow is not None:
            self.flow.resumed()

    # --- requests ---------------------------------------------------------------------------------------------------
    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._slim.arrivals.take(self._read)

    def _read(self) -> bool:
        """Its turn has come; false if that is too late."""
        self._queued = False
        if self._busy or self.closing or not self._ahead:
            return False
        head, mark, rest = self._ahead.partition(b"\r\n\r\n")
        if mark:
            self._take(head + mark, rest)
        elif len(head) > self._slim.head_bytes or not _HEAD_LIKE.fullmatch(head):
            self._hand_over()
        return True

    def _take(self, head: bytes, rest: bytes) -> None:
        found = self._slim.request(self, head)
        if found is None:
            self._hand_over()
            return
        self._busy, self._ahead = True, rest
        self._slim.awaits_no_more(self)
        self._opening = self._slim.spawn(self._answer(*found))

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
        if not protocol._request_count:  # not one whole head
            asyncio.get_running_loop().call_later(self._slim.head_s, _cut_if_mute, protocol, transport)

    async def _answer(self, request: web.Request, endpoint: Endpoint) -> None:
        self._http_1_1, self._keep_alive = request.version >= (1, 1), request.keep_alive and not self.last
        try:
            answer = await self._slim.door.answer(request, endpoint)
            self._opening = None  # from here on the client's going is heard of otherwise
            if isinstance(answer, EventStream):
                await self._begin(answer)
            else:
                await self._reply(request, answer)
        except ConnectionError:
            self.abort()
        except BaseException:
            self.abort()
            raise

    async def _begin(self, answer: EventStream) -> None:
        head = _head(answer, http_1_1=self._http_1_1, keep_alive=self._keep_alive)
        answer.headers = _WRITTEN
        self._keep_alive = self._keep_alive and self._http_1_1
        if answer.coding is None:
            self.write(head + answer.wire.ping)
            await Viewer(answer, self, self._slim.spawn).work()
            return
        self.write(head)
        coded = CarrierCompressed(self, answer.coding, chunked=self._http_1_1)
        coded.put(answer.wire.ping)
        await Viewer(answer, coded, self._slim.spawn).work()

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


_WRITTEN: Final[dict[str, str]] = {}


def _cut_if_mute(protocol: web.RequestHandler, transport: asyncio.Transport) -> None:
    """aiohttp would wait for the rest of a first head for as long as it keeps a connection alive."""
    if not protocol._request_count:
        transport.abort()


def _nowhere(_: bytes) -> None:
    """The client is gone."""


def _pattern(route: Route) -> re.Pattern[bytes]:
    """The first line of a plain request for a route, its ids such as need no unquoting."""
    parts = _PARAMETER.split(route.path)  # text, name, text, name, ..., text
    path = "".join(f"(?P<{part}>{_ID})" if number % 2 else re.escape(part) for number, part in enumerate(parts))
    return re.compile(rf"GET {path}(?:\?[!-~]*)? HTTP/1\.[01]\r\n".encode())


def _head(answer: EventStream, *, http_1_1: bool, keep_alive: bool) -> bytes:
    """The head of a stream's 200, as aiohttp writes it (its writer takes three times as long)."""
    lines = [f"HTTP/1.{int(http_1_1)} 200 OK", *[f"{name}: {value}" for name, value in answer.head.items()]]
    if http_1_1:
        lines.append("Transfer-Encoding: chunked")
    lines.append(f"Date: {rfc822_formatted_time()}")
    if http_1_1 and not keep_alive:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "\r\n"]).encode()


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """The other end of the request boundary: what breaks after a 200 can only be logged."""
    try:
        await work
    except Exception:
        telemetry.logger().exception("request.crashed")
