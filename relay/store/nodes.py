"""Which server holds a key: one server, whichever a Sentinel says is master, or the shards of a Cluster.

redis-py connects and parses; where a key lives is decided here, because its cluster client refuses scripts in pipelines
and polls pub/sub nodes in turn. A server that says MOVED, or is gone, makes us look at the topology again before the next
round trip; the round trip that failed is the caller's to repeat (it knows whether it may have been done).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, cast
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot

from relay.store.options import RedisOptions

_CONNECTIONS: Final = 32
_SLOTS: Final = 16384

Command = tuple[str | bytes | int, ...]


def packed(command: Command) -> bytes:
    """A command as it goes over the wire (RESP)."""
    words = [word if type(word) is bytes else str(word).encode() for word in command]
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


async def _answer(connection: Any) -> Any:
    """One answer; a refusal of this one command is an answer too."""
    try:
        return await connection.read_response(disconnect_on_error=False, timeout=math.inf)
    except exceptions.ResponseError as error:
        return error


class Node:
    """One server: a client for commands, and connections of their own for subscriptions."""

    def __init__(self, name: str, pool: Any, timeout_s: float) -> None:
        self.name = name
        self._timeout_s = timeout_s
        self.pool = pool
        self.client: Redis = Redis(connection_pool=pool)

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """One round trip; an answer may be an exception of its own. Raises redis-py's, OSError or TimeoutError.

        Packed by hand and read under one timeout: redis-py's pipeline costs several times as much per command.
        """
        async with asyncio.timeout(self._timeout_s):
            connection = await self.pool.get_connection()
            try:
                await connection.send_packed_command([b"".join(map(packed, commands))], check_health=False)
                return [await _answer(connection) for _ in commands]
            except BaseException as error:
                await connection.disconnect(nowait=True)  # answers may be on their way: it must not be used again
                if isinstance(error, RuntimeError):
                    raise exceptions.ConnectionError(f"closed meanwhile: {error}") from error  # uvloop's words for it
                raise
            finally:
                await self.pool.release(connection)

    def bare_connection(self) -> Any:
        """A connection outside the pool whose reads may wait for ever."""
        return self.pool.connection_class(**self.pool.connection_kwargs)

    async def close(self) -> None:
        with suppress(exceptions.RedisError, OSError):
            await self.client.aclose()
            await self.pool.disconnect()


class Nodes(Protocol):
    async def refresh(self) -> None:
        """Look at the topology. Raises redis-py's exceptions, or OSError, if nobody can be asked."""

    def of(self, key: str) -> Node:
        """The server that holds this key, as far as we know."""

    def every(self) -> Sequence[Node]:
        """All servers that hold keys."""

    async def close(self) -> None: ...


def nodes_of(url: str, options: RedisOptions) -> Nodes:
    """redis://, rediss://, unix://: one server. redis+sentinel://h:p,h:p/master. redis+cluster://h:p,h:p."""
    scheme = url.partition("://")[0]
    kind = {"redis+sentinel": SentinelNodes, "rediss+sentinel": SentinelNodes}.get(scheme)
    if kind is not None:
        return kind(url, options)
    if scheme in ("redis+cluster", "rediss+cluster"):
        return ClusterNodes(url, options)
    return OneNode(url, options)


def _pool(url: str, options: RedisOptions) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(url, **_connection_kwargs(options))


