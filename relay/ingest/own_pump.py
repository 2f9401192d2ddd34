"""The life of one run's ingest where the upstream numbers nothing and resumes nothing: a stream if there is one, and looks.

Here is what streams: the answer to making the run, or what can be attached to. Looks are in `own_looks.py`, what becomes
of the log in `own_tenure.py`. Whatever is seen twice is dropped by the assembler, so streams, replays and looks need no
hand-over between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from relay.core.ids import RunKey, is_id
from relay.core.observed import Ends, Observation
from relay.core.sse import Message
from relay.ingest.committer import Committer
from relay.ingest.intake import Intake
from relay.ingest.options import IngestOptions
from relay.ingest.own_looks import RETRY_AFTER_S, OwnLooks
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.source import Body, Ending
from relay.store.log import Claim, Log, Seen

_BEGUN_S: Final = 0.5
"""How long the stream of a run just claimed is given to replay it, before readers are told that they have all."""
_REPLAYS: Final = 4
"""How often a finished run's stream is read again if it is cut: what only a stream tells is lost with it."""
_REFUSALS: Final = 2
"""How many refused attaches to an active run it takes to believe that there is no such call."""


class OwnPump(OwnLooks):
    def __init__(
        self, key: RunKey, upstream: OwnUpstream, log: Log, committer: Committer, options: IngestOptions,
        event_bytes: int, *, intake: Intake | None = None, shown: Callable[[RunKey], Seen] = lambda _: Seen(),
    ) -> None:  # fmt: skip
        super().__init__(key, upstream, log, committer, options, intake=intake, shown=shown)
        self._event_bytes = event_bytes
        self._read = upstream.provider.reader()
        self._connection = 0
        """Which attached stream the assembler's places belong to."""
        self._refused = 0

    async def probe(self) -> None:
        """Nothing comes behind the end of such a run, and a look that finds more would be a guess."""

    @property
    def keeps(self) -> bool:
        return self._intake is not None

    def takes(self, intake: Intake) -> bool:
        """Read this stream, which came late: the run was found by others before it was known to be made here."""
        if self._intake is not None or self._made.head.ended:
            return False
        self._intake, self._streamed = intake, True
        self._connection += 1
        self._made.connected()
        self._made.joins(late=self._made.head.started)
        self._came.set()
        return True

    def close(self) -> None:
        if self._intake is not None:
            self._intake.drop()

    # --- owning -----------------------------------------------------------------------------------------------------
    async def _own(self, claim: Claim) -> None:
        self.lease = claim.lease
        self.decided.set()
        if self.lease is None:
            return
        self._knows_nothing()
        await self._begin(claim)
        self._say.info("pump.claimed", last_seq=claim.state.last_seq, generation=self._made.head.generation)
        self._thread_id = await self._thread(claim.fields)
        if claim.fields.get("thread_id") != self._thread_id:  # before any row: whoever comes after us needs it
            await self._append([], {"thread_id": self._thread_id})
        if not self._made.head.ended:
            await self._look(streaming=self._intake is not None)
        while not self._made.head.ended:
            await self._stream()
            if not self._made.head.ended:
                await self._pause()
                await self._look(streaming=self._intake is not None)
        if self._intake is not None:
            self._intake.close()
        await self._seal(self._thread_id)

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
        self._opened = True
        if self._intake is not None:
            intake = self._intake
            await self._follow(self._from_intake(intake), lambda: intake.ahead)
            self._intake = None
            intake.drop()
            return
        ending = await self._attach()
        if ending is not None and ending.reason in ("gone", "refused"):
            await self._attach_refused()

    async def _replay(self) -> None:
        """All of a finished run's stream, once; again if it is cut, a few times."""
        for _ in range(_REPLAYS):
            if self._told_end:
                return
            ending = await self._attach()
            if ending is None or ending.reason not in ("reset", "junk", "stall", "unreachable"):
                return

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
        await self._follow(body.batches(self._patience_s), lambda: body.ahead)
        if self._run.last_seq > before or body.ending.reason == "eof":
            self._refused = 0
        if started and self._made.sure and self._connection == connection:
            self._upstream.attach_joins = "live" if self._made.late else "replay"
        self._floor_s = max(self._floor_s, min(body.ending.retry_after_s or 0.0, RETRY_AFTER_S))
        return body.ending

    async def _from_intake(self, intake: Intake) -> AsyncGenerator[list[Observation]]:
        async with aclosing(intake.batches(self._patience_s)) as batches:
            async for messages in batches:
                yield self._read_all(messages)

    def _read_all(self, messages: Sequence[Message]) -> list[Observation]:
        return [one for message in messages for one in self._read(message)]

    async def _follow(self, batches: AsyncGenerator[list[Observation]], ahead: Callable[[], bool]) -> None:
        self._ahead = ahead
        try:
            await self._follow_on(batches)
        finally:
            self._ahead = None

    async def _follow_on(self, batches: AsyncGenerator[list[Observation]]) -> None:
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
        if not self._primed:
            idle_s = min(idle_s, max(self._upstream.poll_s, _BEGUN_S))
        return max(0.0, self._looked_at + max(idle_s, self._pace_s if self._made.late else 0.0) - time.monotonic())
