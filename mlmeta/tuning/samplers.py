"""Where a tuning's proposals come from: mlmeta's own recommendations, or Optuna's samplers, by ask and tell.

Optuna's samplers draw from the commands' search space, or from one about their own values. They are told every attempt
on the task that lies in it, and look first at what won on other tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import read_training
from mlmeta.commands.search_space import (
    Choices,
    Range,
    Space,
    can_have,
    fill_training,
    get_value,
    order_paths,
    put_value,
)
from mlmeta.data.task import prepare_task
from mlmeta.errors import BadInputError
from mlmeta.history.loading import load_attempts
from mlmeta.history.table import FAILED, list_params
from mlmeta.training.preparation import check_batch
from mlmeta.tuning.lessons import split_lessons
from mlmeta.tuning.proposals import choose_space, digest_training, find_winners, make_commands, take_training
from mlmeta.tuning.recommend import Recommendation, judge_attempts, recommend_commands

SAMPLERS = ("mlmeta", "tpe", "gp", "random")
# Of the winners on other tasks this many are looked at first.
_N_WINNERS = 3
_MOST_ASKED = 20


class Sampler(Protocol):
    """Proposes what to try."""

    def propose(self, n: int, *, seed: int) -> Sequence[Recommendation]:
        """Return at most n proposals, the best first, by all that the history has by now."""

    def judge(self) -> Mapping[str, float]:
        """Return by run id what attempts on the task are worth, higher is better; empty: go by their scores alone."""


def make_sampler(name: str, commands: TrainCommands, *, base_dir: Path) -> Sampler:
    """Return the sampler of a name.

    Raises:
        BadInputError: If the commands or their pictures cannot be used, or Optuna is needed and not installed.
    """
    if name == "mlmeta":
        return _Recommender(commands, base_dir)
    return _OptunaSampler(name, commands, base_dir)


@dataclass
class _Recommender:
    commands: TrainCommands
    base_dir: Path

    def propose(self, n: int, *, seed: int) -> Sequence[Recommendation]:
        return recommend_commands(self.commands, base_dir=self.base_dir, n=n, seed=seed) if n else []

    def judge(self) -> Mapping[str, float]:
        return judge_attempts(self.commands, base_dir=self.base_dir)


class _OptunaSampler:
    def __init__(self, name: str, commands: TrainCommands, base_dir: Path) -> None:
        self._name = name
        self._commands = commands
        self._training = take_training(commands)
        self._optuna = _import_optuna(name)
        self._digest = prepare_task(commands, base_dir=base_dir, check_shape=check_batch(commands)).pictures.task_digest

    def propose(self, n: int, *, seed: int) -> Sequence[Recommendation]:
        past, own = split_lessons(load_attempts(), self._digest, "accuracy")
        space = choose_space(self._commands, past)
        study = self._optuna.create_study(direction="maximize", sampler=self._make_sampler(seed))
        distributions = self._describe(space)
        known = _read_scores(own)
        for row, score in known:
            values = _locate(space, row)
            if self._lies_in(space, row, values):
                described = {path: distributions[path] for path in values}
                study.add_trial(self._optuna.trial.create_trial(params=values, distributions=described, value=score))
        if len(own) < _N_WINNERS:
            for winner in find_winners(past, "accuracy", {})[:_N_WINNERS] if len(past) else []:
                study.enqueue_trial(_locate(space, winner.training))
        return self._ask(study, space, n, {digest_training(row) for row, _ in known})

    def judge(self) -> Mapping[str, float]:
        return {}

    def _lies_in(self, space: Space, training: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
        """Return whether a training has only values of the space, and is else as the commands say.

        The score of one that differs in more would be put down to its values.
        """
        filled = fill_training(space, self._training, _pick(space, values))
        is_whole = all(path in values for path in space if can_have(training, path))
        return is_whole and digest_training(filled) == digest_training(training)

    def _ask(self, study: Any, space: Space, n: int, tried: set[str]) -> list[Recommendation]:
        """Return what a study asks for, each once; a small space may not have that many."""
        found: list[Recommendation] = []
        for _ in range(_MOST_ASKED * n):
            if len(found) == n:
                break
            training = self._draw(study.ask(), space)
            digest = digest_training(training)
            if digest in tried:
                continue
            tried.add(digest)
            commands = make_commands(self._commands, training, self._commands.model_name)
            reason = f"Drawn from the search space by Optuna's {self._name} sampler."
            found.append(Recommendation(commands, math.nan, math.nan, math.nan, (), reason))
        return found

    def _draw(self, trial: Any, space: Space) -> dict[str, Any]:
        """Return the training of a trial, which has a value for each path that the training can have."""
        training = self._training
        for path in order_paths(space):
            if can_have(training, path):
                training = fill_training(space, training, _pick(space, {path: _suggest(trial, path, space[path])}))
        return training

    def _make_sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self._name == "tpe":
            return samplers.TPESampler(seed=seed, constant_liar=True)
        return samplers.GPSampler(seed=seed) if self._name == "gp" else samplers.RandomSampler(seed=seed)

    def _describe(self, space: Space) -> dict[str, Any]:
        """Return Optuna's distributions, those that `_suggest` draws from."""
        known = self._optuna.distributions
        return {
            path: known.CategoricalDistribution(list(range(len(one.values)))) if not isinstance(one, Range)
            else known.IntDistribution(one.low, one.high, log=one.log) if one.whole
            else known.FloatDistribution(one.low, one.high, log=one.log)
            for path, one in space.items()
        }  # fmt: skip


