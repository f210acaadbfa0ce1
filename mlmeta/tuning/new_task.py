"""A task to recommend for: its pictures, the attempts that say something about it, and what can be built for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mlmeta.analysis.task_similarity import NEW_TASK, describe_new_task, rank_similar_tasks, task_table
from mlmeta.commands.documents import TrainCommands, digest_document
from mlmeta.commands.params import describe_architecture, flatten_params, walk_layers
from mlmeta.commands.search_space import TRAINING_KEYS
from mlmeta.commands.validation import explain_watched
from mlmeta.console import say_once
from mlmeta.data.task import describe_task, prepare_task
from mlmeta.errors import CommandsError, Fault, MlmetaError
from mlmeta.history.table import read_numbers
from mlmeta.models.optimizers import build_optimizer
from mlmeta.spec_builder import build_model, describe_model, summarize_model
from mlmeta.training.preparation import PARTS, check_batch, refuse_lone_pictures
from mlmeta.tuning.lessons import Shipped, read_shipped, split_lessons
from mlmeta.tuning.proposals import Proposal, write_commands

# Of more past tasks the nearest are learnt from: 20 attempts on each are what the surrogate takes.
MOST_TASKS = 60


@dataclass(frozen=True)
class NewTask:
    """The task of some commands, and what is known about it.

    Attributes:
        commands: What was given.
        counts: The params ``task.*`` without the prefix.
        input_shape: (channels, height, width) of a picture as the model gets it.
        tasks: As `mlmeta.analysis.task_similarity.task_table` gives them, the nearest of the past and, as `NEW_TASK`,
            this one.
        own: Past attempts on this task, with their lessons (`mlmeta.tuning.lessons`).
        past: Those on the other `tasks`.
        shipped: Attempts that come with mlmeta.
    """

    commands: TrainCommands
    counts: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    tasks: pd.DataFrame
    own: pd.DataFrame
    past: pd.DataFrame
    shipped: Shipped

    def n_scored(self, metric: str) -> int:
        """Return how many past attempts, on this task and others, have a score."""
        return sum(int(np.isfinite(read_numbers(table, metric)).sum()) for table in (self.past, self.own))

    @property
    def distances(self) -> pd.Series[float]:
        """The distance of each past task."""
        return rank_similar_tasks(self.tasks, NEW_TASK).set_index("task")["distance"]


def look_at_task(commands: TrainCommands, base_dir: Path, history: pd.DataFrame | None, metric: str) -> NewTask:
    """Return the task of some commands, its pictures looked at and accounted for.

    Args:
        commands: Say what the task is.
        base_dir: What relative paths are relative to.
        history: The table of `mlmeta.history.loading.load_attempts`; None to read it.
        metric: The score.

    Raises:
        BadInputError: If the commands or their pictures cannot be used, or no attempt has the metric.
        MlmetaError: If the history cannot be read.
    """
    if history is None:
        from mlmeta.history.loading import load_attempts

        history = load_attempts()
    prepared = prepare_task(commands, base_dir=base_dir, check_shape=check_batch(commands))
    say_once(prepared.account().describe_all())
    counts, features = describe_task(prepared)
    past, own = split_lessons(history, prepared.pictures.task_digest, metric)
    new = describe_new_task(features, prepared.pictures.label_names)
    known = task_table(past, metric) if len(past) else new.iloc[:0]
    tasks = pd.concat([known, new], ignore_index=True) if len(known) else new
    if len(known) > MOST_TASKS:
        near = set(rank_similar_tasks(tasks, NEW_TASK)["task"].head(MOST_TASKS))
        past = past[past["task"].isin(near)]
        tasks = tasks[tasks["task"].isin({*near, NEW_TASK})].reset_index(drop=True)
    shipped = read_shipped().without(history, prepared.pictures.task_digest)
    return NewTask(commands, counts, prepared.input_shape, tasks, own, past, shipped)


def fit_proposals(
    task: NewTask, proposals: Iterable[Proposal], *, at_most: int | None = None
) -> tuple[list[Proposal], list[dict[str, Any]]]:
    """Return the first proposals that can be built for a task, and for each a row as the history would have it."""
    kept: list[Proposal] = []
    rows: list[dict[str, Any]] = []
    networks: dict[str, dict[str, Any]] = {}
    for proposal in proposals:
        if len(kept) == at_most:
            break
        with contextlib.suppress(MlmetaError):
            rows.append(_describe_attempt(task, proposal, networks))
            kept.append(proposal)
    return kept, rows


def explain_unfit(task: NewTask, proposal: Proposal) -> str:
    """Return why a proposal cannot be built for a task; empty where it can."""
    try:
        _describe_attempt(task, proposal, {})
    except MlmetaError as error:
        return " ".join(str(error).split())
    return ""


def _describe_attempt(task: NewTask, proposal: Proposal, networks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the attempt of a proposal as a row; its network is described in `networks`, if it is not there yet.

    Raises:
        MlmetaError: If it cannot be built.
    """
    commands = write_commands(task.commands, proposal, task.commands.model_name)
    key = digest_document({"model": commands.model})
    if key not in networks:
        networks[key] = _describe_network(commands, task)
    parts = {part: int(task.counts[f"n_{part}"]) for part in PARTS}
    refuse_lone_pictures(commands, parts, n_labels=int(task.counts["n_labels"]), input_shape=task.input_shape)
    if message := explain_watched(commands.scheduler or {}):
        # It can still be read of an attempt that was recorded with it.
        raise CommandsError([Fault("scheduler.mode", message)])
    build_optimizer(commands.optimizer, [torch.nn.Parameter(torch.zeros(1))])
    arch = {f"arch.{name}": value for name, value in networks[key].items()}
    counts = {f"task.{name}": value for name, value in task.counts.items()}
    return {"task": NEW_TASK} | _type_params(commands) | arch | counts


def _describe_network(commands: TrainCommands, task: NewTask) -> dict[str, Any]:
    """Return the params ``arch.*`` without the prefix; layers are followed by their shapes and not built."""
    n_labels = int(task.counts["n_labels"])
    layers = commands.model.get("layers")
    if not layers:
        return describe_model(commands, build_model(commands.model, n_labels=n_labels, input_shape=task.input_shape))
    rows = summarize_model(commands.model, n_labels=n_labels, input_shape=task.input_shape)
    return describe_architecture(walk_layers(layers), n_parameters=sum(row.n_parameters for row in rows))


def _type_params(commands: TrainCommands) -> dict[str, Any]:
    """Return the params of commands, numbers as numbers."""
    texts = flatten_params(commands.model_dump(mode="json", include={*TRAINING_KEYS, "n_epoch"}))
    return {name: _read_number(text) for name, text in texts.items()}


def _read_number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
