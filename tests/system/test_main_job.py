"""The main job, end to end: upstream -> log -> many viewers, over real HTTP and a real Redis."""

from __future__ import annotations

import asyncio
import random

from tests.support.needs import recording
from tests.support.relay import running
from tests.support.upstream import ScriptedUpstream
from tests.support.viewer import Journal, watch_sse, watch_websocket


def normal(events: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [(event["seq"], event["type"], event["data"]) for event in events]


async def test_every_viewer_sees_the_recording_whatever_moment_it_joins(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    events = recording("web-search")
    async with running(upstream.url, redis_url) as relay:
        run_id = upstream.play(events, speed=8.0)
        chance = random.Random(7)

        async def join(i: int) -> Journal:
            await asyncio.sleep(chance.random())
            watch = watch_websocket if i % 4 == 0 else watch_sse
            return await watch(relay.session, relay.events(run_id), Journal(str(i)), chance=random.Random(i))

        async with asyncio.timeout(60):
            journals = await asyncio.gather(*(join(i) for i in range(24)))
        truth = upstream.truth(run_id)
        for journal in journals:
            assert journal.seqs == [event["seq"] for event in truth]
            assert [e["type"] for e in journal.events] == [e["type"] for e in truth]
            assert journal.clean_ends == 0
        assert upstream.max_following(run_id) == 1
