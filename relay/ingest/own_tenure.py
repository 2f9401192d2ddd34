"""Owning a run whose events we number: what a claim finds in the log, what is made durable, and when a generation begins.

Rows and the cursor that is true of them go into the log in one append, so a crash has both or neither. A log that has lost
rows goes on in a new generation, whose seqs begin above every seq ever given out (the fence of the claim is Redis' clock
in microseconds, and rises with every claim), with the whole run again. So does one that may have lost some. The signs:

- it does not end where its cursor says;
- it ends before what this pump wrote, or before what any process that follows the run has seen (`seen`, which each of them
  says; a log that is short of it takes no append of this generation);
- another server answers now than the last owner wrote to (`doubt`): what that one acknowledged last may not be here, and
  who takes over cannot know. An owner that lived through it does know, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable

from relay import telemetry
from relay.core.assemble import Assembler
from relay.core.events import Draft, Event
from relay.core.ids import RunKey
from relay.core.run import Run
from relay.ingest.committer import Committer
from relay.ingest.intake import Intake
from relay.ingest.options import IngestOptions
from relay.ingest.tenure import Tenure
from relay.store.log import Append, Claim, Log, Seen


class OwnTenure(Tenure):
    def __init__(
        self, key: RunKey, log: Log, committer: Committer, options: IngestOptions, *, named_parts: bool,
        intake: Intake | None = None, shown: Callable[[RunKey], Seen] = lambda _: Seen(),
    ) -> None:  # fmt: skip
        super().__init__(key, log, options)
        self._committer = committer
        self._shown = shown
        self._intake = intake
        self._named_parts = named_parts
        self._made = Assembler(key.run_id, named_parts=named_parts)
        self._run = Run(key.run_id)
        self._highest = 0
        """The highest seq this pump ever made durable, or found so."""
        self._born = ""
        """Which log that is in."""
        self._pending: tuple[list[Event], dict[str, str]] | None = None
        """An append whose outcome is unknown."""
        self._whole = True
        """What the assembler thinks is in the log is there, or in `_pending`."""
        self._begun = False
        """It has gone on from a claim, so it knows what there was."""

    # --- what a claim finds -----------------------------------------------------------------------------------------
    async def _claim(self) -> Claim | float:
        """Says what is known here, to another owner too: a log that lacks it has lost rows."""
        return await self._log.claim(self.key, seen=max(self._shown(self.key), Seen(self._highest, self._born)))

    async def _begin(self, claim: Claim) -> None:
        """Go on from what is durable: what this pump remembers if that agrees, else what the log and its cursor say."""
        at, known, pending = claim.state.last_seq, self.durable_seq, self._pending
        seen, doubt = int(claim.fields.get("seen") or 0), claim.fields.get("doubt") == "1"
        self._born = claim.state.born
        self._pending = None
        made = Assembler.restored(self.key.run_id, claim.fields, named_parts=self._named_parts)
        true = made is not None and made.head.seq == at
        whole = max(at, claim.state.generation - 1) >= seen
        fresh = made is None and not at and not seen
        ours = self._begun and self._whole and at == known and ((true and whole) or fresh)
        through = true and whole and pending is not None and pending[0] and at == pending[0][-1].seq
        self._whole = True
        if ours and pending is not None:
            await self._append(*pending)  # it had not come through, or changes nothing when done again
        elif through:
            self._knows(at)
        elif ours:
            pass
        elif made is not None and true and whole and not doubt:
            await self._go_on(made, claim)
        elif fresh and not doubt and not await self._log.has_past(self.key):
            await self._go_on(Assembler(self.key.run_id, named_parts=self._named_parts), claim)
        else:
            await self._begin_anew(claim)
            doubt = False
        if doubt:  # others', not ours: this pump lived through it
            await self._append([], {"doubt": "0"})

    async def _go_on(self, made: Assembler, claim: Claim) -> None:
        self._made = made
        self._knows(claim.state.last_seq)
        last_seq = max(made.head.generation - 1, claim.state.last_seq)
        self._run = Run(self.key.run_id, last_seq=last_seq, status=claim.state.status)
        self._begun = True
        if self._intake is not None:
            made.joins(late=made.head.started)
        if claim.state.last_seq < made.head.generation > 1:
            await self._announce()

    async def _begin_anew(self, claim: Claim) -> None:
        """Rows were lost: a new generation, announced before its first event."""
        assert claim.lease is not None
        known = max(claim.state.last_seq, self._highest, self._shown(self.key).seq, int(claim.fields.get("seen") or 0))
        first = max(int(claim.lease.fence), known + 2)  # one seq is left out: who stands at `known` must see a step
        self._say.warning("log.generation", lost_after=claim.state.last_seq, first=first)
        telemetry.GENERATIONS.labels(self.key.upstream).inc()
        made = Assembler(self.key.run_id, named_parts=self._named_parts, generation=first)
        self._made = made
        self._run = Run(self.key.run_id, last_seq=first - 1)
        self.durable_seq = claim.state.last_seq
        self._begun = True
        if self._intake is not None:
            made.joins(late=True)
        await self._announce()

    async def _announce(self) -> None:
        """Who has read an earlier generation must hear of this one before its first event."""
        first = self._made.head.generation
        before = str(first - 1)
        said = {"generation": str(first), "floor": before, "gone": before, "status": "running", "doubt": "0"}
        await self._append([], said)

    # --- what is made durable ---------------------------------------------------------------------------------------
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
        self._knows(last_seq)

    def _knows(self, last_seq: int) -> None:
        """The log ends here, and should it ever end before, it has lost rows; also those that were only taken over."""
        self.durable_seq = last_seq
        self._highest = max(self._highest, last_seq, self._made.head.generation - 1)

    async def _seal(self, thread_id: str) -> None:
        assert self.lease is not None
        await self._log.note_past(self.key, thread_id)
        await self._log.seal(self.lease, prev=self.durable_seq, status=self._run.status)
        self.lease = None
        telemetry.RUNS_SEALED.labels(self.key.upstream, self._run.status).inc()
        self._say.info("run.sealed", status=self._run.status, last_seq=self._run.last_seq)
