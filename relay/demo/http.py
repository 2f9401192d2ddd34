"""What every HTTP answer of the demo upstream shares: JSON, methods, bodies, the trace id (arkloop.md section 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import orjson
from aiohttp import web

from relay.demo import wire

MAX_BODY_BYTES = 1 << 20
STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
TRACE_ID: ContextVar[str] = ContextVar("trace_id", default="0" * 32)
"""Of the request this task is answering."""


async def body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise wire.invalid("request body too large") from None


def require_method(request: web.Request, *methods: str) -> None:
    if request.method not in methods:
        raise wire.Refusal(405, "http.method_not_allowed", "method not allowed")


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    raw = value if isinstance(value, bytes) else orjson.dumps(value)
    return web.Response(
        body=raw, status=status, headers={"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    )


async def add_trace_id(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Trace-Id"] = TRACE_ID.get()
