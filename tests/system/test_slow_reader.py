"""P6: a reader that never reads hurts only itself."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from tests.support.upstream import ScriptedUpstream
from tests.system.rig import crowd, metrics, relay_process
from tests.system.watching import KINDS

pytestmark = pytest.mark.system

EVENT_BYTES = 10_000
EVENTS = 3000


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def test_one_of_thirty_never_reads(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with (
        relay_process(
            upstream.url, tmp_path, delivery={"slow_s": 3.0}, fanout={"check_s": 0.3, "memory_bytes": 8_000_000}
        ) as relay,
        AsyncExitStack() as closing,
    ):
        run_id = upstream.add_run([("run.started", {})])
        async with crowd(f"{relay.url}/v1/runs/{run_id}/events") as people:
            for i in range(29):
                people.join(KINDS[i % 4], chance=random.Random(i) if i % 5 == 0 else None)
            stuck = closing.enter_context(await never_reads(relay.port, run_id))
            await people.all_saw(lambda viewer: viewer.cursor == 1)
            assert relay.process is not None
            before = rss_mb(relay.process.pid)
            most, slow = before, 0.0
            write = asyncio.create_task(pour(upstream, run_id))
            async with aiohttp.ClientSession() as session, asyncio.timeout(200):
                while not all(viewer.ended for viewer in people.viewers):
                    most = max(most, rss_mb(relay.process.pid))
                    slow = max(slow, (await metrics(session, relay.admin_url)).get("relay_slow_readers", 0.0))
                    await asyncio.sleep(0.1)
                await write
                await people.ended()
                while (await metrics(session, relay.admin_url)).get("relay_viewers", 0.0):
                    await asyncio.sleep(0.1)
                goodbyes = (await metrics(session, relay.admin_url)).get('relay_goodbyes_total{code="slow"}', 0.0)
            people.check(upstream.truth(run_id))
            assert all(not viewer.said("relay.goodbye") for viewer in people.viewers)
            print(f"RSS before {before:.0f} MB, most {most:.0f} MB; slow readers seen {slow:.0f}")
            assert slow >= 1
            assert most - before < 150, (
                f"RSS grew from {before:.0f} to {most:.0f} MB for {EVENTS * EVENT_BYTES >> 20} MB"
            )
            assert goodbyes == 1, "that a reader was ended for being slow must be counted"
            assert stuck.fileno() > 0


async def never_reads(port: int, run_id: str) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    return sock


async def pour(upstream: ScriptedUpstream, run_id: str) -> None:
    text = "x" * EVENT_BYTES
    for i in range(EVENTS):
        upstream.append(run_id, "message.delta", {"content_delta": text})
        await asyncio.sleep(0.003 if i % 2 else 0)
    upstream.finish(run_id)
