"""The commands ``import`` and ``export``: Attempt documents into the tracking store and out of it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from mlmeta.console import ProgressBar, reporting_errors
from mlmeta.errors import BadInputError, MlmetaError, shorten
from mlmeta.files import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from gzip import GzipFile

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
@click.option("--dry-run", is_flag=True, help="Check the files, count, show each column's field; write nothing.")
@reporting_errors
def import_command(
    files: tuple[Path, ...], pictures: Path | None, experiment: str | None, mappings: tuple[str, ...], dry_run: bool
) -> None:
    """Make runs from the Attempt documents in FILE…, without training.

    A FILE is a JSON document, a list, JSON lines, or a CSV table (plain, or exported from MLflow or Weights & Biases),
    also compressed with gzip. What is there already is not imported again; a row of a table whose columns are mapped
    otherwise replaces its attempt. Columns are mapped with, for example,
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
    if dry_run:
        _show_columns(result)
    _show_warnings(result)
    _show_tasks(result)
    _say_what_stays(result.n_without_weights)
    _show_faults(result.faults, result.n_faults)
    _exit(
        n_good=result.n_new + result.n_replaced + result.n_known,
        n_bad=result.n_faults,
        unreadable=bool(result.n_unreadable),
    )


def _show_columns(result: ImportResult) -> None:
    """Show the field of every column."""
    for table in result.tables:
        width = min(max((len(repr(column)) for column in table.fields), default=0), 60)
        click.echo(f"{table.source}: its columns and their fields")
        for column, name in table.fields.items():
            click.echo(f"  {repr(column).ljust(width)}  {name or '(left out)'}")


def _show_warnings(result: ImportResult) -> None:
    for table in result.tables:
        for warning in table.warnings():
            click.echo(f"mlmeta: {warning}", err=True)
    shown = [f"{shorten(old)} to {shorten(new)}" for old, new in list(result.renamed.items())[:MAX_SHOWN]]
    more = f" and {len(result.renamed) - MAX_SHOWN:,} more" if len(result.renamed) > MAX_SHOWN else ""
    if shown:
        click.echo(f"mlmeta: names that MLflow does not take were changed: {', '.join(shown)}{more}", err=True)


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


def _say_what_stays(n_attempts: int) -> None:
    """Say what documents do not hold, where attempts have it."""
    if n_attempts:
        words = "1 attempt stay" if n_attempts == 1 else f"{n_attempts:,} attempts stay"
        click.echo(f"mlmeta: the weights, plots and tables of {words} where they are; documents do not hold them",
                   err=True)  # fmt: skip


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
        n_written, n_weights = _write(documents, sys.stdout.buffer)
    else:
        import gzip

        with replacing(output) as file:
            if output.suffix == ".gz":
                with gzip.open(file, "wb") as packed:
                    n_written, n_weights = _write(documents, packed)
            else:
                n_written, n_weights = _write(documents, file)
        click.echo(f"{n_written:,} attempts written to {output}", err=True)
    _say_what_stays(n_weights)
    _show_faults(faults, len(faults))
    _exit(n_good=n_written, n_bad=len(faults), unreadable=False)


def _write(documents: Iterator[dict[str, Any]], stream: IO[bytes] | GzipFile) -> tuple[int, int]:
    """Write JSON lines; return the number of documents, and of those whose attempts have weights."""
    n_written = n_weights = 0
    for document in documents:
        stream.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
        n_written += 1
        n_weights += "weights_sha256" in document
    stream.flush()
    return n_written, n_weights


COMMANDS: list[click.Command] = [import_command, export_command]


class ImportBar(ProgressBar):
    """Shows an import on standard error; see `mlmeta.exchange.importing.ImportProgress`."""

    def __init__(self) -> None:
        super().__init__("importing", 1.0, in_percent=True)
        self._told_share, self._told_s = 0.0, time.monotonic()

    def advance(self, share: float, result: ImportResult) -> None:
        """Show the share of all bytes that has been read, and what has come of it."""
        line, now_s = "", time.monotonic()
        if share < 1 and share - self._told_share >= _EVERY_SHARE and now_s - self._told_s >= _EVERY_S:
            line = f"mlmeta: {share:.0%} read, {describe_result(result)}"
            self._told_share, self._told_s = share, now_s
        self.update(share, describe_result(result), line=line)


def describe_result(result: ImportResult, *, would_be: bool = False) -> str:
    """Return the counts of an import in words."""
    counts = (
        (result.n_new, "would be imported" if would_be else "imported"),
        (result.n_replaced, "would be replaced" if would_be else "replaced"),
        (result.n_known, "known already"),
        (result.n_faults, "left out"),
    )
    return ", ".join(f"{count:,} {words}" for count, words in counts if count or words.endswith("imported"))
