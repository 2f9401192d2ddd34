"""The viewer process: hundreds of `EventSource`s and WebSockets, as cheap as sockets get, who write down what they see.

Run as `python -m tests.campaign.rolling.viewers FOLDER NUMBER PORT`; the viewers come as one JSON line on stdin
(`[{"r": name, "run", "w": "sse"|"ws", "at": seconds from now}, …]`), and the end of stdin ends it. Twice a second it
says on stdout `{"open", "seen", "ended", "lag"}`. The journal is that of `tests.campaign.readers`, but `o` is the local
port of the connection (the balancer knows which replica it led to) and there is one more field: `n`, 1 for a reconnect.

How they behave: an SSE viewer is a browser's `EventSource` (WHATWG HTML §9.2): whatever ends a connection, it comes back
after the last `retry:` it was told, 3 s by default, with `Last-Event-ID` of the last *dispatched* event. Any status but
200 ends an `EventSource` for good; the page then makes another one, after `Retry-After`, with `after_seq` in its URL.
A WebSocket viewer comes back with `after_seq` after `after_ms` of the goodbye, else 3 s. Both leave at `relay.end`.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop

from tests.campaign.readers import Book

DEFAULT_RETRY_MS = 3000
Row = dict[str, Any]


class Viewer:
    """One person with one page: a cursor, and connections one after the other."""

    def __init__(self, office: Office, order: Row) -> None:
        self.name: str = order["r"]
        self.run: str = order["run"]
        self.wire: str = order["w"]
        self.connection = 0
        self.base = 0
        """`after_seq` in the URL: fixed for the life of an EventSource, as a page has it."""
        self.last_id: int | None = None
        self.retry_ms = DEFAULT_RETRY_MS
        self.retry_after_s: float | None = None
        self.open = self.seen = self.ended = False
        self._office = office

    @property
    def cursor(self) -> int:
        return max(self.base, self.last_id or 0)

    def say(self, **what: Any) -> None:
        self._office.book.write(self, **what)

    def connect(self) -> None:
        if not self._office.closing:
            self._office.own(self._connect())

    async def _connect(self) -> None:
        self.connection += 1
        kind = Sse if self.wire == "sse" else WebSocket
        try:
            await asyncio.get_running_loop().create_connection(lambda: kind(self), "127.0.0.1", self._office.port)
        except OSError as error:
            self.say(run=self.run, o=0, w=self.wire, k=self.cursor, n=int(self.connection > 1))
            self.over("broken", type(error).__name__)

    def opened(self, port: int) -> None:
        self.say(run=self.run, o=port, w=self.wire, k=self.cursor, n=int(self.connection > 1))

    def answered(self, status: int) -> None:
        self.say(s=status)
        self.open = status in (200, 101)

    def over(self, how: str, detail: str = "") -> None:
        """The connection is over; come back if there is a reason to."""
        self.open = False
        self.say(x=how, d=detail)
        if self.ended or how == "204":
            self.ended = True
            self.say(q="end")
            return
        if how == "refused":  # this EventSource is dead: the page makes another one
            self.base, self.last_id = self.cursor, None
        pause_s = self.retry_ms / 1000 if self.retry_after_s is None else self.retry_after_s
        self.retry_after_s = None
        asyncio.get_running_loop().call_later(pause_s, self.connect)

    def events(self, events: list[tuple[int, bytes]]) -> None:
        self.seen = True
        book = self._office.book
        self.say(e=[[seq, book.sha(self.run, seq, text)] for seq, text in events])
        self.last_id = events[-1][0]

    def frame(self, name: str, at: int | None, data: Row) -> None:
        self.say(f=name, i=at, d=data)
        if at is not None:
            self.last_id = at
        if name == "relay.end":
            self.ended = True


class Connection(asyncio.Protocol):
    """What both wires share: one request, its head, then a body in pieces."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.buffer = b""
        self.status = 0
        self.how = ""
        """How it ended, where bytes said so."""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self.viewer.opened(transport.get_extra_info("sockname")[1])
        query = f"?after_seq={self.viewer.base}" if self.viewer.base else ""
        head = f"GET /v1/runs/{self.viewer.run}/events{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n{self.head()}\r\n"
        self.transport.write(head.encode())

    def head(self) -> str:
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.status and not self._answered():
            return
        self.body()

    def _answered(self) -> bool:
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        self.buffer = rest
        self.status = int(head.split(b" ", 2)[1])
        self.viewer.answered(self.status)
        if self.status == 204:
            self.finish("204")
        elif self.status not in (200, 101):
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"retry-after:"):
                    self.viewer.retry_after_s = float(line.partition(b":")[2])
            self.finish("refused")
        return not self.how

    def body(self) -> None:
        raise NotImplementedError

    def finish(self, how: str) -> None:
        """The bytes themselves say that it is over."""
        if not self.how:
            self.how = how
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        how = self.how or ("broken" if self.status else "unanswered")
        self.viewer.over(how, type(error).__name__ if error is not None else "")


