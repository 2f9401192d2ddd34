"""seekrai, unchanged, whichever version is there: both its clients, driven alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from tests.clients.stage import AGENT, SAID
from tests.clients.threaded import Threaded
from tests.support.needs import installed, sdk

FACE = "seekrflow"
VERSION = installed("seekrai")
CLIENTS = {kind: f"seekrai {VERSION} ({kind})" for kind in ("async", "sync")}
LEGACY = VERSION.startswith("0.") and int(VERSION.split(".")[1]) < 21
"""Before 0.21 it asked for another stream, and put `/v1` into the base URL."""
Chunk = dict[str, Any]


def broken() -> tuple[type[Exception], ...]:
    """What a cut stream raises, and a relay that is away or going."""
    return (httpx.RemoteProtocolError, httpx.ReadError, httpx.HTTPError, sdk("seekrai.error").APIConnectionError)


class Seekr:
    """Both of its clients."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        seekrai = sdk("seekrai")
        make = seekrai.AsyncSeekrFlow if kind == "async" else seekrai.SeekrFlow
        self._threaded = kind == "sync"
        base_url = f"{url}/seekrflow" + ("/v1" if LEGACY else "")
        agents = make(**{"api_key": "viewer", "base_url": base_url, **options}).agents
        self._runs, self._threads = agents.runs, agents.threads

    async def call(self, name: str, *args: Any, **named: Any) -> Any:
        return await self._call(getattr(self._runs, name), *args, **named)

    async def thread(self, name: str, *args: Any, **named: Any) -> Any:
        return await self._call(getattr(self._threads, name), *args, **named)

    async def _call(self, method: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if self._threaded:
            return await asyncio.to_thread(method, *args, **named)
        return await method(*args, **named)

    async def run_stream(self, thread_id: str) -> AsyncIterator[Chunk]:
        stream = await self.call("run", AGENT, thread_id, stream=True)
        async for chunk in self._each(stream if LEGACY else stream.raw_events()):
            yield chunk

    async def attach(self, run_id: str, thread_id: str) -> AsyncIterator[Chunk]:
        async for chunk in self._each(await self.call("attach", run_id, thread_id)):
            yield chunk

    async def _each(self, items: Any) -> AsyncIterator[Chunk]:
        async for chunk in Threaded(items) if self._threaded else items:
            yield chunk


async def heard(chunks: AsyncIterator[Chunk]) -> list[Chunk]:
    return [chunk async for chunk in chunks]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.get("delta") or chunk.get("text", "") for chunk in chunks if chunk["type"] in _TEXT)


_TEXT = ("text-delta", "text_delta")


def check_whole(chunks: list[Chunk], said: str = SAID) -> None:
    """Everything once, in order, ended; every part opened before it goes on and closed after it."""
    if LEGACY:
        chunks = [chunk for chunk in chunks if chunk.get("text") != ""]  # kept alive
        kinds = [chunk["type"] for chunk in chunks]
        assert (kinds[:2], kinds[-1]) == (["user_prompt", "node_header"], "end_node")
        assert (text_of(chunks), chunks[-1]["final_output"]) == (said, said)
        for chunk in chunks:  # as its own types read them
            sdk("pydantic").TypeAdapter(sdk("seekrai.types.agents.threads").StreamChunkDataTypes).validate_python(chunk)
        return
    assert (chunks[0]["type"], chunks[-1]["type"]) == ("start", "finish")
    assert text_of(chunks) == said
    [text_id] = [chunk["id"] for chunk in chunks if chunk["type"] == "text-start"]
    assert {chunk["id"] for chunk in chunks if chunk["type"] in ("text-delta", "text-end")} == {text_id}
    assert [chunk["type"] for chunk in chunks if chunk["type"] == "text-end"] == ["text-end"]


def started_by(chunks: list[Chunk]) -> str:
    return str(chunks[0]["messageMetadata"]["metadata"]["run_id"])
