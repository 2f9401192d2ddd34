"""Crowds write by descriptor, and a descriptor's number is given to the next client: no byte may go to the wrong one."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
import uvloop

from relay.core.events import Event
from relay.core.ids import RunKey
from relay.core.wires import Wire
from relay.delivery.connection import Telling, TransportConnection, way_of
from relay.delivery.options import DeliveryOptions
from relay.delivery.stream import Flow, Stream
from relay.fanout.crowd import Way
from relay.fanout.subscription import Subscription
from relay.fanout.topic import Topic
from relay.store.log import LogState

LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
ENDINGS = ("fin", "reset", "close", "close with bytes left", "abort", "broken write")


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


class Noting(asyncio.Protocol):
    """Which socket its descriptor is: when it begins, and when it hears that the connection is lost."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.number = transport.get_extra_info("socket").fileno()
        self.seen.append(os.fstat(self.number).st_ino)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.seen.append(os.fstat(self.number).st_ino)
        self.lost.set_result(None)


async def ended(how: str, protocol: Noting, client: socket.socket) -> None:
    transport = protocol.transport
    if how == "fin":
        client.close()
    elif how == "reset":
        reset(client)
    elif how == "abort":
        transport.abort()
    elif how == "broken write":
        transport.pause_reading()
        reset(client)
        while not protocol.lost.done():
            transport.write(b"x")
            await asyncio.sleep(0)
    else:
        transport.write(b"x" * (1 << 22 if "left" in how else 1))
        transport.close()
        client.close()
    await protocol.lost


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Noting, socket.socket]]:
    made: list[Noting] = []

    def protocol() -> Noting:
        made.append(Noting())
        return made[-1]

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    try:
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            async with asyncio.timeout(60):
                while not (made and made[0].seen):
                    await asyncio.sleep(0)
                yield made[0], client
    finally:
        server.close()


@pytest.mark.parametrize("how", ENDINGS)
def test_a_descriptor_is_the_same_socket_until_connection_lost_has_returned(how: str) -> None:
    """What the direct writes rest on. Should this fail with a new uvloop, they are not safe."""

    async def check() -> None:
        async with connected() as (server, client):
            await ended(how, server, client)
        assert len(server.seen) == 2
        assert server.seen[0] == server.seen[1]

    uvloop.run(check())


@LOOPS
def test_nothing_follows_what_an_aborted_transport_threw_away(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Between `abort` and `connection_lost` a turn of the loop may flush a crowd. What was held is lost by then."""

    async def check() -> None:
        async with connected() as (server, client):
            transport = server.transport
            before = way_of(transport, alone=True)
            assert (before.pending is None) or before.write == before.queue
            transport.write(b"x" * (1 << 22))
            assert transport.get_write_buffer_size()
            held = way_of(transport, alone=True)
            transport.abort()
            for way in (held, way_of(transport, alone=True)):
                direct = way.pending is not None and not way.pending() and way.write != way.queue
                assert not direct, "a crowd would write by descriptor"
                with suppress(ConnectionError):
                    way.queue(b"behind a hole")
            client.settimeout(60)
            got = b""
            with suppress(ConnectionError):
                while part := client.recv(1 << 20):
                    got += part
                    await asyncio.sleep(0)
            assert b"hole" not in got

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check())


async def keep_queueing(way: Way) -> None:
    async with asyncio.timeout(20):
        while True:
            way.queue(b"x")
            await asyncio.sleep(0)


def test_who_is_found_to_be_closing_while_it_is_queued_for_is_cut() -> None:
    async def check() -> None:
        async with connected() as (server, client):
            way = way_of(server.transport, alone=True)
            server.transport.pause_reading()
            reset(client)
            with pytest.raises(ConnectionError):
                await keep_queueing(way)

    uvloop.run(check())


def test_only_uvloops_plain_transports_are_written_to_by_descriptor() -> None:
    async def check(*, plain: bool) -> None:
        async with connected() as (server, _):
            way = way_of(server.transport, alone=False)
            assert (way.write == server.transport.write) is not plain

    uvloop.run(check(plain=True))
    asyncio.run(check(plain=False))
    said = {"socket": object(), "sslcontext": object()}
    tls = type("SSLTransport", (), {"__module__": "uvloop.loop", "get_extra_info": said.get, "write": print})
    assert way_of(cast(Any, tls), alone=True) == Way(cast(Any, tls).write, cast(Any, tls).write)


class Alone(TransportConnection):
    __slots__ = ()

    @property
    def way(self) -> Way:
        return way_of(self._transport, alone=True)


class Seat(Telling):
    """A listener's protocol: its client says which run it wants."""

    def __init__(self, topics: dict[bytes, Topic], kind: type[TransportConnection]) -> None:
        super().__init__(asyncio.get_running_loop())
        self.flow: Flow | None = None
        self.topics, self.kind = topics, kind

    def data_received(self, data: bytes) -> None:
        topic = self.topics[data]
        request = SimpleNamespace(
            transport=self.transport, protocol=self, version=(1, 1),
            writer=SimpleNamespace(drain=self._drain_helper),
        )  # fmt: skip
        sub = Subscription(topic, cast(Any, None), topic.last_seq, Wire("ndjson"), None, 1 << 20)
        stream = Stream(sub, self.kind(cast(Any, request)), DeliveryOptions())
        self.over = asyncio.gather(stream.run(), return_exceptions=True)


async def visit(address: Any, run: bytes, least: int, rng: random.Random) -> list[dict[str, Any]]:
    """What one client gets until it has had enough and goes, in whatever way."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    try:
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, run)
        got = b""
        while got.count(b"\n") < least:
            part = await loop.sock_recv(client, rng.choice((1000, 65536)))
            assert part, "the connection ended"
            got += part
    finally:
        (reset if rng.random() < 0.7 else socket.socket.close)(client)
    return [orjson.loads(line) for line in got.split(b"\n")[:-1]]


@LOOPS
@pytest.mark.parametrize("kind", [Alone, TransportConnection])
@pytest.mark.parametrize("seed", [1, 2])
def test_however_clients_come_and_go_each_gets_its_own_run(
    loop: Callable[[], asyncio.AbstractEventLoop], kind: type[TransportConnection], seed: int
) -> None:
    rng = random.Random(seed)
    topics = {name: Topic(RunKey("main", name.decode()), lambda: 1 << 20) for name in (b"a", b"b")}

    async def speaking() -> None:
        seq = 0
        while True:
            seq += 1
            for name, topic in topics.items():
                body = b'{"seq":%d,"run":"%b"}' % (seq, name)
                topic.publish([Event(seq, "message.delta", body)])
            await asyncio.sleep(0)

    async def client(address: Any) -> None:
        for _ in range(50):
            run = rng.choice((b"a", b"b"))
            events = await visit(address, run, rng.randint(1, 8), rng)
            assert {event["run"] for event in events} == {run.decode()}
            assert [event["seq"] for event in events] == list(range(events[0]["seq"], events[0]["seq"] + len(events)))

    async def check() -> None:
        for topic in topics.values():
            topic.start(LogState())
        server = await asyncio.get_running_loop().create_server(lambda: Seat(topics, kind), "127.0.0.1", 0)
        talk = asyncio.ensure_future(speaking())
        try:
            async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
                for _ in range(12):
                    clients.create_task(client(server.sockets[0].getsockname()))
            async with asyncio.timeout(60):
                while any(topic.crowds for topic in topics.values()):
                    await asyncio.sleep(0)
        finally:
            talk.cancel()
            server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check())
