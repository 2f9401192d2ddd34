"""The native face with the clients people have: httpx (with httpx-sse) and aiohttp; websockets only listens.

How they fare as watchers is in `test_watching.py`, and a browser's EventSource there too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest

from tests.clients.behind import Behind, relay_before
from tests.clients.stage import AGENT, ASKS, CANCELLED, SAID, WHOLE, says
from tests.clients.watchers import Aiohttp, HttpxSse, Watcher
from tests.support.relay import RunningRelay

FACE = "native"
CLIENTS = {"httpx": HttpxSse.name, "aiohttp": Aiohttp.name}
WATCHERS: dict[str, Callable[[], Watcher]] = {"httpx": HttpxSse, "aiohttp": Aiohttp}
RUNS = "/v1/threads/t1/runs"
Ask = Callable[..., Awaitable[tuple[int, Any]]]

pytestmark = [pytest.mark.clients, pytest.mark.parametrize("kind", CLIENTS)]


@asynccontextmanager
async def asking(kind: str, url: str) -> AsyncIterator[Ask]:
    if kind == "httpx":
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:

            async def with_httpx(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
                answer = await client.request(method, path, json=body, headers=headers)
                return answer.status_code, answer.json()

            yield with_httpx
    else:
        async with aiohttp.ClientSession(url) as session:

            async def with_aiohttp(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
                async with session.request(method, path, json=body, headers=headers) as answer:
                    return answer.status, await answer.json()

            yield with_aiohttp


@pytest.fixture
async def stand(kind: str, behind: Behind, redis_url: str) -> AsyncIterator[tuple[RunningRelay, Ask]]:
    async with relay_before(behind, redis_url) as relay, asking(kind, relay.url) as ask:
        yield relay, ask


@pytest.mark.cell("create")
async def test_create(stand: Any, behind: Behind) -> None:
    _, ask = stand
    status, answer = await ask("POST", RUNS, {behind.agent_field: AGENT})
    assert status == 201
    assert answer.keys() >= {"run_id", "trace_id"}
    [(run_id, body)] = behind.created
    assert (run_id, body[behind.agent_field]) == (answer["run_id"], AGENT)


@pytest.mark.cell("create + stream")
async def test_create_and_follow(stand: Any, kind: str, behind: Behind) -> None:
    relay, ask = stand
    behind.makes(*WHOLE, dt_ms=3)
    _, answer = await ask("POST", RUNS, {behind.agent_field: AGENT})
    watcher = WATCHERS[kind]()
    await watcher.follow(relay.url, answer["run_id"])
    watcher.check(SAID, "completed", behind.truth(answer["run_id"]))
    assert watcher.connections == 1


@pytest.mark.cell("retrieve")
async def test_retrieve(stand: Any, behind: Behind) -> None:
    _, ask = stand
    run_id = await behind.has(*((says("a"), ASKS) if behind.waits else (says("a"),)))
    status, run = await ask("GET", f"{RUNS}/{run_id}")
    assert (status, run["run_id"], run["thread_id"], run["provider"]) == (200, run_id, "t1", behind.kind)
    assert {"run_id", "status", "created_at", "last_seq", "ended", "raw_status"} <= run.keys()
    for path, code in ((f"{RUNS}/nope", 404), (f"/v1/threads/other/runs/{run_id}", 404), (f"{RUNS}/a..b", 422)):
        status, body = await ask("GET", path)
        assert (status, list(body)[:2]) == (code, ["code", "message"])


@pytest.mark.cell("list")
async def test_list(stand: Any, behind: Behind) -> None:
    _, ask = stand
    made = [await behind.has() for _ in range(5)]
    status, runs = await ask("GET", f"{RUNS}?limit=3")
    assert (status, [run["run_id"] for run in runs]) == (200, made[:-4:-1])
    _, runs = await ask("GET", f"{RUNS}?limit=2&order=asc&offset=1")
    assert [run["run_id"] for run in runs] == made[1:3]
    status, found = await ask("GET", "/v1/runs?limit=3")
    if behind.kind == "arkloop":
        assert [run["run_id"] for run in found] == made[:-4:-1]
    else:
        assert (status, found["code"]) == (501, "upstream.unsupported")  # it lists by thread only


@pytest.mark.cell("cancel")
async def test_cancel(stand: Any, kind: str, behind: Behind) -> None:
    relay, ask = stand
    run_id = await behind.has(says(SAID))
    watcher = WATCHERS[kind]()
    following = asyncio.create_task(watcher.follow(relay.url, run_id))
    async with asyncio.timeout(60):
        while watcher.text != SAID:
            await asyncio.sleep(0.02)
    assert await ask("POST", f"/v1/runs/{run_id}:cancel", {}) == (200, {"ok": True})
    assert behind.cancels() == 1
    behind.play(run_id, CANCELLED)
    await following
    watcher.check(SAID, "cancelled", behind.truth(run_id))
    assert (await ask("GET", f"/v1/runs/{run_id}"))[1]["status"] == "cancelled"


@pytest.mark.cell("blind resend")
async def test_a_create_sent_again_with_its_key_makes_one_run(stand: Any, behind: Behind) -> None:
    """While the first is under way the second is told to try again."""
    _, ask = stand
    behind.slow_create(0.3)
    body, key = {behind.agent_field: AGENT}, {"Idempotency-Key": "k-1"}
    both = await asyncio.gather(*(ask("POST", RUNS, body, **key) for _ in range(2)))
    assert sorted(status for status, _ in both) == [201, 409]
    [answer] = [answer for status, answer in both if status == 201]
    assert await ask("POST", RUNS, body, **key) == (201, answer)
    assert [run_id for run_id, _ in behind.created] == [answer["run_id"]]
