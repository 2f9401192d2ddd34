"""SeekrFlow and the Assistants shape behind a face, driven by the words of `behind.Behind`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aiohttp import web

from tests.clients.live_run import OUTPUT, LiveRun
from tests.clients.stage import AGENT, MODEL, THREAD, Act
from tests.clients.talks import VIEWER, Talks
from tests.support.sim_threads import SimRun
from tests.support.thread_server import Fault, ThreadServer

TOKENS = ("upstream-secret", "Bearer upstream-secret")
_HTML = Fault(body="<html>busy</html>", content_type="text/html")
_BUSY = Fault(status=503, body="{}", headers={"Retry-After": "0"})


class Threads(ThreadServer):
    """What both have in common."""

    kind: ClassVar[str]
    agent_field: ClassVar[str]
    takes_model: ClassVar[bool]
    thinks: ClassVar[bool]
    prefix: ClassVar[str]
    """Of the base URL; the paths of its API begin behind `root`."""
    root: ClassVar[str]
    shape: ClassVar[str]
    arguments: ClassVar[Any] = {"q": 1}
    output: ClassVar[Any] = OUTPUT

    def __init__(self) -> None:
        super().__init__(prefix=self.prefix)
        self.created: list[tuple[str, dict[str, Any]]] = []
        self.talks = Talks(assistants=self.shape == "assistants")
        self._acts: tuple[Sequence[Act], float] = ((), 0.0)
        self._delay_s = 0.0
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[str, int] = {}
        self._most: dict[str, int] = {}
        self._transports: set[asyncio.Transport] = set()

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().__aexit__(*error)

    # --- the test's words -------------------------------------------------------------------------------------------
    def makes(self, *acts: Act, dt_ms: float = 0.0) -> None:
        self._acts = acts, dt_ms

    async def has(self, *acts: Act, thread_id: str = THREAD, dt_ms: float = 0.0) -> str:
        run = self._new(thread_id, {self.agent_field: AGENT, "model": MODEL})
        self._go(run, acts, dt_ms)
        return run.run_id

    def play(self, run_id: str, *acts: Act) -> None:
        self._go(self._live(run_id), acts, 0.0)

    def answers(self, run_id: str) -> list[str]:
        return self._live(run_id).told

    def slow_create(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def cut_now(self) -> None:
        for transport in self._transports:
            transport.abort()

    def spoiled(self) -> bool:
        return not any(self.faults.values())

    def most_streams_of(self, run_id: str) -> int:
        return self._most.get(run_id, 0)

    def cancels(self) -> int:
        return self.count("cancel")

    def truth(self, run_id: str) -> list[dict[str, Any]] | None:
        return None

    # --- its runs ---------------------------------------------------------------------------------------------------
    def _live(self, run_id: str) -> LiveRun:
        run = self.runs[run_id]
        assert isinstance(run, LiveRun)
        return run

    def _new(self, thread_id: str, body: Mapping[str, Any]) -> LiveRun:
        number = next(self._numbers)
        run = LiveRun(self.shape, f"run_{number}", thread_id, body, number)
        self.runs[run.run_id] = run
        return run

    def _go(self, run: LiveRun, acts: Sequence[Act], dt_ms: float) -> None:
        if not dt_ms:
            for act in acts:
                for step in run.steps_of(act):
                    run.move(step)
            return
        self._tasks.add(asyncio.create_task(self._pace(run, acts, dt_ms)))

    async def _pace(self, run: LiveRun, acts: Sequence[Act], dt_ms: float) -> None:
        for act in acts:
            for step in run.steps_of(act):
                await asyncio.sleep(dt_ms / 1000)
                run.move(step)

    # --- its API ----------------------------------------------------------------------------------------------------
    async def _answer(self, request: web.Request) -> web.StreamResponse:
        root, _, rest = request.path.partition("/threads")
        if root != f"{self.prefix}{self.root}":
            return web.json_response({"detail": "Not Found"}, status=404)
        path = rest.strip("/").split("/") if rest.strip("/") else []
        if not path or self.talks.has(path[0]) or not self._of_runs(path):
            return await self.talks.answer(request, path)
        if request.headers.get("Authorization") not in (*TOKENS, *VIEWER):
            return web.json_response({"detail": "Unauthorized"}, status=401)
        return await super()._answer(request)

    def _of_runs(self, path: list[str]) -> bool:
        """About a run, or about the messages of a thread that has runs."""
        return path[1:2] == ["runs"] or any(run.thread_id == path[0] for run in self.runs.values())

    def _list(self, request: web.Request, items: list[Any]) -> Any:
        if request.path.endswith("/runs"):
            items = _page(request, [item for item in items if item["thread_id"] == request.path.split("/")[-2]])
        if request.path.endswith("/messages"):
            runs = [run for run in self.runs.values() if request.query.get("run_id", run.run_id) == run.run_id]
            here = [run for run in reversed(runs) if run.thread_id == request.path.split("/")[-2]]
            items = [message for run in here for message in run.messages()]
        return {"object": "list", "data": items, "has_more": False} if self.shape == "assistants" else items

    async def _post(self, request: web.Request, kind: str, fault: Fault) -> web.StreamResponse:
        path = request.path.split("/")
        if kind == "runs":
            return await self._create(request, path[-2], fault)
        run = self._live(path[-2]) if path[-2] in self.runs else None
        if run is not None and kind == "cancel":
            run.cancelling = True
            return web.json_response(self._cancelled(run))
        if run is not None and kind == "submit_tool_outputs" and run.waiting and self.shape == "assistants":
            [output] = (await request.json())["tool_outputs"]
            assert output["tool_call_id"] == run.waiting
            run.answer(output["output"])
            return web.json_response(run.run())
        return web.json_response({"detail": "Method Not Allowed"}, status=405)

    def _cancelled(self, run: LiveRun) -> Any:
        return run.run()

    async def _create(self, request: web.Request, thread_id: str, fault: Fault) -> web.StreamResponse:
        body = await request.json()
        run = self._new(thread_id, body)
        self.created.append((run.run_id, body))
        await asyncio.sleep(self._delay_s)
        self._go(run, *self._acts)
        if body.get("stream"):
            return await self._stream(request, run, fault, from_start=True)
        return web.json_response({"run_id": run.run_id, "thread_id": thread_id, "status": "queued"})

    async def _stream(self, request: web.Request, run: SimRun, fault: Fault, *, from_start: bool) -> web.StreamResponse:
        at = run.run_id
        self._open[at] = self._open.get(at, 0) + 1
        self._most[at] = max(self._most.get(at, 0), self._open[at])
        transport = request.transport
        assert transport is not None
        self._transports.add(transport)
        try:
            return await super()._stream(request, run, fault, from_start=from_start)
        except ConnectionError:
            return web.Response()  # whoever read it has left
        finally:
            self._open[at] -= 1
            self._transports.discard(transport)


def _page(request: web.Request, items: list[Any]) -> list[Any]:
    items = items if request.query.get("order", "desc") == "asc" else items[::-1]
    at = int(request.query.get("offset", "0"))
    return items[at : at + int(request.query.get("limit", "20"))]


class SeekrFlow(Threads):
    kind = "seekrflow"
    agent_field = "agent_id"
    takes_model = False
    thinks = True
    waits = False
    prefix, root, shape = "/gw", "/v1", "vercel"

    def spoil(self) -> None:
        self.cut_now()
        self.faults["attach"] += [Fault(cut_after=4), _HTML, Fault(cut_after=9), _BUSY, Fault(cut_after=15)]
        self.faults["run"] += [_BUSY]

    def _cancelled(self, run: LiveRun) -> Any:
        return {"status": "canceled", "run_id": run.run_id}


class Assistants(Threads):
    kind = "openai"
    agent_field = "assistant_id"
    takes_model = True
    thinks = False
    waits = True
    prefix, root, shape = "/v1", "", "assistants"

    def spoil(self) -> None:
        self.cut_now()
        self.faults["run"] += [_BUSY, _HTML]
        self.faults["messages"] += [_BUSY]
        self.faults["steps"] += [_BUSY]
