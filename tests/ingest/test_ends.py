"""The end of a run and its log: what is noted of it is never ahead of what is written, whatever breaks in between."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from relay.core.errors import StoreUnavailable, UpstreamUnavailable
from relay.core.events import Draft, Event
from relay.core.ids import RunKey
from relay.ingest import pump as pump_module
from relay.ingest.options import IngestOptions
from relay.ingest.pump import GONE, Pump
from relay.ingest.source import Ending
from relay.store.log import Append, Claim, Lease, LogState

KEY = RunKey("main", "r")
LEASE = Lease(KEY, "owner", "1")


class Redis:
    """A log and its committer in one: keeps what is appended, until it goes away after `lives` appends."""

    def __init__(self, lives: int = 1000) -> None:
        self.lives = lives
        self.rows: list[Event] = []
        self.state: dict[str, str] = {}
        self.appends: list[Append] = []
        self.sealed: str | None = None

    async def append(self, append: Append) -> None:
        if self.lives <= 0:
            raise StoreUnavailable("away")
        self.lives -= 1
        self.appends.append(append)
        self.rows += append.events
        self.state |= append.fields

    async def tail(self, key: RunKey, most: int, *, before: int | None = None) -> list[Event]:
        return [row for row in self.rows if before is None or row.seq < before][-most:]

    async def seal(self, lease: Lease, *, prev: int, status: str) -> None:
        self.sealed = status

    def claim(self) -> Claim:
        last_seq = self.rows[-1].seq if self.rows else 0
        status = self.state.get("status", "running")
        return Claim(LEASE, LogState(last_seq=last_seq, status=status, status_known="status" in self.state))


class System:
    """An upstream that answers GET run with this status, or not at all."""

    name = "main"
    statuses = ("completed", "running")

    def __init__(self, says: str | None = None) -> None:
        self.says = says
        self.asked = 0
        self.provider: Any = self

    def now_s(self) -> float:
        return 0.0

    def get_run(self, run_id: str) -> str:
        return run_id

    async def ask(self, ask: str) -> str:
        self.asked += 1
        if self.says is None:
            raise UpstreamUnavailable("away")
        return self.says

    def run(self, answer: str) -> dict[str, str]:
        return {"status": answer, "raw_status": answer}


def pump_of(redis: Redis, system: System | None = None, **options: float) -> Pump:
    every = IngestOptions(**cast(Any, {"backoff_base_s": 0.001, "backoff_cap_s": 0.002, **options}))
    pump = Pump(KEY, cast(Any, system or System()), cast(Any, redis), cast(Any, redis), every, 1_000_000)
    pump.lease = LEASE
    return pump


def drafts(count: int, **kinds: str) -> list[Draft]:
    """`count` events, of which some (`at_7="run.completed"`) are not text."""
    every = ((seq, kinds.get(f"at_{seq}", "message.delta")) for seq in range(1, count + 1))
    return [Draft(seq, kind, {"seq": seq, "type": kind, "data": {}}) for seq, kind in every]


async def test_an_end_that_was_not_written_is_not_noted() -> None:
    """The batch is split, and Redis goes away between its two parts."""
    redis = Redis(lives=1)
    with pytest.raises(StoreUnavailable):
        await pump_of(redis)._take(drafts(600, at_600="run.completed"))
    assert redis.rows[-1].seq < 600
    assert "status" not in redis.state
    redis.lives = 1000
    pump = pump_of(redis)
    await pump._begin(redis.claim())
    assert not pump._over()
    assert not pump._run.ended


@pytest.mark.parametrize("at", [1, 300, 512, 513, 600])
async def test_an_end_is_noted_with_the_very_part_that_holds_it(at: int) -> None:
    """Also if many events follow: one that is in the log but not noted would be written a second time."""
    redis = Redis()
    await pump_of(redis)._take(drafts(600, **{f"at_{at}": "run.completed"}))
    assert len(redis.appends) == 2
    [noted] = [append for append in redis.appends if "status" in append.fields]
    assert at in [event.seq for event in noted.events]


async def test_of_two_ends_in_one_batch_each_part_notes_its_own() -> None:
    redis = Redis()
    await pump_of(redis)._take(drafts(600, at_10="run.completed", at_600="run.failed"))
    assert [append.fields.get("status") for append in redis.appends] == ["completed", "failed"]


async def test_the_same_holds_for_what_a_stream_pushes() -> None:
    pump = pump_of(Redis())
    events = pump._admit(drafts(3, at_1="run.waiting_for_input", at_3="run.completed")).events
    assert [_status(pump, [event]) for event in events] == ["waiting_for_input", None, "completed"]


def _status(pump: Pump, part: Sequence[Event]) -> str | None:
    return pump._appending(part).fields.get("status")


async def test_a_noted_end_that_is_not_in_the_log_is_not_believed() -> None:
    """As after an operator's XDEL, or by an owner of an earlier version."""
    redis = Redis()
    await pump_of(redis)._take(drafts(600))
    redis.state["status"] = "completed"
    pump = pump_of(redis)
    await pump._begin(redis.claim())
    assert not pump._run.ended
    await pump._append([], {"primed": "1"})
    assert redis.state["status"] == "running"


