"""One server: its connections, one round trip, and the moment from which nobody here asks it any more.

redis-py connects and parses; packing, time limits and letting go are ours. There are two ways to ask: `exchange`, with a
connection of the pool for each round trip, and `ask`, many round trips on one connection, for what every event takes, and
on another one for pages of history, behind which no event should wait. What a server is (a master, one of a cluster) is
not known here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, cast
from urllib.parse import SplitResult, unquote

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from relay import telemetry
from relay.store.channel import Channel
from relay.store.packing import Command, packed

_CONNECTIONS: Final = 32
_CLOSING_S: Final = 1.0

Address = tuple[str, int]
_T = TypeVar("_T")


async def _answer(connection: Any) -> Any:
    """One answer; a refusal of this one command is an answer too."""
    try:
        return await connection.read_response(disconnect_on_error=False, timeout=math.inf)
    except exceptions.ResponseError as error:
        return error


class Node:
    """One server: a pool for commands, a channel for hot ones, and connections of their own for subscriptions."""

    def __init__(self, name: str, pool: BlockingConnectionPool, timeout_s: float) -> None:
        self.name = name
        self.left = asyncio.Event()
        """Set for ever once this server no longer holds what it held: nothing may be sent to it through this object."""
        self._timeout_s = timeout_s
        self._pool: Any = pool
        self._under_way: set[asyncio.Timeout] = set()
        self._channels: dict[bool, Channel] = {}
        """By whether it is the one apart."""
        self._opening = asyncio.Lock()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip; an answer may be an exception of its own. Raises redis-py's, OSError or TimeoutError.

        Packed by hand and read under one timeout: redis-py's pipeline costs several times as much per command.
        """
        async with asyncio.timeout(self._timeout_s) as scope:
            self._under_way.add(scope)
            try:
                return await self._exchange(commands)
            except RuntimeError as error:  # uvloop's words for it
                raise exceptions.ConnectionError(f"closed meanwhile: {error}") from error
            finally:
                self._under_way.discard(scope)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = await self._pool.get_connection()
        try:
            self._refuse_if_left()  # no await between here and the first byte sent
            await connection.send_packed_command([b"".join(map(packed, commands))], check_health=False)
            return [await _answer(connection) for _ in commands]
        except BaseException:
            await connection.disconnect(nowait=True)  # answers may be on their way: it must not be used again
            raise
        finally:
            await self._pool.release(connection)

    async def ask(self, commands: Sequence[bytes], *, apart: bool = False) -> list[Any]:
        """One round trip of packed commands, beside others; answers and errors as with `exchange`.

        `apart`: the answers may be large, and nobody who waits for small ones should be behind them.
        """
        channel = self._channels.get(apart)
        if channel is None or not channel.open:
            channel = await self._open_channel(apart)
        self._refuse_if_left()  # no await between here and the first byte sent
        return await channel.ask(b"".join(commands), len(commands))

    async def _open_channel(self, apart: bool) -> Channel:
        async with asyncio.timeout(self._timeout_s) as scope:
            self._under_way.add(scope)
            try:
                async with self._opening:
                    channel = self._channels.get(apart)
                    if channel is None or not channel.open:
                        self._refuse_if_left()
                        channel = Channel(self.bare_connection(), self._timeout_s)
                        await channel.connect()
                        self._channels[apart] = channel
                    return channel
            finally:
                self._under_way.discard(scope)

    def _refuse_if_left(self) -> None:
        if self.left.is_set():
            raise exceptions.ConnectionError("this server is no longer asked")

    def bare_connection(self) -> Any:
        """A connection outside the pool whose reads may wait for ever; its user heeds `left`."""
        return self._pool.connection_class(**self._pool.connection_kwargs)

    def leave(self) -> None:
        """Let go of this server now: round trips under way fail with TimeoutError, new ones are refused, bells hear of it.

        What is under way may be done there or not; whoever asked finds out. `close` is still to be called.
        """
        self.left.set()
        for channel in self._channels.values():
            channel.end(TimeoutError("this server is no longer asked"))
        now = asyncio.get_running_loop().time()
        for scope in self._under_way:
            if not scope.expired():
                scope.reschedule(now)

    async def drop_idle(self) -> None:
        """Close what is open and not in use."""
        for channel in self._channels.values():
            if channel.idle:
                channel.end(exceptions.ConnectionError("closed"))
        with suppress(exceptions.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSING_S):
                await self._pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        with suppress(exceptions.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_CLOSING_S):  # a peer that is cut off takes no goodbye
                while self.left.is_set() and self._under_way:  # noqa: ASYNC110  (what was interrupted gives back first)
                    await asyncio.sleep(0.005)
                await self._pool.disconnect()
        for channel in self._channels.values():  # last: it may have been opened in the moment the server was left
            channel.end(exceptions.ConnectionError("closed"))


def name_of(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def node_at(address: Address, timeout_s: float, *, tls: bool, **access: Any) -> Node:
    """A node by its address; `access` may be username, password and db."""
    kind: Any = {"connection_class": SSLConnection} if tls else {}
    pool = BlockingConnectionPool(host=address[0], port=address[1], **kind, **access, **_connection_kwargs(timeout_s))
    return Node(name_of(address), pool, timeout_s)


def node_of_url(url: str, timeout_s: float) -> Node:
    """redis://, rediss:// or unix://, read by redis-py."""
    name = url.partition("?")[0].rpartition("@")[2]  # names are logged
    return Node(name, BlockingConnectionPool.from_url(url, **_connection_kwargs(timeout_s)), timeout_s)


def hand_over(node: Node, to: str) -> None:
    """What this server held is held by others now: said once, and the server is left."""
    telemetry.STORE_FAILOVERS.inc()
    telemetry.logger().warning("redis.failover", old=node.name, new=to)
    node.leave()


def _connection_kwargs(timeout_s: float) -> dict[str, Any]:
    return {
        "max_connections": _CONNECTIONS,
        "timeout": timeout_s,
        # Time is limited by `exchange`: redis-py's own limit is asyncio.wait_for, which on Python 3.11 swallows a
        # cancellation that arrives together with the answer.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


def addresses_of(parts: SplitResult) -> list[Address]:
    """host:port,host:port of an address with several servers."""
    addresses = []
    for item in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = item.rpartition(":")
        addresses.append((host.strip("[]") or item, int(port or 6379)))
    return addresses


def credentials_of(parts: SplitResult) -> dict[str, Any]:
    """user:password@, :password@ or password@."""
    user = parts.netloc.rpartition("@")[0]
    if not user:
        return {}
    name, _, password = (unquote(part) for part in user.partition(":"))
    return {"username": name, "password": password} if name and password else {"password": password or name}


async def answers_of_most(asks: Sequence[Callable[[], Awaitable[_T]]], within_s: float) -> tuple[list[_T], Exception]:
    """Ask all at once; what was answered as soon as more than half have, or after `within_s`. And the last trouble."""
    answers: list[_T] = []
    trouble: list[Exception] = [exceptions.ConnectionError("nobody answered in time")]
    enough = asyncio.Event()
    left = len(asks)

    async def one(ask: Callable[[], Awaitable[_T]]) -> None:
        nonlocal left
        try:
            answers.append(await ask())
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            trouble.append(error)
        left -= 1
        if len(answers) > len(asks) // 2 or not left:
            enough.set()

    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(one(ask)) for ask in asks]
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await enough.wait()
        for task in asking:
            task.cancel()
    return answers, trouble[-1]


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(cast(Any, value) or "")
