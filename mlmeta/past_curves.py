"""The learning curves of past attempts, as a tracking store has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pandas as pd

from mlmeta.commands.documents import MAX_EPOCHS
from mlmeta.curves import MOST_CURVES, Floats, PastCurve, share_fairly
from mlmeta.history.loading import load_attempts, load_curves
from mlmeta.history.sql_reader import open_sql_reader
from mlmeta.status import Status
from mlmeta.tracking.store import current_uri

# Of more tasks the latest are looked at.
MOST_TASKS = 60
# An attempt on this task counts by validation pictures only. Curves on other tasks teach how curves go, and imported
# attempts have none but those of the test.
_METRICS = ("val_accuracy", "test_accuracy")
_DIGEST = "tags.mlmeta.task_digest"
# Of a curve whose epochs are not known.
_LONGEST = 10_000
_STOPPED = {Status.PRUNED}
_FINISHED = {Status.TRAINED, Status.TESTING, Status.COMPLETE, Status.DIVERGED}


def can_read_quickly() -> bool:
    """Return whether the tracking store is one that the history reads in fractions of a second, not by a server's API.

    Raises:
        MlmetaError: If the store does not answer.
    """
    return open_sql_reader(current_uri()) is not None


def load_past_curves(task: str, *, without: str = "", tracking_uri: str | None = None) -> list[PastCurve]:
    """Return the validation accuracies by epoch of past attempts: on a task all, the latest on others.

    Args:
        task: The digest of the task, as the tag ``mlmeta.task_digest`` has it.
        without: The id of a run that is left out.
        tracking_uri: The store; None for the one that MLflow's own settings name.

    Returns:
        At most `mlmeta.curves.MOST_CURVES`, `task` being the digest. What is no accuracy between 0 and 1 is not known.

    Raises:
        MlmetaError: If the store cannot be read.
    """
    chosen = _choose(load_attempts(tracking_uri), task, without)
    curves = {metric: _load(chosen, metric, tracking_uri) for metric in _METRICS}
    return list(_make_curves(chosen, curves))


def _choose(attempts: pd.DataFrame, task: str, without: str) -> pd.DataFrame:
    """Return the attempts to learn from, with the column ``metric``."""
    present = [metric for metric in _METRICS if metric in attempts]
    if _DIGEST not in attempts or not present:
        return attempts.iloc[:0].assign(metric="", digest="")
    metric = pd.Series(pd.NA, index=attempts.index, dtype="str")
    for name in present:
        metric = metric.mask(metric.isna() & attempts[name].notna(), name)
    known = attempts.assign(metric=metric, digest=attempts[_DIGEST])
    known = known[known["metric"].notna() & known["digest"].notna() & (known["run_id"] != without)]
    known = known[(known["digest"] != task) | (known["metric"] == "val_accuracy")]
    others = known["digest"].drop_duplicates()
    latest = known[known["digest"].isin({task, *others[others != task][:MOST_TASKS]})]
    return latest.iloc[share_fairly(latest["digest"].tolist(), task, most=MOST_CURVES)]


def _load(chosen: pd.DataFrame, metric: str, tracking_uri: str | None) -> dict[str, pd.DataFrame]:
    run_ids = chosen["run_id"][chosen["metric"] == metric].tolist()
    if not run_ids:
        return {}
    points = load_curves(run_ids, metric=metric, tracking_uri=tracking_uri)
    return {str(run_id): group for run_id, group in points[points["step"] >= 1].groupby("run_id")}


def _make_curves(chosen: pd.DataFrame, curves: dict[str, dict[str, pd.DataFrame]]) -> Iterator[PastCurve]:
    counts = (_read_counts(chosen, column) for column in ("n_epoch", "task.n_labels"))
    facts = (chosen[column].tolist() for column in ("run_id", "metric", "digest", "status"))
    for run_id, metric, digest, status, n_epoch, n_labels in zip(*facts, *counts, strict=True):
        points = curves[metric].get(run_id)
        values = None if points is None else _arrange(points, n_epoch or _LONGEST)
        if values is not None:
            yield PastCurve(values, n_epoch or len(values), digest, n_labels or 2, _end(status))


def _arrange(points: pd.DataFrame, longest: int) -> Floats | None:
    """Return the values by epoch; None where none is an accuracy. Tools that count batches have steps beyond."""
    steps, values = points["step"].to_numpy(dtype=np.int64), points["value"].to_numpy(dtype=np.float64)
    known = (steps <= longest) & (values >= 0) & (values <= 1)
    if not known.any():
        return None
    arranged = np.full(steps[known].max(), np.nan)
    arranged[steps[known] - 1] = values[known]
    return arranged


def _end(status: str) -> Literal["finished", "stopped", "open"]:
    return "stopped" if status in _STOPPED else "finished" if status in _FINISHED else "open"


def _read_counts(attempts: pd.DataFrame, column: str) -> list[int]:
    """Return a column's whole numbers, 0 where there is none."""
    if column not in attempts:
        return [0] * len(attempts)
    numbers = pd.to_numeric(attempts[column], errors="coerce").astype("float64")
    return [int(number) for number in numbers.where(numbers.between(1, MAX_EPOCHS), 0)]
