"""The public port of several processes: reserved once by the parent, listened on by every worker.

    parent   binds it alone, so that a port in use is found out as ever, and then allows SO_REUSEPORT on it: from now on
             it can be joined by sockets that ask for that, and are this user's. It never listens, so nobody is
             connected to it; it keeps the port ours while a worker, or all of them, are being replaced.
    workers  each get a socket of their own, bound by the parent: the kernel deals connections out among those that
             listen. One that is gone gets none from that moment on; its siblings do.

A second `relay serve` cannot slip in: it has to bind the port alone first, and that fails while ours is open. (To ask with
a probe that is closed again would leave a moment for two relays that start together.)
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final, Self

from relay.web import listener

_SHARE: Final = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
_AGAIN: Final = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
"""Lets us have a port on which connections of an earlier relay are still dying."""


class Port:
    """A reserved address, for as long as it is open."""

    def __init__(self, host: str, port: int) -> None:
        """Raises StartupError: in use, not ours to bind, no such address. A name may stand for several addresses."""
        self._reserved: list[socket.socket] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            try:
                for family, address in _addresses(host, port):
                    # Port 0: the first address chooses, the others follow it.
                    number = self._reserved[0].getsockname()[1] if self._reserved else address[1]
                    self._reserved.append(_reserved(family, (address[0], number, *address[2:])))
            except OSError as error:
                raise listener.refused("server", host, port, error) from error
            undo.pop_all()

    @property
    def address(self) -> str:
        return listener.shown(self._reserved[0].getsockname())

    def sockets(self) -> list[socket.socket]:
        """New ones for one worker, bound to every address of ours. Whoever gets them closes them."""
        with ExitStack() as undo:
            bound = [undo.enter_context(_socket(old.family)) for old in self._reserved]
            for sock, old in zip(bound, self._reserved, strict=True):
                sock.setsockopt(*_SHARE, 1)
                sock.bind(old.getsockname())
            undo.pop_all()
        return bound

    def close(self) -> None:
        for sock in self._reserved:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _socket(family: socket.AddressFamily | int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(*_AGAIN, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does: IPv4 has a socket of its own
    return sock


def _reserved(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    sock = _socket(family)
    try:
        sock.bind(address)
        # Linux lets anybody with SO_REUSEADDR in beside a socket that has it too and does not listen.
        sock.setsockopt(*_AGAIN, 0)
        sock.setsockopt(*_SHARE, 1)
    except OSError:
        sock.close()
        raise
    return sock
