"""What a pump does at the edges that a whole system rarely shows."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis as sync_redis

from relay.core.errors import LeaseLost, StoreUnavailable
from relay.core.ids import RunKey
from relay.core.run import status_after
from relay.ingest import pump as pump_module
from relay.ingest.ingestor import Ingestor, _Pumped
from relay.ingest.options import IngestOptions
from relay.ingest.pump import Pump
from relay.ingest.upstream import Client
from relay.providers import OWN_SEQ, PROVIDERS
from relay.store.keys import Keys
from relay.store.log import Lease, Log, Scan
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store
from tests.support.relay import running
from tests.support.upstream import ScriptedUpstream
from tests.support.viewer import Journal, watch_sse


async def test_an_end_in_the_log_is_seen_also_when_the_state_of_the_run_was_lost(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """Only the hash is gone: the log ends with run.completed and a title, so there is no end left to write."""
    prefix = f"t{secrets.token_hex(4)}"
    run_id = upstream.add_run([("run.started", {}), ("run.completed", {}), ("thread.title.updated", {"title": "x"})])
    async with running(upstream.url, redis_url, prefix=prefix) as relay:
        for _ in range(2):
            journal = await watch_sse(relay.session, relay.events(run_id), Journal())
            assert journal.seqs == [1, 2, 3]
            assert journal.ended == {"last_seq": 3, "status": "completed"}
            with sync_redis.Redis.from_url(redis_url) as raw:
                assert raw.delete(Keys(prefix, 64).run(RunKey("main", run_id)))


def test_the_status_of_a_log_is_that_of_its_last_moving_event() -> None:
    def event(kind: str, data: str = "{}") -> Any:
        return pump_module.Event(1, kind, b'{"data":%b}' % data.encode())

    assert status_after([]) == "running"
    assert status_after([event("run.waiting_for_input")]) == "waiting_for_input"
    assert status_after([event("run.waiting_for_input"), event("run.input_provided")]) == "running"
    assert status_after([event("run.failed"), event("thread.title.updated"), event("run.resumed")]) == "failed"
    assert status_after([event("run.completed", '{"delegate_layer":"acp"}')]) == "running"


async def test_a_store_that_is_away_is_never_asked_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a run whose lingering is over: its pump must not turn into a hammer."""

    class Away:
        claims = 0

        async def claim(self, key: RunKey) -> None:
            self.claims += 1
            raise StoreUnavailable("away")

    log, pauses = Away(), []

    async def slept(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            raise asyncio.CancelledError

    unused = cast(Any, None)
    pump = Pump(RunKey("main", "r"), unused, cast(Any, log), unused, IngestOptions(), 1)
    pump._linger_until = 0.0
    monkeypatch.setattr(pump_module.random, "random", lambda: 1.0)
    monkeypatch.setattr(pump_module.asyncio, "sleep", slept)
    with pytest.raises(asyncio.CancelledError):
        await pump.run()
    assert log.claims == 20
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert pauses[-1] == IngestOptions().backoff_cap_s


async def test_one_that_waits_for_the_end_of_a_lease_claims_at_once_when_its_owner_lets_go(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """The lease is so long that only the bell can have brought the second relay to it."""
    prefix = f"t{secrets.token_hex(4)}"
    slow: dict[str, Any] = {"ingest": {"lease_s": 90.0}, "fanout": {"check_s": 60.0}}
    run_id = upstream.add_run([("run.started", {})])
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(running(upstream.url, redis_url, prefix=prefix, **slow))
        journal = Journal()
        async with running(upstream.url, redis_url, prefix=prefix, **slow) as first:
            owners = Journal()
            watching = [asyncio.create_task(watch_sse(first.session, first.events(run_id), owners))]
            await until(lambda: owners.seqs == [1])
            watching.append(asyncio.create_task(watch_sse(second.session, second.events(run_id), journal)))
            await until(lambda: journal.seqs == [1])
            for task in watching[:1]:
                task.cancel()
        upstream.append(run_id, "message.delta", {"content_delta": "a"})
        await until(lambda: journal.seqs == [1, 2])
        upstream.finish(run_id)
        await watching[1]
        assert upstream.max_following(run_id) == 1


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.01)


def test_where_a_part_of_redis_was_away_owners_go_first() -> None:
    log = Log(cast(Any, None), Keys("p", 4), RetentionOptions(), lease_s=3.0, want_s=60.0)
    ingestor = Ingestor(log, {}, IngestOptions(), event_bytes=1)
    every = dict.fromkeys(log.keys.tags(), 0.0)
    away = log.keys.tags()[2]
    ingestor._hold_returned(every)
    assert not ingestor._held
    ingestor._hold_returned({tag: 0.0 for tag in every if tag != away})
    assert not ingestor._held
    ingestor._hold_returned(every)
    assert list(ingestor._held) == [away]


@pytest.mark.parametrize("cut", [470, 480, 499])
def test_no_part_of_our_credentials_is_told(cut: int) -> None:
    token = "sk-secret-0123456789abcdefghijklmnopqrstuvwxyz"
    words = "x" * (cut - 10) + token
    for system in (*PROVIDERS.values(), *OWN_SEQ.values()):
        client = Client.__new__(Client)
        client._system, client._token = cast(Any, system), token
        response = cast(Any, SimpleNamespace(status=400, headers={}))
        error = client._refusal(response, {"error": {"message": words}, "message": words, "detail": words})
        assert token[:8] not in error.message + str(error.details) + error.code


class OthersLog:
    """Every run here is somebody else's, whose lease is renewed while Redis can be reached."""

    def __init__(self) -> None:
        self.keys = Keys("p", 4)
        self.away = False
        self.claims: list[float] = []

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("away")

    async def claim(self, key: RunKey) -> float:
        self._reach()
        self.claims.append(time.monotonic())
        return 1.0

    async def scan(self, most: int) -> Scan:
        self._reach()
        return Scan([], None, dict.fromkeys(self.keys.tags(), time.time()))

    async def want(self, keys: object) -> None:
        self._reach()

    async def release(self, leases: object) -> None:
        self._reach()


@pytest.mark.parametrize("when", ["during", "after"])
async def test_who_comes_to_watch_when_redis_is_back_takes_no_run_from_its_owner(when: str) -> None:
    """Its owner could not renew meanwhile, so its lease is over: it gets one lease time to do so, whoever else wants it."""
    log, lease_s = OthersLog(), 0.6
    upstream = cast(Any, SimpleNamespace(provider=PROVIDERS["arkloop"]))
    options = IngestOptions(lease_s=lease_s, backoff_base_s=0.01, backoff_cap_s=0.02)
    ingestor = Ingestor(cast(Any, log), {"main": upstream}, options, event_bytes=1)
    running = asyncio.create_task(ingestor.run())
    try:
        await until(lambda: ingestor._tasks is not None)
        ingestor.watch(RunKey("main", "before"))
        await until(lambda: bool(log.claims))
        log.away = True
        await until(lambda: ingestor._away)
        if when == "during":
            ingestor.watch(RunKey("main", "r"))
            await asyncio.sleep(0.1)
        log.claims.clear()
        returned, log.away = time.monotonic(), False
        if when == "after":
            ingestor.watch(RunKey("main", "r"))
        await until(lambda: bool(log.claims))
        assert log.claims[0] - returned >= lease_s * 0.99
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_pump_that_finds_a_part_of_redis_away_makes_its_runs_wait_too() -> None:
    log, lease_s = OthersLog(), 30.0
    ingestor = Ingestor(cast(Any, log), {}, IngestOptions(lease_s=lease_s), event_bytes=1)
    key, other = RunKey("main", "r"), RunKey("main", "another")
    assert log.keys.partition(key) != log.keys.partition(other)
    tag = log.keys.tags()[log.keys.partition(key)]
    ingestor._hold_returned(dict.fromkeys(log.keys.tags(), 0.0))
    ingestor._lost.add(tag)
    assert ingestor._held_s(key) > 0 >= ingestor._held_s(other)
    ingestor._hold_returned(dict.fromkeys(log.keys.tags(), 0.0))
    assert ingestor._held_s(key) > lease_s - 1
    assert ingestor._held_s(other) <= 0
    assert ingestor._lost == set()


async def test_a_run_that_redis_refuses_stops_no_ingestor(redis_url: str) -> None:
    """Somebody else's value under one partition's wants: what is watched there cannot be wanted, everything else lives."""
    keys = Keys(f"t{secrets.token_hex(4)}", 4)
    store = Store(redis_url, RedisOptions(prefix=keys.prefix))
    await store.check()
    log = Log(store, keys, RetentionOptions(), lease_s=3.0, want_s=60.0)
    ingestor = Ingestor(log, {}, IngestOptions(), event_bytes=1)
    key = RunKey("main", "r")
    with sync_redis.Redis.from_url(redis_url) as raw:
        raw.set(keys.wants(key), "somebody else's")
    ingestor.watch(key)
    await ingestor._say_wants()
    await store.close()


class SlowLog(OthersLog):
    """Says what it is told to, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def want(self, keys: object) -> None:
        await self._wait()

    async def renew(self, leases: Any) -> dict[RunKey, Exception]:
        await self._wait()
        return {lease.key: LeaseLost("another owner writes it") for lease, _ in leases}

    async def _wait(self) -> None:
        self.asked.set()
        await self.go.wait()


async def test_who_leaves_while_wants_are_said_is_forgotten() -> None:
    log, key, other = SlowLog(), RunKey("main", "r"), RunKey("main", "another")
    ingestor = Ingestor(cast(Any, log), {}, IngestOptions(), event_bytes=1)
    ingestor.watch(key)
    ingestor.watch(other)
    saying = asyncio.create_task(ingestor._say_wants())
    await log.asked.wait()
    ingestor.unwatch(key)
    log.go.set()
    await saying
    assert list(ingestor._wanted_at) == [other]


@pytest.mark.parametrize("anew", [True, False])
async def test_what_is_said_of_a_lease_says_nothing_of_the_next_one(
    anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, key, unused = SlowLog(), RunKey("main", "r"), cast(Any, None)
    ingestor = Ingestor(cast(Any, log), {}, IngestOptions(), event_bytes=1)
    pump = Pump(key, unused, cast(Any, log), unused, IngestOptions(), 1)
    interrupted: list[bool] = []
    monkeypatch.setattr(pump, "interrupt", lambda: interrupted.append(True))
    pump.lease = Lease(key, "us", "1")
    ingestor._pumped[key] = _Pumped(pump)
    renewing = asyncio.create_task(ingestor._renew())
    await log.asked.wait()
    if anew:
        pump.lease = Lease(key, "us", "2")
    log.go.set()
    await renewing
    assert interrupted == ([] if anew else [True])
