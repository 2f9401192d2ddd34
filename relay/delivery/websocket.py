"""A run's events over WebSocket: each event's JSON is a text message, and the close code says why it ended.

Frames are made once and shared (no compression: that would make them one viewer's own), and written to the transport
directly; aiohttp does the handshake, the reading, pings and the closing handshake.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from relay.core.goodbye import ENDED_CODE
from relay.delivery.connection import TransportConnection
from relay.delivery.http import EventStream, last_words
from relay.delivery.stream import Farewell, Stream

_MESSAGE_BYTES = 4096
"""Largest message a client may send here: it has nothing to say but pongs and goodbyes."""


async def deliver(request: web.Request, answer: EventStream) -> web.StreamResponse:
    """Upgrade, stream until the end, close with the code that fits."""
    socket = web.WebSocketResponse(
        compress=False, heartbeat=answer.options.heartbeat_s, max_msg_size=_MESSAGE_BYTES, timeout=2.0
    )
    socket.headers.update(answer.headers)
    await socket.prepare(request)
    connection = TransportConnection(request)
    stream = answer.stream(connection)
    try:
        async with asyncio.TaskGroup() as tasks:
            speaking = tasks.create_task(_speak(socket, stream, connection, answer))
            async for _ in socket:
                pass  # a client has nothing to say here; reading answers its pings and hears it leave
            speaking.cancel()
    except* ConnectionError:
        connection.abort()
    finally:
        answer.over(stream)
    return socket


async def _speak(
    socket: web.WebSocketResponse,
    stream: Stream,
    connection: TransportConnection,
    answer: EventStream,
) -> None:
    try:
        end = await stream.run()
        if end is not None:
            connection.write(answer.wire.notice(end))
        code, text = ENDED_CODE, "ended" if end is not None else "as asked"
    except Farewell as farewell:
        connection.write(last_words(answer.wire, farewell.goodbye, answer.options))
        code, text = farewell.goodbye.websocket, farewell.goodbye.text
    await socket.close(code=code, message=text.encode())
