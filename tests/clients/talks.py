"""Threads and messages of the upstreams behind the faces, as SeekrFlow and the Assistants shape keep them."""

from __future__ import annotations

import itertools
from typing import Any

from aiohttp import web

VIEWER = ("viewer", "Bearer viewer")
"""Whose they are; with and without a scheme."""


class Talks:
    """`assistants`: typed content, unix times and list envelopes; else plain text, RFC 3339 and bare arrays."""

    def __init__(self, *, assistants: bool) -> None:
        self._assistants = assistants
        self._numbers = itertools.count(1)
        self._said: dict[str, list[dict[str, Any]]] = {}

    def has(self, thread_id: str) -> bool:
        return thread_id in self._said

    def contents(self, thread_id: str) -> list[str]:
        """What was said in a thread."""
        return [_plain(item["content"]) for item in self._said[thread_id]]

    def add(self, thread_id: str, role: str, content: Any, run_id: str | None = None) -> dict[str, Any]:
        text = _plain(content)
        typed = [{"type": "text", "text": {"value": text, "annotations": []}}]
        message = {
            "id": f"message_{next(self._numbers)}", "object": "thread.message", "thread_id": thread_id, "role": role,
            "content": typed if self._assistants else text, "run_id": run_id, "created_at": self._at,
        }  # fmt: skip
        self._said[thread_id].append(message)
        return message

    @property
    def _at(self) -> Any:
        return 1718885800 if self._assistants else "2026-01-02T03:04:05"

    async def answer(self, request: web.Request, path: list[str]) -> web.Response:
        """`path`: behind `threads`. SeekrFlow's own clients make a thread at a path that ends in a slash."""
        if request.headers.get("Authorization") not in VIEWER:
            return _refused(401)
        match request.method, path:
            case "POST", []:
                return web.json_response(self._create(await request.json() or {}))
            case method, [thread_id, *rest] if thread_id in self._said:
                return await self._in_thread(request, method, thread_id, rest)
        return _refused(404)

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self._assistants or not body.get("messages")
        thread_id = f"thread_{next(self._numbers)}"
        self._said[thread_id] = []
        for one in body.get("messages") or []:
            self.add(thread_id, one["role"], one["content"])
        return self._thread(thread_id)

    def _thread(self, thread_id: str) -> dict[str, Any]:
        more = {} if self._assistants else {"status": "available", "active_run_id": None}
        return {"id": thread_id, "object": "thread", "created_at": self._at, **more}

    async def _in_thread(self, request: web.Request, method: str, thread_id: str, rest: list[str]) -> web.Response:
        match method, rest:
            case "GET", []:
                return web.json_response(self._thread(thread_id))
            case "DELETE", []:
                del self._said[thread_id]
                return web.json_response({"id": thread_id, "deleted": True})
            case "POST", ["messages"]:
                body = await request.json()
                return web.json_response(self.add(thread_id, body["role"], body["content"]))
            case "GET", ["messages"]:
                return web.json_response(self._page(request, self._said[thread_id]))
            case "GET", ["messages", message_id]:
                for item in self._said[thread_id]:
                    if item["id"] == message_id:
                        return web.json_response(item)
        return _refused(404)

    def _page(self, request: web.Request, items: list[dict[str, Any]]) -> Any:
        items = items if request.query.get("order", "desc") == "asc" else items[::-1]
        limit, after = int(request.query.get("limit", "20")), request.query.get("after")
        at = [item["id"] for item in items].index(after) + 1 if after else 0
        found = items[at : at + limit]
        if not self._assistants:
            return found
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
        return {"object": "list", "data": found, "has_more": len(items) > at + limit, **ends}


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] if isinstance(part["text"], str) else part["text"]["value"] for part in content)


def _refused(status: int) -> web.Response:
    return web.json_response({"detail": "refused", "error": {"message": "refused"}}, status=status)
