"""The runs API (design.md §4): native names, paging, input, cancel, idempotency, upstreams' errors, several upstreams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web

from relay.core.options import Secret
from relay.demo import http
from relay.ingest.options import UpstreamOptions
from tests.support import upstream_faults as faults
from tests.support.relay import RunningRelay, running, settings_for
from tests.support.stolen import Stopwatch
from tests.support.upstream import ScriptedUpstream
from tests.support.upstream_faults import Fault
from tests.web.raw import Raw, connection, events, fetch, serving

STARTED = ("run.started", {})
ASKED = ("run.input_requested", {"request_id": "q", "message": "?"})
JSON = {"Content-Type": "application/json"}
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


async def post(relay: RunningRelay, target: str, body: object = None, headers: dict[str, str] | None = None) -> Raw:
    raw = None if body is None else json.dumps(body).encode()
    return await fetch(
        relay.url, target, {**(JSON if raw is not None else {}), **(headers or {})}, method="POST", body=raw
    )


async def get(relay: RunningRelay, target: str, headers: dict[str, str] | None = None) -> Any:
    raw = await fetch(relay.url, target, headers)
    assert raw.status == 200, raw.data
    assert raw.headers["content-type"] == "application/json; charset=utf-8"
    return raw.json()


async def watched(relay: RunningRelay, run_id: str, seq: int) -> None:
    """Watch until the log holds this seq."""
    async with connection(relay.url) as raw:
        await raw.ask(f"/v1/runs/{run_id}/events")
        await raw.until(b"id: %d\n" % seq)


def refused(raw: Raw, status: int, code: str, field: str | None = None) -> None:
    assert (raw.status, raw.json()["code"]) == (status, code), raw.data
    assert raw.json()["trace_id"] == raw.headers["x-trace-id"]
    if field is not None:
        assert raw.json()["details"]["field"] == field


# --- create ----------------------------------------------------------------------------------------------------------
async def test_create_passes_the_body_on_in_its_own_words(upstream: ScriptedUpstream, redis_url: str) -> None:
    body = b'{ "persona_id" : "p@1",\n "model":"m" }'
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, "/v1/threads/t-1/runs", JSON, method="POST", body=body)
        assert raw.status == 201
        assert raw.json().keys() >= {"run_id", "trace_id"}
        run_id = raw.json()["run_id"]
        [asked] = [one for one in upstream.requests if one.method == "POST"]
        assert (asked.path, asked.body) == ("/v1/threads/t-1/runs", body.decode())
        assert asked.headers["Authorization"] == "Bearer upstream-secret"
        empty = await post(relay, "/v1/threads/t-1/runs")
        assert empty.status == 201
        assert (await get(relay, f"/v1/runs/{run_id}"))["thread_id"] == "t-1"
    assert upstream.created[0][0] == run_id


async def test_a_created_run_is_pumped_before_anybody_watches(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        run_id = (await post(relay, "/v1/threads/t/runs")).json()["run_id"]
        await upstream.until(lambda: upstream.following(run_id) == 1)


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b"{", b"\xff", b'{"a":NaN}', b"[" * 5000])
async def test_a_body_that_is_no_object_is_refused(upstream: ScriptedUpstream, redis_url: str, body: bytes) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay:
        for target in ("/v1/threads/t/runs", f"/v1/runs/{run_id}/input"):
            raw = await fetch(relay.url, target, JSON, method="POST", body=body)
            refused(raw, 422, "validation.error", "body")
    assert upstream.requests == []


async def test_an_idempotency_key_makes_one_run(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        key = {"Idempotency-Key": "k-1"}
        first = await post(relay, "/v1/threads/t/runs", {"model": "a"}, key)
        again = await post(relay, "/v1/threads/t/runs", {"model": "a"}, key)
        assert (first.status, again.status) == (201, 201)
        assert first.json()["run_id"] == again.json()["run_id"]
        assert len(upstream.created) == 1
        refused(
            await post(relay, "/v1/threads/t/runs", {"model": "b"}, key), 422, "validation.error", "Idempotency-Key"
        )
        for target, header in (("/v1/threads/t/runs", "k-2"), ("/v1/threads/other/runs", "k-1")):
            other = await post(relay, target, {"model": "a"}, {"Idempotency-Key": header})
            assert other.json()["run_id"] != first.json()["run_id"]
        assert len(upstream.created) == 3


async def test_idempotent_requests_at_the_same_instant_make_one_run(upstream: ScriptedUpstream, redis_url: str) -> None:
    upstream.fault(faults.slow_answer(0.3, target="create"))
    async with running(upstream.url, redis_url) as relay:
        answers = await asyncio.gather(
            *(post(relay, "/v1/threads/t/runs", {}, {"Idempotency-Key": "k"}) for _ in range(20))
        )
        made = [raw for raw in answers if raw.status == 201]
        assert len(made) >= 1
        for raw in answers:
            if raw.status != 201:
                refused(raw, 409, "runs.idempotency")
                assert int(raw.headers["retry-after"]) >= 1
        assert len({raw.json()["run_id"] for raw in made}) == 1
        assert len(upstream.created) == 1


async def test_a_key_is_free_again_when_the_upstream_refused(upstream: ScriptedUpstream, redis_url: str) -> None:
    upstream.fault(faults.status(409, target="create", code="runs.thread_busy"))
    async with running(upstream.url, redis_url) as relay:
        key = {"Idempotency-Key": "k"}
        refused(await post(relay, "/v1/threads/t/runs", {}, key), 409, "runs.thread_busy")
        assert (await post(relay, "/v1/threads/t/runs", {}, key)).status == 201


async def test_a_key_is_not_free_again_when_nobody_knows_what_happened(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """The upstream may have made the run before the connection broke: a retry with the key must not make another."""
    upstream.fault(faults.slow_answer(1.2, target="create"))
    async with running(upstream.url, redis_url, ingest={"connect_timeout_s": 0.1}) as relay:
        key = {"Idempotency-Key": "k"}
        refused(await post(relay, "/v1/threads/t/runs", {}, key), 504, "upstream.timeout")
        again = await post(relay, "/v1/threads/t/runs", {}, key)
        assert again.status in (409, 504), "a second run was asked for"
        assert len([one for one in upstream.requests if one.method == "POST"]) == 1


@pytest.mark.parametrize("value", [b"\xff\xfe", "é".encode(), b"a" * 2000])
async def test_an_idempotency_key_that_is_no_key(upstream: ScriptedUpstream, redis_url: str, value: bytes) -> None:
    async with running(upstream.url, redis_url) as relay:
        header = {"Idempotency-Key": value.decode("utf-8", "surrogateescape")}
        raw = await post(relay, "/v1/threads/t/runs", {}, header)
        assert raw.status in (201, 422), raw.data


# --- one run ---------------------------------------------------------------------------------------------------------
NATIVE = {
    "run_id", "org_id", "thread_id", "status", "model", "persona_id", "total_input_tokens", "total_output_tokens",
    "total_cost_usd", "duration_ms", "cache_hit_rate", "credits_used", "created_at", "completed_at", "failed_at",
    "created_by_user_id", "created_by_user_name", "created_by_email", "upstream", "provider", "raw_status", "last_seq",
    "ended",
}  # fmt: skip


async def test_a_run_has_native_names_at_both_paths_and_in_lists(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(
        [STARTED, ("run.completed", {"usage": {"input_tokens": 7, "output_tokens": 2}})], thread_id="t-1", model="m"
    )
    async with running(upstream.url, redis_url) as relay:
        run = await get(relay, f"/v1/runs/{run_id}")
        assert (
            run == await get(relay, f"/v1/threads/t-1/runs/{run_id}") == await get(relay, f"/native/v1/runs/{run_id}")
        )
        [listed] = await get(relay, "/v1/runs")
        [threads] = await get(relay, "/v1/threads/t-1/runs")
        for one in (run, listed, threads):
            assert one.keys() >= NATIVE, NATIVE - one.keys()
            assert (one["run_id"], one["thread_id"], one["status"], one["raw_status"]) == (
                run_id, "t-1", "completed", "completed",
            )  # fmt: skip
            assert (one["upstream"], one["provider"], one["ended"]) == ("main", "arkloop", True)
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", one["created_at"])
        assert run["org_id"] == run["account_id"]
        assert (listed["total_input_tokens"], listed["total_output_tokens"], listed["model"]) == (7, 2, "m")
        assert listed["failed_at"] is None
        assert listed["total_cost_usd"] is None


async def test_a_run_of_another_thread_is_not_in_this_one(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED], thread_id="t-1")
    async with running(upstream.url, redis_url) as relay:
        refused(await fetch(relay.url, f"/v1/threads/t-2/runs/{run_id}"), 404, "runs.not_found")


async def test_last_seq_and_ended_are_the_logs(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, ("x", {}), ("y", {})])
    async with running(upstream.url, redis_url) as relay:
        assert (await get(relay, f"/v1/runs/{run_id}"))["last_seq"] == 0  # nobody has watched it yet
        async with connection(relay.url) as raw:
            await raw.ask(f"/v1/runs/{run_id}/events")
            await raw.until(b"id: 3\n")
            run = await get(relay, f"/v1/runs/{run_id}")
            assert (run["last_seq"], run["ended"], run["status"]) == (3, False, "running")
            upstream.finish(run_id)
            await raw.answer()
        run = await get(relay, f"/v1/runs/{run_id}")
        assert (run["last_seq"], run["ended"], run["status"]) == (4, True, "completed")


async def test_waiting_for_input_is_derived_from_the_events(upstream: ScriptedUpstream, redis_url: str) -> None:
    waits, runs = upstream.add_run([STARTED, ASKED], thread_id="t"), upstream.add_run([STARTED], thread_id="t")
    async with running(upstream.url, redis_url) as relay:
        await watched(relay, waits, 2)
        await watched(relay, runs, 1)
        assert (await get(relay, f"/v1/runs/{waits}"))["status"] == "waiting_for_input"
        assert (await get(relay, f"/v1/runs/{waits}"))["raw_status"] == "running"
        for path in ("/v1/runs", "/v1/threads/t/runs"):
            for status, expected in (("waiting_for_input", [waits]), ("running", [runs]), ("failed", [])):
                found = await get(relay, f"{path}?status={status}")
                assert [run["run_id"] for run in found] == expected, (path, status)
        async with connection(relay.url) as raw:
            await raw.ask(f"/v1/runs/{waits}/events")
            assert (await post(relay, f"/v1/runs/{waits}/input", {"content": "yes"})).json() == {"ok": True}
            await raw.until(b"id: 3\n")
        assert (await get(relay, f"/v1/runs/{waits}"))["status"] == "running"


# --- cancel ----------------------------------------------------------------------------------------------------------
async def test_cancel_tells_the_upstream_what_our_log_has_seen(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, ("x", {}), ("y", {})])
    async with running(upstream.url, redis_url) as relay:
        await watched(relay, run_id, 3)
        raw = await post(relay, f"/v1/runs/{run_id}:cancel")
        assert (raw.status, raw.json()) == (200, {"ok": True})
        [asked] = [one for one in upstream.requests if one.path.endswith(":cancel")]
        assert json.loads(asked.body) == {"last_seen_seq": 3}
        assert asked.headers["Content-Type"] == "application/json"
        await post(relay, f"/v1/runs/{run_id}:cancel", {"last_seen_seq": 2})
        assert json.loads(upstream.requests[-1].body) == {"last_seen_seq": 2}


async def test_cancel_of_a_run_nobody_watched(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay:
        assert (await post(relay, f"/v1/runs/{run_id}:cancel")).status == 200
        assert json.loads(upstream.requests[-1].body) == {"last_seen_seq": 0}


@pytest.mark.parametrize("seen", [-1, 1.5, "3", True, [], 2**70])
async def test_a_last_seen_seq_that_is_none(upstream: ScriptedUpstream, redis_url: str, seen: object) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay:
        refused(
            await post(relay, f"/v1/runs/{run_id}:cancel", {"last_seen_seq": seen}),
            422,
            "validation.error",
            "last_seen_seq",
        )
    assert not [one for one in upstream.requests if one.method == "POST"]


# --- input -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content", ["x" * 32_768, "é" * 16_384, "🦊" * 8192, "a" + "€" * 10_922 + "b", "\u0000" * 3 + "x"]
)
async def test_input_of_32768_bytes_passes(upstream: ScriptedUpstream, redis_url: str, content: str) -> None:
    assert len(content.encode()) <= 32_768
    run_id = upstream.add_run([STARTED, ASKED])
    async with running(upstream.url, redis_url) as relay:
        raw = await post(relay, f"/v1/runs/{run_id}/input", {"content": content})
        assert (raw.status, raw.json()) == (200, {"ok": True})
    assert json.loads(upstream.requests[-1].body) == {"content": content}
    assert upstream.truth(run_id)[-1]["data"]["content"] == content


@pytest.mark.parametrize(
    "content",
    ["x" * 32_769, "é" * 16_384 + "x", "x" + "é" * 16_384, "🦊" * 8192 + "a", "€" * 10_923, "\ud800" * 10_923],
)
async def test_input_of_one_byte_more_is_refused_before_the_upstream_is_asked(
    upstream: ScriptedUpstream, redis_url: str, content: str
) -> None:
    run_id = upstream.add_run([STARTED, ASKED])
    async with running(upstream.url, redis_url) as relay:
        for target in (f"/v1/runs/{run_id}/input", "/v1/runs/no-such-run/input"):
            refused(await post(relay, target, {"content": content}), 422, "validation.error", "content")
    assert upstream.requests == []


@pytest.mark.parametrize("content", [None, "", " \n\t", 7, [], {}, True, ["x"]])
async def test_input_that_is_none_is_refused(upstream: ScriptedUpstream, redis_url: str, content: object) -> None:
    run_id = upstream.add_run([STARTED, ASKED])
    async with running(upstream.url, redis_url) as relay:
        refused(await post(relay, f"/v1/runs/{run_id}/input", {"content": content}), 422, "validation.error", "content")
        refused(await post(relay, f"/v1/runs/{run_id}/input"), 422, "validation.error", "content")
    assert upstream.requests == []


async def test_input_for_a_run_that_is_over_is_409(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED, ("run.completed", {})])
    async with running(upstream.url, redis_url) as relay:
        refused(await post(relay, f"/v1/runs/{run_id}/input", {"content": "x"}), 409, "runs.not_active")


# --- lists -----------------------------------------------------------------------------------------------------------
async def walk(relay: RunningRelay, query: str) -> list[dict[str, Any]]:
    """Every run, page by page, by the Link header."""
    found: list[dict[str, Any]] = []
    target: str | None = f"/v1/runs?{query}"
    while target is not None:
        raw = await fetch(relay.url, target)
        assert raw.status == 200, raw.data
        page = raw.json()
        found += page
        link = re.fullmatch(r'<(/[^>]*)>; rel="next"', raw.headers.get("link", ""))
        target = link[1] if link else None
        assert target is None or page, "an endless list"
        assert len(found) < 2000
    return found


def add_many(upstream: ScriptedUpstream, name: str, ties: list[int], *, created: datetime = EPOCH) -> list[str]:
    """Runs in groups made in the same instant."""
    return [
        upstream.add_run([STARTED], run_id=f"{name}-{group}-{i:03}", created_at=created + timedelta(seconds=group))
        for group, size in enumerate(ties) for i in range(size)
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
async def test_pages_visit_every_run_once_newest_first_across_ties(
    upstream: ScriptedUpstream, redis_url: str, limit: int
) -> None:
    made = add_many(upstream, "r", [1, 5, 1, 3, 11, 2])
    async with running(upstream.url, redis_url) as relay:
        found = await walk(relay, f"limit={limit}")
    assert Counter(run["run_id"] for run in found) == Counter(made)
    times = [run["created_at"] for run in found]
    assert times == sorted(times, reverse=True)


async def test_a_tie_larger_than_the_upstreams_page_is_walked_through(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    made = add_many(upstream, "r", [3, 450, 2])
    async with running(upstream.url, redis_url) as relay:
        found = await walk(relay, "limit=100")
    assert Counter(run["run_id"] for run in found) == Counter(made)


class Nanoseconds(ScriptedUpstream):
    """Lists two runs made in one microsecond: newest first by its own clock, which is not the order of their ids."""

    RUNS = tuple(
        {
            "run_id": run_id,
            "account_id": "a",
            "thread_id": "t",
            "status": "running",
            "created_at": f"2026-01-01T00:00:00.{ns}Z",
        }
        for run_id, ns in (("a", "000000900"), ("b", "000000500"))
    )

    async def route(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/runs":
            at, limit = int(request.query.get("offset", 0)), int(request.query["limit"])
            return http.answer({"data": list(self.RUNS[at : at + limit]), "total": 2})
        return http.answer(next(run for run in self.RUNS if run["run_id"] == request.path.rpartition("/")[2]))


async def test_runs_that_differ_by_less_than_we_can_tell_are_all_visited(redis_url: str) -> None:
    """Arkloop's times have nanoseconds (§1.3, RFC3339Nano); in one microsecond its order need not be that of the ids."""
    async with Nanoseconds() as upstream, running(upstream.url, redis_url) as relay:
        found = await walk(relay, "limit=1")
    assert sorted(run["run_id"] for run in found) == ["a", "b"]


