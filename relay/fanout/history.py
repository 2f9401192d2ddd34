"""Events that are no longer in a window, read in pages that all late readers of a run share.

Where a page comes from is decided by the cursor alone: the log, or below its floor what was fetched again from the
upstream (`old`), so nobody is ever handed over from one to the other. Whoever finds nothing in either has it fetched.

A page is the events behind one cursor, about `page_bytes` of them. Two hundred readers who join a finished run at its
start walk the same chain of pages: each is read from Redis once and turned into bytes once per wire. Pages never change,
so they may be forgotten at any time; the least recently used go first.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from relay.core.events import Event
from relay.core.filters import Types
from relay.core.ids import RunKey
from relay.core.window import Slice, cut
from relay.core.wires import AnyWire
from relay.fanout.topic import UNSEEN_BYTES, Topic
from relay.store.log import Log
from relay.store.old import Behind
from relay.store.redis import HISTORY

_EVENTS = 512
"""Most events of one page, and of one XRANGE."""
_FIRST = 8
"""Most events of the first page of a run of which we have seen no event: they may be of any size."""
_AGAIN_S = 0.9
"""For how long nobody looks again behind a cursor where nothing was, unless something is fetched meanwhile."""
_UNREACHABLE = 1024
"""Most cursors of one run for which that is remembered."""
_At = tuple[RunKey, str, int]
"""A run, which log of it (`LogState.born`: after a flush own seqs are given to other events), and a cursor."""
_SLICES = 2
"""How many wires' bytes a page keeps."""


class Page:
    """The events behind one cursor; never empty."""

    __slots__ = ("_slices", "_told", "events", "size")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.size = sum(len(event.json) for event in events)
        self._slices: dict[tuple[AnyWire, Types | None], Slice] = {}
        self._told: dict[Hashable, Any] = {}

    @property
    def cost(self) -> int:
        """What keeping it may take: the events, their bytes on the wires, and the objects around them."""
        return self.size * (1 + 2 * _SLICES) + 256 * len(self.events)

    def slice(self, wire: AnyWire, types: Types | None) -> Slice:
        found = self._slices.get((wire, types))
        if found is None:
            if len(self._slices) >= _SLICES:  # every filter makes its own bytes: a page must not grow with its readers
                self._slices.clear()
            found = self._slices[wire, types] = cut(self.events, wire, types, self.size + 1)
        return found

    def told(self, key: Hashable, tell: Callable[[Sequence[Event]], Any]) -> Any:
        """What `tell` makes of these events, remembered under `key`."""
        found = self._told.get(key)
        if found is None:
            if len(self._told) >= _SLICES:
                self._told.clear()
            found = self._told[key] = tell(self.events)
        return found


class Gone(NamedTuple):
    """In place of a page: nobody has what lies behind the cursor."""

    upto: int


class History:
    def __init__(self, log: Log, fetch: Callable[[RunKey, int], None], *, page_bytes: int, memory_bytes: int) -> None:
        self._log = log
        self._fetch = fetch
        """Called with a run and a cursor behind which the log was trimmed and nothing was fetched yet."""
        self._page_bytes = page_bytes
        self._memory_bytes = memory_bytes
        self._pages: OrderedDict[_At, Page] = OrderedDict()
        self._size = 0
        self._reading: dict[_At, asyncio.Event] = {}

    async def page(self, topic: Topic, cursor: int) -> Page | Gone | None:
        """The page behind `cursor`; None if there is nothing at the moment (it was asked for, if it has to be fetched)."""
        at = (topic.key, topic.state.born, cursor)
        while True:
            page = self._pages.get(at)
            if page is not None:
                self._pages.move_to_end(at)
                return page
            reading = self._reading.get(at)
            if reading is None:
                if topic.unreachable.get(cursor, 0.0) > time.monotonic():
                    return None
                return await self._read(topic, at)
            await reading.wait()  # then look again: the reader before us may have been cancelled

    async def read(self, topic: Topic, cursor: int, most: int) -> Behind:
        """Up to `most` events behind `cursor`, unshared; has them fetched if they are missing."""
        if topic.state.floor <= cursor:  # as far as we know
            events = (await self._log.read([(topic.key, cursor, most)], what=HISTORY))[0]
            if events and events[-1].seq == cursor + len(events):  # a step anywhere may be a new generation
                return Behind("log", events=events)
        # Nothing, or a hole, which may be the upstream's own or a head trimmed just now.
        found = await self._log.old.behind(topic.key, cursor, most)
        if found.where == "missing":
            self._fetch(topic.key, cursor)
        return found

    async def _read(self, topic: Topic, at: _At) -> Page | Gone | None:
        cursor = at[2]
        done = self._reading[at] = asyncio.Event()
        try:
            unseen = topic.mean_bytes == UNSEEN_BYTES
            most = max(4, min(_FIRST if unseen else _EVENTS, int(self._page_bytes / topic.mean_bytes)))
            unreachable = topic.unreachable  # a new one as soon as something is fetched: what we hear may be older
            found = await self.read(topic, cursor, most)
            if found.where == "gone":
                return Gone(found.gone)
            if found.where == "missing" and len(unreachable) < _UNREACHABLE:
                unreachable[cursor] = time.monotonic() + _AGAIN_S
            if not found.events:
                return None
            page = Page(found.events)
            topic.mean_bytes += (page.size / len(found.events) - topic.mean_bytes) * (1 if unseen else 0.5)
            self._keep(at, page)
            return page
        finally:
            del self._reading[at]
            done.set()

    def _keep(self, at: _At, page: Page) -> None:
        self._pages[at] = page
        self._size += page.cost
        while self._size > self._memory_bytes and self._pages:
            _, oldest = self._pages.popitem(last=False)
            self._size -= oldest.cost
