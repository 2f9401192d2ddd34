"""Synthetic load: `message.delta` events stamped for `sseload` (load/README.md), at a rate, on many runs at once.

`data` begins `{"t":<monotonic ns>,"s":<1000000000 + seq - 1>`, without a space. One loop for all runs; each
event costs one `bytes %` and one write per follower that keeps up (`Stream.take`); who does not reads the log instead.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from relay.demo import wire
from relay.demo.ledger import Run
from tests.support.upstream_stream import Stream

BASE = 1_000_000_000
_UNITS_PER_TURN = 64
_SHORTEST_SLEEP_S = 0.0005


class Track:
    """One run's synthetic events."""

    def __init__(self, run: Run, followers: list[Stream], *, size: int, count: int, keep: int | None) -> None:
        self.run = run
        self.followers = followers
        self.left = count
        self.keep = keep
        self._seq = run.last_seq
        self._template = _template(run.run_id, size)

    def emit(self, burst: int, ts: bytes) -> None:
        lagging = False
        for _ in range(min(burst, self.left)):
            self._seq = seq = self._seq + 1
            framed = self._template % (seq, time.monotonic_ns(), BASE + seq - 1, seq, seq, ts)
            self.run.seqs.append(seq)
            self.run.frames.append(framed)
            for follower in self.followers:
                lagging |= not follower.take(seq, framed)
        self.left -= min(burst, self.left)
        if lagging:
            self.run.wake()
        if self.keep is not None and len(self.run.seqs) >= 2 * self.keep:
            del self.run.seqs[: -self.keep]
            del self.run.frames[: -self.keep]

    def complete(self) -> None:
        stamp = b'{"t":%d,"s":%d}' % (time.monotonic_ns(), BASE + self.run.last_seq)
        self.run.append("run.completed", stamp)


def _template(run_id: str, size: int) -> bytes:
    """A frame with six holes: seq, t, s, event number, seq, ts. `size` is about that of `data`."""
    fixed = len('{"t":100000000000000,"s":1000000000,"content_delta":"","role":"assistant"}')
    data = b'{"t":%%d,"s":%%d,"content_delta":"%b","role":"assistant"}' % (b"x" * max(0, size - fixed))
    event_id = str(uuid.uuid4())[:24].encode()
    return (
        b'id: %%d\nevent: message.delta\ndata: {"data":%b,"event_id":"%b%%012x","run_id":"%b","seq":%%d,"ts":"%%b",'
        b'"type":"message.delta"}\n\n' % (data, event_id, run_id.encode())
    )


async def synth(tracks: Sequence[Track], *, rate: float | None, burst: int, end: bool) -> None:
    """Emit every track's events: `rate` events a second on each run (None: as fast as it goes), `burst` at a time."""
    units = len(tracks) * max(-(-track.left // burst) for track in tracks)
    per_s = None if rate is None else rate * len(tracks) / burst
    clock = asyncio.get_running_loop().time
    began, done = clock(), 0
    while done < units:
        due = units if per_s is None else min(units, int((clock() - began) * per_s) + 1)
        turn = range(done, min(due, done + _UNITS_PER_TURN))
        ts = wire.timestamp(datetime.now(UTC)).encode()
        for unit in turn:
            tracks[unit % len(tracks)].emit(burst, ts)
        done = turn.stop
        idle = 0.0 if per_s is None or done < due else began + done / per_s - clock()
        await asyncio.sleep(max(idle, _SHORTEST_SLEEP_S) if done == due and per_s else 0)
    for track in tracks if end else ():
        track.complete()
