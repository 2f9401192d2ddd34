"""The parent of several workers: starts them in order, replaces whoever dies, and stops them all at once.

Start: port reserved -> admin listener -> worker 0 alone -> once it serves, all others, side by side. Whatever keeps relay
from starting at all is found by worker 0, told in its words, once, and ends us too. Later nothing but the embedded server's
death does: a worker that dies is replaced, for ever.
Stop: not ready -> every worker told to drain, together -> they end, or are ended -> admin listener closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from relay import telemetry
from relay.app import announce
from relay.core.errors import RelayError, StartupError
from relay.core.options import Secret
from relay.process import first, run_loop, when_told
from relay.settings import Settings, masked
from relay.web import door, listener, routes
from relay.web.admit import Admit
from relay.web.tokens import Tokens
from relay.workers.channel import Boot
from relay.workers.child import Child
from relay.workers.overview import Overview
from relay.workers.patience import Patience
from relay.workers.port import Port

_SPARE_S: Final = 8.0
"""What a worker may take for its end beside `drain.window_s` and `drain.close_s`: leases to give back, connections to
close. Less than the 10 s more that the chart's `terminationGracePeriodSeconds` gives us."""


@dataclass(frozen=True, slots=True)
class Common:
    """What all workers have in common, and their replacements too."""

    settings: Settings
    redis_url: Secret
    token_secret: Secret
    alone: bool
    """Nobody else can use this Redis: leases found at start are those of a predecessor that died."""
    alive: Callable[[], bool]
    """Whether the embedded server is; if there is none: always."""


def serve(common: Common) -> int:
    """Until told to stop; the exit status. Call it in the main thread. Raises RelayError: it could not start."""
    return run_loop(Parent(common).run())


