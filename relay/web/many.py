"""`/v1/events`: many runs on one connection, over SSE (named in the query) or WebSocket (named by messages)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import hdrs, web

from relay.core import vector
from relay.core.cursor import RESUMED, came_back, flag_of, seq_of
from relay.core.errors import Forbidden, InvalidRequest, NotAcceptable, RelayError
from relay.core.filters import types_of
from relay.core.ids import RunKey, checked_id, checked_upstream
from relay.core.vector import Place, Tally
from relay.delivery import manifold
from relay.delivery.multiplex import Multiplex
from relay.delivery.options import DeliveryOptions
from relay.delivery.pulse import Pulse
from relay.web.admit import Admit, Principal
from relay.web.conversation import Conversation
from relay.web.directory import AnyUpstream
from relay.web.door import PRINCIPAL, headers_of
from relay.web.gathering import LATER, Desk, Gathering, Wish, over_at
from relay.web.requests import coding_for, upstream_hint
from relay.web.roster import Children, Looks, Thread


class Many:
    def __init__(self, desk: Desk, admit: Admit, pulse: Pulse, options: DeliveryOptions) -> None:
        self._desk = desk
        self._admit = admit
        self._pulse = pulse
        self._options = options
        self._looks = Looks(desk.directory)

    async def get(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get(hdrs.UPGRADE, "").lower() == "websocket":
            with self._pulse.place():
                return await self._converse(request)
        ask = _Ask(request, self._desk.most)
        with self._pulse.place():
            return await self._stream(request, ask)

    async def _converse(self, request: web.Request) -> web.StreamResponse:
        principal = request[PRINCIPAL]

        def begin(multiplex: Multiplex, tasks: asyncio.TaskGroup) -> Conversation:
            return Conversation(self._desk, self._admit, multiplex, principal, tasks)

        return await manifold.converse(
            request,
            begin,
            self._pulse,
            self._options,
            headers=headers_of(request),
            expires_at=principal.expires_at,
        )

    # --- SSE --------------------------------------------------------------------------------------------------------
    async def _stream(self, request: web.Request, ask: _Ask) -> web.StreamResponse:
        principal = request[PRINCIPAL]
        upstream = self._desk.directory.only(ask.upstream) if ask.thread_id is not None else None
        if ask.came_back and await self._nothing_left(ask, principal):
            return web.Response(status=204)

        async def feed(multiplex: Multiplex) -> None:
            async with asyncio.TaskGroup() as tasks:
                gathering = Gathering(self._desk, multiplex, principal, tasks, ask.cursor)
                await self._gather(ask, upstream, gathering, multiplex)
            multiplex.tally.settle()

        return await manifold.respond(
            request,
            feed,
            Tally(ask.cursor),
            self._pulse,
            self._options,
            headers=headers_of(request),
            expires_at=principal.expires_at,
            coding=coding_for(request, self._options),
        )

    async def _gather(
        self, ask: _Ask, upstream: AnyUpstream | None, gathering: Gathering, multiplex: Multiplex
    ) -> None:
        for wish in ask.wishes:
            gathering.want(wish)
        if ask.thread_id is not None and upstream is not None:
            await Thread(self._looks, upstream, ask.thread_id, gathering, multiplex, ask.cursor, ask.like).follow()
        elif ask.children:
            await Children(self._looks, gathering, ask.like).follow()

    async def _nothing_left(self, ask: _Ask, principal: Principal) -> bool:
        """A browser that comes back after the end of all its runs: only a 204 stops it."""
        if ask.thread_id is not None:
            return False  # more runs may start
        try:
            return await self._all_over(ask, principal)
        except RelayError as error:
            if error.status in LATER:
                return False
            raise

    async def _all_over(self, ask: _Ask, principal: Principal) -> bool:
        keys = await self._known(ask.wishes, principal)
        if ask.children:
            keys = await self._with_children(keys, ask, principal)
        places = [max(ask.cursor.place(key, keys), Place(ask.seqs.get(key.run_id, 0))) for key in keys]
        states = await self._desk.log.states(keys) if keys else []
        return all(over_at(place, state) for place, state in zip(places, states, strict=True))

    async def _known(self, wishes: Sequence[Wish], principal: Principal) -> list[RunKey]:
        """The runs there are; one that can never be had will say nothing more."""
        keys = []
        for wish in wishes:
            try:
                keys.append(await self._desk.find(wish, principal))
            except RelayError as error:
                if error.status in LATER:
                    raise
        return keys

    async def _with_children(self, keys: list[RunKey], ask: _Ask, principal: Principal) -> list[RunKey]:
        known = list(keys)
        for key in known:  # grows meanwhile: children may have children
            named = await self._looks.children(key, fresh=True)
            wishes = [Wish(child, upstream=key.upstream) for child in named]
            known += [child for child in await self._known(wishes, principal) if child not in known]
            if len(known) > self._desk.most:
                break
        return known


class _Ask:
    """What an SSE reader asks for. Every field is checked here; InvalidRequest names the first that is wrong."""

    def __init__(self, request: web.Request, most: int) -> None:
        query = request.query
        _check_accept(request)
        self.upstream = upstream_hint(request)
        if self.upstream is not None:
            checked_upstream("upstream", self.upstream)
        self.types = types_of(query.get("types"))
        self.snapshot = flag_of(query, "snapshot", default=False)
        self.children = flag_of(query, "children", default=False)
        self.thread_id = query.get("thread") or None
        self.seqs = _runs(query.get("runs"), most)
        self.like = Wish("", types=self.types, snapshot=self.snapshot)
        """How runs are read that nobody named."""
        self._check(request)
        self.wishes = [Wish(run_id, seq, self.types, self.snapshot, self.upstream) for run_id, seq in self.seqs.items()]
        self.came_back = came_back(query, request.headers)
        self.cursor = vector.later(
            vector.later(vector.read("cursor", query.get("cursor")), vector.read(RESUMED, query.get(RESUMED))),
            vector.read("Last-Event-ID", request.headers.get("Last-Event-ID")),
        )

    def _check(self, request: web.Request) -> None:
        if self.thread_id is not None:
            checked_id("thread", self.thread_id)
        if bool(self.seqs) == (self.thread_id is not None):
            raise InvalidRequest.field("runs", "needed, or thread (not both)", "run ids with commas, or thread=<id>")
        if self.thread_id is not None and request[PRINCIPAL].run is not None:
            raise Forbidden("a viewer token may only read its run")
        if not flag_of(request.query, "follow", default=True):
            raise InvalidRequest.field("follow", "always so here", "true; a run's own /events can be read without")


def _runs(text: str | None, most: int) -> dict[str, int]:
    """`a,b:12`: run ids, each perhaps with the seq its reader has seen."""
    seqs: dict[str, int] = {}
    for item in text.split(",") if text else ():
        run_id, colon, seq = item.strip().partition(":")
        checked_id("runs", run_id)
        seqs[run_id] = max(seqs.get(run_id, 0), seq_of("runs", seq) if colon else 0)
    if len(seqs) > most:
        raise InvalidRequest.field("runs", "too many", f"at most {most} (limits.runs_per_connection)")
    return seqs


def _check_accept(request: web.Request) -> None:
    accepted = request.headers.get(hdrs.ACCEPT, "*/*")
    if accepted and not any(kind in accepted for kind in ("text/event-stream", "text/*", "*/*")):
        raise NotAcceptable("Accept text/event-stream, or upgrade to WebSocket")
