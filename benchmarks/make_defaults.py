"""Make the list that mlmeta recommends where there is no history: a greedy portfolio of real attempts.

    python benchmarks/make_defaults.py [FILE…]

Each next training is the one that adds most to the mean over tasks of the best normalized accuracy so far. Without
files: examples/attempts.jsonl.gz. Writes mlmeta/default_trainings.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from meta_learning import read_documents

from mlmeta.commands import digest_document
from mlmeta.documents import parse_train_commands
from mlmeta.search_space import TRAINING_KEYS

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


def main() -> None:
    """Write the list."""
    files = [Path(name) for name in sys.argv[1:]] or [ROOT / "examples" / "attempts.jsonl.gz"]
    made = {"made_from": [file.name for file in files], "trainings": choose_defaults(list(read_documents(files)))}
    (ROOT / "mlmeta" / "default_trainings.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
