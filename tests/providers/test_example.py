"""The worked example of docs/providers.md: what it shows is the code, and that code makes a whole relay read its system."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

from aiohttp import web

from relay.settings import load
from tests.support.needs import ROOT
from tests.support.relay import settings_for
from tests.support.thread_server import until
from tests.support.viewer import Journal, watch_sse
from tests.web.raw import serving

PAGE = (ROOT / "docs" / "providers.md").read_text("utf-8")
CODE = (ROOT / "examples" / "tally" / "tally.py").read_text("utf-8")


def test_the_page_shows_the_code_as_it_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert blocks
    for block in blocks:
        for piece in block.split("...\n"):
            assert piece.strip("\n") in CODE, piece


def test_the_page_names_every_call_and_every_attribute() -> None:
    from relay.providers.contract import Provider
    from relay.providers.own import OwnSeqProvider

    for promised in (Provider, OwnSeqProvider):
        names = {*promised.__annotations__, *(name for name in vars(promised) if not name.startswith("_"))}
        absent = sorted(name for name in names if not re.search(rf"`{name}\b", PAGE))
        assert not absent, f"{promised.__name__}: {absent}"


def test_the_page_names_the_files_it_sends_one_to() -> None:
    for path in re.findall(r"`((?:tests|relay|examples|docs)/[A-Za-z0-9_/.-]+)`", PAGE):
        assert (ROOT / path).exists(), path


class TallyServer:
    """Tally, as far as a relay asks it."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.answers: list[Any] = []

    def write(self, kind: str, **more: Any) -> None:
        self.lines.append({"n": len(self.lines) + 1, "kind": kind, "at": "2026-01-01T00:00:00Z", **more})

    @property
    def job(self) -> dict[str, Any]:
        last = self.lines[-1]["kind"] if self.lines else ""
        state = last if last in ("finished", "broke", "stopped") else "asking" if last == "asked" else "busy"
        return {"job": "j-1", "queue": "q-1", "state": state, "made_at": "2026-01-01T00:00:00Z"}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, dict(request.headers)))
        if request.headers.get("X-Tally-Key") != "the-key":
            return web.json_response({"why": "who are you?"}, status=401)
        if request.method == "POST":
            return self._act(request.path, await request.read())
        if request.path.endswith("/lines"):
            return await self._lines(request)
        if request.path == "/jobs/j-1":
            return web.json_response(self.job)
        if request.path in ("/jobs", "/queues/q-1/jobs"):
            return web.json_response([self.job] if request.query.get("skip", "0") == "0" else [])
        return web.json_response({"why": "no such job"}, status=404)

    def _act(self, path: str, body: bytes) -> web.Response:
        self.answers.append(json.loads(body or b"null"))
        if path == "/queues/q-1/jobs":
            self.write("began")
        elif path == "/jobs/j-1/answer":
            self.write("said", text="thanks")
        else:
            self.write("stopped")
        return web.json_response(self.job)

    async def _lines(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        at = int(request.query["from"]) - 1
        while True:
            for line in self.lines[at:]:
                await response.write(f"data: {json.dumps(line)}\n\n".encode())
            at = max(at, len(self.lines))
            if request.query["live"] == "0":
                return response
            await asyncio.sleep(0.02)


async def test_a_relay_reads_it_and_acts_on_it(installed: Any, redis_url: str) -> None:
    installed("relay-tally", tally="tally:Tally")
    tally = TallyServer()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", tally.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    upstream = {"name": "main", "provider": "tally", "base_url": address, "token": "the-key"}
    loaded = load(None, {"RELAY_UPSTREAMS": json.dumps([upstream])})
    settings = replace(settings_for(address, ingest={"linger_s": 0.1}), upstreams=loaded.upstreams)
    try:
        async with serving(settings, redis_url) as relay, asyncio.timeout(60):
            async with relay.session.post(f"{relay.url}/v1/threads/q-1/runs", json={"what": "count"}) as response:
                assert (response.status, (await response.json())["run_id"]) == (201, "j-1")
            journal = Journal()
            viewer = asyncio.create_task(watch_sse(relay.session, relay.events("j-1"), journal))
            await until(lambda: journal.cursor == 1)
            tally.write("said", text="one")
            tally.write("used", call="c", tool="look", **{"with": {"q": 1}})
            tally.write("got", call="c", text="7")
            tally.write("asked", text="Which?")
            await until(lambda: journal.cursor == 5)
            async with relay.session.get(f"{relay.url}/v1/runs/j-1") as response:
                run = await response.json()
                assert (run["status"], run["raw_status"], run["thread_id"]) == ("waiting_for_input", "asking", "q-1")
            async with relay.session.post(f"{relay.url}/v1/runs/j-1/input", json={"content": "this"}) as response:
                assert response.status == 200
            async with relay.session.post(f"{relay.url}/v1/runs/j-1:cancel", json={}) as response:
                assert response.status == 200
            await viewer
            async with relay.session.get(f"{relay.url}/v1/runs") as response:
                assert [run["run_id"] for run in await response.json()] == ["j-1"]
    finally:
        await runner.cleanup()
    assert tally.answers == [{"what": "count"}, {"text": "this"}, None]
    assert [event["type"] for event in journal.events] == [
        "run.started", "message.delta", "tool.call", "tool.result", "run.waiting_for_input", "message.delta",
        "run.cancelled",
    ]  # fmt: skip
    assert [event["seq"] for event in journal.events] == [line["n"] for line in tally.lines]
    assert journal.events[1]["data"]["content"] == "one"
    assert journal.ended == {"last_seq": 7, "status": "cancelled"}
