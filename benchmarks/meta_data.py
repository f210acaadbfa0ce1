"""Real attempts for the meta-learning benchmarks: read, imported, thinned, and one task of them held out."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.commands.search_space import TRAINING_KEYS
from mlmeta.data.metafeatures import META_FEATURES
from mlmeta.tuning.lessons import Shipped, parse_shipped

Floats = npt.NDArray[np.float64]

SHOWN = (1, 2, 3, 5, 10)
NEAR = 0.02
# Past attempts: number of other tasks and of attempts on each; None for all there are.
LEVELS: Mapping[int, tuple[int | None, int | None]] = {
    10: (2, 5), 25: (5, 5), 75: (5, 15), 240: (None, 20), 768: (None, None),
}  # fmt: skip
# What says how a training goes, whatever task it is on.
TRAINING = ("model", "optimizer", "scheduler", "criterion", "batch_size", "n_epoch", "transform", "image_ops")


class Trials:
    """One held-out task: its candidates, and what each has really reached."""

    def __init__(self, table: pd.DataFrame, task: str, commands: Collection[str] | None = None) -> None:
        self.task = task
        rows = table[table["task"] == task].sort_values("commands")
        self.rows = rows[rows["commands"].isin(rows["commands"] if commands is None else commands)].reset_index(
            drop=True
        )
        self.scores: Floats = self.rows["accuracy"].fillna(0.0).to_numpy(dtype=np.float64)
        self.candidates = self.rows.drop(columns=["accuracy", "duration_s", "curve"]).assign(status="Incomplete")
        self.candidates.attrs = table.attrs

    def measure(self, order: Sequence[int]) -> tuple[list[float], int]:
        """Return the regret after 1, 2, 3, 5 and 10 choices, and the choices needed to come near the best."""
        reached = self.scores[list(order)]
        best, worst = self.scores.max(), self.scores.min()
        regret = np.minimum.accumulate((best - reached) / max(best - worst, 1e-12))
        needed = int(np.argmax(reached >= best - NEAR - 1e-9)) + 1
        return [float(regret[min(n, len(regret)) - 1]) for n in SHOWN], needed


@dataclass(frozen=True)
class Scene:
    """What a method may see: past attempts, the tasks, the candidates, and what mlmeta would have shipped with."""

    past: pd.DataFrame
    tasks: pd.DataFrame
    trials: Trials
    shipped: Shipped


def ship(table: pd.DataFrame, tasks: pd.DataFrame) -> Shipped:
    """Return attempts as they would come with mlmeta."""
    own = tasks[tasks["task"].isin(table["task"])].reset_index(drop=True)
    return parse_shipped(json.loads(json.dumps(describe_attempts(table, own))))


def describe_attempts(table: pd.DataFrame, tasks: pd.DataFrame) -> dict[str, Any]:
    """Return attempts as `shipped_attempts.json` has them.

    Args:
        table: As `mlmeta.history.loading.load_attempts` gives them; all with a task.
        tasks: As `mlmeta.analysis.task_similarity.task_table` gives them.
    """
    params = [name for name in table.columns if _is_of_training(str(name))]
    trainings: dict[str, dict[str, Any]] = {}
    attempts = []
    names = list(tasks["task"])
    for row in table[["task", "model_name", "accuracy", "arch.n_parameters", *params]].to_dict("records"):
        training = {name: _plain(row[name]) for name in params if pd.notna(row[name])}
        key = json.dumps(training, sort_keys=True)
        trainings.setdefault(key, training)
        score = None if pd.isna(row["accuracy"]) else round(float(row["accuracy"]), 4)
        place = list(trainings).index(key)
        attempts.append([names.index(row["task"]), place, score, int(row["arch.n_parameters"]), row["model_name"]])
    return {
        "tasks": [_describe_task(task) for _, task in tasks.iterrows()],
        "trainings": list(trainings.values()),
        "attempts": attempts,
    }


def _is_of_training(name: str) -> bool:
    root = name.partition(".")[0]
    told = root in (*TRAINING_KEYS, "n_epoch", "arch") and not name.startswith("model.layers.")
    return told and name not in ("arch.n_parameters", "model.name")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _describe_task(task: pd.Series[Any]) -> dict[str, Any]:
    features = {name: round(float(task[name]), 6) for name in META_FEATURES if pd.notna(task[name])}
    named = {"task": task["task"], "task_digest": task["task_digest"], "label_names": list(task["label_names"])}
    return named | {"features": features}


def select(table: pd.DataFrame, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return the rows of a mask or of places, with what the table knows of its columns."""
    chosen = table.iloc[rows].reset_index(drop=True)
    chosen.attrs = table.attrs
    return chosen


def thin(table: pd.DataFrame, task: str, level: int, draw: np.random.Generator) -> pd.DataFrame:
    """Return the attempts on other tasks that a method may see."""
    n_tasks, n_attempts = LEVELS[level]
    others = sorted(set(table["task"]) - {task})
    chosen = [others[i] for i in draw.permutation(len(others))[:n_tasks]]
    parts = []
    for name in sorted(chosen):
        rows = np.flatnonzero((table["task"] == name).to_numpy())
        parts.append(np.sort(draw.permutation(rows)[:n_attempts]))
    return select(table, np.concatenate(parts))


def read_documents(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the Attempt documents of JSON-lines files."""
    for file in files:
        opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8")
        with opened as lines:
            yield from (json.loads(line) for line in lines if line.strip())


def load_table(files: Sequence[Path], pictures: Path | None, store: str) -> pd.DataFrame:
    """Import the files into a store, unless it has them, and return all attempts with a key of their commands."""
    os.environ["MLFLOW_TRACKING_URI"] = store
    import mlflow

    from mlmeta.exchange.importing import import_attempts
    from mlmeta.history.loading import load_attempts

    mlflow.set_tracking_uri(store)
    import_attempts(files, pictures=pictures)
    table = load_attempts(store)
    keys = {}
    for document in read_documents(files):
        part = {key: document["training_commands"].get(key) for key in TRAINING}
        keys[document["name"]] = json.dumps(part, sort_keys=True)
    return table.assign(commands=table["model_name"].map(keys))
