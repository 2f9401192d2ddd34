"""The one place that knows redis-py: connections, scripts, and its exceptions translated.

redis-py's own retries are off: a retried command may have been executed already, and only our scripts know what to do
about that (they carry `prev`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final, cast
from urllib.parse import urlsplit

from redis import exceptions

from relay import telemetry
from relay.core.errors import StartupError, StoreUnavailable
from relay.store.node import Node
from relay.store.nodes import nodes_of
from relay.store.options import RedisOptions
from relay.store.packing import Command

_AWAY: Final = (
    "OOM", "READONLY", "MISCONF", "LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNKILLABLE",
    "MOVED", "ASK",
)  # fmt: skip
"""Error replies that mean "not now": nothing was written, trying again later is right."""

HISTORY: Final = "history"
"""What is asked under this name has a connection of its own: an append must not wait behind a page of large events."""

Refused = exceptions.ResponseError
"""What Redis answers to a command it will not do, away or not."""

_ELSEWHERE: Final = (exceptions.MovedError, exceptions.AskError, exceptions.ReadOnlyError, exceptions.ClusterDownError)
"""Answers that say that the topology has changed."""

SCRIPTS: Final = (
    "claim", "append", "seal", "renew", "release", "want", "thread", "scan", "look", "leave", "found", "standing",
    "behind", "take", "fill", "fold", "folded", "seen",
)  # fmt: skip

_COUNTING: Final = frozenset(("claim", "append", "seal", "renew", "behind", "take", "fill", "fold", "folded", "seen"))
"""Scripts that compare and count seqs: seqs.lua is put before them."""


class Script:
    """A Lua script and the name Redis knows it by."""

    def __init__(self, name: str) -> None:
        self.name = name
        parts = ("seqs", name) if name in _COUNTING else (name,)
        self.text = "".join(files("relay.store").joinpath("lua", f"{part}.lua").read_text("utf-8") for part in parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class ScriptCall:
    """One call of a script, to be sent with others in one round trip."""

    __slots__ = ("command", "keys")

    def __init__(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> None:
        self.keys = keys
        self.command: Command = ("EVALSHA", script.sha, len(keys), *keys, *args)


def away(error: BaseException) -> bool:
    """Whether Redis is away (rather than us being wrong)."""
    if isinstance(error, exceptions.ResponseError):
        return str(error).startswith(_AWAY) or isinstance(error, (*_ELSEWHERE, exceptions.OutOfMemoryError))
    return isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError, TimeoutError))


def translated(error: BaseException, what: str) -> BaseException:
    """The error to raise instead: StoreUnavailable if Redis is away, else the error itself."""
    if not away(error):
        return error
    telemetry.STORE_ERRORS.labels(what).inc()
    return StoreUnavailable("the event log is not available at the moment", retry_after_s=1.0)


def shown(url: str) -> str:
    """A Redis address without its credentials, for people."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


