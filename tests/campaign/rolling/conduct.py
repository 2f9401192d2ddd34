"""One rolling restart from start to end: builds the parts, restarts every replica, ends the runs, keeps the record.

The folder afterwards: `meta.json`, `restarts.jsonl`, `processes.jsonl`, `balancer.jsonl`, `journal-*.jsonl` and
`texts-*.jsonl` (viewers), `truth.jsonl`, `runs.jsonl`, and the relays' own logs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.conduct import Records
from tests.campaign.fleet import Relay
from tests.campaign.servers import Node
from tests.campaign.stage import deltas
from tests.support.ports import free_port
from tests.support.upstream_client import ROOT, UpstreamClient

GRACE_S = 30.0
"""What Kubernetes gives a pod between SIGTERM and SIGKILL."""
_REDIS = ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
_SETTINGS: dict[str, object] = {"INGEST__LINGER_S": 1.0, "LOG__FORMAT": "json"}
"""Everything that is measured is the product's default; only the wait after a run's end is cut short."""
_WEBSOCKETS = 5
"""One viewer of a run in so many speaks WebSocket."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Options:
    viewers: int = 1000
    runs: int = 50
    replicas: int = 3
    seed: int = 1
    out: Path = field(default_factory=lambda: Path("rolling"))
    settings: dict[str, str] = field(default_factory=dict)
    """`SECTION.KEY` -> value, for the relays."""
    rate: float = 5.0
    """Events a second and run."""
    offices: int = 2
    """Processes the viewers are in."""
    quiet_s: float = 5.0
    """How long nothing happens before the first restart and after the last viewer is back."""
    between_s: float = 0.0
    """How long to wait after a replica is ready before the next is stopped (Kubernetes: minReadySeconds)."""
    patience_s: float = 60.0
    """How long everybody may take to be there, to be back, and to be told the end."""
    tree: Path = ROOT


class Office:
    """One viewer process, from outside."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = {"open": 0, "seen": 0, "ended": 0, "lag": 0.0}
        self.lag_s = 0.0

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.said = json.loads(line)
            self.lag_s = max(self.lag_s, self.said["lag"])


@asynccontextmanager
async def office(folder: Path, number: int, port: int, viewers: list[dict[str, Any]]) -> AsyncIterator[Office]:
    process = await _python("tests.campaign.rolling.viewers", str(folder), str(number), str(port))
    assert process.stdin is not None
    one = Office(process)
    listening = asyncio.create_task(one.listen())
    process.stdin.write(json.dumps(viewers).encode() + b"\n")
    try:
        yield one
    finally:
        process.stdin.close()
        await _ended(process)
        listening.cancel()


@asynccontextmanager
async def balancer(path: Path, replicas: list[Relay]) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The process, and its port."""
    places = [f"{replica.port}:{replica.admin_port}" for replica in replicas]
    process = await _python("tests.campaign.rolling.balancer", str(path), *places)
    assert process.stdout is not None
    try:
        yield process, int(await process.stdout.readline())
    finally:
        process.terminate()
        await _ended(process)


async def _python(*words: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, "-m", *words, stdin=pipe, stdout=pipe, cwd=ROOT)


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(15):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


class Rolling:
    def __init__(self, options: Options, records: Records, up: UpstreamClient) -> None:
        self.options = options
        self.replicas: list[Relay] = []
        self.offices: list[Office] = []
        self.runs = [f"roll-{options.seed}-{number}" for number in range(options.runs)]
        self._record = records.open("restarts")
        self._truth, self._runs = records.open("truth"), records.open("runs")
        self._up = up

    def viewers(self) -> list[dict[str, Any]]:
        """Everybody's name, run and wire, in the order they come (over three seconds)."""
        chance, runs = random.Random(self.options.seed), self.runs
        return [
            {
                "r": f"v{i}",
                "run": runs[i % len(runs)],
                "w": "ws" if i // len(runs) % _WEBSOCKETS == 0 else "sse",
                "at": chance.uniform(0, 3),
            }
            for i in range(self.options.viewers)
        ]

    async def play(self) -> None:
        """Every run starts, each at its own moment, and goes on far longer than all of this takes."""
        chance = random.Random(self.options.seed)
        options, gap_ms = self.options, 1000 / self.options.rate
        count = int(options.rate * (2 * options.patience_s + options.replicas * (GRACE_S + options.between_s + 5)))
        for run in self.runs:
            await self._up.call("add_run", run_id=run)
            script = deltas(chance, count, lambda _: chance.uniform(0.5, 1.5) * gap_ms)
            await self._up.call("play", script=script, run_id=run)
            await asyncio.sleep(chance.uniform(0, gap_ms / 1000) / 4)

    async def until(self, what: str, how_many: int) -> None:
        """Wait until so many viewers are `open`, have `seen` an event, or were told that it `ended`."""
        async with asyncio.timeout(self.options.patience_s):
            while sum(office.said[what] for office in self.offices) < how_many:
                await asyncio.sleep(0.2)

    async def restart(self, replica: Relay) -> None:
        owned = self._owned(replica)
        t0 = time.monotonic()
        await replica.take_down(signal.SIGTERM, 0.0, GRACE_S)
        t1 = time.monotonic()
        await replica.ready()
        self._record({"replica": replica.index, "t0": t0, "t1": t1, "t2": time.monotonic(), "owned": owned})

    def _owned(self, replica: Relay) -> list[str]:
        """The runs this replica pumps: whose latest claim of all is in its log."""
        latest: dict[str, tuple[str, int]] = {}
        for one in self.replicas:
            for line in one.log.read_text("utf-8", "replace").splitlines():
                if '"pump.claimed"' in line:
                    row = json.loads(line)
                    latest[row["run_id"]] = max(latest.get(row["run_id"], ("", -1)), (row["timestamp"], one.index))
        return sorted(run for run, (_, index) in latest.items() if index == replica.index)

    async def end(self) -> None:
        """Cancel every run; wait until every viewer was told; write the truth down."""
        for run in self.runs:
            await self._up.append(run, "run.cancel_requested", {"last_seen_seq": 0})
        try:
            await self.until("ended", self.options.viewers)
        except TimeoutError:
            pass  # the checker names who was not told
        names: dict[str, dict[str, Any]] = {run: {} for run in self.runs}
        for viewer in self.viewers():
            names[viewer["run"]][viewer["r"]] = {"leaves": False}
        for run in self.runs:
            self._truth({"run": run, "events": await self._up.truth(run)})
            counters = await self._up.call("counters", run_id=run)
            self._runs({"run": run, "t2": time.monotonic(), "readers": names[run], "counters": counters})


