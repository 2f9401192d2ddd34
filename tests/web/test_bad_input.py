"""Hostile requests: refused by name, in the envelope, before anything reaches a URL, a key or the upstream (§4)."""

from __future__ import annotations

import asyncio
import json
import urllib.parse
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.web.admit import Access
from tests.support.relay import running
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import Raw, connection, fetch
from tests.web.test_admit import table

HOSTILE = [
    "..", ".", "a/b", "../../admin", "%2F", "a%2Fb", "..%2f..%2fadmin", "%2f..", "%2e%2e", "%2e%2e%2f", "%252F", "a%252Fb",
    ":", "a:b", "a%3Ab", "%00", "a%00b", "%0a", "a%0ab", "a%0d%0aX-Evil:%201", "%09", "%20", "a%20b", "%7f", "a.b", "a,b",
    "a*", "a%5Cb", "%5C..%5C", "a;b", "a@b", "a%40b", "a%3Fb", "a%23b", "%C3%A9", "%EF%BC%A1", "%E2%80%A8", "%ff", "%ed%a0%80",  # noqa: E501
    "a" * 129, "a" * 3000, "{run_id}", "%7Brun_id%7D", "a%", "%zz", "%2", "+", "a+b", "~", "$(x)", "'", "%22", "<x>",
]  # fmt: skip


def envelope(raw: Raw, status: int, code: str | None = None, field: str | None = None) -> None:
    assert raw.status == status, raw.data
    body = raw.json()
    assert {"code", "message", "trace_id"} <= body.keys() <= {"code", "message", "trace_id", "details"}
    assert body["trace_id"] == raw.headers["x-trace-id"]
    assert raw.headers["content-type"].startswith("application/json")
    assert code is None or body["code"] == code
    assert field is None or body["details"]["field"] == field, body


def templates() -> Iterator[tuple[str, str, str]]:
    """(method, target with one {}, field) of every route with an id in it, for each of its ids."""
    for listener, method, target, _ in table():
        assert listener == "public" or "RUN" not in target
        if "RUN" in target:
            yield method, target.replace("RUN", "{}"), "run_id"
        if "/threads/thread" in target:
            yield method, target.replace("/threads/thread", "/threads/{}").replace("RUN", "run-1"), "thread_id"


@pytest.mark.parametrize(("method", "template", "field"), list(templates()))
async def test_no_hostile_id_gets_through(
    upstream: ScriptedUpstream, redis_url: str, method: str, template: str, field: str
) -> None:
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        for hostile in HOSTILE:
            raw.data = b""
            await raw.ask(template.format(hostile), method=method)
            await raw.answer()
            if raw.status in (404, 405):  # `/` and `:` may make it another path; it must be no path of ours then
                assert set(hostile) & set("/:"), (hostile, raw.data)
                envelope(raw, raw.status)
            else:
                assert raw.status == 422, (hostile, raw.data)
                envelope(raw, 422, "validation.error", field)
            assert "evil" not in raw.head.decode("latin-1").lower()
            words = urllib.parse.unquote(hostile)
            assert len(words) < 4 or words not in raw.body.decode(), "hostile text is echoed"
    assert upstream.requests == []


@pytest.mark.parametrize("prefix", ["", "/native"])
@pytest.mark.parametrize("hostile", ["..", "%2e%2e", "%0a"])
async def test_a_hostile_id_is_named_at_every_mount(
    upstream: ScriptedUpstream, redis_url: str, prefix: str, hostile: str
) -> None:
    """Also where it makes the path one that no route takes."""
    async with running(upstream.url, redis_url) as relay:
        for path, field in ((f"/v1/runs/{hostile}/x", "run_id"), (f"/v1/threads/{hostile}/x", "thread_id")):
            envelope(await fetch(relay.url, prefix + path), 422, "validation.error", field)
    assert upstream.requests == []


