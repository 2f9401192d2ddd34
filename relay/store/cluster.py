"""The masters of a cluster, by slot.

A node that is cut off from the others goes on answering CLUSTER SLOTS with what it knew. So several are asked, and of
two that claim a slot the one with the higher config epoch has it, which is the cluster's own rule (Redis Cluster
specification, "Hash slots configuration propagation"). MOVED and errors make us look at once; besides, we look every other
second, because a bell's connection to a master that was cut off hears nothing, and nothing says so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from redis import exceptions
from redis.crc import key_slot

from relay.store.node import (
    Address,
    Node,
    addresses_of,
    answers_of_most,
    credentials_of,
    hand_over,
    node_at,
    text,
)
from relay.store.options import RedisOptions

_SLOTS: Final = 16384
_LOOK_EVERY_S: Final = 2.0
_ASKED: Final = 3
"""How many nodes such a look asks."""
_ANSWER_S: Final = 1.0

Claim = tuple[int, int, int, Address]
"""Config epoch, first slot, last slot, and the master that has them."""


class ClusterNodes:
    def __init__(self, url: str, options: RedisOptions) -> None:
        parts = urlsplit(url)
        self._timeout_s = options.timeout_s
        self._tls = parts.scheme.startswith("rediss")
        self._credentials = credentials_of(parts)
        self._seeds = addresses_of(parts)
        self._known: dict[Address, Node] = {}
        """Everybody we may ask: masters, and seeds."""
        self._claims: frozenset[Claim] = frozenset()
        self._holders: list[Node] = []
        """By slot; empty while nothing is known."""
        self._gone: list[Node] = []
        """Servers that were left and are still to be closed."""

    # --- what others ask for ----------------------------------------------------------------------------------------
    async def refresh(self) -> None:
        """Ask everybody we know which master holds which slots. Raises if nobody answers, or not all slots are held."""
        asked = list(dict.fromkeys([*self._known, *self._seeds]))
        views, trouble = await answers_of_most([partial(self._ask, address) for address in asked], _ANSWER_S)
        if not views:
            raise trouble
        # A few that answer may be the ones that are cut off: they take nothing back.
        self._learn(views, () if len(views) > len(asked) // 2 else self._claims)
        await self._close_gone()

    def doubtful(self) -> bool:
        return False  # a master that is cut off from the others refuses by itself, after cluster-node-timeout

    def of(self, key: str) -> Node:
        if not self._holders:
            raise exceptions.ClusterDownError("CLUSTERDOWN the topology is not known yet")
        return self._holders[key_slot(key.encode())]

    def every(self) -> Sequence[Node]:
        return list(dict.fromkeys(self._holders))

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            asked = random.sample(list(self._known), min(_ASKED, len(self._known)))
            views, _ = await answers_of_most([partial(self._ask, address) for address in asked], _ANSWER_S)
            with suppress(exceptions.ClusterDownError):
                self._learn(views, self._claims)
            await self._close_gone()

    async def close(self) -> None:
        for node in (*self._known.values(), *self._gone):
            await node.close()

    # --- asking -----------------------------------------------------------------------------------------------------
    async def _ask(self, address: Address) -> set[Claim]:
        """One node's view. Raises redis-py's exceptions, OSError or TimeoutError."""
        ranges, lines = await self._node(address).exchange([("CLUSTER", "SLOTS"), ("CLUSTER", "NODES")])
        for answer in (ranges, lines):
            if isinstance(answer, Exception):
                raise answer
        try:
            words = [line.split() for line in text(lines).splitlines()]
            epochs = {line[0]: int(line[6]) for line in words if len(line) > 6}
            return {_claim(entry, epochs, address) for entry in ranges}
        except (LookupError, TypeError, ValueError) as error:
            raise exceptions.ConnectionError("a cluster node gave an answer that cannot be read") from error

    def _node(self, address: Address) -> Node:
        node = self._known.get(address)
        if node is None:
            node = self._known[address] = node_at(address, self._timeout_s, tls=self._tls, **self._credentials)
        return node

    # --- learning ---------------------------------------------------------------------------------------------------
    def _learn(self, views: Iterable[Collection[Claim]], known: Collection[Claim]) -> None:
        claims = frozenset(known).union(*views)
        if claims == self._claims:
            return
        owners = _owners(claims)
        nodes = {address: self._node(address) for address in dict.fromkeys(owners)}
        before, self._holders = self._holders, [nodes[address] for address in owners]
        # A master has one epoch, and who holds nothing has none: what was outbid is forgotten.
        epochs = {address: max(claim[0] for claim in claims if claim[3] == address) for address in nodes}
        self._claims = frozenset(claim for claim in claims if claim[0] == epochs.get(claim[3]))
        self._leave(before)

    def _leave(self, before: Sequence[Node]) -> None:
        """Let go of masters that hold nothing any more."""
        for node in set(before).difference(self._holders):
            heirs = {new.name for old, new in zip(before, self._holders, strict=True) if old is node}
            hand_over(node, ",".join(sorted(heirs)))
            self._gone.append(node)
            self._known = {address: known for address, known in self._known.items() if known is not node}

    async def _close_gone(self) -> None:
        for node in tuple(self._gone):
            await node.close()
            if node in self._gone:
                self._gone.remove(node)


def _claim(entry: Any, epochs: dict[str, int], asked: Address) -> Claim:
    """One entry of CLUSTER SLOTS. A node that does not know its own address means the one it was asked at."""
    master = entry[2]
    host = text(master[0]) or asked[0]
    return epochs.get(text(master[2]), 0), int(entry[0]), int(entry[1]), (host, int(master[1]))


def _owners(claims: Iterable[Claim]) -> list[Address]:
    """Slot by slot, the claim with the highest epoch."""
    owners: list[Address | None] = [None] * _SLOTS
    for _, first, last, address in sorted(claims):
        owners[first : last + 1] = [address] * (last + 1 - first)
    found = [owner for owner in owners if owner is not None]
    if len(found) < _SLOTS:
        raise exceptions.ClusterDownError("CLUSTERDOWN not every slot has a master")
    return found
