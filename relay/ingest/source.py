"""One upstream body as batches of drafts: bytes in, drafts out, and exactly one word for how it ended.

One connection only: no retry, no decision. A clean EOF, an abort, junk at the end (an unfinished SSE block is discarded
by the decoder) and silence all end it; none of them says that the run is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import aiohttp

from relay import telemetry
from relay.core.errors import NotFound, RelayError, TooManyRequests
from relay.core.events import Draft
from relay.core.ids import RunKey
from relay.core.sse import Decoder
from relay.ingest.upstream import Upstream

_PROPER_TAILS: Final = (b"", b"\n\n", b"\r\n", b"\r\r")
"""A stream that ends between two blocks ends with a blank line. One that ends otherwise was cut, or its gateway wrote its
own words into it before it closed it cleanly: either way it may lack events."""


@dataclass(slots=True)
class Ending:
    """How a connection ended."""

    reason: str
    """eof (between two blocks), junk (a clean end elsewhere), reset, stall; before the stream: gone (404), busy (429),
    unauthorized, unreachable, refused (anything else)."""
    retry_after_s: float | None = None


class Source:
    """One event stream of a run. Iterate `batches()`; afterwards `ending` says how it ended."""

    def __init__(self, upstream: Upstream, key: RunKey, *, after_seq: int, follow: bool, event_bytes: int) -> None:
        self.ending = Ending("open")
        self._upstream = upstream
        self._key = key
        self._ask = upstream.provider.events(key.run_id, after_seq=after_seq, follow=follow)
        self._kind = "follow" if follow else "drain"
        self._tail = b""
        self._decoder = Decoder(max_bytes=event_bytes)

    async def batches(self, patience_s: Callable[[], float | None] = lambda: None) -> AsyncGenerator[list[Draft]]:
        """Drafts as they arrive; an empty list for bytes without an event (a ping), and whenever patience ran out."""
        open_streams = telemetry.UPSTREAM_CONNECTIONS.labels(self._upstream.name, self._kind)
        try:
            async with self._upstream.stream(self._ask) as response:
                open_streams.inc()
                try:
                    async for chunk in _chunks(response.content, patience_s):
                        yield self._drafts(chunk)
                finally:
                    open_streams.dec()
            self.ending = Ending("eof" if self._tail in _PROPER_TAILS else "junk")
        except RelayError as error:
            self.ending = Ending(reason(error), error.retry_after_s)
        except TimeoutError:
            self.ending = Ending("stall")
        except (aiohttp.ClientError, OSError):
            self.ending = Ending("reset")
        telemetry.UPSTREAM_ENDS.labels(self._upstream.name, self.ending.reason).inc()

    def _drafts(self, chunk: bytes) -> list[Draft]:
        self._tail = (self._tail + chunk)[-2:] if chunk else self._tail
        messages = self._decoder.feed(chunk)
        if not messages:
            return []
        received_at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        drafts = self._upstream.provider.drafts
        return [
            draft for message in messages for draft in drafts(message, run_id=self._key.run_id, received_at=received_at)
        ]


async def _chunks(body: aiohttp.StreamReader, patience_s: Callable[[], float | None]) -> AsyncGenerator[bytes]:
    """The body's bytes as they come; empty bytes each time the caller's patience ran out (the stream stays open)."""
    while True:
        try:
            async with asyncio.timeout(patience_s()):
                chunk = await body.readany()
        except aiohttp.ServerTimeoutError:
            raise  # not our patience: the connection itself has been silent for too long
        except TimeoutError:
            yield b""
            continue
        if not chunk:
            return
        yield chunk


def reason(error: RelayError) -> str:
    """A refusal in one of the words of `Ending`."""
    if isinstance(error, NotFound):
        return "gone"
    if isinstance(error, TooManyRequests):
        return "busy"
    if error.code == "upstream.unauthorized" or error.status == 403:
        return "unauthorized"
    return {502: "refused", 503: "unreachable", 504: "stall"}.get(error.status, "refused")
