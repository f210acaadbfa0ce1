"""From commands to what a training or a test runs on: the pictures, decoded, and what they say of the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image

from mlmeta.commands.documents import Data, SampleData, TorchvisionData, TrainCommands
from mlmeta.data.account import Account, Item, Rank, Warned, find_warnings
from mlmeta.data.batches import Batches, read_input_shape
from mlmeta.data.decoding import DecodedPictures, decode_first, decode_pictures
from mlmeta.data.image_ops import ImageOps, build_image_ops
from mlmeta.data.metafeatures import describe_pictures, remember_features
from mlmeta.data.picture_cache import find_slot
from mlmeta.data.pictures import PictureSet, check_training_pictures, find_pictures
from mlmeta.data.splits import Part
from mlmeta.data.transforms import Transform, build_transform
from mlmeta.errors import BadInputError, CommandsError, Fault

CheckShape = Callable[[PictureSet, tuple[int, int, int]], None]
# More files than this are not decoded to be checked: of those, the first is.
MOST_CHECKED = 2_000
# As many pictures are looked at to see whether all come out equal, or of one colour.
_LOOKED_AT = 64


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
    is_probe: bool = False

    def account(self, *, training: bool = True) -> Account:
        """Return what became of all that was looked at; `training` as in `mlmeta.data.account.find_warnings`."""
        found, names = self.pictures, self.pictures.label_names
        bad = {one.id: one for one in self.decoded.skipped}
        pictures = [
            bad[p.id].item(found.kind, names[p.label]) if p.id in bad
            else Item(found.kind, p.id, label=names[p.label], part=p.part)
            for p in found.pictures
        ]  # fmt: skip
        items = (*pictures, *found.items)
        digests = {picture.id: picture.digest for picture in found.pictures}
        warnings = [*found.warnings, *find_warnings(items, names, digests=digests, training=training)]
        if not self.is_probe:
            warnings += _warn_of_pixels(self.decoded)
        origin = found.source + _describe_drawn(found)
        if self.is_probe and found.kind != "picture":
            origin += "; only the first picture was decoded"
        notices = _describe_changes(found, self.image_ops)
        return Account(names, items, tuple(sorted(warnings, key=lambda one: one.rank)), origin, notices)

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


def _describe_drawn(found: PictureSet) -> str:
    if not found.drawn:
        return ""
    return "; drawn of each label: " + ", ".join(f"{share:.0%} for {part}" for part, share in found.drawn)


def _describe_changes(found: PictureSet, image_ops: Sequence[Any]) -> tuple[str, ...]:
    """Return what is done to pictures that a reader would not expect."""
    lines = []
    if found.n_deep:
        lines.append(f"{found.n_deep:,} picture(s) of 16 bits or more are scaled to 8 bits")
    converts = [op["convert"] for op in image_ops if isinstance(op, dict) and isinstance(op.get("convert"), dict)]
    if found.n_transparent and converts:
        ground = converts[0].get("background", "white")
        lines.append(f"{found.n_transparent:,} picture(s) with transparency are laid on {ground}")
    return tuple(lines)


def _warn_of_pixels(decoded: DecodedPictures) -> Iterator[Warned]:
    n = len(decoded.pictures)
    arrays = [decoded.array(index) for index in range(0, n, max(1, n // _LOOKED_AT))]
    if len(arrays) < 2:
        return
    if all(array.shape == arrays[0].shape and (array == arrays[0]).all() for array in arrays):
        yield Warned(Rank.PIXELS, f"all of {len(arrays)} pictures that were looked at come out equal")
    elif all((array == array[0, 0]).all() for array in arrays):
        yield Warned(Rank.PIXELS, f"each of {len(arrays)} pictures that were looked at comes out in one colour")


class _UsableOps:
    """Picture operations that refuse a picture which the transforms would refuse, told once for each size and mode."""

    def __init__(self, image_ops: ImageOps, transforms: Sequence[Transform]) -> None:
        self._image_ops = image_ops
        self._transforms = transforms
        self._refused: dict[tuple[str, tuple[int, int]], str] = {}
        self._lock = Lock()

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the picture after the operations.

        Raises:
            BadInputError: If an operation or a transform refuses it.
        """
        made = self._image_ops(image)
        key = made.mode, made.size
        with self._lock:
            if key not in self._refused:
                self._refused[key] = self._try(made)
        if self._refused[key]:
            raise BadInputError(self._refused[key])
        return made

    def _try(self, image: Image.Image) -> str:
        try:
            with torch.random.fork_rng(devices=()):
                for transform in self._transforms:
                    transform(image)
        except BadInputError as error:
            return str(error)
        return ""


