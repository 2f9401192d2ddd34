"""Fair shares of the event loop: a line of any length takes bounded turns, in order; everything else goes in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery.turns import Turns


async def passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@given(
    budget=st.integers(1, 10),
    share=st.integers(1, 10),
    costs=st.lists(st.integers(0, 12), max_size=60),
)
def test_each_turn_lets_in_a_bounded_number_and_all_in_their_order(budget: int, share: int, costs: list[int]) -> None:
    async def check() -> None:
        turns = Turns(budget, share)
        went: list[int] = []
        spent = 0

        def one(number: int, cost: int) -> Callable[[], None]:
            def go() -> None:
                nonlocal spent
                went.append(number)
                spent += cost
                turns.spend(cost)

            return go

        for number, cost in enumerate(costs):
            turns.take(one(number, cost))
        most = max(1, budget // share)
        for _ in range(len(costs) + 2):
            before = len(went)
            await asyncio.sleep(0)
            assert len(went) - before <= most, "one turn of the loop was not shared"
        assert went == sorted(went) == list(range(len(costs))), "somebody was passed over, or overtaken"
        await passes(2)
        assert turns.open, "an empty line is closed"

    asyncio.run(check())


async def test_what_is_left_of_a_turn_may_be_used_at_once_and_not_more() -> None:
    turns = Turns(10, 5)
    assert turns.open
    turns.spend(9)
    assert turns.open
    turns.spend(1)
    assert not turns.open
    await passes(1)
    assert turns.open


async def test_a_budget_is_renewed_when_it_is_used_up_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who come one by one, each in a turn of the loop of its own, do not have another made for each."""
    turns, renewed, went = Turns(10, 1), 0, 0

    def go() -> None:
        nonlocal went
        went += 1

    real = Turns._renew

    def counted(self: Turns) -> None:
        nonlocal renewed
        renewed += 1
        real(self)

    monkeypatch.setattr(Turns, "_renew", counted)
    for number in range(1, 101):
        turns.take(go)
        assert went == number
        await passes(1)
    assert renewed == 10


async def test_live_readers_have_their_turn_however_long_the_line() -> None:
    """A thousand who catch up, each for ten slices, and one who only wants to be called now and then."""
    turns = Turns(8, 1)
    between: list[int] = []
    done = 0

    async def catches_up() -> None:
        nonlocal done
        for _ in range(10):
            await turns.mine()
            turns.spend(1)
            done += 1

    async def live() -> None:
        while done < 10_000:
            before = done
            await asyncio.sleep(0)
            between.append(done - before)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(1000):
            tasks.create_task(catches_up())
        tasks.create_task(live())
    assert max(between) <= 16


async def test_one_who_leaves_the_line_holds_nobody_up() -> None:
    turns = Turns(1, 1)
    turns.spend(1)
    first, second = asyncio.create_task(turns.mine()), asyncio.create_task(turns.mine())
    await passes(1)
    first.cancel()
    async with asyncio.timeout(60):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first