class Parent:
    def __init__(self, common: Common) -> None:
        self._common = common
        self._settings = common.settings
        self._children: dict[int, Child] = {}
        """The living, by number; gone from here once they are reaped."""
        self._pids: dict[int, int] = {}
        """Of those that served last, by number."""
        self._stop = asyncio.Event()
        self._served = asyncio.Event()
        """A worker has come to serve: relay as such has started."""
        self._hurried = False
        """Told a second time: now."""
        self._overview = Overview(self._up, self._stop.is_set, lambda: masked(common.settings))
        self._admin_address = ""
        self._port: Port
        self._attending: asyncio.TaskGroup
        self._say = telemetry.logger()

    async def run(self) -> int:
        when_told(self._stop, self._hurry)
        telemetry.WORKERS_WANTED.set(self._settings.server.workers)
        try:
            await self._run()
        except* RelayError as errors:
            raise first(errors) from None
        return 1 if self._hurried else 0

    async def _run(self) -> None:
        server = self._settings.server
        async with AsyncExitStack() as stack:
            self._port = stack.enter_context(Port(server.host, server.port))
            await self._listen(stack)
            self._attending = await stack.enter_async_context(asyncio.TaskGroup())
            try:
                await self._keep_all()
            finally:
                await self._end()

    async def _listen(self, stack: AsyncExitStack) -> None:
        server, limits = self._settings.server, self._settings.limits
        admit = Admit(server, self._settings.auth, Tokens(self._common.token_secret.value))
        admin = door.build(routes.admin(self._overview), admit, body_bytes=limits.body_bytes)
        runner = listener.runner(admin, limits, close_s=self._settings.drain.close_s)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, server.admin_host, server.admin_port, backlog=1024).start()
        except OSError as error:
            raise listener.refused("server.admin", server.admin_host, server.admin_port, error) from error
        self._admin_address = listener.shown(runner.addresses[0])

    async def _keep_all(self) -> None:
        """Until told to stop, or something raises that no replacement could mend."""
        async with asyncio.TaskGroup() as tasks:
            keepers = [
                tasks.create_task(self._keep(number), name=f"worker {number}")
                for number in range(self._settings.server.workers)
            ]
            keepers.append(tasks.create_task(self._watch_server(), name="embedded server watch"))
            await self._stop.wait()
            for keeper in keepers:
                keeper.cancel()

    async def _watch_server(self) -> None:
        while self._common.alive():  # noqa: ASYNC110  (a child process has no event to wait for)
            await asyncio.sleep(1.0)
        raise StartupError("the embedded Redis server has died; see server.log in embedded.data_dir")

    # --- one worker -------------------------------------------------------------------------------------------------
    async def _keep(self, number: int) -> None:
        """For ever: a worker, its death, the next one. Raises what the first worker of all could not start for; that it
        was killed while it waited for Redis is no such thing."""
        if number:
            await self._served.wait()
        patience = Patience()
        while not self._stop.is_set():
            born = time.monotonic()
            failure: RelayError | None
            try:
                failure = await self._live(number)
            except OSError as error:  # no memory, no descriptors, no processes to be had
                failure = StartupError(f"worker {number} cannot be started: {error}")
                self._say.error("worker.not_started", worker=number, error=str(error))
            if self._stop.is_set():
                return
            if failure is not None and not self._served.is_set():
                raise failure
            patience = patience.died(time.monotonic() - born)
            await asyncio.sleep(patience.pause_s)

    async def _live(self, number: int) -> RelayError | None:
        """One worker, from its start to its end; what would be wrong with the next one as well, if that is so."""
        child = self._spawn(number)
        await child.ended.wait()
        failure = child.failure()
        if (self._served.is_set() or failure is None) and not self._stop.is_set():
            self._say.warning("worker.died", worker=number, pid=child.pid, **child.fate)
            telemetry.WORKERS_RESTARTED.labels(child.reason).inc()
        return failure

    def _spawn(self, number: int) -> Child:
        common = self._common
        boot = Boot(
            number=number,
            settings=common.settings,
            redis_url=common.redis_url,
            token_secret=common.token_secret,
            alone=common.alone and not self._served.is_set(),
            listeners=(),
        )
        child = Child.spawn(boot, self._port.sockets())
        self._children[number] = child
        self._attending.create_task(self._attend(child), name=f"worker {number}'s words")
        return child

    async def _attend(self, child: Child) -> None:
        await child.attend(self._started)
        if self._children.get(child.number) is child:
            del self._children[child.number]
        self._count()

    def _started(self, child: Child) -> None:
        self._count()
        predecessor = self._pids.get(child.number)
        self._pids[child.number] = child.pid
        if predecessor is None:
            self._say.info("worker.started", worker=child.number, pid=child.pid)
        else:
            self._say.info("worker.replaced", worker=child.number, pid=child.pid, predecessor=predecessor)
        if not self._served.is_set():
            self._served.set()
            where = {"address": self._port.address, "admin": self._admin_address}
            announce(self._settings, self._common.redis_url.value, **where, workers=self._settings.server.workers)

    def _up(self) -> list[Child]:
        return [child for _, child in sorted(self._children.items()) if child.up]

    def _count(self) -> None:
        telemetry.WORKERS_RUNNING.set(sum(child.serving for child in self._children.values()))

    # --- all of them -------------------------------------------------------------------------------------------------
    async def _end(self) -> None:
        """Politely, all at once; then by force. Returns when none is left."""
        self._stop.set()  # what ended us may have been an error
        living = list(self._children.values())
        if self._served.is_set():
            self._say.info("relay.stopping", workers=len(living))
        for child in living:
            child.stop(alone=self._common.alone)
        drain = self._settings.drain
        if not await _ended(living, drain.window_s + drain.close_s + _SPARE_S):
            for child in living:
                if not child.ended.is_set():
                    self._say.warning("worker.overdue", worker=child.number, pid=child.pid)
                    child.kill()
        await _ended(living, None)

    def _hurry(self) -> None:
        self._hurried = True
        for child in self._children.values():
            child.kill()


async def _ended(children: list[Child], within_s: float | None) -> bool:
    """Wait until all of them are gone; whether that came to pass in time."""
    try:
        async with asyncio.timeout(within_s):
            for child in children:
                await child.ended.wait()
    except TimeoutError:
        return False
    return True
