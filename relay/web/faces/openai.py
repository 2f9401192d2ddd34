"""The OpenAI Assistants face: runs under `/threads/{thread}/runs`, with and without `/v1` before it (clients differ)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from relay.core.cursor import count_of
from relay.core.errors import Conflict, InvalidRequest
from relay.core.events import TERMINAL
from relay.core.ids import RunKey, checked_id
from relay.delivery.http import EventStream
from relay.providers import native
from relay.providers.openai import face
from relay.providers.openai.face_stream import WIRE, RunFold, answered, things
from relay.web.door import HOLD, Answer, json_response
from relay.web.faces.ground import Ground, thread_of
from relay.web.faces.pages import page
from relay.web.requests import json_body, upstream_hint
from relay.web.runs import INPUT_BYTES


class OpenAi:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    # --- runs -------------------------------------------------------------------------------------------------------
    async def create(self, request: web.Request) -> Answer:
        body = await json_body(request)
        stream = _stream(body)
        self._ground.pulse.take_place(request[HOLD])
        key, _ = await self._ground.create(request, "openai", body, thread_of(request))
        if stream:
            return await self._tell(request, key)
        return json_response(await self._shown(*await self._ground.now(request, key)))

    async def get(self, request: web.Request) -> web.StreamResponse:
        return json_response(await self._shown(*await self._ground.run(request)))

    async def list(self, request: web.Request) -> web.StreamResponse:
        """One page. Of an upstream that pages no further, its newest runs are what there is."""
        thread_id = thread_of(request)
        limit = count_of(request.query, "limit", default=20, low=1, high=100)
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest.field("order", "not an order", "asc or desc")
        upstream = self._ground.upstream(request, "openai")
        runs = await self._ground.of_thread(upstream, thread_id)
        if order == "asc":
            runs.reverse()
        runs, has_more = page(runs, request.query.get("after"), request.query.get("before"), limit, name="run_id")
        shown = [await self._shown(RunKey(upstream.name, str(run["run_id"])), run) for run in runs]
        return json_response(face.listed(shown, has_more=has_more))

    async def stream(self, request: web.Request) -> Answer:
        """A run's stream for whoever did not create it; from its beginning. Not in the vendor's API."""
        self._ground.pulse.take_place(request[HOLD])
        return await self._tell(request, await self._ground.key(request))

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        key, run = await self._ground.run(request)
        await self._ground.cancel(key, int(run["last_seq"]))
        key, run = await self._ground.now(request, key)
        if run["status"] not in TERMINAL:  # it was taken; not every upstream has a word for that
            run = {**run, "status": "cancelling"}
        return json_response(await self._shown(key, run))

    async def submit(self, request: web.Request) -> Answer:
        """The answer to what a run waits for; with `stream`, what follows it."""
        body = await json_body(request)
        stream = _stream(body)
        self._ground.pulse.take_place(request[HOLD])
        key, run = await self._ground.run(request)
        outputs = _outputs(await self._awaited(key, run), body)
        state = (await self._ground.log.states([key]))[0]
        await self._ground.answer(key, outputs)
        if stream:
            return await self._tell_on(request, key, state.last_seq if state is not None else 0, outputs)
        return json_response(await self._shown(key, {**run, "status": "running"}))

    async def _awaited(self, key: RunKey, run: dict[str, Any]) -> native.Asked:
        asked = await self._ground.asked(key, run) if run["status"] not in TERMINAL else None
        if asked is None:
            raise Conflict(f"this run does not wait for tool outputs: it is {face.STATUS.get(run['status'])}")
        return asked

    async def _tell(self, request: web.Request, key: RunKey) -> EventStream:
        return await self._ground.tell(request, key, WIRE, RunFold(await self._ground.facts(request, key)))

    async def _tell_on(self, request: web.Request, key: RunKey, cursor: int, calls: Iterable[str]) -> EventStream:
        """The rest of a run, for who has just answered these calls: what is open goes on under its old ids."""
        run = await self._ground.facts(request, key)
        fold = RunFold(run)
        told = fold.begin()
        async for events in self._ground.everything(key):
            told = things(fold, told, (event for event in events if event.seq <= cursor), {})
            await asyncio.sleep(0)
        fold = RunFold(run, start=answered(told, calls))
        return await self._ground.tell(request, key, WIRE, fold, cursor=cursor)

    async def _shown(self, key: RunKey, run: dict[str, Any]) -> dict[str, Any]:
        """A run in this shape, with what only its events say: what it waits for, and why it failed."""
        if run["status"] == "waiting_for_input":
            asked = await self._ground.asked(key, run)
            return face.run(run, action=face.action(asked) if asked is not None else None)
        if run["status"] in ("failed", "interrupted") and not run.get("error"):
            said = await self._ground.last(key, lambda event: event.type in ("run.failed", "run.interrupted"))
            if said is not None:
                code, message = native.failure(said)
                run = {**run, "error": {"code": code, "message": message}}
        return face.run(run)

    # --- messages and steps, where another shape is behind ------------------------------------------------------------
    async def messages(self, request: web.Request) -> web.StreamResponse:
        """The messages one run has made (`?run_id=`), from its events."""
        thread_of(request)
        run_id = checked_id("run_id", request.query["run_id"])
        key = await self._ground.directory.find(run_id, upstream_hint(request))
        return await self._things(request, key, "thread.message")

    async def steps(self, request: web.Request) -> web.StreamResponse:
        return await self._things(request, await self._ground.key(request), "thread.run.step")

    async def _things(self, request: web.Request, key: RunKey, kind: str) -> web.StreamResponse:
        limit = count_of(request.query, "limit", default=20, low=1, high=100)
        fold = RunFold(await self._ground.facts(request, key))
        found: dict[str, dict[str, Any]] = {}
        state = fold.begin()
        with self._ground.pulse.place():  # a whole run is read for it: as many at once as streams, and no more
            async for events in self._ground.everything(key):
                state = things(fold, state, events, found)
                await asyncio.sleep(0)
        items = [item for item in found.values() if item["object"] == kind]
        if request.query.get("order", "desc") == "desc":
            items.reverse()
        items, has_more = page(items, request.query.get("after"), request.query.get("before"), limit, name="id")
        return json_response(face.listed(items, has_more=has_more))


def _stream(body: dict[str, Any]) -> bool:
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest.field("stream", "not a truth value", "true or false")
    return bool(stream)


def _outputs(asked: native.Asked, body: dict[str, Any]) -> dict[str, str]:
    """The answers by call id; InvalidRequest unless exactly what the run waits for is answered."""
    given = body.get("tool_outputs")
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise InvalidRequest.field("tool_outputs", "missing or not a list of objects", "a list")
    outputs = {str(item.get("tool_call_id")): item.get("output") for item in given}
    wanted = [call.id for call in asked.calls]
    if sorted(outputs) != sorted(wanted):
        raise InvalidRequest.field("tool_outputs", "not those this run waits for", ", ".join(wanted))
    for output in outputs.values():
        if not isinstance(output, str) or not output.strip():
            raise InvalidRequest.field("tool_outputs", "an output is missing or empty", "a text")
        if len(output.encode("utf-8", "surrogatepass")) > INPUT_BYTES:
            raise InvalidRequest.field("tool_outputs", "too large", f"at most {INPUT_BYTES} bytes of UTF-8")
    return {call_id: str(output) for call_id, output in outputs.items()}
