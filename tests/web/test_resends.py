"""A create sent again without a key (relay/web/resends.py), against a real Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis as sync_redis

from relay.core.errors import Conflict, InvalidRequest, UpstreamTimeout
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.options import RedisOptions
from relay.store.redis import Store
from relay.web import once as once_module
from relay.web import resends as resends_module
from relay.web.once import Once
from relay.web.resends import Attempt, Resends

THREAD = RunKey("main", "t1")


class Bench:
    """Two processes before one upstream."""

    def __init__(self, url: str) -> None:
        options = RedisOptions(prefix=f"t{secrets.token_hex(4)}")
        keys = Keys(options.prefix, options.partitions)
        self.stores = [Store(url, options) for _ in range(2)]
        self.sides = [Resends(store, keys, answer_s=30.0) for store in self.stores]
        self.made = 0
        self.trouble: list[Exception | None] = []
        self.delay_s = 0.0
        self.active = True
        self.busy: dict[str, Any] | None = None
        self.listening = True
        self.begun = asyncio.Event()

    async def create(self) -> dict[str, Any]:
        self.begun.set()
        await asyncio.sleep(self.delay_s)
        trouble = self.trouble.pop(0) if self.trouble else None
        if trouble is not None:
            raise trouble
        self.made += 1
        return {"run_id": f"r{self.made}"}

    async def ask(
        self,
        attempt: Attempt = "unknown",
        *,
        body: bytes = b"{}",
        caller: str = "me",
        side: int = 0,
        where: RunKey = THREAD,
    ) -> str:
        async def active(_: str) -> bool:
            return self.active

        async def busy_with() -> dict[str, Any] | None:
            return self.busy

        answer = await self.sides[side].do(
            where, caller, body, attempt,
            listening=lambda: self.listening, create=self.create, active=active, busy_with=busy_with,
        )  # fmt: skip
        return str(answer["run_id"])


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    found = Bench(redis_url)
    yield found
    for store in found.stores:
        await store.close()


@pytest.mark.parametrize("attempt", ["first", "again", "unknown"])
async def test_while_the_first_is_unanswered_all_get_its_answer(bench: Bench, attempt: Attempt) -> None:
    bench.delay_s = 0.3
    asked = [bench.ask(attempt, side=number % 2) for number in range(6)]
    assert set(await asyncio.gather(*asked)) == {"r1"}
    assert bench.made == 1


async def test_another_caller_thread_or_body_is_another_request(bench: Bench) -> None:
    assert await bench.ask() == "r1"
    assert await bench.ask(caller="you") == "r2"
    assert await bench.ask(body=b"[]") == "r3"
    assert await bench.ask(where=RunKey("main", "t2")) == "r4"
    assert await bench.ask() == "r1"


async def test_a_client_that_says_what_it_does_is_believed(bench: Bench) -> None:
    assert await bench.ask("first") == "r1"
    assert await bench.ask("again", side=1) == "r1"
    assert await bench.ask("first") == "r2"
    assert await bench.ask("again", side=1) == "r2"  # the last one's, not the first one's
    assert await bench.ask("again", body=b"other") == "r3"  # its first try never came here


async def test_a_client_that_says_nothing_gets_the_answer_while_the_run_goes_on(bench: Bench) -> None:
    assert await bench.ask() == "r1"
    assert await bench.ask(side=1) == "r1"
    bench.active = False
    assert await bench.ask() == "r2"
    bench.active = True
    assert await bench.ask(side=1) in ("r1", "r2")  # one run goes on: no third one
    assert bench.made == 2


async def test_an_answer_nobody_heard_is_for_whoever_asks_next(bench: Bench) -> None:
    bench.active = bench.listening = False
    assert await bench.ask() == "r1"
    bench.listening = True
    assert await bench.ask() == "r1"
    assert await bench.ask() == "r2"  # that one was heard, and its run is over


async def test_a_refusal_leaves_nothing_behind(bench: Bench) -> None:
    bench.trouble = [InvalidRequest("no"), None]
    with pytest.raises(InvalidRequest):
        await bench.ask()
    assert await bench.ask() == "r1"


async def test_after_an_unclear_outcome_a_busy_thread_names_the_run(bench: Bench) -> None:
    bench.trouble = [UpstreamTimeout("?"), Conflict("busy", code="runs.thread_busy")]
    bench.busy = {"run_id": "lost"}
    with pytest.raises(UpstreamTimeout):
        await bench.ask("first")
    assert await bench.ask("again", side=1) == "lost"
    assert await bench.ask("again") == "lost"
    assert bench.made == 0


async def test_without_any_doubt_a_busy_thread_stays_a_refusal(bench: Bench) -> None:
    bench.trouble = [Conflict("busy", code="runs.thread_busy")]
    bench.busy = {"run_id": "somebody else's"}
    with pytest.raises(Conflict):
        await bench.ask()


async def test_a_cancelled_create_is_unclear(bench: Bench) -> None:
    bench.delay_s = 10
    first = asyncio.create_task(bench.ask())
    async with asyncio.timeout(60):
        await bench.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    bench.delay_s = 0
    bench.trouble = [Conflict("busy")]
    bench.busy = {"run_id": "lost"}
    assert await bench.ask(side=1) == "lost"


# --- how long a first request is waited for ----------------------------------------------------------------------------
@pytest.mark.parametrize("answer_s", [0.1, 30.0, 300.0])
async def test_a_key_is_taken_for_longer_than_an_upstream_may_take(
    bench: Bench, redis_url: str, answer_s: float
) -> None:
    """Else a slow upstream's run is made a second time by whoever tries again meanwhile."""
    store, keys = bench.stores[0], Keys(f"t{secrets.token_hex(4)}", 64)
    went, go = asyncio.Event(), asyncio.Event()

    async def slow() -> dict[str, Any]:
        went.set()
        await go.wait()
        return {"run_id": "r1"}

    async def never(*_: object) -> Any:
        raise AssertionError

    once, resends = Once(store, keys, answer_s=answer_s), Resends(store, keys, answer_s=answer_s)
    with sync_redis.Redis.from_url(redis_url) as raw:
        for first in (
            once.do(THREAD, "me", "key", b"{}", slow),
            resends.do(
                THREAD, "me", b"{}", "first", listening=lambda: True, create=slow, active=never, busy_with=never
            ),
        ):
            began = time.monotonic()
            asking = asyncio.create_task(first)
            await went.wait()
            [name] = [name for name in raw.keys(f"{keys.prefix}:*:once:*") if raw.pttl(name) <= (answer_s + 60) * 1000]
            spent_s = time.monotonic() - began
            assert raw.pttl(name) / 1000 > answer_s + 1 - spent_s
            go.set()
            assert await asking == {"run_id": "r1"}
            raw.delete(name)
            went.clear()
            go.clear()


async def test_an_upstream_that_never_says_what_it_made_is_given_up_before_its_key(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once_module, "_LONGER_S", 0.1)
    monkeypatch.setattr(resends_module, "_LONGER_S", 0.2)
    store, keys = bench.stores[0], Keys(f"t{secrets.token_hex(4)}", 64)

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    once = Once(store, keys, answer_s=0.1)
    with pytest.raises(UpstreamTimeout):
        await once.do(THREAD, "me", "key", b"{}", never)
    with pytest.raises(Conflict):
        await once.do(THREAD, "me", "key", b"{}", never)  # it may have been done: the key is not free at once
    side = bench.sides[0] = Resends(store, keys, answer_s=0.1)
    bench.delay_s = 60.0
    with pytest.raises(UpstreamTimeout):
        await bench.ask()
    assert side._pending_ms > side._limit_s * 1000
    assert side._patience_s * 1000 > side._pending_ms
    bench.delay_s, bench.busy = 0.0, {"run_id": "r7"}
    bench.trouble = [Conflict("busy")]
    assert await bench.ask() == "r7", "asked again, and what keeps the thread busy is the answer"
