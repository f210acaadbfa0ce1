"""What is recorded of an attempt's task and model, so that attempts can be compared: task.*, arch.*, meta-features."""

from __future__ import annotations

from typing import Any

from torch import nn

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import describe_architecture, walk_layers


def describe_model(commands: TrainCommands, model: nn.Module) -> dict[str, Any]:
    """Return the params ``arch.*`` of the built model."""
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if layers := commands.model.get("layers"):
        return describe_architecture(walk_layers(layers), n_parameters=n_parameters)
    leaves = [(type(m).__name__, vars(m)) for m in model.modules() if not list(m.children())]
    return describe_architecture(leaves, n_parameters=n_parameters)
