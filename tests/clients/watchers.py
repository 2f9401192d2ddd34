"""Every client as a watcher of one run, so that all of them can go through the same adversity at once.

A watcher follows a run of a face to its end, the way its users would: an SDK that raises attaches again and hears all of
the run anew, a client with a cursor resumes. What it is told is kept as it was told, and checked in the face's own words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import aiohttp
import httpx
import httpx_sse
import websockets

from tests.clients import openai_client, seekrai_client
from tests.clients.arkloop_models import CLI, TUI, WEB, Client, Model
from tests.clients.stage import THREAD

Truth = list[dict[str, Any]] | None
"""The events as the upstream would send them; None where it numbers none."""
QUIET_S = 2.0
"""How long the clients bear silence where that is what is tried; relay's heartbeats come five times as often."""
PATIENT_S = 30.0
"""How long they do otherwise."""
_PAUSE_S = 0.1
"""Before somebody whose connection broke tries again."""


class Watcher(Protocol):
    face: str
    name: str
    connections: int
    quiet_s: float
    """How long it bears silence."""

    @property
    def text(self) -> str:
        """What the run has said so far."""

    async def follow(self, url: str, run_id: str) -> None:
        """To the run's end."""

    def check(self, said: str, status: str, truth: Truth) -> None:
        """All of the run, once, in order, and this end (completed, failed or cancelled)."""


class OpenAi:
    face = openai_client.FACE

    def __init__(self, kind: str) -> None:
        self.name, self._kind = openai_client.CLIENTS[kind], kind
        self.connections, self.quiet_s = 0, PATIENT_S
        self._events: list[Any] = []

    @property
    def text(self) -> str:
        return openai_client.text_of(self._events)

    async def follow(self, url: str, run_id: str) -> None:
        async with openai_client.client_of(self._kind, url, max_retries=0, timeout=self.quiet_s) as client:
            while not self._events or not self._events[-1].event.startswith("thread.run.") or self._rests():
                self.connections += 1
                self._events = []
                try:
                    async for event in await openai_client.attach(client.beta.threads, run_id, THREAD):
                        self._events.append(event)
                except openai_client.broken():
                    self._events = []
                    await asyncio.sleep(_PAUSE_S)

    def _rests(self) -> bool:
        return bool(self._events[-1].event == "thread.run.requires_action")

    def check(self, said: str, status: str, truth: Truth) -> None:
        openai_client.check_whole(self._events, status, said)
        if status == "failed":
            assert "no luck" in self._events[-1].data.last_error.message


class Seekrai:
    face = seekrai_client.FACE

    def __init__(self, kind: str) -> None:
        self.name, self._kind = seekrai_client.CLIENTS[kind], kind
        self.connections, self.quiet_s = 0, PATIENT_S
        self._chunks: list[seekrai_client.Chunk] = []

    @property
    def text(self) -> str:
        return seekrai_client.text_of(self._chunks)

    async def follow(self, url: str, run_id: str) -> None:
        seekr = seekrai_client.Seekr(self._kind, url, max_retries=0, timeout=self.quiet_s)
        while not self._chunks or self._chunks[-1]["type"] != "finish":
            self.connections += 1
            self._chunks = []
            try:
                async for chunk in seekr.attach(run_id, THREAD):
                    self._chunks.append(chunk)
            except seekrai_client.broken():
                self._chunks = []
                await asyncio.sleep(_PAUSE_S)

    def check(self, said: str, status: str, truth: Truth) -> None:
        seekrai_client.check_whole(self._chunks, said)
        reason = {"completed": "stop", "cancelled": "other", "failed": "error"}[status]
        assert self._chunks[-1]["finishReason"] == reason
        if status == "failed":
            assert {"type": "error", "errorText": "no luck"} in self._chunks


class Arkloop:
    """Resumes by itself, until its original would give up."""

    face = "arkloop"
    NAMES: ClassVar = {"web": "Arkloop web (model)", "tui": "Arkloop TUI (model)", "cli": "Arkloop CLI (model)"}
    MODELS: ClassVar = {"web": WEB, "tui": TUI, "cli": CLI}

    def __init__(self, kind: str) -> None:
        self.name, self._model = self.NAMES[kind], self._of(kind)
        self.quiet_s = PATIENT_S
        self._client: Client | None = None

    def _of(self, kind: str) -> Model:
        model: Model = self.MODELS[kind]
        return model

    @property
    def connections(self) -> int:
        return self._client.requests if self._client else 0

    @property
    def _seen(self) -> list[dict[str, Any]]:
        return self._client.seen if self._client else []

    @property
    def text(self) -> str:
        return _text(self._seen, "content_delta")

    async def follow(self, url: str, run_id: str) -> None:
        # More patient with a relay that is away than the original: one takes longer to start where others test too.
        times = {"scale": 2.0, "quiet_scale": self.quiet_s / 45, "stay_scale": 0.02}
        self._client = Client(self._model, f"{url}/arkloop", run_id, **times)
        async with aiohttp.ClientSession() as session:  # where it has the run from
            await session.get(f"{url}/arkloop/v1/threads/{THREAD}/runs")
        await self._client.follow()

    def check(self, said: str, status: str, truth: Truth) -> None:
        _check_events(self._seen, truth, theirs=True)
        assert self.text == said
        assert self._seen[-1]["type"] == f"run.{status}"
        assert self._client is not None
        assert self._client.ended


