"""The slim listener: streams asked for by a plain request are served on a bare protocol, everything else by aiohttp.

    head whole -> a stream's route? (its path, byte for byte) -> plain? (relay.web.plain, else aiohttp's own parser)
               -> the door -> answered here, or on a viewer that needs neither task nor aiohttp until its end

A connection whose request is anything else (another path or method, a body, Upgrade, Expect, a head that is malformed
or too large) is given to aiohttp's own protocol, with the bytes read so far, as if it had been there from the start; it
stays there. Nothing is decided twice: the request object, the door, the endpoints and their errors are the same code for
both, and what is answered is the same bytes (tests/web/test_listeners.py runs one contract over both).

Here is what all connections share: which requests are ours, and how long one is waited for. One connection, from its
first byte to its last, is `relay.web.slim_connection`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeAlias

from aiohttp import hdrs, web
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_writer import StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_urldispatcher import UrlMappingMatchInfo

from relay import telemetry
from relay.delivery.connection import TAKING_S
from relay.delivery.turns import Turns
from relay.web import plain
from relay.web.door import Door, Route
from relay.web.options import LimitOptions
from relay.web.slim_connection import Connection

_ARRIVALS: Final = 32
"""So many requests are begun in one turn of the loop: a millisecond or two."""
_PARAMETER: Final = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_ID: Final = "[A-Za-z0-9_-]{1,128}"

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
        self.spawn: Spawn = lambda work: spawn(_logged(work))
        """One for all: a bound method each would be memory of every viewer."""
        self._loop = asyncio.get_running_loop()
        self._sweeping: asyncio.TimerHandle | None = None
        self._rows = [(_pattern(route), aio, route) for aio, route in door.known.items() if route.streams]

    def connection(self) -> Connection:
        """Of a client that was accepted."""
        return Connection(self, self._loop)

    # --- requests ---------------------------------------------------------------------------------------------------
    def request(self, connection: Connection, head: bytes) -> tuple[web.Request, Route] | None:
        """The request of a whole head, if it is ours to answer."""
        if len(head) > self.head_bytes:
            return None
        text = head.decode("latin-1")
        for pattern, aio, route in self._rows:
            found = pattern.match(text)
            if found is not None:
                parsed = partial(self._parsed, connection, head, found, aio)
                request: web.Request | None = plain.read(text, found, parsed)
                if request is None:
                    request = parsed()
                return None if request is None else (request, route)
        return None

    def _parsed(
        self, connection: Connection, head: bytes, found: re.Match[str], aio: web.AbstractRoute
    ) -> web.Request | None:
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
        request = web.Request(message, payload, connection, writer, None, self._loop)  # type: ignore[arg-type]
        request._match_info = UrlMappingMatchInfo(found.groupdict(), aio)  # as aiohttp's application does
        return request

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


def _pattern(route: Route) -> re.Pattern[str]:
    """The first line of a plain request for a route, its ids such as need no unquoting. Its first group is the target."""
    parts = _PARAMETER.split(route.path)  # text, name, text, name, ..., text
    path = "".join(f"(?P<{part}>{_ID})" if number % 2 else re.escape(part) for number, part in enumerate(parts))
    return re.compile(rf"GET ({path}(?:\?[!-~]*)?) HTTP/1\.[01]\r\n")


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    """The other end of the request boundary: what breaks after a 200 can only be logged."""
    try:
        await work
    except Exception:
        telemetry.logger().exception("request.crashed")
