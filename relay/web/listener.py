"""aiohttp's server, but for one thing: what its parser cannot read is refused with our envelope, and nothing is echoed.

And what every listener is given, whoever's it is, and how its address and its troubles are told.
"""

from __future__ import annotations

import errno
import os
import socket
import uuid
from typing import Any

from aiohttp import web

from relay import telemetry
from relay.core.errors import StartupError
from relay.core.events import encode
from relay.web.options import LimitOptions


class _Protocol(web.RequestHandler):
    """One connection."""

    __slots__ = ()

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
    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Like web.AppRunner."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp offers no other place to name the protocol
        return server


def runner(app: web.Application, limits: LimitOptions, *, close_s: float) -> Runner:
    """What serves `app`, within the bounds; at the end its open requests get `close_s`."""
    return Runner(
        app,
        access_log=None,
        logger=telemetry.server_logger(),
        shutdown_timeout=close_s,
        max_line_size=limits.head_bytes,
        max_field_size=limits.head_bytes,
    )


def shown(bound: tuple[Any, ...]) -> str:
    """A socket's address, for people: http://host:port."""
    name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    return f"http://{name}:{bound[1]}"


def refused(what: str, host: str, port: int, error: OSError) -> StartupError:
    """Why nobody can listen there; `what` names the section of the configuration."""
    words = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
    reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound: {words}"
    return StartupError(f"{what}: {host}:{port} {reason}")
