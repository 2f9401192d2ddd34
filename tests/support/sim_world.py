"""The product's own pump between a made-up system (`sim_threads.py`) and a log in memory, under seeded cuts and crashes.

Everything between is real: SSE decoding, the providers' tables, the assembler, the pump. The log keeps what Redis would:
rows and fields of one append together or not at all. A crash is a new pump that knows nothing but the log.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import aiohttp

from relay.core.errors import LogMoved, NotFound, RelayError, StoreUnavailable, UpstreamUnavailable
from relay.core.events import FINAL_STATUS, Event
from relay.core.ids import RunKey
from relay.ingest.intake import Intake
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.own_pump import OwnPump
from relay.ingest.own_upstream import OwnUpstream
from relay.providers import OWN_SEQ
from relay.providers.contract import Ask
from relay.store.log import Append, Claim, Lease, state_of
from tests.support.sim_threads import SimRun, script

KEY = RunKey("sim", "run-1")
OPTIONS = IngestOptions(idle_check_s=0.05, backoff_base_s=0.0001, backoff_cap_s=0.001, lease_s=0.01)


class MemoryLog:
    """One run's stream and hash."""

    def __init__(self, chance: Random, trouble: float) -> None:
        self.chance = chance
        self.trouble = trouble
        self.rows: list[Event] = []
        self.fields: dict[str, str] = {}
        self.fence = 1_000_000
        self.sealed = False
        self.losses = 0
        self.shown = 0
        """The highest seq a reader was ever shown."""

    async def claim(self, key: RunKey, *, reopen: bool = False) -> Claim:
        await asyncio.sleep(0)
        if self.chance.random() < self.trouble:
            raise StoreUnavailable("away")
        self.fence += 1_000
        self.fields["fence"] = str(self.fence)
        fields = dict(self.fields)
        last = self.rows[-1].seq if self.rows else 0
        return Claim(Lease(key, "me", str(self.fence)), state_of(fields, last), fields)

    async def append(self, append: Append) -> None:
        """As `Committer.append`: before it, after it, or not at all may Redis be away."""
        await asyncio.sleep(0)
        dice = self.chance.random()
        if dice < self.trouble / 2:
            raise StoreUnavailable("away before")
        if self.fields.get("fence") != append.lease.fence or append.prev != (self.rows[-1].seq if self.rows else 0):
            raise LogMoved("moved")
        self.rows += append.events
        self.fields |= append.fields
        self.shown = max([self.shown, *(event.seq for event in append.events)])
        if dice > 1 - self.trouble / 2:
            raise StoreUnavailable("away after")

    async def seal(self, lease: Lease, *, prev: int, status: str) -> None:
        if prev != (self.rows[-1].seq if self.rows else 0):
            raise LogMoved("moved")
        self.sealed = True
        self.fields["status"] = status

    async def note_past(self, key: RunKey, thread_id: str) -> None:
        await asyncio.sleep(0)

    async def has_past(self, key: RunKey) -> bool:
        return False

    async def thread_of(self, key: RunKey) -> str:
        return "thread-1"

    def lose(self) -> None:
        """A flush, rows without their hash, or a replica that lagged behind (rows and hash as they once were)."""
        self.losses += 1
        kind = self.chance.choice(["flush", "hash", "rows"])
        if kind != "hash":
            self.rows.clear()
        if kind != "rows":
            self.fields.clear()


class SimUpstream(OwnUpstream):
    """Answers from a made-up run instead of from the network."""

    def __init__(self, run: SimRun, provider: str, chance: Random, trouble: float) -> None:
        options = UpstreamOptions("sim", provider, "http://sim", poll_s=0.0)
        super().__init__(options, OWN_SEQ[provider], cast(aiohttp.ClientSession, None), IngestOptions())
        self.run = run
        self.chance = chance
        self.trouble = trouble

    async def answer(self, ask: Ask) -> tuple[Any, Mapping[str, str]]:
        await asyncio.sleep(0)
        self.run.go_on()
        if self.chance.random() < self.trouble:
            raise self.chance.choice([UpstreamUnavailable("no"), self.provider.error(500, {}, None)])
        found = self._answer(ask.path)
        return json.loads(json.dumps(found)), {}

    def _answer(self, path: str) -> Any:
        assistants = self.run.shape == "assistants"
        if path.endswith("/messages"):
            return {"data": self.run.messages(), "has_more": False} if assistants else self.run.messages()
        if path.endswith("/steps"):
            return {"data": self.run.steps()}
        if path.endswith("/run-1"):
            return self.run.run()
        raise NotFound("no such path")

    @asynccontextmanager
    async def stream(self, ask: Ask, *, json_too: bool = False, stall_s: float | None = None) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        if self.chance.random() < self.trouble:
            raise UpstreamUnavailable("no")
        pieces = self.run.bytes(from_start=json_too or self.run.attach_replays)
        cut = self.chance.choice([None, self.chance.randint(0, 60)]) if self.trouble else None
        yield _Response(pieces, cut, clean=self.chance.random() < 0.5)


