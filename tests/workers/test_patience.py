"""How long a dead worker's place stays empty."""

from __future__ import annotations

from relay.workers.patience import Patience


def pauses(*lives_s: float) -> list[float]:
    patience, told = Patience(), []
    for lived_s in lives_s:
        patience = patience.died(lived_s)
        told.append(patience.pause_s)
    return told


def test_one_that_lived_well_is_replaced_at_once() -> None:
    assert pauses(3600.0, 3600.0, 3600.0) == [0.0, 0.0, 0.0]


def test_the_first_quick_death_may_be_an_accident() -> None:
    assert pauses(0.1) == [0.0]


def test_quick_deaths_in_a_row_make_the_pauses_longer_up_to_a_cap() -> None:
    assert pauses(*[0.1] * 9) == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_a_good_life_forgives_what_was_before() -> None:
    assert pauses(0.1, 0.1, 0.1, 60.0, 0.1) == [0.0, 0.5, 1.0, 0.0, 0.5]


def test_a_crash_loop_of_years_does_not_overflow() -> None:
    assert pauses(*[0.1] * 100_000)[-1] == 15.0
