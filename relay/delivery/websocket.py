"""A run's events over WebSocket: each event's JSON is a text message, and the close code says why it ended.

Frames are made once and shared, compressed ones too (`relay.core.deflate`), and written to the transport directly; aiohttp
does the handshake, the reading, pings and the closing handshake.
"""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from relay.core.deflate import WINDOW_BITS
from relay.core.goodbye import ENDED_CODE
from relay.core.wires import Wire
from relay.delivery.connection import TransportConnection
from relay.delivery.http import EventStream, last_words
from relay.delivery.options import DeliveryOptions
from relay.delivery.stream import Farewell, Stream

_MESSAGE_BYTES = 4096
"""Largest message a client may send here: it has nothing to say but pongs and goodbyes."""


async def deliver(request: web.Request, answer: EventStream) -> web.StreamResponse:
    """Upgrade, stream until the end, close with the code that fits."""
    socket = await upgraded(request, answer.options, answer.headers, message_bytes=_MESSAGE_BYTES)
    if deflates(socket):
        answer.subscription.wire = Wire("websocket-deflate")
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


async def upgraded(
    request: web.Request, options: DeliveryOptions, headers: dict[str, str], *, message_bytes: int
) -> web.WebSocketResponse:
    """The handshake. Nothing is sent through aiohttp but pings, pongs and the close."""
    socket = web.WebSocketResponse(
        compress=options.websocket_compress, heartbeat=options.heartbeat_s, max_msg_size=message_bytes, timeout=2.0
    )
    socket.headers.update(headers)
    await socket.prepare(request)
    return socket


def deflates(socket: web.WebSocketResponse) -> bool:
    """Whether this client takes what `relay.core.deflate` makes."""
    agreed = socket.headers.get(hdrs.SEC_WEBSOCKET_EXTENSIONS, "")
    return socket.compress == WINDOW_BITS and "server_no_context_takeover" not in agreed


async def _speak(
    socket: web.WebSocketResponse,
    stream: Stream,
    connection: TransportConnection,
    answer: EventStream,
) -> None:
    try:
        end = await stream.run()
        if end is not None:
            connection.put(answer.wire.notice(end))
        code, text = ENDED_CODE, "ended" if end is not None else "as asked"
    except Farewell as farewell:
        connection.put(last_words(answer.wire, farewell.goodbye, answer.options))
        code, text = farewell.goodbye.websocket, farewell.goodbye.text
    await socket.close(code=code, message=text.encode())
