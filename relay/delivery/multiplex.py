"""One reader of many runs on one connection: what `relay.delivery.stream` is for one run.

No task per run: a run that has something new rings, and whatever rang in one turn of the loop is written at once, in one
write. Where the connection is full, or a run stands behind its window, the reader's own task goes round: every run that
has something gets one bounded slice in its turn, so a long answer never holds up a short one for longer than that. How
far the reader is in each run is in one tally, which over SSE becomes the `id:` of every write.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from relay import telemetry
from relay.core import many, wires
from relay.core.errors import RelayError, StoreUnavailable, Unauthenticated
from relay.core.goodbye import AUTH_EXPIRED, SLOW, Goodbye
from relay.core.ids import RunKey
from relay.core.many import ManyForm
from relay.core.vector import Place, Tally
from relay.core.window import Slice
from relay.core.wires import Notice, Wire
from relay.delivery.options import DeliveryOptions
from relay.delivery.strand import SLICE_BYTES, Strand
from relay.delivery.stream import Connection, check
from relay.fanout.subscription import Subscription

_FEW: Final = 8
"""With so few runs a cursor is about as long as an event's envelope."""
_GAP_S: Final = 0.010
_AGAIN_S: Final = 0.2
"""How soon those are asked again whose events have to be fetched, or whose store is away."""


