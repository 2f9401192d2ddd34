"""One reader of one run, on any wire: moves a subscription's bytes into a connection, at the connection's pace.

At the live edge a stream has nothing running: its topic calls `flush`, which writes the shared bytes at once. Whoever
cannot take more (the kernel's buffer is full), or stands behind the window, leaves the live set; then the request's own
task, asleep until now, catches it up in bounded slices, each followed by a turn for everybody else. Heartbeats, expired
access and stuck readers are seen once a second for all streams together (`relay.delivery.pulse`).
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final, Protocol

from relay import telemetry
from relay.core import wires
from relay.core.errors import StoreUnavailable
from relay.core.goodbye import AUTH_EXPIRED, SLOW, Goodbye
from relay.core.window import Slice
from relay.core.wires import Notice
from relay.delivery.options import DeliveryOptions
from relay.fanout.subscription import Subscription


class Connection(Protocol):
    """What a stream needs of a transport."""

    @property
    def closing(self) -> bool:
        """The client is gone, or we are done with it."""

    @property
    def backlog(self) -> int:
        """Bytes written that the kernel has not taken yet."""

    @property
    def ready(self) -> bool:
        """Neither closing nor full: may be written to at once."""

    @property
    def full(self) -> bool:
        """The backlog is so large that writing on would only fill our memory."""

    def write(self, data: bytes) -> None:
        """Never waits."""

    async def drained(self) -> None:
        """Returns when there is room again; raises ConnectionError when the client is gone."""

    def abort(self) -> None:
        """End without a proper end, so that nobody takes it for completion."""


_PATIENCE_S: Final = 10.0
"""How long a reader who does not follow waits, in the middle of its stream, for events that have to be fetched again."""


class Farewell(Exception):
    """Not an error: the way a stream ends before its run does."""

    def __init__(self, goodbye: Goodbye) -> None:
        super().__init__(goodbye.code)
        self.goodbye = goodbye


class Stream:
    def __init__(
        self,
        subscription: Subscription,
        connection: Connection,
        options: DeliveryOptions,
        *,
        follow: bool = True,
        expires_at: float | None = None,
    ) -> None:
        self.expires_at = expires_at
        """When the reader's access ends, by our monotonic clock; None for never."""
        self._sub = subscription
        self._connection = connection
        self._options = options
        self._follow = follow
        self._wake = asyncio.Event()
        self._goodbye: Goodbye | None = None
        self._slow = False
        self._written_at = time.monotonic()
        self._moved_at = self._written_at
        """When the cursor last moved while catching up."""
        self._taken_at = self._written_at
        self._uncounted = 0
        """Events written by `flush` since the last beat."""
        self._written = 0
        """Bytes ever given to the connection."""
        self._taken = 0
        """How many of them its client had taken when we last looked."""
        self._told = subscription.cursor
        """The seq in the last `id:` the client got: what it would resume from."""
        self._told_at = self._written_at
        self._delivered = telemetry.EVENTS_DELIVERED.labels(subscription.wire.form)

    # --- the request's task -----------------------------------------------------------------------------------------
    async def run(self) -> Notice | None:
        """Deliver until the end: returns the end notice (not yet written), or None if the reader did not follow.

        Raises Farewell when the stream must be given up, ConnectionError when the client is gone.
        """
        topic = self._sub.topic
        try:
            while True:
                await self._catch_up()
                if self._sub.ended:
                    return wires.end(topic.state.last_seq, topic.state.status, self._retry_ms())
                if not self._follow and self._sub.cursor >= max(topic.last_seq, topic.state.last_seq):
                    self._tell_position()
                    return None
                self._wake.clear()
                topic.live.add(self)
                self.flush()
                await self._wake.wait()
                topic.live.discard(self)
        finally:
            topic.live.discard(self)
            self._set_slow(slow=False)
            self._count(time.monotonic())

    async def linger(self, seconds: float) -> None:
        """After the end: stay open so much longer, with heartbeats. Raises what `run` raises."""
        try:
            async with asyncio.timeout(seconds):
                while self._goodbye is None and not self._connection.closing:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return
        if self._goodbye is not None:
            raise Farewell(self._goodbye)
        raise ConnectionResetError

    async def _catch_up(self) -> None:
        """Write until the window has nothing more behind the cursor and the connection took all of it."""
        while True:
            if self._goodbye is not None:
                raise Farewell(self._goodbye)
            if self._connection.closing:
                raise ConnectionResetError
            if self._connection.full:
                await self._until_taken()
            part = await self._read_back() if self._sub.behind else self._sub.take()
            if part is not None:
                self._write(part)
                self._moved_at = time.monotonic()
            elif self._sub.behind:
                await self._until_there()
            else:
                self._tell_position()
                return
            await asyncio.sleep(0)

    async def _until_there(self) -> None:
        """What comes next is being brought back: nobody is told. Who does not follow cannot be kept waiting for ever."""
        if not self._follow and time.monotonic() - self._moved_at > _PATIENCE_S:
            raise ConnectionResetError  # cut: a proper end would say that this is all there is
        await self._sub.topic.changed(1.0)

    async def _until_taken(self) -> None:
        """Wait until the client has taken most of what was written."""
        began = time.monotonic()
        self._set_slow(slow=True)
        await self._connection.drained()
        self._set_slow(slow=False)
        telemetry.DRAIN_LAG.observe(time.monotonic() - began)

    async def _read_back(self) -> Slice | Notice | None:
        try:
            return await self._sub.read_back()
        except StoreUnavailable:
            return None  # heartbeats go on; whoever waits is tried again in a second

    # --- called by the topic and the pulse, never waiting -----------------------------------------------------------
    def flush(self) -> None:
        """At the live edge: everything new, one write. Whatever is not simple is left to the request's task."""
        # The hot path of the whole process, once per viewer and turn: every call saved here is a percent of its CPU.
        connection, sub = self._connection, self._sub
        if not connection.ready:
            self._wake_up()
            return
        part = sub.take()
        if part is not None and part.data:
            connection.write(part.data)
            self._told = part.told
            self._written += len(part.data)
            self._uncounted += part.sent
        # Behind the window, more than one slice, or the end: all of it is the task's.
        if sub.cursor < sub.topic.window.last_seq or ((sub.topic.state.sealed or sub.early) and sub.ended):
            self._wake_up()

    def beat(self, now: float) -> None:
        """Once a second: what silence, time and stuck sockets ask for."""
        connection = self._connection
        if self._uncounted:
            self._count(now)
        if connection.closing:
            self._wake_up()
        elif self.expires_at is not None and now >= self.expires_at:
            self.say_goodbye(AUTH_EXPIRED)
        elif connection.backlog:
            self._watch_backlog(now)
        else:
            self._taken_at = now
            self._tell_position()
            if (
                now - self._written_at >= self._options.heartbeat_s - 2
            ):  # beats, and the time of the last write, are a second coarse
                self._put(self._sub.wire.ping)

    def say_goodbye(self, goodbye: Goodbye) -> None:
        """End this stream soon; the request's task writes the notice and ends the connection."""
        if self._goodbye is None:
            self._goodbye = goodbye
            telemetry.GOODBYES.labels(goodbye.code).inc()
        if self._connection.full:
            self._connection.abort()  # no room for words: wakes whoever waits for room
        self._wake_up()

    def _watch_backlog(self, now: float) -> None:
        taken = self._written - self._connection.backlog
        if taken > self._taken:
            self._taken_at = now
        self._taken = taken
        if now - self._taken_at >= self._options.slow_s:
            self.say_goodbye(SLOW)

    def _count(self, now: float) -> None:
        """What `flush` wrote since the last beat, for the metric and the heartbeat."""
        self._delivered.inc(self._uncounted)
        self._uncounted = 0
        self._written_at = now

    # --- small ------------------------------------------------------------------------------------------------------
    def _write(self, part: Slice | Notice) -> None:
        if isinstance(part, Notice):
            telemetry.RESETS.inc()
            self._put(self._sub.wire.notice(part))
            self._told = self._sub.cursor
        elif part.data:
            self._put(part.data)
            self._told = part.told
            self._delivered.inc(part.sent)

    def _put(self, data: bytes) -> None:
        self._connection.write(data)
        self._written += len(data)
        self._written_at = time.monotonic()

    def _tell_position(self) -> None:
        """Events were filtered out: move the cursor the client would resume from, at most once a second."""
        if self._sub.types is None or self._told >= self._sub.cursor:
            return
        now = time.monotonic()
        if now - self._told_at >= 1.0 or not self._follow:
            self._put(self._sub.wire.notice(wires.position(self._sub.cursor)))
            self._told, self._told_at = self._sub.cursor, now

    def _set_slow(self, *, slow: bool) -> None:
        if slow == self._slow:
            return
        self._slow = slow
        telemetry.SLOW_READERS.inc(1 if slow else -1)

    def _wake_up(self) -> None:
        self._sub.topic.live.discard(self)
        self._wake.set()

    def _retry_ms(self) -> int:
        return random.randint(self._options.retry_min_ms, self._options.retry_max_ms)  # noqa: S311  (jitter)
