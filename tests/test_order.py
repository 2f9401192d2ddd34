"""Long tests come first in every part that a test process is given."""

from __future__ import annotations

import pytest

from tests.support.order import spread


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
@pytest.mark.parametrize(("long", "others"), [(0, 0), (0, 9), (3, 0), (5, 100), (9, 3), (1, 1)])
def test_each_process_begins_with_its_share_of_the_long_ones(workers: int, long: int, others: int) -> None:
    order = spread([("long", n) for n in range(long)], [("short", n) for n in range(others)], workers)
    assert sorted(order) == sorted([*(("long", n) for n in range(long)), *(("short", n) for n in range(others))])
    if long * workers > len(order):
        return  # more long ones than places: they follow each other
    at = 0
    for worker in range(workers):
        size = (len(order) - at) // (workers - worker)
        part, at = order[at : at + size], at + size
        share = len(range(worker, long, workers))
        assert [kind for kind, _ in part] == ["long"] * share + ["short"] * (size - share)
