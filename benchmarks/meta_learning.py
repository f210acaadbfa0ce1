"""How many attempts a new task needs, with what was learnt on others; whole tasks held out. Prints tables.

    python benchmarks/meta_learning.py --attempts FILE… --pictures DIR [--held-out all|FILE] [--json FILE]

The files hold Attempt documents in which every task has tried (nearly) the same commands. They are imported into a new
MLflow store, their tasks described by their pictures. For each held-out task a method sees attempts on the other tasks
(all, or a random subset: each task with its own) and chooses among the commands that were really trained on the
held-out one, each choice answered with its real accuracy. Normalized regret: (best - best so far) / (best - worst).

"mlmeta" also knows what mlmeta ships, made anew of the attempts on all other tasks; "mlmeta, history only" does not.
What ships has tried the very commands to choose among, which a user's own will not have. Therefore "other commands":
what ships is made of a random half of the commands, and the candidates and the past attempts are of the other half. And
"unlike tasks": all tasks of one family (cifar-…, omniglot-…) are held out together. And what first epochs are good for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from meta_data import LEVELS, SHOWN, Floats, Scene, Trials, load_table, read_documents, select, ship, thin
from meta_methods import (
    ColdOptuna,
    DefaultList,
    Method,
    Mlmeta,
    choose_at_random,
    choose_best_on_average,
    choose_by_nearest_task,
    choose_by_portfolio,
)
from meta_pruning import measure_pruning, print_pruning

COLD_REPEATS = {"random": 20, "Optuna TPE": 5, "Optuna GP": 2}
PARTS = ("next", "commands", "family", "pruning")
DEFAULTS = "mlmeta's default list"
# With other commands: past attempts.
OTHER_LEVELS = (0, 10, 25, 75, 240)
# Of a held-out task and a random generator.
MakeScene = Callable[[str, np.random.Generator], Scene]


class Scenes:
    """What is held out from what."""

    def __init__(self, table: pd.DataFrame, tasks: pd.DataFrame) -> None:
        self.table = table
        self.tasks = tasks
        self.names = table["task"].to_numpy()
        self.shipped = {task: ship(select(table, self.names != task), tasks) for task in sorted(set(self.names))}

    def thin_past(self, level: int) -> MakeScene:
        """Return scenes with so many past attempts; 0 for none."""

        def make(task: str, draw: np.random.Generator) -> Scene:
            past = thin(self.table, task, level, draw) if level else self.table.iloc[:0]
            return Scene(past, self.tasks, Trials(self.table, task), self.shipped[task])

        return make

    def halve_commands(self, level: int) -> MakeScene:
        """Return scenes where what ships and what is chosen among have no commands in common."""
        commands = np.array(sorted(self.table["commands"].unique()))

        def make(task: str, draw: np.random.Generator) -> Scene:
            half = draw.permutation(commands)[: len(commands) // 2]
            is_shipped = self.table["commands"].isin(half).to_numpy()
            known = ship(select(self.table, is_shipped & (self.names != task)), self.tasks)
            others = select(self.table, ~is_shipped)
            past = thin(others, task, level, draw) if level else others.iloc[:0]
            return Scene(past, self.tasks, Trials(others, task), known)

        return make

    def hold_out_family(self) -> MakeScene:
        """Return scenes where the past has no task of the held-out one's family: its name up to the first dash."""
        families = np.array([name.partition("-")[0] for name in self.names])

        def make(task: str, draw: np.random.Generator) -> Scene:
            past = select(self.table, families != task.partition("-")[0])
            return Scene(past, self.tasks, Trials(self.table, task), ship(past, self.tasks))

        return make


