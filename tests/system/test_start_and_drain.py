"""How a process comes and goes: it waits for its Redis, and it leaves one viewer at a time."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.app import App
from tests.support.ports import free_port
from tests.support.relay import RelayProcess, settings_for
from tests.support.upstream import ScriptedUpstream
from tests.system.rig import RedisProcess, crowd, relay_process
from tests.system.watching import Truth, Viewer

pytestmark = pytest.mark.system


# ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@contextmanager
def nobody(_: Path) -> Iterator[str]:
    yield f"redis://:hush-hush@127.0.0.1:{free_port()}/0"


@contextmanager
def one_who_says_nothing(_: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"redis://:hush-hush@127.0.0.1:{silent.getsockname()[1]}/0"


@contextmanager
def no_such_host(_: Path) -> Iterator[str]:
    yield "redis://:hush-hush@no-such-host.invalid:1"


@asynccontextmanager
async def waiting(url: str, directory: Path, upstream: str) -> AsyncIterator[RelayProcess]:
    """A relay process that has been started and has said that it waits for Redis."""
    relay = RelayProcess(upstream, directory, redis_url=url, redis={"timeout_s": 0.5})
    starting = asyncio.create_task(relay.start(60))
    try:
        async with asyncio.timeout(60):
            while "redis.waiting" not in (relay.log.read_text() if relay.log.exists() else ""):
                assert not starting.done(), starting
                await asyncio.sleep(0.02)
        yield relay
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        if relay.process is not None and relay.process.returncode is None:
            await relay.kill()


async def answer(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("redis", [nobody, one_who_says_nothing, no_such_host])
async def test_a_start_without_redis_waits_alive_and_not_ready(
    redis: Any, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    with redis(tmp_path) as url:
        async with waiting(url, tmp_path, upstream.url) as relay:
            assert await answer(f"{relay.admin_url}/healthz") == (200, {"status": "ok"})
            assert await answer(f"{relay.admin_url}/readyz") == (
                503,
                {"status": "not ready", "reason": "waiting for Redis"},
            )
            with pytest.raises(aiohttp.ClientConnectorError):  # tried again by every client; a 503 is not
                await answer(f"{relay.url}/v1/runs")
            assert await relay.stop() == 0
            log = relay.log.read_text()
    assert "redis.url" in log
    assert log.count("redis.waiting") == 1, "one line, not one per attempt"
    assert "hush" not in log
    assert "Traceback" not in log


async def test_a_start_goes_on_when_redis_comes(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    server = RedisProcess(tmp_path / "redis")
    async with waiting(server.url, tmp_path, upstream.url) as relay:
        with server:
            async with asyncio.timeout(60):
                while (await answer(f"{relay.admin_url}/readyz"))[0] != 200:
                    await asyncio.sleep(0.02)
            run_id = upstream.play([("run.started", {}), ("run.completed", {})], rate=100)
            async with crowd(f"{relay.url}/v1/runs/{run_id}/events") as people:
                people.join_all()
                await people.ended()
                people.check(upstream.truth(run_id))
            assert await relay.stop() == 0


# ── drain ───────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_viewers_are_told_one_by_one_and_the_rest_go_on_reading(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The one who drains has given its runs away, and still shows to those not yet told what the new owner writes."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with RedisProcess(tmp_path / "redis") as redis:
        async with (
            relay_process(upstream.url, tmp_path / "a", redis_url=redis.url, drain={"window_s": 60.0}) as old,
            relay_process(upstream.url, tmp_path / "b", redis_url=redis.url) as new,
        ):
            run_id = upstream.add_run([("run.started", {})])
            async with (
                crowd(f"{old.url}/v1/runs/{run_id}/events") as people,
                crowd(f"{new.url}/v1/runs/{run_id}/events") as elsewhere,
            ):
                for _ in range(60):
                    people.join("sse")
                await people.all_saw(lambda viewer: viewer.cursor == 1)
                elsewhere.join("sse")
                await elsewhere.all_saw(lambda viewer: viewer.cursor == 1)
                assert old.process is not None
                old.process.send_signal(signal.SIGTERM)
                await told(people.viewers, 1)
                seq = upstream.append(run_id, "message.delta", {"content_delta": "a"})
                async with asyncio.timeout(60):
                    while not any(v.cursor == seq and not v.said("relay.goodbye") for v in people.viewers):
                        assert len(people.viewers) > sum(bool(v.said("relay.goodbye")) for v in people.viewers), (
                            "everybody was told before anybody saw what the new owner wrote"
                        )
                        await asyncio.sleep(0.005)
                # Who comes now is let in, and told like the others: no 503, which would end an EventSource for good.
                assert await answer(f"{old.admin_url}/readyz") == (503, {"status": "not ready", "reason": "stopping"})
                late = Viewer(f"{old.url}/v1/runs/{run_id}/events", "sse")
                with suppress(aiohttp.ClientPayloadError):  # cut, as it should be
                    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
                        await late.once(session)
                assert late.cursor == seq
                assert late.said("relay.goodbye")
                async with asyncio.timeout(60):
                    assert await old.process.wait() == 0
                await told(people.viewers, 60)
                await old.start()
                upstream.finish(run_id)
                await people.ended()
                await elsewhere.ended()
                truth = Truth(upstream.truth(run_id))
                for viewer in (*people.viewers, *elsewhere.viewers):
                    truth.check(viewer)


async def told(viewers: list[Viewer], least: int) -> None:
    async with asyncio.timeout(60):
        while sum(bool(viewer.said("relay.goodbye")) for viewer in viewers) < least:
            await asyncio.sleep(0.005)


async def test_the_second_sigterm_ends_it_now(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    relay = RelayProcess(upstream.url, tmp_path, drain={"window_s": 600.0})
    async with relay:
        run_id = upstream.add_run([("run.started", {})])
        async with crowd(f"{relay.url}/v1/runs/{run_id}/events") as people:
            for _ in range(400):
                people.join("sse")
            await people.all_saw(lambda viewer: viewer.cursor == 1)
            assert relay.process is not None
            relay.process.send_signal(signal.SIGTERM)
            await told(people.viewers, 1)
            assert sum(bool(viewer.said("relay.goodbye")) for viewer in people.viewers) < 400
            assert await relay.stop() == 1


async def test_a_server_that_is_told_to_stop_with_us_does_not_break_the_drain_off(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """systemd tells a whole group of processes: the embedded server may be gone before everybody was told."""
    stop, started, alive = asyncio.Event(), asyncio.Event(), [True]
    settings = settings_for(upstream.url, redis={"prefix": "drained"}, drain={"window_s": 30.0})
    app = App(settings, redis_url, "a-test-secret-of-at-least-32-characters", lambda: alive[0])
    run_id = upstream.add_run([("run.started", {})])
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(app.run(stop, lambda _: started.set()))
        await started.wait()
        async with crowd(f"{app.address}/v1/runs/{run_id}/events") as people:
            for _ in range(60):
                people.join("sse")
            await people.all_saw(lambda viewer: viewer.cursor == 1)
            stop.set()
            await told(people.viewers, 1)
            alive[0] = False
            await serving
            assert all(viewer.said("relay.goodbye") for viewer in people.viewers)
