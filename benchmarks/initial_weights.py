"""What it is worth to start from the weights of an earlier attempt, on like tasks and on unlike ones. Prints a table.

    python benchmarks/initial_weights.py --pictures DIR... [--seeds 5] [--ways named] [--kept 0.6] [--json FILE]

Each DIR holds pictures in folders, `<task>/train|test/<label>/`. For every pair of tasks in `PAIRS` and every seed the
source's attempt is trained, then the target's in three ways, all by the same commands:

    scratch    without `initial_weights`
    named      `initial_weights` is the source's run id: no guard, no race
    auto       `initial_weights` is "auto", and the source's attempt is the only one in the store

and "auto" once more with the attempts on all sources in the store ("any" in the table). Pictures that a source shares
with a target are taken from the source. An accuracy is that of the test pictures. Epochs: how many each needs until its
validation accuracy is at what both it and scratch reach; for "auto" with the epoch that a race costs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from scipy.stats import t

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.train import run_attempt
from mlmeta.training import initial_weights

LIKE, UNLIKE, ANY = "like", "unlike", "any"
PAIRS = (
    ("cifar10-animals", "cifar-dev-1", LIKE),
    ("cifar10-animals", "cifar-dev-3", LIKE),
    ("cifar10-vehicles", "cifar-dev-0", LIKE),
    ("cifar10-vehicles", "cifar-dev-5", LIKE),
    ("omniglot-Korean", "omniglot-Latin", LIKE),
    ("omniglot-Korean", "omniglot-Greek", LIKE),
    ("digits-0", "digits-1", LIKE),
    ("omniglot-Korean", "cifar-dev-1", UNLIKE),
    ("omniglot-Korean", "cifar-dev-5", UNLIKE),
    ("digits-0", "cifar-dev-0", UNLIKE),
    ("digits-0", "cifar-dev-3", UNLIKE),
    ("cifar10-animals", "omniglot-Latin", UNLIKE),
    ("digits-0", "omniglot-Greek", UNLIKE),
    ("cifar10-vehicles", "digits-1", UNLIKE),
)
N_EPOCH, N_EPOCH_OF_SOURCE = 12, 15
WIDTHS = (16, 32, 64)
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one training came to.

    Attributes:
        val_accuracies: By epoch.
        params: Of the run, those of the initial weights.
    """

    run_id: str
    accuracy: float
    val_accuracies: list[float]
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decision(self) -> str:
        """What "auto" did: started from weights, or went on from scratch by the guard or by the race."""
        if self.params.get("source") != initial_weights.SCRATCH:
            return "used"
        return "race" if "race" in self.params else "guard"

    def epochs_until(self, accuracy: float) -> int:
        """Return the first epoch, from 1, with a validation accuracy, and one more where there was a race."""
        first = next(epoch for epoch, value in enumerate(self.val_accuracies, start=1) if value >= accuracy)
        return first + ("race" in self.params)


def hash_pictures(folder: Path) -> dict[Path, str]:
    """Return every picture's SHA-256."""
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*")) if file.is_file()}


def write_manifests(folders: Mapping[str, Path], into: Path) -> dict[str, Path]:
    """Write a table of pictures for each task, a source's without those of any target."""
    digests = {name: hash_pictures(folder) for name, folder in folders.items()}
    targets = {target for _, target, _ in PAIRS}
    of_targets = {digest for name in targets for digest in digests[name].values()}
    files = {}
    for name, pictures in digests.items():
        files[name] = into / f"{name}.csv"
        with files[name].open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("path", "label", "split"))
            for file, digest in pictures.items():
                if name in targets or digest not in of_targets:
                    writer.writerow((file, file.parent.name, file.parent.parent.name))
    return files


