"""`delivery.max_age_s`: streams that can be resumed are sent round once in a while, and nothing is lost or repeated."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.support.many import SseViewer
from tests.support.upstream import ScriptedUpstream
from tests.support.viewer import Journal, watch_sse
from tests.system.rig import relay_here
from tests.system.test_many import exact, many, script, session
from tests.system.watching import native
from tests.web.raw import connection

__all__ = ["session"]
pytestmark = pytest.mark.timeout(60)

BRIEF: dict[str, Any] = {"max_age_s": 1.5}


async def test_a_long_stream_is_sent_round_and_resumed_exactly(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, delivery=BRIEF) as relay:
        run_id = upstream.play(script(150), rate=25)
        one, several = Journal(), SseViewer(many(relay, f"runs={run_id}"))
        async with asyncio.timeout(50):
            await asyncio.gather(watch_sse(session, relay.events(run_id), one), several.watch(session))
        assert one.events == [native(event) for event in upstream.truth(run_id)]
        exact(several, upstream, run_id)
        assert {said["code"] for said in several.said("goodbye")} == {"max_age"}
        assert several.connections > 2


async def test_a_websocket_is_told_1012(
    upstream: ScriptedUpstream, redis_url: str, session: aiohttp.ClientSession
) -> None:
    async with relay_here(upstream.url, redis_url, delivery=BRIEF, ingest={"unwanted_s": 0.5}) as relay:
        run_id = upstream.add_run(script(2)[:-1])
        async with session.ws_connect(relay.events(run_id)) as socket:
            said = [message.json() async for message in socket]
        assert said[-1]["type"] == "relay.goodbye"
        assert (said[-1]["code"], said[-1]["reconnect"], socket.close_code) == ("max_age", True, 1012)


async def test_a_face_whose_clients_cannot_resume_is_left_alone(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with (
        relay_here(upstream.url, redis_url, delivery=BRIEF, ingest={"unwanted_s": 0.5}) as relay,
        connection(relay.url) as raw,
    ):
        run_id = upstream.add_run(script(2)[:-1])
        await raw.ask(f"/arkloop/v1/runs/{run_id}/events")
        native_one = asyncio.create_task(relay.session.get(relay.events(run_id)))
        with pytest.raises(aiohttp.ClientPayloadError):
            await (await native_one).read()  # what has come round here has not come round there
        upstream.finish(run_id)
        assert b"run.completed" in await raw.until(b"run.completed")
        assert not raw.was_reset
