"""One look after the other at one upstream's runs: what is new since the mark, and what is active.

New runs are listed since a little before the mark (times tie, and a run may be committed after a later one), ended ones
too, so that a run as short as you like is found. Active runs are listed by status, which finds the oldest of them however
long the list is. Each look asks for a bounded number of pages and the next one goes on. At the very first look there is
no mark: what had ended by then is history, and is only remembered as seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from relay import telemetry
from relay.core.errors import LeaseLost, StoreUnavailable
from relay.ingest.found import Found
from relay.ingest.upstream import Upstream
from relay.ingest.walk import Row, Walk, row_of
from relay.providers.contract import RunsQuery
from relay.store.findings import OVERLAP_US, Findings, Memory

_PAGES: Final = 5
"""Most pages of new runs, and most of active ones, that one look asks for."""
_AHEAD_US: Final = 60 * 1_000_000
"""So much a run may be ahead of its upstream's clock (its answers' `Date`); one from further in the future is a mistake."""


class Search:
    """What is known while one process looks. A look that fails half-way is simply taken up by the next."""

    def __init__(
        self,
        upstream: Upstream,
        findings: Findings,
        token: str,
        memory: Memory,
        found: Found,
        holding: Callable[[], bool],
    ) -> None:
        self._upstream = upstream
        self._findings = findings
        self._token = token
        self._holding = holding
        """Whether the lease is ours for certain, by our own clock."""
        self._found = found
        self._mark_us = memory.mark_us
        self._seen = dict(memory.seen)
        self._history_us: int | None = None
        """While the first walk lasts: when the newest run was made that may be history."""
        self._newest_us = 0
        """When the newest run of the present walk was made."""
        self._odd = 0
        self._new: Walk | None = None
        self._sweep: list[Walk] = []
        self._active: set[str] = set()
        self._sealed: set[str] = set()
        """Runs listed as active that our log knows to be over."""

    async def resume(self, memory: Memory) -> None:
        """Go on with what the process that looked before had found."""
        sealed = []
        for run_id, standing in zip(memory.open, await self._findings.standing(memory.open), strict=True):
            if standing is not None and standing.sealed:
                sealed.append(run_id)
            else:  # where that part of Redis is away it counts as wanted: that is asked again before it is said again
                self._found.add(run_id, wanted=standing is None or standing.wanted)
        if sealed:
            await self._findings.note(self._token, closed=sealed)

    async def look(self) -> int:
        """How many rows could not be understood.

        Raises what the upstream's refusal means, StoreUnavailable, or LeaseLost if another process looks now.
        """
        self._odd = 0
        await self._look_for_new()
        await self._look_for_active()
        return self._odd

    # --- new runs ---------------------------------------------------------------------------------------------------
    async def _look_for_new(self) -> None:
        if self._new is None:
            self._new = await self._begin()
        for _ in range(_PAGES):
            rows, count = await self._page(self._new)
            unmet = [row for row in self._new.unmet(rows) if row.run_id not in self._seen]
            await self._open(
                (row.run_id for row in unmet if not self._is_history(row)),
                {row.run_id: row.created_us for row in unmet if row.created_us is not None},
            )
            self._newest_us = max(self._newest_us, self._newest_of(rows))
            self._new.turn(rows, count)
            if self._new.over:
                await self._advance()
                return

    async def _begin(self) -> Walk:
        size = self._upstream.provider.list_limit
        if self._mark_us is not None:
            return Walk(size, since_us=self._mark_us - OVERLAP_US if self._mark_us else None)
        rows, count = await self._read(RunsQuery(limit=size))
        self._history_us = self._newest_of(rows) or (self._now_us() if count else 0)
        return Walk(size, since_us=self._history_us - OVERLAP_US if self._history_us else None)

    def _is_history(self, row: Row) -> bool:
        """Over before we first looked; and a run that does not say when it was made can only be known by being active."""
        if row.created_us is None:
            return not row.active
        return self._history_us is not None and row.created_us <= self._history_us and not row.active

    async def _advance(self) -> None:
        """All that is new was seen: the next walk starts from here."""
        mark_us = max(self._mark_us or 0, self._history_us or 0, self._newest_us)
        if mark_us != self._mark_us:
            await self._findings.note(self._token, mark_us=mark_us)
            self._seen = {run_id: at for run_id, at in self._seen.items() if at >= mark_us - OVERLAP_US}
        self._mark_us, self._history_us, self._newest_us, self._new = mark_us, None, 0, None

    # --- active runs ------------------------------------------------------------------------------------------------
    async def _look_for_active(self) -> None:
        if not self._sweep:
            provider = self._upstream.provider
            self._sweep = [Walk(provider.list_limit, status=status) for status in provider.active]
        for _ in range(_PAGES):
            rows, count = await self._page(self._sweep[0])
            active = {row.run_id for row in rows if row.active}
            await self._open(active, {})
            self._active |= active
            self._sweep[0].turn(rows, count)
            if self._sweep[0].over:
                self._sweep.pop(0)
            if not self._sweep:
                self._swept()
                return

    def _swept(self) -> None:
        telemetry.RUNS_ACTIVE.labels(self._upstream.name).set(len(self._active))
        self._found.swept(self._active, time.monotonic())
        self._sealed &= self._active
        self._active = set()

    # --- small ------------------------------------------------------------------------------------------------------
    def _now_us(self) -> int:
        """By the upstream's own clock: its runs are dated by that, ours may be wrong by hours."""
        return int(self._upstream.now_s() * 1_000_000)

    def _newest_of(self, rows: Iterable[Row]) -> int:
        """When the newest of these was made; 0 if none says so.

        One that claims to be from the future does not count, or it would hide all that come after it.
        """
        latest_us = self._now_us() + _AHEAD_US
        return max(
            (row.created_us for row in rows if row.created_us is not None and row.created_us <= latest_us), default=0
        )

    async def _page(self, walk: Walk) -> tuple[list[Row], int]:
        return await self._read(walk.query())

    async def _read(self, query: RunsQuery) -> tuple[list[Row], int]:
        """A page of the list: its runs, and how many rows it had, odd ones included."""
        if (
            not self._holding()
        ):  # we were frozen: on waking, our next step may come before the end of the lease is noticed
            raise LeaseLost(f"the lease to look for runs of {self._upstream.name} is over")
        provider = self._upstream.provider
        found = provider.rows(await self._upstream.ask(provider.list_runs(query)))
        rows = [row_of(run) for run in found if run is not None]
        self._odd += len(found) - sum(row.created_us is not None for row in rows)
        return rows, len(found)

    async def _open(self, run_ids: Iterable[str], seen: Mapping[str, int]) -> None:
        """Note runs as found, unless they are known already, or sealed in our log; and remember those seen."""
        unknown = [run_id for run_id in run_ids if run_id not in self._found and run_id not in self._sealed]
        standings = await self._findings.standing(unknown) if unknown else []
        opened: dict[str, bool] = {}
        for run_id, standing in zip(unknown, standings, strict=True):
            if standing is None:
                raise StoreUnavailable("a part of Redis is away")
            if not standing.sealed:
                opened[run_id] = standing.wanted
        if opened or seen:
            await self._findings.note(self._token, seen=seen, opened=opened)
        self._sealed.update(run_id for run_id in unknown if run_id not in opened)
        self._seen.update(seen)
        for run_id, wanted in opened.items():
            self._found.add(run_id, wanted=wanted)
