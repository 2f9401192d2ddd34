"""Requests that carry an Idempotency-Key are done once: a second one gets the first one's answer.

The answer is kept in Redis for a day, so that a retry may reach any process. While the first is under way a second is
told to try again; if the first failed before it did anything the key is free again. Keys are stored hashed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from relay.core.errors import Conflict, InvalidRequest, RelayError, UpstreamTimeout, UpstreamUnavailable
from relay.core.events import decode, encode
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.redis import Store

_KEY: Final = 255
_KEPT_MS: Final = 86_400_000
_LONGER_S: Final = 15.0
"""How much longer than an upstream's answer a request may take here; and how much longer than that its key is taken."""
_PENDING: Final = b"pending"


class Once:
    def __init__(self, store: Store, keys: Keys, *, answer_s: float) -> None:
        """`answer_s`: how long an upstream's answer may take."""
        self._store = store
        self._keys = keys
        self._limit_s = answer_s + _LONGER_S
        self._pending_ms = round((answer_s + 2 * _LONGER_S) * 1000)

    async def do(
        self, where: RunKey, caller: str, key: str, body: bytes, action: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """The action's answer, or the one it gave before. Raises what the action raises, and Conflict meanwhile."""
        if not key.isascii() or not key.isprintable() or len(key) > _KEY:
            raise InvalidRequest.field(
                "Idempotency-Key", "not a usable key", f"up to {_KEY} printable ASCII characters"
            )
        name = self._keys.once(where, hashlib.sha256(f"{where}\n{caller}\n{key}".encode()).hexdigest())
        print_of_body = hashlib.sha256(body).hexdigest().encode()
        claimed, stored = await self._store.run(
            "once", [("SET", name, _PENDING + print_of_body, "NX", "PX", self._pending_ms), ("GET", name)]
        )
        if claimed is None:
            return _answer(stored or b"", print_of_body)
        try:
            answer = await within(self._limit_s, action)
        except (UpstreamUnavailable, UpstreamTimeout):
            raise  # it may have been done: until the key expires nobody may try again
        except RelayError:
            await self._store.run("once", [("DEL", name)])
            raise
        kept = encode({"body": print_of_body.decode(), "answer": answer})
        await self._store.run("once", [("SET", name, kept, "PX", _KEPT_MS)])
        return answer


async def within(limit_s: float, action: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """The action's answer; UpstreamTimeout after the limit. What others wait for must be over before they stop waiting."""
    try:
        async with asyncio.timeout(limit_s):
            return await action()
    except TimeoutError as error:
        raise UpstreamTimeout("the upstream did not say in time what it made") from error


def _answer(stored: bytes, print_of_body: bytes) -> dict[str, Any]:
    if not stored or stored.startswith(_PENDING):
        if stored and stored != _PENDING + print_of_body:
            raise _other_body()
        raise Conflict("a request with this Idempotency-Key is under way", code="runs.idempotency", retry_after_s=1.0)
    kept: dict[str, Any] = decode(stored)
    if kept["body"] != print_of_body.decode():
        raise _other_body()
    answer: dict[str, Any] = kept["answer"]
    return answer


def _other_body() -> InvalidRequest:
    return InvalidRequest.field("Idempotency-Key", "was used with another body", "a new key for a new request")
