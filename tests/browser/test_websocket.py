"""A browser's own WebSocket: one run, many runs on one connection, and back with a cursor after the relay was killed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.browser.rig import MARKS, at_origin
from tests.support.needs import recording
from tests.support.relay import RelayProcess, running
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = MARKS

OPEN = """([path, first]) => {
    const seen = window.seen = {messages: [], code: null, extensions: ""};
    const socket = window.socket = new WebSocket(`ws://${location.host}${path}`);
    socket.onopen = () => {
        seen.extensions = socket.extensions;
        for (const one of first) socket.send(JSON.stringify(one));
    };
    socket.onmessage = (message) => seen.messages.push(message.data);
    socket.onclose = (closed) => { seen.code = closed.code; };
}"""


async def opened(page: Page, path: str, *first: object) -> None:
    await page.evaluate(OPEN, [path, list(first)])


async def seen(page: Page) -> tuple[list[dict[str, Any]], int | None]:
    now = await page.evaluate("window.seen")
    return [json.loads(message) for message in now["messages"]], now["code"]


async def closed(page: Page) -> tuple[list[dict[str, Any]], int]:
    async with asyncio.timeout(60):
        while True:
            messages, code = await seen(page)
            if code is not None:
                return messages, code
            await asyncio.sleep(0.05)


async def test_one_run_whole_with_the_closing_code_of_an_end(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    async with running(upstream.url, redis_url) as relay:
        run_id = upstream.play(recording("web-search"), rate=500)
        await opened(await at_origin(page, relay.url), f"/v1/runs/{run_id}/events")
        messages, code = await closed(page)
        assert code == 1000
        assert [one["seq"] for one in messages[:-1]] == [event["seq"] for event in upstream.truth(run_id)]
        assert messages[-1]["type"] == "relay.end"
        assert "permessage-deflate" in (await page.evaluate("window.seen.extensions"))


async def test_many_runs_on_one_connection(upstream: ScriptedUpstream, redis_url: str, page: Page) -> None:
    async with running(upstream.url, redis_url) as relay:
        names = ("web-search", "reasoning")
        runs = {upstream.play(recording(name), rate=500): name for name in names}
        wishes = [{"op": "subscribe", "run_id": run_id} for run_id in runs]
        await opened(await at_origin(page, relay.url), "/v1/events", *wishes)
        async with asyncio.timeout(60):
            while True:
                messages, code = await seen(page)
                assert code is None
                if sum(one["op"] == "end" for one in messages) == len(runs):
                    break
                await asyncio.sleep(0.05)
        for run_id in runs:
            told = [one["event"]["seq"] for one in messages if one["op"] == "event" and one["run_id"] == run_id]
            assert told == [event["seq"] for event in upstream.truth(run_id)]


async def test_after_a_kill_it_comes_back_with_its_cursor_and_misses_nothing(
    upstream: ScriptedUpstream, tmp_path: Path, page: Page
) -> None:
    async with RelayProcess(upstream.url, tmp_path, delivery={}) as relay:
        run_id = upstream.add_run([("run.started", {}), *[("message.delta", {"content_delta": "a"})] * 20])
        await opened(await at_origin(page, relay.url), f"/v1/runs/{run_id}/events")
        async with asyncio.timeout(60):
            while len((await seen(page))[0]) < 21:
                await asyncio.sleep(0.05)
        await relay.kill()
        first, code = await closed(page)
        assert code == 1006  # a cut, not an end
        upstream.finish(run_id)
        await relay.start()
        await opened(page, f"/v1/runs/{run_id}/events?after_seq={first[-1]['seq']}")
        rest, code = await closed(page)
        assert code == 1000
        assert [one["seq"] for one in [*first, *rest[:-1]]] == [event["seq"] for event in upstream.truth(run_id)]
