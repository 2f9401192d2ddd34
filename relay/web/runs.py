"""The runs API: passed through to the upstreams in native names; what only we know is added."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from urllib.parse import urlencode

from aiohttp import web

from relay.core.cursor import count_of
from relay.core.errors import InvalidRequest, NotFound, Unsupported
from relay.core.events import MAX_SEQ
from relay.core.ids import RunKey, checked_id
from relay.fanout.hub import Wants
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.upstream import Upstream
from relay.providers.contract import RunsQuery
from relay.providers.own import ThreadQuery
from relay.store.log import Log
from relay.web.directory import Directory
from relay.web.door import PRINCIPAL, TRACE_ID, json_response
from relay.web.once import Once
from relay.web.requests import json_body, the_run, upstream_hint
from relay.web.tokens import MOST_S, Tokens

INPUT_BYTES: Final = 32_768
STATUSES: Final = (
    "queued", "running", "waiting_for_input", "cancelling", "completed", "failed", "cancelled", "interrupted"
)  # fmt: skip
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(\d{1,40}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_PAGES: Final = 20
"""Most pages of an upstream's list that one list of ours looks through."""


class Pumping(Wants, Protocol):
    """Who pumps, and makes runs where they are kept in threads: the answer may be the only stream there will ever be."""

    async def create(self, upstream: OwnUpstream, thread_id: str, body: dict[str, Any]) -> dict[str, Any]: ...


