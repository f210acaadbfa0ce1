"""All attempts as one HTML page: leaderboards, curves, parallel coordinates, importance, effects and a map of tasks.

A section that has too little data says so in a sentence. The page holds everything it needs, also plotly.js: it can be
sent, kept and opened without a network.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
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
from mlmeta.reports.html import embed_figure, escape_text, fill_page, make_leaderboards, make_overview

MAX_PANELS = 60

_N_PARAMS = 6
_N_USUAL = 4
_N_EFFECTS = 4
_N_PAIRS = 3
_N_NEAREST = 3
_RATE = "optimizer.lr"
_SCALE = '<span class="scale"></span>'
MAX_ATTEMPTS = 20_000

_EMPTY = """<p class="lack">No attempt has been recorded here yet.</p>
<p>Make the first one, on the handwritten digits that come with scikit-learn, and write this page again:</p>
<pre>mlmeta train digits.json
mlmeta report</pre>
<p>Attempts that were made elsewhere come in with <code>mlmeta import FILE</code>.</p>"""


class Attempts:
    """The attempts of a report, with what several sections need of them, computed once.

    Attributes:
        table: As `mlmeta.reports.figure_data.prepare_table` gives it.
        metric: The score.
        tasks: Names, sorted.
    """

    def __init__(self, table: pd.DataFrame, metric: str) -> None:
        """Keep the prepared table."""
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
    def importance(self) -> pd.DataFrame | str:
        """The importance of params, or the sentence that says why there is none."""
        from mlmeta.analysis.importance import measure_importance

        try:
            self.check_scores()
            return measure_importance(self.studied, self.metric, task=self.only_task)
        except MlmetaError as error:
            return str(error)

    @functools.cached_property
    def params(self) -> list[str]:
        """The params to show: the most important ones, or the usual ones that differ."""
        usual = choose_params(self.table)
        measured = list(self.importance["param"]) if isinstance(self.importance, pd.DataFrame) else []
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

    def check_scores(self) -> None:
        """Raise `BadInputError` where no attempt has a finite score."""
        if not read_column(self.table, self.metric).notna().any():
            raise BadInputError(f"no attempt has a finite {self.metric} yet")


def make_sections(attempts: Attempts) -> Iterator[tuple[str, str, str]]:
    """Yield anchor, title and HTML of each section."""
    sections: list[tuple[str, str, Callable[[Attempts], str]]] = [
        ("tasks", "Best of each task", _tell_best),
        ("rates", "Which learning rates worked on which tasks?", _tell_rates),
        ("leaderboards", "Leaderboards", _tell_leaderboards),
        ("curves", "Learning curves", _tell_curves),
        ("parallel", "Parallel coordinates", _tell_parallel),
        ("importance", "What mattered", _tell_importance),
        ("effects", "Effect of each param", _tell_effects),
        ("pairs", "Two params together", _tell_pairs),
        ("cost", "Score and seconds", _tell_cost),
        ("map", "Map of tasks", _tell_map),
    ]
    for anchor, title, tell in sections:
        try:
            body = tell(attempts)
        except MlmetaError as error:
            body = _lack(str(error))
        yield anchor, title, body


def _lack(reason: str) -> str:
    return f'<p class="lack">Nothing to show: {escape_text(reason.rstrip("."))}.</p>'


def _tell_best(attempts: Attempts) -> str:
    attempts.check_scores()
    return make_overview(attempts.table, attempts.params, metric=attempts.metric)


def _tell_rates(attempts: Attempts) -> str:
    from mlmeta.reports.figures import plot_param_by_task

    try:
        figure = plot_param_by_task(attempts.table, metric=attempts.metric, param=_RATE)
    except MlmetaError as error:
        return _lack(str(error)) + _show_panels(attempts)
    label = f"Heat map of the median rank by learning rate and task, ranked by {attempts.metric}"
    caption = (
        f"Median rank of the attempts within their task: {_SCALE} 0, the worst, to 1, the best. "
        "Tasks are ordered by the learning rate of their better attempts."
    )
    return embed_figure(figure, label=label, caption=caption) + _show_panels(attempts)


def _show_panels(attempts: Attempts) -> str:
    """Return the learning rates and scores of each task side by side; empty where there are none."""
    from mlmeta.reports.figures import list_groups, plot_param_on_task

    table, metric = attempts.table, attempts.metric
    have = table.loc[read_column(table, _RATE).notna() & read_column(table, metric).notna(), "task"]
    shown = sorted(have.unique())
    if not shown:
        return ""
    key = "".join(
        f'<li><i style="background:{c}"></i>{escape_text(n[:60])}</li>' for n, c in list_groups(table).items()
    )
    parts = [f'<p>Every attempt, by optimizer:</p><ul class="key">{key}</ul><div class="panels">']
    for task in shown[:MAX_PANELS]:
        panel = plot_param_on_task(table, task, metric=metric, param=_RATE)
        parts.append(embed_figure(panel, label=f"{metric} against learning rate on {task[:80]}"))
    parts.append("</div>")
    if len(shown) > MAX_PANELS:
        parts.append(f'<p class="note">The first {MAX_PANELS} of {len(shown)} tasks are shown.</p>')
    return "\n".join(parts)


def _tell_leaderboards(attempts: Attempts) -> str:
    html, n_shown = make_leaderboards(attempts.table, attempts.columns, metric=attempts.metric)
    n = len(attempts.table)
    note = (
        "" if n_shown == n else f'<p class="note">{n_shown:,} of {n:,} attempts are shown: the best of each task.</p>'
    )
    return (
        "<p>Choose a column's name to sort by it, an attempt's name to see it in all figures.</p>"
        '<div class="controls"><label for="filter">Filter by words</label>'
        '<input type="search" id="filter" autocomplete="off" placeholder="Adam digits">'
        f'<span id="filter-count" class="note" role="status"></span></div>{note}\n{html}'
    )


def _tell_curves(attempts: Attempts) -> str:
    from mlmeta.reports.curve_figures import MAX_CURVES, has_curve, plot_learning_curves

    figure = plot_learning_curves(attempts.table, metric=attempts.metric)
    n = int(has_curve(attempts.table).sum())
    caption = (
        f"Colour, by rank within the task: {_SCALE} worst to best; grey: without a score. Click a curve to keep it."
    )
    if n > MAX_CURVES:
        caption += f" {MAX_CURVES:,} of {n:,} curves are shown: of each task the best and evenly spaced others."
    colours = (
        '<label>Colour by <select data-group="curves" data-setting="colours">'
        '<option value="rank">rank</option><option value="task">task</option></select></label>'
    )
    controls = f'<div class="controls">{_choose_task(attempts, "curves")}{colours}</div>'
    label = "Training loss by epoch, one line an attempt"
    return controls + embed_figure(figure, label=label, caption=caption, group="curves")


def _choose_task(attempts: Attempts, group: str) -> str:
    options = "".join(f'<option value="{escape_text(t)}">{escape_text(t[:60])}</option>' for t in attempts.tasks)
    first = '<option value="">all tasks</option>'
    return f'<label>Task <select data-group="{group}" data-setting="task">{first}{options}</select></label>'


def _tell_parallel(attempts: Attempts) -> str:
    from mlmeta.reports.curve_figures import MAX_LINES, plot_parallel_coordinates

    figure = plot_parallel_coordinates(attempts.table, attempts.params, metric=attempts.metric)
    caption = (
        "One line an attempt. Drag along an axis to keep a range, click it to let go; drag a title to move an axis."
    )
    n = int(read_column(attempts.table, attempts.metric).notna().sum())
    if n > MAX_LINES:
        caption += f" {MAX_LINES:,} of {n:,} attempts are shown."
    label = f"Parallel coordinates of {', '.join(attempts.params)} and {attempts.metric}"
    return f'<div class="scrolling">{embed_figure(figure, label=label, caption=caption)}</div>'


def _tell_importance(attempts: Attempts) -> str:
    from mlmeta.reports.effect_figures import plot_importance

    measured = attempts.importance
    if isinstance(measured, str):
        return _lack(measured)
    if measured.empty:
        return _lack("no param differs among the attempts")
    text = f"<p>{_tell_basis(measured.attrs)} {_tell_trust(measured.attrs)}</p>"
    label = f"Importance of params for {attempts.metric}, with 95 % intervals"
    return text + embed_figure(plot_importance(measured), label=label)


def _tell_basis(attrs: dict[Any, Any]) -> str:
    if "n_attempts" not in attrs:
        return ""
    return f"From {int(attrs['n_attempts']):,} attempts with a score, on {int(attrs['n_tasks']):,} tasks."


def _tell_trust(attrs: dict[Any, Any]) -> str:
    r2 = float(attrs.get("r2", math.nan))
    note = str(attrs.get("note") or "").strip()
    warning = f" {escape_text(note[:1].upper() + note[1:])}." if note else ""
    if math.isnan(r2):
        return warning
    return f"The model explains {max(0.0, r2):.0%} of the variance of attempts that it has not seen.{warning}"


def _tell_effects(attempts: Attempts) -> str:
    from mlmeta.analysis.marginal_effects import marginal_effect
    from mlmeta.reports.effect_figures import MAX_EFFECT_POINTS, plot_marginal_effect

    attempts.check_scores()
    ranks = attempts.only_task is None
    parts, reasons = [], []
    for param in attempts.params[:_N_EFFECTS]:
        try:
            effect = marginal_effect(attempts.studied, param, metric=attempts.metric, task=attempts.only_task)
            figure = plot_marginal_effect(attempts.table, effect, param, metric=attempts.metric, ranks=ranks)
        except MlmetaError as error:
            reasons.append(str(error))
            continue
        parts.append(embed_figure(figure, label=f"Mean effect of {param} with its 95 % band"))
    if not parts:
        return _lack(reasons[0] if reasons else "no param differs among the attempts")
    what = "rank within the task" if ranks else escape_text(attempts.metric)
    dots = _tell_dots(len(attempts.table), MAX_EFFECT_POINTS)
    text = f"<p>The mean {what} over all other params, with its 95 % band; grey: the attempts{dots}.</p>"
    return f'{text}<div class="panels wide">{"".join(parts)}</div>'


def _tell_dots(n: int, limit: int) -> str:
    return f" ({limit:,} of {n:,} are drawn: the best and evenly spaced others)" if n > limit else ""


def _tell_pairs(attempts: Attempts) -> str:
    from mlmeta.reports.effect_figures import plot_pair

    attempts.check_scores()
    parts = []
    for first, second in _list_pairs(attempts.params):
        figure = plot_pair(attempts.table, first, second, metric=attempts.metric)
        parts.append(embed_figure(figure, label=f"Mean rank by {first} and {second}"))
    if not parts:
        return _lack("fewer than two params differ among the attempts")
    text = f"<p>Mean rank of the attempts within their tasks: {_SCALE} worst to best; empty where none was tried.</p>"
    return f'{text}<div class="panels wide">{"".join(parts)}</div>'


def _list_pairs(params: list[str]) -> list[tuple[str, str]]:
    top = params[:_N_PAIRS]
    return [(first, second) for i, first in enumerate(top) for second in top[i + 1 :]]


def _tell_cost(attempts: Attempts) -> str:
    from mlmeta.reports.figures import MAX_POINTS, plot_pareto

    figure = plot_pareto(attempts.table, metric=attempts.metric)
    dots = _tell_dots(len(attempts.table), MAX_POINTS)
    caption = f"Lines: of each task the attempts that no other one beats in both; dots: the others{dots}."
    controls = f'<div class="controls">{_choose_task(attempts, "cost")}</div>'
    label = f"{attempts.metric} against seconds of training, with the Pareto front of each task"
    return controls + embed_figure(figure, label=label, caption=caption, group="cost")


def _tell_map(attempts: Attempts) -> str:
    from mlmeta.analysis.task_similarity import task_distances, task_table
    from mlmeta.reports.figures import plot_task_map

    tasks = task_table(attempts.studied, attempts.metric)
    if len(tasks) < 2:
        return _lack("a map needs two tasks with meta-features or labels")
    texts = [_describe_task(tasks, name, attempts) for name in tasks["task"]]
    figure, stress = plot_task_map(tasks, task_distances(tasks), texts)
    caption = (
        f"Near tasks are alike in pictures and label words. The map loses {stress:.0%} of the distances (stress-1)."
    )
    return embed_figure(figure, label="Map of tasks: near ones are alike", caption=caption)


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
    if table.empty and not tasks:
        sections = [("start", "The first attempt", _EMPTY)]
        page = fill_page(title=title, summary=_tell_source(source), sections=sections, texts=[], rows=[])
    else:
        prepared = prepare_table(table, metric=metric, tasks=tasks)
        shown = thin_attempts(prepared, metric, limit=MAX_ATTEMPTS).reset_index(drop=True)
        shown.attrs = dict(prepared.attrs)
        attempts = Attempts(shown, metric)
        page = fill_page(
            title=title,
            summary=_summarise(prepared, metric, source),
            sections=make_sections(attempts),
            texts=describe_attempts(shown, metric),
            rows=_list_rows(attempts),
        )
    with replacing(Path(file)) as stream:
        stream.write(page.encode("utf-8", errors="replace"))


def _summarise(table: pd.DataFrame, metric: str, source: str) -> str:
    n_tasks = int((table["task"].drop_duplicates() != UNKNOWN_TASK).sum())
    first, last = table["started"].min(), table["started"].max()
    when = "" if pd.isna(first) else f", started {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    states = ", ".join(f"{escape_text(name)} {n:,}" for name, n in table["status"].value_counts().items())
    unknown = int((table["task"] == UNKNOWN_TASK).sum())
    lines = [f"<p><strong>{_count(len(table), 'attempt')} on {_count(n_tasks, 'task')}</strong>{when}.</p>"]
    lines.append(f'<p class="facts">Status: {states}. Compared by <code>{escape_text(metric)}</code>.</p>')
    if unknown:
        lines.append(f'<p class="facts">{_count(unknown, "attempt")} without a known task.</p>')
    if len(table) > MAX_ATTEMPTS:
        which = "of each task the best and evenly spaced others"
        lines.append(f"<p>All below is of {MAX_ATTEMPTS:,} of them: {which}. Name tasks to see all of theirs.</p>")
    return "\n".join([*lines, _tell_source(source)])


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _tell_source(source: str) -> str:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    where = f" from <code>{escape_text(_without_password(source))}</code>" if source else ""
    return f'<p class="facts">Read{where} on {now}.</p>'


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
