"""The openai SDK, unchanged, whichever version is there: both its clients, driven alike."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.clients.stage import SAID
from tests.clients.threaded import Later, Threaded
from tests.support.needs import installed, sdk

FACE = "openai"
VERSION = installed("openai")
CLIENTS = {kind: f"openai {VERSION} ({kind})" for kind in ("async", "sync")}


@asynccontextmanager
async def client_of(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """The SDK's client; a synchronous one is driven in threads. Each kind under one of the base URLs its users have."""
    openai = sdk("openai")
    if kind == "async":
        async with openai.AsyncOpenAI(**{"api_key": "viewer", "base_url": f"{url}/openai", **options}) as client:
            yield client
    else:
        with openai.OpenAI(**{"api_key": "viewer", "base_url": f"{url}/openai/v1", **options}) as client:
            yield Threaded(client)


def broken() -> tuple[type[Exception], ...]:
    """What a cut stream raises (2.x leaves it to httpx, 3.x makes it its own), and a relay that is away or going."""
    openai = sdk("openai")
    httpx = importlib.import_module("httpx" if VERSION.startswith(("1.", "2.")) else "httpx2")
    return (httpx.RemoteProtocolError, httpx.ReadError, openai.APIConnectionError, openai.InternalServerError)


def attach(threads: Any, run_id: str, thread_id: str, **options: Any) -> Any:
    """The SDK's own stream on our attach route, which its vendor does not have."""
    openai = sdk("openai")
    events = importlib.import_module("openai.types.beta").AssistantStreamEvent
    path = f"/threads/{thread_id}/runs/{run_id}/stream"
    inner = threads._inner if isinstance(threads, Threaded) else threads
    stream = openai.Stream if isinstance(threads, Threaded) else openai.AsyncStream

    def ask() -> Any:
        return inner._client.get(path, cast_to=events, stream=True, stream_cls=stream[events], options=options)

    return Later(ask) if isinstance(threads, Threaded) else ask()


async def heard(stream: Any) -> list[Any]:
    return [event async for event in stream]


def text_of(events: list[Any]) -> str:
    deltas = [event.data.delta.content[0].text.value for event in events if event.event == "thread.message.delta"]
    return "".join(deltas)


def check_whole(events: list[Any], status: str = "completed", said: str = SAID) -> str:
    """Everything once, in order, ended. Gives the run's id."""
    names = [event.event for event in events]
    assert names[:3] == ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
    assert names[-1] == f"thread.run.{status}"
    assert text_of(events) == said
    if status == "completed":
        [message] = [event.data for event in events if event.event == "thread.message.completed"]
        assert message.content[0].text.value == said
    return str(events[0].data.id)
