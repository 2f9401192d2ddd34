"""Child processes that end with us, kill -9 included (Linux only; elsewhere a child survives that)."""

from __future__ import annotations

import os
import sys

_TIED = """\
import ctypes, os, signal, sys
if ctypes.CDLL(None).prctl(1, signal.SIGTERM) or os.getppid() != int(sys.argv[1]): sys.exit("relay is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Ties the child to our life (1 is PR_SET_PDEATHSIG, kept by exec), then becomes it. The parent is compared
afterwards: had we died before the prctl, no signal would ever come. A program of its own instead of `preexec_fn`,
which may deadlock a process with threads (and warns about it since Python 3.12); it costs 13 ms."""


def tie(platform: str) -> list[str]:
    """What to put before a command (its program as a path). Linux ends the child with the *thread* that starts it."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid())] if platform == "linux" else []