class Sse(Connection):
    def __init__(self, viewer: Viewer) -> None:
        super().__init__(viewer)
        self.text = b""

    def head(self) -> str:
        last = self.viewer.last_id
        return "Accept: text/event-stream\r\n" + (f"Last-Event-ID: {last}\r\n" if last is not None else "")

    def body(self) -> None:
        pieces = list(self._chunks())
        if pieces:
            *blocks, self.text = b"".join((self.text, *pieces)).split(b"\n\n")
            self._blocks(blocks)

    def _chunks(self) -> Iterator[bytes]:
        """RFC 9112 §7.1; an empty one is the proper end."""
        while True:
            size_text, found, rest = self.buffer.partition(b"\r\n")
            if not found:
                return
            size = int(size_text, 16)
            if len(rest) < size + 2:
                return
            self.buffer = rest[size + 2 :]
            if not size:
                self.finish("eof")
                return
            yield rest[:size]

    def _blocks(self, blocks: list[bytes]) -> None:
        events: list[tuple[int, bytes]] = []
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if line and not line.startswith(b":"))
            if b"retry" in fields and fields[b"retry"].isdigit():
                self.viewer.retry_ms = int(fields[b"retry"])
            if b"data" not in fields:
                continue
            if b"event" not in fields:
                events.append((int(fields[b"id"]), fields[b"data"]))
                continue
            if events:
                self.viewer.events(events)
                events = []
            at = int(fields[b"id"]) if b"id" in fields else None
            self.viewer.frame(fields[b"event"].decode(), at, orjson.loads(fields[b"data"]))
        if events:
            self.viewer.events(events)


class WebSocket(Connection):
    def head(self) -> str:
        key = base64.b64encode(os.urandom(16)).decode()
        return f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.viewer.base = self.viewer.cursor
        super().connection_made(transport)

    def body(self) -> None:
        for opcode, payload in self._frames():
            if opcode == 0x1:
                self._message(payload)
            elif opcode == 0x9:
                self._send(0xA, payload)
            elif opcode == 0x8:
                self._send(0x8, payload[:2])
                self.finish(f"ws {int.from_bytes(payload[:2], 'big') if payload else 1005}")
                return

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """RFC 6455 §5.2, unmasked and unfragmented, as a server of ours sends them."""
        while len(self.buffer) >= 2:
            size, start = self.buffer[1] & 0x7F, 2
            if size > 125:
                start = 4 if size == 126 else 10
                size = int.from_bytes(self.buffer[2:start], "big")
            if len(self.buffer) < start + size:
                return
            opcode, payload = self.buffer[0] & 0x0F, self.buffer[start : start + size]
            self.buffer = self.buffer[start + size :]
            yield opcode, payload

    def _send(self, opcode: int, payload: bytes) -> None:
        self.transport.write(bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload)  # a mask of zeros

    def _message(self, text: bytes) -> None:
        data = orjson.loads(text)
        if not data["type"].startswith("relay."):
            self.viewer.events([(data["seq"], text)])
            return
        if "after_ms" in data:
            self.viewer.retry_ms = data["after_ms"]
        self.viewer.frame(data.pop("type"), data.get("last_seq", data.get("to_seq")), data)


class Office:
    """All viewers of this process."""

    def __init__(self, book: Book, port: int) -> None:
        self.book = book
        self.port = port
        self.closing = False
        self._viewers: list[Viewer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def own(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def serve(self) -> None:
        orders = asyncio.StreamReader(limit=1 << 24)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        saying = asyncio.create_task(self._say_for_ever())
        for order in orjson.loads(await orders.readline()):
            self._viewers.append(Viewer(self, order))
            loop.call_later(order["at"], self._viewers[-1].connect)
        await orders.read()  # its end is the word to leave
        self.closing = True
        for viewer in self._viewers:
            if not viewer.ended:
                viewer.say(q="left")
        saying.cancel()
        self.book.flush()

    async def _say_for_ever(self) -> None:
        while True:
            due = time.monotonic() + 0.5
            await asyncio.sleep(0.5)
            lag = time.monotonic() - due
            counts = {name: sum(getattr(v, name) for v in self._viewers) for name in ("open", "seen", "ended")}
            print(orjson.dumps({**counts, "lag": round(lag, 4)}).decode(), flush=True)
            self.book.flush()


async def _main(folder: Path, number: str, port: int) -> None:
    journal, texts = folder / f"journal-{number}.jsonl", folder / f"texts-{number}.jsonl"
    with journal.open("w", buffering=1 << 20) as journal_file, texts.open("w", buffering=1 << 20) as texts_file:
        await Office(Book(journal_file, texts_file), port).serve()


if __name__ == "__main__":
    random.seed(int(sys.argv[2]))
    uvloop.run(_main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
