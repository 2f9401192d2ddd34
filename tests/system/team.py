"""`relay serve --workers N` as it runs: the parent's process, its workers as its log names them, its page of metrics."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.support.relay import RelayProcess
from tests.system.rig import at_rest


async def until(fact: Callable[[], object], timeout_s: float = 60.0, *, what: str = "it") -> None:
    """Wait until a fact is true."""
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, f"{what} never came true"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    """It runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Team(RelayProcess):
    """A relay with several workers; the same port and data each time it is started."""

    def __init__(self, base_url: str, directory: Path, *, workers: int = 3, **more: Any) -> None:
        super().__init__(base_url, directory, **{**more, "server": {"workers": workers, **more.get("server", {})}})
        self.wanted = workers
        self.session: aiohttp.ClientSession

    # ── its life ────────────────────────────────────────────────────────────────────────────────────────────────
    async def start(self, timeout_s: float = 60.0) -> None:
        """Returns when all workers serve."""
        begun = len(self.lines())
        await super().start(timeout_s)
        await until(lambda: len(self.told("worker.started", begun)) == self.wanted, what="every worker started")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """The pid of each worker, by number: the last that came to serve."""
        pids: dict[int, int] = {}
        for line in self.lines():
            if line["event"] in ("worker.started", "worker.replaced"):
                pids[line["worker"]] = line["pid"]
        return [pid for _, pid in sorted(pids.items())]

    @property
    def server(self) -> int:
        """The embedded server's pid."""
        return int((self.log.parent / "data" / "server.pid").read_text().split()[0])

    async def replaced(self, number: int, times: int = 1) -> int:
        """Wait until this worker has been replaced so often; the pid of the newest."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.told("worker.replaced") if line["worker"] == number]

        await until(lambda: len(found()) >= times, what=f"worker {number} replaced {times} times")
        pid: int = found()[-1]["pid"]
        return pid

    def tell(self, number: int, sign: signal.Signals) -> int:
        """A signal for one worker; its pid."""
        pid = self.workers[number]
        os.kill(pid, sign)
        return pid

    async def ended(self, timeout_s: float = 60.0) -> int:
        """Its exit status, once it has ended by itself."""
        assert self.process is not None
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    # ── what it says ────────────────────────────────────────────────────────────────────────────────────────────
    def lines(self) -> list[dict[str, Any]]:
        """Its log so far, without its complaint; the last line may be half written."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().split("\n")[:-1] if not line.startswith("relay: ")]

    def told(self, event: str, begin: int = 0) -> list[dict[str, Any]]:
        return [line for line in self.lines()[begin:] if line["event"] == event]

    async def get(self, path: str, **how: Any) -> tuple[int, Any]:
        """Status and JSON of the admin listener."""
        async with self.session.get(f"{self.admin_url}{path}", timeout=aiohttp.ClientTimeout(60), **how) as response:
            return response.status, await response.json()

    async def series(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """/metrics, read by Prometheus' own parser."""
        async with self.session.get(f"{self.admin_url}/metrics", timeout=aiohttp.ClientTimeout(60)) as response:
            assert response.status == 200
            text = await response.text()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def by_worker(self, name: str) -> list[float | None]:
        """The sum of a metric's series for each worker; None for one that has none."""
        sums: list[float | None] = [None] * self.wanted
        for (found, labels), value in (await self.series()).items():
            if found == name and "worker" in dict(labels):
                number = int(dict(labels)["worker"])
                sums[number] = (sums[number] or 0.0) + value
        return sums

    async def of_parent(self, name: str, **labels: str) -> float:
        return (await self.series()).get((name, frozenset(labels.items())), 0.0)

    async def __aenter__(self) -> Team:
        self.session = aiohttp.ClientSession()
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__(*_)
        await self.session.close()
        for pid in self.workers:  # whatever a test left frozen
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def team(base_url: str, directory: Path, **how: Any) -> AsyncIterator[Team]:
    """A relay with several workers; at rest when it is left, and nothing of it remains."""
    async with Team(base_url, directory, **how) as relay:
        yield relay
        if relay.process is not None and relay.process.returncode is None:
            await at_rest(relay.session, relay.admin_url)
            assert await relay.stop() == 0, relay.log.read_text()[-2000:]
        await until(lambda: not any(alive(pid) for pid in relay.workers), what="no worker left")
    assert "Traceback" not in relay.log.read_text(), relay.log.read_text()
