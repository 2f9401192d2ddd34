"""Which runs this process pumps: those somebody wants. One pump per run, however many viewers ask.

A want is a count of watchers plus a time until which the run is wanted without any. The ingestor keeps the leases of its
pumps alive (one round trip for all), stops a pump whose lease is lost and starts it again (it claims, and resumes from
the log's end), and gives a run up once nobody has wanted it for a while. One bad run never touches its siblings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from relay import telemetry
from relay.core.errors import LeaseLost, LogMoved, RelayError, StoreUnavailable
from relay.core.ids import RunKey
from relay.ingest.committer import Committer
from relay.ingest.options import IngestOptions
from relay.ingest.pump import Pump
from relay.ingest.upstream import Upstream
from relay.store.log import Log

_PROBE_S = 10.0


class _Wanted:
    """A run somebody wants: how many watch it, until when it is wanted without them, and its pump's task."""

    __slots__ = ("pump", "task", "until", "watchers")

    def __init__(self) -> None:
        self.watchers = 0
        self.until = 0.0
        self.pump: Pump | None = None
        self.task: asyncio.Task[None] | None = None


class Ingestor:
    def __init__(
        self, log: Log, upstreams: Mapping[str, Upstream], options: IngestOptions, *, event_bytes: int
    ) -> None:
        self._log = log
        self._upstreams = upstreams
        self._options = options
        self._event_bytes = event_bytes
        self._committer = Committer(log)
        self._wanted: dict[RunKey, _Wanted] = {}
        self._room = asyncio.Semaphore(options.runs)
        self._tasks: asyncio.TaskGroup | None = None
        self._closing = False
        self._probed: dict[RunKey, float] = {}

    # --- what others ask for ----------------------------------------------------------------------------------------
    def watch(self, key: RunKey) -> None:
        """Somebody watches this run: pump it until `unwatch`."""
        self._want(key).watchers += 1

    def unwatch(self, key: RunKey) -> None:
        wanted = self._wanted.get(key)
        if wanted is not None:
            wanted.watchers -= 1
            wanted.until = max(wanted.until, time.monotonic() + self._options.unwanted_s)

    def want(self, key: RunKey) -> None:
        """Pump this run for a while even if nobody watches yet (it was just created, or its log was lost)."""
        self._want(key)

    async def probe(self, key: RunKey) -> None:
        """Ask the upstream for what lies behind the end of a sealed log; at most once per run and ten seconds."""
        now = time.monotonic()
        self._probed = {old: at for old, at in self._probed.items() if now - at < _PROBE_S}
        wanted = self._wanted.get(key)
        if (
            key in self._probed
            or key.upstream not in self._upstreams
            or (wanted is not None and wanted.task is not None)
        ):
            return
        self._probed[key] = now
        pump = self._make(key)
        try:
            await pump.probe()
        except (LogMoved, LeaseLost):
            pass  # somebody else is at it
        finally:
            if pump.lease is not None:
                with suppress(RelayError):
                    await self._log.release([pump.lease])

    def _make(self, key: RunKey) -> Pump:
        return Pump(key, self._upstreams[key.upstream], self._log, self._committer, self._options, self._event_bytes)

    def _want(self, key: RunKey) -> _Wanted:
        wanted = self._wanted.get(key)
        if wanted is None:
            wanted = self._wanted[key] = _Wanted()
        wanted.until = max(wanted.until, time.monotonic() + self._options.unwanted_s)
        if wanted.task is None and self._tasks is not None and not self._closing and key.upstream in self._upstreams:
            wanted.task = self._tasks.create_task(self._pump(key, wanted), name=f"pump {key}")
        return wanted

    def describe(self) -> list[dict[str, Any]]:
        """Every run this process owns or tries to, for people."""
        return [
            {
                "run": str(key),
                "owned": wanted.pump is not None and wanted.pump.lease is not None,
                "last_seq": wanted.pump.durable_seq if wanted.pump is not None else 0,
                "watchers": wanted.watchers,
            }
            for key, wanted in self._wanted.items()
        ]

    # --- the life of it ---------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """For ever; cancelled at shutdown, after `release`."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._committer.run(), name="committer")
            for key in list(self._wanted):
                self._want(key)
            while True:
                await asyncio.sleep(self._options.lease_s / 3)
                await self._renew()
                self._give_up_unwanted()

    async def release(self) -> None:
        """Stop every pump and give its lease back, so that the next owner need not wait. Idempotent."""
        self._closing = True
        tasks = [wanted.task for wanted in self._wanted.values() if wanted.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, key: RunKey, wanted: _Wanted) -> None:
        gauge = telemetry.RUNS_PUMPED.labels(key.upstream)
        sealed = False
        async with self._room:
            gauge.inc()
            try:
                await self._supervise(key, wanted)
                sealed = True
            finally:
                gauge.dec()
                await self._release(wanted)
                wanted.task = wanted.pump = None
                if not wanted.watchers:
                    self._wanted.pop(key, None)
                elif not sealed:  # somebody came while it was being given up
                    self._want(key)

    async def _supervise(self, key: RunKey, wanted: _Wanted) -> None:
        while True:
            wanted.pump = self._make(key)
            try:
                await wanted.pump.run()
                return
            except Exception:  # the supervisor of runs: whatever it was, it must not end here unseen, or the siblings
                telemetry.PUMP_CRASHES.inc()
                telemetry.logger(run_id=key.run_id, upstream=key.upstream).exception("pump.crashed")
                await asyncio.sleep(self._options.backoff_cap_s / 10)

    async def _release(self, wanted: _Wanted) -> None:
        lease = wanted.pump.lease if wanted.pump is not None else None
        if lease is not None:
            with suppress(RelayError):
                await self._log.release([lease])

    async def _renew(self) -> None:
        held = {
            key: wanted.pump for key, wanted in self._wanted.items() if wanted.pump is not None and wanted.pump.lease
        }
        leases = [(pump.lease, pump.durable_seq) for pump in held.values() if pump.lease is not None]
        if not leases:
            return
        try:
            answers = await self._log.renew(leases)
        except StoreUnavailable:
            return
        for key, refusal in answers.items():
            if refusal is not None and not isinstance(refusal, StoreUnavailable):
                self._restart(key, held[key], refusal)

    def _restart(self, key: RunKey, pump: Pump, refusal: Exception) -> None:
        """The run's state in Redis is not what its pump thinks: interrupt it; it claims anew and resumes."""
        wanted = self._wanted.get(key)
        if wanted is not None and wanted.pump is pump and pump.lease is not None:
            code = refusal.code if isinstance(refusal, RelayError) else type(refusal).__name__
            telemetry.APPEND_REFUSED.labels(code).inc()
            pump.interrupt()

    def _give_up_unwanted(self) -> None:
        now = time.monotonic()
        for key, wanted in list(self._wanted.items()):
            if wanted.watchers <= 0 and wanted.until < now:
                if wanted.task is None:
                    del self._wanted[key]
                elif not wanted.task.cancelling():  # a second cancel would disturb the release
                    wanted.task.cancel()
