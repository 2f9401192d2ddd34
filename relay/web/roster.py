"""Which runs belong on a connection that did not name them: those of a thread, and the sub-runs of runs.

Nothing tells us when one starts, so the upstream is asked every two seconds: once for all connections of this process
that want to know the same. A run that started and ended between two looks, or while its reader was away, is read all the
same: a thread's cursor has a mark, the time up to which it knows all runs that were made, and the list is read as far
back as that.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import replace
from typing import Any, Final

from relay.core.errors import RelayError, TooLarge, TooManyRequests
from relay.core.events import MAX_SEQ
from relay.core.ids import RunKey, is_id
from relay.core.vector import Place, Vector
from relay.delivery.multiplex import Multiplex
from relay.ingest.walk import rfc3339
from relay.web.directory import AnyUpstream, Directory
from relay.web.gathering import LATER, Gathering, Wish
from relay.web.listing import Listing, Row

LOOK_S: Final = 2.0
OVERLAP_US: Final = 30 * 1_000_000
"""So much earlier than the mark a run may say it was made, and yet be new: times tie, and rows are committed late."""
_MOST: Final = 10_000


class Looks:
    """Answers of upstreams, each asked for once however many want it, and believed for a moment; refusals too."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: OrderedDict[tuple[str, ...], tuple[float, Any]] = OrderedDict()
        self._asking: dict[tuple[str, ...], asyncio.Event] = {}

    async def thread(self, upstream: AnyUpstream, thread_id: str) -> Listing:
        """The runs of a thread: its newest page, and what else its readers want."""
        listing: Listing = await self._look(("thread", upstream.name, thread_id), Listing(upstream, thread_id).open)
        return listing

    async def children(self, key: RunKey, *, fresh: bool = False) -> list[str]:
        """The sub-runs of a run, as far as its upstream names them; `fresh`: now."""

        async def ask() -> list[str]:
            named = (await self._directory.fetch(key)).get("child_run_ids")
            return [child for child in named if isinstance(child, str) and is_id(child)] if named else []

        return list(await self._look(("children", *key), ask, fresh=fresh))

    async def _look(self, at: tuple[str, ...], ask: Callable[[], Awaitable[Any]], *, fresh: bool = False) -> Any:
        while (asking := self._asking.get(at)) is not None:
            await asking.wait()
        until, answer = self._kept.get(at, (0.0, None))
        if fresh or until < time.monotonic():
            answer = await self._ask(at, ask)
        if isinstance(answer, RelayError):
            raise answer
        return answer

    async def _ask(self, at: tuple[str, ...], ask: Callable[[], Awaitable[Any]]) -> Any:
        asking = self._asking[at] = asyncio.Event()
        try:
            answer: Any = await ask()
        except RelayError as error:
            answer = error
        finally:
            del self._asking[at]
            asking.set()
        now = time.monotonic()
        self._kept[at] = (now + LOOK_S * 0.9, answer)
        self._kept.move_to_end(at)
        while len(self._kept) > _MOST or next(iter(self._kept.values()))[0] < now:
            self._kept.popitem(last=False)
        return answer


