"""The commands that ask about attempts: a thin shell over `mlmeta.analysis`.

An answer also goes into the run that ``mlflow run -e query`` or ``-e recommend`` started; that run is no attempt.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from mlmeta.console import reporting_errors
from mlmeta.errors import NO_ATTEMPT_HAS, NO_COLUMN, BadInputError, NotFoundError

if TYPE_CHECKING:
    import pandas as pd

_Load: TypeAlias = "Callable[..., pd.DataFrame]"
_FORMATS = ("table", "csv", "json", "parquet", "xlsx")
_FILTER = click.option("--filter", "where", default="", help="Only attempts that this filter finds.")
_METRIC = click.option("--metric", default="accuracy", show_default=True, help="The metric to go by.")
_LOCAL = click.option("--local-time", is_flag=True, help="Show times in the zone of this machine, not in UTC.")
_OFFER = "what was added or corrected by hand in a run that has ended is seen with --full"
MAX_CURVES = 50
_SHOWN_ROWS = 10


@dataclass(frozen=True)
class _Answer:
    """What a question gives.

    Attributes:
        table: The answer.
        important: Columns that a terminal keeps as long as any; None for all.
        piped: Columns of a table for people that is no terminal's; None for all.
        all_by: What to ask for to have all columns.
        words: Lines for people, below a table that goes to standard output.
        note: For standard error; empty for none.
    """

    table: pd.DataFrame
    important: Sequence[str] | None = None
    piped: Sequence[str] | None = None
    all_by: str = "--format csv has all"
    words: Sequence[str] = ()
    note: str = ""


def _reading_history(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, before its own arguments, the function that reads all attempts, as its options say."""

    @click.option(
        "--experiment", "experiments", multiple=True, metavar="NAME", help="Only this experiment; may be repeated."
    )
    @click.option("--full", is_flag=True, help="Read the whole history again, also what was edited by hand.")
    @functools.wraps(command)
    def reading(*, experiments: tuple[str, ...], full: bool, **own: Any) -> None:
        try:
            command(functools.partial(_load, experiments, full), **own)
        except (BadInputError, NotFoundError) as error:
            if not full and (NO_COLUMN in str(error) or NO_ATTEMPT_HAS in str(error)):
                error.add_note(f"mlmeta: {_OFFER}")
            raise

    return reporting_errors(reading)


def _answering(question: Callable[..., _Answer]) -> Callable[..., None]:
    """Make a command of a question about the history: its answer is written as people or programs want it."""

    @functools.wraps(question)
    def write(
        load: _Load, *, form: str | None, output: Path | None, formulas: bool, local_time: bool, **own: Any
    ) -> None:
        if output is not None:
            from mlmeta.reports.tables import choose_format

            # An ending that is not known is said before the history is read.
            choose_format(form, output)
        answer = question(load, **own)
        from mlmeta.reports.tables import choose_format, escape_formulas, to_local_time, write_output

        form = choose_format(form, output)
        table, left_out = answer.table, ""
        is_read = form == "table" and (output is not None or not sys.stdout.isatty())
        if is_read and answer.piped is not None:
            table = table[list(answer.piped)]
            if n_left := len(answer.table.columns) - len(table.columns) if len(table) else 0:
                left_out = f"{n_left:,} column{'s are' if n_left > 1 else ' is'} left out: {answer.all_by}"
        table = escape_formulas(table) if formulas else table
        # Parquet has moments, which every reader shows in its own zone.
        table = to_local_time(table) if local_time and form != "parquet" else table
        important = answer.important
        write_output(table, output, form=form, important=list(table.columns if important is None else important))
        if form == "table" and output is None:
            for line in answer.words:
                click.echo(line)
        for note in filter(None, (left_out, _tell_cut(table), answer.note)):
            click.echo(f"mlmeta: {note}", err=True)

    to_file = click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write into this file.")
    form = click.option(
        "--format", "form", type=click.Choice(_FORMATS), help="By default as FILE ends, else a table for people."
    )
    escape = click.option(
        "--escape-formulas", "formulas", is_flag=True, help="Put ' before texts that a spreadsheet would compute."
    )
    return form(to_file(escape(_LOCAL(_reading_history(write)))))


