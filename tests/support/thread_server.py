"""A system that keeps runs in threads, over HTTP: `sim_threads.py` behind SeekrFlow's or Assistants' paths.

What goes wrong is said per path ending (`faults`): a status, a body, a cut after so many pieces.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from aiohttp import web

from tests.support.sim_threads import Script, SimRun, Step, paced


@dataclass
class Fault:
    status: int = 200
    body: str | None = None
    content_type: str = "application/json"
    cut_after: int | None = None
    """Pieces of a stream until the connection is cut; for an answer in one piece, cut instead of it."""
    headers: dict[str, str] | None = None


def hello(*, shape: str = "vercel", status: str = "completed", **more: Any) -> SimRun:
    """A small run with a tool call between two texts."""
    texts = ["Hello, ", "world", "! "]
    steps = [Step("text", text, 0) for text in texts] + [Step("call", id="c1")]
    asks = more.pop("asks", False)
    steps += [Step("ask", id="c1")] if asks else []
    steps += [Step("result", "42", id="c1"), Step("text", "And ", 1), Step("text", "more.", 1)]
    run = SimRun(Script(steps, status), shape, Random(7), messages_lag=0, **more)
    if asks:
        run.chance.random = lambda: 0.9  # type: ignore[method-assign]  # nobody but us answers it
    return run


class ThreadServer:
    def __init__(self, run: SimRun | None = None, *, prefix: str = "") -> None:
        self.runs: dict[str, SimRun] = {run.run_id: run} if run is not None else {}
        self.next_run: SimRun | None = None
        """What the next POST makes."""
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        """By the end of the path (`attach`, `messages`, `run`): the next answers, each used once."""
        self.always: dict[str, Fault] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.bodies: list[Any] = []
        self.streams = 0
        self.most_streams = 0
        self.pages = True
        """Whether lists know `offset` (SeekrFlow) or `after` (Assistants)."""
        self.tells_active = True
        """Whether a thread says which run it is busy with."""
        self.key: str | None = None
        """The only `Authorization` that is let in."""
        self.left = 0
        """Streams whose reader went away before their end."""
        self.keeps_metadata = True
        self._prefix = prefix

    async def __aenter__(self) -> ThreadServer:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}{self._prefix}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def count(self, what: str) -> int:
        return sum(1 for _, path, _ in self.asked if _kind(path) == what)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, dict(request.headers)))
        kind = _kind(request.path)
        if self.key is not None and request.headers.get("Authorization") != self.key:
            return web.json_response({"detail": "Unauthorized"}, status=401)
        fault = self.faults[kind].pop(0) if self.faults[kind] else self.always.get(kind, Fault())
        if fault.status != 200 or fault.body is not None:
            return web.Response(
                status=fault.status, text=fault.body or "", content_type=fault.content_type, headers=fault.headers
            )
        if request.method == "POST":
            return await self._post(request, kind, fault)
        if kind == "runs":
            return web.json_response(self._list(request, [run.run() for run in self.runs.values()]))
        run = self._run(request.path)
        if run is None:
            return web.json_response({"detail": "Not found"}, status=404)
        if "/runs" not in request.path and kind == "run":
            active = run.run_id if not run.ended and self.tells_active else None
            return web.json_response({"id": run.thread_id, "status": "locked", "active_run_id": active})
        if kind == "attach":
            return await self._stream(request, run, fault, from_start=run.attach_replays)
        found = {"messages": run.messages, "steps": run.steps, "run": run.run}.get(kind)
        if found is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        run.go_on(1)
        answer = found()
        return web.json_response(
            self._list(request, answer) if isinstance(answer, list) else answer, headers=fault.headers
        )

    def _list(self, request: web.Request, items: list[Any]) -> Any:
        query = request.query
        limit, first = int(query.get("limit", "20")), 0
        if self.pages and "offset" in query:
            first = int(query["offset"])
        elif self.pages and "after" in query:
            first = 1 + next((i for i, item in enumerate(items) if item["id"] == query["after"]), len(items))
        page = items[first : first + limit]
        if "/v1/" in request.path:
            return page
        more = first + limit < len(items)
        return {"object": "list", "data": page, "has_more": more, "last_id": page[-1]["id"] if page else None}

    async def _post(self, request: web.Request, kind: str, fault: Fault) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.bodies.append(body)
        if kind in ("runs", "stream", "vercel") and self.next_run is not None:
            run, self.next_run = self.next_run, None
            self.runs[run.run_id] = run
            run.metadata = body.get("metadata") if self.keeps_metadata else None
            if kind != "runs" or (run.shape == "assistants" and body.get("stream")):
                return await self._stream(request, run, fault, from_start=True)
            if fault.cut_after is not None:
                assert request.transport is not None
                request.transport.abort()
            return web.json_response({"run_id": run.run_id, "thread_id": run.thread_id, "status": "queued"})
        found = self._run(request.path)
        if kind == "submit_tool_outputs" and found is not None:
            found.answered.update(one["tool_call_id"] for one in body["tool_outputs"])
            return web.json_response(found.run())
        if kind == "cancel" and found is not None:
            found.script.status, found.at, found.ended = "cancelled", len(found.script.steps), True
            return web.json_response({"status": "canceled", "run_id": found.run_id})
        return web.json_response({"detail": "Method Not Allowed"}, status=405)

    async def _stream(self, request: web.Request, run: SimRun, fault: Fault, *, from_start: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        self.streams += 1
        self.most_streams = max(self.most_streams, self.streams)
        try:
            left = fault.cut_after
            async for piece in paced(_whole(run.bytes(from_start=from_start))):
                if left is not None and (left := left - 1) < 0:
                    assert request.transport is not None
                    request.transport.abort()
                    break
                await response.write(piece)
        except ConnectionError:
            self.left += 1
            raise
        finally:
            self.streams -= 1
        return response

    def _run(self, path: str) -> SimRun | None:
        parts = path.strip("/").split("/")
        at = parts.index("threads") if "threads" in parts else -1
        if "runs" in parts and len(parts) > at + 3:
            run = self.runs.get(parts[at + 3])
        else:
            run = next((one for one in reversed(self.runs.values()) if one.thread_id == parts[at + 1]), None)
        return run if run is not None and run.thread_id == parts[at + 1] else None


def _whole(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield from pieces


def _kind(path: str) -> str:
    last = path.rstrip("/").rsplit("/", 1)[-1]
    known = ("attach", "messages", "steps", "runs", "cancel", "submit_tool_outputs", "stream", "vercel")
    return last if last in known else "run"


def dumped(value: object) -> str:
    return json.dumps(value)


async def until(condition: Any, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