def _import_optuna(name: str) -> Any:
    try:
        import optuna
    except ImportError:
        message = f"tune: the sampler {name!r} is Optuna's, which is not installed: pip install 'mlmeta[optuna]'"
        raise BadInputError(message) from None
    # It warns of each value that only some optimizers have, as the GP draws those at random.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _suggest(trial: Any, path: str, values: Range | Choices) -> Any:
    """Return what a trial suggests at a path; choices, which may be any JSON, by their number."""
    if isinstance(values, Choices):
        return trial.suggest_categorical(path, list(range(len(values.values))))
    if values.whole:
        return trial.suggest_int(path, values.low, values.high, log=values.log)
    return trial.suggest_float(path, values.low, values.high, log=values.log)


def _read_scores(own: pd.DataFrame) -> list[tuple[dict[str, Any], float]]:
    """Return (training, score) of the attempts on this task; a failed one has the worst score of all."""
    if not len(own):
        return []
    scores = own["accuracy"].to_numpy(dtype=np.float64, na_value=np.nan)
    failed = own["status"].isin(FAILED).to_numpy(dtype=bool)
    worst = np.nanmin(scores, initial=1.0)
    params = list_params(own)
    values = np.where(failed, worst, scores)
    return [(read_training(own.iloc[i], params), float(values[i])) for i in np.flatnonzero(np.isfinite(values))]


def _locate(space: Space, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training's values on the paths of a space where they lie in it, choices by their number."""
    values: dict[str, Any] = {}
    for path, one in space.items():
        found, value = get_value(training, path)
        if found and isinstance(one, Range) and one.holds(value):
            values[path] = int(value) if one.whole else float(value)
        elif found and isinstance(one, Choices) and (place := _find_choice(space, training, path, one)) is not None:
            values[path] = place
    return values


def _find_choice(space: Space, training: Mapping[str, Any], path: str, choices: Choices) -> int | None:
    """Return which choice of a path a training has; values within it that have paths of their own may differ."""
    within = {inner: get_value(training, inner)[1] for inner in space if inner.startswith(f"{path}.")}
    wanted = digest_training(training)
    filled = (fill_training(space, put_value(training, path, one) or {}, within) for one in choices.values)
    return next((place for place, one in enumerate(filled) if digest_training(one) == wanted), None)


def _pick(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that stand for choices by their number."""
    named = {path: one.values for path, one in space.items() if isinstance(one, Choices)}
    return {path: named[path][value] if path in named else value for path, value in values.items()}
