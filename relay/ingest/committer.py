"""Group commit: while one round trip to Redis is under way, everything the pumps bring is gathered for the next one.

A run has at most one append here (who brings it waits for the answer, as a task or by being told); a slow Redis therefore
slows the upstream reads down (TCP back-pressure) instead of filling our memory.

A round trip costs far more than an append in it, and a quick Redis would make us pay for one with every event. So the next
one starts no sooner than `_GATHER_S` after the one before, and a little later with many runs, whose events come one by one.
What comes after a pause goes at once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from relay import telemetry
from relay.core.errors import LeaseLost, LogMoved
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.log import Append, Log

_RUNS: Final = 256
_BYTES: Final = 4 * 1_048_576
_GATHER_S: Final = 0.002
_EACH_S: Final = 0.0001
"""So much longer for each append of the round trip before, up to `_MOST_S`: a thousand runs with ten events a second each
make half as many round trips, for two milliseconds."""
_MOST_S: Final = 0.005

Told = Callable[[Exception | None], None]
Durable = Callable[[RunKey, int, Sequence[Event]], None]


class Waiting:
    """One append on its way."""

    __slots__ = ("append", "at", "told", "withdrawn")

    def __init__(self, append: Append, told: Told) -> None:
        self.append = append
        self.told = told
        self.at = time.monotonic()
        self.withdrawn = False
        """Who brought it is gone: it must not be written behind its back, and nobody is to be told."""


class Committer:
    def __init__(self, log: Log) -> None:
        self.durable: Durable = lambda key, prev, events: None
        """Called with what Redis has confirmed: a run, the seq it was written behind, and its events. Must not raise."""
        self._log = log
        self._waiting: deque[Waiting] = deque()
        self._some = asyncio.Event()
        self._began_at = 0.0
        self._pause_s = _GATHER_S

    def submit(self, append: Append, told: Told) -> Waiting:
        """Calls `told` once, later: None when the events are durable, else LogMoved, LeaseLost or StoreUnavailable."""
        waiting = Waiting(append, told)
        self._waiting.append(waiting)
        self._some.set()
        return waiting

    async def append(self, append: Append) -> None:
        """Returns when the events are durable. Raises LogMoved, LeaseLost or StoreUnavailable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told(error: Exception | None) -> None:
            if not done.done():
                done.set_result(None) if error is None else done.set_exception(error)

        waiting = self.submit(append, told)
        try:
            await done
        finally:
            waiting.withdrawn = True

    async def run(self) -> None:
        """For ever: one group commit after the other."""
        while True:
            await self._some.wait()
            await self._gather()
            batch = self._take()
            if not self._waiting:
                self._some.clear()
            if batch:
                await self._commit(batch)

    async def _gather(self) -> None:
        pause_s = self._began_at + self._pause_s - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        self._began_at = time.monotonic()

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._waiting and len(batch) < _RUNS and size < _BYTES:
            waiting = self._waiting.popleft()
            if waiting.withdrawn:
                continue
            size += sum([len(event.json) for event in waiting.append.events])
            batch.append(waiting)
        self._pause_s = min(_MOST_S, _GATHER_S + _EACH_S * len(batch))
        return batch

    async def _commit(self, batch: list[Waiting]) -> None:
        try:
            answers: list[Exception | None] = await self._log.append([waiting.append for waiting in batch])
        except Exception as error:  # whatever it was, it belongs to those who wait: they must never wait for ever
            answers = [error] * len(batch)
        _count(batch, answers)
        durable = self.durable
        for waiting, answer in zip(batch, answers, strict=True):
            append = waiting.append
            if answer is None and append.events:
                durable(append.lease.key, append.prev, append.events)
            if not waiting.withdrawn:
                waiting.told(answer)


def _count(batch: list[Waiting], answers: list[Exception | None]) -> None:
    telemetry.APPEND_COMMITS.inc()
    telemetry.APPEND_RUNS.inc(len(batch))
    telemetry.APPEND_SECONDS.observe(time.monotonic() - batch[0].at)
    ingested: dict[str, int] = {}
    for waiting, answer in zip(batch, answers, strict=True):
        if answer is None:
            upstream = waiting.append.lease.key.upstream
            ingested[upstream] = ingested.get(upstream, 0) + len(waiting.append.events)
        elif isinstance(answer, LogMoved | LeaseLost):
            telemetry.APPEND_REFUSED.labels(answer.code).inc()
    for upstream, events in ingested.items():
        telemetry.ingested(upstream).inc(events)