class _Response:
    content_type = "text/event-stream"

    def __init__(self, pieces: Any, cut: int | None, *, clean: bool) -> None:
        self.content = self
        self._pieces = pieces
        self._cut = cut
        self._clean = clean

    async def readany(self) -> bytes:
        while True:
            await asyncio.sleep(0)
            if self._cut is not None:
                self._cut -= 1
                if self._cut < 0 and self._clean:
                    return b""
                if self._cut < 0:
                    raise aiohttp.ClientPayloadError
            piece: bytes | None = next(self._pieces, None)
            if piece is None:
                return b""
            if piece:
                return piece

    async def iter_any(self) -> AsyncIterator[bytes]:
        while piece := await self.readany():
            yield piece


class World:
    """One seeded run from its creation to its seal."""

    def __init__(self, seed: int, shape: str, *, trouble: float = 0.05, losses: int = 0) -> None:
        self.chance = Random(seed)
        provider = "openai" if shape == "assistants" else "seekrflow"
        self.sim = SimRun(script(self.chance, asks=shape == "assistants"), shape, self.chance)
        self.sim.attach_replays = self.chance.random() < 0.7
        self.sim.partial_messages = self.chance.random() < 0.5
        self.log = MemoryLog(self.chance, trouble)
        self.upstream = SimUpstream(self.sim, provider, self.chance, trouble)
        self.trouble = trouble
        self.losses = losses
        self.created = shape == "assistants" and self.chance.random() < 0.7

    async def run(self) -> None:
        intake = None
        if self.created:
            ask = self.upstream.provider.create_run("thread-1", {})
            intake = Intake(self.upstream, ask, event_bytes=2**20)
            intake.task = asyncio.create_task(intake.read())
            try:
                await intake.created()
            except RelayError:
                intake = None
        while not self.log.sealed:
            pump = OwnPump(
                KEY, self.upstream, cast(Any, self.log), cast(Any, self.log), OPTIONS, 2**20,
                intake=intake, shown=lambda _: self.log.shown,
            )  # fmt: skip
            intake = None
            await self._pump_until_it_crashes(pump)

    async def _pump_until_it_crashes(self, pump: OwnPump) -> None:
        task = asyncio.create_task(pump.run())
        while not task.done():
            for _ in range(self.chance.randint(5, 400)):
                await asyncio.sleep(0)
            if self.losses and not self.log.sealed and self.chance.random() < 0.3:
                self.losses -= 1
                self.log.lose()
                pump.interrupt()
            elif self.trouble and self.chance.random() < 0.3:
                break
        task.cancel()
        pump.close()
        await asyncio.gather(task, return_exceptions=True)
        if task.done() and not task.cancelled():
            task.result()

    # --- what must be true of the log -------------------------------------------------------------------------------
    def check(self) -> None:
        rows, first = self.log.rows, int(self.log.fields.get("generation", "1"))
        mine = [event for event in rows if event.seq >= first]
        assert [event.seq for event in mine] == list(range(first, first + len(mine)))
        bodies = [json.loads(event.json) for event in mine]
        assert [body["seq"] for body in bodies] == [event.seq for event in mine]
        kinds = [body["type"] for body in bodies]
        assert kinds[0] == "run.started"
        assert Counter(kinds)["run.started"] == 1
        assert [kind for kind in kinds if kind in FINAL_STATUS] == [kinds[-1]]
        assert FINAL_STATUS[kinds[-1]] == self.sim.script.status
        times = [body["created_at"] for body in bodies]
        assert times == sorted(times)
        self._check_tools(bodies)
        assert text_of(bodies) == _joined(self.sim.script.messages)

    def _check_tools(self, bodies: list[dict[str, Any]]) -> None:
        seen = {
            kind: [b["data"]["tool_call_id"] for b in bodies if b["type"] == kind]
            for kind in ("tool.call", "tool.result")
        }
        scripted = {step.id for step in self.sim.script.steps if step.kind == "call"}
        for ids in seen.values():
            assert len(ids) == len(set(ids))
            assert set(ids) <= scripted
        if self.sim.shape == "assistants":
            assert set(seen["tool.call"]) == scripted == set(seen["tool.result"])
        waits = [
            tuple(c["id"] for c in b["data"]["tool_calls"]) for b in bodies if b["type"] == "run.waiting_for_input"
        ]
        assert len(waits) == len(set(waits))


def text_of(bodies: list[dict[str, Any]]) -> bytes:
    """The text a reader has at the end: what was reset is forgotten. As UTF-16, in which halves of a pair are one again."""
    parts: dict[str, str] = {}
    for body in bodies:
        data = body["data"]
        if body["type"] == "message.reset":
            parts[data["part"]] = ""
        elif body["type"] == "message.delta":
            parts[data["part"]] = parts.get(data["part"], "") + data["content"]
    return _joined(list(parts.values()))


def _joined(texts: list[str]) -> bytes:
    return "".join(texts).encode("utf-16-le", "surrogatepass")


async def live(seed: int, shape: str, **more: Any) -> World:
    world = World(seed, shape, **more)
    async with asyncio.timeout(20):
        await world.run()
    world.check()
    return world
