"""Upstreams that answer HTML, half a JSON, wrong types, statuses of their own, 404 for a known run, or `queued` for ever.

Over real HTTP, for every provider and every call: it never breaks a pump, it never ends a run, and it is counted. Each
fault stands for as long as it takes to be met several times, while the run goes nowhere; then the system recovers, and
what readers have in the end is the run.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from random import Random
from typing import Any, cast

import aiohttp
import pytest

from relay import telemetry
from relay.core.events import FINAL_STATUS
from relay.core.ids import RunKey
from relay.ingest import own_looks
from relay.ingest.options import IngestOptions, UpstreamOptions
from relay.ingest.own_pump import OwnPump
from relay.ingest.own_upstream import OwnUpstream
from relay.providers import OWN_SEQ
from tests.support import upstream_faults as scripted
from tests.support.relay import running
from tests.support.sim_world import MemoryLog, text_of
from tests.support.thread_server import Fault, ThreadServer, hello, until
from tests.support.upstream import ScriptedUpstream
from tests.support.viewer import Journal, watch_sse

PROVIDER = {"vercel": "seekrflow", "legacy": "seekrflow", "assistants": "openai"}
HTML = "<!doctype html><html><body>Please sign in.</body></html>"
OPTIONS = IngestOptions(idle_check_s=0.05, backoff_base_s=0.001, backoff_cap_s=0.01, lease_s=0.05)


def run(**fields: Any) -> Fault:
    return Fault(body=json.dumps({"id": "run-1", "thread_id": "thread-1", "created_at": 1718885800, **fields}))


ERROR, UNKNOWN = "upstream.error", "unknown_status"
ANSWERS: dict[str, tuple[Fault, str]] = {
    "HTML": (Fault(body=HTML, content_type="text/html"), ERROR),
    "HTML that calls itself JSON": (Fault(body=HTML), ERROR),
    "HTML with 502": (Fault(status=502, body=HTML, content_type="text/html"), "upstream.unavailable"),
    "truncated JSON": (Fault(body='{"id": "run-1", "status": "comp'), ERROR),
    "nothing": (Fault(body=""), ERROR),
    "null": (Fault(body="null"), ERROR),
    "a number": (Fault(body="7"), ERROR),
    "a text": (Fault(body='"completed"'), ERROR),
    "a redirect": (Fault(status=302, body="", headers={"Location": "/elsewhere"}), ERROR),
    "401": (Fault(status=401, body="{}"), "upstream.unauthorized"),
    "403": (Fault(status=403, body="{}"), "auth.forbidden"),
    "429": (Fault(status=429, body="{}", headers={"Retry-After": "0"}), "limits.exceeded"),
    "500": (Fault(status=500, body=HTML), ERROR),
    "503": (Fault(status=503, body=""), "upstream.unavailable"),
}
"""What any call may be answered with, and what it is counted as."""
RUNS: dict[str, tuple[Fault, str]] = {
    **ANSWERS,
    "an array": (Fault(body="[]"), ERROR),
    "no id": (Fault(body='{"status": "completed"}'), ERROR),
    "a number for an id": (run(id=7, status="completed"), ERROR),
    "an id that is a path": (run(id="../run-1", status="completed"), ERROR),
    "a status of tomorrow": (run(status="finished-ish"), UNKNOWN),
    "another spelling": (run(status="COMPLETED"), UNKNOWN),
    "no status": (run(), UNKNOWN),
    "null for a status": (run(status=None), UNKNOWN),
    "an object for a status": (run(status={"a": "completed"}), UNKNOWN),
    "a list for a status": (run(status=["completed"]), UNKNOWN),
    "wrong types everywhere": (
        run(status=True, created_at={}, started_at=[], usage=7, tools="x", required_action=[1], last_error=False),
        UNKNOWN,
    ),
}
LISTS: dict[str, tuple[Fault, str]] = {
    **ANSWERS,
    "no list": (Fault(body='{"data": 7}'), ERROR),
    "an object": (Fault(body="{}"), ERROR),
}


class Trial:
    """One run under one fault, pumped over HTTP into a log in memory."""

    def __init__(self, name: str, shape: str, place: str, fault: Fault | None) -> None:
        self.key = RunKey(name, "run-1")
        self.server = ThreadServer(hello(shape=shape))
        self.sim = self.server.runs["run-1"]
        self.place = place
        self.fault = fault
        self.log = MemoryLog(Random(0), 0.0)
        self._provider = PROVIDER[shape]

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.log.rows]

    async def live(self, session: aiohttp.ClientSession, *, meetings: int = 4) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.server)
            self.sim.chance.randint = lambda low, high: low  # type: ignore[method-assign]  # the run stands still
            self.sim.at = 2 if self.fault is not None else -1
            if self.fault is not None:
                self.server.always[self.place] = self.fault
            if self.place != "attach":  # nothing streams, so that looks are all there is
                self.server.always["attach"] = Fault(status=405, body="{}")
            options = UpstreamOptions(self.key.upstream, self._provider, self.server.url, poll_s=0.005)
            upstream = OwnUpstream(options, OWN_SEQ[self._provider], session, OPTIONS)
            pump = OwnPump(self.key, upstream, cast(Any, self.log), cast(Any, self.log), OPTIONS, 2**20)
            pumping = asyncio.create_task(pump.run())
            stack.callback(pumping.cancel)
            await until(lambda: self.server.count(self.place) >= meetings or pumping.done())
            assert not pumping.done(), f"{self.key.upstream}: ended by {self.types}"
            assert not set(self.types) & set(FINAL_STATUS)
            if self.fault is None:
                assert self.types == [], "a run that waits has not begun"
            self.server.always.pop(self.place, None)
            del self.sim.chance.randint
            async with asyncio.timeout(60):
                await pumping
        bodies = [json.loads(event.json) for event in self.log.rows]
        assert self.types[-1] == "run.completed", self.key.upstream
        assert sum(kind in FINAL_STATUS for kind in self.types) == 1
        assert text_of(bodies).decode("utf-16-le") == "Hello, world! And more.", self.key.upstream


def odd(upstream: str) -> dict[str, float]:
    samples = next(iter(telemetry.UPSTREAM_ODD.collect())).samples
    mine = [s for s in samples if s.name.endswith("_total") and s.labels["upstream"] == upstream]
    return {s.labels["what"]: s.value for s in mine if s.value}


async def all_of(shape: str, place: str, table: dict[str, tuple[Fault, str]]) -> None:
    trials = [
        (Trial(f"{shape}-{place}-{name}", shape, place, fault), counted) for name, (fault, counted) in table.items()
    ]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session, asyncio.TaskGroup() as tasks:
        for trial, _ in trials:
            tasks.create_task(trial.live(session), name=trial.key.upstream)
    for trial, counted in trials:
        found = odd(trial.key.upstream)
        assert found.get(counted, 0) >= 3, (trial.key.upstream, found)
        assert set(found) == {counted}, (trial.key.upstream, found)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_looks, "RETRY_AFTER_S", 0.02)


@pytest.mark.parametrize("shape", ["vercel", "assistants"])
async def test_no_answer_about_a_run_ends_it_but_its_end(shape: str) -> None:
    await all_of(shape, "run", RUNS)


@pytest.mark.parametrize(
    ("shape", "place"), [("vercel", "messages"), ("assistants", "messages"), ("assistants", "steps")]
)
async def test_no_list_breaks_or_ends_a_run(shape: str, place: str) -> None:
    await all_of(shape, place, LISTS)


STREAMS: dict[str, tuple[Fault, str]] = {
    "HTML": (Fault(body=HTML, content_type="text/html"), "refused"),
    "HTML with 502": (Fault(status=502, body=HTML, content_type="text/html"), "unreachable"),
    "JSON": (run(status="completed"), "refused"),
    "an empty stream": (Fault(body="", headers={}, content_type="text/event-stream"), "eof"),
    "HTML in a stream": (Fault(body=HTML, content_type="text/event-stream"), "junk"),
    "half a chunk": (Fault(body='data: {"type":"text-del', content_type="text/event-stream"), "junk"),
    "only an end": (Fault(body="data: [DONE]\n\n", content_type="text/event-stream"), ""),
    "the end of nothing": (Fault(body='data: {"type":"finish"}\n\n', content_type="text/event-stream"), ""),
    "500": (Fault(status=500, body=HTML), "refused"),
    "403": (Fault(status=403, body="{}"), "unauthorized"),
}


@pytest.mark.parametrize("shape", ["vercel", "legacy"])
async def test_no_stream_ends_a_run(shape: str) -> None:
    trials = {name: Trial(f"{shape}-attach-{name}", shape, "attach", fault) for name, (fault, _) in STREAMS.items()}
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        for trial in trials.values():
            tasks.create_task(trial.live(session, meetings=2), name=trial.key.upstream)
    samples = next(iter(telemetry.UPSTREAM_ENDS.collect())).samples
    for name, (_, reason) in STREAMS.items():
        ended = {s.labels["reason"] for s in samples if s.labels["upstream"] == trials[name].key.upstream}
        assert not reason or reason in ended, (name, ended)


@pytest.mark.parametrize("shape", ["vercel", "assistants"])
async def test_an_endless_queue_is_no_end(shape: str) -> None:
    trial = Trial(f"{shape}-queued", shape, "run", None)
    async with aiohttp.ClientSession() as session:
        await trial.live(session, meetings=12)


@pytest.mark.parametrize("shape", ["vercel", "assistants"])
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_known_run_that_is_not_found_is_gone_the_third_time(shape: str, times: int) -> None:
    trial = Trial(f"{shape}-404-{times}", shape, "run", None)
    async with aiohttp.ClientSession() as session, trial.server:
        trial.sim.chance.randint = lambda low, high: low  # type: ignore[method-assign]
        trial.sim.at = 2
        trial.server.always["attach"] = Fault(status=405, body="{}")
        missing = Fault(status=404, body='{"detail": "Not found"}')
        trial.server.faults["run"] = [Fault(), *[missing] * times]
        options = UpstreamOptions(trial.key.upstream, PROVIDER[shape], trial.server.url, poll_s=0.005)
        upstream = OwnUpstream(options, OWN_SEQ[PROVIDER[shape]], session, OPTIONS)
        pump = OwnPump(trial.key, upstream, cast(Any, trial.log), cast(Any, trial.log), OPTIONS, 2**20)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(pump.run())
            if times < 3:
                await until(lambda: trial.server.count("run") >= times + 4)
                assert not set(trial.types) & set(FINAL_STATUS)
                del trial.sim.chance.randint
    last = json.loads(trial.log.rows[-1].json)
    if times < 3:
        assert last["type"] == "run.completed"
    else:
        assert (last["type"], last["data"]) == ("run.failed", {"reason": "upstream_run_gone"})


# --- Arkloop: a durable seq, so what is in the stream is the truth, and GET run only doubts it ---------------------------
ARKLOOP: dict[str, tuple[str, int, str]] = {
    "HTML": (HTML, 200, ERROR),
    "HTML with 502": (HTML, 502, "upstream.unavailable"),
    "truncated JSON": ('{"run_id": "r", "status": "comp', 200, ERROR),
    "null": ("null", 200, ERROR),
    "an array": ("[]", 200, ERROR),
    "no id": ('{"status": "completed"}', 200, ERROR),
    "a status of tomorrow": ('{"run_id": "r", "status": "finished-ish"}', 200, UNKNOWN),
    "null for a status": ('{"run_id": "r", "status": null}', 200, UNKNOWN),
    "an object for a status": ('{"run_id": "r", "status": {"a": "completed"}}', 200, UNKNOWN),
    "queued for ever": ('{"run_id": "r", "status": "queued"}', 200, ""),
    "500": (HTML, 500, ERROR),
    "401": ("{}", 401, ERROR),
}


async def test_no_answer_of_arkloop_ends_a_run_but_its_end(upstream: ScriptedUpstream, redis_url: str) -> None:
    before = odd("main")
    async with running(upstream.url, redis_url, ingest={"idle_check_s": 0.1, "linger_s": 0.1}) as relay:
        watching: dict[str, tuple[str, Journal, asyncio.Task[Journal]]] = {}
        before_it: dict[str, int] = {}

        def met(run_id: str) -> int:
            return sum(asked.path.endswith(f"/runs/{run_id}") for asked in upstream.requests)

        for name, (body, status, _) in ARKLOOP.items():
            run_id, journal = upstream.add_run([("run.started", {})]), Journal()
            fault = scripted.Fault(target="run", status=status, body=body, content_type="application/json")
            watching[name] = (
                run_id, journal, asyncio.create_task(watch_sse(relay.session, relay.events(run_id), journal))
            )  # fmt: skip
            await until(lambda journal=journal: journal.events)
            upstream.fault(fault, run_id, times=None)
            before_it[run_id] = met(run_id)

        for name, (run_id, journal, viewer) in watching.items():
            await until(lambda run_id=run_id: met(run_id) >= before_it[run_id] + 4, 60)
            assert not viewer.done(), name
            assert journal.seqs == [1], name
            upstream.heal(run_id)
            upstream.finish(run_id)
            async with asyncio.timeout(60):
                await viewer
            assert [event["type"] for event in journal.events] == ["run.started", "run.completed"], name
            assert not any(event.get("synthesized") for event in journal.events), name
    counted = {what: count - before.get(what, 0) for what, count in odd("main").items()}
    for what in {what for _, _, what in ARKLOOP.values()} - {""}:
        assert counted.get(what, 0) >= 3, counted


BAD_FRAMES = [
    b"data: <html>\n\n",
    b'event: message.delta\ndata: {"seq": "two"\n\n',
    b'data: {"seq": -1, "type": "run.completed"}\n\n',
    b'id: x\ndata: {"type": "run.completed"}\n\n',
    b"event: run.completed\ndata: {}\n\n",
]


async def test_what_is_no_event_of_arkloop_is_counted_and_ends_nothing(
    upstream: ScriptedUpstream, redis_url: str
) -> None:
    before = odd("main").get("not_an_event", 0)
    async with running(upstream.url, redis_url, ingest={"linger_s": 0.1, "idle_check_s": 0.2}) as relay:
        run_id, journal = upstream.add_run([("run.started", {})]), Journal()
        body = b"".join(BAD_FRAMES).decode()
        upstream.fault(scripted.Fault(body=body, content_type="text/event-stream"), run_id, times=4)
        viewer = asyncio.create_task(watch_sse(relay.session, relay.events(run_id), journal))
        await until(lambda: odd("main").get("not_an_event", 0) >= before + len(BAD_FRAMES))
        upstream.heal(run_id)
        await until(lambda: journal.events)
        upstream.finish(run_id)
        async with asyncio.timeout(60):
            await viewer
    assert [event["type"] for event in journal.events] == ["run.started", "run.completed"]
