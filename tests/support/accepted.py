"""A flaw of asyncio (gh-109564): who is accepted in the moment its server closes is forgotten.

The half-made transport is closed by the garbage collector, with a complaint in the middle of somebody else's test.
"""

from __future__ import annotations

import socket
from asyncio import selector_events
from typing import Any


def mend() -> None:
    """From now on in this process such a connection is closed at once."""
    loops: Any = selector_events.BaseSelectorEventLoop
    accept = loops._accept_connection2

    async def accepted(
        loop: Any, factory: Any, conn: socket.socket, extra: Any, sslcontext: Any = None, server: Any = None, *more: Any,
        **limits: Any,
    ) -> None:  # fmt: skip
        if server is not None and server._sockets is None:
            conn.close()
        else:
            await accept(loop, factory, conn, extra, sslcontext, server, *more, **limits)

    loops._accept_connection2 = accepted
