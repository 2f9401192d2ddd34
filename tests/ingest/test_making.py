"""Runs made where they are kept in threads: one POST, one run, and the only stream there is, whatever happens.

A real log, a real ingestor, HTTP to a made-up system (`thread_server.py`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
import redis as sync_redis

from relay import telemetry
from relay.core.errors import Overloaded, RelayError, UpstreamError, UpstreamUnavailable
from relay.core.ids import RunKey
from relay.ingest import making
from relay.ingest.ingestor import Ingestor
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.own_upstream import OwnUpstream
from relay.providers import OWN_SEQ, threads
from relay.store.keys import Keys
from relay.store.log import Log
from relay.store.options import RedisOptions, RetentionOptions
from relay.store.redis import Store
from tests.support.sim_world import text_of
from tests.support.thread_server import Fault, ThreadServer, hello, until

KEY = RunKey("main", "run-1")
OPTIONS = IngestOptions(
    lease_s=1.0, stall_s=5.0, connect_timeout_s=2.0, idle_check_s=1.0, backoff_base_s=0.02, backoff_cap_s=0.3
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_LOOKS_S", (0.0, 0.1, 0.3))


@dataclass
class Bench:
    server: ThreadServer
    ingestor: Ingestor
    upstream: OwnUpstream
    log: Log
    raw: sync_redis.Redis

    async def create(self) -> dict[str, Any]:
        async with asyncio.timeout(60):
            return await self.ingestor.create(self.upstream, "thread-1", {})

    async def told(self, run_id: str = "run-1") -> list[dict[str, Any]]:
        """The run's events, once it is sealed."""
        key = RunKey("main", run_id)
        async with asyncio.timeout(60):
            while (state := (await self.log.states([key]))[0]) is None or not state.sealed:
                await asyncio.sleep(0.02)
        return [json.loads(event.json) for event in (await self.log.read([(key, 0, 1000)]))[0]]

    @property
    def posts(self) -> int:
        return sum(1 for method, _, _ in self.server.asked if method == "POST")


@asynccontextmanager
async def bench(server: ThreadServer, redis_url: str, provider: str = "openai", **more: Any) -> AsyncIterator[Bench]:
    prefix = f"t{secrets.token_hex(4)}"
    store = Store(redis_url, RedisOptions(prefix=prefix))
    await store.check()
    log = Log(store, Keys(prefix, 64), RetentionOptions(), lease_s=OPTIONS.lease_s, want_s=60.0)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        options = UpstreamOptions("main", provider, server.url, poll_s=0.05, **more)
        upstream = OwnUpstream(options, OWN_SEQ[provider], session, OPTIONS)
        ingestor = Ingestor(log, {"main": upstream}, OPTIONS, event_bytes=2**20)
        running = tasks.create_task(ingestor.run())
        await until(lambda: ingestor._tasks is not None)
        with sync_redis.Redis.from_url(redis_url) as raw:
            yield Bench(server, ingestor, upstream, log, raw)
        assert not running.done(), "it goes on whatever became of one run"
        await ingestor.release()
        running.cancel()
    await store.close()


def whole(events: list[dict[str, Any]]) -> None:
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [events[0]["type"], events[-1]["type"]] == ["run.started", "run.completed"]
    assert text_of(events).decode("utf-16-le") == "Hello, world! And more."


def streamed(events: list[dict[str, Any]]) -> bool:
    return not any(event.get("synthesized") for event in events if event["type"] == "message.delta")


# --- the only stream there is -----------------------------------------------------------------------------------------
async def test_a_create_goes_on_when_nobody_waits_for_it(redis_url: str) -> None:
    async with ThreadServer() as server, bench(server, redis_url) as relay:
        run = server.next_run = hello(shape="assistants", partial_messages=False)
        wait = asyncio.Event()
        run.bytes = held(run.bytes, wait)  # type: ignore[method-assign]
        asking = asyncio.create_task(relay.create())
        await until(lambda: server.streams)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        wait.set()
        events = await relay.told()
        whole(events)
        assert streamed(events)
        assert server.left == 0


