"""A run's messages and steps behind the newest page of them: all are found, or readers are told that some were not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import aiohttp
import pytest

from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.own_upstream import OwnUpstream
from relay.providers import OWN_SEQ
from tests.support.relay import settings_for
from tests.support.sim_threads import Script, SimRun, Step
from tests.support.thread_server import Fault, ThreadServer
from tests.support.viewer import Journal, watch_sse
from tests.web.raw import serving

KINDS = ("seekrflow", "openai")
RUN = {"run_id": "run-1", "created_at": "2026-01-01T00:00:00Z", "ended_at": None}
BEFORE = "2025-12-31T23:00:00Z"


class Thread(SimRun):
    """A run whose thread's messages and steps are given."""

    def __init__(
        self, provider: str, messages: list[dict[str, Any]], steps: list[dict[str, Any]] | None = None
    ) -> None:
        shape = "assistants" if provider == "openai" else "vercel"
        super().__init__(Script([Step("text", "x")], "completed"), shape, Random(1), messages_lag=0)
        self._messages = messages
        self._steps = steps or []

    def messages(self) -> list[dict[str, Any]]:
        return self._messages

    def steps(self) -> list[dict[str, Any]]:
        return self._steps


def mine(count: int) -> list[dict[str, Any]]:
    """The run's messages, newest first."""
    return [
        {"id": f"m-{i}", "run_id": "run-1", "role": "assistant", "status": "completed", "content": f"<{i}>"}
        for i in reversed(range(count))
    ]


def others(run_id: str | None, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"{run_id}-{i}", "run_id": run_id, "role": "assistant", **more} for i in range(count)]


def user(name: str = "u", **more: Any) -> dict[str, Any]:
    return {"id": name, "run_id": None, "role": "user", "content": "hi", **more}


@asynccontextmanager
async def asked(server: ThreadServer, provider: str) -> AsyncIterator[OwnUpstream]:
    options = UpstreamOptions("main", provider, server.url)
    async with aiohttp.ClientSession() as session:
        yield OwnUpstream(options, OWN_SEQ[provider], session, IngestOptions())


async def found(upstream: OwnUpstream) -> tuple[list[str], bool]:
    listed = await upstream.messages("thread-1", RUN)
    return [item["id"] for item in listed.items], listed.whole


def ids(count: int) -> list[str]:
    return [f"m-{i}" for i in range(count)]


@pytest.mark.parametrize("provider", KINDS)
@pytest.mark.parametrize(
    ("thread", "own", "pages"),
    [
        ([*mine(3), user()], 3, 1),
        ([*mine(250), user(), *others("old", 5)], 250, 3),
        ([*others("new", 230), user("u2"), *mine(2), user("u1"), *others("old", 300)], 2, 3),
        ([*others("new", 100), *mine(100), *others("old", 300)], 100, 3),
        ([user(created_at=BEFORE), *others("old", 300)], 0, 1),
        ([], 0, 1),
    ],
    ids=["short", "long", "newer runs first", "at the edges", "none yet", "empty"],
)  # fmt: skip
async def test_a_runs_messages_are_found_however_far_back(
    provider: str, thread: list[dict[str, Any]], own: int, pages: int
) -> None:
    """And no further: a thread of years is not read to its beginning."""
    async with ThreadServer(Thread(provider, thread)) as server, asked(server, provider) as upstream:
        assert await found(upstream) == (ids(own), True)
        assert server.count("messages") == pages


@pytest.mark.parametrize("provider", KINDS)
async def test_a_thread_too_long_to_walk_is_said_to_be_so(provider: str) -> None:
    async with (
        ThreadServer(Thread(provider, [*others("new", 3000), *mine(2)])) as server,
        asked(server, provider) as upstream,
    ):
        assert await found(upstream) == ([], False)
        assert server.count("messages") == 21, "bounded"


