"""The SeekrFlow face: runs under `/v1/threads/{thread}/runs`, each stream from the run's beginning."""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web

from relay.core.cursor import count_of
from relay.core.errors import InvalidRequest
from relay.core.ids import RunKey
from relay.delivery.http import EventStream
from relay.providers.seekrflow import face, face_legacy
from relay.providers.seekrflow.face_stream import WIRE, RunFold
from relay.web.door import HOLD, Answer, json_response
from relay.web.faces.ground import Ground, thread_of
from relay.web.requests import json_body


class SeekrFlow:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        thread_id = thread_of(request)
        key, answer = await self._ground.create(request, "seekrflow", body, thread_id)
        status = face.status(answer.get("status", "queued"), _agent(request))
        group = {"group": body["group"]} if body.get("group") is not None else {}
        return json_response({"run_id": key.run_id, "thread_id": thread_id, "status": status, **group})

    async def create_stream(self, request: web.Request) -> Answer:
        body = await json_body(request)
        self._ground.pulse.take_place(request[HOLD])
        key, _ = await self._ground.create(request, "seekrflow", body, thread_of(request))
        return await self._tell(request, key)

    async def create_legacy_stream(self, request: web.Request) -> Answer:
        """The same in the chunks of SDKs before 0.21."""
        body = await json_body(request)
        self._ground.pulse.take_place(request[HOLD])
        key, _ = await self._ground.create(request, "seekrflow", body, thread_of(request))
        return await self._tell_legacy(request, key)

    async def get(self, request: web.Request) -> web.StreamResponse:
        _, run = await self._ground.run(request)
        return json_response(face.run(run, _agent(request)))

    async def list(self, request: web.Request) -> web.StreamResponse:
        thread_id = thread_of(request)
        upstream = self._ground.upstream(request, "seekrflow")
        most = upstream.provider.list_limit
        limit = count_of(request.query, "limit", default=20, low=0, high=most)
        offset = count_of(request.query, "offset", default=0, low=0, high=most)
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest.field("order", "not an order", "asc or desc")
        runs = await self._ground.of_thread(upstream, thread_id)
        if order == "asc":
            runs.reverse()
        return json_response([face.run(run, _agent(request)) for run in runs[offset : offset + limit]])

    async def attach(self, request: web.Request) -> Answer:
        self._ground.pulse.take_place(request[HOLD])
        key = await self._ground.key(request)
        return await (self._tell_legacy if face.reads_legacy(_agent(request)) else self._tell)(request, key)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Its SDK sends a whole RunRequest along; the run is named by the path."""
        key, run = await self._ground.run(request)
        await self._ground.cancel(key, int(run["last_seq"]))
        return json_response({"status": "canceled", "run_id": key.run_id})

    async def _tell(self, request: web.Request, key: RunKey) -> EventStream:
        fold = RunFold(await self._ground.facts(request, key))
        return await self._ground.tell(request, key, WIRE, fold)

    async def _tell_legacy(self, request: web.Request, key: RunKey) -> EventStream:
        fold = face_legacy.RunFold(await self._ground.facts(request, key))
        return await self._ground.tell(request, key, face_legacy.WIRE, fold)


def _agent(request: web.Request) -> Any:
    return request.headers.get(hdrs.USER_AGENT, "")
