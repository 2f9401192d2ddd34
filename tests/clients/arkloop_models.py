"""Models of Arkloop's three official clients, from the tables of its reference (docs/upstreams/arkloop.md, 3 and 4).

Each is as impatient, as forgetful and as easily offended as its original: what ends them is in `Model`, by name. Times can
be scaled. They raise `GaveUp` where the original shows an error, and return early where it silently stops.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TERMINAL = ("run.completed", "run.failed", "run.cancelled", "run.interrupted")
LINE_BYTES = 4 * 1024 * 1024


class GaveUp(Exception):
    """The original would show an error now."""


class Cut(Exception):
    """The connection broke, or said nothing for too long."""


@dataclass(frozen=True)
class Model:
    name: str
    backoff_s: tuple[float, ...]
    budget: int
    budget_is_per_run: bool
    """Never given back; else any 200 gives it back."""
    read_timeout_s: float | None
    header_timeout_s: float | None
    eof_means_end: bool
    """A clean end of the stream is the end, whatever was said before."""
    fatal: frozenset[int]
    any_refusal_is_fatal: bool
    from_json: bool
    """seq and type are read from the JSON; else from the `id:` and `event:` lines only."""
    stays_s: float
    """How long it goes on listening after the terminal event."""


WEB = Model("web", (1, 2, 4, 8, 10), 5, False, 45, None, True, frozenset({403, 404, 410, 422}), False, True, 30)
TUI = Model("TUI", (0.5, 1, 2, 3, 3), 5, True, None, None, False, frozenset(), False, True, 0)
CLI = Model("CLI", (0.5, 1, 2, 3, 3), 5, True, None, 10, False, frozenset(), True, False, 0)


@dataclass
class Client:
    model: Model
    url: str
    """The base URL: the face's mount."""
    run_id: str
    scale: float = 0.1
    """Of the time between two tries."""
    quiet_scale: float = 0.1
    """Of the silence it bears."""
    stay_scale: float = 0.1
    """Of how long it stays after the end."""
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": "Bearer k"})
    seen: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    ended: bool = False

    async def follow(self) -> list[dict[str, Any]]:
        """Every event the original would show, until it stops."""
        failures = 0
        async with aiohttp.ClientSession(headers=self.headers) as session:
            while True:
                self.requests += 1
                try:
                    connected = await self._connection(session)
                    if self.ended or (connected and self.model.eof_means_end):
                        return self.seen
                    if not await self._still_running(session):
                        return self.seen
                except Cut as cut:
                    if cut.args and cut.args[0] == "open" and not self.model.budget_is_per_run:
                        failures = 0
                failures += 1
                if failures > self.model.budget:
                    raise GaveUp(f"{self.model.name}: {self.requests} requests")
                await asyncio.sleep(self.model.backoff_s[min(failures, 5) - 1] * self.scale)

    async def _connection(self, session: aiohttp.ClientSession) -> bool:
        """One stream, to its clean end. Raises Cut; GaveUp for a status that offends."""
        query = {"after_seq": str(self._cursor), "follow": "true"}
        state = "closed"
        try:
            async with asyncio.timeout(self.model.header_timeout_s):
                response = await session.get(f"{self.url}/v1/runs/{self.run_id}/events", params=query)
            async with response:
                if response.status != 200:
                    if self.model.any_refusal_is_fatal or response.status in self.model.fatal:
                        raise GaveUp(f"{self.model.name}: {response.status}")
                    raise Cut(response.status)
                state = "open"
                await self._read(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Cut(state) from error
        return True

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        over: float | None = None
        clock = asyncio.get_running_loop().time
        async for frame in self._frames(response):
            self._take(frame)
            if self.ended and over is None:
                if not self.model.stays_s:
                    return
                over = clock() + self.model.stays_s * self.stay_scale
            if over is not None and clock() >= over:
                return

    async def _frames(self, response: aiohttp.ClientResponse) -> AsyncIterator[list[str]]:
        """Blocks as all three cut them: at an empty line, LF only. A comment is a block of its own here."""
        held = b""
        while True:
            silence = self.model.read_timeout_s
            async with asyncio.timeout(silence * self.quiet_scale if silence else None):
                piece = await response.content.readany()
            if not piece:
                return
            held += piece
            *blocks, held = held.split(b"\n\n")
            for block in blocks:
                if any(len(line) > LINE_BYTES for line in block.split(b"\n")) and not self.model.from_json:
                    raise GaveUp("token too long")
                yield block.decode().split("\n")

    def _take(self, lines: list[str]) -> None:
        fields = dict(line.split(": ", 1) for line in lines if not line.startswith(":"))
        if "data" not in fields:
            return
        event = json.loads(fields["data"])
        seq = event["seq"] if self.model.from_json else int(fields["id"])
        kind = event["type"] if self.model.from_json else fields["event"]
        if seq in {one["seq"] for one in self.seen} and self.model is not WEB:
            return  # only the web client shows what it gets twice
        self.seen.append(event)
        self.ended = self.ended or kind in TERMINAL

    @property
    def _cursor(self) -> int:
        return self.seen[-1]["seq"] if self.seen else 0

    async def _still_running(self, session: aiohttp.ClientSession) -> bool:
        async with session.get(f"{self.url}/v1/runs/{self.run_id}") as response:
            if response.status != 200:
                return True
            return (await response.json())["status"] in ("running", "cancelling")