class Runs:
    def __init__(self, directory: Directory, log: Log, wants: Pumping, tokens: Tokens, once: Once) -> None:
        self._directory = directory
        self._log = log
        self._wants = wants
        self._tokens = tokens
        self._once = once

    # --- one run ----------------------------------------------------------------------------------------------------
    async def get(self, request: web.Request) -> web.Response:
        run = await self._directory.run(await the_run(request, self._directory))
        thread_id = request.match_info.get("thread_id")
        if thread_id is not None and run.get("thread_id") not in (None, thread_id):
            raise NotFound("this run is of another thread")
        return json_response(run)

    async def create(self, request: web.Request) -> web.Response:
        thread_id = checked_id("thread_id", request.match_info["thread_id"])
        upstream = self._directory.only(upstream_hint(request))
        asked = await json_body(request)  # what is no JSON object is refused; the rest goes in the caller's own words
        body = await request.read()

        async def create() -> dict[str, Any]:
            if isinstance(upstream, OwnUpstream):
                made = await self._wants.create(upstream, thread_id, asked)
                return {**made, "trace_id": request[TRACE_ID]}  # these systems have none of their own
            return await upstream.read(upstream.provider.created, upstream.provider.create_run(thread_id, body or None))

        key = request.headers.get("Idempotency-Key")
        where = RunKey(upstream.name, thread_id)
        answer = await self._once.do(where, request[PRINCIPAL].name, key, body, create) if key else await create()
        self._wants.want(RunKey(upstream.name, str(answer["run_id"])))
        return json_response(answer, status=201)

    async def cancel(self, request: web.Request) -> web.Response:
        key = await the_run(request, self._directory)
        body = await json_body(request)
        seen = body.get("last_seen_seq")
        if seen is not None and (type(seen) is not int or not 0 <= seen <= MAX_SEQ):
            raise InvalidRequest.field("last_seen_seq", "not a sequence number", f"a whole number, 0 to {MAX_SEQ}")
        upstream = self._directory.upstreams[key.upstream]
        if isinstance(upstream, OwnUpstream):
            await upstream.cancel(await self._directory.thread_of(key), key.run_id)
            return json_response({"ok": True})
        if seen is None:  # our callers need not know that the upstream wants this
            state = (await self._log.states([key]))[0]
            seen = state.last_seq if state is not None else 0
        await upstream.ask(upstream.provider.cancel_run(key.run_id, last_seen_seq=seen))
        return json_response({"ok": True})

    async def input(self, request: web.Request) -> web.Response:
        checked_id("run_id", request.match_info["run_id"])
        body = await json_body(request)
        if body.get("tool_outputs") is not None:
            return await self._outputs(request, body)
        content = body.get("content")
        if not isinstance(content, str):
            raise InvalidRequest.field("content", "missing or not a string", "a string")
        if not content.strip():
            raise InvalidRequest.field("content", "must not be empty", f"1 to {INPUT_BYTES} bytes")
        if len(content.encode("utf-8", "surrogatepass")) > INPUT_BYTES:
            raise InvalidRequest.field("content", "too large", f"at most {INPUT_BYTES} bytes of UTF-8")
        key = await the_run(request, self._directory)
        upstream = self._directory.upstreams[key.upstream]
        if isinstance(upstream, OwnUpstream):
            await upstream.provide_input(await self._directory.thread_of(key), key.run_id, body)
        else:
            await upstream.ask(upstream.provider.provide_input(key.run_id, content))
        return json_response({"ok": True})

    async def _outputs(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        """Several tool calls answered at once, where a system waits for that."""
        if len(await request.read()) > INPUT_BYTES:
            raise InvalidRequest.field("tool_outputs", "too large", f"at most {INPUT_BYTES} bytes")
        key = await the_run(request, self._directory)
        upstream = self._directory.upstreams[key.upstream]
        if not isinstance(upstream, OwnUpstream):
            raise InvalidRequest.field("content", "missing or not a string", "a string")
        await upstream.provide_input(await self._directory.thread_of(key), key.run_id, body)
        return json_response({"ok": True})

    async def token(self, request: web.Request) -> web.Response:
        """A short-lived token for one run, for browsers: 201 `{"token", "expires_at"}`."""
        key = await the_run(request, self._directory)
        ttl_s = (await json_body(request)).get("ttl_s", MOST_S)
        if type(ttl_s) is not int or not 1 <= ttl_s <= MOST_S:
            raise InvalidRequest.field("ttl_s", "out of range", f"a whole number of seconds, 1 to {MOST_S}")
        token, expires_at = self._tokens.mint(key, minted_by=request[PRINCIPAL].name, ttl_s=ttl_s)
        when = datetime.fromtimestamp(expires_at, UTC).isoformat().replace("+00:00", "Z")
        return json_response({"token": token, "expires_at": when}, status=201)

    # --- lists ------------------------------------------------------------------------------------------------------
    async def list_thread(self, request: web.Request) -> web.Response:
        """A thread's runs. Of an upstream that pages no further, the newest `list_limit` are looked at."""
        thread_id = checked_id("thread_id", request.match_info["thread_id"])
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest.field("order", "not an order", "asc or desc")
        upstream = self._directory.only(upstream_hint(request))
        most = upstream.provider.list_limit
        limit = count_of(request.query, "limit", default=50, low=1, high=most)
        offset = count_of(request.query, "offset", default=0, low=0, high=most)
        status = _status(request)
        if isinstance(upstream, OwnUpstream):
            query = ThreadQuery(limit, "asc" if order == "asc" else "desc", offset, *_between(request))
            return json_response(await self._in_thread(upstream, thread_id, query, status))
        listed = await upstream.read(upstream.provider.runs, upstream.provider.list_thread_runs(thread_id, limit=most))
        found = [{**run, "thread_id": thread_id} for run in listed]
        runs = await self._directory.complete(upstream, found)
        runs = [run for run in runs if status is None or run["status"] == status]
        if order == "asc":
            runs.reverse()
        return json_response(runs[offset : offset + limit])

    async def _in_thread(
        self, upstream: OwnUpstream, thread_id: str, query: ThreadQuery, status: str | None
    ) -> list[dict[str, Any]]:
        found = [{**run, "thread_id": thread_id} for run in await upstream.thread_runs(thread_id, query)]
        for run in found:
            upstream.note_thread(run["run_id"], thread_id)
        runs = await self._directory.complete(upstream, found)
        return [run for run in runs if status is None or run["status"] == status]

    async def list_all(self, request: web.Request) -> web.Response:
        """All runs of all upstreams, newest first; `before` is the run_id of the last item of the page before.

        A system that keeps runs in threads lists none without one: it is left out, and named in a header.
        """
        limit = count_of(request.query, "limit", default=50, low=1, high=200)
        status = _status(request)
        hint = upstream_hint(request)
        before = await self._before(request.query.get("before"), hint)
        found: list[dict[str, Any]] = []
        asked = self._directory.candidates(hint)
        threaded = [upstream.name for upstream in asked if isinstance(upstream, OwnUpstream)]
        if len(threaded) == len(asked):
            raise Unsupported("this upstream lists runs by thread only: GET /v1/threads/{thread_id}/runs")
        for upstream in asked:
            if isinstance(upstream, Upstream):
                found += await self._newest(upstream, limit, status, before)
        found.sort(key=_place, reverse=True)
        page = found[:limit]
        headers = {"Link": _next_link(request, page[-1]["run_id"])} if len(page) == limit else {}
        if threaded:
            headers["X-Relay-Left-Out"] = ",".join(threaded)
        return json_response(page, headers=headers)

    async def _before(self, run_id: str | None, hint: str | None) -> tuple[str, str, str] | None:
        if not run_id:
            return None
        key = await self._directory.find(checked_id("before", run_id), hint)
        return _place(await self._directory.fetch(key))

    async def _newest(
        self, upstream: Upstream, limit: int, status: str | None, before: tuple[str, str, str] | None
    ) -> list[dict[str, Any]]:
        """Up to `limit` runs of one upstream that come after `before` in our order, through its own paging."""
        found: list[dict[str, Any]] = []
        size = upstream.provider.list_limit if status or before else min(limit, upstream.provider.list_limit)
        until = _just_after(before[0]) if before else None
        for page in range(_PAGES):
            query = RunsQuery(limit=size, offset=page * size, status=status, until=until)
            items = await upstream.read(upstream.provider.runs, upstream.provider.list_runs(query))
            for run in await self._directory.complete(upstream, items):
                if (status is None or run["status"] == status) and (before is None or _place(run) < before):
                    found.append(run)
            if len(found) >= limit or len(items) < size:
                break
        return found[:limit]


def _status(request: web.Request) -> str | None:
    status = request.query.get("status")
    if status and status not in STATUSES:
        raise InvalidRequest.field("status", "not a run status", ", ".join(STATUSES))
    return status or None


def _between(request: web.Request) -> tuple[str | None, str | None]:
    """The run ids a page lies between, for systems that page by them."""
    after, before = (request.query.get(name) or None for name in ("after", "before"))
    for name, value in (("after", after), ("before", before)):
        if value is not None:
            checked_id(name, value)
    return after, before


def _place(run: dict[str, Any]) -> tuple[str, str, str]:
    """A run's place in the merged list. Times are made equally long, so that they sort as text."""
    return _normal_time(str(run.get("created_at") or "")), str(run.get("upstream", "")), str(run["run_id"])


def _normal_time(text: str) -> str:
    """An RFC 3339 time in UTC with twelve decimals: sorts as text, and keeps what lies below a microsecond."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        return ""
    seconds, decimals, zone = parts.groups()
    try:
        utc = datetime.fromisoformat(seconds + zone).astimezone(UTC)
    except ValueError:
        return ""
    return f"{utc:%Y-%m-%dT%H:%M:%S}.{(decimals or '')[:12]:0<12}Z"


def _just_after(normal: str) -> str | None:
    """A microsecond later: runs made in the same instant must not fall between two pages."""
    if not normal:
        return None
    later = datetime.fromisoformat(f"{normal[:26]}Z") + timedelta(microseconds=1)
    return later.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _next_link(request: web.Request, last: str) -> str:
    query = {**request.query, "before": last}
    return f'<{request.path}?{urlencode(query)}>; rel="next"'
