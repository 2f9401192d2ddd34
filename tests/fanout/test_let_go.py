"""What a run held here is freed when its last reader goes, and not when garbage is looked for: that is seldom."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import aiohttp
import pytest
from aiohttp import web

from relay.delivery.multiplex import Multiplex
from relay.fanout.topic import Topic
from relay.ingest.source import Source
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import relay_here
from tests.system.test_many import many, script, session

__all__ = ["session"]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held(kind: type, run_ids: list[str]) -> list[object]:
    return [one for one in gc.get_objects() if type(one) is kind and _run_of(one) in run_ids]


def _run_of(one: object) -> str:
    """The run id; of a source, it is in what it asks for."""
    if isinstance(one, Topic):
        return one.key.run_id
    assert isinstance(one, Source)
    return one._ask.path.split("/")[3]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", [Topic, Source])
async def test_a_run_nobody_watches_any_more_is_held_by_nothing(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession, kind: type
) -> None:
    async with relay_here(upstream.url, redis_url) as relay:

        async def let_go() -> bool:
            run_ids = [upstream.play(script(5), rate=500) for _ in range(6)]
            for run_id in run_ids:
                async with session.get(relay.events(run_id)) as response:
                    assert b"relay.end" in await response.read()
            for _ in range(50):
                if len(held(kind, run_ids)) <= 2:  # whoever looked at the last ones may have them in hand
                    return True
                await asyncio.sleep(0.1)
            return False

        # What holds itself is held every time; a busy machine may keep a reader who has left in hand for longer at times.
        assert await let_go() or await let_go() or await let_go() or await let_go()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("query", ["runs={run_id}", "thread=t"])
async def test_a_reader_of_many_runs_who_has_left_is_held_by_nothing(
    upstream: ScriptedUpstream, redis_url: str, query: str
) -> None:
    async with relay_here(upstream.url, redis_url, ingest={"unwanted_s": 0.5}) as relay:
        url = many(relay, query.format(run_id=upstream.add_run(script(5)[:-1], thread_id="t")))
        for _ in range(4):
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                while b"message.delta" not in await response.content.readline():
                    pass
        async with asyncio.timeout(60):
            while sum(type(one) is Multiplex for one in gc.get_objects()) > 1:
                await asyncio.sleep(0.1)


@pytest.mark.usefixtures("no_collector")
async def test_a_websocket_that_was_closed_is_held_by_nothing(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with relay_here(upstream.url, redis_url, ingest={"unwanted_s": 0.5}) as relay:
        run_id = upstream.add_run(script(5)[:-1])
        for _ in range(4):
            async with aiohttp.ClientSession() as session, session.ws_connect(relay.events(run_id)) as socket:
                await socket.receive()
        async with asyncio.timeout(60):
            while sum(type(one) is web.WebSocketResponse for one in gc.get_objects()) > 1:
                await asyncio.sleep(0.1)
