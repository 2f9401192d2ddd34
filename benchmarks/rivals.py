"""The servers relay is compared with: which of them this machine has, how each is started and fed.

Most of their sources are not part of this repository: they lie beside the load client, in the folder RELAY_BENCH_LOAD
names, and whoever cannot be started here is skipped with a reason that is printed and kept with the results. The C
reference is the physical limit, not a product. `peers/` has what one writes by hand, which is always there.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio

from benchmarks import machine
from benchmarks.contest import Contestant, Place, Sourced, Stand, Writer, payload, sourced, started
from benchmarks.load import Load
from benchmarks.start import Spine
from benchmarks.upstream import PREFIX
from relay.store.binaries import choose


@dataclass(slots=True)
class Fed:
    """A server that takes the binary feed on one port and serves /sse/<run> on another."""

    name: str
    label: str
    command: Sequence[str | Path]
    """Gets its two ports where it says HTTP and FEED."""
    place: Place

    @asynccontextmanager
    async def up(self, runs: int) -> AsyncIterator[Stand]:
        port, feed = machine.free_port(), machine.free_port()
        words = [{"HTTP": str(port), "FEED": str(feed)}.get(str(word), word) for word in self.command]
        process = await started(words, self.place, self.name)
        try:
            await machine.listening(port)
            await machine.listening(feed)
            yield Stand(
                port=port,
                pids=[process.pid],
                publisher=f"bin:{feed}",
                live="/sse/%d",
                history="/sse/%d?from=0",
                write=Writer(feed),
            )
        finally:
            await machine.end(process)


# --- nginx with nchan ------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Nchan:
    """nginx with one worker; events are POSTed to it, pipelined on one connection."""

    place: Place
    settings: Path
    name: str = "nchan"
    label: str = "nginx + nchan, one worker, events POSTed to it, memory only"

    @asynccontextmanager
    async def up(self, runs: int) -> AsyncIterator[Stand]:
        port, feed = machine.free_port(), machine.free_port()
        mine = self.place.directory / "nchan"
        mine.mkdir(exist_ok=True)
        (mine / "nginx.conf").write_text(_own_conf(self.settings.read_text("utf-8"), mine, port, feed), "utf-8")
        command = ["nginx", "-p", mine, "-e", mine / "error.log", "-c", mine / "nginx.conf"]
        process = await started(command, self.place, self.name)
        try:
            await machine.until(lambda: len(machine.family(process.pid)) > 1, 10, "nginx has its worker")
            await machine.listening(port)
            yield Stand(
                port=port,
                pids=machine.family(process.pid),
                publisher=f"http:{feed}:/pub/%d",
                live="/sse/%d",
                history="/replay/%d",
                websocket="/ws/%d",
                write=_Posts(feed),
            )
        finally:
            await machine.end(process, politely=True)


def _own_conf(text: str, mine: Path, port: int, feed: int) -> str:
    """The settings with ports and files of our own: others may use the same ones."""
    paths = "".join(
        f"{name}_temp_path {mine / name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("127.0.0.1:8201", f"127.0.0.1:{port}").replace("127.0.0.1:8202", f"127.0.0.1:{feed}")
    text = re.sub(r"pid \S+;", f"pid {mine / 'pid'};", text)
    text = re.sub(r"error_log \S+", f"error_log {mine / 'error.log'}", text)
    text = text.replace("http {", f"http {{ client_max_body_size 1m; {paths}", 1)
    return ("user root;\n" if os.geteuid() == 0 else "") + text


class _Posts:
    """A history by pipelined POSTs."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(self, run: int, count: int, size: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        answers = asyncio.create_task(_answers(reader, count))
        for number in range(count):
            body = payload(number, size)
            writer.write(b"POST /pub/%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (run, len(body), body))
            if number % 50 == 49:
                await writer.drain()
        await asyncio.wait_for(answers, 30)
        writer.close()
        await writer.wait_closed()


async def _answers(reader: asyncio.StreamReader, count: int) -> None:
    """Read while we write, or both sides wait for each other in the end."""
    mark, tail = b"HTTP/1.1 ", b""
    while count > 0:
        read = tail + await reader.read(1 << 16)
        if read == tail:
            raise ConnectionError("nchan closed the publisher's connection")
        count -= read.count(mark)
        tail = read[-(len(mark) - 1) :]


# --- FastAPI with Redis ----------------------------------------------------------------------------------------------
@dataclass(slots=True)
class FastApi:
    """FastAPI, sse-starlette and a Redis subscription per viewer, under uvicorn; a Redis of its own on the other core."""

    place: Place
    folder: Path
    name: str = "fastapi"
    label: str = "FastAPI + sse-starlette, a Redis subscription per viewer (that Redis not counted, nothing durable)"

    @asynccontextmanager
    async def up(self, runs: int) -> AsyncIterator[Stand]:
        port = machine.free_port()
        async with self._redis() as redis_port:
            command = [sys.executable, "-m", "uvicorn", "--app-dir", self.folder, "py_fastapi_pubsub:app"]
            command += ["--port", port, "--backlog", 4096, "--no-access-log", "--log-level", "critical"]
            environment = {**os.environ, "REDIS_PORT": str(redis_port)}
            process = await started(command, self.place, self.name, env=environment)
            try:
                await machine.listening(port)
                yield Stand(port=port, pids=[process.pid], publisher=f"redispub:{redis_port}:chan%d", live="/sse/%d")
            finally:
                await machine.end(process)

    @asynccontextmanager
    async def _redis(self) -> AsyncIterator[int]:
        port = machine.free_port()
        program, _ = choose()
        command = [program, "--port", port, "--bind", "127.0.0.1", "--save", "", "--maxclients", 15_000]
        command += ["--dir", self.place.directory]
        # This process stays on the other core; so does what it starts outside of `started`.
        process = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.DEVNULL)
        client = redis.asyncio.Redis(port=port)
        try:
            await machine.listening(port)
            await client.ping()
            yield port
        finally:
            await client.aclose()
            await machine.end(process)


