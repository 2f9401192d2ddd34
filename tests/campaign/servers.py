"""Redis as the campaign needs it: single, Sentinel (1+2+3) or Cluster (3+3), each node behind a link of our proxy.

Single: every relay has a link of its own. Sentinel and Cluster: every node announces its link's port as its own, so that
all relays (and replicas) come through it; the proxy tells which relay a connection belongs to by its socket (`Sockets`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from relay.store.binaries import choose
from relay.store.tied import tie
from tests.campaign.proxy import Link, Tap
from tests.support import clocks
from tests.support.ports import free_port

_COMMON = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
_DATA = ["--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb", "--repl-timeout", "5"]
# Below the timeout, or the replica of a quiet master leaves it every ten seconds.
_DATA += ["--repl-ping-replica-period", "1"]
_REJOINS_S = 10.0
"""A cluster that is whole serves within this, if its clocks let it."""
Taps = Callable[[object, str], Tap | None]
"""A tap for a connection of this owner to the node of this name."""


class Node:
    """One server process on its own port."""

    def __init__(self, directory: Path, options: Sequence[str], *, sentinel: str | None = None) -> None:
        self.port = free_port()
        self.directory = directory
        self.name = directory.name
        self.link: Link | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self.clock = clocks.Clock(directory / "clock")
        """Its wall clock; a sentinel's stays true (it refuses to act for half a minute after a jump)."""
        self._sentinel = sentinel
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Redis = Redis(
            port=self.port, socket_timeout=5, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0), protocol=2
        )

    def launch(self) -> None:
        self.clock.latest_s = self.clock.offset_s
        program, _ = choose()
        config = self.directory / ("server.conf" if self._sentinel is None else "sentinel.conf")
        if not config.exists():
            # A file, because sentinels have it rewritten: a server they promoted must not start as a replica again.
            own = f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            config.write_text(own + (_config(self._options) if self._sentinel is None else self._sentinel))
        words = [str(config), *([] if self._sentinel is None else ["--sentinel"])]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*tie(sys.platform), str(program), *words], stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **(self.clock.environment if self._sentinel is None else {})},
            )  # fmt: skip

    async def start(self, timeout_s: float = 20.0) -> None:
        self.launch()
        await self.until_up(timeout_s)

    async def until_up(self, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await self.client.execute_command("PING")
                    return
                except Exception:
                    await asyncio.sleep(0.03)

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            clocks.forget(self._process.pid)

    async def close(self) -> None:
        self.kill()
        await self.client.aclose()

    async def role(self) -> str:
        return str((await self.client.execute_command("ROLE"))[0].decode())


def _config(options: Sequence[str]) -> str:
    """Options of the command line as lines of a file."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return "".join(f"{name.removeprefix('--')} {value or chr(34) * 2}\n" for name, value in pairs)


class Redises:
    """The base: nodes, links, and what a fault needs of them."""

    kind = ""

    def __init__(self, directory: Path, relays: int, tap: Taps, who: Callable[[int, int], object]) -> None:
        self.directory = directory / "redis"
        self.relays = relays
        self.taps = tap
        self.who = who
        self.nodes: list[Node] = []
        self.others: list[Node] = []
        """Sentinels."""
        self.links: list[Link] = []
        self.restarted: Callable[[Node, float, float], None] = lambda *_: None
        """Told of every node that was started anew for the topology to serve again, and when that began and ended."""

    def _tap(self, name: str) -> Callable[[object], Tap | None]:
        return lambda owner: self.taps(owner, name)

    async def start(self) -> None:
        raise NotImplementedError

    def url(self, relay: int) -> str:
        raise NotImplementedError

    async def masters(self) -> list[Node]:
        found = []
        for node in self.nodes:
            try:
                if await node.role() == "master":
                    found.append(node)
            except Exception:
                continue
        return found

    async def failover(self, pick: int) -> str:
        raise NotImplementedError

    def link_of(self, relay: int) -> tuple[list[Link], object]:
        """The links relay talks through, and the owner to cut on them (None: they are its own)."""
        return self.links, relay

    async def whole(self, timeout_s: float = 40.0) -> None:
        """Every node runs and the topology serves."""
        for node in (*self.nodes, *self.others):
            node.signal(signal.SIGCONT)
            await node.until_up(timeout_s)
        async with asyncio.timeout(timeout_s):
            while not await self._served():
                await asyncio.sleep(0.1)

    async def _served(self) -> bool:
        """A node that is given another role in this moment closes all its connections: ask again."""
        try:
            for node in self.nodes:  # one that was down as a fault was taken back may have it in its file
                await node.client.execute_command("CONFIG", "SET", "maxmemory", "0", "min-replicas-to-write", "0")
            return await self._serves()
        except RedisConnectionError:
            return False

    async def _serves(self) -> bool:
        return True

    async def close(self) -> None:
        for node in (*self.others, *self.nodes):
            await node.close()
        for link in self.links:
            link.close()


class Single(Redises):
    kind = "single"

    async def start(self) -> None:
        node = Node(self.directory / "node", _COMMON)
        self.nodes.append(node)
        await node.start()
        for relay in range(self.relays):
            link = Link(f"relay{relay}-redis", ("127.0.0.1", node.port), owner=relay, tap=self._tap(node.name))
            self.links.append(await link.open())

    def url(self, relay: int) -> str:
        return f"redis://127.0.0.1:{self.links[relay].port}/0"

    def link_of(self, relay: int) -> tuple[list[Link], object]:
        return [self.links[relay]], None


class _Announced(Redises):
    async def _node(self, name: str, port_options: Callable[[int], list[str]], options: Sequence[str]) -> Node:
        node = Node(self.directory / name, [])
        link = Link(name, ("127.0.0.1", node.port), tap=self._tap(name), who=self.who)
        node.link = await link.open()
        node._options += [*_COMMON, *_DATA, *options, *port_options(link.port)]
        self.links.append(link)
        self.nodes.append(node)
        await node.start()
        return node


class Sentinel(_Announced):
    kind = "sentinel"

    async def start(self) -> None:
        def announce(port: int) -> list[str]:
            return ["--replica-announce-ip", "127.0.0.1", "--replica-announce-port", str(port)]

        first = await self._node("node0", announce, [])
        assert first.link is not None
        for i in (1, 2):
            await self._node(f"node{i}", announce, ["--replicaof", f"127.0.0.1 {first.link.port}"])
        for i in range(3):
            config = (
                f"sentinel monitor main 127.0.0.1 {first.link.port} 2\nsentinel down-after-milliseconds main 1000\n"
                "sentinel failover-timeout main 4000\nsentinel parallel-syncs main 2\n"
            )
            sentinel = Node(self.directory / f"sentinel{i}", [], sentinel=config)
            self.others.append(sentinel)
            await sentinel.start()
        async with asyncio.timeout(30):
            while not await self._complete():
                await asyncio.sleep(0.1)

    async def _complete(self) -> bool:
        for sentinel in self.others:
            flat = await sentinel.client.execute_command("SENTINEL", "MASTER", "main")
            told = _pairs(flat)
            if told.get("num-other-sentinels") != "2" or int(told.get("num-slaves", "0")) < 2:
                return False
        return True

    async def masters(self) -> list[Node]:
        """Whom the sentinels call master: an old one may think it still is, for some seconds."""
        for sentinel in self.others:
            with suppress(Exception):
                _, port = await sentinel.client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")
                return [node for node in self.nodes if node.link is not None and node.link.port == int(port)]
        return await super().masters()

    async def _serves(self) -> bool:
        return sorted([await node.role() for node in self.nodes]) == ["master", "slave", "slave"]

    def url(self, relay: int) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{node.port}" for node in self.others) + "/main"

    async def failover(self, pick: int) -> str:
        return str(await self.others[pick % 3].client.execute_command("SENTINEL", "FAILOVER", "main"))


class Cluster(_Announced):
    kind = "cluster"

    async def start(self) -> None:
        def announce(port: int) -> list[str]:
            return ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", str(port)]

        options = [
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-replica-validity-factor",
            "0",
        ]
        for i in range(6):
            await self._node(f"node{i}", announce, options)
        for node in self.nodes:
            await node.client.execute_command("CONFIG", "SET", "cluster-announce-bus-port", node.port + 10000)
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for i, node in enumerate(masters):
            low, high = 16384 * i // 3, 16384 * (i + 1) // 3 - 1
            await node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            await node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
        for node in self.nodes[1:]:
            await node.client.execute_command(
                "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].port + 10000
            )
        async with asyncio.timeout(30):
            while not await self._knows_all():
                await asyncio.sleep(0.1)
        for master, replica in zip(masters, replicas, strict=True):
            name = await master.client.execute_command("CLUSTER", "MYID")
            await replica.client.execute_command("CLUSTER", "REPLICATE", name)
        await self.whole()

    async def whole(self, timeout_s: float = 40.0) -> None:
        """Every node runs and the cluster serves; a node that does not only because its clock was set back is started anew.

        A master that had lost sight of the others (`among_minority_time`, by its wall clock) serves again only when that
        is a moment ago. Set back by hours meanwhile, it says `cluster_state:fail` for so long, among nodes that all see it.
        """
        try:
            await super().whole(min(_REJOINS_S, timeout_s))
        except TimeoutError:
            await self._restart_those_set_back()
            await super().whole(timeout_s)

    async def _restart_those_set_back(self) -> None:
        for node in self.nodes:
            told = await node.client.execute_command("CLUSTER", "INFO")
            if b"cluster_state:ok" not in told and node.clock.offset_s < node.clock.latest_s:
                began = time.monotonic()
                node.kill()
                await node.start()
                self.restarted(node, began, time.monotonic())

    async def _knows_all(self) -> bool:
        for node in self.nodes:
            told = (await node.client.execute_command("CLUSTER", "NODES")).decode()
            if len([line for line in told.splitlines() if "handshake" not in line]) != 6:
                return False
        return True

    async def _serves(self) -> bool:
        for node in self.nodes:
            told = await node.client.execute_command("CLUSTER", "INFO")
            if b"cluster_state:ok" not in told:
                return False
            role = await node.client.execute_command("ROLE")
            if role[0] == b"slave" and role[3] != b"connected":
                return False
        return True

    def url(self, relay: int) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{link.port}" for link in self.links)

    async def failover(self, pick: int) -> str:
        replicas = [node for node in self.nodes if await node.role() == "slave"]
        return str(await replicas[pick % len(replicas)].client.execute_command("CLUSTER", "FAILOVER"))


TOPOLOGIES: dict[str, type[Redises]] = {"single": Single, "sentinel": Sentinel, "cluster": Cluster}


def _pairs(flat: Any) -> dict[str, str]:
    if isinstance(flat, dict):
        return {_text(k): _text(v) for k, v in flat.items()}
    return {_text(k): _text(v) for k, v in zip(flat[::2], flat[1::2], strict=True)}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Sockets:
    """Which of our processes a local port belongs to (Linux: /proc); asked once per accepted connection."""

    def __init__(self, pids: Callable[[], dict[int, object]]) -> None:
        self._pids = pids

    def who(self, port: int, to: int) -> object:
        inode = self._inode(port, to)
        if inode is None:
            return None
        for pid, name in self._pids().items():
            try:
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    if os.readlink(entry.path) == f"socket:[{inode}]":  # noqa: PTH115  (thousands of times; Path is slow)
                        return name
            except OSError:
                continue
        return None

    def _inode(self, port: int, to: int) -> str | None:
        """A local port alone says nothing: it may be in use towards several others."""
        wanted = [f"0100007F:{port:04X}", f"0100007F:{to:04X}"]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[1:3] == wanted:
                return words[9]
        return None
