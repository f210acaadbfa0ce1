"""Ways to choose what to try next on a task: mlmeta's and those that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from meta_data import NEAR, SHOWN, Floats, Scene

Method = Callable[[Scene, np.random.Generator], list[int]]


def choose_at_random(scene: Scene, draw: np.random.Generator) -> list[int]:
    """Return an order that knows nothing."""
    return [int(i) for i in draw.permutation(len(scene.trials.scores))]


def choose_best_on_average(scene: Scene, draw: np.random.Generator) -> list[int]:
    """Return the commands by their mean rank on the tasks that have tried them."""
    from mlmeta.analysis.features import score_ranks

    means = pd.Series(score_ranks(scene.past, "accuracy"), index=scene.past["commands"]).groupby(level=0).mean()
    value = scene.trials.rows["commands"].map(means).fillna(0.0).to_numpy()
    return _descending(value, draw)


def choose_by_portfolio(scene: Scene, draw: np.random.Generator) -> list[int]:
    """Return the greedy portfolio: each choice adds most to the mean over tasks of the best score so far."""
    scores = scene.past.pivot_table(index="task", columns="commands", values="accuracy")
    low, high = scores.min(axis=1), scores.max(axis=1)
    quality = scores.sub(low, axis=0).div((high - low).clip(lower=1e-12), axis=0).fillna(0.0)
    quality = quality.reindex(columns=scene.trials.rows["commands"]).fillna(0.0).to_numpy()
    order: list[int] = []
    reached = np.zeros(len(quality))
    while len(order) < len(scene.trials.scores):
        gain = np.maximum(quality, reached[:, None]).mean(axis=0) + 1e-9 * draw.random(quality.shape[1])
        gain[order] = -np.inf
        order.append(int(np.argmax(gain)))
        reached = np.maximum(reached, quality[:, order[-1]])
    return order


def choose_by_nearest_task(scene: Scene, draw: np.random.Generator) -> list[int]:
    """Return the best commands of the nearest task, then of the next one, each once."""
    from mlmeta.analysis.task_similarity import rank_similar_tasks

    seen = scene.tasks[scene.tasks["task"].isin([*scene.past["task"].unique(), scene.trials.task])]
    value = np.zeros(len(scene.trials.scores))
    for place, task in enumerate(rank_similar_tasks(seen, scene.trials.task)["task"]):
        own = scene.past[scene.past["task"] == task].set_index("commands")["accuracy"].rank(pct=True)
        here = scene.trials.rows["commands"].map(own).fillna(0.0).to_numpy()
        value = np.where(value == 0, np.where(here > 0, here - 10.0 * place, 0.0), value)
    return _descending(np.where(value == 0, -1e3, value), draw)


def _descending(value: Floats, draw: np.random.Generator) -> list[int]:
    return [int(i) for i in np.lexsort((draw.random(len(value)), -value))]


class Mlmeta:
    """The surrogate, asked anew after each attempt; its kernel learnt without the held-out task."""

    def __init__(self, settings: Mapping[str, Any], *, with_shipped: bool) -> None:
        self.settings = settings
        self.with_shipped = with_shipped
        self.errors: list[tuple[float, float]] = []

    def __call__(self, scene: Scene, draw: np.random.Generator) -> list[int]:
        """Return the order of its choices."""
        surrogate = self.ask(scene)
        scores = scene.trials.scores
        expected = surrogate.predict()
        self.errors += list(zip((scores - expected.mean).tolist(), expected.std.tolist(), strict=True))
        order: list[int] = []
        while len(order) < max(SHOWN) or max(scores[order]) < scores.max() - NEAR - 1e-9:
            if len(order) == len(scores):
                break
            order += surrogate.choose(1, len(scores), tried=order)
            surrogate.observe(order[-1], float(scores[order[-1]]))
        return order

    def ask(self, scene: Scene) -> Any:
        """Return the surrogate that has seen what the scene has."""
        from mlmeta.tuning.surrogate import Surrogate

        trials = scene.trials
        shipped = scene.shipped.without(scene.past) if self.with_shipped else None
        return Surrogate(
            scene.past, trials.candidates, scene.tasks, trials.task, settings=self.settings.get(trials.task),
            shipped=shipped,
        )  # fmt: skip


class DefaultList:
    """The list that mlmeta ships, made again of the attempts that are shipped; its candidates are the nearest to it."""

    def __init__(self, documents: Sequence[dict[str, Any]], table: pd.DataFrame) -> None:
        self.documents = {document["name"]: document for document in documents}
        self.table = table.set_index("model_name", drop=False)

    def __call__(self, scene: Scene, draw: np.random.Generator) -> list[int]:
        """Return the order of its choices."""
        from make_defaults import choose_defaults

        from mlmeta.commands.documents import digest_document
        from mlmeta.tuning.training_features import describe_trainings

        known = [self.documents[name] for name in scene.shipped.attempts["model_name"]]
        name_of = {}
        for name in self.table.drop_duplicates("commands")["model_name"]:
            (training,) = choose_defaults([self.documents[name]])
            name_of[digest_document(training)] = name
        wanted = [name_of[digest_document(training)] for training in choose_defaults(known)]
        trials = scene.trials
        rows = self.table.loc[wanted].assign(task=trials.task)
        points = describe_trainings(pd.concat([trials.candidates, rows], ignore_index=True), scene.tasks)
        return match_in_turn(points[: len(trials.scores)], points[len(trials.scores) :])


def match_in_turn(points: Floats, wanted: Floats) -> list[int]:
    """Return all rows of `points`, shape (n, d): in turn the nearest one left to each row of `wanted`, shape (m, d)."""
    distances = np.linalg.norm(points[:, None] - wanted, axis=2)
    order: list[int] = []
    while len(order) < len(points):
        left = distances[:, len(order) % len(wanted)].copy()
        left[order] = np.inf
        order.append(int(np.argmin(left)))
    return order


class ColdOptuna:
    """Optuna's samplers over the indices of the candidates, as one sees them without a history."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, scene: Scene, draw: np.random.Generator) -> list[int]:
        """Return the order of the candidates that lie nearest to what the sampler asks for."""
        import optuna

        from mlmeta.tuning.training_features import describe_trainings

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        points = describe_trainings(scene.trials.candidates, scene.tasks)
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
            study.tell(trial, float(scene.trials.scores[order[-1]]))
            if len(order) >= max(SHOWN) and max(scene.trials.scores[order]) >= scene.trials.scores.max() - NEAR - 1e-9:
                break
        return order
