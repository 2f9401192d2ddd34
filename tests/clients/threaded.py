"""A synchronous SDK driven from an asynchronous test: each of its blocking steps takes place in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

_END = object()


class Threaded:
    """Looks like the asynchronous SDK: what is called can be awaited, iterated or entered."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if callable(value):
            return lambda *args, **named: Later(lambda: value(*args, **named))
        return Threaded(value) if _is_resource(value) else value

    async def __aiter__(self) -> AsyncIterator[Any]:
        items: Iterator[Any] = await asyncio.to_thread(iter, self._inner)
        while (item := await asyncio.to_thread(next, items, _END)) is not _END:
            yield item


class Later:
    """A call that has not been made yet."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._entered: Any = None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._made().__await__()

    async def _made(self) -> Any:
        made = await asyncio.to_thread(self._make)
        return Threaded(made) if _is_live(made) else made

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in Threaded(await asyncio.to_thread(self._make)):
            yield item

    async def __aenter__(self) -> Any:
        self._entered = await asyncio.to_thread(self._make)
        return Threaded(await asyncio.to_thread(self._entered.__enter__))

    async def __aexit__(self, *error: object) -> None:
        await asyncio.to_thread(self._entered.__exit__, *error)


def _is_resource(value: Any) -> bool:
    """A part of the client, or an iterator of a stream: not plain data."""
    return _is_live(value) or (type(value).__module__.startswith("openai.resources"))


def _is_live(value: Any) -> bool:
    return hasattr(value, "__next__") or (hasattr(value, "raw_events"))
