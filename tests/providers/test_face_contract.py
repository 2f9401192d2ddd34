"""What every face promises, over all there are: its bytes are ones its clients survive, and follow from the events alone.

Faces share bytes between readers and remember states in pages of history, so telling must be pure: equal fold, equal state,
equal event, equal bytes. And nothing an upstream can write makes one raise, or lets it forge a frame.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import errors
from relay.core.events import Event, encode
from relay.core.goodbye import DRAIN
from relay.core.sse import Decoder
from relay.core.wires import end, goodbye, position, reset
from tests.providers.faces import RUN
from tests.providers.joined import FACES, Face

pytestmark = pytest.mark.parametrize("face", FACES, ids=str)

KINDS = st.sampled_from([
    "run.started", "message.delta", "reasoning.delta", "nested.message.delta", "tool.call", "tool.result",
    "tool.result.preliminary", "run.waiting_for_input", "run.input_provided", "message.reset", "run.gap", "provider.event",
    "run.cancelling", "run.completed", "run.failed", "run.cancelled", "run.interrupted", "anything", "a\nb: c\r\nd",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "x", "c1", "a\nid: 7\n\n", "\u2028\u0085", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "name", "function"]), inner, max_size=2)
    ),
    max_leaves=4,
)  # fmt: skip
DATA = VALUES | st.dictionaries(
    st.sampled_from([
        "content", "content_delta", "role", "channel", "part", "tool_call_id", "tool_name", "arguments", "result",
        "error", "is_error", "tool_calls", "required_action", "message", "reason", "usage", "delegate_layer", "lane",
        "chunk", "model",
    ]), VALUES, max_size=5,
)  # fmt: skip


def events_of(told: list[tuple[str, Any]]) -> list[Event]:
    made = []
    for seq, (kind, data) in enumerate(told, 1):
        body = {"seq": seq, "type": kind, "data": data, "created_at": "2026-01-01T00:00:00Z", "run_id": "r1"}
        made.append(Event(seq, kind, encode(body)))
    return made


def whole(face: Face, events: list[Event]) -> bytes:
    if face.fold is None:
        return face.wire.events(events)
    fold = face.fold(dict(RUN))
    state, told = fold.begin(), b""
    for event in events:
        frames, state = fold.tell(state, event)
        told += frames
    return told


def check(face: Face, told: bytes) -> None:
    """Nothing but frames, of lines as the face's clients survive them, each with JSON or `[DONE]` in it."""
    assert b"\r" not in told
    for line in told.decode("utf-8").split("\n"):
        assert not line or line.startswith(face.lines), line
    assert not told or told.endswith(b"\n\n")
    for message in Decoder().feed(told):
        assert message.data == b"[DONE]" or isinstance(json.loads(message.data), dict)


RUNS = st.lists(st.tuples(KINDS, DATA), max_size=8)


@given(told=RUNS)
def test_no_event_makes_it_raise_or_forges_a_frame(face: Face, told: list[tuple[str, Any]]) -> None:
    check(face, whole(face, events_of(told)))


@given(told=RUNS, cut=st.integers(0, 8))
def test_what_is_told_follows_from_the_events_alone(face: Face, told: list[tuple[str, Any]], cut: int) -> None:
    """Also in two halves, by a fold made anew for the same run: another process, or a page of history."""
    events = events_of(told)
    assert whole(face, events) == whole(face, events)
    if face.fold is None:
        return
    one, other = face.fold(dict(RUN)), face.fold(dict(RUN))
    assert one.key == other.key
    hash(one.key)
    state, bytes_told = one.begin(), b""
    for event in events[:cut]:
        frames, state = one.tell(state, event)
        bytes_told += frames
    assert one.tell(state, events[0])[0] == other.tell(state, events[0])[0] if events else True
    for event in events[cut:]:
        frames, state = other.tell(state, event)
        bytes_told += frames
    assert bytes_told == whole(face, events)


def test_a_fold_is_over_only_after_the_end(face: Face) -> None:
    if face.fold is None:
        return
    fold = face.fold(dict(RUN))
    state = fold.begin()
    for event in events_of(
        [("run.started", {}), ("message.delta", {"content": "x"}), ("tool.call", {"tool_call_id": "c"})]
    ):
        assert not fold.over(state)
        _, state = fold.tell(state, event)
    nested = events_of([("run.completed", {"delegate_layer": "acp"})])[0]
    _, state = fold.tell(state, nested)
    assert not fold.over(state), "the end of an agent inside the run"
    _, state = fold.tell(state, events_of([("run.completed", {})])[0])
    assert fold.over(state)


def test_a_heartbeat_is_no_message(face: Face) -> None:
    ping = face.wire.ping
    assert ping
    assert [message for message in Decoder().feed(ping) if message.data] == []
    assert b"id:" not in ping
    assert all(not line or line.startswith(face.lines) for line in ping.decode().split("\n"))


@pytest.mark.parametrize("notice", [
    end(7, "completed", 1000), position(7), reset(1, 7, "trimmed"), goodbye(DRAIN, 1000),
], ids=lambda notice: notice.type)  # fmt: skip
def test_our_own_words_are_bytes_its_clients_survive(face: Face, notice: Any) -> None:
    told = face.wire.notice(notice)
    assert all(not line or line.startswith(face.lines) for line in told.decode().split("\n")), told
    if notice.type == "relay.goodbye" and face.name != "native":
        assert b"[DONE]" not in told, "who is sent away must not take it for the end"
    if notice.type == "relay.end" and face.fold is not None:
        assert b"[DONE]" in told


def _kinds(base: type[errors.RelayError]) -> list[type[errors.RelayError]]:
    return [kind for sub in base.__subclasses__() for kind in (sub, *_kinds(sub))]


def test_it_has_words_for_every_refusal(face: Face) -> None:
    if face.refusal is None:
        return
    for kind in _kinds(errors.RelayError):
        if issubclass(kind, errors.ConfigError | errors.StartupError):
            continue
        error = kind("what happened", retry_after_s=2.0)
        status, body, headers = face.refusal(error)
        assert 400 <= status < 600
        assert "what happened" in json.dumps(body)
        assert all(isinstance(value, str) for value in headers.values())
