"""A thread's list is read back to what its readers know, wherever pages begin; what it cannot reach is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from relay.core.errors import RelayError
from relay.core.ids import RunKey
from relay.core.vector import Tally, Vector
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.own_upstream import OwnUpstream
from relay.providers import OWN_SEQ
from relay.web import listing
from relay.web.gathering import Wish
from relay.web.listing import Listing, Row
from relay.web.roster import Thread
from tests.support.sim_threads import Script, SimRun, Step
from tests.support.thread_server import Fault, ThreadServer

KINDS = ("seekrflow", "openai")


def runs_of(provider: str, count: int) -> dict[str, SimRun]:
    """Newest first, a second apart."""
    made = {}
    for i in reversed(range(count)):
        shape = "assistants" if provider == "openai" else "vercel"
        run = SimRun(Script([Step("text", "x")], "completed"), shape, Random(1), run_id=f"run-{i}")
        run.made_at = 1_700_000_000 + i
        made[run.run_id] = run
    return made


@asynccontextmanager
async def listed(
    server: ThreadServer, provider: str, monkeypatch: pytest.MonkeyPatch, *, most: int = 4
) -> AsyncIterator[Listing]:
    monkeypatch.setattr(type(OWN_SEQ[provider]), "list_limit", most)
    async with aiohttp.ClientSession() as session:
        upstream = OwnUpstream(
            UpstreamOptions("main", provider, server.url), OWN_SEQ[provider], session, IngestOptions()
        )
        yield await Listing(upstream, "thread-1").open()


def back_to(number: int) -> Callable[[Sequence[Row]], bool]:
    return lambda rows: any(row.key.run_id == f"run-{number}" for row in rows)


def names(listing: Listing) -> list[str]:
    return [row.key.run_id for row in listing.rows]


@pytest.mark.parametrize("provider", KINDS)
async def test_pages_are_read_until_the_reader_knows_the_rest(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ThreadServer() as server:
        server.runs = runs_of(provider, 18)
        async with listed(server, provider, monkeypatch) as found:
            assert names(found) == [f"run-{i}" for i in (17, 16, 15, 14)]
            assert await found.back_to(back_to(15))
            assert server.count("runs") == 1
            assert await found.back_to(back_to(9))
            assert names(found) == [f"run-{i}" for i in reversed(range(6, 18))]
            assert await found.back_to(lambda _: False), "it was read to its end: nothing is left out"
            assert len(found.rows) == 18


@pytest.mark.parametrize("provider", KINDS)
async def test_readers_who_know_little_read_on_together(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ThreadServer() as server:
        server.runs = runs_of(provider, 18)
        async with listed(server, provider, monkeypatch) as found:
            assert all(await asyncio.gather(*(found.back_to(back_to(2)) for _ in range(5))))
            assert server.count("runs") == 4


@pytest.mark.parametrize("provider", KINDS)
async def test_a_system_that_knows_no_pages_is_not_taken_for_a_short_list(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ThreadServer() as server:
        server.runs, server.pages = runs_of(provider, 18), False
        async with listed(server, provider, monkeypatch) as found:
            assert not await found.back_to(back_to(9))
            assert len(found.rows) == 4
            assert await found.back_to(back_to(16))


@pytest.mark.parametrize("provider", KINDS)
async def test_a_page_that_fails_is_asked_for_again_and_one_that_is_refused_is_not(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ThreadServer() as server:
        server.runs = runs_of(provider, 18)
        async with listed(server, provider, monkeypatch) as found:
            server.faults["runs"] = [Fault(status=503, body="{}")]
            with pytest.raises(RelayError):
                await found.back_to(back_to(9))
            assert await found.back_to(back_to(9))
            server.faults["runs"] = [Fault(status=422, body="{}")]
            assert not await found.back_to(back_to(0))
            assert not server.faults["runs"]


async def test_no_more_pages_are_read_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_PAGES", 3)
    async with ThreadServer() as server:
        server.runs = runs_of("openai", 18)
        async with listed(server, "openai", monkeypatch) as found:
            assert not await found.back_to(back_to(0))
            assert server.count("runs") == 3
            assert len(found.rows) == 12


async def test_a_reader_far_behind_gets_there_although_its_upstream_takes_few_requests_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with ThreadServer() as server, aiohttp.ClientSession() as session:
        server.runs = runs_of("openai", 18)
        for number, run in enumerate(reversed(server.runs.values())):
            run.made_at = 1_700_000_000 + 60 * number
        monkeypatch.setattr(type(OWN_SEQ["openai"]), "list_limit", 4)
        upstream = OwnUpstream(
            UpstreamOptions("main", "openai", server.url), OWN_SEQ["openai"], session, IngestOptions()
        )
        reader = Reader(upstream, known_us=1_700_000_000_000_000)
        for _ in range(8):
            server.faults["runs"] = [Fault(), Fault(), *[Fault(status=429, body="{}")] * 8]  # two, and then no more
            with suppress(RelayError):
                await reader.thread._look()
        assert reader.read == [f"run-{i}" for i in range(18)]


class Reader:
    """What a thread needs of its connection: it takes what it is given."""

    def __init__(self, upstream: OwnUpstream, *, known_us: int) -> None:
        self.read: list[str] = []
        self.found: set[RunKey] = set()
        cursor = Vector(mark=known_us)
        self.tally = Tally(cursor)
        looks = SimpleNamespace(thread=lambda *_: Listing(upstream, "thread-1").open())
        self.thread = Thread(cast(Any, looks), upstream, "thread-1", cast(Any, self), cast(Any, self), cursor, Wish(""))

    def want(self, wish: Wish) -> None:
        self.read.append(wish.run_id)

    def reads(self, key: RunKey) -> bool:
        return True
