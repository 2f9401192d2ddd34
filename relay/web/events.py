"""`/v1/runs/{r}/events`: one resource, several representations, one subscription code beneath them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Final

from aiohttp import hdrs, web

from relay.core.cursor import came_back, count_of, cursor_of, flag_of, number_of
from relay.core.errors import InvalidRequest, NotAcceptable, UpstreamUnavailable
from relay.core.filters import Types, types_of
from relay.core.wires import Form, Wire
from relay.delivery import websocket
from relay.delivery.http import EventStream
from relay.delivery.options import DeliveryOptions
from relay.delivery.page import Wish, page
from relay.delivery.pulse import Pulse
from relay.fanout.coalescing import Coalesce
from relay.fanout.hub import Hub
from relay.fanout.topic import Topic
from relay.web.caching import cacheable
from relay.web.directory import Directory
from relay.web.door import FIELDS, HOLD, PRINCIPAL, TRACE_ID, Answer
from relay.web.requests import coding_for, known_run, named_run, the_run

_PRIMED_S: Final = 10.0
"""How long a reader who does not follow waits for the log to hold what the upstream has."""
_LIMIT: Final = 1000
_COALESCE_MS: Final = 10_000


class Events:
    def __init__(self, directory: Directory, hub: Hub, pulse: Pulse, options: DeliveryOptions, *, public: bool) -> None:
        """`public`: everybody may see everything (no auth), so that a shared cache may keep what never changes."""
        self._public = public
        self._directory = directory
        self._hub = hub
        self._pulse = pulse
        self._options = options

    def at_once(self, request: web.Request) -> Answer | None:
        """As `get`, where all that is asked for is here: nobody has to be asked for the run, and its topic is open."""
        named = named_run(request)
        form = form_of(request)
        ask = _asked(request)
        if form is None or form == "websocket" or not ask.follow:
            return None
        hold = request[HOLD]
        self._pulse.take_place(hold)
        key = known_run(named, request, self._directory)
        topic = None if key is None else self._hub.opened(key, hold)
        if topic is None or not self._hub.settled(topic, ask.cursor):
            return None
        return self._answer(request, topic, form, ask)

    async def get(self, request: web.Request) -> Answer:
        """Everything is checked before the 200: after it there is only the stream."""
        named_run(request)
        form = form_of(request)
        ask = _asked(request)
        hold = request[HOLD]
        if form is not None:
            self._pulse.take_place(hold)
        topic = await self._hub.open(await the_run(request, self._directory), hold)
        if not ask.follow or form is None:
            await self._until_there(topic, form, ask)
        await self._hub.settle(topic, ask.cursor)
        if form is None:
            return await self._page(request, topic, ask)
        answer = self._answer(request, topic, form, ask)
        if form == "websocket" and isinstance(answer, EventStream):
            return await websocket.deliver(request, answer)
        return answer

    async def _until_there(self, topic: Topic, form: Form | None, ask: _Ask) -> None:
        """For who does not follow: wait for all there is now. A stream cannot do with less, a page says so."""
        there = await self._hub.primed(topic, max(_PRIMED_S, ask.wait_s))
        if form is not None:
            there = there and await self._hub.reachable(topic, ask.cursor, _PRIMED_S)
        if not there and form is not None:  # a proper end would say that this is all there is
            raise UpstreamUnavailable("the upstream's events cannot be read at the moment", retry_after_s=2.0)

    async def _page(self, request: web.Request, topic: Topic, ask: _Ask) -> web.Response:
        merged = ask.coalesce is not None and ask.coalesce.pace_ms > 0
        wish = Wish(ask.cursor, ask.limit, ask.types, ask.wait_s, snapshot=ask.snapshot, merged=merged)
        return cacheable(request, await page(self._hub, topic, wish), public=self._public)

    def _answer(self, request: web.Request, topic: Topic, form: Form, ask: _Ask) -> Answer:
        if form.startswith("sse") and _nothing_left(request, topic, ask.cursor):
            return web.Response(status=204)
        coding = coding_for(request, self._options) if form != "websocket" else None
        wire = _wire(form, form != "websocket" and coding is None and request.version >= (1, 1))
        return EventStream(
            self._hub.subscribe(topic, ask.cursor, wire, ask.types, snapshot=ask.snapshot, coalesce=ask.coalesce),
            self._pulse,
            self._options,
            request[HOLD],
            request[TRACE_ID],
            request[FIELDS],
            ask.follow,
            request[PRINCIPAL].expires_at,
            coding,
        )


class _Ask:
    """What a reader asks for. Every field is checked here; InvalidRequest names the first that is wrong."""

    follow = True
    types: Types | None = None
    snapshot = False
    coalesce: Coalesce | None = None
    limit = 500
    wait_s = 0.0

    def __init__(self, query: Mapping[str, str], headers: Mapping[str, str]) -> None:
        self.cursor = cursor_of(query, headers)
        if not query:
            return
        if "follow" in query:
            self.follow = flag_of(query, "follow", default=self.follow)
        if "types" in query:
            self.types = types_of(query["types"])
        if "snapshot" in query:
            self.snapshot = flag_of(query, "snapshot", default=self.snapshot)
        if "coalesce" in query or "coalesce_ms" in query:
            self.coalesce = coalesce_of(query)
        if "limit" in query:
            self.limit = count_of(query, "limit", default=self.limit, low=1, high=_LIMIT)
        if "wait" in query:
            self.wait_s = number_of(query, "wait", default=self.wait_s, low=0, high=60)


_FROM_THE_START: Final = _Ask({}, {})


def _asked(request: web.Request) -> _Ask:
    """One for all who ask for nothing of their own: nearly everybody who comes for the first time."""
    query, headers = request.query, request.headers
    return _Ask(query, headers) if query or hdrs.LAST_EVENT_ID in headers else _FROM_THE_START


@cache
def _wire(form: Form, chunked: bool) -> Wire:
    """One for all viewers of a kind."""
    return Wire(form, chunked=chunked)


def coalesce_of(query: Mapping[str, str]) -> Coalesce | None:
    """`coalesce_ms=n`: merged deltas, at most every n ms; `coalesce=pressure`: merged while the client is slow."""
    if query.get("coalesce") not in (None, "", "pressure"):
        raise InvalidRequest.field("coalesce", "not a way to coalesce", "pressure")
    pace_ms = count_of(query, "coalesce_ms", default=0, low=0, high=_COALESCE_MS)
    return Coalesce(pace_ms) if pace_ms or query.get("coalesce") else None


def form_of(request: web.Request) -> Form | None:
    """The representation that was asked for; None is the JSON page. NotAcceptable if we have none of them."""
    query = request.query
    named = flag_of(query, "named", default=False) if "named" in query else False
    headers = request.headers
    if hdrs.UPGRADE in headers and headers[hdrs.UPGRADE].lower() == "websocket":
        return "websocket"
    return _accepts(headers.get(hdrs.ACCEPT, "*/*"), "sse-named" if named else "sse")


@lru_cache(maxsize=256)
def _accepts(accepted: str, sse: Form) -> Form | None:
    """What an Accept header asks for, where it may be of any kind `sse`. Nearly all clients send one of a few."""
    known: dict[str, Form | None] = {
        "text/event-stream": sse,
        "text/*": sse,
        "*/*": sse,
        "": sse,
        "application/x-ndjson": "ndjson",
        "application/json": None,
        "application/*": None,
    }
    ranked = [(quality, kind) for kind, quality in _accepted(accepted) if kind in known and quality > 0]
    refused = {kind for kind, quality in _accepted(accepted) if quality <= 0}
    for _, kind in sorted(ranked, key=lambda item: -item[0]):  # stable: of equals the first named
        if "*" not in kind:
            return known[kind]
        # A wildcard: the first of ours that was not refused by name.
        ours = [name for name in known if name and "*" not in name and name not in refused and _covers(kind, name)]
        if ours:
            return known[ours[0]]
    raise NotAcceptable("Accept one of: text/event-stream, application/json, application/x-ndjson")


def _accepted(header: str) -> list[tuple[str, float]]:
    """The media types of an Accept header with their quality (RFC 9110 §12.5.1); a broken quality counts as 1."""
    found = []
    for item in header.split(","):
        kind, *parameters = [part.strip().lower() for part in item.split(";")]
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        found.append((kind, float(quality) if re.fullmatch(r"[01](\.[0-9]{0,3})?", quality, re.ASCII) else 1.0))
    return found


def _covers(wildcard: str, kind: str) -> bool:
    return wildcard == "*/*" or kind.startswith(wildcard[:-1])


def _nothing_left(request: web.Request, topic: Topic, cursor: int) -> bool:
    """An EventSource that comes back after the end: only a 204 stops it."""
    state = topic.state
    return state.sealed and topic.sealed and cursor >= state.last_seq and came_back(request.query, request.headers)