class Native:
    """Resumes with the last seq it saw; `relay.end` is the end."""

    face = "native"
    name: str

    def __init__(self) -> None:
        self.connections, self.quiet_s = 0, PATIENT_S
        self._events: list[dict[str, Any]] = []
        self._end: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return _text(self._events, "content")

    async def follow(self, url: str, run_id: str) -> None:
        while self._end is None:
            self.connections += 1
            try:
                await self._connection(f"{url}/v1/runs/{run_id}/events?thread_id={THREAD}")
            except (httpx.HTTPError, aiohttp.ClientError, OSError, websockets.WebSocketException):
                await asyncio.sleep(_PAUSE_S)

    async def _connection(self, url: str) -> None:
        raise NotImplementedError

    @property
    def _cursor(self) -> int:
        return int(self._events[-1]["seq"]) if self._events else 0

    def _take(self, name: str, data: str) -> None:
        if name == "relay.end":
            self._end = json.loads(data)
        elif not name.startswith("relay."):
            self._events.append(json.loads(data))

    def check(self, said: str, status: str, truth: Truth) -> None:
        _check_events(self._events, truth, theirs=False)
        assert self.text == said
        assert self._events[-1]["type"] == f"run.{status}"
        assert self._end == {"last_seq": self._cursor, "status": status}


class HttpxSse(Native):
    name = "httpx-sse"

    async def _connection(self, url: str) -> None:
        headers = {"Last-Event-ID": str(self._cursor)} if self._events else {}
        async with httpx.AsyncClient(timeout=self.quiet_s) as client:
            async with httpx_sse.aconnect_sse(client, "GET", url, headers=headers) as source:
                source.response.raise_for_status()
                async for event in source.aiter_sse():
                    self._take(event.event, event.data)


class Aiohttp(Native):
    """NDJSON would do as well; this is SSE read by hand, as most of its users do."""

    name = "aiohttp"

    async def _connection(self, url: str) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_read=self.quiet_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.get(url, params={"after_seq": str(self._cursor)}) as response:
                response.raise_for_status()
                fields: dict[str, str] = {}
                async for line in response.content:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if not name and not value and fields.get("data"):
                        self._take(fields.get("event", ""), fields["data"])
                    fields = {**fields, name: value} if name or value else {}


class Websockets(Native):
    name = "websockets"

    async def _connection(self, url: str) -> None:
        address = f"{url.replace('http://', 'ws://')}&after_seq={self._cursor}"
        async with websockets.connect(address, open_timeout=self.quiet_s, ping_interval=None) as socket:
            async for message in socket:
                event = json.loads(message)
                kind = event["type"]
                if kind.startswith("relay."):
                    del event["type"]
                self._take(kind if kind.startswith("relay.") else "", json.dumps(event))


def _text(events: list[dict[str, Any]], field: str) -> str:
    deltas = [event["data"] for event in events if event["type"] == "message.delta"]
    return "".join(data.get(field, data.get("content", "")) for data in deltas if not data.get("channel"))


def _check_events(events: list[dict[str, Any]], truth: Truth, *, theirs: bool) -> None:
    seqs = [event["seq"] for event in events]
    assert seqs == list(range(1, len(seqs) + 1))
    if truth is not None:
        assert len(events) == len(truth)
        for event, true in zip(events, truth, strict=True):
            assert event == true if theirs else event.items() >= {"seq": true["seq"]}.items()


ROSTER: dict[str, list[Callable[[], Watcher]]] = {
    "openai": [lambda: OpenAi("async"), lambda: OpenAi("sync")],
    "seekrflow": [lambda: Seekrai("async"), lambda: Seekrai("sync")],
    "arkloop": [lambda: Arkloop("web"), lambda: Arkloop("tui"), lambda: Arkloop("cli")],
    "native": [HttpxSse, Aiohttp, Websockets],
}
"""By face. What is not installed here says so where it is made."""
