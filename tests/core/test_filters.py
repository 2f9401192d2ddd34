"""Type filters: globs as people know them (fnmatch with stars only), bounded in time and memory whatever is asked."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.errors import InvalidRequest
from relay.core.filters import Types, types_of

WORD = st.text("ab.:_-*", min_size=1, max_size=8)
KIND = st.text("ab.:_-\n[]?", max_size=12)


def made(text: str) -> Types:
    types = types_of(text)
    assert types is not None
    return types


@given(st.lists(WORD, min_size=1, max_size=4), st.lists(KIND, min_size=1, max_size=6))
def test_globs_mean_what_fnmatch_says(patterns: list[str], kinds: list[str]) -> None:
    try:
        types = types_of(",".join(patterns))
    except InvalidRequest:
        assert any(pattern.replace("**", "*").count("*") > 4 for pattern in patterns)
        return
    for kind in [*kinds, *kinds]:  # twice: what is remembered must be the same
        expected = any(fnmatch.fnmatchcase(kind, pattern) for pattern in patterns)
        assert (types is None or types.allows(kind)) is expected, (patterns, kind)


@given(st.text("ab.*,", min_size=1, max_size=24))
def test_order_and_repeats_of_patterns_do_not_matter(text: str) -> None:
    try:
        one = types_of(text)
    except InvalidRequest:
        return
    pieces = text.split(",")
    other = types_of(",".join([*reversed(pieces), *pieces]))
    assert one == other
    assert hash(one) == hash(other)  # viewers who ask alike share bytes


@pytest.mark.parametrize("text", [None, "", "*", "run.*,*", "**", "***,a"])
def test_everything_is_no_filter(text: str | None) -> None:
    assert types_of(text) is None


@pytest.mark.parametrize(
    "text",
    [",", "run.*,", " ", "run.*,,tool.*", "[ab]", "a?b", "(a|b)", "a+", "run.\n*", "é", "a/b", "a" * 129,
     ",".join("abcdefghijklmnopqrstuvwxyzabcdefg"), "*a*b*c*d*e*", "a\x00", "run.*;tool.*", "\u2028", "\\d"],
)  # fmt: skip
def test_what_is_no_filter_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        types_of(text)
    assert (error.value.status, (error.value.details or {})["field"]) == (422, "types")


def test_patterns_are_no_regular_expressions() -> None:
    assert not made("run.x").allows("runax")
    assert not made("run").allows("run.started")
    assert not made("run").allows("prerun")
    assert made("run.*").allows("run.")
    assert not made("run.*").allows("run")
    assert made("RUN").allows("RUN")
    assert not made("RUN").allows("run")


def test_a_star_also_takes_a_line_break() -> None:
    """A type is the upstream's own string; one with a line break in it must not slip past a filter."""
    assert made("run.*").allows("run.a\nb")
    assert not made("run.a").allows("run.a\n")


@pytest.mark.parametrize("pattern", ["*a*a*a*b", "a*a*a*a*b", "*aa*aa*aa*aab"])
def test_no_pattern_takes_long_for_any_type(pattern: str) -> None:
    types = made(",".join([pattern, *(f"{pattern}{i}" for i in range(31))]))
    for size in (32, 64, 96, 128, 192, 256, 512, 4096, 100_000):  # step by step: a failure must not take an hour
        began = time.process_time()
        assert not types.allows("a" * size)
        assert time.process_time() - began < 0.25, size


def test_what_is_remembered_is_bounded() -> None:
    types = made("run.*")
    for i in range(5000):
        assert types.allows(f"run.{i}")
        assert not types.allows(f"x.{i}")
    assert len(types._known) <= 1024


def test_what_one_filter_was_asked_is_forgotten_with_its_reader() -> None:
    first, second = types_of("run.*,tool.*"), types_of("tool.*,run.*")
    assert first is not None
    assert second is not None
    assert first == second
    assert first.allows("run.started")
    assert not second._known
