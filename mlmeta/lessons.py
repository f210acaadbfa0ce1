"""What attempts teach: the score of a test and, where there was none, what validation says the score would be.

The test pictures are read once, for the report, so that of the attempts of a tuning most are never tested, and those
that were pruned did not even finish. They too are lessons, only less certain ones.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mlmeta.history.table import Floats, check_column, read_numbers, read_scores
from mlmeta.status import Status

STD_COLUMN = "lesson_std"
_TAUGHT = (Status.COMPLETE, Status.TRAINED, Status.PRUNED, Status.INTERRUPTED, Status.DIVERGED, Status.FAILED)
FINISHED = (Status.COMPLETE, Status.TRAINED, Status.TESTING)
_STOPPED = (Status.PRUNED, Status.INTERRUPTED)
# Of the score in which a training that was stopped would have ended, where no past curve tells.
_UNKNOWN_STD = 0.15
_FEWEST = 10.0


def add_lessons(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return attempts with the scores that are missing put in where validation says what they would be.

    An attempt that finished without a test counts with the validation accuracy of the weights that it kept, one that
    was stopped with the accuracy that its curve let expect. Only an accuracy can be filled in; any other metric stays
    as it is.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        metric: The score.

    Returns:
        The table with the column `metric`, and the standard deviation of each lesson in `STD_COLUMN`: 0 for a test.

    Raises:
        BadInputError: If no attempt has the metric; but attempts without an accuracy, such as a first one that failed,
            teach beside those that come with mlmeta.
    """
    scores, stds = np.full(len(table), np.nan), np.zeros(len(table))
    instead = metric == "accuracy" and len({"val_accuracy", "kept_val_accuracy"} & set(table.columns)) > 0
    if metric in table.columns or metric != "accuracy":
        check_column(table, metric, what="metric")
        scores = read_scores(table, metric)
    if instead:
        scores, stds = _fill(table, scores)
    taught = table.assign(**{metric: scores, STD_COLUMN: stds})
    taught.attrs = dict(table.attrs)
    return taught


def split_lessons(history: pd.DataFrame, task_digest: str, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the attempts on other tasks, and those on the task of a digest, that teach anything; see `add_lessons`.

    Raises:
        BadInputError: If there are attempts, and none has the metric, which is no accuracy.
    """
    if not len(history):
        return history, history
    taught = add_lessons(history, metric)
    digests = history.get("tags.mlmeta.task_digest", pd.Series(None, index=history.index, dtype=object))
    same = (digests == task_digest).fillna(False).to_numpy(dtype=bool)
    ended = history["status"].isin(_TAUGHT).to_numpy(dtype=bool)
    past, own = taught[~same & ended & history["task"].notna().to_numpy()], taught[same & ended]
    for table in (past, own):
        table.attrs = dict(history.attrs)
    return past, own


def _fill(table: pd.DataFrame, scores: Floats) -> tuple[Floats, Floats]:
    """Return scores and standard deviations with those of attempts that were not tested."""
    last, kept = read_numbers(table, "val_accuracy"), read_numbers(table, "kept_val_accuracy")
    kept = np.where(np.isnan(kept), last, kept)
    expected, expected_std = (read_numbers(table, f"expected_accuracy{suffix}") for suffix in ("", "_std"))
    pictures = read_numbers(table, "task.n_validation")
    shares = np.clip(kept, 0.01, 0.99)
    finished_std = np.sqrt(shares * (1 - shares) / np.where(pictures > 0, pictures, _FEWEST))
    untested, finished = np.isnan(scores), table["status"].isin(FINISHED).to_numpy(dtype=bool)
    stopped = table["status"].isin(_STOPPED).to_numpy(dtype=bool)
    known = np.isfinite(expected)
    return (
        np.select([~untested, finished, stopped & known, stopped], [scores, kept, expected, kept], np.nan),
        np.select(
            [~untested, finished, stopped & known, stopped],
            [0.0, finished_std, np.where(np.isnan(expected_std), _UNKNOWN_STD, expected_std), _UNKNOWN_STD],
            0.0,
        ),
    )
