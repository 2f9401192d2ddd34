"""What a WebSocket client of `/v1/events` may say, and what becomes of it.

    {"op": "subscribe", "run_id", "after_seq"?, "types"?, "snapshot"?, "upstream"?, "thread_id"?, "token"?}
    {"op": "unsubscribe", "run_id"}      {"op": "ping", …}      {"op": "auth", "token"}

Whatever is wrong with a message is answered by an `error` and ends nothing (docs/protocol.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from relay.core.errors import InvalidRequest, RelayError
from relay.core.events import MAX_SEQ, decode
from relay.core.filters import Types, types_of
from relay.core.goodbye import NO_CREDENTIALS
from relay.core.ids import checked_id, checked_upstream, is_id
from relay.delivery.multiplex import Multiplex
from relay.web.admit import NOBODY, Admit, Principal
from relay.web.gathering import Desk, Gathering, Wish

CREDENTIALS_S: Final = 10.0
"""How long a connection may stay without credentials where they are needed."""
Message = dict[str, Any]


class Conversation:
    def __init__(
        self, desk: Desk, admit: Admit, multiplex: Multiplex, principal: Principal, tasks: asyncio.TaskGroup
    ) -> None:
        self._admit = admit
        self._multiplex = multiplex
        self._gathering = Gathering(desk, multiplex, principal, tasks)
        self._waiting = tasks.create_task(self._wait_for_credentials()) if principal is NOBODY else None
        self._ops: dict[str, Callable[[Message], None]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "ping": self._ping,
            "auth": self._auth,
        }

    def hear(self, text: str) -> None:
        message: Message = {}
        try:
            message = _message(text)
            op = self._ops.get(str(message.get("op")))
            if op is None:
                raise InvalidRequest.field("op", "unknown", ", ".join(self._ops))
            op(message)
        except RelayError as error:
            run_id = message.get("run_id")
            self._multiplex.refuse(error, run_id=run_id if isinstance(run_id, str) and is_id(run_id) else None)

    def close(self) -> None:
        self._gathering.close()
        if self._waiting is not None:
            self._waiting.cancel()

    # --- what they may say ------------------------------------------------------------------------------------------
    def _subscribe(self, message: Message) -> None:
        wish = Wish(
            run_id=_run_id(message),
            after_seq=_after_seq(message),
            types=_types(message),
            snapshot=_snapshot(message),
            upstream=_text(message, "upstream", checked_upstream),
            thread_id=_text(message, "thread_id", checked_id),
            principal=self._own_principal(message),
        )
        self._gathering.want(wish)

    def _unsubscribe(self, message: Message) -> None:
        """Nothing of this run follows the answer."""
        run_id = _run_id(message)
        if not self._gathering.drop(run_id):
            raise InvalidRequest.field("run_id", "not subscribed", "a run this connection reads")
        self._multiplex.say("unsubscribed", {"run_id": run_id})

    def _ping(self, message: Message) -> None:
        """Answered with whatever else it held."""
        self._multiplex.say("pong", {name: value for name, value in message.items() if name != "op"})

    def _auth(self, message: Message) -> None:
        """From now on the connection is this principal's. What it reads already goes on: to the old right's end, or to the
        new one's where that shows the run too."""
        principal = self._gathering.principal = self._admit.spoken(_credentials(message))
        self._multiplex.renew(principal.expires_at, lambda key: principal.run in (None, key))
        if self._waiting is not None:
            self._waiting.cancel()
        self._multiplex.say("authorized", {"name": principal.name})

    # --- small ------------------------------------------------------------------------------------------------------
    def _own_principal(self, message: Message) -> Principal | None:
        return None if message.get("token") is None else self._admit.spoken(_credentials(message))

    async def _wait_for_credentials(self) -> None:
        """A connection without any right to anything may stay so long, at its beginning and whenever it comes to that."""
        while True:
            await asyncio.sleep(CREDENTIALS_S)
            if self._gathering.principal is NOBODY and not len(self._gathering):
                self._multiplex.say_goodbye(NO_CREDENTIALS)
                return


def _message(text: str) -> Message:
    try:
        message = decode(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise InvalidRequest.field("message", "not valid JSON", "a JSON object") from error
    if not isinstance(message, dict):
        raise InvalidRequest.field("message", "not a JSON object", "a JSON object")
    return message


def _run_id(message: Message) -> str:
    run_id = message.get("run_id")
    return checked_id("run_id", run_id if isinstance(run_id, str) else "")


def _text(message: Message, field: str, checked: Callable[[str, str], str]) -> str | None:
    value = message.get(field)
    if value is None:
        return None
    return checked(field, value if isinstance(value, str) else "")


def _after_seq(message: Message) -> int:
    seq = message.get("after_seq", 0)
    if type(seq) is not int or not 0 <= seq <= MAX_SEQ:
        raise InvalidRequest.field("after_seq", "not a sequence number", f"a whole number, 0 to {MAX_SEQ}")
    return seq


def _types(message: Message) -> Types | None:
    types = message.get("types")
    if isinstance(types, list) and all(isinstance(pattern, str) for pattern in types):
        types = ",".join(types)
    if types is not None and not isinstance(types, str):
        raise InvalidRequest.field("types", "not a list of type patterns", "globs such as run.* and tool.*")
    return types_of(types)


def _snapshot(message: Message) -> bool:
    snapshot = message.get("snapshot", False)
    if not isinstance(snapshot, bool):
        raise InvalidRequest.field("snapshot", "not a truth value", "true or false")
    return snapshot


def _credentials(message: Message) -> str:
    token = message.get("token")
    if not isinstance(token, str) or not token:
        raise InvalidRequest.field("token", "missing or not a string", "an API key or a viewer token")
    return token
