"""The one place that knows redis-py: connections, scripts, and its exceptions translated.

redis-py's own retries are off: a retried command may have been executed already, and only our scripts know what to do
about that (they carry `prev`). A blocked read would hold a pooled connection, so bells use connections of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, Final, cast
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from relay import telemetry
from relay.core.errors import StartupError, StoreUnavailable
from relay.store.options import RedisOptions

_AWAY: Final = (
    "OOM", "READONLY", "MISCONF", "LOADING", "BUSY", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNKILLABLE"
)  # fmt: skip
"""Error replies that mean "not now": nothing was written, trying again later is right."""

SCRIPTS: Final = ("claim", "append", "seal", "renew", "release")


class Script:
    """A Lua script and the name Redis knows it by."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = files("relay.store").joinpath("lua", f"{name}.lua").read_text("utf-8")
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


class ScriptCall:
    """One call of a script, to be sent with others in one round trip."""

    __slots__ = ("args", "keys", "script")

    def __init__(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> None:
        self.script = script
        self.keys = keys
        self.args = args


def away(error: BaseException) -> bool:
    """Whether Redis is away (rather than us being wrong)."""
    if isinstance(error, exceptions.ResponseError):
        return str(error).startswith(_AWAY) or isinstance(
            error, (exceptions.ReadOnlyError, exceptions.OutOfMemoryError, exceptions.BusyLoadingError)
        )
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


class Bells:
    """A bare connection for pub/sub: one task may read while another sends. Raises StoreUnavailable."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def connect(self) -> None:
        await self._translating(self._connection.connect())

    async def send(self, *words: str | bytes) -> None:
        packed = self._connection.pack_command(*words)
        await self._translating(self._connection.send_packed_command(packed, check_health=False))

    async def read(self) -> object:
        """The next push: a list such as [b"smessage", channel, payload]."""
        return await self._translating(self._connection.read_response(disconnect_on_error=False))

    async def close(self) -> None:
        with suppress(exceptions.RedisError, OSError, TimeoutError):
            await self._connection.disconnect(nowait=True)

    async def _translating(self, call: Awaitable[object]) -> object:
        try:
            return await call
        except (exceptions.RedisError, OSError) as error:
            raise translated(error, "bells") from error


class Store:
    """Commands and scripts against one Redis. Raises StoreUnavailable when it is away."""

    def __init__(self, url: str, options: RedisOptions) -> None:
        self.url = url
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=32,
            timeout=options.timeout_s,
            socket_timeout=options.timeout_s,
            socket_connect_timeout=options.timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = Redis(connection_pool=self._pool)
        self.scripts = {name: Script(name) for name in SCRIPTS}

    async def check(self) -> None:
        """Fail, in one clear line, on a Redis that cannot do the job; load the scripts."""
        where = shown(self.url)
        try:
            await cast(Any, self._redis.ping())
            await self._load()
        except exceptions.AuthenticationError as error:
            raise StartupError(f"redis.url: {where} refused our credentials") from error
        except exceptions.RedisError as error:
            raise StartupError(f"redis.url: {where} cannot be used: {error}") from error
        except OSError as error:
            raise StartupError(f"redis.url: {where} cannot be reached: {error}") from error
        await self._check_eviction(where)

    async def ping(self) -> None:
        await self.run("ping", [("PING",)])

    async def _check_eviction(self, where: str) -> None:
        try:
            config = await self._redis.config_get("maxmemory-policy")
        except exceptions.RedisError:
            telemetry.logger(redis=where).warning(
                "redis.config_hidden", hint="make sure maxmemory-policy is noeviction"
            )
            return
        policy = config.get("maxmemory-policy", "noeviction")
        if policy != "noeviction":
            raise StartupError(
                f"redis.url: {where} has maxmemory-policy {policy}: it would silently drop parts of the event log; "
                "set it to noeviction"
            )

    async def _load(self) -> None:
        pipe = self._redis.pipeline(transaction=False)
        for script in self.scripts.values():
            pipe.script_load(script.text)
        await pipe.execute()

    async def run(self, what: str, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Plain commands in one round trip; the answers in order. Raises for the first one that failed."""
        pipe = self._redis.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return await self._execute(pipe, what, raising=True)

    async def call(self, what: str, calls: Sequence[ScriptCall]) -> list[Any]:
        """Script calls in one round trip. An answer may be an exception: each run stands for itself."""
        answers = await self._send(what, calls)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, exceptions.NoScriptError)]
        if unknown:  # the server was restarted or its scripts flushed; none of these calls did anything
            await self._load_again(what)
            for i, answer in zip(unknown, await self._send(what, [calls[i] for i in unknown]), strict=True):
                answers[i] = answer
        return [translated(answer, what) if isinstance(answer, Exception) else answer for answer in answers]

    async def _load_again(self, what: str) -> None:
        try:
            await self._load()
        except (exceptions.RedisError, OSError) as error:
            raise translated(error, what) from error

    async def _send(self, what: str, calls: Sequence[ScriptCall]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for call in calls:
            pipe.execute_command("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args)
        return await self._execute(pipe, what, raising=False)

    async def _execute(self, pipe: Any, what: str, *, raising: bool) -> list[Any]:
        try:
            answers = await pipe.execute(raise_on_error=raising)
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            raise translated(error, what) from error
        return cast(list[Any], answers)

    def bells(self) -> Bells:
        """A connection outside the pool, for subscriptions: its reads may wait for ever."""
        kwargs = {**self._pool.connection_kwargs, "socket_timeout": None}
        return Bells(self._pool.connection_class(**kwargs))

    async def close(self) -> None:
        await self._redis.aclose()
        await self._pool.disconnect()
