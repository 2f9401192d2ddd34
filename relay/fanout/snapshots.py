"""Snapshots of watched runs: folded once per topic for all who join late, from the log's stored fold and what follows it.

A topic has a fold only if somebody ever asked for one. It goes on from the window, without any I/O, as long as the window
reaches back to it; else from Redis: one call brings the stored fold, if that is nearer, and the rows behind it. What
the log no longer holds is read as every late reader does it (`history`).
"""

from __future__ import annotations

from relay.core.filters import Types
from relay.core.fold import Fold
from relay.core.window import Slice
from relay.core.wires import AnyWire, snapshot
from relay.fanout.history import History
from relay.fanout.topic import Topic
from relay.store.log import Log

_EVENTS = 512
_BYTES = 262_144
"""About how much of what the log no longer holds is read at a time."""
_KEPT = 8
"""How many wires' and filters' bytes of one snapshot are remembered: those who join together share them."""


class Snapshots:
    def __init__(self, log: Log, history: History) -> None:
        self._log = log
        self._history = history

    async def fold(self, topic: Topic) -> Fold | None:
        """The fold of all that was published here, and of all the log is known to have; None if some of it cannot be had.

        It goes on growing, so use it before anything is awaited. Raises StoreUnavailable.
        """
        async with topic.folding:
            while True:
                fold = _through_window(topic)
                if fold is not None and fold.as_of_seq >= topic.state.last_seq:
                    return fold
                if not await self._go_on(topic, topic.fold or Fold()):
                    return _through_window(topic)

    async def slice(self, topic: Topic, wire: AnyWire, types: Types | None) -> Slice | None:
        """The frame of a snapshot as it is now, shared by all who ask at the same seq; None as above."""
        fold = await self.fold(topic)
        if fold is None:
            return None
        seq, shared = fold.as_of_seq, topic.snapshots
        found = shared.get((wire.key, types))
        if found is None or found.upto != seq:
            if len(shared) >= _KEPT:
                shared.clear()
            data = wire.notice(snapshot(fold.data(types)))
            found = shared[wire.key, types] = Slice(data, seq, 0, seq)
        return found

    async def _go_on(self, topic: Topic, fold: Fold) -> bool:
        """One step towards the window; false if what comes next is not there (yet)."""
        found = await self._log.folded(topic.key, fold.as_of_seq)
        before = fold.as_of_seq
        if before < found.generation - 1:
            fold = Fold(found.generation - 1)
        stored = Fold.restored(found.fold) if found.fold else None
        if stored is not None and stored.as_of_seq > fold.as_of_seq:
            fold = stored
        topic.fold = fold
        if found.floor > fold.as_of_seq or (found.fold and stored is None):
            return await self._read_back(topic, fold)
        fold.extend(found.events)
        return fold.as_of_seq > before

    async def _read_back(self, topic: Topic, fold: Fold) -> bool:
        """What was trimmed: from where every late reader gets it, or not at all."""
        behind = await self._history.read(topic, fold.as_of_seq, max(4, min(_EVENTS, int(_BYTES / topic.mean_bytes))))
        if behind.where == "gone":
            fold.skip(behind.gone)
        fold.extend(behind.events)
        return behind.where == "gone" or bool(behind.events)


def _through_window(topic: Topic) -> Fold | None:
    """The topic's fold, with all the window holds; None if it does not reach the window yet."""
    fold = topic.fold
    if fold is None or fold.as_of_seq < topic.window.floor:
        return None
    return fold.extend(topic.window.behind(fold.as_of_seq))
