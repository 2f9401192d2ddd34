"""The two laws of a folded run, for every cut: snapshot + tail = all, and coalescing changes nothing. And its bounds."""

from __future__ import annotations

import json
import os
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import fold as folds
from relay.core import said as sayings
from relay.core import text as texts
from relay.core.deltas import DELTAS, coalesced
from relay.core.events import Event, decode, encode
from relay.core.filters import Types, types_of
from relay.core.fold import Fold
from tests.support.needs import recordings
from tests.support.runs import long_run, made_up, recorded

RUNS = int(os.environ.get("RELAY_TEST_FOLDS", "250"))
SEED = int(os.environ.get("RELAY_TEST_SEED", "1"))


def shown(fold: Fold) -> bytes:
    """What a snapshot says; where a value was written otherwise, JSON-equal, it is the same."""
    return encode(decode(encode(fold.data())))


def folded(events: list[Event]) -> bytes:
    return shown(Fold().extend(events))


def restored(snapshot: bytes) -> Fold:
    fold = Fold.restored(snapshot)
    assert fold is not None
    return fold


def check_every_cut(events: list[Event], cuts: list[int] | None = None) -> None:
    whole, head = folded(events), Fold()
    at = 0
    for cut in range(len(events) + 1) if cuts is None else cuts:
        head.extend(events[at:cut])
        at = cut
        snapshot = encode(head.data())
        assert shown(restored(snapshot)) == shown(head)
        assert shown(restored(snapshot).extend(events[cut:])) == whole, f"cut behind {cut}"


def check_one_by_one(events: list[Event], chance: Random) -> None:
    """That texts of one place are added together changes nothing, wherever the turns end."""
    whole, single, turns = Fold().extend(events), Fold(), Fold()
    for event in events:
        single.take(event)
    at = 0
    while at < len(events):
        turn = chance.randint(1, len(events))
        turns.extend(events[max(0, at - 1) : at + turn])  # what was seen before says nothing again
        at += turn
    assert shown(whole) == shown(single) == shown(turns)
    assert whole._weight == single._weight == turns._weight


def check_coalescing(events: list[Event], chance: Random, types: Types | None = None) -> None:
    seen = [event for event in events if types is None or types.allows(event.type)]
    merged: list[Event] = []
    at = 0
    while at < len(seen):  # turn by turn, as a reader gets them
        turn = chance.randint(1, len(seen))
        merged += coalesced(seen[at : at + turn])
        at += turn
    assert folded(merged) == folded(seen)
    check_the_ranges(seen, merged)


def check_the_ranges(events: list[Event], merged: list[Event]) -> None:
    """Each event is in exactly one of the merged ones, whose seq is that of its last."""
    firsts = [decode(event.json).get("seq_from", event.seq) for event in merged]
    seqs = [event.seq for event in events]
    assert [
        seq for first, event in zip(firsts, merged, strict=True) for seq in seqs if first <= seq <= event.seq
    ] == seqs
    for event in merged:
        assert decode(event.json)["seq"] == event.seq


def test_both_laws_hold_on_every_recording() -> None:
    """For every cut; of the longest, whose cuts are quadratic, `make laws` does all and this every seventh."""
    for path in sorted(recordings().glob("*.jsonl")):
        events = recorded(path.stem)
        all_cuts = len(events) < 400 or RUNS >= 10_000
        check_every_cut(events, None if all_cuts else list(range(SEED % 7, len(events) + 1, 7)))
        for seed in range(5):
            check_coalescing(events, Random(seed), types_of("message.*,run.*") if seed % 2 else None)


def test_both_laws_hold_on_made_up_runs() -> None:
    """`make laws` makes ten thousand of them."""
    for seed in range(SEED * RUNS, (SEED + 1) * RUNS):
        events = made_up(seed, 16)
        check_every_cut(events)
        check_one_by_one(events, Random(seed))
        check_coalescing(events, Random(seed), types_of("message.*,tool.*") if seed % 3 == 0 else None)


def test_both_laws_hold_where_the_bounds_bite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "TEXT_UNITS", 50)
    monkeypatch.setattr(texts, "_PIECES", 3)
    monkeypatch.setattr(folds, "STATE_BYTES", 1500)
    monkeypatch.setattr(sayings, "VALUE_BYTES", 100)
    bitten: set[str] = set()
    for seed in range(SEED * RUNS // 4, (SEED + 1) * RUNS // 4):
        events = made_up(seed, 40)
        check_every_cut(events)
        check_one_by_one(events, Random(seed))
        check_coalescing(events, Random(seed))
        bitten |= {
            word for word in ("left_out", "left_out_units", "truncated") if f'"{word}"'.encode() in folded(events)
        }
    assert bitten == {"left_out", "left_out_units", "truncated"}, "the bounds were not reached"


TEXT = st.text(st.characters(exclude_categories=[]), max_size=6)
DELTA = st.tuples(
    st.sampled_from(sorted(DELTAS)),
    st.fixed_dictionaries(
        {},
        optional={
            "content": TEXT, "content_delta": TEXT, "chunk": TEXT, "arguments_delta": TEXT, "part": st.sampled_from("01"),
            "channel": st.sampled_from(["thinking", "x"]), "tool_call_id": st.sampled_from("ab"), "odd": st.integers(),
        },
    ),
)  # fmt: skip
OTHER = st.tuples(
    st.sampled_from(["tool.call", "tool.result", "message.reset", "run.completed", "run.waiting_for_input", "else"]),
    st.dictionaries(
        st.sampled_from(["tool_call_id", "part", "role", "arguments", "result", "usage", "assistant_message"]),
        st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=2)),
    ),
)


