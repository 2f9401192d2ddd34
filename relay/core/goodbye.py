"""Why we end a connection, in one table: code, words, whether to come back, after how long, and the WebSocket code.

Mid-run an SSE response is never ended politely: the goodbye frame is followed by an abort, so that no client takes it
for completion (docs/upstreams/arkloop.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Goodbye:
    code: str
    text: str
    websocket: int
    """RFC 6455 close code; 4xxx are ours (docs/protocol.md)."""
    reconnect: bool = True
    after_ms: int = 1000
    """Shortest sensible pause before coming back; each client gets its own jitter on top."""
    most_jitter_ms: int | None = None
    """Bound of that jitter; None: the configured one."""


# Those who are told so are told one after the other already: they need not wait long on top of it.
DRAIN: Final = Goodbye("drain", "this relay is going away", 1012, most_jitter_ms=1000)
AGED: Final = Goodbye("max_age", "this connection is as old as it may become here", 1012, most_jitter_ms=1000)
OVERLOAD: Final = Goodbye("overload", "this relay has more connections than it can carry", 1013, after_ms=5000)
SLOW: Final = Goodbye("slow", "the reader took nothing for too long while events were waiting", 4408)
AUTH_EXPIRED: Final = Goodbye("auth.expired", "the access token has expired", 4401)
NO_CREDENTIALS: Final = Goodbye("auth.missing_token", "no credentials came in time", 4401)
FORBIDDEN: Final = Goodbye("auth.forbidden", "access to this run was withdrawn", 4403, reconnect=False)
GONE: Final = Goodbye("runs.not_found", "there is no such run any more", 4404, reconnect=False)

ALL: Final = (DRAIN, AGED, OVERLOAD, SLOW, AUTH_EXPIRED, NO_CREDENTIALS, FORBIDDEN, GONE)

ENDED_CODE: Final = 1000
"""WebSocket close code after `relay.end`."""
