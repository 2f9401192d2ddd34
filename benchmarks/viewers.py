"""A load client in plain Python, for machines without the C one: same options, same JSON line, about 20x the CPU.

python -m benchmarks.viewers --port P --path /v1/runs/r%d/events --conns N --runs R --replay E [--lat] [--limit S]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import resource
import time
from contextlib import suppress
from typing import Any

from benchmarks.load import FIRST

_EVENT = re.compile(rb'^data:[^\n]*?"t":(\d+),"s":(\d+)', re.M)


class Tally:
    """What all viewers saw together."""

    def __init__(self, conns: int, events: int, *, per_event: bool) -> None:
        self.events = events
        self.per_event = per_event
        self.delivered = self.gaps = self.dups = self.errs = self.closed = self.bytes = 0
        self.latencies: list[int] = []
        self.last_ns = 0
        self.left = conns
        self.done = asyncio.Event()

    def finished(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.done.set()


class Viewer(asyncio.Protocol):
    """One connection. Takes an HTTP/1.1 response, chunked or not, apart just far enough to find the events."""

    def __init__(self, tally: Tally, path: str, port: int) -> None:
        self._tally = tally
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        self._raw = b""
        self._text = b""
        self._chunked: bool | None = None
        """None until the head is complete."""
        self._next = FIRST
        self._count = 0
        self._began = time.monotonic_ns()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def connection_lost(self, _: Exception | None) -> None:
        if self._count < self._tally.events:
            self._tally.closed += 1
            self._tally.finished()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._tally.bytes += len(data)
        self._raw += data
        if self._chunked is None and not self._head():
            return
        self._text += self._unchunked() if self._chunked else self._raw
        if not self._chunked:
            self._raw = b""
        cut = self._text.rfind(b"\n") + 1
        for stamp, number in _EVENT.findall(self._text[:cut]):
            self._see(now, int(stamp), int(number))
        self._text = self._text[cut:]

    def _head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return False
        if b" 200 " not in head.split(b"\r\n")[0]:
            self._tally.errs += 1
            self._transport.abort()
        self._chunked = b"transfer-encoding: chunked" in head.lower()
        self._raw = rest
        return True

    def _unchunked(self) -> bytes:
        parts = []
        while True:
            size, found, rest = self._raw.partition(b"\r\n")
            length = int(size, 16) if found else 0
            if not found or len(rest) < length + 2:
                return b"".join(parts)
            parts.append(rest[:length])
            self._raw = rest[length + 2 :]

    def _see(self, now: int, stamp: int, number: int) -> None:
        tally = self._tally
        tally.gaps += number > self._next
        tally.dups += number < self._next
        self._next = number + 1
        self._count += 1
        tally.delivered += 1
        tally.last_ns = now
        if tally.per_event:
            tally.latencies.append(now - stamp)
        if self._count == tally.events:
            if not tally.per_event:
                tally.latencies.append(now - self._began)
            tally.finished()


async def _main(options: argparse.Namespace) -> dict[str, Any]:
    tally = Tally(options.conns, options.replay, per_event=options.lat)
    loop, began, cpu = asyncio.get_running_loop(), time.monotonic_ns(), time.process_time()
    gate = asyncio.Semaphore(options.inflight)

    async def connect(number: int) -> None:
        path = options.path.replace("%d", str(number % options.runs))
        async with gate:
            try:
                await loop.create_connection(lambda: Viewer(tally, path, options.port), "127.0.0.1", options.port)
            except OSError:
                tally.errs += 1
                tally.finished()

    await asyncio.gather(*(connect(number) for number in range(options.conns)))
    with suppress(TimeoutError):
        await asyncio.wait_for(tally.done.wait(), options.limit)
    secs = max(1, tally.last_ns - began) / 1e9
    ranked = sorted(tally.latencies) or [0]

    def quantile(q: float) -> float:
        return round(ranked[min(len(ranked) - 1, int(q * len(ranked)))] / 1e6, 3)

    return {
        **{name: getattr(tally, name) for name in ("delivered", "gaps", "dups", "errs", "closed")},
        "secs": secs,
        "p50_ms": quantile(0.5),
        "p90_ms": quantile(0.9),
        "p99_ms": quantile(0.99),
        "p999_ms": quantile(0.999),
        "max_ms": ranked[-1] / 1e6,
        "cli_cpu_pct": round(100 * (time.process_time() - cpu) / secs, 1),
        "MBps": round(tally.bytes / secs / 1e6, 1),
    }


def main() -> None:
    parse = argparse.ArgumentParser()
    parse.add_argument("--path", required=True)
    for name in ("port", "conns", "runs", "replay"):
        parse.add_argument(f"--{name}", type=int, required=True)
    parse.add_argument("--limit", type=float, default=60)
    parse.add_argument("--inflight", type=int, default=128)
    parse.add_argument("--lat", action="store_true")
    options = parse.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))
    print(json.dumps(asyncio.run(_main(options))))


if __name__ == "__main__":
    main()
