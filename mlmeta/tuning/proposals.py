"""What might be tried next: past winners, the shipped defaults, variations of both, and draws of a search space.

A training here is the part of train commands that says how to train: `TRAINING_KEYS`. What it is to be trained on
(pictures, labels, epochs) stays the new task's own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.analysis.features import RATE, score_quantiles
from mlmeta.commands.documents import MAX_NAME_BYTES, TrainCommands, digest_document
from mlmeta.commands.params import read_training
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.commands.search_space import (
    TRAINING_KEYS,
    Range,
    Space,
    draw_training,
    fill_training,
    fit_training,
    get_value,
    is_open,
    read_space,
)
from mlmeta.history.table import FAILED, list_params, read_numbers

# Of the best attempts on past tasks this many are proposed, and this many variations of them.
N_WINNERS = 60
N_VARIATIONS = 180
N_DRAWS = 60
_PER_TASK = 5
_LOOKED_AT = 4 * N_WINNERS
_MOST_BATCH = 1024
# What says what the task is, and what comes after the training.
_TASK_KEYS = ("data", "label_names", "n_labels", "image_ops", "transform", "target_transform", "test", "space")
# Where no space is given, the commands' own values are drawn within a factor of this.
_RATE_FACTOR, _BATCH_FACTOR, _DECAY_FACTOR = 10.0, 4, 100.0
_DRAWN = "the commands with values drawn from the search space"
# Of fewer past attempts nobody can say which learning rates are usual.
_FEWEST_RATES = 5


@dataclass(frozen=True)
class Proposal:
    """One training.

    Attributes:
        training: Values of `TRAINING_KEYS`.
        origin: In words, where it comes from.
        run_ids: Of the past attempts that it is taken from.
        candidate: Whole commands, of which everything counts but what says what the task is; None for the training.
    """

    training: Mapping[str, Any]
    origin: str
    run_ids: tuple[str, ...] = ()
    candidate: TrainCommands | None = None


def take_training(commands: TrainCommands) -> dict[str, Any]:
    """Return how the commands train: values of `TRAINING_KEYS`."""
    return commands.model_dump(mode="json", include=set(TRAINING_KEYS))


def digest_training(training: Mapping[str, Any]) -> str:
    """Return a digest that is equal for trainings that are the same, whatever pictures their models are made for."""
    parts = {key: training.get(key) for key in TRAINING_KEYS}
    return digest_document(parts | {"model": _without_channels(parts["model"])})


def _without_channels(model: Any) -> Any:
    """Return a model whose first layer takes pictures of any channels."""
    layers = model.get("layers") if isinstance(model, dict) else None
    if not layers:
        return model
    first = layers[0]
    if isinstance(first, dict) and "in_channels" in first:
        first = {**first, "in_channels": "auto"}
    return {"layers": [first, *layers[1:]]}


def make_commands(base: TrainCommands, training: Mapping[str, Any], name: str) -> TrainCommands:
    """Return the commands of a task with another training, under another name.

    Raises:
        CommandsError: If the two do not go together.
    """
    own = take_training(base)
    changed = [key for key in TRAINING_KEYS if key not in training or training[key] != own[key]]
    document = {key: value for key, value in base.document().items() if key not in (*changed, "space")}
    document |= {key: copy.deepcopy(training[key]) for key in changed if key in training}
    document["model_name"] = name
    if is_open(base.space):
        # The winner's pictures may have had other channels.
        document["model"] = _without_channels(document["model"])
    return parse_train_commands(document, source="a proposal")


def write_commands(base: TrainCommands, proposal: Proposal, name: str) -> TrainCommands:
    """Return the commands of a proposal on the task of `base`; raises as `make_commands`."""
    if proposal.candidate is None:
        return make_commands(base, proposal.training, name)
    document = {key: value for key, value in proposal.candidate.document().items() if key not in _TASK_KEYS}
    document |= {key: value for key, value in base.document().items() if key in _TASK_KEYS}
    return make_commands(parse_train_commands(document, source="a candidate"), proposal.training, name)


def number_name(name: str, number: int) -> str:
    """Return ``name-number``, the name cut where that were longer than a name may be."""
    suffix = f"-{number}"
    room = MAX_NAME_BYTES - len(suffix)
    return name.encode()[:room].decode(errors="ignore").rstrip() + suffix


def find_winners(past: pd.DataFrame, metric: str, closeness: Mapping[str, float]) -> list[Proposal]:
    """Return the best attempts of every past task, those of near tasks first, each training once.

    Args:
        past: Attempts on other tasks, as `mlmeta.history.loading.load_attempts` gives them.
        metric: The score; its name says whether lower is better.
        closeness: Of each task, higher is nearer.
    """
    params = list_params(past)
    # Of equally good ones the order of their names decides, and not that of their run ids, which are random.
    past = past.sort_values(["task", "model_name"], kind="stable")
    usable = past.assign(z=score_quantiles(past, metric))
    usable = usable[usable["z"].notna() & ~usable["status"].isin(FAILED)]
    best = usable.sort_values("z", ascending=False, kind="stable").groupby("task", sort=False).head(_PER_TASK)
    place = best.groupby("task").cumcount()
    near = best["task"].map(closeness).fillna(0.0)
    best = best.assign(place=place, near=near).sort_values(["place", "near"], ascending=[True, False], kind="stable")
    found: dict[str, Proposal] = {}
    best.attrs = {}
    for _, row in best.head(_LOOKED_AT).iterrows():
        training = read_training(row, params)
        origin = f"{row['model_name']} on {row['task']}"
        found.setdefault(digest_training(training), Proposal(training, origin, (str(row["run_id"]),)))
        if len(found) == N_WINNERS:
            break
    return list(found.values())


def read_defaults() -> list[Proposal]:
    """Return the shipped list, made from 832 real attempts on 13 tasks by benchmarks/make_defaults.py."""
    text = resources.files("mlmeta.tuning").joinpath("default_trainings.json").read_text(encoding="utf-8")
    return [Proposal(training, "mlmeta's default list") for training in json.loads(text)["trainings"]]


def vary(proposals: Sequence[Proposal], rng: np.random.Generator, n: int = N_VARIATIONS) -> Iterator[Proposal]:
    """Yield variations: another learning rate, batch size or weight decay, or one's optimizer with another's model.

    Factors are log-normal: a learning rate changes by a factor of 2 in two of three cases.
    """
    for _ in range(n if proposals else 0):
        first = proposals[int(rng.integers(len(proposals)))]
        training = copy.deepcopy(dict(first.training))
        run_ids, change = first.run_ids, "varied"
        if len(proposals) > 1 and rng.random() < 0.4:
            second = proposals[int(rng.integers(len(proposals)))]
            for key in ("optimizer", "scheduler", "batch_size"):
                training[key] = copy.deepcopy(second.training.get(key))
            run_ids, change = tuple(dict.fromkeys(first.run_ids + second.run_ids)), f"trained as {second.origin}"
        optimizer = dict(training.get("optimizer") or {})
        for key, spread in (("lr", 0.3), ("weight_decay", 0.5)):
            if isinstance(optimizer.get(key), int | float) and optimizer[key] > 0:
                optimizer[key] = _round(float(optimizer[key]) * 10 ** rng.normal(0, spread))
        training["optimizer"] = optimizer
        if rng.random() < 0.3:
            factor = 2.0 ** rng.integers(-1, 2)
            training["batch_size"] = int(min(max(training.get("batch_size", 32) * factor, 1), _MOST_BATCH))
        yield Proposal(training, f"{first.origin}, {change}", run_ids)


def choose_space(commands: TrainCommands, past: pd.DataFrame) -> Space:
    """Return what may be drawn: what the space of commands names; where all else is open, `derive_space` too."""
    named = dict(read_space(commands.space or {}))
    if not is_open(commands.space):
        return named
    derived = derive_space(take_training(commands), past)
    return {**{path: one for path, one in derived.items() if path.partition(".")[0] not in named}, **named}


def derive_space(training: Mapping[str, Any], past: pd.DataFrame) -> Space:
    """Return the space about a training that its own values and those of past attempts suggest.

    The learning rate ranges over a decade either way, or over what nine in ten past attempts with that optimizer had
    where that is more; the batch size over a factor of 4, weight decay, where there is one, over two decades.
    """
    space: dict[str, Range] = {}
    if rate := _read_positive(training, RATE):
        same = past
        if "optimizer.name" in past.columns:
            same = past[(past["optimizer.name"] == training["optimizer"]["name"]).fillna(False).to_numpy(dtype=bool)]
        if "status" in same.columns:
            # A rate at which a training diverged is none to try.
            same = same[~same["status"].isin(FAILED).to_numpy(dtype=bool)]
        seen = read_numbers(same, RATE)
        seen = seen[seen > 0]
        usual = np.quantile(seen, [0.05, 0.95]) if len(seen) >= _FEWEST_RATES else (rate, rate)
        low, high = min(rate / _RATE_FACTOR, usual[0]), max(rate * _RATE_FACTOR, usual[1])
        space[RATE] = Range(_round(float(low)), _round(float(high)), log=True)
    if decay := _read_positive(training, "optimizer.weight_decay"):
        space["optimizer.weight_decay"] = Range(_round(decay / _DECAY_FACTOR), _round(decay * _DECAY_FACTOR), log=True)
    if batch := _read_positive(training, "batch_size"):
        space["batch_size"] = Range(max(1, int(batch) // _BATCH_FACTOR), int(batch) * _BATCH_FACTOR, log=True)
    return space


def _read_positive(training: Mapping[str, Any], path: str) -> float:
    """Return the number at a path; 0 where there is none above 0."""
    value = get_value(training, path)[1]
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else 0


def draw_proposals(
    training: Mapping[str, Any], space: Space, rng: np.random.Generator, n: int = N_DRAWS
) -> Iterator[Proposal]:
    """Yield a training with its values drawn from a space."""
    for _ in range(n):
        yield Proposal(draw_training(space, training, rng), _DRAWN)


def keep_in_space(
    proposals: Iterable[Proposal], training: Mapping[str, Any], space: Space, rng: np.random.Generator, *, opened: bool
) -> Iterator[Proposal]:
    """Yield proposals with values outside a space drawn anew; those with other names than it allows are left out.

    Args:
        proposals: Of other tasks.
        training: Of the commands. Its model is kept where the space names values of it: in another they would mean
            something else.
        space: As the commands give it.
        rng: Decides what is drawn.
        opened: Whether a proposal keeps what the space does not name; else that is as in `training`.
    """
    own_model = any(path.startswith("model.") for path in space)
    for proposal in proposals:
        given = {**proposal.training, "model": training["model"]} if own_model else proposal.training
        found = {path: get_value(given, path) for path in space}
        if not opened:
            values = {path: value for path, (is_there, value) in found.items() if is_there}
            given = fill_training(space, training, values)
        fitted = fit_training(space, given, rng)
        if fitted is None:
            continue
        if opened or fitted == proposal.training:
            changed = "" if fitted == proposal.training else ", within the search space"
            yield Proposal(fitted, proposal.origin + changed, proposal.run_ids)
        elif any(is_there and get_value(fitted, path) == (True, value) for path, (is_there, value) in found.items()):
            yield Proposal(fitted, f"the commands with values of {proposal.origin}", proposal.run_ids)
        else:
            yield Proposal(fitted, _DRAWN)


def _round(value: float) -> float:
    return float(f"{value:.3g}")
