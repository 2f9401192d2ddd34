"""Single moments in the life of an own-seq run that the campaign meets too seldom to rely on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import groupby
from random import Random
from typing import Any, cast

import aiohttp
import pytest

from relay.core.errors import StoreUnavailable
from relay.core.ids import RunKey
from relay.ingest.options import UpstreamOptions
from relay.ingest.own_pump import OwnPump
from relay.ingest.own_upstream import OwnUpstream
from relay.providers import OWN_SEQ
from relay.providers.contract import Ask
from relay.store.log import Seen, state_of
from tests.support.sim_threads import Script, SimRun, Step
from tests.support.sim_world import KEY, OPTIONS, MemoryLog, World, text_of
from tests.support.thread_server import ThreadServer, until

TEXTS = ["Hello", ", ", "wor", "ld"]


def world_of(shape: str = "vercel") -> World:
    """A run that goes on only as the test says, nothing goes wrong by itself, and only its stream tells of it early."""
    world = World(1, shape, trouble=0.0)
    world.sim.script = Script([Step("text", text) for text in TEXTS], "completed")
    world.sim.go_on = lambda most=2: None  # type: ignore[method-assign]
    world.sim.attach_replays, world.sim.partial_messages, world.sim.no_messages = True, False, False
    world.sim.at = 0
    world.upstream.note_thread(KEY.run_id, "thread-1")
    return world


@asynccontextmanager
async def pumped(world: World, shown: Callable[[RunKey], Seen] = lambda _: Seen()) -> AsyncIterator[OwnPump]:
    log = cast(Any, world.log)
    pump = OwnPump(KEY, world.upstream, log, log, OPTIONS, 2**20, shown=shown)
    task = asyncio.create_task(pump.run())
    yield pump
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def bodies(world: World) -> list[dict[str, Any]]:
    return [json.loads(event.json) for event in world.log.rows if event.seq >= world.log.generation]


async def test_who_only_took_a_log_over_knows_what_it_held() -> None:
    world = world_of()
    log = world.log
    async with pumped(world):
        world.sim.at = 1
        await until(lambda: log.last_seq >= 2)
        early = list(log.rows), dict(log.fields)
        world.sim.at = 3
        await until(lambda: log.last_seq >= 4)
    held = log.last_seq
    answer, asked = world.upstream.answer, asyncio.Event()

    async def unanswered(ask: Ask) -> Any:
        asked.set()
        await asyncio.sleep(60)

    world.upstream.answer = unanswered  # type: ignore[method-assign]
    async with pumped(world) as pump:
        await asked.wait()
        assert pump.durable_seq == held, "and nothing written yet"
        log.rows, log.fields = early
        world.upstream.answer = answer  # type: ignore[method-assign]
        pump.interrupt()
        await until(lambda: log.generation > held)
        assert log.reused == []


async def test_what_viewers_here_have_seen_is_said_with_the_claim() -> None:
    world = world_of()
    log = world.log
    world.sim.at = 1
    async with pumped(world):
        await until(lambda: log.last_seq >= 2)
    born = log.born
    async with pumped(world, lambda _: Seen(7, born)):
        await until(lambda: log.generation > 7)


async def test_an_expired_log_is_not_begun_at_one_because_redis_was_away_when_it_was_asked_for() -> None:
    world = world_of()
    log = world.log
    log.past = True
    has_past, asked = log.has_past, []

    async def away(key: RunKey) -> bool:
        asked.append(key)
        if len(asked) == 1:
            raise StoreUnavailable("away")
        return await has_past(key)

    log.has_past = away  # type: ignore[method-assign]
    world.sim.at = 2
    async with pumped(world):
        await until(lambda: log.rows)
    assert log.rows[0].seq == log.generation > 1


async def test_a_replay_that_a_look_made_ends_the_stream_that_was_open() -> None:
    """The places of the outer stream are forgotten by then: what it says next would be told twice."""
    world = world_of()
    sim, opened = world.sim, 0
    make = sim.bytes

    def gated(*, from_start: bool) -> Iterator[bytes]:
        """The first stream says nothing more between the run's end and the beginning of the replay."""
        nonlocal opened
        opened += 1
        for piece in make(from_start=from_start):
            while sim.ended and opened == 1:
                yield b""
            yield piece

    sim.bytes = gated  # type: ignore[method-assign]
    sim.at, sim.messages_lag = 2, 2
    async with pumped(world):
        await until(lambda: "Hello, " in _said(world))
        await asyncio.sleep(OPTIONS.idle_check_s * 2)  # a look that finds it under way
        sim.at, sim.ended = len(TEXTS), True
        await until(lambda: world.log.sealed)
    assert opened >= 2
    assert "message.reset" not in [body["type"] for body in bodies(world)]
    assert _said(world) == "Hello, world"


