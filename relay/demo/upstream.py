"""Our own upstream for demonstrations: agent runs of our making behind the Arkloop wire (arkloop.md), on loopback.

Independent of relay: it shares no code with the side that reads it. The order of checks, the error envelope, the frames
and how streams begin, rest and end are the real server's; the section is named where the fact is used. `DemoUpstream` is
routes and streams only: runs are kept in `ledger.py`, played by `player.py`, shown by `api.py`, spelled by `wire.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from itertools import cycle
from typing import Self

from aiohttp import web

from relay.demo import api, http, wire
from relay.demo.ledger import USER_ID, Ledger, Run
from relay.demo.player import Player
from relay.demo.runs import SCRIPTS
from relay.demo.script import Script

Call = Callable[[web.Request, Run], Awaitable[web.StreamResponse]]

_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class DemoUpstream:
    """An Arkloop server with scripted runs; `async with`, or `start` and `stop`."""

    def __init__(
        self,
        *,
        token: str | None = None,
        heartbeat_s: float = 15.0,
        scripts: Mapping[str, Script] = SCRIPTS,
        speed: float = 1.0,
        uuid_ids: bool = True,
    ) -> None:
        """`token` None: everybody may come in. `uuid_ids` False: any `[A-Za-z0-9_-]` names a run (tests read better)."""
        self.ledger = Ledger()
        self.token = token
        self.heartbeat_s = heartbeat_s
        self.speed = speed
        self._scripts = scripts
        self._turns = cycle(scripts.values())
        self._uuid_ids = uuid_ids
        self._player = Player()
        self._streams: set[asyncio.Transport] = set()
        self._runner: web.AppRunner | None = None
        self._address = ("127.0.0.1", 0)
        self._run_calls: dict[str, tuple[str, Call]] = {
            "": ("GET", self._get_run),
            ":cancel": ("POST", self._cancel),
            "/input": ("POST", self._input),
            "/events": ("GET", self._events),
        }

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one. Raises `OSError` when the port is taken."""
        app = web.Application(client_max_size=http.MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_response_prepare.append(http.add_trace_id)
        # Cancelled with their connection: a viewer that leaves is gone at once, not at the next ping.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        await self._listen(host, port)
        self._address = self._runner.addresses[0][:2]

    async def _listen(self, host: str, port: int) -> None:
        assert self._runner is not None
        await web.TCPSite(self._runner, host, port, reuse_address=True).start()

    @property
    def port(self) -> int:
        return self._address[1]

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"http://{self._address[0]}:{self._address[1]}"

    async def stop(self) -> None:
        """End every script, abort every stream (as a real shutdown does, 2.4) and close. Raises what broke a script."""
        for transport in list(self._streams):
            transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._player.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # ── runs ────────────────────────────────────────────────────────────────────────────────────────────────

    def play(
        self, script: Script, *, speed: float | None = None, run_id: str | None = None, thread_id: str | None = None
    ) -> str:
        """Start a new run that plays `script` and give its id; its first event exists when this returns."""
        run = Run(
            run_id or str(uuid.uuid4()),
            thread_id or str(uuid.uuid4()),
            persona_id=script.about("persona_id"),
            model=script.about("model"),
        )
        self._player.play(script, self.ledger.add(run), speed=speed or self.speed)
        return run.run_id

    async def played(self, run_id: str) -> None:
        """Wait for the end of the run's script."""
        await self._player.played(run_id)

    def script_for(self, fields: Mapping[str, str]) -> Script:
        """The script a POST asks for: by `persona_id` (its `@version` does not matter), else the next in turn."""
        return self._scripts.get(fields.get("persona_id", "").partition("@")[0]) or next(self._turns)

    # ── the way in ──────────────────────────────────────────────────────────────────────────────────────────

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        http.TRACE_ID.set(uuid.uuid4().hex)
        try:
            return await self.route(request)
        except wire.Refusal as refusal:
            return http.answer(refusal.body(http.TRACE_ID.get()), refusal.status, refusal.headers)

    async def route(self, request: web.Request) -> web.StreamResponse:
        """Path to call. Raises `Refusal`; a trailing slash is tolerated (section 1.1)."""
        match request.path.strip("/").split("/"):
            case ["v1", "threads", thread_id, "runs"]:
                return await self._thread_runs(request, thread_id)
            case ["v1", "runs"]:
                return self._list(request)
            case ["v1", "runs", name]:
                run_id, colon, action = name.partition(":")
                return await self._one_run(request, run_id, colon + action)
            case ["v1", "runs", run_id, action]:
                return await self._one_run(request, run_id, "/" + action)
            case _:
                raise wire.Refusal(404, "http.not_found", "not found")

    async def _one_run(self, request: web.Request, name: str, action: str) -> web.StreamResponse:
        """Checks in the order of section 1.1: id, action, method, auth, run, owner; the call checks query and body."""
        run_id = self._run_id(name)
        if action not in self._run_calls:
            raise wire.Refusal(404, "http.not_found", "not found")
        method, call = self._run_calls[action]
        http.require_method(request, method)
        self.authenticate(request)
        run = self.ledger.get(run_id)
        if run is None:
            raise wire.Refusal(404, "runs.not_found", "run not found")
        self.permit(request, run, action.lstrip(":/") or "get")
        return await call(request, run)

    def _run_id(self, name: str) -> str:
        run_id = wire.canonical_uuid(name)
        if run_id is None and not self._uuid_ids and _PLAIN_ID.fullmatch(name):
            run_id = name
        if run_id is None:
            raise wire.invalid("run_id must be a UUID")
        return run_id

    def authenticate(self, request: web.Request) -> None:
        """Who may come in at all. Raises `Refusal` 401."""
        if self.open_to_all:
            return
        header = request.headers.get("Authorization")
        if not header:
            raise wire.Refusal(401, "auth.missing_token", "missing token")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise wire.Refusal(401, "auth.invalid_authorization", "invalid authorization header")
        if not self.knows(token.strip()):
            raise wire.Refusal(401, "auth.invalid_token", "invalid token")

    @property
    def open_to_all(self) -> bool:
        return self.token is None

    def knows(self, token: str) -> bool:
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    def permit(self, request: web.Request, run: Run, action: str) -> None:
        """Who may do this to that run. Raises `Refusal` 403; the demo has one owner, so everybody who came in may."""

    # ── JSON calls ──────────────────────────────────────────────────────────────────────────────────────────

    async def _thread_runs(self, request: web.Request, thread_id: str) -> web.StreamResponse:
        if not _PLAIN_ID.fullmatch(thread_id):
            raise wire.invalid("thread_id must be a UUID")
        http.require_method(request, "GET", "POST")
        self.authenticate(request)
        if request.method == "POST":
            run_id = self.create(thread_id, api.create_fields(await http.body(request)))
            return http.answer({"run_id": run_id, "trace_id": http.TRACE_ID.get()}, 201)
        limit = wire.bounded(request.query.get("limit"), "limit", 50, 1, 200)
        runs = [run for run in self.ledger.newest_first() if run.thread_id == thread_id]
        return http.answer([api.thread_item(run) for run in runs[:limit]])

    def create(self, thread_id: str, fields: Mapping[str, str]) -> str:
        """A POSTed run begins to play."""
        return self.play(self.script_for(fields), thread_id=thread_id)

    def _list(self, request: web.Request) -> web.StreamResponse:
        http.require_method(request, "GET")
        self.authenticate(request)
        limit = wire.bounded(request.query.get("limit"), "limit", 50, 1, 200)
        offset = wire.bounded(request.query.get("offset"), "offset", 0, 0, 10**12)
        runs = [run for run in self.ledger.newest_first() if api.matches(run, request.query)]
        items = [api.list_item(run) for run in runs[offset : offset + limit]]
        return http.answer({"data": items, "total": len(runs)})

    async def _get_run(self, _: web.Request, run: Run) -> web.StreamResponse:
        return http.answer(api.run_view(run))

    async def _cancel(self, request: web.Request, run: Run) -> web.StreamResponse:
        fields = api.cancel_fields(await http.body(request))
        if run.active:
            seen = {**fields, "visible_seq_cutoff": fields["last_seen_seq"]}
            run.append(
                "run.cancel_requested", {**seen, "trace_id": http.TRACE_ID.get(), "requested_by_user_id": USER_ID}
            )
        return http.answer({"ok": True})

    async def _input(self, request: web.Request, run: Run) -> web.StreamResponse:
        content = api.input_content(await http.body(request))
        if not run.active:
            raise wire.Refusal(409, "runs.not_active", "run is not active")
        run.append("run.input_provided", {"content": content, "trace_id": http.TRACE_ID.get()})
        return http.answer({"ok": True})

    # ── the event stream ────────────────────────────────────────────────────────────────────────────────────

    async def _events(self, request: web.Request, run: Run) -> web.StreamResponse:
        after_seq = wire.after_seq(request.query.get("after_seq", ""))
        follow = wire.follow(request.query.get("follow", ""))
        return await self.stream(request, run, after_seq, follow=follow)

    async def stream(self, request: web.Request, run: Run, after_seq: int, *, follow: bool) -> web.StreamResponse:
        """Replay after the cursor; then end (`follow` False) or stay for ever, pinging (sections 2.1 to 2.4)."""
        response = web.StreamResponse(headers=http.STREAM_HEADERS)
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            return response
        self._streams.add(transport)
        try:
            await self._pour(response, run, after_seq, follow=follow)
        except ConnectionError:
            pass  # the viewer left between two writes
        finally:
            self._streams.discard(transport)
        return response

    async def _pour(self, response: web.StreamResponse, run: Run, cursor: int, *, follow: bool) -> None:
        if follow:
            await response.write(wire.PING)
        while True:
            grown = run.grown
            rows = run.after(cursor)
            for seq, framed in rows:
                await response.write(framed)  # one flush per event
                cursor = seq
            if not rows and not follow:
                return
            if not rows and not await _happens(grown, self.heartbeat_s):
                await response.write(wire.PING)


async def _happens(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
