"""What a tap gives is what aiohttp's reader gives, byte for byte and end for end; and it pushes back."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from relay.ingest.tap import Connector, tap_of, tapping

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b'id: 1\ndata: {"seq":1}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
END = b"0\r\n\r\n"


class Site:
    """Writes what it is told to, then closes, resets, or stays silent."""

    def __init__(self, pieces: list[bytes], then: str) -> None:
        self.pieces = pieces
        self.then = then
        self.url = ""
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        for piece in self.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if self.then == "close":
            writer.close()
        elif self.then == "reset":
            asyncio.get_running_loop().call_later(0.05, writer.transport.abort)


@asynccontextmanager
async def site(*pieces: bytes, then: str = "close") -> AsyncIterator[Site]:
    made = Site(list(pieces), then)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    try:
        yield made
    finally:
        server.close()
        for writer in made.writers:
            writer.transport.abort()


@asynccontextmanager
async def answer(url: str, *, wanted: bool = True, stall_s: float = 5.0) -> AsyncIterator[aiohttp.ClientResponse]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=stall_s)
    async with aiohttp.ClientSession(connector=Connector(limit=0)) as session:
        with tapping(wanted):
            response = await session.get(url, timeout=timeout)
        try:
            yield response
        finally:
            response.close()


class Taken:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ends: list[Exception | None] = []
        self.over = asyncio.Event()

    def end(self, error: Exception | None) -> None:
        self.ends.append(error)
        self.over.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


async def poured(url: str, **options: float) -> Taken:
    """Everything a tap gives."""
    taken = Taken()
    async with answer(url, **options) as response:  # type: ignore[arg-type]
        tap = tap_of(response)
        assert tap is not None
        tap.take(taken.pieces.append, taken.end)
        async with asyncio.timeout(60):
            await taken.over.wait()
    await asyncio.sleep(0.01)
    assert len(taken.ends) == 1
    return taken


async def read(url: str) -> tuple[bytes, Exception | None]:
    """The same by aiohttp."""
    body = b""
    async with answer(url, wanted=False) as response:
        assert tap_of(response) is None
        try:
            async for piece in response.content.iter_any():
                body += piece
        except aiohttp.ClientError as error:
            return body, error
    return body, None


STREAMS = {
    "whole": HEAD + CHUNK * 3 + END,
    "empty": HEAD + END,
    "cut in a chunk": HEAD + CHUNK + CHUNK[:9],
    "cut between chunks": HEAD + CHUNK * 2,
    "a word before the answer": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD + CHUNK + END,
    "words behind the end": HEAD + CHUNK + END + b"HTTP/1.1 500 no\r\n\r\n",
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_tap_gives_what_aiohttp_reads(stream: bytes, then: str) -> None:
    async with site(stream, then=then) as made:
        wanted, broken = await read(made.url)
        taken = await poured(made.url)
    assert taken.body == wanted
    assert (taken.ends[0] is None) == (broken is None)
    assert taken.ends[0] is None or isinstance(taken.ends[0], aiohttp.ClientError)


@pytest.mark.parametrize("junk", [b"<html>\r\n", b"2\r\nabc\r\n" + END])
async def test_what_is_not_chunked_breaks_it(junk: bytes) -> None:
    async with site(HEAD + CHUNK, junk, then="nothing") as made:
        taken = await poured(made.url)
    assert taken.body in (b"", BODY, BODY + b"ab")
    assert isinstance(taken.ends[0], aiohttp.ClientPayloadError)


async def test_any_cut_of_head_and_body_gives_the_same() -> None:
    stream = STREAMS["a word before the answer"]
    for at in range(1, len(stream), 3):
        async with site(stream[:at], stream[at:]) as made:
            taken = await poured(made.url)
        assert (taken.body, taken.ends) == (BODY, [None]), at


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Type: text/event-stream\r\nContent-Length: %d\r\n" % len(BODY), BODY),
        (b"Content-Type: text/event-stream\r\nConnection: close\r\n", BODY),
        (b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", CHUNK + END),
        (
            b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n"
            % len(gzip.compress(BODY)),
            gzip.compress(BODY),
        ),
    ],
    ids=["a length", "until the end", "no event stream", "compressed"],
)
async def test_anything_unusual_stays_aiohttps(head: bytes, body: bytes) -> None:
    async with site(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + body) as made, answer(made.url) as response:
        assert tap_of(response) is None
        assert await response.read() == BODY


@pytest.mark.parametrize("cut", [False, True], ids=["in one piece", "its head alone"])
async def test_a_head_of_bare_line_feeds_stays_aiohttps(cut: bool) -> None:
    """The first blank line with a CR is then one of the body's."""
    head = HEAD.replace(b"\r\n", b"\n")
    body = BODY + b"data: 2\r\n\r\n" + BODY
    stream = b"%x\r\n%b\r\n" % (len(body), body) + END
    pieces = (head, stream) if cut else (head + stream,)
    async with site(*pieces) as made, answer(made.url) as response:
        assert tap_of(response) is None
        assert await response.read() == body


