"""Questions about all attempts that were ever recorded; every answer is a DataFrame.

Each function reads the history itself (all experiments, unless some are named), or takes a table that
`mlmeta.history.loading.load_attempts` gave before. Attempts come with the columns `FACTS`, then params and metrics
under their MLflow names. The MLproject entry point ``query`` is ``python -m mlmeta.meta_query``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mlmeta.analysis.filter_grammar import parse_filter
from mlmeta.analysis.leaderboards import compare_table, direction, find_best_values, rank_attempts, select_pareto_front
from mlmeta.analysis.search import add_named, check_search, collect_curves, find_matching
from mlmeta.history.table import FACTS, find_kinds, with_kinds

__all__ = [
    "FACTS",
    "best_values",
    "compare_attempts",
    "direction",
    "hyperparameter_importance",
    "leaderboard",
    "learning_curves",
    "marginal_effect",
    "pareto_front",
    "search_attempts",
    "similar_tasks",
]


def search_attempts(
    filter: str = "",
    *,
    order_by: Sequence[str] | str = ("started DESC",),
    limit: int | None = None,
    columns: Sequence[str] | None = None,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return the attempts that a filter finds.

    Args:
        filter: As MLflow's users write it, see `mlmeta.analysis.filter_grammar`; empty for all attempts.
        order_by: ``"accuracy DESC"``, or several; missing values come last.
        limit: At most so many.
        columns: Exactly these, in this order. Without them `FACTS`, all params and metrics, and whatever else
            the filter or the order names.
        history: The table to look into; None to read it.
        experiments: Names of experiments; None for all.
        tracking_uri: Of the store; None for MLflow's own setting.

    Raises:
        FilterError: If a filter, an order or a column is not understood or not there; names the nearest column.
        BadInputError: If the limit is less than 1.
    """
    orders = check_search(filter, order_by=order_by, limit=limit)
    table = _load(history, experiments, tracking_uri)
    table = add_named(table, filter, order_by=orders, columns=columns, tracking_uri=tracking_uri)
    return find_matching(table, filter, order_by=order_by, limit=limit, columns=columns)


def compare_attempts(
    *names_or_run_ids: str,
    all_columns: bool = False,
    metric: str = "accuracy",
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return attempts side by side, only what differs; see `mlmeta.analysis.leaderboards.compare_table`."""
    table = _load(history, experiments, tracking_uri)
    return compare_table(table, names_or_run_ids, metric=metric, all_columns=all_columns)


def learning_curves(
    *names_or_run_ids: str,
    filter: str = "",
    metric: str = "train_loss",
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return a metric of every epoch: one row an epoch and attempt.

    Args:
        names_or_run_ids: The attempts; none for all that the filter finds.
        filter: Narrows them further.
        metric: Such as train_loss, val_loss, val_accuracy.
        history: The table to choose attempts from; None to read it.
        experiments: Names of experiments; None for all.
        tracking_uri: Of the store; None for MLflow's own setting.

    Returns:
        `FACTS`, `metric` (its name), `step` (Int64, epochs finished) and `value` (float64, NaN or infinite where it
        was), attempts in the table's order, or in that of their names, steps from first to last. An attempt
        without the metric has no rows.

    Raises:
        NotFoundError: If there is no such attempt; names the nearest.
        FilterError: If the filter is not understood.
    """
    parse_filter(filter)
    table = _load(history, experiments, tracking_uri)
    return collect_curves(table, names_or_run_ids, filter=filter, metric=metric, tracking_uri=tracking_uri)


def _load(history: pd.DataFrame | None, experiments: Sequence[str] | None, tracking_uri: str | None) -> pd.DataFrame:
    """Return the attempts to ask about, rows numbered from 0, with the kinds of their columns."""
    if history is None:
        from mlmeta.history.loading import load_attempts

        history = load_attempts(tracking_uri, experiments=experiments)
    elif experiments is not None:
        history = history[history["experiment"].isin(list(experiments))]
    return with_kinds(history.reset_index(drop=True), find_kinds(history))


def leaderboard(
    task: str | None = None,
    *,
    metric: str = "accuracy",
    limit: int | None = 20,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return the best attempts on a task, the best first; see `mlmeta.analysis.leaderboards.rank_attempts`."""
    return rank_attempts(_load(history, experiments, tracking_uri), task, metric=metric, limit=limit)


def best_values(
    param: str,
    *,
    metric: str = "accuracy",
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return which values of a param worked on which tasks; see `mlmeta.analysis.leaderboards.find_best_values`."""
    return find_best_values(_load(history, experiments, tracking_uri), param, metric=metric)


def pareto_front(
    maximize: str = "accuracy",
    minimize: str = "duration_s",
    *,
    task: str | None = None,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return the attempts that no other beats; see `mlmeta.analysis.leaderboards.select_pareto_front`."""
    return select_pareto_front(_load(history, experiments, tracking_uri), maximize, minimize, task=task)


def hyperparameter_importance(
    metric: str = "accuracy",
    *,
    task: str | None = None,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return how much each hyperparameter matters; see `mlmeta.analysis.importance.measure_importance`."""
    from mlmeta.analysis.importance import measure_importance

    return measure_importance(_load(history, experiments, tracking_uri), metric, task=task)


def marginal_effect(
    param: str,
    *,
    metric: str = "accuracy",
    task: str | None = None,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return how a metric goes with one hyperparameter; see `mlmeta.analysis.marginal_effects.marginal_effect`."""
    from mlmeta.analysis.marginal_effects import marginal_effect

    return marginal_effect(_load(history, experiments, tracking_uri), param, metric=metric, task=task)


def similar_tasks(
    task_or_config: str | Path,
    *,
    limit: int | None = 10,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return the tasks that are most like one; see `mlmeta.analysis.task_similarity.find_similar_tasks`."""
    from mlmeta.analysis.task_similarity import find_similar_tasks

    return find_similar_tasks(_load(history, experiments, tracking_uri), task_or_config, limit=limit)


def main() -> None:
    """Run ``mlmeta query`` with the arguments of this process; the result also goes to the run of MLFLOW_RUN_ID."""
    from mlmeta.reports.cli import query

    query(args=["--to-run", *sys.argv[1:]], prog_name="mlmeta query")


if __name__ == "__main__":
    main()
