"""Viewers of a run: they keep a journal of what they saw, resume by themselves, and know nothing of relay's code.

The SSE reading here is deliberately naive and separate from the product's decoder.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp

RETRY = (aiohttp.ClientError, TimeoutError, ConnectionError)


class Journal:
    """What one viewer saw over all its connections."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self.notices: list[tuple[str, dict[str, Any]]] = []
        self.cursor = 0
        self.connections = 0
        self.clean_ends = 0
        """Bodies that ended properly without `relay.end`: must stay 0 mid-run."""
        self.ended: dict[str, Any] | None = None
        self.statuses: list[int] = []

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]

    def take(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        self.cursor = max(self.cursor, event["seq"])


async def watch_sse(
    session: aiohttp.ClientSession,
    url: str,
    journal: Journal,
    *,
    chance: random.Random | None = None,
    query: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> Journal:
    """Follow a run to its end over SSE. With `chance`, leave at random moments and come back."""
    while journal.ended is None:
        leave_after = chance.randint(1, 200) if chance is not None and chance.random() < 0.7 else None
        try:
            await _one_sse(session, url, journal, leave_after, query or {}, headers or {})
        except RETRY:
            pass
        if journal.ended is None:
            await asyncio.sleep(0.02 if chance is None else chance.random() * 0.05)
    return journal


async def _one_sse(
    session: aiohttp.ClientSession,
    url: str,
    journal: Journal,
    leave_after: int | None,
    query: dict[str, str],
    headers: dict[str, str],
) -> None:
    query = {**query, "after_seq": str(journal.cursor)}
    journal.connections += 1
    timeout = aiohttp.ClientTimeout(total=None, sock_read=30)
    async with session.get(url, params=query, headers=headers, timeout=timeout) as response:
        journal.statuses.append(response.status)
        if response.status != 200:
            return
        seen = 0
        frame: dict[str, str] = {}
        async for raw in response.content:
            line = raw.decode().rstrip("\n")
            if line:
                name, _, value = line.partition(": ")
                frame[name] = value
                continue
            if "data" in frame and take_frame(journal, frame):
                return
            frame = {}
            seen += 1
            if leave_after is not None and seen >= leave_after:
                response.close()
                return
        journal.clean_ends += 1


def take_frame(journal: Journal, frame: dict[str, str]) -> bool:
    """Whether this frame was the end."""
    data = json.loads(frame["data"])
    name = frame.get("event", "")
    if not name.startswith("relay."):
        assert int(frame["id"]) == data["seq"]
        journal.take(data)
        return False
    return take_notice(journal, name, data, int(frame["id"]) if "id" in frame else None)


def take_notice(journal: Journal, name: str, data: dict[str, Any], at: int | None) -> bool:
    journal.notices.append((name, data))
    if at is not None:
        journal.cursor = max(journal.cursor, at)
    if name == "relay.end":
        journal.ended = data
        return True
    return False


async def watch_websocket(
    session: aiohttp.ClientSession, url: str, journal: Journal, *, chance: random.Random | None = None
) -> Journal:
    """Follow a run to its end over WebSocket, with aiohttp's client."""
    while journal.ended is None:
        leave_after = chance.randint(1, 200) if chance is not None and chance.random() < 0.7 else None
        journal.connections += 1
        try:
            async with session.ws_connect(url, params={"after_seq": str(journal.cursor)}, heartbeat=10) as socket:
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    data = json.loads(message.data)
                    if str(data["type"]).startswith("relay."):
                        take_notice(journal, data.pop("type"), data, None)
                    else:
                        journal.take(data)
                    if leave_after is not None and len(journal.events) % leave_after == leave_after - 1:
                        break
                if journal.ended is not None:
                    await socket.receive()  # the close that follows
                    journal.statuses.append(socket.close_code or 0)
        except RETRY:
            pass
        if journal.ended is None:
            await asyncio.sleep(0.02)
    return journal
