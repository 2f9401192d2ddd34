"""The reader process: many viewers who join, leave, come back anywhere, and write down everything they are shown.

Run as `python -m tests.campaign.readers JOURNAL TEXTS URL…`; told what to do by JSON lines on stdin, says `{"done": name}`
on stdout. A logical reader has one cursor over all its connections. Nothing here judges, and nothing is shared with relay
or with the checker. The journal, one JSON line per thing that happened (`t` is monotonic seconds):

    {"r", "run", "c", "t", "o": relay, "w": "sse"|"ws", "k": cursor}     a connection is tried
    {"r", "c", "t", "s": status}                                          … and answered
    {"r", "c", "t", "e": [[seq, sha], …]}                                 events, in the order they came
    {"r", "c", "t", "f": name, "i": id, "d": data}                        a frame that is no event
    {"r", "c", "t", "x": how, "d": detail}                                the connection is over
    {"r", "t", "q": why}                                                  the reader is done: "end" or "left"

`TEXTS` has each different `(run, seq, sha)` once with its full text.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, Protocol, TextIO

import aiohttp
import orjson
import uvloop

from tests.campaign.groups import Group, Member

_SILENCE_S = 6.0
"""Longer than two heartbeats: then the connection is dead, whatever TCP says."""


class Named(Protocol):
    """Who writes: a logical reader on one of its connections."""

    name: str
    connection: int


class Book:
    """The two files."""

    def __init__(self, journal: TextIO, texts: TextIO) -> None:
        self._journal = journal
        self._texts = texts
        self._known: dict[tuple[str, int], set[str]] = {}

    def write(self, reader: Named, **what: Any) -> None:
        line = {"r": reader.name, "c": reader.connection, "t": round(time.monotonic(), 6), **what}
        self._journal.write(orjson.dumps(line).decode() + "\n")

    def sha(self, run: str, seq: int, text: bytes) -> str:
        sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()[:16]
        known = self._known.setdefault((run, seq), set())
        if sha not in known:
            known.add(sha)
            line = {"run": run, "seq": seq, "sha": sha, "text": text.decode("utf-8", "surrogateescape")}
            self._texts.write(json.dumps(line) + "\n")
        return sha

    def flush(self) -> None:
        self._journal.flush()
        self._texts.flush()


class Left(Exception):
    """This connection is given up by the reader's own choice."""


class Reader:
    def __init__(self, book: Book, urls: list[str], session: aiohttp.ClientSession, order: dict[str, Any]) -> None:
        self.name: str = order["reader"]
        self.run: str = order["run"]
        self.connection = 0
        self.cursor = 0
        self.ended = False
        self.stopped = False
        self._book = book
        self._urls = urls
        self._session = session
        self._chance = random.Random(order["seed"])
        self._restless: float = order.get("restless", 0.5)
        self._wires: list[str] = order.get("wires", ["sse", "ws"])
        self._leave_at = time.monotonic() + order["leaves"] if "leaves" in order else None
        self._at: int | None = order.get("relay")
        """Stays with one relay process, where given."""

    def say(self, **what: Any) -> None:
        self._book.write(self, **what)

    async def read(self) -> None:
        """Connection after connection until the end is told, or this reader has had enough."""
        while not self.ended and not self._has_left:
            self.connection += 1
            await self._connect()
            if not self.ended:
                await asyncio.sleep(self._chance.uniform(0.02, 0.3))
        self.say(q="end" if self.ended else "left")

    @property
    def _has_left(self) -> bool:
        return self.stopped or (self._leave_at is not None and time.monotonic() > self._leave_at)

    async def _connect(self) -> None:
        chance = self._chance
        relay = self._at if self._at is not None else chance.randrange(len(self._urls))
        wire = chance.choice(self._wires)
        patience = chance.expovariate(1 / 6) + 0.2 if chance.random() < self._restless else 3600.0
        if self._leave_at is not None:
            patience = min(patience, max(0.05, self._leave_at - time.monotonic()))
        self.say(run=self.run, o=relay, w=wire, k=self.cursor)
        url = f"{self._urls[relay]}/v1/runs/{self.run}/events"
        how, detail = "left", ""
        try:
            async with asyncio.timeout(patience) as scope:
                how, detail = await (self._sse(url) if wire == "sse" else self._websocket(url))
        except TimeoutError:
            how = "left" if scope.expired() else "silent"
        except (aiohttp.ClientError, OSError) as error:
            how, detail = "broken", type(error).__name__
        self.say(x=how, d=detail)

    def _cursor_words(self) -> tuple[dict[str, str], dict[str, str]]:
        """Both ways of saying where we are, as clients do: the query, the header, or a stale query and a header."""
        if self.cursor == 0:
            return {}, {}
        way = self._chance.randrange(3)
        if way == 0:
            return {"after_seq": str(self.cursor)}, {}
        stale = {"after_seq": str(self._chance.randint(0, self.cursor))} if way == 2 else {}
        return stale, {"Last-Event-ID": str(self.cursor)}

    # ── SSE ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def _sse(self, url: str) -> tuple[str, str]:
        query, headers = self._cursor_words()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
        async with self._session.get(
            url, params=query, headers={"Accept": "text/event-stream", **headers}, timeout=timeout
        ) as response:
            self.say(s=response.status)
            if response.status == 204:
                self.ended = True
                return "204", ""
            if response.status != 200:
                return "refused", (await response.text())[:200]
            rest = b""
            try:
                async for data in response.content.iter_any():
                    *blocks, rest = (rest + data).split(b"\n\n")
                    self._blocks(blocks)
            finally:
                response.close()
            return "eof", "rest" if rest.strip() and not rest.startswith(b":") else ""

    def _blocks(self, blocks: list[bytes]) -> None:
        events: list[list[Any]] = []
        for block in blocks:
            frame: dict[bytes, bytes] = {}
            for line in block.split(b"\n"):
                if line and not line.startswith(b":"):
                    name, _, value = line.partition(b": ")
                    frame[name] = value
            if b"data" not in frame:
                continue
            if frame.get(b"event", b"").startswith(b"relay."):
                if events:
                    self.say(e=events)
                    events = []
                at = int(frame[b"id"]) if b"id" in frame else None
                self._frame(frame[b"event"].decode(), at, orjson.loads(frame[b"data"]))
                continue
            seq = int(frame[b"id"])
            events.append([seq, self._book.sha(self.run, seq, frame[b"data"])])
            self.cursor = max(self.cursor, seq)
        if events:
            self.say(e=events)

    def _frame(self, name: str, at: int | None, data: Any) -> None:
        self.say(f=name, i=at, d=data)
        if at is not None:
            self.cursor = max(self.cursor, at)
        if name == "relay.end":
            self.ended = True

    # ── WebSocket ───────────────────────────────────────────────────────────────────────────────────────────────
    async def _websocket(self, url: str) -> tuple[str, str]:
        query = {"after_seq": str(self.cursor)} if self.cursor else {}
        timeout = aiohttp.ClientWSTimeout(ws_close=0.3)
        async with asyncio.timeout(_SILENCE_S):
            # aiohttp answers pings itself, so silence is measured by pings of our own.
            connecting = self._session.ws_connect(url, params=query, timeout=timeout, heartbeat=_SILENCE_S / 2)
            socket = await connecting
        try:
            self.say(s=101)
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                self._message(message.data.encode())
            return f"ws {socket.close_code}", str(socket.exception() or "")
        finally:
            await socket.close()

    def _message(self, text: bytes) -> None:
        data = orjson.loads(text)
        if str(data["type"]).startswith("relay."):
            self._frame(data.pop("type"), data.get("last_seq", data.get("to_seq")), data)
            return
        seq = data["seq"]
        self.say(e=[[seq, self._book.sha(self.run, seq, text)]])
        self.cursor = max(self.cursor, seq)


