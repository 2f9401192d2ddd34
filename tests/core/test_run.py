"""The laws of `Run.admit`: seqs rise strictly, nothing comes twice, nothing is skipped unless it was confirmed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.events import Draft, decode
from relay.core.run import Run, Step, synthesized_end

KINDS = st.sampled_from(["run.started", "message.delta", "run.completed", "run.waiting_for_input", "x"])


def draft(seq: int | None, kind: str = "message.delta", data: object = None) -> Draft:
    body = {"seq": seq, "type": kind, "data": data if data is not None else {}, "created_at": "t", "run_id": "r"}
    return Draft(seq, kind, body)


batches = st.lists(st.tuples(st.lists(st.tuples(st.integers(1, 12), KINDS), max_size=8), st.booleans()), max_size=10)


@given(batches, st.integers(0, 4), st.booleans())
def test_whatever_comes_seqs_rise_and_nothing_is_skipped_unconfirmed(
    fed: list[tuple[list[tuple[int, str]], bool]], start: int, contiguous: bool
) -> None:
    run = Run("r", last_seq=start, contiguous=contiguous)
    for drafts, confirming in fed:
        before, was_contiguous = run.last_seq, run.contiguous
        admission = run.admit([draft(seq, kind) for seq, kind in drafts], confirming=confirming)
        seqs = [event.seq for event in admission.events]
        assert all(a < b for a, b in zip([before, *seqs], seqs, strict=False))
        assert run.last_seq == (seqs[-1] if seqs else before)
        holes = [Step(a + 1, b - 1) for a, b in zip([before, *seqs], seqs, strict=False) if b > a + 1]
        assert admission.steps == holes
        assert not holes or confirming or not was_contiguous
        if confirming:
            assert admission.unconfirmed is None
        used = [seq for seq, _ in drafts]
        if admission.unconfirmed is None:
            assert len(seqs) + admission.repeats == len(used)
        else:
            assert was_contiguous
            assert not confirming
            assert admission.unconfirmed.first == run.last_seq + 1
            assert admission.unconfirmed.last + 1 in used
        for event in admission.events:
            assert json.loads(event.json)["seq"] == event.seq


@given(st.lists(st.integers(1, 40), max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_however_a_stream_is_cut_and_replayed_each_event_is_admitted_once(seqs: list[int], cuts: list[int]) -> None:
    truth = sorted(set(seqs))
    run, got = Run("r", contiguous=False), []
    for start in [*cuts, 0]:  # every connection resumes too early, by some number of events
        at = max(0, len([seq for seq in truth if seq <= run.last_seq]) - start)
        got += [event.seq for event in run.admit([draft(seq) for seq in truth[at : at + 7]]).events]
    got += [event.seq for event in run.admit([draft(seq) for seq in truth]).events]
    assert got == truth


def test_a_repeat_is_counted_and_the_first_wins() -> None:
    run = Run("r")
    admission = run.admit([draft(1, "a"), draft(1, "b"), draft(2, "c"), draft(1, "d")])
    assert [(event.seq, event.type) for event in admission.events] == [(1, "a"), (2, "c")]
    assert admission.repeats == 2


def test_a_step_waits_for_its_confirmation_and_takes_all_later_ones_with_it() -> None:
    run = Run("r")
    admission = run.admit([draft(1), draft(4), draft(5)])
    assert ([event.seq for event in admission.events], admission.unconfirmed) == ([1], Step(2, 3))
    admission = run.admit([draft(4), draft(5), draft(9)], confirming=True)
    assert ([event.seq for event in admission.events], admission.steps) == ([4, 5, 9], [Step(2, 3), Step(6, 8)])
    assert not run.contiguous
    assert run.admit([draft(20)]).steps == [Step(10, 19)]  # a further one is no news


def test_a_confirming_read_that_brings_what_was_missing_keeps_the_run_contiguous() -> None:
    run = Run("r")
    run.admit([draft(1), draft(3)])
    admission = run.admit([draft(2), draft(3)], confirming=True)
    assert ([event.seq for event in admission.events], admission.steps, run.contiguous) == ([2, 3], [], True)


@pytest.mark.parametrize(("kind", "head_lost"), [("message.delta", 4), ("run.started", 0)])
def test_a_late_start_is_a_lost_head_unless_it_is_the_start(kind: str, head_lost: int) -> None:
    run = Run("r")
    run.admit([draft(5, kind)], confirming=True)
    assert run.head_lost == head_lost


def test_own_seqs_are_counted_up() -> None:
    run = Run("r", last_seq=7)
    assert [event.seq for event in run.admit([draft(None), draft(None)]).events] == [8, 9]
    assert json.loads(run.admit([draft(None)]).events[0].json)["seq"] == 10


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "interrupted"])
def test_a_final_type_ends_the_run_and_a_nested_one_does_not(status: str) -> None:
    run = Run("r")
    run.admit([draft(1, f"run.{status}", {"delegate_layer": "acp"})])
    assert (run.ended, run.status) == (False, "running")
    run.admit([draft(2, f"run.{status}", {"delegate_layer": "other"})])
    assert (run.ended, run.status) == (True, status)
    run.admit([draft(3, "run.started"), draft(4, "run.waiting_for_input")])  # trailing events change nothing
    assert (run.ended, run.status) == (True, status)


def test_the_status_follows_the_events() -> None:
    run, seen = Run("r"), []
    for seq, kind in enumerate(
        ["run.started", "run.waiting_for_input", "message.delta", "run.input_provided", "run.waiting_for_input",
         "run.resumed", "run.cancel_requested", "run.cancelled"], 1):  # fmt: skip
        run.admit([draft(seq, kind)])
        seen.append(run.status)
    assert seen == ["running", "waiting_for_input", "waiting_for_input", "running", "waiting_for_input", "running",
                    "cancelling", "cancelled"]  # fmt: skip


def test_a_nested_agents_question_is_not_this_runs() -> None:
    run = Run("r")
    run.admit([draft(1, "run.waiting_for_input", {"delegate_layer": "acp"})])
    assert run.status == "running"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "interrupted"])
def test_a_synthesized_end_is_marked_and_comes_behind_the_last(status: str) -> None:
    run = Run("r", last_seq=41)
    [event] = run.admit([synthesized_end("r", status, "why", "2026-01-01T00:00:00Z")], confirming=True).events
    body = json.loads(event.json)
    assert (event.seq, body["seq"], body["type"], body["synthesized"]) == (42, 42, f"run.{status}", True)
    assert {"data", "created_at", "run_id"} <= body.keys()
    assert run.status == status


@pytest.mark.parametrize("depth", [10, 250, 300, 900, 990, 1015, 1023])
def test_what_could_be_decoded_can_be_admitted(depth: int) -> None:
    """A deeply nested event is hostile, but it must not stop its run for ever."""
    try:
        body = decode(b'{"data":' + b"[" * depth + b"]" * depth + b"}")
    except ValueError:
        return  # refused: its provider marks it, and its seq is kept
    run = Run("r")
    [event] = run.admit([Draft(1, "x", {**body, "seq": 1, "type": "x"})]).events
    assert event.seq == 1
    assert b"\n" not in event.json
