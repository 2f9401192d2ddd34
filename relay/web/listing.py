"""The runs of a thread, newest first: one page, and as many more as it takes to get back to what a reader knows.

A listing is shared by all readers of its thread for the moment it is believed: each says what it knows, and whoever knows
least has the next page read, for all. What was read stays if a page fails. No more than `MOST_PAGES` are read; whether
the list goes back far enough is told, never guessed: a short page is believed only where that is documented.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from relay.core.errors import RelayError
from relay.core.events import TERMINAL
from relay.core.ids import RunKey
from relay.core.times import unix
from relay.ingest.own_upstream import OwnUpstream
from relay.ingest.upstream import Upstream
from relay.ingest.walk import Walk, row_of
from relay.providers.own import ThreadQuery
from relay.web.directory import AnyUpstream
from relay.web.gathering import LATER

MOST_PAGES: Final = 25
"""5,000 runs of an Arkloop's thread, 2,500 of others': more that began while a reader was away are said to be missed."""


class Row(NamedTuple):
    """What a reader of a thread needs of a run in its list."""

    key: RunKey
    made_us: int
    """Microseconds since 1970, never later than now by the upstream's clock; 0 if the upstream does not say it."""
    over: bool


class Page(NamedTuple):
    runs: list[dict[str, Any]]
    last: bool
    """No run is older than these."""
    more: bool
    """There is a way to ask for older ones."""


class Pages(Protocol):
    async def first(self) -> Page: ...
    async def next(self) -> Page: ...


class Listing:
    def __init__(self, upstream: AnyUpstream, thread_id: str) -> None:
        self.rows: list[Row] = []
        self._upstream = upstream
        self._pages: Pages
        if isinstance(upstream, OwnUpstream):
            self._pages = _OfOwnSeq(upstream, thread_id)
        else:
            self._pages = _ByTime(upstream, thread_id)
        self._keys: set[RunKey] = set()
        self._read = 0
        self._last = False
        self._more = True
        self._reading = asyncio.Lock()

    async def open(self) -> Listing:
        """With its newest page."""
        self._take(await self._pages.first())
        return self

    async def back_to(self, known: Callable[[Sequence[Row]], bool]) -> bool:
        """Read on until a reader knows what comes before these rows. False: that is so far away that nobody reads on."""
        async with self._reading:
            while not known(self.rows) and self._more and self._read < MOST_PAGES:
                self._take(await self._pages.next())
        return self._last or known(self.rows)

    def _take(self, page: Page) -> None:
        self._read += 1
        self._last, self._more = page.last, page.more and not page.last
        now_us = round(self._upstream.now_s() * 1_000_000)
        rows = (_row(self._upstream.name, run, now_us) for run in page.runs)
        self.rows += self._fresh(rows)

    def _fresh(self, rows: Iterable[Row]) -> list[Row]:
        fresh = {row.key: row for row in rows if row.key not in self._keys}
        self._keys |= fresh.keys()
        return list(fresh.values())


class _ByTime:
    """A system with a list of all runs that can be asked for those of a thread: that of a thread ends with one page."""

    def __init__(self, upstream: Upstream, thread_id: str) -> None:
        self._upstream = upstream
        self._thread_id = thread_id
        self._most = upstream.provider.list_limit
        self._walk = Walk(self._most)

    async def first(self) -> Page:
        provider = self._upstream.provider
        found = provider.runs(await self._upstream.ask(provider.list_thread_runs(self._thread_id, limit=self._most)))
        return Page(found, len(found) < self._most, more=True)

    async def next(self) -> Page:
        provider = self._upstream.provider
        query = msgspec.structs.replace(self._walk.query(), thread_id=self._thread_id)
        found = provider.rows(await self._upstream.ask(provider.list_runs(query)))
        runs = [run for run in found if run is not None]
        self._walk.turn([row_of(run) for run in runs], len(found))
        ours = [run for run in runs if run.get("thread_id") == self._thread_id]  # the filter takes prefixes
        return Page(ours, len(found) < self._most, more=not self._walk.over)


class _OfOwnSeq:
    """A system whose lists of a thread have an offset, or begin behind an id; some know neither, and nobody says which."""

    def __init__(self, upstream: OwnUpstream, thread_id: str) -> None:
        self._upstream = upstream
        self._thread_id = thread_id
        self._most = upstream.provider.list_limit
        self._have = 0
        self._seen: set[str] = set()
        self._behind: str | None = None

    async def first(self) -> Page:
        return await self._page(ThreadQuery(self._most))

    async def next(self) -> Page:
        by_id = self._upstream.provider.pages_by == "id"
        query = ThreadQuery(self._most, after=self._behind) if by_id else ThreadQuery(self._most, offset=self._have)
        try:
            return await self._page(query)
        except RelayError as error:
            if error.status in LATER:
                raise
            return Page([], last=False, more=False)

    async def _page(self, query: ThreadQuery) -> Page:
        runs = await self._upstream.thread_runs(self._thread_id, query)
        ids = [str(run["run_id"]) for run in runs]
        for run_id in ids:
            self._upstream.note_thread(run_id, self._thread_id)
        repeated = bool(ids) and self._seen.issuperset(ids)
        self._seen.update(ids)
        self._have += len(ids)
        self._behind = ids[-1] if ids else None
        return Page(runs, last=not ids, more=not repeated)


def _row(upstream: str, run: dict[str, Any], now_us: int) -> Row:
    made_us = round((unix(run.get("created_at")) or 0.0) * 1_000_000)
    over = str(run.get("status")) in TERMINAL
    return Row(RunKey(upstream, str(run["run_id"])), min(made_us, now_us), over)
