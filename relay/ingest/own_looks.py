"""What looks tell of a run whose upstream numbers nothing, and the only word on its end.

A look is GET run, and where it says something new (or nothing streams) the run's messages and steps. Only a look ends a
run, and only after everything else that the upstream tells of it is in the log.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar

import msgspec

from relay import telemetry
from relay.core.assemble import final_data
from relay.core.errors import NotFound, RelayError, Unsupported
from relay.core.events import TERMINAL
from relay.core.ids import RunKey
from relay.core.observed import Ends, Observation, Odd, Outcome, Snapshot, Text, Texts
from relay.ingest.committer import Committer
from relay.ingest.intake import Intake
from relay.ingest.options import IngestOptions
from relay.ingest.own_tenure import OwnTenure
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.source import now_text
from relay.store.log import Log, Seen

_T = TypeVar("_T")

Rest = Literal["later", "messages_unavailable", "messages_unsupported", "messages_incomplete"] | None
"""What a run's messages did not tell: nothing (None), what they may yet, or what they never will, and why."""

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
_WORD_S: Final = 0.25
"""So much later than in the messages a word may come by its stream, and still goes before them."""
RETRY_AFTER_S: Final = 30.0
"""Longest that an upstream is left alone because it asks for that."""


class OwnLooks(OwnTenure):
    def __init__(
        self, key: RunKey, upstream: OwnUpstream, log: Log, committer: Committer, options: IngestOptions, *,
        intake: Intake | None, shown: Callable[[RunKey], Seen],
    ) -> None:  # fmt: skip
        named_parts = upstream.provider.named_parts
        super().__init__(key, log, committer, options, named_parts=named_parts, intake=intake, shown=shown)
        self._upstream = upstream
        self._thread_id = ""
        self._pace_s = 0.0
        self._floor_s = 0.0
        self._looked_at = -math.inf
        self._streamed = True
        """A stream brought something since the last look: it needs no help."""
        self._told_end = False
        self._ahead: Callable[[], bool] | None = None
        """Whether the stream that is open has brought something that was not taken yet."""
        self._gave_way = False
        """A look went behind what a stream was about to say, and the stream has said nothing since."""
        self._came = asyncio.Event()
        """A stream came while there was none."""
        self._knows_nothing()

    def _knows_nothing(self) -> None:
        """As at the beginning of a tenure: what was seen how often says nothing any more."""
        self._missing = self._stamped = self._unread = self._unheard = self._unsure = self._read_on = 0
        self._over = self._primed = self._opened = self._gave_way = False

    async def _replay(self) -> None:
        """All of a finished run's stream, if it can be attached to."""
        raise NotImplementedError

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
            self._floor_s = max(self._floor_s, min(error.retry_after_s or 0.0, RETRY_AFTER_S))
        else:
            self._missing = 0
            self._floor_s = _asked_pause_s(headers)
            await self._seen(run, self._upstream.provider.snapshot(run), streaming=streaming)
        self._pace(quiet=self._run.last_seq == before)

    async def _seen(self, run: dict[str, Any], snapshot: Snapshot, *, streaming: bool) -> None:
        if not snapshot.known:
            telemetry.UPSTREAM_ODD.labels(self.key.upstream, "unknown_status").inc()
        await self._take([msgspec.structs.replace(snapshot, calls=())])
        status = self._verdict(snapshot)
        aligned = streaming and not self._made.late and self._brings()
        spared = aligned or (not self._made.late and self._streamed and self._will_stream())
        self._streamed = False
        if status is not None and await self._stream_first(aligned=aligned):
            return
        if status is None and not self._opened and self._will_stream():
            return
        rest: Rest = None
        if status is not None or (snapshot.status != "queued" and not spared):
            rest = await self._reconcile(run, snapshot, final=status is not None, streaming=streaming)
            if status is not None and rest != "later":
                data = final_data(snapshot, self._made.said_failed)
                await self._finish(status, data, at=snapshot.ended_at, gap=rest)
        if status is None and not (spared and snapshot.calls):
            await self._stand(snapshot, unread=rest in ("later", "messages_unavailable"))
        if not self._primed:
            await self._append([], {"primed": "1", "thread_id": self._thread_id})
            self._primed = True

    def _brings(self) -> bool:
        """The open stream tells the run. One that is silent from its beginning may yet tell all of it."""
        return self._streamed or not self._primed or (self._intake is not None and self._intake.ahead)

    def _will_stream(self) -> bool:
        """A stream is about to tell all of the run in its own order: messages would only say what is text of it."""
        attach = self._upstream.provider.attach(self._thread_id, self.key.run_id)
        attaches = attach is not None and self._upstream.has("attach") and self._upstream.attach_joins != "live"
        return attaches or self._intake is not None

    async def _stand(self, snapshot: Snapshot, *, unread: bool) -> None:
        """Where the run stands, and what it asks: behind the text that led to it, or readers would take that for more.

        Messages that cannot be read hold a question up for a few looks; a stream that is open tells it itself.
        """
        self._unheard = self._unheard + 1 if unread else 0
        if snapshot.calls and 0 < self._unheard < _UNREAD:
            return
        if unread:
            await self._take([snapshot])
        if snapshot.status != self._run.status:
            await self._append([], {"status": snapshot.status})
            self._run.status = snapshot.status

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

    def _verdict(self, snapshot: Snapshot) -> str | None:
        """The status the run ended with; None while it goes on. What nobody has told us of ends nothing."""
        if snapshot.status in TERMINAL:
            return snapshot.status
        self._stamped = self._stamped + 1 if snapshot.stamped else 0
        return snapshot.stamped if self._stamped >= _STAMPED else None

    async def _speaks_again(self) -> bool:
        """The open stream was silent until now, and says something: it goes first, for it alone knows the order.

        Once: if it was a ping there is no order in it. And not for ever, if the run is over and its stream is not.
        """
        if self._ahead is None or self._made.late or self._gave_way or self._read_on > _READ_ON:
            return False
        await asyncio.sleep(min(self._upstream.poll_s, _WORD_S))
        self._gave_way = self._ahead is not None and self._ahead()
        return self._gave_way

    async def _reconcile(self, run: dict[str, Any], snapshot: Snapshot, *, final: bool, streaming: bool) -> Rest:
        """Take what messages and steps tell; what becomes of the rest, if that is not all there is."""
        try:
            messages = await self._optional(self._upstream.messages(self._thread_id, run))
            steps = await self._upstream.steps(self._thread_id, self.key.run_id)
        except RelayError as error:
            telemetry.UPSTREAM_ODD.labels(self.key.upstream, error.code).inc()
            self._say.info("upstream.messages_failed", code=error.code)
            self._floor_s = max(self._floor_s, min(error.retry_after_s or 0.0, RETRY_AFTER_S))
            self._unread += final
            return "messages_unavailable" if self._unread >= _UNREAD else "later"
        if streaming and await self._speaks_again():
            return "later"
        whole = (messages is None or messages.whole) and (steps is None or steps.whole)
        # A list that lacks its beginning must not be taken for all there is: then what was told already would be reset.
        seen = self._upstream.provider.reconciled(
            run, messages and messages.items, steps and steps.items, final=final and whole
        )
        await self._take(_in_order(seen, snapshot))
        if messages is None or not whole:
            return "messages_unsupported" if messages is None else "messages_incomplete"
        return None if not final or self._is_all(seen) else "later"

    async def _optional(self, call: Awaitable[_T]) -> _T | None:
        try:
            return await call
        except Unsupported:
            return None

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
        with suppress(TimeoutError):
            async with asyncio.timeout(max(left_s, 0.0)):
                await self._came.wait()
        self._came.clear()

    # --- events -----------------------------------------------------------------------------------------------------
    async def _take(self, seen: Sequence[Observation], *, streamed: bool = False) -> None:
        for one in seen:
            if isinstance(one, Odd):
                telemetry.UPSTREAM_ODD.labels(self.key.upstream, one.what).inc()
            elif isinstance(one, Ends) and one.reason == "error":
                self._made.said_failed = one.message
        if streamed:
            self._streamed, self._gave_way = True, False
        self._whole = False
        before = self._made.contradictions
        drafts = self._made.replayed(seen, now_text()) if streamed else self._made.take(seen, now_text())
        if self._made.contradictions > before:
            telemetry.CONTRADICTIONS.labels(self.key.upstream).inc(self._made.contradictions - before)
        await self._write(drafts)

    async def _finish(
        self, status: str, data: dict[str, Any], *, at: str | None = None, gap: str | None = None
    ) -> None:
        """The end, and before it that something is missing: both in one append, so that neither is told twice."""
        missing = self._made.gap(gap, now_text()) if gap is not None else []
        await self._write([*missing, *self._made.finish(status, data, now_text(), at=at)])


def _in_order(seen: Sequence[Observation], snapshot: Snapshot) -> list[Observation]:
    """A question stands behind what led to it, and before the results it waited for."""
    asked = {call.id for call in snapshot.calls}
    answers = [one for one in seen if isinstance(one, Outcome) and one.id in asked]
    return [*(one for one in seen if one not in answers), snapshot, *answers]


def _asked_pause_s(headers: Mapping[str, str]) -> float:
    """How long the upstream wants to be left alone: `openai-poll-after-ms`, else `Retry-After`; 0 if it does not say."""
    for name, unit in (("openai-poll-after-ms", 0.001), ("Retry-After", 1.0)):
        text = headers.get(name, "")
        if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
            return min(int(text) * unit, RETRY_AFTER_S)
    return 0.0
