"""Owning a run: claim it, do what an owner does, claim again when something happened to the claim. For every pump alike.

`run()` survives everything Redis can do. What is done while the run is ours is in `_own`, which starts from what the claim
says the log holds and from nothing else that was thought before.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

from relay import telemetry
from relay.core.backoff import Backoff
from relay.core.errors import LeaseLost, LogMoved, StoreUnavailable
from relay.core.ids import RunKey
from relay.ingest.options import IngestOptions
from relay.store.log import Claim, Lease, Log


class Tenure:
    def __init__(self, key: RunKey, log: Log, options: IngestOptions) -> None:
        self.key = key
        self.lease: Lease | None = None
        self.durable_seq = 0
        """The last seq this pump knows to be in the log."""
        self.decided = asyncio.Event()
        """Set once it is known who owns the run: this pump, or another."""
        self._nudged = asyncio.Event()
        self._owned = False
        self._held_s: Callable[[], float] = lambda: 0.0
        self._lost: Callable[[], None] = lambda: None
        self._log = log
        self._options = options
        self._scope: asyncio.Timeout | None = None
        self._say = telemetry.logger(run_id=key.run_id, upstream=key.upstream)

    async def probe(self) -> None:
        """A reader has seen more of a sealed run than its log holds: read once what the upstream has behind its end."""
        raise NotImplementedError

    def yields(self, held_s: Callable[[], float], lost: Callable[[], None]) -> None:
        """A run this pump never owned is left to its owner while `held_s()` is more than 0; `lost`: Redis is away."""
        self._held_s, self._lost = held_s, lost

    @property
    def keeps(self) -> bool:
        """It holds something nobody can ever have again, so it is not given up only because nobody watches."""
        return False

    def close(self) -> None:
        """It will not run again: let go of what it holds."""

    async def _claim(self) -> Claim | float:
        return await self._log.claim(self.key)

    async def _own(self, claim: Claim) -> None:
        """Everything from the claim to the seal."""
        raise NotImplementedError

    # --- for ever ---------------------------------------------------------------------------------------------------
    async def run(self) -> bool:
        """Pump until the run is sealed (true), or until another owner is found at it (false)."""
        backoff = self._backoff()
        seen_left_s: float | None = None
        while True:
            await self._let_owners_go_first()
            try:
                self._nudged.clear()  # before we ask: whoever lets go after the answer wakes us
                claim = await self._claim()
                if not isinstance(claim, Claim):
                    if seen_left_s is not None and claim > seen_left_s:
                        self.decided.set()
                        return False
                    seen_left_s = await self._look_at_lease_again(claim)
                    continue
                backoff, seen_left_s = self._backoff(), None
                self._owned = self._owned or claim.lease is not None
                await self._owning(claim)
                return True
            except (LogMoved, LeaseLost) as error:
                self.lease = None
                self._say.info("pump.reclaim", reason=error.code)
            except StoreUnavailable:
                self._lost()
                await asyncio.sleep(backoff.pause_s(random.random()))  # noqa: S311  (jitter, not a secret)
                backoff = backoff.failed()
            except TimeoutError:  # only `interrupt` ends the scope of `_owning` early
                self._say.info("pump.reclaim", reason="interrupted")

    async def _let_owners_go_first(self) -> None:
        while not self._owned and not self.keeps and (held_s := self._held_s()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(held_s)

    async def _look_at_lease_again(self, left_s: float) -> float:
        """Wait long enough to see whether another owner's lease is renewed: it may have died just now.

        Returns what will be left of the lease if it was not, and a little more.
        """
        pause_s = min(left_s, self._options.lease_s / 3) + 0.05
        began = time.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._nudged.wait()
        return left_s - (time.monotonic() - began) + 0.02

    def nudge(self) -> None:
        """The run's owner has let go: if this pump waits for the end of its lease, it need not wait any longer."""
        self._nudged.set()

    def interrupt(self) -> None:
        """The run's state in Redis is not what this pump thinks: stop what it does, claim anew, resume from there."""
        scope, self._scope = self._scope, None  # once: a scope that is ending already cannot be told again
        if scope is not None:
            scope.reschedule(asyncio.get_running_loop().time())

    async def _owning(self, claim: Claim) -> None:
        async with asyncio.timeout(None) as scope:
            self._scope = scope
            try:
                await self._own(claim)
            finally:
                self._scope = None

    def _backoff(self) -> Backoff:
        return Backoff(self._options.backoff_base_s, self._options.backoff_cap_s)
