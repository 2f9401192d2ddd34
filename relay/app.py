"""The composition root: builds every object once, owns the top task group, orders start and shutdown.

Start: admin listener -> Redis waited for and checked -> background tasks -> public listener -> ready. Stop: not ready ->
leases given back at once -> viewers told goodbye over a window -> no new connections -> open requests end -> everything
closed.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from relay import __version__, telemetry
from relay.core.errors import StartupError, StoreUnavailable
from relay.delivery.connection import bound_backlog
from relay.delivery.pulse import Pulse
from relay.fanout.hub import Hub
from relay.ingest.discovery import Discovery
from relay.ingest.ingestor import Ingestor
from relay.ingest.options import UpstreamOptions
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.tap import Connector
from relay.ingest.upstream import Upstream
from relay.process import life_of_machine, settle
from relay.settings import Settings, masked
from relay.settings.kinds import find
from relay.store.findings import Findings
from relay.store.keys import Keys
from relay.store.log import Log
from relay.store.redis import Store, shown
from relay.web import door, listener, routes
from relay.web.admit import Admit
from relay.web.contracts import Contracts
from relay.web.directory import Directory
from relay.web.events import Events
from relay.web.faces.ground import Ground
from relay.web.faces.mounts import Mounts
from relay.web.faces.routes import mounted
from relay.web.gathering import Desk
from relay.web.health import Health
from relay.web.many import Many
from relay.web.once import Once
from relay.web.resends import Resends
from relay.web.runs import Runs
from relay.web.slim import Spawn
from relay.web.tokens import Tokens
from relay.web.ui import Dashboard

_SAY_AGAIN_S: Final = 10.0
"""How often we say that we still wait for Redis."""


class App:
    """One relay process. `run` serves until `stop` is set."""

    def __init__(
        self,
        settings: Settings,
        redis_url: str,
        token_secret: str,
        alive: Callable[[], bool],
        *,
        alone: bool = False,
        listeners: Sequence[socket.socket] | None = None,
    ) -> None:
        self.settings = settings
        self.address = ""
        """http://host:port of the public listener, once it listens."""
        self.admin_address = ""
        self.health: Health | None = None
        """Once the parts it looks at are made."""
        self.alone = alone
        """Nobody else can use this Redis: leases found at start are those of a predecessor that died, and nobody takes
        ours over at the end. A worker is told what of this is so when it starts, and again when it stops."""
        self.window_s = settings.drain.window_s
        """Over how long viewers are told goodbye at the end."""
        self._listeners = listeners
        """Bound sockets for the public listener, from a parent who also has the admin listener and speaks for all of
        its workers; None for a process of its own."""
        self._alive = alive
        self._store = Store(redis_url, settings.redis)
        keys = self._keys = Keys(settings.redis.prefix, settings.redis.partitions)
        self._log = Log(
            self._store,
            keys,
            settings.retention,
            lease_s=settings.ingest.lease_s,
            want_s=settings.ingest.unwanted_s,
            life=life_of_machine() if settings.redis.url is None else "",
        )
        self._tokens = Tokens(token_secret)
        self._once = Once(self._store, keys, answer_s=settings.ingest.answer_s)
        self._resends = Resends(self._store, keys, answer_s=settings.ingest.answer_s)
        self._pulse = Pulse(settings.limits.connections, max_age_s=settings.delivery.max_age_s)
        self._public: list[web.BaseSite] = []
        self._say = telemetry.logger()

    async def run(self, stop: asyncio.Event, started: Callable[[App], None] = lambda _: None) -> None:
        """Raises StartupError if it cannot start."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._store.close)
            session = await stack.enter_async_context(_session())
            upstreams = self._upstreams(session)
            discovery = self._discovery(upstreams)
            ingestor = Ingestor(
                self._log, upstreams, self.settings.ingest, event_bytes=self.settings.limits.event_bytes
            )
            hub = Hub(self._store, self._log, ingestor, self.settings.fanout)
            ingestor.shown = hub.shown
            ingestor.tells(hub.durable)
            health = self.health = Health(self._store, hub, ingestor, self._pulse, lambda: masked(self.settings))
            admit = Admit(self.settings.server, self.settings.auth, self._tokens)
            if self._listeners is None:
                await self._serve_admin(stack, admit, health)
            if not await self._redis(stop, health, discovery):
                return
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            background = [
                tasks.create_task(self._store.watch(), name="topology watch"),
                tasks.create_task(ingestor.run(), name="ingestor"),
                tasks.create_task(discovery.run(), name="discovery"),
                tasks.create_task(hub.run(), name="hub"),
                tasks.create_task(self._pulse.run(), name="pulse"),
                tasks.create_task(self._watch_server(stop), name="embedded server watch"),
            ]
            # A group of their own: when one of ours breaks, viewers still get theirs, until the listener is closed.
            viewers = await stack.enter_async_context(asyncio.TaskGroup())
            try:
                await self._serve(stack, viewers.create_task, admit, upstreams, hub, ingestor)
                health.unready = None
                if self._listeners is None:
                    announce(self.settings, self._store.url, address=self.address, admin=self.admin_address)
                started(self)
                await stop.wait()
            finally:
                health.unready = "stopping"
                try:
                    await self._drain(discovery, ingestor, self.window_s if stop.is_set() else 0.0)
                finally:
                    self._pulse.close()  # whatever broke the drain off, everybody is told
                for task in background:
                    task.cancel()

    async def _redis(self, stop: asyncio.Event, health: Health, discovery: Discovery) -> bool:
        """Wait until Redis can be used; false if we are told to stop before. Raises StartupError if it never can."""
        health.unready = "waiting for Redis"
        said_at = -math.inf
        while not stop.is_set():
            if not self._alive():
                raise StartupError("the embedded Redis server has died; see server.log in embedded.data_dir")
            try:
                await self._store.check()
                if self.alone:
                    await self._log.forget_leases()
                    await discovery.forget()
                return True
            except StoreUnavailable as error:
                if time.monotonic() - said_at >= _SAY_AGAIN_S:
                    said_at = time.monotonic()
                    self._say.warning("redis.waiting", reason=error.message)
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.5, 1.0)):  # noqa: S311  (a fleet must not march)
                    await stop.wait()
        return False

    def _upstreams(self, session: aiohttp.ClientSession) -> dict[str, Upstream | OwnUpstream]:
        return {options.name: self._upstream(options, session) for options in self.settings.upstreams}

    def _upstream(self, options: UpstreamOptions, session: aiohttp.ClientSession) -> Upstream | OwnUpstream:
        kind = find(options.provider)
        if kind.durable_seq:
            return Upstream(options, kind, session, self.settings.ingest)
        return OwnUpstream(options, kind, session, self.settings.ingest)

    async def _serve_admin(self, stack: AsyncExitStack, admit: Admit, health: Health) -> None:
        server = self.settings.server
        admin = door.build(routes.admin(health), admit, body_bytes=self.settings.limits.body_bytes)
        self.admin_address = await self._listen(stack, admin, "server.admin", server.admin_host, server.admin_port)

    def _discovery(self, upstreams: dict[str, Upstream | OwnUpstream]) -> Discovery:
        lease_s, live_s = self.settings.ingest.lease_s, self.settings.retention.live_s
        findings = {
            options.name: Findings(self._store, self._keys, options.name, lease_s=lease_s, live_s=live_s)
            for options in self.settings.upstreams
            if options.discover
        }
        listing = {name: upstream for name, upstream in upstreams.items() if isinstance(upstream, Upstream)}
        return Discovery(listing, findings, self._log, self.settings.ingest)

    async def _serve(
        self,
        stack: AsyncExitStack,
        spawn: Spawn,
        admit: Admit,
        upstreams: dict[str, Upstream | OwnUpstream],
        hub: Hub,
        ingestor: Ingestor,
    ) -> None:
        server = self.settings.server
        directory = Directory(upstreams, self._log, hub)
        runs = Runs(directory, self._log, ingestor, self._tokens, self._once)
        events = Events(directory, hub, self._pulse, self.settings.delivery, public=self.settings.auth.mode == "none")
        desk = Desk(directory, hub, self._log, self.settings.limits.runs_per_connection)
        many = Many(desk, admit, self._pulse, self.settings.delivery)
        mounts = Mounts(self.settings.faces.root)
        at_root = mounts.root == "native"
        ground = Ground(directory, hub, self._log, ingestor, self._pulse, self.settings.delivery, self._resends)
        all_routes = [
            *routes.public(runs, events, many, Dashboard(), Contracts(at_root=at_root), at_root=at_root),
            *mounted(mounts, ground, runs, keys_are_ours=self.settings.auth.mode != "none"),
        ]
        public = door.build(all_routes, admit, body_bytes=self.settings.limits.body_bytes, refuse=mounts.refusal)
        self.address = await self._listen(stack, public, "server", server.host, server.port, spawn)
        settle()

    async def _listen(
        self,
        stack: AsyncExitStack,
        app: web.Application,
        what: str,
        host: str,
        port: int,
        spawn: Spawn | None = None,
    ) -> str:
        bound = self._listeners if what == "server" else None
        runner = listener.runner(app, self.settings.limits, close_s=self.settings.drain.close_s, spawn=spawn)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        sites: list[web.BaseSite] = [web.SockSite(runner, sock, backlog=1024) for sock in bound or ()]
        try:
            for site in sites or [web.TCPSite(runner, host, port, backlog=1024)]:
                await site.start()
                if what == "server":
                    self._public.append(site)
                    bound_backlog(listener.sockets_of(site), self.settings.delivery.backlog_bytes)
        except OSError as error:
            raise listener.refused(what, host, port, error) from error
        return listener.shown(runner.addresses[0])

    async def _drain(self, discovery: Discovery, ingestor: Ingestor, window_s: float) -> None:
        self._say.info("relay.draining", streams=self._pulse.count, window_s=window_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.ingest.lease_s):  # by then they have ended by themselves
                await discovery.release()
                if not self.alone:
                    await ingestor.release()
        # Meanwhile the listener stays open: balancers need a moment to see that we are not ready, and a stream refused
        # with 503 would end a plain EventSource for good.
        await self._pulse.drain(window_s)
        for site in self._public:
            await site.stop()
        self._pulse.close()
        await ingestor.release()  # where nobody else can take them over, our viewers get their events until now

    async def _watch_server(self, stop: asyncio.Event) -> None:
        while self._alive():  # noqa: ASYNC110  (a child process has no event to wait for)
            await asyncio.sleep(1.0)
        if stop.is_set():
            return  # a whole group of processes was told to stop: the server as well as we
        raise StartupError("the embedded Redis server has died; see server.log in embedded.data_dir")


def announce(settings: Settings, redis_url: str, **where: str | int) -> None:
    """Say once that we serve, where, and what whoever runs us should know."""
    say = telemetry.logger()
    say.info(
        "relay.ready",
        version=__version__,
        **where,
        redis=shown(redis_url),
        upstreams=[upstream.name for upstream in settings.upstreams],
        auth=settings.auth.mode,
    )
    if settings.auth.mode == "api_keys":
        say.warning("auth.coarse", hint="every key sees every run of every upstream")


def _session() -> aiohttp.ClientSession:
    """The client for all upstreams: no cookies, no proxy of the environment, as many connections as there are runs."""
    return aiohttp.ClientSession(
        connector=Connector(limit=0, ttl_dns_cache=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"relay/{__version__}"},
        max_line_size=65536,
        max_field_size=65536,
    )


def kept_secret(path: Path) -> str:
    """The secret in a file, made on first use and readable by us alone."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text("utf-8").strip()
    secret = secrets.token_urlsafe(48)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secret)
    return secret