async def test_the_last_place_is_taken_before_the_post(redis_url: str) -> None:
    """Else two get it, and the only stream of one of them is closed."""
    async with ThreadServer() as server, bench(server, redis_url) as relay:
        relay.ingestor._options = replace(OPTIONS, runs=1)
        run = server.next_run = hello(shape="assistants", partial_messages=False)
        wait = asyncio.Event()
        run.bytes = held(run.bytes, wait)  # type: ignore[method-assign]
        first = asyncio.create_task(relay.create())
        await until(lambda: server.streams)
        with pytest.raises(Overloaded):
            await relay.create()
        relay.ingestor.want(RunKey("main", "somebody-elses"))
        assert relay.posts == 1
        wait.set()
        await first
        events = await relay.told()
        whole(events)
        assert streamed(events)
        await until(lambda: not relay.ingestor._pumped)
        assert relay.ingestor._kept_free == 0, "and it is free again"


async def test_a_place_is_free_again_when_no_run_was_made(redis_url: str) -> None:
    async with ThreadServer() as server, bench(server, redis_url) as relay:
        relay.ingestor._options = replace(OPTIONS, runs=1)
        server.faults["runs"] = [Fault(status=422, body='{"detail": "no"}') for _ in range(2)]
        for _ in range(2):
            with pytest.raises(RelayError) as raised:
                await relay.create()
            assert not isinstance(raised.value, Overloaded)
        await until(lambda: relay.ingestor._kept_free == 0)


async def test_a_run_that_has_no_place_here_is_wanted_from_the_others(redis_url: str) -> None:
    async with ThreadServer() as server, bench(server, redis_url, "seekrflow") as relay:
        relay.ingestor._options = replace(OPTIONS, runs=0)
        server.next_run = hello()
        made = RunKey("main", str((await relay.create())["run_id"]))
        assert not relay.ingestor._pumped
        assert relay.raw.zscore(relay.log.keys.wants(made), relay.log.keys.member(made)) is not None


async def test_the_stream_of_a_run_that_is_pumped_here_already_is_read(redis_url: str) -> None:
    """Somebody watched it before the answer to making it was there: to close its only stream could end it."""
    run = hello(shape="assistants", partial_messages=False)
    go_on, run.go_on = run.go_on, lambda most=2: None  # type: ignore[method-assign]
    async with ThreadServer(run) as server, bench(server, redis_url) as relay:
        relay.upstream.note_thread("run-1", "thread-1")
        relay.ingestor.want(KEY)
        await until(lambda: server.count("run") > 2)
        server.next_run = run
        await relay.create()
        run.go_on = go_on  # type: ignore[method-assign]
        events = await relay.told()
        whole(events)
        assert streamed(events)
        assert server.left == 0


async def test_a_pump_that_loses_its_run_reads_the_runs_stream_to_its_end(redis_url: str) -> None:
    async with ThreadServer() as server, bench(server, redis_url) as relay:
        run = server.next_run = hello(shape="assistants")
        go_on, run.go_on = run.go_on, lambda most=2: None  # type: ignore[method-assign]
        await relay.create()
        keys = relay.log.keys
        await until(lambda: relay.ingestor.describe()[0]["owned"])
        relay.raw.hset(keys.run(KEY), mapping={"owner": "another", "fence": "1"})
        async with asyncio.timeout(60):
            while relay.ingestor.describe():
                relay.raw.zadd(keys.leases(KEY), {keys.member(KEY): relay.raw.time()[0] * 1000 + 2000})  # type: ignore[index]
                await asyncio.sleep(0.05)
        run.go_on = go_on  # type: ignore[method-assign]
        await until(lambda: not server.streams)
        assert server.left == 0
        whole(await relay.told())


