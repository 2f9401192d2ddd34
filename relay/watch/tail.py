"""The tail: one run followed through any number of connections (one connection / resume / until the end).

A client like any other, which knows only the wire. Must not live here: how anything looks (screen.py, story.py).

The cursor is the last seq shown; every new connection asks for what follows it. Only `relay.end` ends it well.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import aiohttp

from relay.core import sse
from relay.core.backoff import Backoff
from relay.core.events import decode
from relay.watch.options import WatchOptions
from relay.watch.screen import Screen

EVENT_BYTES = 16 * 1024 * 1024
"""Largest message accepted; twice the server's default limit, so that limit is never met here first."""
SILENCE_S = 45.0
"""A link without a byte for this long is dead: the server sends at least a comment every 15 s."""
HOPELESS = frozenset({401, 403, 404, 422})
"""Answers that asking again cannot change."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A connection is over and the run is not: try again."""

    why: str
    wait_s: float | None = None
    """How long the server asked us to stay away; None leaves it to the back-off."""


@dataclass(frozen=True, slots=True)
class Over:
    """There is nothing more to wait for."""

    exit_status: int


class Tail:
    """Follows one run through any number of connections; each event reaches the screen once, in order."""

    def __init__(self, options: WatchOptions, screen: Screen, patience: Backoff) -> None:
        """`patience`: the first pause between connections; back to it after each one that brought something."""
        self._options = options
        self._screen = screen
        self._patience = patience
        self._cursor = options.after_seq
        self._moved = False  # did this connection bring anything?

    async def follow(self) -> int:
        """Until the end: connect, and connect again. An unchanged reason is told once, not at every attempt."""
        backoff, told = self._patience, ""
        async with self._session() as session:
            while True:
                self._moved = False
                match await self._connection(session):
                    case Over(exit_status):
                        return exit_status
                    case Lost(why, wait_s):
                        if self._moved:
                            backoff, told = self._patience, ""
                        if why != told:
                            self._screen.note(f"{why}; resuming after seq {self._cursor}")
                            told = why
                        await asyncio.sleep(backoff.pause_s(random.random()) if wait_s is None else wait_s)  # noqa: S311
                        backoff = backoff.failed()

    def _session(self) -> aiohttp.ClientSession:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._options.key:
            headers["Authorization"] = f"Bearer {self._options.key}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_S)
        return aiohttp.ClientSession(headers=headers, timeout=timeout)

    async def _connection(self, session: aiohttp.ClientSession) -> Lost | Over:
        """One connection, from the request to whatever ends it."""
        query = {"after_seq": str(self._cursor)}
        if self._options.types:
            query["types"] = self._options.types
        url = f"{self._options.url.rstrip('/')}/v1/runs/{self._options.run_id}/events"
        try:
            # No redirects: the key goes where it was meant to go.
            async with session.get(url, params=query, allow_redirects=False) as response:
                if response.status == 200 and response.content_type == "text/event-stream":
                    return await self._stream(response)
                return await self._refused(response)
        except aiohttp.InvalidURL:
            self._screen.note(f"cannot use the address {self._options.url}")
            return Over(1)
        except TimeoutError:
            return Lost("the relay is silent")
        except aiohttp.ClientConnectorError:
            return Lost("cannot connect")
        except aiohttp.ClientError:  # no bare OSError: that one is the screen's, and its reader may be gone
            return Lost("connection lost")

    async def _stream(self, response: aiohttp.ClientResponse) -> Lost | Over:
        decoder = sse.Decoder(max_bytes=EVENT_BYTES)
        async for chunk in response.content.iter_any():
            for message in decoder.feed(chunk):
                verdict = self._take(message)
                if verdict is not None:
                    return verdict
            self._screen.flush()
        return Lost("the stream was cut")

    async def _refused(self, response: aiohttp.ClientResponse) -> Lost | Over:
        """An answer that is no stream: for good, or for a while."""
        sentence = f"{response.status} {response.reason or ''}".strip()
        envelope = _object(await response.content.read(65_536))
        if envelope.get("message"):
            sentence = f"{sentence}: {envelope['message']}"
        if response.status in HOPELESS:
            self._screen.note(sentence)
            return Over(1)
        wait = response.headers.get("Retry-After", "")
        # Jitter on top: everybody was told the same number.
        return Lost(sentence, min(int(wait), 60) * random.uniform(1, 1.25) if wait.isdecimal() else None)  # noqa: S311

    def _take(self, message: sse.Message) -> Lost | Over | None:
        """One message off the wire. None: go on."""
        if message.oversize:
            self._too_long(message)
            return None
        body = _object(message.data)
        if message.event.startswith("relay."):
            return self._own_frame(message.event, body)
        seq = body.get("seq")
        if not isinstance(seq, int) or seq <= self._cursor:
            return None
        self._advance(seq)
        self._screen.event(body, message.text)
        return None

    def _own_frame(self, name: str, body: dict[str, Any]) -> Lost | Over | None:
        match name:
            case "relay.end":
                self._screen.end(str(body.get("status") or "unknown"), int(_number(body.get("last_seq"))))
                return Over(0)
            case "relay.goodbye" if body.get("reconnect") is False:
                self._screen.note(f"the relay said goodbye: {body.get('code')}")
                return Over(1)
            case "relay.goodbye":
                return Lost(f"the relay said goodbye: {body.get('code')}", _number(body.get("after_ms")) / 1000)
            case "relay.reset":
                self._screen.reset(body)
                self._advance(body.get("to_seq"))
            case "relay.position":
                self._advance(body.get("seq"))
            case "relay.snapshot":
                self._advance(body.get("as_of_seq"))
            case _:
                pass  # a frame of a newer relay; frames carry no events
        return None

    def _too_long(self, message: sse.Message) -> None:
        """An event longer than we hold is a hole in what we show: told like any other, never asked for again."""
        seq = int(message.id) if message.id.isdecimal() else self._cursor
        self._screen.reset({"from_seq": seq, "to_seq": seq, "reason": f"{message.oversize:,} bytes in one event"})
        self._advance(seq)

    def _advance(self, seq: object) -> None:
        if isinstance(seq, int) and seq > self._cursor:
            self._cursor = seq
            self._moved = True


def _object(raw: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    try:
        value = decode(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    return value if isinstance(value, int | float) else 0
