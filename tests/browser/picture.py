"""`python -m tests.browser.picture FILE.png`: the dashboard while a run streams, for the README (1280 x 800, light)."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from relay.demo.runs import ASKS, FAILING, WRITER
from tests.browser.rig import SIZE, launched
from tests.support.relay import RelayProcess
from tests.support.upstream import ScriptedUpstream


async def take(target: Path) -> None:
    async with ScriptedUpstream(token="upstream-secret") as upstream, launched() as browser:
        with tempfile.TemporaryDirectory() as directory:
            async with RelayProcess(upstream.url, Path(directory)) as relay:
                for script in (FAILING, WRITER, ASKS):
                    await upstream.played(upstream.play(script, speed=40))
                upstream.play(ASKS, speed=8)
                await asyncio.sleep(0.1)
                run_id = upstream.play(WRITER)
                page = await browser.new_page(viewport=SIZE, color_scheme="light")
                await page.goto(f"{relay.url}/ui#run={run_id}")
                # In the middle of its answer: thinking, tools and text are on screen.
                await page.get_by_text("Soup at the hut").wait_for(timeout=40_000)
                await page.screenshot(path=target)


if __name__ == "__main__":
    asyncio.run(take(Path(sys.argv[1])))
