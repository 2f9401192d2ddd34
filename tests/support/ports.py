"""Ports for processes that start later, and again and again on the same port.

They lie below the ephemeral range (Linux: from 32768), so that nobody's outgoing connection and nobody's port 0 sits on one
meanwhile; and each is given once on this machine for as long as this process lives.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing

HOST = "127.0.0.1"
_FIRST, _END = 10_000, 22_700
BUS = 10_000
"""A cluster node's second port lies so far above its first; that one is kept free too."""


def free_port() -> int:
    """A port that is ours from now on, though nobody listens there."""
    at = _FIRST + os.getpid() * 12 % (_END - _FIRST)
    for port in (*range(at, _END), *range(_FIRST, at)):
        if _reserve(port):
            return port
    raise RuntimeError("no free port")


def _reserve(port: int) -> bool:
    """Its UDP namesake is the lock between test processes: the system gives it back when we end, however we do."""
    lock = socket.socket(type=socket.SOCK_DGRAM)
    try:
        lock.bind((HOST, port))
        for number in (port, port + BUS):
            with closing(socket.socket()) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, number))
    except OSError:
        lock.close()
        return False
    lock.detach()  # open until this process ends
    return True
