"""One contract over both ways to a stream: the slim listener and aiohttp answer every request with the same bytes.

A fresh connection meets the slim listener. One on which something else was asked first belongs to aiohttp, and every
request that follows is served there: so the same bytes are sent on both, and what comes back is compared byte for byte,
but for the trace id, the date, and the jitter of `retry:`.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from relay.core.hold import Hold
from relay.core.ids import RunKey
from relay.web import door, routes, slim, slim_connection
from relay.web.faces.mounts import Mounts
from relay.web.faces.routes import mounted
from relay.web.options import LimitOptions
from relay.web.slim_connection import Connection
from tests.support.needs import missing
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import API_KEYS, KEY, PATIENCE_S, Raw, bearer, connection, events, fetch, notices

STARTED = ("run.started", {"persona_id": "p"})
WHOLE = (STARTED, ("message.delta", {"content_delta": "hello", "role": "assistant"}), ("run.completed", {}))
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ORIGIN = "https://app.example.com"
SECTIONS: dict[str, Any] = {
    "auth": API_KEYS,
    "server": {"cors_origins": (ORIGIN,), "allowed_hosts": ("relay.test",)},
}
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The path of every request the slim listener has taken."""
    paths: list[str] = []
    real = slim.Slim.request

    def noting(self: slim.Slim, connection: Connection, head: bytes) -> Any:
        found = real(self, connection, head)
        if found is not None:
            paths.append(found[0].raw_path)
        return found

    monkeypatch.setattr(slim.Slim, "request", noting)
    return paths


@asynccontextmanager
async def owned_by_aiohttp(relay: RunningRelay) -> AsyncIterator[Raw]:
    async with connection(relay.url) as raw:
        await raw.ask("/ui/app.css")
        await raw.answer()
        raw.data = b""
        yield raw


async def answered(raw: Raw, *, head_only: bool = False) -> bytes:
    """One whole answer, or all there is until the connection ends. A `100 Continue` before it is part of it."""
    before = b""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if raw.data.startswith(CONTINUE):
                before, raw.data = CONTINUE, raw.data[len(CONTINUE) :]
            at_head = b"\r\n\r\n" in raw.data and (head_only or raw.status == 101)
            if at_head or raw._whole() or not await raw._more():
                return before + raw.data


async def both(relay: RunningRelay, request: bytes) -> tuple[bytes, bytes]:
    head_only = request.startswith(b"HEAD ")
    async with connection(relay.url) as raw:
        await raw.send(request)
        fresh = await answered(raw, head_only=head_only)
    async with owned_by_aiohttp(relay) as raw:
        await raw.send(request)
        return fresh, await answered(raw, head_only=head_only)


def comparable(answer: bytes) -> bytes:
    answer = re.sub(rb"\b[0-9a-f]{32}\b", b"TRACE", answer)
    answer = re.sub(rb"\r\nDate: [^\r]*", b"\r\nDate: D", answer)
    return re.sub(rb"retry: [0-9]{4}\n", b"retry: R\n", answer)


def request(
    target: str, *lines: str, method: str = "GET", version: str = "1.1", host: str | None = "127.0.0.1"
) -> bytes:
    fields = [*([f"Host: {host}"] if host is not None else []), *lines]
    return "\r\n".join([f"{method} {target} HTTP/{version}", *fields, "", ""]).encode("latin-1")


AUTH = f"Authorization: Bearer {KEY}"
RUN = "/v1/runs/{}/events"