async def test_an_id_of_128_passes(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        envelope(await fetch(relay.url, f"/v1/runs/{'a' * 128}"), 404, "runs.not_found")
    assert [one.path for one in upstream.requests] == [f"/v1/runs/{'a' * 128}"]


async def test_an_absolute_target_is_no_way_around(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        for target in ("http://evil.example/v1/runs/..%2fx", "//v1/runs/r", "/v1//runs/r", "/v1/runs//events", "/v1/runs/",
                       "/./v1/runs/r%2F", "/v1/threads//runs", "/v1/runs/:cancel", "*"):  # fmt: skip
            raw.data = b""
            await raw.ask(target)
            await raw.answer()
            if raw.status == 400 and "x-trace-id" not in raw.headers:
                break  # no request at all: aiohttp's parser refused it and closes the connection
            assert raw.status in (400, 403, 404, 405, 422), (target, raw.data)
            envelope(raw, raw.status)
    assert upstream.requests == []


# --- queries and headers ---------------------------------------------------------------------------------------------
BAD: list[tuple[str, list[str]]] = [
    ("after_seq", ["-1", "%2B1", "+1", "1.0", "1e3", "abc", "0x10", "1%00", "9223372036854775808", "9" * 40, "%D9%A3",
                   "12abc", "1%0a", "null", "%ff"]),
    ("limit", ["0", "-1", "1001", "x", "1.5", "1e2", "%00", "9" * 30]),
    ("types", ["a%20b", "[a]", "a%0ab", ",", "run.*,", "%C3%A9", "*a*b*c*d*e*", "a" * 129, ",".join(["a"] * 33), "%ff", "(a|a)*"]),  # noqa: E501
    ("follow", ["yes", "2", "no", "tru", "%00", "-1"]),
    ("named", ["yes", "2", "on", "%0a"]),
    ("wait", ["-1", "61", "nan", "inf", "1e1", "x", "60.5", "%E2%88%9E"]),
]  # fmt: skip


@pytest.mark.parametrize(("field", "texts"), BAD)
async def test_a_malformed_query_of_events_is_422_and_names_its_field(
    upstream: ScriptedUpstream, redis_url: str, field: str, texts: list[str]
) -> None:
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        for text in texts:
            for accept in ("text/event-stream", "application/json", "application/x-ndjson"):
                raw.data = b""
                await raw.ask(f"/v1/runs/r/events?{field}={text}", {"Accept": accept})
                await raw.answer()
                assert raw.status == 422, (text, raw.data)
                envelope(raw, 422, "validation.error", field)
                assert raw.json()["details"]["allowed"]
    assert upstream.requests == []


@pytest.mark.parametrize("text", ["-1", "1.0", "abc", "9223372036854775808", "1,2", "0x1", "\u0663", "\udcff"])
async def test_a_malformed_last_event_id_is_422(upstream: ScriptedUpstream, redis_url: str, text: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        raw = await fetch(relay.url, "/v1/runs/r/events?after_seq=1", {"Last-Event-ID": text})
        envelope(raw, 422, "validation.error", "Last-Event-ID")
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("/v1/runs?limit=0", "limit"), ("/v1/runs?limit=201", "limit"), ("/v1/runs?limit=x", "limit"),
        ("/v1/runs?before=..%2Fx", "before"), ("/v1/runs?before=a%00", "before"), ("/v1/runs?status=nope", "status"),
        ("/v1/runs?upstream=a%2Fb", "upstream"), ("/v1/threads/t/runs?order=up", "order"),
        ("/v1/threads/t/runs?limit=0", "limit"), ("/v1/threads/t/runs?offset=-1", "offset"),
        ("/v1/threads/t/runs?status=%00", "status"),
    ],
)  # fmt: skip
async def test_a_malformed_query_of_a_list_names_its_field(
    upstream: ScriptedUpstream, redis_url: str, target: str, field: str
) -> None:
    async with running(upstream.url, redis_url) as relay:
        envelope(await fetch(relay.url, target), 422, "validation.error", field)
    assert upstream.requests == []


@pytest.mark.parametrize("upgrade", [{"Upgrade": "websocket"}, {"Upgrade": "websocket", "Connection": "upgrade"},
                                     {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "8"},
                                     {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                                      "Sec-WebSocket-Key": "short"}])  # fmt: skip
async def test_a_broken_handshake_is_an_envelope(
    upstream: ScriptedUpstream, redis_url: str, upgrade: dict[str, str]
) -> None:
    run_id = upstream.add_run([("run.started", {})])
    async with running(upstream.url, redis_url) as relay, connection(relay.url) as raw:
        assert (await fetch(relay.url, f"/v1/runs/{run_id}/events?follow=false")).status == 200
        await raw.ask(f"/v1/runs/{run_id}/events", upgrade)
        async with asyncio.timeout(60):
            while not raw._whole() and await raw._more():
                pass
        assert raw.status in (400, 422, 426), raw.data
        envelope(raw, raw.status)


# --- fuzz ------------------------------------------------------------------------------------------------------------
PIECE = st.sampled_from(
    ["v1", "native", "runs", "threads", "events", "input", "tokens", "ui", "r", "r:cancel", "..", "%2e%2e", "%00", "a%2Fb", "",  # noqa: E501
     "healthz", "admin", "config", "metrics", "app.js", ":cancel", "%", "é"]
) | st.text("ab%2Ff:._-é\\", max_size=8)  # fmt: skip
NAME = st.sampled_from(
    ["after_seq", "limit", "types", "follow", "wait", "named", "upstream", "before", "status", "order", "offset", "access_token",  # noqa: E501
     "snapshot", "coalesce_ms", "x"]
)  # fmt: skip
VALUE = st.sampled_from(
    ["1", "0", "-1", "true", "*", "run.*", "main", "..", "%00", "%ff", "%0d%0a", "9" * 30, "é", "a=b", ";"]
) | st.text(st.characters(codec="utf-8", exclude_characters=" \r\n#&"), max_size=8)
HEADER = st.tuples(
    st.sampled_from(["Accept", "Last-Event-ID", "Authorization", "Origin", "X-Relay-Upstream", "Idempotency-Key", "Content-Type",  # noqa: E501
                     "X-Trace-Id", "Upgrade", "Range", "If-None-Match", "X-HTTP-Method-Override", "Forwarded", "X-Forwarded-Host"]),  # noqa: E501
    st.sampled_from(["", "*/*", "application/json", "text/event-stream;q=x", "1", "-1", "Bearer \udcff", "\udcff\udcfe", "null",  # noqa: E501
                     "http://127.0.0.1", "main", "h2c", "bytes=0-1", "DELETE", "a" * 200, ",,,", ";;q=1", "é"]),
)  # fmt: skip
ASKED = st.tuples(
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "BREW"]),
    st.lists(PIECE, max_size=6), st.lists(st.tuples(NAME, VALUE), max_size=3), st.lists(HEADER, max_size=3),
    st.sampled_from([None, b"{}", b"[]", b'{"content":1}', b"\xff", b'{"content":"\\ud800"}', b'{"last_seen_seq":1e400}',
                     b'{"ttl_s":1e400}', b'{"content":' + b"[" * 900 + b"]" * 900 + b"}", b'{"last_seen_seq":' + b"9" * 5000 + b"}"]),  # noqa: E501
)  # fmt: skip
KNOWN = {access.value for access in Access}


