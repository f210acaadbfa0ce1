"""One file of pictures of one shape and mode: rows of uint8, then an index, then a trailer that proves both.

    rows      n × height × width × channels bytes, from offset 0, so that they can be memory-mapped
    index     JSON: format, source, mode, shape, the pictures' digests in the order of the rows, what was skipped
    trailer   magic (8 bytes), length of the index (8, little-endian), SHA-256 of the index (32)

A file comes to its name only when it is whole, so what is found is whole or was damaged later; that shows in the
trailer, in the checksum of the index, or in the size. The pixels themselves have no checksum: to read them all at
every start would cost what the cache saves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

FORMAT = 1
"""Raised whenever a file of an older mlmeta would give other pixels than this one."""

MODES = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})
"""Pillow's modes of whole bytes whose pixels need nothing else, such as a palette, to be understood."""

_MAGIC = b"mlmetaR\n"
_TRAILER = len(_MAGIC) + 8 + 32


class DamagedFileError(Exception):
    """A file is not one that `RowWriter` made, or no longer all of it."""


@dataclass(frozen=True, eq=False)
class PictureRows:
    """The pictures of one file, by the digest of their content.

    Attributes:
        file: Where they lie.
        source: Where they come from, in words.
        mode: Pillow's mode, one of `MODES`.
        pixels: uint8 (n, height, width, channels), memory-mapped and read-only.
        rows: The row of each digest.
        skipped: The digests of pictures that could not be read, with the reasons.
    """

    file: Path
    source: str
    mode: str
    pixels: npt.NDArray[np.uint8]
    rows: Mapping[str, int]
    skipped: Mapping[str, str]

    def image(self, digest: str) -> Image.Image:
        """Return a picture; it must not be changed in place."""
        return to_image(self.mode, self.pixels[self.rows[digest]])


def to_image(mode: str, pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return a picture of pixels (height, width, channels), which have to be contiguous."""
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)


def row_shape(image: Image.Image) -> tuple[int, int, int]:
    """Return (height, width, channels)."""
    return image.height, image.width, len(image.getbands())


class RowWriter:
    """Writes rows one by one into a temporary file, which `publish` brings to its name; a context.

    Args:
        folder: Where the file will lie.
        mode: Of all pictures, one of `MODES`.
        shape: (height, width, channels) of all pictures.

    Raises:
        OSError: If the file cannot be made.
    """

    def __init__(self, folder: Path, *, mode: str, shape: tuple[int, int, int]) -> None:
        self.mode = mode
        self.shape = shape
        self.rows: dict[str, int] = {}
        descriptor, name = tempfile.mkstemp(suffix=".tmp", dir=folder)
        # Unbuffered: a row that was taken can be read back, whatever the disk does to the next one.
        self._file = os.fdopen(descriptor, "w+b", buffering=0)
        self._temporary = Path(name)

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was not published."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def takes(self, image: Image.Image) -> bool:
        """Return whether a picture is of the rows' mode and shape."""
        return image.mode == self.mode and row_shape(image) == self.shape

    def append(self, digest: str, image: Image.Image) -> None:
        """Write one picture, unless its digest is there already.

        Raises:
            OSError: If the disk takes no more; the rows before stay readable.
        """
        if digest not in self.rows:
            self._file.seek(len(self.rows) * self._row_bytes)
            self._write(image.tobytes())
            self.rows[digest] = len(self.rows)

    def image(self, digest: str) -> Image.Image:
        """Return a picture that was written."""
        self._file.seek(self.rows[digest] * self._row_bytes)
        pixels = np.frombuffer(self._file.read(self._row_bytes), np.uint8)
        return to_image(self.mode, pixels.reshape(self.shape))

    def publish(self, file: Path, *, source: str, skipped: Mapping[str, str]) -> None:
        """Write the index, put all of it on the disk, and give the file its name.

        Raises:
            OSError: If the disk does not take it; the rows stay readable.
        """
        index = {
            "format": FORMAT,
            "source": source,
            "mode": self.mode,
            "shape": [len(self.rows), *self.shape],
            "digests": list(self.rows),
            "skipped": dict(skipped),
        }
        text = json.dumps(index).encode()
        self._file.seek(len(self.rows) * self._row_bytes)
        self._write(text + _MAGIC + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest())
        os.fsync(self._file.fileno())
        self._temporary.replace(file)
        _sync_folder(file.parent)

    @property
    def _row_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]


def _sync_folder(folder: Path) -> None:
    """Put a new name on the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_rows(file: Path) -> PictureRows:
    """Open a file of rows; nothing but its index is read.

    Raises:
        DamagedFileError: If it is not a whole file of this format.
        OSError: If it cannot be opened.
    """
    index, n_bytes = _read_index(file)
    try:
        shape, digests = tuple(map(int, index["shape"])), list(index["digests"])
        if math.prod(shape) != n_bytes:
            raise DamagedFileError("its size does not fit its index")
        if index["format"] != FORMAT or index["mode"] not in MODES or len(shape) != 4 or len(digests) != shape[0]:
            raise DamagedFileError("it is of another format")
        pixels = np.asarray(np.memmap(file, np.uint8, "r", shape=shape))
        rows = {str(digest): row for row, digest in enumerate(digests)}
        return PictureRows(file, str(index["source"]), index["mode"], pixels, rows, dict(index["skipped"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"its index is faulty: {error!r}") from None


def _read_index(file: Path) -> tuple[dict[str, Any], int]:
    """Return the index and how many bytes of rows stand before it."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size < _TRAILER:
            raise DamagedFileError("it is too short")
        stream.seek(size - _TRAILER)
        trailer = stream.read(_TRAILER)
        length = int.from_bytes(trailer[len(_MAGIC) : len(_MAGIC) + 8], "little")
        if not trailer.startswith(_MAGIC) or length > size - _TRAILER:
            raise DamagedFileError("it is cut off, or no file of rows")
        stream.seek(size - _TRAILER - length)
        text = stream.read(length)
    if hashlib.sha256(text).digest() != trailer[-32:]:
        raise DamagedFileError("its index has another checksum")
    index: dict[str, Any] = json.loads(text)
    return index, size - _TRAILER - length
