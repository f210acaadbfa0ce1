"""Pictures to batches on the device: decode once, keep, transform.

The picture operations are the same in every epoch, so their results are kept; where the transform draws nothing at
random its tensors are kept instead, and a batch is then a row of slices. Where it does, all of it that is the same
every time is done once, and what follows the conversion to numbers is done for a whole batch. What does not fit the
budget is decoded when it is wanted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mlmeta.errors import BadInputError, PicturesError
from mlmeta.picture_files import DAMAGED, quiet_pillow
from mlmeta.pictures import Picture
from mlmeta.transforms import Stages, Transform

# What decoded pictures, or their tensors, may take of the memory; beyond it they are made when wanted.
BUDGET_BYTES = 2 * 2**30
# More than this share of bad pictures is a fault of the data, not of a picture.
MAX_SKIPPED_SHARE = 0.2
_WORKERS = min(16, (os.cpu_count() or 1) + 2)
_CHUNK = 64

ImageOp = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that was left out, and why."""

    id: str
    reason: str


@dataclass
class DecodedPictures:
    """Pictures after the picture operations, in their order; decoded once and kept while they fit the budget.

    The pictures' ids differ, as `find_pictures` sees to.
    """

    pictures: list[Picture]
    image_ops: ImageOp
    skipped: list[SkippedPicture] = field(default_factory=list)
    _kept: dict[str, Image.Image] = field(default_factory=dict)

    def image(self, index: int) -> Image.Image:
        """Return picture `index` after the picture operations; it must not be changed in place.

        Raises:
            PicturesError: If it has become unreadable since it was first decoded.
        """
        return self.images([index])[0]

    def images(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return some pictures as `image` does; those that are not kept are decoded in threads."""
        wanted = [self.pictures[index] for index in indices]
        missing = [picture for picture in wanted if picture.id not in self._kept]
        made = {}
        for picture, result in _decode_all(missing, self.image_ops):
            if isinstance(result, SkippedPicture):
                raise PicturesError(f"data: {result.id} can no longer be read: {result.reason}")
            made[picture.id] = result
        return [self._kept.get(picture.id) or made[picture.id] for picture in wanted]

    def array(self, index: int) -> npt.NDArray[np.uint8]:
        """Return picture `index` as uint8 (height, width, channels), whatever its mode.

        Modes L, RGB and RGBA keep their channels; 1, I, I;16 and F become one channel, 16 bits scaled to 8; all
        others become RGB.
        """
        image = self.image(index)
        if image.mode.startswith("I"):
            pixels = (np.asarray(image).clip(0, 65_535) // 257).astype(np.uint8)
        else:
            pixels = np.asarray(_convert_to_8_bit(image))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def select(self, chosen: Sequence[Picture]) -> DecodedPictures:
        """Return some of these pictures, sharing what is kept."""
        bad = {skipped.id for skipped in self.skipped}
        return DecodedPictures([p for p in chosen if p.id not in bad], self.image_ops, [], self._kept)

    @property
    def arrays(self) -> Sequence[npt.NDArray[np.uint8]]:
        """All pictures as `array` gives them, each made when it is asked for."""
        return _Arrays(self)

    @property
    def labels(self) -> Tensor:
        """The class indices, int64 of shape (n,)."""
        return torch.tensor([picture.label for picture in self.pictures], dtype=torch.int64)


def _convert_to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB", "RGBA", "LAB"):
        return image
    if image.mode in ("La", "RGBa"):
        # Pillow takes the premultiplied modes back to plain ones only.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("L" if image.mode in ("1", "F") else "RGB")


class _Arrays(Sequence[npt.NDArray[np.uint8]]):
    def __init__(self, decoded: DecodedPictures) -> None:
        self._decoded = decoded

    def __len__(self) -> int:
        return len(self._decoded.pictures)

    @overload
    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> list[npt.NDArray[np.uint8]]: ...

    def __getitem__(self, index: int | slice) -> npt.NDArray[np.uint8] | list[npt.NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._decoded.array(index)


def decode_pictures(
    pictures: Sequence[Picture], image_ops: ImageOp, *, budget_bytes: int = BUDGET_BYTES
) -> DecodedPictures:
    """Decode all pictures once, leave out the bad ones, and keep what fits the budget.

    Raises:
        PicturesError: If more than a fifth of the pictures cannot be decoded; names some, with reasons.
        BadInputError: If a picture operation is refused.
    """
    decoded = DecodedPictures([], image_ops)
    n_bytes = 0
    for picture, result in _decode_all(pictures, image_ops):
        if isinstance(result, SkippedPicture):
            decoded.skipped.append(result)
            continue
        decoded.pictures.append(picture)
        n_bytes += _count_bytes(result)
        if n_bytes <= budget_bytes:
            decoded._kept[picture.id] = result
    if len(decoded.skipped) > MAX_SKIPPED_SHARE * len(pictures):
        raise _too_many_skipped(decoded.skipped, len(pictures))
    return decoded


def decode_first(pictures: Sequence[Picture], image_ops: ImageOp) -> DecodedPictures:
    """Decode the first picture that can be decoded, and no more.

    Raises:
        PicturesError: If none can be.
        BadInputError: If a picture operation is refused.
    """
    skipped: list[SkippedPicture] = []
    for picture in pictures:
        for _, result in _decode_all([picture], image_ops):
            if not isinstance(result, SkippedPicture):
                return DecodedPictures([picture], image_ops, skipped, {picture.id: result})
            skipped.append(result)
    raise _too_many_skipped(skipped, len(pictures))


def _too_many_skipped(skipped: Sequence[SkippedPicture], n_pictures: int) -> PicturesError:
    shown = "; ".join(f"{one.id}: {one.reason}" for one in skipped[:3])
    return PicturesError(f"data: {len(skipped)} of {n_pictures} pictures cannot be read: {shown}")


def _count_bytes(image: Image.Image) -> int:
    """Return what Pillow takes for a picture's pixels: 4 bytes each, but for the modes of one or two bytes."""
    small = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
    return image.width * image.height * small.get(image.mode, 4)


def _decode_all(
    pictures: Sequence[Picture], image_ops: ImageOp
) -> Iterator[tuple[Picture, Image.Image | SkippedPicture]]:
    """Yield every picture with what became of it, in order; a few pictures ahead are decoded in threads."""
    if len(pictures) < 2:
        with quiet_pillow():
            made = [_decode(picture, image_ops) for picture in pictures]
        yield from zip(pictures, made, strict=True)
        return
    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, len(pictures), _CHUNK):
            chunk = pictures[start : start + _CHUNK]
            with quiet_pillow():
                results = list(pool.map(lambda picture: _decode(picture, image_ops), chunk))
            yield from zip(chunk, results, strict=True)


