"""torchvision transforms of the commands: the names of v1, the behaviour of v2.

A list runs in its order. A dict has no order of its own, so its keys run in the order of `SUPPORTED`: size,
flips and turns, colour, automatic augmentation, then ToTensor, then what works on tensors. Where no ToTensor
or PILToTensor is asked for, ToTensor is put at the end of the picture transforms.

Transforms that draw at random are for training only. With ``training=False``:

    RandomCrop                  CenterCrop to the same size, without padding
    RandomResizedCrop           Resize to exactly the same height and width
    RandomOrder                 its deterministic members, in the listed order
    every other random one      left out, with all of its members

A flip, grayscale, invert, posterize, solarize, sharpness, autocontrast or equalize with ``p`` 0 or 1 and a
GaussianBlur with one fixed sigma do not draw at random and stay.

ToTensor gives what v1 gave: 8-bit channels divided by 255, mode 1 as 0 and 1, modes I, I;16 and F unscaled.
It is always float32 here, and 16-bit values above 32,767 stay positive, where v1 let them wrap.

torchvision costs a start half a second, so that it is imported where another transform than ToTensor and Normalize is
asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mlmeta.commands.catalog import find_entry
from mlmeta.data.image_ops import REFUSALS, check_pixels, explain_refusal, read_numbers, refuse
from mlmeta.data.transform_plan import TO_TENSOR, Request, place_to_tensor, plan_transforms

Picture: TypeAlias = Image.Image | Tensor
_SEVERAL = frozenset({"FiveCrop", "TenCrop"})
_ELEMENTWISE = frozenset({"Normalize", "ConvertImageDtype"})


@dataclass(frozen=True)
class Step:
    """One transform that can be applied; applied to each crop where a picture has become several.

    Attributes:
        path: Where it stands in the commands.
        name: One of `SUPPORTED`.
        random: Whether it draws at random, from torch's global generator.
        apply: The transform of torchvision.
        arguments: Its arguments as they were read.
        given: What stood in the commands, for error text.
    """

    path: str
    name: str
    random: bool
    apply: Callable[[Picture], Any]
    arguments: Mapping[str, Any]
    given: Any

    def __call__(self, value: Any) -> Any:
        """Return the picture or tensor, or the tuple of crops, after this transform.

        Raises:
            BadInputError: If torchvision refuses it for this picture, or the result would be too large.
        """
        if not isinstance(value, tuple):
            return self._apply_to_one(value)
        results = [self._apply_to_one(crop) for crop in value]
        return tuple(crop for result in results for crop in (result if isinstance(result, tuple) else (result,)))

    def _apply_to_one(self, value: Picture) -> Any:
        n_pixels = _count_pixels(self.name, self.arguments, *_measure_picture(value))
        check_pixels(n_pixels, path=self.path, given=self.given)
        try:
            result = self.apply(value)
        except REFUSALS as error:
            raise explain_refusal(self.path, error, library="torchvision", given=self.given) from error
        if self.name == "Normalize" and result.shape != value.shape:  # type: ignore[union-attr]
            n_channels = value.shape[-3]  # type: ignore[union-attr]
            raise refuse(self.path, f"mean and std do not fit {n_channels} channels", came=self.given)
        return result


@dataclass(frozen=True)
class Transform:
    """All transforms of the commands: a PIL picture in, a tensor out. Can be pickled."""

    steps: tuple[Step, ...]

    @property
    def random(self) -> bool:
        """Whether the same picture may come out different the next time."""
        return any(step.random for step in self.steps)

    @property
    def crops(self) -> bool:
        """Whether one picture becomes several crops."""
        return any(step.name in _SEVERAL for step in self.steps)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a tensor of shape (channels, height, width), or (crops, channels, height, width).

        It is float32, with 8-bit pictures in 0..1 until a later transform changes that; PILToTensor
        alone leaves uint8.

        Raises:
            BadInputError: If torchvision refuses a transform for this picture.
        """
        value = _run_steps(self.steps, image)
        tensor: Tensor = torch.stack(value) if isinstance(value, tuple) else value
        return tensor

    def split(self) -> Stages:
        """Return the transform in three stages, so that a training need not do all of it for each picture again."""
        steps = self.steps
        at = _find_step(steps, lambda step: step.random or step.name in _SEVERAL or step.name in TO_TENSOR)
        to_tensor = _find_step(steps, lambda step: step.name in TO_TENSOR)
        is_float = to_tensor < len(steps) and isinstance(steps[to_tensor].apply, _ToFloatTensor)
        if is_float and all(step.name in _ELEMENTWISE for step in steps[to_tensor + 1 :]):
            return Stages(steps[:at], steps[at:to_tensor], steps[to_tensor + 1 :], whole=True)
        return Stages(steps[:at], steps[at:], (), whole=False)


