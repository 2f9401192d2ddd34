"""The head of a stream's 200, byte for byte as aiohttp writes it: its own writer takes ten times as long."""

from __future__ import annotations

import time
from functools import lru_cache

from aiohttp.helpers import rfc822_formatted_time

from relay.delivery.compression import Coding
from relay.delivery.http import EventStream, Fields, stream_headers


def stream_head(answer: EventStream, *, http_1_1: bool, keep_alive: bool) -> bytes:
    """Only its trace id differs from answer to answer; the rest seldom does within a second."""
    rest = _rest(answer.fields, answer.subscription.wire.form, answer.coding, http_1_1, keep_alive, int(time.time()))
    return f"HTTP/1.{1 if http_1_1 else 0} 200 OK\r\nX-Trace-Id: {answer.trace_id}\r\n{rest}".encode()


@lru_cache(maxsize=64)
def _rest(fields: Fields, form: str, coding: Coding | None, http_1_1: bool, keep_alive: bool, _: int) -> str:
    """What follows the trace id, in this second."""
    headers = dict(fields)
    lines = {**headers, **stream_headers(form, headers, coding)}
    if http_1_1:
        lines["Transfer-Encoding"] = "chunked"
    lines["Date"] = rfc822_formatted_time()
    if http_1_1 and not keep_alive:
        lines["Connection"] = "close"
    return "".join([f"{name}: {value}\r\n" for name, value in lines.items()]) + "\r\n"
