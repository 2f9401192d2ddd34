"""Discovery by itself: a real Redis and a scripted upstream, but nobody who pumps, so that wants can be looked at."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import orjson
import pytest

from relay import telemetry
from relay.core.errors import StoreUnavailable
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.core.options import Secret
from relay.ingest import search as search_module
from relay.ingest.discovery import Discovery
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.upstream import Upstream
from relay.providers.arkloop.provider import Arkloop
from relay.store.embedded import EmbeddedServer
from relay.store.findings import Findings
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Log
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store
from tests.support import upstream_faults as faults
from tests.support.upstream import ScriptedUpstream

OPTIONS = IngestOptions(lease_s=0.6, unwanted_s=0.9, discover_s=0.05, discover_per_s=10_000.0, connect_timeout_s=0.5)
STARTED, ENDED = ("run.started", {}), ("run.completed", {})


class SmallPages(Arkloop):
    list_limit = 4


class TappedLog(Log):
    """Remembers every want, call by call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[list[str]] = []
        self.wants: Counter[str] = Counter()

    async def want(self, keys: Any) -> None:
        await super().want(keys)
        self.calls.append([key.run_id for key in keys])
        self.wants.update(self.calls[-1])


class Bench:
    """One Redis prefix, one upstream, any number of processes' lookouts."""

    def __init__(self, store: Store, upstream: ScriptedUpstream, session: aiohttp.ClientSession) -> None:
        self.name = f"u{secrets.token_hex(4)}"  # metrics are the process's: a name of its own for every test
        self.store = store
        self.keys = Keys(f"t{secrets.token_hex(4)}", 64)
        self.log = self._log()
        self.session = session
        self.scripted = upstream
        self.findings = Findings(store, self.keys, self.name, lease_s=OPTIONS.lease_s, live_s=100.0)

    def _log(self) -> TappedLog:
        return TappedLog(self.store, self.keys, RetentionOptions(), lease_s=3.0, want_s=OPTIONS.unwanted_s)

    @asynccontextmanager
    async def looking(self, options: IngestOptions = OPTIONS, provider: Any = None) -> AsyncIterator[Discovery]:
        """A process with discovery; it drains at the end."""
        where = UpstreamOptions(self.name, "arkloop", self.scripted.url, Secret("upstream-secret"))
        upstream = Upstream(where, provider or Arkloop(), self.session, options)
        discovery = Discovery({self.name: upstream}, {self.name: self.findings}, self.log, options)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(discovery.run())
            try:
                yield discovery
            finally:
                await discovery.release()

    def wanted(self, run_ids: Iterable[str]) -> bool:
        return all(self.log.wants[run_id] for run_id in run_ids)

    def looks(self, outcome: str = "ok") -> float:
        return telemetry.LOOKS.labels(self.name, outcome)._value.get()

    async def until(self, fact: Callable[[], object], timeout_s: float = 60.0) -> None:
        await self.scripted.until(fact, timeout_s)

    async def more_looks(self, count: int = 3, outcome: str = "ok") -> None:
        target = self.looks(outcome) + count
        await self.until(lambda: self.looks(outcome) >= target)

    def lists(self) -> list[dict[str, str]]:
        return [asked.query for asked in self.scripted.requests if asked.path == "/v1/runs"]

    async def seal(self, run_id: str) -> None:
        """What a pump would do in the end."""
        claim = await self.log.claim(RunKey(self.name, run_id))
        assert isinstance(claim, Claim)
        if claim.lease is not None:
            event = Event(1, "run.completed", b'{"seq":1}')
            assert await self.log.append([Append(claim.lease, 0, [event], {})]) == [None]
            await self.log.seal(claim.lease, prev=1, status="completed")

    def add(self, count: int, *events: Any, **row: Any) -> list[str]:
        return [self.scripted.add_run([STARTED, *events], **row) for _ in range(count)]


@pytest.fixture
async def bench(redis_url: str, upstream: ScriptedUpstream) -> AsyncIterator[Bench]:
    store = Store(redis_url, RedisOptions())
    await store.check()
    async with aiohttp.ClientSession() as session:
        yield Bench(store, upstream, session)
    await store.close()


# --- what is found ---------------------------------------------------------------------------------------------------
async def test_at_the_first_look_what_is_active_is_wanted_and_history_is_not(bench: Bench) -> None:
    history = bench.add(300, ENDED)
    active = bench.add(3)
    bench.scripted.set_status(active[2], "cancelling")
    async with bench.looking():
        await bench.until(lambda: bench.wanted(active))
        await bench.more_looks()
    assert not set(history) & bench.log.wants.keys()


