"""Every route of both listeners, with what it needs to be let in. There is no other place where a route is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from aiohttp import web

from relay.web.admit import Access
from relay.web.contracts import Contracts
from relay.web.door import Route
from relay.web.events import Events
from relay.web.many import Many
from relay.web.runs import Runs
from relay.web.ui import Dashboard


def public(
    runs: Runs, events: Events, many: Many, dashboard: Dashboard, contracts: Contracts, *, at_root: bool = True
) -> list[Route]:
    """The native face, at the root (unless another face takes it) and at /native, the dashboard, and the contracts.

    `{run_id:.*}` takes hostile ids too: they are refused by name instead of falling through to some other route.
    """
    native = [
        Route("POST", "/v1/threads/{thread_id:.*}/runs", Access.ACT, runs.create, "create_run"),
        Route("GET", "/v1/threads/{thread_id:.*}/runs", Access.ACT, runs.list_thread, "list_thread_runs"),
        Route("GET", "/v1/threads/{thread_id:.*}/runs/{run_id:[^/]*}", Access.ACT, runs.get, "get_thread_run"),
        Route("GET", "/v1/runs", Access.ACT, runs.list_all, "list_runs"),
        Route("GET", "/v1/events", Access.TALK, many.get, "many_events"),
        Route(
            "GET",
            "/v1/runs/{run_id:.*}/events",
            Access.VIEW,
            events.get,
            "events",
            at_once=events.at_once,
            streams=True,
        ),
        Route("POST", "/v1/runs/{run_id:.*}/input", Access.ACT, runs.input, "input"),
        Route("POST", "/v1/runs/{run_id:.*}/tokens", Access.ACT, runs.token, "tokens"),
        Route("POST", "/v1/runs/{run_id:.*}:cancel", Access.ACT, runs.cancel, "cancel"),
        Route("GET", "/v1/runs/{run_id:[^/]*}", Access.ACT, runs.get, "get_run"),
    ]
    return [
        *(native if at_root else ()),
        *(replace(route, path=f"/native{route.path}") for route in native),
        Route("GET", "/ui", Access.OPEN, dashboard.index, "ui"),
        Route("GET", "/ui/app.js", Access.OPEN, dashboard.script, "ui"),
        Route("GET", "/ui/app.css", Access.OPEN, dashboard.style, "ui"),
        Route("GET", "/openapi.json", Access.OPEN, contracts.openapi, "contracts"),
        Route("GET", "/asyncapi.json", Access.OPEN, contracts.asyncapi, "contracts"),
    ]


class Pages(Protocol):
    """What the admin listener shows: of one process (web/health.py), or of several (workers/overview.py)."""

    async def healthz(self, request: web.Request, /) -> web.Response: ...
    async def readyz(self, request: web.Request, /) -> web.Response: ...
    async def metrics(self, request: web.Request, /) -> web.Response: ...
    async def runs(self, request: web.Request, /) -> web.Response: ...
    async def config(self, request: web.Request, /) -> web.Response: ...


def admin(health: Pages) -> list[Route]:
    return [
        Route("GET", "/healthz", Access.OPEN, health.healthz, "healthz"),
        Route("GET", "/readyz", Access.OPEN, health.readyz, "readyz"),
        Route("GET", "/metrics", Access.OPEN, health.metrics, "metrics"),
        Route("GET", "/admin/runs", Access.ADMIN, health.runs, "admin_runs"),
        Route("GET", "/admin/config", Access.ADMIN, health.config, "admin_config"),
    ]
