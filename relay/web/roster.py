"""Which runs belong on a connection that did not name them: those of a thread, and the sub-runs of runs.

Nothing tells us when one starts, so the upstream is asked every two seconds: once for all connections of this process
that want to know the same. A run that started and ended between two looks, or while its reader was away, is read all the
same: a thread's cursor has a mark, the time at which its newest known run was made.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from relay.core.errors import RelayError, TooManyRequests
from relay.core.events import MAX_SEQ, TERMINAL
from relay.core.ids import RunKey, is_id
from relay.core.times import unix
from relay.core.vector import Place, Vector
from relay.delivery.multiplex import Multiplex
from relay.ingest.own_upstream import OwnUpstream
from relay.providers.own import ThreadQuery
from relay.web.directory import AnyUpstream, Directory
from relay.web.gathering import LATER, Gathering, Wish

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

    async def thread(self, upstream: AnyUpstream, thread_id: str) -> list[dict[str, Any]]:
        """The newest runs of a thread, newest first, in native names."""
        return list(await self._look(("thread", upstream.name, thread_id), lambda: _listed(upstream, thread_id)))

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
        self._kept[at] = (time.monotonic() + LOOK_S * 0.9, answer)
        self._kept.move_to_end(at)
        while len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        return answer


async def _listed(upstream: AnyUpstream, thread_id: str) -> list[dict[str, Any]]:
    most = upstream.provider.list_limit
    if isinstance(upstream, OwnUpstream):
        runs = await upstream.thread_runs(thread_id, ThreadQuery(most))
        for run in runs:
            upstream.note_thread(str(run["run_id"]), thread_id)
        return runs
    return upstream.provider.runs(await upstream.ask(upstream.provider.list_thread_runs(thread_id, limit=most)))


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
        self._made_us: dict[RunKey, int] = {}
        """The runs of the last list that this reader has met, and when they were made."""

    async def follow(self) -> None:
        """For ever, or until it is clear that there is no such thread."""
        troubled = False
        while True:
            try:
                self._meet(await self._looks.thread(self._upstream, self._thread_id))
                troubled = False
            except RelayError as error:
                again = error.status in LATER or bool(self._made_us)
                if not troubled:
                    self._multiplex.refuse(error, retrying=again)
                if not again:
                    return
                troubled = True
            await asyncio.sleep(LOOK_S)

    def _meet(self, runs: list[dict[str, Any]]) -> None:
        """Read what is new, oldest first. What had ended before the reader first came is history, and is only marked."""
        made_us = {RunKey(self._upstream.name, str(run["run_id"])): _made_us(run) for run in runs}
        first = not self._tally.mark
        since_us = (self._tally.mark or max(made_us.values(), default=0)) - OVERLAP_US
        for run in reversed(runs):
            key = RunKey(self._upstream.name, str(run["run_id"]))
            if key in self._made_us or self._gathering.reads(key):
                continue
            over = str(run.get("status")) in TERMINAL
            if not over or self._cursor.knows(key) or (not first and made_us[key] > since_us):
                self._read(key, made_us)
            elif made_us[key] > since_us:
                self._tally.put(key, Place(MAX_SEQ, told=True))
        self._tally.settle()
        self._tally.mark = max(1, self._tally.mark, *made_us.values())
        self._forget(made_us)

    def _read(self, key: RunKey, made_us: dict[RunKey, int]) -> None:
        if key not in self._tally:  # from now on the cursor speaks of it, whatever becomes of it before it is open
            self._tally.put(key, self._cursor.place(key))
        wish = replace(self._like, run_id=key.run_id, upstream=key.upstream, thread_id=self._thread_id)
        try:
            self._gathering.want(wish)
        except TooManyRequests as error:  # it is met again at the next look, and then there may be room
            self._multiplex.refuse(error, run_id=key.run_id, retrying=True)
            del made_us[key]

    def _forget(self, made_us: dict[RunKey, int]) -> None:
        """A run that has ended, and is so old that it could not be taken for a new one, needs no place in the cursor."""
        for key in self._made_us.keys() | made_us.keys():
            old = made_us.get(key, 0) <= self._tally.mark - OVERLAP_US
            if old and self._tally.told(key) and not self._gathering.reads(key):
                self._tally.drop(key)
                self._gathering.found.discard(key)
        self._made_us = made_us


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


def _made_us(run: dict[str, Any]) -> int:
    return round((unix(run.get("created_at")) or 0.0) * 1_000_000)
