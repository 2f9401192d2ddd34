"""Two owners, one log, any interleaving: a state machine that compares the real log with the simplest model of it."""

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
    rule,
    run_state_machine_as_test,
)

from relay.core.errors import LeaseLost, LogMoved
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.embedded import EmbeddedServer
from relay.store.keys import Keys
from relay.store.log import Append, Claim, Lease, Log
from relay.store.options import EmbeddedOptions, RedisOptions, RetentionOptions
from relay.store.redis import Store

T = TypeVar("T")
KEY = RunKey("main", "model")


class LogMachine(RuleBasedStateMachine):
    """`_log` is the truth: what must be in Redis. A lease is good if it was the last one handed out since the last loss."""

    server: EmbeddedServer
    loop: asyncio.AbstractEventLoop

    @initialize()
    def start(self) -> None:
        self._store = Store(self.server.url, RedisOptions(prefix=f"m{secrets.token_hex(4)}"))
        keys = Keys(self._store_prefix(), 4)
        # A lease of a millisecond is always over by the next claim: who may write is decided by the fence alone.
        self._logs = [Log(self._store, keys, RetentionOptions(), lease_s=0.001, want_s=60.0) for _ in range(2)]
        self._leases: list[Lease | None] = [None, None]
        self._good: Lease | None = None
        self._log: list[int] = []
        self._fences: list[int] = []

    def _store_prefix(self) -> str:
        return f"m{secrets.token_hex(6)}"

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @rule(who=st.integers(0, 1))
    def claim(self, who: int) -> None:
        claim = self._run(self._claim(who))
        assert claim.lease is not None
        assert claim.state.last_seq == (self._log[-1] if self._log else 0)
        assert not self._fences or int(claim.lease.fence) > max(self._fences)
        self._fences.append(int(claim.lease.fence))
        self._leases[who] = self._good = claim.lease

    async def _claim(self, who: int) -> Claim:
        while True:
            claim = await self._logs[who].claim(KEY)
            if isinstance(claim, Claim):
                return claim
            await asyncio.sleep(0.002)

    @rule(who=st.integers(0, 1), off=st.integers(-1, 1), steps=st.lists(st.integers(1, 3), max_size=4))
    def append(self, who: int, off: int, steps: list[int]) -> None:
        lease = self._leases[who]
        if lease is None:
            return
        end = self._log[-1] if self._log else 0
        prev = max(0, end + off)
        seqs = [prev + sum(steps[: i + 1]) for i in range(len(steps))]
        events = [Event(seq, "t", b"{}") for seq in seqs]
        answer = self._run(self._logs[who].append([Append(lease, prev, events, {})]))[0]
        if self._good is None:
            assert isinstance(answer, LogMoved)
        elif lease != self._good:
            assert isinstance(answer, LeaseLost)
        elif prev != end:
            assert isinstance(answer, LogMoved)
        else:
            assert answer is None
            self._log += seqs

    @rule(who=st.integers(0, 1))
    def renew(self, who: int) -> None:
        lease = self._leases[who]
        if lease is None:
            return
        answer = self._run(self._logs[who].renew([(lease, self._log[-1] if self._log else 0)]))[KEY]
        assert (answer is None) == (lease == self._good)

    @rule()
    def flush(self) -> None:
        self._run(self._store.run("flush", [("FLUSHALL",)]))
        self._log, self._good = [], None

    @invariant()
    def the_log_is_the_model(self) -> None:
        if hasattr(self, "_logs"):
            found = self._run(self._logs[0].read([(KEY, 0, 10_000)]))[0]
            assert [event.seq for event in found] == self._log

    def teardown(self) -> None:
        if hasattr(self, "_store"):
            self._run(self._store.close())


def test_any_interleaving_of_two_owners_and_losses_keeps_the_log_true() -> None:
    with tempfile.TemporaryDirectory() as directory:
        LogMachine.server = EmbeddedServer.start(EmbeddedOptions(str(Path(directory) / "r")))
        LogMachine.loop = asyncio.new_event_loop()
        try:
            run_state_machine_as_test(
                LogMachine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
            )
        finally:
            LogMachine.loop.close()
            LogMachine.server.stop()
