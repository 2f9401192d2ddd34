"""Reading requests: the run a path means, JSON bodies. Everything hostile ends here, with an error that names the field."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import hdrs, web
from multidict import istr

from relay.core.errors import InvalidRequest, NotFound
from relay.core.events import decode
from relay.core.ids import RunKey, checked_id
from relay.delivery.compression import Coding, coding_of
from relay.delivery.options import DeliveryOptions
from relay.web.admit import Principal
from relay.web.directory import Directory
from relay.web.door import PRINCIPAL

UPSTREAM_HEADER: Final = istr("X-Relay-Upstream")


def upstream_hint(request: web.Request) -> str | None:
    query = request.query
    return (query.get("upstream") if query else None) or request.headers.get(UPSTREAM_HEADER)


async def the_run(request: web.Request, directory: Directory) -> RunKey:
    """The run of the path, if there is one and this principal may see it."""
    run_id, thread_id = named_run(request)
    return await visible(run_id, request[PRINCIPAL], directory, upstream_hint(request), thread_id)


def known_run(named: tuple[str, str | None], request: web.Request, directory: Directory) -> RunKey | None:
    """As `the_run`, where nobody has to be asked; None where somebody has to be."""
    run_id, thread_id = named
    return directory.known(run_id, _seen_through(run_id, request[PRINCIPAL], upstream_hint(request)), thread_id)


async def visible(
    run_id: str, principal: Principal, directory: Directory, hint: str | None, thread_id: str | None
) -> RunKey:
    """The run of this id, if there is one and this principal may see it: the one place that every route asks."""
    return await directory.find(run_id, _seen_through(run_id, principal, hint), thread_id)


def named_run(request: web.Request) -> tuple[str, str | None]:
    """The run's id and its thread's, if that is named too. Raises InvalidRequest."""
    run_id = checked_id("run_id", request.match_info["run_id"])
    thread_id = request.match_info.get("thread_id")
    if not thread_id and request.query:
        thread_id = request.query.get("thread_id")
    if thread_id is not None:
        checked_id("thread_id", thread_id)
    return run_id, thread_id


def _seen_through(run_id: str, principal: Principal, hint: str | None) -> str | None:
    """The upstream this principal is to ask for a run, if one is named. Raises NotFound where it may not see the run."""
    if principal.run is None:
        return hint
    # Asking on behalf of a token that is for another run must not tell whether this one exists.
    if principal.run.run_id != run_id:
        raise NotFound("no upstream knows this run")
    return principal.run.upstream


def coding_for(request: web.Request, options: DeliveryOptions) -> Coding | None:
    """How a stream that answers this request is compressed."""
    return coding_of(request.headers.get(hdrs.ACCEPT_ENCODING)) if options.compress else None


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a body; an empty body is an empty object."""
    raw = await request.read()
    if not raw:
        return {}
    try:
        body = decode(raw)
    except ValueError as error:
        raise InvalidRequest.field("body", "not valid JSON", "a JSON object") from error
    if not isinstance(body, dict):
        raise InvalidRequest.field("body", "not a JSON object", "a JSON object")
    return body
