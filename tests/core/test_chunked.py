"""The chunked coding is taken off alike however the bytes are cut; what is none is told."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.chunked import Chunked


def coded(pieces: list[bytes], *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces if piece]
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


@given(
    pieces=st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"x" * 300]), max_size=6),
    cuts=st.lists(st.integers(0, 500), max_size=10),
    extension=st.sampled_from([b"", b";a=b", b" ; x"]),
    trailers=st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ: 0\r\n"]),
    behind=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n"]),
)
def test_any_cut_gives_the_same_body(
    pieces: list[bytes], cuts: list[int], extension: bytes, trailers: bytes, behind: bytes
) -> None:
    stream = coded(pieces, extension=extension, trailers=trailers) + behind
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    decoder, body = Chunked(), b""
    for start, stop in pairwise(edges):
        body += decoder.feed(stream[start:stop])
    assert body == b"".join(pieces)
    assert decoder.ended


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_body_cut_short_has_no_end(piece: bytes, data: st.DataObject) -> None:
    stream = coded([piece, piece])
    decoder = Chunked()
    decoder.feed(stream[: data.draw(st.integers(0, len(stream) - 1))])
    assert not decoder.ended


@pytest.mark.parametrize(
    "stream",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\nab\r\n",
        b"0x2\r\nab\r\n",
        b"+2\r\nab\r\n",
        b"1_0\r\n",
        b"2\r\nabc\r\n",
        b"f" * 16 + b"\r\n",
        b"2 2\r\nab\r\n",
        b"2;" + b"a" * 5000,
        b"HTTP/1.1 500 no\r\n",
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_not_chunked_is_told(stream: bytes, whole: bool) -> None:
    with pytest.raises(ValueError, match="chunk"):
        _fed([stream] if whole else [stream[i : i + 1] for i in range(len(stream))])


def _fed(pieces: list[bytes]) -> None:
    decoder = Chunked()
    for piece in pieces:
        decoder.feed(piece)
