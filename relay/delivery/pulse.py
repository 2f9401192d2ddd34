"""All open streams of the process: once a second heartbeats, expired access, stuck readers; at shutdown their goodbyes.

One task, not one each.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from relay import telemetry
from relay.core.errors import Overloaded
from relay.core.goodbye import AGED, DRAIN, Goodbye
from relay.core.hold import Hold
from relay.delivery.turns import catching_up

_TICK_S: Final = 0.05
_BEATS: Final = 256
"""So many streams are looked after at once."""
_LOOK_S: Final = 0.2
"""So long a look at all viewers' lags serves."""
_TOLD_PER_S: Final = 20.0
"""So few reconnects are no storm anywhere: a window that would tell fewer is shortened."""


_What = TypeVar("_What")


class Beating(Protocol):
    """A stream, as the pulse sees it."""

    def beat(self, now: float) -> None:
        """Called once a second; `now` is monotonic."""

    def say_goodbye(self, goodbye: Goodbye) -> None:
        """End soon."""


class Lag(NamedTuple):
    """How far one viewer is behind, at the moment."""

    events: int
    backlog: int
    """Bytes written that its kernel has not taken."""
    run: str
    wire: str
    slow_s: float
    """For how long it has taken less than there is for it."""

    @property
    def shown(self) -> dict[str, object]:
        return {**self._asdict(), "slow_s": round(self.slow_s, 1)}


@runtime_checkable
class Lagging(Protocol):
    """A stream that can tell how far its viewer is behind."""

    def lag(self) -> Lag: ...


class Pulse:
    def __init__(self, most: int, *, max_age_s: float = 0.0) -> None:
        """`max_age_s`: how old streams may become that can be resumed; 0 for as old as they like."""
        self._most = most
        self._max_age_s = max_age_s or math.inf
        self._streams: dict[Beating, float] = {}
        """Each with the moment at which it is old enough."""
        self._taken = 0
        self._draining = False
        self._seen: dict[Literal["events", "backlog"], list[int]] = {}
        self._looked_at = -math.inf
        self.turns = catching_up()
        """The line of all its streams that catch up."""
        self._free_one = self._free
        """One for all streams: a bound method each would be memory of every viewer."""
        for share in (0.5, 0.99, 1.0):
            telemetry.VIEWER_LAG.labels(f"{share:g}").set_function(partial(self._spread, "events", share))
            telemetry.VIEWER_BACKLOG.labels(f"{share:g}").set_function(partial(self._spread, "backlog", share))

    def lagging(self, most: int) -> list[Lag]:
        """The viewers that are furthest behind."""
        return sorted((lag for lag in self._lags() if lag.events or lag.backlog), reverse=True)[:most]

    def _lags(self) -> Iterator[Lag]:
        return (stream.lag() for stream in tuple(self._streams) if isinstance(stream, Lagging))

    def _spread(self, what: Literal["events", "backlog"], share: float) -> int:
        """What all but the slowest `1 - share` of the viewers are behind, at most."""
        values = self._behind()[what]
        return values[min(len(values) - 1, int(len(values) * share))] if values else 0

    def _behind(self) -> dict[Literal["events", "backlog"], list[int]]:
        """All viewers' lags, ascending. One look for all gauges of a scrape: with ten thousand viewers it takes a while."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            lags = list(self._lags())
            self._seen = {"events": sorted(lag.events for lag in lags), "backlog": sorted(lag.backlog for lag in lags)}
            self._looked_at = now
        return self._seen

    @property
    def count(self) -> int:
        return len(self._streams)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a stream's place for as long as the block lasts. Raises Overloaded."""
        with Hold() as hold:
            self.take_place(hold)
            yield

    def take_place(self, hold: Hold) -> None:
        """A stream's place, taken before its 200, until `hold` is released.

        Raises Overloaded: a full house refuses, it never evicts.
        """
        if self._draining:
            raise Overloaded(DRAIN.text, code="relay.draining", retry_after_s=_jitter(1, 3))
        if self._taken >= self._most:
            raise Overloaded("too many open streams", retry_after_s=_jitter(2, 10))
        self._taken += 1
        hold.add(self._free_one)

    def _free(self) -> None:
        self._taken -= 1

    @contextmanager
    def beating(self, stream: Beating, wire: str) -> Iterator[None]:
        """Look after this stream for as long as the block lasts."""
        self.add(stream, wire)
        try:
            yield
        finally:
            self.discard(stream, wire)

    def add(self, stream: Beating, wire: str, *, ages: bool = True) -> None:
        """Look after this stream until it is discarded. `ages`: it is none the worse for being cut once in a while."""
        self._streams[stream] = self._old_at() if ages and self._max_age_s != math.inf else math.inf
        telemetry.viewers(wire).inc()
        if self._draining:  # it was let in before, and made ready meanwhile
            stream.say_goodbye(DRAIN)

    def discard(self, stream: Beating, wire: str) -> None:
        self._streams.pop(stream, None)
        telemetry.viewers(wire).dec()

    async def drain(self, window_s: float, goodbye: Goodbye = DRAIN) -> None:
        """Tell one stream after the other goodbye, spread over a window; those that come meanwhile too.

        Ends early when nobody is left.
        """
        now, owed = time.monotonic(), 0.0
        until = now + min(window_s, len(self._streams) / _TOLD_PER_S)
        while self._streams and now < until:
            # As many of those that are left as keeps the pace even, whoever has come or gone since.
            owed += len(self._streams) * min(1.0, _TICK_S / (until - now))
            for stream in random.sample(tuple(self._streams), min(int(owed), len(self._streams))):
                _alone(stream.say_goodbye, goodbye)
            owed %= 1
            await asyncio.sleep(min(_TICK_S, until - now))
            now = time.monotonic()

    def close(self, goodbye: Goodbye = DRAIN) -> None:
        """Let nobody in any more, and tell everybody who is left."""
        self._draining = True
        for stream in tuple(self._streams):
            _alone(stream.say_goodbye, goodbye)

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(1.0)
            for number, stream in enumerate(tuple(self._streams), 1):
                if stream in self._streams:
                    self._beat(stream, time.monotonic())
                if number % _BEATS == 0:
                    await asyncio.sleep(0)  # ten thousand beats take tens of milliseconds: events do not wait for them

    def _beat(self, stream: Beating, now: float) -> None:
        _alone(stream.beat, now)
        if now >= self._streams.get(stream, math.inf):
            self._streams[stream] = math.inf
            _alone(stream.say_goodbye, AGED)

    def _old_at(self) -> float:
        """Those that came together do not leave together."""
        return time.monotonic() + self._max_age_s * _jitter(0.5, 1.0)


def _alone(do: Callable[[_What], None], what: _What) -> None:
    """What breaks for one stream breaks for no other, and does not stop the pulse."""
    try:
        do(what)
    except Exception:
        telemetry.logger().exception("stream.crashed")


def _jitter(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311  (jitter, not a secret)
