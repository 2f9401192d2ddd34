"""Arkloop's threads and messages as an upstream of the tests speaks them; everything else says back what it was asked."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

TOKEN = "Bearer viewer"


class Vendor:
    """An upstream's other API. `asked` has every request: method, raw path, headers, body."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.threads: dict[str, list[dict[str, Any]]] = {}
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append((request.method, request.raw_path, dict(request.headers), body))
        match request.method, request.path.removeprefix("/base").strip("/").split("/"):
            case _, [*_, "moved"]:
                return web.Response(status=302, headers={"Location": "http://elsewhere.example/"})
            case _, [*_, "slow"]:
                return await self._slow(request)
            case _ if not request.headers.get("Authorization"):
                return _refused(401, "auth.missing_token", {"Set-Cookie": "a=b"})
            case _, ["v1", "talk", *_]:
                pass
            case "POST", ["v1", "threads"] if request.headers["Authorization"] == TOKEN:
                return self._create(body)
            case method, ["v1", "threads", thread_id, *rest] if request.headers["Authorization"] == TOKEN:
                return self._thread(method, thread_id, rest, body)
        return web.json_response({"ok": True}, headers={"X-Own": "1", "Set-Cookie": "a=b", "Connection": "close"})

    async def _slow(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (b"data: 1\n\n", b"data: 2\n\n"):
            await response.write(piece)
            await asyncio.sleep(0.2)
        if request.query.get("cut"):
            assert request.transport is not None
            request.transport.abort()
        return response

    def _create(self, body: bytes) -> web.Response:
        if json.loads(body).keys() - {"title", "is_private"}:
            return _refused(422, "validation.error")
        thread_id = str(uuid.uuid4())
        self.threads[thread_id] = []
        return web.json_response(_thread(thread_id), status=201)

    def _thread(self, method: str, thread_id: str, rest: list[str], body: bytes) -> web.Response:
        if thread_id not in self.threads:
            return _refused(404, "threads.not_found")
        match method, rest:
            case "GET", []:
                return web.json_response(_thread(thread_id))
            case "DELETE", []:
                del self.threads[thread_id]
                return web.Response(status=204)
            case "POST", ["messages"]:
                return web.json_response(self.add(thread_id, "user", json.loads(body)["content"]), status=201)
            case "GET", ["messages"]:
                return web.json_response(self.threads[thread_id])
        return _refused(404, "http.not_found")

    def add(self, thread_id: str, role: str, content: str, run_id: str | None = None) -> dict[str, Any]:
        said = self.threads[thread_id]
        message = {
            "id": str(uuid.uuid4()), "account_id": "a", "thread_id": thread_id, "created_by_user_id": None, "role": role,
            "content": content, "created_at": f"2026-01-01T00:00:{len(said):02}.5Z",
        }  # fmt: skip
        said.append({**message, "run_id": run_id} if run_id else message)
        return said[-1]


def _thread(thread_id: str) -> dict[str, Any]:
    return {
        "id": thread_id, "account_id": "a", "created_by_user_id": "u", "title": None, "created_at": "2026-01-01T00:00:00Z",
        "active_run_id": None, "is_private": False,
    }  # fmt: skip


def _refused(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"code": code, "message": code, "trace_id": "t"}, status=status, headers=headers)


@asynccontextmanager
async def vendor() -> AsyncIterator[Vendor]:
    found = Vendor()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", found.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/base"
    try:
        yield found
    finally:
        await runner.cleanup()
