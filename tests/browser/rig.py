"""What the browser tests stand on: Chromium, an EventSource with a journal inside a page, and a page's traffic."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.support import needs
from tests.support.upstream import ScriptedUpstream
from tests.system.watching import native

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response

MARKS = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
SIZE: Any = {"width": 1280, "height": 800}
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
CLOSED = 2
"""EventSource.CLOSED: it will not come back."""
LOOP_WATCH_S = 3.2
"""How long a closed source is watched for requests: three times the longest `retry:` of these tests."""
Events = list[dict[str, Any]]


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """A real Chromium; skips (in CI: fails) where there is none."""
    try:
        from playwright.async_api import async_playwright
    except ImportError:
        needs.missing("playwright", "pip install 'run-relay[browser]' (make browser does it)")
    program = needs.chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


async def until(fact: Callable[[], Any], timeout_s: float = 60.0, *, say: Callable[[], object] = str) -> None:
    """Wait for a fact that the test's own side knows."""
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {say()}"
        await asyncio.sleep(0.02)


class Told:
    """A recording told in parts, so that what a test does in the middle of a run is in its middle on any machine."""

    def __init__(self, upstream: ScriptedUpstream, events: Events) -> None:
        self._upstream = upstream
        self._events = events
        self.count = 0
        self.run_id = ""

    async def on(self, count: int | None = None, *, rate: float = 500.0) -> None:
        """The next `count` events (None: all that are left) begin to come, at this rate."""
        if self.run_id:
            await self._upstream.played(self.run_id)
        last = len(self._events) if count is None else self.count + count
        part, self.count = self._events[self.count : last], last
        self.run_id = self._upstream.play(part, rate=rate, run_id=self.run_id or None)


def events_path(run_id: str, query: str = "") -> str:
    return f"/v1/runs/{run_id}/events{'?' + query if query else ''}"


async def at_origin(page: Page, origin: str) -> Page:
    """The page is a document of this origin, without any script of its own."""
    await page.goto(f"{origin}/nothing-is-here")
    assert await page.evaluate("() => location.origin") == origin
    return page


class Front:
    """A TCP front of a relay, where connections can be broken as a network breaks them: reset, not ended.

    Chromium's own "offline" refuses new connections and leaves those that are open alone.
    """

    def __init__(self, relay_url: str) -> None:
        self._port = urlsplit(relay_url).port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""

    def cut(self) -> int:
        """Reset every open connection of the clients; gives how many."""
        writers, self._writers = self._writers, set()
        for writer in writers:
            writer.transport.abort()
        return len(writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.add(writer)
        try:
            await asyncio.wait(
                [asyncio.create_task(_copy(reader, far_writer)), asyncio.create_task(_copy(far_reader, writer))]
            )
        finally:
            self._writers.discard(writer)

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)

    async def __aenter__(self) -> Front:
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
        await self._server.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side is gone; then the other one goes too."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()  # a relay that cuts must be seen to cut


# ── an EventSource with a journal ───────────────────────────────────────────────────────────────────────────────────
_OPEN = """([url, types]) => {
  const source = new EventSource(url);
  const journal = { events: [], frames: [], opened: 0, errors: 0, ended: 0 };
  const take = (list) => (message) => list.push([message.type, message.lastEventId, message.data]);
  source.onopen = () => { journal.opened += 1; };
  source.onerror = () => { journal.errors += 1; };
  source.onmessage = take(journal.events);
  for (const type of types) source.addEventListener(type, take(journal.events));
  for (const name of ["end", "goodbye", "position", "reset", "snapshot"]) {
    source.addEventListener(`relay.${name}`, take(journal.frames));
  }
  source.addEventListener("relay.end", () => { journal.ended += 1; });
  window.watched = { source, journal };
}"""
_GLANCE = """() => {
  const { source, journal } = window.watched;
  return {
    state: source.readyState, opened: journal.opened, errors: journal.errors, ended: journal.ended,
    count: journal.events.length, last: Number(journal.events.at(-1)?.[1] ?? 0),
  };
}"""


@dataclass(frozen=True, slots=True)
class Seen:
    """One message as the page's listener got it."""

    type: str
    """The name it was dispatched under: `message` for what onmessage sees."""
    last_event_id: str
    data: Any


