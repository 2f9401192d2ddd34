"""What a worker and its parent say to each other, over a pair of sockets that nobody else has.

    parent -> worker   Boot, first and once; then {"ask": what} and {"stop": true, "alone": …}
    worker -> parent   {"up": true}; {"started": true}; {"answer": what, "value": …}; {"failed": sentence, "status": n}

The configuration comes this way and not by file or environment, because a replacement must run what its siblings run,
and because secrets have no business on a command line. Whoever finds the channel closed knows that the other is gone.
Nothing of this file waits or logs.
"""

from __future__ import annotations

import pickle  # the parent's own words to its own child: no stranger can write to this pair of sockets
import socket
import struct
from asyncio import StreamReader
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from relay.core.events import decode, encode
from relay.core.options import Secret
from relay.settings import Settings

Question: TypeAlias = Literal["ready", "metrics", "runs"]

_LENGTH: Final = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Boot:
    """Everything a worker has to know."""

    number: int
    settings: Settings
    redis_url: Secret
    token_secret: Secret
    alone: bool
    """The first worker on an embedded server, before all others: leases in its log are those of the dead."""
    listeners: tuple[int, ...]
    """Descriptors it inherited: bound, not yet listening."""

    def frame(self) -> bytes:
        return _framed(pickle.dumps(self))


def frame(message: Mapping[str, Any]) -> bytes:
    return _framed(encode(message))


def boot_from(channel: socket.socket) -> Boot | None:
    """The first frame, before there is a loop; None if the parent is gone already."""
    size = channel.recv(_LENGTH.size, socket.MSG_WAITALL)
    if len(size) < _LENGTH.size:
        return None
    body = channel.recv(_LENGTH.unpack(size)[0], socket.MSG_WAITALL)
    boot: Boot = pickle.loads(body)  # noqa: S301  (see above)
    return boot


async def message_from(reader: StreamReader) -> dict[str, Any]:
    """The next message. Raises EOFError (asyncio's own is one) or OSError when the other is gone."""
    size = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
    message: dict[str, Any] = decode(await reader.readexactly(size))
    return message


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body
