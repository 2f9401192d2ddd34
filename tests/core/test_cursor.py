"""A reader's place, read from its request: strict numbers, the larger one wins, every refusal names its field."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.cursor import count_of, cursor_of, flag_of, number_of, seq_of
from relay.core.errors import InvalidRequest
from relay.core.events import MAX_SEQ

SEQS = st.integers(0, MAX_SEQ)


@given(SEQS, SEQS, SEQS)
def test_the_larger_one_wins_whichever_it_is(query: int, header: int, stand_in: int) -> None:
    assert cursor_of({"after_seq": str(query)}, {"Last-Event-ID": str(header)}) == max(query, header)
    both = {"after_seq": str(query), "lastEventId": str(stand_in)}
    assert cursor_of(both, {"Last-Event-ID": str(header)}) == max(query, header, stand_in)
    assert cursor_of({"after_seq": str(query)}, {}) == query
    assert cursor_of({}, {"Last-Event-ID": str(header)}) == header


@given(st.text(max_size=30))
def test_a_seq_is_plain_decimal_digits_or_refused(text: str) -> None:
    plain = text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= MAX_SEQ
    if text == "" or plain:
        assert seq_of("after_seq", text) == int(text or "0")
        return
    with pytest.raises(InvalidRequest) as error:
        seq_of("after_seq", text)
    assert error.value.details is not None
    assert error.value.details["field"] == "after_seq"


@pytest.mark.parametrize("text", ["-1", "+1", " 1", "1 ", "1.0", "1e3", "0x10", "1_000", "٣", "１", "9" * 19, "1" * 20,
                                  "9223372036854775808", "\n1", "1\n", "nan", "∞", "1\x00"])  # fmt: skip
def test_what_is_no_seq(text: str) -> None:
    for query, headers, field in (
        ({"after_seq": text}, {}, "after_seq"),
        ({}, {"Last-Event-ID": text}, "Last-Event-ID"),
    ):
        with pytest.raises(InvalidRequest) as error:
            cursor_of(query, headers)
        assert (error.value.status, (error.value.details or {})["field"]) == (422, field)


def test_the_largest_seq_is_one() -> None:
    assert seq_of("after_seq", str(MAX_SEQ)) == MAX_SEQ == 9223372036854775807
    assert seq_of("after_seq", None) == seq_of("after_seq", "") == 0


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("TRUE", True), ("false", False), ("0", False)]
)
def test_flags(text: str, value: bool) -> None:
    assert flag_of({"follow": text}, "follow", default=not value) is value
    assert flag_of({}, "follow", default=value) is value
    assert flag_of({"follow": ""}, "follow", default=value) is value


@pytest.mark.parametrize("text", ["yes", "no", "2", "on", " true", "true ", "t", "-1", "１", "ＴＲＵＥ", "false\x00"])
def test_what_is_no_flag(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        flag_of({"named": text}, "named", default=False)
    assert (error.value.details or {})["field"] == "named"


@given(st.text(max_size=20) | st.integers(-5, 2000).map(str) | st.floats(allow_nan=True).map(str))
def test_a_count_is_within_its_bounds_or_refused(text: str) -> None:
    try:
        count = count_of({"limit": text}, "limit", default=7, low=1, high=1000)
    except InvalidRequest as error:
        assert (error.details or {})["field"] == "limit"  # noqa: PT017
    else:
        assert type(count) is int
        assert count == (int(text) if text else 7)
        assert 1 <= count <= 1000


@given(st.floats(0, 60, allow_nan=False) | st.text(max_size=12))
def test_a_number_is_within_its_bounds_or_refused(given_value: float | str) -> None:
    text = f"{given_value:.3f}" if isinstance(given_value, float) else given_value
    try:
        number = number_of({"wait": text}, "wait", default=0, low=0, high=60)
    except InvalidRequest as error:
        assert (error.details or {})["field"] == "wait"  # noqa: PT017
        assert isinstance(given_value, str)
    else:
        assert 0 <= number <= 60
        assert number == float(text or 0)


@pytest.mark.parametrize("text", ["nan", "inf", "-0", "1e1", "5.", ".5", "61", "60.1", "1,5", "0x1", "+5", "1" * 400])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(InvalidRequest):
        number_of({"wait": text}, "wait", default=0, low=0, high=60)