@given(st.lists(DELTA | DELTA | OTHER, max_size=16), st.randoms(use_true_random=False))
def test_both_laws_hold_on_whatever_an_upstream_may_write(
    said: list[tuple[str, dict[str, Any]]], chance: Random
) -> None:
    events = [
        Event(seq, kind, json.dumps({"seq": seq, "type": kind, "data": data, "created_at": str(seq)}).encode())
        for seq, (kind, data) in enumerate(said, 1)
    ]
    check_every_cut(events)
    check_one_by_one(events, chance)
    check_coalescing(events, chance)


def test_every_delta_says_its_text_where_a_fold_looks_for_it() -> None:
    for kind, fields in sayings.TEXTS.items():
        for name in fields:
            assert told((kind, {name: "x"}))["messages"][0]["text"] == "x"
            assert told((kind, dict.fromkeys(fields, "x")))["messages"][0]["text"] == "x"


def test_a_snapshot_of_a_long_run_is_its_text_and_a_little_more() -> None:
    words, deltas = ["The ", "quick ", "brown ", "fox ", "jumps"], 10_000  # 68,000: tests/fanout/test_snapshots.py
    events = long_run(deltas, words)
    fold = Fold().extend(events)
    state = sum(len(words[i % 5]) for i in range(deltas))
    assert len(encode(fold.data())) <= 1.2 * state + 4096
    assert len(fold._messages[0].text._pieces) <= 256
    check_every_cut(events, [0, 1, 2, 5_000, 10_001, 10_002])
    assert (
        sum(len(event.json) for event in coalesced(events)) <= 2.1 * state + 4096
    )  # said as content and content_delta


# --- what it says ----------------------------------------------------------------------------------------------------
def event(seq: int, kind: str, data: dict[str, Any]) -> Event:
    return Event(seq, kind, encode({"seq": seq, "type": kind, "data": data, "created_at": "", "run_id": "r"}))


def told(*said: tuple[str, dict[str, Any]]) -> Any:
    return decode(encode(Fold().extend([event(seq, kind, data) for seq, (kind, data) in enumerate(said, 1)]).data()))


def test_messages_stand_by_role_and_channel_in_the_order_they_were_said() -> None:
    out = told(
        ("message.delta", {"role": "assistant", "channel": "thinking", "content": "hm"}),
        ("message.delta", {"role": "assistant", "content": "I "}),
        ("memory.write.queued", {}),
        ("message.delta", {"role": "assistant", "content": "look"}),
        ("tool.call", {"tool_call_id": "c", "tool_name": "look", "arguments": {"at": 1e3}}),
        ("message.delta", {"role": "assistant", "content": "so"}),
    )
    assert [(one.get("channel"), one["text"], one["seq_from"], one["seq"]) for one in out["messages"]] == [
        ("thinking", "hm", 1, 1),
        (None, "I look", 2, 4),
        (None, "so", 6, 6),
    ]
    assert [one.get("open", False) for one in out["messages"]] == [False, False, True]
    assert out["status"] == "running"


@pytest.mark.parametrize("mark", [{"t": 7}, {"t": "\ud800"}, {"content": {"no": "text"}}, {"role": ["odd"]}])
def test_what_says_nothing_of_a_texts_place_parts_no_text(mark: dict[str, Any]) -> None:
    """Each delta is read by another road: as usual, and leniently where JSON is more than the fast reader takes."""
    said = [
        ("message.delta", {"content_delta": "one", "at": 1}),
        ("message.delta", {"content_delta": "two"} | mark),
        ("message.delta", {"content_delta": "three", "at": [2]}),
    ]
    events = [Event(seq, kind, json.dumps({"data": data}).encode()) for seq, (kind, data) in enumerate(said, 1)]
    (message,) = Fold().extend(events).data()["messages"]
    text = "onethree" if "content" in mark else "onetwothree"  # what is no text says nothing
    assert (decode(bytes(message["text"])), message["seq_from"], message["seq"]) == (text, 1, 3)


def test_text_with_a_part_belongs_together_wherever_it_comes_and_a_reset_forgets_it() -> None:
    said = [
        ("message.delta", {"role": "assistant", "part": "0", "content": "one"}),
        ("message.delta", {"role": "assistant", "part": "1", "content": "two"}),
        ("message.delta", {"role": "assistant", "part": "0", "content": "+"}),
    ]
    assert [one["text"] for one in told(*said)["messages"]] == ["one+", "two"]
    said += [("message.reset", {"role": "assistant", "part": "0"}), ("message.delta", {"part": "1", "content": "-"})]
    said += [("message.delta", {"role": "assistant", "part": "0", "content": "new"})]
    assert [one["text"] for one in told(*said)["messages"]] == ["new", "two", "-"]


