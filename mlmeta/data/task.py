"""From commands to what a training or a test runs on: pictures, their shape, the model, the criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlmeta.commands.documents import Data, SampleData, TorchvisionData, TrainCommands
from mlmeta.data.batches import Batches, read_input_shape
from mlmeta.data.decoding import DecodedPictures, decode_first, decode_pictures
from mlmeta.data.image_ops import build_image_ops
from mlmeta.data.metafeatures import describe_pictures, remember_features
from mlmeta.data.picture_cache import find_slot
from mlmeta.data.pictures import PictureSet, check_training_pictures, find_pictures
from mlmeta.data.roots import confined_copy
from mlmeta.data.sources import Part
from mlmeta.data.transforms import Transform, build_target_transform, build_transform
from mlmeta.errors import BadInputError, CommandsError, Fault
from mlmeta.models.criteria import Criterion
from mlmeta.models.shapes import refuse_batch, trace_layers
from mlmeta.models.weights import load_backbone, read_weights
from mlmeta.spec_builder import build_criterion, build_model, output_form


@dataclass
class Task:
    """The pictures of the commands, decoded, and how they become tensors.

    Attributes:
        input_shape: (channels, height, width) of a picture as the model gets it.
        image_ops: What was done to the pictures when they were decoded, and by which reader, plain JSON.
    """

    pictures: PictureSet
    decoded: DecodedPictures
    transform: Transform
    train_transform: Transform
    input_shape: tuple[int, int, int]
    image_ops: Sequence[Any]

    @property
    def n_labels(self) -> int:
        """Number of labels."""
        return len(self.pictures.label_names)

    def select(self, part: Part) -> DecodedPictures:
        """Return the readable pictures of one part."""
        return self.decoded.select(self.pictures.select(part))

    def training_batches(self, *, batch_size: int, device: torch.device, channels_last: bool = False) -> Batches:
        """Return the training part with the transforms that draw at random."""
        transform = self.train_transform
        return Batches(
            self.select("train"), transform,
            batch_size=batch_size, device=device, fixed=not transform.random, channels_last=channels_last,
        )  # fmt: skip

    def batches(
        self, decoded: DecodedPictures, *, batch_size: int, device: torch.device, channels_last: bool = False
    ) -> Batches:
        """Return pictures as batches without anything random."""
        return Batches(
            decoded, self.transform, batch_size=batch_size, device=device, fixed=True, channels_last=channels_last
        )


def prepare_task(commands: TrainCommands, *, base_dir: Path, probe: bool = False, training: bool = True) -> Task:
    """Find and decode the pictures of the commands.

    Args:
        commands: What to prepare.
        base_dir: What relative paths are relative to.
        probe: Decode one picture only, to know the shapes.
        training: Whether to train on it: then every label needs a training picture that can be read, and the
            random transforms must keep the shape.

    Raises:
        PicturesError: If the pictures do not make a task.
        BadInputError: If an operation or transform is refused.
    """
    # What the commands say is refused before any picture is read.
    image_ops = build_image_ops(commands.image_ops)
    transform = build_transform(commands.transform, training=False)
    train_transform = build_transform(commands.transform, training=True)
    found = find_pictures(
        commands.data, commands.label_names, base_dir=base_dir, validation=commands.validation, training=training
    )
    _check_n_labels(commands, found)
    decoded = decode_first(found.pictures, image_ops)
    input_shape = read_input_shape(decoded, transform)
    _check_batch(commands, found, input_shape, training=training)
    if not probe:
        digests = [picture.digest for picture in found.pictures]
        slot = find_slot(digests, image_ops, reader=_name_reader(commands.data), source=found.source)
        decoded = decode_pictures(found.pictures, image_ops, slot=slot)
    if training and not probe:
        # Those that cannot be read are left out by now.
        check_training_pictures(decoded.pictures, found.label_names)
    if training:
        _check_training_shape(decoded, train_transform, input_shape)
    described = [_name_reader(commands.data), *commands.image_ops]
    return Task(found, decoded, transform, train_transform, input_shape, described)


def _name_reader(data: Data) -> str:
    """Return what decides, beside a picture's content, how it is decoded; GTSRB's files are read in their own way."""
    if isinstance(data, TorchvisionData):
        return f"torchvision {data.name}"
    return "sample" if isinstance(data, SampleData) else "file"


def _check_n_labels(commands: TrainCommands, found: PictureSet) -> None:
    if commands.n_labels and commands.n_labels != len(found.label_names):
        message = f"says {commands.n_labels}; the data has {len(found.label_names)} labels"
        raise CommandsError([Fault("n_labels", message)])


def _check_batch(
    commands: TrainCommands, found: PictureSet, input_shape: tuple[int, int, int], *, training: bool
) -> None:
    """Refuse a batch that the memory could not hold, before more than one picture is decoded."""
    kept_bytes = 0
    if training and (layers := commands.model.get("layers")):
        _, trace = trace_layers(layers, n_labels=len(found.label_names), input_shape=input_shape)
        kept_bytes = trace.kept_bytes
    n_pictures = len(found.select("train")) if training else len(found.pictures)
    refuse_batch(input_shape, min(commands.batch_size, n_pictures), kept_bytes=kept_bytes)


def _check_training_shape(decoded: DecodedPictures, transform: Transform, expected: tuple[int, int, int]) -> None:
    with torch.random.fork_rng(devices=()):
        shape = read_input_shape(decoded, transform)
    if shape != expected:
        raise BadInputError(
            f"transform: a picture comes out as {shape} in training and, without what draws at random, as {expected}; "
            "let the random transforms keep the size, or add a Resize after them"
        )


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
        with confined_copy(base_dir / weights) as file:
            load_backbone(model, read_weights(file), source=str(weights))
    return model


def prepare_criterion(commands: TrainCommands, *, n_labels: int) -> Criterion:
    """Build the criterion with the form of outputs and targets that the commands ask for.

    Raises:
        BadInputError: If the loss cannot be used so.
    """
    targets = build_target_transform(commands.target_transform, n_labels=n_labels)
    return build_criterion(commands.criterion, n_labels=n_labels, outputs=output_form(commands.model), targets=targets)


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
