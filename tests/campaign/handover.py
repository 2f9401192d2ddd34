"""`python -m tests.campaign.handover`: where the time goes when a run's owner drains, step by step.

Few runs, few viewers, one drain after the other, and everything that happens stamped by somebody else than relay: Redis
(MONITOR shows what the scripts do, with the server's clock), the scripted upstream (its requests), the readers (what they
were shown). All of it is one machine, so one clock. Per handed-over run, in ms since SIGTERM:

    released   the owner gave its lease back (its followers are told by that very script)
    claimed    somebody else has it
    drain      it asked the upstream for what is behind the log's end (`follow=false`)
    appended   the first new event is durable
    primed     it said so
    get run    it asked whether the run has ended
    follow     it asked for the live stream
    shown      the first new event reached a viewer on a replica that was not drained

and the greatest lateness any of those viewers saw. `--fresh S`: on every other replica another viewer of each run joins S
seconds before the SIGTERM, as viewers do who come from a replica that was drained before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import time
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from tests.campaign.checker import rows, summary
from tests.campaign.conduct import Records
from tests.campaign.fleet import Relay
from tests.campaign.servers import Node
from tests.campaign.stage import Audience
from tests.support.ports import free_port
from tests.support.upstream_client import ROOT, UpstreamClient

STEPS = ("released", "claimed", "drain", "appended", "primed", "get run", "follow", "shown")
_LINE = re.compile(r'^\+?(\d+\.\d+) \[0 lua\] "(\w+)" "([^"]+)"(?: "([^"]*)")?(?: "([^"]*)")?')
Marks = list[tuple[float, str, str]]
"""(wall time, what, run)."""


async def monitor(port: int, marks: Marks) -> None:
    """What the scripts do, as Redis itself says it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"MONITOR\r\n")
    while line := await reader.readline():
        found = _LINE.match(line.decode("utf-8", "replace"))
        if found is None:
            continue
        at, command, key, first, _ = found.groups()
        run = key.rpartition(":")[2]
        if command == "SPUBLISH" and first == "released":
            marks.append((float(at), "released", run))
        elif command == "HSET" and first in ("owner", "primed"):
            marks.append((float(at), {"owner": "claimed", "primed": "primed"}[first], run))
        elif command == "XADD":
            marks.append((float(at), "appended", run))


class Fleet:
    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.options = options
        self.out = out
        self.marks: Marks = []
        self.relays: list[Relay] = []
        self.runs = [f"hand-{number}" for number in range(options.runs)]
        self.skew = time.time() - time.monotonic()
        self._chance = random.Random(options.seed)
        self.drains: list[dict[str, Any]] = []
        self.up: UpstreamClient
        self.audience: Audience

    async def start(self, stack: AsyncExitStack) -> None:
        self.up = await stack.enter_async_context(
            UpstreamClient.spawn("--heartbeat", "5", "--token", "upstream-secret")
        )
        redis = Node(self.out / "redis", ["--save", "", "--maxmemory-policy", "noeviction"])
        stack.push_async_callback(redis.close)
        await redis.start()
        watching = asyncio.create_task(monitor(redis.port, self.marks))
        stack.callback(watching.cancel)
        ports = [(free_port(), free_port()) for _ in range(self.options.replicas)]
        # Before the relays, so that it ends after them: a reader leaves when its connection is over.
        urls = [f"http://127.0.0.1:{port}" for port, _ in ports]
        self.audience = await stack.enter_async_context(Audience(self.out, urls))
        records = Records(self.out, stack).open("processes")
        given = {name.upper().replace(".", "__"): value for name, value in (p.split("=", 1) for p in self.options.set)}
        for index in range(self.options.replicas):
            relay = Relay(index, self.out, records, ports=ports[index],
                          redis_url=f"redis://127.0.0.1:{redis.port}/0", upstream_url=self.up.url,
                          tree=self.options.tree.absolute(), prefix="relay", settings=given,
                          impatience={"LOG__FORMAT": "json"})  # fmt: skip
            self.relays.append(relay)
            stack.callback(asyncio.create_task(relay.keep()).cancel)
        stack.push_async_callback(self._close)
        for relay in self.relays:
            await relay.ready()

    async def _close(self) -> None:
        await asyncio.gather(*(relay.close() for relay in self.relays))

    async def play(self) -> None:
        rate = self.options.rate
        await self.up.synth(self.runs, rate=rate, count=int(rate * 600))
        for run in self.runs:
            for index in range(len(self.relays)):
                self._view(run, index, "base")

    def _view(self, run: str, relay: int, name: str) -> None:
        self.audience.send({"reader": f"{run}/{name}/{relay}", "run": run, "relay": relay, "restless": 0.0,
                            "wires": ["sse"], "seed": self._chance.getrandbits(32)})  # fmt: skip

    async def drain(self, number: int) -> None:
        """The replica that owns most is drained, and started again."""
        owners = self._owners()
        index = max(range(len(self.relays)), key=lambda i: sum(owner == i for owner in owners.values()))
        if self.options.fresh is not None:
            for run in self.runs:
                for other in range(len(self.relays)):
                    if other != index:
                        self._view(run, other, f"fresh{number}")
            await asyncio.sleep(self.options.fresh)
            owners = self._owners()
        owned = [run for run, owner in owners.items() if owner == index]
        self.drains.append({"relay": index, "t0": time.time(), "owned": owned})
        await self.relays[index].take_down(signal.SIGTERM, 0.0, 30.0)
        await self.relays[index].ready()
        await asyncio.sleep(self.options.settle)

    def _owners(self) -> dict[str, int]:
        latest: dict[str, tuple[str, int]] = {}
        for relay in self.relays:
            for row in rows(relay.log):
                if row.get("event") == "pump.claimed":
                    latest[row["run_id"]] = max(latest.get(row["run_id"], ("", -1)), (row["timestamp"], relay.index))
        return {run: index for run, (_, index) in latest.items()}


