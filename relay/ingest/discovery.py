"""Every active run of an upstream is pumped, watched or not: one process of the fleet looks for them, all pump them.

Which process looks is decided by a lease in Redis; when its holder dies, drains or freezes another one goes on from what
it had noted. What is found is only *wanted* here, at a bounded rate: the orphan scan of every process claims it, as it
does everything that is wanted, so the load spreads over the fleet. A want is said again until the run is sealed.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from relay import telemetry
from relay.core.backoff import Backoff
from relay.core.errors import LeaseLost, RelayError, StoreUnavailable
from relay.core.ids import RunKey
from relay.ingest.found import Found
from relay.ingest.options import IngestOptions
from relay.ingest.search import Search
from relay.ingest.source import reason
from relay.ingest.upstream import Upstream
from relay.store.findings import Findings
from relay.store.log import Log

_TICK_S: Final = 0.25
"""How often wants are said, at the least. Every process scans for them once a second and the first one claims what it
finds: in small portions they come to all of the fleet."""
_LONGEST_S: Final = 60.0
"""Last ceiling of the back-off between looks that fail."""
_RETRY_AFTER_S: Final = 300.0
"""An upstream that asks for patience between looks gets it, up to this."""


class Discovery:
    """All upstreams with `discover`."""

    def __init__(
        self, upstreams: Mapping[str, Upstream], findings: Mapping[str, Findings], log: Log, options: IngestOptions
    ) -> None:
        self._findings = findings
        self._lookouts = [Lookout(upstreams[name], its, log, options) for name, its in findings.items()]
        self._tasks: list[asyncio.Task[None]] = []

    async def forget(self) -> None:
        """Whoever looked is dead: for a process that knows it is the only one, at its start."""
        for findings in self._findings.values():
            await findings.forget()

    async def run(self) -> None:
        """Until `release`."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = [tasks.create_task(one.run(), name=f"discovery {one.name}") for one in self._lookouts]

    async def release(self) -> None:
        """Stop looking and let another process do so at once. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Lookout:
    """One upstream: waits for its turn to look, and looks for as long as the lease can be kept."""

    def __init__(self, upstream: Upstream, findings: Findings, log: Log, options: IngestOptions) -> None:
        self.name = upstream.name
        self._upstream = upstream
        self._findings = findings
        self._log = log
        self._options = options
        self._tick_s = min(_TICK_S, options.lease_s / 3, options.unwanted_s / 3)
        self._outcome = "ok"
        self._say = telemetry.logger(upstream=upstream.name)

    async def run(self) -> None:
        """For ever: take the lease whenever it is free."""
        while True:
            try:
                await self._try_to_look()
            except StoreUnavailable:
                pass
            except Exception:  # the supervisor of looks: whatever it was, viewers and other upstreams must not feel it
                telemetry.LOOKS.labels(self.name, "crashed").inc()
                self._say.exception("discovery.crashed")
                await asyncio.sleep(self._options.discover_s)
            await asyncio.sleep(self._tick_s * random.uniform(0.9, 1.0))  # noqa: S311  (so that a fleet does not march)

    async def _try_to_look(self) -> None:
        token = secrets.token_urlsafe(12)
        until = self._lease_end()
        if not await self._findings.look(token):
            return
        self._say.info("discovery.looking")
        try:
            await self._hold(token, until)
        except* (TimeoutError, LeaseLost):
            self._say.info("discovery.lost", hint="the lease could not be kept; whoever takes it looks")
        except* StoreUnavailable:
            pass  # it went away between taking the lease and reading what was noted
        finally:
            for gauge in (telemetry.LOOKING, telemetry.RUNS_ACTIVE, telemetry.RUNS_WAITING):
                gauge.labels(self.name).set(0)
            with suppress(RelayError, TimeoutError):
                async with asyncio.timeout(self._options.lease_s):  # by then it is over anyway
                    await self._findings.leave(token)

    def _lease_end(self) -> float:
        """Until when a lease asked for now is ours for certain; by our clock, so that a process that was frozen knows."""
        return asyncio.get_running_loop().time() + self._options.lease_s

    async def _hold(self, token: str, until: float) -> None:
        """Look, and say wants, until the lease is lost. Raises TimeoutError or LeaseLost, alone or in a group."""
        async with asyncio.timeout_at(until) as scope, asyncio.TaskGroup() as tasks:
            telemetry.LOOKING.labels(self.name).set(1)
            found = Found(again_s=self._options.unwanted_s / 3)
            memory = await self._findings.recall()
            search = Search(self._upstream, self._findings, token, memory, found, lambda: _holding(scope))
            await search.resume(memory)
            tasks.create_task(self._look_for_ever(search, found), name=f"looks {self.name}")
            await self._keep_for_ever(token, scope, found)

    # --- looking ----------------------------------------------------------------------------------------------------
    async def _look_for_ever(self, search: Search, found: Found) -> None:
        first = backoff = Backoff(self._options.discover_s, max(_LONGEST_S, self._options.discover_s))
        while True:
            pause_s = self._options.discover_s
            try:
                self._tell("odd" if await search.look() else "ok")
                backoff = first
            except LeaseLost:
                raise
            except RelayError as error:
                pause_s = max(pause_s + backoff.pause_s(random.random()), _asked_for(error))  # noqa: S311  (jitter)
                backoff = backoff.failed()
                found.unlisted()
                self._tell("store" if isinstance(error, StoreUnavailable) else reason(error), code=error.code)
            await asyncio.sleep(pause_s)

    def _tell(self, outcome: str, **more: str) -> None:
        """One line per change, not per look."""
        telemetry.LOOKS.labels(self.name, outcome).inc()
        if outcome == self._outcome:
            return
        self._outcome = outcome
        if outcome == "ok":
            self._say.info("discovery.recovered")
        else:
            self._say.warning("discovery.trouble", outcome=outcome, **more)

    # --- the lease, and the wants -------------------------------------------------------------------------------------
    async def _keep_for_ever(self, token: str, scope: asyncio.Timeout, found: Found) -> None:
        """Raises LeaseLost. While Redis is away nothing is done; if it is for too long, the scope ends."""
        per_tick = self._options.discover_per_s * self._tick_s
        allowed = 0.0
        while True:
            allowed = min(allowed + per_tick, max(1.0, per_tick))
            until = self._lease_end()
            with suppress(StoreUnavailable):
                if not await self._findings.look(token):
                    raise LeaseLost(f"another process looks for runs of {self.name} now")
                scope.reschedule(until)
                await self._say_again(token, found)
                allowed -= await self._want_new(found, int(allowed))
            telemetry.RUNS_WAITING.labels(self.name).set(found.waiting)
            await asyncio.sleep(self._tick_s)

    async def _say_again(self, token: str, found: Found) -> None:
        """Keep up the wants of all that is not sealed, and forget the rest."""
        now = time.monotonic()
        due = found.due(now)
        standings = await self._findings.standing(due) if due else []
        known = [(run_id, standing) for run_id, standing in zip(due, standings, strict=True) if standing is not None]
        over = {
            run_id
            for run_id, standing in known
            if standing.sealed or (standing.claimed and found.given_up(run_id, now))
        }
        if over:
            await self._findings.note(token, closed=over)
            found.close(over)
        await self._want(found, [run_id for run_id, _ in known if run_id not in over], now)

    async def _want_new(self, found: Found, most: int) -> int:
        """Want the next runs that wait, up to `most`; how many it were."""
        new = found.turn(most)
        await self._want(found, new, time.monotonic())
        telemetry.RUNS_DISCOVERED.labels(self.name).inc(len(new))
        return len(new)

    async def _want(self, found: Found, run_ids: Sequence[str], now: float) -> None:
        if run_ids:
            await self._log.want([RunKey(self.name, run_id) for run_id in run_ids])
            found.said(run_ids, now)


def _holding(scope: asyncio.Timeout) -> bool:
    end = scope.when()
    return end is not None and asyncio.get_running_loop().time() < end


def _asked_for(error: RelayError) -> float:
    return min(error.retry_after_s or 0.0, _RETRY_AFTER_S)
