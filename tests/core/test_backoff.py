"""Full-jitter back-off: an immutable value, bounded above, free to be zero."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.backoff import Backoff

SECONDS = st.floats(0.001, 1000)


@given(SECONDS, SECONDS, st.integers(0, 5000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_below_the_ceiling_and_the_ceiling_below_the_cap(
    base: float, cap: float, n: int, chance: float
) -> None:
    backoff = Backoff(base, cap, n)
    assert 0 <= backoff.pause_s(chance) <= backoff.ceiling_s <= cap
    assert backoff.failed().ceiling_s >= backoff.ceiling_s


def test_ceilings_double_up_to_the_cap() -> None:
    backoff, seen = Backoff(0.25, 10.0), []
    for _ in range(8):
        seen.append(backoff.ceiling_s)
        backoff = backoff.failed()
    assert seen == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_failing_returns_a_successor_and_changes_nothing() -> None:
    first = Backoff(1.0, 8.0)
    assert first.failed() == Backoff(1.0, 8.0, 1)
    assert first == Backoff(1.0, 8.0)
    with pytest.raises(FrozenInstanceError):
        first.attempt = 3  # type: ignore[misc]


def test_the_dice_decide_all_of_the_pause() -> None:
    assert Backoff(2.0, 8.0, 1).pause_s(0.0) == 0.0
    assert Backoff(2.0, 8.0, 1).pause_s(0.5) == 2.0
