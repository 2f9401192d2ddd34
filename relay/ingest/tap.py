"""An event stream's body as bytes that are pushed, instead of a reader that has to be asked.

aiohttp connects (names, TLS, time limits), asks and reads the head. From there a long stream of small pieces costs more in
its reader (a timer, two futures and a task's turn per piece) than in everything we do with them. So where a request asks
for it (`tapping`) and the answer is what it always is (200, an event stream, chunked, not compressed), the bytes behind the
head go to `core.chunked` and from there to whoever took the tap. Anything else stays aiohttp's: `tap_of` gives None then.

Such a connection is closed afterwards, never used again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

from relay.core.chunked import Chunked

_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
"""An empty line as lenient parsers know it; a head that ends otherwise than with two CRLFs is left to aiohttp."""
_HELD_BYTES: Final = 65_536
"""What nobody has taken yet; more, and the upstream has to wait."""
_LOOK_S: Final = 0.5

_TAPPING: ContextVar[bool] = ContextVar("tapping", default=False)

Sink = Callable[[bytes], None]
Over = Callable[[Exception | None], None]


@contextmanager
def tapping(wanted: bool) -> Iterator[None]:
    """Whether requests made in this block want their event stream pushed."""
    token = _TAPPING.set(wanted)
    try:
        yield
    finally:
        _TAPPING.reset(token)


def tap_of(response: aiohttp.ClientResponse) -> Tap | None:
    """The tap of a response; None if its body has to be read from `content`."""
    protocol = response.connection.protocol if response.connection is not None else None
    return protocol if isinstance(protocol, Tap) and protocol.tapped else None


class Connector(aiohttp.TCPConnector):
    """Makes connections that can be tapped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory: Any = partial(Tap, self._loop, _Silence(self._loop))


class Tap(ResponseHandler):
    """One connection. Nothing but `data_received` differs until the head of an answer is there that can be tapped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, silence: _Silence) -> None:
        super().__init__(loop)
        self.heard_at = 0.0
        self._silence = silence
        self._wanted = False
        self._seen = b""  # the end of the head so far
        self._framing: Chunked | None = None
        self._sink: Sink | None = None
        self._told: Over | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._still = False
        self._ended = False
        self._error: Exception | None = None

    @property
    def tapped(self) -> bool:
        return self._framing is not None

    @property
    def held(self) -> bool:
        return self._still

    # --- for who takes it -------------------------------------------------------------------------------------------
    def take(self, sink: Sink, over: Over) -> None:
        """From now on every piece goes to `sink`; then `over` is called once: None for a proper end, or what broke it.

        Neither may raise.
        """
        self._sink, self._told = sink, over
        self.flow()

    def hold(self) -> None:
        """Neither is called, and the upstream has to wait, until `flow`."""
        self._still = True
        self._pause_transport_reading()

    def flow(self) -> None:
        self._still = False
        held, self._held, self._size = self._held, [], 0
        for at, piece in enumerate(held):
            if self._sink is not None:
                self._sink(piece)
            if self._still:
                self._held = held[at + 1 :]
                return
        self.heard_at = self._loop.time()
        if self._ended:
            self._tell()
        else:
            self._resume_transport_reading()

    def leave(self) -> None:
        """Nothing more is wanted."""
        self._silence.forget(self)
        self._sink = self._told = None
        self._held = []
        self._ended = True

    # --- asyncio's and aiohttp's side -------------------------------------------------------------------------------
    def set_response_params(self, **params: Any) -> None:
        """Called before each request."""
        self._wanted = _TAPPING.get()
        self._seen = b""
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        framing = self._framing
        if framing is not None:
            self._take(framing, data)
        elif self._wanted:
            self._look_for_body(data)
        else:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self._framing is not None:
            self._end(aiohttp.ClientPayloadError(f"the upstream broke off: {exc or 'end of stream'}"))

    def silent_since(self, now: float) -> bool:
        """Whether it has been silent for longer than it may; who makes the upstream wait cannot complain."""
        return self._read_timeout is not None and not self._still and now - self.heard_at > self._read_timeout

    def fail(self) -> None:
        self._end(aiohttp.SocketTimeoutError("the upstream is silent"))

    # --- inside -----------------------------------------------------------------------------------------------------
    def _look_for_body(self, data: bytes) -> None:
        seen = self._seen + data
        end = _HEAD_END.search(seen)
        if end is None:
            self._seen = seen[-3:]
            super().data_received(data)
            return
        if end[0] != b"\r\n\r\n":
            self._wanted = False
            super().data_received(data)
            return
        cut = end.end() - len(self._seen)
        self._seen = b""
        super().data_received(data[:cut])
        code = self._buffer[-1][0][0].code if self._buffer else 0
        if 100 <= code < 200:  # a word before the answer
            self._look_for_body(data[cut:])
            return
        self._wanted = False
        if self._buffer and _can_be_tapped(self._buffer[-1][0][0]):
            self._begin()
        if data[cut:]:
            self.data_received(data[cut:])

    def _begin(self) -> None:
        self._framing = Chunked()
        self._drop_timeout()  # aiohttp's: set anew with every piece
        self.heard_at = self._loop.time()
        self._silence.watch(self)

    def _take(self, framing: Chunked, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            body = framing.feed(data)
        except ValueError as error:
            self._end(aiohttp.ClientPayloadError(str(error)))
            return
        if body:
            if self._sink is not None and not self._still:
                self._sink(body)
            else:
                self._keep(body)
        if framing.ended:
            self._end(None)

    def _keep(self, piece: bytes) -> None:
        if not self._ended or self._told is not None:
            self._held.append(piece)
            self._size += len(piece)
            if self._size > _HELD_BYTES:
                self._pause_transport_reading()

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended, self._error = True, error
        self._silence.forget(self)
        if not self._still:
            self._tell()

    def _tell(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            self._sink = None
            told(self._error)


def _can_be_tapped(message: Any) -> bool:
    kind = message.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return (
        message.code == 200
        and kind == "text/event-stream"
        and message.chunked
        and not message.compression
        and "Content-Encoding" not in message.headers
    )


class _Silence:
    """Finds the taps that have been silent for too long: one look for all, instead of a timer with every piece."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._taps: set[Tap] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, tap: Tap) -> None:
        self._taps.add(tap)
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def forget(self, tap: Tap) -> None:
        self._taps.discard(tap)

    def _look(self) -> None:
        now = self._loop.time()
        for tap in [tap for tap in self._taps if tap.silent_since(now)]:
            tap.fail()
        self._timer = self._loop.call_later(_LOOK_S, self._look) if self._taps else None
