"""Trimmed heads, fetched again from the upstream for who reads there. One filler per run in the whole fleet.

A reader below its log's floor asks, and goes on asking while it waits; whichever process gets the right to fill reads the
upstream once, without `follow`, from the lowest cursor asked for up to the log's first event. Everybody reads along while
it writes. It stops when nobody has asked for a while: whoever comes later makes it go on from where it stopped. What the
upstream no longer has is only said to be gone when it is sure; an upstream that is away has lost nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Final, TypeAlias

from relay import telemetry
from relay.core.backoff import Backoff
from relay.core.errors import LeaseLost, LogMoved, NotFound, RelayError, StoreUnavailable
from relay.core.events import Draft
from relay.core.ids import RunKey
from relay.core.run import Run
from relay.ingest.edge import parts
from relay.ingest.options import IngestOptions
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.pump import GONE, MISSING_PAUSE_S, RETRY_AFTER_S
from relay.ingest.source import Ending, Source
from relay.ingest.upstream import Upstream
from relay.store.log import Log
from relay.store.old import Fill, Old

Start: TypeAlias = Callable[[RunKey, Callable[[], Awaitable[object]]], bool]
"""Makes a task of it that is started again should it crash; false if this process starts nothing any more."""

_UNASKED_S: Final = 10.0
"""Nobody has asked for so long: readers have what they need, or went."""
_AT_ONCE: Final = 8
"""Most heads one process reads at once: they must not crowd out the live runs."""
_AGAIN_S: Final = 1.0
"""Between two fills of one run: a reader who is as slow as the log is trimmed asks again and again."""
_LOOK_UP_S: Final = 1.0
"""How long a silent read goes on before it is seen whether it is still needed."""
_DONE: Final = ("full", "lost")
_PROGRESS: Final = ("full", "lost", "more", "lower", "unasked")
"""Outcomes of one read after which the next one, if any, needs no patience."""


class Backfill:
    """One run's trimmed head: from the first who asks until it is there, or nobody asks any more."""

    def __init__(
        self, key: RunKey, upstream: Upstream | OwnUpstream, old: Old, options: IngestOptions, event_bytes: int,
        places: asyncio.Semaphore,
    ) -> None:  # fmt: skip
        self.key = key
        self._upstream = upstream
        self._old = old
        self._options = options
        self._event_bytes = event_bytes
        self._places = places
        self._lowest: int | None = None
        self._asked_at = 0.0
        self._backoff = Backoff(options.backoff_base_s, options.backoff_cap_s)
        self._pause_s = 0.0
        self._looks = 0
        """How often in a row the upstream had nothing where the log once had something."""
        self._say = telemetry.logger(run_id=key.run_id, upstream=key.upstream)

    def ask(self, after_seq: int) -> None:
        """Somebody needs what lies behind this."""
        self._lowest = after_seq if self._lowest is None else min(self._lowest, after_seq)
        self._asked_at = time.monotonic()

    @property
    def wanted(self) -> bool:
        return time.monotonic() - self._asked_at < _UNASKED_S

    # --- for ever ---------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until the head is there, or given up."""
        while self.wanted:
            async with self._places:
                done = await self._turn()
            if done:
                return
            await asyncio.sleep(self._pause_s)

    async def _turn(self) -> bool:
        """Try to get the right, and if we have it, read once; true if there is no more to do."""
        assert self._lowest is not None
        try:
            taken = await self._old.take(self.key, self._lowest)
        except (LogMoved, StoreUnavailable):
            self._failed()  # Redis is away, or has lost the run: whoever pumps it brings it back
            return False
        if taken is None:
            return True
        if not isinstance(taken, Fill):
            self._pause_s = min(taken, self._options.lease_s / 3) + 0.05
            return False
        self._lowest = max(self._lowest, taken.start)  # what lies before is gone: nobody can be given that
        return self._judge(await self._held(taken))

    def _judge(self, outcome: str) -> bool:
        telemetry.HEAD_FILLS.labels(self.key.upstream, outcome).inc()
        self._say.info("head.read", outcome=outcome)
        if outcome in _PROGRESS:
            self._backoff, self._pause_s = Backoff(self._options.backoff_base_s, self._options.backoff_cap_s), 0.0
        return outcome in _DONE

    def _failed(self, floor_s: float = 0.0) -> None:
        self._pause_s = max(floor_s, self._backoff.pause_s(random.random()))  # noqa: S311  (jitter, not a secret)
        self._backoff = self._backoff.failed()

    async def _held(self, fill: Fill) -> str:
        """What is done while the right is ours, in one word."""
        read = _Read(fill, self._old, self._upstream, self._event_bytes)
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(self._keep(fill), name=f"keep fill {self.key}")
            try:
                return await self._read(read)
            except (LeaseLost, LogMoved) as error:
                self._failed()
                return error.code
            except StoreUnavailable as error:
                self._failed()
                return error.code
            finally:
                keeping.cancel()
                with suppress(RelayError):
                    await self._old.give_up(fill)

    async def _keep(self, fill: Fill) -> None:
        """Another one may only take over if this process is dead or frozen, not because the upstream is slow."""
        while True:
            await asyncio.sleep(self._options.lease_s / 3)
            with suppress(StoreUnavailable):
                try:
                    await self._old.keep(fill)
                except LeaseLost:
                    return  # the next write will be told so too

    # --- one read ---------------------------------------------------------------------------------------------------
    async def _read(self, read: _Read) -> str:
        if isinstance(self._upstream, OwnUpstream) or not self._upstream.provider.durable_seq:
            await read.lost()  # it does not number durably: what it would give now are other events
            return "lost"
        ending = await read.once(self._enough)
        if read.events:
            self._looks = 0
        if ending.reason in ("full", "lower", "unasked"):
            return ending.reason
        if read.events and ending.reason == "eof":
            return "more"  # it ended in between, properly: that alone says nothing
        self._looks = self._looks + 1 if await self._nothing(ending) else 0
        if self._looks >= GONE:
            self._say.warning("head.lost", from_seq=read.fill.upto + 1, to_seq=read.fill.floor)
            await read.lost()
            return "lost"
        self._failed(self._patience_s(ending))
        return ending.reason

    def _enough(self, fill: Fill) -> str:
        """Why a read should end early; empty if it should not."""
        if self._lowest is not None and self._lowest < fill.start:
            return "lower"  # somebody needs what lies before
        return "" if self.wanted else "unasked"

    async def _nothing(self, ending: Ending) -> bool:
        """Whether the upstream said that it does not have (any more) what the log was trimmed of."""
        if ending.reason != "gone":
            return ending.reason == "eof"
        assert isinstance(self._upstream, Upstream)
        try:
            await self._upstream.ask(self._upstream.provider.get_run(self.key.run_id))
        except NotFound:
            return True
        except RelayError:
            return False
        return False

    def _patience_s(self, ending: Ending) -> float:
        if ending.reason == "unauthorized":
            return self._options.backoff_cap_s
        looked = MISSING_PAUSE_S if ending.reason in ("eof", "gone") else 0.0
        return max(looked, min(ending.retry_after_s or 0.0, RETRY_AFTER_S))


