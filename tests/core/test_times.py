"""Times as upstreams write them, against the standard library."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.times import rfc3339, unix


@given(st.floats(0, 253_402_300_798))
def test_unix_seconds_are_written_as_the_standard_library_does(seconds: float) -> None:
    expected = datetime.fromtimestamp(round(seconds * 1000) / 1000, UTC)
    written = rfc3339(seconds)
    assert written is not None
    assert abs((datetime.fromisoformat(written) - expected).total_seconds()) <= 0.001
    again = unix(written)
    assert again is not None
    assert abs(again - seconds) <= 0.002


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (1718885800, "2024-06-20T12:16:40.000Z"),
        (1718885800.25, "2024-06-20T12:16:40.250Z"),
        ("2023-11-07T05:31:56Z", "2023-11-07T05:31:56.000Z"),
        ("2023-11-07T05:31:56", "2023-11-07T05:31:56.000Z"),
        ("2023-11-07T05:31:56.123456", "2023-11-07T05:31:56.123Z"),
        ("2023-11-07T07:31:56+02:00", "2023-11-07T05:31:56.000Z"),
        ("2024-02-29 23:59:59.9999Z", "2024-03-01T00:00:00.000Z"),
    ],
)
def test_what_upstreams_send(given_: object, expected: str) -> None:
    assert rfc3339(given_) == expected


@pytest.mark.parametrize(
    "bad", [None, True, "", "now", "2023-13-01T00:00:00Z", -1, float("nan"), float("inf"), 10**30, [], {}]
)
def test_what_is_no_time_is_none(bad: object) -> None:
    assert rfc3339(bad) is None
