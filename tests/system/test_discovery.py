"""Three relay processes with `discover`, and nobody who watches: every run is pumped to its seal all the same.

Each process has a token of its own, so that the upstream's record says who asked for what.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.core.ids import RunKey
from relay.store.keys import Keys
from tests.support import upstream_faults as faults
from tests.support.relay import RelayProcess
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import metrics, no_key_without_ttl, plain, seeds
from tests.system.watching import native

pytestmark = pytest.mark.system

FLEET: dict[str, dict[str, Any]] = {
    "ingest": {"discover_s": 0.4, "discover_per_s": 40, "unwanted_s": 4.0},
    "log": {"format": "json"},
}


class Fleet:
    def __init__(self, upstream: ScriptedUpstream, redis_url: str, directory: Path, size: int = 3) -> None:
        self.prefix = f"d{secrets.token_hex(4)}"
        self.upstream = upstream
        self.redis_url = redis_url
        self.keys = Keys(self.prefix, 64)
        self.relays = {
            f"token-{i}": RelayProcess(
                upstream.url,
                directory / str(i),
                redis_url=redis_url,
                discover=True,
                token=f"token-{i}",
                **{**FLEET, "redis": {"prefix": self.prefix}},
            )
            for i in range(size)
        }
        upstream.tokens = dict.fromkeys(self.relays)
        upstream.heartbeat_s = 0.5  # a silent stream is no stalled one

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Fleet]:
        try:
            async with asyncio.TaskGroup() as tasks:
                for relay in self.relays.values():
                    tasks.create_task(relay.start(60))
            yield self
            await asyncio.to_thread(no_key_without_ttl, self.redis_url, self.prefix)
            for relay in self.relays.values():
                assert await relay.stop() == 0
                assert "Traceback" not in relay.log.read_text(), relay.log.read_text()[-5000:]
        finally:
            for relay in self.relays.values():
                if relay.process is not None and relay.process.returncode is None:
                    await relay.kill()

    # ── who asked ───────────────────────────────────────────────────────────────────────────────────────────
    def askers(self) -> list[str]:
        """Whose token each request for a list of runs carried, in order."""
        asked = [request for request in self.upstream.requests if request.path == "/v1/runs"]
        return [request.headers["Authorization"].removeprefix("Bearer ") for request in asked]

    def reigns(self) -> list[str]:
        """The processes that looked, one after the other."""
        return [token for token, _ in groupby(self.askers())]

    async def looker(self) -> str:
        """The process that looks at the moment."""
        asked = len(self.askers())
        await self.until(lambda: len(self.askers()) > asked)
        return self.askers()[-1]

    async def until(self, fact: Callable[[], object], timeout_s: float = 60.0) -> None:
        await self.upstream.until(fact, timeout_s)

    # ── what was pumped ─────────────────────────────────────────────────────────────────────────────────────
    async def sealed(self, run_ids: Iterable[str], timeout_s: float = 90.0) -> None:
        left = set(run_ids)
        deadline = time.monotonic() + timeout_s
        while left := left - set(await asyncio.to_thread(self._sealed, sorted(left))):
            assert time.monotonic() < deadline, f"never sealed: {sorted(left)}"
            await asyncio.sleep(0.1)

    def _sealed(self, run_ids: list[str]) -> list[str]:
        with plain(self.redis_url) as client:
            pipe = client.pipeline(transaction=False)
            for run_id in run_ids:
                pipe.hget(self.keys.run(RunKey("main", run_id)), "sealed")
            return [run_id for run_id, sealed in zip(run_ids, pipe.execute(), strict=True) if sealed == b"1"]

    def check(self, run_ids: Iterable[str]) -> None:
        """Every log is the upstream's truth, event for event."""
        with plain(self.redis_url) as client:
            for run_id in run_ids:
                rows: Any = client.xrange(self.keys.log(RunKey("main", run_id)))
                assert [json.loads(row[b"event"]) for _, row in rows] == [
                    native(event) for event in self.upstream.truth(run_id)
                ], run_id
                assert [row_id for row_id, _ in rows] == [
                    b"%d-0" % event["seq"] for event in self.upstream.truth(run_id)
                ]

    def logs_of(self, run_ids: Iterable[str]) -> int:
        with plain(self.redis_url) as client:
            return sum(int(client.exists(self.keys.run(RunKey("main", run_id)))) for run_id in run_ids)

    def said(self, what: str) -> Counter[str]:
        """How often the processes' logs say this of each run."""
        lines = [line for relay in self.relays.values() for line in relay.log.read_text().splitlines()]
        return Counter(json.loads(line)["run_id"] for line in lines if f'"event":"{what}"' in line)


def deltas(count: int) -> list[tuple[str, dict[str, Any]]]:
    return [("message.delta", {"content_delta": f"word {i}"}) for i in range(count)]


