"""`relay watch RUN`: one run, followed to its end in a terminal, whatever happens to the connection.

    tail.py      the connection, and the next one: a client like any other, which knows only the wire
    screen.py    what it shows the run on; JSON lines, for programs
    story.py     the same for people; margin.py breaks its lines between words

Must not live here: anything of the server.
One event's way: bytes -> `sse.Decoder` -> `Tail._take` (drops what was seen, moves the cursor) -> `Screen.event`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TextIO

from relay.core.backoff import Backoff
from relay.watch.options import WatchOptions
from relay.watch.screen import JsonLines, Screen
from relay.watch.story import Story
from relay.watch.tail import Tail

__all__ = ["JsonLines", "Screen", "Story", "WatchOptions", "follow", "run", "watch"]

FRESH = Backoff(base_s=0.25, cap_s=10.0)


def run(options: WatchOptions, out: TextIO, err: TextIO | None = None) -> int:
    """`watch` for a command line: Ctrl-C answers 130, a reader that went away (`| head`) answers 0, both quietly."""
    try:
        return asyncio.run(watch(options, out, err))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still buffered has nowhere to go; without this the interpreter complains about it at exit.
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
            os.dup2(nowhere.fileno(), out.fileno())
        return 0


async def watch(options: WatchOptions, out: TextIO, err: TextIO | None = None) -> int:
    """Follow a run until the relay says it is over.

    Returns 0 once the run has ended, *however it ended* (the status is printed), and 1 if the relay refuses us for
    good (401, 403, 404, 422, or a goodbye that forbids to come back). Every other trouble is waited out.
    `out` gets the run; `err` (default: stderr) gets remarks about the connection unless `out` is a terminal.
    """
    notes = err or sys.stderr
    screen: Screen = JsonLines(out, notes) if options.json else Story(out, notes, options.color)
    try:
        return await follow(options, screen)
    finally:
        screen.close()


async def follow(options: WatchOptions, screen: Screen) -> int:
    """`watch` on a screen of the caller's, which stays open: for whoever shows several runs, and words of their own."""
    return await Tail(options, screen, FRESH).follow()
