"""Which attempts are best: by one number, or by two that pull in opposite directions."""

from __future__ import annotations

import pandas as pd

from mlmeta.history.table import FACTS, is_numeric, lower_is_better
from mlmeta.selection import find_name, find_numbers, list_differing, select_task


def direction(metric: str) -> str:
    """Return "minimize" for a metric whose name speaks of loss, seconds, duration or error, else "maximize"."""
    return "minimize" if lower_is_better(metric) else "maximize"


def rank_attempts(
    table: pd.DataFrame, task: str | None = None, *, metric: str = "accuracy", limit: int | None = 20
) -> pd.DataFrame:
    """Return the best attempts, the best first.

    Args:
        table: Attempts.
        task: Name or digest of the task; None for all, whose scores mean different things.
        metric: What they are ranked by; its name says whether lower is better.
        limit: At most so many.

    Returns:
        `rank` (int64, from 1; equal scores share the better rank), `FACTS`, the params in which these attempts
        differ, and the metric. Attempts without the metric are left out.

    Raises:
        NotFoundError: If there is no such task or metric; names the nearest.
        BadInputError: If the metric holds no numbers.
    """
    metric = find_numbers(table, metric)
    found = select_task(table, task)
    scores = found[metric].astype("float64").dropna()
    ranks = scores.rank(method="min", ascending=lower_is_better(metric)).astype("int64")
    order = pd.DataFrame({"rank": ranks, "started": found["started"]}).loc[ranks.index]
    best = order.sort_values(["rank", "started"], kind="stable").iloc[:limit]
    chosen = found.loc[best.index]
    ranked = _choose_columns(chosen, metric)
    ranked.insert(0, "rank", best["rank"])
    return ranked.reset_index(drop=True)


def find_best_values(table: pd.DataFrame, param: str, *, metric: str = "accuracy", share: float = 0.25) -> pd.DataFrame:
    """Return which values of a param worked on which tasks: where the better attempts of each task lie.

    Args:
        table: Attempts.
        param: The param.
        metric: What they are ranked by; its name says whether lower is better.
        share: Which part of a task's attempts are its better ones, 0 to 1; at least one.

    Returns:
        One row a task: `task`, `n_attempts` (with both param and metric), `best_score`, `best_value` (the best
        attempt's), and of the better ones `low` and `high` (the 10 % and 90 % quantile of a param of numbers), or
        `common` (the names and how often each, of any other).

    Raises:
        NotFoundError: If there is no such param or metric; names the nearest.
        BadInputError: If the metric holds no numbers.
    """
    metric, param = find_numbers(table, metric), find_name(table, param)
    known = table[table[metric].notna() & table[param].notna() & table["task"].notna()]
    # Of equal scores the first name counts, so that the answer does not hang on when the attempts were made.
    known = known.sort_values([metric, "model_name"], ascending=[lower_is_better(metric), True], kind="stable")
    rows = [_describe_best(task, group, param, metric, share) for task, group in known.groupby("task", sort=True)]
    spread = ["low", "high"] if is_numeric(table[param]) else ["common"]
    return pd.DataFrame(rows, columns=["task", "n_attempts", "best_score", "best_value", *spread])


def _describe_best(task: object, group: pd.DataFrame, param: str, metric: str, share: float) -> dict[str, object]:
    values = group[param].head(max(1, round(share * len(group))))
    row = {"task": task, "n_attempts": len(group), "best_score": group[metric].iloc[0], "best_value": values.iloc[0]}
    if is_numeric(values):
        low, high = values.astype("float64").quantile([0.1, 0.9])
        return row | {"low": low, "high": high}
    return row | {"common": ", ".join(f"{name} {count}" for name, count in values.value_counts().items())}


def select_pareto_front(
    table: pd.DataFrame, maximize: str = "accuracy", minimize: str = "duration_s", *, task: str | None = None
) -> pd.DataFrame:
    """Return the attempts that no other beats: more of one number would cost more of the other.

    An attempt is left out where another one has at least as much of `maximize` for at most as much of `minimize`
    and is better in one of them.

    Args:
        table: Attempts.
        maximize: A column of numbers of which more is better.
        minimize: A column of numbers of which less is better.
        task: Name or digest of the task; None for all.

    Returns:
        `FACTS`, the params in which these attempts differ, and the two columns, sorted by `minimize`.

    Raises:
        NotFoundError: If there is no such task or column; names the nearest.
        BadInputError: If a column holds no numbers.
    """
    gain, cost = find_numbers(table, maximize), find_numbers(table, minimize)
    found = select_task(table, task)
    points = pd.DataFrame({"gain": found[gain].astype("float64"), "cost": found[cost].astype("float64")}).dropna()
    points = points.sort_values(["cost", "gain"], ascending=[True, False], kind="stable")
    best_of_cost = points.groupby("cost")["gain"].transform("max")
    front = points[(points["gain"] == best_of_cost) & ~(points["gain"] <= _best_below(points))]
    return _choose_columns(found.loc[front.index], gain, cost).reset_index(drop=True)


def _best_below(points: pd.DataFrame) -> pd.Series[float]:
    """Return for each point, sorted by cost, the greatest gain of those that cost less; NaN where there is none."""
    by_cost = points.groupby("cost")["gain"].max().cummax().shift()
    return points["cost"].map(by_cost)


def _choose_columns(chosen: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    params = [name for name in list_differing(chosen, kind="param") if name not in metrics]
    names = [*FACTS, *params, *metrics]
    result = chosen[list(dict.fromkeys(names))].copy()
    result.attrs = chosen.attrs
    return result