async def test_the_last_page_has_no_next(upstream: ScriptedUpstream, redis_url: str) -> None:
    add_many(upstream, "r", [3])
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, "/v1/runs?limit=10")
        assert "link" not in raw.headers
        raw = await fetch(relay.url, "/v1/runs?limit=2&status=running&upstream=main")
        assert "status=running" in raw.headers["link"]
        assert "upstream=main" in raw.headers["link"]
        assert "limit=2" in raw.headers["link"]


async def test_before_an_unknown_run_is_404(upstream: ScriptedUpstream, redis_url: str) -> None:
    add_many(upstream, "r", [3])
    async with running(upstream.url, redis_url) as relay:
        refused(await fetch(relay.url, "/v1/runs?before=no-such-run"), 404, "runs.not_found")
        assert await get(relay, "/v1/runs?before=r-0-000") == []


async def test_status_filters_across_pages(upstream: ScriptedUpstream, redis_url: str) -> None:
    done = []
    for i, run_id in enumerate(add_many(upstream, "r", [1] * 30)):
        if i % 3 == 0:
            upstream.finish(run_id)
            done.append(run_id)
    async with running(upstream.url, redis_url) as relay:
        found = await walk(relay, "status=completed&limit=4")
        assert [run["run_id"] for run in found] == done[::-1]
        refused(await fetch(relay.url, "/v1/runs?status=nonsense"), 422, "validation.error", "status")


