"""Readers of many runs on one connection, each run with a journal of its own: the checker judges them like all others.

A group has one connection. Over WebSocket its members are subscribed and unsubscribed on it as they come and go. Over SSE
the connection is made anew with the runs that are left, and the vector cursor is all it comes back with. What a write
brings again that was cut half-way is dropped, as the protocol asks of clients: up to where a member was when the connection
broke, and not a single event more.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

if TYPE_CHECKING:
    from tests.campaign.readers import Book

SILENCE_S = 6.0


class Member:
    """One run of a group."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.name: str = order["reader"]
        self.run: str = order["run"]
        self.connection = 0
        self.last = 0
        self.known = 0
        """Where it was when this connection began."""
        self.ended = False
        self.stopped = False
        self.gone = asyncio.Event()


class Group:
    def __init__(self, book: Book, urls: list[str], session: aiohttp.ClientSession, name: str, seed: int) -> None:
        self._book = book
        self._urls = urls
        self._session = session
        self._wire = "ws" if name.startswith("ws") else "sse"
        self._chance = random.Random(f"{name}/{seed}")
        self._members: dict[str, Member] = {}
        self._cursor = ""
        self._changed = asyncio.Event()
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def read(self, member: Member) -> None:
        """Until this member was told the end, or is stopped."""
        self._members[member.run] = member
        self._changed.set()
        await member.gone.wait()
        del self._members[member.run]
        self._book.write(member, q="end" if member.ended else "left")
        if self._socket is not None and not self._socket.closed and not member.ended:
            await self._socket.send_json({"op": "unsubscribe", "run_id": member.run})

    async def run(self) -> None:
        """For ever: one connection after the other."""
        while True:
            self._changed.clear()
            if not self._members:
                await self._changed.wait()
                continue
            await self._connect(dict(self._members))
            await asyncio.sleep(self._chance.uniform(0.02, 0.3))

    async def _connect(self, there: dict[str, Member]) -> None:
        relay = self._chance.randrange(len(self._urls))
        patience = self._chance.expovariate(1 / 8) + 0.3 if self._chance.random() < 0.5 else 3600.0
        url = f"{self._urls[relay]}/v1/events"
        self._relay = relay
        how = "left"
        self._there = there
        for member in there.values():
            self._begin(member)
        try:
            async with asyncio.timeout(patience) as scope:
                how = await (self._sse(url) if self._wire == "sse" else self._websocket(url))
        except TimeoutError:
            how = "left" if scope.expired() else "silent"
        except (aiohttp.ClientError, OSError) as error:
            how = f"broken {type(error).__name__}"
        for member in self._there.values():
            self._book.write(member, x=how, d="")
            if how == "204":
                member.ended = True
            if member.ended or member.stopped:
                member.gone.set()

    def _begin(self, member: Member) -> None:
        member.connection += 1
        member.known = member.last
        self._book.write(member, run=member.run, o=self._relay, w=self._wire, k=member.last)

    # ── SSE ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _sse(self, url: str) -> str:
        query = {"runs": ",".join(self._there)}
        headers = {"Accept": "text/event-stream"}
        if self._cursor and self._chance.random() < 0.7:
            headers["Last-Event-ID"] = self._cursor
        elif self._cursor:
            query["cursor"] = self._cursor
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
        async with self._session.get(url, params=query, headers=headers, timeout=timeout) as response:
            for member in self._there.values():
                self._book.write(member, s=response.status)
            if response.status != 200:
                return "204" if response.status == 204 else "refused"
            rest = b""
            try:
                async for data in response.content.iter_any():
                    *blocks, rest = (rest + data).split(b"\n\n")
                    for block in blocks:
                        self._block(block)
                    if self._changed.is_set():
                        return "left"
            finally:
                response.close()
            return "eof"

    def _block(self, block: bytes) -> None:
        frame: dict[bytes, bytes] = {}
        for line in block.split(b"\n"):
            if line and not line.startswith(b":"):
                name, _, value = line.partition(b": ")
                frame[name] = value
        data = orjson.loads(frame[b"data"])
        if b"event" in frame:
            self._frame(frame[b"event"].decode(), data)
        else:
            self._event(data["run_id"], data["seq"], frame[b"data"])
        if b"id" in frame:
            self._cursor = frame[b"id"].decode()

    # ── WebSocket ───────────────────────────────────────────────────────────────────────────────────────────────
    async def _websocket(self, url: str) -> str:
        timeout = aiohttp.ClientWSTimeout(ws_close=0.3)
        async with asyncio.timeout(SILENCE_S):
            socket = self._socket = await self._session.ws_connect(url, timeout=timeout, heartbeat=SILENCE_S / 2)
        joining = asyncio.create_task(self._join(socket))
        try:
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                self._message(message.data.encode())
            return f"ws {socket.close_code}"
        finally:
            joining.cancel()
            await socket.close()

    async def _join(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Subscribe to all there are, and to those that come."""
        for member in self._there.values():
            await self._subscribe(socket, member)
        while True:
            self._changed.clear()
            for run, member in list(self._members.items()):
                if run not in self._there:
                    self._there[run] = member
                    self._begin(member)
                    await self._subscribe(socket, member)
            await self._changed.wait()

    async def _subscribe(self, socket: aiohttp.ClientWebSocketResponse, member: Member) -> None:
        self._book.write(member, s=101)
        await socket.send_json({"op": "subscribe", "run_id": member.run, "after_seq": member.last})

    def _message(self, text: bytes) -> None:
        data = orjson.loads(text)
        op = data.pop("op")
        if op == "event":
            event = text[text.index(b',"event":') + 9 : -1]
            self._event(data["run_id"], data["event"]["seq"], event, exactly=True)
        else:
            self._frame(f"relay.{op}", data)

    # ── both ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _event(self, run: str, seq: int, text: bytes, *, exactly: bool = False) -> None:
        member = self._there.get(run)
        if member is None or (seq <= member.known and not exactly):
            return
        member.last = max(member.last, seq)
        self._book.write(member, e=[[seq, self._book.sha(run, seq, text)]])

    def _frame(self, name: str, data: dict[str, Any]) -> None:
        about = [self._there[data["run_id"]]] if data.get("run_id") in self._there else []
        for member in about or (self._there.values() if name == "relay.goodbye" else ()):
            self._book.write(member, f=name, i=None, d=data)
            if name == "relay.error" and not data["retrying"]:
                self._book.write(member, s=404)
            if name == "relay.reset":
                member.last = max(member.last, data["to_seq"])
            if name == "relay.end":
                member.ended = True
                member.gone.set()
