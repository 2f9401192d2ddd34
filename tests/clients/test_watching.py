"""Every client watches the same run at once while something goes wrong, and none of them notices more than it must.

What relay reads of a run is read once, whoever watches it through whichever face.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.providers.arkloop import face
from tests.clients.behind import Behind, process_before, relay_before
from tests.clients.conftest import Cells
from tests.clients.stage import ASKS, CALLS, COMPLETES, FAILS, SAID, THINKS, says
from tests.clients.watchers import QUIET_S, ROSTER, Watcher
from tests.support.needs import sdk

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore"),
]
FACES = os.environ.get("RELAY_TEST_FACES", "openai seekrflow arkloop native").split()
"""Whose clients watch: another version of an SDK is tried alone."""


class Crowd:
    """The watchers, and what became of each."""

    def __init__(self, behind: Behind, cells: Cells) -> None:
        for name in ("openai", "seekrai"):
            if {"openai": "openai", "seekrai": "seekrflow"}[name] in FACES:
                sdk(name)
        self.watchers: list[Watcher] = [make() for face in FACES for make in ROSTER[face]]
        self._behind = behind
        self._cells = cells
        self._connections: dict[Watcher, int] = {}
        self._errors: dict[Watcher, BaseException] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def follow(self, url: str, run_id: str, *watchers: Watcher) -> None:
        self._tasks += [asyncio.create_task(self._one(one, url, run_id)) for one in watchers or self.watchers]

    async def _one(self, watcher: Watcher, url: str, run_id: str) -> None:
        try:
            async with asyncio.timeout(150):
                await watcher.follow(url, run_id)
        except (Exception, ExceptionGroup) as error:  # what broke for one of them is told for that one
            self._errors[watcher] = error

    async def heard(self, text: str) -> None:
        """Every one of them has heard so much; from now on the connection it has is the one to keep."""
        late: list[Watcher] = self.watchers
        deadline = time.monotonic() + 60
        while late := [one for one in self.watchers if one.text != text and one not in self._errors]:
            assert time.monotonic() < deadline, [(one.name, one.connections, one.text) for one in late]
            await asyncio.sleep(0.02)
        self._connections = {one: one.connections for one in self.watchers}

    async def check(self, run_id: str, what: str, *, status: str = "completed", unnoticed: bool = True) -> None:
        """Fills a cell for each, and fails if one of them failed. `unnoticed`: on one connection."""
        await asyncio.gather(*self._tasks)
        for watcher in self.watchers:
            try:
                if watcher not in self._errors:
                    watcher.check(SAID, status, self._behind.truth(run_id))
                    assert not unnoticed or watcher.connections == self._connections.get(watcher, 1)
            except Exception as error:
                self._errors[watcher] = error
            outcome = "failed" if watcher in self._errors else "passed"
            self._cells.fill((self._behind.kind, watcher.face, watcher.name, what), outcome)
        if self._errors:
            names = [f"{watcher.name}: {error!r}" for watcher, error in self._errors.items()]
            raise ExceptionGroup("; ".join(names), list(self._errors.values()))  # type: ignore[type-var]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def stays_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "STAY_S", 1.5)


@asynccontextmanager
async def crowd_before(behind: Behind, cells: Cells) -> AsyncIterator[Crowd]:
    crowd = Crowd(behind, cells)
    try:
        yield crowd
    finally:
        await crowd.close()


async def test_late_join(behind: Behind, cells: Cells, redis_url: str) -> None:
    """In the middle of a run, and after its end."""
    run_id = await behind.has(THINKS, CALLS, says(SAID[:20]))
    async with relay_before(behind, redis_url) as relay, crowd_before(behind, cells) as early:
        early.follow(relay.url, run_id)
        await early.heard(SAID[:20])
        behind.play(run_id, says(SAID[20:]), COMPLETES)
        await early.check(run_id, "late join")
        async with crowd_before(behind, cells) as late:
            late.follow(relay.url, run_id)
            await late.check(run_id, "late join")
    assert behind.most_streams_of(run_id) <= 1


async def test_failed_run(behind: Behind, cells: Cells, redis_url: str) -> None:
    run_id = await behind.has(says(SAID))
    async with relay_before(behind, redis_url) as relay, crowd_before(behind, cells) as crowd:
        crowd.follow(relay.url, run_id)
        await crowd.heard(SAID)
        behind.play(run_id, FAILS)
        await crowd.check(run_id, "failed run", status="failed")


async def test_upstream_cuts_are_not_noticed(behind: Behind, cells: Cells, redis_url: str) -> None:
    behind.makes(says(SAID[:9]))
    async with relay_before(behind, redis_url) as relay, crowd_before(behind, cells) as crowd:
        async with relay.session.post(f"{relay.url}/v1/threads/t1/runs", json={}) as response:
            run_id = (await response.json())["run_id"]
        crowd.follow(relay.url, run_id)
        await crowd.heard(SAID[:9])
        behind.spoil()
        for at in range(9, len(SAID), 5):
            await asyncio.sleep(0.06)
            behind.play(run_id, says(SAID[at : at + 5]))
        async with asyncio.timeout(60):
            while not behind.spoiled():
                await asyncio.sleep(0.02)
        behind.play(run_id, COMPLETES)
        await crowd.check(run_id, "upstream cut")


async def test_a_silent_run_is_kept_alive(behind: Behind, cells: Cells, redis_url: str) -> None:
    """Silence longer than any of them bears, but for heartbeats."""
    run_id = await behind.has(says(SAID[:9]))
    async with relay_before(behind, redis_url) as relay, crowd_before(behind, cells) as crowd:
        for watcher in crowd.watchers:
            watcher.quiet_s = QUIET_S
        crowd.follow(relay.url, run_id)
        await crowd.heard(SAID[:9])
        await asyncio.sleep(1.5 * QUIET_S)
        behind.play(run_id, says(SAID[9:]), COMPLETES)
        await crowd.check(run_id, "stall")


async def test_a_relay_that_is_restarted(behind: Behind, cells: Cells, redis_url: str, tmp_path: Path) -> None:
    """Killed, and later asked to go: streams break and are never tidily ended; what is heard in the end is whole."""
    async with process_before(behind, tmp_path, redis_url) as relay:
        for number in (signal.SIGKILL, signal.SIGTERM):
            run_id = await behind.has(says(SAID[:9]))
            async with crowd_before(behind, cells) as crowd:
                crowd.follow(relay.url, run_id)
                await crowd.heard(SAID[:9])
                await relay.signal(number)
                behind.play(run_id, says(SAID[9:20]))
                await relay.start(60)
                behind.play(run_id, says(SAID[20:]), COMPLETES)
                await crowd.check(run_id, "relay restart", unnoticed=False)
                assert all(watcher.connections > 1 for watcher in crowd.watchers)


async def test_a_run_that_waits_is_answered(behind: Behind, cells: Cells, redis_url: str) -> None:
    """Who watches natively sees the question behind the text that led to it, and the rest behind the answer."""
    async with relay_before(behind, redis_url) as relay, crowd_before(behind, cells) as crowd:
        crowd.watchers = [watcher for watcher in crowd.watchers if watcher.face == "native"]
        if not crowd.watchers:
            return  # another version of an SDK answers in its own tests
        run_id = await behind.has(says(SAID[:9]), *([ASKS] if behind.waits else []))
        crowd.follow(relay.url, run_id)
        await crowd.heard(SAID[:9])
        url = f"{relay.url}/v1/threads/t1/runs/{run_id}"
        async with asyncio.timeout(60):
            while behind.waits:
                async with relay.session.get(url) as response:
                    if (await response.json())["status"] == "waiting_for_input":
                        break
        async with relay.session.post(f"{relay.url}/v1/runs/{run_id}/input", json={"content": "left"}) as response:
            assert response.status == (200 if behind.waits else 501)
        behind.play(run_id, says(SAID[9:]), COMPLETES)
        await crowd.check(run_id, "input answered")
        assert behind.answers(run_id) == (["left"] if behind.waits else [])
