"""Fixtures of systems without seq, played through the product's own pump: what comes out is the log.

Everything between the bytes and the log is real: SSE decoding, the provider's tables, the assembler, the pump, the paging.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

import aiohttp
import yaml

from relay import telemetry
from relay.core.errors import NotFound
from relay.ingest.intake import Intake
from relay.ingest.options import UpstreamOptions
from relay.ingest.own_pump import OwnPump
from relay.ingest.own_upstream import OwnUpstream
from relay.providers.contract import Ask
from relay.providers.own import OwnSeqProvider
from tests.support.sim_world import KEY, OPTIONS, MemoryLog

FOLDER = Path(__file__).parent / "fixtures"
BASE: dict[str, Any] = {"id": "run-1", "thread_id": "thread-1", "created_at": 1767323045}


class Case(NamedTuple):
    label: str
    covers: tuple[str, ...]
    body: dict[str, Any]


def cases(path: Path) -> list[Case]:
    found = []
    for body in yaml.safe_load(path.read_text("utf-8")):
        covers = (body["covers"],) if isinstance(body["covers"], str) else tuple(body["covers"])
        name = f": {body['name']}" if "name" in body else ""
        found.append(Case(f"{path.stem}: {', '.join(covers)}{name}", covers, body))
    return found


class _Body:
    content_type = "text/event-stream"

    def __init__(self, data: bytes) -> None:
        self.content = self
        self._left = data

    async def readany(self) -> bytes:
        await asyncio.sleep(0)
        found, self._left = self._left[:7], self._left[7:]
        return found

    async def iter_any(self) -> AsyncIterator[bytes]:
        while piece := await self.readany():
            yield piece


class Scripted(OwnUpstream):
    """Answers from a case."""

    def __init__(self, provider: OwnSeqProvider, case: Case) -> None:
        options = UpstreamOptions("sim", provider.name, "http://sim", poll_s=0.0)
        super().__init__(options, provider, cast(aiohttp.ClientSession, None), OPTIONS)
        self._case = case.body
        self._runs = list(case.body.get("runs", ["queued", "completed"]))

    async def answer(self, ask: Ask) -> tuple[Any, Mapping[str, str]]:
        await asyncio.sleep(0)
        last = ask.path.rpartition("/")[2]
        if last in ("messages", "steps"):
            rows = self._case.get(last, [])
            bare = self.provider.pages_by == "offset"
            return (rows[int(ask.query.get("offset", "0")) :] if bare else {"data": rows, "has_more": False}), {}
        found = self._runs.pop(0) if len(self._runs) > 1 else self._runs[0]
        if isinstance(found, int):
            raise self.provider.error(found, {}, None)
        return json.loads(json.dumps(BASE | (found if isinstance(found, dict) else {"status": found}))), {}

    @asynccontextmanager
    async def stream(self, ask: Ask, *, json_too: bool = False, stall_s: float | None = None) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        if "stream" not in self._case:
            raise NotFound("nothing streams here")
        yield _Body(self._case["stream"].encode())


async def played(provider: OwnSeqProvider, case: Case) -> list[list[Any]]:
    """The events of a case as its file writes them."""
    upstream, log = Scripted(provider, case), MemoryLog(Random(0), 0.0)
    intake = None
    if provider.streams_on_create and "stream" in case.body:
        intake = Intake(upstream, provider.create_run("thread-1", {}), event_bytes=2**20)
        reading = intake.task = asyncio.create_task(intake.read())
        await asyncio.wait([reading])  # all of it is there before anybody looks: the same order every time
    pump = OwnPump(KEY, upstream, cast(Any, log), cast(Any, log), OPTIONS, 2**20, intake=intake)
    async with asyncio.timeout(60):
        await pump.run()
    assert log.sealed
    assert [event.seq for event in log.rows] == list(range(1, len(log.rows) + 1))
    return [_written(json.loads(event.json)) for event in log.rows]


def _written(body: dict[str, Any]) -> list[Any]:
    assert set(body) <= {"seq", "type", "data", "created_at", "run_id", "synthesized"}
    assert body["run_id"] == "run-1"
    return [body["type"], body["data"], *(["synthesized"] if body.get("synthesized") else [])]


def odd() -> dict[str, float]:
    """What was counted of the system's odd words so far."""
    samples = next(iter(telemetry.UPSTREAM_ODD.collect())).samples
    return {s.labels["what"]: s.value for s in samples if s.labels["upstream"] == "sim" and s.name.endswith("_total")}
