"""The life of one run's ingest, in three levels of endurance: one connection, resume, for ever (`tenure.py`).

`run()` returns when the run is sealed. It survives everything the upstream and Redis can do: whatever ends a connection,
the next one asks for what follows the log's last seq, so *refill is resume*. The end of a run is decided in one order
only: a terminal event; else GET run says terminal, a `follow=false` drain brings none, twice; then one marked event.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from relay import telemetry
from relay.core.backoff import Backoff
from relay.core.errors import NotFound, RelayError
from relay.core.events import TERMINAL, Draft, Event
from relay.core.ids import RunKey
from relay.core.run import Admission, Run, status_after, synthesized_end
from relay.ingest.committer import Committer
from relay.ingest.edge import Edge, parts
from relay.ingest.options import IngestOptions
from relay.ingest.source import Ending, Source
from relay.ingest.tap import Tap, tap_of
from relay.ingest.tenure import Tenure
from relay.ingest.upstream import Upstream
from relay.store.log import Append, Claim, Log

_TAIL: Final = 500
"""Events behind a terminal one are few; this many are looked through for it."""
GONE: Final = 3
"""How many 404s in a row it takes to believe that a run is gone."""

MISSING_PAUSE_S: Final = 2.0
"""Between those: a load balancer in the middle of a deployment also answers 404."""
RETRY_AFTER_S: Final = 30.0
"""An upstream may ask for patience, but not for more than this: somebody is watching."""
_SILENT_S: Final = 1.0
"""How long a stream that was just opened may say nothing before we ask whether the run has ended."""
_RECONCILE_S: Final = 600.0
"""For so long after its end we try to read what a run's upstream has behind it, before it is sealed without: an upstream
that is restarted, or whose gateway is, is back by then, and its readers have the terminal event meanwhile."""
_REFUSED_S: Final = 30.0
"""For so long if the upstream is there, says itself that the run is over, and only will not show what is behind."""
_NOT_NOW: Final = frozenset(("busy", "unreachable"))
"""How a drain ends (429, 503, no connection) that may be shown later: no refusal, whatever GET run says."""
_LAG_EVERY_S: Final = 1.0
"""How often a run's lag is measured."""
_HEALTHY_S: Final = 5.0
"""A stream that lived this long was a good one, also if nothing happened on it."""


