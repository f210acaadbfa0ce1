"""What the figures of a report are drawn from: scores as ranks within their task, numbers of params, a thinner table.

Scores of unlike tasks are compared by their rank: the share of the task's attempts that an attempt is better
than, ``(rank - ½) / m`` with rank 1 the worst of m, as `mlmeta.analysis.features.score_ranks` has it before Φ⁻¹.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.analysis.features import score_ranks
from mlmeta.analysis.leaderboards import find_pareto_front
from mlmeta.errors import BadInputError, NotFoundError, shorten, suggest
from mlmeta.history.table import find_kinds, list_params, lower_is_better, read_numbers, read_scores, with_kinds
from mlmeta.reports.tables import format_cell

UNKNOWN_TASK = "task unknown"

_USUAL_PARAMS = (
    "optimizer.lr", "optimizer.name", "batch_size", "arch.n_parameters", "arch.depth", "arch.batch_norm",
    "optimizer.weight_decay", "arch.dropout", "arch.activation", "n_epoch",
)  # fmt: skip
# These describe the task, the place of the pictures or one layer by its number, not a choice to compare.
_NO_CHOICES = ("task.", "test.", "data.", "model.", "label_names", "seed", "n_labels", "$schema", "config")


def prepare_table(table: pd.DataFrame, *, metric: str, tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the attempts of some tasks, numbered from 0, where an unknown task and a missing name have words.

    Args:
        table: As `mlmeta.history.loading.load_attempts` gives it.
        metric: Of the table; only ``accuracy`` may be missing, as no attempt was tested then.
        tasks: Names of tasks; None for all.

    Raises:
        BadInputError: The table has no such metric, or the metric is no number.
        NotFoundError: There is no such task.
    """
    if metric in table or not (metric == "accuracy" or table.empty):
        read_scores(table, metric)
    missing = {"task": UNKNOWN_TASK, "model_name": "", "status": "unknown"}
    changed = table.assign(**{name: _name_values(table[name], missing[name]) for name in missing})
    known = list(changed["task"].unique())
    for name in tasks or ():
        if name not in known:
            raise NotFoundError(f"no attempt is on the task {shorten(name)}{suggest(name, known)}")
    changed = changed[changed["task"].isin(known if tasks is None else tasks)].reset_index(drop=True)
    if metric not in changed:
        changed[metric] = np.nan
    return with_kinds(changed, find_kinds(table) | {metric: "metric"})


def _name_values(values: pd.Series, missing: str) -> pd.Series:
    """Return a column as text that plots can group by."""
    return values.astype("object").where(values.notna(), missing).astype(str)


def read_column(table: pd.DataFrame, name: str) -> pd.Series:
    """Return a column as `mlmeta.history.table.read_numbers` reads it, with the table's index."""
    return pd.Series(read_numbers(table, name), index=table.index)