def prepare_task(
    commands: TrainCommands,
    *,
    base_dir: Path,
    probe: bool | None = False,
    training: bool = True,
    test_all: bool = False,
    check_shape: CheckShape | None = None,
) -> Task:
    """Find and decode the pictures of the commands.

    Args:
        commands: What to prepare.
        base_dir: What relative paths are relative to.
        probe: Decode one picture only, to know the shapes; None: where none can be damaged, or there are too many.
        test_all: As in `mlmeta.data.pictures.find_pictures`.
        training: Whether to train on it: then every label needs a training picture that can be read, and the
            random transforms must keep the shape.
        check_shape: Is told of the pictures and of the shape of one before the others are decoded, and may refuse.

    Raises:
        PicturesError: If the pictures do not make a task.
        BadInputError: If an operation or transform is refused.
    """
    # What the commands say is refused before any picture is read.
    image_ops = build_image_ops(commands.image_ops)
    transform = build_transform(commands.transform, training=False)
    train_transform = build_transform(commands.transform, training=True)
    found = find_pictures(
        commands.data, commands.label_names, base_dir=base_dir, validation=commands.validation, training=training,
        test_all=test_all,
    )  # fmt: skip
    _check_n_labels(commands, found)
    reader = _name_reader(commands.data)
    usable = _UsableOps(image_ops, (transform, train_transform) if training else (transform,))
    decoded = decode_first(found.pictures, usable)
    input_shape = read_input_shape(decoded, transform)
    if check_shape:
        check_shape(found, input_shape)
    if probe is None:
        probe = found.kind == "picture" or len(found.pictures) > MOST_CHECKED
    if not probe:
        slot = find_slot((one.digest for one in found.pictures), image_ops, reader=reader, source=found.source)
        decoded = decode_pictures(found.pictures, usable, slot=slot)
        if training:  # Those that cannot be read are left out by now.
            check_training_pictures(decoded.pictures, found.label_names)
    if training:
        _check_training_shape(decoded, train_transform, input_shape)
    return Task(found, decoded, transform, train_transform, input_shape, [reader, *commands.image_ops], probe)


def _check_n_labels(commands: TrainCommands, found: PictureSet) -> None:
    n_labels = len(found.label_names)
    if commands.n_labels not in (0, n_labels):
        raise CommandsError([Fault("n_labels", f"says {commands.n_labels}; the data has {n_labels} labels")])


def _name_reader(data: Data) -> str:
    """Return what decides, beside a picture's content, how it is decoded; GTSRB's files are read in their own way."""
    if isinstance(data, TorchvisionData):
        return f"torchvision {data.name}"
    return "sample" if isinstance(data, SampleData) else "file"


def _check_training_shape(decoded: DecodedPictures, transform: Transform, expected: tuple[int, int, int]) -> None:
    with torch.random.fork_rng(devices=()):
        shape = read_input_shape(decoded, transform)
    if shape != expected:
        raise BadInputError(
            f"transform: a picture comes out as {shape} in training and, without what draws at random, as {expected}; "
            "let the random transforms keep the size, or add a Resize after them"
        )


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
