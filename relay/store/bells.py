"""The connection on which one server's bells are heard: bare pub/sub, pushed to who listens, no task per message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis
from redis import exceptions

from relay.core.errors import StoreUnavailable
from relay.store.line import Line
from relay.store.node import Node
from relay.store.packing import packed

_PUSHED: Final = frozenset((list, hiredis.PushNotification))
"""What a push is in RESP2 and in RESP3."""


class Bells(Line):
    """Raises StoreUnavailable. Bells carry no truth: whatever goes wrong, they fell silent."""

    def __init__(self, node: Node, heard: Callable[[Sequence[Any]], None]) -> None:
        """`heard` is called with all pushes that came at once, lists such as [b"smessage", channel, payload]; also with
        what a ping is answered, which is shorter. It must not raise."""
        super().__init__(node.bare_connection())
        self._left = node.left
        self._heard = heard
        loop = asyncio.get_running_loop()
        self._time = loop.time
        self._ended: asyncio.Future[None] = loop.create_future()
        self.heard_at = 0.0
        """When anything came last, by the loop's clock."""

    async def gone(self) -> None:
        """Returns never: raises once another server holds what this one did, for then it may fall silent unnoticed."""
        await self._left.wait()
        raise StoreUnavailable("the bells ring elsewhere now")

    async def connect(self) -> None:
        try:
            await super().connect()
        except (exceptions.RedisError, OSError) as error:
            raise StoreUnavailable("the bells fell silent") from error
        self.heard_at = self._time()

    async def ended(self) -> None:
        """Returns never: raises when the connection ends."""
        await asyncio.shield(self._ended)

    def send(self, *words: str | bytes) -> None:
        try:
            self.write(packed(words))
        except exceptions.ConnectionError as error:
            raise StoreUnavailable("the bells fell silent") from error

    def close(self) -> None:
        self.end(exceptions.ConnectionError("closed"))

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._time()
        super().data_received(data)

    def _take(self, replies: Sequence[Any]) -> None:
        if _PUSHED.issuperset(map(type, replies)):  # as nearly always
            self._heard(replies)
            return
        self._heard([reply for reply in replies if type(reply) in _PUSHED])
        for reply in replies:
            if isinstance(reply, exceptions.ResponseError):
                raise exceptions.InvalidResponse(str(reply))  # such as MOVED: the channel lives elsewhere

    def _lost(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(StoreUnavailable("the bells fell silent"))
            self._ended.exception()  # noted: nobody may be waiting
