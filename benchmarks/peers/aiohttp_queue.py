"""The usual way to fan out: aiohttp, one asyncio.Queue and one task per viewer, one write per event. No Redis at all.

python -m benchmarks.peers.aiohttp_queue HTTP_PORT FEED_PORT
"""

from __future__ import annotations

import asyncio
import struct
import sys

import uvloop
from aiohttp import web

HISTORY: dict[int, list[bytes]] = {}
VIEWERS: dict[int, set[asyncio.Queue[bytes]]] = {}


async def stream(request: web.Request) -> web.StreamResponse:
    run = int(request.match_info["run"])
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    for frame in HISTORY.get(run, ()):
        queue.put_nowait(frame)
    VIEWERS.setdefault(run, set()).add(queue)
    try:
        while True:
            await response.write(await queue.get())
    finally:
        VIEWERS[run].discard(queue)


async def feed(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while True:
        try:
            run, size = struct.unpack("<II", await reader.readexactly(8))
            data = await reader.readexactly(size)
        except asyncio.IncompleteReadError:
            return
        frames = HISTORY.setdefault(run, [])
        frames.append(b"id: %d\ndata: %b\n\n" % (len(frames) + 1, data))
        for queue in VIEWERS.get(run, ()):
            queue.put_nowait(frames[-1])


async def main() -> None:
    app = web.Application()
    app.router.add_get("/sse/{run}", stream)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await asyncio.start_server(feed, "127.0.0.1", int(sys.argv[2]))
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]), backlog=1024).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
