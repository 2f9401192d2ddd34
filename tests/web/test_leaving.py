"""The end of a connection: what was written is still sent to who takes it, and who takes nothing is not kept."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from relay.delivery import connection as connections
from relay.web.slim_connection import Connection
from tests.support import upstream_faults as faults
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import PATIENCE_S, Raw, connection, events

STARTED = ("run.started", {})
LARGE = ("run.note", {"text": "x" * 900_000})
"""More than the kernel takes here, and less than a stream waits for (see `kept`)."""


@asynccontextmanager
async def unread(relay: RunningRelay, target: str, *, version: str = "1.1") -> AsyncIterator[Raw]:
    """A client with little room, who has not begun to read its answer."""
    host, _, port = relay.url.removeprefix("http://").partition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    raw = Raw(*await asyncio.open_connection(sock=sock, limit=1024), host)
    try:
        yield await raw.ask(target, version=version)
    finally:
        await raw.close()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The connections of the slim listener."""
    made: list[Connection] = []
    real = Connection.connection_made

    def noting(self: Connection, transport: Any) -> None:
        made.append(self)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        transport.set_write_buffer_limits(1 << 20)
        real(self, transport)

    monkeypatch.setattr(Connection, "connection_made", noting)
    return made


async def until(fact: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not fact():
            await asyncio.sleep(0.01)


async def answered(kept: list[Connection]) -> None:
    """The whole answer is written, and some of it not sent."""
    await until(lambda: kept and kept[-1] in kept[-1]._slim.deadlines and kept[-1].backlog)


def large(upstream: ScriptedUpstream) -> str:
    return f"/v1/runs/{upstream.add_run([STARTED, LARGE, ('run.completed', {})])}/events"


async def test_the_rest_of_an_answer_is_sent_to_who_takes_it_however_long_it_takes(
    upstream: ScriptedUpstream, redis_url: str, kept: list[Connection]
) -> None:
    async with running(upstream.url, redis_url) as relay, unread(relay, large(upstream)) as raw:
        await raw.until(b"id: 1\n")
        await answered(kept)
        sweeps = 0
        while kept[0].backlog and sweeps < 5:
            sweeps += 1
            before = kept[0].backlog
            while before == kept[0].backlog > 0:
                assert await raw._more()
            kept[0]._slim.deadlines[kept[0]] = 0.0  # its time is over
            kept[0]._slim._sweep()
        await raw.answer()
        assert raw.finished
        assert [event["seq"] for event in events(raw.body)] == list(range(1, 4))
        kept[0]._slim.deadlines[kept[0]] = 0.0
        kept[0]._slim._sweep()
        assert await raw.rest() == raw.data  # and then it is closed


async def test_at_the_end_of_the_process_the_rest_of_an_answer_is_still_sent(
    upstream: ScriptedUpstream, redis_url: str, kept: list[Connection]
) -> None:
    drain = {"window_s": 0.1, "close_s": 6.0}
    async with running(upstream.url, redis_url, drain=drain) as relay, unread(relay, large(upstream)) as raw:
        await raw.until(b"id: 1\n")
        await answered(kept)
        ending = asyncio.ensure_future(kept[0]._slim.shutdown(6.0))
        await asyncio.sleep(0)
        await raw.rest()
        await ending
        assert raw.finished


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_who_takes_nothing_any_more_is_not_kept(
    upstream: ScriptedUpstream, redis_url: str, kept: list[Connection], monkeypatch: pytest.MonkeyPatch,
    version: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(connections, "TAKING_S", 0.2)
    async with running(upstream.url, redis_url) as relay:
        target = large(upstream)
        async with unread(relay, target, version=version) as raw:
            await raw.until(b"id: 1\n")
            await until(lambda: kept[-1].backlog)
            [mine] = kept
            mine.part()
            assert mine.backlog
            await until(lambda: mine not in mine._slim.connections)
            assert mine.backlog == 0


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("owner", ["slim", "aiohttp"])
def test_a_client_that_says_no_more_is_never_told_a_proper_end_of_a_run_that_goes_on(
    redis_url: str, owner: str, loop: Any
) -> None:
    """Over HTTP/1.0 a body ends where the connection does."""

    async def check() -> None:
        async with ScriptedUpstream(token="upstream-secret") as upstream:
            target = f"/v1/runs/{upstream.add_run([STARTED])}/events"
            async with running(upstream.url, redis_url) as relay:
                async with (connection if owner == "slim" else owned)(relay.url) as raw:
                    await raw.ask(target, version="1.0")
                    await raw.until(b"id: 1\n")
                    raw._writer.write_eof()
                    await raw.rest()
                    assert raw.was_reset
                await until(lambda: not relay.app._pulse.count)

    loop(check())


@asynccontextmanager
async def owned(url: str) -> AsyncIterator[Raw]:
    """A connection that aiohttp serves."""
    async with connection(url) as raw:
        await raw.ask("/ui/app.css")
        await raw.answer()
        raw.data = b""
        yield raw


async def test_who_left_before_the_answer_began_is_no_crash(
    upstream: ScriptedUpstream, redis_url: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stream of a run that is still being made: aiohttp serves it, and cannot even write its head any more."""
    upstream.fault(faults.slow_answer(0.5, target="create"))
    target, body = "/openai/threads/t1/runs", b'{"assistant_id":"p","stream":true}'
    async with running(upstream.url, redis_url) as relay:
        async with connection(relay.url) as raw:
            await raw.ask(target, {"Content-Type": "application/json"}, method="POST", body=body)
            await upstream.until(lambda: upstream.requests)
        await upstream.until(lambda: upstream.created)
        async with connection(relay.url) as raw:  # the answer to the first was due before that to this one
            await raw.ask(target, {"Content-Type": "application/json"}, method="POST", body=body)
            await raw.until(b"thread.run.created")
    assert "request.crashed" not in capsys.readouterr().out
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []
