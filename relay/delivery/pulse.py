"""Once a second, for all open streams of the process: heartbeats, expired access, stuck readers. One task, not one each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from relay import telemetry
from relay.core.errors import Overloaded
from relay.core.goodbye import DRAIN, Goodbye
from relay.delivery.stream import Stream


class Pulse:
    def __init__(self, most: int) -> None:
        self._most = most
        self._streams: set[Stream] = set()
        self._taken = 0
        self._draining = False

    @property
    def count(self) -> int:
        return len(self._streams)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a stream's place from before its 200. Raises Overloaded: a full house refuses, it never evicts."""
        if self._draining:
            raise Overloaded(DRAIN.text, code="relay.draining", retry_after_s=_jitter(1, 3))
        if self._taken >= self._most:
            raise Overloaded("too many open streams", retry_after_s=_jitter(2, 10))
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    @contextmanager
    def beating(self, stream: Stream, wire: str) -> Iterator[None]:
        """Look after this stream for as long as the block lasts."""
        viewers = telemetry.VIEWERS.labels(wire)
        self._streams.add(stream)
        viewers.inc()
        try:
            yield
        finally:
            self._streams.discard(stream)
            viewers.dec()

    def drain(self, goodbye: Goodbye = DRAIN) -> None:
        """Tell everybody goodbye and let nobody in any more."""
        self._draining = True
        for stream in tuple(self._streams):
            stream.say_goodbye(goodbye)

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(1.0)
            now, wall = time.monotonic(), time.time()
            for stream in tuple(self._streams):
                stream.beat(now, wall)


def _jitter(low: float, high: float) -> float:
    return random.uniform(low, high)  # noqa: S311  (jitter, not a secret)