def _decode(picture: Picture, image_ops: ImageOp) -> Image.Image | SkippedPicture:
    try:
        image = picture.open()
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200]
        return SkippedPicture(picture.id, reason or type(error).__name__)
    return image_ops(image)


class Batches:
    """One part's pictures as batches on the device.

    Args:
        decoded: The pictures.
        transform: PIL image → tensor (channels, height, width) or (crops, channels, height, width).
        batch_size: Pictures a batch. A last batch of a single picture joins the one before it, since batch
            normalisation cannot train on one; not where one a batch is what was asked for.
        device: Where batches are put.
        fixed: Whether the transform always gives the same, so that its tensors may be kept.
        budget_bytes: What the kept tensors may take, or the kept pictures of a transform that draws at random.

    Raises:
        BadInputError: If the pictures do not come out in one shape; of a transform that draws at random, when
            the batches are made.
    """

    def __init__(
        self,
        decoded: DecodedPictures,
        transform: Transform,
        *,
        batch_size: int,
        device: torch.device,
        fixed: bool,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self.decoded = decoded
        self.labels = decoded.labels.to(device)
        self.batch_size = batch_size
        self.device = device
        self._stages: Stages = transform.split()
        self._first: tuple[Picture, torch.Size] | None = None
        self._prepared: dict[int, Image.Image] = {}
        self._fixed = self._keep_tensors(budget_bytes) if fixed and len(self) else None
        if not fixed and self._stages.before:
            self._keep_prepared(budget_bytes)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.decoded.pictures)

    @property
    def n_batches(self) -> int:
        """The number of batches of an epoch."""
        return len(self._split(torch.arange(len(self))))

    def _keep_tensors(self, budget_bytes: int) -> Tensor | None:
        first = self._make_tensors([0])
        if first.numel() * first.element_size() * len(self) > budget_bytes:
            return None
        kept = first.new_empty((len(self), *first.shape[1:]))
        for start in range(0, len(self), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(self)))
            kept[start : indices.stop] = self._make_tensors(indices)
        return kept.to(self.device)

    def _keep_prepared(self, budget_bytes: int) -> None:
        n_bytes = 0
        for start in range(0, len(self), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(self)))
            for index, image in zip(indices, self._prepare(indices), strict=True):
                n_bytes += _count_bytes(image)
                if n_bytes > budget_bytes:
                    return
                self._prepared[index] = image

    def _prepare(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return pictures after what the transform does alike every time."""
        missing = [index for index in indices if index not in self._prepared]
        images = self.decoded.images(missing)
        made = {index: self._stages.prepare(image) for index, image in zip(missing, images, strict=True)}
        return [self._prepared.get(index) or made[index] for index in indices]

    def _make_tensors(self, indices: Sequence[int]) -> Tensor:
        """Return pictures (n, channels, height, width) or their crops (n, crops, …) on the CPU."""
        drawn = [self._stages.draw(image) for image in self._prepare(indices)]
        for index, tensor in zip(indices, drawn, strict=True):
            self._check_shape(self.decoded.pictures[index], tensor.shape)
        if len({tensor.dtype for tensor in drawn}) > 1:
            return torch.cat([self._stages.finish(tensor[None]) for tensor in drawn])
        return self._stages.finish(torch.stack(drawn))

    def _check_shape(self, picture: Picture, shape: torch.Size) -> None:
        if self._first is None:
            self._first = picture, shape
        elif shape != self._first[1]:
            raise different_shapes(picture, shape, *self._first)

    def _split(self, order: Tensor) -> list[Tensor]:
        chunks = list(torch.split(order, self.batch_size)) if len(order) else []
        if len(chunks) > 1 and len(chunks[-1]) == 1 and self.batch_size > 1:
            last = chunks.pop()
            chunks[-1] = torch.cat([chunks[-1], last])
        return chunks

    def shuffled(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pictures, labels) of every batch, in an order that `seed` decides."""
        generator = torch.Generator().manual_seed(seed)
        yield from self._batches(torch.randperm(len(self), generator=generator))

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pictures, labels) of every batch, in the pictures' order."""
        yield from self._batches(torch.arange(len(self)))

    def _batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for chunk in self._split(order):
            yield self._gather(chunk), self.labels[chunk.to(self.device)]

    def _gather(self, chunk: Tensor) -> Tensor:
        """Return pictures of their own, so that a model that works in place changes none that is kept."""
        if self._fixed is not None:
            return self._fixed[chunk.to(self.device)]
        return self._make_tensors(chunk.tolist()).to(self.device)


