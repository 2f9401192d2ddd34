"""What all our serving processes do alike: how they start, the loop they run on, the signals that end them, the one error
they end with."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any


def start() -> None:
    """Before the large imports of a process that serves.

    Nothing of what is imported is garbage: cycles are looked for a hundred times less often.
    """
    gc.set_threshold(50_000, 20, 50)


def settle() -> None:
    """When everything is built. Nearly all of what comes and goes from now on is freed by its count.

    What was built never becomes garbage: the collector walks it no more, and is not asked to look first, which takes 24 ms
    and finds nothing. Viewers wait while it walks (half a microsecond for an object, and a run has three hundred): so it
    walks often and little, at most about 30,000 at once, and everything only after two million new objects.
    """
    gc.freeze()
    gc.set_threshold(5_000, 4, 100)


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end, on uvloop where it is installed."""
    try:
        import uvloop  # noqa: PLC0415  (an extra: `fast`)
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _now() -> None:
    os._exit(1)


def when_told(stop: asyncio.Event, again: Callable[[], None] = _now) -> None:
    """SIGTERM or SIGINT sets `stop`; each further one calls `again`, which by default ends the process at once."""
    signals = 0

    def told() -> None:
        nonlocal signals
        signals += 1
        stop.set()
        if signals > 1:
            again()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)


def first(group: BaseExceptionGroup[Any]) -> BaseException:
    """One error of those that happened together: the others are its consequences."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def life_of_machine() -> str:
    """Changes when the machine starts anew; empty where it cannot be told.

    An embedded server that was killed, with us or without, has lost nothing it ever answered for: what it appended is the
    kernel's (`appendfsync everysec`), and only the machine's end can lose the last second of it.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
