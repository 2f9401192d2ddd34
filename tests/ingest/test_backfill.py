"""How a trimmed head is asked for, at the edges that a whole system rarely shows."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest

from relay.core.errors import StoreUnavailable
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.core.options import Secret
from relay.ingest import backfill as backfill_module
from relay.ingest.backfill import Backfill
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.upstream import Upstream
from relay.providers import PROVIDERS
from relay.providers.arkloop.provider import Arkloop
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Log
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store
from tests.support import upstream_faults as faults
from tests.support.upstream import ScriptedUpstream

OPTIONS = IngestOptions(backoff_base_s=0.01, backoff_cap_s=0.05, connect_timeout_s=2.0, stall_s=600.0)


@pytest.fixture
async def log(redis_url: str) -> AsyncIterator[Log]:
    store = Store(redis_url, RedisOptions())
    await store.check()
    yield Log(store, Keys(f"t{secrets.token_hex(4)}", 8), RetentionOptions(), lease_s=1.0, want_s=60.0)
    await store.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


class Numbering(Arkloop):
    """A system that numbers its events anew each time."""

    durable_seq = False


def backfill(
    log: Log, upstream: ScriptedUpstream, session: aiohttp.ClientSession, run_id: str, *, durable: bool = True
) -> Backfill:
    options = UpstreamOptions("main", "arkloop", upstream.url, Secret("upstream-secret"))
    provider = PROVIDERS["arkloop"] if durable else Numbering()
    asked = Upstream(options, provider, session, OPTIONS)
    return Backfill(RunKey("main", run_id), asked, log.old, OPTIONS, 1 << 20, asyncio.Semaphore(1))


async def trimmed(log: Log, run_id: str, floor: int, last: int) -> None:
    claim = await log.claim(RunKey("main", run_id))
    assert isinstance(claim, Claim)
    assert claim.lease is not None
    events = [Event(seq, "t", b"{}") for seq in range(floor + 1, last + 1)]
    assert await log.append([Append(claim.lease, 0, events, {"floor": str(floor)})]) == [None]


def a_run(upstream: ScriptedUpstream, size: int) -> str:
    return upstream.add_run([("run.started", {}), *[("message.delta", {"content_delta": "a"})] * (size - 1)])


async def test_events_of_a_system_that_does_not_number_durably_are_gone(
    log: Log, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    run_id = a_run(upstream, 50)
    await trimmed(log, run_id, 40, 50)
    filling = backfill(log, upstream, session, run_id, durable=False)
    filling.ask(0)
    await filling.run()
    found = await log.old.behind(RunKey("main", run_id), 0, 10)
    assert (found.where, found.gone) == ("gone", 40)
    assert upstream.drains(run_id) == 0


async def test_it_stops_when_nobody_asks_any_more(
    log: Log, upstream: ScriptedUpstream, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_module, "_UNASKED_S", 0.3)
    run_id = a_run(upstream, 50)
    await trimmed(log, run_id, 40, 50)
    await upstream.refuse()
    filling = backfill(log, upstream, session, run_id)
    filling.ask(0)
    async with asyncio.timeout(60):
        await filling.run()
    assert not filling.wanted
    await upstream.accept()


async def test_a_read_that_nobody_needs_any_more_ends_and_the_next_one_goes_on_from_there(
    log: Log, upstream: ScriptedUpstream, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill_module, "_UNASKED_S", 0.3)
    monkeypatch.setattr(backfill_module, "_LOOK_UP_S", 0.1)
    run_id = a_run(upstream, 3000)
    await trimmed(log, run_id, 2900, 3000)
    upstream.fault(faults.stall(after_events=700), run_id)
    filling = backfill(log, upstream, session, run_id)
    filling.ask(0)
    async with asyncio.timeout(60):  # the upstream would only be given up after ten minutes of silence
        await filling.run()
    assert await upto(log, run_id) == 700
    monkeypatch.setattr(backfill_module, "_UNASKED_S", 10.0)
    filling.ask(700)
    await filling.run()
    assert await upto(log, run_id) >= 2900
    assert [one.query["after_seq"] for one in upstream.requests] == ["0", "700"]


async def upto(log: Log, run_id: str) -> int:
    return (await log.old.behind(RunKey("main", run_id), 0, 5000)).events[-1].seq


async def test_a_pruned_head_is_looked_at_from_the_middle_too(
    log: Log, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    run_id = a_run(upstream, 500)
    await trimmed(log, run_id, 400, 500)
    upstream.prune(run_id, 250)
    filling = backfill(log, upstream, session, run_id)
    filling.ask(100)
    await filling.run()
    found = await log.old.behind(RunKey("main", run_id), 100, 10)
    assert (found.where, found.gone) == ("gone", 250)
    assert [e.seq for e in (await log.old.behind(RunKey("main", run_id), 250, 3)).events] == [251, 252, 253]


async def test_a_pruned_head_beyond_the_floor_takes_nothing_from_the_log(
    log: Log, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    run_id = a_run(upstream, 500)
    await trimmed(log, run_id, 400, 500)
    upstream.prune(run_id, 450)
    filling = backfill(log, upstream, session, run_id)
    filling.ask(100)
    await filling.run()
    found = await log.old.behind(RunKey("main", run_id), 100, 10)
    assert (found.where, found.gone) == ("gone", 400)
    assert [e.seq for e in (await log.old.behind(RunKey("main", run_id), 400, 2)).events] == [401, 402]


async def test_who_came_for_a_lower_cursor_makes_it_start_anew_in_the_middle(
    log: Log, upstream: ScriptedUpstream, session: aiohttp.ClientSession
) -> None:
    run_id = a_run(upstream, 3000)
    await trimmed(log, run_id, 2900, 3000)
    filling = backfill(log, upstream, session, run_id)
    filling.ask(2000)
    running = asyncio.ensure_future(filling.run())
    async with asyncio.timeout(60):
        while (await log.old.behind(RunKey("main", run_id), 2000, 1)).where != "old":
            await asyncio.sleep(0)
        filling.ask(5)
        await running
        filling.ask(5)
        await filling.run()
    found = await log.old.behind(RunKey("main", run_id), 0, 3000)
    assert [event.seq for event in found.events][:2900] == list(range(1, 2901))


async def test_a_store_that_is_away_is_never_asked_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        asked = 0

        async def take(self, key: RunKey, cursor: int) -> None:
            self.asked += 1
            raise StoreUnavailable("away")

    old, pauses = Away(), []

    async def slept(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            raise asyncio.CancelledError

    unused = cast(Any, None)
    filling = Backfill(RunKey("main", "r"), unused, cast(Any, old), IngestOptions(), 1, asyncio.Semaphore(1))
    filling.ask(0)
    monkeypatch.setattr(backfill_module.random, "random", lambda: 1.0)
    monkeypatch.setattr(backfill_module.asyncio, "sleep", slept)
    with pytest.raises(asyncio.CancelledError):
        await filling.run()
    assert old.asked == 20
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == IngestOptions().backoff_cap_s
