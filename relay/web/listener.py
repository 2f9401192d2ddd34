"""What listens: the slim listener for streams, and behind it aiohttp's server for everything else.

aiohttp's is as it comes, but for two things: what its parser cannot read is refused with our envelope, and nothing is
echoed; and a stream on one of its connections hears when the client takes no more, or is gone.

And what every listener is given, whoever's it is, and how its address and its troubles are told.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import uuid
from typing import Any

from aiohttp import web

from relay import telemetry
from relay.core.errors import StartupError
from relay.core.events import encode
from relay.delivery.connection import Telling, reset_at_close
from relay.delivery.stream import Flow
from relay.web.door import DOOR
from relay.web.options import LimitOptions
from relay.web.slim import Slim, Spawn


class _Protocol(Telling, web.RequestHandler):
    """One connection that aiohttp serves."""

    __slots__ = ("_awaited", "_head_s", "ends_by_close", "flow")

    def __init__(self, *arguments: Any, head_s: float, **options: Any) -> None:
        """`head_s`: how long a client may take to send the head of a request, from its first byte."""
        super().__init__(*arguments, **options)
        self._head_s = head_s
        self.flow: Flow | None = None
        self.ends_by_close = False
        self._awaited: asyncio.TimerHandle | None = None
        """Rings when the rest of a head has taken too long."""

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._rest()
        elif self._awaited is None and self._idle:
            self._awaited = self._loop.call_later(self._head_s, self._cut, before)

    @property
    def _idle(self) -> bool:
        """No request is being answered, and none is waiting for that."""
        return self._current_request is None and not self._messages

    def _cut(self, before: int) -> None:
        """aiohttp would wait for the rest of a head for as long as it keeps a connection alive: an hour."""
        self._awaited = None
        if self._request_count == before and self._idle and self.transport is not None:
            self.transport.abort()

    def _rest(self) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None

    def connection_lost(self, exc: BaseException | None) -> None:
        self._rest()
        super().connection_lost(exc)
        self._data_received_cb = None  # a WebSocket's: they would hold each other until garbage is looked for

    def eof_received(self) -> None:
        """As the slim listener does: a close would look like a proper end (`relay.web.slim`)."""
        if self.ends_by_close and self.transport is not None:
            reset_at_close(self.transport)
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # it logs, and raises if an answer has been begun
        trace_id = uuid.uuid4().hex
        code = "internal.error" if status >= 500 else "http.bad_request"
        words = "internal error" if status >= 500 else "the request cannot be read"
        response = web.Response(
            status=status,
            body=encode({"code": code, "message": words, "trace_id": trace_id}),
            headers={
                "X-Trace-Id": trace_id,
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Server": "relay",
            },
            content_type="application/json",
            charset="utf-8",
        )
        response.force_close()
        return response


class _Server(web.Server):
    """Makes the protocol of each connection that is accepted."""

    slim: Slim | None = None
    head_s: float

    def __call__(self) -> Any:
        return self.aiohttp_protocol() if self.slim is None else self.slim.connection()

    def aiohttp_protocol(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, head_s=self.head_s, **self._kwargs)

    async def shutdown(self, timeout: float | None = None) -> None:
        if self.slim is None:
            await super().shutdown(timeout)
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.slim.shutdown(timeout or 0.0))
            tasks.create_task(super().shutdown(timeout))


class Runner(web.AppRunner):
    """Like web.AppRunner."""

    def __init__(self, app: web.Application, limits: LimitOptions, spawn: Spawn | None, **options: Any) -> None:
        super().__init__(app, **options)
        self._limits = limits
        self._spawn = spawn

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp offers no other place to name the protocol
        assert isinstance(server, _Server)
        server.head_s = self._limits.head_s
        if self._spawn is not None:
            server.slim = Slim(self.app[DOOR], self._limits, self._spawn, server.aiohttp_protocol)
        return server


def runner(app: web.Application, limits: LimitOptions, *, close_s: float, spawn: Spawn | None = None) -> Runner:
    """What serves `app`, within the bounds; at the end its open requests get `close_s`.

    `spawn` starts the tasks of the slim listener; without it there is none, and aiohttp serves the streams too.
    """
    return Runner(
        app,
        limits,
        spawn,
        access_log=None,
        logger=telemetry.server_logger(),
        shutdown_timeout=close_s,
        max_line_size=limits.head_bytes,
        max_field_size=limits.head_bytes,
    )


def sockets_of(site: web.BaseSite) -> list[socket.socket]:
    """What a site that was started listens on."""
    return list(getattr(site._server, "sockets", ()))  # aiohttp tells only their addresses


def shown(bound: tuple[Any, ...]) -> str:
    """A socket's address, for people: http://host:port."""
    name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    return f"http://{name}:{bound[1]}"


def refused(what: str, host: str, port: int, error: OSError) -> StartupError:
    """Why nobody can listen there; `what` names the section of the configuration."""
    words = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {words}"
    return StartupError(f"{what}: {host}:{port} {reason}")
