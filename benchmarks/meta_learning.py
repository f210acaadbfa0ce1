"""How many attempts a new task needs, with what was learnt on others; whole tasks held out. Prints a table.

    python benchmarks/meta_learning.py --attempts FILE… --pictures DIR [--held-out all|FILE] [--json FILE]

The files hold Attempt documents in which every task has tried (nearly) the same commands. They are imported into a new
MLflow store, their tasks described by their pictures. For each held-out task a method sees attempts on the other tasks
(all, or a random subset: each task with its own) and chooses among the commands that were really trained on the
held-out one, each choice answered with its real accuracy. Normalized regret: (best - best so far) / (best - worst).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SHOWN = (1, 2, 3, 5, 10)
NEAR = 0.02
COLD_REPEATS = {"random": 20, "Optuna TPE": 5, "Optuna GP": 2}
# Past attempts: number of other tasks and of attempts on each; None for all there are.
LEVELS: Mapping[int, tuple[int | None, int | None]] = {
    10: (2, 5), 25: (5, 5), 75: (5, 15), 240: (None, 20), 768: (None, None),
}  # fmt: skip
# What says how a training goes, whatever task it is on.
TRAINING = ("model", "optimizer", "scheduler", "criterion", "batch_size", "n_epoch", "transform", "image_ops")


class Trials:
    """One held-out task: its candidates, and what each has really reached."""

    def __init__(self, table: pd.DataFrame, task: str) -> None:
        self.task = task
        self.rows = table[table["task"] == task].sort_values("commands").reset_index(drop=True)
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


Method = Callable[[pd.DataFrame, pd.DataFrame, Trials, np.random.Generator], list[int]]


def choose_at_random(past: pd.DataFrame, tasks: pd.DataFrame, trials: Trials, draw: np.random.Generator) -> list[int]:
    """Return an order that knows nothing."""
    return [int(i) for i in draw.permutation(len(trials.scores))]


def choose_best_on_average(
    past: pd.DataFrame, tasks: pd.DataFrame, trials: Trials, draw: np.random.Generator
) -> list[int]:
    """Return the commands by their mean rank on the tasks that have tried them."""
    from mlmeta.attempt_features import score_ranks

    means = pd.Series(score_ranks(past, "accuracy"), index=past["commands"]).groupby(level=0).mean()
    value = trials.rows["commands"].map(means).fillna(0.0).to_numpy()
    return _descending(value, draw)


def choose_by_portfolio(
    past: pd.DataFrame, tasks: pd.DataFrame, trials: Trials, draw: np.random.Generator
) -> list[int]:
    """Return the greedy portfolio: each choice adds most to the mean over tasks of the best score so far."""
    scores = past.pivot_table(index="task", columns="commands", values="accuracy")
    low, high = scores.min(axis=1), scores.max(axis=1)
    quality = scores.sub(low, axis=0).div((high - low).clip(lower=1e-12), axis=0).fillna(0.0)
    quality = quality.reindex(columns=trials.rows["commands"]).fillna(0.0).to_numpy()
    order: list[int] = []
    reached = np.zeros(len(quality))
    while len(order) < len(trials.scores):
        gain = np.maximum(quality, reached[:, None]).mean(axis=0) + 1e-9 * draw.random(quality.shape[1])
        gain[order] = -np.inf
        order.append(int(np.argmax(gain)))
        reached = np.maximum(reached, quality[:, order[-1]])
    return order


def choose_by_nearest_task(
    past: pd.DataFrame, tasks: pd.DataFrame, trials: Trials, draw: np.random.Generator
) -> list[int]:
    """Return the best commands of the nearest task, then of the next one, each once."""
    from mlmeta.similarity import rank_similar_tasks

    seen = tasks[tasks["task"].isin([*past["task"].unique(), trials.task])]
    value = np.zeros(len(trials.scores))
    for place, task in enumerate(rank_similar_tasks(seen, trials.task)["task"]):
        own = past[past["task"] == task].set_index("commands")["accuracy"].rank(pct=True)
        here = trials.rows["commands"].map(own).fillna(0.0).to_numpy()
        value = np.where(value == 0, np.where(here > 0, here - 10.0 * place, 0.0), value)
    return _descending(np.where(value == 0, -1e3, value), draw)


def _descending(value: Floats, draw: np.random.Generator) -> list[int]:
    return [int(i) for i in np.lexsort((draw.random(len(value)), -value))]


class Mlmeta:
    """The surrogate, asked anew after each attempt; its kernel learnt without the held-out task."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.errors: list[tuple[float, float]] = []

    def __call__(self, past: pd.DataFrame, tasks: pd.DataFrame, trials: Trials, draw: np.random.Generator) -> list[int]:
        """Return the order of its choices."""
        from mlmeta.surrogate import Surrogate

        surrogate = Surrogate(
            past, trials.candidates, tasks, trials.task, settings=self.settings.get(trials.task), seed=0
        )
        expected = surrogate.predict()
        self.errors += list(zip((trials.scores - expected.mean).tolist(), expected.std.tolist(), strict=True))
        order: list[int] = []
        best = trials.scores.max()
        while len(order) < max(SHOWN) or max(trials.scores[order]) < best - NEAR - 1e-9:
            if len(order) == len(trials.scores):
                break
            value = surrogate.predict().z
            value[order] = -np.inf
            order.append(int(np.argmax(value)))
            surrogate.observe(order[-1], float(trials.scores[order[-1]]))
        return order


