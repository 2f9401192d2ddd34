"""Round trips of what every event takes (append and read), and of the position check: many under way on one connection.

Replies come in the order of the commands, so who asked stands in a line; each one's future gets exactly one outcome: all
its replies, or an error. Nothing is ever sent again: what was under way when the connection broke may be done or not, and
only who asked can find out. One who was cancelled keeps the place in the line, or the next would get its replies.

The time limit is for silence, not for a reply: an append behind a large page must not end because that one is large.

Not bounded here: a committer has one group commit under way and a follower one read.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import hiredis
from redis import exceptions

from relay.store.line import Line


class _Asked:
    """A place in the line."""

    __slots__ = ("answers", "deadline", "done", "replies")

    def __init__(self, done: asyncio.Future[list[Any]], replies: int, deadline: float) -> None:
        self.done = done
        self.replies = replies
        self.answers: list[Any] = []
        self.deadline = deadline


class Channel(Line):
    def __init__(self, connection: Any, timeout_s: float) -> None:
        super().__init__(connection)
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._asked: deque[_Asked] = deque()
        self._watching = False
        self._heard_at = 0.0

    @property
    def idle(self) -> bool:
        return not self._asked

    def ask(self, packed: bytes, replies: int) -> asyncio.Future[list[Any]]:
        """Send packed commands; the future gets their answers in order, of which some may be redis-py's exceptions.

        Or it gets redis-py's ConnectionError, or TimeoutError. Raises ConnectionError, with nothing sent, if it is closed.
        """
        self.write(packed)
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        self._asked.append(_Asked(done, replies, self._loop.time() + self._timeout_s))
        if not self._watching:
            self._watch()
        return done

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        super().data_received(data)

    def _take(self, replies: Sequence[Any]) -> None:
        if hiredis.PushNotification in map(type, replies):  # RESP3 (`?protocol=3`): it answers nothing
            replies = [reply for reply in replies if type(reply) is not hiredis.PushNotification]
        taken = 0
        while taken < len(replies):
            if not self._asked:
                raise exceptions.InvalidResponse("a reply nobody asked for")
            taken += self._answer(replies, taken)

    def _answer(self, replies: Sequence[Any], start: int) -> int:
        """Give the first of the line what is its own of the replies from `start` on; how many that were."""
        first = self._asked[0]
        own = replies[start : start + first.replies - len(first.answers)]
        first.answers += own
        if len(first.answers) == first.replies:
            self._asked.popleft()
            if not first.done.done():
                first.done.set_result(first.answers)
        return len(own)

    def _lost(self, error: Exception) -> None:
        while self._asked:
            done = self._asked.popleft().done
            if not done.done():
                done.set_exception(type(error)(*error.args))  # one each: a traceback grows with every raise

    def _watch(self) -> None:
        """One timer for all: whoever is first in the line has waited longest."""
        self._watching = bool(self._asked)
        if self._asked:
            self._loop.call_at(self._due(), self._look)

    def _due(self) -> float:
        """Until when the server may be silent: a long reply (a page of large events) takes its time, and all behind it
        wait for it with whoever asked."""
        return max(self._asked[0].deadline, self._heard_at + self._timeout_s)

    def _look(self) -> None:
        if self._asked and self._due() <= self._loop.time():
            self.end(TimeoutError("the server did not answer in time"))
        self._watch()
