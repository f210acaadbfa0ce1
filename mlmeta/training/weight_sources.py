"""Whose weights a training could start from: attempts of the history whose weights fit the model.

What has to fit is everything but the head, which is new for new labels: counted with it, a small network whose head
is wide, 2,048 features to 40 labels, say, could never start from what it learnt on a task with other labels. Only
where the labels are the same, in the same order, is the head taken over and counted too.
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from torch import Tensor, nn

from mlmeta.analysis.features import score_ranks
from mlmeta.analysis.task_similarity import NEW_TASK, describe_new_task, rank_similar_tasks, task_table
from mlmeta.commands.documents import strip_operators
from mlmeta.commands.params import read_training
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.task import Task, describe_task
from mlmeta.errors import BadInputError, MlmetaError, NotFoundError, WeightsError
from mlmeta.history.table import list_params
from mlmeta.models.shapes import construct_chain, trace_layers
from mlmeta.models.weights import LEAST_OVERLAP, StateDict, find_overlap, measure_overlap, read_weights
from mlmeta.status import Status
from mlmeta.training.transferability import Head

MAX_SOURCES = 5
# So many files are fetched at most where some are refused, and so many kinds of model looked at.
_MAX_FILES = 10
_MAX_MODELS = 300
_USABLE = (Status.COMPLETE, Status.TRAINED, Status.TESTING, Status.PRUNED)
_SHAPE = ("task.channels", "task.height", "task.width")
_SHA256, _DIGEST = "tags.mlmeta.weights_sha256", "tags.mlmeta.task_digest"


@dataclass(frozen=True)
class Source:
    """An attempt whose weights fit.

    Attributes:
        task: The short name of its task; empty where it is not known.
        distance: Of its task from this one, 0 to 1; NaN where it is not known.
        weights: The tensors to take over.
        overlap: What share they are of the model's numbers, those of a new head left out.
    """

    run_id: str
    name: str
    task: str
    distance: float
    weights: StateDict
    overlap: float


@dataclass(frozen=True)
class Fit:
    """What weights have to fit.

    Attributes:
        model: On any device.
        head: Of the model.
        builder: The model's name among torchvision's; empty for a list of layers.
        label_names: What the model tells apart, in the order of its outputs.
    """

    model: nn.Module
    head: Head
    builder: str
    label_names: tuple[str, ...]

    def measure(self, state: StateDict, label_names: object) -> tuple[dict[str, Tensor], float]:
        """Return what of a state dict can be taken over, and its share of what could be.

        Args:
            state: Of a model that tells apart `label_names`, in this order.
            label_names: A list of labels; of anything else the head is not taken.
        """
        ours = [strip_operators(label) for label in self.label_names]
        theirs = [strip_operators(str(label)) for label in label_names] if isinstance(label_names, list) else []
        new = frozenset[str]() if ours == theirs else self.head.keys
        wanted = {key: value for key, value in self.model.state_dict().items() if key not in new}
        overlap = find_overlap(wanted, state)
        return overlap, measure_overlap(wanted, overlap)


def find_named_source(name_or_run_id: str, fit: Fit) -> Source:
    """Return the attempt that the commands name: by its run id, or the newest of that name that has weights.

    Raises:
        BadInputError: If there is none, its weights are refused, or they do not fit.
    """
    is_run_id = re.fullmatch("[0-9a-f]{32}", name_or_run_id)
    wanted = {"run_id": name_or_run_id} if is_run_id else {"name": name_or_run_id}
    try:
        return _fetch(fit, **wanted)
    except (NotFoundError, WeightsError) as error:
        raise BadInputError(f"initial_weights: {re.sub('^(run_id|model_name): ', '', str(error))}") from error


def find_sources(task: Task, fit: Fit, history: pd.DataFrame) -> list[Source]:
    """Return at most `MAX_SOURCES` attempts of the history whose weights fit, the most promising first.

    They have ended well, saw pictures of the same shape, and have at least half of the weights in common. First
    comes the one that is best among those on its own task, then the best on each task, the nearest task first, then
    the second best on each. One that cannot be fetched or is refused is left out, and a line on standard error says so.

    Args:
        task: The task to train on.
        fit: What the weights have to fit.
        history: As `mlmeta.history.loading.load_attempts` gives it.
    """
    sources: list[Source] = []
    table = _order(_keep_fitting(history, task, fit), task).head(_MAX_FILES)
    for place, run_id in enumerate(table["run_id"]):
        row = table.iloc[place]
        try:
            sources.append(replace(_fetch(fit, run_id=run_id), task=str(row["task"]), distance=float(row["distance"])))
        except MlmetaError as error:
            click.echo(f"mlmeta: initial weights: {row['model_name']} is left out: {error}", err=True)
        if len(sources) == MAX_SOURCES:
            break
    return sources


def _fetch(fit: Fit, *, run_id: str | None = None, name: str | None = None) -> Source:
    """Return an attempt's weights, checked.

    Raises:
        MlmetaError: If there is no such attempt, or its weights are refused or do not fit.
    """
    from mlmeta.tracking.attempts import download_weights, find_attempt

    try:
        attempt = find_attempt(name=name, run_id=run_id)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the attempt {name or run_id} is not recorded as mlmeta does: {error!r}") from error
    with tempfile.TemporaryDirectory() as folder:
        state = read_weights(download_weights(attempt, Path(folder)), sha256=attempt.weights_sha256)
    weights, overlap = fit.measure(state, attempt.label_names)
    if odd := next((key for key, value in weights.items() if not bool(value.float().isfinite().all())), None):
        raise WeightsError(f"the attempt {attempt.name} ({attempt.run_id}) has numbers in {odd} that are not finite")
    if overlap < LEAST_OVERLAP:
        raise WeightsError(
            f"the attempt {attempt.name} ({attempt.run_id}) has {overlap:.0%} of the model's weights below the head, "
            "by name and shape; half are needed"
        )
    return Source(attempt.run_id, attempt.name, "", math.nan, weights, overlap)


def _keep_fitting(history: pd.DataFrame, task: Task, fit: Fit) -> pd.DataFrame:
    """Return the attempts that have weights which seem to fit, as far as their params say."""
    needed = {_SHA256, "task.n_labels", *_SHAPE}
    if not needed <= set(history.columns):
        return history.iloc[:0]
    usable = history[_SHA256].notna() & history["status"].isin(_USABLE) & history["task"].notna()
    for name, size in zip(_SHAPE, task.input_shape, strict=True):
        usable &= (history[name] == size).fillna(False)
    table = history[usable.to_numpy(dtype=bool)].copy()
    table.attrs = dict(history.attrs)
    params = [name for name in list_params(table) if name.removeprefix("params.").startswith("model.")]
    if not len(table) or not params:
        return table.iloc[:0]
    groups = table.groupby([*params, "task.n_labels"], dropna=False, sort=False).ngroup().to_numpy()
    first = np.unique(groups, return_index=True)[1]
    fitting = [groups[row] for row in sorted(first)[:_MAX_MODELS] if _seems_to_fit(table.iloc[row], params, task, fit)]
    return table[np.isin(groups, fitting)]


def _seems_to_fit(row: pd.Series[Any], params: list[str], task: Task, fit: Fit) -> bool:
    """Return whether an attempt's model, built without memory for its numbers, shares half of its weights."""
    model = read_training(row, params).get("model")
    try:
        checked = parse_train_commands({"model_name": "source", "model": model}).model
        if checked.get("name"):
            # The weights themselves will tell.
            return bool(checked["name"] == fit.builder)
        layers, _ = trace_layers(checked["layers"], n_labels=int(row["task.n_labels"]), input_shape=task.input_shape)
        state = construct_chain(layers, "model.layers", device="meta").state_dict()
    except MlmetaError:
        return False
    return fit.measure(state, None)[1] >= LEAST_OVERLAP


