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
from mlmeta.errors import BadInputError, NotFoundError, shorten, suggest
from mlmeta.history.table import FACTS, list_params, lower_is_better

UNKNOWN_TASK = "task unknown"

_USUAL_PARAMS = (
    "optimizer.lr",
    "optimizer.name",
    "batch_size",
    "arch.n_parameters",
    "arch.depth",
    "arch.batch_norm",
    "optimizer.weight_decay",
    "arch.dropout",
    "arch.activation",
    "n_epoch",
)
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
    kinds = table.attrs.get("kinds", {})
    metrics = [
        name for name in table.columns if kinds.get(name, "metric") == "metric" and name not in {*FACTS, "experiment"}
    ]
    if metric not in metrics and not (metric == "accuracy" or table.empty):
        raise BadInputError(f"no attempt has the metric {shorten(metric)}{suggest(metric, metrics)}")
    if metric in table and not pd.api.types.is_numeric_dtype(table[metric]):
        raise BadInputError(f"{shorten(metric)} is no number, so attempts cannot be ranked by it")
    changed = table.assign(
        task=table["task"].astype("object").where(table["task"].notna(), UNKNOWN_TASK).astype(str),
        model_name=table["model_name"].astype("object").where(table["model_name"].notna(), "").astype(str),
        status=table["status"].astype("object").where(table["status"].notna(), "unknown").astype(str),
    )
    changed = _choose_tasks(changed, tasks).reset_index(drop=True)
    if metric not in changed:
        changed[metric] = np.nan
    changed.attrs = dict(table.attrs) | {"kinds": kinds | {metric: "metric"} if kinds else {}}
    return changed


def _choose_tasks(table: pd.DataFrame, tasks: Sequence[str] | None) -> pd.DataFrame:
    if tasks is None:
        return table
    known = list(table["task"].unique())
    for name in tasks:
        if name not in known:
            raise NotFoundError(f"no attempt is on the task {shorten(name)}{suggest(name, known)}")
    return table[table["task"].isin(tasks)]


def read_numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a column as float64; what is no finite number, or a column that is not there, is NaN."""
    if column not in table:
        return pd.Series(np.nan, index=table.index, dtype="float64")
    numbers = pd.to_numeric(table[column], errors="coerce").astype("Float64").astype("float64")
    return numbers.where(np.isfinite(numbers.to_numpy()))


def is_number_column(values: pd.Series) -> bool:
    """Say whether a column holds numbers; truths are none."""
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def is_share(values: pd.Series) -> bool:
    """Say whether all numbers of a column lie in 0..1, as those of an accuracy do."""
    return bool(pd.to_numeric(values, errors="coerce").dropna().between(0, 1).all())


def rank_scores(table: pd.DataFrame, metric: str) -> pd.Series:
    """Return the rank of each attempt within its task, 0..1, 1 the best; failed and diverged ones have the worst.

    NaN where there is nothing to compare: no score, an unknown task, or the only attempt of a task.
    """
    if metric not in table:
        return pd.Series(np.nan, index=table.index, dtype="float64")
    known = table[["task", "status"]].assign(score=read_numbers(table, metric))
    known = known.rename(columns={"score": metric}).assign(task=table["task"].where(table["task"] != UNKNOWN_TASK))
    quantiles, places = np.unique(score_ranks(known, metric), return_inverse=True)
    shares = [NormalDist().cdf(z) if math.isfinite(z) else np.nan for z in quantiles]
    return pd.Series(np.array(shares, dtype=np.float64)[places], index=table.index)


def order_by_score(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the table by task with the best score of each first, and of equals the newest; no score comes last."""
    sign = 1.0 if lower_is_better(metric) else -1.0
    keys = pd.DataFrame({"task": table["task"], "score": sign * read_numbers(table, metric)})
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


def find_pareto_front(table: pd.DataFrame, metric: str, *, cost: str = "duration_s") -> pd.Series:
    """Say for each attempt whether no other of its task is at least as good for less, or better for the same."""
    sign = -1.0 if lower_is_better(metric) else 1.0
    points = pd.DataFrame({"task": table["task"], "score": sign * read_numbers(table, metric)})
    points["cost"] = read_numbers(table, cost)
    points = points.dropna().sort_values(["cost", "score"], ascending=[True, False], kind="stable")
    best_before = points.groupby("task")["score"].transform(lambda scores: scores.cummax().shift(fill_value=-np.inf))
    return pd.Series(table.index.isin(points.index[points["score"] > best_before]), index=table.index)


def round_values(values: Iterable[float], *, digits: int = 4) -> list[float | None]:
    """Return numbers of a few significant digits, for a small file; None for what is not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def format_value(value: object) -> str:
    """Return a cell as people write it: four significant digits, no text for missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return f"{value}"
    if isinstance(value, float | np.floating):
        return f"{float(value):.4g}"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M}"
    return str(value)


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
    columns = [[format_value(value) for value in table[name]] for name in shown]
    labels = [escape_markup(units.get(name, name)) for name in shown]
    heads = zip(table["model_name"], table["task"], table["status"], strict=True)
    texts = []
    for (name, task, status), *values in zip(heads, *columns, strict=True):
        lines = [f"<b>{escape_markup(name)}</b>", f"{escape_markup(task)} · {escape_markup(status)}"]
        lines += [f"{label}: {escape_markup(value)}" for label, value in zip(labels, values, strict=True) if value]
        texts.append("<br>".join(lines))
    return texts
