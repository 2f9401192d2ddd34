"""Group commit: while one round trip to Redis is under way, everything the pumps bring is gathered for the next one.

A pump waits for its own append, so a run has at most one here; a slow Redis therefore slows the upstream reads down
(TCP back-pressure) instead of filling our memory.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from relay import telemetry
from relay.core.errors import LeaseLost, LogMoved
from relay.store.log import Append, Log

_RUNS = 256
_BYTES = 4 * 1_048_576


class Committer:
    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiting: deque[tuple[Append, asyncio.Future[None], float]] = deque()
        self._some = asyncio.Event()

    async def append(self, append: Append) -> None:
        """Returns when the events are durable. Raises LogMoved, LeaseLost or StoreUnavailable."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((append, done, time.monotonic()))
        self._some.set()
        await done

    async def run(self) -> None:
        """For ever: one group commit after the other."""
        while True:
            await self._some.wait()
            batch = self._take()
            if not self._waiting:
                self._some.clear()
            if batch:
                await self._commit(batch)

    def _take(self) -> list[tuple[Append, asyncio.Future[None], float]]:
        batch: list[tuple[Append, asyncio.Future[None], float]] = []
        size = 0
        while self._waiting and len(batch) < _RUNS and size < _BYTES:
            entry = self._waiting.popleft()
            if entry[1].done():  # its pump was cancelled meanwhile: it must not write behind its back
                continue
            size += sum(len(event.json) for event in entry[0].events)
            batch.append(entry)
        return batch

    async def _commit(self, batch: list[tuple[Append, asyncio.Future[None], float]]) -> None:
        try:
            answers: list[Exception | None] = await self._log.append([append for append, _, _ in batch])
        except Exception as error:  # whatever it was, it belongs to those who wait: they must never wait for ever
            answers = [error] * len(batch)
        _count(batch, answers)
        for (_, done, _), answer in zip(batch, answers, strict=True):
            if done.done():
                continue
            if answer is None:
                done.set_result(None)
            else:
                done.set_exception(answer)


def _count(batch: list[tuple[Append, asyncio.Future[None], float]], answers: list[Exception | None]) -> None:
    now = time.monotonic()
    telemetry.APPEND_COMMITS.inc()
    telemetry.APPEND_RUNS.inc(len(batch))
    telemetry.APPEND_SECONDS.observe(now - batch[0][2])
    for (append, _, _), answer in zip(batch, answers, strict=True):
        if answer is None:
            telemetry.EVENTS_INGESTED.labels(append.lease.key.upstream).inc(len(append.events))
        elif isinstance(answer, LogMoved | LeaseLost):
            telemetry.APPEND_REFUSED.labels(answer.code).inc()
