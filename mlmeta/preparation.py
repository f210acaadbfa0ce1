"""From commands to what a training or a test runs on: pictures, their shape, the model, the criterion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlmeta.commands import TrainCommands
from mlmeta.criteria import Criterion
from mlmeta.errors import CommandsError, Fault
from mlmeta.pictures import Part, PictureSet, find_pictures
from mlmeta.spec_builder import (
    build_criterion,
    build_image_ops,
    build_model,
    build_target_transform,
    build_transform,
    output_form,
)
from mlmeta.tensors import Batches, DecodedPictures, decode_pictures, read_input_shape
from mlmeta.weights import load_backbone, read_weights


@dataclass
class Task:
    """The pictures of the commands, decoded, and how they become tensors.

    Attributes:
        input_shape: (channels, height, width) of a picture as the model gets it.
    """

    pictures: PictureSet
    decoded: DecodedPictures
    transform: Any
    train_transform: Any
    input_shape: tuple[int, int, int]

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return len(self.pictures.label_names)

    def select(self, part: Part) -> DecodedPictures:
        """Return the readable pictures of one part."""
        return self.decoded.select(self.pictures.select(part))

    def training_batches(self, *, batch_size: int, device: torch.device) -> Batches:
        """Return the training part with the transforms that draw at random."""
        transform = self.train_transform
        return Batches(
            self.select("train"), transform, batch_size=batch_size, device=device, fixed=not transform.random
        )

    def batches(self, decoded: DecodedPictures, *, batch_size: int, device: torch.device) -> Batches:
        """Return pictures as batches without anything random."""
        return Batches(decoded, self.transform, batch_size=batch_size, device=device, fixed=True)


def prepare_task(commands: TrainCommands, *, base_dir: Path, probe: bool = False) -> Task:
    """Find and decode the pictures of the commands.

    Args:
        commands: What to prepare.
        base_dir: What relative paths are relative to.
        probe: Decode one picture only, to know the shapes.

    Raises:
        PicturesError: If the pictures do not make a task.
        BadInputError: If an operation or transform is refused.
    """
    image_ops = build_image_ops(commands.image_ops)
    transform = build_transform(commands.transform, training=False)
    train_transform = build_transform(commands.transform, training=True)
    found = find_pictures(commands.data, commands.label_names, base_dir=base_dir, validation=commands.validation)
    _check_n_labels(commands, found)
    chosen = found.pictures[:1] if probe else found.pictures
    decoded = decode_pictures(chosen, image_ops)
    return Task(found, decoded, transform, train_transform, read_input_shape(decoded, transform))


def _check_n_labels(commands: TrainCommands, found: PictureSet) -> None:
    if commands.n_labels and commands.n_labels != len(found.label_names):
        message = f"says {commands.n_labels}; the data has {len(found.label_names)} labels"
        raise CommandsError([Fault("n_labels", message)])


def prepare_model(
    commands: TrainCommands, *, n_labels: int, input_shape: tuple[int, int, int], base_dir: Path
) -> nn.Module:
    """Build the model, its weights drawn with the commands' seed or read from ``model.weights``.

    Raises:
        CommandsError: If the model cannot be built for these shapes.
        WeightsError: If the weights file is refused.
    """
    torch.manual_seed(commands.seed)
    model = build_model(commands.model, n_labels=n_labels, input_shape=input_shape)
    weights = commands.model.get("weights")
    if weights:
        load_backbone(model, read_weights(base_dir / weights), source=str(weights))
    return model


def prepare_criterion(commands: TrainCommands, *, n_labels: int) -> Criterion:
    """Build the criterion with the form of outputs and targets that the commands ask for.

    Raises:
        BadInputError: If the loss cannot be used so.
    """
    targets = build_target_transform(commands.target_transform, n_labels=n_labels)
    return build_criterion(commands.criterion, n_labels=n_labels, outputs=output_form(commands.model), targets=targets)
