"""Readers of many runs on one connection: naive, resume by themselves, keep what they saw. No code of relay's.

What a resumed SSE reader may see again, by the protocol, is what it had of a write whose last frame was cut off (an event,
or an end). That is dropped by run_id and seq, but only up to where it was when the connection broke: anything else that
comes twice is kept, and is a mistake.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp

LOST = (aiohttp.ClientError, TimeoutError, ConnectionError, asyncio.IncompleteReadError)


class ManyViewer:
    def __init__(self) -> None:
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        self.notices: list[tuple[str, dict[str, Any]]] = []
        self.order: list[str] = []
        """The run of every event, as they came."""
        self.statuses: list[int] = []
        self.polite_ends = 0
        self.cursor = ""
        self.cursors: list[str] = []
        self.connections = 0
        self.repeated = 0
        """Events seen again after a cut, as the protocol allows."""
        self.bytes = 0
        self.grown = asyncio.Event()
        self._known: dict[str, int] = {}
        self._over: set[str] = set()

    def seqs(self, run_id: str) -> list[int]:
        return [event["seq"] for event in self.events.get(run_id, [])]

    def said(self, name: str) -> list[dict[str, Any]]:
        return [data for kind, data in self.notices if kind == name]

    async def until(self, fact: Callable[[ManyViewer], object], timeout_s: float = 60.0) -> None:
        """Wait for a fact about what was seen. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not fact(self):
                self.grown.clear()
                await self.grown.wait()

    def take(self, run_id: str, event: dict[str, Any]) -> None:
        assert event["run_id"] == run_id
        if event["seq"] <= self._known.get(run_id, 0):
            self.repeated += 1
            return
        assert run_id not in self.ended, f"{run_id}: an event after the end"
        self.events.setdefault(run_id, []).append(event)
        self.order.append(run_id)
        self.grown.set()

    def notice(self, name: str, data: dict[str, Any]) -> None:
        if name == "end" and data["run_id"] in self._over:
            self.repeated += 1
            return
        self.notices.append((name, data))
        if name == "end":
            assert data["run_id"] not in self.ended, "the end was told twice"
            self.ended[data["run_id"]] = data
        self.grown.set()

    def _came_back(self) -> None:
        self.connections += 1
        self._over = set(self.ended)
        self._known = {run_id: events[-1]["seq"] for run_id, events in self.events.items()}


class SseViewer(ManyViewer):
    """Over SSE; the vector cursor is all it comes back with."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    async def watch(self, session: aiohttp.ClientSession, *, leave: Callable[[SseViewer], bool] | None = None) -> None:
        """Until a response ends properly, or 204."""
        while not self.polite_ends and 204 not in self.statuses:
            try:
                await self.once(session, leave=leave)
            except LOST:
                pass
            await asyncio.sleep(0.02)

    async def once(self, session: aiohttp.ClientSession, *, leave: Callable[[SseViewer], bool] | None = None) -> None:
        """One connection. `leave` is asked after each frame."""
        self._came_back()
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.cursor} if self.cursor else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        async with session.get(self.url, headers=headers, timeout=timeout) as response:
            self.statuses.append(response.status)
            if response.status != 200:
                self.notices.append(("refused", await response.json() if response.status != 204 else {}))
                return
            rest = b""
            try:
                async for chunk in response.content.iter_any():
                    self.bytes += len(chunk)
                    *blocks, rest = (rest + chunk).split(b"\n\n")
                    for block in blocks:
                        self._block(block)
                        if leave is not None and leave(self):
                            return
                self.polite_ends += 1
            finally:
                response.close()

    def _block(self, block: bytes) -> None:
        fields: dict[bytes, bytes] = {}
        for line in block.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name:
                assert name not in fields, block[:200]
                fields[name] = value
        assert b"data" in fields, block[:200]
        data = json.loads(fields[b"data"])
        if b"id" in fields:  # dispatched with its event, as browsers do
            self.cursor = fields[b"id"].decode()
            self.cursors.append(self.cursor)
        if b"event" in fields:
            self.notice(fields[b"event"].decode().removeprefix("relay."), data)
        else:
            self.take(data["run_id"], data)


class SocketViewer(ManyViewer):
    """Over WebSocket; knows its place in each run itself."""

    def __init__(self, url: str, runs: list[str]) -> None:
        super().__init__()
        self.url = url
        self.runs = runs
        self.places: dict[str, int] = {}
        self.ask: dict[str, Any] = {}
        """What else is asked for with each run."""
        self.closes: list[int] = []
        self.socket: aiohttp.ClientWebSocketResponse | None = None

    async def watch(
        self, session: aiohttp.ClientSession, *, leave: Callable[[SocketViewer], bool] | None = None
    ) -> None:
        """Until every run has ended."""
        while set(self.runs) - set(self.ended):
            try:
                await self.once(session, leave=leave)
            except LOST:
                pass
            await asyncio.sleep(0.02)

    async def once(
        self, session: aiohttp.ClientSession, *, leave: Callable[[SocketViewer], bool] | None = None
    ) -> None:
        self._came_back()
        async with session.ws_connect(self.url, heartbeat=20, max_msg_size=0) as socket:
            self.socket = socket
            for run_id in self.runs:
                if run_id not in self.ended:
                    after = self.places.get(run_id, 0)
                    await socket.send_json({"op": "subscribe", "run_id": run_id, "after_seq": after, **self.ask})
            while set(self.runs) - set(self.ended):
                message = await socket.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                self.hear(json.loads(message.data))
                if leave is not None and leave(self):
                    return
            self.closes.append(socket.close_code or 0)

    def hear(self, said: dict[str, Any]) -> None:
        op = said.pop("op")
        if op == "event":
            self.places[said["run_id"]] = said["event"]["seq"]
            self.take(said["run_id"], said["event"])
            return
        if op in ("reset", "position", "snapshot"):
            self.places[said["run_id"]] = next(said[name] for name in ("to_seq", "seq", "as_of_seq") if name in said)
        self.notice(op, said)
