"""What every provider without durable seqs promises (relay/providers/own.py), over all there are."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.assemble import Assembler
from relay.core.errors import InvalidRequest, RelayError, UpstreamError
from relay.core.events import encode
from relay.core.ids import is_id, is_upstream_name
from relay.core.observed import Observation
from relay.core.run import Run
from relay.core.sse import Message
from relay.providers.contract import Ask
from relay.providers.own import OwnSeqProvider, Page, ThreadQuery
from tests.providers.joined import THREADED

pytestmark = pytest.mark.parametrize("provider", [one.provider for one in THREADED], ids=[str(one) for one in THREADED])
AT = "2026-01-01T00:00:00.000Z"
PAGE = Page(({"id": "m-1"},), 1, "m-1", more=True)
RUN: dict[str, Any] = {
    "run_id": "r-1", "agent_id": "a", "thread_id": "t-1", "created_at": AT, "ended_at": None,
    "status": "waiting_for_input",
    "raw_status": "requires_action", "started_at": None, "usage": None, "error": None,
    "required_action": {"submit_tool_outputs": {"tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "f"}}]}},
}  # fmt: skip


def asks(provider: OwnSeqProvider) -> list[Ask]:
    found = [
        provider.create_run("t-1", {"a": [None, "\ud800"]}),
        provider.get_run("t-1", "r-1"),
        provider.list_thread_runs("t-1", ThreadQuery(5)),
        provider.list_thread_runs("t-1", ThreadQuery(5, "asc", 7, "r-0", "r-9")),
        provider.cancel_run("t-1", RUN),
        provider.provide_input("t-1", RUN, {"content": "x"}),
        provider.attach("t-1", "r-1"),
        provider.messages("t-1", "r-1", None, 0),
        provider.messages("t-1", "r-1", PAGE, 100),
        provider.steps("t-1", "r-1", None),
        provider.steps("t-1", "r-1", PAGE),
    ]
    return [ask for ask in found if ask is not None]


def test_it_promises_something_usable(provider: OwnSeqProvider) -> None:
    assert is_upstream_name(provider.name)
    assert provider.durable_seq is False
    assert provider.list_limit > 0
    assert provider.page_limit > 0
    assert {"running", "completed", "failed", "cancelled"} <= set(provider.statuses.values())


def test_each_of_its_ways_to_make_a_run_is_one(provider: OwnSeqProvider) -> None:
    """One whose answer is a stream says which run it is, or its thread does."""
    for how in provider.creates:
        made = provider.creating(how)
        ask = made.create_run("t-1", {"a": 1})
        assert ask.method == "POST"
        assert made.streams_on_create == (ask.headers["Accept"] == "text/event-stream")
        said = made.created_in(Message(b'{"id":"r-1","object":"thread.run"}', "thread.run.created", ""))
        assert not made.streams_on_create or said is not None or made.thread("t-1") is not None


def test_a_marked_run_is_found_by_its_mark_and_no_other_is(provider: OwnSeqProvider) -> None:
    body = provider.marked({"a": 1}, "m-1")
    if body is None:
        return  # a system without a place for it: such a run is not looked for
    kept = {name: value for name, value in body.items() if name != "a"}
    rows = [{"id": "r-2", "status": "running"}, {"id": "r-1", "status": "running", **kept}]
    for answer in (rows, {"data": rows}):
        with contextlib.suppress(UpstreamError):
            found = provider.marked_run(answer, "m-1")
            assert found is not None
            assert found["run_id"] == "r-1"
            assert provider.marked_run(answer, "m-2") is None


@given(
    answer=st.none() | st.integers() | st.dictionaries(st.just("active_run_id"), st.none() | st.text() | st.integers())
)
def test_a_thread_is_busy_with_a_run_or_with_none(provider: OwnSeqProvider, answer: object) -> None:
    try:
        found = provider.busy_with(answer)
    except UpstreamError:
        return
    assert found is None or is_id(found)


def test_a_message_is_of_the_run_that_it_names(provider: OwnSeqProvider) -> None:
    """And pages are turned until one is older than the run's first."""
    own = {"id": "m-2", "run_id": "r-1", "role": "assistant", "created_at": AT}
    older = {"id": "m-1", "run_id": "r-0", "role": "assistant", "created_at": "2025-12-31T00:00:00Z"}
    newer = {"id": "m-3", "run_id": "r-2", "role": "assistant", "created_at": "2026-01-01T01:00:00Z"}
    assert [provider.owns(RUN, one) for one in (newer, own, older)] == [False, True, False]
    assert [provider.is_past(RUN, found) for found in ([newer], [newer, own], [newer, own, older], [older], [])] == [
        False, False, True, True, False
    ]  # fmt: skip


def test_an_ask_is_a_request_and_carries_no_credentials(provider: OwnSeqProvider) -> None:
    for ask in asks(provider):
        assert ask.method in ("GET", "POST")
        assert urlsplit("http://h" + ask.path).path == ask.path
        assert all(isinstance(value, str) for value in [*ask.query.values(), *ask.headers.values()])
        assert not {name.lower() for name in ask.headers} & {"authorization", "cookie", "x-team-id"}
        assert ask.body is None or isinstance(json.loads(ask.body), dict)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x", "text", "c-1", "run_id", "2026-01-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([
        "type", "id", "delta", "text", "value", "content", "index", "toolCallId", "toolName", "input", "output", "data",
        "chunk", "toolCallPath", "step_details", "tool_calls", "function", "name", "arguments", "status", "error",
        "message", "tool_id", "tool_name", "approvalId", "role", "run_id", "errorText", "required_action", "usage",
    ]), inner, max_size=6),
    max_leaves=12,
)  # fmt: skip
KINDS = [
    "start", "text-start", "text-delta", "reasoning-delta", "tool-input-available", "tool-input-error",
    "tool-output-available", "tool-output-error", "tool-approval-request", "data-nestedToolEvent", "error", "finish",
    "user_prompt", "node_header", "part_start_event", "text_delta", "streaming_chunk", "stream_reasoning",
    "streaming_tool_request", "streaming_tool_response", "streaming_tool", "end_node", "no-such-chunk", "reset-step",
]  # fmt: skip
EVENTS = [
    "thread.run.created", "thread.run.in_progress", "thread.run.requires_action", "thread.run.completed", "error", "",
    "thread.run.step.completed", "thread.run.step.failed", "thread.message.delta", "thread.message.completed", "no.such",
]  # fmt: skip