async def test_a_noted_end_with_very_many_events_behind_it_is_believed() -> None:
    redis = Redis()
    await pump_of(redis)._take(drafts(1700, at_2="run.cancelled"))
    pump = pump_of(redis, linger_s=0.0)
    await pump._begin(redis.claim())
    assert pump._over()


# --- before the seal --------------------------------------------------------------------------------------------------
def finished(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, *drains: str, says: str | None = None
) -> tuple[Pump, list[str]]:
    """A pump of a run that has ended, whose upstream answers each drain so (the last word for ever)."""
    monkeypatch.setattr(pump_module, "MISSING_PAUSE_S", 0.001)
    pump, left, done = pump_of(redis, System(says), linger_s=0.0), list(drains), list[str]()

    async def drain() -> Ending:
        word = left.pop(0) if len(left) > 1 else left[0]
        done.append(word)
        if word == "eof" and len(redis.rows) == 2:
            await pump._take(drafts(3), confirming=True)
        return Ending(word)

    monkeypatch.setattr(pump, "_drain", drain)
    return pump, done


async def ended(redis: Redis) -> Claim:
    await pump_of(redis)._take(drafts(2, at_2="run.completed"))
    return redis.claim()


async def test_a_finished_run_is_sealed_only_when_it_was_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = Redis()
    claim = await ended(redis)
    pump, drained = finished(redis, monkeypatch, "unreachable", "reset", "busy", "gone", "stall", "eof")
    async with asyncio.timeout(60):
        await pump._own(claim)
    assert drained[:6] == ["unreachable", "reset", "busy", "gone", "stall", "eof"]
    assert redis.rows[-1].seq == 3, "what came behind the end is not lost"
    assert redis.sealed == "completed"


async def test_a_finished_run_that_nobody_knows_any_more_is_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = Redis()
    claim = await ended(redis)
    pump, drained = finished(redis, monkeypatch, "unreachable", "gone")
    async with asyncio.timeout(60):
        await pump._own(claim)
    assert drained.count("gone") >= GONE
    assert redis.sealed == "completed"


async def test_a_finished_run_is_not_kept_open_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = Redis()
    claim = await ended(redis)
    pump, drained = finished(redis, monkeypatch, "unreachable")
    monkeypatch.setattr(pump_module, "_RECONCILE_S", 0.05)
    async with asyncio.timeout(60):
        await pump._own(claim)
    assert len(drained) > 2
    assert redis.sealed == "completed"


@pytest.mark.parametrize("refusal", ["refused", "unauthorized", "junk", "reset"])
async def test_a_finished_run_whose_upstream_agrees_but_will_not_show_it_is_sealed_soon(
    monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    redis = Redis()
    claim = await ended(redis)
    pump, drained = finished(redis, monkeypatch, refusal, says="completed")
    monkeypatch.setattr(pump_module, "_REFUSED_S", 0.05)
    async with asyncio.timeout(10):
        await pump._own(claim)
    assert len(drained) > 2, "not at the first refusal"
    assert redis.sealed == "completed"


@pytest.mark.parametrize(
    ("answer", "says"),
    [("refused", None), ("refused", "running"), ("busy", "completed"), ("unreachable", "completed")],
)
async def test_one_whose_upstream_is_away_or_busy_or_says_otherwise_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, answer: str, says: str | None
) -> None:
    """429 or 503 to a drain is no refusal: what it has behind the end is had when it can show it."""
    redis = Redis()
    claim = await ended(redis)
    pump, drained = finished(redis, monkeypatch, *[answer] * 50, "eof", says=says)
    monkeypatch.setattr(pump_module, "_REFUSED_S", 0.0)
    async with asyncio.timeout(60):
        await pump._own(claim)
    assert drained[-1] == "eof"
    assert redis.rows[-1].seq == 3
    assert redis.sealed == "completed"


async def test_what_a_drain_still_brings_begins_the_patience_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    redis = Redis()
    claim = await ended(redis)
    pump, _ = finished(redis, monkeypatch, "reset", says="completed")
    monkeypatch.setattr(pump_module, "_REFUSED_S", 0.0)
    drain = pump._drain

    async def cut_after_one() -> Ending:
        if redis.rows[-1].seq < 22:
            await pump._take(drafts(redis.rows[-1].seq + 1), confirming=True)
        return await drain()

    monkeypatch.setattr(pump, "_drain", cut_after_one)
    async with asyncio.timeout(10):
        await pump._own(claim)
    assert redis.rows[-1].seq == 22
    assert redis.sealed == "completed"
