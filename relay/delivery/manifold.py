"""Many runs over an SSE response and over a WebSocket: how a `Multiplex` meets a request, and how it ends.

Which runs are read is somebody else's business: a `Feed` adds them to an SSE response, a `Talk` takes a client's messages.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from traceback import clear_frames
from typing import Final, Protocol

import aiohttp
from aiohttp import web

from relay.core import many, wires
from relay.core.goodbye import Goodbye
from relay.core.vector import Tally
from relay.core.wires import Wire
from relay.delivery.compression import Coding, Compressed
from relay.delivery.connection import TransportConnection
from relay.delivery.http import Cuttable, stream_headers
from relay.delivery.multiplex import Multiplex
from relay.delivery.options import DeliveryOptions
from relay.delivery.pulse import Pulse
from relay.delivery.stream import Farewell
from relay.delivery.websocket import deflates, upgraded

_MESSAGE_BYTES: Final = 16_384
"""Largest message a client may send."""

Feed = Callable[[Multiplex], Awaitable[None]]
Begin = Callable[[Multiplex, asyncio.TaskGroup], "Talk"]


class Talk(Protocol):
    """The client's half of a conversation. Its errands are tasks of the group it was given."""

    def hear(self, text: str) -> None:
        """A message of the client's. Never raises for what it says."""

    def close(self) -> None:
        """The client is gone: drop all errands."""


async def respond(
    request: web.Request,
    feed: Feed,
    tally: Tally,
    pulse: Pulse,
    options: DeliveryOptions,
    *,
    headers: dict[str, str],
    expires_at: float | None,
    coding: Coding | None = None,
) -> web.StreamResponse:
    """SSE, until every run that `feed` added has ended and it adds no more."""
    response = await _open(request, headers, coding)
    connection, wire = _connected(request, coding, chunked=response.chunked)
    connection.put(wire.ping)
    multiplex = Multiplex(connection, "many-sse", options, tally, chunked=wire.chunked, expires_at=expires_at)
    try:
        with pulse.beating(multiplex, multiplex.form):
            await _fed(multiplex, feed)
        if isinstance(connection, Compressed):
            connection.complete()
        await response.write_eof()
    except Farewell as farewell:
        connection.put(wire.wrap(_last_words(multiplex, farewell.goodbye, options)))
        connection.part()
    except ConnectionError:
        connection.abort()
    except BaseException:
        connection.abort()  # cancelled, or broken: either way no run has ended
        raise
    return response


async def _open(request: web.Request, headers: dict[str, str], coding: Coding | None) -> web.StreamResponse:
    """The 200, at once."""
    response = web.StreamResponse(headers={**headers, **stream_headers("many-sse", headers, coding)})
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    else:
        response.force_close()
    await response.prepare(request)
    return response


def _connected(request: web.Request, coding: Coding | None, *, chunked: bool) -> tuple[Cuttable, Wire]:
    """The connection, and how frames are framed for their transfer before they are given to it."""
    plain = TransportConnection(request)
    if coding is None:
        return plain, Wire("sse", chunked=chunked)
    return Compressed(plain, coding, chunked=chunked), Wire("sse")


async def _fed(multiplex: Multiplex, feed: Feed) -> None:
    """Raises Farewell and ConnectionError as they are, not in a group."""
    release = multiplex.hold()

    async def feeding() -> None:
        try:
            await feed(multiplex)
        except asyncio.CancelledError as left:
            clear_frames(left.__traceback__)  # those of its task groups hold what went through them, and it holds them
            raise
        release()

    outcome: Farewell | ConnectionError | None = None
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(feeding())
        try:
            await multiplex.run()
        except (Farewell, ConnectionError) as error:
            outcome = error
        task.cancel()
    try:
        if outcome is not None:
            raise outcome
    finally:
        del outcome  # its traceback holds this frame, which would hold it, and all of the connection, in turn


async def converse(
    request: web.Request,
    begin: Begin,
    pulse: Pulse,
    options: DeliveryOptions,
    *,
    headers: dict[str, str],
    expires_at: float | None,
) -> web.StreamResponse:
    """WebSocket, until the client leaves or we have to end it."""
    socket = await upgraded(request, options, headers, message_bytes=_MESSAGE_BYTES)
    connection = TransportConnection(request)
    form: many.ManyForm = "many-websocket-deflate" if deflates(socket) else "many-websocket"
    multiplex = Multiplex(connection, form, options, Tally(), expires_at=expires_at)
    multiplex.hold()  # it may always subscribe to more
    try:
        with pulse.beating(multiplex, form):
            await _talk(socket, connection, multiplex, begin, options)
    except* ConnectionError:
        connection.abort()
    return socket


async def _talk(
    socket: web.WebSocketResponse,
    connection: TransportConnection,
    multiplex: Multiplex,
    begin: Begin,
    options: DeliveryOptions,
) -> None:
    async with asyncio.TaskGroup() as tasks:
        talk = begin(multiplex, tasks)
        speaking = tasks.create_task(_speak(socket, connection, multiplex, options))
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                talk.hear(message.data)
            if connection.full:  # who does not read our answers is not listened to either
                await connection.drained()
        speaking.cancel()
        talk.close()


async def _speak(
    socket: web.WebSocketResponse, connection: TransportConnection, multiplex: Multiplex, options: DeliveryOptions
) -> None:
    try:
        await multiplex.run()
    except Farewell as farewell:
        goodbye = farewell.goodbye
        connection.put(_last_words(multiplex, goodbye, options))
        await socket.close(code=goodbye.websocket, message=goodbye.text.encode())


def _last_words(multiplex: Multiplex, goodbye: Goodbye, options: DeliveryOptions) -> bytes:
    """The goodbye, with this client's own share of the jitter."""
    most_ms = options.retry_max_ms - options.retry_min_ms
    if goodbye.most_jitter_ms is not None:
        most_ms = min(most_ms, goodbye.most_jitter_ms)
    after_ms = goodbye.after_ms + random.randint(0, most_ms)  # noqa: S311  (no secret)
    notice = wires.goodbye(goodbye, after_ms)
    return many.said(multiplex.form, "goodbye", notice.data, notice.retry_ms)
