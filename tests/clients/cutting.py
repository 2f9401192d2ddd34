"""A wire that breaks: passes bytes on, and resets its first connections while they wait for an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit


@asynccontextmanager
async def cutting(url: str, *, after_s: float, times: int) -> AsyncIterator[str]:
    """An address before `url` whose first `times` POSTs lose their connection `after_s` after they were sent.

    One that is answered by then keeps it: a cut stream is another test.
    """
    target = urlsplit(url)
    left = times
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        me = asyncio.current_task()
        assert me is not None
        tasks.add(me)
        there_reader, there_writer = await asyncio.open_connection(target.hostname, target.port)

        cuts: list[asyncio.TimerHandle] = []

        async def back() -> None:
            while data := await there_reader.read(65536):
                while cuts:
                    cuts.pop().cancel()
                writer.write(data)
                await writer.drain()
            writer.close()

        pouring = asyncio.create_task(back())
        try:
            while data := await reader.read(65536):
                if left > 0 and data.startswith(b"POST"):
                    left -= 1
                    cuts.append(asyncio.get_running_loop().call_later(after_s, writer.transport.abort))
                there_writer.write(data)
                await there_writer.drain()
        except ConnectionError:
            pass
        finally:
            there_writer.close()
            writer.close()
            pouring.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await pouring

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
