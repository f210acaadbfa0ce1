"""Questions about all attempts that were ever recorded; every answer is a DataFrame.

Each function reads the history itself (all experiments, unless some are named), or takes a table that
`mlmeta.history.load_attempts` gave before. Attempts come with the columns `FACTS`, then params and metrics under
their MLflow names. The MLproject entry point ``query`` is ``python -m mlmeta.meta_query``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.attempt_features import list_params
from mlmeta.comparison import compare_table
from mlmeta.errors import BadInputError, NotFoundError
from mlmeta.filter_syntax import parse_filter, parse_order
from mlmeta.filter_tree import list_columns
from mlmeta.filters import find_column, match_filter, sort_rows
from mlmeta.rankings import direction, find_best_values, rank_attempts, select_pareto_front
from mlmeta.selection import FACTS, find_attempts, find_task, is_numeric

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

# The history keeps curves up to this length whole; longer ones are read from the metric.
_WHOLE_CURVE = 300


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
        filter: As MLflow's users write it, see `mlmeta.filter_syntax`; empty for all attempts.
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
    if limit is not None and limit < 1:
        raise BadInputError(f"limit must be 1 or more; got {limit}")
    orders = [order_by] if isinstance(order_by, str) else list(order_by)
    asked = [*list_columns(parse_filter(filter)), *(order.column for text in orders for order in parse_order(text))]
    table = _load(history, experiments, tracking_uri)
    if table.empty:
        # Nothing can be said about columns that no attempt has yet.
        return table[list(FACTS)]
    rows = sort_rows(table, orders)
    rows = rows[match_filter(table, filter).to_numpy()[rows]][:limit]
    named = [find_column(table, column.name) for column in asked]
    result = table[_choose_columns(table, columns, named)].iloc[rows].reset_index(drop=True)
    return _with_kinds(result, {name: kind for name, kind in _kinds(table).items() if name in result.columns})


def _choose_columns(table: pd.DataFrame, columns: Sequence[str] | None, named: Sequence[str]) -> list[str]:
    if columns is not None:
        return list(dict.fromkeys(find_column(table, name, what="columns") for name in columns))
    kinds = _kinds(table)
    usual = [name for name in table.columns if kinds.get(name) in ("param", "metric")]
    return list(dict.fromkeys([*FACTS, *usual, *named]))


def compare_attempts(
    *names_or_run_ids: str,
    all_columns: bool = False,
    metric: str = "accuracy",
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return attempts side by side, only what differs; see `mlmeta.comparison.compare_table`."""
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
    if names_or_run_ids:
        table = _with_kinds(find_attempts(table, names_or_run_ids), _kinds(table))
    if len(table):
        table = table[match_filter(table, filter).to_numpy()]
    is_kept = _find_kept_curves(table) if metric == "train_loss" else np.zeros(len(table), dtype=bool)
    points = _unfold_curves(table[is_kept])
    if not is_kept.all():
        from mlmeta.history import load_curves

        rest = load_curves(table["run_id"][~is_kept].tolist(), metric=metric, tracking_uri=tracking_uri)
        points = pd.concat([points, rest], ignore_index=True)
    return _join_facts(table, points, metric)