@given(asked=st.lists(ASKED, min_size=24, max_size=24))  # each has a relay of its own
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_is_asked_the_answer_is_never_a_500(redis_url: str, asked: list) -> None:  # type: ignore[type-arg]
    asyncio.run(_ask_all(redis_url, asked))


async def _ask_all(redis_url: str, asked: list) -> None:  # type: ignore[type-arg]
    async with ScriptedUpstream(token="upstream-secret") as upstream:
        upstream.add_run([("run.started", {}), ("run.completed", {})], run_id="r", thread_id="r")
        async with running(upstream.url, redis_url, ingest={"linger_s": 0.01}) as relay:
            for method, pieces, query, headers, body in asked:
                target = "/" + "/".join(pieces)
                if query:
                    target += "?" + "&".join(f"{name}={value}" for name, value in query)
                fields = {"Connection": "close", "Content-Type": "application/json", **dict(headers)}
                await _ask_one(relay.url, method, target, fields, body)
        for one in upstream.requests:
            assert one.path == urllib.parse.quote(one.path, safe="/:"), one.path
            assert ".." not in one.path


async def _ask_one(url: str, method: str, target: str, headers: dict[str, str], body: bytes | None) -> None:
    async with connection(url) as raw:
        await raw.ask(target, headers, method=method, body=body)
        await raw.rest()
        what = (method, target, headers, raw.data[:500])
        assert raw.data, what
        assert raw.status != 500, what
        if raw.status >= 400 and "x-trace-id" in raw.headers:
            if method != "HEAD":
                envelope(raw, raw.status)
        elif raw.status >= 400:  # refused before it was a request: by aiohttp's parser
            assert raw.status == 400, what
            assert "Traceback" not in raw.data.decode("latin-1")
        else:
            assert raw.headers["x-trace-id"], what
        json.dumps(raw.headers)
