"""A run's events over a plain HTTP response: SSE and NDJSON.

The end of a response says something: the last chunk is written only after `relay.end` (or for a reader who did not ask
to follow). Everything else cuts the connection, because clients take a clean end of a stream for the end of the run.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol, TypeAlias

from aiohttp import web

from relay.core import wires
from relay.core.goodbye import Goodbye
from relay.core.hold import Hold
from relay.core.wires import AnyWire, Notice
from relay.delivery.compression import Coding, Compressed
from relay.delivery.connection import TransportConnection
from relay.delivery.options import DeliveryOptions
from relay.delivery.pulse import Pulse
from relay.delivery.stream import WAITS, Connection, Farewell, State, Stream
from relay.fanout.subscription import Subscription

Fields: TypeAlias = tuple[tuple[str, str], ...]
"""Header fields that are the same in many responses: one object for all of them."""

CONTENT_TYPE = {"sse": "text/event-stream", "sse-named": "text/event-stream", "ndjson": "application/x-ndjson"}


class Cuttable(Connection, Protocol):
    """A connection that knows how to end an HTTP response improperly."""

    def part(self) -> None:
        """Cut after what was written."""


@dataclass(slots=True)
class EventStream:
    """The answer to a request for a stream: a 200 that is not begun yet, and all there is to know until its end.

    An endpoint returns it like any other answer; how it is carried to the client is for the listener to know.
    """

    status: ClassVar[int] = 200

    subscription: Subscription
    pulse: Pulse
    options: DeliveryOptions
    hold: Hold
    """What is let go of at its end."""
    trace_id: str
    """Of no use once the head is written."""
    fields: Fields
    """What every response carries beside it."""
    follow: bool = True
    expires_at: float | None = None
    coding: Coding | None = None
    """How it is compressed. Its wire is not chunked then: it is the compressed bytes that are."""
    stay_s: float = 0.0
    """How much longer than the run the response stays open, for clients that hold an earlier end for a cut."""

    @property
    def wire(self) -> AnyWire:
        return self.subscription.wire

    @property
    def headers(self) -> dict[str, str]:
        """What every response carries."""
        return headers_with(self.trace_id, self.fields)

    @property
    def head(self) -> dict[str, str]:
        """The response's headers, but for those of its transfer."""
        return {**self.headers, **stream_headers(self.wire.form, self.headers, self.coding)}

    def stream(self, connection: Connection) -> Stream:
        """Its stream on this connection, looked after from now on."""
        stream = Stream(
            self.subscription, connection, self.options, self.follow, self.expires_at, self.pulse.turns
        )  # fmt: skip
        wire = self.subscription.wire
        self.pulse.add(stream, wire.form, ages=self.follow and isinstance(wire, wires.Wire))
        return stream

    def over(self, stream: Stream) -> None:
        """The stream has ended, however it did."""
        stream.leave()
        self.pulse.discard(stream, self.wire.form)
        self.hold.release()


async def deliver(request: web.Request, answer: EventStream) -> web.StreamResponse:
    """Answer a request that aiohttp serves, in the request's own task."""
    try:
        response = _response(request, answer)
        if not await _opened(response, request, answer):
            return response
        connection: Cuttable = TransportConnection(request)
        finish = response.write_eof
        if answer.coding:
            connection = coded = Compressed(TransportConnection(request), answer.coding, chunked=response.chunked)
            coded.put(answer.wire.unframed_ping)
            finish = partial(_end_coded, coded, response)
        stream = answer.stream(connection)
        try:
            await carry(answer, stream, connection, stream.run, finish)
        finally:
            answer.over(stream)
    finally:
        answer.hold.release()
    return response


async def carry(
    answer: EventStream,
    stream: Stream,
    connection: Cuttable,
    drive: Callable[[], Awaitable[Notice | State | None]],
    finish: Callable[[], Awaitable[None]],
) -> State | None:
    """`drive` the stream, and if that comes to its end, end the response: polite or not, as the reason demands.

    WAITS if it came to no end.
    """
    try:
        end = await drive()
        if isinstance(end, State):
            return WAITS
        if answer.stay_s and end is not None:
            await stream.linger(answer.stay_s)
        if end is not None:
            connection.put(answer.wire.notice(end))
        await finish()
    except Farewell as farewell:
        connection.put(last_words(answer.wire, farewell.goodbye, answer.options))
        connection.part()
    except ConnectionError:
        connection.abort()
    except BaseException:
        connection.abort()  # cancelled, or broken: either way the run has not ended
        raise
    return None


def _response(request: web.Request, answer: EventStream) -> web.StreamResponse:
    response = web.StreamResponse(headers=answer.head)
    if answer.wire.chunked or (answer.coding and request.version >= (1, 1)):
        response.enable_chunked_encoding()
    else:
        response.force_close()
    return response


async def _opened(response: web.StreamResponse, request: web.Request, answer: EventStream) -> bool:
    """The 200 and the first bytes, at once; False if who asked has left meanwhile, which is nobody's fault."""
    try:
        await response.prepare(request)
        if not answer.coding:
            await response.write(answer.wire.unframed_ping)
    except ConnectionError:
        return False
    return True


async def _end_coded(connection: Compressed, response: web.StreamResponse) -> None:
    connection.complete()
    await response.write_eof()


def headers_with(trace_id: str, fields: Fields) -> dict[str, str]:
    """What every response carries, whatever it answers."""
    return {"X-Trace-Id": trace_id, **dict(fields)}


def stream_headers(form: str, headers: dict[str, str], coding: Coding | None) -> dict[str, str]:
    """What a stream's response carries beside the `headers` of every response."""
    coded = {"Content-Encoding": coding, "Vary": _vary(headers)} if coding else {}
    kind = CONTENT_TYPE.get(form, "text/event-stream")
    return {**coded, "Content-Type": kind, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def _vary(headers: dict[str, str]) -> str:
    return ", ".join([*filter(None, [headers.get("Vary")]), "Accept-Encoding"])


def last_words(wire: AnyWire, goodbye: Goodbye, options: DeliveryOptions) -> bytes:
    """The goodbye notice, with this client's own share of the jitter."""
    most_ms = options.retry_max_ms - options.retry_min_ms
    if goodbye.most_jitter_ms is not None:
        most_ms = min(most_ms, goodbye.most_jitter_ms)
    jitter_ms = random.randint(0, most_ms)  # noqa: S311  (no secret)
    return wire.notice(wires.goodbye(goodbye, goodbye.after_ms + jitter_ms))
