"""Who was master when: every server's own word, and whom most sentinels (or most nodes of a cluster) take for it.

Asked ten times a second, straight, not through the links; and how late this loop, which is the proxy's too, was in
doing so: a machine that is too busy makes sentinels see servers as down. A row is written when an answer changes, and `t`
is when the new one was there: it became true at most a question earlier. `{"node", "role"}` is a server's own word;
`{"group", "master"}` what most agree on, by shard (Sentinel: one).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from tests.campaign.servers import Node, Redises

_EVERY_S = 0.1
_ANSWER_S = 0.3
View = dict[str, int]
"""By shard, the port of its master as announced."""


class Witness:
    def __init__(self, redises: Redises, record: Callable[[dict[str, Any]], None]) -> None:
        self._redises = redises
        self._record = record
        self.stalls: list[float] = []
        """How much later than wanted the loop turned, where that was more than a second."""
        self._known: dict[str, str] = {}
        self._clients: dict[int, Redis] = {}
        self._judges = redises.others if redises.kind == "sentinel" else redises.nodes
        self._names = {node.link.port: node.name for node in redises.nodes if node.link is not None}

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._notice_stalls())
            if self._redises.kind != "single":  # one server has no masters to tell apart
                tasks.create_task(self._look())

    async def _notice_stalls(self) -> None:
        while True:
            due = time.monotonic() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            if time.monotonic() - due > 1.0:
                self.stalls.append(round(time.monotonic() - due, 2))

    async def _look(self) -> None:
        while True:
            roles = await asyncio.gather(*(self._role(node) for node in self._redises.nodes))
            for node, role in zip(self._redises.nodes, roles, strict=True):
                self._note("node", node.name, "role", role)
            for group, master in _majority(await asyncio.gather(*map(self._view, self._judges)), len(self._judges)):
                self._note("group", group, "master", self._names.get(master, str(master)))
            await asyncio.sleep(_EVERY_S)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _note(self, what: str, which: str, fact: str, value: str) -> None:
        if value and self._known.get(f"{what} {which}") != value:
            self._known[f"{what} {which}"] = value
            self._record({"t": time.monotonic(), what: which, fact: value})

    async def _role(self, node: Node) -> str:
        answer = await self._ask(node, "ROLE")
        return answer[0].decode() if answer else ""

    async def _view(self, judge: Node) -> View:
        if self._redises.kind == "sentinel":
            answer = await self._ask(judge, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
            return {"main": int(answer[1])} if answer else {}
        answer = await self._ask(judge, "CLUSTER", "NODES")
        lines = [line.split() for line in (answer or b"").decode().splitlines()]
        owners = sorted((int(line[6]), line[8].split("-")[0], _port(line[1])) for line in lines if _holds(line))
        return {slot: port for _, slot, port in owners}

    async def _ask(self, node: Node, *words: str) -> Any:
        client = self._clients.get(node.port)
        if client is None:
            client = self._clients[node.port] = Redis(port=node.port, retry=Retry(NoBackoff(), 0), protocol=2)
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await client.execute_command(*words)
        except (exceptions.RedisError, OSError, TimeoutError):
            return None


def _holds(line: list[str]) -> bool:
    return len(line) > 8 and "master" in line[2] and not line[8].startswith("[")


def _port(address: str) -> int:
    return int(address.partition("@")[0].rpartition(":")[2])


def _majority(views: Iterable[View], of: int) -> list[tuple[str, int]]:
    counts = Counter(item for view in views for item in view.items())
    return [item for item, count in counts.items() if count > of // 2]