class Multiplex:
    def __init__(
        self,
        connection: Connection,
        form: ManyForm,
        options: DeliveryOptions,
        tally: Tally,
        *,
        chunked: bool = False,
        expires_at: float | None = None,
    ) -> None:
        self.form = form
        self.expires_at = expires_at
        """When the reader's access ends, by our monotonic clock; None for never."""
        self.tally = tally
        self._connection = connection
        self._options = options
        self._wire = Wire("sse" if form == "many-sse" else "websocket", chunked=chunked)
        self._strands: dict[str, Strand] = {}
        self._due: deque[Strand] = deque()
        """Those who have something in their window, in the order of their turns."""
        self._far: deque[Strand] = deque()
        """Those who stand behind it."""
        self._parked: list[Strand] = []
        """Those of them for whom nothing could be had at the moment."""
        self._parked_at = 0.0
        self._holds = 0
        self._over = False
        self._scheduled = False
        self._next_at = 0.0
        """By the loop's clock: when the next flush may be."""
        self._wake = asyncio.Event()
        self._goodbye: Goodbye | None = None
        self._slow = False
        self._written_at = self._taken_at = time.monotonic()
        self._written = 0
        self._taken = 0
        self._delivered = telemetry.EVENTS_DELIVERED.labels(form)
        connection.attend(self)

    # --- which runs -------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._strands)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._strands

    def keys(self) -> list[RunKey]:
        """The runs that are read now."""
        return [strand.key for strand in self._strands.values()]

    def add(
        self,
        key: RunKey,
        sub: Subscription,
        leave: Callable[[], None],
        *,
        expires_at: float | None = None,
        own_right: bool = False,
    ) -> None:
        """Read this run too, until its end, `drop`, or the end of the connection; then `leave` is called."""
        if self._over:  # it was looked for a moment too long
            leave()
            return
        strand = self._strands[key.run_id] = Strand(key, sub, self._rang, leave, expires_at, own_right)
        self.tally.put(key, Place(sub.cursor))
        sub.topic.live.add(strand)
        self._rang(strand)

    def renew(self, expires_at: float | None, sees: Callable[[RunKey], bool]) -> None:
        """The connection has other credentials: with them go the runs that they show, and no others."""
        self.expires_at = expires_at
        for strand in self._strands.values():
            if not strand.own_right and sees(strand.key):
                strand.expires_at = expires_at

    def drop(self, run_id: str) -> bool:
        """Read this run no more; whether it was read."""
        strand = self._strands.pop(run_id, None)
        if strand is None:
            return False
        strand.sub.topic.live.discard(strand)
        if self.form != "many-sse":  # a client that names its runs one by one keeps its cursors itself
            self.tally.drop(strand.key)
        strand.leave()
        self._wake.set()
        return True

    def hold(self) -> Callable[[], None]:
        """More runs may come: the connection does not end until what is returned was called."""
        self._holds += 1
        return self._release

    def _release(self) -> None:
        self._holds -= 1
        self._wake.set()

    # --- words of our own -------------------------------------------------------------------------------------------
    def say(self, name: str, data: dict[str, Any]) -> None:
        """A frame that is no event, now."""
        self._send([many.said(self.form, name, data)])

    def refuse(self, error: RelayError, *, run_id: str | None = None, retrying: bool = False) -> None:
        """An error that ends nothing but what it is about; `retrying`: the client need do nothing."""
        about = {"run_id": run_id} if run_id is not None else {}
        details = {"details": error.details} if error.details is not None else {}
        self.say("error", {**about, "code": error.code, "message": error.message, **details, "retrying": retrying})

    # --- the request's task -----------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Deliver until every run has ended and no more can come.

        Raises Farewell when the connection must be given up, ConnectionError when the client is gone.
        """
        try:
            while True:
                check(self._goodbye, self._connection)
                self._unpark()
                if self._connection.full:
                    await self._until_taken()
                elif self._due or self._far:
                    await self._round()
                elif not (self._strands or self._holds):
                    return
                else:
                    await self._sleep()
        finally:
            self._over = True
            self._set_slow(slow=False)
            for run_id in list(self._strands):
                self.drop(run_id)
            self._connection.attend(None)

    async def _round(self) -> None:
        """One slice for some of those who have something, and a page for the first who is behind; then others' turn."""
        self._serve()
        if self._far and not self._connection.full:
            await self._read_back(self._far.popleft())
        await asyncio.sleep(0)

    async def _read_back(self, strand: Strand) -> None:
        """From the log, or what was fetched again. What cannot be had now is asked for again in a moment."""
        part: Slice | Notice | None = None
        with suppress(StoreUnavailable):
            part = await strand.sub.read_back()
        if not self._reads(strand):
            return
        if part is None:
            self._park(strand)
            return
        self._send(self._frames(strand, part))
        self._requeue(strand)

    async def _sleep(self) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN_S if self._parked else None):
                await self._wake.wait()

    def _park(self, strand: Strand) -> None:
        if not self._parked:
            self._parked_at = time.monotonic()
        self._parked.append(strand)

    def _unpark(self) -> None:
        if self._parked and time.monotonic() - self._parked_at >= _AGAIN_S:
            self._far.extend(strand for strand in self._parked if self._reads(strand))
            self._parked.clear()

    def _reads(self, strand: Strand) -> bool:
        return self._strands.get(strand.key.run_id) is strand

    async def _until_taken(self) -> None:
        """Wait until the client has taken most of what was written."""
        began = time.monotonic()
        self._set_slow(slow=True)
        await self._connection.drained()
        self._set_slow(slow=False)
        telemetry.DRAIN_LAG.observe(time.monotonic() - began)

    # --- what the connection says -----------------------------------------------------------------------------------
    def paused(self) -> None:
        """It is full: whoever writes next sees it."""

    def resumed(self) -> None:
        self._wake.set()

    def lost(self) -> None:
        self._wake.set()

    # --- never waiting ----------------------------------------------------------------------------------------------
    def _rang(self, strand: Strand) -> None:
        strand.queued = True
        self._due.append(strand)
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._next_at), self._flush)

    def _flush(self) -> None:
        """Once per turn of the loop in which anything rang: one write. What is not simple is the task's."""
        self._scheduled = False
        self._next_at = asyncio.get_running_loop().time() + self._gap_s
        if self._connection.ready:
            self._serve()
        if self._due or self._far or not self._strands:
            self._wake.set()

    @property
    def _gap_s(self) -> float:
        """A cursor of many runs is several events long: what rings within ten milliseconds shares one."""
        return _GAP_S if self.form == "many-sse" and len(self.tally) > _FEW else 0.0

    def _serve(self) -> None:
        """A slice for each who has something, in turn, until about one slice is written in all."""
        frames: list[bytes] = []
        size = 0
        for _ in range(len(self._due)):
            strand = self._due.popleft()
            if not self._reads(strand):
                continue
            part = None if strand.sub.behind else strand.sub.take()
            if part is not None:
                frames += self._frames(strand, part)
                size += len(part.data)
            self._requeue(strand, frames)
            if size >= SLICE_BYTES:
                break
        self._send(frames)

    def _requeue(self, strand: Strand, frames: list[bytes] | None = None) -> None:
        """Where a strand waits next; one whose run has ended is told so, and goes."""
        if strand.sub.behind:
            self._far.append(strand)
        elif strand.has_more:
            self._due.append(strand)
        else:
            strand.queued = False
            if strand.sub.ended:
                self._end(strand, frames)

    def _end(self, strand: Strand, frames: list[bytes] | None) -> None:
        state = strand.sub.topic.state
        end = wires.end(state.last_seq, state.status, self._retry_ms())
        self.tally.put(strand.key, Place(strand.sub.cursor, told=True))
        said = strand.sub.wire.notice(end)
        if frames is None:
            self._send([said])
        else:
            frames.append(said)
        self.drop(strand.key.run_id)

    def _frames(self, strand: Strand, part: Slice | Notice) -> list[bytes]:
        """The bytes of what a strand was given; the tally has moved with it."""
        self.tally.put(strand.key, Place(strand.sub.cursor))
        if isinstance(part, Notice):
            telemetry.RESETS.inc()
            strand.told = strand.sub.cursor
            return [strand.sub.wire.notice(part)]
        if not part.data:
            return []
        strand.told = part.told
        self._delivered.inc(part.sent)
        return [part.data]

    def beat(self, now: float) -> None:
        """Once a second: what silence, time and stuck sockets ask for."""
        connection = self._connection
        if connection.closing:
            self._wake.set()
        elif self.expires_at is not None and now >= self.expires_at:
            self.say_goodbye(AUTH_EXPIRED)
            return
        elif connection.backlog:
            self._watch_backlog(now)
        else:
            self._taken_at = now
            self._tell_positions()
            # Beats, and the time of the last write, are a second coarse.
            if now - self._written_at >= self._options.heartbeat_s - 2:
                self._put(self._wire.ping)
        self._expire(now)

    def _expire(self, now: float) -> None:
        for strand in list(self._strands.values()):
            if strand.expires_at is not None and now >= strand.expires_at:
                self.drop(strand.key.run_id)
                expired = Unauthenticated("the access token has expired", code="auth.token_expired")
                self.refuse(expired, run_id=strand.key.run_id)

    def _watch_backlog(self, now: float) -> None:
        taken = self._connection.given(self._written) - self._connection.backlog
        if taken > self._taken:
            self._taken_at = now
        self._taken = taken
        if now - self._taken_at >= self._options.slow_s:
            self.say_goodbye(SLOW)

    def _tell_positions(self) -> None:
        """Events were filtered out: move the cursor the client would resume from, once a second at most."""
        frames = []
        for strand in self._strands.values():
            if strand.sub.types is not None and strand.told < strand.sub.cursor:
                strand.told = strand.sub.cursor
                frames.append(strand.sub.wire.notice(wires.position(strand.sub.cursor)))
        self._send(frames)

    def say_goodbye(self, goodbye: Goodbye) -> None:
        """End this connection soon; the request's task writes the notice and ends it."""
        if self._goodbye is None:
            self._goodbye = goodbye
            telemetry.GOODBYES.labels(goodbye.code).inc()
        if self._connection.full:
            self._connection.abort()  # no room for words: wakes whoever waits for room
        self._wake.set()

    # --- small ------------------------------------------------------------------------------------------------------
    def _send(self, frames: list[bytes]) -> None:
        """One write; over SSE with the cursor behind its last frame."""
        if not frames:
            return
        data = b"".join(frames)
        if self.form == "many-sse":
            data = many.stamped(data, self.tally.text())
        self._put(self._wire.wrap(data))

    def _put(self, data: bytes) -> None:
        self._connection.put(data)
        self._written += len(data)
        self._written_at = time.monotonic()

    def _set_slow(self, *, slow: bool) -> None:
        if slow != self._slow:
            self._slow = slow
            telemetry.SLOW_READERS.inc(1 if slow else -1)

    def _retry_ms(self) -> int:
        return random.randint(self._options.retry_min_ms, self._options.retry_max_ms)  # noqa: S311  (jitter)
