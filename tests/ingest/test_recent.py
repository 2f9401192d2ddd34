"""What is held of quick runs: without a hole, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.core.events import Event
from relay.core.ids import RunKey
from relay.ingest.recent import Recent

RUNS = [RunKey("main", name) for name in "ab"]
STEP = st.tuples(
    st.sampled_from(["append", "append", "append", "elsewhere", "take"]), st.integers(0, 1), st.integers(1, 4)
)


@given(st.lists(STEP, max_size=40), st.integers(1, 40))
def test_a_tail_is_the_logs_end_without_a_hole(steps: list[tuple[str, int, int]], most: int) -> None:
    """Each event is ten bytes; another owner may write in between."""
    recent = Recent(most * 10)
    logs: list[list[Event]] = [[], []]
    for key in RUNS:
        recent.follow(key)
    for step, which, count in steps:
        log, key = logs[which], RUNS[which]
        prev = log[-1].seq if log else 0
        if step == "take":
            tail = recent.take(key)
            assert tail.size == 10 * len(tail.events)
            if tail.events:
                assert tail.events == [event for event in log if tail.prev < event.seq <= tail.last]
                assert not tail.reaches(tail.prev - 1)
                assert tail.reaches(tail.prev)
                assert not tail.reaches(tail.last + 1)
            recent.follow(key)
            continue
        events = [Event(prev + 1 + at, "x", b"0123456789") for at in range(count)]
        log += events
        if step == "append":
            recent.heard(key, prev, events)
        assert 0 <= recent._size <= most * 10
    recent.only([])
    assert recent._size == 0


def test_nobody_who_was_not_followed_is_held() -> None:
    recent = Recent()
    recent.heard(RUNS[0], 0, [Event(1, "x", b"{}")])
    assert not recent.take(RUNS[0]).events
