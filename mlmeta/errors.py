"""Everything that mlmeta raises on purpose.

    MlmetaError                 the root; its text is a sentence for the user
    ├── BadInputError           what was given cannot be used (exit code 2)
    │   ├── CommandsError       the commands are faulty; holds every Fault
    │   └── PicturesError       the pictures do not make a task
    ├── NotFoundError           no such attempt, file or artifact (exit code 2)
    ├── WeightsError            a weights file does not belong to its attempt (exit code 2)
    ├── QueueFullError          as many jobs wait as may (exit code 1)
    └── AttemptFailedError      an attempt started and could not end well (exit code 1)
        └── DivergedError       its loss is no longer a number

A message says where, what was wrong, what came, what is allowed and, for a name, the nearest match.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

# A text with more faults than these is not read by anyone; `CommandsError.faults` holds all of them.
MAX_SHOWN = 50
# How a sentence begins that says that the history lacks a column.
NO_COLUMN, NO_ATTEMPT_HAS = "there is no column", "no attempt has the"
# No allowed name is longer; the limit keeps hostile names away from the comparison.
_LONGEST_NAME = 200


class MlmetaError(Exception):
    """The root of all errors that mlmeta raises on purpose."""

    exit_code = 1


class BadInputError(MlmetaError):
    """What the user gave cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Fault:
    """One thing wrong in a document.

    Attributes:
        path: Where, with dots: ``model.layers.3.kernel_size``; empty for the whole document.
        message: What is wrong and what is allowed.
        came: What stood there, shortened; empty where nothing did.
        nearest: The allowed name most like the one that came; empty where none is near.
    """

    path: str
    message: str
    came: str = ""
    nearest: str = ""

    def __str__(self) -> str:
        """One line for people: path, message, what came, the nearest match."""
        text = f"{self.path}: {self.message}" if self.path else self.message
        if self.came:
            text += f"; got {self.came}"
        if self.nearest:
            text += f". Did you mean {self.nearest!r}?"
        return text


class CommandsError(BadInputError):
    """The commands are faulty; `faults` lists what was found, and `n_more` were found that are not explained."""

    def __init__(self, faults: Sequence[Fault], *, source: str = "the commands", n_more: int = 0) -> None:
        self.faults = tuple(faults)
        self.source = source
        self.n_more = n_more
        n = len(self.faults) + n_more
        lines = [f"  {fault}" for fault in self.faults[:MAX_SHOWN]]
        if n > len(lines):
            lines.append(f"  … and {n - len(lines):,} more")
        super().__init__("\n".join([f"{source}: {n:,} {'fault' if n == 1 else 'faults'}", *lines]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the way from another process."""
        return partial(CommandsError, source=self.source, n_more=self.n_more), (self.faults,)


class PicturesError(BadInputError):
    """The pictures that were found do not make a task to train on."""


class NotFoundError(MlmetaError):
    """There is no such attempt, file or artifact."""

    exit_code = 2


class WeightsError(MlmetaError):
    """A weights file is damaged, hostile or belongs to another model."""

    exit_code = 2


class QueueFullError(MlmetaError):
    """As many jobs wait to be done as may."""


class AttemptFailedError(MlmetaError):
    """An attempt started and could not end well."""


class DivergedError(AttemptFailedError):
    """The loss of an attempt is no longer a finite number."""


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """Return the allowed name most like `name`, whatever the case, or an empty string where none is near."""
    if len(name) > _LONGEST_NAME:
        return ""
    by_fold = {candidate.casefold(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[matches[0]] if matches else ""


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a sentence that says which of the known names may be meant; `otherwise` where none is near."""
    near = nearest_name(name, known)
    return f". Did you mean {near!r}?" if near else otherwise


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an error's text on one line, cut to `limit` characters; its class where it has no text."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def shorten(value: object, limit: int = 80) -> str:
    """Return a value as text cut to `limit` characters, for error text: strings as `repr`, constants as JSON.

    Only as much of the value is read as is shown, so that neither a large nor a deep one costs anything.
    """
    text = ""
    for piece in _write(value, limit):
        text += piece
        if len(text) > limit:
            return f"{text[: limit - 1]}…"
    return text


def _write(value: object, limit: int) -> Iterator[str]:
    if value is None or isinstance(value, bool):
        yield {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, str):
        yield repr(value[: limit + 1])
    elif isinstance(value, int) and value.bit_length() > 4 * limit:
        yield f"a number of about {value.bit_length() * 0.30103:.0f} digits"
    elif isinstance(value, Mapping):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            yield ", " if index else ""
            yield from _write(key, limit)
            yield ": "
            yield from _write(item, limit)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "[" if isinstance(value, list) else "("
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _write(item, limit)
        yield "]" if isinstance(value, list) else ",)" if len(value) == 1 else ")"
    else:
        yield repr(value)
