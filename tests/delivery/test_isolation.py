"""What breaks for one viewer breaks for no other: not its beat, not its goodbye."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from typing import Any

import pytest

from relay.app import App
from relay.core.goodbye import DRAIN
from relay.delivery import pulse as pulses
from relay.delivery.pulse import Pulse
from tests.support.relay import settings_for
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import TOKEN_SECRET, connection


class Broken:
    def __init__(self) -> None:
        self.beats = 0

    def beat(self, now: float) -> None:
        self.beats += 1
        raise OSError(9, "bad file descriptor")

    def say_goodbye(self, goodbye: object) -> None:
        raise RuntimeError("the task group is shutting down")


class Sound(Broken):
    said: object = None

    def beat(self, now: float) -> None:
        self.beats += 1

    def say_goodbye(self, goodbye: object) -> None:
        self.said = goodbye


async def test_a_stream_that_breaks_keeps_no_other_from_its_beat_or_its_goodbye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulse = Pulse(100)
    streams = [Broken() if number % 2 else Sound() for number in range(8)]
    for stream in streams:
        pulse.add(stream, "sse")
    real = asyncio.sleep
    with monkeypatch.context() as patch:
        patch.setattr(pulses.asyncio, "sleep", lambda _: real(0))
        beating = asyncio.ensure_future(pulse.run())
        while min(stream.beats for stream in streams) < 2 and not beating.done():
            await real(0)
        assert not beating.done()
        beating.cancel()
        pulse.close()
    assert all(stream.said is DRAIN for stream in streams if isinstance(stream, Sound))
    for stream in streams:
        pulse.discard(stream, "sse")


async def test_at_a_crash_every_idle_viewer_is_told_goodbye(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([("run.started", {})])
    alive = [True]
    settings = settings_for(upstream.url, redis={"prefix": f"t{secrets.token_hex(4)}"})
    app = App(settings, redis_url, TOKEN_SECRET, lambda: alive[0])
    started = asyncio.Event()
    serving = asyncio.ensure_future(app.run(asyncio.Event(), lambda _: started.set()))
    async with AsyncExitStack() as stack, asyncio.timeout(60):
        await started.wait()
        raws: list[Any] = [await stack.enter_async_context(connection(app.address)) for _ in range(4)]
        for raw in raws:
            await raw.ask(f"/v1/runs/{run_id}/events")
            await raw.until(b"id: 1\n")
        alive[0] = False
        for raw in raws:
            await raw.rest()
            assert b"relay.goodbye" in raw.body
            assert not raw.finished
        with pytest.raises(BaseExceptionGroup):
            await serving
