"""What the history answers, as the routes give it; functions that block, run in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mlmeta import meta_query
from mlmeta.analysis.filters import match_filter, sort_rows
from mlmeta.analysis.search import add_named, find_task
from mlmeta.analysis.task_similarity import place_tasks, rank_similar_tasks, task_distances, task_table
from mlmeta.errors import NotFoundError
from mlmeta.history.table import FACTS, read_scores
from mlmeta.server.callers import Caller

_HIDDEN = ("curve",)
_T = TypeVar("_T")


async def ask_history(
    caller: Caller, question: Callable[[pd.DataFrame], _T], *, fresh: bool = False, full: bool = False
) -> _T:
    """Return the answer to a question about the attempts that a caller may read; see `AttemptTable.read`."""

    def answer() -> _T:
        return question(choose_readable(caller.server.attempts.read(fresh=fresh, full=full), caller.experiment_names))

    return await caller.server.work(answer)


async def ask_kept(
    caller: Caller, question: Callable[[pd.DataFrame], _T], kind: str, metric: str, task: str | None = None
) -> _T:
    """Return the answer to a question that takes long, kept until the scores of the metric are others."""
    readable = caller.experiments and tuple(caller.experiment_names or ())

    def answer(history: pd.DataFrame) -> _T:
        return caller.server.answers.keep((kind, readable, metric, task), history, metric, partial(question, history))

    return await ask_history(caller, answer)


def choose_readable(table: pd.DataFrame, experiments: Sequence[str] | None) -> pd.DataFrame:
    """Return the attempts of some experiments; None for all."""
    if experiments is None:
        return table
    chosen = table[table["experiment"].isin(experiments)].reset_index(drop=True)
    chosen.attrs = dict(table.attrs)
    return chosen


def page_attempts(
    table: pd.DataFrame,
    *,
    filter: str,
    order_by: Sequence[str],
    columns: Sequence[str] | None,
    limit: int,
    offset: int,
    store_uri: str,
) -> tuple[pd.DataFrame, int]:
    """Return a page of the attempts that a filter finds, without columns that are empty on it, and their number.

    Raises:
        FilterError: If a filter, an order or a column is not understood.
    """
    if table.empty:
        return table, 0
    table = add_named(table, filter, order_by=order_by, columns=columns, tracking_uri=store_uri)
    # A page is a few rows of a wide table, so they are found by their places, and only they are copied.
    places = sort_rows(table, list(order_by))
    places = places[match_filter(table, filter).to_numpy()[places]]
    page = table.iloc[places[offset : offset + limit]].reset_index(drop=True)
    page.attrs = dict(table.attrs)
    if columns is not None:
        return meta_query.search_attempts("", order_by=[], history=page, columns=columns), len(places)
    is_told = page.notna().any().to_numpy() | page.columns.isin([*FACTS, "experiment"])
    is_told &= ~(page.columns.isin(_HIDDEN) | page.columns.str.startswith("tags."))
    return page.loc[:, is_told], len(places)


def list_curves(table: pd.DataFrame, run_ids: Sequence[str], metric: str, store_uri: str) -> list[dict[str, Any]]:
    """Return a metric's curve of each attempt, those without it empty.

    Raises:
        NotFoundError: If there is no such attempt.
    """
    asked = table[table["run_id"].isin(run_ids)]
    if unknown := set(run_ids) - set(asked["run_id"]):
        raise NotFoundError(f"run_id: there is no attempt {min(unknown)[:100]!r}")
    asked.attrs = dict(table.attrs)
    points = meta_query.learning_curves(*run_ids, metric=metric, history=asked, tracking_uri=store_uri)
    shown = [name for name in ("run_id", "model_name", "status", "n_epoch") if name in asked.columns]
    facts = asked[shown].set_index("run_id").loc[list(dict.fromkeys(run_ids))]
    curves = []
    for run_id, row in zip(facts.index, facts.to_dict("records"), strict=True):
        own = points[points["run_id"] == run_id]
        steps = [int(step) for step in own["step"]]
        values = [float(value) if np.isfinite(value) else None for value in own["value"]]
        curves.append({
            "run_id": run_id, "model_name": row["model_name"], "status": row["status"],
            "n_epoch": _read_count(row.get("n_epoch")), "steps": steps, "values": values,
        })  # fmt: skip
    return curves


def _read_count(value: Any) -> int | None:
    return None if value is None or pd.isna(value) else int(value)


def find_similar(table: pd.DataFrame, task: str, limit: int) -> pd.DataFrame:
    """Return the tasks most like one that the history knows; see `mlmeta.analysis.task_similarity.rank_similar_tasks`.

    Raises:
        NotFoundError: If there is no such task; names the nearest.
    """
    # Never `similar_tasks`, which takes the name of a task that it does not know for that of a file.
    return rank_similar_tasks(task_table(table), find_task(table, task)).head(limit)


def map_tasks(table: pd.DataFrame, metric: str) -> dict[str, Any]:
    """Return all tasks by name, with their places on a map and their distances.

    Raises:
        BadInputError: If the metric is no number.
    """
    if metric in table.columns:
        # Refuses what is no number.
        read_scores(table, metric)
    tasks = task_table(table, metric).sort_values("task", ignore_index=True)
    if not len(tasks):
        return {"tasks": [], "distances": [], "stress": 0.0}
    distances = task_distances(tasks).to_numpy(dtype=np.float64)
    places, stress = place_tasks(distances)
    rows = [
        {
            "task": str(row["task"]),
            "n_attempts": int(row["n_attempts"]),
            "best_score": None if np.isnan(row["best_score"]) else float(row["best_score"]),
            "label_names": list(row["label_names"]),
            "x": round(float(x), 5),
            "y": round(float(y), 5),
        }
        for row, (x, y) in zip(tasks.to_dict("records"), places, strict=True)
    ]
    matrix = [[None if np.isnan(value) else round(float(value), 4) for value in row] for row in distances]
    return {"tasks": rows, "distances": matrix, "stress": round(stress, 4)}
