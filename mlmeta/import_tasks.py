"""The tasks of imported attempts: their pictures are read once for all attempts on them, where they are reachable."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mlmeta.attempt_records import TaskFacts, describe_network, describe_unseen_task
from mlmeta.commands.documents import SampleData, TorchvisionData, TrainCommands
from mlmeta.errors import MlmetaError
from mlmeta.exchange_documents import ExchangedAttempt

# What decides which pictures a task has, how they look, and which of them are to train on.
_DECIDING = ("data", "label_names", "n_labels", "image_ops", "transform", "validation")


class TaskReader:
    """Describes the tasks of attempts; torch is imported when the first pictures are found.

    Args:
        pictures: The folder that relative paths of the commands' data are relative to; None for that of the document.
    """

    def __init__(self, pictures: Path | None = None) -> None:
        self._pictures = pictures
        self._tasks: dict[str, TaskFacts | str] = {}
        self._networks: dict[str, dict[str, Any] | None] = {}

    def base_dir(self, file: Path) -> Path:
        """Return what relative paths in the documents of a file are relative to."""
        return self._pictures or file.parent

    def describe_task(self, attempt: ExchangedAttempt, file: Path) -> TaskFacts:
        """Return what is known of the task of an attempt that stands in a file."""
        commands = attempt.commands
        if commands is None:
            return describe_unseen_task(attempt)
        base_dir = self.base_dir(file)
        key = _key(commands.model_dump(mode="json", include=set(_DECIDING)), str(base_dir))
        if key not in self._tasks:
            self._tasks[key] = _read_task(commands, base_dir)
        known = self._tasks[key]
        return describe_unseen_task(attempt, reason=known) if isinstance(known, str) else known

    def describe_network(self, attempt: ExchangedAttempt, task: TaskFacts) -> dict[str, Any]:
        """Return the params ``arch.*`` of an attempt, without the prefix.

        A model whose layers or number of parameters the document does not tell is built, if its input is known.
        """
        commands = attempt.commands
        if commands is None:
            return {}
        n_parameters = attempt.facts.n_parameters
        if task.input_shape is None or (n_parameters is not None and commands.model.get("layers")):
            return describe_network(commands, n_parameters)
        n_labels = int(task.counts["n_labels"])
        key = _key(commands.model, n_labels, task.input_shape)
        if key not in self._networks:
            self._networks[key] = _build_network(commands, n_labels, task.input_shape)
        return self._networks[key] or describe_network(commands, n_parameters)


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _read_task(commands: TrainCommands, base_dir: Path) -> TaskFacts | str:
    """Return what the pictures of the commands tell, or why they cannot be read."""
    data = commands.data
    if not isinstance(data, SampleData) and not os.path.exists(base_dir / data.path):
        return f"{base_dir / data.path} is not there"
    if isinstance(data, TorchvisionData):
        # An import fetches nothing.
        data = data.model_copy(update={"download": False})
    from mlmeta.data.task import describe_task, prepare_task

    try:
        # Nothing is trained, so what one batch needs does not matter.
        small = commands.model_copy(update={"data": data, "batch_size": 1})
        task = prepare_task(small, base_dir=base_dir, training=False)
        counts, features = describe_task(task)
    except (MlmetaError, OSError, MemoryError) as error:
        return str(error)
    return TaskFacts(task.pictures.task_digest, "pictures", counts, features, task.input_shape)


def _build_network(commands: TrainCommands, n_labels: int, input_shape: tuple[int, int, int]) -> dict[str, Any] | None:
    """Return the params ``arch.*`` of the built model, as of a trained one; None if it cannot be built."""
    import torch

    from mlmeta.spec_builder import build_model, describe_model

    try:
        with torch.random.fork_rng(devices=()):
            model = build_model(commands.model, n_labels=n_labels, input_shape=input_shape)
    except (MlmetaError, MemoryError, RuntimeError):
        return None
    return describe_model(commands, model)
