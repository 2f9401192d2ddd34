"""Two fillers, a log that is trimmed, readers anywhere, losses: whatever a reader is given is what the upstream has.

The upstream of the model is a set of seqs with holes of its own and a head that it loses bit by bit. A reader must never be
given a page with a hole in it, nor be told that something is gone which the log, `old` or the upstream still has.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.core.errors import LeaseLost, LogMoved
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.embedded import EmbeddedServer
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, Log
from relay.store.old import Fill
from relay.store.options import EmbeddedOptions, RedisOptions, RetentionOptions
from relay.store.redis import Store

T = TypeVar("T")
KEY = RunKey("main", "model")


class OldMachine(RuleBasedStateMachine):
    server: EmbeddedServer
    loop: asyncio.AbstractEventLoop

    @initialize(
        steps=st.one_of(st.just([1] * 30), st.lists(st.sampled_from([1, 1, 1, 2, 7]), min_size=20, max_size=30)),
        written=st.integers(5, 15),
        trimmed=st.sampled_from([0.5, 0.7, 0.9]),
    )
    def start(self, steps: list[int], written: int, trimmed: float) -> None:
        self._store = Store(self.server.url, RedisOptions())
        self._keys = Keys(f"o{secrets.token_hex(6)}", 4)
        # A right to fill of a millisecond is always over by the next take: the token alone decides.
        self._logs = [Log(self._store, self._keys, RetentionOptions(), lease_s=0.001, want_s=60.0) for _ in range(2)]
        self._all = [sum(steps[: i + 1]) for i in range(len(steps))]
        self._holes = any(step > 1 for step in steps)
        self._written = 0
        self._lost = 0
        """Up to here the upstream has lost its head."""
        self._told = 0
        """The highest seq that any filler was right to call gone."""
        self._lease: Lease | None = None
        self._fills: list[Fill | None] = [None, None]
        self.append(written)
        self.trim(trimmed)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @property
    def _seqs(self) -> list[int]:
        return self._all[: self._written]

    # ── the log ─────────────────────────────────────────────────────────────────────────────────────────────
    @rule(most=st.integers(1, 8))
    def append(self, most: int) -> None:
        if self._lease is None:
            claim = self._run(self._claim())
            self._lease = claim.lease
            assert claim.state.last_seq == (self._seqs[-1] if self._seqs else 0)
        new = self._all[self._written : self._written + most]
        prev = self._seqs[-1] if self._seqs else 0
        fields = {"contiguous": "0"} if self._holes else {}
        events = [Event(seq, "t", b"{}") for seq in new]
        assert self._lease is not None
        assert self._run(self._logs[0].append([Append(self._lease, prev, events, fields)])) == [None]
        self._written += len(new)

    async def _claim(self) -> Claim:
        while not isinstance(claim := await self._logs[0].claim(KEY), Claim):
            await asyncio.sleep(0.002)
        return claim

    @precondition(lambda self: self._lease is not None)
    @rule(share=st.sampled_from([0.2, 0.5, 0.8, 0.99]))
    def trim(self, share: float) -> None:
        """What append.lua does at the cap, at any place."""
        first = self._seqs[int(share * len(self._seqs))]
        log, run = self._keys.log(KEY), self._keys.run(KEY)
        gone = self._run(self._store.run("t", [("XTRIM", log, "MINID", f"{first}-0")]))[0]
        if gone:
            self._run(self._store.run("t", [("HSET", run, "floor", str(first - 1))]))

    @rule(what=st.sampled_from(["run", "old", "fill"]), claimed=st.booleans())
    def lose(self, what: str, claimed: bool) -> None:
        self._run(self._store.run("t", [("DEL", getattr(self._keys, what)(KEY))]))
        if what == "run":
            self._lease = self._run(self._claim()).lease if claimed else None

    # ── the upstream and those who read it ──────────────────────────────────────────────────────────────────
    @rule(share=st.sampled_from([0.1, 0.3, 0.6]))
    def the_upstream_loses_its_head(self, share: float) -> None:
        self._lost = max(self._lost, self._seqs[int(share * len(self._seqs))])

    @rule(who=st.integers(0, 1), cursor=st.sampled_from([0, 2, 4, 8, 12, 30]))
    def take(self, who: int, cursor: int) -> None:
        self._fills[who] = None
        try:
            taken = self._run(self._logs[who].old.take(KEY, cursor))
        except LogMoved:
            assert self._lease is None
            return
        if isinstance(taken, Fill):
            assert taken.start <= cursor or taken.start <= self._told
            assert taken.start <= taken.upto < taken.floor
            self._fills[who] = taken

    @rule(who=st.integers(0, 1), parts=st.lists(st.integers(1, 8), min_size=1, max_size=4))
    def fill(self, who: int, parts: list[int]) -> None:
        for most in parts:
            self._fill(who, most)

    @rule(cursor=st.sampled_from([0, 1, 3, 6, 10, 20]), parts=st.lists(st.integers(1, 8), min_size=1, max_size=6))
    def take_and_fill(self, cursor: int, parts: list[int]) -> None:
        self.take(0, cursor)
        self.fill(0, parts)

    def _fill(self, who: int, most: int) -> None:
        """What relay.ingest.backfill does with what it reads."""
        fill = self._fills[who]
        if fill is None:
            return
        has = [seq for seq in self._seqs if seq > max(fill.upto, self._lost)]
        try:
            if fill.upto < self._lost:
                gone = min(has[0] - 1 if has else fill.floor, fill.floor)
                fill = self._run(self._logs[who].old.write(fill, upto=gone, gone=gone))
                self._told = max(self._told, gone)
            elif not fill.full:
                fill = self._run(self._logs[who].old.write(fill, [Event(seq, "t", b"{}") for seq in has[:most]]))
            self._fills[who] = fill
        except (LeaseLost, LogMoved):
            self._fills[who] = None

    # ── readers ─────────────────────────────────────────────────────────────────────────────────────────────
    @rule(cursor=st.integers(0, 60), most=st.integers(1, 40))
    def read(self, cursor: int, most: int) -> None:
        found = self._run(self._logs[1].old.behind(KEY, cursor, most))
        wanted = [seq for seq in self._seqs if seq > cursor]
        if found.where == "gone":
            assert cursor < found.gone <= max(self._told, 0)
        else:
            assert [event.seq for event in found.events] == wanted[: len(found.events)], found
        if found.where == "log" and not found.events:
            assert not wanted or self._told >= wanted[-1]

    @invariant()
    def a_reader_at_the_beginning_gets_there(self) -> None:
        """Walk from 0 until something is missing: no hole, no step back."""
        if not hasattr(self, "_logs"):
            return
        cursor, seen, excused = 0, [], 0
        while True:
            found = self._run(self._logs[1].old.behind(KEY, cursor, 5))
            if found.where == "gone":
                assert found.gone > cursor
                cursor = excused = found.gone
            elif found.events:
                seen += [event.seq for event in found.events]
                cursor = seen[-1]
            else:
                break
        assert seen == sorted(set(seen))
        missed = {seq for seq in self._seqs if seq <= cursor} - set(seen)
        assert all(seq <= excused for seq in missed)

    def teardown(self) -> None:
        if hasattr(self, "_store"):
            self._run(self._store.close())


def test_no_interleaving_of_fillers_trims_and_losses_shows_a_reader_a_hole() -> None:
    with tempfile.TemporaryDirectory() as directory:
        OldMachine.server = EmbeddedServer.start(EmbeddedOptions(str(Path(directory) / "r")))
        OldMachine.loop = asyncio.new_event_loop()
        try:
            run_state_machine_as_test(
                OldMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
            )
        finally:
            OldMachine.loop.close()
            OldMachine.server.stop()
