"""A plain request is the very one aiohttp makes of the same bytes; whatever is not plain is left to aiohttp."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

import pytest
from aiohttp import web
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.web import plain
from relay.web.options import LimitOptions
from relay.web.slim import Slim

LINE = re.compile(r"GET (/v1/runs/(?P<run_id>[A-Za-z0-9_-]{1,128})/events(?:\?[!-~]*)?) HTTP/1\.[01]\r\n")
PATH = "/v1/runs/r-1/events"


class _Door:
    known: dict[Any, Any] = {}  # noqa: RUF012


def both(head: bytes) -> tuple[plain.PlainRequest | None, web.Request | None]:
    """The request as it is read here, and as aiohttp makes it."""

    async def read() -> tuple[plain.PlainRequest | None, web.Request | None]:
        slim = Slim(cast(Any, _Door()), LimitOptions(), cast(Any, None), cast(Any, None))
        text = head.decode("latin-1")
        line = LINE.match(text)
        assert line is not None
        made = slim._parsed(slim.connection(), head, line, cast(Any, None))
        return plain.read(text, line, lambda: made), made

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(read())
    finally:
        loop.close()


def head_of(fields: list[str], *, target: str = PATH, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/{version}", *fields, "", ""]).encode("latin-1")


NAMES = st.sampled_from(
    [
        "Host", "host", "User-Agent", "Connection", "connection", "Accept", "Accept-Encoding", "Authorization", "Cookie",
        "Last-Event-ID", "X-Forwarded-For", "Origin", "Upgrade", "Expect", "Content-Length", "content-type",
        "Content-Encoding",
        "Transfer-Encoding", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "ETag", "Max-Forwards", "Server", "Via",
        "Sec-WebSocket-Key1", "Sec-WebSocket-Key", "HTTP2-Settings", "Date", "X_y", "",
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        "a", "127.0.0.1:8080", "keep-alive", "close", "Close", "keep-alive, Upgrade", "upgrade", "websocket", "0", "2",
        "-1",
        "chunked", "gzip", "100-continue", "", "a b", "*/*", "text/event-stream", "h2c", "é", "a\tb", "a\x00b", "a\rb",
        "a\nb",
        "\x7f", "x:y", ":", "identity", "br",
    ]
)  # fmt: skip
FIELDS = st.one_of(
    st.builds(lambda name, gap, value, end: f"{name}{gap}{value}{end}", NAMES,
              st.sampled_from([": ", ":", ":  ", " : ", ":\t", " ", ""]), VALUES, st.sampled_from(["", "", "", " ", "\t"])),
    st.text(st.characters(min_codepoint=0, max_codepoint=255), max_size=12),
)  # fmt: skip
QUERIES = st.one_of(
    st.just(""),
    st.lists(
        st.sampled_from(["a=b", "a", "=", "&", "%", "%zz", "%C3%A9", "%ff", "+", "#", "?", ";", "\"<>\\^`{|}"])
    ).map(lambda parts: "?" + "&".join(parts)),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(lambda text: "?" + text),
    st.text("ab1_.~*,:/=&-+%", max_size=20).map(lambda text: "?" + text),  # all but the last two stand for themselves
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(fields=st.lists(FIELDS, max_size=6), query=QUERIES, version=st.sampled_from(["1.1", "1.0"]), host=st.booleans())
@example(fields=["Connection: keep-alive", "connection: close"], query="", version="1.1", host=True)
@example(fields=["host: evil"], query="", version="1.1", host=True)
@example(fields=["a" * 65 + ": b"], query="", version="1.1", host=True)
def test_what_is_plain_is_what_aiohttp_makes_of_it(fields: list[str], query: str, version: str, host: bool) -> None:
    head = head_of([*(["Host: a"] if host else []), *fields], target=PATH + query, version=version)
    if head.index(b"\r\n\r\n") != len(head) - 4:
        return  # a head ends there, for both
    mine, theirs = both(head)
    if mine is None:
        return
    assert theirs is not None, head
    assert (mine.method, mine.version, mine.raw_path) == (theirs.method, theirs.version, theirs.raw_path)
    assert [(name.lower(), value) for name, value in mine.headers.items()] == [
        (name.lower(), value) for name, value in theirs.headers.items()
    ], head
    assert list(mine.query.items()) == list(theirs.query.items())
    assert mine.keep_alive == theirs.keep_alive, head
    assert mine.body_exists == theirs.body_exists is False
    assert mine.match_info == {"run_id": "r-1"}
    assert mine.path == theirs.path  # what it does not have it gets from the other
    assert mine.if_none_match == theirs.if_none_match
    for name in theirs.__dict__.keys() - {"_state", "_match_info"}:
        assert getattr(mine, name) is getattr(theirs, name), name
    assert mine.content_type == theirs.content_type  # and from its class what begins there
    with pytest.raises(AttributeError):
        _ = mine.nothing_of_this_name


@pytest.mark.parametrize(
    "fields",
    [
        ["Host: 127.0.0.1:8080", "Accept: text/event-stream"],
        ["Host: a", "User-Agent: Mozilla/5.0 (X11; Linux x86_64)", 'sec-ch-ua: "Chromium";v="156"', "Cookie: a=b; c=d",
         "Accept-Encoding: gzip, deflate, br, zstd", "Connection: keep-alive", "X-Forwarded-For: 1.2.3.4, 5.6.7.8",
         "X-Forwarded-For: 9.9.9.9", "Last-Event-ID: 7", "Authorization: Bearer rk_0123456789"],
        ["host:a", "connection:Close"],
    ],
)  # fmt: skip
def test_what_clients_send_is_plain(fields: list[str]) -> None:
    assert both(head_of(fields))[0] is not None


@pytest.mark.parametrize(
    "fields",
    [
        ["Accept: */*"],
        ["Host: a", "Host: b"],
        ["Host: a", "Content-Length: 0"],
        ["Host: a", "Upgrade: h2c"],
        ["Host: a", "Expect: 100-continue"],
        ["Host: a", "Connection: keep-alive, Upgrade"],
        ["Host: a", " folded"],
        ["Host: a", "X-Long: " + "x" * 5000],
        ["Host: a", "X: é"],
        ["Host: a", *(f"X-{number}: y" for number in range(100))],
    ],
)
def test_what_is_unusual_is_not(fields: list[str]) -> None:
    assert both(head_of(fields))[0] is None


def test_names_from_outside_are_remembered_within_bounds() -> None:
    for number in range(2000):
        both_of = f"GET {PATH} HTTP/1.1\r\nHost: a\r\nX-{number}: b\r\n\r\n"
        line = LINE.match(both_of)
        assert line is not None
        assert plain.read(both_of, line, lambda: None) is not None
    assert plain._kind.cache_info().currsize <= 256
