"""What surrounds every route: trace id, the door (`admit`), CORS, the error envelope, the request metric.

The second of the two places that catch everything: whatever a route raises becomes an envelope, never a traceback.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

import structlog
from aiohttp import HttpVersion11, hdrs, web

from relay import telemetry
from relay.core.errors import InvalidRequest, MethodNotAllowed, NotFound, RelayError, TooLarge, VersionNotSupported
from relay.core.events import encode
from relay.core.hold import Hold
from relay.core.ids import ID_ALLOWED, is_id
from relay.delivery import http
from relay.delivery.http import EventStream, Fields
from relay.web.admit import Access, Admit, Principal, challenge

Answer = web.StreamResponse | EventStream
Endpoint = Callable[[web.Request], Awaitable[Answer]]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PRINCIPAL: Final = web.RequestKey("principal", Principal)
TRACE_ID: Final = web.RequestKey("trace_id", str)
FIELDS: Final = web.RequestKey[Fields]("fields")
"""What every response carries beside its trace id; see `headers_of`."""
HOLD: Final = web.RequestKey("hold", Hold)
"""What is let go of when the answer is given; with a stream, at its end."""
OURS: Final = web.RequestKey[Callable[[str], bool]]("ours")
"""Tells whether credentials are a key of this relay."""

_EVERYWHERE: Final[Fields] = (("X-Content-Type-Options", "nosniff"), ("Server", "relay"))
_ID_OF: Final = {"runs": "run_id", "threads": "thread_id"}


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    access: Access
    endpoint: Endpoint
    name: str
    """How the route is called in metrics."""
    raw_key: bool = False
    """`Authorization: <key>` without a scheme is taken as well (one vendor's SDK sends it so)."""
    any_body: bool = False
    """The body goes to an upstream as it is: it need not be JSON."""
    at_once: Callable[[web.Request], Answer | None] | None = None
    """The endpoint's answer where that takes no waiting, and so no task; None where it does, with nothing done yet."""
    streams: bool = False
    """It answers with streams: where the request is a plain one, the slim listener takes it (relay.web.slim)."""


Refuse = Callable[[RelayError, web.Request], web.Response]


def build(routes: list[Route], admit: Admit, *, body_bytes: int, refuse: Refuse | None = None) -> web.Application:
    """An application in which every request, also one that no route takes, passes the door.

    `refuse` words the refusals; None: the native envelope.
    """
    door = Door(admit, refuse or refusal)
    app = web.Application(middlewares=[_boundary(door)], client_max_size=body_bytes)
    app[DOOR] = door
    for route in routes:
        door.known[app.router.add_route(route.method, route.path, door.carried(route), expect_handler=_later)] = route
    return app


async def _later(_: web.Request) -> None:
    """Nothing is said before the door has spoken; an expectation may be ignored (RFC 9110 section 10.1.1)."""


class Door:
    """One for every listener: whoever parsed the request, what `answer` says is what the client gets."""

    def __init__(self, admit: Admit, refuse: Refuse) -> None:
        self.known: dict[web.AbstractRoute, Route] = {}
        self._admit = admit
        self._principal = admit.__call__
        """To call an object by its name costs three times as much."""
        self._ours = admit.knows
        self._refuse = refuse
        self._new_trace_id = _trace_ids().__next__

    def carried(self, route: Route) -> _Handler:
        """The handler of a route, for aiohttp."""

        async def handle(request: web.Request) -> web.StreamResponse:
            answer = await self.answer(request, route, route.endpoint)
            return await _deliver(request, answer) if isinstance(answer, EventStream) else answer

        return handle

    async def answer(self, request: web.Request, route: Route | None, endpoint: Endpoint) -> Answer:
        """The answer to a request, whatever happens. Call it in a task of the request's own: it names it in the log."""
        answer = self.at_once(request, route)
        return answer if answer is not None else await self.in_time(request, route, endpoint)

    def at_once(self, request: web.Request, route: Route | None) -> Answer | None:
        """The first half: let in or refused; and answered, where that takes no waiting. None: `in_time` has the answer.

        `route` is None where no route takes the request.
        """
        trace_id, hold = self._new_trace_id(), Hold()
        origin = self._admit.cors_origin(request)
        fields = _EVERYWHERE if origin is None else _fields_for(origin)
        request.update({TRACE_ID: trace_id, OURS: self._ours, HOLD: hold, FIELDS: fields})
        try:
            answer = self._let_in(request, route)
        except Exception as error:  # the request boundary: the client gets an envelope whatever happened
            answer = self._refuse(_translated(error, request, trace_id), request)
        if not isinstance(answer, EventStream):
            hold.release()
        return answer if answer is None else self._told(answer, request, route)

    async def in_time(self, request: web.Request, route: Route | None, endpoint: Endpoint) -> Answer:
        """The second half, for a request that was let in."""
        trace_id = request[TRACE_ID]
        structlog.contextvars.bind_contextvars(trace_id=trace_id)
        answer: Answer | None = None
        try:
            if route is not None:
                await _go_on(request)
            answer = await endpoint(request)
        except Exception as error:  # the same boundary
            answer = self._refuse(_translated(error, request, trace_id), request)
        finally:
            if not isinstance(answer, EventStream):
                request[HOLD].release()
        return self._told(answer, request, route)

    def _let_in(self, request: web.Request, route: Route | None) -> Answer | None:
        """Raises a RelayError for a request that is not; an answer for one that needs no endpoint, or no waiting."""
        if route is None:  # no such path or method; still, strangers learn nothing through a Host that is not ours
            self._admit.check_host(request)
            preflight = request.method == hdrs.METH_OPTIONS and self._admit.cors_origin(request)
            return web.Response(status=204) if preflight else None
        if request.version > HttpVersion11:  # HTTP/2 has another first line: this is nobody's protocol
            raise VersionNotSupported("HTTP/1.1 and HTTP/1.0 are spoken here")
        try:
            request[PRINCIPAL] = self._principal(request, route.access, raw_key=route.raw_key, any_body=route.any_body)
        except RelayError as error:
            telemetry.REFUSED.labels(error.code).inc()
            raise
        return None if route.at_once is None or hdrs.EXPECT in request.headers else route.at_once(request)

    def _told(self, answer: Answer, request: web.Request, route: Route | None) -> Answer:
        telemetry.requests(route.name if route else "none", answer.status).inc()
        if not isinstance(answer, EventStream) and not answer.prepared:
            vary = answer.headers.get(hdrs.VARY)
            answer.headers.update(headers_of(request))
            if vary is not None:  # it names the origin already, where that makes a difference
                answer.headers[hdrs.VARY] = vary
        return answer


DOOR: Final = web.AppKey("door", Door)


def _trace_ids() -> Iterator[str]:
    """As random as the system's, which is asked for a few hundred at once: each time is a call into the kernel."""
    while True:
        drawn = os.urandom(256 * 16).hex()
        for at in range(0, len(drawn), 32):
            yield drawn[at : at + 32]


def _boundary(door: Door) -> Any:
    @web.middleware
    async def boundary(request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.match_info.route in door.known:
            return await handler(request)
        answer = await door.answer(request, None, handler)
        assert isinstance(answer, web.StreamResponse)  # it is a refusal
        return answer

    return boundary


async def _deliver(request: web.Request, answer: EventStream) -> web.StreamResponse:
    try:
        return await http.deliver(request, answer)
    except Exception as error:  # the 200 is out: nothing can be said any more
        telemetry.logger(trace_id=request[TRACE_ID]).exception("request.crashed")
        raise ConnectionResetError from error


async def _go_on(request: web.Request) -> None:
    """Tell a client that waits for that before it sends its body; it was let in."""
    if request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


def refusal(error: RelayError, request: web.Request) -> web.Response:
    """The error envelope (docs/protocol.md)."""
    body: dict[str, Any] = {"code": error.code, "message": error.message, "trace_id": request[TRACE_ID]}
    if error.details is not None:
        body["details"] = error.details
    return worded(error, error.status, body)


def worded(error: RelayError, status: int, body: object, headers: Mapping[str, str] | None = None) -> web.Response:
    """A refusal in anybody's words, with the headers every refusal has."""
    response = json_response(body, status=status, headers=dict(headers or {}))
    response.headers.update(challenge(error))
    if error.retry_after_s is not None:
        response.headers[hdrs.RETRY_AFTER] = str(max(1, round(error.retry_after_s)))
    return response


def json_response(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=body if isinstance(body, bytes) else encode(body),
        status=status,
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type="application/json",
        charset="utf-8",
    )


def _translated(error: Exception, request: web.Request, trace_id: str) -> RelayError:
    if isinstance(error, RelayError):
        return error
    if isinstance(error, web.HTTPNotFound | web.HTTPMethodNotAllowed):
        return _hostile_id(request) or _no_route(error)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return TooLarge("the request body is too large")
    if isinstance(error, web.HTTPClientError):
        return InvalidRequest(error.reason or "the request cannot be understood")
    if isinstance(error, ConnectionError):
        return RelayError("the client is gone", code="http.client_gone")  # nobody will read it, and nothing is wrong
    telemetry.logger(trace_id=trace_id).exception("request.crashed")
    return RelayError("internal error")


def _no_route(error: web.HTTPException) -> RelayError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(f"allowed here: {', '.join(sorted(error.allowed_methods))}")
    return NotFound("there is nothing at this path", code="http.not_found")


def _hostile_id(request: web.Request) -> RelayError | None:
    """Why no route took a path, if the reason is the id in it (read from the raw path, before anybody normalised it)."""
    parts = [unquote(part) for part in request.raw_path.partition("?")[0].removeprefix("/native").split("/")]
    if len(parts) < 4 or parts[:2] != ["", "v1"] or parts[2] not in _ID_OF:
        return None
    if is_id(parts[3].partition(":")[0]):
        return None
    return InvalidRequest.field(_ID_OF[parts[2]], "not a valid id", ID_ALLOWED)


def headers_of(request: web.Request) -> dict[str, str]:
    """What every response carries; a stream has to put it into its own head."""
    return http.headers_with(request[TRACE_ID], request[FIELDS])


@lru_cache(maxsize=64)
def _fields_for(origin: str) -> Fields:
    """Of the answers to a page that may read them."""
    return (
        *_EVERYWHERE,
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Methods", "GET, POST"),
        (
            "Access-Control-Allow-Headers",
            "Authorization, Content-Type, Last-Event-ID, X-Relay-Upstream, Idempotency-Key, If-None-Match",
        ),
        ("Access-Control-Expose-Headers", "X-Trace-Id, Retry-After, Link, ETag"),
        ("Access-Control-Max-Age", "600"),
        ("Vary", "Origin"),
    )
