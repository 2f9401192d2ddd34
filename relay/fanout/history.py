"""Events that are no longer in a window, read from the log in pages that all late readers of a run share.

A page is the events behind one cursor, about `page_bytes` of them. Two hundred readers who join a finished run at its
start walk the same chain of pages: each is read from Redis once and turned into bytes once per wire. Pages never change
(a log only grows), so they may be forgotten at any time; the least recently used go first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from relay.core.events import Event
from relay.core.filters import Types
from relay.core.ids import RunKey
from relay.core.window import Slice, cut
from relay.core.wires import Wire
from relay.fanout.topic import Topic
from relay.store.log import Log

_EVENTS = 512
"""Most events of one page, and of one XRANGE."""
_SLICES = 2
"""How many wires' bytes a page keeps."""


class Page:
    """The events behind one cursor; never empty."""

    __slots__ = ("_slices", "events", "size")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.size = sum(len(event.json) for event in events)
        self._slices: dict[tuple[Wire, Types | None], Slice] = {}

    @property
    def cost(self) -> int:
        """What keeping it may take: the events, their bytes on the wires, and the objects around them."""
        return self.size * (1 + _SLICES) + 256 * len(self.events)

    def slice(self, wire: Wire, types: Types | None) -> Slice:
        found = self._slices.get((wire, types))
        if found is None:
            if len(self._slices) >= _SLICES:  # every filter makes its own bytes: a page must not grow with its readers
                self._slices.clear()
            found = self._slices[wire, types] = cut(self.events, wire, types, self.size + 1)
        return found


class History:
    def __init__(self, log: Log, *, page_bytes: int, memory_bytes: int) -> None:
        self._log = log
        self._page_bytes = page_bytes
        self._memory_bytes = memory_bytes
        self._pages: OrderedDict[tuple[RunKey, int], Page] = OrderedDict()
        self._size = 0
        self._reading: dict[tuple[RunKey, int], asyncio.Event] = {}

    async def page(self, topic: Topic, cursor: int) -> Page | None:
        """The page behind `cursor`; None if the log has nothing there at the moment."""
        at = (topic.key, cursor)
        while True:
            page = self._pages.get(at)
            if page is not None:
                self._pages.move_to_end(at)
                return page
            reading = self._reading.get(at)
            if reading is None:
                return await self._read(topic, cursor)
            await reading.wait()  # then look again: the reader before us may have been cancelled

    async def _read(self, topic: Topic, cursor: int) -> Page | None:
        at = (topic.key, cursor)
        done = self._reading[at] = asyncio.Event()
        try:
            most = max(4, min(_EVENTS, int(self._page_bytes / topic.mean_bytes)))
            events = (await self._log.read([(topic.key, cursor, most)]))[0]
            if not events:
                return None
            page = Page(events)
            topic.mean_bytes += (page.size / len(events) - topic.mean_bytes) * 0.5
            self._keep(at, page)
            return page
        finally:
            del self._reading[at]
            done.set()

    def _keep(self, at: tuple[RunKey, int], page: Page) -> None:
        self._pages[at] = page
        self._size += page.cost
        while self._size > self._memory_bytes and self._pages:
            _, oldest = self._pages.popitem(last=False)
            self._size -= oldest.cost