def read_points(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return x, y and task of the attempts that have both numbers.

    Raises:
        BadInputError: If there is none.
    """
    points = pd.DataFrame({"x": read_column(table, x), "y": read_column(table, y), "task": table["task"]})
    points = points.dropna(subset=["x", "y"])
    if points.empty:
        raise BadInputError(f"no attempt has both {shorten(y)} and {shorten(x)}")
    return points


def is_share(values: pd.Series) -> bool:
    """Say whether all numbers of a column lie in 0..1, as those of an accuracy do."""
    return bool(pd.to_numeric(values, errors="coerce").dropna().between(0, 1).all())


def rank_scores(table: pd.DataFrame, metric: str) -> pd.Series:
    """Return the rank of each attempt within its task, 0..1, 1 the best; failed and diverged ones have the worst.

    NaN where there is nothing to compare: no score, an unknown task, or the only attempt of a task.
    """
    if metric not in table:
        return pd.Series(np.nan, index=table.index, dtype="float64")
    task = table["task"].where(table["task"] != UNKNOWN_TASK)
    known = pd.DataFrame({"task": task, "status": table["status"], metric: read_column(table, metric)})
    quantiles, places = np.unique(score_ranks(known, metric), return_inverse=True)
    shares = [NormalDist().cdf(z) if math.isfinite(z) else np.nan for z in quantiles]
    return pd.Series(np.array(shares, dtype=np.float64)[places], index=table.index)


def order_by_score(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the table by task with the best score of each first, and of equals the newest; no score comes last."""
    sign = 1.0 if lower_is_better(metric) else -1.0
    keys = pd.DataFrame({"task": table["task"], "score": sign * read_column(table, metric)})
    return table.loc[keys.sort_values(["task", "score"], kind="stable").index]


def thin_attempts(table: pd.DataFrame, metric: str, *, limit: int) -> pd.DataFrame:
    """Return at most `limit` attempts in their order: of each task the best and evenly spaced others."""
    if len(table) <= limit:
        return table
    ordered = order_by_score(table, metric).index
    places = np.unique(np.linspace(0, len(ordered) - 1, limit).round().astype(int))
    firsts = table.loc[ordered].groupby("task", sort=False).head(1).index[:limit]
    kept = pd.Index(ordered[places]).union(firsts)
    return table.loc[table.index.isin(kept)]


def choose_params(table: pd.DataFrame, *, limit: int = 8) -> list[str]:
    """Return params that differ among the attempts, the usual ones first."""
    own = [name for name in list_params(table) if not name.startswith(_NO_CHOICES)]
    names = dict.fromkeys([*(name for name in _USUAL_PARAMS if name in table), *own])
    return [name for name in names if _differs(table[name])][:limit]


def _differs(values: pd.Series) -> bool:
    counts = values.astype(str).where(values.notna()).value_counts()
    return len(counts) > 1 and values.notna().mean() >= 0.2


def spans_decades(values: npt.ArrayLike) -> bool:
    """Say whether positive values span a factor of 30 or more, so that a logarithmic axis suits them."""
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    return bool(len(numbers) and numbers.min() > 0 and numbers.max() / numbers.min() >= 30)


def find_fronts(table: pd.DataFrame, metric: str, *, cost: str = "duration_s") -> pd.Series:
    """Say for each attempt whether it is on the Pareto front of its task: see `find_pareto_front`."""
    gains, costs = read_column(table, metric) * (-1 if lower_is_better(metric) else 1), read_column(table, cost)
    fronts = [find_pareto_front(gains[rows], costs[rows]) for rows in table.groupby("task").groups.values()]
    return pd.Series(table.index.isin([row for front in fronts for row in front]), index=table.index)


def round_values(values: Iterable[float], *, digits: int = 4) -> list[float | None]:
    """Return numbers of a few significant digits, for a small file; None for what is not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def escape_markup(text: object, *, limit: int = 60) -> str:
    """Return text on one line, cut to a length, in which plotly and HTML find no markup; not for attributes."""
    # Plotly fills in what stands in %{...}, before it reads the entities.
    return html.escape(cut_text(text, limit=limit), quote=False).replace("%{", "%&#123;")


def cut_text(text: object, *, limit: int = 60) -> str:
    """Return text on one line, cut to a length."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def describe_attempts(table: pd.DataFrame, metric: str) -> list[str]:
    """Return what is shown when an attempt is pointed at, one text of lines parted by ``<br>`` for each row."""
    shown = [name for name in ("optimizer.name", "optimizer.lr", "batch_size", metric, "duration_s") if name in table]
    units = {"duration_s": "seconds", "optimizer.name": "optimizer", "optimizer.lr": "lr", "batch_size": "batch size"}
    columns = [[format_cell(value) for value in table[name]] for name in shown]
    labels = [escape_markup(units.get(name, name)) for name in shown]
    heads = zip(table["model_name"], table["task"], table["status"], strict=True)
    texts = []
    for (name, task, status), *values in zip(heads, *columns, strict=True):
        lines = [f"<b>{escape_markup(name)}</b>", f"{escape_markup(task)} · {escape_markup(status)}"]
        lines += [f"{label}: {escape_markup(value)}" for label, value in zip(labels, values, strict=True) if value]
        texts.append("<br>".join(lines))
    return texts