async def test_a_short_run_is_wanted_until_it_is_sealed_and_never_again(bench: Bench) -> None:
    async with bench.looking():
        await bench.more_looks()
        short = bench.add(10, ENDED)
        await bench.until(lambda: bench.wanted(short))
        for run_id in short:
            await bench.seal(run_id)
        await bench.until(_stable(lambda: sum(bench.log.wants.values())))
        assert telemetry.RUNS_DISCOVERED.labels(bench.name)._value.get() == 10
    async with bench.looking():
        await bench.more_looks(5)
    assert telemetry.RUNS_DISCOVERED.labels(bench.name)._value.get() == 10
    assert (await bench.findings.recall()).open == []


def _stable(value: Callable[[], object], for_s: float = 1.0) -> Callable[[], bool]:
    """Whether a value has not changed for longer than a want is left unsaid."""
    loop = asyncio.get_running_loop()
    last: list[Any] = [value(), loop.time()]

    def fact() -> bool:
        if value() != last[0]:
            last[:] = [value(), loop.time()]
        return bool(loop.time() - last[1] > for_s)

    return fact


async def test_runs_made_while_nobody_looked_are_wanted_by_the_next_who_does(bench: Bench) -> None:
    history = bench.add(5, ENDED)
    async with bench.looking():
        await bench.more_looks(1)
    between = bench.add(7, ENDED)
    async with bench.looking():
        await bench.until(lambda: bench.wanted(between))
    assert not set(history) & bench.log.wants.keys()


async def test_an_upstream_whose_first_run_comes_later(bench: Bench) -> None:
    async with bench.looking():
        await bench.more_looks(1)
    first = bench.add(1, ENDED, created_at=datetime.now(UTC) - timedelta(days=1))
    async with bench.looking():
        await bench.until(lambda: bench.wanted(first))