def a_run(count: int) -> list[tuple[str, dict[str, Any]]]:
    return [("run.started", {}), *deltas(count), ("run.completed", {})]


@pytest.mark.parametrize("seed", seeds(1))
async def test_every_run_is_pumped_by_somebody_while_nobody_watches_and_the_looking_process_is_killed(
    upstream: ScriptedUpstream, redis_url: str, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    history = [upstream.add_run(a_run(1)) for _ in range(300)]
    long = [upstream.add_run([("run.started", {})]) for _ in range(6)]
    silent = [upstream.add_run([("run.started", {})]) for _ in range(30)]
    runs = [*long, *silent]
    async with Fleet(upstream, redis_url, tmp_path).running() as fleet:
        for run_id in long:
            upstream.play(a_run(chance.randint(150, 250))[1:], run_id=run_id, rate=20)
        await fleet.until(lambda: all(upstream.following(run_id) == 1 for run_id in silent))
        first = await fleet.looker()
        await fleet.relays[first].kill()
        for _ in range(15):  # while nobody looks, and after
            runs.append(upstream.play(a_run(chance.randint(1, 40)), rate=chance.choice([10, 40, 400])))
            runs.append(upstream.add_run(a_run(chance.randint(0, 5))))
            await asyncio.sleep(chance.uniform(0.0, 0.3))
        await fleet.until(lambda: len(fleet.reigns()) == 2)
        await fleet.relays[first].start()
        short = [upstream.add_run(a_run(2)) for _ in range(10)]
        runs += short
        for run_id in long:
            await upstream.played(run_id)
        for run_id in silent:  # longer than a want lasts
            upstream.finish(run_id)
        await fleet.sealed(runs)
        fleet.check(runs)
        assert fleet.reigns() == [first, fleet.reigns()[1]], "one process at a time, and no change without need"
        assert fleet.logs_of(history) == 0
        assert max(upstream.max_following(run_id) for run_id in runs) == 1
        assert sum(upstream.drains(run_id) for run_id in history) == 0
        seals = fleet.said("run.sealed")
        assert set(seals) == set(runs)
        assert {seals[run_id] for run_id in short} == {1}


async def test_a_process_that_drains_or_freezes_while_it_looks_is_replaced(
    upstream: ScriptedUpstream, redis_url: str, tmp_path: Path
) -> None:
    async with Fleet(upstream, redis_url, tmp_path).running() as fleet:
        first = await fleet.looker()
        assert await fleet.relays[first].stop() == 0
        await fleet.until(lambda: len(fleet.reigns()) == 2)
        second = fleet.reigns()[1]
        await fleet.relays[first].start()
        fleet.relays[second].process.send_signal(signal.SIGSTOP)  # type: ignore[union-attr]
        runs = [upstream.add_run(a_run(2)) for _ in range(10)]
        await fleet.until(lambda: len(fleet.reigns()) == 3)
        fleet.relays[second].process.send_signal(signal.SIGCONT)  # type: ignore[union-attr]
        runs += [upstream.add_run(a_run(2)) for _ in range(10)]
        await fleet.sealed(runs)
        fleet.check(runs)
        third = await fleet.looker()
        assert fleet.reigns() == [first, second, third]
        assert set(fleet.said("run.sealed").values()) == {1}


async def test_a_crowd_is_taken_up_and_stays_wanted_while_the_list_fails(
    upstream: ScriptedUpstream, redis_url: str, tmp_path: Path
) -> None:
    runs = [upstream.add_run([("run.started", {})]) for _ in range(200)]
    async with Fleet(upstream, redis_url, tmp_path).running() as fleet, aiohttp.ClientSession() as session:
        at = 0.0
        looker = fleet.relays[await fleet.looker()]
        while at < 200:
            now = await metrics(session, looker.admin_url)
            assert now["relay_runs_discovered_total"] + now["relay_runs_waiting"] <= 200
            at = now["relay_runs_discovered_total"]
            await asyncio.sleep(0.05)
        await fleet.until(lambda: all(upstream.following(run_id) == 1 for run_id in runs))
        upstream.fault(faults.html(target="list"), times=None)
        claims = fleet.said("pump.claimed")
        assert set(claims) == set(runs)
        await asyncio.sleep(2.5 * 4.0)  # well beyond what a want lasts: the fact under test is that nothing happens
        assert fleet.said("pump.claimed") == claims, "no owner gave a run up"
        assert (await metrics(session, looker.admin_url))['relay_looks_total{outcome="refused",upstream="main"}'] >= 1
        upstream.heal()
        for run_id in runs:
            upstream.finish(run_id)
        await fleet.sealed(runs)
        fleet.check(runs)
        pumped = [await metrics(session, relay.admin_url) for relay in fleet.relays.values()]
        assert sum(now.get("relay_runs_sealed_total", 0.0) for now in pumped) == 200
