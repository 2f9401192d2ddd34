"""The dashboard as its user has it: what is on screen is what the upstream holds, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from relay.demo.runs import WRITER
from relay.web.admit import hash_of
from relay.web.options import KeyOptions
from tests.browser.rig import (
    MARKS,
    Front,
    Source,
    Told,
    Traffic,
    at_origin,
    check_end,
    check_events,
    events_path,
    resumed_from,
)
from tests.support.needs import recording
from tests.support.relay import RelayProcess, running
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, Page

pytestmark = MARKS

HOSTILE = "<img src=x onerror='window.pwned=1'><script>window.pwned=2</script><b>bold</b>&amp;\"'"
_STATE = "() => { const { seqs, ...rest } = window.relayState; return { ...rest, seqs: [...seqs] }; }"


async def state(page: Page) -> dict[str, Any]:
    """`window.relayState` of the dashboard."""
    return dict(await page.evaluate(_STATE))


async def until(page: Page, fact: Callable[[dict[str, Any]], Any], timeout_s: float = 60.0) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while not fact(now := await state(page)):
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: { {**now, 'seqs': now['seqs'][-3:]} }"
        await asyncio.sleep(0.05)
    return now


async def texts(page: Page, *testids: str) -> list[str]:
    """The textContent of all elements matched."""
    return await page.locator(" ".join(f"[data-testid={name}]" for name in testids)).all_text_contents()


def spoken(truth: list[dict[str, Any]], channel: str | None = None) -> str:
    """What an upstream run says, joined: its answer, or its thinking."""
    deltas = [event["data"] for event in truth if event["type"] == "message.delta"]
    return "".join(
        str(data.get("content_delta", data.get("content", ""))) for data in deltas if data.get("channel") == channel
    )


async def check_screen(page: Page, truth: list[dict[str, Any]]) -> dict[str, Any]:
    """The page says that it has everything once, and shows it."""
    now = await state(page)
    assert now["seqs"] == [event["seq"] for event in truth]
    assert (now["events"], now["lastSeq"]) == (len(truth), truth[-1]["seq"])
    assert (now["repeats"], now["gaps"], now["connection"], now["ended"]) == (0, 0, "ended", True)
    assert "".join(await texts(page, "message", "text")) == spoken(truth)
    assert "".join(await texts(page, "thinking", "text")) == spoken(truth, "thinking")
    tools = [event for event in truth if event["type"] == "tool.call"]
    assert await page.get_by_test_id("tool").count() == len(tools)
    assert await texts(page, "order") == ["no gaps"]
    assert await page.get_by_test_id("repeat-badge").is_hidden()
    return now


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_it_lists_runs_and_shows_the_chosen_one_to_its_end(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    traffic = Traffic.of(page)
    failed = upstream.add_run([("run.started", {}), ("run.failed", {"error_class": "x", "message": "broken"})])
    async with running(upstream.url, redis_url) as relay:
        told = Told(upstream, recording("web-search"))
        await told.on(60)
        run_id = told.run_id
        await page.goto(f"{relay.url}/ui")
        rows = page.get_by_test_id("run-row")
        await rows.nth(1).wait_for()
        assert [row.split("#run=")[1] for row in [await rows.nth(i).get_attribute("href") or "" for i in (0, 1)]] == [
            run_id,
            failed,
        ]
        assert await page.get_by_test_id("runs-count").text_content() == "2 runs"
        await rows.nth(0).click()
        await until(page, lambda now: now["connection"] == "live" and now["events"] == 60)
        assert (await state(page))["status"] == "running"
        await told.on(rate=200)
        await until(page, lambda now: now["ended"])
        await check_screen(page, upstream.truth(run_id))
        assert await texts(page, "status") == ["completed"]
        assert len(traffic.streams(run_id)) == 1, "the dashboard closes its source at relay.end"
        await rows.nth(1).click()
        await until(page, lambda now: now["runId"] == failed and now["ended"])
        assert await texts(page, "status") == ["failed"]
        assert "broken" in (await texts(page, "failure"))[0]
        assert await page.get_by_test_id("message").count() == 0, "something of the run before is still there"
    assert (traffic.errors, traffic.network) == ([], [])


async def test_thinking_tools_and_a_late_title_are_shown(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    traffic = Traffic.of(page)
    async with running(upstream.url, redis_url, ingest={"linger_s": 1.0}) as relay:
        run_id = upstream.play(WRITER, speed=20)
        await page.goto(f"{relay.url}/ui#run={run_id}")
        await until(page, lambda now: now["ended"])
        await check_screen(page, upstream.truth(run_id))
        assert await texts(page, "title") == ["A ridge walk before the rain ⛰️"]
        assert set(await texts(page, "tool-state")) == {"done"}
        assert await page.get_by_test_id("nested").count() == 1
    assert (traffic.errors, traffic.network) == ([], [])


# ── a relay that goes away ──────────────────────────────────────────────────────────────────────────────────────────
async def test_a_relay_killed_and_started_again_costs_neither_the_dashboard_nor_a_plain_page_an_event(
    upstream: ScriptedUpstream, tmp_path: Path, context: BrowserContext
) -> None:
    async with RelayProcess(upstream.url, tmp_path, delivery={}) as relay:
        told = Told(upstream, recording("web-search"))
        await told.on(30)
        run_id = told.run_id
        plain, dashboard = await context.new_page(), await context.new_page()
        at_plain, at_dashboard = Traffic.of(plain), Traffic.of(dashboard)
        source = await Source.open(await at_origin(plain, relay.url), events_path(run_id))
        await dashboard.goto(f"{relay.url}/ui#run={run_id}")
        await until(dashboard, lambda now: now["events"] == 30)
        await told.on(70, rate=40)  # before, while and after it is away
        await source.until(lambda now: now["count"] > 35)
        await relay.kill()
        at_kill = (await source.until(lambda now: now["errors"]))["last"]
        await until(dashboard, lambda now: now["connection"] == "reconnecting")
        await relay.start()
        await source.until(lambda now: now["opened"] == 2)
        await told.on()
        await asyncio.gather(source.closed(), until(dashboard, lambda now: now["ended"]))

        truth = upstream.truth(run_id)
        assert (await check_screen(dashboard, truth))["reconnects"] == 1
        assert at_dashboard.errors == []
        check_events(await source.events(), truth)
        await check_end(source, truth[-1]["seq"])
        streams = at_plain.streams(run_id)
        # Of those that nobody answered while it was away, the browser does not say what was sent.
        resumed = [await resumed_from(request) for request in streams if request in at_plain.statuses]
        assert resumed[:-1] == [None, str(at_kill)]
        assert {request.url for request in streams} == {relay.url + events_path(run_id)}, "the browser keeps its URL"
        assert at_plain.answers(run_id)[-2:] == [200, 204]
        # The list, too, is there again without a reload.
        await dashboard.get_by_test_id("runs-note").wait_for(state="hidden")
        assert await dashboard.get_by_test_id("run-row").count() == 1


# ── acting ──────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_run_that_waits_is_answered_through_the_page(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    traffic = Traffic.of(page)
    answer = "One of us <i>is</i> vegetarian — 1 & 2\nand hungry."
    run_id = upstream.add_run([("run.started", {}), ("message.delta", {"content_delta": "Before I go on:"})])
    async with running(upstream.url, redis_url) as relay:
        await page.goto(f"{relay.url}/ui#run={run_id}")
        await until(page, lambda now: now["events"] == 2)
        assert await page.get_by_test_id("composer").is_hidden()
        upstream.append(run_id, "run.input_requested", {"request_id": "r", "message": "Any fish?"})
        await page.get_by_test_id("composer").wait_for()
        assert (await state(page))["status"] == "waiting_for_input"
        assert "Any fish?" in (await texts(page, "waiting"))[0]
        await page.get_by_test_id("answer").fill(answer)
        await page.get_by_test_id("send").click()
        await page.get_by_test_id("composer").wait_for(state="hidden")
        await upstream.until(lambda: any(event["type"] == "run.input_provided" for event in upstream.truth(run_id)))
        asked = [asked for asked in upstream.requests if asked.method == "POST"]
        assert [(one.path, json.loads(one.body)) for one in asked] == [
            (f"/v1/runs/{run_id}/input", {"content": answer})
        ]
        await until(page, lambda now: now["status"] == "running")
        assert await texts(page, "input") == [answer]
        upstream.finish(run_id)
        await until(page, lambda now: now["ended"])
    assert (traffic.errors, traffic.network) == ([], [])


async def test_a_run_is_cancelled_through_the_page(upstream: ScriptedUpstream, redis_url: str, page: Page) -> None:
    run_id = upstream.play([("run.started", {}), ("message.delta", {"content_delta": "a"})] * 50, rate=0.5)
    async with running(upstream.url, redis_url) as relay:
        await page.goto(f"{relay.url}/ui#run={run_id}")
        await until(page, lambda now: now["connection"] == "live")
        await page.get_by_test_id("cancel").click()
        await until(page, lambda now: now["ended"])
        assert await texts(page, "status") == ["cancelled"]
        assert [asked.path for asked in upstream.requests if asked.method == "POST"] == [f"/v1/runs/{run_id}:cancel"]


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_key_is_asked_for_and_never_put_into_an_address(
    upstream: ScriptedUpstream, redis_url: str, context: BrowserContext, page: Page
) -> None:
    traffic = Traffic.of(context)
    key = "a-key-that-must-not-be-seen-0123456789"
    auth = {"mode": "api_keys", "keys": (KeyOptions("tester", hash_of(key)),)}
    async with running(upstream.url, redis_url, auth=auth) as relay, Front(relay.url) as front:
        told = Told(upstream, recording("web-search"))
        await told.on(60)
        run_id = told.run_id
        await page.goto(f"{front.url}/ui#run={run_id}")
        await page.get_by_test_id("key-dialog").wait_for()
        assert traffic.streams(run_id) == [], "a stream was opened before there was a key"
        await page.get_by_test_id("key").fill("a wrong one")
        await page.get_by_test_id("key-send").click()
        await page.get_by_text("this API key is not known here").wait_for()
        await page.get_by_test_id("key").fill(key)
        await page.get_by_test_id("key-send").click()
        await page.get_by_test_id("key-dialog").wait_for(state="hidden")
        await until(page, lambda now: now["events"] == 60)
        front.cut()
        await told.on()
        await until(page, lambda now: now["ended"])
        assert (await check_screen(page, upstream.truth(run_id)))["reconnects"] == 1
        assert await page.evaluate(
            "() => [location.href, document.cookie, localStorage.length, sessionStorage.length]"
        ) == [
            f"{front.url}/ui#run={run_id}",
            "",
            0,
            0,
        ]
    for url in [*traffic.urls, *(request.headers.get("referer", "") for request in traffic.requests)]:
        assert key not in url
    streams = traffic.streams(run_id)
    assert streams
    for request in traffic.requests:
        token = parse_qs(urlsplit(request.url).query).get("access_token")
        assert (token is not None) == (request in streams), request.url
        sent = (await request.all_headers()).get("authorization")
        if request in streams:
            assert sent is None
        elif "/v1/" in request.url:
            assert sent in (None, "Bearer a wrong one", f"Bearer {key}")
    assert traffic.errors == []
    assert all("401" in said or "net::ERR_" in said for said in traffic.network), traffic.network


async def test_a_key_may_be_kept_for_the_tab(upstream: ScriptedUpstream, redis_url: str, page: Page) -> None:
    key = "a-key-that-must-not-be-seen-0123456789"
    auth = {"mode": "api_keys", "keys": (KeyOptions("tester", hash_of(key)),)}
    upstream.add_run([("run.started", {})])
    async with running(upstream.url, redis_url, auth=auth) as relay:
        await page.goto(f"{relay.url}/ui")
        await page.get_by_test_id("key").fill(key)
        await page.get_by_test_id("key-keep").check()
        await page.get_by_test_id("key-send").click()
        await page.get_by_test_id("run-row").wait_for()
        await page.reload()
        await page.get_by_test_id("run-row").wait_for()
        assert await page.get_by_test_id("key-dialog").is_hidden()


# ── what upstreams may say ──────────────────────────────────────────────────────────────────────────────────────────
async def test_hostile_content_is_text_and_nothing_else(upstream: ScriptedUpstream, redis_url: str, page: Page) -> None:
    traffic = Traffic.of(page)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    call = {"tool_call_id": HOSTILE, "tool_name": HOSTILE}
    run_id = upstream.add_run(
        [
            ("run.started", {"model": HOSTILE}),
            ("message.delta", {"content_delta": HOSTILE[:30]}),
            ("message.delta", {"content_delta": HOSTILE[30:] + "\n"}),
            ("message.delta", {"content_delta": f"**{HOSTILE}** `{HOSTILE}`\n# {HOSTILE}\n```html\n{HOSTILE}\n```\n"}),
            ("message.delta", {"content_delta": HOSTILE, "role": HOSTILE}),
            ("message.delta", {"content_delta": HOSTILE, "channel": "thinking"}),
            ("tool.call.delta", {"arguments_delta": HOSTILE, "tool_call_index": 0, **call}),
            ("tool.call", {"arguments": {HOSTILE: HOSTILE}, **call}),
            ("tool.result", {"error": HOSTILE, **call}),
            (HOSTILE, {"x": HOSTILE}),
            ("run.gap", {"reason": HOSTILE}),
            ("run.input_requested", {"message": HOSTILE}),
            ("thread.title.updated", {"title": HOSTILE}),
            ("run.completed", {"delegate_layer": "acp"}),
            ("run.failed", {"error_class": HOSTILE, "message": HOSTILE}),
        ],
        model=HOSTILE,
        status="failed",
    )
    async with running(upstream.url, redis_url) as relay:
        await page.goto(f"{relay.url}/ui#run={run_id}")
        await until(page, lambda now: now["ended"])
        now = await state(page)
        assert now["seqs"] == list(range(1, 16))
        said = "".join(event["data"].get("content_delta", "") for event in upstream.truth(run_id)[:5])
        assert "".join(await texts(page, "message", "text")) == said
        assert await texts(page, "thinking", "text") == [HOSTILE]
        assert (await texts(page, "title"), await texts(page, "tool-name")) == ([HOSTILE], [HOSTILE])
        assert await texts(page, "model") == [HOSTILE]
        assert HOSTILE in (await texts(page, "row-status"))[0]
        await page.locator("#log summary").click()
        await page.locator("#log-rows li").first.wait_for()
        assert HOSTILE in " ".join(await page.locator("#log-rows li").all_text_contents())
        assert await page.locator("main img, nav img, body script, main b b, .prose b").count() == 0
        await asyncio.sleep(0.2)
        assert await page.evaluate("() => typeof window.pwned") == "undefined"
    assert (dialogs, traffic.errors, traffic.network) == ([], [], [])
    assert {urlsplit(url).netloc for url in traffic.urls if not url.startswith("data:")} == {urlsplit(relay.url).netloc}


async def test_odd_events_do_not_keep_the_others_from_the_screen(
    upstream: ScriptedUpstream, redis_url: str, page: Page
) -> None:
    """Any plugin may emit any type and any data; what comes behind it must still be shown, and the end too."""
    traffic = Traffic.of(page)
    no_text = {"toString": 1, "valueOf": 1}  # an object that String() throws at
    odd: list[tuple[str, dict[str, Any]]] = [
        ("__proto__", {"__proto__": {"polluted": 1}}),
        ("constructor", {}),
        ("toString", {}),
        ("tool.call", {"tool_call_id": "constructor", "tool_name": no_text}),
        ("tool.result", {"tool_call_id": no_text, "result": no_text}),
        ("run.failed", {"delegate_layer": "acp", "message": no_text}),
        ("message.delta", {"content_delta": 7, "role": no_text}),
        ("message.delta", {"content_delta": ["and"], "channel": no_text}),
        ("run.input_requested", {"message": no_text}),
        ("run.input_provided", {"content": no_text}),
        ("run.started", {"model": no_text}),
        ("thread.title.updated", {"title": no_text}),
    ]
    said = ("message.delta", {"content_delta": "and on, "})
    events = [("run.started", {}), *(event for one in odd for event in (one, said)), ("run.completed", {})]
    run_id = upstream.add_run(events)
    async with running(upstream.url, redis_url) as relay:
        await page.goto(f"{relay.url}/ui#run={run_id}")
        await until(page, lambda now: now["ended"])
        assert (await state(page))["seqs"] == list(range(1, len(events) + 1))
        assert "".join(await texts(page, "message", "text")) == "and on, " * len(odd)
        assert await texts(page, "status") == ["completed"]
        assert await page.evaluate("() => typeof ({}).polluted") == "undefined"
    assert traffic.errors == []


async def test_a_hostile_hash_selects_nothing(upstream: ScriptedUpstream, redis_url: str, page: Page) -> None:
    traffic = Traffic.of(page)
    async with running(upstream.url, redis_url) as relay:
        for fragment in ("run=..%2F..%2Fadmin", "run=%3Cimg%20src=x%3E", f"run={'a' * 129}", "upstream=x", "%E0%A4%A"):
            await page.goto(f"{relay.url}/ui#{fragment}")
            await page.get_by_test_id("blank").wait_for()
            assert (await state(page))["runId"] is None
    assert not [url for url in traffic.urls if "/v1/runs/" in url]
    assert (traffic.errors, traffic.network) == ([], [])
