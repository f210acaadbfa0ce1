"""All attempts as one HTML page: leaderboards, curves, parallel coordinates, importance, effects and a map of tasks.

A section that has too little data says so in a sentence. The page holds everything it needs, also plotly.js: it can be
sent, kept and opened without a network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pandas as pd

from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.files import replacing
from mlmeta.history.table import is_numeric
from mlmeta.reports.figure_data import (
    UNKNOWN_TASK,
    choose_params,
    describe_attempts,
    escape_markup,
    prepare_table,
    read_column,
    round_values,
    thin_attempts,
)
from mlmeta.reports.html import fill_body, fill_page, fill_template, make_leaderboards, make_overview
from mlmeta.reports.tables import format_cell

if TYPE_CHECKING:
    from markupsafe import Markup


MAX_PANELS = 60
MAX_IN_PART = 3_000

_N_PARAMS = 6
_N_USUAL = 4
_N_EFFECTS = 4
_N_PAIRS = 3
_N_NEAREST = 3
_RATE = "optimizer.lr"
MAX_ATTEMPTS = 20_000


class Attempts:
    """The attempts of a report, with what several sections need of them, computed once.

    Attributes:
        table: As `mlmeta.reports.figure_data.prepare_table` gives it.
        metric: The score.
        tasks: Names, sorted.
        chosen: The task that the map is about; None for none.
    """

    def __init__(self, table: pd.DataFrame, metric: str, *, chosen: str | None = None) -> None:
        """Keep the prepared table."""
        self.chosen = chosen
        self.table = table
        self.metric = metric
        self.tasks = sorted(table["task"].unique())

    @functools.cached_property
    def studied(self) -> pd.DataFrame:
        """The table as models take it: unknown tasks are missing."""
        changed = self.table.assign(task=self.table["task"].where(self.table["task"] != UNKNOWN_TASK))
        changed.attrs = dict(self.table.attrs)
        return changed

    @functools.cached_property
    def importance(self) -> pd.DataFrame:
        """The importance of params.

        Raises:
            MlmetaError: If there is none; says why.
        """
        from mlmeta.analysis.importance import measure_importance

        self.check_scores()
        found = measure_importance(self.studied, self.metric, task=self.only_task)
        if found.empty:
            raise BadInputError("no param differs among the attempts")
        return found

    @functools.cached_property
    def params(self) -> list[str]:
        """The params to show: the most important ones, or the usual ones that differ."""
        usual = choose_params(self.table)
        try:
            measured = list(self.importance["param"])
        except MlmetaError:
            measured = []
        return list(dict.fromkeys([*measured[:_N_PARAMS], *usual]))[:_N_PARAMS]

    @property
    def columns(self) -> list[str]:
        """The params of tables: those to show, and the usual ones."""
        names = dict.fromkeys([*self.params, *choose_params(self.table, limit=_N_USUAL)])
        return list(names) or [name for name in (_RATE, "optimizer.name", "batch_size") if name in self.table]

    @property
    def only_task(self) -> str | None:
        """The task, where there is only one and it is known: effects then are in the metric's own unit."""
        return self.tasks[0] if len(self.tasks) == 1 and self.tasks[0] != UNKNOWN_TASK else None

    def place_tasks(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the tasks, and the distances between them.

        Raises:
            BadInputError: If there are fewer than two that can be compared.
        """
        from mlmeta.analysis.task_similarity import task_distances, task_table

        tasks = task_table(self.studied, self.metric)
        if len(tasks) < 2:
            raise BadInputError("a map needs two tasks with meta-features or labels")
        return tasks, task_distances(tasks)

    def check_scores(self) -> None:
        """Raise `BadInputError` where no attempt has a finite score."""
        if not read_column(self.table, self.metric).notna().any():
            raise BadInputError(f"no attempt has a finite {self.metric} yet")


def fill_sections(attempts: Attempts, anchors: Iterable[str]) -> dict[str, object]:
    """Return what the template of sections takes: some of `SECTIONS`, and the attempts in them."""
    sections = []
    for anchor in anchors:
        title, tell = SECTIONS[anchor]
        try:
            body = tell(attempts)
        except MlmetaError as error:
            body = fill_body("lack", reason=str(error))
        sections.append({"anchor": anchor, "title": title, "body": body})
    texts = describe_attempts(attempts.table, attempts.metric)
    return {"sections": sections, "attempts": {"texts": texts, "rows": _list_rows(attempts)}}


def _tell_best(attempts: Attempts) -> Markup:
    attempts.check_scores()
    return fill_body("best", **make_overview(attempts.table, attempts.params, metric=attempts.metric))


def _tell_rates(attempts: Attempts) -> Markup:
    from mlmeta.reports.figures import list_groups, plot_param_by_task, plot_param_on_task

    table, metric = attempts.table, attempts.metric
    drawn, reason = None, ""
    try:
        drawn = plot_param_by_task(table, metric=metric, param=_RATE)
    except MlmetaError as error:
        reason = str(error)
    tasks = sorted(table.loc[read_column(table, _RATE).notna() & read_column(table, metric).notna(), "task"].unique())
    panels = [(task, plot_param_on_task(table, task, metric=metric, param=_RATE)) for task in tasks[:MAX_PANELS]]
    groups = list_groups(table)
    return fill_body(
        "rates", drawn=drawn, reason=reason, metric=metric, groups=groups, panels=panels, n_tasks=len(tasks)
    )


def _tell_leaderboards(attempts: Attempts) -> Markup:
    return fill_body("leaderboards", **make_leaderboards(attempts.table, attempts.columns, metric=attempts.metric))


def _tell_curves(attempts: Attempts) -> Markup:
    from mlmeta.reports.curve_figures import MAX_CURVES, has_curve, plot_learning_curves

    drawn, n = plot_learning_curves(attempts.table, metric=attempts.metric), int(has_curve(attempts.table).sum())
    return fill_body("curves", drawn=drawn, tasks=attempts.tasks, n=n, limit=MAX_CURVES)


def _tell_parallel(attempts: Attempts) -> Markup:
    from mlmeta.reports.curve_figures import MAX_LINES, place_lines

    metric, params = attempts.metric, attempts.params
    lines, n = (
        place_lines(attempts.table, params, metric=metric),
        int(read_column(attempts.table, metric).notna().sum()),
    )
    return fill_body("parallel", lines=lines, params=params, metric=metric, n=n, limit=MAX_LINES)


def _tell_importance(attempts: Attempts) -> Markup:
    from mlmeta.reports.effect_figures import plot_importance

    measured = attempts.importance
    heads = [(name, "number" if place else "text") for place, name in enumerate(measured.columns)]
    rows = [(None, row) for row in measured.itertuples(index=False)]
    return fill_body(
        "importance",
        drawn=plot_importance(measured),
        attrs=measured.attrs,
        heads=heads,
        rows=rows,
        metric=attempts.metric,
    )


def _tell_effects(attempts: Attempts) -> Markup:
    from mlmeta.analysis.marginal_effects import marginal_effect
    from mlmeta.reports.effect_figures import MAX_EFFECT_POINTS, plot_marginal_effect

    attempts.check_scores()
    ranks, table, metric = attempts.only_task is None, attempts.table, attempts.metric
    drawn, reasons = [], ["no param differs among the attempts"]
    for param in attempts.params[:_N_EFFECTS]:
        try:
            effect = marginal_effect(attempts.studied, param, metric=metric, task=attempts.only_task)
            drawn.append((param, plot_marginal_effect(table, effect, param, metric=metric, ranks=ranks)))
        except MlmetaError as error:
            reasons.append(str(error))
    if not drawn:
        raise BadInputError(reasons[-1])
    what = "rank within the task" if ranks else metric
    return fill_body("effects", drawn=drawn, what=what, n=len(table), limit=MAX_EFFECT_POINTS)


def _tell_pairs(attempts: Attempts) -> Markup:
    from mlmeta.reports.effect_figures import plot_pair

    attempts.check_scores()
    pairs = list(combinations(attempts.params[:_N_PAIRS], 2))
    if not pairs:
        raise BadInputError("fewer than two params differ among the attempts")
    return fill_body(
        "pairs", drawn=[(*pair, plot_pair(attempts.table, *pair, metric=attempts.metric)) for pair in pairs]
    )


def _tell_cost(attempts: Attempts) -> Markup:
    from mlmeta.reports.figures import MAX_POINTS, plot_pareto

    drawn, n = plot_pareto(attempts.table, metric=attempts.metric), len(attempts.table)
    return fill_body("cost", drawn=drawn, tasks=attempts.tasks, metric=attempts.metric, n=n, limit=MAX_POINTS)


def _tell_map(attempts: Attempts) -> Markup:
    from mlmeta.reports.figures import plot_task_map

    tasks, distances = attempts.place_tasks()
    texts = [_describe_task(tasks, name, attempts) for name in tasks["task"]]
    drawn, stress = plot_task_map(tasks, distances, texts, chosen=attempts.chosen)
    return fill_body("map", drawn=drawn, stress=stress)


def _describe_task(tasks: pd.DataFrame, name: str, attempts: Attempts) -> str:
    from mlmeta.analysis.task_similarity import rank_similar_tasks

    own = attempts.table[attempts.table["task"] == name]
    lines = [f"<b>{escape_markup(name)}</b>: {len(own):,} attempts"]
    best = read_column(own, attempts.metric)
    if best.notna().any():
        lines[0] += f", {escape_markup(attempts.metric)} {best.min():.3g} to {best.max():.3g}"
    nearest = rank_similar_tasks(tasks, name).head(_N_NEAREST)
    for row in nearest.to_dict("records"):
        parts = f"pictures {row['pictures']:.2f}, words {row['words']:.2f}"
        warning = "; they disagree" if row["disagrees"] else ""
        lines.append(f"{row['distance']:.2f} to {escape_markup(row['task'], limit=40)} ({parts}{warning})")
    terms = str(nearest["terms"].iloc[0]).split("), ")
    lines += [f"&nbsp;&nbsp;{escape_markup(term.rstrip(')'))})" for term in terms if term]
    return "<br>".join(lines)


SECTIONS: dict[str, tuple[str, Callable[[Attempts], Markup]]] = {
    "tasks": ("Best of each task", _tell_best),
    "rates": ("Which learning rates worked on which tasks?", _tell_rates),
    "leaderboards": ("Leaderboards", _tell_leaderboards),
    "curves": ("Learning curves", _tell_curves),
    "parallel": ("Parallel coordinates", _tell_parallel),
    "importance": ("What mattered", _tell_importance),
    "effects": ("Effect of each param", _tell_effects),
    "pairs": ("Two params together", _tell_pairs),
    "cost": ("Score and seconds", _tell_cost),
    "map": ("Map of tasks", _tell_map),
}


def write_sections(
    table: pd.DataFrame, anchors: Sequence[str], *, metric: str, task: str | None = None, chosen: str | None = None
) -> Markup:
    """Return some of `SECTIONS` as part of a page of its own scripts, with plotly.js and those of this package.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them; of more than 3,000 of each task the best
            and evenly spaced others are shown.
        anchors: The sections.
        metric: What attempts are compared by.
        task: The only one to show; None for all.
        chosen: The task that the map is about.

    Raises:
        BadInputError: The table has no such metric.
        NotFoundError: It has no such task.
    """
    prepared = prepare_table(table, metric=metric, tasks=None if task is None else [task])
    shown = thin_attempts(prepared, metric, limit=MAX_IN_PART).reset_index(drop=True)
    return fill_template("sections", fill_sections(Attempts(shown, metric, chosen=chosen), anchors))


def write_report(
    table: pd.DataFrame,
    file: str | Path,
    *,
    title: str = "mlmeta report",
    metric: str = "accuracy",
    tasks: Sequence[str] | None = None,
    store: str | None = None,
) -> None:
    """Write one self-contained HTML file about attempts; a file of that name is replaced in one step.

    Large histories are thinned, and the page says where: 20,000 attempts, 1,000 curves, 3,000 lines, 2,000 rows.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        file: The file to write; its folder must be there.
        title: Of the page.
        metric: What attempts are compared by.
        tasks: Names of the tasks to show; None for all.
        store: Where the attempts were read, for the page's head; None for ``table.attrs["tracking_uri"]``. A
            password in it is left out.

    Raises:
        BadInputError: The table has no such metric.
        NotFoundError: It has no such task.
    """
    source = store if store is not None else str(table.attrs.get("tracking_uri", ""))
    now = format_cell(pd.Timestamp.now(table["started"].dt.tz if "started" in table else UTC))
    page: dict[str, object] = {"title": title, "source": _without_password(source), "now": now, "sections": []}
    if not table.empty or tasks:
        prepared = prepare_table(table, metric=metric, tasks=tasks)
        attempts = Attempts(thin_attempts(prepared, metric, limit=MAX_ATTEMPTS).reset_index(drop=True), metric)
        page |= {"head": _summarise(prepared, attempts), **fill_sections(attempts, SECTIONS)}
    with replacing(Path(file)) as stream:
        stream.write(fill_page(page).encode("utf-8", errors="replace"))


def _summarise(table: pd.DataFrame, attempts: Attempts) -> dict[str, object]:
    """Return what the head of the page says about all attempts, also those that are not shown."""
    first, last = table["started"].min(), table["started"].max()
    return {
        "n_attempts": len(table),
        "n_shown": len(attempts.table),
        "n_tasks": int((table["task"].drop_duplicates() != UNKNOWN_TASK).sum()),
        "n_unknown": int((table["task"] == UNKNOWN_TASK).sum()),
        "when": "" if pd.isna(first) else f", started {format_cell(first)} to {format_cell(last)}",
        "states": ", ".join(f"{name} {n:,}" for name, n in table["status"].value_counts().items()),
        "metric": attempts.metric,
    }


def _without_password(uri: str) -> str:
    """Return an address without the user and password of a database or server."""
    try:
        place = urlsplit(uri).netloc
    except ValueError:
        return "(an address that cannot be read)"
    return uri.replace(place, place.rpartition("@")[2], 1) if "@" in place else uri


def _list_rows(attempts: Attempts) -> dict[str, list[Any]]:
    """Return the columns of the attempts that the page shows, for programs that read it."""
    table = attempts.table
    names = ["run_id", "model_name", "status", "task", "started", "duration_s", *attempts.columns, attempts.metric]
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for name in names if name in table):
        values = table[name]
        if is_numeric(values):
            columns[name] = round_values(values.astype("Float64").astype("float64"), digits=9)
        else:
            columns[name] = [None if pd.isna(value) else str(value)[:500] for value in values]
    return columns