def _tell_cut(table: pd.DataFrame) -> str:
    """Return in words which columns hold values that MLflow's limits cut; nothing where none does."""
    from mlmeta.history.table import list_cut

    names = list_cut(table)
    return f"cut where they were recorded, as MLflow takes no more: values of {', '.join(names)}" if names else ""


@click.command()
@click.argument("filter", metavar="[FILTER]", default="")
@click.option("--order-by", multiple=True, default=("started DESC",), show_default=True, help="'accuracy DESC', …")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many attempts.")
@click.option("--columns", metavar="NAME,…", help="Exactly these columns; '*' for all in a table that is piped.")
@click.option("--to-run", is_flag=True, hidden=True, help="Write the result also into the run of MLFLOW_RUN_ID.")
@_answering
def query(
    load: _Load, *, filter: str, order_by: tuple[str, ...], limit: int | None, columns: str | None, to_run: bool
) -> _Answer:
    """Find attempts: all, or those that FILTER describes.

    \b
    mlmeta query "optimizer.lr < 1e-3 and (accuracy >= .8 or status = 'Diverged')"
    mlmeta query "tags.`mlmeta.kind` = 'attempt' and model_name LIKE 'dogs%'" --order-by "accuracy DESC"
    """  # noqa: D301 - click reads the \b
    from mlmeta.analysis.filter_grammar import list_columns, parse_columns, parse_filter, parse_order

    every = columns is not None and columns.strip() == "*"
    named = None if columns is None or every else [column.name for column in parse_columns(columns)]
    asked = [column.name for column in list_columns(parse_filter(filter))]
    asked += [order.column.name for text in order_by for order in parse_order(text)]
    history = load()
    from mlmeta.analysis.filters import find_column
    from mlmeta.analysis.search import add_named, collect_curves, find_matching
    from mlmeta.reports.tables import choose_shown

    history = add_named(history, filter, order_by=order_by, columns=named)
    found = find_matching(history, filter, order_by=order_by, limit=limit, columns=named)
    important = ["model_name", "task", *(find_column(history, name) for name in asked), "accuracy", "optimizer.lr"]
    if to_run:
        whole = find_matching(history, filter, order_by=order_by, limit=limit)
        _record_query(
            whole, filter=filter, n_attempts=len(history), shown=important,
            load_curves=lambda: collect_curves(history, whole["run_id"].tolist()),
        )  # fmt: skip
    shown = None
    if named is None and not every:
        shown = choose_shown(found, ["model_name", "task", "status", "accuracy", *important[2:]])
    note = f"none of {len(history):,} attempts is so; {_OFFER}" if found.empty else ""
    return _Answer(found, important, piped=shown, all_by="--columns '*' or --format csv has all", note=note)


@click.command()
@click.argument("attempts", nargs=-1, metavar="ATTEMPT ATTEMPT…")
@click.option(
    "--best", type=click.IntRange(2, 100), metavar="N", help="Instead of names: the N best, on the TASK that is named."
)
@click.option("--all", "all_columns", is_flag=True, help="Show also what they have in common.")
@_METRIC
@_answering
def compare(load: _Load, *, attempts: tuple[str, ...], best: int | None, all_columns: bool, metric: str) -> _Answer:
    """Show attempts side by side: what differs, and which is best. Name them by name or by run id.

    \b
    mlmeta compare dogs dogs-2
    mlmeta compare --best 2 dogs
    """  # noqa: D301 - click reads the \b
    if best is not None and len(attempts) > 1:
        raise BadInputError(f"--best takes one task, or none for all; got {len(attempts)} names")
    history = load()
    from mlmeta.analysis.leaderboards import compare_table, rank_attempts

    names: Sequence[str] = attempts
    if best is not None:
        found = rank_attempts(history, *attempts, metric=metric, limit=best)
        names = found["run_id"].tolist()
    return _Answer(compare_table(history, names, metric=metric, all_columns=all_columns))


