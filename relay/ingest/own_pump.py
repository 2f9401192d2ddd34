"""The life of one run's ingest where the upstream numbers nothing and resumes nothing: a stream if there is one, and looks.

A look is GET run, and where it says something new (or nothing streams) the run's messages and steps. Only a look ends a
run, and only after everything else that the upstream tells of it is in the log. Whatever is seen twice is dropped by the
assembler, so streams, replays and looks need no hand-over between them.

A log that does not end where its cursor says, or ends before what was once seen of it, has lost rows: it goes on in a new
generation, whose seqs begin above every seq ever given out (the fence of the claim is Redis' clock in microseconds, and
rises with every claim), with the whole run again.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from relay import telemetry
from relay.core.assemble import Assembler, final_data
from relay.core.errors import NotFound, RelayError, Unsupported
from relay.core.events import TERMINAL, Draft, Event
from relay.core.ids import RunKey, is_id
from relay.core.observed import Ends, Observation, Odd, Snapshot, Text, Texts
from relay.core.run import Run
from relay.core.sse import Message
from relay.ingest.committer import Committer
from relay.ingest.intake import Intake
from relay.ingest.options import IngestOptions
from relay.ingest.own_upstream import Listed, OwnUpstream
from relay.ingest.source import Body, Ending, now_text
from relay.ingest.tenure import Tenure
from relay.store.log import Append, Claim, Log

_GONE: Final = 3
"""How many 404s in a row it takes to believe that a run is gone."""
_MISSING_PAUSE_S: Final = 2.0
_STAMPED: Final = 3
"""How many looks a timestamp of an end must stand before it is believed against the status."""
_UNREAD: Final = 5
"""How often a finished run's messages are asked for before its readers are told that they cannot be had."""
_SLOWEST: Final = 5.0
"""How many times the usual pace is left between looks at a run in which nothing happens."""
_READ_ON: Final = 30
"""For how many looks the stream of a run that is over may go on bringing something before the run is ended all the same."""
_REPLAYS: Final = 4
"""How often a finished run's stream is read again if it is cut: what only a stream tells is lost with it."""
_REFUSALS: Final = 2
"""How many refused attaches to an active run it takes to believe that there is no such call."""
_RETRY_AFTER_S: Final = 30.0


