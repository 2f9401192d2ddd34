"""Drives a scripted upstream that lives in a process of its own: the same method names, each a call to `/_control/`.

`async with UpstreamClient.spawn() as up:` starts one and ends it; `UpstreamClient(url)` joins one that runs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.support.upstream_control import PREFIX
from tests.support.upstream_faults import Fault

ROOT = Path(__file__).resolve().parents[2]


class UpstreamClient:
    """One remote `ScriptedUpstream`. Calls raise `RuntimeError` with what the other side said."""

    def __init__(self, url: str, *, process: asyncio.subprocess.Process | None = None) -> None:
        self.url = url
        self.process = process
        """The process, if we started it: its pid is what a benchmark measures and a test stops or kills."""
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    @asynccontextmanager
    async def spawn(cls, *options: str, prefix: Iterable[str] = ()) -> AsyncIterator[Self]:
        """Start `python -m tests.support.upstream <options>`, e.g. `"--heartbeat", "1"`; `prefix`: e.g. `taskset -c 1`."""
        command = [*prefix, sys.executable, "-m", "tests.support.upstream", *options]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
        try:
            assert process.stdout is not None
            url = (await process.stdout.readline()).decode().strip()
            if not url.startswith("http"):
                raise RuntimeError(f"the upstream did not start: {url!r}")
            async with cls(url, process=process) as client:
                yield client
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def __aenter__(self) -> Self:
        # A connection per call: an outage resets the open ones.
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The HTTP session, for requests of the test's own."""
        assert self._http is not None, "use `async with`"
        return self._http

    async def call(self, name: str, **arguments: Any) -> Any:
        """Any control call by name."""
        async with self.session.post(f"{self.url}{PREFIX}{name}", json=arguments) as response:
            said = await response.json()
        if response.status != 200:
            raise RuntimeError(said["error"])
        return said["result"]

    # ── runs and truth ──────────────────────────────────────────────────────────────────────────────────────

    async def add_run(self, events: Iterable[Any] = (), **row: Any) -> str:
        return str(await self.call("add_run", events=list(events), **row))

    async def append(self, run_id: str, type: str, data: Mapping[str, Any] | None = None, **envelope: Any) -> int:
        return int(await self.call("append", run_id=run_id, type=type, data=data, **envelope))

    async def finish(self, run_id: str, type: str = "run.completed", data: Mapping[str, Any] | None = None) -> int:
        return int(await self.call("finish", run_id=run_id, type=type, data=data))

    async def set_status(self, run_id: str, status: str | None) -> None:
        await self.call("set_status", run_id=run_id, status=status)

    async def prune(self, run_id: str, to_seq: int | None = None) -> None:
        await self.call("prune", run_id=run_id, to_seq=to_seq)

    async def remove_run(self, run_id: str) -> None:
        await self.call("remove_run", run_id=run_id)

    async def truth(self, run_id: str) -> list[dict[str, Any]]:
        return list(await self.call("truth", run_id=run_id))

    async def created(self) -> list[list[Any]]:
        return list(await self.call("created"))

    # ── pacing ──────────────────────────────────────────────────────────────────────────────────────────────

    async def play(self, script: Iterable[Any], **how: Any) -> str:
        """`script`: events as JSON; see `ScriptedUpstream.play`."""
        return str(await self.call("play", script=list(script), **how))

    async def play_recording(self, path: Path | str, **how: Any) -> str:
        return str(await self.call("play_recording", path=str(path), **how))

    async def played(self, run_id: str) -> None:
        await self.call("played", run_id=run_id)

    async def synth(
        self, run_ids: Iterable[str], *, rate: float | None, count: int, wait: bool = False, **how: Any
    ) -> None:
        """`wait`: return when all is written, else at once."""
        await self.call("synth", run_ids=list(run_ids), rate=rate, count=count, wait=wait, **how)

    # ── faults ──────────────────────────────────────────────────────────────────────────────────────────────

    async def fault(self, fault: Fault, run_id: str | None = None, *, times: int | None = 1) -> None:
        await self.call("fault", fault=asdict(fault), run_id=run_id, times=times)

    async def chaos(
        self, seed: int, run_id: str | None = None, *, count: int = 20, stall_s: float = 0.5
    ) -> list[Fault]:
        said = await self.call("chaos", seed=seed, run_id=run_id, count=count, stall_s=stall_s)
        return [Fault(**fault) for fault in said]

    async def heal(self, run_id: str | None = None) -> None:
        await self.call("heal", run_id=run_id)

    async def pending(self, run_id: str | None = None) -> int:
        return int(await self.call("pending", run_id=run_id))

    async def cut_now(self, run_id: str | None = None) -> int:
        return int(await self.call("cut_now", run_id=run_id))

    async def outage(self, seconds: float, *, cut: bool = True) -> None:
        """Nobody listens on the port for so long (this API neither)."""
        await self.call("outage", seconds=seconds, cut=cut)

    async def set_tokens(self, tokens: Mapping[str, Iterable[str] | None]) -> None:
        """Who may come in, and the runs each owns (None: all)."""
        await self.call("set_tokens", tokens={name: owned and list(owned) for name, owned in tokens.items()})

    # ── the record ──────────────────────────────────────────────────────────────────────────────────────────

    async def requests(self) -> list[dict[str, Any]]:
        return list(await self.call("requests"))

    async def fired(self) -> list[tuple[str | None, Fault]]:
        return [(run_id, Fault(**fault)) for run_id, fault in await self.call("fired")]

    async def following(self, run_id: str) -> int:
        return int(await self.call("following", run_id=run_id))

    async def max_following(self, run_id: str) -> int:
        return int(await self.call("max_following", run_id=run_id))

    async def drains(self, run_id: str) -> int:
        return int(await self.call("drains", run_id=run_id))

    async def counters(self, run_id: str) -> dict[str, int]:
        return dict(await self.call("counters", run_id=run_id))

    async def until(self, run_id: str, fact: Callable[[dict[str, int]], object], timeout_s: float = 60.0) -> None:
        """Wait for a fact about the run's counters. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while not fact(await self.counters(run_id)):
                await asyncio.sleep(0.02)

    async def until_answering(self, timeout_s: float = 60.0) -> None:
        """Wait until somebody listens on the port again."""
        async with asyncio.timeout(timeout_s):
            while not await self._answers():
                await asyncio.sleep(0.01)

    async def _answers(self) -> bool:
        try:
            await self.pending()
        except aiohttp.ClientError:
            return False
        return True
