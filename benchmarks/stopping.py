"""What it saves to stop trainings early, and what it costs; how well the end of a curve is predicted. Prints tables.

    python benchmarks/stopping.py --attempts FILE [--json FILE]

The file holds Attempt documents with `test_accuracies` by epoch, which stand for validation accuracies here: the real
attempts were made without validation pictures. Whole tasks are held out: what is known beforehand are the curves on the
others. The score of an attempt is the best accuracy of its epochs; only attempts that ran all epochs have one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from mlmeta.commands.documents import CurveRule, MedianRule, StopRule, TopFractionRule
from mlmeta.training.early_stopping import Watch
from mlmeta.training.learning_curves import MOST_CURVES, CurvePredictor, PastCurve, share_fairly

Floats = npt.NDArray[np.float64]
Tasks = dict[str, list[PastCurve]]
Row = dict[str, str | int | float]

# Past attempts: number of other tasks and of attempts on each.
LEVELS = {25: (5, 5), 75: (5, 15), 240: (12, 20)}
EPOCHS = (1, 2, 3, 6)
N_TUNED = 20
RULES: dict[str, StopRule | None] = {
    "none": None,
    "median": MedianRule(rule="median"),
    "top_fraction 0.5": TopFractionRule(rule="top_fraction", fraction=0.5),
    "top_fraction 0.2": TopFractionRule(rule="top_fraction"),
    "curve 0.05": CurveRule(rule="curve"),
    "curve 0.05 alone": CurveRule(rule="curve"),
    "curve 0.2": CurveRule(rule="curve", probability=0.2),
}


def read_tasks(file: Path) -> Tasks:
    """Return the curves of every task, each list in the order of the commands' ids."""
    opened = gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8")
    tasks: dict[str, list[tuple[int, PastCurve]]] = {}
    with opened as lines:
        for line in lines:
            document = json.loads(line)
            values = np.array([np.nan if v is None else v for v in document["test_accuracies"]], dtype=np.float64)
            name, n_labels = document["task"]["name"], len(document["task"]["label_names"])
            curve = PastCurve(values, document["training_commands"]["n_epoch"], name, n_labels)
            tasks.setdefault(name, []).append((document["config_id"], curve))
    return {name: [curve for _, curve in sorted(curves, key=lambda pair: pair[0])] for name, curves in tasks.items()}


def draw_past(tasks: Tasks, held_out: str, level: tuple[int, int], draw: np.random.Generator) -> list[PastCurve]:
    """Return a random subset of the other tasks' curves, every task with its own."""
    n_tasks, n_attempts = level
    others = draw.permutation([name for name in tasks if name != held_out])[:n_tasks]
    return [tasks[str(name)][i] for name in others for i in draw.permutation(len(tasks[str(name)]))[:n_attempts]]


Predictor = Callable[[Floats, int], tuple[float, float, float]]


def predict_last(values: Floats, n_epoch: int) -> tuple[float, float, float]:
    """Expect what is reached; there is no interval."""
    return float(values.max()), math.nan, math.nan


def predict_power_law(values: Floats, n_epoch: int) -> tuple[float, float, float]:
    """Fit a - b · e^-c by least squares, c on a grid; what is reached where the epochs are too few for that."""
    reached, epochs = float(values.max()), np.arange(1, len(values) + 1)
    if len(values) < 3:
        return reached, math.nan, math.nan
    fits = []
    for c in np.geomspace(0.05, 5, 30):
        design = np.column_stack([np.ones(len(values)), -(epochs**-c)])
        (a, b), *_ = np.linalg.lstsq(design, values, rcond=None)
        b = max(b, 0.0)
        a = a if b else values.mean()
        fits.append((float(np.sum((design @ [a, b] - values) ** 2)), a - b * n_epoch**-c))
    return float(np.clip(min(fits)[1], reached, 1.0)), math.nan, math.nan


