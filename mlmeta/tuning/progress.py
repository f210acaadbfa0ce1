"""How far a tuning is: a table that grows on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import summarise_model
from mlmeta.training.progress import describe_epoch

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions

    from mlmeta.tuning.recommend import Recommendation


_COLUMNS = ("attempt", "round", "expected", "how", "epoch", "val_accuracy", "heading for", "state")
# Of the table: its title, head, rules and a line to spare; what "how" is not made narrower than; between columns.
_LINES_AROUND = 7
_LEAST_HOW = 12
_GAP = 3


@dataclass
class _Row:
    """One attempt as it is shown."""

    round: int
    expected: str
    how: str
    n_epoch: int
    epoch: int = 0
    val_accuracy: float = math.nan
    heading_for: str = ""
    state: str = ""

    def cells(self) -> list[str]:
        accuracy = "" if math.isnan(self.val_accuracy) else f"{self.val_accuracy:.1%}"
        epoch = f"{self.epoch}/{self.n_epoch}"
        return [str(self.round), self.expected, self.how, epoch, accuracy, self.heading_for, self.state]


@dataclass
class TuningProgress:
    """Shows the attempts of one tuning on standard error.

    Args:
        commands: What is tuned.
    """

    commands: TrainCommands
    _rows: dict[str, _Row] = field(default_factory=dict, init=False)
    _live: Any = field(default=None, init=False)

    def __enter__(self) -> Self:
        """Begin the table where there is a terminal."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(console=console, get_renderable=lambda: self._draw(console.size), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal with the table as it is at last."""
        if self._live:
            self._live.stop()

    def attempt(self, commands: TrainCommands, round_number: int, proposal: Recommendation | None) -> AttemptProgress:
        """Show that an attempt is begun, or gone on with; what comes back is told of its epochs."""
        name = commands.model_name
        is_new = name not in self._rows
        if is_new:
            expected = ""
            if proposal is not None and math.isfinite(proposal.score_mean):
                expected = f"{proposal.score_mean:.1%} ± {proposal.score_std:.1%}"
            how = describe_commands(commands, self.commands)
            self._rows[name] = _Row(round_number, expected, how, commands.n_epoch)
        row = self._rows[name]
        row.state = "training"
        expected = f"; expected {row.expected}" if row.expected else ""
        self.say(f"{name} (round {row.round}): {row.how}{expected}" if is_new else f"{name}: goes on")
        return AttemptProgress(self, name, row)

    def mark(self, name: str, state: str) -> None:
        """Show the state of an attempt."""
        if name in self._rows:
            self._rows[name].state = state
        self.say(f"{name}: {state}")

    def say(self, line: str) -> None:
        """Write a line into a log; a terminal has the table."""
        if not self._live:
            click.echo(line, err=True)

    def _draw(self, size: ConsoleDimensions) -> Any:
        from rich import box
        from rich.table import Table

        best = max((row.val_accuracy for row in self._rows.values() if row.val_accuracy >= 0), default=math.nan)
        # Of more attempts than the terminal has lines the last ones, and the best.
        n_shown = max(1, size.height - _LINES_AROUND)
        places = range(len(self._rows) - n_shown, len(self._rows))
        rows = [item for i, item in enumerate(self._rows.items()) if i in places or item[1].val_accuracy == best]
        cells = [[name, *row.cells()] for name, row in rows]
        n_hidden = len(self._rows) - len(rows)
        title = f"tuning of {self.commands.model_name}" + (f", {n_hidden} attempts not shown" if n_hidden else "")
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for name in _COLUMNS:
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for (_, row), texts in zip(rows, _shorten_how(cells, size.width), strict=True):
            table.add_row(*texts, style="bold" if row.val_accuracy == best else "")
        return table


def _shorten_how(rows: list[list[str]], width: int) -> list[list[str]]:
    """Return rows with as much of the column ``how`` as the other columns leave room for."""
    how = _COLUMNS.index("how")
    widths = [max(map(len, [name, *column])) for name, *column in zip(_COLUMNS, *rows, strict=True)]
    room = max(_LEAST_HOW, width - sum(widths) + widths[how] - _GAP * len(_COLUMNS) - 1)
    return [[_cut(text, room) if i == how else text for i, text in enumerate(row)] for row in rows]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


class AttemptProgress:
    """Tells a `TuningProgress` of one attempt; see `mlmeta.training.progress.TrainingProgress`."""

    def __init__(self, tuning: TuningProgress, name: str, row: _Row) -> None:
        self._tuning = tuning
        self._name = name
        self._row = row

    def __enter__(self) -> Self:
        """Nothing is to begin: the row is there."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show how it ended where it was broken off."""
        if isinstance(error, KeyboardInterrupt):
            self._row.state = "interrupted"

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Show an epoch."""
        row = self._row
        row.epoch = epoch
        row.val_accuracy = max(row.val_accuracy, metrics.get("val_accuracy", math.nan), key=lambda x: (x == x, x))
        if "expected_accuracy" in metrics:
            row.heading_for = f"{metrics['expected_accuracy']:.1%}"
        self._tuning.say(f"{self._name}: epoch {epoch}/{row.n_epoch}  {describe_epoch(metrics)}")

    def end(self, state: str) -> None:
        """Show what came of it."""
        self._tuning.mark(self._name, state)


def describe_commands(commands: TrainCommands, given: TrainCommands) -> str:
    """Return in one line how commands train; their model only where it is another one."""
    optimizer, scheduler = commands.optimizer, commands.scheduler
    words = [str(optimizer["name"])]
    if "lr" in optimizer:
        words.append(f"lr {optimizer['lr']:g}" if isinstance(optimizer["lr"], int | float) else f"lr {optimizer['lr']}")
    words.append(f"batch {commands.batch_size}")
    if scheduler != given.scheduler:
        words.append(str(scheduler["name"]) if scheduler else "no scheduler")
    if commands.model != given.model:
        words.append(summarise_model(commands.model))
    return ", ".join(words)
