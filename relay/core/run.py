"""One run as its pump sees it: which events are new, which are repeats, where a seq is missing, when it has ended.

Pure: no clock, no I/O. The pump feeds drafts in the order the upstream sent them and appends what comes back. Three
laws: the admitted seqs rise strictly; nothing already admitted is admitted again; nothing is skipped unless a
`follow=false` read has confirmed that the upstream itself has a step there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from relay.core.events import FINAL_STATUS, MOVING_STATUS, TERMINAL, Draft, Event, decode, encode, is_final

_TELLING: Final = FINAL_STATUS.keys() | MOVING_STATUS.keys()
"""The few types that say something of the run's life; all others are only passed on."""


class Step(NamedTuple):
    """Seqs `first..last` did not come: a loss, or a hole the upstream has had for ever."""

    first: int
    last: int


class Admission(msgspec.Struct):
    events: list[Event] = []
    repeats: int = 0
    """How many drafts carried a seq that was already admitted (the first one wins)."""
    steps: list[Step] = []
    """Steps that were accepted because this read was a confirming one."""
    unconfirmed: Step | None = None
    """A step that must be confirmed first; this and all later drafts were left out."""
    turns: list[tuple[int, str]] = []
    """Seqs whose events changed the run's status, and what it is from there on."""


class Run:
    """The state of one run's log and life, moved forward by `admit` and by nothing else."""

    __slots__ = ("contiguous", "ended", "ended_at", "head_lost", "last_seq", "run_id", "status")

    def __init__(self, run_id: str, *, last_seq: int = 0, status: str = "running", contiguous: bool = True) -> None:
        self.run_id = run_id
        self.last_seq = last_seq
        self.status = status
        self.contiguous = contiguous
        """False once a step was confirmed: this upstream run has holes, a further one is no news."""
        self.ended = status in TERMINAL
        """The terminal event has been admitted. Trailing events may still come."""
        self.ended_at: object = None
        """`created_at` of the terminal event, as its upstream wrote it."""
        self.head_lost = 0
        """Highest seq below the first event that the upstream could still give, if its head is gone."""

    def admit(self, drafts: Iterable[Draft], *, confirming: bool = False) -> Admission:
        """Number, order and encode `drafts`. With `confirming` (a follow=false read) steps are taken as the truth."""
        admission = Admission()
        for draft in drafts:
            seq = draft.seq if draft.seq is not None else self.last_seq + 1
            if seq <= self.last_seq:
                admission.repeats += 1
                continue
            if seq > self.last_seq + 1 and not self._accept_step(seq, draft, admission, confirming=confirming):
                break
            status = self.status
            admission.events.append(self._take(seq, draft))
            if self.status != status:
                admission.turns.append((seq, self.status))
        return admission

    def _accept_step(self, seq: int, draft: Draft, admission: Admission, *, confirming: bool) -> bool:
        step = Step(self.last_seq + 1, seq - 1)
        if confirming:
            self.contiguous = False
        elif self.contiguous:
            admission.unconfirmed = step
            return False
        # A run of the global-sequence age starts anywhere, with its run.started; any other late start is a lost head.
        if self.last_seq == 0 and draft.type != "run.started":
            self.head_lost = step.last
        admission.steps.append(step)
        return True

    def _take(self, seq: int, draft: Draft) -> Event:
        body = draft.body
        if draft.seq is None:
            body["seq"] = seq
        self.last_seq = seq
        if draft.type in _TELLING:
            self._note(draft.type, body)
        try:
            json = encode(body)
        except ValueError:  # deeper than can be written: the seq must not be lost for it
            json = _without_depth(body)
        return Event(seq, draft.type, json)

    def _note(self, kind: str, body: dict[str, Any]) -> None:
        """What an event says of the run's life."""
        if is_final(kind, body.get("data")):
            self.status = FINAL_STATUS[kind]
            self.ended = True
            self.ended_at = body.get("created_at")
        elif not self.ended and not _is_nested(body.get("data")):
            self.status = MOVING_STATUS.get(kind, self.status)


def status_after(events: Iterable[Event]) -> str:
    """The status a run has after these, the last of its events (for a log whose status was lost)."""
    status = "running"
    for event in events:
        if event.type in FINAL_STATUS or event.type in MOVING_STATUS:
            data = decode(event.json).get("data")
            if is_final(event.type, data):
                status = FINAL_STATUS[event.type]
            elif status not in TERMINAL and not _is_nested(data):
                status = MOVING_STATUS.get(event.type, status)
    return status


def _without_depth(body: dict[str, Any]) -> bytes:
    kept = {name: value for name, value in body.items() if isinstance(value, str | int)}
    return encode({**kept, "data": {"undecodable": True}})


def _is_nested(data: object) -> bool:
    return isinstance(data, dict) and data.get("delegate_layer") == "acp"


def synthesized_end(run_id: str, status: str, reason: str, created_at: str) -> Draft:
    """The marked end of a run its upstream never ended: only after GET run said so and a drain found none."""
    kind = next((name for name, value in FINAL_STATUS.items() if value == status), "run.interrupted")
    body = {
        "seq": None,
        "type": kind,
        "data": {"error_class": "relay.synthesized", "message": reason} if status != "completed" else {},
        "created_at": created_at,
        "run_id": run_id,
        "synthesized": True,
    }
    return Draft(None, kind, body)
