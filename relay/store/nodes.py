"""Which server holds a key: one server, whichever the sentinels say is master, or the shards of a Cluster.

redis-py connects and parses; where a key lives is decided here, because its cluster client refuses scripts in pipelines
and polls pub/sub nodes in turn, and its Sentinel client asks only when it opens a connection. A server that says MOVED, or
is gone, makes us look at the topology again before the next round trip; the round trip that failed is the caller's to
repeat (it knows whether it may have been done). Between errors `watch` looks by itself, and leaves a server that no longer
holds what it held (`Node.leave`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from relay.store.cluster import ClusterNodes
from relay.store.node import Node, node_of_url
from relay.store.options import RedisOptions
from relay.store.sentinel import SentinelNodes


class Nodes(Protocol):
    async def refresh(self) -> None:
        """Look at the topology. Raises redis-py's exceptions, OSError or TimeoutError if nobody can be asked."""

    def doubtful(self) -> bool:
        """Whether what is known is too old to act on without a look."""

    def of(self, key: str) -> Node:
        """The server that holds this key, as far as we know. Raises redis-py's exceptions while nothing is known."""

    def every(self) -> Sequence[Node]:
        """All servers that hold keys."""

    async def watch(self) -> None:
        """Keep looking, for as long as there is anything to look at."""

    async def close(self) -> None: ...


def nodes_of(url: str, options: RedisOptions) -> Nodes:
    """redis://, rediss://, unix://: one server. redis+sentinel://h:p,h:p/master. redis+cluster://h:p,h:p."""
    scheme = url.partition("://")[0]
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return SentinelNodes(url, options)
    if scheme in ("redis+cluster", "rediss+cluster"):
        return ClusterNodes(url, options)
    return OneNode(url, options)


class OneNode:
    """Where everything is in one place there is nothing to find out."""

    def __init__(self, url: str, options: RedisOptions) -> None:
        self._node = node_of_url(url, options.timeout_s)

    async def refresh(self) -> None:
        return

    def doubtful(self) -> bool:
        return False

    def of(self, key: str) -> Node:
        return self._node

    def every(self) -> Sequence[Node]:
        return (self._node,)

    async def watch(self) -> None:
        return

    async def close(self) -> None:
        await self._node.close()
