"""How a connection is ended."""

from __future__ import annotations

import asyncio
import socket

from relay.delivery.connection import reset_at_close


async def test_a_client_that_is_gone_needs_no_reset() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    writer.transport.abort()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reset_at_close(writer.transport)
    listening.close()
    assert reader.at_eof()