class Room:
    """All readers of this process."""

    def __init__(self, book: Book, urls: list[str], session: aiohttp.ClientSession) -> None:
        self._book = book
        self._urls = urls
        self._session = session
        self._readers: dict[str, Reader] = {}
        self._members: dict[str, Member] = {}
        self._groups: dict[str, Group] = {}
        self._group_tasks: list[asyncio.Task[None]] = []

    async def serve(self) -> None:
        commands = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        async with asyncio.TaskGroup() as tasks:
            flushing = tasks.create_task(self._flush())
            while line := await commands.readline():
                order = json.loads(line)
                if "stop" in order:
                    for name in order["stop"] or list(self._readers):
                        self._stop(name)
                    continue
                if "group" in order:
                    tasks.create_task(self._read_in(self._group(order["group"], order["seed"], tasks), order))
                else:
                    tasks.create_task(self._read(order))
            for name in [*self._readers, *self._members]:
                self._stop(name)
            flushing.cancel()
            async with asyncio.timeout(5):
                while self._readers or self._members:
                    await asyncio.sleep(0.05)
            for task in self._group_tasks:
                task.cancel()

    def _stop(self, name: str) -> None:
        if name in self._readers:
            self._readers[name].stopped = True
        if name in self._members:
            self._members[name].stopped = True
            self._members[name].gone.set()

    def _group(self, name: str, seed: int, tasks: asyncio.TaskGroup) -> Group:
        if name not in self._groups:
            group = self._groups[name] = Group(self._book, self._urls, self._session, name, seed)
            self._group_tasks.append(tasks.create_task(group.run()))
        return self._groups[name]

    async def _read_in(self, group: Group, order: dict[str, Any]) -> None:
        member = self._members[order["reader"]] = Member(order)
        try:
            await group.read(member)
        finally:
            del self._members[member.name]
            print(json.dumps({"done": member.name, "ended": member.ended}), flush=True)

    async def _read(self, order: dict[str, Any]) -> None:
        await asyncio.sleep(order.get("delay", 0))
        reader = Reader(self._book, self._urls, self._session, order)
        self._readers[reader.name] = reader
        try:
            await reader.read()
        finally:
            del self._readers[reader.name]
            print(json.dumps({"done": reader.name, "ended": reader.ended}), flush=True)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._book.flush()


async def _main(journal: str, texts: str, urls: list[str]) -> None:
    with Path(journal).open("w") as journal_file, Path(texts).open("w") as texts_file:
        book = Book(journal_file, texts_file)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            await Room(book, urls, session).serve()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], sys.argv[2], sys.argv[3:]))
