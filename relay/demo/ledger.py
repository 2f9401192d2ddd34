"""Runs and their events as the upstream's database holds them: append, read after a seq, list.

No sockets here. Events are kept as the finished frame bytes, so that what is served and what `truth` tells is one record.
Readers wait on `Run.grown`, which is replaced at every change: take it, read, then wait for it, and nothing is missed.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from relay.demo import wire

ACCOUNT_ID = "0b54e8a6-2f0c-4f7e-9d7a-8f6d5c1b2a30"
USER_ID = "7d1f3c52-9a64-4d0e-8a43-5e2b9c7f1d08"
PAGE = 500
"""Rows the real server reads per SELECT (section 2.4)."""

_NAMED_TOOLS = ("tool.", "todo.updated", "terminal.")


@dataclass(slots=True, eq=False)
class Run:
    """One run row and its events."""

    run_id: str
    thread_id: str
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    trace_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    persona_id: str | None = None
    model: str | None = None
    parent_run_id: str | None = None
    child_run_ids: list[str] = field(default_factory=list)
    status_override: str | None = None
    """Says what the row says, whatever the events say; None: derived from them."""
    pruned_to: int = 0
    """Events up to this seq are gone from the tables (retention), though they happened."""
    seqs: list[int] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    ended: str | None = None
    ended_at: datetime | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    cancel_requested: bool = False
    input_seq: int = 0
    """Seq of the latest `run.input_provided`."""
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def last_seq(self) -> int:
        return self.seqs[-1] if self.seqs else 0

    @property
    def status(self) -> str:
        """The row's status; derived from the latest terminal event while nobody overrides it (section 1.5)."""
        if self.status_override is not None:
            return self.status_override
        if self.ended is not None:
            return self.ended.removeprefix("run.")
        return "cancelling" if self.cancel_requested else "running"

    @property
    def active(self) -> bool:
        return self.status == "running"

    def append(
        self,
        kind: str,
        data: Mapping[str, Any] | bytes | None = None,
        *,
        seq: int | None = None,
        ts: datetime | str | None = None,
        **envelope: Any,
    ) -> int:
        """Write one event; its seq is the next one unless given. `data` as bytes is JSON and kept as it is."""
        seq = self.last_seq + 1 if seq is None else seq
        now = datetime.now(UTC)
        event = {
            "data": orjson.Fragment(data) if isinstance(data, bytes) else (data or {}),
            "event_id": str(uuid.uuid4()),
            "run_id": self.run_id,
            "seq": seq,
            "ts": ts if isinstance(ts, str) else wire.timestamp(ts or now),
            "type": kind,
            **_named(kind, data),
            **envelope,
        }
        self.store(seq, wire.frame(seq, kind, wire.to_json(event)))
        self._note(kind, data, seq, now)
        self.wake()
        return seq

    def store(self, seq: int, framed: bytes) -> None:
        """Keep a finished frame at its place, waking nobody."""
        if seq >= self.last_seq:
            self.seqs.append(seq)
            self.frames.append(framed)
            return
        at = bisect_right(self.seqs, seq)
        self.seqs.insert(at, seq)
        self.frames.insert(at, framed)

    def after(self, cursor: int, limit: int = PAGE) -> list[tuple[int, bytes]]:
        """The next frames above `cursor` that retention left, at most `limit`, in seq order."""
        start = bisect_right(self.seqs, max(cursor, self.pruned_to))
        return list(zip(self.seqs[start : start + limit], self.frames[start : start + limit], strict=True))

    def truth(self) -> list[dict[str, Any]]:
        """Every event that ever happened, parsed from its own bytes (numbers exact)."""
        return [json.loads(wire.frame_json(framed)) for framed in self.frames]

    def wake(self) -> None:
        """Tell all readers that something changed."""
        grown, self.grown = self.grown, asyncio.Event()
        grown.set()

    async def until(self, fact: Callable[[Run], bool], timeout_s: float | None = None) -> bool:
        """Wait for a fact about this run; False when the time is over first."""
        try:
            async with asyncio.timeout(timeout_s):
                while not fact(self):
                    await self.grown.wait()
        except TimeoutError:
            return False
        return True

    def _note(self, kind: str, data: Mapping[str, Any] | bytes | None, seq: int, now: datetime) -> None:
        if kind == "run.input_provided":
            self.input_seq = seq
        elif kind == "run.cancel_requested":
            self.cancel_requested = True
        elif wire.is_terminal(kind, data):
            self.ended, self.ended_at = kind, now
            fields = json.loads(data) if isinstance(data, bytes) else (data or {})
            self.usage = fields.get("usage") or {}


def _named(kind: str, data: Mapping[str, Any] | bytes | None) -> dict[str, Any]:
    """Envelope fields that repeat one of data: tool_name on tool events, error_class on failures (section 2.8)."""
    if not isinstance(data, Mapping):
        return {}
    if kind.startswith(_NAMED_TOOLS) and "tool_name" in data:
        return {"tool_name": data["tool_name"]}
    return {"error_class": data["error_class"]} if "error_class" in data else {}


class Ledger:
    """All runs of the upstream."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def add(self, run: Run) -> Run:
        if run.run_id in self._runs:
            raise ValueError(f"run {run.run_id} exists")
        self._runs[run.run_id] = run
        return run

    def get(self, run_id: str) -> Run | None:
        return self._runs.get(run_id)

    def remove(self, run_id: str) -> None:
        self._runs.pop(run_id).wake()

    def newest_first(self) -> list[Run]:
        """created_at DESC, id DESC (section 1.4)."""
        return sorted(self, key=lambda run: (run.created_at, run.run_id), reverse=True)
