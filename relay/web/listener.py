"""aiohttp's server, but for one thing: what its parser cannot read is refused with our envelope, and nothing is echoed."""

from __future__ import annotations

import uuid

from aiohttp import web

from relay.core.events import encode


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