class Source:
    """`new EventSource(url)` in a page. The page never closes it: whatever ends it is the relay's or the browser's."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @classmethod
    async def open(cls, page: Page, url: str, types: Iterator[str] | list[str] | None = None) -> Source:
        """Listens with onmessage, for every `relay.…` frame, and for events named `types`."""
        await page.evaluate(_OPEN, [url, list(types or [])])
        return cls(page)

    async def glance(self) -> dict[str, Any]:
        """state (readyState), opened, errors, ended (how often relay.end came), count and last (events)."""
        return dict(await self.page.evaluate(_GLANCE))

    async def until(self, fact: Callable[[dict[str, Any]], Any], timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until a glance shows this."""
        deadline = time.monotonic() + timeout_s
        while not fact(now := await self.glance()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {now}"
            await asyncio.sleep(0.05)
        return now

    async def closed(self) -> dict[str, Any]:
        return await self.until(lambda now: now["state"] == CLOSED)

    async def events(self) -> list[Seen]:
        return await self._journal("events")

    async def frames(self, name: str | None = None) -> list[Seen]:
        """The relay's own frames, all or those of one name."""
        return [seen for seen in await self._journal("frames") if name in (None, seen.type)]

    async def _journal(self, name: str) -> list[Seen]:
        rows = await self.page.evaluate("(name) => window.watched.journal[name]", name)
        return [Seen(kind, last, json.loads(data)) for kind, last, data in rows]


def check_events(seen: list[Seen], truth: Events, *, after_seq: int = 0) -> None:
    """Exactly the upstream's events behind `after_seq`: once each, in order, unaltered, their seq the last event id."""
    wanted = [native(event) for event in truth if event["seq"] > after_seq]
    assert [event.data["seq"] for event in seen] == [event["seq"] for event in wanted]
    assert [event.last_event_id for event in seen] == [str(event["seq"]) for event in wanted]
    assert [event.data for event in seen] == wanted


async def check_end(source: Source, last_seq: int, status: str = "completed") -> None:
    """relay.end came once, by its name, with where the reader then stands as its id."""
    (end,) = await source.frames("relay.end")
    assert end.data == {"last_seq": last_seq, "status": status}
    assert end.last_event_id == str(last_seq)


# ── a page's traffic ────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Traffic:
    """Every request of a page or a context, and what its console said."""

    requests: list[Request] = field(default_factory=list)
    statuses: dict[Request, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    """Scripts that threw, and console errors other than a failed request."""
    network: list[str] = field(default_factory=list)
    """Console errors that say that a request failed."""

    @classmethod
    def of(cls, watched: Page | BrowserContext) -> Traffic:
        traffic = cls()
        watched.on("request", lambda request: traffic.requests.append(request))  # playwright wants a function
        watched.on("response", traffic._answered)
        watched.on("console", traffic._said)
        # A page says `pageerror`, a context `weberror`.
        watched.on("pageerror", lambda error: traffic.errors.append(str(error)))
        watched.on("weberror", lambda error: traffic.errors.append(str(error.error)))
        return traffic

    def _answered(self, response: Response) -> None:
        self.statuses[response.request] = response.status

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            failed = "Failed to load resource" in message.text or "net::ERR_" in message.text
            (self.network if failed else self.errors).append(message.text)

    @property
    def urls(self) -> list[str]:
        return [request.url for request in self.requests]

    def streams(self, run_id: str) -> list[Request]:
        """Requests for the run's events so far."""
        # The dashboard asks the native face by its own name, whoever has the root.
        paths = (events_path(run_id), f"/native{events_path(run_id)}")
        return [request for request in self.requests if urlsplit(request.url).path in paths]

    def answers(self, run_id: str) -> list[int | None]:
        """Their statuses; None: no answer came."""
        return [self.statuses.get(request) for request in self.streams(run_id)]


async def resumed_from(request: Request) -> str | None:
    """The Last-Event-ID that the browser really sent."""
    return (await request.all_headers()).get("last-event-id")


async def check_stopped(source: Source, traffic: Traffic, run_id: str, last_seq: int) -> None:
    """The end was told, one more request got 204, and that was the last of it."""
    await source.closed()
    before = traffic.answers(run_id)
    await asyncio.sleep(LOOP_WATCH_S)
    assert before == [200, 204]
    assert traffic.answers(run_id) == before, "it came back although it had been stopped"
    assert await resumed_from(traffic.streams(run_id)[1]) == str(last_seq)
    now = await source.glance()
    assert now["state"] == CLOSED
    assert now["ended"] == 1