class OwnPump(Tenure):
    def __init__(
        self, key: RunKey, upstream: OwnUpstream, log: Log, committer: Committer, options: IngestOptions,
        event_bytes: int, *, intake: Intake | None = None,
        shown: Callable[[RunKey], int] = lambda _: 0,
    ) -> None:  # fmt: skip
        super().__init__(key, log, options)
        self._shown = shown
        self._highest = 0
        """The highest seq this pump ever made durable."""
        self._upstream = upstream
        self._committer = committer
        self._event_bytes = event_bytes
        self._intake = intake
        self._thread_id = ""
        self._made = Assembler(key.run_id, named_parts=upstream.provider.named_parts)
        self._run = Run(key.run_id)
        self._read = upstream.provider.reader()
        self._pending: tuple[list[Event], dict[str, str]] | None = None
        """An append whose outcome is unknown."""
        self._connection = 0
        """Which attached stream the assembler's places belong to."""
        self._pace_s = 0.0
        self._floor_s = 0.0
        self._streamed = True
        """A stream brought something since the last look: it needs no help."""
        self._whole = True
        """What the assembler thinks is in the log is there, or in `_pending`."""
        self._begun = self._primed = self._told_end = self._over = False
        self._missing = self._stamped = self._unread = self._unsure = self._refused = self._read_on = 0
        self._looked_at = -math.inf

    async def probe(self) -> None:
        """Nothing comes behind the end of such a run, and a look that finds more would be a guess."""

    @property
    def keeps(self) -> bool:
        return self._intake is not None

    def close(self) -> None:
        if self._intake is not None:
            self._intake.close()

    # --- owning -----------------------------------------------------------------------------------------------------
    async def _own(self, claim: Claim) -> None:
        self.lease = claim.lease
        self.decided.set()
        if self.lease is None:
            return
        await self._begin(claim)
        self._say.info("pump.claimed", last_seq=claim.state.last_seq, generation=self._made.head.generation)
        self._thread_id = await self._thread(claim.fields)
        if claim.fields.get("thread_id") != self._thread_id:  # before any row: whoever comes after us needs it
            await self._append([], {"thread_id": self._thread_id})
        self._primed = False
        if not self._made.head.ended:
            await self._look(streaming=self._intake is not None)
        while not self._made.head.ended:
            await self._stream()
            if not self._made.head.ended:
                await self._pause()
                await self._look()
        self.close()
        await self._seal()

    async def _begin(self, claim: Claim) -> None:
        """Go on from what is durable: what this pump remembers if that agrees, else what the log and its cursor say."""
        at, known, pending = claim.state.last_seq, self.durable_seq, self._pending
        self._highest = max(self._highest, known)  # also what was only taken over, and never written by us
        least = max(self._highest, self._shown(self.key))  # a log that ends before it has lost rows
        self._pending = None
        made = Assembler.restored(self.key.run_id, claim.fields, named_parts=self._upstream.provider.named_parts)
        true = made is not None and made.head.seq == at
        self._missing = self._stamped = self._unread = self._unsure = 0
        self._over, self._read_on = False, 0
        untouched = (
            self._begun and self._whole and at == known and (true or (made is None and not at and not self._highest))
        )
        self._begun = self._whole = True
        if untouched and pending is not None:
            await self._append(*pending)  # it had not come through, or changes nothing when done again
        elif untouched:
            return
        elif true and pending and pending[0] and at == pending[0][-1].seq:
            self.durable_seq = at  # it had come through
        elif made is not None and true and max(at, made.head.generation - 1) >= least:
            await self._go_on(made, claim)
        elif made is None and not at and not least and not await self._log.has_past(self.key):
            await self._go_on(Assembler(self.key.run_id, named_parts=self._upstream.provider.named_parts), claim)
        else:
            await self._begin_anew(claim)

    async def _go_on(self, made: Assembler, claim: Claim) -> None:
        self._made = made
        self.durable_seq = claim.state.last_seq
        last_seq = max(made.head.generation - 1, claim.state.last_seq)
        self._run = Run(self.key.run_id, last_seq=last_seq, status=claim.state.status)
        if self._intake is not None:
            made.joins(late=made.head.started)
        if claim.state.last_seq < made.head.generation > 1:
            await self._announce()

    async def _begin_anew(self, claim: Claim) -> None:
        """Rows were lost: a new generation, announced before its first event."""
        assert claim.lease is not None
        first = max(
            int(claim.lease.fence), *(1 + seq for seq in (claim.state.last_seq, self._highest, self._shown(self.key)))
        )
        self._say.warning("log.generation", lost_after=claim.state.last_seq, first=first)
        telemetry.GENERATIONS.labels(self.key.upstream).inc()
        made = Assembler(self.key.run_id, named_parts=self._upstream.provider.named_parts, generation=first)
        self._made = made
        self._run = Run(self.key.run_id, last_seq=first - 1)
        self.durable_seq = claim.state.last_seq
        if self._intake is not None:
            made.joins(late=True)
        await self._announce()

    async def _announce(self) -> None:
        """Who has read an earlier generation must hear of this one before its first event."""
        first = self._made.head.generation
        await self._append(
            [], {"generation": str(first), "floor": str(first - 1), "gone": str(first - 1), "status": "running"}
        )

    async def _thread(self, fields: Mapping[str, str]) -> str:
        """The run's thread, without which nothing can be asked. Waits until somebody names it."""
        while True:
            found = fields.get("thread_id") or self._upstream.thread_of(self.key.run_id)
            found = found or await self._log.thread_of(self.key)
            if found and is_id(found):
                return found
            self._say.warning("run.thread_unknown", hint="open it once with thread_id=, or through its thread")
            await asyncio.sleep(self._options.backoff_cap_s)

    # --- streams ----------------------------------------------------------------------------------------------------
    async def _stream(self) -> None:
        """Read what stream there is to its end; a run without one is only looked at."""
        if self._intake is not None:
            intake = self._intake
            await self._follow(self._from_intake(intake))
            self._intake = None
            return
        ending = await self._attach()
        if ending is not None and ending.reason in ("gone", "refused"):
            await self._attach_refused()

    async def _attach(self) -> Ending | None:
        """One attached stream, from wherever it begins to its end; None if this upstream has none."""
        ask = self._upstream.provider.attach(self._thread_id, self.key.run_id)
        if ask is None or not self._upstream.has("attach"):
            return None
        self._made.connected()
        self._connection += 1
        connection = self._connection
        if self._upstream.attach_joins == "live" and self._made.head.started:
            self._made.joins(late=True)
        body = Body(self._upstream, ask, self._read_all, kind="follow", event_bytes=self._event_bytes)
        before, started = self._run.last_seq, self._made.head.started
        self._told_end = False
        await self._follow(body.batches(self._patience_s))
        if self._run.last_seq > before or body.ending.reason == "eof":
            self._refused = 0
        if started and self._made.sure and self._connection == connection:
            self._upstream.attach_joins = "live" if self._made.late else "replay"
        self._floor_s = max(self._floor_s, min(body.ending.retry_after_s or 0.0, _RETRY_AFTER_S))
        return body.ending

    async def _from_intake(self, intake: Intake) -> AsyncGenerator[list[Observation]]:
        async with aclosing(intake.batches(self._patience_s)) as batches:
            async for messages in batches:
                yield self._read_all(messages)

    def _read_all(self, messages: Sequence[Message]) -> list[Observation]:
        return [one for message in messages for one in self._read(message)]

    async def _follow(self, batches: AsyncGenerator[list[Observation]]) -> None:
        connection = self._connection
        async with aclosing(batches):
            async for seen in batches:
                if seen:
                    await self._take(seen, streamed=True)
                if any(isinstance(one, Ends) for one in seen):
                    self._told_end = not self._made.late
                    return
                if self._patience_s() <= 0:
                    await self._look(streaming=True)
                if self._made.head.ended or self._connection != connection:
                    return  # another stream told it meanwhile, and the places of this one are forgotten

    async def _attach_refused(self) -> None:
        """A finished run may refuse too: only an active one tells that there is no such call."""
        await self._look()
        if not self._made.head.ended and not self._missing:
            self._refused += 1
            if self._refused >= _REFUSALS:
                self._upstream.is_without("attach")

    def _patience_s(self) -> float:
        """How long until the run is looked at although a stream is open: soon, if that brings nothing of its text."""
        idle_s = self._upstream.poll_s if self._made.late else self._options.idle_check_s
        return max(0.0, self._looked_at + max(idle_s, self._pace_s if self._made.late else 0.0) - time.monotonic())

    # --- looks ------------------------------------------------------------------------------------------------------
    async def _look(self, *, streaming: bool = False) -> None:
        """Ask what the run is now, and take what is new; the end, if that is what it says."""
        self._looked_at = time.monotonic()
        before = self._run.last_seq
        try:
            run, headers = await self._upstream.get_run(self._thread_id, self.key.run_id)
        except NotFound:
            await self._not_there()
        except RelayError as error:
            telemetry.UPSTREAM_ODD.labels(self.key.upstream, error.code).inc()
            self._say.info("upstream.look_failed", code=error.code)
            self._floor_s = max(self._floor_s, min(error.retry_after_s or 0.0, _RETRY_AFTER_S))
        else:
            self._missing = 0
            self._floor_s = _asked_pause_s(headers)
            await self._seen(run, self._upstream.provider.snapshot(run), streaming=streaming)
        self._pace(quiet=self._run.last_seq == before)

    async def _seen(self, run: dict[str, Any], snapshot: Snapshot, *, streaming: bool) -> None:
        if not snapshot.known:
            telemetry.UPSTREAM_ODD.labels(self.key.upstream, "unknown_status").inc()
        await self._take([snapshot])
        status = self._verdict(snapshot)
        aligned = streaming and not self._made.late and self._streamed
        self._streamed = False
        if status is None and snapshot.status != self._run.status:
            await self._append([], {"status": snapshot.status})
            self._run.status = snapshot.status
        if status is not None and await self._stream_first(aligned=aligned):
            return
        if status is not None or (snapshot.status != "queued" and not aligned):
            complete = await self._reconcile(run, final=status is not None)
            if status is not None and complete:
                data = final_data(snapshot, self._made.said_failed)
                await self._finish(status, data, at=snapshot.ended_at)
        if not self._primed:
            await self._append([], {"primed": "1", "thread_id": self._thread_id})
            self._primed = True

    async def _stream_first(self, *, aligned: bool) -> bool:
        """A run that is over, before it is ended: let its stream, or a replay of it, tell what no message holds.

        True if the stream that is open is to be read on; should that break, it is replayed like any other.
        """
        self._read_on += aligned
        if aligned and self._read_on <= _READ_ON:
            return True
        before, self._over = self._over, True
        if not before and self._upstream.attach_joins != "live" and self._intake is None:
            await self._replay()
        return False

    async def _replay(self) -> None:
        """All of a finished run's stream, once; again if it is cut, a few times."""
        for _ in range(_REPLAYS):
            if self._told_end:
                return
            ending = await self._attach()
            if ending is None or ending.reason not in ("reset", "junk", "stall", "unreachable"):
                return

    def _verdict(self, snapshot: Snapshot) -> str | None:
        """The status the run ended with; None while it goes on. What nobody has told us of ends nothing."""
        if snapshot.status in TERMINAL:
            return snapshot.status
        self._stamped = self._stamped + 1 if snapshot.stamped else 0
        return snapshot.stamped if self._stamped >= _STAMPED else None

    async def _reconcile(self, run: dict[str, Any], *, final: bool) -> bool:
        """Take what messages and steps tell; whether that is all there is (or all there will ever be)."""
        try:
            messages: Listed | None = await self._upstream.messages(self._thread_id, run)
            steps = await self._upstream.steps(self._thread_id, self.key.run_id)
        except Unsupported:
            messages, steps = None, None
        except RelayError as error:
            telemetry.UPSTREAM_ODD.labels(self.key.upstream, error.code).inc()
            self._say.info("upstream.messages_failed", code=error.code)
            self._floor_s = max(self._floor_s, min(error.retry_after_s or 0.0, _RETRY_AFTER_S))
            self._unread += final
            if final and self._unread >= _UNREAD:
                await self._gap("messages_unavailable")
            return final and self._unread >= _UNREAD
        whole = (messages is None or messages.whole) and (steps is None or steps.whole)
        # A list that lacks its beginning must not be taken for all there is: then what was told already would be reset.
        seen = self._upstream.provider.reconciled(
            run, messages and messages.items, steps and steps.items, final=final and whole
        )
        await self._take(seen)
        if not final:
            return True
        if messages is None or not whole:
            await self._gap("messages_unsupported" if messages is None else "messages_incomplete")
            return True
        return self._is_all(seen)

    def _is_all(self, seen: Sequence[Observation]) -> bool:
        """A row may tell the end a moment before the messages are there: then they are looked at once more."""
        self._unsure += 1
        return self._unsure > 1 or any(isinstance(one, Text | Texts) for one in seen)

    async def _not_there(self) -> None:
        self._missing += 1
        if self._missing >= _GONE:
            await self._finish("failed", {"reason": "upstream_run_gone"})
        self._floor_s = max(self._floor_s, min(_MISSING_PAUSE_S, self._options.backoff_cap_s))

    def _pace(self, *, quiet: bool) -> None:
        base_s = self._upstream.poll_s
        self._pace_s = min(self._pace_s * 1.5 or base_s, base_s * _SLOWEST) if quiet else base_s

    async def _pause(self) -> None:
        pause_s = self._floor_s or self._pace_s * random.uniform(0.9, 1.0)  # noqa: S311  (jitter, not a secret)
        left_s = self._looked_at + pause_s - time.monotonic()
        await asyncio.sleep(max(left_s, 0.0))

    # --- events -----------------------------------------------------------------------------------------------------
    async def _take(self, seen: Sequence[Observation], *, streamed: bool = False) -> None:
        for one in seen:
            if isinstance(one, Odd):
                telemetry.UPSTREAM_ODD.labels(self.key.upstream, one.what).inc()
            elif isinstance(one, Ends) and one.reason == "error":
                self._made.said_failed = one.message
        self._streamed = self._streamed or streamed
        self._whole = False
        before = self._made.contradictions
        drafts = self._made.replayed(seen, now_text()) if streamed else self._made.take(seen, now_text())
        if self._made.contradictions > before:
            telemetry.CONTRADICTIONS.labels(self.key.upstream).inc(self._made.contradictions - before)
        await self._write(drafts)

    async def _gap(self, reason: str) -> None:
        await self._write(self._made.gap(reason, now_text()))

    async def _finish(self, status: str, data: dict[str, Any], *, at: str | None = None) -> None:
        await self._write(self._made.finish(status, data, now_text(), at=at))

    async def _write(self, drafts: list[Draft]) -> None:
        status = self._run.status
        events = self._run.admit(drafts).events
        if events:
            await self._append(events, {"status": self._run.status} if self._run.status != status else {})
        self._whole = True

    async def _append(self, events: list[Event], fields: dict[str, str]) -> None:
        """Events, and the cursor that is true of them, in one script call: a crash has both or neither."""
        assert self.lease is not None
        last_seq = events[-1].seq if events else self.durable_seq
        fields = {**self._made.changes(last_seq), **fields}
        self._pending, self._whole = (events, fields), True
        await self._committer.append(Append(self.lease, self.durable_seq, events, fields))
        self._pending = None
        self.durable_seq = last_seq
        self._highest = max(self._highest, last_seq, self._made.head.generation - 1)

    async def _seal(self) -> None:
        assert self.lease is not None
        await self._log.note_past(self.key, self._thread_id)
        await self._log.seal(self.lease, prev=self.durable_seq, status=self._run.status)
        self.lease = None
        telemetry.RUNS_SEALED.labels(self.key.upstream, self._run.status).inc()
        self._say.info("run.sealed", status=self._run.status, last_seq=self._run.last_seq)


def _asked_pause_s(headers: Mapping[str, str]) -> float:
    """How long the upstream wants to be left alone: `openai-poll-after-ms`, else `Retry-After`; 0 if it does not say."""
    for name, unit in (("openai-poll-after-ms", 0.001), ("Retry-After", 1.0)):
        text = headers.get(name, "")
        if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
            return min(int(text) * unit, _RETRY_AFTER_S)
    return 0.0
