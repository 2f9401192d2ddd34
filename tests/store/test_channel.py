"""Many round trips on one connection: each gets its own replies, or one error; nothing is ever sent twice."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions

from relay.core.errors import StoreUnavailable
from relay.store.bells import Bells
from relay.store.channel import Channel
from relay.store.line import Line
from relay.store.node import Node, node_at, node_of_url
from relay.store.options import RedisOptions
from relay.store.packing import packed
from relay.store.redis import HISTORY, Store
from tests.support.needs import missing

try:
    import uvloop
except ImportError:
    LOOPS: list[Any] = [asyncio.run]
else:
    LOOPS = [asyncio.run, uvloop.run]

Said = Callable[["Talk", list[bytes]], None]


class Talk(asyncio.Protocol):
    """A server that speaks RESP and does what its test wants: `said` is called with each command."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: Any = None
        self._reader = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.server.talks.append(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            if command[0] in (b"CLIENT", b"HELLO", b"SELECT", b"AUTH"):
                self.server.introduced.append(command)
                self.transport.write(b"+OK\r\n")
            else:
                self.server.commands.append(command)
                self.server.said(self, command)

    def reset(self) -> None:
        self.transport.abort()


class Server:
    def __init__(self, said: Said) -> None:
        self.said = said
        self.introduced: list[list[bytes]] = []
        self.commands: list[list[bytes]] = []
        self.talks: list[Talk] = []
        self.port = 0


@asynccontextmanager
async def serving(said: Said, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(said)
    listening = await asyncio.get_running_loop().create_server(lambda: Talk(server), "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for talk in server.talks:
            talk.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def node_of(server: Server, timeout_s: float = 5.0) -> AsyncIterator[Node]:
    node = node_at(("127.0.0.1", server.port), timeout_s, tls=False)
    try:
        yield node
    finally:
        await node.close()


def echo(talk: Talk, command: list[bytes]) -> None:
    talk.transport.write(b"$%d\r\n%b\r\n" % (len(command[1]), command[1]))


def silence(talk: Talk, command: list[bytes]) -> None:
    pass


def echoed(*words: int) -> list[bytes]:
    return [packed(("ECHO", word)) for word in words]


async def outcomes(node: Node, groups: Sequence[Sequence[int]]) -> list[Any]:
    """All at once; of each the answers, or its error."""
    asking = [asyncio.create_task(node.ask(echoed(*group))) for group in groups]
    async with asyncio.timeout(60):
        return await asyncio.gather(*asking, return_exceptions=True)


# --- what arrives, and whose it is ------------------------------------------------------------------------------------
class Heard(Channel):
    """A channel without a connection: what it sends is kept."""

    def __init__(self) -> None:
        super().__init__(None, 5.0)
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def end(self, error: Exception) -> None:
        self._lost(error)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    cancelled=st.sets(st.integers(0, 7)),
    cuts=st.lists(st.integers(1, 400), max_size=12),
    lost_after=st.one_of(st.none(), st.integers(0, 400)),
)
def test_everybody_gets_their_own_replies_or_one_error_however_the_bytes_are_cut(
    sizes: list[int], cancelled: set[int], cuts: list[int], lost_after: int | None
) -> None:
    async def scenario() -> None:
        channel = Heard()
        wanted = [[b"%d.%d" % (at, i) for i in range(size)] for at, size in enumerate(sizes)]
        asked = [channel.ask(b"", size) for size in sizes]
        for at in cancelled & set(range(len(asked))):
            asked[at].cancel()
        stream = b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for words in wanted for word in words])
        stream = stream[:lost_after]
        edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
        for start, stop in itertools.pairwise(edges):
            channel.data_received(stream[start:stop])
        channel.connection_lost(None)
        whole = 0
        for at, future in enumerate(asked):
            whole += sum(len(b"$%d\r\n%b\r\n" % (len(word), word)) for word in wanted[at])
            if at in cancelled:
                assert future.cancelled()
            elif whole <= len(stream):
                assert future.result() == wanted[at]
            else:
                assert isinstance(future.exception(), exceptions.ConnectionError)
        assert channel.idle

    asyncio.run(scenario())


async def test_what_came_before_bytes_that_make_no_sense_is_an_answer_all_the_same() -> None:
    channel = Heard()
    done, half, never = (channel.ask(b"", count) for count in (2, 2, 1))
    channel.data_received(b"+a\r\n-ERR b\r\n+c\r\n?what\r\n+d\r\n")
    first, second = await done
    assert (first, str(second)) == (b"a", "b")
    for broken in (half, never):
        with pytest.raises(exceptions.ConnectionError, match="not understood"):
            await broken


