"""The order of the tests: what takes long is begun first, by each of the processes that share them.

Else one of them picks up the longest test last, and the others wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


def spread(long: Sequence[_T], others: Sequence[_T], workers: int) -> list[_T]:
    """In as many parts as pytest-xdist gives out first (`--dist worksteal`), each with its share of the long ones ahead."""
    total, left = len(long) + len(others), list(others)
    order: list[_T] = []
    for worker in range(workers):
        part = list(long[worker::workers])
        room = max(0, (total - len(order)) // (workers - worker) - len(part))
        order += [*part, *left[:room]]
        del left[:room]
    return [*order, *left]
