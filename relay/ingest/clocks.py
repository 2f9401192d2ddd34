"""Whether the clock of a Redis server has jumped: its time against our monotonic one, look by look. Pure.

Leases and wants live by Redis' clock. One set ahead ends all of them at once, although every owner lives; who notices
can let the owners go first and say again what it wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_DRIFT_S: Final = 0.5
"""Clocks that are only steered apart differ by less between two looks, a second or some apart."""


class Clocks:
    def __init__(self) -> None:
        self._ahead: dict[str, tuple[float, float]] = {}
        """Of each server: how far its clock is ahead of our monotonic one, at least and at most."""

    def jump_s(self, told: Mapping[str, float], began: float, ended: float) -> float:
        """The greatest jump since the last look, in seconds; 0 for none.

        `told` is what the servers took for the time at some moment between `began` and `ended`, so an answer that was
        long under way is never taken for a jump.
        """
        greatest = 0.0
        for name, now in told.items():
            least, most = self._ahead.get(name, (now - ended, now - began))
            self._ahead[name] = (now - ended, now - began)
            jump = max(0.0, now - ended - most) or min(0.0, now - began - least)
            if abs(jump) > max(_DRIFT_S, abs(greatest)):
                greatest = jump
        return greatest
