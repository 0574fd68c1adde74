"""A command's text to its words, each with the place where it stands in the file.

Enters: the text of a ``server_cmd`` and the file's lines. Leaves: words as
``shlex`` would split them (POSIX rules, no comments), with line and column.
Touches nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from steps.core.errors import Place

#: What a word may go on with, unchanged, outside and inside of each kind of quote.
_PLAIN = {
    "": re.compile(r"[^\s'\"\\]+"),
    "'": re.compile(r"[^']+"),
    '"': re.compile(r"[^\"\\]+"),
}


@dataclass(frozen=True)
class Word:
    """One argument as written, and where."""

    text: str
    place: Place


#: What separates words, as ``shlex`` has it; an exotic blank is a part of its word.
BLANKS = " \t\r\n"


class UnbalancedQuote(ValueError):
    """A quote that is never closed, or a backslash at the end; ``offset`` is where it stands."""

    def __init__(self, quote: str, offset: int) -> None:
        what = "escapes nothing" if quote == "\\" else "is never closed"
        super().__init__(f"the {'backslash' if quote == chr(92) else 'quote'} {quote} {what}")
        self.offset = offset


def split(text: str) -> list[tuple[str, int, int]]:
    """Words of ``text`` with their start and end offsets.

    A backslash before a line break continues the line, as in a shell.

    Raises:
        UnbalancedQuote: a quote is opened and not closed.
    """
    words: list[tuple[str, int, int]] = []
    chars: list[str] = []
    start = -1
    quote = ""
    opened = 0
    at, size = 0, len(text)
    while at < size:
        plain = _PLAIN[quote].match(text, at)
        if plain:
            start = at if start < 0 else start
            chars.append(plain[0])
            at = plain.end()
            continue
        char = text[at]
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and at + 1 < size and text[at + 1] in '"\\\n':
                at += 1
                if text[at] != "\n":
                    chars.append(text[at])
            else:
                chars.append(char)
        elif char in BLANKS:
            if start >= 0:
                words.append(("".join(chars), start, at))
                chars, start = [], -1
        elif char == "\\" and at + 1 < size and text[at + 1] == "\n":
            at += 1
        else:
            if start < 0:
                start = at
            if char in "'\"":
                quote, opened = char, at
            elif char == "\\":
                if at + 1 == size:
                    raise UnbalancedQuote(char, at)
                at += 1
                chars.append(text[at])
            else:
                chars.append(char)
        at += 1
    if quote:
        raise UnbalancedQuote(quote, opened)
    if start >= 0:
        words.append(("".join(chars), start, size))
    return words


#: Pieces that are written otherwise in the file (escapes); after so many the search is given up.
_MISSES = 8


class Locator:
    """Finds words of a scalar in the file's lines, front to back.

    A folded scalar's offsets do not say where its words stand; searching each
    word's raw pieces in order does.
    """

    def __init__(self, file: str, lines: tuple[str, ...], span: tuple[int, int, int, str]) -> None:
        first, column, last, style = span
        self._file = file
        self._lines = lines[:last]
        self._misses = 0
        self._row = first - 1
        self._column = column - 1
        if style in "|>" and style:
            self._row += 1
            self._column = 0

    def place(self, raw: str) -> Place:
        """Where ``raw``, the next word as written, starts; the search goes on behind it."""
        found: Place | None = None
        for piece in raw.split():
            spot = self._find(piece)
            if spot is None:
                continue
            found = found or spot
        return found or Place(self._file, self._row + 1, self._column + 1)

    def _find(self, piece: str) -> Place | None:
        if self._misses >= _MISSES:
            return None
        row, column = self._row, self._column
        while row < len(self._lines):
            spot = self._lines[row].find(piece, column)
            if spot >= 0:
                self._row, self._column = row, spot + len(piece)
                return Place(self._file, row + 1, spot + 1)
            row, column = row + 1, 0
        self._misses += 1
        return None
