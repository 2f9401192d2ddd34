"""The upstreams behind the faces of these tests, driven by the same words: what a test says happens, and nothing else.

Arkloop is the scripted upstream of all tests; the two that keep runs in threads are in `threads_behind.py`. Each of
those has a prefix in its base URL: a face that gets the paths wrong must not get by.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from relay.core.options import Secret
from relay.demo.script import Script, Step
from relay.ingest.options import UpstreamOptions
from tests.clients.stage import AGENT, CODE, MODEL, THREAD, WORDS, Act, pieces
from tests.clients.threads_behind import Threads
from tests.support import upstream_faults as faults
from tests.support.arkloop_threads import vendor
from tests.support.relay import RelayProcess, RunningRelay, running, settings_for
from tests.support.upstream import ScriptedUpstream
from tests.web.raw import serving

TOKEN = "upstream-secret"


class Behind(Protocol):
    """An upstream. A run plays the acts it is given, `dt_ms` apart, and then waits for more."""

    kind: str
    agent_field: str
    """What a create's body calls the agent."""
    takes_model: bool
    thinks: bool
    """Its wire has words for thinking."""
    arguments: Any
    output: Any
    """Of the tool `look`, which every `CALLS` calls."""
    waits: bool
    """Its runs can wait for somebody to answer."""
    url: str
    created: list[tuple[str, dict[str, Any]]]
    """Every POSTed run with its body."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def makes(self, *acts: Act, dt_ms: float = 0.0) -> None:
        """What every run POSTed from now on plays."""

    async def has(self, *acts: Act, thread_id: str = THREAD, dt_ms: float = 0.0) -> str:
        """A run that is there already. Without `dt_ms` it has played when this returns."""

    def play(self, run_id: str, *acts: Act) -> None:
        """Goes on, at once."""

    def answers(self, run_id: str) -> list[str]:
        """What a run was told while it waited."""

    def spoil(self) -> None:
        """The streams that are open break now, and the next ones and the looks in every other way there is."""

    def spoiled(self) -> bool:
        """All of that has happened."""

    def slow_create(self, delay_s: float) -> None:
        """Every POST of a run is answered so late, whether or not its sender is still there."""

    def most_streams_of(self, run_id: str) -> int:
        """The most streams of a run that were open at once."""

    def cancels(self) -> int:
        """How often a run's cancelling was asked for."""

    def truth(self, run_id: str) -> list[dict[str, Any]] | None:
        """Its events as it would send them; None where it numbers none."""


class Talking(Protocol):
    """An upstream's threads: `Talks`, or Arkloop's own."""

    def add(self, thread_id: str, role: str, content: str, run_id: str | None = None) -> Any: ...


def options(up: Behind, poll_s: float) -> dict[str, Any]:
    """How relay is told of it."""
    return {"name": "main", "provider": up.kind, "base_url": up.url, "token": TOKEN, "poll_s": poll_s}


@asynccontextmanager
async def relay_before(
    up: Behind, redis_url: str, *, poll_s: float = 0.2, **sections: dict[str, Any]
) -> AsyncIterator[RunningRelay]:
    """A relay in this process. Heartbeats come fast, so that a test of silence is short.

    A stream that is silent for `poll_s` is helped out by looks, which tell the text first: by then it must have begun.
    """
    fast = {"delivery": {"heartbeat_s": 0.4}, "ingest": {"idle_check_s": 10.0}}
    settings = settings_for(up.url, **{**fast, **sections})
    given = options(up, poll_s)
    upstream = UpstreamOptions(**{**given, "token": Secret(given["token"])})
    async with serving(replace(settings, upstreams=(upstream,)), redis_url) as relay:
        yield relay


@asynccontextmanager
async def relay_before_talks(up: Behind, redis_url: str) -> AsyncIterator[tuple[RunningRelay, Talking]]:
    """A relay before an upstream with threads and messages: Arkloop's are kept by a server of their own."""
    if isinstance(up, Threads):
        async with relay_before(up, redis_url) as relay:
            yield relay, up.talks
    else:
        async with vendor() as found, running(found.url, redis_url) as relay:
            yield relay, found