def _find_kept_curves(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return of which attempts the table has the whole curve, or nothing is to be had."""
    lengths = table["curve"].map(lambda curve: len(curve) if isinstance(curve, np.ndarray) else -1)
    has_loss = table["train_loss"].notna() if "train_loss" in table.columns else pd.Series(False, index=table.index)
    # While an attempt is trained, its curve stands in its metric only.
    kept: npt.NDArray[np.bool_] = ((lengths < _WHOLE_CURVE) & ~((lengths < 0) & has_loss)).to_numpy(dtype=bool)
    return kept


def _unfold_curves(table: pd.DataFrame) -> pd.DataFrame:
    curves = [curve if isinstance(curve, np.ndarray) else np.empty(0) for curve in table["curve"]]
    lengths = np.array([len(curve) for curve in curves], dtype=np.int64)
    steps = [np.arange(1, length + 1) for length in lengths]
    return pd.DataFrame(
        {
            "run_id": table["run_id"].iloc[np.repeat(np.arange(len(table)), lengths)].reset_index(drop=True),
            "step": pd.array(np.concatenate([np.empty(0, np.int64), *steps]), dtype="Int64"),
            "value": np.concatenate([np.empty(0), *curves]),
        }
    )


def _join_facts(table: pd.DataFrame, points: pd.DataFrame, metric: str) -> pd.DataFrame:
    facts = table[list(FACTS)].reset_index(drop=True)
    place = points["run_id"].map(pd.Series(facts.index, index=facts["run_id"])).to_numpy(dtype=np.int64)
    order = np.lexsort([points["step"].to_numpy(dtype=np.int64), place])
    points, facts = points.iloc[order].reset_index(drop=True), facts.iloc[place[order]].reset_index(drop=True)
    return facts.assign(
        metric=pd.Series(metric, index=facts.index, dtype="str"), step=points["step"], value=points["value"]
    )


def _load(history: pd.DataFrame | None, experiments: Sequence[str] | None, tracking_uri: str | None) -> pd.DataFrame:
    """Return the attempts to ask about, rows numbered from 0, with the kinds of their columns."""
    if history is None:
        from mlmeta.history import load_attempts

        history = load_attempts(tracking_uri, experiments=experiments)
    elif experiments is not None:
        history = history[history["experiment"].isin(list(experiments))]
    return _with_kinds(history.reset_index(drop=True), _kinds(history))


def _kinds(table: pd.DataFrame) -> dict[str, str]:
    """Return column → kind; where pandas has lost it, as the columns' names and types say."""
    kinds: dict[str, str] | None = table.attrs.get("kinds")
    if kinds is not None:
        return kinds
    others = {*FACTS, "experiment", "curve"}
    names = [name for name in table.columns if name not in others and not name.startswith("tags.")]
    params = set(list_params(table))
    guessed = {name: "param" if name in params or not is_numeric(table[name]) else "metric" for name in names}
    return guessed | {name: "tag" for name in table.columns if name.startswith("tags.")}


def _with_kinds(table: pd.DataFrame, kinds: dict[str, str]) -> pd.DataFrame:
    table = table.copy(deep=False)
    table.attrs = {**table.attrs, "kinds": kinds}
    return table


def leaderboard(
    task: str | None = None,
    *,
    metric: str = "accuracy",
    limit: int | None = 20,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return the best attempts on a task, the best first; see `mlmeta.rankings.rank_attempts`."""
    return rank_attempts(_load(history, experiments, tracking_uri), task, metric=metric, limit=limit)


def best_values(
    param: str,
    *,
    metric: str = "accuracy",
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return which values of a param worked on which tasks; see `mlmeta.rankings.find_best_values`."""
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
    """Return the attempts that no other beats in both numbers; see `mlmeta.rankings.select_pareto_front`."""
    return select_pareto_front(_load(history, experiments, tracking_uri), maximize, minimize, task=task)


def hyperparameter_importance(
    metric: str = "accuracy",
    *,
    task: str | None = None,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return how much each hyperparameter matters; see `mlmeta.importance.measure_importance`."""
    from mlmeta.importance import measure_importance

    table = _load(history, experiments, tracking_uri)
    return measure_importance(table, metric, task=None if task is None else find_task(table, task))


def marginal_effect(
    param: str,
    *,
    metric: str = "accuracy",
    task: str | None = None,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return how a metric goes with one hyperparameter; see `mlmeta.importance.marginal_effect`."""
    from mlmeta import importance

    table = _load(history, experiments, tracking_uri)
    chosen = None if task is None else find_task(table, task)
    return importance.marginal_effect(table, param, metric=metric, task=chosen)


def similar_tasks(
    task_or_config: str | Path,
    *,
    limit: int | None = 10,
    history: pd.DataFrame | None = None,
    experiments: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return the tasks that are most like one, nearest first; see `mlmeta.similarity.rank_similar_tasks`.

    Args:
        task_or_config: A task that the history knows, by name or digest; or a commands file, whose pictures are
            then looked at (this needs torch).
        limit: At most so many.
        history: The table to look into; None to read it.
        experiments: Names of experiments; None for all.
        tracking_uri: Of the store; None for MLflow's own setting.

    Raises:
        NotFoundError: If there is no such task and no such file; names the nearest.
        BadInputError: If the commands or their pictures cannot be used.
    """
    from mlmeta.similarity import NEW_TASK, rank_similar_tasks, task_table

    table = _load(history, experiments, tracking_uri)
    tasks = task_table(table if "accuracy" in table.columns else table.assign(accuracy=np.nan))
    try:
        name = find_task(table, str(task_or_config))
    except NotFoundError:
        file = Path(task_or_config)
        if file.suffix != ".json" and not file.is_file():
            raise
        tasks, name = pd.concat([tasks, _describe_commands(file)], ignore_index=True), NEW_TASK
    return rank_similar_tasks(tasks, name).head(len(tasks) if limit is None else limit)


def _describe_commands(file: Path) -> pd.DataFrame:
    """Return the task of a commands file, as a row of the table of tasks."""
    from mlmeta.documents import load_train_commands

    commands = load_train_commands(file)
    from mlmeta.description import describe_task
    from mlmeta.preparation import prepare_task
    from mlmeta.similarity import describe_new_task

    task = prepare_task(commands, base_dir=file.parent)
    _, features = describe_task(task)
    return describe_new_task(features, task.pictures.label_names)


def main() -> None:
    """Run ``mlmeta query`` with the arguments of this process; the result also goes to the run of MLFLOW_RUN_ID."""
    from mlmeta.cli import cli

    cli(args=["query", "--to-run", *sys.argv[1:]], prog_name="mlmeta")


if __name__ == "__main__":
    main()