def test_a_call_streams_its_arguments_then_has_them_then_its_result() -> None:
    said: list[tuple[str, dict[str, Any]]] = [
        ("tool.call.delta", {"tool_call_index": 0, "arguments_delta": '{"a"'}),
        ("tool.call.delta", {"tool_call_index": 0, "arguments_delta": ":1}"}),
    ]
    call = told(*said)["tool_calls"][0]
    assert (call["state"], call["arguments_text"], call["tool_call_index"]) == ("streaming", '{"a":1}', 0)
    said += [("tool.call", {"tool_call_id": "c", "tool_name": "t", "arguments": {"a": 1}})]
    (call,) = told(*said)["tool_calls"]
    assert call == {
        "tool_call_id": "c", "tool_name": "t", "state": "called", "arguments": {"a": 1}, "seq_from": 1, "seq": 3,
    }  # fmt: skip
    said += [("tool.result", {"tool_call_id": "c", "result": [1], "is_error": False})]
    (call,) = told(*said)["tool_calls"]
    assert (call["state"], call["result"], call["arguments"]) == ("done", [1], {"a": 1})


def test_a_question_stands_until_it_is_answered_and_a_nested_agent_ends_nothing() -> None:
    asked = ("run.waiting_for_input", {"request_id": "q", "message": "which?"})
    nested = ("run.completed", {"delegate_layer": "acp"})
    out = told(("run.started", {"model": "m"}), asked, nested)
    assert (out["status"], out["pending_input"]["data"]["message"]) == ("waiting_for_input", "which?")
    assert "final" not in out
    out = told(("run.started", {"model": "m"}), asked, ("run.input_provided", {"content": "that"}))
    assert (out["status"], out["pending_input"]) == ("running", None)


def test_an_end_that_only_repeats_the_answer_is_told_without_it() -> None:
    said = ("message.delta", {"role": "assistant", "content": "42"})
    end = {"usage": {"total_tokens": 7}, "cost": 0.10}
    out = told(said, ("run.completed", {**end, "assistant_message": "42"}), ("thread.title.updated", {"title": "T"}))
    assert (out["status"], out["usage"], out["final"]["data"]) == ("completed", {"total_tokens": 7}, end)
    assert out["latest"]["thread.title.updated"]["data"] == {"title": "T"}
    assert told(said, ("run.completed", {"assistant_message": "43"}))["final"]["data"] == {"assistant_message": "43"}


def test_a_filter_leaves_out_what_a_reader_does_not_want() -> None:
    fold = Fold().extend(
        [event(1, "message.delta", {"content": "x"}), event(2, "tool.call", {"tool_call_id": "c", "arguments": {}})]
    )
    out = fold.data(types_of("run.*"))
    assert (out["messages"], out["tool_calls"], out["status"]) == ([], [], "running")
    assert len(fold.data(types_of("tool.result"))["tool_calls"]) == 1
    assert len(fold.data(types_of("message.*"))["messages"]) == 1


def test_what_cannot_be_had_is_skipped_and_said() -> None:
    fold = Fold().extend([event(1, "run.started", {}), event(2, "message.delta", {"content": "x"})])
    fold.skip(40)
    fold.take(event(41, "message.delta", {"content": "y"}))
    out = decode(encode(fold.data()))
    assert (out["since_seq"], out["as_of_seq"]) == (40, 41)
    assert [one["text"] for one in out["messages"]] == ["x", "y"]


@pytest.mark.parametrize("junk", [b"", b"[]", b"{}", b'{"as_of_seq":1}', b'{"as_of_seq":"x","since_seq":0}', b"\xff"])
def test_what_is_no_snapshot_is_not_taken_for_one(junk: bytes) -> None:
    assert Fold.restored(junk) is None


@pytest.mark.parametrize(
    "other",
    [{"role": "user"}, {"channel": "x"}, {"part": "1"}, {"odd": 1}, {"content_delta": "else"}, {"content": None}],
)
def test_deltas_of_different_things_are_not_merged(other: dict[str, Any]) -> None:
    one = {"role": "assistant", "content": "a"}
    events = [event(1, "message.delta", one), event(2, "message.delta", {**one, **other})]
    assert coalesced(events) == events


def test_deltas_on_either_side_of_anything_else_are_not_merged() -> None:
    delta = {"role": "assistant", "content": "a"}
    events = [event(1, "message.delta", delta), event(2, "made.up", {}), event(3, "message.delta", delta)]
    assert coalesced(events) == events
    (merged,) = coalesced([events[0], events[2]])
    assert decode(merged.json) == {
        "seq_from": 1, "seq": 3, "type": "message.delta", "data": {"role": "assistant", "content": "aa"},
        "created_at": "", "run_id": "r",
    }  # fmt: skip
