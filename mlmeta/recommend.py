"""What to try next on a task, why, and how good it should be.

Past winners on other tasks, variations of them, the shipped defaults and the commands as given are fitted to the new
task's pictures; those that fit are ranked by `mlmeta.surrogate`, which has seen all past attempts, those on this task
and those that come with mlmeta. Several at once are chosen one after the other, each as if the ones before had been
tried (Desautels et al., Parallelizing Exploration-Exploitation Tradeoffs in Gaussian Process Bandit Optimization,
2014).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.architecture import describe_architecture, walk_layers
from mlmeta.attempt_features import FAILED, check_column, list_params, read_numbers, read_scores
from mlmeta.attempts import describe_model, describe_task
from mlmeta.commands import TrainCommands, digest_document
from mlmeta.documents import parse_train_commands
from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.params import flatten_params
from mlmeta.preparation import prepare_task
from mlmeta.proposals import TRAINING_KEYS, Proposal, find_winners, read_defaults, read_training, vary
from mlmeta.shipped import Shipped, read_shipped
from mlmeta.similarity import NEW_TASK, describe_new_task, rank_similar_tasks, task_table
from mlmeta.spec_builder import build_model, build_optimizer, summarize_model
from mlmeta.status import Status
from mlmeta.surrogate import Surrogate

_LOG = logging.getLogger(__name__)
N_EVIDENCE = 3
# Of more past tasks the nearest are learnt from: 20 attempts on each are what the surrogate takes.
MOST_TASKS = 60
_ENDED = (Status.COMPLETE, Status.DIVERGED, Status.FAILED)


@dataclass(frozen=True)
class Evidence:
    """A past attempt that a recommendation rests on.

    Attributes:
        distance: Of its task from the new one, 0 to 1; NaN where it is not known.
        score: NaN where it failed.
    """

    run_id: str
    model_name: str
    task: str
    distance: float
    score: float


@dataclass(frozen=True)
class Recommendation:
    """Commands to try next.

    Attributes:
        commands: Complete and valid; the model is known to fit the pictures.
        score_mean: The score to be expected; NaN where nothing is known.
        score_std: Its standard deviation.
        seconds: The duration to be expected; NaN where nothing is known.
        evidence: The past attempts that say most about it.
        reason: One sentence.
    """

    commands: TrainCommands
    score_mean: float
    score_std: float
    seconds: float
    evidence: tuple[Evidence, ...]
    reason: str


@dataclass(frozen=True)
class _NewTask:
    """The task of the commands, and what the history has of it."""

    commands: TrainCommands
    counts: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    tasks: pd.DataFrame
    own: pd.DataFrame
    past: pd.DataFrame
    shipped: Shipped

    @property
    def distances(self) -> pd.Series[float]:
        """The distance of each past task."""
        ranked = rank_similar_tasks(self.tasks, NEW_TASK)
        return pd.Series(ranked["distance"].to_numpy(), index=ranked["task"].to_numpy())


def recommend_commands(
    commands: TrainCommands,
    *,
    base_dir: Path | None = None,
    history: pd.DataFrame | None = None,
    candidates: Sequence[TrainCommands] | None = None,
    n: int = 5,
    metric: str = "accuracy",
    seed: int = 0,
) -> list[Recommendation]:
    """Return what to try next on the task of some commands, the best first.

    Args:
        commands: Say what the task is: pictures, labels, picture operations, transforms, epochs.
        base_dir: What relative paths of the commands are relative to; None for the working folder.
        history: The table of `mlmeta.history.load_attempts`; None to read it.
        candidates: Choose among these only; each is trained as it says, on the task of `commands`.
        n: At most so many.
        metric: The score; its name says whether lower is better.
        seed: Decides the variations.

    Raises:
        BadInputError: If the commands or their pictures cannot be used, the metric is none, or no candidate fits.
        MlmetaError: If the history cannot be read.
    """
    if history is None:
        from mlmeta.history import load_attempts

        history = load_attempts()
    task = _look_at_task(commands, base_dir or Path(), history, metric)
    rng = np.random.default_rng(seed)
    given = [Proposal(_take_training(one), f"the candidate {one.model_name}") for one in candidates or ()]
    proposals, rows = _build(task, given or _propose(task, metric, rng))
    if not proposals:
        raise BadInputError("candidates: none of them can be built for these pictures")
    for one in given:
        if one not in proposals:
            _LOG.warning("mlmeta: %s cannot be built for these pictures and is left out", one.origin)
    new = pd.DataFrame(rows)
    own = task.own.reset_index(drop=True)
    table = pd.concat([new, own], ignore_index=True) if len(own) else new
    table.attrs = {"kinds": history.attrs.get("kinds") or {}}
    surrogate = Surrogate(task.past, table, task.tasks, NEW_TASK, metric=metric, seed=seed, shipped=task.shipped)
    _observe(surrogate, own, metric, first=len(new))
    if len(task.past) or len(own) or given:
        chosen = surrogate.choose(n, len(new))
    else:
        # The default list is a portfolio: its later trainings are for tasks that the first ones do not suit.
        chosen = list(range(len(new)))[:n]
    predicted = surrogate.predict()
    return [
        _explain(task, proposals[row], row, surrogate, (predicted.mean[row], predicted.std[row]), metric, rank)
        for rank, row in enumerate(chosen, start=1)
    ]


def _observe(surrogate: Surrogate, own: pd.DataFrame, metric: str, *, first: int) -> None:
    """Let the surrogate take in the attempts on the task itself; they are its rows from `first` on."""
    scores = read_scores(own, metric) if len(own) else ()
    for place, (score, status) in enumerate(zip(scores, own["status"], strict=True), start=first):
        failed = status in FAILED
        # One that was not tested is no failure: it says nothing.
        if failed or np.isfinite(score):
            surrogate.observe(place, None if failed else float(score))


def _look_at_task(commands: TrainCommands, base_dir: Path, history: pd.DataFrame, metric: str) -> _NewTask:
    if len(history):
        check_column(history, metric, what="metric")
    prepared = prepare_task(commands, base_dir=base_dir)
    counts, features = describe_task(prepared)
    digests = history.get("tags.mlmeta.task_digest", pd.Series(None, index=history.index, dtype=object))
    same = (digests == prepared.pictures.task_digest).fillna(False).to_numpy(dtype=bool)
    ended = history["status"].isin(_ENDED).to_numpy(dtype=bool) if len(history) else same
    past = history[~same & ended & history["task"].notna().to_numpy()] if len(history) else history
    own = history[same & ended]
    new = describe_new_task(features, prepared.pictures.label_names)
    known = task_table(past, metric) if len(past) else new.iloc[:0]
    tasks = pd.concat([known, new], ignore_index=True) if len(known) else new
    if len(known) > MOST_TASKS:
        near = set(rank_similar_tasks(tasks, NEW_TASK)["task"].head(MOST_TASKS))
        past, tasks = past[past["task"].isin(near)], tasks[tasks["task"].isin({*near, NEW_TASK})]
        tasks = tasks.reset_index(drop=True)
    for table in (past, own):
        table.attrs = dict(history.attrs)
    shipped = read_shipped().without(history, prepared.pictures.task_digest)
    return _NewTask(commands, counts, prepared.input_shape, tasks, own, past, shipped)


def _propose(task: _NewTask, metric: str, rng: np.random.Generator) -> Iterator[Proposal]:
    """Yield what might be tried, each once: without a past the defaults first, then the commands themselves."""
    closeness = {str(name): -float(distance) for name, distance in task.distances.items()}
    winners = find_winners(task.past, metric, closeness) if len(task.past) else []
    best_here = find_winners(task.own.assign(task=NEW_TASK), metric, {}) if len(task.own) > 1 else []
    known = [*best_here, *winners]
    as_given = Proposal(_take_training(task.commands), "the commands as they are")
    tried = {digest_document(_take_training_of_row(task.own, i)) for i in range(len(task.own))}
    for proposal in [*known, *read_defaults(), as_given, *vary(known or read_defaults(), rng)]:
        digest = digest_document({key: proposal.training.get(key) for key in TRAINING_KEYS})
        if digest not in tried:
            tried.add(digest)
            yield proposal


def _take_training(commands: TrainCommands) -> dict[str, Any]:
    whole = commands.model_dump(mode="json", include=set(TRAINING_KEYS))
    return {key: whole[key] for key in TRAINING_KEYS}


def _take_training_of_row(table: pd.DataFrame, place: int) -> dict[str, Any]:
    training = read_training(table.iloc[place], list_params(table))
    return {key: training.get(key) for key in TRAINING_KEYS}


def _build(task: _NewTask, proposals: Iterable[Proposal]) -> tuple[list[Proposal], list[dict[str, Any]]]:
    """Return the proposals that fit this task, and their rows for the surrogate."""
    kept: list[Proposal] = []
    rows: list[dict[str, Any]] = []
    networks: dict[str, dict[str, Any]] = {}
    for proposal in proposals:
        try:
            commands = _make_commands(task.commands, proposal.training, task.commands.model_name)
            key = digest_document({"model": commands.model})
            if key not in networks:
                networks[key] = _describe_network(commands, task)
            _check_optimizer(commands)
        except MlmetaError:
            continue
        params = _type_params(commands)
        arch = {f"arch.{name}": value for name, value in networks[key].items()}
        counts = {f"task.{name}": value for name, value in task.counts.items()}
        facts = {"run_id": f"proposal-{len(kept)}", "model_name": commands.model_name, "status": "Incomplete"}
        rows.append(facts | {"task": NEW_TASK} | params | arch | counts)
        kept.append(proposal)
    return kept, rows


def _describe_network(commands: TrainCommands, task: _NewTask) -> dict[str, Any]:
    """Return the params ``arch.*`` without the prefix; layers are followed by their shapes and not built."""
    n_labels = int(task.counts["n_labels"])
    layers = commands.model.get("layers")
    if not layers:
        return describe_model(commands, build_model(commands.model, n_labels=n_labels, input_shape=task.input_shape))
    rows = summarize_model(commands.model, n_labels=n_labels, input_shape=task.input_shape)
    return describe_architecture(walk_layers(layers), n_parameters=sum(row.n_parameters for row in rows))


def _check_optimizer(commands: TrainCommands) -> None:
    import torch

    build_optimizer(commands.optimizer, [torch.nn.Parameter(torch.zeros(1))])


def _type_params(commands: TrainCommands) -> dict[str, Any]:
    """Return the params of commands, numbers as numbers."""
    texts = flatten_params(commands.model_dump(mode="json", include={*TRAINING_KEYS, "n_epoch"}))
    return {name: _read_number(text) for name, text in texts.items()}


def _read_number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _make_commands(base: TrainCommands, training: Mapping[str, Any], name: str) -> TrainCommands:
    """Return the commands of the new task with another training."""
    document = {key: value for key, value in base.document().items() if key not in TRAINING_KEYS}
    document |= {key: copy.deepcopy(training[key]) for key in TRAINING_KEYS if key in training}
    document["model_name"] = name
    layers = document["model"].get("layers")
    if layers and "in_channels" in layers[0]:
        # The winner's pictures may have had other channels.
        layers[0]["in_channels"] = "auto"
    if layers:
        document["model"] = {key: value for key, value in document["model"].items() if key == "layers"}
    return parse_train_commands(document, source="a proposal")


def _explain(
    task: _NewTask,
    proposal: Proposal,
    row: int,
    surrogate: Surrogate,
    score: tuple[float, float],
    metric: str,
    rank: int,
) -> Recommendation:
    commands = _make_commands(task.commands, proposal.training, f"{task.commands.model_name}-{rank}")
    distances = task.distances
    places = surrogate.find_evidence(row, N_EVIDENCE)
    rows = [surrogate.past.iloc[place] for place in places]
    evidence = tuple(
        Evidence(str(one["run_id"]), str(one["model_name"]), str(one["task"]),
                 float(distances.get(one["task"], np.nan)), float(one[metric]) if pd.notna(one[metric]) else np.nan)
        for one in rows
    )  # fmt: skip
    seconds = _expect_seconds(task, surrogate.past.iloc[surrogate.find_evidence(row, 10)])
    mean, std = float(score[0]), float(score[1])
    return Recommendation(commands, mean, std, seconds, evidence, _say_why(task, proposal, evidence, metric))


def _say_why(task: _NewTask, proposal: Proposal, evidence: Sequence[Evidence], metric: str) -> str:
    n_past, n_own = len(task.past), len(task.own)
    if not n_past and not n_own:
        return f"There is no past attempt of yours to learn from: this is {proposal.origin}."
    n_shipped = len(task.shipped.attempts)
    own = f" and {n_own} on this task" if n_own else ""
    own += f", beside {n_shipped} that come with mlmeta" if n_shipped else ""
    near = ""
    if evidence:
        one = evidence[0]
        distance = "" if np.isnan(one.distance) else f" (distance {one.distance:.2f})"
        result = "failed" if np.isnan(one.score) else f"reached {metric} {one.score:.3g}"
        near = f"; {one.model_name} on {one.task}{distance} {result}"
    return f"From {proposal.origin}: best by {n_past} attempts on {task.past['task'].nunique()} other tasks{own}{near}."


def _expect_seconds(task: _NewTask, similar: pd.DataFrame) -> float:
    """Return the seconds that similar attempts took, in proportion to pixels and epochs."""
    if not len(similar):
        return float("nan")
    seconds = similar["duration_s"].to_numpy(dtype=np.float64, na_value=np.nan)
    here = {f"task.{name}": float(task.counts[name]) for name in ("n_train", "height", "width")}
    here["n_epoch"] = float(task.commands.n_epoch)
    for name, value in here.items():
        there = read_numbers(similar, name)
        seconds = seconds * np.where(there > 0, value / np.where(there > 0, there, 1.0), 1.0)
    known = seconds[np.isfinite(seconds) & (seconds > 0)]
    return float(np.median(known)) if known.size else float("nan")