async def test_a_reply_nobody_asked_for_ends_it_behind_those_that_were() -> None:
    channel = Heard()
    done = channel.ask(b"", 2)
    channel.data_received(b"+a\r\n+b\r\n+c\r\n")
    assert await done == [b"a", b"b"]
    assert not channel.open


async def test_many_ask_at_once_over_one_connection() -> None:
    async with serving(echo) as server, node_of(server) as node:
        await node.ask(echoed(0))
        found = await outcomes(node, [[i, i + 1000] for i in range(200)])
        assert found == [[b"%d" % i, b"%d" % (i + 1000)] for i in range(200)]
        assert len(server.talks) == 1


async def test_a_reply_for_one_who_was_cancelled_is_nobody_elses() -> None:
    held: list[tuple[Talk, list[bytes]]] = []
    async with serving(lambda *said: held.append(said)) as server, node_of(server) as node:
        first = asyncio.create_task(node.ask(echoed(1)))
        await until(lambda: len(held) == 1)
        first.cancel()
        second = asyncio.create_task(node.ask(echoed(2)))
        await until(lambda: len(held) == 2)
        assert not second.done()
        for said in held:
            echo(*said)
        assert await second == [b"2"]
        assert first.cancelled()


async def test_refusals_are_answers_of_redis_pys_kinds() -> None:
    kinds: dict[bytes, type[Exception]] = {
        b"MOVED 1 127.0.0.1:1": exceptions.MovedError,
        b"ASK 1 127.0.0.1:1": exceptions.AskError,
        b"READONLY no": exceptions.ReadOnlyError,
        b"OOM no": exceptions.OutOfMemoryError,
        b"LOADING wait": exceptions.BusyLoadingError,
        b"CLUSTERDOWN no": exceptions.ClusterDownError,
        b"NOSCRIPT no": exceptions.NoScriptError,
        b"ERR odd": exceptions.ResponseError,
    }
    refusals = list(kinds)

    def refuse(talk: Talk, command: list[bytes]) -> None:
        talk.transport.write(b"-%b\r\n" % refusals[int(command[1])])

    async with serving(refuse) as server, node_of(server) as node:
        answers = await node.ask(echoed(*range(len(refusals))))
        assert [type(answer) for answer in answers] == list(kinds.values())
        assert len(server.talks) == 1, "a refusal is no reason to leave the connection"


# --- what breaks ------------------------------------------------------------------------------------------------------
async def test_a_reset_with_many_under_way_gives_each_one_outcome_and_sends_nothing_again() -> None:
    def some(talk: Talk, command: list[bytes]) -> None:
        if len(server.commands) <= 41:
            echo(talk, command)
        elif len(server.commands) == 61:
            talk.transport.close()  # what it said is still delivered, the rest is not answered

    async with serving(some) as server, node_of(server) as node:
        await node.ask(echoed(0))
        found = await outcomes(node, [[2 * i, 2 * i + 1] for i in range(30)])
        assert found[:20] == [[b"%d" % (2 * i), b"%d" % (2 * i + 1)] for i in range(20)]
        assert all(isinstance(error, exceptions.ConnectionError) for error in found[20:])
        assert len({id(error) for error in found[20:]}) == 10
        assert len(server.commands) == 61
        server.said = echo
        assert await node.ask(echoed(7)) == [b"7"], "the next one opens a new connection"
        assert len(server.commands) == 62


async def test_half_a_reply_is_none() -> None:
    def half(talk: Talk, command: list[bytes]) -> None:
        if len(server.commands) == 2:
            talk.transport.write(b"$1\r\n1\r\n$10\r\nhalf")
            talk.transport.close()

    async with serving(half) as server, node_of(server) as node:
        first, second = await outcomes(node, [[1], [2]])
        assert first == [b"1"]
        assert isinstance(second, exceptions.ConnectionError)


async def test_who_waits_too_long_gets_a_timeout_and_so_does_everybody_behind() -> None:
    async with serving(silence) as server, node_of(server, timeout_s=0.3) as node:
        found = await outcomes(node, [[i] for i in range(5)])
        assert all(isinstance(error, TimeoutError) for error in found)
        server.said = echo
        assert await node.ask(echoed(9)) == [b"9"]
        assert [command[1] for command in server.commands] == [b"0", b"1", b"2", b"3", b"4", b"9"]


