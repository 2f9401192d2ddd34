"""JSON in and out: what upstream said is what viewers get, or it is refused; nothing is altered in silence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.events import FINAL_STATUS, TERMINAL, decode, encode, is_final

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_a_value_survives_both_ways(value: object) -> None:
    written = encode(value)
    assert json.loads(written) == value
    assert decode(written) == value
    assert decode(json.dumps(value).encode()) == value
    assert b"\n" not in written
    assert b"\r" not in written


@pytest.mark.parametrize("text", ["18446744073709551616", "-9223372036854775809", "123456789012345678901234567890"])
def test_an_integer_stays_that_integer(text: str) -> None:
    assert json.loads(encode(decode(text.encode()))) == int(text)


@pytest.mark.parametrize("text", ["1e999", "-1e400", '{"a":[1e400]}', "NaN", "Infinity", "-Infinity", '{"a":NaN}'])
def test_a_number_that_is_none_is_refused_and_never_becomes_null(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text.encode())


@pytest.mark.parametrize(
    "raw", [b"", b" ", b"{", b"[1,]", b'{"a":}', b"{'a':1}", b"\x00", b'"\n"', b"01", b"tru", b"[" * 100_000]
)
def test_what_is_no_json_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError):
        decode(raw)


def test_bad_utf8_spoils_a_character_and_not_the_event() -> None:
    assert decode(b'{"a":"x\xffy"}') == {"a": "x\ufffdy"}


def test_lone_surrogates_pass_escaped() -> None:
    value = decode(rb'{"a":"\ud800","b":"\ud83d\ude00"}')
    assert json.loads(encode(value)) == value == {"a": "\ud800", "b": "\U0001f600"}
    assert encode(value).decode("ascii")  # in UTF-8 such a character does not exist


def test_final_types() -> None:
    assert set(FINAL_STATUS) == {"run.completed", "run.failed", "run.cancelled", "run.interrupted"}
    for kind in FINAL_STATUS:
        assert is_final(kind, {})
        assert is_final(kind, None)
        assert is_final(kind, {"delegate_layer": "ACP"})
        assert not is_final(kind, {"delegate_layer": "acp"})
    assert not is_final("run.completed ", {})
    assert {"completed", "failed", "cancelled", "interrupted"} == TERMINAL
