"""The runs discovery found and that are not sealed: whose turn it is to be wanted, whose want must be said again.

No I/O, no clock. New runs wait in the order they were found; how many of them are wanted at once is for the caller to
bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from math import inf
from typing import Final

_GONE_S: Final = 600.0
"""A run the upstream no longer lists as active is pumped to its seal; one that cannot be (its events are refused to us)
is given up after this long."""


class Found:
    def __init__(self, *, again_s: float) -> None:
        self._again_s = again_s
        """How long after it was said a want is to be said again."""
        self._waiting: dict[str, None] = {}
        self._wanted: dict[str, float] = {}
        self._gone: dict[str, float] = {}
        """Since when the upstream no longer lists them as active."""

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._wanted or run_id in self._waiting

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, run_id: str, *, wanted: bool) -> None:
        """`wanted`: somebody wants it already, so it is no new load for anybody; its want is ours to keep up from now."""
        if wanted:
            self._wanted[run_id] = -inf
        else:
            self._waiting[run_id] = None

    def turn(self, most: int) -> list[str]:
        """The next ones to be wanted for the first time."""
        return list(islice(self._waiting, most))

    def due(self, now: float) -> list[str]:
        """Those whose want must be said again."""
        return [run_id for run_id, said in self._wanted.items() if now - said >= self._again_s]

    def said(self, run_ids: Iterable[str], now: float) -> None:
        """They are wanted as of now."""
        for run_id in run_ids:
            self._waiting.pop(run_id, None)
            self._wanted[run_id] = now

    def close(self, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            self._waiting.pop(run_id, None)
            self._wanted.pop(run_id, None)
            self._gone.pop(run_id, None)

    # --- what the upstream says of them -----------------------------------------------------------------------------
    def swept(self, active: set[str], now: float) -> None:
        """The upstream listed all its active runs, and these are they."""
        self._gone = {run_id: self._gone.get(run_id, now) for run_id in self._wanted if run_id not in active}

    def unlisted(self) -> None:
        """The upstream could not be asked: while it is away nothing is known to be gone, and nothing can be sealed."""
        self._gone.clear()

    def given_up(self, run_id: str, now: float) -> bool:
        return now - self._gone.get(run_id, inf) > _GONE_S
