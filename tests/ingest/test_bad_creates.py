"""Wrong answers to making a run: the caller is told, nothing is pumped, nothing is guessed, and it is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from relay import telemetry
from relay.core.options import Secret
from relay.ingest import making
from relay.ingest.options import UpstreamOptions
from tests.ingest.test_bad_upstreams import ANSWERS, odd
from tests.support import upstream_faults as scripted
from tests.support.relay import RunningRelay, running, settings_for
from tests.support.thread_server import Fault, ThreadServer
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import serving

CREATES: dict[str, Fault] = {
    **{name: fault for name, (fault, _) in ANSWERS.items()},
    "an array": Fault(body="[]"),
    "no id": Fault(body='{"status": "queued"}'),
    "a number for an id": Fault(body='{"id": 7, "run_id": 7}'),
    "an id that is a path": Fault(body='{"id": "../x", "run_id": "../x"}'),
    "an id that is too long": Fault(body=json.dumps({"id": "x" * 129, "run_id": "x" * 129})),
}
STREAM = "text/event-stream"
STREAMS: dict[str, Fault] = {
    "an empty stream": Fault(body="", content_type=STREAM),
    "only an end": Fault(body="event: done\ndata: [DONE]\n\n", content_type=STREAM),
    "HTML in a stream": Fault(body="<html>\n\n</html>\n\n", content_type=STREAM),
    "half a frame": Fault(body='event: thread.run.created\ndata: {"id": "run-', content_type=STREAM),
    "a run without a name": Fault(body='event: thread.run.created\ndata: {"id": null}\n\n', content_type=STREAM),
    "nonsense for ever": Fault(body='data: {"type": "text-delta"}\n\n' * 50, content_type=STREAM),
}
WAYS = [
    ("seekrflow", "runs", "runs", CREATES),
    ("seekrflow", "runs/stream/vercel", "vercel", {**CREATES, **STREAMS}),
    ("openai", "auto", "runs", {**CREATES, **STREAMS}),
]


def refused(name: str) -> float:
    """What was counted of it so far, as a refusal or as an answer that made no sense."""
    samples = next(iter(telemetry.UPSTREAM_REQUESTS.collect())).samples
    refusals = [s for s in samples if s.name.endswith("_total") and s.labels["outcome"] != "ok"]
    return sum(s.value for s in refusals if s.labels["upstream"] == name) + sum(odd(name).values())


async def create(relay: RunningRelay) -> tuple[int, Any]:
    async with relay.session.post(f"{relay.url}/v1/threads/thread-1/runs", json={"agent_id": "a"}) as response:
        return response.status, await response.json()


async def pumped(relay: RunningRelay) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{relay.admin_url}/metrics") as response:
        text = await response.text()
    assert "relay_pump_crashes_total 0.0" in text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("relay_runs_pumped{"))


def posts(server: ThreadServer) -> int:
    return sum(method == "POST" for method, _, _ in server.asked)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_LOOKS_S", (0.0,))


@pytest.mark.parametrize(("provider", "how", "place", "answers"), WAYS, ids=[f"{w[0]}-{w[1]}" for w in WAYS])
async def test_a_wrong_answer_to_a_create_is_an_error_of_the_upstream(
    redis_url: str, provider: str, how: str, place: str, answers: dict[str, Fault]
) -> None:
    async with ThreadServer() as server:
        upstream = UpstreamOptions("main", provider, server.url, Secret("k"), poll_s=0.01, create=how)
        settings = replace(settings_for(server.url), upstreams=(upstream,))
        async with serving(settings, redis_url) as relay:
            for name, fault in answers.items():
                before, asked = refused("main"), posts(server)
                server.always[place] = fault
                status, body = await create(relay)
                assert status in (403, 429, 502, 503), (name, body)
                assert {"code", "message", "trace_id"} <= body.keys(), name
                assert refused("main") > before, name
                # A token nobody wants is tried in its other way, once; nothing else is ever sent twice.
                assert posts(server) - asked <= (2 if fault.status == 401 else 1), name
            assert await pumped(relay) == 0


async def test_a_wrong_answer_of_arkloop_to_a_create_is_one_too(upstream: ScriptedUpstream, redis_url: str) -> None:
    async with running(upstream.url, redis_url) as relay:
        for name, fault in CREATES.items():
            before = refused("main")
            kind = {"content_type": fault.content_type, "body": fault.body or ""}
            upstream.fault(scripted.Fault(target="create", status=fault.status, **kind))
            status, body = await create(relay)
            assert status in (403, 429, 502, 503), (name, body)
            assert {"code", "message", "trace_id"} <= body.keys(), name
            assert refused("main") > before, name
        assert await pumped(relay) == 0
