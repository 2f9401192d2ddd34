"""Streams compressed where a client asks for it: the same bytes behind the coding, event by event."""

from __future__ import annotations

import asyncio
import gzip
import re
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.goodbye import DRAIN
from relay.delivery.compression import Gzip, Zstd, coding_of
from tests.support.needs import package
from tests.support.relay import running
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import Raw, connection, events, fetch

zstd = package("backports.zstd", "zstd")


ON: dict[str, Any] = {"delivery": {"compress": True}}
SCRIPT = [
    ("run.started", {}),
    *(("message.delta", {"content_delta": f"word {i}", "role": "assistant"}) for i in range(200)),
    ("run.completed", {}),
]


def opened(coding: str) -> Callable[[bytes], bytes]:
    """What decompresses as the bytes come."""
    return zlib.decompressobj(31).decompress if coding == "gzip" else zstd.ZstdDecompressor().decompress


# --- what is asked for -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "coding"),
    [
        (None, None), ("", None), ("identity", None), ("*", None), ("br", None), ("gzip;q=0", None), ("gzip;q=0.0", None),
        ("gzip", "gzip"), ("GZIP", "gzip"), ("x-gzip", "gzip"), ("gzip, deflate, br", "gzip"),
        ("br;q=1.0, gzip;q=0.5", "gzip"),
        ("zstd", "zstd"), ("gzip, deflate, br, zstd", "zstd"), ("gzip, zstd;q=0.9", "gzip"), ("zstd;q=0, gzip", "gzip"),
        ("gzip;q=nonsense", None), (",,gzip ,", "gzip"), ("gzip" * 10_000, None),
    ],
)  # fmt: skip
def test_the_best_coding_that_is_asked_for_by_name(asked: str | None, coding: str | None) -> None:
    assert coding_of(asked) == coding


@given(st.text(max_size=200))
def test_whatever_is_asked_is_answered(asked: str) -> None:
    assert coding_of(asked) in (None, "gzip", "zstd")


# --- the codings -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("encoder", "coding"), [(Gzip, "gzip"), (Zstd, "zstd")])
@given(pieces=st.lists(st.binary(max_size=3000), max_size=20))
def test_each_piece_can_be_read_at_once_and_the_end_makes_it_whole(
    encoder: Callable[[], Any], coding: str, pieces: list[bytes]
) -> None:
    one, read = encoder(), opened(coding)
    body = b""
    for piece in pieces:
        packed = one.piece(piece)
        assert read(packed) == piece
        body += packed
    body += one.end()
    whole = gzip.decompress(body) if coding == "gzip" else zstd.decompress(body)
    assert whole == b"".join(pieces)


# --- served ----------------------------------------------------------------------------------------------------------
async def test_off_unless_configured(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(SCRIPT)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/events", {"Accept-Encoding": "gzip, zstd"})
        assert "content-encoding" not in raw.headers
        assert len(events(raw.body)) == len(SCRIPT)


@pytest.mark.parametrize("aiohttp_serves", [False, True])
@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_the_same_events_behind_the_coding(
    upstream: ScriptedUpstream, redis_url: str, coding: str, version: str, aiohttp_serves: bool
) -> None:
    run_id = upstream.add_run(SCRIPT)
    async with running(upstream.url, redis_url, **ON) as relay, connection(relay.url) as raw:
        plain = await fetch(relay.url, f"/v1/runs/{run_id}/events")
        await lead_in(raw, aiohttp_serves)
        await raw.ask(f"/v1/runs/{run_id}/events", {"Accept-Encoding": coding, "Connection": "close"}, version=version)
        await raw.rest()
        assert raw.headers["content-encoding"] == coding
        assert "Accept-Encoding" in raw.headers["vary"]
        assert raw.finished is (version == "1.1")
        body = gzip.decompress(raw.body) if coding == "gzip" else zstd.decompress(raw.body)
        assert without_jitter(body) == without_jitter(plain.body)
        assert len(raw.body) < len(plain.body) / 4


async def lead_in(raw: Raw, aiohttp_serves: bool) -> None:
    """A connection on which something else was asked first belongs to aiohttp."""
    if aiohttp_serves:
        await raw.ask("/ui/app.css")
        await raw.answer()
        raw.data = b""


def without_jitter(body: bytes) -> bytes:
    return re.sub(rb"retry: \d+", b"retry: N", body)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_each_event_can_be_read_when_it_is_there_and_a_cut_stays_a_cut(
    upstream: ScriptedUpstream, redis_url: str, coding: str
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    async with running(upstream.url, redis_url, **ON) as relay, connection(relay.url) as raw:
        await raw.ask(f"/v1/runs/{run_id}/events", {"Accept-Encoding": coding})
        for seq in range(2, 30):
            upstream.append(run_id, "message.delta", {"content_delta": str(seq)})
            async with asyncio.timeout(60):
                while b"id: %d\n" % seq not in opened(coding)(raw.body):
                    assert await raw._more()
        for stream in tuple(relay.app._pulse._streams):
            stream.say_goodbye(DRAIN)
        await raw.rest()
        assert not raw.finished
        assert b"event: relay.goodbye" in opened(coding)(raw.body)
        with pytest.raises((EOFError, ValueError, zstd.ZstdError)):
            gzip.decompress(raw.body) if coding == "gzip" else zstd.decompress(raw.body)


async def test_clients_read_it_as_they_read_everything(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(SCRIPT)
    async with running(upstream.url, redis_url, **ON) as relay:
        url = relay.events(run_id)
        async with httpx.AsyncClient(headers={"Accept-Encoding": "gzip"}) as client:
            answer = await client.get(url)
            assert answer.headers["content-encoding"] == "gzip"
            assert len(events(answer.content)) == len(SCRIPT)
        async with aiohttp.ClientSession(headers={"Accept-Encoding": "gzip"}) as session, session.get(url) as found:
            assert found.headers["Content-Encoding"] == "gzip"
            assert len(events(await found.read())) == len(SCRIPT)


async def test_ndjson_and_face_streams_too_a_page_and_a_websocket_not(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run(SCRIPT)
    asking = {"Accept-Encoding": "gzip"}
    async with running(upstream.url, redis_url, **ON) as relay:
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/events", {**asking, "Accept": "application/x-ndjson"})
        assert gzip.decompress(raw.body).count(b"\n") >= len(SCRIPT)
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/events", {**asking, "Accept": "application/json"})
        assert "content-encoding" not in raw.headers
        raw = await fetch(relay.url, f"/arkloop/v1/runs/{run_id}/events?follow=false", asking)
        assert len(events(gzip.decompress(raw.body))) == len(SCRIPT)
        async with aiohttp.ClientSession(headers=asking) as session:
            async with session.ws_connect(relay.events(run_id)) as ws:
                assert [(await ws.receive_json())["seq"] for _ in range(5)] == [1, 2, 3, 4, 5]
