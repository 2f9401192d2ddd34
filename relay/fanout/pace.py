"""How soon after a flush the next one may follow: at once while there is room, up to 10 ms later under load.

A flush costs one write per viewer, however many events it brings; so when flushing takes a fair part of the time between
two events, fewer flushes with more events each give that time back. Nothing is merged: the events are the same, a few of
them come some milliseconds later. The first event after a pause is never delayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_MOST_S: Final = 0.010
"""Longest pause between the beginnings of two flushes."""
_LEAST_S: Final = 0.002
"""The first step up from none; less is not worth a timer."""
_SHARE: Final = 0.2
"""The part of the time from flush to flush that flushing may take before the pause grows."""


class Pace:
    """Calls `flush` soon after `ask`, once for all that asked meanwhile."""

    __slots__ = ("_asked", "_began", "_flush", "_gap", "_loop", "_pause")

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = False
        self._pause = 0.0
        self._began = 0.0
        """When the last flush began, by the loop's clock."""
        self._gap = 1.0

    def ask(self) -> None:
        if self._asked:
            return
        self._asked = True
        loop = self._loop = self._loop or asyncio.get_running_loop()
        if self._pause and loop.time() < self._began + self._pause:
            loop.call_at(self._began + self._pause, self._go)
        else:
            loop.call_soon(self._go)

    def _go(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._gap, self._began = now - self._began, now
        self._asked = False
        self._flush()
        # Not now: a loop may send what was written only when this turn ends, and that is the larger part of the cost.
        self._loop.call_soon(self._learn)

    def _learn(self) -> None:
        assert self._loop is not None
        took = self._loop.time() - self._began
        if took > self._gap * _SHARE:
            self._pause = min(_MOST_S, max(_LEAST_S, self._pause * 2))
        elif took < self._gap * _SHARE / 2:  # not at the same share: the pause itself has made it smaller
            self._pause = self._pause / 2 if self._pause > _LEAST_S else 0.0
