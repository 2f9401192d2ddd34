"""Whom to take for the master: the highest epoch at once, a lower one only if most sentinels insist."""

from __future__ import annotations

import pytest

from relay.store.belief import Belief, Word

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


def believing(*words: tuple[str, tuple[str, int], int], at: float = 100.0) -> Belief:
    belief = Belief(3)
    hear(belief, at, *words)
    return belief


def hear(belief: Belief, at: float, *words: tuple[str, tuple[str, int], int]) -> tuple[str, int] | None:
    for sentinel, master, epoch in words:
        belief.hear(sentinel, Word(master, epoch), at)
    return belief.decide(at)


def test_nothing_heard_nothing_believed() -> None:
    assert Belief(3).decide(100.0) is None


def test_one_sentinel_with_a_higher_epoch_is_believed_at_once() -> None:
    belief = believing(("a", OLD, 3), ("b", OLD, 3), ("c", OLD, 3))
    assert hear(belief, 100.1, ("b", NEW, 4)) == NEW


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
def test_a_stale_sentinel_is_outbid_whoever_speaks_first(order: str) -> None:
    words = {"a": ("a", OLD, 3), "b": ("b", NEW, 4), "c": ("c", NEW, 4)}
    assert believing(*(words[name] for name in order)).master == NEW


def test_a_stale_minority_never_takes_a_master_back() -> None:
    belief = believing(("a", NEW, 4), ("b", NEW, 4), ("c", NEW, 4))
    for i in range(100):
        assert hear(belief, 101.0 + i, ("a", OLD, 3)) == NEW  # the others are silent all the while


def test_a_majority_that_has_not_heard_the_news_yet_takes_nothing_back() -> None:
    belief = believing(("a", OLD, 3), ("b", OLD, 3), ("c", OLD, 3))
    assert hear(belief, 101.0, ("a", NEW, 4)) == NEW
    for i in range(1, 9):  # the leader falls silent
        assert hear(belief, 101.0 + i, ("b", OLD, 3), ("c", OLD, 3)) == NEW
    assert hear(belief, 110.0, ("b", NEW, 4), ("c", NEW, 4)) == NEW


def test_a_majority_that_insists_begins_epochs_anew() -> None:
    belief = believing(("a", OLD, 7), ("b", OLD, 7), ("c", OLD, 7))
    assert hear(belief, 105.0, ("a", NEW, 0), ("b", NEW, 0)) == OLD
    assert hear(belief, 111.0, ("a", NEW, 0), ("b", NEW, 0)) == NEW
    assert hear(belief, 112.0, ("c", OLD, 0)) == NEW
    assert hear(belief, 113.0, ("c", OLD, 1)) == OLD


def test_a_majority_does_not_insist_while_one_confirms_what_we_believe() -> None:
    belief = believing(("a", NEW, 4))
    for i in range(30):
        assert hear(belief, 101.0 + i, ("a", NEW, 4), ("b", OLD, 3), ("c", OLD, 3)) == NEW


def test_another_address_with_the_same_epoch_is_not_believed() -> None:
    """What a failover between two questions to one sentinel looks like: the epoch follows in the next answer."""
    belief = believing(("a", OLD, 3), ("b", OLD, 3), ("c", OLD, 3))
    assert hear(belief, 100.5, ("a", NEW, 3)) == OLD
    assert hear(belief, 101.0, ("a", NEW, 4)) == NEW


def test_silence_changes_nothing_and_is_noticed() -> None:
    belief = believing(("a", OLD, 3))
    assert not belief.silent(104.0)
    assert belief.silent(200.0)
    assert belief.decide(200.0) == OLD
