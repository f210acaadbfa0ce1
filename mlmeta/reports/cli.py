"""The commands that ask about attempts: a thin shell over `mlmeta.analysis`.

An answer also goes into the run that ``mlflow run -e query`` or ``-e recommend`` started; that run is no attempt.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlmeta.console import reporting_errors
from mlmeta.errors import BadInputError, NotFoundError

if TYPE_CHECKING:
    import pandas as pd

_FORMATS = ("table", "csv", "json", "parquet")
_TASK = click.option("--task", metavar="TASK", help="Only attempts on this task: its name or its digest.")
_METRIC = click.option("--metric", default="accuracy", show_default=True, help="The metric to go by.")
MAX_CURVES = 50
_SHOWN_ROWS = 10


def _history_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what all have that read the history."""
    full = click.option("--full", is_flag=True, help="Read the whole history again, also what was edited by hand.")
    experiment = click.option(
        "--experiment", "experiments", multiple=True, metavar="NAME", help="Only this experiment; may be repeated."
    )
    return reporting_errors(experiment(full(command)))


def _table_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command what all have that write a table."""
    output = click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write into this file.")
    form = click.option(
        "--format", "form", type=click.Choice(_FORMATS), help="By default as FILE ends, else a table for people."
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), (output, form), _history_options(command))


@click.command()
@click.argument("filter", metavar="[FILTER]", default="")
@click.option("--order-by", multiple=True, default=("started DESC",), show_default=True, help="'accuracy DESC', …")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many attempts.")
@click.option("--columns", metavar="NAME,…", help="Exactly these columns.")
@click.option("--to-run", is_flag=True, hidden=True, help="Write the result also into the run of MLFLOW_RUN_ID.")
@_table_options
def query(
    filter: str,
    order_by: tuple[str, ...],
    limit: int | None,
    columns: str | None,
    to_run: bool,
    form: str | None,
    output: Path | None,
    experiments: tuple[str, ...],
    full: bool,
) -> None:
    """Find attempts: all, or those that FILTER describes.

    \b
    mlmeta query "optimizer.lr < 1e-3 and (accuracy >= .8 or status = 'Diverged')"
    mlmeta query "tags.`mlmeta.kind` = 'attempt' and model_name LIKE 'dogs%'" --order-by "accuracy DESC"
    """  # noqa: D301 - click reads the \b
    from mlmeta.analysis.filter_grammar import list_columns, parse_columns, parse_filter, parse_order

    named = None if columns is None else [column.name for column in parse_columns(columns)]
    asked = [column.name for column in list_columns(parse_filter(filter))]
    asked += [order.column.name for text in order_by for order in parse_order(text)]
    history = _load(experiments, full)
    from mlmeta.analysis.filters import find_column
    from mlmeta.analysis.search import collect_curves, find_matching

    found = find_matching(history, filter, order_by=order_by, limit=limit, columns=named)
    important = ["model_name", "task", *(find_column(history, name) for name in asked), "accuracy", "optimizer.lr"]
    if to_run:
        whole = find_matching(history, filter, order_by=order_by, limit=limit)
        _record_query(
            whole, filter=filter, n_attempts=len(history), shown=important,
            load_curves=lambda: collect_curves(history, whole["run_id"].tolist()),
        )  # fmt: skip
    _write(found, output, form, important=important)
    if found.empty:
        click.echo(f"mlmeta: none of {len(history):,} attempts is so", err=True)


@click.command()
@click.argument("attempts", nargs=-1, required=True, metavar="ATTEMPT ATTEMPT…")
@click.option("--all", "all_columns", is_flag=True, help="Show also what they have in common.")
@_METRIC
@_table_options
def compare(
    attempts: tuple[str, ...],
    all_columns: bool,
    metric: str,
    form: str | None,
    output: Path | None,
    experiments: tuple[str, ...],
    full: bool,
) -> None:
    """Show attempts side by side: what differs, and which is best. Name them by name or by run id."""
    history = _load(experiments, full)
    from mlmeta.analysis.leaderboards import compare_table

    found = compare_table(history, attempts, metric=metric, all_columns=all_columns)
    _write(found, output, form, important=found.columns)


@click.command()
@click.argument("attempts", nargs=-1, metavar="[ATTEMPT]…")
@click.option("--filter", default="", help="Only attempts that this filter finds.")
@click.option("--metric", default="train_loss", show_default=True, help="The metric to show by epoch.")
@click.option("--plot", metavar="FILE.png", type=click.Path(path_type=Path), help="Draw them too.")
@_table_options
def curves(
    attempts: tuple[str, ...],
    filter: str,
    metric: str,
    plot: Path | None,
    form: str | None,
    output: Path | None,
    experiments: tuple[str, ...],
    full: bool,
) -> None:
    """Show a metric of every epoch of the attempts that are named, or of all."""
    history = _load(experiments, full)
    from mlmeta.analysis.search import collect_curves

    found = collect_curves(history, attempts, filter=filter, metric=metric)
    if found.empty:
        raise NotFoundError(f"none of these attempts has {metric!r} by epoch")
    if plot is not None:
        from mlmeta.reports.paper_figures import plot_learning_curves

        with _writing(plot):
            plot_learning_curves(plot, found)
        click.echo(f"mlmeta: wrote {plot}", err=True)
    _write(found, output, form, important=("model_name", "step", "value"))


@click.command()
@click.argument("metric", default="accuracy")
@click.option("--effect", metavar="PARAM", help="Show instead how METRIC goes with this hyperparameter.")
@_TASK
@_table_options
def importance(
    metric: str,
    effect: str | None,
    task: str | None,
    form: str | None,
    output: Path | None,
    experiments: tuple[str, ...],
    full: bool,
) -> None:
    """Show which hyperparameters matter most for METRIC, on one task or across all."""
    history = _load(experiments, full)
    from mlmeta.analysis.importance import measure_importance
    from mlmeta.analysis.marginal_effects import marginal_effect
    from mlmeta.analysis.search import find_task

    chosen = None if task is None else find_task(history, task)
    if effect is None:
        found = measure_importance(history, metric, task=chosen)
    else:
        found = marginal_effect(history, effect, metric=metric, task=chosen)
    _write(found, output, form, important=found.columns)
    if note := found.attrs.get("note"):
        click.echo(f"mlmeta: {note}", err=True)


@click.command()
@click.argument("param")
@_METRIC
@_table_options
def values(
    param: str,
    metric: str,
    form: str | None,
    output: Path | None,
    experiments: tuple[str, ...],
    full: bool,
) -> None:
    """Show which values of PARAM worked on which tasks: the best one, and where the best quarter lies."""
    history = _load(experiments, full)
    from mlmeta.analysis.leaderboards import find_best_values

    found = find_best_values(history, param, metric=metric)
    _write(found, output, form, important=found.columns)


@click.command()
@click.argument("task", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many attempts.")
@click.option("--pareto", is_flag=True, help="Show those that no other beats in both the metric and the time.")
@_METRIC
@_table_options
def leaderboard(
    task: str | None,
    limit: int,
    pareto: bool,
    metric: str,
    form: str | None,
    output: Path | None,
    experiments: tuple[str, ...],
    full: bool,
) -> None:
    """Show the best attempts on TASK (its name or digest), or on all tasks."""
    history = _load(experiments, full)
    from mlmeta.analysis.leaderboards import rank_attempts, select_pareto_front

    if pareto:
        found = select_pareto_front(history, metric, task=task)
    else:
        found = rank_attempts(history, task, metric=metric, limit=limit)
    _write(found, output, form, important=("rank", "model_name", "task", metric, "duration_s", "optimizer.lr"))


@click.command()
@click.argument("task", metavar="TASK|COMMANDS.json")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="At most so many tasks.")
@_table_options
def similar(
    task: str, limit: int, form: str | None, output: Path | None, experiments: tuple[str, ...], full: bool
) -> None:
    """Show the tasks that are most like TASK, or like the pictures that a commands file names."""
    history = _load(experiments, full)
    from mlmeta.analysis.task_similarity import find_similar_tasks

    found = find_similar_tasks(history, task, limit=limit)
    _write(found, output, form, important=found.columns)
    if form in (None, "table") and output is None:
        for line in _describe_similar(found):
            click.echo(line)


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
@_history_options
def report(
    output: Path,
    title: str,
    tasks: tuple[str, ...],
    figures: Path | None,
    metric: str,
    experiments: tuple[str, ...],
    full: bool,
) -> None:
    """Write one HTML file about all attempts, which works offline."""
    history = _load(experiments, full)
    from mlmeta.reports.report import write_report

    with _writing(output):
        write_report(history, output, title=title, metric=metric, tasks=_find_tasks(history, tasks))
    click.echo(f"wrote {output}")
    if figures is not None:
        from mlmeta.reports.paper_figures import write_paper_figures

        with _writing(figures):
            written = write_paper_figures(history, figures, metric=metric)
        click.echo("\n".join(f"wrote {file}" for file in written))


def _find_tasks(history: pd.DataFrame, names: tuple[str, ...]) -> list[str] | None:
    from mlmeta.analysis.search import find_task

    return [find_task(history, name) for name in names] or None


def _load(experiments: tuple[str, ...], full: bool) -> pd.DataFrame:
    """Return all attempts.

    Raises:
        NotFoundError: If there are none.
    """
    from mlmeta.history.loading import load_attempts

    table = load_attempts(experiments=list(experiments) or None, full=full)
    if table.empty:
        raise NotFoundError(
            "there are no attempts yet; make the first one with `mlmeta train digits.json`, "
            "or take over others with `mlmeta import FILE`"
        )
    return table


def _write(found: pd.DataFrame, output: Path | None, form: str | None, *, important: Iterable[str]) -> None:
    from mlmeta.reports.tables import write_output

    write_output(found, output, form=form, important=list(important))


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Say in one sentence that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise BadInputError(f"{file}: cannot be written: {error.strerror or error}") from None


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
