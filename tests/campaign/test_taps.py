"""The witness between relay and upstream: when a stream was open."""

from __future__ import annotations

from typing import Any

from tests.campaign.taps import UpstreamTap

ASK = b"GET /v1/runs/r1/events?after_seq=7 HTTP/1.1\r\nhost: up\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:"


def test_a_whole_answer_is_over_although_its_connection_idles() -> None:
    recorded: list[dict[str, Any]] = []
    following: dict[str, list[dict[str, Any]]] = {}
    tap = UpstreamTap(0, recorded.append, following)
    tap.up(ASK, 0.0)
    assert [row["after"] for row in following["r1"]] == [7]
    tap.down(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    assert following == {"r1": []}
    assert [(row["run"], row["status"]) for row in recorded] == [("r1", 200)]


def test_a_stream_is_open_until_its_last_chunk_or_its_connection_ends() -> None:
    recorded: list[dict[str, Any]] = []
    tap = UpstreamTap(0, recorded.append, {})
    tap.up(ASK, 0.0)
    tap.down(STREAM)
    tap.down(b" content-length: 2\r\n\r\n")
    assert recorded == []
    tap.down(b"\r\n0\r")
    tap.down(b"\n\r\n")
    assert len(recorded) == 1
    tap.up(ASK, 0.0)
    tap.down(STREAM)
    tap.closed()
    assert len(recorded) == 2