def process_before(up: Behind, directory: Path, redis_url: str) -> RelayProcess:
    """A relay that can be killed; its Redis lives on."""
    sections = {
        "delivery": {"heartbeat_s": 0.4},
        "ingest": {"lease_s": 1.0},
        "redis": {"prefix": f"t{secrets.token_hex(4)}"},
    }
    return RelayProcess(up.url, directory, redis_url=redis_url, upstream=options(up, 0.05), **sections)


class Arkloop:
    kind = "arkloop"
    agent_field = "persona_id"
    takes_model = thinks = waits = True
    arguments: ClassVar[Any] = {"at": "sky"}
    output: ClassVar[Any] = {"n": 7}

    def __init__(self) -> None:
        self.up = ScriptedUpstream(token=TOKEN)

    async def __aenter__(self) -> Arkloop:
        await self.up.__aenter__()
        self.url = self.up.url
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.up.__aexit__(*error)

    @property
    def created(self) -> list[tuple[str, dict[str, Any]]]:
        return list(self.up.created)

    def makes(self, *acts: Act, dt_ms: float = 0.0) -> None:
        self.up.every_create = _script(acts, dt_ms)

    async def has(self, *acts: Act, thread_id: str = THREAD, dt_ms: float = 0.0) -> str:
        run_id = self.up.play(_script(acts, dt_ms), thread_id=thread_id)
        if not dt_ms:
            await self.up.played(run_id)
        return run_id

    def play(self, run_id: str, *acts: Act) -> None:
        for step in _steps(acts, 0.0):
            self.up.append(run_id, step.type, step.data)

    def answers(self, run_id: str) -> list[str]:
        return [event["data"]["content"] for event in self.up.truth(run_id) if event["type"] == "run.input_provided"]

    def spoil(self) -> None:
        self.up.cut_now()
        for fault in (
            faults.cut(after_events=2), faults.clean_eof(after_events=2), faults.half_frame(after_events=1),
            faults.junk_eof(after_events=1), faults.cut(after_events=1), faults.cut(after_events=1), faults.status(503),
        ):  # fmt: skip
            self.up.fault(faults.Fault(follow=True) | fault)

    def spoiled(self) -> bool:
        return self.up.pending() == 0

    def slow_create(self, delay_s: float) -> None:
        self.up.fault(faults.Fault(target="create", delay_s=delay_s), times=None)

    def most_streams_of(self, run_id: str) -> int:
        return self.up.max_following(run_id)

    def cancels(self) -> int:
        return sum("cancel" in asked.path for asked in self.up.requests)

    def truth(self, run_id: str) -> list[dict[str, Any]] | None:
        return self.up.truth(run_id)


def _script(acts: Sequence[Act], dt_ms: float) -> Script:
    return Script("acts", (Step("run.started", {"persona_id": AGENT, "model": MODEL}), *_steps(acts, dt_ms)))


def _steps(acts: Sequence[Act], dt_ms: float) -> list[Step]:
    return [Step(kind, data, dt_ms) for act in acts for kind, data in _events(act)]


def _events(act: Act) -> list[tuple[str, dict[str, Any]]]:
    tool = {"tool_call_id": "c1", "tool_name": "look"}
    if act.kind == "say":
        return [("message.delta", {"content_delta": piece, "role": "assistant"}) for piece in pieces(act.text)]
    if act.kind == "think":
        return [("message.delta", {"content_delta": act.text, "role": "assistant", "channel": "thinking"})]
    if act.kind == "call":
        return [
            ("tool.call", {"arguments": Arkloop.arguments, **tool}), ("tool.result", {"result": Arkloop.output, **tool})
        ]  # fmt: skip
    if act.kind == "ask":
        return [("run.input_requested", {"request_id": "q1", "message": "Which way?", "requestedSchema": {}})]
    if act.kind == "failed":
        return [("run.failed", {"error_class": CODE, "message": WORDS})]
    usage = {"usage": {"input_tokens": 3, "output_tokens": 4}} if act.kind == "completed" else {}
    return [(f"run.{act.kind}", usage)]
