"""Viewers of the system tests: quick, naive readers of every wire, that resume by themselves and keep what they saw.

They share no code with relay. Events are kept as the bytes that came, so that two hundred viewers cost little and the
comparison with the upstream's truth is made on what was really on the wire.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import aiohttp
import websockets
from websockets.asyncio.client import connect

Kind = Literal["sse", "websocket", "websockets", "ndjson"]
KINDS: tuple[Kind, ...] = ("sse", "websocket", "websockets", "ndjson")
LOST = (aiohttp.ClientError, TimeoutError, ConnectionError, websockets.WebSocketException, asyncio.IncompleteReadError)


class Viewer:
    """One person's view of a run over all of their connections."""

    def __init__(
        self,
        url: str,
        kind: Kind = "sse",
        *,
        after_seq: int = 0,
        chance: random.Random | None = None,
        seen: dict[bytes, bytes] | None = None,
    ) -> None:
        self._seen = {} if seen is None else seen
        """Texts that were seen before, by anybody: kept once for all viewers."""
        self.url = url
        self.kind = kind
        self.cursor = after_seq
        self.chance = chance
        """With it the viewer leaves at random moments and comes back."""
        self.events: list[tuple[int, bytes]] = []
        self.notices: list[tuple[str, dict[str, Any]]] = []
        self.connections = 0
        self.polite_ends = 0
        """Bodies that ended properly, or sockets closed with 1000, without `relay.end`: a client takes it for the end."""
        self.ended: dict[str, Any] | None = None
        self.statuses: list[int] = []
        self.closes: list[int] = []
        """WebSocket close codes."""
        self.bytes = 0
        self.grown = asyncio.Event()

    @property
    def seqs(self) -> list[int]:
        return [seq for seq, _ in self.events]

    def describe(self) -> str:
        """For a failure's message."""
        last = (self.notices[-1:], self.statuses[-1:], self.closes[-1:])
        return f"{self.kind} at {self.cursor}, connection {self.connections}, last said {last}"

    def said(self, name: str) -> list[dict[str, Any]]:
        """The notices of this name."""
        return [data for kind, data in self.notices if kind == name]

    async def until(self, fact: Callable[[Viewer], object], timeout_s: float = 60.0) -> None:
        """Wait for a fact about what was seen. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while not fact(self):
                self.grown.clear()
                await self.grown.wait()

    async def watch(self, session: aiohttp.ClientSession) -> Viewer:
        """Until `relay.end`, through any number of connections."""
        while self.ended is None:
            try:
                await self.once(session)
            except LOST:
                pass
            if self.ended is None:
                await asyncio.sleep(0.05 * (1.0 if self.chance is None else self.chance.random()))
        return self

    async def once(self, session: aiohttp.ClientSession) -> None:
        """One connection, to its end or until the viewer leaves."""
        self.connections += 1
        patience = None
        if self.chance is not None and self.chance.random() < 0.8:
            patience = self.chance.randint(1, 250)
        read = {"sse": self._sse, "ndjson": self._ndjson, "websocket": self._aiohttp, "websockets": self._websockets}
        await read[self.kind](session, patience)

    # ── wires ───────────────────────────────────────────────────────────────────────────────────────────────
    async def _sse(self, session: aiohttp.ClientSession, patience: int | None) -> None:
        async for frame in self._parts(session, "text/event-stream", b"\n\n"):
            if self._frame(frame) or self._bored(patience):
                return

    def _frame(self, frame: bytes) -> bool:
        fields: dict[bytes, bytes] = {}
        for line in frame.split(b"\n"):
            name, _, value = line.partition(b": ")
            if name:
                assert name not in fields, frame[:200]
                fields[name] = value
        assert b"data" in fields, frame[:200]
        name = fields.get(b"event", b"").decode()
        if name.startswith("relay."):
            return self._notice(name, json.loads(fields[b"data"]), int(fields[b"id"]) if b"id" in fields else None)
        self._event(int(fields[b"id"]), fields[b"data"])
        return False

    async def _ndjson(self, session: aiohttp.ClientSession, patience: int | None) -> None:
        async for line in self._parts(session, "application/x-ndjson", b"\n"):
            if (line and self._message(line)) or self._bored(patience):
                return

    async def _parts(self, session: aiohttp.ClientSession, accept: str, separator: bytes) -> AsyncIterator[bytes]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        query = {"after_seq": str(self.cursor)}
        async with session.get(self.url, params=query, headers={"Accept": accept}, timeout=timeout) as response:
            self.statuses.append(response.status)
            if response.status != 200:
                return
            rest = bytearray()
            try:
                async for chunk in response.content.iter_any():
                    self.bytes += len(chunk)
                    rest += chunk
                    if separator not in chunk and separator not in rest[-len(chunk) - 2 :]:
                        continue
                    *parts, last = bytes(rest).split(separator)
                    rest = bytearray(last)
                    for part in parts:
                        yield part
                if self.ended is None:
                    self.polite_ends += 1
            finally:
                response.close()

    async def _aiohttp(self, session: aiohttp.ClientSession, patience: int | None) -> None:
        url = f"{self.url}{'&' if '?' in self.url else '?'}after_seq={self.cursor}"
        async with session.ws_connect(url, heartbeat=20, max_msg_size=0) as socket:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self.bytes += len(message.data)
                    self._message(message.data.encode())
                if self.ended is None and self._bored(patience):
                    return
            self._closed(socket.close_code)

    async def _websockets(self, session: aiohttp.ClientSession, patience: int | None) -> None:
        url = self.url.replace("http://", "ws://") + f"{'&' if '?' in self.url else '?'}after_seq={self.cursor}"
        # A client that leaves in the middle of a burst has stopped reading and never sees our close: it waits in vain.
        async with connect(url, max_size=None, compression=None, proxy=None, close_timeout=0.1) as socket:
            try:
                while True:
                    text = await socket.recv(decode=False)
                    self.bytes += len(text)
                    self._message(text)
                    if self.ended is None and self._bored(patience):
                        return
            except websockets.ConnectionClosed:
                self._closed(socket.close_code)

    # ── what was seen ───────────────────────────────────────────────────────────────────────────────────────
    def _message(self, text: bytes) -> bool:
        said = json.loads(text)
        if str(said["type"]).startswith("relay."):
            return self._notice(said.pop("type"), said, None)
        self._event(said["seq"], text)
        return False

    def _event(self, seq: int, text: bytes) -> None:
        self.events.append((seq, self._seen.setdefault(text, text)))
        self.cursor = max(self.cursor, seq)
        self.grown.set()

    def _notice(self, name: str, data: dict[str, Any], at: int | None) -> bool:
        self.notices.append((name, data))
        self.cursor = max(self.cursor, at or data.get("to_seq", 0))
        if name == "relay.end":
            assert self.ended is None, "the end was told twice"
            self.ended = data
        self.grown.set()
        return name == "relay.end"

    def _bored(self, patience: int | None) -> bool:
        return patience is not None and len(self.events) % 251 == patience

    def _closed(self, code: int | None) -> None:
        self.closes.append(code or 0)
        if code == 1000 and self.ended is None:
            self.polite_ends += 1


# ── the oracle ──────────────────────────────────────────────────────────────────────────────────────────────────────
def native(event: dict[str, Any]) -> dict[str, Any]:
    """What an upstream event must look like at the far end (design.md section 4), written down a second time."""
    said = {**event, "created_at": event["ts"]}
    if event["type"] == "message.delta" and "content_delta" in event["data"]:
        said["data"] = {"content": event["data"]["content_delta"], **event["data"]}
    if event["type"] == "run.input_requested":
        said |= {"type": "run.waiting_for_input", "upstream_type": "run.input_requested"}
    return said


class Truth:
    """What the upstream holds, to compare any number of viewers with."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        self.seqs = [event["seq"] for event in events]
        self._expected = {event["seq"]: native(event) for event in events}
        self._read: dict[bytes, dict[str, Any]] = {}

    def check(self, viewer: Viewer, *, after_seq: int = 0, resets: int = 0) -> None:
        """Exactly the upstream's events after `after_seq`, once each, in order, unaltered; one end, told properly."""
        who = f"{viewer.kind} viewer ({viewer.connections} connections)"
        wanted = [seq for seq in self.seqs if seq > after_seq]
        assert viewer.seqs == wanted, f"{who}: {difference(viewer.seqs, wanted)}"
        for seq, text in viewer.events:
            self._check_event(seq, text)
        assert viewer.polite_ends == 0, f"{who}: a stream ended politely, mid-run"
        assert len(viewer.said("relay.reset")) == resets, viewer.notices
        assert viewer.ended is not None
        assert viewer.ended["last_seq"] == self.seqs[-1]

    def _check_event(self, seq: int, text: bytes) -> None:
        if text not in self._read:
            self._read[text] = json.loads(text)
            assert self._read[text] == self._expected[seq]


def difference(seen: list[int], wanted: list[int]) -> str:
    """In words, the first place where a viewer's seqs are not the upstream's."""
    for at, (one, other) in enumerate(zip(seen, wanted, strict=False)):
        if one != other:
            return f"at {at}: saw {seen[max(0, at - 2) : at + 3]}, wanted {wanted[max(0, at - 2) : at + 3]}"
    return f"saw {len(seen)} events up to {seen[-1:]}, wanted {len(wanted)} up to {wanted[-1:]}"