def _order(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Return attempts with the distance of their task, those to look at first first."""
    if not len(table):
        return table
    ranks = np.nan_to_num(score_ranks(table, _choose_score(table)), nan=-np.inf)
    table = table.assign(rank=ranks, distance=_measure_distances(table, task)).reset_index(drop=True)
    best_of_all = [int(ranks.argmax())]
    table["place"] = table.groupby("task")["rank"].rank(method="first", ascending=False)
    order = table.sort_values(["place", "distance"], kind="stable").index
    return table.loc[[*best_of_all, *(row for row in order if row not in best_of_all)]]


def _choose_score(table: pd.DataFrame) -> str:
    """Return what attempts are compared by: never the test, which may be the one of this very task."""
    has_accuracy = "val_accuracy" in table.columns and table["val_accuracy"].notna().any()
    return "val_accuracy" if has_accuracy else "train_loss"


def _measure_distances(table: pd.DataFrame, task: Task) -> pd.Series[float]:
    _, features = describe_task(task)
    new = describe_new_task(features, task.pictures.label_names)
    ranked = rank_similar_tasks(pd.concat([task_table(table, _choose_score(table)), new], ignore_index=True), NEW_TASK)
    distances = table["task"].map(dict(zip(ranked["task"], ranked["distance"], strict=True)))
    distances = distances.astype("float64")
    if _DIGEST not in table.columns:
        return distances
    return distances.mask((table[_DIGEST] == task.pictures.task_digest).fillna(False).astype(bool), 0.0)