def evaluate(method: Method, make: MakeScene, held_out: Sequence[str], level: int, repeats: int) -> dict[str, Any]:
    """Return a method's figures, averaged over held-out tasks and repeats, with 95 % intervals over tasks."""
    regrets, needed = [], []
    for task in held_out:
        own = []
        for repeat in range(repeats):
            draw = np.random.default_rng([repeat, held_out.index(task)])
            scene = make(task, draw)
            own.append(scene.trials.measure(method(scene, draw)))
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


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a method and number of past attempts."""
    print(
        f"{'past':>5}  {'method':<26}" + "".join(f"{'after ' + str(n):>10}" for n in SHOWN) + "   attempts to 2 points"
    )
    for row in rows:
        regret = "".join(f"{row['regret'][str(n)]:>10.3f}" for n in SHOWN)
        low, high = row["attempts_interval"]
        interval = f"{row['attempts_to_2_points']:.2f} ({low:.1f} to {high:.1f})"
        print(f"{row['past_attempts']:>5}  {row['method']:<26}{regret}   {interval}", flush=True)


def plot(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw how many attempts each method needs, by how many past attempts it has seen, and its regret by attempt."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    needed, regret = figure.subplots(1, 2)
    levels = sorted({row["past_attempts"] for row in rows if row["past_attempts"]})
    middle = levels[len(levels) // 2]
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        # One that learns is drawn where there is something to learn from.
        own = [row for row in own if row["past_attempts"]] or own
        style: dict[str, Any] = {"lw": 2.5, "color": "#c02020"} if name.startswith("mlmeta") else {"lw": 1.2}
        style |= {"mlmeta, history only": {"linestyle": ":"}, DEFAULTS: {"lw": 1.2}}.get(name, {})
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


class Proof:
    """All methods, on the attempts that were given."""

    def __init__(self, given: argparse.Namespace, table: pd.DataFrame, documents: Sequence[dict[str, Any]]) -> None:
        from mlmeta.analysis.task_similarity import task_table

        self.given = given
        self.documents = documents
        self.scenes = Scenes(table, task_table(table))
        self.held_out = sorted(set(table["task"]))
        if given.held_out != "all":
            names = {document["name"] for document in read_documents([Path(given.held_out)])}
            self.held_out = sorted(set(table["task"][table["model_name"].isin(names)]))
        settings = learn_all(table, self.held_out) if given.kernel == "nested" else {}
        self.ours = {
            "mlmeta": Mlmeta(settings, with_shipped=True),
            "mlmeta, history only": Mlmeta(settings, with_shipped=False),
        }
        self.defaults = DefaultList(documents, table)

    def next_attempt(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return rows for all numbers of past attempts, and how often the predicted intervals hold what came."""
        cold: dict[str, Method] = {"random": choose_at_random}
        if self.given.optuna:
            cold |= {"Optuna TPE": ColdOptuna("TPE"), "Optuna GP": ColdOptuna("GP")}
        cold |= {DEFAULTS: self.defaults, "mlmeta": self.ours["mlmeta"]}
        methods: dict[str, Method] = {
            **self.ours,
            "best on average": choose_best_on_average,
            "greedy portfolio": choose_by_portfolio,
            "nearest task's best": choose_by_nearest_task,
        }
        rows = [
            self._row(name, one, self.scenes.thin_past(0), 0, COLD_REPEATS.get(name, 1)) for name, one in cold.items()
        ]
        coverage: dict[str, Any] = {name: {} for name in self.ours}
        for level in map(int, self.given.levels.split(",")):
            repeats = 1 if level == max(LEVELS) else self.given.repeats
            for name, method in methods.items():
                rows.append(self._row(name, method, self.scenes.thin_past(level), level, repeats))
                if isinstance(method, Mlmeta):
                    inside = [abs(error) <= 1.645 * std for error, std in method.errors]
                    coverage[name][level] = round(float(np.mean(inside)), 3)
        return rows, coverage

    def other_commands(self) -> list[dict[str, Any]]:
        """Return rows where the candidates are none that what ships has tried."""
        rows = []
        for level in OTHER_LEVELS:
            methods: dict[str, Method] = {"mlmeta": self.ours["mlmeta"]}
            if level:
                methods["mlmeta, history only"] = self.ours["mlmeta, history only"]
            else:
                methods |= {"random": choose_at_random, DEFAULTS: self.defaults}
            make = self.scenes.halve_commands(level)
            rows += [self._row(name, one, make, level, self.given.repeats) for name, one in methods.items()]
        return rows

    def unlike_tasks(self) -> list[dict[str, Any]]:
        """Return rows of tasks that nothing in the past is like."""
        rows = []
        for family in sorted({task.partition("-")[0] for task in self.held_out}):
            own = [task for task in self.held_out if task.partition("-")[0] == family]
            for name, one in {"mlmeta": self.ours["mlmeta"], DEFAULTS: self.defaults}.items():
                row = evaluate(one, self.scenes.hold_out_family(), own, 0, 1)
                past = (self.scenes.table["task"].str.partition("-")[0] != family).sum()
                rows.append({"method": f"{name}: {family}"} | row | {"past_attempts": int(past)})
        return rows

    def first_epochs(self) -> list[dict[str, Any]]:
        """Return rows of ways to prune after first epochs."""
        makes = {level: self.scenes.thin_past(level) for level in (75, 240, max(LEVELS))}
        return measure_pruning(self.ours["mlmeta, history only"], makes, self.held_out, self.documents)

    def _row(self, name: str, method: Method, make: MakeScene, level: int, repeats: int) -> dict[str, Any]:
        sys.stderr.write(f"{level} past attempts: {name}\n")
        if isinstance(method, Mlmeta):
            method.errors.clear()
        return {"method": name} | evaluate(method, make, self.held_out, level, repeats)


def learn_all(table: pd.DataFrame, held_out: Sequence[str]) -> dict[str, Any]:
    """Return the kernel's settings for each held-out task, learnt without it."""
    from learn_kernel import learn_settings

    sys.stderr.write("learning a kernel without each of the held-out tasks\n")
    return {task: learn_settings(table[table["task"] != task].reset_index(drop=True)) for task in held_out}


def read_options() -> argparse.Namespace:
    """Return what the command line says."""
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
    parser.add_argument("--parts", default=",".join(PARTS), help=f"Of {', '.join(PARTS)}.")
    return parser.parse_args()


def main() -> None:
    """Measure what was asked for, print it and write it down."""
    given = read_options()
    files = [*given.attempts, *([] if given.held_out == "all" else [Path(given.held_out)])]
    with tempfile.TemporaryDirectory() as folder:
        table = load_table(files, given.pictures, given.store or f"sqlite:///{folder}/mlflow.db")
    proof = Proof(given, table, list(read_documents(files)))
    parts = given.parts.split(",")
    found: dict[str, Any] = {}
    if "next" in parts:
        found["next"], coverage = proof.next_attempt()
        print_table(found["next"])
        print(f"true scores inside the predicted 90 % interval, before any attempt on the task: {coverage}")
        if given.plot:
            plot(found["next"], given.plot)
    if "commands" in parts:
        print("\nother commands than what ships was made of")
        print_table(found.setdefault("commands", proof.other_commands()))
    if "family" in parts:
        print("\ntasks that nothing in the past is like")
        print_table(found.setdefault("family", proof.unlike_tasks()))
    if "pruning" in parts:
        print("\nregret after attempts, of which only some are trained to the end")
        print_pruning(found.setdefault("pruning", proof.first_epochs()))
    if given.json:
        rows = [{"part": part} | row for part, of_part in found.items() for row in of_part]
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