class Thread:
    """The runs of one thread on one connection: those that are active when the reader comes, and all that start later."""

    def __init__(
        self,
        looks: Looks,
        upstream: AnyUpstream,
        thread_id: str,
        gathering: Gathering,
        multiplex: Multiplex,
        cursor: Vector,
        like: Wish,
    ) -> None:
        self._looks = looks
        self._upstream = upstream
        self._thread_id = thread_id
        self._gathering = gathering
        self._multiplex = multiplex
        self._tally = multiplex.tally
        self._cursor = cursor
        self._like = like
        self._known_us = multiplex.tally.mark
        """All runs made up to then were met, on this connection or before it."""
        self._met: dict[RunKey, int] = {}
        """Runs that need no second thought, and when they were made: those of the last list, and those of the tally."""
        self._waiting: dict[RunKey, int] = {}
        """Runs to be read as soon as there is room, oldest first."""
        self._broken: Listing | None = None
        """A list of which a page failed: it is read on. Begun anew, it might fail there again, for ever."""
        self._resumed = False
        """Whether the runs of the cursor were looked for."""
        self._crowded = False

    async def follow(self) -> None:
        """For ever, or until it is clear that there is no such thread."""
        troubled = False
        while True:
            try:
                await self._look()
                troubled = False
            except RelayError as error:
                again = error.status in LATER or bool(self._met)
                if not troubled:
                    self._multiplex.refuse(error, retrying=again)
                if not again:
                    return
                troubled = True
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        listing = self._broken = self._broken or await self._looks.thread(self._upstream, self._thread_id)
        missed = not await listing.back_to(self._knows_before)
        self._broken = None
        before_us, rows = self._known_us, listing.rows
        self._meet(rows)
        if missed:
            self._say_missed(before_us, rows)

    def _knows_before(self, rows: Sequence[Row]) -> bool:
        """Whether this reader knows all runs that are older than these."""
        if not self._known_us:
            return True  # what ended before it came is history
        made = [row.made_us for row in rows if row.made_us]
        if rows and not made:
            return True  # nothing tells old from new
        back = min(made, default=self._known_us) <= self._known_us - OVERLAP_US
        return back and (self._resumed or not self._cursor.reads_beyond(row.key for row in rows))

    def _say_missed(self, before_us: int, rows: Sequence[Row]) -> None:
        oldest_us = min((row.made_us for row in rows if row.made_us), default=0)
        details = {"made_after": rfc3339(before_us), "made_before": rfc3339(oldest_us)}
        message = "so many runs of this thread began meanwhile that the older of them are left out"
        self._multiplex.refuse(TooLarge(message, code="threads.runs_missed", details=details))

    def _meet(self, rows: Sequence[Row]) -> None:
        """Read what is new, oldest first. What had ended before the reader first came is history, and is only marked."""
        first = not self._known_us
        newest_us = max((row.made_us for row in rows), default=0)
        since_us = (self._known_us or newest_us) - OVERLAP_US
        for row in reversed(rows):
            if row.key not in self._met:
                self._sort(row, since_us, first=first)
        self._known_us = max(1, self._known_us, newest_us)
        self._resumed = True
        self._tally.settle()
        self._read_waiting()
        self._move_mark()
        self._forget({row.key for row in rows})

    def _sort(self, row: Row, since_us: int, *, first: bool) -> None:
        """The mark stays before a new run that waits; of any other that is read the cursor speaks from now on."""
        key = row.key
        self._met[key] = row.made_us
        new = row.made_us > since_us
        known = self._cursor.knows(key)
        if known or not row.over or (new and not first):
            self._waiting[key] = row.made_us
            if known or not new:
                self._tally.put(key, self._cursor.place(key))
        elif new:
            self._tally.put(key, Place(MAX_SEQ, told=True))

    def _read_waiting(self) -> None:
        for key in list(self._waiting):
            wish = replace(self._like, run_id=key.run_id, upstream=key.upstream, thread_id=self._thread_id)
            try:
                self._gathering.want(wish)
            except TooManyRequests as error:
                if not self._crowded:
                    self._multiplex.refuse(error, run_id=key.run_id, retrying=True)
                self._crowded = True
                return
            del self._waiting[key]
            if key not in self._tally:
                self._tally.put(key, self._cursor.place(key))
        self._crowded = False

    def _move_mark(self) -> None:
        held_us = min((us for key, us in self._waiting.items() if key not in self._tally), default=self._known_us)
        self._tally.mark = max(1, self._tally.mark, min(self._known_us, held_us))

    def _forget(self, listed: Set[RunKey]) -> None:
        """A run that has ended, and is so old that it could not be taken for a new one, needs no place in the cursor."""
        for key, made_us in list(self._met.items()):
            if key in self._waiting or self._gathering.reads(key):
                continue
            if made_us <= self._tally.mark - OVERLAP_US and self._tally.told(key):
                self._tally.drop(key)
                self._gathering.found.discard(key)
            if key not in listed and key not in self._tally:
                del self._met[key]


class Children:
    """The sub-runs of all runs of a connection, and theirs."""

    def __init__(self, looks: Looks, gathering: Gathering, like: Wish) -> None:
        self._looks = looks
        self._gathering = gathering
        self._like = like
        self._over: set[RunKey] = set()
        """Runs that had ended when we looked last: what we were told may still be older than their end."""
        self._settled: set[RunKey] = set()
        """Runs that had ended before: they start no more sub-runs."""

    async def follow(self) -> None:
        """Until every run has ended, and its sub-runs are known."""
        gathering = self._gathering
        while gathering.opening or gathering.found - self._settled:
            for key in list(gathering.found - self._settled):
                over = not gathering.reads(key)
                if await self._look(key) and over:
                    (self._settled if key in self._over else self._over).add(key)
            await asyncio.sleep(LOOK_S)

    async def _look(self, key: RunKey) -> bool:
        """Whether we were told, and could begin to read all of them."""
        try:
            names = await self._looks.children(key)
            for child in names:
                known = self._gathering.found | self._gathering.refused
                if child not in self._gathering and RunKey(key.upstream, child) not in known:
                    self._gathering.want(replace(self._like, run_id=child, upstream=key.upstream))
        except RelayError as error:
            return error.status not in LATER
        return True
