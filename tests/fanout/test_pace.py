"""Flush pacing: nothing while there is room, a bounded pause under load, the first event after a pause at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay.fanout.pace import Flushes, Pace


class Clock:
    """A loop whose time passes only where the test says so; callbacks run in the order of their times."""

    def __init__(self) -> None:
        self.now = 100.0
        self.failures: list[dict[str, Any]] = []
        self._due: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._count = 0

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Any, *args: Any) -> None:
        self.call_at(self.now, call, *args)

    def call_at(self, at: float, call: Any, *args: Any) -> None:
        self._count += 1
        self._due.append((at, self._count, call, args))

    def call_exception_handler(self, failure: dict[str, Any]) -> None:
        self.failures.append(failure)

    def run_until(self, until: float) -> None:
        while self._due and min(self._due)[0] <= until:
            self._due.sort(key=lambda one: one[:2])
            at, _, call, args = self._due.pop(0)
            self.now = max(self.now, at)
            call(*args)
        self.now = max(self.now, until)


class Busy:
    """A topic whose flush takes `cost` seconds, with an event every `gap`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.clock = Clock()
        self.cost = cost
        self.began: list[float] = []
        self.waited: list[float] = []
        self._since: list[float] = []
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self.clock)
        self.pace = Pace(self._flush)

    def _flush(self) -> None:
        self.began.append(self.clock.now)
        self.waited += [self.clock.now - since for since in self._since]
        self._since = []
        self.clock.now += self.cost

    def event(self) -> None:
        self._since.append(self.clock.now)
        self.pace.ask()

    def play(self, gap: float, count: int) -> None:
        start = self.clock.now
        for number in range(count):
            self.clock.run_until(start + number * gap)
            self.event()
        self.clock.run_until(start + count * gap + 1)


@pytest.mark.parametrize(("cost", "gap"), [(0.0001, 0.001), (0.002, 0.02), (0.0, 0.0001)])
def test_where_there_is_room_every_event_goes_at_once(monkeypatch: pytest.MonkeyPatch, cost: float, gap: float) -> None:
    busy = Busy(monkeypatch, cost)
    busy.play(gap, 200)
    assert len(busy.began) == 200
    assert max(busy.waited) < 1e-9


@pytest.mark.parametrize(("cost", "gap"), [(0.0035, 0.0025), (0.001, 0.0025), (0.02, 0.001)])
def test_under_load_flushes_are_fewer_and_no_event_waits_for_long(
    monkeypatch: pytest.MonkeyPatch, cost: float, gap: float
) -> None:
    busy = Busy(monkeypatch, cost)
    busy.play(gap, 1000)
    assert len(busy.waited) == 1000, "an event was forgotten"
    assert len(busy.began) < 400
    assert max(busy.waited) <= 0.0101 + cost, "longer than the pause, and the flush under way"
    assert cost * len(busy.began) <= 0.41 * 1000 * gap or min(_pauses(busy)) >= 0.0099, "paced by nothing"


def _pauses(busy: Busy) -> list[float]:
    return [later - earlier for earlier, later in zip(busy.began[5:], busy.began[6:], strict=False)]


def test_the_first_event_after_a_pause_goes_at_once_and_the_pause_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, 0.004)
    busy.play(0.001, 500)
    busy.waited.clear()
    busy.cost = 0.0001
    busy.play(1.0, 20)
    assert max(busy.waited) < 1e-9
    busy.began.clear()
    busy.play(0.001, 100)
    assert len(busy.began) == 100


def test_all_that_are_due_go_in_one_turn_in_their_order_and_one_that_breaks_takes_no_other_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, flushes, told = Clock(), Flushes(), list[int]()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)

    def telling(number: int) -> Pace:
        def flush() -> None:
            told.append(number)
            if number == 2:
                raise asyncio.CancelledError
            if number == 1 and told.count(1) == 1:  # something changes while it is flushed: it has a flush of its own
                paces[1].ask()
                paces[4].ask()

        return Pace(flush, flushes)

    paces = [telling(number) for number in range(5)]
    for number in (3, 0, 1, 2, 4, 0, 3):
        paces[number].ask()
    assert len(clock._due) == 1
    clock.run_until(101)
    assert told == [3, 0, 1, 2, 4, 1]
    assert [type(failure["exception"]) for failure in clock.failures] == [asyncio.CancelledError]
    paces[2].ask()
    clock.run_until(102)
    assert told[6:] == [2], "it is flushed again all the same"


def test_a_busy_run_is_paced_and_a_quiet_one_in_the_same_turns_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Busy(monkeypatch, 0.002)
    busy.pace = Pace(busy._flush, flushes := Flushes())
    told: list[float] = []
    quiet = Pace(lambda: told.append(busy.clock.now), flushes)
    busy.play(0.0025, 400)
    assert busy.pace.pause
    for _ in range(5):
        for _ in range(40):  # the busy one goes on meanwhile
            busy.clock.run_until(busy.clock.now + 0.0025)
            busy.event()
        busy.clock.run_until(busy.clock.now + 0.0005)
        asked = busy.clock.now
        quiet.ask()
        busy.clock.run_until(asked)
        assert told.pop() - asked <= busy.cost
    assert not quiet.pause
