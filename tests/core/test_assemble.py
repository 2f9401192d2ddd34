"""Observations -> numbered events: once, in order, whatever is seen twice, late, or in other pieces (C1)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.assemble import FIELD, Assembler, final_data
from relay.core.events import Draft
from relay.core.observed import Asked, Break, Call, Extra, Observation, Opens, Outcome, Snapshot, Started, Text, Texts

AT = "2026-01-01T00:00:00.000Z"
LATER = "2026-01-01T00:00:09.000Z"


def made(*, named: bool = False) -> Assembler:
    return Assembler("r-1", named_parts=named)


def brief(drafts: list[Draft]) -> list[tuple[str, Any]]:
    return [(one.type, one.body["data"].get("content", one.body["data"].get("tool_call_id"))) for one in drafts]


def opened(one: Assembler) -> Assembler:
    one.connected()
    one.replayed([Opens(), Started()], AT)
    return one


def words(texts: list[str], name: str = "") -> list[Observation]:
    return [Text(text, name) for text in texts]


def text_of(drafts: list[Draft]) -> dict[str, str]:
    parts: dict[str, str] = {}
    for one in drafts:
        data = one.body["data"]
        if one.type == "message.reset":
            parts[data["part"]] = ""
        elif one.type == "message.delta":
            parts[data["part"]] = parts.get(data["part"], "") + data["content"]
    return parts


def test_whatever_is_seen_first_the_run_has_started() -> None:
    assert brief(made().take([Text("x", "1")], AT)) == [("run.started", None), ("message.delta", "x")]
    one = made()
    assert brief(one.take([Started(), Started()], AT)) == [("run.started", None)]
    assert one.take([Started()], AT) == []
    assert brief(made().finish("completed", {}, AT)) == [("run.started", None), ("run.completed", None)]


def test_nothing_comes_after_the_end() -> None:
    one = made()
    one.finish("failed", {}, AT)
    assert one.finish("completed", {}, AT) == []
    assert one.take([Text("x"), Call("c", "t"), Started()], AT) == []


@given(st.integers(0, 10**6))
def test_a_replay_in_other_pieces_adds_only_what_is_new(seed: int) -> None:
    chance = Random(seed)
    parts = [
        "".join(chance.choice(["a", "é", "🦊", "\n", "\ud83d", "\ude00"]) for _ in range(chance.randint(1, 12)))
        for _ in range(3)
    ]
    one, drafts = made(), list[Draft]()
    for connection in range(4):
        one.connected()
        seen: list[Observation] = [Opens()]
        last = connection == 3
        for i, part in enumerate(parts):
            rest = part if last else part[: chance.randint(0, len(part))]
            while rest:
                cut = chance.randint(1, len(rest))
                seen.append(Text(rest[:cut], f"{connection}-{i}"))
                rest = rest[cut:]
            brought = "".join(one.text for one in seen if isinstance(one, Text) and one.name == f"{connection}-{i}")
            if brought != part:
                break  # a cut: nothing follows a part that is not whole
        drafts += one.replayed(seen, AT)
    assert one.contradictions == 0
    expected = {str(i): part.encode("utf-16", "surrogatepass") for i, part in enumerate(parts)}
    assert {name: text.encode("utf-16", "surrogatepass") for name, text in text_of(drafts).items()} == expected


def test_text_ids_that_are_used_again_are_other_parts() -> None:
    one = opened(made())
    drafts = one.take([Break("1"), Text("a", "1"), Break("1"), Text("b", "1")], AT)
    assert text_of(drafts) == {"0": "a", "1": "b"}


def test_parts_without_names_are_told_apart_by_what_stands_between() -> None:
    one = opened(made())
    assert text_of(one.take([Text("a"), Break(), Break(), Text("b"), Text("c")], AT)) == {"0": "a", "1": "bc"}


def test_who_joins_late_appends_no_deltas_but_tools_have_names() -> None:
    one = made()
    drafts = one.replayed([Text("lo", "1"), Call("c", "t"), Extra("x"), Outcome("c", 1)], AT)
    assert one.late
    assert brief(drafts) == [("run.started", None), ("tool.call", "c"), ("tool.result", "c")]
    assert text_of(one.take([Texts(("Hello",))], AT)) == {"0": "Hello"}


def test_tools_are_told_once_and_a_result_may_bring_its_call() -> None:
    one = made()
    drafts = one.take(
        [Call("c", "t", 1), Call("c", "t", 1), Outcome("c", 2), Outcome("c", 3), Outcome("d", 4, call=Call("d", "t"))],
        AT,
    )
    assert brief(drafts)[1:] == [("tool.call", "c"), ("tool.result", "c"), ("tool.call", "d"), ("tool.result", "d")]
    assert drafts[2].body["data"]["result"] == 2


def test_a_question_is_asked_once_per_set_of_calls() -> None:
    one = made()

    def waiting(*ids: str) -> Snapshot:
        return Snapshot("waiting_for_input", "requires_action", started_at=AT, calls=tuple(Call(i, "f") for i in ids))

    kinds = [[draft.type for draft in one.take([waiting(*ids)], AT)] for ids in (("a",), ("a",), ("a", "b"), ("b",))]
    assert kinds == [
        ["run.started", "tool.call", "run.waiting_for_input"],
        [],
        ["tool.call", "run.waiting_for_input"],
        [],
    ]
    assert one.take([Asked(("a",))], AT) == []


def test_nameless_events_are_counted_on_each_connection() -> None:
    one = opened(made())
    assert brief(one.take([Extra("x"), Extra("y")], AT)) == [("x", None), ("y", None)]
    opened(one)
    assert brief(one.take([Extra("x"), Extra("y"), Extra("z")], AT)) == [("z", None)]


# --- contradictions --------------------------------------------------------------------------------------------------
def test_a_replay_that_says_something_else_resets_the_part() -> None:
    one = opened(made())
    first = one.take(words(["Hello", " world"]), AT)
    opened(one)
    again = one.take(words(["Hel", "p! I am", " lost", "."]), AT)
    assert [draft.type for draft in again] == ["message.reset", "message.delta", "message.delta"]
    assert text_of(first + again) == {"0": "Help! I am lost."}
    assert one.contradictions == 1


def test_a_view_that_lags_behind_the_stream_says_nothing() -> None:
    one = opened(made(named=True))
    one.take([Text("Hello", "m:0")], AT)
    assert one.take([Text("Hel", "m:0", whole=True)], AT) == []
    assert text_of(one.take([Text("Hello!", "m:0", whole=True)], AT)) == {"m:0": "!"}


def test_the_final_text_wins() -> None:
    one = opened(made(named=True))
    drafts = one.take([Text("Hello  ", "m:0"), Text("Hello", "m:0", whole=True, final=True)], AT)
    assert text_of(drafts) == {"m:0": "Hello"}


@pytest.mark.parametrize(
    ("streamed", "messages", "then"),
    [
        ([], ["a", "b"], {"0": "a", "1": "b"}),
        (["a"], ["abc"], {"0": "abc"}),
        (["ab"], ["ab", "c"], {"0": "ab", "1": "c"}),
        (["a", "b"], ["abc"], {"0": "a", "1": "bc"}),  # two parts of one message
        (["a", "b"], ["abc", "d"], {"0": "a", "1": "bc", "2": "d"}),
        (["think", "a"], ["ab"], {"0": "think", "1": "ab"}),  # what was said between tools is in no message
        (["x"], ["ab"], {"0": "ab"}),
        (["a", "x"], ["a", "b"], {"0": "a", "1": "b"}),
        (["a"], [], {"0": "a"}),
        (["a", "b"], ["a", "b"], {"0": "a", "1": "b"}),
    ],
)
def test_messages_against_what_was_streamed(streamed: list[str], messages: list[str], then: dict[str, str]) -> None:
    one = opened(made())
    drafts = one.take([Text(text, str(i)) for i, text in enumerate(streamed)], AT)
    seen = [Texts(tuple(messages), final=True)] if messages else []
    drafts += one.take(seen, AT)
    assert text_of(drafts) == then
    assert one.take(seen, AT) == [], "the same once more changes nothing"


# --- the cursor ------------------------------------------------------------------------------------------------------
def test_a_cursor_restores_exactly_what_was_emitted() -> None:
    one, fields = made(), dict[str, str]()
    opened(one)
    drafts = one.take([Text("Hel", "1"), Call("c", "t"), Extra("x")], AT)
    fields |= one.changes(len(drafts))
    drafts += one.take([Text("lo", "1")], AT)
    fields |= one.changes(len(drafts))
    back = Assembler.restored("r-1", fields, named_parts=False)
    assert back is not None
    assert back.head == one.head
    assert back.head.seq == len(drafts)
    opened(back)
    assert brief(back.take([Text("Hello", "9"), Call("c", "t"), Extra("x"), Text("!", "9")], AT)) == [
        ("message.delta", "!")
    ]


@pytest.mark.parametrize(
    "fields", [{}, {FIELD: ""}, {FIELD: "[]"}, {FIELD: '{"seq": "x"}'}, {FIELD: "{}", f"{FIELD}:1:p:a": "x"}]
)
def test_a_broken_cursor_is_none(fields: dict[str, str]) -> None:
    assert Assembler.restored("r-1", fields, named_parts=False) is None


def test_what_is_written_per_append_does_not_grow_with_the_run() -> None:
    """No text is kept, and only what changed is written: a long run's appends cost what a short one's do."""
    one = opened(made())
    for i in range(2000):
        one.take([Call(f"call-{i}", "t"), Text("x" * 10_000, str(i // 100))], AT)
        size = sum(len(name) + len(value) for name, value in one.changes(i).items())
        assert size < 500
    assert one.take([Call("c" * 100_000, "t")], AT)
    assert sum(len(name) for name in one.changes(1)) < 300


def test_an_old_generations_cursor_is_not_taken_for_this_ones() -> None:
    one = opened(made())
    one.take([Text("old", "1"), Call("c", "t")], AT)
    fields = one.changes(3)
    anew = Assembler("r-1", named_parts=False, generation=1000)
    back = Assembler.restored("r-1", fields | anew.changes(3), named_parts=False)
    assert back is not None
    assert back.head.generation == 1000
    assert text_of(opened(back).take([Text("new", "1")], AT)) == {"0": "new"}


# --- times, ends -----------------------------------------------------------------------------------------------------
def test_times_never_go_back() -> None:
    one = made()
    drafts = one.take([Started(LATER), Text("x"), Call("c", "t", at=AT)], AT)
    assert [draft.body["created_at"] for draft in drafts] == [LATER] * 3


@pytest.mark.parametrize(
    ("seen", "said", "data"),
    [
        (Snapshot("completed", "completed", usage={"total_tokens": 3}), None,
         {"upstream_status": "completed", "usage": {"total_tokens": 3}}),
        (Snapshot("failed", "failed"), "boom", {"upstream_status": "failed", "reason": "failed", "message": "boom"}),
        (Snapshot("failed", "failed", error={"code": "server_error", "message": "m"}), "boom",
         {"upstream_status": "failed", "reason": "server_error", "message": "m"}),
        (Snapshot("failed", "expired", error={"code": "expired", "message": None}), None,
         {"upstream_status": "expired", "reason": "expired"}),
        (Snapshot("cancelled", "canceled"), "x", {"upstream_status": "canceled"}),
    ],
)  # fmt: skip
def test_what_the_end_tells(seen: Snapshot, said: str | None, data: dict[str, Any]) -> None:
    assert final_data(seen, said) == data


def test_nothing_comes_behind_the_final_event_not_even_a_gap() -> None:
    made = Assembler("r", named_parts=True)
    assert [draft.type for draft in made.finish("completed", {}, "2026-01-01T00:00:00Z")][-1] == "run.completed"
    assert made.gap("messages_unavailable", "2026-01-01T00:00:00Z") == []
    assert made.finish("failed", {}, "2026-01-01T00:00:00Z") == []
