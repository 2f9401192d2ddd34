"""Ids from outside: only one spelling gets in, and a refusal never echoes the text."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.errors import InvalidRequest
from relay.core.ids import RunKey, checked_id, checked_upstream, is_id, is_upstream_name

ID = set(string.ascii_letters + string.digits + "_-")
NAME = set(string.ascii_lowercase + string.digits + "-")


@given(st.text(max_size=140) | st.text("aZ09_-/.:%\n\r\x00", max_size=140))
def test_an_id_is_1_to_128_plain_characters(text: str) -> None:
    expected = 1 <= len(text) <= 128 and set(text) <= ID
    assert is_id(text) is expected
    assert is_upstream_name(text) is (1 <= len(text) <= 32 and set(text) <= NAME)
    if expected:
        assert checked_id("run_id", text) == text
    else:
        with pytest.raises(InvalidRequest) as error:
            checked_id("run_id", text)
        assert (error.value.details or {})["field"] == "run_id"


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a%2Fb", "a\n", "\na", "a\x00", "é", "ａ", "a:b", "a b", "a" * 129,
                                  "٣", "\ud800", "..%2f", "a.b"])  # fmt: skip
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)
    assert not is_upstream_name(text)


@given(st.text(st.characters(exclude_characters="\n"), min_size=3).filter(lambda text: not is_id(text)))
def test_a_refusal_echoes_nothing(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        checked_id("run_id", text)
    without = InvalidRequest.field("run_id", "not a valid id", "1 to 128 of A-Z a-z 0-9 _ -")
    assert (str(error.value), error.value.details) == (str(without), without.details)


def test_the_longest_ones_are_in() -> None:
    assert checked_id("run_id", "a" * 128)
    assert checked_upstream("upstream", "a" * 32)
    for text in ("a" * 33, "A", "a_b", ""):
        with pytest.raises(InvalidRequest):
            checked_upstream("upstream", text)


def test_a_key_names_a_run_without_doubt() -> None:
    assert str(RunKey("main", "r-1")) == "main/r-1"
    assert not re.search("/", "".join(ID))  # so that no two keys look alike
