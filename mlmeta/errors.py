"""Everything that mlmeta raises on purpose.

    MlmetaError                 the root; its text is a sentence for the user
    ├── BadInputError           what was given cannot be used (exit code 2)
    │   ├── CommandsError       the commands are faulty; holds every Fault
    │   └── PicturesError       the pictures do not make a task
    ├── NotFoundError           no such attempt, file or artifact (exit code 2)
    ├── WeightsError            a weights file does not belong to its attempt (exit code 2)
    └── AttemptFailedError      an attempt started and could not end well (exit code 1)
        └── DivergedError       its loss is no longer a number

A message says where, what was wrong, what came, what is allowed and, for a name, the nearest match.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


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
    """The commands are faulty; `faults` lists all that was found."""

    def __init__(self, faults: Sequence[Fault], *, source: str = "the commands") -> None:
        """Make one message of all faults; `source` names the document."""
        self.faults = tuple(faults)
        self.source = source
        n = len(self.faults)
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        super().__init__(f"{source}: {n} {'fault' if n == 1 else 'faults'}\n{lines}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the way from another process."""
        return _make_commands_error, (self.faults, self.source)


def _make_commands_error(faults: Sequence[Fault], source: str) -> CommandsError:
    return CommandsError(faults, source=source)


class PicturesError(BadInputError):
    """The pictures that were found do not make a task to train on."""


class NotFoundError(MlmetaError):
    """There is no such attempt, file or artifact."""

    exit_code = 2


class WeightsError(MlmetaError):
    """A weights file is damaged, hostile or belongs to another model."""

    exit_code = 2


class AttemptFailedError(MlmetaError):
    """An attempt started and could not end well."""


class DivergedError(AttemptFailedError):
    """The loss of an attempt is no longer a finite number."""


def nearest_name(name: str, allowed: Iterable[str]) -> str:
    """Return the allowed name most like `name`, or an empty string where none is near."""
    by_fold = {candidate.casefold(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[matches[0]] if matches else ""


def shorten(value: object, limit: int = 80) -> str:
    """Return `repr(value)` cut to `limit` characters, for error text."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