class DefaultList:
    """The list that mlmeta ships, made again without the held-out task; its candidates are the nearest to it."""

    def __init__(self, documents: Sequence[dict[str, Any]], tasks_of: Mapping[str, str], table: pd.DataFrame) -> None:
        self.documents = documents
        self.tasks_of = tasks_of
        self.table = table

    def __call__(self, past: pd.DataFrame, tasks: pd.DataFrame, trials: Trials, draw: np.random.Generator) -> list[int]:
        """Return the order of its choices."""
        from make_defaults import choose_defaults

        from mlmeta.commands import digest_document
        from mlmeta.recommend import match_in_turn
        from mlmeta.training_features import describe_trainings

        others = [one for one in self.documents if self.tasks_of[one["name"]] != trials.task]
        wanted = [digest_document(one) for one in choose_defaults(others)]
        by_digest = {}
        for document in others:
            (training,) = choose_defaults([document])
            by_digest.setdefault(digest_document(training), document["name"])
            if len(by_digest) > len(trials.scores):
                break
        named = self.table.set_index("model_name", drop=False)
        rows = named.loc[[by_digest[digest] for digest in wanted]].assign(task=trials.task)
        points = describe_trainings(pd.concat([trials.candidates, rows], ignore_index=True), tasks)
        return match_in_turn(points[: len(trials.scores)], points[len(trials.scores) :])