# --- the pump one writes by hand -------------------------------------------------------------------------------------
@dataclass(slots=True)
class HandPump:
    """Relay's upstream and Redis, with `peers/redis_pump.py` between them and nobody to watch."""

    place: Place
    name: str = "redis-py pump"
    label: str = "a task per run, one awaited XADD per event; no lease, no order check, no group commit"

    @asynccontextmanager
    async def up(self, runs: int) -> AsyncIterator[Sourced]:
        async with sourced(self.place, runs) as stand:
            await stand.awake()
            command = [sys.executable, "-m", "benchmarks.peers.redis_pump", stand.upstream, self.place.redis_url]
            process = await started([*command, PREFIX, runs], self.place, "redis-pump", stdout=asyncio.subprocess.PIPE)
            try:
                assert process.stdout is not None
                if await asyncio.wait_for(process.stdout.readline(), 30) != b"ready\n":
                    raise RuntimeError("the pump written by hand did not start")
                stand.pids, stand.key = [process.pid], "pump:{}".format
                await machine.settled(stand.pids)
                yield stand
            finally:
                await machine.end(process)


# --- who is here -----------------------------------------------------------------------------------------------------
def present(load: Load, place: Place) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that can be started here by name, and why the others cannot."""
    found: dict[str, Contestant] = {}
    absent: dict[str, str] = {}
    for name, (needs, make) in KNOWN.items():
        why = "; ".join(filter(None, (need(load) for need in needs)))
        if why:
            absent[name] = why
        else:
            found[name] = make(load, place)
    return found, absent


Need = Callable[[Load], str]
"""What is missing; empty if nothing is."""


def _program(name: str, package: str = "") -> Need:
    return lambda _: "" if shutil.which(name) else f"no {name} on PATH" + (f" (apt: {package})" if package else "")


def _source(name: str) -> Need:
    return lambda load: "" if (load.folder / name).exists() else f"{name} is not in the folder of RELAY_BENCH_LOAD"


def _module(name: str) -> Need:
    return lambda _: "" if importlib.util.find_spec(name) else f"no module {name} (pip: the extra `bench`)"


def _c_client(load: Load) -> str:
    return "" if load.fast else "only the C load client can feed it"


def _nchan_module(load: Load) -> str:
    conf = load.folder / "nchan.conf"
    named = re.search(r"load_module (\S+);", conf.read_text("utf-8")) if conf.exists() else None
    return "" if named and Path(named[1]).exists() else "no nchan module (apt: nginx-light libnginx-mod-nchan)"


def _c_server(mode: str, what: str) -> Callable[[Load, Place], Contestant]:
    return lambda load, place: Fed(
        f"c-{mode}", f"C, epoll, {what}, memory only", [load.compiled("cfan"), "HTTP", "FEED", mode], place
    )


def _node(load: Load, place: Place) -> Contestant:
    return Fed("node", "Node, plain http, memory only", ["node", load.folder / "node_plain.js", "HTTP", "FEED"], place)


def _aiohttp_sse(load: Load, place: Place) -> Contestant:
    command: list[Any] = [sys.executable, load.folder / "py_aiohttp_sse.py", "HTTP", "FEED", "uvloop"]
    return Fed("aiohttp-sse", "aiohttp-sse, a queue per viewer, memory only", command, place)


def _aiohttp_queue(_: Load, place: Place) -> Contestant:
    command = [sys.executable, "-m", "benchmarks.peers.aiohttp_queue", "HTTP", "FEED"]
    return Fed("aiohttp-queue", "aiohttp, a queue and a task per viewer, memory only", command, place)


KNOWN: dict[str, tuple[tuple[Need, ...], Callable[[Load, Place], Contestant]]] = {
    "c-each": ((_source("cfan.c"), _program("gcc", "gcc")), _c_server("each", "one send per event")),
    "c-batch": ((_source("cfan.c"), _program("gcc", "gcc")), _c_server("batch", "one send per read")),
    "nchan": (
        (_source("nchan.conf"), _program("nginx", "nginx-light"), _nchan_module, _c_client),
        lambda load, place: Nchan(place, load.folder / "nchan.conf"),
    ),
    "node": ((_source("node_plain.js"), _program("node", "nodejs")), _node),
    "aiohttp-sse": ((_source("py_aiohttp_sse.py"), _module("aiohttp_sse")), _aiohttp_sse),
    "fastapi": (
        (_source("py_fastapi_pubsub.py"), *map(_module, ("fastapi", "uvicorn", "sse_starlette")), _c_client),
        lambda load, place: FastApi(place, load.folder),
    ),
    "aiohttp-queue": ((), _aiohttp_queue),
    "spine": ((), lambda _, place: Spine(place)),
    "redis-py pump": ((), lambda _, place: HandPump(place)),
}
