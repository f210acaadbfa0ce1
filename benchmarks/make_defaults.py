"""Make what mlmeta knows before its user has tried anything, from real attempts. Writes two files in mlmeta/.

    python benchmarks/make_defaults.py --pictures DIR [FILE…]

default_trainings.json is the list that is recommended where there is no history, a greedy portfolio: each next training
is the one that adds most to the mean over tasks of the best normalized accuracy so far. shipped_attempts.json has all
the attempts, for `mlmeta.tuning.lessons`. Without files: examples/attempts.jsonl.gz.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from meta_data import describe_attempts, load_table, read_documents

from mlmeta.analysis.task_similarity import task_table
from mlmeta.commands.documents import digest_document
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.commands.search_space import TRAINING_KEYS

ROOT = Path(__file__).parent.parent
N = 10


def choose_defaults(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the portfolio, the best first."""
    trainings, scores = {}, {}
    for document in documents:
        commands = parse_train_commands(document["training_commands"])
        training = commands.model_dump(mode="json", include=set(TRAINING_KEYS), exclude_none=False)
        key = digest_document(training)
        trainings[key] = {name: training[name] for name in TRAINING_KEYS}
        scores.setdefault(document["training_commands"]["data"]["path"], {})[key] = document["accuracy"] or 0.0
    keys = sorted(trainings)
    table = np.array([[of_task.get(key, np.nan) for key in keys] for of_task in scores.values()])
    low, high = np.nanmin(table, axis=1, keepdims=True), np.nanmax(table, axis=1, keepdims=True)
    quality = np.nan_to_num((table - low) / np.maximum(high - low, 1e-12))
    chosen: list[int] = []
    reached = np.zeros(len(quality))
    while len(chosen) < min(N, len(keys)):
        gain = np.maximum(quality, reached[:, None]).mean(axis=0) + 1e-6 * quality.mean(axis=0)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        reached = np.maximum(reached, quality[:, chosen[-1]])
    return [trainings[keys[place]] for place in chosen]


def write(name: str, made_from: dict[str, Any], found: dict[str, Any], indent: int | None) -> None:
    """Write a file of the package."""
    text = json.dumps(made_from | found, indent=indent) + "\n"
    (ROOT / "mlmeta" / "tuning" / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attempts", nargs="*", type=Path, default=[ROOT / "examples" / "attempts.jsonl.gz"])
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--store", help="A tracking URI that keeps the imported attempts for the next time.")
    given = parser.parse_args()
    made_from = {"made_from": [file.name for file in given.attempts]}
    write("default_trainings.json", made_from, {"trainings": choose_defaults(list(read_documents(given.attempts)))}, 1)
    with tempfile.TemporaryDirectory() as folder:
        table = load_table(given.attempts, given.pictures, given.store or f"sqlite:///{folder}/mlflow.db")
    table = table.sort_values(["task", "model_name"], ignore_index=True)
    write("shipped_attempts.json", made_from, describe_attempts(table, task_table(table)), None)


if __name__ == "__main__":
    main()
