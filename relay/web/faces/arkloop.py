"""The Arkloop face: its runs API and its event stream, whatever is behind."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from relay.core.cursor import count_of, flag_of, seq_of
from relay.core.errors import InvalidRequest, Unsupported, UpstreamUnavailable
from relay.core.events import MAX_SEQ
from relay.core.filters import types_of
from relay.ingest.own_upstream import OwnUpstream
from relay.providers.arkloop import face
from relay.providers.contract import Ask, RunsQuery
from relay.web.door import HOLD, TRACE_ID, Answer, json_response
from relay.web.faces.ground import Ground, thread_of
from relay.web.requests import json_body

_PRIMED_S: Final = 10.0


class Arkloop:
    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def create(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        key, answer = await self._ground.create(request, "arkloop", body, thread_of(request))
        trace_id = answer.get("trace_id") or request[TRACE_ID]
        return json_response({"run_id": key.run_id, "trace_id": trace_id}, status=201)

    async def get(self, request: web.Request) -> web.StreamResponse:
        _, run = await self._ground.run(request)
        return json_response(face.run(run, trace_id=run.get("trace_id") or request[TRACE_ID]))

    async def list_thread(self, request: web.Request) -> web.StreamResponse:
        thread_id = thread_of(request)
        limit = count_of(request.query, "limit", default=50, low=1, high=200)
        runs = await self._ground.of_thread(self._ground.upstream(request, "arkloop"), thread_id)
        return json_response([face.thread_item(run) for run in runs[:limit]])

    async def list_all(self, request: web.Request) -> web.StreamResponse:
        """An Arkloop upstream is asked with the very query. Of another one: the newest, and as many as were asked for."""
        limit = count_of(request.query, "limit", default=50, low=1, high=200)
        offset = count_of(request.query, "offset", default=0, low=0, high=10**9)
        upstream = self._ground.upstream(request, "arkloop")
        if isinstance(upstream, OwnUpstream):
            raise Unsupported("the upstream behind this face lists runs by thread only")
        if upstream.provider.name == "arkloop":
            query = {name: value for name, value in request.query.items() if name not in ("upstream", "access_token")}
            return json_response(await upstream.ask(Ask("GET", "/v1/runs", query, {"Accept": "application/json"})))
        ask = upstream.provider.list_runs(RunsQuery(limit=limit, offset=offset, status=request.query.get("status")))
        runs = await self._ground.directory.complete(upstream, upstream.provider.runs(await upstream.ask(ask)))
        total = offset + len(runs) + (len(runs) == limit)  # what lies beyond a full page nobody has counted
        return json_response({"data": [face.run(run) for run in runs], "total": total})

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        body = await json_body(request)
        seen = body.get("last_seen_seq")
        if type(seen) is not int or not 0 <= seen <= MAX_SEQ:
            raise InvalidRequest.field("last_seen_seq", "missing or not a sequence number", f"0 to {MAX_SEQ}")
        await self._ground.cancel(await self._ground.key(request), seen)
        return json_response({"ok": True})

    async def events(self, request: web.Request) -> Answer:
        """Its clients keep a stream open after the end: so do we, and mid-run it is only ever cut."""
        ask = _Ask(request)
        hub, hold = self._ground.hub, request[HOLD]
        self._ground.pulse.take_place(hold)
        topic = await hub.open(await self._ground.key(request), hold)
        if not ask.follow:
            there = await hub.primed(topic, _PRIMED_S) and await hub.reachable(topic, ask.cursor, _PRIMED_S)
            if not there:  # a proper end would say that this is all there is
                raise UpstreamUnavailable("the upstream's events cannot be read now", retry_after_s=2.0)
        await hub.settle(topic, ask.cursor)
        return self._ground.pass_on(
            request,
            topic,
            face.WIRE,
            cursor=ask.cursor,
            types=ask.types,
            follow=ask.follow,
            stay_s=face.STAY_S if ask.follow else 0.0,
        )


class _Ask:
    """What a reader asks for; checked before anything is looked up. Last-Event-ID is ours: theirs ignores it."""

    def __init__(self, request: web.Request) -> None:
        query: Any = request.query
        last_id = seq_of("Last-Event-ID", request.headers.get("Last-Event-ID"))
        self.cursor = max(face.after_seq(query.get("after_seq")), last_id)
        self.follow = flag_of(query, "follow", default=True)
        self.types = types_of(query.get("types"))
