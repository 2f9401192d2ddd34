"""Which runs this process pumps. One pump per run in the whole fleet, however many viewers ask.

Whoever watches a run wants it: that is noted in Redis, for a minute at a time, and this process tries to claim the run
first. What nobody owns (its owner died, or gave it up) is found by any process: each scans the wants once a second, and
at the moment the next lease may end. Leases are kept by one round trip for all; a pump whose lease is lost claims anew and
resumes from the log's end; what nobody wants any more is given up. One bad run never touches its siblings.

Both end by Redis' clock, which may be set. When it has jumped, owners go first: they renew what seems to have ended, all
watchers say their wants again at once, and nobody takes a run for an orphan before a lease time is over.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from relay import telemetry
from relay.core.errors import LeaseLost, LogMoved, Overloaded, RelayError, StoreUnavailable, Unwanted
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.ingest.backfill import Backfills
from relay.ingest.clocks import Clocks
from relay.ingest.committer import Committer, Durable
from relay.ingest.folds import Folds
from relay.ingest.intake import Intake
from relay.ingest.making import Making
from relay.ingest.options import IngestOptions
from relay.ingest.own_pump import OwnPump
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.pump import Pump
from relay.ingest.tenure import Tenure
from relay.ingest.upstream import Upstream
from relay.store.log import Lease, Log, Scan, Seen

_PROBE_S: Final = 10.0
_SCAN_S: Final = 1.0
_SHARE_S: Final = 0.02
_AWAY_S: Final = 0.1
"""How soon it is looked again whether Redis is back."""
_CLAIMS: Final = 64
"""Most orphans of one partition that one scan claims: a fleet that lost an owner shares what it left behind."""


class _Pumped:
    """A run this process pumps, or tries to claim."""

    __slots__ = ("pump", "task", "unwanted_since")

    def __init__(self, pump: Tenure) -> None:
        self.pump = pump
        self.task: asyncio.Task[None] | None = None
        self.unwanted_since = math.inf
        """Since when nobody is known to want it; inf: somebody does."""


class Ingestor:
    def __init__(
        self, log: Log, upstreams: Mapping[str, Upstream | OwnUpstream], options: IngestOptions, *, event_bytes: int
    ) -> None:
        self._log = log
        self._upstreams = upstreams
        self._options = options
        self._event_bytes = event_bytes
        self._committer = Committer(log)
        self._watchers: Counter[RunKey] = Counter()
        self._wanted_at: dict[RunKey, float] = {}
        """When we last said that we want a watched run."""
        self._pumped: dict[RunKey, _Pumped] = {}
        self._kept_free = 0
        """Places for runs that are being made, whose one stream is read here or nowhere."""
        self._backfills = Backfills(log, upstreams, options, self._start_filling, event_bytes=event_bytes)
        self._folds = Folds(log, self._owned)
        self._committer.durable = self._folds.heard
        self._filling: set[asyncio.Task[None]] = set()
        self._probed: dict[RunKey, float] = {}
        self._clocks = Clocks()
        self.shown: Callable[[RunKey], Seen] = lambda _: Seen()
        """What readers here have seen of a run."""
        self._lacking: set[RunKey] = set()
        """Runs whose logs lack what was shown here: the owners of own-seq ones must know."""
        self._tasks: asyncio.TaskGroup | None = None
        self._closing = False
        self._away = False
        self._tags = list(log.keys.tags())
        self._heard: set[str] = set()
        """Partitions that answered the last scan."""
        self._lost: set[str] = set()
        """Partitions that a pump found away since."""
        self._held: dict[str, float] = {}
        """Partitions that came back, and until when their owners go first."""
        self._returned_until = 0.0
        """Until then nothing is claimed that was not ours, whoever wants it: Redis came back, and its owners go first."""
        self._hold_until = 0.0
        """The same for orphans: the clock of Redis was set."""

    def tells(self, durable: Durable) -> None:
        """Who may have readers here of what is written here: it is told what is durable, and need not read it back."""
        heard = self._folds.heard

        def told(key: RunKey, prev: int, events: Sequence[Event]) -> None:
            durable(key, prev, events)
            heard(key, prev, events)

        self._committer.durable = told

    # --- what others ask for ----------------------------------------------------------------------------------------
    def watch(self, key: RunKey) -> None:
        """Somebody watches this run: it is wanted until `unwatch` and a minute longer."""
        self._watchers[key] += 1
        self._start(key)

    def unwatch(self, key: RunKey) -> None:
        self._watchers[key] -= 1
        if self._watchers[key] <= 0:
            del self._watchers[key]
            self._wanted_at.pop(key, None)

    def want(self, key: RunKey) -> None:
        """Somebody should pump this run now."""
        pumped = self._pumped.get(key)
        if pumped is not None:
            pumped.pump.nudge()
        else:
            self._start(key)

    def orphaned(self, key: RunKey) -> None:
        """A run watched here has lost its owner, or its log. All who watch it hear of it in the same moment; that each
        tries after a moment of its own shares what an owner leaves behind between them."""
        if key.upstream in self._upstreams:
            self._lacking.add(key)  # whoever claims next may know nothing of it, and it may not be us
        asyncio.get_running_loop().call_later(random.uniform(0, _SHARE_S), self.want, key)  # noqa: S311  (no secret)

    async def create(self, upstream: OwnUpstream, thread_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make a run and pump it, to the end even if the caller is gone. Raises the upstream's refusal."""
        if self._tasks is None or self._closing:
            raise Overloaded("this relay is going away", code="relay.draining", retry_after_s=2.0)
        making = Making(upstream, thread_id, body, event_bytes=self._event_bytes)
        if making.intake is not None:
            if self._full():  # nobody would read the one stream there is
                raise Overloaded("this relay pumps as many runs as it can", retry_after_s=2.0)
            read = self._supervise(making.intake.read, again=False, upstream=upstream.name)
            making.intake.task = self._tasks.create_task(read, name=f"intake {upstream.name}")
            self._kept_free += 1
        made = self._supervise(lambda: self._make(making), again=False, upstream=upstream.name)
        self._tasks.create_task(made, name=f"making {upstream.name}")
        return await making.made()

    async def _make(self, making: Making) -> None:
        keeps = making.intake is not None

        def free() -> None:
            nonlocal keeps
            self._kept_free, keeps = self._kept_free - keeps, False

        async def begin(made: dict[str, Any]) -> None:
            key = RunKey(making.upstream.name, str(made["run_id"]))
            making.upstream.note_thread(key.run_id, making.thread_id)
            free()
            self._start(key, intake=making.intake)
            with suppress(StoreUnavailable):  # it exists: an error now would have it made twice; its pump notes it too
                await self._log.note_thread(key, making.thread_id)
                if key not in self._pumped:  # no room here: another process pumps it
                    await self._log.want([key])

        try:
            await making.run(begin)
        finally:
            free()

    def _full(self) -> bool:
        return len(self._pumped) + self._kept_free >= self._options.runs

    async def decided(self, key: RunKey) -> None:
        """Returns once it is known who owns a run that is wanted here: this process or another one."""
        pumped = self._pumped.get(key)
        if pumped is not None:
            await pumped.pump.decided.wait()

    async def probe(self, key: RunKey) -> None:
        """Ask the upstream for what lies behind the end of a sealed log; at most once per run and ten seconds."""
        now = time.monotonic()
        self._probed = {old: at for old, at in self._probed.items() if now - at < _PROBE_S}
        if key in self._probed or key in self._pumped or key.upstream not in self._upstreams:
            return
        self._probed[key] = now
        pump = self._pump_of(key)
        try:
            await pump.probe()
        except (LogMoved, LeaseLost):
            pass  # somebody else is at it
        finally:
            await self._release([pump])

    def fetch(self, key: RunKey, after_seq: int) -> None:
        """Somebody reads behind `after_seq`, where the log was trimmed: have that fetched again."""
        self._backfills.ask(key, after_seq)

    def describe(self) -> list[dict[str, Any]]:
        """Every run this process owns or tries to, for people."""
        return [
            {
                "run": str(key),
                "owned": pumped.pump.lease is not None,
                "last_seq": pumped.pump.durable_seq,
                "watchers": self._watchers[key],
            }
            for key, pumped in self._pumped.items()
        ]

    # --- the life of it ---------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """For ever; cancelled at shutdown, after `release`."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._committer.run(), name="committer")
            tasks.create_task(self._scan_for_ever(), name="orphan scan")
            tasks.create_task(self._supervise(self._folds.run), name="folds")
            for key in self._watchers:
                self._start(key)
            while True:
                await asyncio.sleep(self._options.lease_s / 3)
                await self._renew()
                await self._say_wants()
                await self._say_seen()

    async def release(self) -> None:
        """Stop every pump and give all leases back at once; those who follow the runs are told. Idempotent."""
        self._closing = True
        pumped = list(self._pumped.values())
        tasks = [*self._filling, *(one.task for one in pumped if one.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._release([one.pump for one in pumped])

    # --- pumps ------------------------------------------------------------------------------------------------------
    def _start(self, key: RunKey, *, orphan: bool = False, intake: Intake | None = None) -> None:
        """Try to claim a run, unless we are at it, are full, or must let its owner go first."""
        if (
            key in self._pumped
            or self._full()
            or self._closing
            or self._tasks is None
            or key.upstream not in self._upstreams
        ):
            self._hand_over(key, intake)
            return
        if orphan and (time.monotonic() < self._hold_until or self._held_s(key) > 0):
            return
        pumped = self._pumped[key] = _Pumped(self._pump_of(key, intake=intake))
        pumped.task = self._tasks.create_task(self._pump(key, pumped), name=f"pump {key}")

    def _hand_over(self, key: RunKey, intake: Intake | None) -> None:
        """The only stream there will ever be of a run that is pumped here already, or will not be."""
        pumped = self._pumped.get(key)
        pump = pumped.pump if pumped is not None else None
        if intake is not None and not (isinstance(pump, OwnPump) and pump.takes(intake)):
            intake.drop()

    def _held_s(self, key: RunKey) -> float:
        """For how long a run that was not ours is left to its owner, who cannot have renewed while Redis was away."""
        tag, now = self._tags[self._log.keys.partition(key)], time.monotonic()
        if self._away or tag in self._lost:
            return _AWAY_S
        return max(self._returned_until, self._held.get(tag, 0.0)) - now

    def _pump_of(self, key: RunKey, *, intake: Intake | None = None) -> Tenure:
        made = self._made(key, intake)
        tag = self._tags[self._log.keys.partition(key)]
        made.yields(lambda: self._held_s(key), lambda: self._lost.add(tag))
        return made

    def _made(self, key: RunKey, intake: Intake | None) -> Tenure:
        upstream, log, options = self._upstreams[key.upstream], self._log, self._options
        if isinstance(upstream, OwnUpstream):
            return OwnPump(
                key, upstream, log, self._committer, options, self._event_bytes, intake=intake, shown=self.shown
            )  # fmt: skip
        return Pump(key, upstream, log, self._committer, options, self._event_bytes)

    async def _pump(self, key: RunKey, pumped: _Pumped) -> None:
        gauge = telemetry.RUNS_PUMPED.labels(key.upstream)
        gauge.inc()
        try:
            await self._supervise(pumped.pump.run, run_id=key.run_id, upstream=key.upstream)
        finally:
            gauge.dec()
            pumped.pump.close()
            if not self._closing:  # else all leases are given back together
                await self._release([pumped.pump])
                del self._pumped[key]

    def _start_filling(self, key: RunKey, life: Callable[[], Awaitable[object]]) -> bool:
        if self._closing or self._tasks is None:
            return False
        task = self._tasks.create_task(
            self._supervise(life, run_id=key.run_id, upstream=key.upstream), name=f"head {key}"
        )
        self._filling.add(task)
        task.add_done_callback(self._filling.discard)
        return True

    async def _supervise(self, life: Callable[[], Awaitable[object]], *, again: bool = True, **whose: str) -> None:
        while True:
            try:
                await life()
                return
            except Exception:  # the supervisor of runs: whatever it was, it must not end here unseen, or the siblings
                telemetry.PUMP_CRASHES.inc()
                telemetry.logger(**whose).exception("pump.crashed")
                if not again:
                    return
                await asyncio.sleep(self._options.backoff_cap_s / 10)

    async def _release(self, pumps: Iterable[Tenure]) -> None:
        leases = [pump.lease for pump in pumps if pump.lease is not None]
        if leases:
            with suppress(RelayError):
                await self._log.release(leases)

    def _owned(self) -> dict[Lease, int]:
        pumps = [one.pump for one in self._pumped.values()]
        return {pump.lease: pump.durable_seq for pump in pumps if pump.lease is not None}

    # --- leases and wants -------------------------------------------------------------------------------------------
    async def _renew(self) -> None:
        leases = self._owned()
        if not leases or self._closing:
            return
        answers = await self._asked(self._log.renew(list(leases.items()))) or {}
        asked = {lease.key: lease for lease in leases}
        for key, refusal in answers.items():
            pumped = self._pumped.get(key)
            if pumped is None or pumped.pump.lease is not asked[key]:
                continue  # given up, or claimed anew meanwhile: this says nothing of what it holds now
            if isinstance(refusal, Unwanted):
                self._unwanted(key, pumped)
                continue
            pumped.unwanted_since = math.inf
            if isinstance(refusal, LogMoved | LeaseLost):
                telemetry.APPEND_REFUSED.labels(refusal.code).inc()
                pumped.pump.interrupt()  # it claims anew, and resumes from where the log ends now

    def _unwanted(self, key: RunKey, pumped: _Pumped) -> None:
        now = time.monotonic()
        if self._watchers[key] or pumped.pump.keeps:
            self._wanted_at.pop(key, None)  # the want was lost, not withdrawn: say it again
            pumped.unwanted_since = math.inf
            return
        # If it was lost, those who watch elsewhere say it again soon; giving the run up meanwhile would make them wait.
        pumped.unwanted_since = min(pumped.unwanted_since, now)
        over = now - pumped.unwanted_since >= self._options.lease_s
        if over and pumped.task is not None and not pumped.task.cancelling():  # a second cancel disturbs the release
            pumped.task.cancel()

    async def _say_wants(self) -> None:
        now = time.monotonic()
        due = [
            key for key in self._watchers if now - self._wanted_at.get(key, -math.inf) > self._options.unwanted_s / 3
        ]
        if due and await self._asked(self._log.want(due), default=False) is not False:
            self._wanted_at.update({key: now for key in due if key in self._watchers})  # some may have left meanwhile

    async def _say_seen(self) -> None:
        """To owners that may know nothing of it. Said as long as those who follow these runs find that it is so."""
        lacking, self._lacking = self._lacking, set()
        owns = {key: own for key in lacking if isinstance(own := self._upstreams[key.upstream], OwnUpstream)}
        if owns:
            seen = {key: (self.shown(key), own.thread_of(key.run_id) or "") for key, own in owns.items()}
            await self._asked(self._log.note_seen(seen))

    async def _scan_for_ever(self) -> None:
        pause_s = _SCAN_S
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.9, 1.0))  # noqa: S311  (so that a fleet does not march)
            began = time.monotonic()
            found: Scan | None = await self._asked(self._log.scan(_CLAIMS))
            pause_s = _SCAN_S
            if found is None:
                continue
            await self._look_at_clocks(found.clocks, began)
            self._hold_returned(found.clocks)
            random.shuffle(found.orphans)
            for key in found.orphans:
                self._start(key, orphan=True)
            if found.soonest_s is not None:
                pause_s = min(_SCAN_S, found.soonest_s + 0.005)

    def _hold_returned(self, heard: Mapping[str, float]) -> None:
        """A part of Redis that was away and is back: there, too, owners go first."""
        now = time.monotonic()
        back = (heard.keys() - self._heard if self._heard else set[str]()) | (heard.keys() & self._lost)
        self._heard = set(heard)
        self._lost -= heard.keys()
        self._held = {tag: until for tag, until in self._held.items() if until > now}
        self._held |= dict.fromkeys(back, now + self._options.lease_s)

    async def _look_at_clocks(self, told: Mapping[str, float], began: float) -> None:
        jump_s = self._clocks.jump_s(told, began, time.monotonic())
        if not jump_s:
            return
        telemetry.CLOCK_JUMPS.inc()
        telemetry.logger().warning("redis.clock_jumped", by_s=round(jump_s, 1), hint="check its time synchronisation")
        self._hold_until = time.monotonic() + self._options.lease_s
        self._wanted_at.clear()
        await self._say_wants()

    async def _asked(self, call: Any, *, default: Any = None) -> Any:
        """A round trip that may fail: Redis away is noted, and its return too."""
        try:
            answer = await call
        except StoreUnavailable:
            self._away = True
            return default
        if self._away:
            self._away = False
            self._returned_until = time.monotonic() + self._options.lease_s
        return answer