def mean_gain(past: Sequence[PastCurve]) -> Predictor:
    """Expect the mean share of what was left that past curves gained; its 5 % and 95 % quantiles as the interval."""

    def predict(values: Floats, n_epoch: int) -> tuple[float, float, float]:
        seen = np.array([curve.best_at(len(values)) for curve in past])
        gains = (np.array([curve.best_at(n_epoch) for curve in past]) - seen) / np.maximum(1 - seen, 0.02)
        reached = float(values.max())
        low, high = np.quantile(gains, (0.05, 0.95))
        return tuple(reached + (1 - reached) * gain for gain in (gains.mean(), low, high))

    return predict


def own_predictor(past: Sequence[PastCurve], task: str, n_labels: int) -> Predictor:
    """Expect what mlmeta expects."""
    predictor = CurvePredictor(past, task=task, n_labels=n_labels)

    def predict(values: Floats, n_epoch: int) -> tuple[float, float, float]:
        forecast = predictor.predict(values.tolist(), n_epoch)
        assert forecast is not None
        return forecast.mean, *forecast.interval

    return predict


def compare_predictors(tasks: Tasks, *, repeats: int, n_asked: int = 32) -> Iterator[Row]:
    """Yield, by method, known attempts and epochs seen: error, rank correlation, coverage and width of the interval."""
    for n_past, level in LEVELS.items():
        for n_own in (0, 10):
            results: dict[tuple[int, str], list[Floats]] = {}
            for repeat in range(repeats):
                for number, task in enumerate(tasks):
                    draw = np.random.default_rng([repeat, n_past, n_own, number])
                    order = draw.permutation(len(tasks[task]))
                    past = draw_past(tasks, task, level, draw) + [tasks[task][i] for i in order[:n_own]]
                    asked = [tasks[task][i] for i in order[n_own : n_own + n_asked]]
                    methods = {"last value": predict_last, "power law": predict_power_law, "mean gain": mean_gain(past),
                               "mlmeta": own_predictor(past, task, asked[0].n_labels)}  # fmt: skip
                    for epoch in EPOCHS:
                        for name, predict in methods.items():
                            results.setdefault((epoch, name), []).append(_measure(predict, asked, epoch))
            for (epoch, name), measured in results.items():
                error, rank, inside, width = np.nanmean(measured, axis=0) if name in ("mlmeta", "mean gain") else (
                    *np.nanmean(np.array(measured)[:, :2], axis=0), math.nan, math.nan)  # fmt: skip
                yield {"epoch": epoch, "past_attempts": n_past, "own_attempts": n_own, "method": name,
                       "rmse": float(error), "rank_correlation": float(rank), "coverage": float(inside),
                       "width": float(width)}  # fmt: skip


def _measure(predict: Predictor, asked: Sequence[PastCurve], epoch: int) -> Floats:
    predicted = np.array([predict(curve.values[:epoch], curve.n_epoch) for curve in asked])
    truth = np.array([curve.bests[-1] for curve in asked])
    mean, low, high = predicted.T
    inside = np.mean((truth >= low - 1e-9) & (truth <= high + 1e-9))
    rank = spearmanr(mean, truth).statistic if np.ptp(mean) and np.ptp(truth) else math.nan
    return np.array([np.sqrt(np.mean((mean - truth) ** 2)), rank, inside, np.mean(high - low)])


def simulate(
    tasks: Tasks, task: str, order: Sequence[int], rule: StopRule | None, *, knows_others: bool = True
) -> tuple[float, float]:
    """Make attempts on a task one after another under a rule; return the share of epochs used and the score lost."""
    others = [curve for name in tasks if name != task for curve in tasks[name]]
    most = MOST_CURVES - len(order) if knows_others else 0
    others = [others[i] for i in share_fairly([curve.task for curve in others], task, most=most)]
    done: list[PastCurve] = []
    used = 0
    for index in order:
        curve = tasks[task][index]
        n_seen = _train(curve, others + done, rule)
        used += n_seen
        stopped = n_seen < curve.n_epoch
        done.append(replace(curve, values=curve.values[:n_seen], end="stopped") if stopped else curve)
    finished = [curve.bests[-1] for curve in done if curve.end == "finished"]
    best = max(tasks[task][i].bests[-1] for i in order)
    return used / sum(tasks[task][i].n_epoch for i in order), float(best - max(finished, default=0.0))


