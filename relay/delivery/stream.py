"""One reader of one run, on any wire: moves a subscription's bytes into a connection, at the connection's pace.

At the live edge a stream has nothing running: it stands in a crowd of its topic, which writes the shared bytes to all its
members at once (relay.fanout.crowd). Whoever cannot take more (the connection is full), stands behind the window, or has
something to be told alone leaves the crowd and is woken: `advance` catches up in bounded slices, each followed by a turn
for everybody else, until there is nothing to do but to wait again. Who calls it is not this file's business: a task
that sleeps meanwhile (`run`), or one that is started for it (relay.delivery.viewer). Heartbeats, expired access and
stuck readers are seen once a second for all streams together (relay.delivery.pulse).
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from collections.abc import Callable
from typing import Final, Protocol

from relay import telemetry
from relay.core import wires
from relay.core.errors import StoreUnavailable
from relay.core.goodbye import AUTH_EXPIRED, SLOW, Goodbye
from relay.core.window import Slice
from relay.core.wires import Notice
from relay.delivery.options import DeliveryOptions
from relay.delivery.pulse import Lag
from relay.delivery.turns import LOOK_BYTES, Turns, catching_up
from relay.fanout.crowd import Crowd, Way
from relay.fanout.subscription import Subscription


class Connection(Protocol):
    """What a stream needs of a transport."""

    @property
    def closing(self) -> bool:
        """The client is gone, or we are done with it."""

    @property
    def backlog(self) -> int:
        """Bytes that the kernel has not taken yet, of those given to the transport."""

    def given(self, written: int) -> int:
        """How many bytes the transport was given for so many that were written: other ones, where they are compressed."""

    @property
    def ready(self) -> bool:
        """Neither closing nor full: may be written to at once."""

    @property
    def full(self) -> bool:
        """The backlog is so large that writing on would only fill our memory."""

    @property
    def way(self) -> Way:
        """For crowds. Once the client is gone it may raise (uvloop's transport does)."""

    def put(self, data: bytes) -> None:
        """Never waits, never raises; of no effect when the client is gone."""

    async def drained(self) -> None:
        """Returns when there is room again; raises ConnectionError when the client is gone."""

    def attend(self, listener: Flow | None) -> None:
        """Who hears from now on that this connection is full, can take more, or is gone."""

    def abort(self) -> None:
        """End without a proper end, so that nobody takes it for completion."""


class Flow(Protocol):
    """What hears how a connection fares. Called by the connection at any moment, also from within `write`."""

    def paused(self) -> None:
        """It is full."""

    def resumed(self) -> None:
        """It can take more."""

    def lost(self) -> None:
        """The client is gone."""


class State(enum.Enum):
    WAITS = enum.auto()
    """There is nothing to do until `woken` is called."""


WAITS: Final = State.WAITS
_PATIENCE_S: Final = 10.0
"""How long a reader who does not follow waits, in the middle of its stream, for events that have to be fetched again."""


class Farewell(Exception):
    """Not an error: the way a stream ends before its run does."""

    def __init__(self, goodbye: Goodbye) -> None:
        super().__init__(goodbye.code)
        self.goodbye = goodbye


def check(goodbye: Goodbye | None, connection: Connection) -> None:
    """Raises Farewell if this stream is to end, ConnectionError if its client is gone."""
    if goodbye is not None:
        raise Farewell(goodbye)
    if connection.closing:
        raise ConnectionResetError


def _nobody() -> None:
    """Nobody waits for this stream."""


class Stream:
    __slots__ = (
        "_base",
        "_connection",
        "_crowd",
        "_follow",
        "_full_since",
        "_goodbye",
        "_moved_at",
        "_options",
        "_sub",
        "_taken",
        "_taken_at",
        "_told",
        "_told_at",
        "_turns",
        "_written",
        "_written_at",
        "expires_at",
        "woken",
    )

    def __init__(
        self,
        subscription: Subscription,
        connection: Connection,
        options: DeliveryOptions,
        follow: bool = True,
        expires_at: float | None = None,
        turns: Turns | None = None,
    ) -> None:
        """`turns`: the line of all who catch up; None for a line of its own."""
        self.expires_at = expires_at
        """When the reader's access ends, by our monotonic clock; None for never."""
        self.woken: Callable[[], None] = _nobody
        """Called when `advance` has something to do. May be called when it has not, or is at it already."""
        self._sub = subscription
        self._connection = connection
        self._options = options
        self._follow = follow
        self._turns = turns or catching_up()
        self._goodbye: Goodbye | None = None
        self._crowd: Crowd | None = None
        """The crowd it stands in; while it does, where it stands and what was written is the crowd's to know."""
        self._base = 0
        """What is to be added to the bytes the crowd has written, to have those written to this one."""
        self._full_since: float | None = None
        self._written_at = self._moved_at = self._taken_at = self._told_at = time.monotonic()
        self._written = 0
        """Bytes ever given to the connection."""
        self._taken = 0
        """How many of them its client had taken when we last looked."""
        self._told = subscription.cursor
        """The seq in the last `id:` the client got: what it would resume from."""
        connection.attend(self)

    # --- whoever drives it ------------------------------------------------------------------------------------------
    async def run(self) -> Notice | None:
        """Deliver until the end: returns the end notice (not yet written), or None if the reader did not follow.

        Raises Farewell when the stream must be given up, ConnectionError when the client is gone.
        """
        wake = self._alarm()
        try:
            while (end := await self.advance()) is WAITS:
                await wake.wait()
                wake.clear()
            return end
        finally:
            self.leave()

    async def advance(self) -> Notice | State | None:
        """Go on as far as it goes: `WAITS`, or the end as `run` tells it. Raises what `run` raises."""
        self._part()  # one who was woken for nothing may still stand there
        topic = self._sub.topic
        if not await self._catch_up():
            return WAITS
        if self._sub.ended:
            return wires.end(topic.state.last_seq, topic.state.status, self._retry_ms())
        if not self._follow and self._sub.cursor >= max(topic.last_seq, topic.state.last_seq):
            self._tell_position()
            return None
        self._wait()  # nothing was awaited since we saw that there is nothing to do: nothing was missed
        return WAITS

    def _wait(self) -> None:
        self._sub.pressed(yes=False)
        self._join()

    def at_once(self) -> bool:
        """Go on as far as it goes without waiting, for who has just come: true if all that is left to do is to wait.

        False: it is for `advance` to go on. Raises what `run` raises.
        """
        if not self._follow or not self._take_all(granted=False) or self._sub.ended:
            return False
        self._wait()
        return True

    async def linger(self, seconds: float) -> None:
        """After the end: stay open so much longer, with heartbeats. Raises what `run` raises."""
        wake = self._alarm()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    check(self._goodbye, self._connection)
                    await wake.wait()
                    wake.clear()
        except TimeoutError:
            return

    def leave(self) -> None:
        """The stream is over: nothing holds it here any more."""
        self._part()
        self._set_slow(slow=False)
        self.woken = _nobody
        self._connection.attend(None)

    def _alarm(self) -> asyncio.Event:
        wake = asyncio.Event()
        self.woken = wake.set
        return wake

    async def _catch_up(self) -> bool:
        """Write until the window has nothing more behind the cursor; false if the connection takes no more before that."""
        granted = False
        while (done := self._take_all(granted=granted)) is None:
            if not self._sub.behind or not (granted or self._turns.open or self._sub.waiting):
                await self._turns.mine()
                granted = True
                continue
            granted = False
            part = await self._read_back()
            if part is not None:
                self._give(part)
            elif self._sub.behind:
                await self._until_there()
        return done

    def _take_all(self, *, granted: bool) -> bool | None:
        """As `_catch_up`, as far as the window and this turn of the loop go; None if more has to be waited for.

        `granted`: this reader has waited for its turn.
        """
        while True:
            check(self._goodbye, self._connection)
            if self._connection.full:
                self._set_slow(slow=True)
                self._sub.pressed(yes=True)
                return False
            if not (granted or self._turns.open or self._sub.waiting) or self._sub.behind:
                return None
            granted = False
            part = self._sub.take()
            if part is not None:
                self._give(part)
                continue
            self._tell_position()
            if not self._connection.full:  # by these very words
                return True

    async def _until_there(self) -> None:
        """What comes next is being brought back: nobody is told. Who does not follow cannot be kept waiting for ever."""
        if not self._follow and time.monotonic() - self._moved_at > _PATIENCE_S:
            raise ConnectionResetError  # cut: a proper end would say that this is all there is
        await self._sub.topic.changed(1.0)

    async def _read_back(self) -> Slice | Notice | None:
        try:
            return await self._sub.read_back()
        except StoreUnavailable:
            return None  # heartbeats go on; whoever waits is tried again in a second

    # --- the crowd --------------------------------------------------------------------------------------------------
    def _join(self) -> None:
        self.moved(self._sub.topic.join(self, self._sub))

    @property
    def way(self) -> Way:
        return self._connection.way

    def moved(self, crowd: Crowd) -> None:
        """Called by the crowds: it stands in this one now."""
        self._read_off()
        self._crowd = crowd
        self._base = self._written - crowd.written

    def dismissed(self) -> None:
        """Called by the crowd: what comes next is to be done alone."""
        self._wake_up()

    def cut(self) -> None:
        """Called by the crowd: what it was told last did not reach the connection."""
        self._connection.abort()
        self._wake_up()

    def _part(self) -> None:
        if self._crowd is not None:
            self._read_off()
            self._sub.topic.leave(self._crowd, self)
            self._crowd = None

    def _read_off(self) -> None:
        """Know oneself what the crowd knows."""
        crowd = self._crowd
        if crowd is None:
            return
        written = self._base + crowd.written
        if written > self._written:
            self._written, self._written_at, self._told = written, crowd.written_at, crowd.told
        self._sub.follow(crowd.front)

    # --- called by the connection and the pulse, never waiting ------------------------------------------------------
    def paused(self) -> None:
        self._wake_up()

    def resumed(self) -> None:
        if self._full_since is not None:
            telemetry.DRAIN_LAG.observe(time.monotonic() - self._full_since)
        self._set_slow(slow=False)
        self._wake_up()

    def lost(self) -> None:
        self._wake_up()

    def beat(self, now: float) -> None:
        """Once a second: what silence, time and stuck sockets ask for."""
        self._read_off()
        if self.expires_at is not None and now >= self.expires_at:
            self.say_goodbye(AUTH_EXPIRED)
        elif self._connection.backlog:
            self._watch_backlog(now)
        else:
            self._taken_at = now
            self._tell_position()
            if (
                now - self._written_at >= self._options.heartbeat_s - 2
            ):  # beats, and the time of the last write, are a second coarse
                self._put(self._sub.wire.ping)

    def lag(self) -> Lag:
        """How far its client is behind, for metrics and people."""
        self._read_off()
        slow_s = 0.0 if self._full_since is None else time.monotonic() - self._full_since
        return Lag(self._sub.lag, self._connection.backlog, str(self._sub.topic.key), self._sub.wire.form, slow_s)

    def say_goodbye(self, goodbye: Goodbye) -> None:
        """End this stream soon; whoever drives it writes the notice and ends the connection."""
        if self._goodbye is None:
            self._goodbye = goodbye
            telemetry.GOODBYES.labels(goodbye.code).inc()
        if self._connection.full:
            self._connection.abort()  # no room for words
        self._wake_up()

    def _watch_backlog(self, now: float) -> None:
        taken = self._connection.given(self._written) - self._connection.backlog
        if taken > self._taken:
            self._taken_at = now
        self._taken = taken
        if now - self._taken_at >= self._options.slow_s:
            self.say_goodbye(SLOW)

    # --- small ------------------------------------------------------------------------------------------------------
    def _give(self, part: Slice | Notice) -> None:
        self._moved_at = time.monotonic()
        self._turns.spend(LOOK_BYTES + (len(part.data) if isinstance(part, Slice) else 0))
        if isinstance(part, Notice):
            telemetry.RESETS.inc()
            self._put(self._sub.wire.notice(part))
            self._told = self._sub.cursor
        elif part.data:
            self._put(part.data)
            self._told = part.told
            telemetry.delivered(self._sub.wire.form).inc(part.sent)

    def _put(self, data: bytes) -> None:
        self._written += len(data)
        self._base += len(data)
        self._written_at = time.monotonic()
        self._connection.put(data)
        if self._crowd is not None and self._connection.backlog:
            self._crowd.add(self)  # for what comes next there is another way

    def _tell_position(self) -> None:
        """Events were filtered out: move the cursor the client would resume from, at most once a second."""
        if self._sub.types is None or self._told >= self._sub.cursor:
            return
        now = time.monotonic()
        if now - self._told_at >= 1.0 or not self._follow:
            position, self._told, self._told_at = self._sub.cursor, self._sub.cursor, now
            self._put(self._sub.wire.notice(wires.position(position)))

    def _set_slow(self, *, slow: bool) -> None:
        if slow == (self._full_since is not None):
            return
        self._full_since = time.monotonic() if slow else None
        telemetry.SLOW_READERS.inc(1 if slow else -1)

    def _wake_up(self) -> None:
        self._part()
        self.woken()

    def _retry_ms(self) -> int:
        return random.randint(self._options.retry_min_ms, self._options.retry_max_ms)  # noqa: S311  (jitter)
