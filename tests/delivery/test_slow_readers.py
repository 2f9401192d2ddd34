"""What a client that takes too little costs, and what it gets: bounded bytes, merged deltas if it said so, a goodbye."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.core.events import Event, decode, encode
from relay.core.fold import Fold
from tests.support.relay import RunningRelay, running
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import metrics
from tests.web.raw import events

BACKLOG = 32_768
TEXT = "x" * 2_000


@contextmanager
def sleeper(relay: RunningRelay, target: str) -> Iterator[socket.socket]:
    """A client that asks, and reads when the test says so."""
    port = int(relay.url.rpartition(":")[2])
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        sock.setblocking(False)
        yield sock


def unsent(sock: socket.socket) -> int:
    """What the kernel holds for this client on the server's side (its send queue)."""
    ours = f"{sock.getsockname()[1]:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2].endswith(":" + ours) and fields[3] == "01":
            return int(fields[4].split(":")[0], 16)
    raise AssertionError("no such connection")


async def rest_of(sock: socket.socket) -> bytes:
    """Everything, up to the last chunk or the end of the connection."""
    data = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(60):
        while not data.endswith(b"0\r\n\r\n") and (part := await loop.sock_recv(sock, 1 << 20)):
            data += part
    return data.partition(b"\r\n\r\n")[2]


def unchunked(raw: bytes) -> bytes:
    out = b""
    while raw:
        head, _, raw = raw.partition(b"\r\n")
        size = int(head, 16)
        out, raw = out + raw[:size], raw[size + 2 :]
    return out


def folded(seen: list[dict[str, Any]]) -> Any:
    fold = Fold().extend(Event(body["seq"], body["type"], encode(body)) for body in seen)
    return decode(encode(fold.data()))


async def whole(relay: RunningRelay, run_id: str) -> bytes:
    async with relay.session.get(relay.events(run_id)) as response:
        return await response.read()


def delta(upstream: ScriptedUpstream, run_id: str) -> None:
    upstream.append(run_id, "message.delta", {"role": "assistant", "content_delta": TEXT})


async def value(relay: RunningRelay, name: str) -> float:
    return (await metrics(relay.session, relay.admin_url)).get(name, 0.0)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net/tcp here")
async def test_one_that_reads_nothing_holds_no_more_than_its_budget_and_is_named(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    async with running(upstream.url, redis_url, delivery={"backlog_bytes": BACKLOG}) as relay:
        with sleeper(relay, f"/v1/runs/{run_id}/events") as sock:
            await upstream.until(lambda: upstream.following(run_id) == 1)
            for _ in range(2_000):
                delta(upstream, run_id)
                await asyncio.sleep(0)
            async with asyncio.timeout(60):
                while await value(relay, 'relay_viewer_lag_events{quantile="1"}') < 1_000:
                    await asyncio.sleep(0.05)
            assert 0 < unsent(sock) <= 2 * BACKLOG, "Linux alone would hold megabytes"
            assert 0 < await value(relay, 'relay_viewer_backlog_bytes{quantile="1"}') < 1_000_000
            assert await value(relay, "relay_slow_readers") == 1
            [lagging] = relay.app.health.describe()["lagging"]
            assert (lagging["run"], lagging["wire"]) == (f"main/{run_id}", "sse")
            assert lagging["events"] >= 1_000


@pytest.mark.parametrize(("query", "merged"), [("", False), ("coalesce=pressure", True)])
async def test_one_that_falls_behind_gets_merged_deltas_if_it_takes_them_and_its_neighbour_never(
    upstream: ScriptedUpstream, redis_url: str, query: str, merged: bool
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    async with running(upstream.url, redis_url, delivery={"backlog_bytes": BACKLOG}) as relay:
        with sleeper(relay, f"/v1/runs/{run_id}/events?{query}") as sock:
            await upstream.until(lambda: upstream.following(run_id) == 1)
            keeps_up = asyncio.create_task(whole(relay, run_id))
            for _ in range(1_000):
                delta(upstream, run_id)
                await asyncio.sleep(0.001)
            async with asyncio.timeout(60):
                while not await value(relay, "relay_slow_readers"):
                    await asyncio.sleep(0.05)
            upstream.append(run_id, "run.completed", {})
            slow = events(unchunked(await rest_of(sock)))
        fast = events(await keeps_up)
        assert [event["seq"] for event in fast] == list(range(1, 1003)), "who keeps up gets every event"
        assert slow[-1]["seq"] == 1002
        assert (len(slow) < 900) is merged
        assert folded(slow) == folded(fast)
