"""`relay serve` with a seeded bug: what the checker must catch. Run by path, as `bugs.py NAME`, with relay on PYTHONPATH.

Each bug is a patch of the loaded product, never a switch inside it. A patch that no longer finds what it patches fails the
start, so that a bug cannot silently become none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def skip_fence() -> None:
    """Writes and renewals no longer compare owner and fence."""
    import hashlib
    import re

    from relay.store import redis as store

    build = store.Script.__init__

    def patched(self: Any, name: str) -> None:
        build(self, name)
        if name in ("append", "seal", "renew"):
            bare = re.sub(r"if held\[1\] ~= .+ then", "if false then", self.text)
            assert bare != self.text, f"no fence check found in {name}"
            self.text = bare
            self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    store.Script.__init__ = patched  # type: ignore[method-assign]


def ack_before_append() -> None:
    """Viewers of the owner's own process are shown events before the log has them."""
    from relay.fanout import hub
    from relay.ingest import committer

    hubs: list[Any] = []
    build, append = hub.Hub.__init__, committer.Committer.append

    def remember(self: Any, *args: Any, **named: Any) -> None:
        build(self, *args, **named)
        hubs.append(self)

    async def early(self: Any, what: Any) -> None:
        for one in hubs:
            topic = one._topics.get(what.lease.key)
            if topic is not None and topic.ready.is_set() and topic.last_seq == what.prev:
                topic.publish(what.events)
        await append(self, what)

    hub.Hub.__init__ = remember  # type: ignore[method-assign]
    committer.Committer.append = early  # type: ignore[method-assign]


def _shifted_cursor(by: int) -> None:
    from relay.web import events

    true = events.cursor_of

    def wrong(*args: Any) -> int:
        cursor = true(*args)
        return max(0, cursor + by) if cursor else 0

    events.cursor_of = wrong  # type: ignore[attr-defined]


def resume_one_early() -> None:
    """A resumed reader is given its last event again."""
    _shifted_cursor(-1)


def resume_one_late() -> None:
    """A resumed reader misses an event."""
    _shifted_cursor(+1)


def many_one_late() -> None:
    """A resumed reader of many runs misses an event of each."""
    from relay.core.vector import Place, Vector

    true = Vector.place

    def wrong(self: Any, *args: Any) -> Any:
        place = true(self, *args)
        return Place(place.seq + 1, place.told) if place.seq else place

    Vector.place = wrong  # type: ignore[method-assign]


def forget_bells() -> None:
    """Every seventh bell is not heard, and nobody compares positions."""
    import asyncio

    from relay.fanout.follower import Follower

    heard, count = Follower._heard, 0

    def hears(payload: bytes | None) -> bool:
        nonlocal count
        count += payload is not None
        return payload is None or not (count % 7 == 0 or payload == b"sealed")

    def deaf(self: Any, bells: Any) -> None:
        heard(self, [bell for bell in bells if hears(bell[1])])

    async def never(self: Any) -> None:
        await asyncio.Event().wait()

    Follower._heard = deaf  # type: ignore[method-assign]
    assert hasattr(Follower, "_check_for_ever")
    Follower._check_for_ever = never  # type: ignore[method-assign]


def skip_dedupe() -> None:
    """A repeated upstream event is taken for a new one, with the next number."""
    from relay.core.run import Run

    admit = Run.admit

    def gullible(self: Any, drafts: Any, *, confirming: bool = False) -> Any:
        taken = list(drafts)
        for draft in taken:
            if draft.seq is not None and draft.seq <= self.last_seq:
                draft.seq = None
        return admit(self, taken, confirming=confirming)

    Run.admit = gullible  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        skip_fence,
        ack_before_append,
        resume_one_early,
        resume_one_late,
        many_one_late,
        forget_bells,
        skip_dedupe,
    )
}

if __name__ == "__main__":
    # This folder would shadow modules of others.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    from relay.cli import main

    BUGS[sys.argv[1]]()
    sys.exit(main(["serve"]))
