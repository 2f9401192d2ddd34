"""The product's own pump between a made-up system (`sim_threads.py`) and a log in memory, under seeded cuts and crashes.

Everything between is real: SSE decoding, the providers' tables, the assembler, the pump. The log keeps what Redis would:
rows and fields of one append together or not at all. A crash is a new pump that knows nothing but the log.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
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
from relay.store.log import Append, Claim, Lease, Seen, state_of
from tests.support.sim_threads import SimRun, script

KEY = RunKey("sim", "run-1")
OPTIONS = IngestOptions(idle_check_s=0.05, backoff_base_s=0.0001, backoff_cap_s=0.001, lease_s=0.01)


class MemoryLog:
    """One run's stream and hash, as the scripts in relay/store/lua keep them, and what a loss can leave of them."""

    def __init__(self, chance: Random, trouble: float) -> None:
        self.chance = chance
        self.trouble = trouble
        self.rows: list[Event] = []
        self.fields: dict[str, str] = {}
        self.fence = 1_000_000
        """Redis' clock."""
        self.life = 1
        """Which server answers, since when."""
        self.ever: dict[int, bytes] = {}
        """Every event that was ever durable."""
        self.reused: list[int] = []
        """Seqs that were given to other events before."""
        self.thread_id: str | None = "thread-1"
        """What is known of it beside the log, if anything is."""
        self.past = False
        self.losses = 0
        self.forgotten = False
        """Nothing was left by which anybody could know that there had been events."""
        self._past: list[tuple[list[Event], dict[str, str]]] = []

    @property
    def last_seq(self) -> int:
        return self.rows[-1].seq if self.rows else 0

    @property
    def generation(self) -> int:
        return int(self.fields.get("generation", "1"))

    @property
    def sealed(self) -> bool:
        return self.fields.get("sealed") == "1"

    @property
    def short(self) -> bool:
        """Events of this generation were seen that are not there."""
        seen = int(self.fields.get("seen", "0"))
        return seen > self.last_seq and seen >= self.generation

    @property
    def born(self) -> str:
        return self.fields.get("born", "")

    def note_seen(self, seq: int, born: str) -> None:
        if seq and born and self.born not in ("", born) and self.generation == 1:
            seq = max(seq, self.last_seq + 1)
        if seq > max(self.last_seq, int(self.fields.get("seen", "0"))) and seq >= self.generation:
            self.fields["seen"] = str(seq)

    async def claim(self, key: RunKey, *, reopen: bool = False, seen: Seen | None = None) -> Claim:
        await self._may_be_away()
        if seen is not None:
            self.note_seen(*seen)
        if self.sealed and self.rows and not self.short:
            return Claim(None, state_of(dict(self.fields), self.last_seq), dict(self.fields))
        self.fence = max(self.fence + 1_000, int(self.fields.get("fence", "0")) + 1)
        if self.fields.get("life", str(self.life)) != str(self.life):
            self.fields["doubt"] = "1"
        self.fields |= {"life": str(self.life), "fence": str(self.fence)}
        self.fields.setdefault("born", str(self.fence))
        gone = ("sealed",) if self.rows else ("sealed", "primed", "floor", "gone", "last_seq", "status")
        for name in gone:
            self.fields.pop(name, None)
        self._note()
        return Claim(Lease(key, "me", str(self.fence)), state_of(dict(self.fields), self.last_seq), dict(self.fields))

    async def append(self, append: Append) -> None:
        """As `Committer.append`: before it, after it, or not at all may Redis be away."""
        await asyncio.sleep(0)
        dice = self.chance.random()
        if dice < self.trouble / 2:
            raise StoreUnavailable("away before")
        self._refuse(append.lease, append.prev, {**self.fields, **append.fields})
        for event in append.events:
            if self.ever.setdefault(event.seq, event.json) != event.json:
                self.reused.append(event.seq)
        self.rows += append.events
        self.fields |= append.fields
        self._note()
        if dice > 1 - self.trouble / 2:
            raise StoreUnavailable("away after")

    async def seal(self, lease: Lease, *, prev: int, status: str) -> None:
        self._refuse(lease, prev, self.fields)
        self.fields |= {"status": status, "sealed": "1"}
        self._note()

    def _refuse(self, lease: Lease, prev: int, fields: dict[str, str]) -> None:
        if self.fields.get("fence") != lease.fence or prev != self.last_seq:
            raise LogMoved("moved")
        if prev < int(fields.get("seen", "0")) >= int(fields.get("generation", "1")):
            raise LogMoved("more was seen")

    async def note_past(self, key: RunKey, thread_id: str) -> None:
        await self._may_be_away()
        self.past = True

    async def has_past(self, key: RunKey) -> bool:
        await self._may_be_away()
        return self.past

    async def _may_be_away(self) -> None:
        await asyncio.sleep(0)
        if self.chance.random() < self.trouble:
            raise StoreUnavailable("away")

    async def thread_of(self, key: RunKey) -> str | None:
        return self.fields.get("thread_id") or self.thread_id

    # --- losses -----------------------------------------------------------------------------------------------------
    def _note(self) -> None:
        self._past.append((list(self.rows), dict(self.fields)))

    def lose(self) -> None:
        """A flush, rows without their hash or the hash without its rows; or a replica that lagged behind takes over."""
        self.losses += 1
        kind = self.chance.choice(["flush", "hash", "rows", "lag", "lag", "lag"])
        if kind == "lag":
            self._fail_over()
        if kind in ("flush", "rows"):
            self.rows.clear()
        if kind in ("flush", "hash"):
            self.fields.clear()
        self.past = self.past and kind != "flush"
        self.forgotten = self.forgotten or not (self.rows or "life" in self.fields)

    def _fail_over(self) -> None:
        behind = min(self.chance.choice([0, 1, 1, 2, 4, 9, 30]), len(self._past))
        del self._past[len(self._past) - behind :]
        self.rows, self.fields = (list(self._past[-1][0]), dict(self._past[-1][1])) if self._past else ([], {})
        self.life += 1


