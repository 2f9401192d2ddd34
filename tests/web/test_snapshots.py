"""Snapshots, coalescing and cached pages over HTTP: whatever the representation, a late joiner ends with the same fold."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from relay.core.events import Event, decode, encode
from relay.core.filters import types_of
from relay.core.fold import Fold
from tests.support.relay import RunningRelay, running, settings_for
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import API_KEYS, KEY, auth, bearer, connection, events, fetch, frames, notices, serving

SCRIPT: list[tuple[str, dict[str, Any]]] = [
    ("run.started", {"model": "m"}),
    *[("message.delta", {"role": "assistant", "channel": "thinking", "content_delta": f"t{i} "}) for i in range(20)],
    ("tool.call", {"tool_call_id": "c", "tool_name": "look", "arguments": {"q": 1}}),
    ("tool.result", {"tool_call_id": "c", "tool_name": "look", "result": "found"}),
    *[("message.delta", {"role": "assistant", "content_delta": f"w{i} "}) for i in range(40)],
]
END = ("run.completed", {"usage": {"total_tokens": 60}})


def target(run_id: str, query: str = "") -> str:
    return f"/v1/runs/{run_id}/events?{query}"


def event_of(body: dict[str, Any]) -> Event:
    return Event(body["seq"], body["type"], encode(body))


def folded(all_events: list[dict[str, Any]], snapshot: dict[str, Any] | None = None, types: str | None = None) -> Any:
    """What a client that knows nothing but the law ends with."""
    fold = Fold() if snapshot is None else Fold.restored(encode(snapshot))
    assert fold is not None
    return decode(encode(fold.extend(event_of(body) for body in all_events).data(types_of(types))))


async def whole(relay: RunningRelay, run_id: str) -> Any:
    raw = await fetch(relay.url, target(run_id))
    return folded(events(raw.body))


# --- snapshot + tail -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("query", ["", "&named=1", "&coalesce_ms=20", "&coalesce=pressure"])
async def test_the_first_frame_is_the_run_so_far_and_the_tail_follows(
    upstream: ScriptedUpstream, redis_url: str, query: str
) -> None:
    run_id = upstream.add_run(SCRIPT)
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as early, connection(relay.url) as late:
        await early.ask(target(run_id))
        await early.until(b"id: %d\n" % len(SCRIPT))
        await late.ask(target(run_id, "snapshot=1" + query))
        await late.until(b"relay.snapshot")
        for i in range(30):
            upstream.append(run_id, "message.delta", {"role": "assistant", "content_delta": f"x{i} "})
            await asyncio.sleep(0.002)
        upstream.append(run_id, *END)
        await late.answer()
        await early.answer()
        first = frames(late.body)[0]
        assert (first["event"], first["id"]) == ("relay.snapshot", str(len(SCRIPT)))
        snapshot = json.loads(first["data"])
        assert snapshot["as_of_seq"] == len(SCRIPT)
        tail = events(late.body)
        assert tail[0].get("seq_from", tail[0]["seq"]) == len(SCRIPT) + 1
        assert len(notices(late.body, "relay.snapshot")) == 1
        assert folded(tail, snapshot) == folded(events(early.body))
        if "coalesce_ms" in query:
            assert len(tail) < 30


async def test_a_resumed_request_gets_the_tail_only(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([*SCRIPT, END])
    async with running(upstream.url, redis_url) as relay:
        for query, headers in (("snapshot=1&after_seq=60", {}), ("snapshot=1", {"Last-Event-ID": "60"})):
            raw = await fetch(relay.url, target(run_id, query), headers)
            assert [event["seq"] for event in events(raw.body)] == [61, 62, 63, 64]
            assert not notices(raw.body, "relay.snapshot")


async def test_every_representation_has_the_same_snapshot(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([*SCRIPT, END])
    async with running(upstream.url, redis_url) as relay:
        all_of_it = await whole(relay, run_id)
        sse = await fetch(relay.url, target(run_id, "snapshot=1"))
        [(at, snapshot)] = notices(sse.body, "relay.snapshot")
        assert (at, snapshot) == ("64", all_of_it)
        assert len(notices(sse.body, "relay.end")) == 1
        lines = await fetch(relay.url, target(run_id, "snapshot=1"), {"Accept": "application/x-ndjson"})
        first, last = [json.loads(line) for line in lines.body.splitlines() if line]
        assert (first.pop("type"), first, last["type"]) == ("relay.snapshot", all_of_it, "relay.end")
        page = await fetch(relay.url, target(run_id, "snapshot=1"), {"Accept": "application/json"})
        assert page.json() == {"events": [], "next_after_seq": 64, "ended": True, "snapshot": all_of_it}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(relay.url + target(run_id, "snapshot=1")) as ws,
        ):
            message = json.loads((await ws.receive()).data)
            assert (message.pop("type"), message) == ("relay.snapshot", all_of_it)


async def test_a_run_without_events_has_an_empty_snapshot(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run()
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        await raw.ask(target(run_id, "snapshot=1"))
        await raw.until(b"relay.snapshot")
        [(at, snapshot)] = notices(raw.body, "relay.snapshot")
        assert (at, snapshot["as_of_seq"], snapshot["messages"]) == ("0", 0, [])


async def test_a_filter_chooses_from_the_snapshot_and_the_tail_alike(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([*SCRIPT, END])
    async with running(upstream.url, redis_url) as relay:
        all_of_it = await whole(relay, run_id)
        raw = await fetch(relay.url, target(run_id, "snapshot=1&types=tool.*,run.*"))
        [(_, snapshot)] = notices(raw.body, "relay.snapshot")
        assert snapshot == {**all_of_it, "messages": []}
        raw = await fetch(relay.url, target(run_id, "snapshot=1&types=message.*"))
        [(_, snapshot)] = notices(raw.body, "relay.snapshot")
        assert snapshot == {**all_of_it, "tool_calls": []}


# --- coalescing ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "application/json"])
async def test_merged_deltas_fold_alike_in_every_representation(
    upstream: ScriptedUpstream, redis_url: str, accept: str
) -> None:
    run_id = upstream.add_run([*SCRIPT, END])
    async with running(upstream.url, redis_url) as relay:
        all_of_it = await whole(relay, run_id)
        raw = await fetch(relay.url, target(run_id, "coalesce_ms=100"), {"Accept": accept})
        if accept == "text/event-stream":
            merged = events(raw.body)
            ids = [frame["id"] for frame in frames(raw.body)]
            assert ids == [str(one["seq"]) for one in merged] + ["64"], "the end's frame comes last"
        elif accept == "application/json":
            merged = raw.json()["events"]
            assert raw.json()["next_after_seq"] == 64
        else:
            merged = [json.loads(line) for line in raw.body.splitlines() if line][:-1]
        assert unparted(merged) == [(1, 1), (2, 21), (22, 22), (23, 23), (24, 63), (64, 64)]
        assert folded(merged) == all_of_it


def unparted(merged: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """First and last seq of each frame; what only the end of a page parts (at most one lies here) is taken together."""
    parts: list[tuple[int, int]] = []
    for one in merged:
        first, last = one.get("seq_from", one["seq"]), one["seq"]
        if parts and len(merged) > 6 and "seq_from" in one and parts[-1][0] in (2, 24):
            parts[-1] = (parts[-1][0], last)
        else:
            parts.append((first, last))
    assert len(merged) <= 7
    return parts


async def test_a_merged_frame_resumes_behind_its_last_event(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run([*SCRIPT, END])
    async with running(upstream.url, redis_url) as relay:
        await whole(relay, run_id)
        raw = await fetch(relay.url, target(run_id, "coalesce_ms=10&types=message.*"), {"Last-Event-ID": "30"})
        merged = events(raw.body)
        assert merged[0]["seq_from"] == 31
        assert merged[-1]["seq"] == 63
        assert len(merged) <= 2, "a page of the log ends between them at most once"


async def test_a_live_reader_gets_fewer_larger_frames_and_its_neighbour_every_event(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as slow, connection(relay.url) as fast:
        await slow.ask(target(run_id, "coalesce_ms=200"))
        await fast.ask(target(run_id))
        await slow.until(b"id: 1\n")
        await fast.until(b"id: 1\n")
        for i in range(100):
            upstream.append(run_id, "message.delta", {"role": "assistant", "content_delta": f"{i} "})
            await asyncio.sleep(0.003)
        upstream.append(run_id, *END)
        await fast.answer()
        await slow.answer()
        assert [event["seq"] for event in events(fast.body)] == list(range(1, 103))
        merged = events(slow.body)
        assert len(merged) < 50
        assert folded(merged) == folded(events(fast.body))
        assert slow.finished, "its end came too"


@pytest.mark.parametrize(
    ("query", "field"),
    [("coalesce_ms=-1", "coalesce_ms"), ("coalesce_ms=1.5", "coalesce_ms"), ("coalesce_ms=10001", "coalesce_ms"),
     ("coalesce=always", "coalesce"), ("snapshot=perhaps", "snapshot")],
)  # fmt: skip
async def test_a_wrong_wish_is_refused_by_name(
    upstream: ScriptedUpstream, redis_url: str, query: str, field: str
) -> None:
    run_id = upstream.add_run([END])
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id, query))
        assert (raw.status, raw.json()["details"]["field"]) == (422, field)


# --- pages for caches ------------------------------------------------------------------------------------------------
PAGE = {"Accept": "application/json"}


async def test_pages_of_a_finished_run_may_be_kept_and_are_asked_for_by_their_tag(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([*SCRIPT, END])
    async with running(upstream.url, redis_url) as relay:
        await whole(relay, run_id)
        full = await fetch(relay.url, target(run_id, "limit=10"), PAGE)
        assert full.headers["cache-control"] == "public, max-age=31536000, immutable"
        last = await fetch(relay.url, target(run_id, "after_seq=60"), PAGE)
        assert last.json()["ended"]
        assert last.headers["cache-control"] == "public, max-age=60"
        for page, query in ((full, "limit=10"), (last, "after_seq=60")):
            assert "Accept" in page.headers["vary"]
            tag = page.headers["etag"]
            for asked in (tag, f'"else", {tag}', f"W/{tag}", "*"):
                again = await fetch(relay.url, target(run_id, query), {**PAGE, "If-None-Match": asked})
                assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
            other = await fetch(relay.url, target(run_id, query), {**PAGE, "If-None-Match": '"else"'})
            assert (other.status, other.body) == (200, page.body)


async def test_pages_of_a_run_that_goes_on_are_never_kept(upstream: ScriptedUpstream, redis_url: str) -> None:
    run_id = upstream.add_run(SCRIPT)
    async with running(upstream.url, redis_url) as relay:
        for query in ("limit=10", "after_seq=60", "snapshot=1"):
            page = await fetch(relay.url, target(run_id, query), {**PAGE, "If-None-Match": "*"})
            assert (page.status, page.headers["cache-control"]) == (200, "no-store")
            assert "etag" not in page.headers


async def test_where_credentials_are_asked_for_only_their_owner_may_keep_a_page(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    run_id = upstream.add_run([*SCRIPT, END])
    settings = replace(settings_for(upstream.url), auth=auth(**API_KEYS))
    async with serving(settings, redis_url) as relay:
        raw = await fetch(relay.url, target(run_id), bearer(KEY))
        assert notices(raw.body, "relay.end")
        page = await fetch(relay.url, target(run_id, "limit=10"), {**PAGE, **bearer(KEY)})
        assert page.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert "Authorization" in page.headers["vary"]
        stranger = await fetch(relay.url, target(run_id, "limit=10"), {**PAGE, "If-None-Match": page.headers["etag"]})
        assert stranger.status == 401