@given(
    body=JSON, kind=st.sampled_from(KINDS), event=st.sampled_from(EVENTS), raw=st.binary(max_size=30),
    plain=st.booleans(), oversize=st.sampled_from([0, 0, 0, 10**9]),
)  # fmt: skip
def test_no_bytes_make_it_raise(
    provider: OwnSeqProvider, body: Any, kind: str, event: str, raw: bytes, plain: bool, oversize: int
) -> None:
    """Whatever is read also goes through the assembler: no hostile value gets past both."""
    if isinstance(body, dict):
        body = {**body, "type": kind}
    message = Message(raw if plain else json.dumps(body).encode(), event, "", oversize)
    seen = provider.reader()(message)
    with contextlib.suppress(UpstreamError):
        provider.created_in(message)
    made = Assembler("r-1", named_parts=provider.named_parts)
    drafts = made.replayed(seen, AT) + made.take(seen, AT)
    for one in Run("r-1").admit(drafts).events:
        assert json.loads(one.json)["seq"] == one.seq
    assert all(isinstance(value, str) for value in made.changes(len(drafts)).values())


OBJECTS = st.lists(JSON.filter(lambda one: isinstance(one, dict)), max_size=3)


@given(messages=OBJECTS, steps=OBJECTS, final=st.booleans())
def test_no_messages_make_it_raise(
    provider: OwnSeqProvider, messages: list[dict[str, Any]], steps: list[dict[str, Any]], final: bool
) -> None:
    assert isinstance(provider.is_past(RUN, messages), bool)
    messages = [{"run_id": "r-1", "role": "assistant", **one} for one in messages]
    seen: list[Observation] = provider.reconciled(RUN, messages, steps, final=final)
    made = Assembler("r-1", named_parts=provider.named_parts)
    Run("r-1").admit(made.take(seen, AT))


@given(answer=JSON)
def test_no_answer_makes_it_raise_anything_but_the_upstreams_error(provider: OwnSeqProvider, answer: Any) -> None:
    for read in (provider.created, provider.run, provider.runs, provider.page):
        try:
            read(answer)  # type: ignore[operator]
        except UpstreamError as error:
            assert error.status == 502  # noqa: PT017


@given(answer=JSON.filter(lambda one: isinstance(one, dict)))
def test_any_run_has_a_status_of_ours_and_a_snapshot(provider: OwnSeqProvider, answer: dict[str, Any]) -> None:
    run = provider.run({"thread_id": "t", "created_at": 1.5, **answer, "id": "r-1", "run_id": "r-1"})
    assert run["status"] in {"queued", "running", "waiting_for_input", "cancelling", "completed", "failed", "cancelled"}
    made = Assembler("r-1", named_parts=provider.named_parts)
    Run("r-1").admit(made.take([provider.snapshot(run)], AT))
    assert not made.head.ended


@pytest.mark.parametrize("status", ["", "done", "finished", "COMPLETED", None, 7, {}, []])
def test_an_unknown_status_is_no_end(provider: OwnSeqProvider, status: object) -> None:
    run = provider.run({"id": "r-1", "status": status})
    assert run["status"] == "running"
    assert provider.snapshot(run).known is False


@pytest.mark.parametrize("spelling", ["cancelled", "canceled"])
def test_both_spellings_of_cancelled_are_one(provider: OwnSeqProvider, spelling: str) -> None:
    run = provider.run({"id": "r-1", "status": spelling, "cancelled_at": 1718885800.9})
    assert (run["status"], run["raw_status"]) == ("cancelled", spelling)
    assert run["ended_at"] == "2024-06-20T12:16:40.900Z"


@pytest.mark.parametrize("answer", [None, [], "x", {}, {"detail": "no"}, {"detail": [{"loc": ["a"], "msg": "m"}]},
                                    {"error": {"message": "no", "type": "x", "code": None}}, {"message": "no"},
                                    {"error": 7}, {"detail": {"a": 1}}, {"error": {"message": ["x"]}}])  # fmt: skip
@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 409, 415, 422, 429, 500, 501, 502, 503, 504])
def test_every_refusal_is_one_of_our_errors(provider: OwnSeqProvider, status: int, answer: object) -> None:
    error = provider.error(status, {"Retry-After": "7"}, answer)
    assert isinstance(error, RelayError)
    assert 400 <= error.status < 600
    assert error.status not in (401, 500)
    assert json.loads(encode({"code": error.code, "message": error.message, "details": error.details}))


def test_input_that_answers_nothing_is_the_callers_fault(provider: OwnSeqProvider) -> None:
    for body in (
        {},
        {"tool_outputs": []},
        {"tool_outputs": [{"tool_call_id": 7}]},
        {"tool_outputs": "x"},
        {"content": 7},
    ):
        try:
            assert provider.provide_input("t", RUN, body) is None
        except InvalidRequest as error:
            assert (error.details or {})["field"] == "tool_outputs"  # noqa: PT017
