"""One way through an upstream's list of runs, newest first, page after page; which runs were met, and what to ask next.

No I/O, no clock. Runs come and go while we page, so a page is asked for by time (until the last run of the page before),
which neither skips nor repeats for that; by offset only where time does not move on, which is when more runs than a page
holds were made in one instant, or when the system does not heed `until`. A walk may be left and taken up at any later look.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from relay.core.events import TERMINAL
from relay.providers.contract import RunsQuery

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FRUITLESS: Final = 3
"""So many full pages in a row without a run not met before: this list has no more to show us."""


class Row(NamedTuple):
    """What discovery needs of a run in a list."""

    run_id: str
    created_us: int | None
    """Microseconds since 1970; None if the upstream does not say it so that it can be understood."""
    active: bool


def row_of(run: dict[str, Any]) -> Row:
    return Row(str(run["run_id"]), micros(run.get("created_at")), run["status"] not in TERMINAL)


def micros(time: object) -> int | None:
    """An RFC 3339 time as microseconds since 1970 (what is below one is cut off)."""
    try:
        parsed = datetime.fromisoformat(str(time))
        return ((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return None


def rfc3339(time_us: int) -> str | None:
    try:
        return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except OverflowError:
        return None


class Walk:
    def __init__(self, size: int, *, status: str | None = None, since_us: int | None = None) -> None:
        self.met: set[str] = set()
        self.over = False
        self._size = size
        self._status = status
        self._since_us = since_us
        self._until_us: int | None = None
        self._offset = 0
        self._by_time = True
        self._fruitless = 0

    def query(self) -> RunsQuery:
        """The next page."""
        return RunsQuery(
            limit=self._size,
            offset=self._offset,
            status=self._status,
            # What lies below a microsecond was cut off: one more, or the runs of that instant would be left out.
            until=None if self._until_us is None else rfc3339(self._until_us + 1),
            since=None if self._since_us is None else rfc3339(self._since_us),
        )

    def unmet(self, rows: Sequence[Row]) -> list[Row]:
        """Those of a page that belong to this walk and were not on an earlier page. Changes nothing."""
        return [row for row in rows if row.run_id not in self.met and not self._too_old(row)]

    def _too_old(self, row: Row) -> bool:
        return self._since_us is not None and row.created_us is not None and row.created_us < self._since_us

    def turn(self, rows: Sequence[Row], count: int) -> None:
        """Done with this page, which had `count` rows, odd ones included."""
        brought = bool(self.unmet(rows))
        self._fruitless = 0 if brought else self._fruitless + 1
        self.over = count < self._size or any(map(self._too_old, rows)) or self._fruitless >= _FRUITLESS
        if self._by_time and self._until_us is not None and any(map(self._too_new, rows)):
            self._by_time, self._until_us, self._offset = False, None, len(self.met)
        else:
            self._move_on([row.created_us for row in rows if row.created_us is not None])
        self.met.update(row.run_id for row in rows)

    def _too_new(self, row: Row) -> bool:
        """The list does not heed `until`: this is no page but the first one again."""
        return self._until_us is not None and row.created_us is not None and row.created_us > self._until_us + 1

    def _move_on(self, times: list[int]) -> None:
        if self._by_time and times and (self._until_us is None or times[-1] < self._until_us):
            self._until_us, self._offset = times[-1], 0
        else:
            self._offset += self._size