@dataclass(frozen=True)
class Stages:
    """A transform in three stages: ``finish(torch.stack([draw(prepare(image)) for image in images]))``.

    This gives, to the last bit, the stacked results of the transform on each picture.

    Attributes:
        before: Steps that give the same picture each time.
        drawn: Steps that may draw at random, up to the tensor.
        after: Steps that do the same to each number of a channel.
        whole: Whether the 8-bit channels become float32 in `finish`, for a whole batch at once.
    """

    before: tuple[Step, ...]
    drawn: tuple[Step, ...]
    after: tuple[Step, ...]
    whole: bool

    @property
    def is_elementwise(self) -> bool:
        """Whether `finish` is all that is done to an 8-bit picture: ToTensor, and what works on each number."""
        return self.whole and not self.before and not self.drawn

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the picture after what is the same each time."""
        prepared: Image.Image = _run_steps(self.before, image)
        return prepared

    def draw(self, image: Image.Image) -> Tensor:
        """Return a prepared picture as a tensor (channels, height, width) or (crops, channels, height, width)."""
        value = _run_steps(self.drawn, image)
        if self.whole:
            value = tuple(map(_to_pixels, value)) if isinstance(value, tuple) else _to_pixels(value)
        tensor: Tensor = torch.stack(value) if isinstance(value, tuple) else value
        return tensor

    def finish(self, batch: Tensor) -> Tensor:
        """Return drawn pictures of one shape and dtype, stacked along a first dimension, as the model gets them."""
        tensor: Tensor = _run_steps(self.after, _to_float(batch) if self.whole else batch)
        return tensor


def _run_steps(steps: Iterable[Step], value: Any) -> Any:
    for step in steps:
        value = step(value)
    return value


def _find_step(steps: Sequence[Step], is_it: Callable[[Step], bool]) -> int:
    return next((index for index, step in enumerate(steps) if is_it(step)), len(steps))


@dataclass(frozen=True)
class _ToFloatTensor:
    """v1's ToTensor; a tensor that comes is scaled to float32 in 0..1 if it holds integers."""

    def __call__(self, value: Picture) -> Tensor:
        if isinstance(value, Tensor):
            from torchvision.transforms.v2 import functional

            scaled: Tensor = functional.to_dtype(value, torch.float32, scale=True)
            return scaled
        return _to_float(_to_pixels(value))


def _to_pixels(image: Image.Image) -> Tensor:
    """Return a picture's numbers as Pillow has them, (channels, height, width)."""
    pixels = torch.as_tensor(np.array(image))
    return pixels.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1)


def _to_float(pixels: Tensor) -> Tensor:
    tensor = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return tensor.div_(255) if pixels.dtype == torch.uint8 else tensor


