"""The scripted upstream as a process: its options, its first line of output (the URL), its end by SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from relay.demo.recording import read_recording

if TYPE_CHECKING:
    from tests.support.upstream import ScriptedUpstream


async def _serve(kind: type[ScriptedUpstream], options: argparse.Namespace) -> None:
    up = kind(token=options.token, heartbeat_s=options.heartbeat, uuid_ids=options.uuid_ids, control=True)
    await up.start(options.host, options.port)
    if options.script is not None:
        up.every_create = read_recording(options.script)
    print(up.url, flush=True)  # who started us waits for this line
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await up.stop()


def main(kind: type[ScriptedUpstream]) -> None:
    """`kind` is handed in: under `-m` it is a class of `__main__`."""
    parse = argparse.ArgumentParser(prog="python -m tests.support.upstream", description="Prints its URL, then serves.")
    parse.add_argument("--host", default="127.0.0.1")
    parse.add_argument("--port", type=int, default=0)
    parse.add_argument("--token", help="the bearer token everybody needs; none by default")
    parse.add_argument("--heartbeat", type=float, default=15.0, help="seconds of silence before a ping")
    parse.add_argument(
        "--uuid-ids", action="store_true", help="answer 422 to run ids that are no UUIDs, as the real one"
    )
    parse.add_argument("--script", type=Path, help="a *.jsonl recording that every POSTed run plays")
    uvloop.run(_serve(kind, parse.parse_args()))
