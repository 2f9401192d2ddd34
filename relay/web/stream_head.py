"""The head of a stream's 200, byte for byte as aiohttp writes it: its own writer takes five times as long."""

from __future__ import annotations

from functools import lru_cache

from aiohttp.helpers import rfc822_formatted_time

from relay.delivery.compression import Coding
from relay.delivery.http import EventStream, stream_headers


def stream_head(answer: EventStream, *, http_1_1: bool, keep_alive: bool) -> bytes:
    (name, trace_id), *others = answer.headers.items()  # the first differs from answer to answer, the others seldom do
    fixed = _fixed(tuple(others), answer.wire.form, answer.coding, http_1_1)
    last = "" if keep_alive or not http_1_1 else "Connection: close\r\n"
    line = f"HTTP/1.{int(http_1_1)} 200 OK\r\n{name}: {trace_id}\r\n"
    return f"{line}{fixed}Date: {rfc822_formatted_time()}\r\n{last}\r\n".encode()


@lru_cache(maxsize=64)
def _fixed(fields: tuple[tuple[str, str], ...], form: str, coding: Coding | None, http_1_1: bool) -> str:
    headers = dict(fields)
    lines = {**headers, **stream_headers(form, headers, coding)}
    if http_1_1:
        lines["Transfer-Encoding"] = "chunked"
    return "".join([f"{name}: {value}\r\n" for name, value in lines.items()])
