"""The older chunks of the SeekrFlow face, read back by relay's own reader of that family."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relay.core import wires
from relay.core.goodbye import DRAIN
from relay.core.observed import Call, Ends, Outcome, Text, Texts
from relay.providers.seekrflow import chunks, face
from relay.providers.seekrflow.face_legacy import PING, WIRE, RunFold, Told
from tests.providers.faces import DONE, NESTED_END, RUN, STARTED, Row, call, event, events, result, say

FAILED: Row = ("run.failed", {"error_class": "x.y", "message": "no luck"})


def told(rows: list[Row]) -> list[dict[str, Any]]:
    fold = RunFold(RUN)
    state, data = fold.begin(), b""
    for one in events(rows):
        frame, state = fold.tell(state, one)
        data += frame
    assert data.isascii()
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_a_run_is_told_as_its_reader_reads_it() -> None:
    rows = [STARTED, say("hm", channel="thinking"), call(q=1), result(result={"n": 7}), say("a\u2028"), say("b"), DONE]
    seen = [one for chunk in told(rows) for one in chunks.observe(chunk)]
    kinds = (Text, Texts, Call, Outcome, Ends)
    assert [type(one) for one in seen if isinstance(one, kinds)] == [Text, Call, Outcome, Text, Text, Texts, Ends]
    assert [one.texts for one in seen if isinstance(one, Texts)] == [("a\u2028b",)]
    [made] = [one for one in seen if isinstance(one, Call)]
    [found] = [one for one in seen if isinstance(one, Outcome)]
    assert (made.id, made.name, made.arguments, found.id, found.output) == ("c1", "look", {"q": 1}, "c1", {"n": 7})


def test_every_chunk_has_its_types_fields() -> None:
    """`tool_args` and `tool_output` are objects there, and every chunk has `meta_data`."""
    rows = [
        STARTED,
        ("tool.call", {"tool_call_id": "c", "arguments": "x"}),
        result("c", result="7"),
        result("d", error="e"),
    ]
    found = told(rows)
    assert all(chunk["meta_data"]["run_id"] == "r1" for chunk in found)
    assert [chunk["tool_args"] for chunk in found if "tool_args" in chunk] == [{"input": "x"}]
    assert [chunk["tool_output"] for chunk in found if "tool_output" in chunk] == [{"output": "7"}, {"error": "e"}]


@pytest.mark.parametrize("end", [FAILED, ("run.cancelled", {}), DONE])
def test_its_last_chunk_has_all_of_the_text_however_the_run_ended(end: Row) -> None:
    found = told([STARTED, say("a"), NESTED_END, say("b"), end, say("never")])
    assert found[-1] == {"type": "end_node", "final_output": "ab", "meta_data": found[-1]["meta_data"]}
    assert ("error" in [chunk["type"] for chunk in found]) == (end != DONE)


def test_nothing_is_sent_that_its_parser_cannot_take() -> None:
    """Neither an empty line of its own nor [DONE]."""
    assert json.loads(PING.decode().removeprefix("data: "))["text"] == ""
    assert WIRE.notice(wires.end(3, "completed", 1000)) == b""
    assert WIRE.notice(wires.goodbye(DRAIN, 1000)) == b""
    assert b"data-relay-reset" in WIRE.notice(wires.reset(1, 2, "trimmed"))


def test_hostile_events_do_not_break_it() -> None:
    fold = RunFold(RUN)
    for kind in ("message.delta", "tool.call", "tool.result", "run.failed", "run.completed"):
        for data in ({}, {"content": 3}, {"error": {}}, {"arguments": [1]}, {"result": None}):
            fold.tell(Told(), event(1, kind, data))


@pytest.mark.parametrize(
    ("agent", "old"),
    [("SeekrFlow/v1 PythonBindings/0.20.0", True), ("x PythonBindings/0.21.0", False), ("curl", False)],
)
def test_who_reads_only_these_is_told_by_the_user_agent(agent: str, old: bool) -> None:
    assert face.reads_legacy(agent) is old
