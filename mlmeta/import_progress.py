"""How far an import is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from mlmeta.importing import ImportResult

# A log gets a line after this share of the files, but not more often than this.
_EVERY_SHARE = 0.1
_EVERY_S = 2.0


class ImportBar:
    """Shows an import on standard error; see `mlmeta.importing.ImportProgress`."""

    def __init__(self) -> None:
        self._bar = _TerminalBar() if sys.stderr.isatty() else None
        self._told_share = 0.0
        self._told_s = time.monotonic()

    def __enter__(self) -> Self:
        """Start the bar where there is a terminal."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()

    def advance(self, share: float, result: ImportResult) -> None:
        """Show the share of all bytes that has been read, and what has come of it."""
        if self._bar:
            self._bar.update(share, describe_result(result))
        elif share < 1 and share - self._told_share >= _EVERY_SHARE and time.monotonic() - self._told_s >= _EVERY_S:
            click.echo(f"mlmeta: {share:.0%} read, {describe_result(result)}", err=True)
            self._told_share, self._told_s = share, time.monotonic()


class _TerminalBar:
    """rich's progress bar with the counts beside it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("importing"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[counts]}", markup=False),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("importing", total=1.0, counts="")

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def update(self, share: float, text: str) -> None:
        self._progress.update(self._task, completed=share, counts=text)


def describe_result(result: ImportResult, *, would_be: bool = False) -> str:
    """Return the counts of an import in words."""
    counts = (
        (result.n_new, "would be imported" if would_be else "imported"),
        (result.n_known, "known already"),
        (result.n_faults, "left out"),
    )
    return ", ".join(f"{count:,} {words}" for count, words in counts if count or words.endswith("imported"))
