"""The WebSocket wire with two real clients: whole runs, resuming, and why a socket is closed."""

from __future__ import annotations

import asyncio
import json
import socket

import aiohttp
import pytest
from websockets.asyncio.client import connect

from tests.support.needs import recording
from tests.support.relay import RunningRelay
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import crowd, metrics, relay_here
from tests.system.watching import Kind, Truth, native

pytestmark = pytest.mark.system

BRIEF = {"unwanted_s": 0.5, "lease_s": 0.9}
"""Runs here do not end: give them up soon after the last viewer left."""
CLIENTS = pytest.mark.parametrize("kind", ["websocket", "websockets"])


@CLIENTS
async def test_a_whole_run_ends_with_the_end_message_and_close_1000(
    upstream: ScriptedUpstream, redis_url: str, kind: Kind
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.play(recording("mcp-tools"), rate=1000)
        async with crowd(relay.events(run_id)) as people:
            viewer = people.join(kind)
            await people.ended()
            people.check(upstream.truth(run_id))
            assert viewer.closes == [1000]
            assert viewer.notices[-1] == ("relay.end", {"last_seq": 353, "status": "completed"})


@CLIENTS
async def test_it_resumes_behind_any_seq(upstream: ScriptedUpstream, redis_url: str, kind: Kind) -> None:
    async with relay_here(upstream.url, redis_url) as relay:
        run_id = upstream.play(recording("web-search"), rate=1000)
        truth = Truth(upstream.truth(run_id))
        async with crowd(relay.events(run_id)) as people:
            for after in (0, 1, 67, 134, 135, 1000):
                people.join(kind, after_seq=after)
            await people.ended()
            truth = Truth(upstream.truth(run_id))
            for viewer, after in zip(people.viewers, (0, 1, 67, 134, 135, 1000), strict=True):
                truth.check(viewer, after_seq=after)


async def test_pings_are_answered(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url, delivery={"heartbeat_s": 2.0}, ingest=BRIEF) as relay:
        run_id = upstream.add_run([("run.started", {})])
        url = relay.events(run_id)
        async with connect(url.replace("http:", "ws:"), proxy=None) as client, asyncio.timeout(60):
            assert json.loads(await client.recv())["seq"] == 1
            for payload in (b"", b"x" * 125):
                await (await client.ping(payload))
            await asyncio.sleep(5)  # several heartbeats of the server's, which the client answers
            await (await client.ping(b"still there"))
        async with relay.session.ws_connect(url, autoping=False) as client, asyncio.timeout(60):
            assert (await client.receive_json())["seq"] == 1
            await client.ping(b"hello")
            while (message := await client.receive()).type is not aiohttp.WSMsgType.PONG:
                pass
            assert message.data == b"hello"


async def test_chatter_from_a_client_is_ignored_and_too_much_of_it_closes(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        run_id = upstream.add_run([("run.started", {})])
        async with relay.session.ws_connect(relay.events(run_id)) as client, asyncio.timeout(60):
            assert (await client.receive_json())["seq"] == 1
            await client.send_str("hello?")
            await client.send_bytes(b"\0" * 100)
            upstream.append(run_id, "message.delta", {"content_delta": "on"})
            assert (await client.receive_json())["seq"] == 2
            await client.send_str("x" * 10_000)
            while not (await client.receive()).type.name.startswith("CLOS"):
                pass
            assert client.close_code == 1009


@pytest.mark.parametrize("many", [False, True])
async def test_large_messages_are_compressed_for_who_offers_it_and_read_by_real_clients(
    upstream: ScriptedUpstream, redis_url: str, many: bool
) -> None:
    async with relay_here(upstream.url, redis_url, ingest=BRIEF) as relay:
        long = {"content_delta": "the same words again and again " * 400}
        run_id = upstream.add_run([("run.started", {}), *[("message.delta", long)] * 50])
        truth = upstream.truth(run_id)
        sizes: list[int] = []
        async with relay.session.get(relay.events(run_id, "follow=false")) as response:
            await response.read()  # from here on it is history, which each reader is given by itself
        for offered in ({}, {"compression": None}):
            before = await written(relay)
            url = f"{relay.url}/v1/events" if many else relay.events(run_id)
            async with connect(url.replace("http:", "ws:"), proxy=None, max_size=None, **offered) as client:
                if many:
                    await client.send(json.dumps({"op": "subscribe", "run_id": run_id}))
                async with asyncio.timeout(60):
                    said = [json.loads(await client.recv()) for _ in truth]
                events = [one["event"] for one in said] if many else said
                assert events == [native(event) for event in truth]
                [stream] = relay.app._pulse._streams
                sizes.append(stream._written)
            await until_viewers(relay, 0)
            assert await written(relay) == before + len(truth)
        assert sizes[0] < sizes[1] / 10


async def written(relay: RunningRelay) -> float:
    """Events given to WebSockets of any kind."""
    found = await metrics(relay.session, relay.admin_url)
    name = "relay_events_delivered_total{"
    return sum(count for key, count in found.items() if key.startswith(name) and "websocket" in key)


async def test_a_reader_that_never_reads_is_ended_as_slow(upstream: ScriptedUpstream, redis_url: str) -> None:
    """Its buffers are full to the brim, so there is no room for words: it is cut. But it is counted."""
    async with relay_here(upstream.url, redis_url, delivery={"slow_s": 1.0}, ingest=BRIEF) as relay:
        run_id = upstream.add_run([("run.started", {})])
        before = await slow_goodbyes(relay)
        sock = await never_reads(relay.url, run_id)
        for _ in range(300):
            upstream.append(run_id, "message.delta", {"content_delta": "x" * 50_000})
        await until_viewers(relay, 1)
        await until_viewers(relay, 0)
        sock.close()
        assert await slow_goodbyes(relay) == before + 1


async def test_a_slow_reader_with_room_for_words_is_told_4408(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url, delivery={"slow_s": 2.0}, ingest=BRIEF) as relay:
        run_id = upstream.add_run([("run.started", {})])
        before = await slow_goodbyes(relay)
        sock = await never_reads(relay.url, run_id)
        await until_viewers(relay, 1)
        (stream,) = relay.app._pulse._streams
        async with asyncio.timeout(60):
            while stream._connection.backlog == 0:  # just past what the kernel takes
                upstream.append(run_id, "message.delta", {"content_delta": "x" * 16_000})
                await asyncio.sleep(0.01)
            while await slow_goodbyes(relay) == before:
                await asyncio.sleep(0.05)
            heard = bytearray()
            while chunk := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
                heard += chunk
        sock.close()
        assert b'"type":"relay.goodbye","code":"slow"' in heard[-600:]
        assert (4408).to_bytes(2, "big") in heard[-200:]


async def slow_goodbyes(relay: RunningRelay) -> float:
    return (await metrics(relay.session, relay.admin_url)).get('relay_goodbyes_total{code="slow"}', 0.0)


async def until_viewers(relay: RunningRelay, count: int) -> None:
    async with asyncio.timeout(60):
        while (await metrics(relay.session, relay.admin_url)).get("relay_viewers", 0.0) != count:
            await asyncio.sleep(0.05)


async def never_reads(url: str, run_id: str) -> socket.socket:
    """A WebSocket client that shakes hands and then takes nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    host, _, port = url.removeprefix("http://").partition(":")
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    head = (
        f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await asyncio.get_running_loop().sock_sendall(sock, head.encode())
    return sock
