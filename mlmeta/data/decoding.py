"""Pictures after the picture operations: decoded once, in threads, and kept.

The picture operations are the same in every epoch and every attempt. Pictures of one shape and mode go into the
picture cache (`mlmeta.data.picture_cache`), from where they are memory-mapped; without it they are kept in memory while
they fit the budget, and those beyond it are decoded when they are wanted.

JPEG files are decoded at their full size. Pillow's ``draft`` would let the decoder shrink them first: measured on 60
photographs made 64×64, that took a third less time, once, and changed pixels by up to 23 of 255 even where a picture
of three times the wanted size was left to the resize. That is not worth having for what is decoded once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mlmeta.data.account import Item, Kind, Reason, check_bad, explain_bad
from mlmeta.data.picture_cache import MODES, CacheSlot, PictureRows, RowWriter
from mlmeta.data.pictures import Picture
from mlmeta.data.sources import DAMAGED, ChangedFileError, UnreadError, quiet_pillow
from mlmeta.errors import BadInputError, PicturesError, one_line

# What decoded pictures, or their tensors, may take of the memory; beyond it they are made when wanted.
BUDGET_BYTES = 2 * 2**30
# After so many pictures that an operation refused, and none that it took, it is the operation that is wrong.
_REFUSED_AT_FIRST = 20
_WORKERS = min(16, (os.cpu_count() or 1) + 2)
# Modes whose pixels `DecodedPictures.array` gives as they are.
_AS_THEY_ARE = ("L", "RGB", "RGBA", "LAB")

ImageOp = Callable[[Image.Image], Image.Image]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that was left out, and why.

    Attributes:
        reason: A `Reason`, a colon, and more.
        lasting: Whether it lies in the content; a file that vanished, or memory that was short, may be there again.
    """

    id: str
    reason: str
    lasting: bool = True

    def item(self, kind: Kind, label: str) -> Item:
        """Return what the account says of it."""
        reason, _, detail = self.reason.partition(": ")
        return Item(kind, self.id, Reason(reason), label, detail=detail, bad=True)