class ColdOptuna:
    """Optuna's samplers over the indices of the candidates, as one sees them without a history."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, past: pd.DataFrame, tasks: pd.DataFrame, trials: Trials, draw: np.random.Generator) -> list[int]:
        """Return the order of the candidates that lie nearest to what the sampler asks for."""
        import optuna

        from mlmeta.training_features import describe_trainings

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        points = describe_trainings(trials.candidates, tasks)
        points = points[:, np.ptp(points, axis=0) > 0]
        low, high = points.min(axis=0), points.max(axis=0)
        seed = int(draw.integers(2**31))
        sampler = optuna.samplers.TPESampler(seed=seed) if self.name == "TPE" else optuna.samplers.GPSampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        order: list[int] = []
        while len(order) < len(points):
            trial = study.ask()
            asked = [trial.suggest_float(str(i), a, b) for i, (a, b) in enumerate(zip(low, high, strict=True))]
            distances = np.abs((points - asked) / (high - low)).sum(axis=1)
            distances[order] = np.inf
            order.append(int(np.argmin(distances)))
            study.tell(trial, float(trials.scores[order[-1]]))
            if len(order) >= max(SHOWN) and max(trials.scores[order]) >= trials.scores.max() - NEAR - 1e-9:
                break
        return order


def thin(table: pd.DataFrame, task: str, level: int, draw: np.random.Generator) -> pd.DataFrame:
    """Return the attempts on other tasks that a method may see."""
    n_tasks, n_attempts = LEVELS[level]
    others = sorted(set(table["task"]) - {task})
    chosen = [others[i] for i in draw.permutation(len(others))[:n_tasks]]
    parts = []
    for name in sorted(chosen):
        rows = np.flatnonzero((table["task"] == name).to_numpy())
        parts.append(np.sort(draw.permutation(rows)[:n_attempts]))
    past = table.iloc[np.concatenate(parts)].reset_index(drop=True)
    past.attrs = table.attrs
    return past


def evaluate(
    method: Method, table: pd.DataFrame, tasks: pd.DataFrame, held_out: Sequence[str], level: int, repeats: int
) -> dict[str, Any]:
    """Return a method's figures, averaged over held-out tasks and repeats, with 95 % intervals over tasks."""
    regrets, needed = [], []
    for task in held_out:
        trials = Trials(table, task)
        own = []
        for repeat in range(repeats):
            draw = np.random.default_rng([repeat, held_out.index(task)])
            past = thin(table, task, level, draw) if level else table.iloc[:0]
            own.append(trials.measure(method(past, tasks, trials, draw)))
        regrets.append(np.mean([regret for regret, _ in own], axis=0))
        needed.append(float(np.mean([n for _, n in own])))
    first = np.array(regrets)[:, 0]
    return {
        "past_attempts": level,
        "regret": {str(n): round(float(value), 4) for n, value in zip(SHOWN, np.mean(regrets, axis=0), strict=True)},
        "attempts_to_2_points": round(float(np.mean(needed)), 2),
        "interval": [round(float(x), 4) for x in _interval(first)],
        "attempts_interval": [round(float(x), 2) for x in _interval(np.array(needed))],
    }