def make_commands(name: str, manifest: Path, *, seed: int, n_epoch: int, start: str | None) -> Row:
    """Return the commands of an attempt: three convolutions with batch normalisation, Adam."""
    with manifest.open(encoding="utf-8") as stream:
        labels = sorted({row["label"] for row in csv.DictReader(stream)})
    blocks = [
        [
            {"name": "Conv2d", "in_channels": "auto", "out_channels": width, "kernel_size": 3, "padding": 1},
            {"name": "BatchNorm2d", "num_features": "auto"},
            {"name": "ReLU"},
            {"name": "MaxPool2d", "kernel_size": 2},
        ]
        for width in WIDTHS
    ]
    head = [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]
    return {
        "model_name": name,
        "label_names": labels,
        "data": {"source": "manifest", "path": str(manifest)},
        "image_ops": [{"convert": {"mode": "RGB"}}, {"resize": {"size": [32, 32], "resample": "BILINEAR"}}],
        "transform": {"ToTensor": True, "Normalize": {"mean": [0.5], "std": [0.5]}},
        "model": {"layers": [layer for block in blocks for layer in block] + head},
        "optimizer": {"name": "Adam", "lr": 0.002},
        "batch_size": 32,
        "n_epoch": n_epoch,
        "seed": seed,
        "validation": 0.25,
        "initial_weights": start,
    }


class _Silent:
    """Shows no progress."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        return None


@dataclass
class Trials:
    """Trains attempts, each seeing only the past attempts that it is to see.

    Attributes:
        manifests: By the task's name.
        seed: Of source and target.
    """

    manifests: Mapping[str, Path]
    seed: int
    client: MlflowClient = field(default_factory=MlflowClient)
    sources: dict[str, str] = field(default_factory=dict)
    scratch: dict[str, Outcome] = field(default_factory=dict)

    def train(self, task: str, *, n_epoch: int = N_EPOCH, start: str | None = None) -> Outcome:
        """Train and test an attempt, and take it out of the store again."""
        document = make_commands(task, self.manifests[task], seed=self.seed, n_epoch=n_epoch, start=start)
        commands = parse_train_commands(document)
        run_id, trained, tested = run_attempt(commands, base_dir=Path.cwd(), progress=_Silent())
        self.client.delete_run(run_id)
        accuracies = [metrics["val_accuracy"] for metrics in trained.curve]
        return Outcome(run_id, tested["accuracy"], accuracies, trained.initial_weights)

    def find_source(self, task: str) -> str:
        """Return the run id of the attempt on a source, which is not in the store now."""
        if task not in self.sources:
            self.sources[task] = self.train(task, n_epoch=N_EPOCH_OF_SOURCE).run_id
        return self.sources[task]

    def find_scratch(self, task: str) -> Outcome:
        """Return the training from scratch."""
        if task not in self.scratch:
            self.scratch[task] = self.train(task)
        return self.scratch[task]

    def start_from(self, tasks: Sequence[str], target: str, *, is_named: bool) -> Outcome:
        """Train a target while the attempts on some sources are in the store."""
        run_ids = [self.find_source(task) for task in tasks]
        for run_id in run_ids:
            self.client.restore_run(run_id)
        try:
            return self.train(target, start=run_ids[0] if is_named else initial_weights.AUTO)
        finally:
            for run_id in run_ids:
                self.client.delete_run(run_id)


def compare(manifests: Mapping[str, Path], *, seed: int, ways: Sequence[str]) -> Iterator[Row]:
    """Yield for every pair what each way came to, beside scratch."""
    trials = Trials(manifests, seed)
    for source, target, kind in PAIRS:
        for way in ways:
            outcome = trials.start_from([source], target, is_named=way == "named")
            yield _compare_with_scratch(trials.find_scratch(target), outcome, (source, target, kind, way, seed))
    sources = sorted({source for source, _, _ in PAIRS})
    for target in sorted({target for _, target, _ in PAIRS} if "auto" in ways else ()):
        outcome = trials.start_from(sources, target, is_named=False)
        yield _compare_with_scratch(trials.find_scratch(target), outcome, ("any", target, ANY, "auto", seed))


def _compare_with_scratch(scratch: Outcome, outcome: Outcome, names: tuple[str, str, str, str, int]) -> Row:
    level = min(max(scratch.val_accuracies), max(outcome.val_accuracies))
    return {
        **dict(zip(("source", "target", "kind", "way", "seed"), names, strict=True)),
        "accuracy_scratch": scratch.accuracy,
        "accuracy": outcome.accuracy,
        "epochs_scratch": scratch.epochs_until(level),
        "epochs": outcome.epochs_until(level),
        "decision": outcome.decision if names[3] == "auto" else "",
        "chosen": outcome.params.get("name", initial_weights.SCRATCH),
        "val_accuracies_scratch": scratch.val_accuracies,
        "val_accuracies": outcome.val_accuracies,
    }


def summarise(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield one row a pair, over the seeds, and one a kind, over the pairs."""
    for kind in (LIKE, UNLIKE, ANY):
        for way in ("named", "auto"):
            chosen = [row for row in rows if (row["kind"], row["way"]) == (kind, way)]
            pairs = list(dict.fromkeys((row["source"], row["target"]) for row in chosen))
            own = [[row for row in chosen if (row["source"], row["target"]) == pair] for pair in pairs]
            yield from (_summarise(some, " → ".join(pair)) for some, pair in zip(own, pairs, strict=True))
            if own:
                yield _summarise(chosen, f"all {len(pairs)} pairs", blocks=own)


