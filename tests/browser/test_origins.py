"""Pages of other origins: those the operator names may read, others may not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.browser.rig import (
    CLOSED,
    MARKS,
    Front,
    Source,
    Told,
    Traffic,
    at_origin,
    check_end,
    check_events,
    events_path,
)
from tests.support.needs import recording
from tests.support.relay import running
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext

pytestmark = MARKS

_ASK = """async ([url, init]) => {
  try {
    const response = await fetch(url, init);
    return [response.status, response.headers.get("X-Trace-Id") !== null, await response.json()];
  } catch (error) {
    return String(error);
  }
}"""


async def test_a_listed_origin_reads_and_resumes_and_an_unlisted_one_does_not(
    upstream: ScriptedUpstream, redis_url: str, context: BrowserContext
) -> None:
    listed, unlisted = upstream.url, upstream.url.replace("127.0.0.1", "localhost")
    server = {"cors_origins": (listed,)}
    async with running(upstream.url, redis_url, server=server) as relay, Front(relay.url) as front:
        told = Told(upstream, recording("web-search"))
        await told.on(60)
        run_id = told.run_id
        url = front.url + events_path(run_id)
        friend = await at_origin(await context.new_page(), listed)
        stranger = await at_origin(await context.new_page(), unlisted)
        at_friend, at_stranger = Traffic.of(friend), Traffic.of(stranger)
        source, refused = await asyncio.gather(Source.open(friend, url), Source.open(stranger, url))
        await refused.closed()
        now = await source.until(lambda now: now["count"] == 60)
        assert now["opened"] == 1
        front.cut()
        await told.on()
        await source.closed()
        assert (await source.glance())["opened"] == 2
        truth = upstream.truth(run_id)
        check_events(await source.events(), truth)
        await check_end(source, truth[-1]["seq"])
        assert at_friend.answers(run_id) == [200, 200, 204]
        assert {request.method for request in at_friend.requests} == {"GET"}, "a stream must not need a preflight"

        seen = await refused.glance()
        assert (seen["state"], seen["opened"], seen["count"], seen["ended"]) == (CLOSED, 0, 0, 0)
        assert len(at_stranger.streams(run_id)) == 1


async def test_a_listed_origin_acts_and_an_unlisted_one_does_not(
    upstream: ScriptedUpstream, redis_url: str, context: BrowserContext
) -> None:
    listed, unlisted = upstream.url, upstream.url.replace("127.0.0.1", "localhost")
    run_id = upstream.add_run([("run.started", {})])
    async with running(upstream.url, redis_url, server={"cors_origins": (listed,)}) as relay:
        friend = await at_origin(await context.new_page(), listed)
        stranger = await at_origin(await context.new_page(), unlisted)
        act = {"method": "POST", "headers": {"Content-Type": "application/json"}, "body": '{"content": "yes"}'}
        simple = {"method": "POST", "headers": {"Content-Type": "text/plain"}, "body": '{"content": "yes"}'}
        target = f"{relay.url}/v1/runs/{run_id}/input"
        assert await friend.evaluate(_ASK, [target, act]) == [200, True, {"ok": True}]
        for init in (act, simple):  # the second is sent without asking first: the relay itself has to refuse it
            assert "Failed to fetch" in await stranger.evaluate(_ASK, [target, init])
        assert "Failed to fetch" in await stranger.evaluate(_ASK, [f"{relay.url}/v1/runs/{run_id}", {}])
        assert len([asked for asked in upstream.requests if asked.method == "POST"]) == 1
