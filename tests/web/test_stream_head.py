"""What is remembered of a stream's head is nobody's own: each has its trace id, its page's origin and the time."""

from __future__ import annotations

import re
import time
from itertools import islice
from typing import Any, cast

import pytest

from relay.core.hold import Hold
from relay.core.wires import Wire
from relay.delivery.http import EventStream, Fields
from relay.web import door
from relay.web.stream_head import stream_head

_PLAIN: Fields = (("Server", "relay"),)


class _Subscription:
    wire = Wire("sse", chunked=True)


def answer(trace_id: str, fields: Fields = _PLAIN) -> EventStream:
    none = cast(Any, None)
    return EventStream(cast(Any, _Subscription()), none, none, Hold(), trace_id, fields)


def head(of: EventStream, *, http_1_1: bool = True, keep_alive: bool = True) -> dict[str, str]:
    line, *fields = (
        stream_head(of, http_1_1=http_1_1, keep_alive=keep_alive).decode().removesuffix("\r\n\r\n").split("\r\n")
    )
    assert line == f"HTTP/1.{int(http_1_1)} 200 OK"
    return dict(field.split(": ", 1) for field in fields)


def test_a_head_is_of_this_answer_and_this_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.5)
    first = head(answer("a"))
    assert head(answer("b")) == {**first, "X-Trace-Id": "b"}
    assert first["Date"] == "Thu, 01 Jan 1970 00:00:00 GMT"
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert head(answer("a")) == {**first, "Date": "Thu, 01 Jan 1970 00:00:01 GMT"}


def test_no_page_is_told_of_the_origin_of_another() -> None:
    for origin in ("https://a.example", "https://b.example"):
        told = head(answer("a", door._fields_for(origin)))
        assert (told["Access-Control-Allow-Origin"], told["Vary"]) == (origin, "Origin")
    assert "Access-Control-Allow-Origin" not in head(answer("a"))


def test_how_the_answer_ends_is_the_connections_own() -> None:
    assert "Connection" not in head(answer("a"))
    assert head(answer("a"), keep_alive=False)["Connection"] == "close"
    assert head(answer("a"))["Transfer-Encoding"] == "chunked"
    assert not {"Connection", "Transfer-Encoding"} & head(answer("a"), http_1_1=False, keep_alive=False).keys()


def test_trace_ids_are_128_bits_and_none_comes_twice() -> None:
    drawn = [*islice(door._trace_ids(), 1000), *islice(door._trace_ids(), 1000)]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in drawn)
    assert len(set(drawn)) == 2000
