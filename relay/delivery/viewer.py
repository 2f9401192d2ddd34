"""A stream that has no task: one is started whenever something has to be done for it alone, and ends when it is done.

An idle viewer is a few objects and a place in a crowd. What a request's task does for a stream that aiohttp serves
(relay.delivery.http.deliver) is done here in steps, by the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeAlias

from relay.delivery.http import Cuttable, EventStream, carry
from relay.delivery.stream import WAITS, Farewell

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], object]
"""Starts a task that somebody owns; what it raises is theirs to log."""


class Carrier(Cuttable, Protocol):
    """A connection that carries one response after the other by itself."""

    async def finish(self) -> None:
        """The proper end of the response; the next request may come."""


class Viewer:
    __slots__ = ("_answer", "_connection", "_over", "_spawn", "_stream", "_working")

    def __init__(self, answer: EventStream, connection: Carrier, spawn: Spawn) -> None:
        """The 200 is written."""
        self._answer = answer
        self._connection = connection
        self._spawn = spawn
        self._working = False
        self._over = False
        self._stream = answer.stream(connection)
        self._stream.woken = self._wake

    def start(self) -> None:
        """The first steps, without a task where they take no waiting: nearly always. Raises what nobody expected."""
        if not self._settled():
            self._working = True
            self._spawn(self.work())

    def _settled(self) -> bool:
        self._working = True
        try:
            return self._stream.at_once()
        except (Farewell, ConnectionError):
            return False  # as it is still, when `work` looks
        except BaseException:
            self._connection.abort()
            self._end()
            raise
        finally:
            self._working = False

    async def work(self) -> None:
        """Go on until there is nothing to do but to wait, or until the end. Raises what nobody expected."""
        self._working = True
        how = None
        try:
            how = await carry(self._answer, self._stream, self._connection, self._stream.advance, self._finish)
        finally:
            self._working = False
            if how is not WAITS:
                self._end()

    def _wake(self) -> None:
        if self._working or self._over:
            return
        if self._connection.closing:
            self._end()
        else:
            self._working = True
            self._spawn(self.work())

    async def _finish(self) -> None:
        self._end()  # before the connection is free for the next request
        await self._connection.finish()

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._answer.over(self._stream)
