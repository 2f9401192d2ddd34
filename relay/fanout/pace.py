"""How soon after a flush the next one may follow: at once while there is room, up to 10 ms later under load.

A flush costs one write per viewer, however many events it brings; so when flushing takes a fair part of the time between
two events, fewer flushes with more events each give that time back. Nothing is merged: the events are the same, a few of
them come some milliseconds later. The first event after a pause is never delayed.

Each run has a pace of its own; the turn of the event loop in which the flushes are made is one for all that are due then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

_MOST_S: Final = 0.010
"""Longest pause between the beginnings of two flushes."""
_LEAST_S: Final = 0.002
"""The first step up from none; less is not worth a timer."""
_SHARE: Final = 0.2
"""The part of the time from flush to flush that flushing may take before the pause grows."""


class Flushes:
    """All flushes that are due in one turn of the event loop: made one after the other, in the order they were asked for.

    A thousand runs with an event each would cost a callback of the loop and a look at the clock each, twice.
    """

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: list[Pace] = []

    def soon(self, pace: Pace) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._go)
        self._due.append(pace)

    def _go(self) -> None:
        due, self._due = self._due, []
        self.now(*due)

    def now(self, *due: Pace) -> None:
        loop = asyncio.get_running_loop()
        # Learnt next turn: a loop may send what was written only when this turn ends, and that is the larger part of it.
        loop.call_soon(_learn, due)
        now = loop.time()
        for pace in due:
            pace.asked = False
            pace.gap, pace.began = now - pace.began, now
            try:
                pace.flush()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # one that breaks takes no other with it
                loop.call_exception_handler({"message": f"a flush failed: {error!r}", "exception": error})


def _learn(flushed: Sequence[Pace]) -> None:
    now = asyncio.get_running_loop().time()
    for pace in flushed:
        took = now - pace.began
        if pace.pause or took > pace.gap * _SHARE:  # seldom
            pace.learn(took)


class Pace:
    """Calls `flush` soon after `ask`, once for all that asked meanwhile."""

    __slots__ = ("_flushes", "asked", "began", "flush", "gap", "pause")

    def __init__(self, flush: Callable[[], None], flushes: Flushes | None = None) -> None:
        """`flushes`: those of all runs of the process; None for its own."""
        self.flush = flush
        self.asked = False
        self.pause = 0.0
        self.began = 0.0
        """When the last flush began, by the loop's clock."""
        self.gap = 1.0
        self._flushes = flushes or Flushes()

    def ask(self) -> None:
        if self.asked:
            return
        self.asked = True
        if self.pause:
            loop = asyncio.get_running_loop()
            due = self.began + self.pause
            if loop.time() < due:
                loop.call_at(due, self._flushes.now, self)
                return
        self._flushes.soon(self)

    def learn(self, took: float) -> None:
        if took > self.gap * _SHARE:
            self.pause = min(_MOST_S, max(_LEAST_S, self.pause * 2))
        elif took < self.gap * _SHARE / 2:  # not at the same share: the pause itself has made it smaller
            self.pause = self.pause / 2 if self.pause > _LEAST_S else 0.0
