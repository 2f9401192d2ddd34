"""A TCP load balancer as small as can be: new connections go round the replicas that are ready, old ones stay.

Run as `python -m tests.campaign.rolling.balancer RECORD PORT:ADMIN_PORT…`; prints its own port. As kube-proxy does, it does
not try another replica when one refuses: its client sees the connection cut before an answer. `/readyz` is asked once a
second. RECORD, JSON lines (`t` is monotonic seconds, `p` the client's port, `to` the replica's index):

    {"t", "p", "to", "ok": true|false}    a connection and whether its replica took it; `to` null: none was ready
    {"t", "to", "ready": true|false}      a replica came or went
    {"t", "lag"}                          how late this process' own clock ticked, once a second
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop

POLL_S = 1.0


class Half(asyncio.Protocol):
    """One of the two connections of a viewer; what it reads, the other writes."""

    other: Half | None = None
    early = b""
    """What a viewer said before a replica had taken it."""
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """A reset is passed on as a reset, an end as an end."""
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            if error is None:
                other.transport.close()
            else:
                other.transport.abort()


class Front(Half):
    """A viewer's side."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._balancer.place(self)


class Balancer:
    def __init__(self, replicas: list[tuple[int, int]], record: Callable[[dict[str, Any]], object]) -> None:
        self._replicas = replicas
        self._record = record
        self._ready = [False] * len(replicas)
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self, front: Front) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(front))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, front: Front) -> None:
        port = front.transport.get_extra_info("peername")[1]
        to = self._next()
        if to is None:
            self._say(p=port, to=None, ok=False)
            front.transport.abort()
            return
        try:
            _, back = await asyncio.get_running_loop().create_connection(Half, "127.0.0.1", self._replicas[to][0])
        except OSError:
            self._say(p=port, to=to, ok=False)
            front.transport.abort()
            return
        self._say(p=port, to=to, ok=True)
        if front.transport.is_closing():
            back.transport.abort()
            return
        back.other, front.other = front, back
        if front.early:
            back.transport.write(front.early)

    def _next(self) -> int | None:
        for step in range(1, len(self._replicas) + 1):
            index = (self._turn + step) % len(self._replicas)
            if self._ready[index]:
                self._turn = index
                return index
        return None

    async def watch(self, index: int) -> None:
        """For ever."""
        while True:
            await self.look(index)
            await asyncio.sleep(POLL_S)

    async def look(self, index: int) -> None:
        ready = False
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(POLL_S):
                ready = b" 200 " in await _status_line(self._replicas[index][1])
        if ready != self._ready[index]:
            self._ready[index] = ready
            self._say(to=index, ready=ready)

    async def tick(self) -> None:
        while True:
            due = time.monotonic() + 1.0
            await asyncio.sleep(1.0)
            self._say(lag=round(time.monotonic() - due, 4))

    def _say(self, **what: Any) -> None:
        self._record({"t": round(time.monotonic(), 6), **what})


async def _status_line(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return await reader.readline()
    finally:
        writer.close()


async def _main(path: Path, replicas: list[tuple[int, int]]) -> None:
    with path.open("wb", buffering=0) as file:
        balancer = Balancer(replicas, lambda row: file.write(orjson.dumps(row) + b"\n"))
        for index in range(len(replicas)):
            await balancer.look(index)
        server = await asyncio.get_running_loop().create_server(
            lambda: Front(balancer), "127.0.0.1", 0, backlog=4096
        )  # fmt: skip
        print(server.sockets[0].getsockname()[1], flush=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(balancer.tick())
            for index in range(len(replicas)):
                tasks.create_task(balancer.watch(index))


if __name__ == "__main__":
    given = [tuple(map(int, word.split(":"))) for word in sys.argv[2:]]
    uvloop.run(_main(Path(sys.argv[1]), [(port, admin) for port, admin in given]))