class Reader:
    """A viewer in another process: what its follower reads, is told, and says."""

    def __init__(self) -> None:
        self.cursor = 0
        self.born = ""
        """The log in which that is."""
        self.got: list[Event] = []
        self.resets = 0

    def read(self, log: MemoryLog) -> None:
        if log.generation - 1 > self.cursor:
            self.resets += self.cursor > 0
            self.cursor = log.generation - 1
            self.got.clear()
        self.got += [event for event in log.rows if event.seq > self.cursor]
        self.cursor = max(self.cursor, log.last_seq)
        self.born = self.born or log.born

    def check(self, log: MemoryLog) -> None:
        """As the follower once a second: a log that ends before what was shown has lost rows, and its owner must know."""
        log.note_seen(self.cursor, self.born)
        if log.losses:
            log.fields.setdefault("thread_id", "thread-1")


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
        if path.endswith("/messages") and self.run.no_messages:
            raise NotFound("no such call")
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
    total_bytes = 0
    """Nothing arrives here before it is read."""

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
        self.sim.no_messages = self.chance.random() < 0.1
        self.sim.partial_messages = self.chance.random() < 0.5
        self.log = MemoryLog(self.chance, trouble)
        self.upstream = SimUpstream(self.sim, provider, self.chance, trouble)
        self.trouble = trouble
        self.losses = losses
        self.created = shape == "assistants" and self.chance.random() < 0.7
        self.readers = [Reader() for _ in range(3)]

    async def run(self) -> None:
        intake = None
        self.upstream.note_thread(KEY.run_id, "thread-1")
        self.log.thread_id = None
        if self.created:
            ask = self.upstream.provider.create_run("thread-1", {})
            intake = Intake(self.upstream, ask, event_bytes=2**20)
            intake.task = asyncio.create_task(intake.read())
            try:
                await intake.created()
            except RelayError:
                intake = None
        while not self._over():
            pump = OwnPump(
                KEY, self.upstream, cast(Any, self.log), cast(Any, self.log), OPTIONS, 2**20,
                intake=intake, shown=self._shown_here(),
            )  # fmt: skip
            intake = None
            await self._pump_until_it_crashes(pump)
            if self.log.rows:
                self.upstream._threads.clear()  # another process goes on, which knows what the log says

    def _shown_here(self) -> Callable[[RunKey], Seen]:
        """What viewers in the pump's own process have seen: it may have none."""
        here = self.readers[0] if self.chance.random() < 0.5 else None
        return lambda _: Seen(here.cursor, here.born) if here is not None else Seen()

    def _over(self) -> bool:
        """Sealed, and nobody has seen more than there is."""
        for reader in self.readers if self.log.sealed else ():
            reader.check(self.log)
        return self.log.sealed and not self.log.short

    async def _pump_until_it_crashes(self, pump: OwnPump) -> None:
        task = asyncio.create_task(pump.run())
        while not task.done():
            for _ in range(self.chance.randint(5, 120 if self.losses else 400)):
                await asyncio.sleep(0)
                if self.chance.random() < 0.02:
                    self._readers_read()
            if self.losses and not self.log.sealed and self.chance.random() < 0.3:
                self.losses -= 1
                self.log.lose()
                if self.chance.random() < 0.5:
                    break  # the owner and the rows at once
                pump.interrupt()
            elif self.trouble and self.chance.random() < 0.3:
                break
        task.cancel()
        pump.close()
        await asyncio.gather(task, return_exceptions=True)
        if task.done() and not task.cancelled():
            task.result()

    def _readers_read(self) -> None:
        reader = self.chance.choice(self.readers)
        if self.chance.random() < 0.3:
            reader.check(self.log)
        else:
            reader.read(self.log)

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
        gaps = [kind for kind in kinds if kind == "run.gap"]
        assert gaps == kinds[-2:-1] if self.sim.no_messages else not gaps, "told once, right before the end"
        assert self.sim.no_messages or text_of(bodies) == _joined(self.sim.script.messages)
        self._check_readers(mine)

    def _check_readers(self, mine: list[Event]) -> None:
        """Nobody is left with events of two lives; and no seq is given twice, unless nothing is left to know it by."""
        for reader in self.readers:
            reader.read(self.log)
            assert [event.seq for event in reader.got] == [event.seq for event in mine]
            assert [event.json for event in reader.got] == [event.json for event in mine], "same seq, other content"
        assert self.log.forgotten or not self.log.reused

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
    async with asyncio.timeout(60):
        await world.run()
    world.check()
    return world
