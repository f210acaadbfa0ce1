"""The commands ``import`` and ``export``: Attempt documents into the tracking store and out of it.

How far an import is, a bar shows on a terminal and plain lines show in a log.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from mlmeta.console import reporting_errors
from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlmeta.exchange.importing import ImportResult


MAX_SHOWN = 20
# A log gets a line after this share of the files, but not more often than this.
_EVERY_SHARE = 0.1
_EVERY_S = 2.0


@click.command("import")
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--pictures", metavar="DIR", type=click.Path(path_type=Path), help="Where the documents' relative data paths begin."
)
@click.option("--experiment", metavar="NAME", help="The experiment to import into; made where it is missing.")
@click.option(
    "--map", "mappings", metavar="COLUMN=FIELD", multiple=True, help="The field of a column of a CSV file; repeatable."
)
@click.option("--dry-run", is_flag=True, help="Check the files and count; write nothing.")
@reporting_errors
def import_command(
    files: tuple[Path, ...], pictures: Path | None, experiment: str | None, mappings: tuple[str, ...], dry_run: bool
) -> None:
    """Make runs from the Attempt documents in FILE…, without training.

    A FILE is a JSON document, a list, JSON lines, or a CSV table (plain, or exported from Weights & Biases), also
    compressed with gzip. What is there already is not imported again. Columns are mapped with, for example,
    --map lr=training_commands.optimizer.lr --map "Test accuracy=accuracy" --map F1=metrics.macro_f1; a column that is
    neither mapped nor known becomes a param.
    """
    from mlmeta.exchange.csv_tables import parse_mapping

    mapping = parse_mapping(mappings)
    from mlmeta.exchange.importing import import_attempts

    with ImportBar() as bar:
        result = import_attempts(
            files, pictures=pictures, experiment=experiment, mapping=mapping, progress=bar, dry_run=dry_run
        )
    click.echo(describe_result(result, would_be=dry_run))
    _show_tasks(result)
    _show_faults(result.faults, result.n_faults)
    _exit(n_good=result.n_new + result.n_known, n_bad=result.n_faults, unreadable=bool(result.n_unreadable))


def _show_tasks(result: ImportResult) -> None:
    tasks = result.tasks_without_pictures
    if not tasks:
        return
    words = "1 task was" if len(tasks) == 1 else f"{len(tasks):,} tasks were"
    name, reason = next(iter(tasks.items()))
    click.echo(
        f"mlmeta: {words} imported without meta-features, as the pictures are not reachable (--pictures says where "
        f"they are); {name}: {reason}",
        err=True,
    )


def _show_faults(faults: list[MlmetaError], n_faults: int) -> None:
    for fault in faults[:MAX_SHOWN]:
        click.echo(f"mlmeta: {fault}", err=True)
    if n_faults > MAX_SHOWN:
        click.echo(f"mlmeta: … and {n_faults - MAX_SHOWN:,} more", err=True)


def _exit(*, n_good: int, n_bad: int, unreadable: bool) -> None:
    """End with 2 where nothing was good or a file could not be read, and with 1 where something was left out."""
    if n_bad:
        sys.exit(2 if unreadable or not n_good else 1)


@click.command("export")
@click.argument("attempts", metavar="[NAME|RUN_ID]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every attempt, the oldest first.")
@click.option("--experiment", "experiments", metavar="NAME", multiple=True, help="Look in this one only; repeatable.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write here, not to standard output; with gzip if it ends in .gz.",
)
@reporting_errors
def export_command(
    attempts: tuple[str, ...], everything: bool, experiments: tuple[str, ...], output: Path | None
) -> None:
    """Write the Attempt documents of attempts as JSON lines; a name stands for its newest attempt.

    Imported documents come out unchanged.
    """
    if output is not None and not output.parent.is_dir():
        raise BadInputError(f"the folder of {output} is not there")
    from mlmeta.exchange.exporting import export_attempts

    faults: list[MlmetaError] = []
    documents = export_attempts(*attempts, experiments=experiments or None, all=everything, on_fault=faults.append)
    if output is None:
        n_written = _write_out(documents)
    else:
        n_written = _write_file(documents, output)
        click.echo(f"{n_written:,} attempts written to {output}", err=True)
    _show_faults(faults, len(faults))
    _exit(n_good=n_written, n_bad=len(faults), unreadable=False)


def _write_out(documents: Iterator[dict[str, Any]]) -> int:
    n_written = 0
    for document in documents:
        click.echo(_to_line(document), nl=False)
        n_written += 1
    return n_written


def _write_file(documents: Iterator[dict[str, Any]], output: Path) -> int:
    """Write a file that is there whole or not at all; return the number of documents."""
    import contextlib
    import gzip

    n_written = 0
    packed = output.suffix == ".gz"
    with replacing(output) as file, gzip.open(file, "wb") if packed else contextlib.nullcontext(file) as stream:
        for document in documents:
            stream.write(_to_line(document).encode())
            n_written += 1
    return n_written


def _to_line(document: dict[str, Any]) -> str:
    import json

    return json.dumps(document, ensure_ascii=False) + "\n"


COMMANDS: list[click.Command] = [import_command, export_command]


class ImportBar:
    """Shows an import on standard error; see `mlmeta.exchange.importing.ImportProgress`."""

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