async def test_a_slow_server_is_waited_for_as_long_as_each_may_wait() -> None:
    """The timer is one for all: it must neither end those who came later too early, nor forget them."""
    async with serving(echo) as server, node_of(server, timeout_s=2.0) as node:
        loop = asyncio.get_running_loop()
        server.said = lambda talk, command: (loop.call_later(1.4, echo, talk, command), None)[1]
        first = asyncio.create_task(node.ask(echoed(1)))
        await asyncio.sleep(1.0)
        second = asyncio.create_task(node.ask(echoed(2)))
        assert await first == [b"1"]
        assert await second == [b"2"]
        server.said = silence
        with pytest.raises(TimeoutError):
            await node.ask(echoed(3))


async def test_a_long_reply_keeps_nobody_from_theirs_while_it_arrives() -> None:
    """It takes twice as long as a reply may be waited for; who asked behind it gets theirs all the same."""
    async with serving(silence) as server, node_of(server, timeout_s=1.0) as node:
        long, short = (asyncio.create_task(node.ask(echoed(i))) for i in (1, 2))
        await until(lambda: len(server.commands) == 2)
        server.talks[0].transport.write(b"$20\r\n")
        for _ in range(20):
            await asyncio.sleep(0.1)
            server.talks[0].transport.write(b"x")
        server.talks[0].transport.write(b"\r\n$1\r\n2\r\n")
        assert await long == [b"x" * 20]
        assert await short == [b"2"]
        stuck = asyncio.create_task(node.ask(echoed(3)))
        await until(lambda: len(server.commands) == 3)
        server.talks[0].transport.write(b"$15\r\nhalf")
        async with asyncio.timeout(60):
            with pytest.raises(TimeoutError):
                await stuck


async def test_a_server_that_says_what_nobody_asked_for_is_left() -> None:
    def twice(talk: Talk, command: list[bytes]) -> None:
        echo(talk, command)
        talk.transport.write(b"+and more\r\n")

    async with serving(twice) as server, node_of(server) as node:
        assert await node.ask(echoed(1)) == [b"1"]
        await until(lambda: server.talks[0].transport.is_closing())
        assert await node.ask(echoed(2)) == [b"2"]
        assert len(server.talks) == 2


async def test_what_is_no_resp_ends_the_connection() -> None:
    async with serving(lambda talk, _: talk.transport.write(b"?what\r\n")) as server, node_of(server) as node:
        with pytest.raises(exceptions.ConnectionError):
            await node.ask(echoed(1))


async def test_a_server_that_is_left_fails_what_is_under_way_and_takes_nothing_new() -> None:
    async with serving(silence) as server, node_of(server) as node:
        asking = asyncio.create_task(node.ask(echoed(1)))
        await until(lambda: len(server.commands) == 1)
        node.leave()
        with pytest.raises(TimeoutError):
            await asking
        with pytest.raises(exceptions.ConnectionError):
            await node.ask(echoed(2))
        assert len(server.commands) == 1


async def test_idle_connections_are_dropped_but_not_one_in_use() -> None:
    held: list[tuple[Talk, list[bytes]]] = []
    async with serving(lambda *said: held.append(said)) as server, node_of(server) as node:
        asking = asyncio.create_task(node.ask(echoed(1)))
        await until(lambda: len(held) == 1)
        await node.drop_idle()
        echo(*held[0])
        assert await asking == [b"1"]
        await node.drop_idle()
        await until(lambda: server.talks[0].transport.is_closing())


async def test_a_server_nobody_listens_at_is_an_error_of_redis_pys_kind() -> None:
    async with serving(echo) as server:
        pass
    node = node_at(("127.0.0.1", server.port), 1.0, tls=False)
    with pytest.raises(exceptions.ConnectionError):
        await node.ask(echoed(1))
    await node.close()


async def test_a_blackhole_keeps_nobody_longer_than_the_time_limit() -> None:
    """Those who wait for the connection another one opens wait no longer than they would for their own."""
    async with serving(echo) as server, node_of(server, timeout_s=0.3) as node:
        await node.close()
        real = Line.connect

        async def never(line: Line) -> None:
            await asyncio.Event().wait()

        Line.connect = never  # type: ignore[method-assign]
        try:
            found = await outcomes(node, [[i] for i in range(8)])
        finally:
            Line.connect = real  # type: ignore[method-assign]
        assert all(isinstance(error, TimeoutError) for error in found)
        assert await node.ask(echoed(1)) == [b"1"]


