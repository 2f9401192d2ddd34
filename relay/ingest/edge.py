"""The live edge of one run: what an upstream's stream pushes is admitted at once and appended, without a task's turn.

One append of a run is under way at a time, as the log's `prev` wants it; what arrives meanwhile waits here, up to a bound,
then the upstream waits. The pump's task sleeps until something is not simple: a step in seq, the run's end, the stream's
end, a refused append, silence. Before it does anything about it, it has everything here made durable (`quiet`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from relay.core.events import Draft, Event
from relay.core.run import Admission
from relay.ingest.committer import Committer, Waiting
from relay.ingest.source import Source
from relay.ingest.tap import Tap
from relay.store.log import Append

_APPEND_EVENTS: Final = 512
_APPEND_BYTES: Final = 1_048_576
"""Most of one append, so that one run cannot hold a group commit up for long."""
_WAITING_BYTES: Final = 262_144
"""Most that waits for the append under way; then the upstream waits."""


class Edge:
    def __init__(
        self,
        source: Source,
        tap: Tap,
        committer: Committer,
        admit: Callable[[list[Draft]], Admission],
        appending: Callable[[Sequence[Event]], Append],
        durable: Callable[[int], None],
    ) -> None:
        """`admit` numbers what arrived, `appending` makes the append of what is next, `durable` is told its last seq."""
        self.step = False
        """A step in seq must be confirmed before anything else is accepted."""
        self.over = False
        """The stream has ended; its source says how."""
        self._source = source
        self._tap = tap
        self._committer = committer
        self._admit = admit
        self._appending = appending
        self._durable = durable
        self._waiting: list[Event] = []
        self._size = 0
        """Bytes of what waits for the append under way."""
        self._under_way: Waiting | None = None
        self._stopped = False
        self._error: Exception | None = None
        self._turn = asyncio.Event()

    # --- the pump's task --------------------------------------------------------------------------------------------
    def flow(self) -> None:
        """Let it come (again)."""
        self._stopped = False
        self._tap.take(self._arrived, self._ended)

    async def turn(self, within_s: float) -> None:
        """Sleep until there is something to see to, but not longer. Raises what an append was refused with."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._turn.wait()
        self._turn.clear()
        if self._error is not None:
            raise self._error

    async def quiet(self) -> None:
        """Take nothing more in until `flow`; returns when all that was taken is durable. Raises as `turn` does."""
        self._stopped = True
        self._tap.hold()
        while self._error is None and (self._waiting or self._under_way is not None):
            await self._turn.wait()
            self._turn.clear()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """The connection is left: what is not on its way to Redis yet is not written any more."""
        self._tap.leave()
        if self._under_way is not None:
            self._under_way.withdrawn = True

    def wake(self) -> None:
        self._turn.set()

    # --- called with what arrives: never waiting, never raising ------------------------------------------------------
    def _arrived(self, piece: bytes) -> None:
        try:
            drafts = self._source.read(piece)
            if drafts:
                self._accept(self._admit(drafts))
        except Exception as error:  # whatever it was, it belongs to the pump's task and its supervisor
            self._fail(error)

    def _accept(self, admission: Admission) -> None:
        if admission.events:
            self._waiting += admission.events
            if self._under_way is None:
                self._send()
            else:
                self._size += sum([len(event.json) for event in admission.events])
                if self._size > _WAITING_BYTES:
                    self._tap.hold()
        if admission.unconfirmed is not None:
            self.step = True
            self._tap.hold()
            self._turn.set()

    def _ended(self, error: Exception | None) -> None:
        self._source.end(error)
        self.over = True
        self._turn.set()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._tap.hold()
        self._turn.set()

    # --- appending --------------------------------------------------------------------------------------------------
    def _send(self) -> None:
        part = self._waiting if len(self._waiting) == 1 else parts(self._waiting)[0]
        self._waiting = self._waiting[len(part) :]
        self._size = sum([len(event.json) for event in self._waiting]) if self._waiting else 0
        self._under_way = self._committer.submit(self._appending(part), self._told)

    def _told(self, error: Exception | None) -> None:
        sent, self._under_way = self._under_way, None
        if error is not None or sent is None:
            self._fail(error or RuntimeError("an answer to nothing"))
            return
        self._durable(sent.append.events[-1].seq)
        if self._waiting:
            self._send()
        elif self._stopped:
            self._turn.set()
        elif self._tap.held and not self.step:
            self._tap.flow()


def parts(events: Sequence[Event]) -> list[Sequence[Event]]:
    """Split by count and by size; at least one part, so that fields alone can be appended too."""
    if len(events) <= _APPEND_EVENTS and sum([len(event.json) for event in events]) <= _APPEND_BYTES:
        return [events]
    split: list[Sequence[Event]] = []
    start = size = 0
    for i, event in enumerate(events):
        if i > start and (i - start >= _APPEND_EVENTS or size + len(event.json) > _APPEND_BYTES):
            split.append(events[start:i])
            start, size = i, 0
        size += len(event.json)
    split.append(events[start:])
    return split
