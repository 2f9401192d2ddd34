"""The master of the moment, as the sentinels name it; found out by asking them all the time, not by connections that break.

An old master that is cut off from its sentinels, but not from us, would take our writes for as long as it lives. So every
sentinel is asked twice a second; when another master is believed in (`Belief`), everything on its way to the old one is let
go of at once and nothing is sent there again. While no sentinel answers, the master we know stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from redis import exceptions

from relay import telemetry
from relay.store.belief import Belief, Word
from relay.store.node import Node, addresses_of, answers_of_most, credentials_of, hand_over, name_of, node_at, text
from relay.store.options import RedisOptions

_ASK_EVERY_S: Final = 0.5
_ANSWER_S: Final = 1.0
"""How long a sentinel may take to answer."""
_DOUBT_S: Final = 3.0
"""Nobody was asked for this long (this process was frozen): ask before the next command."""


class SentinelNodes:
    def __init__(self, url: str, options: RedisOptions) -> None:
        parts = urlsplit(url)
        self._name, _, db = parts.path.strip("/").partition("/")
        self._timeout_s = options.timeout_s
        self._tls = parts.scheme.startswith("rediss")
        self._credentials = credentials_of(parts)
        self._db = int(db or 0)
        self._addresses = addresses_of(parts)
        self._sentinels = [node_at(address, _ANSWER_S, tls=False) for address in self._addresses]
        self._introduced: set[int] = set()
        self._belief = Belief(len(self._sentinels))
        self._node: Node | None = None
        self._gone: list[Node] = []
        """Servers that were left and are still to be closed."""
        self._asked_at = 0.0
        self._silent = False

    # --- what others ask for ----------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Ask the sentinels now. Raises if none answers and no master is known."""
        asks = [partial(self._ask, place) for place in range(len(self._sentinels))]
        before = self._node
        _, trouble = await answers_of_most(asks, _ANSWER_S)
        await self._follow()
        if self._node is None:
            raise trouble
        if self._node is before:
            await self._node.drop_idle()  # there was an error: what else is open to this master may be dead as well

    def doubtful(self) -> bool:
        return time.monotonic() - self._asked_at > _DOUBT_S

    def of(self, key: str) -> Node:
        if self._node is None:
            raise exceptions.ConnectionError("no sentinel has named a master yet")
        return self._node

    def every(self) -> Sequence[Node]:
        return () if self._node is None else (self._node,)

    async def watch(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            for place, address in enumerate(self._addresses):
                tasks.create_task(self._watch(place), name=f"sentinel {name_of(address)}")

    async def close(self) -> None:
        for node in (*self.every(), *self._gone, *self._sentinels):
            await node.close()

    # --- the master -------------------------------------------------------------------------------------------------
    async def _follow(self) -> None:
        """Somebody was asked: act on what we believe now."""
        self._asked_at = time.monotonic()
        master = self._belief.decide(self._asked_at)
        if master is not None and (self._node is None or self._node.name != name_of(master)):
            old, self._node = (
                self._node,
                node_at(master, self._timeout_s, tls=self._tls, db=self._db, **self._credentials),
            )
            if old is not None:
                hand_over(old, self._node.name)
                self._gone.append(old)
        for node in tuple(self._gone):
            await node.close()
            if node in self._gone:
                self._gone.remove(node)

    # --- one sentinel -----------------------------------------------------------------------------------------------
    async def _watch(self, place: int) -> None:
        await asyncio.sleep(_ASK_EVERY_S * place / len(self._sentinels))  # one after the other: news come sooner
        while True:
            try:
                await self._ask(place)
            except (exceptions.RedisError, OSError, TimeoutError):
                telemetry.STORE_ERRORS.labels("sentinel").inc()
            await self._follow()
            self._note_silence()
            await asyncio.sleep(_ASK_EVERY_S)

    async def _ask(self, place: int) -> None:
        """Hear one sentinel. Raises redis-py's exceptions, OSError or TimeoutError."""
        try:
            told = await self._told(place)
        except exceptions.AuthenticationError:
            if not await self._introduce(place):
                raise
            told = await self._told(place)
        self._belief.hear(name_of(self._addresses[place]), _word(*told), time.monotonic())

    async def _told(self, place: int) -> list[Any]:
        # In this order: a failover between the two gives the new address with the old epoch, which is not believed yet.
        # SENTINEL MASTER alone shows the old address until the last replica follows the new master.
        return await self._sentinels[place].exchange(
            [("SENTINEL", "MASTER", self._name), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)]
        )

    async def _introduce(self, place: int) -> bool:
        """A sentinel that wants credentials gets those of the servers; but not in the clear if those have TLS."""
        if self._tls or not self._credentials or place in self._introduced:
            return False
        self._introduced.add(place)
        stranger = self._sentinels[place]
        self._sentinels[place] = node_at(self._addresses[place], _ANSWER_S, tls=False, **self._credentials)
        await stranger.close()
        return True

    def _note_silence(self) -> None:
        silent = self._belief.silent(time.monotonic())
        if silent != self._silent:
            self._silent = silent
            say = telemetry.logger(master=self._node.name if self._node else None)
            if silent:
                say.warning("redis.sentinels_silent", hint="no sentinel answers: the master that is known is kept")
            else:
                say.info("redis.sentinels_heard")


def _word(told: Any, named: Any) -> Word:
    """The answers to SENTINEL MASTER and GET-MASTER-ADDR-BY-NAME."""
    for answer in (told, named):
        if isinstance(answer, Exception):
            raise answer
    try:
        fields = dict(zip(told[::2], told[1::2], strict=True))
        return Word((text(named[0]), int(named[1])), int(fields[b"config-epoch"]))
    except (LookupError, TypeError, ValueError) as error:  # null: it has just forgotten this master
        raise exceptions.ConnectionError("a sentinel gave an answer that cannot be read") from error
