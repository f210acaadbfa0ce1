"""How far a tuning is: a table that grows on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import click

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import summarise_model
from mlmeta.training.progress import describe_epoch

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions

    from mlmeta.tuning.recommend import Recommendation

_COLUMNS = ("attempt", "round", "expected", "how", "epoch", "val_accuracy", "heading for", "state")
# Of the table: its title, head, rules and a line to spare.
_LINES_AROUND = 7


@dataclass
class AttemptProgress:
    """Shows one attempt of a tuning; see `mlmeta.training.progress.TrainingProgress`."""

    name: str
    round: int
    expected: str
    how: str
    n_epoch: int
    say: Callable[[str], None]
    n_done: int = 0
    val_accuracy: float = math.nan
    heading_for: str = ""
    state: str = ""

    def __enter__(self) -> Self:
        """Nothing is to begin: the row is there."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Show how it ended where it was broken off."""
        if isinstance(error, KeyboardInterrupt):
            self.state = "interrupted"

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Show an epoch."""
        self.n_done = epoch
        self.val_accuracy = max(self.val_accuracy, metrics.get("val_accuracy", math.nan), key=lambda x: (x == x, x))
        if "expected_accuracy" in metrics:
            self.heading_for = f"{metrics['expected_accuracy']:.1%}"
        self.say(f"{self.name}: epoch {epoch}/{self.n_epoch}  {describe_epoch(metrics)}")

    def end(self, state: str) -> None:
        """Show what came of it."""
        self.state = state
        self.say(f"{self.name}: {state}")

    def cells(self) -> list[str]:
        """Return what stands in the columns of the table."""
        accuracy = "" if math.isnan(self.val_accuracy) else f"{self.val_accuracy:.1%}"
        epoch = f"{self.n_done}/{self.n_epoch}"
        return [self.name, str(self.round), self.expected, self.how, epoch, accuracy, self.heading_for, self.state]


@dataclass
class TuningProgress:
    """Shows the attempts of a tuning, of some commands, on standard error."""

    commands: TrainCommands
    _attempts: dict[str, AttemptProgress] = field(default_factory=dict, init=False)
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

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Leave the terminal with the table as it is at last."""
        if self._live:
            self._live.stop()

    def attempt(self, commands: TrainCommands, round_number: int, proposal: Recommendation | None) -> AttemptProgress:
        """Show that an attempt is begun, or gone on with; what comes back is told of its epochs."""
        name = commands.model_name
        if name in self._attempts:
            line = f"{name}: goes on"
        else:
            expected, how = "", describe_commands(commands, self.commands)
            line = f"{name} (round {round_number}): {how}"
            if proposal is not None and math.isfinite(proposal.score_mean):
                expected = f"{proposal.score_mean:.1%} ± {proposal.score_std:.1%}"
                line += f"; expected {expected}"
            self._attempts[name] = AttemptProgress(name, round_number, expected, how, commands.n_epoch, self.say)
        self._attempts[name].state = "training"
        self.say(line)
        return self._attempts[name]

    def mark(self, name: str, state: str) -> None:
        """Show the state of an attempt."""
        if name in self._attempts:
            self._attempts[name].end(state)
        else:
            self.say(f"{name}: {state}")

    def say(self, line: str) -> None:
        """Write a line into a log; a terminal has the table."""
        if not self._live:
            click.echo(line, err=True)

    def _draw(self, size: ConsoleDimensions) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        attempts = list(self._attempts.values())
        best = max((one.val_accuracy for one in attempts if one.val_accuracy >= 0), default=math.nan)
        # Of more attempts than the terminal has lines the last ones, and the best.
        first = len(attempts) - max(1, size.height - _LINES_AROUND)
        shown = [one for place, one in enumerate(attempts) if place >= first or one.val_accuracy == best]
        n_hidden = len(attempts) - len(shown)
        title = f"tuning of {self.commands.model_name}" + (f", {n_hidden} attempts not shown" if n_hidden else "")
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for name in _COLUMNS:
            # A column that can be wrapped gives way to the others; no text is, as each cuts itself off.
            table.add_column(name, no_wrap=name != "how")
        for one in shown:
            cells = [Text(cell, no_wrap=True, overflow="ellipsis") for cell in one.cells()]
            table.add_row(*cells, style="bold" if one.val_accuracy == best else "")
        return table


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