class _Read:
    """One reading of the upstream into `old`."""

    def __init__(self, fill: Fill, old: Old, upstream: Upstream | OwnUpstream, event_bytes: int) -> None:
        self.fill = fill
        self.events = 0
        """How many events it brought."""
        self._old = old
        self._upstream = upstream
        self._event_bytes = event_bytes
        self._run = Run(fill.key.run_id, last_seq=fill.upto, contiguous=False)

    async def once(self, enough: Callable[[Fill], str]) -> Ending:
        """Read until `old` reaches the log (full), it is `enough` for another reason, or the stream ends."""
        source = self._source(self.fill.upto)
        async with aclosing(source.batches(lambda: _LOOK_UP_S)) as batches:
            async for drafts in batches:
                if drafts and not await self._take(drafts):
                    return Ending("unclear")
                if self.fill.full:
                    return Ending("full")
                if why := enough(self.fill):
                    return Ending(why)
        return source.ending

    async def lost(self) -> None:
        """The upstream has nothing of what is missing, for sure."""
        self.fill = await self._old.write(self.fill, upto=self.fill.floor, gone=self.fill.floor)

    def _source(self, after_seq: int) -> Source:
        assert isinstance(self._upstream, Upstream)  # nothing can be fetched again of what we numbered ourselves
        return Source(self._upstream, self.fill.key, after_seq=after_seq, follow=False, event_bytes=self._event_bytes)

    async def _take(self, drafts: Sequence[Draft]) -> bool:
        """Admit as the pump does, and write; false if a hole at the beginning is not understood."""
        prev = self._run.last_seq
        events = self._run.admit(drafts, confirming=True).events
        if not events:
            return True
        if not self.events and events[0].seq > prev + 1 and not await self._explain(events[0].seq, events[0].type):
            return False
        for part in parts(events):
            if self.fill.full:
                break
            self.fill = await self._old.write(self.fill, part)
            self.events += len(part)
            telemetry.HEAD_EVENTS.labels(self.fill.key.upstream).inc(len(part))
        return True

    async def _explain(self, seq: int, kind: str) -> bool:
        """The first event does not follow the last: the upstream's own hole, the beginning of the run, or a lost head?

        Only an upstream that still has what lies before the hole never had what lies in it.
        """
        upto = self.fill.upto
        head: tuple[int, str] | None = (seq, kind)
        if upto or kind != "run.started":
            head = await self._first()
        if head is None or upto < head[0] != seq:
            return False  # it says something else each time: read again later
        if head[0] <= upto:
            return True
        if head[1] == "run.started":
            self.fill = await self._old.write(self.fill, upto=min(seq - 1, self.fill.floor), starts=seq)
        else:
            self.fill = await self._old.write(self.fill, upto=min(seq - 1, self.fill.floor), gone=seq - 1)
        return True

    async def _first(self) -> tuple[int, str] | None:
        """The very first event the upstream has of the run; None if that cannot be said now."""
        async with aclosing(self._source(0).batches()) as batches:
            async for drafts in batches:
                if drafts:
                    return drafts[0].seq or 0, drafts[0].type
        return None


