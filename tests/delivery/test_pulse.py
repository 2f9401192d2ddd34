"""Goodbyes over a window: everybody is told exactly when due, whoever comes or goes meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest

from relay import telemetry
from relay.core.errors import Overloaded
from relay.core.goodbye import AGED, DRAIN
from relay.delivery import pulse as module
from relay.delivery.pulse import Lag, Pulse


class FakeStream:
    """Leaves as soon as it was told, as a request's task does."""

    def __init__(self) -> None:
        self.told = 0
        self.place: Any = None

    def say_goodbye(self, goodbye: object) -> None:
        assert goodbye is DRAIN
        self.told += 1
        if self.place is not None:
            asyncio.get_running_loop().call_soon(self.place.close)

    def beat(self, now: float) -> None: ...


def enter(pulse: Pulse) -> FakeStream:
    stream = FakeStream()
    stream.place = ExitStack()
    stream.place.enter_context(pulse.beating(stream, "sse"))  # type: ignore[arg-type]
    return stream


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes only where the drain sleeps; the list has every moment it slept."""
    now = [100.0]
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        now.append(now[-1] + seconds)
        await real_sleep(0)

    monkeypatch.setattr(module.time, "monotonic", lambda: now[-1])
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return now


@pytest.mark.parametrize(
    ("many", "window_s"), [(1, 10), (7, 10), (20, 10), (200, 10), (201, 10), (1000, 10), (1000, 0.2)]
)
async def test_the_goodbyes_are_spread_evenly(ticks: list[float], many: int, window_s: float) -> None:
    pulse = Pulse(10_000)
    streams = [enter(pulse) for _ in range(many)]
    began, told = ticks[-1], []
    draining = asyncio.create_task(pulse.drain(window_s))
    while not draining.done():
        told.append((ticks[-1] - began, sum(stream.told for stream in streams)))
        await asyncio.sleep(0)
    pulse.close()
    for stream in streams:
        stream.place.close()
    assert all(stream.told == 1 for stream in streams)
    length = min(window_s, many / 20)
    assert ticks[-1] - began <= length + 0.06
    for at, count in told:  # the straight line from nobody to everybody, give or take two ticks and one stream
        assert abs(count - many * min(1.0, at / length)) <= 2 * many * 0.05 / length + 1, (at, count)


async def test_who_comes_while_we_drain_is_told_too_and_nobody_is_let_in_afterwards(ticks: list[float]) -> None:
    pulse = Pulse(10)
    streams = [enter(pulse) for _ in range(5)]
    draining = asyncio.create_task(pulse.drain(10))
    while not any(stream.told for stream in streams):
        await asyncio.sleep(0)
    with pulse.place():
        streams.append(enter(pulse))
    await draining
    pulse.close()
    await asyncio.sleep(0)
    assert all(stream.told for stream in streams)
    assert pulse.count == 0
    with pytest.raises(Overloaded), pulse.place():
        pass
    late = enter(pulse)  # let in before, ready only now
    assert late.told


async def test_without_viewers_there_is_nothing_to_wait_for(ticks: list[float]) -> None:
    await Pulse(10).drain(10)
    assert len(ticks) == 1


async def test_without_a_window_everybody_is_told_at_once(ticks: list[float]) -> None:
    pulse = Pulse(10)
    streams = [enter(pulse) for _ in range(5)]
    await pulse.drain(0)
    assert len(ticks) == 1
    pulse.close()
    assert all(stream.told == 1 for stream in streams)


async def test_streams_are_told_when_they_are_old_each_at_its_own_time(ticks: list[float]) -> None:
    pulse = Pulse(10_000, max_age_s=100)
    told: dict[int, float] = {}

    class Ageing:
        def __init__(self, number: int) -> None:
            self.number = number

        def say_goodbye(self, goodbye: object) -> None:
            assert goodbye is AGED
            assert self.number not in told, "once"
            told[self.number] = ticks[-1] - began

        def beat(self, now: float) -> None: ...

    began = ticks[-1]
    streams = [Ageing(number) for number in range(1000)]
    for stream in streams:
        pulse.add(stream, "sse", ages=stream.number < 900)
    task = asyncio.create_task(pulse.run())
    while ticks[-1] - began < 300:
        await asyncio.sleep(0)
    task.cancel()
    for stream in streams:
        pulse.discard(stream, "sse")
    assert set(told) == set(range(900)), "who cannot come back is left alone"
    assert min(told.values()) >= 50
    assert max(told.values()) <= 102
    per_second = [sum(at <= age < at + 1 for age in told.values()) for at in range(52, 99)]
    assert max(per_second) < 60, "900 of them over fifty seconds"


async def test_all_gauges_of_one_scrape_take_one_look_at_each_viewer() -> None:
    class Counted:
        looks = 0

        def beat(self, now: float) -> None: ...

        def say_goodbye(self, goodbye: object) -> None: ...

        def lag(self) -> Lag:
            self.looks += 1
            return Lag(3, 5, "run", "sse", 0.0)

    pulse, viewer = Pulse(10), Counted()
    pulse.add(viewer, "sse")
    told = [gauge.labels("0.99")._samples() for gauge in (telemetry.VIEWER_LAG, telemetry.VIEWER_BACKLOG)]
    assert [next(iter(samples)).value for samples in told] == [3, 5]
    assert viewer.looks == 1
    pulse.discard(viewer, "sse")
