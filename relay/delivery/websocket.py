"""A run's events over WebSocket: each event's JSON is a text message, and the close code says why it ended.

Frames are made once and shared (no compression: that would make them one viewer's own), and written to the transport
directly; aiohttp does the handshake, the reading, pings and the closing handshake.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from relay.core.goodbye import ENDED_CODE
from relay.delivery.connection import TransportConnection
from relay.delivery.http import last_words
from relay.delivery.options import DeliveryOptions
from relay.delivery.pulse import Pulse
from relay.delivery.stream import Farewell, Stream
from relay.fanout.subscription import Subscription

_MESSAGE_BYTES = 4096
"""Largest message a client may send here: it has nothing to say but pongs and goodbyes."""


async def deliver(
    request: web.Request,
    subscription: Subscription,
    pulse: Pulse,
    options: DeliveryOptions,
    *,
    headers: dict[str, str],
    follow: bool,
    expires_at: float | None,
) -> web.StreamResponse:
    """Upgrade, stream until the end, close with the code that fits."""
    socket = web.WebSocketResponse(
        compress=False, heartbeat=options.heartbeat_s, max_msg_size=_MESSAGE_BYTES, timeout=2.0
    )
    socket.headers.update(headers)
    await socket.prepare(request)
    connection = TransportConnection(request)
    stream = Stream(subscription, connection, options, follow=follow, expires_at=expires_at)
    try:
        async with asyncio.TaskGroup() as tasks:
            with pulse.beating(stream, "websocket"):
                speaking = tasks.create_task(_speak(socket, stream, connection, subscription, options))
                async for _ in socket:
                    pass  # a client has nothing to say here; reading answers its pings and hears it leave
                speaking.cancel()
    except* ConnectionError:
        connection.abort()
    return socket


async def _speak(
    socket: web.WebSocketResponse,
    stream: Stream,
    connection: TransportConnection,
    subscription: Subscription,
    options: DeliveryOptions,
) -> None:
    try:
        end = await stream.run()
        if end is not None:
            connection.write(subscription.wire.notice(end))
        code, text = ENDED_CODE, "ended" if end is not None else "as asked"
    except Farewell as farewell:
        connection.write(last_words(subscription.wire, farewell.goodbye, options))
        code, text = farewell.goodbye.websocket, farewell.goodbye.text
    await socket.close(code=code, message=text.encode())