async def test_ties_and_late_commits_are_not_missed(bench: Bench) -> None:
    """A run may appear in the list after a later one, or with its very time."""
    at = datetime.now(UTC)
    bench.add(2, ENDED, created_at=at)
    async with bench.looking():
        await bench.more_looks(1)
        late = bench.add(1, ENDED, created_at=at) + bench.add(1, ENDED, created_at=at - timedelta(seconds=20))
        await bench.until(lambda: bench.wanted(late))
    assert bench.log.wants.keys() == set(late)


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
async def test_the_mark_goes_by_the_upstreams_clock(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Ours may be hours behind it: its newest runs would count as from the future, and the mark would never move."""
    monkeypatch.setattr(search_module.Upstream, "now_s", lambda _: time.time() + ahead_s)
    there = datetime.now(UTC) + timedelta(seconds=ahead_s)
    async with bench.looking():
        await bench.more_looks(1)
        run_ids = bench.add(2, ENDED, created_at=there)
        await bench.until(lambda: bench.wanted(run_ids))
        await bench.more_looks(2)
        assert (await bench.findings.recall()).mark_us == int(there.timestamp() * 1_000_000)
        odd = bench.add(1, ENDED, created_at=there + timedelta(seconds=120))
        await bench.until(lambda: bench.wanted(odd))
        await bench.more_looks(2)
        assert (await bench.findings.recall()).mark_us == int(there.timestamp() * 1_000_000), "two minutes ahead of it"


async def test_a_run_from_the_future_hides_no_other(bench: Bench) -> None:
    async with bench.looking():
        await bench.more_looks(1)
        odd = bench.add(1, ENDED, created_at=datetime(2999, 1, 1, tzinfo=UTC))
        await bench.until(lambda: bench.wanted(odd))
        later = bench.add(2, ENDED)
        await bench.until(lambda: bench.wanted(later))


async def test_what_our_log_has_sealed_is_not_wanted_although_the_upstream_calls_it_active(bench: Bench) -> None:
    (sealed,) = bench.add(1)
    await bench.seal(sealed)
    async with bench.looking():
        await bench.more_looks(5)
    assert bench.log.wants[sealed] == 0


# --- paging ----------------------------------------------------------------------------------------------------------
async def test_the_oldest_active_run_is_reached_page_by_page_and_look_by_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_PAGES", 2)
    oldest = bench.add(1, created_at=datetime.now(UTC) - timedelta(days=300))
    bench.add(40, ENDED)
    active = bench.add(30)
    async with bench.looking(provider=SmallPages()):
        await bench.until(lambda: bench.wanted(active + oldest))
        asked, looks = len(bench.lists()), bench.looks()
    assert looks > 30 / 4 / 2
    assert asked <= (looks + 1) * 4 + 1, "new and active runs: two pages each per look, and one page to begin with"


async def test_runs_that_are_made_while_we_page_hide_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    active = bench.add(30)
    made: list[str] = []
    answer = bench.scripted._list

    def grow(request: Any) -> Any:
        if len(made) < 60:
            made.extend(bench.add(2, *([ENDED] if len(made) % 4 else [])))
        return answer(request)

    monkeypatch.setattr(bench.scripted, "_list", grow)
    async with bench.looking(provider=SmallPages()):
        await bench.until(lambda: len(made) == 60 and bench.wanted(active))
        await bench.until(lambda: bench.wanted(made[4:]))


async def test_one_bad_row_does_not_hide_the_others(bench: Bench) -> None:
    now = datetime.now(UTC).isoformat()
    good = {"run_id": "good", "status": "running", "created_at": now}
    odd = [None, 7, [], {}, {"run_id": "../x"}, {"run_id": None}, {"run_id": "no-time", "status": "completed"}]
    rows = [*odd, good, {"run_id": "no-time-but-active", "status": ["?"], "created_at": {}}]
    body = orjson.dumps({"data": rows, "total": "many"}).decode()
    bench.scripted.fault(faults.Fault(target="list", body=body, content_type="application/json"), times=None)
    async with bench.looking():
        await bench.until(lambda: bench.wanted(["good", "no-time-but-active"]))
        await bench.more_looks(2, "odd")
    assert bench.log.wants.keys() == {"good", "no-time-but-active"}


# --- how much --------------------------------------------------------------------------------------------------------
async def test_new_wants_are_bounded_and_all_come_in_the_end(bench: Bench) -> None:
    """30 a second, and a tick of 0.2 s (a third of the lease): no more than 6 new ones each time."""
    active = bench.add(60)
    seen: set[str] = set()
    async with bench.looking(replace(OPTIONS, discover_per_s=30.0, unwanted_s=60.0)):
        await bench.until(lambda: bench.wanted(active))
    for call in bench.log.calls:
        new = set(call) - seen
        assert len(new) <= 6
        seen |= new
    assert sum(bench.log.wants.values()) == 60


async def test_less_than_one_run_a_tick_is_possible(bench: Bench) -> None:
    active = bench.add(3)
    async with bench.looking(replace(OPTIONS, discover_per_s=2.0, unwanted_s=60.0)):
        await bench.until(lambda: bench.wanted(active))
    assert [len(call) for call in bench.log.calls] == [1, 1, 1]


async def test_what_somebody_wants_already_is_no_new_load(bench: Bench) -> None:
    active = bench.add(20)
    await Log.want(bench.log, [RunKey(bench.name, run_id) for run_id in active])
    async with bench.looking(replace(OPTIONS, discover_per_s=0.001)):
        await bench.until(lambda: bench.wanted(active))
    assert telemetry.RUNS_DISCOVERED.labels(bench.name)._value.get() == 0


# --- trouble ---------------------------------------------------------------------------------------------------------
TROUBLE = {
    "unauthorized": faults.status(401, target="list"),
    "busy": faults.status(429, target="list", retry_after=0),
    "unreachable": faults.status(503, target="list"),
    "refused": faults.html(target="list"),
    "stall": faults.Fault(target="list", end="stall"),
}


class Said:
    """Stands in for a logger: the lines, by level."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **_: Any) -> None:
        self.lines.append(event)

    warning = exception = info


@pytest.mark.parametrize("outcome", [*TROUBLE, "odd", "away"])
async def test_a_list_that_fails_is_survived_and_wants_are_kept_up(
    bench: Bench, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.ingest.discovery._LONGEST_S", 0.05)
    monkeypatch.setattr("relay.ingest.discovery._RETRY_AFTER_S", 0.1)  # a 503 without the header asks for 2 s
    active = bench.add(3)
    async with bench.looking(replace(OPTIONS, connect_timeout_s=0.5)) as discovery:
        said = discovery._lookouts[0]._say = Said()
        await bench.until(lambda: bench.wanted(active))
        if outcome == "away":
            await bench.scripted.refuse()
        elif outcome == "odd":
            bench.scripted.fault(faults.Fault(target="list", body='{"data":[3]}'), times=None)
        else:
            bench.scripted.fault(TROUBLE[outcome], times=None)
        label = {"away": "unreachable"}.get(outcome, outcome)
        await bench.more_looks(4, label)
        before = bench.log.wants.copy()
        await bench.until(lambda: all(bench.log.wants[run_id] >= before[run_id] + 4 for run_id in active))
        bench.scripted.heal()
        if outcome == "away":
            await bench.scripted.accept()
        later = bench.add(2, ENDED)
        await bench.until(lambda: bench.wanted(later))
        await bench.more_looks(2)
    assert [line for line in said.lines if "lost" not in line and "looking" not in line] == [
        "discovery.trouble",
        "discovery.recovered",
    ]


async def test_an_upstream_that_asks_for_patience_gets_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real = asyncio.sleep

    async def slept(seconds: float) -> None:
        if (task := asyncio.current_task()) and task.get_name().startswith("looks "):
            pauses.append(seconds)
            seconds = 0.01
        await real(seconds)

    bench.scripted.fault(faults.status(429, target="list", retry_after=77), times=2)
    monkeypatch.setattr("relay.ingest.discovery.asyncio.sleep", slept)
    async with bench.looking():
        await bench.until(lambda: len(pauses) >= 3)
    assert pauses[:3] == [77.0, 77.0, OPTIONS.discover_s]


async def test_a_crash_is_no_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = Arkloop.rows

    def rows(self: Arkloop, answer: object) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ZeroDivisionError
        return real(self, answer)

    monkeypatch.setattr(Arkloop, "rows", rows)
    active = bench.add(2)
    async with bench.looking():
        await bench.until(lambda: bench.wanted(active))
    assert bench.looks("crashed") == 2


async def test_redis_away_is_waited_for(own_redis: EmbeddedServer, upstream: ScriptedUpstream) -> None:
    store = Store(own_redis.url, RedisOptions(timeout_s=0.3))
    await store.check()
    async with aiohttp.ClientSession() as session:
        bench = Bench(store, upstream, session)
        away = False
        real = store.call

        async def call(what: str, calls: Any) -> Any:
            if away:
                raise StoreUnavailable("away")
            return await real(what, calls)

        store.call = call  # type: ignore[method-assign]
        async with bench.looking():
            await bench.more_looks(2)
            away = True
            await bench.until(_stable(lambda: len(bench.lists())))
            asked = len(bench.lists())
            new = bench.add(3, ENDED)
            assert not bench.log.wants
            away = False
            await bench.until(lambda: bench.wanted(new))
            assert len(bench.lists()) > asked
            own_redis.stop()
            await bench.until(_stable(lambda: len(bench.lists())))
    await store.close()


# --- who looks -------------------------------------------------------------------------------------------------------
async def test_one_process_looks_and_another_at_once_when_it_drains(bench: Bench) -> None:
    async with bench.looking() as first:
        await bench.more_looks(1)
        holder = await _token(bench)
        async with bench.looking():
            for _ in range(10):
                await bench.more_looks(1)
                assert await _token(bench) == holder
            await first.release()
            assert await _token(bench) != holder, "given back at once"
            await bench.more_looks(2)
            active = bench.add(2)
            await bench.until(lambda: bench.wanted(active))
        assert await _token(bench) is None
        assert telemetry.LOOKING.labels(bench.name)._value.get() == 0


async def _token(bench: Bench) -> bytes | None:
    found: bytes | None = (await bench.store.run("test", [("GET", bench.keys.of_upstream("looker", bench.name))]))[0]
    return found


async def test_who_lost_the_lease_stops_asking_the_upstream_at_once(bench: Bench) -> None:
    """As after a freeze, or a failover to a replica that did not know of it."""
    async with bench.looking():
        await bench.more_looks(2)
        key = bench.keys.of_upstream("looker", bench.name)
        await bench.store.run("test", [("SET", key, "another", "PX", 600_000)])
        await bench.until(_stable(lambda: len(bench.lists()), 0.5))
        new = bench.add(2)
        await bench.until(_stable(lambda: len(bench.lists()), 1.0))
        assert not bench.log.wants
        assert (await bench.findings.recall()).open == []
        await bench.store.run("test", [("DEL", key)])
        await bench.until(lambda: bench.wanted(new))


async def test_open_runs_outlive_the_process_that_found_them(bench: Bench) -> None:
    """Found but not yet wanted (the rate is bounded) when it died: its successor wants them."""
    async with bench.looking(replace(OPTIONS, discover_per_s=0.001)):
        await bench.more_looks(2)
        short = bench.add(5, ENDED)
        await bench.more_looks(3)
        assert len(bench.log.wants) <= 1
    assert set((await bench.findings.recall()).open) == set(short)
    for run_id in short:
        bench.scripted.remove_run(run_id)
    async with bench.looking():
        await bench.until(lambda: bench.wanted(short))


async def test_a_run_that_cannot_be_sealed_is_given_up_when_it_is_long_gone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.ingest.found._GONE_S", 0.5)
    refused, waiting = bench.add(2)
    async with bench.looking():
        await bench.until(lambda: bench.wanted([refused, waiting]))
        assert isinstance(await bench.log.claim(RunKey(bench.name, refused)), Claim)
        for run_id in (refused, waiting):
            bench.scripted.finish(run_id)
        await bench.until(lambda: bench.log.wants[waiting] > bench.log.wants[refused] + 3)
    assert (await bench.findings.recall()).open == [waiting], "who has not had its turn yet goes on waiting"
