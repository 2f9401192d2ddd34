"""What every provider promises (relay/providers/contract.py), over all there are."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.errors import RelayError, UpstreamError
from relay.core.events import MAX_SEQ, TERMINAL, Draft, encode
from relay.core.ids import is_id, is_upstream_name
from relay.core.run import Run
from relay.core.sse import Message
from relay.providers.contract import Ask, Provider, RunsQuery
from tests.providers.joined import NUMBERED

pytestmark = pytest.mark.parametrize("provider", [one.provider for one in NUMBERED], ids=[str(one) for one in NUMBERED])
AT = "2026-01-01T00:00:00Z"
STATUSES = {"queued", "running", "waiting_for_input", "cancelling", "completed", "failed", "cancelled", "interrupted"}


def asks(provider: Provider, run_id: str = "run-1", thread_id: str = "thread-1") -> list[Ask]:
    return [
        provider.events(run_id, after_seq=0, follow=True),
        provider.events(run_id, after_seq=MAX_SEQ, follow=False),
        provider.get_run(run_id),
        provider.list_runs(RunsQuery(limit=1)),
        provider.list_runs(RunsQuery(limit=200, offset=400, status="waiting_for_input", until=AT, since=AT)),
        provider.list_thread_runs(thread_id, limit=5),
        provider.create_run(thread_id, None),
        provider.create_run(thread_id, b"{}"),
        provider.cancel_run(run_id, last_seen_seq=7),
        provider.provide_input(run_id, 'a "quoted" line\n\u2028 and \ud800'),
    ]


def row(provider: Provider, run_id: str, status: object) -> dict[str, Any]:
    """A run as the system itself writes it."""
    [joined] = [one for one in NUMBERED if one.provider is provider]
    return joined.row(run_id, status)


def word(provider: Provider, native: str) -> str:
    """What the system calls a native status."""
    return next(theirs for theirs, ours in provider.statuses.items() if ours == native)


def test_it_promises_something_usable(provider: Provider) -> None:
    assert is_upstream_name(provider.name)
    assert provider.list_limit > 0
    assert set(provider.statuses.values()) <= STATUSES
    assert {"running", "completed", "failed"} <= set(provider.statuses.values())


def test_an_ask_is_a_request_and_carries_no_credentials(provider: Provider) -> None:
    for ask in asks(provider):
        assert ask.method in ("GET", "POST")
        assert ask.path.startswith("/")
        assert "?" not in ask.path
        assert "#" not in ask.path
        assert urlsplit("http://h" + ask.path).path == ask.path
        assert all(isinstance(value, str) for value in [*ask.query.values(), *ask.headers.values()])
        assert not {name.lower() for name in ask.headers} & {"authorization", "cookie", "x-api-key"}
        assert ask.body is None or isinstance(json.loads(ask.body), dict)
        assert ask.body is None or ask.method == "POST"


def test_credentials_are_headers_that_hold_the_token(provider: Provider) -> None:
    headers = provider.authorization("the-token")
    assert any("the-token" in value for value in headers.values())


def test_streams_are_asked_for_as_streams(provider: Provider) -> None:
    for follow in (True, False):
        ask = provider.events("run-1", after_seq=5, follow=follow)
        assert ask.method == "GET"
        assert ask.headers["Accept"] == "text/event-stream"
        assert "run-1" in ask.path


@given(
    data=st.binary(max_size=60)
    | st.from_regex(rb'\{"seq":-?[0-9]{0,25},"type":("[a-z.]{0,9}"|null|\[\]),"data":[\[{1n"]{0,4}\}', fullmatch=True),
    event=st.text(max_size=10), last_id=st.text(max_size=22) | st.integers(-9, 2**65).map(str),
    oversize=st.sampled_from([0, 10**9]),
)  # fmt: skip
def test_no_bytes_make_it_raise(provider: Provider, data: bytes, event: str, last_id: str, oversize: int) -> None:
    drafts = provider.drafts(Message(data, event, last_id, oversize), run_id="r", received_at=AT)
    for draft in drafts:
        assert isinstance(draft, Draft)
        assert isinstance(draft.type, str)
        assert draft.type
        assert draft.seq is None or 1 <= draft.seq <= MAX_SEQ
        assert {"seq", "type", "data", "created_at", "run_id"} <= draft.body.keys()
        assert draft.body["type"] == draft.type
        assert isinstance(draft.body["created_at"], str)
        assert isinstance(draft.body["run_id"], str)
    for one in Run("r", contiguous=False).admit(drafts).events:
        assert json.loads(one.json)["seq"] == one.seq


ANSWERS = [
    None, True, 1, "x", [], {}, [1], [None], [[]], {"run_id": None}, {"run_id": "../x"}, {"run_id": ""}, {"run_id": 7},
    {"run_id": ["r"]}, {"run_id": "r\n"}, {"data": None}, {"data": {}}, {"data": [1]}, {"data": [{"run_id": "a/b"}]},
    {"run_id": "r" * 129}, {"run_id": "é"}, {"run_id": {"a": 1}}, {"run_id": True},
]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_that_is_none_is_the_upstreams_error(provider: Provider, answer: object) -> None:
    for read in (provider.created, provider.run):
        with pytest.raises(UpstreamError) as error:
            read(answer)
        assert error.value.status == 502
    try:
        assert provider.runs(answer) == []
    except UpstreamError as error_of_list:
        assert error_of_list.status == 502  # noqa: PT017


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_rows_are_runs_or_nothing_and_an_answer_without_rows_is_the_upstreams_error(
    provider: Provider, answer: object
) -> None:
    try:
        assert not any(provider.rows(answer))
    except UpstreamError as error:
        assert error.status == 502  # noqa: PT017


def test_one_bad_row_does_not_hide_the_others(provider: Provider) -> None:
    good = [row(provider, f"r-{i}", word(provider, "running")) for i in range(2)]
    bad = [one for one in ANSWERS if not isinstance(one, dict) or "data" not in one]
    found = provider.rows([good[0], *bad, good[1]])
    assert found == [provider.run(good[0]), *[None] * len(bad), provider.run(good[1])]


def test_it_says_how_to_ask_for_what_is_active(provider: Provider) -> None:
    """Every status asked for is one its own runs can have and that is not over; or there is no such filter."""
    assert provider.active
    for status in provider.active:
        ask = provider.list_runs(RunsQuery(limit=provider.list_limit, status=status, since=AT, until=AT))
        if status is None:
            assert provider.active == (None,)
        else:
            assert status in ask.query.values()
            assert provider.run(row(provider, "r", status))["status"] in STATUSES - TERMINAL


@pytest.mark.parametrize("status", ["running", "completed", "nonsense", None, 7, [], {"a": 1}])
def test_a_run_has_a_status_of_ours_and_keeps_what_was_said(provider: Provider, status: object) -> None:
    run = provider.run({**row(provider, "r-1", status), "odd": [1]})
    assert run["status"] in STATUSES
    assert is_id(run["run_id"])
    assert run["odd"] == [1]
    assert run["created_at"] == AT
    known = isinstance(status, str) and status in provider.statuses
    assert (run["raw_status"] in provider.statuses) == known
    assert known or run["status"] == "running", "a status nobody has told us of ends nothing"


def test_every_status_is_what_its_table_says(provider: Provider) -> None:
    for theirs, ours in provider.statuses.items():
        run = provider.run(row(provider, "r-1", theirs))
        assert (run["status"], run["raw_status"]) == (ours, theirs)


@pytest.mark.parametrize(
    "answer", [*ANSWERS[:6], {"code": 7, "message": [1], "details": "x"}, {"message": "m" * 10**5}]
)
@pytest.mark.parametrize("status", [300, 302, 304, 400, 401, 403, 404, 405, 409, 410, 413, 418, 422, 429, 451, 500, 501,
                                    502, 503, 504, 599])  # fmt: skip
def test_every_refusal_is_one_of_our_errors(provider: Provider, status: int, answer: object) -> None:
    headers: dict[str, str]
    for headers in ({}, {"Retry-After": "7"}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, {"Retry-After": "-1"}):
        error = provider.error(status, headers, answer)
        assert isinstance(error, RelayError)
        assert 400 <= error.status < 600
        assert error.status != 500
        assert error.status != 401, "our own credentials are never the caller's fault"
        assert len(error.message) <= 1000
        assert json.loads(encode({"code": error.code, "message": error.message, "details": error.details}))
        assert error.retry_after_s is None or 0 <= error.retry_after_s <= 3600


def test_an_authorization_refusal_is_a_bad_gateway(provider: Provider) -> None:
    error = provider.error(401, {}, {"code": "auth.invalid_token", "message": "token abc"})
    assert (error.status, error.code) == (502, "upstream.unauthorized")
    assert "abc" not in error.message


def test_a_created_run_is_named(provider: Provider) -> None:
    made = provider.created({**row(provider, "r-1", word(provider, "running")), "trace_id": "t"})
    assert made["run_id"] == "r-1"
