"""The trimmed head of a log, fetched again: one more stream per run, filled once for the whole fleet, soon gone again.

What a reader does: `behind`, for what lies behind its cursor wherever that is; MISSING means that somebody has to ask the
upstream. What a filler does: `take` -> `write`… -> `give_up`, and `keep` meanwhile. Who may write is decided in Lua, as for
the log: by a token, and by where the stream ends. `old` says nothing by its first and last id alone; what it covers is
noted beside it (`fill`), and where the two do not agree it is taken for empty.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from relay.core.errors import LeaseLost, LogMoved
from relay.core.events import Event
from relay.core.ids import RunKey
from relay.store.entries import event_of, text
from relay.store.keys import Keys
from relay.store.redis import ScriptCall, Store


class Behind(msgspec.Struct, frozen=True):
    """What lies behind a cursor."""

    where: Literal["log", "old", "gone", "missing"]
    """missing: below the log's floor, and not (yet) in `old`."""
    floor: int = 0
    """The log does not hold events up to here. Not looked up when the log had what was asked for."""
    events: Sequence[Event] = ()
    """In order, without a hole that is not the upstream's own. None: nothing there yet."""
    gone: int = 0
    """With where = gone: the last seq that can no longer be had."""


@dataclass(frozen=True, slots=True)
class Fill:
    """The right to fill `old`, and how far it is filled."""

    key: RunKey
    token: str
    start: int
    """It holds (or will hold) what lies behind this."""
    upto: int
    """And up to here: where the upstream has to be asked to go on."""
    floor: int
    """It is full when it reaches this, the floor of the log when we last heard."""

    @property
    def full(self) -> bool:
        return self.upto >= self.floor


class Old:
    def __init__(self, store: Store, keys: Keys, *, lease_s: float, old_s: float) -> None:
        self._store = store
        self._keys = keys
        self._lease_ms = int(lease_s * 1000)
        self._old_ms = int(old_s * 1000)

    async def behind(self, key: RunKey, cursor: int, most: int) -> Behind:
        """Up to `most` events behind `cursor`, from the log or from `old`; or why there are none."""
        keys = (self._keys.log(key), self._keys.run(key), self._keys.old(key), self._keys.fill(key))
        where, floor, *rest = await self._call("behind", keys, (cursor, most, self._old_ms))
        place: Any = text(where)
        if place == "gone":
            return Behind(place, int(floor), gone=int(rest[0]))
        return Behind(place, int(floor), [event_of(entry) for entry in rest[0]] if rest else ())

    async def take(self, key: RunKey, cursor: int) -> Fill | float | None:
        """The right to fill what lies between `cursor` and the log, or the seconds another one's is still good for.

        None: there is nothing to fill. Raises LogMoved if nothing is known of the run.
        """
        token = secrets.token_urlsafe(12)
        keys = (self._keys.fill(key), self._keys.old(key), self._keys.log(key), self._keys.run(key))
        answer = await self._call("take", keys, (token, self._lease_ms, self._old_ms, cursor))
        verdict = text(answer[0])
        if verdict == "HELD":
            return float(answer[1]) / 1000
        if verdict == "FULL":
            return None
        _refuse(verdict, key)
        start, upto, floor = map(int, answer[1:])
        return Fill(key, token, start, upto, floor)

    async def write(
        self, fill: Fill, events: Sequence[Event] = (), *, upto: int = 0, gone: int = 0, starts: int = 0
    ) -> Fill:
        """Add what the upstream said, and return how far it is now. Raises LeaseLost or LogMoved.

        `upto`: it has nothing more up to there. `gone`: events up to there are lost. `starts`: the run's first event.
        """
        args: list[str | bytes | int] = [fill.upto, upto, gone, starts]
        for event in events:
            args += (event.seq, event.type.encode("utf-8", "replace"), event.json)
        answer = await self._fill(fill, self._lease_ms, args)
        return replace(fill, upto=int(answer[1]), floor=int(answer[2]))

    async def keep(self, fill: Fill) -> None:
        """Keep the right to fill while the upstream is silent. Raises LeaseLost."""
        await self._fill(fill, self._lease_ms, ["", 0, 0, 0])

    async def give_up(self, fill: Fill) -> None:
        """Let another one fill at once. Raises LeaseLost if that has happened already."""
        await self._fill(fill, 0, ["", 0, 0, 0])

    async def _fill(self, fill: Fill, lease_ms: int, args: Sequence[str | bytes | int]) -> Sequence[Any]:
        named = self._keys
        keys = [of(fill.key) for of in (named.fill, named.old, named.log, named.run, named.bell)]
        answer = await self._call("fill", keys, (fill.token, lease_ms, self._old_ms, *args))
        _refuse(text(answer[0]), fill.key)
        return answer

    async def _call(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Sequence[Any]:
        answer = (await self._store.call(name, [ScriptCall(self._store.scripts[name], keys, args)]))[0]
        if isinstance(answer, Exception):
            raise answer
        found: Sequence[Any] = answer
        return found


def _refuse(verdict: str, key: RunKey) -> None:
    if verdict == "LOST":
        raise LogMoved(f"the old events of {key} are not where their filler left them")
    if verdict == "FENCED":
        raise LeaseLost(f"another one fills the old events of {key} now")