@pytest.mark.parametrize(
    "said", ["MOVED 1 127.0.0.1:1", "ASK 1 127.0.0.1:1", "READONLY no", "OOM no", "LOADING wait", "CLUSTERDOWN no"]
)
async def test_the_store_is_away_for_whoever_is_refused_so(said: str) -> None:
    async with serving(lambda talk, _: talk.transport.write(b"-%b\r\n" % said.encode())) as server:
        store = Store(f"redis://127.0.0.1:{server.port}", RedisOptions())
        (answer,) = await store.call_packed("append", [("k", packed(("EVALSHA", "x", 0)))])
        assert isinstance(answer, StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await store.run_packed("read", [("k", packed(("XRANGE", "k", "-", "+")))], each=True)
        await store.close()


async def test_no_append_waits_behind_a_page_of_history() -> None:
    """The page never comes here; the append and the read of what is new have their answers all the same."""
    page = packed(("XRANGE", "k", "-", "+"))

    def said(talk: Talk, command: list[bytes]) -> None:
        if command[-1] == b"new" or command[0] == b"EVALSHA":
            talk.transport.write(b"+OK\r\n")

    async with serving(said) as server:
        store = Store(f"redis://127.0.0.1:{server.port}", RedisOptions())
        asking = asyncio.create_task(store.run_packed(HISTORY, [("k", page)], each=True))
        await until(lambda: len(server.commands) == 1)
        async with asyncio.timeout(3):
            assert await store.call_packed("append", [("k", packed(("EVALSHA", "x", 0)))]) == [b"OK"]
            assert await store.run_packed("read", [("k", packed(("XRANGE", "k", "new")))]) == [b"OK"]
        assert not asking.done()
        assert len(server.talks) == 2
        await store.close()  # ends both
        with pytest.raises(StoreUnavailable):
            await asking


async def test_a_server_that_is_left_is_asked_for_no_page_either() -> None:
    async with serving(silence) as server, node_of(server) as node:
        asking = [asyncio.create_task(node.ask(echoed(1), apart=apart)) for apart in (False, True)]
        await until(lambda: len(server.commands) == 2)
        assert len(server.talks) == 2
        node.leave()
        for one in asking:
            with pytest.raises(TimeoutError):
                await one


async def test_scripts_that_were_flushed_are_loaded_and_called_once_more() -> None:
    loaded = False

    def forgetful(talk: Talk, command: list[bytes]) -> None:
        nonlocal loaded
        if command[0] == b"SCRIPT":
            loaded = True
        talk.transport.write(b"+OK\r\n" if loaded else b"-NOSCRIPT no\r\n")

    async with serving(forgetful) as server:
        store = Store(f"redis://127.0.0.1:{server.port}", RedisOptions())
        assert await store.call_packed("append", [("k", packed(("EVALSHA", "x", 0)))] * 2) == [b"OK", b"OK"]
        assert sum(command[0] == b"EVALSHA" for command in server.commands) == 4
        await store.close()


# --- other roads to the same server -----------------------------------------------------------------------------------
@pytest.mark.parametrize("run", LOOPS)
def test_over_tls_and_with_credentials(run: Callable[[Any], None], tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("openssl", "a certificate is made with it")
    place = tmp_path / "both.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=redis.test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", place,
         "-out", tmp_path / "only.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    place.write_bytes(place.read_bytes() + (tmp_path / "only.crt").read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(place)

    async def scenario() -> None:
        async with serving(echo, tls=context) as server:
            url = f"rediss://relay:pw@127.0.0.1:{server.port}?ssl_ca_certs={tmp_path / 'only.crt'}"
            node = node_of_url(url, 5.0)
            long = b"x" * 200_000
            found = await asyncio.gather(*[node.ask([packed(("ECHO", long + b"%d" % i))]) for i in range(20)])
            assert found == [[long + b"%d" % i] for i in range(20)]
            assert [b"AUTH", b"relay", b"pw"] in server.introduced
            await node.close()

    run(scenario())


async def test_resp3_and_what_it_pushes_unasked(redis_url: str) -> None:
    node = node_of_url(f"{redis_url}{'&' if '?' in redis_url else '?'}protocol=3", 5.0)
    heard: asyncio.Queue[list[Any]] = asyncio.Queue()
    bells = Bells(node, lambda pushes: [heard.put_nowait(push) for push in pushes])
    await bells.connect()
    bells.send("SSUBSCRIBE", "channel:of:this:test")
    async with asyncio.timeout(60):
        assert (await heard.get())[:2] == [b"ssubscribe", b"channel:of:this:test"]
        assert await node.ask([packed(("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "channel:of:"))]) == [b"OK"]
        other = node_of_url(redis_url, 5.0)
        for number in range(5):
            await other.ask([packed(("SET", "channel:of:x", number, "PX", 1000))])
            assert await node.ask([packed(("ECHO", number)), packed(("ECHO", "b"))]) == [b"%d" % number, b"b"]
        await other.ask([packed(("SPUBLISH", "channel:of:this:test", "7"))])
        assert await heard.get() == [b"smessage", b"channel:of:this:test", b"7"]
    bells.close()
    await node.close()
    await other.close()


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.005)
