"""Redis topologies to be failed over, and a store that watches them. Real servers, from the campaign's own set-up.

`cut_off` is the worst case of a failover: the old master lives, takes our writes, and reaches neither sentinels nor
replicas, so that nobody ever demotes it. An access list does it: only our user may still do anything there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from relay.core.errors import StoreUnavailable
from relay.store.options import RedisOptions
from relay.store.redis import Store
from tests.campaign.servers import Node, Sentinel

USER = "relay:secret"


@asynccontextmanager
async def sentinels(directory: Path) -> AsyncIterator[Sentinel]:
    """One master, two replicas, three sentinels; our user on all servers."""
    redises = Sentinel(directory, 0, lambda *_: None, lambda *_: None)
    try:
        await redises.start()
        for node in redises.nodes:
            await node.client.execute_command("ACL", "SETUSER", "relay", "on", ">secret", "~*", "&*", "+@all")
        yield redises
    finally:
        await redises.close()


def url_of(redises: Sentinel, order: tuple[int, ...] = (0, 1, 2)) -> str:
    return f"redis+sentinel://{USER}@" + ",".join(f"127.0.0.1:{redises.others[i].port}" for i in order) + "/main"


@asynccontextmanager
async def watched(url: str, *, watch: bool = True) -> AsyncIterator[Store]:
    store = Store(url, RedisOptions(timeout_s=2.0))
    try:
        await store.check()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(store.watch()) if watch else None
            yield store
            if watching is not None:
                watching.cancel()
    finally:
        await store.close()


def as_user(node: Node) -> Redis:
    """A look behind: straight at one server, as our user."""
    return Redis(port=node.port, username="relay", password="secret", retry=Retry(NoBackoff(), 0), protocol=2)


async def cut_off(node: Node) -> None:
    """Nobody but our user reaches this server from now on, and it cannot know."""
    await node.client.execute_command("ACL", "SETUSER", "default", "-@all")
    looking = as_user(node)
    await looking.execute_command("CLIENT", "KILL", "TYPE", "replica")
    await looking.aclose()


async def master_of(redises: Sentinel) -> Node:
    return (await redises.masters())[0]


async def agreed(redises: Sentinel, old: Node, timeout_s: float = 60.0) -> Node:
    """The new master, once most sentinels name it."""
    async with asyncio.timeout(timeout_s):
        while True:
            named = [await _named(sentinel) for sentinel in redises.others]
            for node in redises.nodes:
                assert node.link is not None
                if node is not old and named.count(node.link.port) >= 2:
                    return node
            await asyncio.sleep(0.02)


async def _named(sentinel: Node) -> int:
    return int((await sentinel.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"))[1])


class Writer:
    """Appends the time to a stream, on and on, as far as the store lets it."""

    def __init__(self, store: Store, key: str = "written") -> None:
        self.key = key
        self._store = store

    async def run(self) -> None:
        while True:
            with suppress(Exception):
                await self._store.run("test", [("XADD", self.key, "*", "t", repr(time.monotonic()))])
            await asyncio.sleep(0.02)

    async def last_at(self, node: Node) -> float:
        """When what this server has last was sent to it."""
        looking = as_user(node)
        try:
            entries: Any = await looking.execute_command("XREVRANGE", self.key, "+", "-", "COUNT", 1)
        finally:
            await looking.aclose()
        return float(next(iter(entries[0][1].values() if isinstance(entries[0][1], dict) else entries[0][1][1:])))


async def until(fact: Callable[[], Awaitable[Any]], timeout_s: float = 60.0) -> Any:
    async with asyncio.timeout(timeout_s):
        while True:
            with suppress(exceptions.RedisError, StoreUnavailable, OSError, IndexError):
                if found := await fact():
                    return found
            await asyncio.sleep(0.02)
