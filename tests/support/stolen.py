"""The time that a busy machine took away from a test, so that a law about time is about relay's time alone."""

from __future__ import annotations

import asyncio
import time

_TICK_S = 0.01


class Stopwatch:
    """`async with`: how long something here took, less the time in which this process did not get to run.

    It ticks. What a tick comes late by is the machine's doing, unless this process itself worked meanwhile: that counts.
    """

    async def __aenter__(self) -> Stopwatch:
        self._began, self._stolen_s = time.monotonic(), 0.0
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ticking.cancel()

    @property
    def spent_s(self) -> float:
        """So far."""
        return time.monotonic() - self._began - self._stolen_s

    async def _tick(self) -> None:
        at, worked = time.monotonic(), time.process_time()
        while True:
            await asyncio.sleep(_TICK_S)
            now, work = time.monotonic(), time.process_time()
            self._stolen_s += max(0.0, now - at - _TICK_S - (work - worked))
            at, worked = now, work
