"""A load client in plain Python, for machines without the C one: its options, its line of JSON, about 20 times its CPU.

    python -m benchmarks.viewers --port P --path /v1/runs/run-%d/events --conns N --runs R [--pub bin:PORT …]

Publisher and viewers share a process, so that they share a clock and the closed loop. It publishes as the binary feed only
and speaks SSE and WebSocket. What it connects with is in `viewer.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import struct
import time
from collections.abc import Callable
from typing import Any

from benchmarks.contest import payload
from benchmarks.machine import cpu_s, rss_kb
from benchmarks.viewer import Tally, Viewer


class Publisher:
    """Numbers the events of each run and writes them to the feed."""

    def __init__(self, writer: asyncio.StreamWriter, runs: int, size: int) -> None:
        self._writer = writer
        self._next = [0] * runs
        self._size = size
        self.sent = 0

    def publish(self, run: int) -> None:
        event = payload(self._next[run], self._size)
        self._writer.write(struct.pack("<II", run, len(event)) + event)
        self._next[run] += 1
        self.sent += 1

    async def open_loop(self, per_s: float, secs: float) -> None:
        began, total = time.monotonic(), int(per_s * secs)
        while self.sent < total:
            due = min(total, int((time.monotonic() - began) * per_s) + 1)
            while self.sent < due:
                self.publish(self.sent % len(self._next))
            await asyncio.sleep(max(0.0005, began + self.sent / per_s - time.monotonic()))

    async def closed_loop(self, events: int, burst: int, room: Callable[[int], bool]) -> None:
        """`room` says whether the next burst may go, given how many events will then be on their way or delivered."""
        while self.sent < events:
            if room(self.sent + burst):
                for _ in range(min(burst, events - self.sent)):
                    self.publish(self.sent % len(self._next))
            await asyncio.sleep(0.0005)


async def _main(options: argparse.Namespace) -> dict[str, Any]:
    tally = Tally(options.replay, per_event=options.lat or not options.replay)
    pids = [int(pid) for pid in options.pids.split(",") if pid]
    rss, cpu, began = [rss_kb(pids)], cpu_s(pids), time.monotonic()
    viewers = await _connected(options, tally, began + options.limit)
    connected_s, connecting_cpu = time.monotonic() - began, cpu_s(pids) - cpu
    if not options.replay:
        await asyncio.sleep(options.settle_ms / 1000)
        tally.delivered, cpu, began = 0, cpu_s(pids), time.monotonic()
    own = time.process_time()
    rss.append(rss_kb(pids))
    readers = options.conns - options.stalled
    sent, expected = await _measured(options, tally, readers, began + options.limit)
    rss.append(rss_kb(pids))
    wall, used, own = time.monotonic() - began, cpu_s(pids) - cpu, time.process_time() - own
    secs = max(1e-6, tally.last_ns / 1e9 - began) if tally.last_ns else wall
    del viewers
    return {
        "sent": sent, "expected": expected, **tally.told(), "secs": secs,
        "conn_per_s": options.conns / connected_s, "conn_srv_cpu_us": 1e6 * connecting_cpu / max(1, options.conns),
        "deliv_per_s": tally.delivered / secs, "deliv_per_srv_cpu_s": tally.delivered / used if used else 0,
        "srv_cpu_pct": 100 * used / wall, "cli_cpu_pct": 100 * own / wall, "MBps": tally.bytes / secs / 1e6,
        "late_pub": 0, "rss1_kb": rss[1], "rss2_kb": rss[2],
        "rss_per_conn_b": 1024 * (rss[1] - rss[0]) / max(1, options.conns),
    }  # fmt: skip


async def _connected(options: argparse.Namespace, tally: Tally, deadline: float) -> list[Viewer]:
    """All viewers, each with the head of its response; those that failed are counted."""
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(options.inflight)

    async def connect(number: int) -> Viewer | None:
        viewer = Viewer(tally, options.path.replace("%d", str(number % options.runs)), options.port, ws=options.ws)
        async with gate:
            try:
                async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                    await loop.create_connection(lambda: viewer, "127.0.0.1", options.port)
                    await viewer.established
            except (OSError, TimeoutError):
                tally.errs += 1
                return None
        if number < options.stalled:
            viewer.stall()
        return viewer

    found = await asyncio.gather(*(connect(number) for number in range(options.conns)))
    return [viewer for viewer in found if viewer is not None]


async def _measured(options: argparse.Namespace, tally: Tally, readers: int, deadline: float) -> tuple[int, int]:
    """Events sent, and deliveries they should have made."""
    if options.idle:
        await asyncio.sleep(options.idle)
        return 0, 0
    if options.replay:
        await _until(lambda: tally.done >= readers, deadline)
        return 0, options.replay * readers
    _, writer = await asyncio.open_connection("127.0.0.1", int(options.pub.removeprefix("bin:")))
    publisher = Publisher(writer, options.runs, options.size)
    if options.rate:
        await publisher.open_loop(options.rate * options.runs, options.secs)
    else:
        window: int = options.window

        def room(then: int) -> bool:
            return bool(tally.delivered * options.runs >= (then - window) * readers)

        await asyncio.wait_for(publisher.closed_loop(options.events, options.burst, room), options.limit)
    expected = publisher.sent * readers // options.runs
    await _until(lambda: tally.delivered >= expected, min(deadline, time.monotonic() + 10))
    writer.close()
    return publisher.sent, expected


async def _until(fact: Callable[[], bool], deadline: float) -> None:
    while not fact() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


def main() -> None:
    parse = argparse.ArgumentParser()
    parse.add_argument("--path", required=True)
    for name, default in {"port": 0, "conns": 1, "runs": 1, "replay": 0, "inflight": 128, "events": 0}.items():
        parse.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"burst": 100, "window": 200, "stalled": 0, "size": 200, "settle-ms": 300}.items():
        parse.add_argument(f"--{name}", type=int, default=default)
    for name, seconds in {"limit": 60.0, "rate": 0.0, "secs": 5.0, "idle": 0.0}.items():
        parse.add_argument(f"--{name}", type=float, default=seconds)
    parse.add_argument("--pub", default="none")
    parse.add_argument("--pids", default="")
    parse.add_argument("--lat", action="store_true")
    parse.add_argument("--ws", action="store_true")
    options = parse.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536) if hard > 0 else 65536, hard))
    print(json.dumps(asyncio.run(_main(options))))


if __name__ == "__main__":
    main()
