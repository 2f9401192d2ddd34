"""A run's events over a plain HTTP response: SSE and NDJSON.

The end of a response says something: the last chunk is written only after `relay.end` (or for a reader who did not ask
to follow). Everything else cuts the connection, because clients take a clean end of a stream for the end of the run.
"""

from __future__ import annotations

import random

from aiohttp import web

from relay.core import wires
from relay.core.goodbye import Goodbye
from relay.core.wires import AnyWire
from relay.delivery.connection import TransportConnection
from relay.delivery.options import DeliveryOptions
from relay.delivery.pulse import Pulse
from relay.delivery.stream import Farewell, Stream
from relay.fanout.subscription import Subscription

CONTENT_TYPE = {"sse": "text/event-stream", "sse-named": "text/event-stream", "ndjson": "application/x-ndjson"}


async def deliver(
    request: web.Request,
    subscription: Subscription,
    pulse: Pulse,
    options: DeliveryOptions,
    *,
    headers: dict[str, str],
    follow: bool,
    expires_at: float | None,
    stay_s: float = 0.0,
) -> web.StreamResponse:
    """Answer a request with a subscription, until its end: polite or not, as the reason demands.

    `stay_s`: how much longer than the run the response stays open, for clients that hold an earlier end for a cut.
    """
    response = await _open(request, subscription.wire, headers)
    connection = TransportConnection(request)
    stream = Stream(subscription, connection, options, follow=follow, expires_at=expires_at)
    try:
        with pulse.beating(stream, subscription.wire.form):
            end = await stream.run()
            if stay_s and end is not None:
                await stream.linger(stay_s)
        if end is not None:
            connection.write(subscription.wire.notice(end))
        await response.write_eof()
    except Farewell as farewell:
        connection.write(last_words(subscription.wire, farewell.goodbye, options))
        connection.part()
    except ConnectionError:
        connection.abort()
    except BaseException:
        connection.abort()  # cancelled, or broken: either way the run has not ended
        raise
    return response


async def _open(request: web.Request, wire: AnyWire, headers: dict[str, str]) -> web.StreamResponse:
    """The 200 and the first bytes, at once."""
    response = web.StreamResponse(headers={**headers, "Content-Type": CONTENT_TYPE.get(wire.form, "text/event-stream")})
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    if wire.chunked:
        response.enable_chunked_encoding()
    else:
        response.force_close()
    await response.prepare(request)
    await response.write(wire.unframed_ping)
    return response


def last_words(wire: AnyWire, goodbye: Goodbye, options: DeliveryOptions) -> bytes:
    """The goodbye notice, with this client's own share of the jitter."""
    most_ms = options.retry_max_ms - options.retry_min_ms
    if goodbye.most_jitter_ms is not None:
        most_ms = min(most_ms, goodbye.most_jitter_ms)
    jitter_ms = random.randint(0, most_ms)  # noqa: S311  (no secret)
    return wire.notice(wires.goodbye(goodbye, goodbye.after_ms + jitter_ms))
