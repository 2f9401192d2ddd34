"""Which fault meets which request: queues that are used up, and faults that last. No sockets, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tests.support.upstream_faults import HEALTHY, Fault

_CALLS = {"": "run", "cancel": "cancel", "input": "input", "events": "events"}


class Plan:
    """Faults to come, per run and for all (run None)."""

    def __init__(self) -> None:
        self._queues: dict[str | None, deque[Fault]] = {}
        self._lasting: dict[str | None, list[Fault]] = {}

    def queue(self, run_id: str | None, faults: Iterable[Fault]) -> None:
        self._queues.setdefault(run_id, deque()).extend(faults)

    def last(self, run_id: str | None, fault: Fault) -> None:
        self._lasting.setdefault(run_id, []).append(fault)

    def heal(self, run_id: str | None) -> None:
        """Forget what is planned for this run, or (None) everything."""
        if run_id is None:
            self._queues.clear()
            self._lasting.clear()
        self._queues.pop(run_id, None)
        self._lasting.pop(run_id, None)

    def pending(self, run_id: str | None) -> int:
        return len(self._queues.get(run_id, ()))

    def draw(self, target: str, run_id: str | None, *, follow: bool | None) -> tuple[Fault, bool]:
        """The fate of one request, and whether a queued fault was used up for it."""
        fate = HEALTHY
        for key in {None, run_id}:
            for fault in self._lasting.get(key, ()):
                if fault.hits(target, follow):
                    fate = fate | fault
        for key in (run_id, None):
            queue = self._queues.get(key, deque())
            for at, fault in enumerate(queue):
                if fault.hits(target, follow):
                    del queue[at]
                    return fate | fault, True
        return fate, False


def target_of(method: str, path: str) -> tuple[str, str | None]:
    """What a request is for, in the words of `Fault.target`, and its run."""
    match path.strip("/").split("/"):
        case ["v1", "threads", _, "runs"]:
            return ("create" if method == "POST" else "thread"), None
        case ["v1", "runs"]:
            return "list", None
        case ["v1", "runs", name]:
            run_id, _, action = name.partition(":")
            return _CALLS.get(action, "other"), run_id
        case ["v1", "runs", run_id, action]:
            return _CALLS.get(action, "other"), run_id
        case _:
            return "other", None