def _interval(values: Floats) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the mean over tasks."""
    draw = np.random.default_rng(0)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(2000)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


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

    from mlmeta.history import load_attempts
    from mlmeta.importing import import_attempts

    mlflow.set_tracking_uri(store)
    import_attempts(files, pictures=pictures)
    table = load_attempts(store)
    keys = {}
    for document in read_documents(files):
        part = {key: document["training_commands"].get(key) for key in TRAINING}
        keys[document["name"]] = json.dumps(part, sort_keys=True)
    return table.assign(commands=table["model_name"].map(keys))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a method and number of past attempts."""
    print(
        f"{'past':>5}  {'method':<22}" + "".join(f"{'after ' + str(n):>10}" for n in SHOWN) + "   attempts to 2 points"
    )
    for row in rows:
        regret = "".join(f"{row['regret'][str(n)]:>10.3f}" for n in SHOWN)
        low, high = row["attempts_interval"]
        interval = f"{row['attempts_to_2_points']:.2f} ({low:.1f} to {high:.1f})"
        print(f"{row['past_attempts']:>5}  {row['method']:<22}{regret}   {interval}", flush=True)


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw how many attempts each method needs, by how many past attempts it has seen, and its regret by attempt."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    needed, regret = figure.subplots(1, 2)
    levels = sorted({row["past_attempts"] for row in rows if row["past_attempts"]})
    middle = levels[len(levels) // 2]
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        style: dict[str, Any] = {"lw": 2.5, "color": "#c02020"} if name == "mlmeta" else {"lw": 1.2}
        if own[0]["past_attempts"] == 0:
            style |= {"linestyle": "--"}
            needed.plot(levels, [own[0]["attempts_to_2_points"]] * len(levels), label=name, **style)
            shown = own[0]
        else:
            needed.plot([row["past_attempts"] for row in own], [row["attempts_to_2_points"] for row in own],
                        marker="o", ms=4, label=name, **style)  # fmt: skip
            shown = next(row for row in own if row["past_attempts"] == middle)
        regret.plot(SHOWN, [shown["regret"][str(n)] for n in SHOWN], marker="o", ms=4, label=name, **style)
    needed.set(
        xscale="log", xlabel="past attempts on other tasks", ylabel="attempts to come within 2 points of the best"
    )
    needed.set_xticks(levels, [str(level) for level in levels])
    needed.minorticks_off()
    needed.set_ylim(bottom=0)
    regret.set(xlabel="attempts on the new task", ylabel=f"normalized regret ({middle} past attempts)")
    regret.set_xticks(SHOWN)
    regret.set_ylim(bottom=0)
    regret.legend(frameon=False, fontsize=8)
    figure.savefig(file)


def main() -> None:
    """Measure all methods at all numbers of past attempts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", nargs="+", type=Path, required=True)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--held-out", default="all", help="all, or a file with the attempts to choose among.")
    parser.add_argument("--levels", default=",".join(map(str, LEVELS)))
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--kernel", choices=("nested", "shipped"), default="nested")
    parser.add_argument("--optuna", action="store_true", help="Beside Optuna's samplers; it must be installed.")
    parser.add_argument("--store", help="A tracking URI that keeps the imported attempts for the next time.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="A PNG file.")
    given = parser.parse_args()
    files = [*given.attempts, *([] if given.held_out == "all" else [Path(given.held_out)])]
    with tempfile.TemporaryDirectory() as folder:
        table = load_table(files, given.pictures, given.store or f"sqlite:///{folder}/mlflow.db")
    from learn_kernel import learn_settings

    from mlmeta.similarity import task_table

    tasks = task_table(table)
    held_out = sorted(set(table["task"]))
    if given.held_out != "all":
        names = {document["name"] for document in read_documents([Path(given.held_out)])}
        held_out = sorted(set(table["task"][table["model_name"].isin(names)]))
    settings: dict[str, Any] = {}
    if given.kernel == "nested":
        for task in held_out:
            sys.stderr.write(f"learning the kernel without {task}\n")
            settings[task] = learn_settings(table[table["task"] != task].reset_index(drop=True))
    ours = Mlmeta(settings)
    methods: dict[str, Method] = {
        "mlmeta": ours,
        "best on average": choose_best_on_average,
        "greedy portfolio": choose_by_portfolio,
        "nearest task's best": choose_by_nearest_task,
    }
    rows: list[dict[str, Any]] = []
    cold: dict[str, Method] = {"random": choose_at_random}
    if given.optuna:
        cold |= {"Optuna TPE": ColdOptuna("TPE"), "Optuna GP": ColdOptuna("GP")}
    documents = list(read_documents(files))
    tasks_of = dict(zip(table["model_name"], table["task"], strict=True))
    cold["mlmeta's default list"] = DefaultList(documents, tasks_of, table)
    for name, method in cold.items():
        rows.append({"method": name} | evaluate(method, table, tasks, held_out, 0, COLD_REPEATS.get(name, 1)))
    coverage = {}
    for level in map(int, given.levels.split(",")):
        repeats = 1 if level == max(LEVELS) else given.repeats
        for name, method in methods.items():
            sys.stderr.write(f"{level} past attempts: {name}\n")
            ours.errors.clear()
            rows.append({"method": name} | evaluate(method, table, tasks, held_out, level, repeats))
            if method is ours:
                inside = [abs(error) <= 1.645 * std for error, std in ours.errors]
                coverage[level] = round(float(np.mean(inside)), 3)
    print_table(rows)
    print(f"true scores inside the predicted 90 % interval, before any attempt on the task: {coverage}")
    if given.plot:
        plot(rows, given.plot)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