@click.command()
@click.argument("attempts", nargs=-1, metavar="[ATTEMPT]…")
@click.option("--filter", default="", help="Only attempts that this filter finds.")
@click.option("--metric", default="train_loss", show_default=True, help="The metric to show by epoch.")
@click.option("--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw them too.")
@_answering
def curves(load: _Load, *, attempts: tuple[str, ...], filter: str, metric: str, plot: Path | None) -> _Answer:
    """Show a metric of every epoch of the attempts that are named, or of all."""
    history = load()
    from mlmeta.analysis.search import collect_curves

    found = collect_curves(history, attempts, filter=filter, metric=metric)
    if found.empty:
        raise NotFoundError(f"none of these attempts has {metric!r} by epoch")
    if plot is not None:
        from mlmeta.reports.paper_figures import plot_learning_curves
        from mlmeta.reports.tables import writing

        with writing(plot):
            plot_learning_curves(plot, found)
        click.echo(f"mlmeta: wrote {plot}", err=True)
    return _Answer(found, ("model_name", "step", "value"))


@click.command()
@click.argument("metric", default="accuracy")
@click.option("--effect", metavar="PARAM", help="Show instead how METRIC goes with this hyperparameter.")
@click.option("--task", metavar="TASK", help="Only attempts on this task: its name or its digest.")
@_FILTER
@_answering
def importance(load: _Load, *, metric: str, effect: str | None, task: str | None, where: str) -> _Answer:
    """Show which hyperparameters matter most for METRIC, on one task or across all."""
    history = load(where)
    from mlmeta.analysis.importance import measure_importance
    from mlmeta.analysis.marginal_effects import marginal_effect

    if effect is None:
        found = measure_importance(history, metric, task=task)
    else:
        found = marginal_effect(history, effect, metric=metric, task=task)
    return _Answer(found, note=found.attrs.get("note") or "")


@click.command()
@click.argument("param")
@_METRIC
@_FILTER
@_answering
def values(load: _Load, *, param: str, metric: str, where: str) -> _Answer:
    """Show which values of PARAM worked on which tasks: the best one, and the best quarter's 10 % and 90 % quantiles.

    \b
    mlmeta values optimizer.name --filter "task.n_train < 250"
    """  # noqa: D301 - click reads the \b
    history = load(where)
    from mlmeta.analysis.leaderboards import find_best_values, rank_values

    return _Answer(find_best_values(history, param, metric=metric), words=rank_values(history, param, metric=metric))


@click.command()
@click.argument("task", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many attempts.")
@click.option("--pareto", is_flag=True, help="Show those that no other beats in both the metric and the time.")
@_METRIC
@_FILTER
@_answering
def leaderboard(load: _Load, *, task: str | None, limit: int, pareto: bool, metric: str, where: str) -> _Answer:
    """Show the best attempts on TASK (its name or digest), or on all tasks."""
    history = load(where)
    from mlmeta.analysis.leaderboards import rank_attempts, select_pareto_front
    from mlmeta.reports.tables import choose_shown

    if pareto:
        found = select_pareto_front(history, metric, task=task)
    else:
        found = rank_attempts(history, task, metric=metric, limit=limit)
    important = ("rank", "model_name", "task", metric, "duration_s", "optimizer.lr")
    return _Answer(found, important, piped=choose_shown(found, important))


@click.command()
@click.argument("task", metavar="TASK|COMMANDS.json")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="At most so many tasks.")
@_answering
def similar(load: _Load, *, task: str, limit: int) -> _Answer:
    """Show the tasks that are most like TASK, or like the pictures that a commands file names."""
    history = load()
    from mlmeta.analysis.task_similarity import find_similar_tasks

    found = find_similar_tasks(history, task, limit=limit)
    return _Answer(found, words=list(_describe_similar(found)))


def _describe_similar(found: pd.DataFrame) -> Iterator[str]:
    """Yield in words what makes each task near, whole, and a warning where pictures and words disagree."""
    rows = found.to_dict("records")
    for row in rows:
        yield f"{row['task']}: alike in {row['alike'] or 'nothing'}; unlike in {row['terms'] or 'nothing'}"
    for row in rows:
        near, far = ("pictures", "words") if row["pictures"] < row["words"] else ("words", "pictures")
        if row["disagrees"]:
            yield (
                f"warning: the {near} of {row['task']} are near ({row[near]:.2f}), its {far} far ({row[far]:.2f}): "
                "what worked there may not work here"
            )


