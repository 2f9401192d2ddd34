"""Generic SSE and WebSocket clients, as people install them, read a run whole through a network that breaks.

The Node ones are installed by npm into the environment's own folder, at the versions of tests/clients/node/package.json.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx
import httpx_sse
import pytest
import websockets
from websockets.asyncio.client import connect

from tests.support.needs import ROOT, missing
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import relay_here
from tests.system.watching import native

pytestmark = [pytest.mark.clients]

NODE = ROOT / "tests" / "clients" / "node"
EVENTS = 120


@pytest.fixture(scope="session")
def modules() -> Path:
    """The folder with node_modules. Installed once."""
    if (npm := shutil.which("npm")) is None or shutil.which("node") is None:
        missing("Node.js with npm", "install Node.js 20 or later")
    wanted = (NODE / "package.json").read_text()
    folder = Path(sys.prefix) / "node-clients"
    done = folder / "installed.json"
    if not done.exists() or done.read_text() != wanted:
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text(wanted)
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
        tried = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
        if tried.returncode:
            missing("the Node clients", f"npm install failed: {tried.stderr[-500:]}")
        done.write_text(wanted)
    return folder


@asynccontextmanager
async def breaking(url: str, *, cuts: int, seed: int, at_frames: bool) -> AsyncIterator[str]:
    """An address before `url` whose first `cuts` responses are broken: at any byte, or behind a whole frame."""
    target, chance, left = urlsplit(url), random.Random(seed), cuts
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        there, back = await asyncio.open_connection(target.hostname, target.port)
        most = None
        if left > 0:
            left, most = left - 1, chance.randint(1_000, 8_000)
        asking = asyncio.create_task(_pour(reader, back))
        try:
            while data := await there.read(4096):
                if most is not None and (most := most - len(data)) <= 0:
                    end = data.rfind(b"\n\n") + 2 if at_frames else chance.randint(1, len(data))
                    if end > 1:
                        writer.write(data[:end])
                        await writer.drain()
                        break
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            asking.cancel()
            back.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


def script() -> list[tuple[str, dict[str, Any]]]:
    deltas = [("message.delta", {"content_delta": f"{i} wörds\u2028 🙂\n"}) for i in range(EVENTS - 2)]
    return [("run.started", {}), *deltas, ("run.completed", {})]


@asynccontextmanager
async def broken_run(
    upstream: ScriptedUpstream, redis_url: str, *, at_frames: bool = False, seed: int = 1
) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a run behind a network that breaks three times, and what there is to be read."""
    retry = {"retry_min_ms": 1000, "retry_max_ms": 1000}
    async with relay_here(upstream.url, redis_url, delivery=retry) as relay:
        run_id = upstream.play(script(), rate=60)
        async with breaking(relay.url, cuts=3, seed=seed, at_frames=at_frames) as front:
            truth: list[dict[str, Any]] = []
            yield f"{front}/v1/runs/{run_id}/events", truth
            truth += [native(event) for event in upstream.truth(run_id)]
            assert len(truth) == EVENTS


# ── Node ────────────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("client", "ends"),
    [
        ("eventsource", "closed 204"),
        ("reconnecting-eventsource", "told"),
        ("fetch-event-source", "resolved"),
        ("eventsource-client", "told"),
    ],
)
async def test_a_node_client_reads_a_run_whole_and_stops(
    upstream: ScriptedUpstream, redis_url: str, modules: Path, client: str, ends: str
) -> None:
    # fetch-event-source takes an id: for seen when it reads the line: an event cut behind its first line is lost to it.
    async with broken_run(upstream, redis_url, at_frames=client == "fetch-event-source") as (url, truth):
        reader = await asyncio.create_subprocess_exec(
            "node", str(NODE / "read.mjs"), client, url, str(modules), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, _ = await reader.communicate()
    *events, over = [json.loads(line) for line in out.splitlines()]
    assert [event["seq"] for event in events] == [event["seq"] for event in truth]
    assert events == truth
    assert over == {"over": ends}


# ── Python ──────────────────────────────────────────────────────────────────────────────────────────────────────────
LOST = (aiohttp.ClientError, httpx.HTTPError, ConnectionError, TimeoutError, websockets.WebSocketException)
Read = Callable[[str, int], AsyncIterator[dict[str, Any]]]


async def with_httpx_sse(url: str, after: int) -> AsyncIterator[dict[str, Any]]:
    headers = {"Last-Event-ID": str(after)} if after else {}
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        async with httpx_sse.aconnect_sse(client, "GET", url, headers=headers) as source:
            async for message in source.aiter_sse():
                yield {"relay": message.event} if message.event != "message" else message.json()


async def with_aiohttp(url: str, after: int) -> AsyncIterator[dict[str, Any]]:
    async with aiohttp.ClientSession() as session:
        async with session.get(url, params={"after_seq": str(after)}) as response:
            frame: dict[str, str] = {}
            async for raw in response.content:
                if line := raw.decode().rstrip("\n"):
                    name, _, value = line.partition(": ")
                    frame[name] = value
                    continue
                if "data" in frame:
                    yield {"relay": frame["event"]} if "event" in frame else json.loads(frame["data"])
                frame = {}


async def with_aiohttp_websocket(url: str, after: int) -> AsyncIterator[dict[str, Any]]:
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url, params={"after_seq": str(after)}, compress=15) as socket:
            async for message in socket:
                said = json.loads(message.data)
                yield {"relay": said["type"]} if said["type"].startswith("relay.") else said


async def with_websockets(url: str, after: int) -> AsyncIterator[dict[str, Any]]:
    async with connect(f"{url.replace('http:', 'ws:')}?after_seq={after}", proxy=None, close_timeout=0.1) as socket:
        async for message in socket:
            said = json.loads(message)
            yield {"relay": said["type"]} if said["type"].startswith("relay.") else said


@pytest.mark.parametrize("read", [with_httpx_sse, with_aiohttp, with_aiohttp_websocket, with_websockets])
async def test_a_python_client_reads_a_run_whole_and_knows_the_end(
    upstream: ScriptedUpstream, redis_url: str, read: Read
) -> None:
    events: list[dict[str, Any]] = []
    ended = False
    async with broken_run(upstream, redis_url) as (url, truth):
        async with asyncio.timeout(60):
            while not ended:
                try:
                    async for said in read(url, events[-1]["seq"] if events else 0):
                        ended = ended or said.get("relay") == "relay.end"
                        if "relay" not in said:
                            events.append(said)
                except LOST:
                    await asyncio.sleep(0.02)
    assert events == truth
