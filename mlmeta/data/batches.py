"""Pictures to batches on the device: keep what can be kept, transform the rest.

Where the transform draws nothing at random its tensors are kept as far as they fit the budget, and a batch is then a
slice of them; beyond that, pixels from the picture cache become numbers a whole batch at a time, on the device. Where
the transform draws at random, all of it that is the same every time is done once, and what follows the conversion to
numbers is done for a whole batch. Draws come from torch's global generator, in the pictures' order and in the thread
that asks for the batch, so that no thread changes them; what is decoded again is decoded a batch ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mlmeta.data.decoding import BUDGET_BYTES, DecodedPictures, count_bytes
from mlmeta.data.pictures import Picture
from mlmeta.data.sources import quiet_pillow
from mlmeta.data.transforms import Stages, Transform
from mlmeta.errors import BadInputError

# What tensors of cached pictures may take: the pixels are at hand, and to make numbers of them costs a step one or
# two hundredths, so that more memory is not worth it.
CACHED_BUDGET_BYTES = 2**29
# Made at once while they are put by: so many pictures, or so many bytes.
_CHUNK = 64
_CHUNK_BYTES = 2**24


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
        channels_last: Whether batches lie in memory with a pixel's channels side by side (see `use_channels_last`);
            their shape and numbers are the same.

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
        channels_last: bool = False,
    ) -> None:
        self.decoded = decoded
        self.labels = decoded.labels.to(device)
        self.batch_size = batch_size
        self.device = device
        self.channels_last = channels_last
        self._stages: Stages = transform.split()
        self._first: tuple[Picture, torch.Size] | None = None
        self._prepared: dict[int, Image.Image] = {}
        self._fixed: Tensor | None = None
        with quiet_pillow():
            if fixed and len(self):
                self._fixed = self._keep_tensors(budget_bytes)
            elif self._stages.before:
                self._keep_prepared(budget_bytes)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.decoded.pictures)

    @property
    def n_batches(self) -> int:
        """The number of batches of an epoch."""
        return count_batches(len(self), self.batch_size)

    def _keep_tensors(self, budget_bytes: int) -> Tensor | None:
        """Return all tensors as they lie in a batch's memory, or None where they do not fit."""
        first = self._arrange(self._make_tensors([0]))
        if self.decoded.rows is not None and self._stages.is_elementwise:
            budget_bytes = min(budget_bytes, CACHED_BUDGET_BYTES)
        if first.numel() * first.element_size() * len(self) > budget_bytes:
            return None
        kept = first.new_empty((len(self), *first.shape[1:]))
        n_at_once = max(1, min(_CHUNK, _CHUNK_BYTES // max(1, first.nbytes)))
        for start in range(0, len(self), n_at_once):
            indices = range(start, min(start + n_at_once, len(self)))
            kept[start : indices.stop] = self._arrange(self._make_tensors(indices))
        return kept

    def _arrange(self, batch: Tensor) -> Tensor:
        """Return (…, channels, height, width) as it shall lie in memory, contiguous."""
        return (batch.movedim(-3, -1) if self.channels_last else batch).contiguous()

    def _view(self, arranged: Tensor) -> Tensor:
        """Return what `_arrange` gave in its old shape; nothing is moved."""
        return arranged.movedim(-1, -3) if self.channels_last else arranged

    def _keep_prepared(self, budget_bytes: int) -> None:
        n_bytes = 0
        for start in range(0, len(self), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(self)))
            for index, image in zip(indices, self._prepare(indices), strict=True):
                n_bytes += count_bytes(image)
                if n_bytes > budget_bytes:
                    return
                self._prepared[index] = image

    def _prepare(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return pictures after what the transform does alike every time."""
        missing = [index for index in indices if index not in self._prepared]
        images = self.decoded.load(missing)
        made = {index: self._stages.prepare(image) for index, image in zip(missing, images, strict=True)}
        return [self._prepared.get(index) or made[index] for index in indices]

    def _make_tensors(self, indices: Sequence[int], images: Sequence[Image.Image] | None = None) -> Tensor:
        """Return pictures (n, channels, height, width) or their crops (n, crops, …) on the device.

        Args:
            indices: Which.
            images: What `_prepare` gave for them, where that was called ahead.
        """
        pixels = self.decoded.stack(indices) if self._stages.is_elementwise else None
        if pixels is not None:
            return self._stages.finish(self._move(torch.from_numpy(pixels)).permute(0, 3, 1, 2))
        drawn = [self._stages.draw(image) for image in images or self._prepare(indices)]
        for index, tensor in zip(indices, drawn, strict=True):
            self._check_shape(self.decoded.pictures[index], tensor.shape)
        if len({tensor.dtype for tensor in drawn}) > 1:
            return torch.cat([self._stages.finish(tensor[None]) for tensor in drawn]).to(self.device)
        return self._stages.finish(torch.stack(drawn).to(self.device))

    def _move(self, pixels: Tensor) -> Tensor:
        """Return pixels on the device; to CUDA while the step before is still being computed."""
        if self.device.type == "cuda":
            return pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.to(self.device)

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
        chunks = self._split(order)
        for chunk, images in zip(chunks, self._prepare_ahead(chunks), strict=True):
            yield self._gather(chunk, images), self.labels[chunk.to(self.device)]

    def _prepare_ahead(self, chunks: Sequence[Tensor]) -> Iterator[list[Image.Image] | None]:
        """Yield each batch's prepared pictures, made while the batch before is in use; None where all is at hand."""
        if self._fixed is not None or self.decoded.at_hand or not chunks:
            yield from [None] * len(chunks)
            return
        with quiet_pillow(), ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self._prepare, chunks[0].tolist())
            for chunk in chunks[1:]:
                images = coming.result()
                coming = thread.submit(self._prepare, chunk.tolist())
                yield images
            yield coming.result()

    def _gather(self, chunk: Tensor, images: Sequence[Image.Image] | None) -> Tensor:
        """Return pictures of their own, so that a model that works in place changes none that is kept."""
        if self._fixed is not None:
            return self._view(self._fixed.index_select(0, chunk.to(self.device)))
        return self._view(self._arrange(self._make_tensors(chunk.tolist(), images)))


def count_batches(n_pictures: int, batch_size: int) -> int:
    """Return the batches of an epoch; a picture that would be one by itself joins the batch before it."""
    n_full, rest = divmod(n_pictures, batch_size)
    return n_full + (rest > 1 or (rest == 1 and n_full == 0))


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


def use_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Return whether a model trains faster on batches with ``channels_last=True`` (see `Batches`).

    So it does on the CPU where it has convolutions of pictures: measured on two cores, a step took 0.60 to 0.73 of the
    time for small networks of plain convolutions, and 0.9 to 1.0 of it for resnet18 and for pictures of 8×8. Sums are
    taken in another order than in the usual layout, so that losses differ: from the last digits at first to some
    ten-thousandths after an epoch or two. The same seed gives the same losses either way.
    """
    return device.type == "cpu" and any(isinstance(module, nn.Conv2d) for module in model.modules())


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