@dataclass
class DecodedPictures:
    """Pictures after the picture operations, in their order.

    The pictures' ids differ, as `find_pictures` sees to.

    Attributes:
        rows: The cached pixels of all of them; None where they are kept in memory or decoded again.
    """

    pictures: list[Picture]
    image_ops: ImageOp
    skipped: list[SkippedPicture] = field(default_factory=list)
    _kept: dict[str, Image.Image] = field(default_factory=dict)
    rows: PictureRows | None = None

    def image(self, index: int) -> Image.Image:
        """Return picture `index` after the picture operations; it must not be changed in place.

        Raises:
            PicturesError: If it has become unreadable since it was first decoded.
        """
        with quiet_pillow():
            return self.load([index])[0]

    def load(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return some pictures as `image` does, those that are not at hand decoded in threads.

        It may be called in any thread, so it leaves Pillow's warnings to the caller.
        """
        wanted = [self.pictures[index] for index in indices]
        if self.rows is not None:
            return [self.rows.image(picture.digest) for picture in wanted]
        missing = [picture for picture in wanted if picture.id not in self._kept]
        made = {}
        for picture, result in _decode_all(missing, self.image_ops):
            if isinstance(result, SkippedPicture):
                raise PicturesError(f"data: {result.id} can no longer be read: {result.reason}")
            made[picture.id] = result
        return [self._kept.get(picture.id) or made[picture.id] for picture in wanted]

    @property
    def at_hand(self) -> bool:
        """Whether no picture has to be decoded again."""
        return self.rows is not None or all(picture.id in self._kept for picture in self.pictures)

    def stack(self, indices: Sequence[int]) -> Pixels | None:
        """Return a copy of some pictures' cached pixels (n, height, width, channels), or None without the cache."""
        if self.rows is None:
            return None
        stacked: Pixels = self.rows.pixels[[self.rows.rows[self.pictures[i].digest] for i in indices]]
        return stacked

    def array(self, index: int) -> Pixels:
        """Return picture `index` as uint8 (height, width, channels), whatever its mode.

        Modes L, RGB and RGBA keep their channels; 1, I, I;16 and F become one channel, 16 bits scaled to 8; all
        others become RGB.
        """
        if self.rows is not None and self.rows.mode in _AS_THEY_ARE:
            cached: Pixels = self.rows.pixels[self.rows.rows[self.pictures[index].digest]]
            return cached
        image = self.image(index)
        if image.mode.startswith("I"):
            pixels = (np.asarray(image).clip(0, 65_535) // 257).astype(np.uint8)
        else:
            pixels = np.asarray(_convert_to_8_bit(image))
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def select(self, chosen: Sequence[Picture]) -> DecodedPictures:
        """Return some of these pictures, sharing what is kept."""
        bad = {skipped.id for skipped in self.skipped}
        return DecodedPictures([p for p in chosen if p.id not in bad], self.image_ops, [], self._kept, self.rows)

    @property
    def arrays(self) -> Sequence[Pixels]:
        """All pictures as `array` gives them, each made when it is asked for."""
        return _Arrays(self)

    @property
    def labels(self) -> Tensor:
        """The class indices, int64 of shape (n,)."""
        return torch.tensor([picture.label for picture in self.pictures], dtype=torch.int64)


def _convert_to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode in _AS_THEY_ARE:
        return image
    if image.mode in ("La", "RGBa"):
        # Pillow takes the premultiplied modes back to plain ones only.
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("L" if image.mode in ("1", "F") else "RGB")


class _Arrays(Sequence[Pixels]):
    def __init__(self, decoded: DecodedPictures) -> None:
        self._decoded = decoded

    def __len__(self) -> int:
        return len(self._decoded.pictures)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._decoded.array(index)


def decode_pictures(
    pictures: Sequence[Picture], image_ops: ImageOp, *, budget_bytes: int = BUDGET_BYTES, slot: CacheSlot | None = None
) -> DecodedPictures:
    """Decode all pictures once, leave out the bad ones, and keep the others.

    Args:
        pictures: In the order that they shall have.
        image_ops: From a decoded picture to the one that is kept.
        budget_bytes: What may be kept in memory, where the cache does not take them.
        slot: Their place in the picture cache; None to do without.

    Raises:
        PicturesError: If more than a fifth of the pictures cannot be decoded; names some, with reasons.
        BadInputError: If a picture operation is refused.
    """
    if slot is None or not pictures:
        return _decode_once(pictures, image_ops, _Keeper(budget_bytes))
    digests = [picture.digest for picture in pictures]
    rows = slot.find(digests)
    if rows is None:
        with slot.lock() as locked:
            # Whoever held the lock before may have made it.
            rows = slot.find(digests) if locked else None
            if rows is None:
                keeper = _Keeper(budget_bytes, slot if locked else None, n_rows=len(set(digests)))
                return _decode_once(pictures, image_ops, keeper)
    bad = [SkippedPicture(p.id, rows.skipped[p.digest]) for p in pictures if p.digest in rows.skipped]
    _check_skipped(bad, len(pictures))
    good = [picture for picture in pictures if picture.digest not in rows.skipped]
    return DecodedPictures(good, image_ops, bad, rows=rows)


def _decode_once(pictures: Sequence[Picture], image_ops: ImageOp, keeper: _Keeper) -> DecodedPictures:
    decoded = DecodedPictures([], image_ops, _kept=keeper.images)
    reasons = {}
    with closing(keeper), quiet_pillow():
        for picture, result in _decode_all(pictures, image_ops):
            if isinstance(result, SkippedPicture):
                decoded.skipped.append(result)
                reasons[picture.digest] = result.reason
            else:
                decoded.pictures.append(picture)
                keeper.keep(picture, result)
        _check_skipped(decoded.skipped, len(pictures))
        # What may pass is not written down for the attempts to come.
        if all(skipped.lasting for skipped in decoded.skipped):
            decoded.rows = keeper.publish(reasons)
        else:
            keeper.give_up()
    return decoded


class _Keeper:
    """Keeps decoded pictures: in the cache as long as they are alike and it takes them, else in memory.

    Args:
        budget_bytes: For those in memory.
        slot: The place in the cache, whose lock is held; None for memory alone.
        n_rows: How many pictures of different content there are.
    """

    def __init__(self, budget_bytes: int, slot: CacheSlot | None = None, *, n_rows: int = 0) -> None:
        self.images: dict[str, Image.Image] = {}
        self._budget_bytes = budget_bytes
        self._slot = slot
        self._n_rows = n_rows
        self._writer: RowWriter | None = None
        self._written: list[Picture] = []
        self._n_bytes = 0

    def close(self) -> None:
        """Remove what was written and not published."""
        if self._writer:
            self._writer.close()

    def keep(self, picture: Picture, image: Image.Image) -> None:
        """Keep one picture, if it can be."""
        if self._slot is None or not self._write(self._slot, picture, image):
            self.give_up()
            self._keep_in_memory(picture, image)

    def _write(self, slot: CacheSlot, picture: Picture, image: Image.Image) -> bool:
        """Return whether the cache takes a picture."""
        try:
            if not self._writer and image.mode in MODES:
                self._writer = slot.open_writer(image, self._n_rows)
            if self._writer and self._writer.append(picture.digest, image):
                self._written.append(picture)
                return True
        except OSError as error:
            slot.warn(error)
        return False

    def publish(self, skipped: dict[str, str]) -> PictureRows | None:
        """Put what was written into the cache and return it; None where the pictures are kept in memory."""
        rows = None
        if self._writer and self._slot:
            try:
                self._writer.publish(self._slot.entry, source=self._slot.source, skipped=skipped)
                rows = self._slot.find(self._writer.rows)
            except OSError as error:
                self._slot.warn(error)
        if rows is None:
            self.give_up()
        return rows

    def give_up(self) -> None:
        """Keep in memory what was written, as far as it fits, and leave the cache as it was."""
        writer, self._writer, self._slot = self._writer, None, None
        if writer:
            # It may have been removed from the cache meanwhile; then it is decoded again.
            with closing(writer), suppress(OSError):
                for picture in self._written:
                    if self._n_bytes < self._budget_bytes:
                        self._keep_in_memory(picture, writer.image(picture.digest))

    def _keep_in_memory(self, picture: Picture, image: Image.Image) -> None:
        self._n_bytes += count_bytes(image)
        if self._n_bytes <= self._budget_bytes:
            self.images[picture.id] = image


def decode_first(pictures: Sequence[Picture], image_ops: ImageOp) -> DecodedPictures:
    """Decode the first picture that can be decoded, and no more.

    Raises:
        PicturesError: If none can be.
        BadInputError: If a picture operation is refused, by the first pictures that can be decoded or by all.
    """
    skipped: list[SkippedPicture] = []
    refused: list[BadInputError] = []
    for picture in pictures:
        with quiet_pillow():
            result = _decode(picture, image_ops, refused)
        if not isinstance(result, SkippedPicture):
            return DecodedPictures([picture], image_ops, skipped, {picture.id: result})
        skipped.append(result)
        if len(refused) == _REFUSED_AT_FIRST:
            break
    if refused:
        raise refused[0]
    raise explain_bad([one.item("file", "") for one in skipped], len(pictures))


def _check_skipped(skipped: Sequence[SkippedPicture], n_pictures: int) -> None:
    check_bad([one.item("file", "") for one in skipped], n_pictures - len(skipped))


def count_bytes(image: Image.Image) -> int:
    """Return what Pillow takes for a picture's pixels: 4 bytes each, but for the modes of one or two bytes."""
    small = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
    return image.width * image.height * small.get(image.mode, 4)


def _decode_all(
    pictures: Sequence[Picture], image_ops: ImageOp
) -> Iterator[tuple[Picture, Image.Image | SkippedPicture]]:
    """Yield every picture with what became of it, in order; a few pictures ahead are decoded in threads."""
    if len(pictures) < 2:
        yield from ((picture, _decode(picture, image_ops)) for picture in pictures)
        return
    with ThreadPoolExecutor(_WORKERS) as pool:
        coming = (pool.submit(_decode, picture, image_ops) for picture in pictures)
        ahead = deque(islice(coming, _WORKERS))
        try:
            for picture in pictures:
                ahead.extend(islice(coming, 1))
                yield picture, ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _decode(
    picture: Picture, image_ops: ImageOp, refused: list[BadInputError] | None = None
) -> Image.Image | SkippedPicture:
    """Return a picture after the operations, or why it is left out; where an operation refuses it, tell `refused`."""
    try:
        image = picture.open()
    except UnreadError as error:
        return SkippedPicture(picture.id, f"{error.reason}: {one_line(error, 200)}")
    except DAMAGED as error:
        passing = isinstance(error, MemoryError | ChangedFileError)
        passing |= isinstance(error, OSError) and error.errno is not None
        reason = Reason.UNREADABLE if passing else Reason.DAMAGED
        return SkippedPicture(picture.id, f"{reason}: {one_line(error, 200)}", lasting=not passing)
    try:
        return image_ops(image)
    except BadInputError as error:
        if refused is not None:
            refused.append(error)
        # Whether transforms take it does not lie in what is cached.
        return SkippedPicture(picture.id, f"{Reason.REFUSED}: {one_line(error, 300)}", lasting=False)