async def test_a_refusal_stays_aiohttps() -> None:
    head = b"HTTP/1.1 429 Slow\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with site(head + CHUNK + END) as made, answer(made.url) as response:
        assert (response.status, tap_of(response)) == (429, None)
        assert await response.read() == BODY


async def test_who_did_not_ask_for_a_tap_gets_a_reader() -> None:
    async with site(HEAD + CHUNK + END) as made:
        assert await read(made.url) == (BODY, None)


async def test_silence_is_noticed_but_not_while_we_make_the_upstream_wait() -> None:
    async with site(HEAD + CHUNK, then="nothing") as made, answer(made.url, stall_s=0.6) as response:
        taken, tap = Taken(), tap_of(response)
        assert tap is not None
        tap.take(taken.pieces.append, taken.end)
        tap.hold()
        await asyncio.sleep(1.5)
        assert not taken.ends
        tap.flow()
        async with asyncio.timeout(60):
            await taken.over.wait()
        assert isinstance(taken.ends[0], TimeoutError)
        assert taken.body == BODY


async def made_to_wait(made: Any) -> None:
    """What it has to say stays with the upstream, and gets no less."""
    left, before = made.writers[0].transport.get_write_buffer_size, -1
    async with asyncio.timeout(60):
        while not 0 < left() == before:
            before = left()
            await asyncio.sleep(0.3)


async def test_held_means_that_nothing_is_given_and_the_upstream_waits() -> None:
    flood = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
    async with site(HEAD, *[flood] * 400, END, then="nothing") as made, answer(made.url) as response:
        taken, tap = Taken(), tap_of(response)
        assert tap is not None
        tap.take(taken.pieces.append, taken.end)
        tap.hold()
        before = len(taken.pieces)
        await made_to_wait(made)
        assert len(taken.pieces) == before
        tap.flow()
        async with asyncio.timeout(60):
            await taken.over.wait()
        assert len(taken.body) == 400 * 65536
        assert taken.ends == [None]


async def test_before_anybody_takes_it_only_a_little_is_kept() -> None:
    flood = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
    async with site(HEAD, *[flood] * 400, END, then="nothing") as made, answer(made.url) as response:
        await made_to_wait(made)
        taken, tap = Taken(), tap_of(response)
        assert tap is not None
        tap.take(taken.pieces.append, taken.end)
        async with asyncio.timeout(60):
            await taken.over.wait()
        assert len(taken.body) == 400 * 65536


async def test_an_end_that_came_while_held_is_told_behind_what_came_before_it() -> None:
    async with site(HEAD + CHUNK) as made, answer(made.url) as response:
        told: list[object] = []
        tap = tap_of(response)
        assert tap is not None
        tap.hold()
        tap._sink, tap._told = told.append, told.append
        await asyncio.sleep(0.2)
        assert told == []
        tap.take(told.append, told.append)
        async with asyncio.timeout(60):
            while len(told) < 2:
                await asyncio.sleep(0.01)
        assert told[0] == BODY
        assert isinstance(told[1], aiohttp.ClientPayloadError)
