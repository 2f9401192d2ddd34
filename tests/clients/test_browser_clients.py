"""A browser's own EventSource on the native face, through everything that the other watchers go through."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.rig import Source, at_origin, launched
from tests.clients import test_watching as watching
from tests.clients.conftest import UPSTREAMS, Cells
from tests.clients.stage import THREAD
from tests.clients.watchers import ROSTER, Native

if TYPE_CHECKING:
    from playwright.async_api import Browser

pytestmark = [pytest.mark.clients, pytest.mark.browser]


class InBrowser(Native):
    name = "EventSource (Chromium)"

    def __init__(self, browser: Browser) -> None:
        super().__init__()
        self._browser = browser

    async def follow(self, url: str, run_id: str) -> None:
        """Nobody helps it: whatever reconnects is the browser."""
        page = await self._browser.new_page()
        path = f"/v1/runs/{run_id}/events?thread_id={THREAD}"
        source = await Source.open(await at_origin(page, url), path)
        while self._end is None:
            now = await source.glance()
            self.connections = now["opened"]
            if now["count"] != len(self._events):
                self._events = [seen.data for seen in await source.events()]
            if now["ended"]:
                self._events = [seen.data for seen in await source.events()]
                [end] = await source.frames("relay.end")
                self._end = end.data
            await asyncio.sleep(0.05)
        await page.close()


@pytest.mark.parametrize("behind", UPSTREAMS)
async def test_an_event_source(
    behind: str, cells: Cells, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One browser for all of it: it takes a second to start."""
    async with launched() as browser:
        monkeypatch.setattr(watching, "FACES", ["browser"])
        monkeypatch.setitem(ROSTER, "browser", [lambda: InBrowser(browser)])
        scenes: list[Any] = [
            watching.test_late_join,
            watching.test_failed_run,
            watching.test_upstream_cuts_are_not_noticed,
            watching.test_a_silent_run_is_kept_alive,
            watching.test_a_run_that_waits_is_answered,
        ]
        for scene in scenes:
            async with UPSTREAMS[behind]() as up:
                await scene(up, cells, redis_url)
        async with UPSTREAMS[behind]() as up:
            await watching.test_a_relay_that_is_restarted(up, cells, redis_url, tmp_path)
