"""Text that grows by deltas, held in few pieces and bounded: only its end is kept beyond a limit.

Lengths are in UTF-16 units, as clients count, so that halves of a surrogate pair that came in two deltas are the pair;
whatever the deltas were, the same text is kept, cut at the same unit.
"""

from __future__ import annotations

from typing import Final

TEXT_UNITS: Final = 1_048_576
"""Most UTF-16 units of one text that are kept: the last ones."""
_PIECES: Final = 256


class Text:
    __slots__ = ("_left_out", "_pieces", "_units")

    def __init__(self, text: str = "", left_out: int = 0) -> None:
        self._pieces = [text] if text else []
        self._units = units(text)
        """Of the pieces, which may hold more than is kept."""
        self._left_out = left_out

    @property
    def kept(self) -> int:
        return min(self._units, TEXT_UNITS)

    @property
    def left_out(self) -> int:
        """Units cut from its beginning."""
        return self._left_out + self._units - self.kept

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._units += units(text)
        if len(self._pieces) >= _PIECES or self._units > 2 * TEXT_UNITS:
            self._join()

    def __str__(self) -> str:
        if len(self._pieces) != 1 or self._units > TEXT_UNITS:
            self._join()
        return self._pieces[0] if self._pieces else ""

    def _join(self) -> None:
        text = paired("".join(self._pieces))
        if self._units > TEXT_UNITS:
            text = text.encode("utf-16-le", "surrogatepass")[-2 * TEXT_UNITS :].decode("utf-16-le", "surrogatepass")
            self._left_out += self._units - TEXT_UNITS
            self._units = TEXT_UNITS
        self._pieces = [text]


def units(text: str) -> int:
    """How many UTF-16 units a text is."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def paired(text: str) -> str:
    """The same text, with halves of surrogate pairs that stand side by side as the pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return text
