"""One upstream body as batches of what its provider reads in it, and exactly one word for how it ended.

Two ways to read it: `batches`, which waits for each, and for the live edge of a run `opened` and a tap, which pushes them.
One connection only: no retry, no decision. A clean EOF, an abort, junk at the end (an unfinished SSE block is discarded
by the decoder) and silence all end it; none of them says that the run is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Final, Generic, TypeVar

import aiohttp

from relay import telemetry
from relay.core.errors import NotFound, RelayError, TooManyRequests
from relay.core.events import Draft
from relay.core.ids import RunKey
from relay.core.sse import Decoder, Message
from relay.ingest.tap import tapping
from relay.ingest.upstream import Client, Upstream
from relay.providers.contract import Ask

_SECOND_AND_MS: Final = "%s.%03dZ"
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


T = TypeVar("T")


class Body(Generic[T]):
    """One event stream. Iterate `batches()`; afterwards `ending` says how it ended."""

    def __init__(
        self, upstream: Client, ask: Ask, read: Callable[[list[Message]], list[T]], *, kind: str, event_bytes: int
    ) -> None:
        self.ending = Ending("open")
        self._upstream = upstream
        self._ask = ask
        self._read = read
        self._kind = kind
        self._tail = b""
        self._decoder = Decoder(max_bytes=event_bytes)
        self._content: aiohttp.StreamReader | None = None
        self._had = 0

    @property
    def ahead(self) -> bool:
        """Bytes have arrived that were not read yet."""
        return self._content is not None and self._content.total_bytes > self._had

    async def batches(self, patience_s: Callable[[], float | None] = lambda: None) -> AsyncGenerator[list[T]]:
        """What was read, as it arrives; an empty list for bytes without any (a ping), and when patience ran out."""
        async with self.opened() as response:
            if response is not None:
                async with aclosing(self.pulled(response, patience_s)) as batches:
                    async for batch in batches:
                        yield batch

    @asynccontextmanager
    async def opened(self, *, pushed: bool = False) -> AsyncIterator[aiohttp.ClientResponse | None]:
        """The stream, for as long as the block lasts; None if there is none, and `ending` says why.

        With `pushed` it may have a tap; then it must be read from that.
        """
        async with AsyncExitStack() as stack:
            response: aiohttp.ClientResponse | None = None
            try:
                with tapping(pushed):
                    response = await stack.enter_async_context(self._upstream.stream(self._ask))
            except (RelayError, aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
                self.end(error)
            if response is not None:
                open_streams = telemetry.UPSTREAM_CONNECTIONS.labels(self._upstream.name, self._kind)
                open_streams.inc()
                stack.callback(open_streams.dec)
            yield response

    async def pulled(
        self, response: aiohttp.ClientResponse, patience_s: Callable[[], float | None]
    ) -> AsyncGenerator[list[T]]:
        """`batches` of a stream that is open."""
        self._content = response.content
        try:
            async for chunk in chunks_of(response.content, patience_s):
                self._had += len(chunk)
                yield self.read(chunk)
        except (aiohttp.ClientError, OSError) as error:
            self.end(error)
        else:
            self.end(None)

    def end(self, error: Exception | None) -> None:
        """It has ended: properly (None), or by what broke or refused it."""
        if error is None:
            self.ending = Ending("eof" if self._tail in _PROPER_TAILS else "junk")
        elif isinstance(error, RelayError):
            self.ending = Ending(reason(error), error.retry_after_s)
        else:
            self.ending = Ending("stall" if isinstance(error, TimeoutError) else "reset")
        telemetry.UPSTREAM_ENDS.labels(self._upstream.name, self.ending.reason).inc()

    def read(self, chunk: bytes) -> list[T]:
        """What the next bytes complete."""
        if chunk:
            self._tail = chunk[-2:] if len(chunk) > 1 else (self._tail + chunk)[-2:]
        messages = self._decoder.feed(chunk)
        return self._read(messages) if messages else []


class Source(Body[Draft]):
    """The stream of a run that is numbered durably."""

    def __init__(self, upstream: Upstream, key: RunKey, *, after_seq: int, follow: bool, event_bytes: int) -> None:
        ask = upstream.provider.events(key.run_id, after_seq=after_seq, follow=follow)
        kind = "follow" if follow else "drain"
        # Not a method of its own: it would hold itself, and be freed only when garbage is looked for.
        super().__init__(upstream, ask, partial(_drafts, upstream, key.run_id), kind=kind, event_bytes=event_bytes)


def _drafts(upstream: Upstream, run_id: str, messages: list[Message]) -> list[Draft]:
    received_at, drafts = now_text(), upstream.provider.drafts
    if len(messages) == 1:
        found = drafts(messages[0], run_id=run_id, received_at=received_at)
    else:
        found = [draft for one in messages for draft in drafts(one, run_id=run_id, received_at=received_at)]
    if len(found) < len(messages):  # without a seq there is no place for it
        telemetry.UPSTREAM_ODD.labels(upstream.name, "not_an_event").inc(len(messages) - len(found))
    return found


def now_text() -> str:
    """The time by our clock, as every `created_at` of ours is written."""
    return _text_of(int(time.time() * 1000))


@lru_cache(maxsize=1)
def _text_of(unix_ms: int) -> str:
    """Remembered, because every piece of every stream asks, and many come within the same millisecond."""
    second, ms = divmod(unix_ms, 1000)
    return _SECOND_AND_MS % (_text_of_second(second), ms)


@lru_cache(maxsize=1)
def _text_of_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


async def chunks_of(body: aiohttp.StreamReader, patience_s: Callable[[], float | None]) -> AsyncGenerator[bytes]:
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
