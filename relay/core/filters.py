"""Which event types a reader wants: `types=run.*,tool.*`. Skipped events still move the cursor."""

from __future__ import annotations

import re
from functools import lru_cache

from relay.core.errors import InvalidRequest

_PATTERN = re.compile(r"[A-Za-z0-9_.:*-]{1,128}", re.ASCII)
_MOST = 32


class Types:
    """A set of globs over event types. Equal sets are equal values, so that viewers who ask alike share bytes."""

    __slots__ = ("_globs", "_known", "patterns")

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns
        self._globs = [pattern.split("*") for pattern in patterns]
        self._known: dict[str, bool] = {}

    def allows(self, kind: str) -> bool:
        known = self._known.get(kind)
        if known is None:
            known = any(_matches(pieces, kind) for pieces in self._globs)
            # Types are an open set (an upstream may emit any string), so what we remember must be bounded.
            if len(self._known) < 1024:
                self._known[kind] = known
        return known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Types) and other.patterns == self.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __repr__(self) -> str:
        return f"Types({','.join(self.patterns)})"


def _matches(pieces: list[str], kind: str) -> bool:
    """Whether the pieces between the stars stand in `kind` in this order. Never tries twice: time is linear."""
    if len(pieces) == 1:
        return kind == pieces[0]
    first, *middle, last = pieces
    if len(kind) < len(first) + len(last) or not kind.startswith(first) or not kind.endswith(last):
        return False
    at, end = len(first), len(kind) - len(last)
    for piece in middle:
        found = kind.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def types_of(text: str | None) -> Types | None:
    """The filter of a query; None when the reader wants everything."""
    patterns = _patterns_of(text) if text else ()
    return Types(patterns) if patterns else None  # a new one for each: it remembers what it was asked


@lru_cache(maxsize=64)
def _patterns_of(text: str) -> tuple[str, ...]:
    """The globs of a filter, the same for all that mean the same; none if it lets everything through."""
    patterns = [piece.strip() for piece in text.split(",")]
    if len(patterns) > _MOST:
        raise InvalidRequest.field("types", "too many patterns", f"at most {_MOST}")
    if not all(_PATTERN.fullmatch(pattern) for pattern in patterns):
        raise InvalidRequest.field("types", "not a list of type patterns", "comma-separated globs such as run.*,tool.*")
    # Runs of stars mean one star; equal filters should be spelled alike.
    patterns = [re.sub(r"\*+", "*", pattern) for pattern in patterns]
    if any(pattern.count("*") > 4 for pattern in patterns):
        raise InvalidRequest.field("types", "too many stars in one pattern", "at most 4")
    return () if "*" in patterns else tuple(sorted(set(patterns)))