async def measure(options: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        fleet = Fleet(options, out)
        await fleet.start(stack)
        await fleet.play()
        await asyncio.sleep(options.settle)
        for number in range(options.drains):
            await fleet.drain(number)
        asked = await fleet.up.requests()
        said = {run: {event["seq"]: _wall(event["ts"]) for event in await fleet.up.truth(run)} for run in fleet.runs}
    for one in asked:
        follow = one["query"].get("follow")
        what = {"true": "follow", "false": "drain"}.get(follow or "", "get run")
        fleet.marks.append((one["at"] + fleet.skew, what, one["path"].split("/runs/")[-1].split("/")[0]))
    shown = _shown(out, fleet.skew)
    return [_steps(fleet, said, shown, drain, run) for drain in fleet.drains for run in drain["owned"]]


def _shown(out: Path, skew: float) -> list[tuple[float, float, int, str, int]]:
    """(wall time, connection since, relay, run, seq) of every event shown."""
    at: dict[str, tuple[float, int, str]] = {}
    found = []
    for row in rows(out / "journal.jsonl"):
        if "o" in row:
            at[row["r"]] = (row["t"] + skew, row["o"], row["run"])
        for seq, _ in row.get("e", ()):
            since, relay, run = at[row["r"]]
            found.append((row["t"] + skew, since, relay, run, seq))
    return found


def _steps(fleet: Fleet, said: Any, shown: Any, drain: dict[str, Any], run: str) -> dict[str, Any]:
    t0 = drain["t0"]
    row: dict[str, Any] = {"run": run, "relay": drain["relay"]}
    marks = sorted(mark for mark in fleet.marks if mark[2] == run and t0 <= mark[0] < t0 + 8)
    at = t0
    for step in STEPS[:2]:
        at = next((when for when, what, _ in marks if what == step and when >= at), float("nan"))
        row[step] = round((at - t0) * 1000, 1)
    for step in STEPS[2:-1]:
        when = next((when for when, what, _ in marks if what == step and when >= at), float("nan"))
        row[step] = round((when - t0) * 1000, 1)
    durable = t0 + row["appended"] / 1000
    elsewhere = [one for one in shown if one[3] == run and one[2] != drain["relay"] and one[1] < t0 - 0.05]
    row["shown"] = round((min((t for t, *_ in elsewhere if t >= durable), default=float("nan")) - t0) * 1000, 1)
    # What is said after the live stream is open again has other reasons to be late (a relay that starts, for one).
    until = t0 + row["follow"] / 1000 + 0.02
    late = [t - said[run][seq] for t, _, _, _, seq in elsewhere if t > t0 and t0 - 0.2 < said[run].get(seq, 0) < until]
    row["late"] = round(max(late, default=0.0) * 1000, 1)
    return row


def _wall(ts: str) -> float:
    return datetime.fromisoformat(ts.replace("Z", "+00:00")).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.handover", description=__doc__)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--drains", type=int, default=6)
    parser.add_argument("--rate", type=float, default=50.0, help="events a second and run: the resolution of `late`")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds of quiet before each drain")
    parser.add_argument("--fresh", type=float, help="other viewers join elsewhere so long before each drain")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--tree", type=Path, default=ROOT)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="handover-") as folder:
        found = uvloop.run(measure(options, Path(folder)))
    for row in found:
        print(json.dumps(row))
    print(f"{len(found)} hand-overs; ms since SIGTERM, then the greatest lateness:")
    for step in (*STEPS, "late"):
        print(f"  {step:9} {summary([row[step] for row in found if row[step] == row[step]])}")


if __name__ == "__main__":
    main()