def different_shapes(picture: Picture, shape: Sequence[int], other: Picture, expected: Sequence[int]) -> BadInputError:
    """Return the error for pictures that cannot stand in one batch."""
    return BadInputError(
        f"image_ops: pictures must come out in one shape: {picture.id} gives {tuple(shape)}, {other.id} gives "
        f'{tuple(expected)}; add {{"resize": {{"size": [width, height]}}}} and {{"convert": {{"mode": "RGB"}}}}'
    )


def choose_device() -> torch.device:
    """Return the fastest device of this machine: CUDA, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def read_input_shape(decoded: DecodedPictures, transform: Any) -> tuple[int, int, int]:
    """Return (channels, height, width) of the first picture as the model gets it; crops are not counted.

    Raises:
        BadInputError: If the transform does not give a picture's tensor in float32.
    """
    tensor = transform(decoded.image(0))
    shape = tuple(tensor.shape)
    if len(shape) not in (3, 4):
        raise BadInputError(f"transform: gives a tensor of shape {shape}; (channels, height, width) is needed")
    if tensor.dtype != torch.float32:
        raise BadInputError(
            f"transform: gives {tensor.dtype}, a model needs torch.float32; use ToTensor, or end with "
            '{"ConvertImageDtype": {"dtype": "float32"}}'
        )
    channels, height, width = shape[-3:]
    return channels, height, width
