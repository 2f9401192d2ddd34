"""What discovery keeps in Redis about one upstream: who looks, how far was looked, what was found and has not ended.

One process of the fleet looks at a time: it holds `looker` for a lease, by a token that every note must show. `seen` has
the runs made since a little before the mark (the newest run's creation) and the mark itself; `open` has the runs found
that are not sealed yet. Both outlive the process that looks: its successor goes on where it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from relay.core.errors import LeaseLost, StoreUnavailable
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.redis import ScriptCall, Store

OVERLAP_US: Final = 30 * 1_000_000
"""How long before the newest run seen a run may have been made that was not seen: times tie, and commits come late."""


class Memory(msgspec.Struct, frozen=True):
    """What was found so far. Times are microseconds since 1970, by the upstream's clock."""

    mark_us: int | None
    """When the newest run seen was made; None before the first look was completed, 0 if there was no run at all."""
    seen: dict[str, int]
    """Runs made since a little before the mark, with when."""
    open: list[str]
    """Runs found and not sealed."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What our log knows of a run."""

    claimed: bool
    sealed: bool
    wanted: bool


class Findings:
    def __init__(self, store: Store, keys: Keys, upstream: str, *, lease_s: float, live_s: float) -> None:
        self._store = store
        self._keys = keys
        self._upstream = upstream
        self._lease_ms = int(lease_s * 1000)
        self._live_ms = int(live_s * 1000)
        self._looker = keys.of_upstream("looker", upstream)
        self._seen = keys.of_upstream("seen", upstream)
        self._open = keys.of_upstream("open", upstream)

    # --- who looks --------------------------------------------------------------------------------------------------
    async def look(self, token: str) -> bool:
        """Take or keep the right to look, for a lease from now; False if another process has it."""
        keys = (self._looker, self._seen, self._open)
        return bool(await self._one("look", keys, (token, self._lease_ms, self._live_ms)))

    async def leave(self, token: str) -> None:
        """Give it back at once."""
        await self._one("leave", (self._looker,), (token,))

    async def forget(self) -> None:
        """Nobody looks: for a process that knows it is the only one (its own embedded server), at its start."""
        await self._store.run("forget", [("DEL", self._looker)])

    # --- what was found ---------------------------------------------------------------------------------------------
    async def recall(self) -> Memory:
        seen, opened = await self._store.run(
            "recall", [("ZRANGE", self._seen, 0, -1, "WITHSCORES"), ("SMEMBERS", self._open)]
        )
        scores = {run_id.decode(): int(float(score)) for run_id, score in zip(seen[::2], seen[1::2], strict=True)}
        mark_us = scores.pop("", None)
        return Memory(mark_us, scores, sorted(run_id.decode() for run_id in opened))

    async def note(
        self,
        token: str,
        *,
        seen: Mapping[str, int] | None = None,
        opened: Iterable[str] = (),
        closed: Iterable[str] = (),
        mark_us: int | None = None,
    ) -> None:
        """Remember all this. Raises LeaseLost if another process looks now."""
        seen, opened = seen or {}, list(opened)
        args: list[str | int] = [token, self._live_ms, "" if mark_us is None else mark_us, OVERLAP_US]
        args += [len(seen), len(opened)]
        for run_id, created_us in seen.items():
            args += (run_id, created_us)
        if not await self._one("found", (self._looker, self._seen, self._open), [*args, *opened, *closed]):
            raise LeaseLost(f"another process looks for runs of {self._upstream} now")

    async def standing(self, run_ids: Sequence[str]) -> list[Standing | None]:
        """What is known of each run; None where that part of Redis is away. One call per partition, one round trip."""
        groups: dict[int, list[str]] = defaultdict(list)
        for run_id in run_ids:
            groups[self._keys.partition(RunKey(self._upstream, run_id))].append(run_id)
        calls = [self._standing_call(group) for group in groups.values()]
        found: dict[str, Standing] = {}
        for group, answer in zip(groups.values(), await self._store.call("standing", calls), strict=True):
            if isinstance(answer, StoreUnavailable):
                continue
            if isinstance(answer, Exception):
                raise answer
            for run_id, bits in zip(group, answer, strict=True):
                found[run_id] = Standing(bool(bits & 1), bool(bits & 2), bool(bits & 4))
        return [found.get(run_id) for run_id in run_ids]

    def _standing_call(self, run_ids: Sequence[str]) -> ScriptCall:
        runs = [RunKey(self._upstream, run_id) for run_id in run_ids]
        keys = [self._keys.wants(runs[0]), *map(self._keys.run, runs)]
        return ScriptCall(self._store.scripts["standing"], keys, [self._keys.member(run) for run in runs])

    async def _one(self, name: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        answer = (await self._store.call(name, [ScriptCall(self._store.scripts[name], keys, args)]))[0]
        if isinstance(answer, Exception):
            raise answer
        return answer
