"""What happens upstream: runs of many shapes, always a few of them active, each with its readers; and the record of it."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.upstream_client import ROOT, UpstreamClient

Record = Callable[[dict[str, Any]], None]
_WORDS = ("a", "stream", "of", "wörds", "🙂", "and\nlines", "\\", '"quoted"', "<tag>&", "  ", "中文", "fin")


def deltas(chance: random.Random, count: int, dt_ms: Callable[[int], float]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"type": "run.started", "data": {"model": "m"}, "dt_ms": 0}]
    for i in range(count):
        kind = chance.random()
        if kind < 0.85:
            text = " ".join(chance.choices(_WORDS, k=chance.randint(1, 12)))
            event = {"type": "message.delta", "data": {"content_delta": text, "role": "assistant"}}
        elif kind < 0.9:
            event = {
                "type": "tool.call",
                "data": {"tool_call_id": f"c{i}", "tool_name": "shell", "arguments": {"n": i}},
            }
        elif kind < 0.95:
            event = {
                "type": "tool.result",
                "data": {"tool_call_id": f"c{i}", "tool_name": "shell", "result": [i, None]},
            }
        elif kind < 0.97:
            event = {"type": "run.completed", "data": {"delegate_layer": "acp"}}  # a nested agent's: ends nothing
        else:
            event = {"type": "run.input_requested", "data": {"prompt": "?"}}
        events.append({**event, "dt_ms": dt_ms(i)})
    return events


def script(
    chance: random.Random, recordings: list[list[dict[str, Any]]], brief: bool
) -> tuple[str, list[dict[str, Any]]]:
    """A shape and its events; the last one is the terminal event unless the shape is `silent`."""
    shape = chance.choices(
        ["steady", "quick", "slow", "bursts", "holes", "silent", "recorded"], [35, 10, 20, 10, 7, 5, 13]
    )[0]
    length = chance.uniform(5, 10) if brief else chance.uniform(8, 22)
    if shape == "recorded" and not recordings:
        shape = "steady"
    if shape == "recorded":
        events = [dict(event) for event in chance.choice(recordings)]
        speed = max(1.0, sum(event.get("dt_ms", 0) for event in events) / 1000 / length)
        for event in events:
            event["dt_ms"] = event.get("dt_ms", 0) / speed
            event.pop("seq", None)
        return shape, events
    if shape == "slow":
        gap = chance.uniform(700, 2500)
        events = deltas(chance, int(length * 1000 / gap) + 1, lambda _: gap)
    elif shape == "bursts":
        events = deltas(chance, int(length * 15), lambda i: 2000 if i % 30 == 0 else 0)
    else:
        rate = 60 if shape == "quick" else chance.uniform(8, 25)
        events = deltas(chance, int(length * rate), lambda _: 1000 / rate)
    if shape == "holes":
        seq = 0
        for event in events:
            seq += 1 if chance.random() < 0.97 else chance.randint(2, 9)
            event["seq"] = seq
    if shape != "silent":
        final = chance.choice(["run.completed", "run.completed", "run.failed", "run.cancelled"])
        last = {"type": final, "data": {"error_class": "x"} if final == "run.failed" else {}, "dt_ms": 50.0}
        events.append({**last, "seq": events[-1]["seq"] + 1} if shape == "holes" else last)
        if chance.random() < 0.3 and shape != "holes":
            events.append({"type": "thread.title.updated", "data": {"title": "t"}, "dt_ms": chance.uniform(10, 300)})
    return shape, events


def recordings() -> list[list[dict[str, Any]]]:
    """The recorded runs, where this machine has them."""
    folder = ROOT.parent / "shared" / "recordings"
    found = []
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
        found.append([json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()])
    return found


class Audience:
    """The reader process, from outside."""

    def __init__(self, directory: Path, urls: list[str]) -> None:
        self._directory = directory
        self._urls = urls
        self._process: asyncio.subprocess.Process | None = None
        self._open: dict[str, asyncio.Event] = {}

    async def __aenter__(self) -> Audience:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.campaign.readers",
            str(self._directory / "journal.jsonl"),
            str(self._directory / "texts.jsonl"),
            *self._urls,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            done = self._open.pop(json.loads(line)["done"], None)
            if done is not None:
                done.set()

    def send(self, order: dict[str, Any]) -> asyncio.Event:
        """Set when this reader is done."""
        done = self._open[order["reader"]] = asyncio.Event()
        self._tell(order)
        return done

    def stop(self, names: list[str]) -> None:
        if names:
            self._tell({"stop": names})

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(15):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._listening.cancel()


class Stage:
    """`slots` runs at a time, each replaced when it is over and its readers are done."""

    def __init__(
        self,
        seed: int,
        slots: int,
        up: UpstreamClient,
        audience: Audience,
        record: Record,
        truth: Record,
        *,
        relays: int,
        brief: bool,
        patience_s: float = 75.0,
        fixed: int = 3,
        audience_of: str = "all",
    ) -> None:
        self.current: list[str] = [""] * slots
        self.started = 0
        self.kept: list[str] = []
        """Runs that are over and recorded."""
        self.closing = asyncio.Event()
        self._seed = seed
        self._up = up
        self._audience = audience
        self._record = record
        self._truth = truth
        self._relays = relays
        self._brief = brief
        self._patience_s = patience_s
        self._fixed = fixed
        self._audience_of = audience_of
        """`many`: only the two who read all runs on one connection each."""
        self._recordings = recordings()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for slot in range(len(self.current)):
                tasks.create_task(self._slot(slot))

    async def _slot(self, slot: int) -> None:
        number = 0
        while not self.closing.is_set():
            number += 1
            await self._one(slot, number)

    async def _one(self, slot: int, number: int) -> None:
        chance = random.Random(f"{self._seed}/{slot}/{number}")
        shape, events = script(chance, self._recordings, self._brief)
        run = f"s{slot}-{number}-{chance.getrandbits(24):06x}"
        length = sum(event["dt_ms"] for event in events) / 1000
        await self.call("add_run", run_id=run)
        self.current[slot] = run
        self.started += 1
        began = time.monotonic()
        readers = self._readers(chance, run, length)
        waiting = {order["reader"]: self._audience.send(order) for order in readers}
        await self.call("play", script=events, run_id=run)
        await asyncio.sleep(length)
        await self._played(run)
        if shape == "silent":
            await self.call("set_status", run_id=run, status="failed")
        ended = time.monotonic()
        patient = True
        try:
            async with asyncio.timeout(self._patience_s):
                for done in waiting.values():
                    await done.wait()
        except TimeoutError:
            patient = False
            stuck = [name for name, done in waiting.items() if not done.is_set()]
            self._audience.stop(stuck)
        await self._keep(run, slot, shape, began, ended, readers, stuck=[] if patient else stuck)

    def _readers(self, chance: random.Random, run: str, length: float) -> list[dict[str, Any]]:
        """Some stay with one relay (they measure pauses), some are restless, one leaves for good, one comes late; and two
        read all runs, each on one connection."""

        def order(name: str, **more: Any) -> dict[str, Any]:
            return {"run": run, "reader": f"{run}/{name}", "seed": chance.getrandbits(48), **more}

        many = [
            {"run": run, "reader": f"{run}/{group}", "seed": self._seed, "group": group}
            for group in ("sse-many", "ws-many")
        ]
        if self._audience_of == "many":
            return many
        orders = [order(f"fix{i}", relay=i % self._relays, restless=0.0) for i in range(self._fixed)]
        orders += [order(f"any{i}", delay=chance.uniform(0, length * 0.8), restless=0.8) for i in range(2)]
        orders.append(order("gone", delay=chance.uniform(0, length / 2), leaves=chance.uniform(0.5, length / 2)))
        orders.append(order("late", delay=length + chance.uniform(0.2, 4), restless=0.3))
        return orders + many

    async def _played(self, run: str) -> None:
        await self.call("played", run_id=run)

    async def _keep(
        self,
        run: str,
        slot: int,
        shape: str,
        began: float,
        ended: float,
        readers: list[dict[str, Any]],
        stuck: list[str],
    ) -> None:
        """The truth goes to disk; the upstream forgets its faults for this run, but not the run."""
        events = await self.call("truth", run_id=run)
        counters = await self.call("counters", run_id=run)
        await self.call("heal", run_id=run)
        names = {order["reader"]: {"leaves": "leaves" in order, "relay": order.get("relay")} for order in readers}
        self._truth({"run": run, "events": events})
        self.kept.append(run)
        self._record(
            {
                "run": run, "slot": slot, "shape": shape, "t0": began, "t1": ended, "t2": time.monotonic(),
                "readers": names, "stuck": stuck, "counters": counters,
            }
        )  # fmt: skip

    async def call(self, name: str, **arguments: Any) -> Any:
        """The control API is on the port that an outage closes."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return await self._up.call(name, **arguments)
            except RuntimeError as error:
                if "exists" in str(error) or "playing already" in str(error):
                    return None  # the first try was done, its answer lost
                raise
            except (OSError, aiohttp.ClientError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