def _summarise(rows: Sequence[Row], pair: str, *, blocks: Sequence[Sequence[Row]] = ()) -> Row:
    """Return means over rows, with intervals over the blocks, the rows themselves where there are none."""
    units = blocks or [[row] for row in rows]
    saved = [statistics.mean(row["epochs_scratch"] - row["epochs"] for row in unit) for unit in units]
    gained = [statistics.mean(row["accuracy"] - row["accuracy_scratch"] for row in unit) for unit in units]
    decisions = Counter(row["decision"] for row in rows)
    return {
        "kind": rows[0]["kind"],
        "way": rows[0]["way"],
        "pair": pair,
        "epochs, scratch": f"{statistics.mean(row['epochs_scratch'] for row in rows):.1f}",
        "epochs": f"{statistics.mean(row['epochs'] for row in rows):.1f}",
        "saved": _describe(saved, ".1f"),
        "accuracy, scratch": f"{statistics.mean(row['accuracy_scratch'] for row in rows):.3f}",
        "accuracy": f"{statistics.mean(row['accuracy'] for row in rows):.3f}",
        "gained": _describe(gained, "+.3f"),
        "used / guard / race": " / ".join(str(decisions[key]) for key in ("used", "guard", "race")),
    }


def _describe(values: Sequence[float], form: str) -> str:
    """Return a mean with its 95 % interval by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:{form}}"
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / np.sqrt(len(values))
    return f"{mean:{form}} ({mean - half:{form}} to {mean + half:{form}})"


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def find_tasks(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folder of every task that a pair names."""
    wanted = sorted({name for source, target, _ in PAIRS for name in (source, target)})
    found = {name: folder / name for name in wanted for folder in folders if (folder / name / "train").is_dir()}
    if missing := [name for name in wanted if name not in found]:
        raise SystemExit(f"--pictures: no folder has {', '.join(missing)} with train and test in it")
    return {name: folder.resolve() for name, folder in found.items()}


def main() -> None:
    """Run the comparison in a store of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders of tasks' pictures")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=("named", "auto"), default=("named", "auto"))
    parser.add_argument("--kept", type=float, default=initial_weights.KEPT, help="lambda of shrink and perturb, 0 to 1")
    parser.add_argument("--json", type=Path, help="write all rows into this file")
    arguments = parser.parse_args()
    tasks, started = find_tasks(arguments.pictures), time.perf_counter()
    target = arguments.json.resolve() if arguments.json else None
    initial_weights.KEPT = arguments.kept
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLMETA_STATE_DIR": folder}
        manifests = write_manifests(tasks, Path(folder))
        rows = [row for seed in range(arguments.seeds) for row in compare(manifests, seed=seed, ways=arguments.ways)]
        os.chdir("/")
    print_rows(list(summarise(rows)))
    print(f"{time.perf_counter() - started:.0f} s")
    if target:
        target.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