def plain(run_id: str) -> Iterator[bytes]:
    """Those the slim listener takes: streams, their other representations, and every refusal of the door and the route."""
    path = RUN.format(run_id)
    yield request(path, AUTH)
    yield request(path, AUTH, "Accept: text/event-stream", "User-Agent: x", "Cookie: a=b")
    yield request(f"/native{path}", AUTH)
    yield request(f"{path}?named=1&after_seq=1", AUTH)
    yield request(f"{path}?types=run.*&follow=false", AUTH)
    yield request(f"{path}?types=message.*", AUTH)
    yield request(path, AUTH, "Accept: application/x-ndjson")
    yield request(f"{path}?limit=2", AUTH, "Accept: application/json")
    yield request(path, AUTH, "Last-Event-ID: 1")
    yield request(path, AUTH, "Last-Event-ID: 3")  # 204
    yield request(path, AUTH, "Connection: close")
    yield request(path, AUTH, "Connection: keep-alive")
    yield request(path, AUTH, version="1.0")
    yield request(path, AUTH, "Connection: keep-alive", version="1.0")
    yield request(path, AUTH, version="1.0", host=None)
    yield request(path, AUTH, "Last-Event-ID: 3", version="1.0")
    yield request(path, AUTH, f"Origin: {ORIGIN}")
    yield request(path, AUTH, "Origin: https://evil.example.com")
    yield request(path, AUTH, host="relay.test:80")
    yield request(path, AUTH, host="rebound.example.com")
    yield request(path)
    yield request(path, "Authorization: Bearer rk_no-such-key")
    yield request(path, "Authorization: Basic x", f"Origin: {ORIGIN}")
    yield request(f"{path}?access_token=no.such.token")
    yield request(f"{path}?after_seq=x", AUTH)
    yield request(f"{path}?upstream=nobody", AUTH)
    yield request(f"{path}?thread_id=..", AUTH)
    yield request(f"{path}?{'x=1&' * 1100}", AUTH)  # more than the door lets in
    yield request(path, AUTH, "Accept: image/png")
    yield request(RUN.format("no-such-run"), AUTH)
    yield request(f"/arkloop{path}?follow=false", AUTH)
    yield request(f"/arkloop{path}?follow=perhaps", AUTH)
    yield request(f"/openai/threads/thread-1/runs/{run_id}/stream", AUTH)
    yield request(f"/openai/v1/threads/thread-2/runs/{run_id}/stream")
    yield request(f"/seekrflow/v1/threads/thread-1/runs/{run_id}/attach", AUTH)
    yield request(f"/seekrflow/v1/threads/thread-1/runs/{run_id}/attach", f"Authorization: {KEY}")