@pytest.mark.parametrize("provider", KINDS)
async def test_a_system_that_pages_in_another_way_answers_the_same_again_and_is_believed(provider: str) -> None:
    async with (
        ThreadServer(Thread(provider, [*mine(150), user()])) as server,
        asked(server, provider) as upstream,
    ):
        server.pages = False
        assert await found(upstream) == (ids(150)[50:], False), "what it has, once"
        assert server.count("messages") == 2
        assert (await found(upstream))[1] is False
        assert server.count("messages") == 3, "what was tried once is not tried again"


@pytest.mark.parametrize("provider", KINDS)
@pytest.mark.parametrize("status", [404, 405, 422, 501])
async def test_a_second_page_that_is_refused_leaves_the_first(provider: str, status: int) -> None:
    async with (
        ThreadServer(Thread(provider, [*mine(150), user()])) as server,
        asked(server, provider) as upstream,
    ):
        server.faults["messages"] = [Fault(), Fault(status=status, body="{}")]
        assert await found(upstream) == (ids(150)[50:], False)
        assert upstream.has("messages"), "messages there are, only no more of them"


async def test_a_short_thread_without_times_is_whole_even_if_offsets_are_unknown() -> None:
    async with ThreadServer(Thread("seekrflow", mine(3))) as server, asked(server, "seekrflow") as upstream:
        server.pages = False
        assert await found(upstream) == (ids(3), True)


async def test_messages_that_arrive_between_two_pages_are_not_told_twice() -> None:
    """An offset counts from the newest: one more of them moves all others down."""
    thread = Thread("seekrflow", [*mine(150), user()])
    calls = iter(range(100))

    def messages() -> list[dict[str, Any]]:
        return [*others(None, next(calls)), *thread._messages]

    thread.messages = messages  # type: ignore[method-assign]
    async with ThreadServer(thread) as server, asked(server, "seekrflow") as upstream:
        assert await found(upstream) == (ids(150), True)


async def test_all_steps_are_read() -> None:
    steps = [{"id": f"s-{i}", "status": "completed", "step_details": {}} for i in range(230)]
    async with ThreadServer(Thread("openai", [], steps)) as server, asked(server, "openai") as upstream:
        listed = await upstream.steps("thread-1", "run-1")
        assert listed is not None
        assert ([item["id"] for item in listed.items], listed.whole) == ([f"s-{i}" for i in range(230)], True)
        server.pages = False
        listed = await upstream.steps("thread-1", "run-1")
        assert listed is not None
        assert (len(listed.items), listed.whole) == (100, False)


def texts(journal: Journal) -> Iterator[str]:
    return (event["data"]["content"] for event in journal.events if event["type"] == "message.delta")


@pytest.mark.parametrize("provider", KINDS)
@pytest.mark.parametrize("pages", [True, False])
async def test_what_cannot_be_had_of_a_run_is_told_before_its_end(redis_url: str, provider: str, pages: bool) -> None:
    """Nothing streams here, so the messages are all there is of the text."""
    thread = Thread(provider, [*mine(150), user()])
    thread.at, thread.ended = 1, True
    async with ThreadServer(thread) as server:
        server.pages = pages
        server.always["attach"] = Fault(status=404, body="{}")
        settings = settings_for(server.url, ingest={"lease_s": 1.0})
        upstream = UpstreamOptions("main", provider, server.url, poll_s=0.05)
        async with serving(replace(settings, upstreams=(upstream,)), redis_url) as relay, asyncio.timeout(60):
            query = {"thread_id": "thread-1"}
            journal = await watch_sse(relay.session, relay.events("run-1"), Journal(), query=query)
    kinds = [event["type"] for event in journal.events]
    assert kinds[-1] == "run.completed"
    assert "message.reset" not in kinds
    if pages:
        assert "".join(texts(journal)) == "".join(f"<{i}>" for i in range(150))
        assert "run.gap" not in kinds
    else:
        assert "".join(texts(journal)) == "".join(f"<{i}>" for i in range(50, 150))
        assert kinds[-2] == "run.gap"
        assert journal.events[-2]["data"] == {"reason": "messages_incomplete"}
