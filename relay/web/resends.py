"""A create that its client sends again because it heard no answer makes one run, although it carries no idempotency key.

The vendors' SDKs resend a POST blindly when a connection breaks. One request is known by its caller, thread and body. A
second one like it waits for the first one's answer and gets the same. After that answer: a client that says it tries
again (`x-stainless-retry-count`) gets it for two minutes, and one that says it does not never gets it. One that says
nothing gets it if nobody was there any more to hear it; else for a moment, as long as the run goes on (a thread has one
active run, so a second would be refused).

An upstream that did not answer may have made the run. The next try asks it again, and if it says that the thread is busy
the run that keeps it busy is the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from relay.core.errors import Conflict, Overloaded, RelayError, UpstreamTimeout, UpstreamUnavailable
from relay.core.events import decode, encode
from relay.core.ids import RunKey
from relay.store.keys import Keys
from relay.store.redis import Store
from relay.web.once import within

Attempt = Literal["first", "again", "unknown"]
Answer = dict[str, Any]

_PENDING: Final = b"pending"
_UNCLEAR: Final = b"unclear"
_LONGER_S: Final = 5.0
"""How much longer than an upstream's answer a request is waited for: who died meanwhile, not much longer than that."""
_KEPT_MS: Final = 120_000
_MOMENT_S: Final = 20.0
"""All of seekrai's tries lie within it."""
_LOOK_S: Final = 0.1


class Resends:
    """Answers are kept in Redis, so that a second try may reach any process."""

    def __init__(self, store: Store, keys: Keys, *, answer_s: float) -> None:
        """`answer_s`: how long an upstream's answer may take."""
        self._store = store
        self._keys = keys
        self._limit_s = answer_s + _LONGER_S / 2
        self._pending_ms = round((answer_s + _LONGER_S) * 1000)
        self._patience_s = answer_s + 2 * _LONGER_S

    async def do(
        self,
        where: RunKey,
        caller: str,
        body: bytes,
        attempt: Attempt,
        *,
        listening: Callable[[], bool],
        create: Callable[[], Awaitable[Answer]],
        active: Callable[[str], Awaitable[bool]],
        busy_with: Callable[[], Awaitable[Answer | None]],
    ) -> Answer:
        """The answer of `create`, called once for all requests that are the same one.

        `listening`: the client is still there. `active`: a run is not over. `busy_with`: the run a thread is busy with.
        """
        name = self._name(where, b"resend", caller.encode(), body)
        waited = doubtful = False
        last: Answer | None = None
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            stored = (await self._store.run("once", [("GET", name)]))[0]
            if stored is None:
                if attempt == "again" and last is not None:
                    return last
                if await self._claimed(name):
                    return await self._create(name, listening, create, busy_with if doubtful else None)
            elif stored == _PENDING:
                waited = doubtful = True  # doubtful: whoever was first may die over it
                await asyncio.sleep(_LOOK_S)
            elif stored == _UNCLEAR:
                doubtful = True
                name = self._name(where, name.encode(), _UNCLEAR)
            else:
                kept = decode(stored)
                answer: Answer = kept["answer"]
                if waited or (attempt == "unknown" and await _is_this_one(kept, active)):
                    if listening() and not kept["heard"]:
                        await self._keep(name, {**kept, "heard": True})
                    return answer
                last = answer
                # That one was another request: what follows it has the next name, the same for everybody.
                name = self._name(where, name.encode(), str(answer["run_id"]).encode())
        raise Overloaded("the same request is still under way", code="runs.under_way", retry_after_s=2.0)

    def _name(self, where: RunKey, *parts: bytes) -> str:
        return self._keys.once(where, hashlib.sha256(b"\n".join([str(where).encode(), *parts])).hexdigest())

    async def _claimed(self, name: str) -> bool:
        answers = await self._store.run("once", [("SET", name, _PENDING, "NX", "PX", self._pending_ms)])
        return answers[0] is not None

    async def _create(
        self,
        name: str,
        listening: Callable[[], bool],
        create: Callable[[], Awaitable[Answer]],
        busy_with: Callable[[], Awaitable[Answer | None]] | None,
    ) -> Answer:
        try:
            answer = await within(self._limit_s, lambda: _adopting(create, busy_with))
        except (UpstreamUnavailable, UpstreamTimeout):
            await self._store.run("once", [("SET", name, _UNCLEAR, "PX", _KEPT_MS)])
            raise
        except RelayError:
            await self._store.run("once", [("DEL", name)])
            raise
        except BaseException:  # cancelled: what the upstream made of it nobody knows
            await asyncio.shield(self._store.run("once", [("SET", name, _UNCLEAR, "PX", _KEPT_MS)]))
            raise
        await self._keep(name, {"at": time.time(), "answer": answer, "heard": listening()})
        return answer

    async def _keep(self, name: str, kept: dict[str, Any]) -> None:
        await self._store.run("once", [("SET", name, encode(kept), "PX", _KEPT_MS)])


async def _adopting(
    create: Callable[[], Awaitable[Answer]], busy_with: Callable[[], Awaitable[Answer | None]] | None
) -> Answer:
    try:
        return await create()
    except Conflict:
        found = await busy_with() if busy_with is not None else None
        if found is None:
            raise
        return found


async def _is_this_one(kept: dict[str, Any], active: Callable[[str], Awaitable[bool]]) -> bool:
    """Whether a request like the answered one, that does not say so, is that one sent again."""
    if not kept["heard"]:
        return True
    return bool(time.time() - kept["at"] < _MOMENT_S and await active(str(kept["answer"]["run_id"])))