def _said(world: World) -> str:
    return text_of(bodies(world)).decode("utf-16-le")


@pytest.mark.parametrize("over", [False, True])
async def test_what_a_look_finds_while_its_stream_speaks_again_does_not_overtake_the_stream(over: bool) -> None:
    """A stream that was silent is looked behind; in that moment the run calls a tool, and then says something."""
    chance = Random(1)
    steps = [Step("text", "before"), Step("call", id="c"), Step("result", id="c", text="out"), Step("text", " after")]
    sim = SimRun(Script(steps, "completed"), "vercel", chance, at=1, messages_lag=0)
    sim.go_on = lambda most=2: None  # type: ignore[method-assign]
    messages, looks = sim.messages, 0

    def speaks_again() -> list[dict[str, Any]]:
        nonlocal looks
        looks += 1
        if looks == 1:
            sim.at, sim.ended = len(steps), over
        return messages()

    log = MemoryLog(chance, 0.0)
    options = replace(OPTIONS, idle_check_s=0.3)
    async with ThreadServer(sim) as server, aiohttp.ClientSession() as session:
        at = UpstreamOptions("sim", "seekrflow", server.url, poll_s=0.2)
        upstream = OwnUpstream(at, OWN_SEQ["seekrflow"], session, options)
        pump = OwnPump(KEY, upstream, cast(Any, log), cast(Any, log), options, 2**20)
        task = asyncio.create_task(pump.run())
        await until(lambda: "primed" in log.fields and log.last_seq >= 2)
        sim.messages = speaks_again  # type: ignore[method-assign]
        await until(lambda: looks and log.last_seq >= 5)
        sim.ended = True
        await until(lambda: log.sealed)
        await task
    told = [json.loads(event.json) for event in log.rows]
    kinds = [kind for kind, _ in groupby(body["type"] for body in told)]
    assert kinds == ["run.started", "message.delta", "tool.call", "tool.result", "message.delta", "run.completed"]
    assert text_of(told).decode("utf-16-le") == "before after"


@pytest.mark.parametrize("word", [b": ping\n\n", b'data: {"type":"text-delta","id":"t","delta":"."}\n\n'])
async def test_a_stream_that_never_falls_silent_holds_the_end_of_its_run_up_only_for_a_while(word: bytes) -> None:
    """It pings, or goes on speaking, although the run is over: it may go first for some looks, and not for ever."""
    chance = Random(1)
    sim = SimRun(Script([Step("text", "said")], "completed"), "vercel", chance, at=1, messages_lag=0)
    sim.go_on = lambda most=2: None  # type: ignore[method-assign]
    make = sim.bytes

    def endless(*, from_start: bool) -> Iterator[bytes]:
        sim.ended = False
        told = make(from_start=from_start)
        while (piece := next(told)) != b"":
            yield piece
        sim.ended = True
        while True:
            yield word

    sim.bytes = endless  # type: ignore[method-assign]
    log = MemoryLog(chance, 0.0)
    options = replace(OPTIONS, idle_check_s=0.02)
    async with ThreadServer(sim) as server, aiohttp.ClientSession() as session:
        at = UpstreamOptions("sim", "seekrflow", server.url, poll_s=0.02)
        upstream = OwnUpstream(at, OWN_SEQ["seekrflow"], session, options)
        upstream.note_thread(KEY.run_id, "thread-1")
        pump = OwnPump(KEY, upstream, cast(Any, log), cast(Any, log), options, 2**20)
        task = asyncio.create_task(pump.run())
        await until(lambda: log.sealed, within_s=10)
        await task
    kinds = [kind for kind, _ in groupby(json.loads(event.json)["type"] for event in log.rows)]
    assert kinds[0] == "run.started"
    assert kinds[-1] == "run.completed"


async def test_who_has_seen_all_of_a_generation_is_told_of_the_next_also_if_the_clock_of_redis_is_behind() -> None:
    """A new master's clock may be behind what was numbered from the old one's: then the fence is no help."""
    world = world_of()
    log, cursor = world.log, world.log.fence * 10
    world.sim.at = 2
    async with pumped(world, lambda _: Seen(cursor, "another")):
        await until(lambda: log.rows)
    assert log.generation > cursor
    assert state_of(log.fields).rewritten(cursor), "or it takes the run, told again, for what follows"