@dataclass(frozen=True)
class _Normalize:
    """torchvision's Normalize, done here to float32 pictures."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, value: Any) -> Tensor:
        if value.dtype != torch.float32:
            normalized: Tensor = _load("Normalize")(self.mean, self.std)(value)
            return normalized
        rows = (self.mean, self.std)
        mean, std = (torch.tensor(row, dtype=value.dtype, device=value.device).view(-1, 1, 1) for row in rows)
        normalized = (value - mean).div_(std)
        return normalized


def _make_normalize(*, mean: Any = None, std: Any = None, **others: Any) -> _Normalize | None:
    """Return it for two rows of numbers, none to be divided by 0; of anything else torchvision says what is wrong."""
    for row in (mean, std):
        if others or not isinstance(row, tuple) or not row or not {*map(type, row)} <= {int, float}:
            return None
    return _Normalize(mean, std) if all(std) else None


def _load(name: str) -> Callable[..., Any]:
    made: Callable[..., Any] = find_entry("transform", name).load()
    return made


def build_transform(transform: Mapping[str, Any] | Sequence[Any] | None, *, training: bool = True) -> Transform:
    """Return the transforms of the commands as one function from PIL picture to tensor.

    Args:
        transform: A dict of names and arguments, or a list of such dicts of one name, or of names; None for
            ToTensor alone.
        training: Whether random transforms draw; otherwise only their deterministic part is left (the table
            is in the module's docstring).

    Raises:
        BadInputError: If the form, a name or a value cannot be used, or a transform that works on tensors
            stands before the ToTensor of its list.
    """
    requests = plan_transforms({} if transform is None else transform, path="transform", training=training)
    return Transform(tuple(_build_step(request) for request in place_to_tensor(requests, path="transform")))


def build_target_transform(
    target_transform: Mapping[str, Any] | Sequence[Any] | None, *, n_labels: int
) -> Tensor | None:
    """Return what the target of each label becomes, or None where it stays one-hot.

    Every label's one-hot column, float32 of shape (1, n_labels, 1), goes through the transforms once.

    Args:
        target_transform: As in `build_transform`; ToTensor and PILToTensor add nothing here.
        n_labels: How many labels there are.

    Returns:
        A float32 matrix of shape (n_labels, n_labels): row i is the target of label i.

    Raises:
        BadInputError: If a transform draws at random, changes the shape, or is refused.
    """
    listing = {} if target_transform is None else target_transform
    planned = plan_transforms(listing, path="target_transform", training=True)
    requests = [request for request in planned if request.name not in TO_TENSOR]
    if not requests:
        return None
    for request in requests:
        if request.random:
            raise refuse(request.path, "draws at random, and a label's target must be fixed", came=request.given)
    check_pixels(n_labels**2, path="target_transform", given=target_transform)
    steps = [_build_step(request) for request in requests]
    columns = torch.eye(n_labels).reshape(n_labels, 1, n_labels, 1)
    return torch.stack([_transform_column(column, steps) for column in columns]).reshape(n_labels, n_labels)


def _transform_column(column: Tensor, steps: Iterable[Step]) -> Tensor:
    value: Any = column
    for step in steps:
        value = step(value)
        if not isinstance(value, Tensor) or value.shape != column.shape:
            raise refuse(step.path, "must leave a label's target one column of n_labels numbers", came=step.given)
    target: Tensor = value.to(torch.float32)
    return target


def _build_step(request: Request) -> Step:
    return Step(
        path=request.path,
        name=request.name,
        random=request.random,
        apply=_make(request),
        arguments={} if request.members else request.arguments,
        given=request.given,
    )


def _make(request: Request) -> Callable[[Picture], Any]:
    """Return the object of torchvision that a request asks for."""
    if request.name == "ToTensor" and not request.arguments:
        return _ToFloatTensor()
    if request.name == "Normalize" and (normalize := _make_normalize(**request.arguments)):
        return normalize
    arguments = dict(request.arguments)
    if request.members:
        arguments["transforms"] = [_build_step(member) for member in request.members]
    try:
        made: Callable[[Picture], Any] = _load(request.name)(**arguments)
    except REFUSALS as error:
        raise explain_refusal(request.path, error, library="torchvision", given=request.given) from error
    return made


def _measure_picture(value: Picture) -> tuple[float, float]:
    if isinstance(value, Tensor):
        return value.shape[-1], value.shape[-2]
    return value.size


def _count_pixels(name: str, arguments: Mapping[str, Any], width: float, height: float) -> float:
    """Return the most pixels that a transform makes of one picture; malformed values count nothing."""
    if name == "Resize":
        return _count_resized(arguments, width, height)
    if name == "RandomRotation" and arguments.get("expand"):
        return (width + height) ** 2 / 2
    left, top, right, bottom = _read_row(arguments.get("padding"), 4)
    crop_height, crop_width = _read_row(arguments.get("size"), 2)
    return max((width + left + right) * (height + top + bottom), crop_height * crop_width)


def _read_row(value: Any, count: int) -> tuple[float, ...]:
    """Return `count` numbers from one number, or from a shorter row that is repeated."""
    row = value if isinstance(value, tuple) and value else (value,)
    return read_numbers(row * (count // len(row)), count)


def _count_resized(arguments: Mapping[str, Any], width: float, height: float) -> float:
    size, (max_size,) = arguments.get("size"), read_numbers((arguments.get("max_size"),), 1)
    if isinstance(size, tuple) and len(size) == 2:
        new_height, new_width = read_numbers(size, 2)
        return new_height * new_width
    (edge,) = read_numbers(size if isinstance(size, tuple) else (size,), 1)
    if not edge:
        return max_size**2
    n_pixels = edge * edge * max(width, height) / max(1, min(width, height))
    return min(n_pixels, max_size**2) if max_size else n_pixels
