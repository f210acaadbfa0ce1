"""Cuts the text of a long JSON list into its items, without ever holding the whole of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

# What decides where an item ends; an escape inside a string is passed over with the character that it escapes.
_TOKEN = re.compile(r'\\.?|["\[\]{},]', re.DOTALL)


class Piece(NamedTuple):
    """One item of a list, as text that still has to be parsed.

    Attributes:
        text: The item, or None where it was longer than allowed and has been passed over.
        line: The line, from 1, on which it begins.
    """

    text: str | None
    line: int


def split_list(chunks: Iterable[str], *, max_characters: int) -> Iterator[Piece]:
    """Yield the items of a JSON list.

    Only strings and brackets are looked at: an item may be wrong in itself, and those after it are still found.

    Args:
        chunks: The text of the list in any pieces, from its ``[`` on; blanks may stand before it.
        max_characters: A longer item is passed over.

    Raises:
        ValueError: After the last item, if the list is not closed or something stands behind it.
    """
    splitter = _Splitter(max_characters)
    for chunk in chunks:
        yield from splitter.feed(chunk)
    splitter.close()


class _Splitter:
    def __init__(self, max_characters: int) -> None:
        self._max = max_characters
        self._kept: list[str] = []
        self._n_kept = 0
        self._line = 1
        self._depth = 0
        self._in_string = False
        self._escaping = False
        self._after = ""
        self._closed = False
        self._n_items = 0

    def feed(self, chunk: str) -> Iterator[Piece]:
        """Take the next part of the text; yield the items that end in it."""
        if not chunk:
            return
        start = 0
        for token in _TOKEN.finditer(chunk, 1 if self._escaping else 0):
            if self._closed:
                break
            if not self._is_structure(token[0]):
                continue
            before = self._depth
            self._depth += {"[": 1, "{": 1, ",": 0}.get(token[0], -1)
            if before == 0:
                start = token.end()
                self._line += chunk.count("\n", 0, start)
            elif self._depth == 0 or (token[0] == "," and before == 1):
                self._keep(chunk[start : token.start()])
                start = token.end()
                self._closed = self._depth == 0
                yield from self._take()
        self._escaping = self._in_string and _ends_in_escape(chunk, skip_first=self._escaping)
        if self._closed:
            self._after = self._after or chunk[start:].strip()[:1]
        elif self._depth:
            self._keep(chunk[start:])
        else:
            self._line += chunk.count("\n", start)

    def _is_structure(self, sign: str) -> bool:
        if sign == '"':
            self._in_string = not self._in_string
        return sign != '"' and not self._in_string and not sign.startswith("\\")

    def _keep(self, text: str) -> None:
        self._n_kept += len(text)
        # Of an item that is too long only the line breaks are of use.
        self._kept.append(text if self._n_kept <= self._max else "\n" * text.count("\n"))

    def _take(self) -> Iterator[Piece]:
        text = "".join(self._kept)
        n_kept, line = self._n_kept, self._line
        self._kept, self._n_kept = [], 0
        self._line += text.count("\n")
        if self._closed and not self._n_items and not text.strip():
            return
        self._n_items += 1
        blank = text[: len(text) - len(text.lstrip())]
        yield Piece(text.strip() if n_kept <= self._max else None, line + blank.count("\n"))

    def close(self) -> None:
        """Look how the list ended.

        Raises:
            ValueError: If it is not closed, or something stands behind it.
        """
        if not self._closed:
            raise ValueError("the list is not closed: it ends in the middle")
        if self._after:
            raise ValueError("something stands behind the end of the list")


def _ends_in_escape(chunk: str, *, skip_first: bool) -> bool:
    """Return whether the last character of a part is a backslash that escapes the first one of the next."""
    n_backslashes = len(chunk) - len(chunk.rstrip("\\"))
    if skip_first and n_backslashes == len(chunk):
        n_backslashes -= 1
    return n_backslashes % 2 == 1
