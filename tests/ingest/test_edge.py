"""The live edge: everything in order, one append at a time, bounded, and nothing behind the back of a pump that left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.errors import LogMoved
from relay.core.events import Draft, Event
from relay.core.ids import RunKey
from relay.core.run import Admission, Run
from relay.ingest import committer as committer_module
from relay.ingest.committer import Committer
from relay.ingest.edge import Edge
from relay.store.log import Append, Lease

LEASE = Lease(RunKey("main", "r"), "owner", "1")


class Upstream:
    """A tap and a source in one: a piece is the seqs it brings."""

    def __init__(self) -> None:
        self.held = False
        self.left = False
        self.error: Exception | None = None
        self._kept: list[bytes] = []
        self._sink: Any = None

    def take(self, sink: Any, over: Any) -> None:
        self._sink = sink
        self.flow()

    def hold(self) -> None:
        self.held = True

    def flow(self) -> None:
        self.held = False
        while self._kept and not self.held:
            self._sink(self._kept.pop(0))

    def leave(self) -> None:
        self.left = True

    def push(self, *seqs: int, size: int = 10) -> None:
        piece = b",".join(b"%d:%d" % (seq, size) for seq in seqs)
        if self.held:
            self._kept.append(piece)
        else:
            self._sink(piece)

    def read(self, piece: bytes) -> list[Draft]:
        if piece == b"0:10":
            raise RuntimeError("unreadable")
        pairs = [pair.split(b":") for pair in piece.split(b",")]
        return [
            Draft(int(seq), "message.delta", {"seq": int(seq), "data": {"x": "x" * int(size)}}) for seq, size in pairs
        ]


class Log:
    """Answers when it is told to; refuses what does not follow, as Redis would."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.appends: list[Append] = []
        self.go = asyncio.Event()
        self.go.set()
        self.refuse: Exception | None = None

    async def append(self, appends: Sequence[Append]) -> list[Exception | None]:
        self.appends += appends
        assert len({append.lease.key for append in appends}) == len(appends), "two appends of one run at a time"
        await self.go.wait()
        return [self._append(append) for append in appends]

    def _append(self, append: Append) -> Exception | None:
        if self.refuse is not None or append.prev != (self.rows[-1] if self.rows else 0):
            return self.refuse or LogMoved("does not follow")
        self.rows += [event.seq for event in append.events]
        return None


class Rig:
    def __init__(self) -> None:
        self.up = Upstream()
        self.log = Log()
        self.run = Run("r")
        self.durable = 0
        self.committer = Committer(cast(Any, self.log))
        self.edge = Edge(cast(Any, self.up), cast(Any, self.up), self.committer, self._admit, self._made, self._done)
        self.committing = asyncio.create_task(self.committer.run())

    async def __aenter__(self) -> Rig:
        self.edge.flow()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.committing.cancel()
        await asyncio.gather(self.committing, return_exceptions=True)

    def _admit(self, drafts: list[Draft]) -> Admission:
        return self.run.admit(drafts)

    def _made(self, events: Sequence[Event]) -> Append:
        return Append(LEASE, self.durable, events, {})

    def _done(self, last_seq: int) -> None:
        self.durable = last_seq


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "_GATHER_S", 0.0)


@given(
    steps=st.lists(st.one_of(st.integers(1, 5), st.sampled_from(["turn", "quiet", "slow", "fast", "big"])), max_size=40)
)
def test_everything_arrives_once_and_in_order_whatever_the_log_does(steps: list[int | str]) -> None:
    async def scenario() -> None:
        async with Rig() as rig:
            last = 0
            for step in steps:
                if isinstance(step, int):
                    rig.up.push(*range(last + 1, last + 1 + step))
                    last += step
                elif step == "big":
                    rig.up.push(last + 1, size=300_000)
                    last += 1
                elif step == "turn":
                    await asyncio.sleep(0)
                elif step == "quiet":
                    rig.log.go.set()
                    await rig.edge.quiet()
                    assert rig.log.rows == list(range(1, rig.durable + 1))
                    rig.edge.flow()
                else:
                    rig.log.go.set() if step == "fast" else rig.log.go.clear()
            rig.log.go.set()
            async with asyncio.timeout(60):
                while rig.durable < last:
                    await asyncio.sleep(0)
            assert rig.log.rows == list(range(1, last + 1))

    asyncio.run(scenario())


async def test_what_waits_is_bounded_and_flows_again() -> None:
    async with Rig() as rig:
        rig.log.go.clear()
        for seq in range(1, 21):
            rig.up.push(seq, size=50_000)
        await asyncio.sleep(0)
        assert rig.up.held
        waiting = sum(len(event.json) for event in rig.edge._waiting)
        assert waiting < 262_144 + 60_000
        rig.log.go.set()
        await until(lambda: rig.log.rows == list(range(1, 21)))
        assert not rig.up.held


async def test_a_step_stops_everything_and_what_came_before_it_is_durable() -> None:
    async with Rig() as rig:
        rig.up.push(1, 2)
        rig.up.push(3, 5)
        rig.up.push(6)
        async with asyncio.timeout(60):
            await rig.edge.turn(5)
            await rig.edge.quiet()
        assert rig.edge.step
        assert rig.log.rows == [1, 2, 3]


async def test_a_refused_append_reaches_the_task_and_nothing_more_is_written() -> None:
    async with Rig() as rig:
        rig.log.refuse = LogMoved("moved")
        rig.up.push(1)
        rig.up.push(2)
        with pytest.raises(LogMoved):
            await rig.edge.turn(5)
        rig.log.refuse = None
        rig.up.push(3)
        await asyncio.sleep(0.05)
        assert len(rig.log.appends) == 1
        with pytest.raises(LogMoved):
            await rig.edge.quiet()


async def test_what_breaks_while_reading_reaches_the_task() -> None:
    async with Rig() as rig:
        rig.up.push(0)
        with pytest.raises(RuntimeError, match="unreadable"):
            await rig.edge.turn(5)


async def test_a_pump_that_left_writes_nothing_more_and_is_told_nothing() -> None:
    async with Rig() as rig:
        rig.log.go.clear()
        other = asyncio.create_task(
            rig.committer.append(Append(Lease(RunKey("main", "other"), "o", "1"), 0, [Event(1, "x", b"{}")], {}))
        )
        await until(lambda: len(rig.log.appends) == 1)
        rig.up.push(1)  # waits for the commit under way
        rig.edge.close()
        rig.log.go.set()
        await other
        await asyncio.sleep(0.05)
        assert len(rig.log.appends) == 1
        assert rig.up.left
        assert rig.durable == 0


async def test_a_turn_is_no_longer_than_asked_and_a_wake_ends_it() -> None:
    async with Rig() as rig:
        await rig.edge.turn(0.01)
        asyncio.get_running_loop().call_later(0.01, rig.edge.wake)
        async with asyncio.timeout(60):
            await rig.edge.turn(60)


async def until(fact: Any) -> None:
    async with asyncio.timeout(60):
        while not fact():
            await asyncio.sleep(0.002)