@click.command()
@click.option(
    "--output", metavar="FILE", type=click.Path(path_type=Path), default="mlmeta_report.html", show_default=True
)
@click.option("--title", default="mlmeta report", show_default=True, help="Of the page.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Only this task; may be repeated.")
@click.option("--figures", metavar="DIR", type=click.Path(path_type=Path), help="Write PNGs for papers here, too.")
@_METRIC
@_FILTER
@_LOCAL
@_reading_history
def report(
    load: _Load,
    *,
    output: Path,
    title: str,
    tasks: tuple[str, ...],
    figures: Path | None,
    metric: str,
    where: str,
    local_time: bool,
) -> None:
    """Write one HTML file about all attempts, which works offline."""
    history = load(where)
    from mlmeta.analysis.search import find_task
    from mlmeta.reports.report import write_report
    from mlmeta.reports.tables import to_local_time, writing

    history = to_local_time(history) if local_time else history
    chosen = [find_task(history, name) for name in tasks] or None
    with writing(output):
        write_report(history, output, title=title, metric=metric, tasks=chosen)
    click.echo(f"wrote {output}")
    if figures is not None:
        from mlmeta.reports.paper_figures import write_paper_figures

        with writing(figures):
            written = write_paper_figures(history, figures, metric=metric)
        click.echo("\n".join(f"wrote {file}" for file in written))


def _load(experiments: tuple[str, ...], full: bool, where: str = "") -> pd.DataFrame:
    """Return all attempts, or those that a filter finds.

    Raises:
        NotFoundError: If there are none.
        FilterError: If the filter is not understood.
    """
    if where:
        from mlmeta.analysis.filter_grammar import parse_filter

        # A filter that is not understood is said before the history is read.
        parse_filter(where)
    from mlmeta.history.loading import load_attempts

    table = load_attempts(experiments=list(experiments) or None, full=full)
    if table.empty:
        raise NotFoundError(
            "there are no attempts yet; make the first one with `mlmeta train digits.json`, "
            "or take over others with `mlmeta import FILE`"
        )
    if not where:
        return table
    from mlmeta.analysis.filters import match_filter
    from mlmeta.analysis.search import add_named
    from mlmeta.history.table import find_kinds, with_kinds

    table = add_named(table, where)
    found = table[match_filter(table, where).to_numpy()].reset_index(drop=True)
    if found.empty:
        raise NotFoundError(f"--filter: none of {len(table):,} attempts is so; {_OFFER}")
    return with_kinds(found, find_kinds(table))


def _record_query(
    table: pd.DataFrame, *, filter: str, n_attempts: int, shown: Sequence[str], load_curves: Callable[[], pd.DataFrame]
) -> None:
    """Log query.csv, query.parquet and query.json, curves.png for up to 50 attempts, and a note."""
    from mlmeta.reports.tables import write_output
    from mlmeta.tracking.runs import record_answer

    def write_files(folder: Path) -> None:
        for form in ("csv", "parquet", "json"):
            write_output(table, folder / f"query.{form}", form=form)
        if 0 < len(table) <= MAX_CURVES:
            from mlmeta.reports.paper_figures import plot_learning_curves

            plot_learning_curves(folder / "curves.png", load_curves())

    note = write_query_note(table, filter=filter, n_attempts=n_attempts, shown=shown)
    record_answer("query", name="query", note=note, write_files=write_files)


def write_query_note(table: pd.DataFrame, *, filter: str, n_attempts: int, shown: Sequence[str]) -> str:
    """Return a short Markdown summary: how many attempts were found, and the first ten."""
    from mlmeta.reports.tables import escape_markdown, format_cell

    words = "1 attempt" if n_attempts == 1 else f"{n_attempts:,} attempts"
    head = f"**{len(table):,} of {words}**: query.csv, query.json and query.parquet have them."
    fence = "`" * (max(3, filter.count("`") + 1))
    asked = f"\n\n{fence}\n{filter[:1000]}\n{fence}" if filter else ""
    names = [name for name in dict.fromkeys(shown) if name in table.columns]
    rows = [names, ["---"] * len(names), *table[names].head(_SHOWN_ROWS).itertuples(index=False, name=None)]
    grid = "\n".join(
        "| " + " | ".join(escape_markdown(format_cell(cell, limit=60)) for cell in row) + " |" for row in rows
    )
    rest = "" if len(table) <= _SHOWN_ROWS else f"\n\n… and {len(table) - _SHOWN_ROWS:,} more."
    return f"{head}{asked}\n\n{grid}{rest}"


COMMANDS: list[click.Command] = [query, compare, curves, importance, leaderboard, values, similar, report]