class Pump(Tenure):
    def __init__(
        self,
        key: RunKey,
        upstream: Upstream,
        log: Log,
        committer: Committer,
        options: IngestOptions,
        event_bytes: int,
    ) -> None:
        super().__init__(key, log, options)
        self._upstream = upstream
        self._committer = committer
        self._event_bytes = event_bytes
        self._run = Run(key.run_id)
        self._fields: dict[str, str] = {}
        """Changes of the run's state that ride on the next append."""
        self._turns: list[tuple[int, str]] = []
        """Changes of its status: each rides with the event that says so, for a state must never know more than the log."""
        self._doubt_at = math.inf
        """From then on silence is looked into."""
        self._asked_at = 0.0
        self._missing = 0
        self._unended = 0
        self._refused_at: float | None = None
        """Since when a run that is over by its upstream's own words is not shown to us to its end."""
        self._linger_until: float | None = None
        self._lag_at = 0.0
        self._edge: Edge | None = None
        """Of the live stream, while there is one that pushes."""

    async def probe(self) -> None:
        """A reader has seen more of a sealed run than its log holds: read once what the upstream has behind its end."""
        claim = await self._log.claim(self.key, reopen=True)
        if not isinstance(claim, Claim) or claim.lease is None:
            return
        await self._begin(claim)
        if claim.state.sealed:  # else its log is gone, or it is being written: not ours to end
            await self._drain()
            await self._seal()

    async def _own(self, claim: Claim) -> None:
        await self._begin(claim)
        if self.lease is None:
            return
        self._say.info("pump.claimed", last_seq=claim.state.last_seq)
        await self._prime()
        await self._resume()
        await self._seal()

    async def _begin(self, claim: Claim) -> None:
        """Start from what the log holds, and forget whatever was thought before."""
        self.lease = claim.lease
        self.durable_seq = claim.state.last_seq
        self.decided.set()
        self._fields, self._turns = {}, []
        self._missing = self._unended = 0
        self._refused_at = None
        state = claim.state
        status = state.status if state.last_seq else "running"
        if state.last_seq and (status in TERMINAL or not state.status_known):
            # The hash may be gone, or the end of the log: whether the run has ended stands in there and nowhere else.
            status = await self._logged_status(state.status)
            if status != state.status or not state.status_known:
                self._fields["status"] = status
        self._run = Run(self.key.run_id, last_seq=state.last_seq, status=status, contiguous=state.contiguous)
        self._linger_until = time.monotonic() + self._options.linger_s if self._run.ended else None

    async def _logged_status(self, noted: str) -> str:
        """What the log's last events say. An end that was noted is looked for in all of it before it is not believed."""
        events = await self._log.tail(self.key, _TAIL)
        status = found = status_after(events)
        while events and found not in TERMINAL and noted in TERMINAL:
            events = await self._log.tail(self.key, _TAIL, before=events[0].seq)
            found = status_after(events)
        return found if found in TERMINAL else status

    # --- resume -----------------------------------------------------------------------------------------------------
    async def _resume(self) -> None:
        """Connection after connection, until nothing more is awaited."""
        backoff = self._backoff()
        while not self._over():
            before, opened_at = self._run.last_seq, time.monotonic()
            ending = await self._follow()
            if ending.reason == "step":
                ending = await self._drain()
            if self._run.last_seq > before or time.monotonic() - opened_at > _HEALTHY_S:
                # Routine (Arkloop cuts every stream after a minute): no error budget while progress is made.
                backoff = self._backoff()
            elif not self._over():
                backoff = await self._after_failure(backoff, ending)
        await self._reconcile()

    async def _reconcile(self) -> None:
        """Read a finished run to its end once more: what came in the last moment is not lost."""
        backoff = self._backoff()
        while (ending := await self._drain()).reason != "eof" and not await self._given_up(ending):
            backoff = await self._after_failure(backoff, ending)

    async def _given_up(self, ending: Ending) -> bool:
        """Whether nothing more will come of a run that has ended: nobody knows it, or not within reason."""
        if not self._over():
            return False
        now = time.monotonic()
        if ending.reason == "gone":
            self._missing += 1
        elif ending.reason in _NOT_NOW or not await self._is_agreed():
            self._refused_at = None
        elif self._refused_at is None:
            self._refused_at = now
        assert self._linger_until is not None
        refused = self._refused_at is not None and self._refused_at < now >= self._refused_at + _REFUSED_S
        given_up = refused or self._missing >= GONE or now >= self._linger_until + _RECONCILE_S
        if given_up:
            self._say.warning("run.unreconciled", reason=ending.reason, last_seq=self._run.last_seq)
        return given_up

    async def _is_agreed(self) -> bool:
        """Whether the upstream answers, and says itself that the run is over."""
        with suppress(RelayError):
            return str((await self._get_run())["status"]) in TERMINAL
        return False

    async def _prime(self) -> None:
        """Bring the log up to what the upstream has now, so that readers who do not follow get all of it."""
        backoff = self._backoff()
        while (ending := await self._drain()).reason != "eof" and not await self._given_up(ending):
            backoff = await self._after_failure(backoff, ending)
        await self._append([], {"primed": "1"})
        # It may have ended without a word. But first the live stream, which says more, and viewers wait for it.
        self._doubt_at = time.monotonic() + min(_SILENT_S, self._options.idle_check_s)

    def _over(self) -> bool:
        """The terminal event is durable, and trailing events have had their time."""
        return self._run.ended and self._linger_until is not None and time.monotonic() >= self._linger_until

    async def _after_failure(self, backoff: Backoff, ending: Ending) -> Backoff:
        """A connection brought nothing: has the run ended meanwhile? Then wait, longer each time."""
        if not self._run.ended:
            await self._ask_whether_ended()
        floor_s = min(ending.retry_after_s or 0.0, RETRY_AFTER_S)
        if self._missing or self._refused_at is not None:
            floor_s = max(floor_s, MISSING_PAUSE_S)
        if ending.reason == "unauthorized":
            self._say.error("upstream.unauthorized", hint="the upstream refuses our credentials for this run")
            floor_s = max(floor_s, self._options.backoff_cap_s)
        await self._pause(backoff, floor_s)
        return backoff.failed()

    # --- one connection ---------------------------------------------------------------------------------------------
    def _source(self, *, follow: bool) -> Source:
        return Source(
            self._upstream, self.key, after_seq=self._run.last_seq, follow=follow, event_bytes=self._event_bytes
        )

    async def _follow(self) -> Ending:
        """Read the live stream until it ends, a step must be confirmed, or trailing events have had their time."""
        source = self._source(follow=True)
        async with source.opened(pushed=True) as response:
            if response is None:
                return source.ending
            tap = tap_of(response)
            if tap is None:
                return await self._follow_pulled(source, response)
            return await self._follow_pushed(source, tap)

    async def _follow_pulled(self, source: Source, response: aiohttp.ClientResponse) -> Ending:
        async with aclosing(source.pulled(response, self._patience_s)) as batches:
            async for drafts in batches:
                if drafts and await self._take(drafts):
                    return Ending("step")
                if not self._run.ended and self._patience_s() <= 0:
                    await self._ask_whether_ended()
                if self._over():
                    return Ending("lingered")
        return source.ending

    async def _follow_pushed(self, source: Source, tap: Tap) -> Ending:
        """The same, where what arrives is appended without a turn of this task."""
        edge = self._edge = Edge(source, tap, self._committer, self._admit, self._appending, self._appended)
        try:
            edge.flow()
            while True:
                await edge.turn(self._patience_s())
                doubtful = not self._run.ended and self._patience_s() <= 0
                if not (edge.step or edge.over or doubtful or self._over()):
                    continue
                await edge.quiet()
                if edge.step or edge.over or self._over():
                    return Ending("step") if edge.step else source.ending if edge.over else Ending("lingered")
                await self._ask_whether_ended()
                edge.flow()
        finally:
            self._edge = None
            edge.close()

    def _patience_s(self) -> float:
        """How long silence is nothing to look into."""
        until = self._linger_until
        if until is None:
            until = self._doubt_at
        return max(0.0, until - time.monotonic())

    async def _drain(self) -> Ending:
        """Read all the upstream has behind the log's end, and take it as the truth; `eof` if it was read to its end."""
        source = self._source(follow=False)
        async with aclosing(source.batches()) as batches:
            async for drafts in batches:
                if drafts:
                    await self._take(drafts, confirming=True)
        return source.ending

    async def _take(self, drafts: Sequence[Draft], *, confirming: bool = False) -> bool:
        """Admit and make durable; true if a step in seq must be confirmed before anything else is accepted."""
        prev = self._run.last_seq
        admission = self._admit(drafts, confirming=confirming)
        if admission.events:
            await self._append(admission.events, {}, prev)
        return admission.unconfirmed is not None

    def _admit(self, drafts: Sequence[Draft], *, confirming: bool = False) -> Admission:
        """Admit, and note what that says of the run."""
        prev, was_ended = self._run.last_seq, self._run.ended
        admission = self._run.admit(drafts, confirming=confirming)
        if admission.repeats or admission.steps or admission.unconfirmed is not None:
            self._count(admission)
        self._turns += admission.turns
        if not self._run.contiguous:
            self._fields["contiguous"] = "0"
        if self._run.head_lost and not prev:  # said once: from then on the floor only moves by trimming
            self._fields["floor"] = self._fields["gone"] = str(self._run.head_lost)
        if admission.events:
            now = time.monotonic()
            self._doubt_at = now + self._options.idle_check_s
            self._missing = self._unended = 0
            self._refused_at = None
            if now >= self._lag_at:
                self._note_lag(now, drafts[-1])
        if self._run.ended and not was_ended:
            self._linger(self._run.ended_at)
        return admission

    def _note_lag(self, now: float, draft: Draft) -> None:
        self._lag_at = now + _LAG_EVERY_S
        telemetry.INGEST_LAG.labels(self.key.upstream).observe(_age_s(draft.body.get("created_at"), time.time()))

    def _linger(self, ended_at: object) -> None:
        """Wait for trailing events; a run that ended long ago (by the upstream's clock) has none to wait for."""
        left = self._options.linger_s - _age_s(ended_at, self._upstream.now_s())
        self._linger_until = time.monotonic() + max(0.0, left)
        if self._edge is not None:
            self._edge.wake()  # it sleeps for as long as a run that goes on may be silent

    async def _append(self, events: Sequence[Event], fields: dict[str, str], prev: int | None = None) -> None:
        assert self.lease is not None
        at = self._run.last_seq if prev is None else prev
        for part in parts(events):
            await self._committer.append(Append(self.lease, at, part, self._due(part) | fields))
            at = part[-1].seq if part else at
            self.durable_seq = at
            fields = {}

    def _appending(self, events: Sequence[Event]) -> Append:
        assert self.lease is not None
        return Append(self.lease, self.durable_seq, events, self._due(events))

    def _due(self, events: Sequence[Event]) -> dict[str, str]:
        """What is to be noted of the run together with these. If they are refused, all begins anew from the log."""
        fields, self._fields = self._fields, {}
        while self._turns and events and self._turns[0][0] <= events[-1].seq:
            fields["status"] = self._turns.pop(0)[1]
        return fields

    def _appended(self, last_seq: int) -> None:
        self.durable_seq = last_seq

    # --- the end ----------------------------------------------------------------------------------------------------
    async def _ask_whether_ended(self) -> None:
        """GET run; if it says terminal and a drain brings no terminal event either, twice, the end is ours to write."""
        now = time.monotonic()
        if self._missing and now - self._asked_at < MISSING_PAUSE_S * 0.9:
            return
        self._asked_at = now
        self._doubt_at = now + self._options.idle_check_s
        try:
            run = await self._get_run()
        except NotFound:
            await self._gone()
            return
        except RelayError as error:
            telemetry.UPSTREAM_ODD.labels(self.key.upstream, type(error).code).inc()
            self._say.info("upstream.get_run_failed", code=error.code)
            return
        self._missing = 0
        if run["raw_status"] not in self._upstream.provider.statuses:
            telemetry.UPSTREAM_ODD.labels(self.key.upstream, "unknown_status").inc()
        status = str(run["status"])
        if status not in TERMINAL or (await self._drain()).reason != "eof" or self._run.ended:
            return
        self._unended += 1
        if self._unended < 2:
            # The row may have been written a moment before its event: look again, once.
            await asyncio.sleep(min(2.0, self._options.linger_s))
            await self._ask_whether_ended()
        else:
            await self._write_end(status, f"the upstream reports {status} but has no such event")

    async def _get_run(self) -> dict[str, Any]:
        provider = self._upstream.provider
        return provider.run(await self._upstream.ask(provider.get_run(self.key.run_id)))

    async def _gone(self) -> None:
        self._missing += 1
        if self._missing >= GONE and not self._run.ended:
            await self._write_end("failed", "the upstream no longer knows this run")
            self._missing = GONE  # it was asked for often enough

    async def _write_end(self, status: str, reason: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._say.warning("run.end_synthesized", status=status, reason=reason, last_seq=self._run.last_seq)
        telemetry.ENDS_SYNTHESIZED.labels(self.key.upstream).inc()
        draft = synthesized_end(self.key.run_id, status, reason, now)
        await self._take([draft], confirming=True)
        self._linger_until = time.monotonic()

    async def _seal(self) -> None:
        assert self.lease is not None
        await self._log.seal(self.lease, prev=self._run.last_seq, status=self._run.status)
        self.lease = None
        telemetry.RUNS_SEALED.labels(self.key.upstream, self._run.status).inc()
        self._say.info("run.sealed", status=self._run.status, last_seq=self._run.last_seq)

    # --- small ------------------------------------------------------------------------------------------------------
    async def _pause(self, backoff: Backoff, floor_s: float = 0.0) -> None:
        pause_s = max(floor_s, backoff.pause_s(random.random()))  # noqa: S311  (jitter, not a secret)
        if self._linger_until is not None and not self._over():
            pause_s = min(pause_s, max(0.0, self._linger_until - time.monotonic()))
        await asyncio.sleep(pause_s)

    def _count(self, admission: Admission) -> None:
        if admission.repeats:
            telemetry.EVENTS_REPEATED.labels(self.key.upstream).inc(admission.repeats)
        if admission.unconfirmed is not None:
            telemetry.EVENTS_GAPS.labels(self.key.upstream, "unconfirmed").inc()
            self._say.warning("run.step", first=admission.unconfirmed.first, last=admission.unconfirmed.last)
        if admission.steps:
            telemetry.EVENTS_GAPS.labels(self.key.upstream, "confirmed").inc(len(admission.steps))
            self._say.warning("run.step_confirmed", steps=len(admission.steps), first=admission.steps[0].first)


def _age_s(created_at: object, now_s: float) -> float:
    """Seconds from an RFC 3339 time to a unix time; 0 for what is none, and never negative (clocks differ)."""
    try:
        at = datetime.fromisoformat(str(created_at))
    except ValueError:
        return 0.0
    return max(0.0, now_s - at.timestamp()) if at.tzinfo is not None else 0.0
