"""What is recorded of an attempt's task and model, so that attempts can be compared: task.*, arch.*, meta-features."""

from __future__ import annotations

from typing import Any

from torch import nn

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import describe_architecture, walk_layers
from mlmeta.feature_cache import remember_features
from mlmeta.metafeatures import describe_pictures
from mlmeta.preparation import Task


def describe_task(task: Task) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the params ``task.*`` and the meta-features of a task."""
    channels, height, width = task.input_shape
    training = task.select("train")
    params = {
        "n_labels": task.n_labels,
        "n_train": len(training.pictures),
        "n_validation": len(task.select("validation").pictures),
        "n_test": len(task.select("test").pictures),
        "n_skipped": len(task.decoded.skipped),
        "height": height,
        "width": width,
        "channels": channels,
    }
    labels = [picture.label for picture in training.pictures]
    described = [task.image_ops, task.n_labels, [[picture.digest, picture.label] for picture in training.pictures]]
    return params, remember_features(
        described, lambda: describe_pictures(training.arrays, labels, n_labels=task.n_labels)
    )


def describe_model(commands: TrainCommands, model: nn.Module) -> dict[str, Any]:
    """Return the params ``arch.*`` of the built model."""
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if layers := commands.model.get("layers"):
        return describe_architecture(walk_layers(layers), n_parameters=n_parameters)
    leaves = [(type(m).__name__, vars(m)) for m in model.modules() if not list(m.children())]
    return describe_architecture(leaves, n_parameters=n_parameters)