class Store:
    """Commands and scripts against one Redis, wherever its parts are. Raises StoreUnavailable when it is away."""

    def __init__(self, url: str, options: RedisOptions) -> None:
        self.url = url
        self._nodes = nodes_of(url, options)
        self._stale = True
        """Whether to look at the topology before the next round trip."""
        self._looking = asyncio.Lock()
        self._looks = 0
        self._blind = False
        """Whether the last look found nobody to ask."""
        self._probe = f"{options.prefix}:{{p00}}:bell:check"
        self.scripts = {name: Script(name) for name in SCRIPTS}

    async def check(self) -> None:
        """Fail, in one clear line, on a Redis that cannot do the job; load the scripts. StoreUnavailable: not yet."""
        where = shown(self.url)
        try:
            await self._nodes.refresh()
            self._stale = False
            for node in self._nodes.every():
                await self._load(node)
                await self._check_eviction(node)
                await self._check_channels(node)
        except exceptions.AuthenticationError as error:
            raise StartupError(f"redis.url: {where} refused our credentials") from error
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            if away(error):
                raise StoreUnavailable(
                    f"redis.url: {where} cannot be reached: {str(error) or 'no answer in time'}", retry_after_s=1.0
                ) from error
            raise StartupError(f"redis.url: {where} cannot be used: {error}") from error

    async def ping(self) -> None:
        """Raises StoreUnavailable unless every server answers."""
        await self._look()
        for node in self._nodes.every():
            await self._execute(node, [("PING",)], "ping")

    async def _check_channels(self, node: Node) -> None:
        """Redis 7 gives a new user no channels unless told to: `append` would fail behind its XADD."""
        answer = (await node.exchange([("SPUBLISH", self._probe, "")]))[0]  # MOVED is fine: another node has the slot
        if isinstance(answer, exceptions.NoPermissionError):
            channels = self._probe.partition(":")[0]
            raise StartupError(f"redis.url: {shown(self.url)} gives our user no channels; allow &{channels}:*")

    async def _check_eviction(self, node: Node) -> None:
        answer = (await node.exchange([("CONFIG", "GET", "maxmemory-policy")]))[0]
        if isinstance(answer, Exception):
            telemetry.logger(redis=shown(self.url)).warning(
                "redis.config_hidden", hint="maxmemory-policy must be noeviction"
            )
            return
        policy = answer[1].decode() if answer else "noeviction"
        if policy != "noeviction":
            raise StartupError(
                f"redis.url: {shown(self.url)} has maxmemory-policy {policy}: it would silently drop parts of the event "
                "log; set it to noeviction"
            )

    async def _load(self, node: Node) -> None:
        for answer in await node.exchange([("SCRIPT", "LOAD", script.text) for script in self.scripts.values()]):
            if isinstance(answer, Exception):
                raise answer

    async def run(self, what: str, commands: Sequence[Command], *, each: bool = False) -> list[Any]:
        """Plain commands (the key is their second word), one round trip per server; the answers in order.

        Raises for the first one that failed; with `each`, what is wrong with one key alone is the answer for it.
        """
        keyed = [(str(command[1]) if len(command) > 1 else "", command) for command in commands]
        return await self.run_packed(what, keyed, each=each)

    async def run_packed(
        self, what: str, commands: Sequence[tuple[str, Command | bytes]], *, each: bool = False
    ) -> list[Any]:
        """The same for commands with their keys, which may be packed already: those go over the channel."""
        answers = await self._spread(what, commands)
        for answer in answers:
            if isinstance(answer, Exception) and (away(answer) or not each):
                raise translated(answer, what) from answer
        return answers

    async def call(self, what: str, calls: Sequence[ScriptCall]) -> list[Any]:
        """Script calls, one round trip per server. An answer may be an exception: each run stands for itself."""
        return await self.call_packed(what, [(call.keys[0], call.command) for call in calls])

    async def call_packed(self, what: str, commands: Sequence[tuple[str, Command | bytes]]) -> list[Any]:
        """The same for script calls as a key and a command, which may be packed already: those go over the channel."""
        answers = await self._spread(what, commands)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, exceptions.NoScriptError)]
        if unknown:  # a server was restarted or its scripts flushed; none of these calls did anything
            await self._load_again({self._nodes.of(commands[i][0]) for i in unknown}, what)
            again = await self._spread(what, [commands[i] for i in unknown])
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        return [translated(answer, what) if isinstance(answer, Exception) else answer for answer in answers]

    async def _load_again(self, nodes: set[Node], what: str) -> None:
        try:
            for node in nodes:
                await self._load(node)
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise translated(error, what) from error

    async def _spread(self, what: str, keyed: Sequence[tuple[str, Command | bytes]]) -> list[Any]:
        """Send each command to the server that holds its key; an answer may be redis-py's exception."""
        await self._look()
        groups: dict[Node, list[int]] = {}
        for i, (key, _) in enumerate(keyed):
            groups.setdefault(self._nodes.of(key), []).append(i)
        if len(groups) == 1:  # the common case needs no tasks
            return await self._execute(next(iter(groups)), [command for _, command in keyed], what)
        answers: list[Any] = [None] * len(keyed)
        async with asyncio.TaskGroup() as tasks:
            for node, places in groups.items():
                tasks.create_task(self._fill(answers, places, node, [keyed[i][1] for i in places], what))
        return answers

    async def _fill(
        self, answers: list[Any], places: Sequence[int], node: Node, commands: Sequence[Command | bytes], what: str
    ) -> None:
        """One server's share: that it is away is the answer for its own runs, not for the others."""
        try:
            found = await self._execute(node, commands, what)
        except StoreUnavailable as error:
            found = [error] * len(places)
        for i, answer in zip(places, found, strict=True):
            answers[i] = answer

    async def _look(self) -> None:
        """Look at the topology if there is reason to; many who have reason share one look."""
        if not (self._stale or self._nodes.doubtful()):
            return
        looks = self._looks
        async with self._looking:
            if self._looks == looks:
                await self._look_now()
            elif self._blind:
                raise StoreUnavailable("the event log is not available at the moment", retry_after_s=1.0)

    async def _look_now(self) -> None:
        self._stale, self._blind = False, True  # what fails from now on is a new reason to look
        try:
            await self._nodes.refresh()
            self._blind = False
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise translated(error, "topology") from error
        finally:
            self._stale |= self._blind
            self._looks += 1

    async def _execute(self, node: Node, commands: Sequence[Command | bytes], what: str) -> list[Any]:
        try:
            if isinstance(commands[0], bytes):  # of one call all are packed, or none
                answers = await node.ask(cast(Any, commands), apart=what == HISTORY)
            else:
                answers = await node.exchange(cast(Any, commands))
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            self._stale = True
            raise translated(error, what) from error
        if any(isinstance(answer, _ELSEWHERE) for answer in answers):
            self._stale = True
        return answers

    def node_of(self, key: str) -> Node | None:
        """Where a key (or a channel) lives, as far as is known; None while nothing is."""
        try:
            return self._nodes.of(key)
        except exceptions.RedisError:
            return None

    async def look_again(self) -> None:
        """The topology may have changed: look at it now. Raises StoreUnavailable."""
        self._stale = True
        await self._look()

    async def watch(self) -> None:
        """Notice by ourselves that keys live elsewhere now, instead of by connections that break."""
        await self._nodes.watch()

    async def close(self) -> None:
        await self._nodes.close()
