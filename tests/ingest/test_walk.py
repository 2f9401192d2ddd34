"""Paging through a list that changes meanwhile: nothing that stayed in it is skipped, and every walk ends."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ingest.found import Found
from relay.ingest.walk import Row, Walk, micros, rfc3339
from relay.providers.contract import RunsQuery


@dataclass
class List:
    """An upstream's list of runs: newest first, creation descending, then id."""

    rows: dict[str, int] = field(default_factory=dict)
    heeds_until: bool = True
    asked: int = 0

    def page(self, query: RunsQuery) -> list[Row]:
        self.asked += 1
        until = micros(query.until) if query.until and self.heeds_until else None
        since = micros(query.since) if query.since else None
        found = [
            Row(run_id, created_us, active=True)
            for run_id, created_us in sorted(self.rows.items(), key=lambda row: (row[1], row[0]), reverse=True)
            if (until is None or created_us <= until) and (since is None or created_us >= since)
        ]
        return found[query.offset : query.offset + query.limit]


def walked(lists: List, walk: Walk, between: object = None) -> list[str]:
    """All runs a walk meets, in order; `between` happens after each page."""
    met: list[str] = []
    while not walk.over:
        rows = lists.page(walk.query())
        met += [row.run_id for row in walk.unmet(rows)]
        walk.turn(rows, len(rows))
        if callable(between):
            between()
        assert lists.asked < 1000
    return met


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(1, 7), st.booleans())
def test_a_walk_meets_every_run_once_and_ends(times: list[int], size: int, heeds_until: bool) -> None:
    lists = List({f"r{i}": at * 10 for i, at in enumerate(times)}, heeds_until)
    met = walked(lists, Walk(size))
    assert len(met) == len(set(met))
    assert set(met) == lists.rows.keys()


@given(st.integers(0, 2**32), st.integers(2, 6))
def test_what_stays_is_met_whatever_comes_and_goes(seed: int, size: int) -> None:
    """New runs come on top, and active runs end (leave the filtered list) anywhere, while we page by time."""
    chance = random.Random(seed)
    lists = List({f"r{i:02}": at * 10 for i, at in enumerate(chance.sample(range(1000), 40))})
    staying = {run_id for run_id in lists.rows if chance.random() < 0.5}

    def change() -> None:
        for _ in range(chance.randint(0, 4)):
            lists.rows[f"n{len(lists.rows)}{chance.random()}"] = 20_000 + lists.asked
        for run_id in [run_id for run_id in lists.rows if run_id not in staying and chance.random() < 0.3]:
            del lists.rows[run_id]

    met = walked(lists, Walk(size), change)
    assert staying <= set(met)
    assert len(met) == len(set(met))


def test_a_list_that_ignores_all_paging_ends_the_walk() -> None:
    walk, rows = Walk(2), [Row("a", 2, active=True), Row("b", 1, active=True)]
    for _ in range(10):
        if walk.over:
            break
        walk.turn(rows, 2)
    assert walk.over


def test_a_walk_ends_where_runs_are_too_old_also_if_the_list_does_not() -> None:
    lists = List({f"r{i:02}": i * 10 for i in range(50)})
    walk = Walk(5, since_us=300)
    rows = lists.page(RunsQuery(limit=5, offset=17))
    assert [row.run_id for row in walk.unmet(rows)] == ["r32", "r31", "r30"]
    walk.turn(rows, 5)
    assert walk.over


def test_odd_rows_count_as_rows() -> None:
    walk = Walk(3)
    walk.turn([Row("a", 5, active=True)], 3)
    assert not walk.over
    walk.turn([], 2)
    assert walk.over


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000), ("1970-01-01T00:00:00.000001Z", 1),
        ("1970-01-01T01:00:00.123456789+01:00", 123_456), ("1970-01-01T00:00:01", 1_000_000),
        ("1969-12-31T23:59:59Z", -1_000_000), ("", None), (None, None), (7, None), ("soon", None), ([], None),
        ("2026-13-01T00:00:00Z", None), ("9999-12-31T23:59:59.999999-23:59", None),
    ],
)  # fmt: skip
def test_times(text: object, expected: int | None) -> None:
    found = micros(text)
    assert found == expected or (expected is None and found is not None and found > 2**53)


@given(st.integers(0, 4 * 10**15))
def test_times_come_back(time_us: int) -> None:
    assert micros(rfc3339(time_us)) == time_us


# --- what was found --------------------------------------------------------------------------------------------------
def test_new_runs_take_turns_in_the_order_they_were_found_and_are_due_again() -> None:
    found = Found(again_s=20)
    for i in range(5):
        found.add(f"r{i}", wanted=i == 4)
    assert found.turn(2) == ["r0", "r1"]
    assert found.due(0.0) == ["r4"], "what others want already is ours to keep up at once"
    found.said(["r0", "r1", "r4"], 0.0)
    assert found.turn(9) == ["r2", "r3"]
    assert found.due(19.9) == []
    assert found.due(20.0) == ["r4", "r0", "r1"]
    found.close(["r0", "r2", "r9"])
    assert found.waiting == 1
    assert "r0" not in found
    assert "r3" in found


def test_a_run_that_is_gone_is_given_up_late_and_never_while_the_upstream_is_away() -> None:
    found = Found(again_s=20)
    found.add("gone", wanted=True)
    found.add("active", wanted=True)
    found.swept({"active"}, 0.0)
    found.swept({"active"}, 500.0)
    assert [run_id for run_id in ("gone", "active") if found.given_up(run_id, 601.0)] == ["gone"]
    assert not found.given_up("gone", 599.0)
    found.unlisted()
    assert not found.given_up("gone", 601.0)
    found.swept({"active"}, 700.0)
    found.swept({"active", "gone"}, 1200.0)
    assert not found.given_up("gone", 5000.0)
