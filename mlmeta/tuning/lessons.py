"""What attempts teach: the score of a test and, where there was none, what validation says the score would be.

The test pictures are read once, for the report, so that of the attempts of a tuning most are never tested, and those
that were pruned did not even finish. They too are lessons, only less certain ones.

Before its user has tried anything mlmeta knows the real attempts that come with it. `shipped_attempts.json`, made by
benchmarks/make_defaults.py, has the trainings as their params, the tasks as their meta-features, and of each attempt
its training, task, score and size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.analysis.task_similarity import TASK_COLUMNS
from mlmeta.history.table import Floats, check_column, read_numbers, read_scores
from mlmeta.status import Status

STD_COLUMN = "lesson_std"
FINISHED = (Status.COMPLETE, Status.TRAINED, Status.TESTING)
_STOPPED = (Status.PRUNED, Status.INTERRUPTED)
_TAUGHT = (Status.COMPLETE, Status.TRAINED, *_STOPPED, Status.DIVERGED, Status.FAILED)
# Of the score in which a training that was stopped would have ended, where no past curve tells.
_UNKNOWN_STD = 0.15
_FEWEST = 10.0
# The user's own tasks may have the same names.
_PREFIX = "mlmeta's "
_DIGEST = "tags.mlmeta.task_digest"


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
    if metric in table.columns or metric != "accuracy":
        check_column(table, metric, what="metric")
        scores = read_scores(table, metric)
    if metric == "accuracy" and {"val_accuracy", "kept_val_accuracy"} & set(table.columns):
        scores, stds = _fill(table, scores)
    return table.assign(**{metric: scores, STD_COLUMN: stds})


def split_lessons(history: pd.DataFrame, task_digest: str, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the attempts on other tasks, and those on the task of a digest, that teach anything; see `add_lessons`.

    Raises:
        BadInputError: If there are attempts, and none has the metric, which is no accuracy.
    """
    if not len(history):
        return history, history
    taught = add_lessons(history, metric)
    taught = taught[taught["status"].isin(_TAUGHT)]
    digests = taught.get(_DIGEST, pd.Series(None, index=taught.index, dtype=object))
    is_own = (digests == task_digest).fillna(False).astype(bool)
    return taught[~is_own & taught["task"].notna()], taught[is_own]


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
    cases = [~untested, finished, stopped & np.isfinite(expected), stopped]
    expected_std = np.where(np.isnan(expected_std), _UNKNOWN_STD, expected_std)
    return (
        np.select(cases, [scores, kept, expected, kept], np.nan),
        np.select(cases, [0.0, finished_std, expected_std, _UNKNOWN_STD], 0.0),
    )


@dataclass(frozen=True)
class Shipped:
    """Attempts and their tasks.

    Attributes:
        attempts: As `mlmeta.history.loading.load_attempts` gives them, with the params that say how they were trained.
        tasks: As `mlmeta.analysis.task_similarity.task_table` gives them.
    """

    attempts: pd.DataFrame
    tasks: pd.DataFrame

    def without(self, past: pd.DataFrame, task_digest: str | None = None) -> Shipped:
        """Return what is left without the attempts that a history has too, and without those on one task.

        Args:
            past: Attempts; two are the same that have the same name and the same task, by its digest or, since pictures
                that were not there when they were imported have another one, by its name.
            task_digest: Of the task; None for none.
        """
        names = self.attempts["model_name"]
        digests = self.attempts["task"].map(self.tasks.set_index("task")["task_digest"])
        is_left = (digests != task_digest).to_numpy(copy=True)
        for column, here in ((_DIGEST, digests), ("task", self.attempts["task"].str.removeprefix(_PREFIX))):
            if column in past.columns:
                known = set(zip(past[column], past["model_name"], strict=True))
                is_left &= np.array([one not in known for one in zip(here, names, strict=True)], dtype=bool)
        attempts = self.attempts[is_left].reset_index(drop=True)
        tasks = self.tasks[self.tasks["task"].isin(attempts["task"])].reset_index(drop=True)
        return Shipped(attempts, tasks)


def read_shipped() -> Shipped:
    """Return the attempts that come with mlmeta."""
    text = resources.files("mlmeta.tuning").joinpath("shipped_attempts.json").read_text(encoding="utf-8")
    return parse_shipped(json.loads(text))


def parse_shipped(document: Mapping[str, Any]) -> Shipped:
    """Return the attempts of a document such as `shipped_attempts.json`."""
    tasks = pd.DataFrame([_make_task(task) for task in document["tasks"]], columns=list(TASK_COLUMNS))
    trainings = pd.DataFrame(document["trainings"])
    columns = ["task", "training", "accuracy", "arch.n_parameters", "model_name"]
    attempts = pd.DataFrame(document["attempts"], columns=columns)
    attempts = attempts.join(trainings, on="training").drop(columns="training")
    attempts["task"] = tasks["task"].to_numpy()[attempts["task"]]
    attempts["status"] = np.where(attempts["accuracy"].isna(), Status.FAILED, Status.COMPLETE)
    attempts.attrs["kinds"] = dict.fromkeys(["arch.n_parameters", *trainings], "param") | {"accuracy": "metric"}
    return Shipped(attempts, tasks)


def _make_task(task: Mapping[str, Any]) -> dict[str, Any]:
    named = {"task": _PREFIX + task["task"], "task_digest": task["task_digest"], "n_attempts": 0}
    return {**named, "label_names": tuple(task["label_names"]), **task["features"]}
