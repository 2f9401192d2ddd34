"""Keeps the folds of long runs beside their logs, so that nobody who joins late has to read a run's history.

Every owner looks once a second which of its runs have grown enough, and folds what is new onto the stored fold. That fold
is read from Redis, so no state is held here between two looks, it does not matter which owner wrote the last one, and a
pump is never kept waiting. So are the new rows, but for runs that are folded at every look (`recent`). Short runs have no
fold: their rows are no more than one would be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from relay import telemetry
from relay.core.errors import StoreUnavailable
from relay.core.events import Event, encode
from relay.core.fold import Fold
from relay.core.ids import RunKey
from relay.core.window import about
from relay.ingest.recent import Recent, Tail
from relay.store.log import Lease, Log

_LOOK_S: Final = 1.0
_FIRST: Final = 256
"""So many events behind what is folded are worth a look, as long as it is not known how large they are."""
_BYTES: Final = 262_144
"""So many bytes of events are folded at a time; for a large fold, ..."""
_TIMES: Final = 2
"""... so many times its own size: what is written of folds is at most half of what is written of events."""
_ROWS: Final = 1024
"""Most events that are left unfolded for long, whatever their size."""
_SLICE: Final = 128
"""So many are read and folded in one turn of the loop, ..."""
_SLICE_BYTES: Final = 131_072
"""... or about so many bytes of them: half a millisecond, for which live viewers wait."""


class _Known:
    """Of one run: how far it was folded when we last looked, and how many more events it takes to look again."""

    __slots__ = ("lease", "rows", "seq")

    def __init__(self, lease: Lease, seq: int) -> None:
        self.lease = lease
        self.seq = seq
        self.rows = _FIRST

    def learn(self, seq: int, rows: int, size: int, fold_size: int) -> None:
        """From a look at `rows` events of `size` bytes."""
        self.seq = seq
        if rows:
            mean = max(1, size // rows)
            self.rows = max(16, min(_ROWS, max(_BYTES, _TIMES * fold_size) // mean))


class _Counted:
    """The events that are folded in one look, a slice in each turn of the loop."""

    __slots__ = ("rows", "size")

    def __init__(self) -> None:
        self.rows = self.size = 0

    async def onto(self, fold: Fold, events: Sequence[Event]) -> None:
        at = 0
        while at < len(events):
            part = events[at : at + _SLICE]
            part = part[: about(part, _SLICE_BYTES)]
            at += len(part)
            part = [event for event in part if event.seq > fold.as_of_seq]
            fold.extend(part)
            self.rows += len(part)
            self.size += sum([len(event.json) for event in part])
            await asyncio.sleep(0)


class Folds:
    def __init__(self, log: Log, owned: Callable[[], Mapping[Lease, int]]) -> None:
        """`owned`: the runs this process owns, and the last seq of each that is durable."""
        self._log = log
        self._owned = owned
        self._known: dict[RunKey, _Known] = {}
        self._recent = Recent()
        self.heard = self._recent.heard
        """To be told what Redis has confirmed: a run, the seq it was written behind, and its events."""

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Fold what has grown enough, one run after the other."""
        owned = self._owned()
        self._known = {
            lease.key: known for lease in owned if (known := self._known.get(lease.key)) and known.lease == lease
        }
        self._recent.only(self._known)  # what was heard under another lease is no longer known to be in the log
        folded: list[RunKey] = []
        try:
            await self._meet(
                [lease for lease, seq in owned.items() if lease.key not in self._known and seq >= self._few]
            )
            for lease, last_seq in owned.items():
                known = self._known.get(lease.key)
                if known is not None and last_seq - known.seq >= min(known.rows, max(1, self._log.cap // 2)):
                    known.seq = last_seq  # whatever comes of it: this run is looked at again when it has grown again
                    folded.append(lease.key)
                    tail = self._recent.take(lease.key)
                    self._recent.follow(lease.key)
                    await self._fold(known, tail)
        except StoreUnavailable:
            pass  # the next look goes on
        self._recent.only(folded)

    @property
    def _few(self) -> int:
        """A log that is soon trimmed is folded sooner."""
        return max(1, min(_FIRST, self._log.cap // 2))

    async def _meet(self, leases: Sequence[Lease]) -> None:
        """Runs this process owns now: how far were they folded by others?"""
        if leases:
            seqs = await self._log.fold_seqs([lease.key for lease in leases])
            self._known |= {lease.key: _Known(lease, seq) for lease, seq in zip(leases, seqs, strict=True)}

    async def _fold(self, known: _Known, tail: Tail) -> None:
        """Everything durable, onto the stored fold; nothing if that cannot be read, or the log lost its head before."""
        fold, generation, events = Fold(), 1, _Counted()
        most = 0 if tail.events else _SLICE
        while True:
            found = await self._log.folded(known.lease.key, fold.as_of_seq, most)
            generation = found.generation
            if fold.as_of_seq < generation - 1:
                fold = Fold(generation - 1)
                if not found.fold:  # asked from before this generation, where the log holds nothing
                    continue
            stored = Fold.restored(found.fold) if found.fold else fold
            if stored is None or found.floor > stored.as_of_seq:
                telemetry.logger(run_id=known.lease.key.run_id).warning("fold.lost", readable=stored is not None)
                return
            fold = stored
            if not most and tail.reaches(fold.as_of_seq):
                await events.onto(fold, tail.events)
                break
            await events.onto(fold, found.events)
            if not found.more:
                break
            most = _SLICE
        await self._keep(known, fold, generation, events.rows, events.size)

    async def _keep(self, known: _Known, fold: Fold, generation: int, rows: int, size: int) -> None:
        written = encode(fold.data())
        known.learn(fold.as_of_seq, rows, size, len(written))
        if rows and (size >= _BYTES // 4 or rows >= self._log.cap // 2):
            if await self._log.keep_fold(known.lease, generation, fold.as_of_seq, written):
                telemetry.FOLDS_KEPT.inc()
        else:
            known.seq = fold.as_of_seq - rows  # too little to be worth a fold