def others(run_id: str) -> Iterator[bytes]:
    """Those it gives to aiohttp."""
    path = RUN.format(run_id)
    for method in ("HEAD", "POST", "PUT", "OPTIONS", "DELETE", "QUERY"):
        yield request(path, AUTH, method=method)
    yield request(path, f"Origin: {ORIGIN}", "Access-Control-Request-Method: GET", method="OPTIONS")
    yield request(path, AUTH, "Expect: 100-continue")
    yield request(path, AUTH, "Content-Type: application/json", "Content-Length: 2") + b"{}"
    yield request(path, AUTH, "Content-Length: 2") + b"{}"  # 415
    yield request(path, AUTH, "Content-Type: application/json", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n"
    yield request(path, AUTH, "Connection: Upgrade", "Upgrade: h2c")
    yield request(
        path, AUTH, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )  # fmt: skip
    yield request(path, AUTH, "Connection: Upgrade", "Upgrade: websocket")  # not a whole handshake
    yield request(f"{path}?{'x' * 20_000}", AUTH)
    yield request(path, AUTH, f"X-Long: {'x' * 20_000}")
    yield request(path, AUTH, *(f"X-{number}: y" for number in range(400)))
    yield request(f"/v1/runs/%{ord(run_id[0]):02x}{run_id[1:]}/events", AUTH)  # the same run
    yield request(f"/v1/runs//{run_id}/events", AUTH)
    yield request(RUN.format(".."), AUTH)
    yield request(f"{path}/", AUTH)
    yield request(f"{path}#fragment", AUTH)
    yield request(f"http://127.0.0.1{path}", AUTH)
    yield request(f"/v1/runs/{run_id}", AUTH)
    yield request("*", AUTH, method="OPTIONS")
    yield request(path, AUTH, host=None)
    yield request(path, AUTH, "Host: relay.test")  # two of them
    yield request(path, AUTH, version="1.2")
    yield request(path, AUTH, version="2.0")
    yield request(path, AUTH, method="get")
    yield request(path, AUTH, "X-Bad : y")
    yield request(path, AUTH, " folded")
    yield request(path, AUTH, "X-Nul: a\x00b")
    yield request(path, AUTH, "no colon")
    yield request(path, AUTH, "Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n"
    yield request(path, AUTH, "Content-Length: -1")
    yield request(path, AUTH).replace(b"\r\n", b"\n")
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n"  # TLS, spoken to a plain port


async def compared(
    redis_url: str, requests: Callable[[str], Iterator[bytes]], took: Callable[[], int], *, watched: bool = False
) -> None:
    """`watched`: somebody watches the run all the time, so that most of it is answered at once."""
    async with ScriptedUpstream(token="upstream-secret") as upstream:
        run_id = upstream.add_run(WHOLE)
        async with running(upstream.url, redis_url, **SECTIONS) as relay:
            sealed = await fetch(relay.url, RUN.format(run_id), bearer(KEY))
            assert notices(sealed.body, "relay.end")
            if watched:
                await events_of(relay)._hub.open(RunKey("main", run_id), Hold())
            for one in requests(run_id):
                before = took()
                fresh, kept = await both(relay, one)
                assert comparable(fresh) == comparable(kept), one
                assert fresh.startswith(b"HTTP/"), (one, fresh)
                assert b" 500 " not in fresh.split(b"\r\n")[0], (one, fresh)
                expected = requests is plain
                assert took() - before == expected, one


@pytest.mark.parametrize("loop", LOOPS)
def test_what_the_slim_listener_answers_is_what_aiohttp_would(redis_url: str, taken: list[str], loop: str) -> None:
    LOOPS[loop](compared(redis_url, plain, lambda: len(taken)))


def events_of(relay: RunningRelay) -> Any:
    """The endpoint of the native face."""
    known = relay.app._public[0]._runner.app[door.DOOR].known  # type: ignore[attr-defined]
    return next(route for route in known.values() if route.name == "events").endpoint.__self__


def test_and_so_is_what_it_answers_at_once(redis_url: str, taken: list[str]) -> None:
    uvloop.run(compared(redis_url, plain, lambda: len(taken), watched=True))


async def test_who_comes_to_a_run_that_is_watched_needs_no_task(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = upstream.add_run([STARTED, *[("message.delta", {"content_delta": "x"})] * 20])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as first, connection(relay.url) as raw:
        await first.send(request(RUN.format(run_id)))
        await first.until(b"id: 21\n")
        started: list[Any] = []
        shared = relay.app._public[0]._runner.server.slim  # type: ignore[attr-defined]
        monkeypatch.setattr(shared, "spawn", started.append)
        await raw.send(request(f"{RUN.format(run_id)}?after_seq=7"))
        await raw.until(b"id: 21\n")
        upstream.append(run_id, "run.note", {})
        await raw.until(b"id: 22\n")
        assert [event["seq"] for event in events(raw.body)] == list(range(8, 23))
        assert not started


@pytest.mark.parametrize("loop", LOOPS)
def test_everything_else_is_given_to_aiohttp_whole(redis_url: str, taken: list[str], loop: str) -> None:
    LOOPS[loop](compared(redis_url, others, lambda: len(taken)))


# --- the table -------------------------------------------------------------------------------------------------------
class Anything:
    def __getattr__(self, name: str) -> Any:
        return self


@pytest.mark.parametrize("root", ["native", "arkloop", "seekrflow", "openai"])
async def test_both_find_the_same_route_behind_the_same_door(root: str) -> None:
    """By identity: the slim table's rows are the application's own routes, and no other route would take their paths."""
    anything: Any = Anything()
    mounts = Mounts(root)
    table = [
        *routes.public(anything, anything, anything, anything, anything, at_root=root == "native"),
        *mounted(mounts, anything, anything, keys_are_ours=True),
    ]
    app = door.build(table, anything, body_bytes=1)
    listener = slim.Slim(app[door.DOOR], LimitOptions(), asyncio.create_task, lambda: None)  # type: ignore[arg-type, return-value]
    assert listener.door is app[door.DOOR]
    streams = [route for route in table if route.streams]
    assert {route.path.rpartition("/")[2] for route in streams} == {"events", "attach", "stream"}
    for route in streams:
        path = re.sub(r"\{\w+(:[^{}]*)?\}", "an_ID-1", route.path)
        found = listener.request(Connection(listener, asyncio.get_running_loop()), request(f"{path}?a=b"))
        assert found is not None, path
        asked, its_route = found
        theirs = await app.router.resolve(make_mocked_request("GET", path))
        assert its_route is app[door.DOOR].known[theirs.route]
        assert dict(asked.match_info) == dict(theirs)
        for stranger in ("an.ID", "a%2Fb", "", "a" * 129, "a b", "é"):
            other = request(re.sub(r"\{\w+(:[^{}]*)?\}", stranger, route.path))
            assert listener.request(Connection(listener, asyncio.get_running_loop()), other) is None


# --- one connection, many requests -----------------------------------------------------------------------------------
@asynccontextmanager
async def sealed_run(
    upstream: ScriptedUpstream, redis_url: str, **sections: Any
) -> AsyncIterator[tuple[RunningRelay, str]]:
    run_id = upstream.add_run(WHOLE)
    async with running(upstream.url, redis_url) as relay:
        await fetch(relay.url, RUN.format(run_id))
        yield relay, run_id


async def answers(raw: Raw, count: int) -> list[bytes]:
    """So many answers on one connection, each in its own framing."""
    found = []
    for _ in range(count):
        await raw.answer()
        head = raw.head + b"\r\n\r\n"
        whole = head + _of_body(raw)
        found.append(raw.data[: len(whole)])
        raw.data = raw.data[len(whole) :]
    return found


def _of_body(raw: Raw) -> bytes:
    if raw.chunked:
        end = raw.raw_body.index(b"0\r\n\r\n") + 5
        return raw.raw_body[:end]
    return raw.raw_body[: int(raw.headers.get("content-length", 0))]


class First(Raw):
    """Like Raw, but the first answer alone counts."""

    def _whole(self) -> bool:
        if b"\r\n\r\n" not in self.data:
            return False
        if self.chunked:
            return b"\r\n0\r\n\r\n" in self.data
        return len(self.raw_body) >= int(self.headers.get("content-length", 0))


@asynccontextmanager
async def pipelining(relay: RunningRelay) -> AsyncIterator[First]:
    async with connection(relay.url) as raw:
        yield First(raw._reader, raw._writer, raw.host)


async def test_pipelined_requests_are_answered_in_their_order(
    upstream: ScriptedUpstream, redis_url: str, taken: list[str]
) -> None:
    async with sealed_run(upstream, redis_url) as (relay, run_id), pipelining(relay) as raw:
        path = RUN.format(run_id)
        await raw.send(
            request(path)
            + request(f"{path}?after_seq=2")
            + request(f"/v1/runs/{run_id}")
            + request(f"{path}?after_seq=1")
        )
        first, second, third, fourth = await answers(raw, 4)
    assert [first.count(b"\nid: "), second.count(b"\nid: "), fourth.count(b"\nid: ")] == [4, 2, 3]
    assert b'"last_seq":3' in third
    assert [one.rpartition("=")[2] for one in taken[1:]] == [path, "2"]  # the third took the connection to aiohttp


async def test_streams_follow_each_other_on_one_connection_and_then_anything_else(
    upstream: ScriptedUpstream, redis_url: str, taken: list[str]
) -> None:
    async with sealed_run(upstream, redis_url) as (relay, run_id), pipelining(relay) as raw:
        for target, ours in (("", True), ("?after_seq=x", True), ("?after_seq=3", True), ("/x", False), ("", False)):
            before = len(taken)
            await raw.send(request(RUN.format(run_id) + target))
            [answer] = await answers(raw, 1)
            assert answer.startswith(b"HTTP/1.1 ")
            assert (len(taken) > before) == ours, target


async def test_a_pipelined_request_waits_for_the_end_of_a_live_stream(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay, pipelining(relay) as raw:
        await raw.send(request(RUN.format(run_id)) + request("/ui/app.css"))
        await raw.until(b"id: 1\n")
        assert b"text/css" not in raw.data
        upstream.append(run_id, "run.completed", {})
        stream, css = await answers(raw, 2)
    assert b"relay.end" in stream
    assert b"text/css" in css


async def test_what_is_sent_ahead_is_bounded(upstream: ScriptedUpstream, redis_url: str) -> None:
    """A client that sends and sends while its stream is open is not read any further."""
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.send(request(RUN.format(run_id)))
        await raw.until(b"id: 1\n")
        raw._writer.write(bytes(64 << 20))  # more than the kernel takes on either side
        upstream.append(run_id, "run.note", {})
        await raw.until(b"id: 2\n")
        assert raw._writer.transport.get_write_buffer_size() > 1 << 20, "it was read"
        raw._writer.transport.abort()


# --- heads that come slowly ------------------------------------------------------------------------------------------
async def test_a_head_may_come_byte_by_byte(upstream: ScriptedUpstream, redis_url: str, taken: list[str]) -> None:
    async with sealed_run(upstream, redis_url) as (relay, run_id):
        for one, ours in (
            (request(RUN.format(run_id), "Connection: close"), 1),
            (request("/ui", "Connection: close"), 0),
        ):
            before = len(taken)
            async with connection(relay.url) as raw:
                for byte in one:
                    await raw.send(bytes([byte]))
                    await asyncio.sleep(0)
                await raw.rest()
                assert raw.status == 200
            assert len(taken) - before == ours


@pytest.mark.parametrize(
    "begun",
    [b"G", b"GET /v1/runs/x/events HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\n", b"\r\nGET / HTTP/1.1\r\n"],
)
async def test_a_head_that_never_ends_is_given_up(upstream: ScriptedUpstream, redis_url: str, begun: bytes) -> None:
    """Also one that goes on a little now and then: what counts is when it began."""
    async with running(upstream.url, redis_url, limits={"head_s": 0.5}) as relay, connection(relay.url) as raw:
        await raw.send(begun)
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(raw.rest())
            while not ended.done():
                await asyncio.sleep(0.1)
                try:
                    await raw.send(b"X" if b"\r\n" not in begun.strip() else b"X-A: b\r\n")
                except ConnectionError:
                    break
        assert raw.data == b""


async def test_a_later_head_that_never_ends_is_given_up_too(upstream: ScriptedUpstream, redis_url: str) -> None:
    """On a connection that is aiohttp's by now."""
    async with running(upstream.url, redis_url, limits={"head_s": 0.5}) as relay, owned_by_aiohttp(relay) as raw:
        await raw.send(b"GET /ui HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        ended = asyncio.ensure_future(raw.rest())
        while not ended.done():
            await asyncio.sleep(0.1)
            try:
                await raw.send(b"X-A: b\r\n")
            except ConnectionError:
                break
        await ended
        assert raw.data == b""


async def test_a_stream_is_not_cut_for_the_beginning_of_the_next_head(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, limits={"head_s": 0.2}) as relay, owned_by_aiohttp(relay) as raw:
        await raw.send(request(RUN.format(run_id)))
        await raw.send(b"GET /ui HTTP/1.1\r\n")
        began = time.monotonic()
        seq = 1
        while time.monotonic() < began + 0.6:
            await raw.until(b"id: %d\n" % seq)
            await raw.send(b"X-A: b\r\n")
            upstream.append(run_id, "run.note", {})
            seq += 1
        await raw.until(b"id: %d\n" % seq)


async def test_a_connection_that_asks_for_nothing_is_closed(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slim_connection, "IDLE_S", 0.3)
    async with sealed_run(upstream, redis_url) as (relay, run_id):
        async with connection(relay.url) as raw:
            assert await raw.rest() == b""
        async with connection(relay.url) as raw:  # and one that asked for something before
            await raw.send(request(RUN.format(run_id)))
            assert (await raw.rest()).endswith(b"0\r\n\r\n")


# --- ends ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("owner", ["slim", "aiohttp"])
async def test_an_ended_access_cuts_and_resets_where_a_cut_is_no_sign(
    upstream: ScriptedUpstream, redis_url: str, owner: str
) -> None:
    """HTTP/1.1: no last chunk. HTTP/1.0: a reset, for a close would be a proper end."""
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, drain={"window_s": 0.1}) as relay:
        opening = connection(relay.url) if owner == "slim" else owned_by_aiohttp(relay)
        second = connection(relay.url) if owner == "slim" else owned_by_aiohttp(relay)
        async with opening as new, second as old:
            await new.send(request(RUN.format(run_id)))
            await old.send(request(RUN.format(run_id), version="1.0"))
            for raw in (new, old):
                await raw.until(b"id: 1\n")
            relay.app._pulse.close()
            for raw in (new, old):
                await raw.rest()
                assert not raw.finished
            assert b"relay.goodbye" in new.body  # of the other one the reset may have taken it
            assert old.was_reset
            assert not new.was_reset
        relay.app._pulse._draining = False
        assert relay.app._pulse.count == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_whoever_leaves_is_forgotten_at_once(redis_url: str, loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with ScriptedUpstream(token="upstream-secret") as upstream:
            run_id = upstream.add_run([STARTED])
            async with running(upstream.url, redis_url) as relay:
                raws = []
                for _ in range(20):
                    raw = Raw(
                        *await asyncio.open_connection(*relay.url.removeprefix("http://").split(":")), "127.0.0.1"
                    )
                    await raw.send(request(RUN.format(run_id)))
                    raws.append(raw)
                for raw in raws:
                    await raw.until(b"id: 1\n")
                assert relay.app._pulse.count == 20
                idle = {task for task in asyncio.all_tasks() if "_logged" in repr(task)}
                assert not idle, "a viewer at the live edge has no task"
                for raw in raws:
                    await raw.close()
                async with asyncio.timeout(PATIENCE_S):
                    while relay.app._pulse.count or relay.app._pulse._taken:
                        await asyncio.sleep(0.01)

    LOOPS[loop](check())
    assert "crashed" not in caplog.text


async def test_one_who_leaves_before_the_answer_is_forgotten_too(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay:
        async with connection(relay.url) as raw:
            await raw.send(request(f"{RUN.format(run_id)}?follow=false&after_seq=0"))
            await upstream.until(lambda: upstream.requests)
        async with asyncio.timeout(PATIENCE_S):
            while relay.app._pulse._taken:
                await asyncio.sleep(0.01)


async def test_what_breaks_in_a_stream_breaks_that_one(
    upstream: ScriptedUpstream, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody thought of it: it is logged, the client is cut off, everybody else goes on."""
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as well, connection(relay.url) as ill:
        await well.send(request(RUN.format(run_id)))
        await well.until(b"id: 1\n")

        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr("relay.fanout.topic.Topic.join", broken)
            await ill.send(request(RUN.format(run_id)))
            await ill.rest()
        assert not ill.finished
        upstream.append(run_id, "run.note", {})
        await well.until(b"id: 2\n")
        assert relay.app._pulse.count == 1


async def test_a_full_house_refuses_alike(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url, limits={"connections": 1}) as relay, connection(relay.url) as first:
        await first.send(request(RUN.format(run_id)))
        await first.until(b"id: 1\n")
        fresh, kept = await both(relay, request(RUN.format(run_id)))
        jitter = partial(re.sub, rb"Retry-After: \d+", b"Retry-After: J")
        assert jitter(comparable(fresh)) == jitter(comparable(kept))
        assert b" 503 " in fresh.split(b"\r\n")[0]


# --- TLS -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("openssl", "a certificate is made with it")
    place = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=relay.test", "-keyout", place, "-out", place.with_suffix(".crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    place.write_bytes(place.read_bytes() + place.with_suffix(".crt").read_bytes())
    return place


@pytest.mark.parametrize("loop", LOOPS)
def test_over_tls_too(
    redis_url: str, certificate: Path, taken: list[str], loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody configures it today, but the protocols are handed a transport and must not care which."""
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate.with_suffix(".crt")))
    trusting.check_hostname = False
    real = web.TCPSite.__init__

    async def check() -> None:
        async with ScriptedUpstream(token="upstream-secret") as upstream:
            run_id = upstream.add_run([STARTED])
            monkeypatch.setattr(web.TCPSite, "__init__", lambda *a, **o: real(*a, **o, ssl_context=served))
            async with running(upstream.url, redis_url) as relay:
                host, port = relay.url.removeprefix("http://").split(":")
                slow = Raw(*await asyncio.open_connection(host, port, ssl=trusting, limit=1024), "127.0.0.1")
                await slow.send(request(RUN.format(run_id)))
                await slow.until(b"id: 1\n")
                for number in range(40):
                    upstream.append(run_id, "run.note", {"number": number, "text": "x" * 100_000})
                upstream.append(run_id, "run.completed", {})
                raw = Raw(*await asyncio.open_connection(host, port, ssl=trusting), "127.0.0.1")
                await raw.send(request(RUN.format(run_id), "Connection: close"))
                for one in (raw, slow):
                    while not one.data.endswith(b"\r\n0\r\n\r\n"):
                        assert await one._more()
                    assert [event["seq"] for event in events(one.body)] == list(range(1, 43))
                await slow.send(request("/ui/app.css", "Connection: close"))
                assert b"text/css" in (await slow.rest()).rpartition(b"0\r\n\r\n")[2]
                for one in (raw, slow):
                    await one.close()

    LOOPS[loop](check())
    assert len(taken) == 2