def _connection_kwargs(options: RedisOptions) -> dict[str, Any]:
    return {
        "max_connections": _CONNECTIONS,
        "timeout": options.timeout_s,
        # Time is limited by `exchange`: redis-py's own limit is asyncio.wait_for, which on Python 3.11 swallows a
        # cancellation that arrives together with the answer.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


class OneNode:
    def __init__(self, url: str, options: RedisOptions) -> None:
        self._node = Node(url, _pool(url, options), options.timeout_s)

    async def refresh(self) -> None:
        return

    def of(self, key: str) -> Node:
        return self._node

    def every(self) -> Sequence[Node]:
        return (self._node,)

    async def close(self) -> None:
        await self._node.close()


class SentinelNodes(OneNode):
    """The master of the moment: the pool asks the sentinels whenever it opens a connection."""

    def __init__(self, url: str, options: RedisOptions) -> None:
        parts = urlsplit(url)
        name, _, db = parts.path.strip("/").partition("/")
        kwargs = _connection_kwargs(options)
        access = _credentials(parts)
        if parts.scheme.startswith("rediss"):
            access["ssl"] = True
        self._sentinel = cast(Any, Sentinel)(
            _addresses(parts),
            sentinel_kwargs={"socket_timeout": None, "socket_connect_timeout": None, "protocol": 2},
            **access,
        )
        client = self._sentinel.master_for(
            name,
            redis_class=Redis,
            db=int(db or 0),
            **{key: value for key, value in kwargs.items() if key != "timeout"},
        )
        self._node = Node(url, client.connection_pool, options.timeout_s)

    async def refresh(self) -> None:
        # A connection to a master that was demoted answers READONLY for ever: let go of all of them.
        await self._node.pool.disconnect()

    async def close(self) -> None:
        await super().close()
        for sentinel in self._sentinel.sentinels:
            with suppress(exceptions.RedisError, OSError):
                await sentinel.aclose()


class ClusterNodes:
    """The masters of a cluster, by slot."""

    def __init__(self, url: str, options: RedisOptions) -> None:
        parts = urlsplit(url)
        self._options = options
        self._seeds = _addresses(parts)
        self._make: Callable[[str, int], str] = lambda host, port: urlunsplit(
            (
                "rediss" if parts.scheme.startswith("rediss") else "redis",
                f"{_userinfo(parts)}{host}:{port}",
                "",
                urlencode(parse_qsl(parts.query)),
                "",
            )
        )
        self._known: dict[tuple[str, int], Node] = {}
        self._slots: list[tuple[int, int, Node]] = []

    async def refresh(self) -> None:
        """Ask any server that answers which master holds which slots."""
        trouble: Exception | None = None
        asked = [*self._known, *(seed for seed in self._seeds if seed not in self._known)]
        for host, port in asked:
            try:
                ranges = (await self._node(host, port).exchange([("CLUSTER", "SLOTS")]))[0]
                if isinstance(ranges, Exception):
                    raise ranges
                self._learn(ranges)
                return
            except (exceptions.RedisError, OSError, TimeoutError) as error:
                trouble = error
        raise trouble or exceptions.ConnectionError("no cluster node is known")

    def _learn(self, ranges: Any) -> None:
        slots = []
        for entry in ranges:
            first, last, master = entry[0], entry[1], entry[2]
            host = _text(master[0]) or self._seeds[0][0]
            slots.append((int(first), int(last), self._node(host, int(master[1]))))
        if sum(last - first + 1 for first, last, _ in slots) < _SLOTS:
            raise exceptions.ClusterDownError("CLUSTERDOWN not every slot has a master")
        self._slots = slots

    def _node(self, host: str, port: int) -> Node:
        node = self._known.get((host, port))
        if node is None:
            node = self._known[host, port] = Node(
                f"{host}:{port}", _pool(self._make(host, port), self._options), self._options.timeout_s
            )
        return node

    def of(self, key: str) -> Node:
        slot = key_slot(key.encode())
        for first, last, node in self._slots:
            if first <= slot <= last:
                return node
        raise exceptions.ClusterDownError("CLUSTERDOWN the topology is not known yet")

    def every(self) -> Sequence[Node]:
        return list({id(node): node for _, _, node in self._slots}.values())

    async def close(self) -> None:
        for node in self._known.values():
            await node.close()


def _addresses(parts: SplitResult) -> list[tuple[str, int]]:
    addresses = []
    for item in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = item.rpartition(":")
        addresses.append((host.strip("[]") or item, int(port or 6379)))
    return addresses


def _userinfo(parts: SplitResult) -> str:
    user, found, _ = parts.netloc.rpartition("@")
    return f"{user}@" if found else ""


def _credentials(parts: SplitResult) -> dict[str, Any]:
    user = parts.netloc.rpartition("@")[0]
    if not user:
        return {}
    name, _, password = user.partition(":")
    return {"password": password or name} if not (name and password) else {"username": name, "password": password}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(cast(Any, value) or "")