async def test_a_stream_that_cannot_be_read_ends_nothing_else(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something in it that nobody thought of: the other runs of this process go on, and so does this one, by looks."""

    def broken(*_: object) -> dict[str, Any]:
        raise ZeroDivisionError

    async with ThreadServer() as server, bench(server, redis_url) as relay:
        server.next_run = hello(shape="assistants")
        monkeypatch.setattr(type(relay.upstream.provider), "created_in", broken)
        crashes = Mock()  # other tests look at the real one
        monkeypatch.setattr(telemetry, "PUMP_CRASHES", crashes)
        await relay.create()
        whole(await relay.told())
        crashes.inc.assert_called_once_with()


# --- an answer that was lost ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("provider", "shape"), [("openai", "assistants"), ("seekrflow", "vercel")])
async def test_a_run_whose_answer_was_lost_is_found_again(redis_url: str, provider: str, shape: str) -> None:
    async with ThreadServer(hello(shape=shape)) as server, bench(server, redis_url, provider) as relay:
        run = server.next_run = hello(shape=shape)
        run.run_id = "run-2"
        server.faults["runs"] = [Fault(cut_after=0)]
        assert (await relay.create())["run_id"] == "run-2"
        whole(await relay.told("run-2"))
        assert relay.posts == 1


async def test_a_stream_that_does_not_say_which_run_it_is_is_read_all_the_same(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ThreadServer() as server, bench(server, redis_url) as relay:
        server.next_run = hello(shape="assistants", partial_messages=False)
        monkeypatch.setattr(type(relay.upstream.provider), "created_in", lambda *_: None)
        assert (await relay.create())["run_id"] == "run-1"
        events = await relay.told()
        whole(events)
        assert streamed(events)


async def test_the_mark_names_the_run_of_a_stream_that_does_not(redis_url: str) -> None:
    """Others were made in the thread meanwhile, and the thread does not say which one it is busy with."""
    async with (
        ThreadServer(hello()) as server,
        bench(server, redis_url, "seekrflow", create="runs/stream/vercel") as relay,
    ):
        run = server.next_run = hello(partial_messages=False)
        run.run_id, server.tells_active = "run-2", False
        assert (await relay.create())["run_id"] == "run-2"
        events = await relay.told("run-2")
        whole(events)
        assert streamed(events)


@pytest.mark.parametrize(
    ("kept", "options", "fault"),
    [(False, {}, Fault(cut_after=0)), (True, {"mark_runs": False}, Fault(cut_after=0)), (True, {}, Fault(body="{}"))],
    ids=["metadata not kept", "not marked", "no run made"],
)
async def test_what_is_not_surely_ours_is_not_taken(
    redis_url: str, kept: bool, options: dict[str, Any], fault: Fault
) -> None:
    """Runs of others in the thread look just like ours. Nobody knows, and it is not asked for again."""
    async with ThreadServer(hello()) as server, bench(server, redis_url, "seekrflow", **options) as relay:
        server.keeps_metadata = kept
        server.next_run = hello()
        server.faults["runs"] = [fault]
        with pytest.raises(UpstreamUnavailable):
            await relay.create()
        assert relay.posts == 1
        assert relay.ingestor.describe() == []


async def test_an_upstream_that_is_not_there_is_not_searched(redis_url: str) -> None:
    async with ThreadServer() as server:
        pass
    async with bench(server, redis_url, "seekrflow") as relay:
        began = asyncio.get_running_loop().time()
        with pytest.raises(UpstreamUnavailable):
            await relay.create()
        assert asyncio.get_running_loop().time() - began < 2


@pytest.mark.parametrize(("status", "kind"), [(500, UpstreamError), (422, RelayError)])
async def test_a_refusal_is_the_upstreams_word(redis_url: str, status: int, kind: type[RelayError]) -> None:
    async with ThreadServer(hello()) as server, bench(server, redis_url, "seekrflow") as relay:
        server.faults["runs"] = [Fault(status=status, body='{"detail": "no"}')]
        with pytest.raises(kind, match="no"):
            await relay.create()
        assert relay.posts == 1


def test_a_mark_takes_no_room_from_the_caller() -> None:
    assert threads.marked({"a": 1}, "m") == {"a": 1, "metadata": {"relay_mark": "m"}}
    assert threads.marked({"metadata": {"k": "v"}}, "m") == {"metadata": {"k": "v", "relay_mark": "m"}}
    assert threads.marked({"metadata": {str(i): "" for i in range(16)}}, "m") is None
    assert threads.marked({"metadata": "what its upstream will refuse"}, "m") is None


def test_nobody_is_shown_the_mark() -> None:
    row = {"id": "r1", "status": "queued", "metadata": {"k": "v", "relay_mark": "m"}}
    assert threads.native_run(row, {})["metadata"] == {"k": "v"}
    assert threads.marked_run([{"id": "r0", "metadata": None}, row], "m") == {
        "run_id": "r1", "thread_id": None, "status": "queued"
    }  # fmt: skip
    assert threads.marked_run([row], "another") is None


def held(make: Any, until_set: asyncio.Event) -> Any:
    """A stream that says nothing until it may."""

    def bytes_(*, from_start: bool) -> Any:
        while not until_set.is_set():
            yield b""
        yield from make(from_start=from_start)

    return bytes_
