"""The laws of the window: however publishing, shrinking and reading interleave, each reader gets each event once."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.events import Event
from relay.core.filters import Types, types_of
from relay.core.window import Slice, Window, cut
from relay.core.wires import Wire

SSE, NDJSON = Wire("sse"), Wire("ndjson")


def event(seq: int, size: int = 20) -> Event:
    kind = ("run.x", "tool.y", "z")[seq % 3]
    return Event(seq, kind, json.dumps({"seq": seq, "type": kind, "pad": "x" * size}).encode())


def seqs_of(data: bytes) -> list[int]:
    return [json.loads(line)["seq"] for line in data.split(b"\n") if line]


class Reader:
    """A cursor that falls back to the log, as a subscription does."""

    def __init__(self, cursor: int, types: Types | None) -> None:
        self.cursor, self.types, self.seen = cursor, types, list[int]()

    def read(self, window: Window, log: list[Event], max_bytes: int) -> bool:
        if self.cursor < window.floor:
            behind = [one for one in log if one.seq > self.cursor]
            part: Slice | None = cut(behind, NDJSON, self.types, max_bytes) if behind else None
        else:
            part = window.after(self.cursor, NDJSON, self.types, max_bytes)
        if part is None:
            return False
        seqs = seqs_of(part.data)
        assert len(seqs) == part.sent
        assert part.upto > self.cursor
        assert not seqs or (self.cursor < seqs[0] and seqs[-1] <= part.upto)
        self.cursor = part.upto
        self.seen += seqs
        return True


step = st.one_of(
    st.tuples(st.just("publish"), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 200)),
    st.tuples(st.just("again"), st.integers(0, 8), st.just(0)),
    st.tuples(st.just("read"), st.integers(0, 3), st.integers(1, 400)),
)


@settings(max_examples=200)
@given(
    st.integers(0, 5),
    st.lists(step, max_size=40),
    st.integers(50, 1000),
    st.lists(st.sampled_from([None, "run.*", "tool.*,z", "none"]), min_size=4, max_size=4),
)
def test_every_reader_gets_every_event_once_in_order(
    start: int, steps: list[tuple[str, object, int]], limit: int, filters: list[str | None]
) -> None:
    log = [event(seq) for seq in range(1, start + 1)]
    window = Window(start)
    readers = [Reader(min(i, start), types_of(filters[i])) for i in range(4)]
    last = start
    for what, first, size in steps:
        if what == "publish":
            assert isinstance(first, list)
            fresh = []
            for gap in first:
                last += 1 + gap  # seqs may step
                fresh.append(event(last, size))
            log += fresh
            assert window.publish(fresh, limit) == len(fresh)
        elif what == "again":  # a bell that rang twice: the same rows are read again
            assert isinstance(first, int)
            assert window.publish(log[-first:] if first else [], limit) == 0
        else:
            assert isinstance(first, int)
            readers[first].read(window, log, size)
        kept = [one.seq for one in log if one.seq > window.floor]
        assert window.last_seq == last
        assert len(window) == len(kept)
        assert window.size == sum(len(one.json) for one in log if one.seq > window.floor)
        assert len(window) <= 1 or window.size <= limit
    for i, reader in enumerate(readers):
        while reader.read(window, log, 100):
            pass
        wanted = [one.seq for one in log if one.seq > min(i, start)]
        kinds = {one.seq: one.type for one in log}
        assert reader.cursor == max([last, min(i, start)])
        assert reader.seen == [s for s in wanted if reader.types is None or reader.types.allows(kinds[s])]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.integers(1, 2000), st.integers(0, 29))
def test_the_window_says_what_the_log_says(sizes: list[int], max_bytes: int, cursor: int) -> None:
    log = [event(seq, size) for seq, size in enumerate(sizes, 1)]
    window = Window(0)
    window.publish(log, 10**9)
    behind = [one for one in log if one.seq > cursor]
    for wire in (SSE, NDJSON, Wire("sse-named", chunked=True), Wire("websocket")):
        expected = cut(behind, wire, None, max_bytes) if behind else None
        assert window.after(cursor, wire, None, max_bytes) == expected


def test_readers_at_one_cursor_share_one_bytes_object() -> None:
    window = Window(0)
    window.publish([event(seq) for seq in range(1, 50)], 10**6)
    types = [types_of("run.*,z"), types_of("z,run.*")]
    for wire in (SSE, NDJSON):
        for one, other in ((None, None), types):
            first = window.after(3, wire, one, 500)
            again = window.after(3, Wire(wire.form), other, 500)
            assert first is not None
            assert again is not None
            assert first.data is again.data
    window.publish([event(50)], 10**6)
    assert window.after(49, SSE, None, 500) is window.after(49, SSE, None, 500)


def test_one_slice_holds_at_least_one_event_and_no_more_than_asked() -> None:
    window = Window(0)
    window.publish([event(seq, 1000) for seq in range(1, 10)], 10**6)
    one = window.after(0, NDJSON, None, 1)
    assert one is not None
    assert (one.sent, one.upto) == (1, 1)
    some = window.after(0, NDJSON, None, 2500)
    assert some is not None
    assert some.sent == 3


def test_outside_the_window_there_is_nothing() -> None:
    window = Window(5)
    assert window.after(5, SSE, None, 1) is None
    window.publish([event(6), event(7)], 10**6)
    assert window.after(4, SSE, None, 1) is None  # ask the log
    assert window.after(7, SSE, None, 1) is None
    assert window.after(99, SSE, None, 1) is None
    assert window.last_seq == 7
    assert [[one.seq for one in window.behind(cursor)] for cursor in (5, 6, 7, 99)] == [[6, 7], [7], [], []]


def test_what_is_remembered_is_bounded() -> None:
    window = Window(0)
    window.publish([event(seq) for seq in range(1, 2000)], 10**6)
    for cursor in range(1998):
        window.after(cursor, SSE, None, 100)
    assert len(window._memo) <= 256


def test_an_event_larger_than_the_limit_is_kept_until_the_next() -> None:
    window = Window(0)
    window.publish([event(1, 5000)], 100)
    assert (len(window), window.floor) == (1, 0)
    window.publish([event(2, 5000)], 100)
    assert (len(window), window.floor) == (1, 1)
