"""Pictures to batches on the device: decode once, keep, transform.

The picture operations are the same in every epoch, so their results are kept; where the transform draws nothing at
random its tensors are kept instead, and a batch is then a row of slices. What does not fit the budget is decoded
when it is wanted.
"""

from __future__ import annotations

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
from mlmeta.pictures import Picture

# What decoded pictures, or their tensors, may take of the memory; beyond it they are made when wanted.
BUDGET_BYTES = 2 * 2**30
# More than this share of bad pictures is a fault of the data, not of a picture.
MAX_SKIPPED_SHARE = 0.2
_WORKERS = 4
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

ImageOp = Callable[[Image.Image], Image.Image]
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that was left out, and why."""

    id: str
    reason: str


@dataclass
class DecodedPictures:
    """Pictures after the picture operations, in their order; decoded once and kept while they fit the budget."""

    pictures: list[Picture]
    image_ops: ImageOp
    skipped: list[SkippedPicture] = field(default_factory=list)
    _kept: dict[str, Image.Image] = field(default_factory=dict)

    def image(self, index: int) -> Image.Image:
        """Return picture `index` after the picture operations."""
        picture = self.pictures[index]
        kept = self._kept.get(picture.id)
        return self.image_ops(picture.open()) if kept is None else kept

    def array(self, index: int) -> npt.NDArray[np.uint8]:
        """Return picture `index` as uint8 (height, width, channels), whatever its mode."""
        image = self.image(index)
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("L" if image.mode in ("1", "I;16", "I", "F") else "RGB")
        pixels = np.asarray(image)
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
        n_bytes += result.width * result.height * len(result.getbands())
        if n_bytes <= budget_bytes:
            decoded._kept[picture.id] = result
    if len(decoded.skipped) > MAX_SKIPPED_SHARE * len(pictures):
        shown = "; ".join(f"{skipped.id}: {skipped.reason}" for skipped in decoded.skipped[:3])
        raise PicturesError(f"data: {len(decoded.skipped)} of {len(pictures)} pictures cannot be read: {shown}")
    return decoded


def _decode_all(
    pictures: Sequence[Picture], image_ops: ImageOp
) -> Iterator[tuple[Picture, Image.Image | SkippedPicture]]:
    def decode(picture: Picture) -> Image.Image | SkippedPicture:
        try:
            image = picture.open()
        except _DAMAGED as error:
            return SkippedPicture(picture.id, " ".join(str(error).split())[:200] or type(error).__name__)
        return image_ops(image)

    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, len(pictures), 256):
            chunk = pictures[start : start + 256]
            yield from zip(chunk, pool.map(decode, chunk), strict=True)


class Batches:
    """One part's pictures as batches on the device.

    Args:
        decoded: The pictures.
        transform: PIL image → tensor (channels, height, width) or (crops, channels, height, width).
        batch_size: Pictures a batch. A last batch of a single picture joins the one before it, since batch
            normalisation cannot train on one.
        device: Where batches are put.
        fixed: Whether the transform always gives the same, so that its tensors may be kept.
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
        self._transform = transform
        self._fixed = self._keep_tensors(budget_bytes) if fixed and len(self) else None

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.decoded.pictures)

    @property
    def n_batches(self) -> int:
        """The number of batches of an epoch."""
        return len(self._split(torch.arange(len(self))))

    def _keep_tensors(self, budget_bytes: int) -> Tensor | None:
        first = self._tensor(0)
        if first.numel() * first.element_size() * len(self) > budget_bytes:
            return None
        kept = first.new_empty((len(self), *first.shape))
        for index in range(len(self)):
            kept[index] = self._tensor(index, shape=first.shape)
        return kept.to(self.device)

    def _tensor(self, index: int, *, shape: torch.Size | None = None) -> Tensor:
        tensor = self._transform(self.decoded.image(index))
        if shape is not None and tensor.shape != shape:
            raise different_shapes(self.decoded.pictures[index], tensor.shape, self.decoded.pictures[0], shape)
        return tensor

    def _split(self, order: Tensor) -> list[Tensor]:
        chunks = list(torch.split(order, self.batch_size))
        if len(chunks) > 1 and len(chunks[-1]) == 1:
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
        if self._fixed is not None:
            return self._fixed[chunk.to(self.device)]
        first = self._tensor(int(chunk[0]))
        rest = [self._tensor(int(index), shape=first.shape) for index in chunk[1:]]
        return torch.stack([first, *rest]).to(self.device)


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
        BadInputError: If the transform does not give a picture's tensor.
    """
    shape = tuple(transform(decoded.image(0)).shape)
    if len(shape) not in (3, 4):
        raise BadInputError(f"transform: gives a tensor of shape {shape}; (channels, height, width) is needed")
    channels, height, width = shape[-3:]
    return channels, height, width