class Backfills:
    """The heads this process fills, or waits for another one to fill."""

    def __init__(
        self,
        log: Log,
        upstreams: Mapping[str, Upstream | OwnUpstream],
        options: IngestOptions,
        start: Start,
        *,
        event_bytes: int,
    ) -> None:
        self._log = log
        self._upstreams = upstreams
        self._options = options
        self._start = start
        self._event_bytes = event_bytes
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._at_work: dict[RunKey, Backfill] = {}
        self._ended: dict[RunKey, float] = {}

    def ask(self, key: RunKey, after_seq: int) -> None:
        """Somebody reads behind `after_seq`, below the floor of the log."""
        backfill = self._at_work.get(key)
        if backfill is not None:
            backfill.ask(after_seq)
        elif key.upstream in self._upstreams:
            backfill = Backfill(
                key, self._upstreams[key.upstream], self._log.old, self._options, self._event_bytes, self._places
            )
            backfill.ask(after_seq)
            if self._start(key, partial(self._fill, backfill)):
                self._at_work[key] = backfill

    async def _fill(self, backfill: Backfill) -> None:
        now = time.monotonic()
        self._ended = {key: at for key, at in self._ended.items() if now - at < _AGAIN_S}
        await asyncio.sleep(self._ended.get(backfill.key, now - _AGAIN_S) + _AGAIN_S - now)
        await backfill.run()
        self._ended[backfill.key] = time.monotonic()
        del self._at_work[backfill.key]