async def test_a_threads_runs_in_order_and_from_an_offset(upstream: ScriptedUpstream, redis_url: str) -> None:
    ids = [
        upstream.add_run([STARTED], run_id=f"r{i}", thread_id="t", created_at=EPOCH + timedelta(seconds=i))
        for i in range(7)
    ]
    upstream.add_run([STARTED], thread_id="other")
    async with running(upstream.url, redis_url) as relay:

        async def listed(query: str) -> list[str]:
            return [run["run_id"] for run in await get(relay, f"/v1/threads/t/runs?{query}")]

        assert await listed("") == ids[::-1]
        assert await listed("order=asc") == ids
        assert await listed("order=desc&limit=2") == ["r6", "r5"]
        assert await listed("limit=2&offset=3") == ["r3", "r2"]
        assert await listed("order=asc&limit=2&offset=6") == ["r6"]
        assert await listed("offset=100") == []
        assert await get(relay, "/v1/threads/empty/runs") == []


# --- what the upstream says ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (faults.status(401, target="run"), 502, "upstream.unauthorized"),
        (faults.status(403, target="run"), 403, "policy.denied"),
        (faults.status(403, target="run", code="auth.forbidden"), 403, "auth.forbidden"),
        (faults.status(404, target="run"), 404, "runs.not_found"),
        (faults.status(429, target="run", retry_after=7), 429, "ratelimit.exceeded"),
        (faults.status(500, target="run"), 502, "upstream.error"),
        (faults.status(501, target="run"), 502, "upstream.error"),
        (faults.status(502, target="run"), 503, "upstream.unavailable"),
        (faults.status(503, target="run"), 503, "overload.busy"),
        (faults.status(418, target="run"), 502, "upstream.error"),
        (faults.html(target="run"), 502, "upstream.error"),
        (faults.html(target="run", status=403), 403, "auth.forbidden"),
        (faults.html(target="run", status=500), 502, "upstream.error"),
        (faults.html(target="run", status=302), 502, "upstream.error"),
        (Fault(target="run", body="[]", content_type="application/json"), 502, "upstream.error"),
        (Fault(target="run", body="", content_type="application/json"), 502, "upstream.error"),
        (Fault(target="run", body='{"run_id": null}', content_type="application/json"), 502, "upstream.error"),
        (Fault(target="run", end="rst"), 503, "upstream.unavailable"),
    ],
)  # fmt: skip
async def test_an_upstreams_refusal_becomes_ours(
    upstream: ScriptedUpstream, redis_url: str, fault: Fault, status: int, code: str
) -> None:
    run_id = upstream.add_run([STARTED])
    upstream.fault(fault, times=None)
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, f"/v1/runs/{run_id}")
        refused(raw, status, code)
        assert b"<html" not in raw.body
        assert b"upstream-secret" not in raw.data
        if status in (429, 503) and fault.end is None:
            assert "retry-after" in raw.headers
        if fault.retry_after == 7:
            assert raw.headers["retry-after"] == "7"
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/events")  # refused before the 200
        assert raw.status == status


