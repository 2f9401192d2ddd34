"""Small shared pieces of configuration; the option classes themselves stand beside the code that uses them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Secret:
    """A string that never shows itself: not in a log line, an error, a repr or `relay check`."""

    value: str

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__