def _train(curve: PastCurve, past: Sequence[PastCurve], rule: StopRule | None) -> int:
    """Return after how many epochs an attempt ends."""
    watch = Watch(past, task=curve.task, n_labels=curve.n_labels, n_epoch=curve.n_epoch, rule=rule)
    for epoch in range(1, curve.n_epoch):
        if rule is None or epoch < rule.after * curve.n_epoch:
            continue
        values = curve.values[:epoch].tolist()
        forecast = watch.forecast(values) if isinstance(rule, CurveRule) else None
        if watch.decide(values, forecast):
            return epoch
    return curve.n_epoch


def order_by_others(tasks: Tasks, task: str) -> list[int]:
    """Return the commands of a task, first those with the best mean rank on the other tasks."""
    ranks = [np.argsort(np.argsort([c.bests[-1] for c in curves])) for name, curves in tasks.items() if name != task]
    return [int(i) for i in np.argsort(-np.mean(ranks, axis=0), kind="stable")]


def compare_rules(tasks: Tasks, *, repeats: int) -> Iterator[Row]:
    """Yield, by rule and order of attempts: share of epochs saved and score lost, with intervals over tasks.

    Alone: nothing is known of other tasks.
    """
    for name, rule in RULES.items():
        knows_others = not name.endswith("alone")
        for kind in ("random", "good first"):
            results = []
            for number, task in enumerate(tasks):
                orders = [order_by_others(tasks, task)] if kind == "good first" else [
                    np.random.default_rng([number, repeat]).permutation(len(tasks[task])).tolist()
                    for repeat in range(repeats)
                ]  # fmt: skip
                simulated = [
                    simulate(tasks, task, order[:N_TUNED], rule, knows_others=knows_others) for order in orders
                ]
                results.append(np.mean(simulated, axis=0))
            used, lost = np.array(results).T
            yield {"rule": name, "order": kind, "attempts": N_TUNED} | _describe(1 - used, lost)


def compare_batches(tasks: Tasks, *, repeats: int, kept: float = 0.2) -> Iterator[Row]:
    """Yield what it saves and costs to train a batch for some epochs, and only its best fifth to the end."""
    for n in (5, 10, 20):
        for first in (1, 2, 3):
            for kind in ("random", "good first"):
                results = []
                for number, task in enumerate(tasks):
                    draw = np.random.default_rng([number, n])
                    good, curves = order_by_others(tasks, task)[:n], tasks[task]
                    batches = [good] if kind == "good first" else [
                        draw.permutation(len(curves))[:n].tolist() for _ in range(20 * repeats)
                    ]  # fmt: skip
                    results.append(np.mean([_race([curves[i] for i in b], first, kept) for b in batches], axis=0))
                used, lost = np.array(results).T
                yield {"rule": f"best fifth after {first}", "order": kind, "attempts": n} | _describe(1 - used, lost)


def _race(batch: Sequence[PastCurve], first: int, kept: float) -> tuple[float, float]:
    n_kept = max(1, round(kept * len(batch)))
    order = sorted(batch, key=lambda curve: -curve.best_at(first))
    n_epoch = batch[0].n_epoch
    used = len(batch) * first + n_kept * (n_epoch - first)
    best = max(curve.bests[-1] for curve in batch)
    return used / (len(batch) * n_epoch), float(best - max(curve.bests[-1] for curve in order[:n_kept]))


def _describe(saved: Floats, lost: Floats) -> Row:
    row: Row = {}
    for name, values in (("epochs_saved", saved), ("accuracy_lost", lost)):
        drawn = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        row |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows as a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        cells = (f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values())
        print("| " + " | ".join(cells) + " |", flush=True)
    print()


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=Path, required=True, help="JSON lines of Attempt documents, .gz too")
    parser.add_argument("--repeats", type=int, default=3, help="random draws of past attempts and orders")
    parser.add_argument("--json", type=Path, help="write all rows into this file")
    arguments = parser.parse_args()
    tasks = read_tasks(arguments.attempts)
    tables: list[list[Row]] = []
    for compare in (compare_batches, compare_rules, compare_predictors):
        tables.append(list(compare(tasks, repeats=arguments.repeats)))
        print_rows(tables[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps([row for table in tables for row in table], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
