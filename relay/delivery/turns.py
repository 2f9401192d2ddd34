"""Fair shares of the event loop: so much per turn of the loop for those who catch up or come, then it is the others' turn.

Two hundred readers who join a long run at once could each be given a slice in one turn of the loop, and everybody who is
live would wait for all of that. With a line, a turn takes a few milliseconds at most, however long the line is: the live
ones are flushed in between, and those in the line take turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

_SLICE_BYTES: Final = 262_144
"""About as much as is written to one reader before it is the turn of others (`fanout.page_bytes`)."""
_TURN_BYTES: Final = 8 * _SLICE_BYTES
"""About how much is written to those who catch up in one turn of the loop: a millisecond or two."""
LOOK_BYTES: Final = 16_384
"""What finding a slice costs beside writing it, in bytes: a filter that leaves nothing of it must not make it free."""


class Turns:
    """A line in front of what may cost `budget` units (bytes, requests) per turn of the loop.

    A budget is renewed when it is used up, and not before: those who come one at a time need not be counted by the turn,
    and a turn of the loop is not made for them. So a turn takes at most what it could if each had a budget of its own.
    """

    __slots__ = ("_budget", "_left", "_line", "_loop", "_renewing", "_share")

    def __init__(self, budget: int, share: int) -> None:
        """`share`: how many units one of the line is thought to take."""
        self._budget = self._left = budget
        self._share = share
        self._line: deque[Callable[[], object]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Whose turns they are, once that matters: to ask for it each time would be a call into the kernel."""
        self._renewing = False

    @property
    def open(self) -> bool:
        """Nobody is waiting, and something is left: whoever comes may go at once."""
        return self._left > 0 and not self._line

    def spend(self, units: int) -> None:
        self._left -= units
        if self._left <= 0:
            self._renew_soon()

    def ask(self, go: Callable[[], object]) -> None:
        """Call `go` when its turn has come: at the next turn of the loop at the earliest.

        It returns False if there was nothing to do.
        """
        self._line.append(go)
        self._renew_soon()

    def take(self, go: Callable[[], object]) -> None:
        """Call `go` at once if nobody is waiting and something is left, else when its turn has come."""
        if self._left > 0 and not self._line:  # it is open
            self.spend(self._share)
            go()
        else:
            self.ask(go)

    async def mine(self) -> None:
        """Returns when it is the caller's turn: at the next turn of the loop at the earliest."""
        turn = asyncio.get_running_loop().create_future()

        def go() -> None:
            if not turn.done():
                turn.set_result(None)

        self.ask(go)
        await turn

    def _renew_soon(self) -> None:
        if not self._renewing:
            self._renewing = True
            loop = self._loop = self._loop or asyncio.get_running_loop()
            loop.call_soon(self._renew)

    def _renew(self) -> None:
        self._renewing = False
        self._left = self._budget
        for _ in range(min(len(self._line), max(1, self._budget // self._share))):
            while self._line and self._line.popleft()() is False:
                pass  # one who is gone takes nobody's turn
        if self._line:
            self._renew_soon()


def catching_up() -> Turns:
    """The line of those who read what is behind."""
    return Turns(_TURN_BYTES, _SLICE_BYTES)
