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
from relay.delivery.connection import reset_at_close
from relay.delivery.stream import Flow
from relay.web.door import DOOR
from relay.web.options import LimitOptions
from relay.web.slim import Slim, Spawn


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ("ends_by_close", "flow")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.flow: Flow | None = None
        self.ends_by_close = False

    def eof_received(self) -> None:
        """As the slim listener does: a close would look like a proper end (`relay.web.slim`)."""
        if self.ends_by_close and self.transport is not None:
            reset_at_close(self.transport)
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.flow is not None:
            self.flow.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.flow is not None:
            self.flow.resumed()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.flow is not None:
            self.flow.lost()

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

    def __call__(self) -> Any:
        return self.slim() if self.slim is not None else self.aiohttp_protocol()

    def aiohttp_protocol(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)

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
