"""One real Chromium for the folder, a fresh profile and page for each test.

Everything here lives on one event loop for the whole session, because the browser does: tests of this folder carry
`pytest.mark.asyncio(loop_scope="session")` (see `MARKS`), and the upstream is made again on that loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest_asyncio

from tests.browser.rig import SIZE, launched
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """A fresh profile: no cookies, no cache, no connection of another test."""
    context = await browser.new_context(viewport=SIZE, color_scheme="light")
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(context: BrowserContext) -> Page:
    return await context.new_page()


@pytest_asyncio.fixture(loop_scope="session")
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(token="upstream-secret") as up:
        yield up
