"""The scripted upstream with a binary feed: what arrives on a socket becomes events of its runs, at once.

    python -m benchmarks.upstream --runs N --port P --feed F      prints "ready", then serves

The feed is the one the other servers of the benchmark take: `[u32 run][u32 size][JSON object]…`, little-endian. The
object becomes the `data` of a `message.delta` of run `run-<n>`, with one short `content_delta` behind its own fields, so
that it is a token of a model's answer as Arkloop would write it (but for `event_id`, to keep events small).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import struct
from datetime import UTC, datetime

import uvloop

from relay.demo import wire
from relay.demo.ledger import Run
from tests.support.upstream import ScriptedUpstream
from tests.support.upstream_stream import Stream

PREFIX = "run-"
DELTA = "token "
"""The text of every event."""
_HEAD = struct.Struct("<II")


class Track:
    """One run as the feed writes it."""

    def __init__(self, run: Run, followers: list[Stream]) -> None:
        self.run = run
        self._followers = followers
        self._form = b'id: %%d\nevent: message.delta\ndata: {"data":%%b,"content_delta":"%b"},"run_id":"%b","seq":%%d,' % (
            DELTA.encode(), run.run_id.encode()
        ) + b'"ts":"%b","type":"message.delta"}\n\n'  # fmt: skip

    def write(self, data: bytes, ts: bytes) -> bool:
        """Append one event and hand it to every follower at rest; True: some follower lags and must be woken."""
        run = self.run
        seq = len(run.seqs) + 1
        framed = self._form % (seq, data[:-1], seq, ts)
        run.seqs.append(seq)
        run.frames.append(framed)
        lagging = False
        for follower in self._followers:
            lagging |= not follower.take(seq, framed)
        return lagging


class Feed(asyncio.Protocol):
    """One connection of a publisher."""

    def __init__(self, tracks: list[Track]) -> None:
        self._tracks = tracks
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        data, at = self._rest + data, 0
        ts = wire.timestamp(datetime.now(UTC)).encode()
        lagging: set[int] = set()
        while len(data) - at >= _HEAD.size:
            number, size = _HEAD.unpack_from(data, at)
            start = at + _HEAD.size
            if len(data) - start < size:
                break
            at = start + size
            if self._tracks[number].write(data[start:at], ts):
                lagging.add(number)
        self._rest = data[at:]
        for number in lagging:
            self._tracks[number].run.wake()


async def main(runs: int, port: int, feed: int) -> None:
    up = ScriptedUpstream()
    await up.start(port=port)
    ids = [up.add_run(run_id=f"{PREFIX}{number}") for number in range(runs)]
    tracks = [Track(up.run(run_id), up.traffic.followers(run_id)) for run_id in ids]
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    await loop.create_server(lambda: Feed(tracks), "127.0.0.1", feed)
    print("ready", flush=True)  # who started us waits for this line
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


if __name__ == "__main__":
    parse = argparse.ArgumentParser(prog="python -m benchmarks.upstream")
    for name in ("runs", "port", "feed"):
        parse.add_argument(f"--{name}", type=int, required=True)
    options = parse.parse_args()
    uvloop.run(main(options.runs, options.port, options.feed))
