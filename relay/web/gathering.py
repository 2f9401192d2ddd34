"""The runs of one connection of `/v1/events`: each is found, admitted and opened in a short task of its own.

What is wrong with one run is said about that run, and the others go on. A run that cannot be had at the moment is tried
again here, so that a client need not; one that can never be had is refused once.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from relay.core.backoff import Backoff
from relay.core.errors import Conflict, RelayError, TooManyRequests, Unauthenticated
from relay.core.filters import Types
from relay.core.hold import Hold
from relay.core.ids import RunKey
from relay.core.many import RunWire
from relay.core.vector import Place, Vector
from relay.delivery.multiplex import Multiplex
from relay.delivery.strand import SLICE_BYTES
from relay.fanout.hub import Hub
from relay.store.log import Log, LogState
from relay.web.admit import NOBODY, Principal
from relay.web.directory import Directory
from relay.web.requests import visible

_AT_ONCE: Final = 16
"""So many runs of one connection are looked for at a time."""
LATER: Final = frozenset({429, 502, 503, 504})
"""Refusals that may be none in a moment."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A run somebody wants to read."""

    run_id: str
    after_seq: int = 0
    """The reader has seen this, whatever its cursor says."""
    types: Types | None = None
    snapshot: bool = False
    """A fold first, of a run it has seen nothing of, and after every reset."""
    upstream: str | None = None
    thread_id: str | None = None
    principal: Principal | None = None
    """Whose right it is, where it is not the connection's."""


class Desk:
    """What all connections share."""

    def __init__(self, directory: Directory, hub: Hub, log: Log, most: int) -> None:
        self.directory = directory
        self.hub = hub
        self.log = log
        self.most = most
        """Runs open at once on one connection."""

    async def find(self, wish: Wish, principal: Principal) -> RunKey:
        """The run, exactly as a connection of its own would find it, or the same refusal."""
        whose = wish.principal or principal
        if whose is NOBODY:
            raise Unauthenticated('first send {"op": "auth", "token": …}, or a token with each subscribe')
        return await visible(wish.run_id, whose, self.directory, wish.upstream, wish.thread_id)

    def names(self, wish: Wish) -> list[RunKey]:
        """What the run may be called in full."""
        return [RunKey(upstream.name, wish.run_id) for upstream in self.directory.candidates(wish.upstream)]


def over_at(place: Place, state: LogState | None) -> bool:
    """Whether nothing is left for a reader who came back to this place."""
    if state is None or not state.last_seq:
        return place.told  # the log is gone by now, and the reader knows the end
    return state.sealed and place.seq >= state.last_seq


class Gathering:
    def __init__(
        self,
        desk: Desk,
        multiplex: Multiplex,
        principal: Principal,
        tasks: asyncio.TaskGroup,
        cursor: Vector | None = None,
    ) -> None:
        self.principal = principal
        self.found: set[RunKey] = set()
        """Of a reader with a cursor for all of them: the runs that are read, or were and have ended."""
        self.refused: set[RunKey] = set()
        """Those that can never be had: nobody who finds them again need ask."""
        self._remembers = cursor is not None
        self._desk = desk
        self._multiplex = multiplex
        self._tasks = tasks
        self._cursor = cursor or Vector()
        self._names: set[RunKey] = set()
        """Of all runs asked for with that cursor, so that collisions in it are seen."""
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)

    def __len__(self) -> int:
        return len(self._opening) + len(self._multiplex)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._opening or run_id in self._multiplex

    @property
    def opening(self) -> bool:
        return bool(self._opening)

    def reads(self, key: RunKey) -> bool:
        return key.run_id in self

    def want(self, wish: Wish) -> None:
        """Begin to read a run. Raises TooManyRequests, and Conflict if it is read already."""
        if wish.run_id in self:
            raise Conflict("this connection reads this run already", code="runs.subscribed")
        if len(self) >= self._desk.most:
            raise TooManyRequests(f"a connection may read {self._desk.most} runs at once", code="limits.runs")
        if self._cursor.entries:
            self._names.update(self._desk.names(wish))
        self._opening[wish.run_id] = self._tasks.create_task(self._open(wish), name=f"open {wish.run_id}")

    def drop(self, run_id: str) -> bool:
        """Read it no more; whether it was read, or about to be."""
        task = self._opening.pop(run_id, None)
        if task is not None:
            task.cancel()
        return self._multiplex.drop(run_id) or task is not None

    def close(self) -> None:
        for task in self._opening.values():
            task.cancel()

    async def _open(self, wish: Wish) -> None:
        try:
            await self._until_open(wish)
        finally:
            if self._opening.get(wish.run_id) is asyncio.current_task():
                del self._opening[wish.run_id]

    async def _until_open(self, wish: Wish) -> None:
        backoff = Backoff(1.0, 10.0)
        while True:
            try:
                async with self._gate:
                    return await self._once(wish)
            except RelayError as error:
                again = error.status in LATER
                if not (again and backoff.attempt):  # that it is tried again is said once
                    self._multiplex.refuse(error, run_id=wish.run_id, retrying=again)
                if not again:
                    return self._forget(wish)
            await asyncio.sleep(0.2 + backoff.pause_s(random.random()))  # noqa: S311  (jitter)
            backoff = backoff.failed()

    def _forget(self, wish: Wish) -> None:
        """It can never be had: the cursor need not speak of it."""
        for key in self._desk.names(wish):
            self._multiplex.tally.drop(key)
            if self._remembers:  # who names its runs itself may name any number
                self.refused.add(key)

    async def _once(self, wish: Wish) -> None:
        principal = wish.principal or self.principal
        key = await self._desk.find(wish, self.principal)
        place = max(self._cursor.place(key, self._names), Place(wish.after_seq))
        if place.told and over_at(place, (await self._desk.log.states([key]))[0]):
            self._multiplex.tally.put(key, place)
        else:
            await self._read(key, place, wish, principal.expires_at)
        if self._remembers:
            self.found.add(key)

    async def _read(self, key: RunKey, place: Place, wish: Wish, expires_at: float | None) -> None:
        hub = self._desk.hub
        hold = Hold()
        try:
            topic = await hub.open(key, hold)
            await hub.settle(topic, place.seq)
        except BaseException:
            hold.release()
            raise
        wire = RunWire(self._multiplex.form, key.run_id)
        sub = hub.subscribe(topic, place.seq, wire, wish.types, snapshot=wish.snapshot, slice_bytes=SLICE_BYTES)
        own_right = wish.principal is not None
        self._multiplex.add(key, sub, hold.release, expires_at=expires_at, own_right=own_right)
