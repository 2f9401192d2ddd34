"""What a watched run is shown on, and the plain way to do it: JSON lines, for programs.

Nothing off the wire may steer a terminal: every screen makes its text harmless at the one place where it writes.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, TextIO

from relay.core.events import encode

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_RAW_IN_JSON = re.compile(r"[\x7f-\x9f]")


class Screen(Protocol):
    def event(self, event: dict[str, Any], text: str) -> None:
        """A new event, parsed and as it came."""

    def reset(self, frame: dict[str, Any]) -> None:
        """Events that can no longer be had. Never hidden."""

    def note(self, text: str) -> None:
        """A remark about the connection, not about the run."""

    def end(self, status: str, last_seq: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One event a line, flushed. A `relay.reset` is a line too, in the words of the WebSocket: a hole is data."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err

    def event(self, event: dict[str, Any], text: str) -> None:
        self._line(encode(event).decode() if "\n" in text else text)

    def reset(self, frame: dict[str, Any]) -> None:
        self._line(encode({"type": "relay.reset", **frame}).decode())

    def _line(self, text: str) -> None:
        # JSON-equal, and harmless on a terminal: DEL and C1 are the only controls JSON lets through unescaped.
        self._out.write(_RAW_IN_JSON.sub(lambda c: f"\\u{ord(c[0]):04x}", text) + "\n")
        self._out.flush()

    def note(self, text: str) -> None:
        print(f"relay watch: {printable(text)}", file=self._err, flush=True)

    def end(self, status: str, last_seq: int) -> None:
        """The exit status says it; the lines are events only."""

    def flush(self) -> None: ...

    def close(self) -> None: ...


def printable(text: str) -> str:
    """Text without C0 and C1 controls (but newline and tab): nothing off the wire may steer a terminal."""
    return _CONTROLS.sub("", text)