async def test_limits_always_say_when_to_come_back(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    for retry_after in (None, "soon", "Wed, 21 Oct 2015 07:28:00 GMT", 0):
        upstream.heal()
        upstream.fault(faults.status(429, target="run", retry_after=retry_after), times=None)
        async with running(upstream.url, redis_url) as relay:
            raw = await fetch(relay.url, f"/v1/runs/{run_id}")
            assert raw.status == 429
            assert int(raw.headers["retry-after"]) >= 1, retry_after


@pytest.mark.parametrize("status", [409, 422])
async def test_refusals_of_what_was_asked_are_passed_on(
    upstream: ScriptedUpstream, redis_url: str, status: int
) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay:
        await watched(relay, run_id, 1)
        for target, call in ((f"/v1/runs/{run_id}:cancel", "cancel"), (f"/v1/runs/{run_id}/input", "input"),
                             ("/v1/threads/t/runs", "create")):  # fmt: skip
            upstream.fault(faults.status(status, target=call))  # type: ignore[arg-type]
            raw = await post(relay, target, {"content": "x"} if call == "input" else {})
            refused(raw, status, {409: "runs.not_active", 422: "validation.error"}[status])


async def test_an_upstream_that_refuses_connections_is_503(upstream: ScriptedUpstream, redis_url: str) -> None:
    await upstream.refuse()
    async with running(upstream.url, redis_url) as relay:
        for target in ("/v1/runs/r", "/v1/runs", "/v1/threads/t/runs", "/v1/runs/r/events"):
            raw = await fetch(relay.url, target)
            refused(raw, 503, "upstream.unavailable")
            assert int(raw.headers["retry-after"]) >= 1


async def test_an_upstream_that_does_not_answer_is_504_for_all_who_wait_at_once(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    """Those who wait for one answer share it, also where it is a failure: they do not queue up for timeouts of their own."""  # noqa: E501
    run_id = upstream.add_run([STARTED])
    upstream.fault(faults.slow_answer(30, target="run"), times=None)
    async with running(upstream.url, redis_url, ingest={"connect_timeout_s": 0.3}) as relay, Stopwatch() as watch:
        answers = await asyncio.gather(*(fetch(relay.url, f"/v1/runs/{run_id}") for _ in range(6)))
        took = watch.spent_s
        for raw in answers:
            refused(raw, 504, "upstream.timeout")
        assert took < 3.0, f"{took:.1f} s for a timeout of 0.9 s"


@pytest.mark.parametrize("status", [400, 403, 409, 422, 429, 500, 503])
async def test_what_an_upstream_says_never_holds_our_token(
    upstream: ScriptedUpstream, redis_url: str, status: int
) -> None:
    """An upstream, or a proxy before it, may echo the request's Authorization in its error."""
    run_id = upstream.add_run([STARTED])
    said = {
        "code": "x",
        "message": "bad: Bearer upstream-secret",
        "details": {"authorization": "Bearer upstream-secret"},
    }
    upstream.fault(
        Fault(target="any", status=status, body=json.dumps(said), content_type="application/json"), times=None
    )
    async with running(upstream.url, redis_url) as relay:
        for method, target in (("GET", f"/v1/runs/{run_id}"), ("GET", "/v1/runs"), ("POST", "/v1/threads/t/runs")):
            raw = await fetch(relay.url, target, method=method)
            assert raw.status >= 400
            assert b"upstream-secret" not in raw.data


async def test_redirects_are_not_followed(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    upstream.fault(Fault(target="run", status=307, body="", content_type="text/plain"), run_id)
    async with running(upstream.url, redis_url) as relay:
        assert (await fetch(relay.url, f"/v1/runs/{run_id}")).status == 502
    assert len(upstream.requests) == 1


# --- many who ask ----------------------------------------------------------------------------------------------------
async def test_a_hundred_requests_for_an_unknown_run_are_one_upstream_request(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    upstream.fault(faults.slow_answer(0.1, target="run"))
    async with running(upstream.url, redis_url) as relay:

        async def ask(path: str) -> tuple[int, str]:
            async with relay.session.get(relay.url + path) as response:
                return response.status, (await response.json())["code"]

        paths = ["/v1/runs/no-such-run/events", "/v1/runs/no-such-run"]
        answers = await asyncio.gather(*(ask(paths[i % 2]) for i in range(100)))
        assert set(answers) == {(404, "runs.not_found")}
        assert len(upstream.requests) == 1
        assert await ask(paths[0]) == (404, "runs.not_found")  # cached for a moment
        assert len(upstream.requests) == 1


async def test_three_hundred_viewers_who_come_at_once_cost_one_look_up_and_one_follower(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([STARTED])
    async with running(upstream.url, redis_url) as relay:

        async def view() -> list[int]:
            async with relay.session.get(relay.events(run_id)) as response:
                assert response.status == 200
                return [event["seq"] for event in events(await response.read())]

        viewers = [asyncio.create_task(view()) for _ in range(99)]  # aiohttp's client keeps to a hundred connections
        async with contextlib.AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(connection(relay.url)) for _ in range(201)]
            await asyncio.gather(*(raw.ask(f"/v1/runs/{run_id}/events") for raw in raws))
            await asyncio.gather(*(raw.until(b"id: 1\n") for raw in raws))
            assert len([one for one in upstream.requests if one.path == f"/v1/runs/{run_id}"]) <= 2
            upstream.finish(run_id)
            await asyncio.gather(*(raw.answer() for raw in raws))
        assert all([event["seq"] for event in events(raw.body)] == [1, 2] for raw in raws)
        assert all(seqs == [1, 2] for seqs in await asyncio.gather(*viewers))
    counts = upstream.counters(run_id)
    assert (counts["max_following"], counts["max_draining"]) == (1, 1)
    assert counts["follows"] == 1


async def test_a_run_is_looked_up_once_before_it_is_pumped(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([STARTED])
    upstream.fault(faults.slow_answer(0.2, target="run"))
    async with running(upstream.url, redis_url, ingest={"idle_check_s": 60.0}) as relay:
        async with contextlib.AsyncExitStack() as stack:
            raws = [await stack.enter_async_context(connection(relay.url)) for _ in range(50)]
            await asyncio.gather(*(raw.ask(f"/v1/runs/{run_id}/events") for raw in raws))
            await upstream.until(lambda: upstream.requests)
            await asyncio.gather(*(raw.until(b"id: 1\n") for raw in raws))
        first = [one.path for one in upstream.requests]
        assert first.index(f"/v1/runs/{run_id}/events") == 1, first  # one look-up, then the pump begins


# --- several upstreams -----------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def two(redis_url: str) -> AsyncIterator[tuple[RunningRelay, ScriptedUpstream, ScriptedUpstream]]:
    async with ScriptedUpstream(token="east-secret") as east, ScriptedUpstream(token="west-secret") as west:
        settings = settings_for(east.url)
        settings = replace(
            settings,
            upstreams=(
                UpstreamOptions("east", "arkloop", east.url, Secret("east-secret")),
                UpstreamOptions("west", "arkloop", west.url, Secret("west-secret")),
            ),
        )
        async with serving(settings, redis_url) as relay:
            yield relay, east, west


@pytest.mark.parametrize("limit", [1, 4, 200])
async def test_runs_of_all_upstreams_are_merged_newest_first(redis_url: str, limit: int) -> None:
    async with two(redis_url) as (relay, east, west):
        made = add_many(east, "e", [2, 1, 3]) + add_many(west, "w", [1, 2, 3])
        found = await walk(relay, f"limit={limit}")
        assert Counter(run["run_id"] for run in found) == Counter(made)
        times = [run["created_at"] for run in found]
        assert times == sorted(times, reverse=True)
        assert {run["upstream"] for run in found} == {"east", "west"}
        ours = await walk(relay, f"limit={limit}&upstream=west")
        assert [run["run_id"] for run in ours] == [run["run_id"] for run in found if run["upstream"] == "west"]


async def test_a_run_is_found_in_whichever_upstream_knows_it(redis_url: str) -> None:
    async with two(redis_url) as (relay, east, west):
        run_id = west.add_run([STARTED, ("run.completed", {})])
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/events")
        assert [event["seq"] for event in events(raw.body)] == [1, 2]
        assert (await get(relay, f"/v1/runs/{run_id}"))["upstream"] == "west"
        assert all(one.headers["Authorization"] == "Bearer east-secret" for one in east.requests)
        assert all(one.headers["Authorization"] == "Bearer west-secret" for one in west.requests)
        refused(await fetch(relay.url, f"/v1/runs/{run_id}?upstream=east"), 404, "runs.not_found")


async def test_one_id_in_two_upstreams_is_two_runs(redis_url: str) -> None:
    async with two(redis_url) as (relay, east, west):
        east.add_run([STARTED, ("run.failed", {})], run_id="same")
        west.add_run([STARTED, ("x", {}), ("run.completed", {})], run_id="same")
        for headers, query, count in (
            ({}, "?upstream=east", 2), ({}, "?upstream=west", 3), ({"X-Relay-Upstream": "east"}, "", 2),
            ({"X-Relay-Upstream": "west"}, "", 3), ({"X-Relay-Upstream": "east"}, "?upstream=west", 3),
        ):  # fmt: skip
            raw = await fetch(relay.url, f"/v1/runs/same/events{query}", headers)
            assert len(events(raw.body)) == count, (headers, query)


@pytest.mark.parametrize("name", ["north", "../east", "EAST", "e" * 33, "a b", "%2e%2e", "%00"])
async def test_an_upstream_that_is_none_is_422_and_nobody_is_asked(redis_url: str, name: str) -> None:
    async with two(redis_url) as (relay, east, west):
        for target in ("/v1/runs", "/v1/runs/r", "/v1/runs/r/events", "/v1/threads/t/runs"):
            refused(
                await fetch(relay.url, f"{target}?upstream={name.replace(' ', '%20')}"),
                422,
                "validation.error",
                "upstream",
            )
            if name.isprintable():
                raw = await fetch(relay.url, target, {"X-Relay-Upstream": name})
                refused(raw, 422, "validation.error", "upstream")
        assert east.requests == west.requests == []


async def test_what_makes_something_needs_a_name_where_there_are_several(redis_url: str) -> None:
    async with two(redis_url) as (relay, east, west):
        refused(await post(relay, "/v1/threads/t/runs", {}), 422, "validation.error", "upstream")
        refused(await fetch(relay.url, "/v1/threads/t/runs"), 422, "validation.error", "upstream")
        assert east.requests == west.requests == []
        run_id = (await post(relay, "/v1/threads/t/runs", {}, {"X-Relay-Upstream": "west"})).json()["run_id"]
        assert west.created[0][0] == run_id
        assert east.created == []
        assert [run["run_id"] for run in await get(relay, "/v1/threads/t/runs?upstream=west")] == [run_id]


async def test_one_upstream_that_is_down_does_not_hide_a_run_of_another(redis_url: str) -> None:
    async with two(redis_url) as (relay, east, west):
        run_id = west.add_run([STARTED, ("run.completed", {})])
        await east.refuse()
        raw = await fetch(relay.url, f"/v1/runs/{run_id}/events")
        assert len(events(raw.body)) == 2
        refused(await fetch(relay.url, "/v1/runs/in-neither"), 503, "upstream.unavailable")  # east might know it
        await east.accept()
        refused(await fetch(relay.url, "/v1/runs/in-neither"), 404, "runs.not_found")