async def rolling(options: Options, *, show: Any = print) -> Path:
    """Runs it; gives the folder with its record."""
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    _clear(out)
    async with AsyncExitStack() as stack:
        records = Records(out, stack)
        up = await stack.enter_async_context(UpstreamClient.spawn("--heartbeat", "5", "--token", "upstream-secret"))
        redis = Node(out / "redis", _REDIS)
        stack.push_async_callback(redis.close)
        await redis.start()
        play = Rolling(options, records, up)
        play.replicas = await _replicas(options, out, records, stack, redis, up)
        door, port = await stack.enter_async_context(balancer(out / "balancer.jsonl", play.replicas))
        meta = _meta(options)
        await play.play()
        viewers = play.viewers()
        for number in range(options.offices):
            mine = [one for i, one in enumerate(viewers) if i // options.runs % options.offices == number]
            play.offices.append(await stack.enter_async_context(office(out, number, port, mine)))
        meta |= await _perform(play, _pids(play, up, door), show)
        meta |= {"lag_s": max(one.lag_s for one in play.offices)}
        meta |= {"troubles": {replica.index: replica.troubles() for replica in play.replicas}}
        (out / "meta.json").write_text(json.dumps(meta, indent=1))
    return out


def _pids(play: Rolling, up: UpstreamClient, door: asyncio.subprocess.Process) -> dict[str, int]:
    """Everything on this machine that is not relay or Redis: whether it was in the way is part of the report."""
    assert up.process is not None
    viewers = {f"viewers {number}": one.process.pid for number, one in enumerate(play.offices)}
    return {"driver": os.getpid(), "upstream": up.process.pid, "balancer": door.pid, **viewers}


async def _perform(play: Rolling, pids: dict[str, int], show: Any) -> dict[str, Any]:
    """The acts, in order; gives their times and what the helpers cost."""
    options, began = play.options, time.monotonic()

    def say(words: str) -> None:
        show(f"{time.monotonic() - began:6.1f} s  {words}", flush=True)

    await play.until("seen", options.viewers)
    say(f"all {options.viewers} viewers watch {options.runs} runs")
    cpu, since = _cpu(pids), time.monotonic()
    quiet_from = time.monotonic()
    await asyncio.sleep(options.quiet_s)
    quiet_to = time.monotonic()
    for replica in play.replicas:
        await play.restart(replica)
        say(f"replica {replica.index} was restarted")
        await asyncio.sleep(options.between_s)
    await asyncio.sleep(
        1.0
    )  # viewer processes speak twice a second: what they said last may be from before the goodbyes
    await play.until("open", options.viewers)
    say("everybody is back")
    await asyncio.sleep(options.quiet_s)
    spent_s = time.monotonic() - since
    used = {name: round((after - cpu[name]) / spent_s, 3) for name, after in _cpu(pids).items()}
    ended_at = time.monotonic()
    await play.end()
    say("the runs are over")
    return {"quiet": [quiet_from, quiet_to], "ended": ended_at, "cores_used": used}


async def _replicas(
    options: Options, out: Path, records: Records, stack: AsyncExitStack, redis: Node, up: UpstreamClient
) -> list[Relay]:
    said = records.open("processes")
    given = {name.upper().replace(".", "__"): value for name, value in options.settings.items()}
    replicas = [
        Relay(
            index,
            out,
            said,
            ports=(free_port(), free_port()),
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            upstream_url=up.url,
            tree=options.tree,
            prefix="relay",
            settings=given,
            impatience=_SETTINGS,
        )
        for index in range(options.replicas)
    ]
    for replica in replicas:
        stack.callback(asyncio.create_task(replica.keep()).cancel)

    async def close() -> None:
        await asyncio.gather(*(replica.close() for replica in replicas))

    stack.push_async_callback(close)
    for replica in replicas:
        await replica.ready()
    return replicas


def _clear(out: Path) -> None:
    shutil.rmtree(out / "redis", ignore_errors=True)
    for path in [*out.glob("*.jsonl"), *out.glob("*.log"), *out.glob("meta.json")]:
        path.unlink()


def _meta(options: Options) -> dict[str, Any]:
    told = {name: value for name, value in asdict(options).items() if name not in ("out", "tree")}
    machine = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}
    return {**told, **machine, "wall_minus_monotonic": time.time() - time.monotonic()}


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    """Seconds of processor time each has had (Linux)."""
    used = {}
    for name, pid in pids.items():
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used[name] = (int(words[11]) + int(words[12])) / _TICKS
    return used
