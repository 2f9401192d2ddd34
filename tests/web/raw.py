"""Requests byte for byte, and a relay with settings of the test's own. Knows nothing of relay's code for the wire.

A `Raw` is one TCP connection: what is sent is what the test wrote, what comes back is kept as it came, and how the
connection ended (a proper end, a missing last chunk, a reset) can be told apart. That is what many promises are about.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from relay.app import App
from relay.settings import Settings
from relay.web.admit import hash_of
from relay.web.options import AuthOptions, KeyOptions
from tests.support.relay import RunningRelay

TOKEN_SECRET = "a-test-secret-of-at-least-32-characters"
KEY, ADMIN_KEY = "rk_a-viewer-key", "rk_an-admin-key"
API_KEYS = {
    "mode": "api_keys",
    "keys": (KeyOptions("viewer", hash_of(KEY)), KeyOptions("boss", hash_of(ADMIN_KEY), admin=True)),
}
PATIENCE_S = 60.0


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Raw:
    """One connection. `data` holds every byte of the answer so far, `head` and `body` are parts of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self.host = host
        self.data = b""
        self.was_reset = False

    async def send(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    async def ask(
        self, target: str, headers: dict[str, str] | None = None, *, method: str = "GET", version: str = "1.1",
        body: bytes | None = None,
    ) -> Self:  # fmt: skip
        """Send one request, exactly these headers (and Host, and Content-Length of a body) in the order given."""
        fields = {"Host": self.host, **(headers or {})}
        if body is not None:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items())]
        await self.send("\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + (body or b""))
        return self

    async def _more(self) -> bool:
        try:
            part = await self._reader.read(65536)
        except ConnectionError:
            self.was_reset = True
            return False
        self.data += part
        return bool(part)

    async def until(self, mark: bytes) -> bytes:
        """Read until the body holds `mark`; AssertionError when the connection ends before it does."""
        async with asyncio.timeout(PATIENCE_S):
            while mark not in self.body:
                assert await self._more(), f"the answer ended without {mark!r}: {self.data!r}"
        return self.body

    async def rest(self) -> bytes:
        """Read until the connection ends, however it does."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._more():
                pass
        return self.data

    async def answer(self) -> bytes:
        """Read one whole answer by its own framing (Content-Length or chunks), leaving the connection open."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._whole():
                assert await self._more(), f"the answer ended early: {self.data!r}"
        return self.body

    def _whole(self) -> bool:
        if b"\r\n\r\n" not in self.data:
            return False
        if self.status in (204, 304):
            return True
        if "content-length" in self.headers:
            return len(self.raw_body) >= int(self.headers["content-length"])
        return self.finished

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def raw_body(self) -> bytes:
        """As it came, chunk framing included."""
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = [line.partition(":") for line in lines]
        return {name.strip().lower(): value.strip() for name, _, value in pairs}

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding") == "chunked"

    @property
    def body(self) -> bytes:
        """The payload so far."""
        if b"\r\n\r\n" not in self.data:
            return b""
        return b"".join(chunks(self.raw_body)[0]) if self.chunked else self.raw_body

    @property
    def finished(self) -> bool:
        """The last chunk was sent: a proper end."""
        return self.chunked and chunks(self.raw_body)[1]

    def json(self) -> Any:
        return json.loads(self.body)

    async def close(self) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass


def chunks(raw: bytes) -> tuple[list[bytes], bool]:
    """The whole chunks of a chunked body so far, and whether the last one (of no bytes) was among them."""
    found: list[bytes] = []
    while b"\r\n" in raw:
        size, _, rest = raw.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert rest == b"\r\n"[: len(rest)], f"bytes behind the last chunk: {rest!r}"
            return found, rest == b"\r\n"
        if len(rest) < length + 2:
            break
        assert rest[length : length + 2] == b"\r\n"
        found.append(rest[:length])
        raw = rest[length + 2 :]
    return found, False


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[Raw]:
    parts = urlsplit(url)
    assert parts.hostname
    raw = Raw(*await asyncio.open_connection(parts.hostname, parts.port), parts.netloc)
    try:
        yield raw
    finally:
        await raw.close()


async def fetch(
    url: str, target: str, headers: dict[str, str] | None = None, *, method: str = "GET", body: bytes | None = None,
    version: str = "1.1",
) -> Raw:  # fmt: skip
    """One request on a connection of its own, read to the end of its answer."""
    async with connection(url) as raw:
        await raw.ask(target, headers, method=method, body=body, version=version)
        await raw.answer()
        return raw


def frames(body: bytes) -> list[dict[str, str]]:
    """The SSE blocks of a body, comments left out; strict: LF only, `name: value` only."""
    assert b"\r" not in body
    lines = body.decode().split("\n")
    found: list[dict[str, str]] = [{}]
    for line in lines:
        if not line:
            found.append({})
        elif not line.startswith(":"):
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name not in found[-1], f"two {name} lines in one frame"
            found[-1][name] = value
    return [frame for frame in found if frame]


def events(body: bytes) -> list[dict[str, Any]]:
    """The run's events in an SSE body (frames of relay's own left out)."""
    return [json.loads(one["data"]) for one in frames(body) if not one.get("event", "").startswith("relay.")]


def notices(body: bytes, name: str) -> list[tuple[str | None, dict[str, Any]]]:
    """`(id, data)` of relay's own frames of one name."""
    return [(one.get("id"), json.loads(one["data"])) for one in frames(body) if one.get("event") == name]


@asynccontextmanager
async def serving(settings: Settings, redis_url: str) -> AsyncIterator[RunningRelay]:
    """A relay with exactly these settings (but for a Redis prefix of its own), drained at the end."""
    settings = replace(settings, redis=replace(settings.redis, prefix=f"t{secrets.token_hex(4)}"))
    app = App(settings, redis_url, TOKEN_SECRET, lambda: True)
    stop, started = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(app.run(stop, lambda _: started.set()))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await started.wait()
            async with aiohttp.ClientSession() as session:
                yield RunningRelay(app, session)
        finally:
            stop.set()


def auth(**options: Any) -> AuthOptions:
    return AuthOptions(**options)
