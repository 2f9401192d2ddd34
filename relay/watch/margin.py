"""Growing text, broken between words where a terminal's line ends. Pure.

What is on the screen stays there: a word that arrives in pieces and outgrows its line is broken by the terminal.
"""

from __future__ import annotations

import re

from rich.cells import cell_len

_PIECES = re.compile(r"\n|[^\S\n]+|\S+")


class Margin:
    """Knows the column the next text goes to. Give it everything that flows, and `newline` for every other line end."""

    def __init__(self) -> None:
        self._column = 0
        self._between_words = True

    def newline(self) -> None:
        self._column = 0
        self._between_words = True

    def fit(self, text: str, width: int) -> str:
        """The same text with line breaks where a word would not fit into `width` cells."""
        return "".join(self._piece(piece, width) for piece in _PIECES.findall(text))

    def _piece(self, piece: str, width: int) -> str:
        if piece == "\n":
            self.newline()
            return piece
        cells, blank = cell_len(piece), piece.isspace()
        if blank and self._column + cells > width:
            self._between_words = True
            return ""  # the line break to come stands for it
        turn = not blank and self._between_words and self._column > 0 and self._column + cells > width
        column = (0 if turn else self._column) + cells
        self._column = column and (column - 1) % width + 1  # past its edge, the terminal went on below
        self._between_words = blank
        return f"\n{piece}" if turn else piece
