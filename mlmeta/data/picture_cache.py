"""The picture cache: pictures after the picture operations, decoded once for all attempts on this machine.

An entry is one file of rows in the cache folder; its name is a digest of the pictures' contents, the picture operations
and whatever else decides the pixels. It is made under a file lock, so attempts that start
together make it once. The least recently used entries go when the limit is reached, never one that this process uses;
one that another process uses may go, since POSIX keeps a mapped file until it is closed.

Only pictures that come out in one shape and one mode of whole bytes are cached: an array has one shape, and a training
needs one shape anyway. Where a later transform makes unlike pictures equal, they go without this cache.

One file of pictures of one shape and mode: rows of uint8, then an index, then a trailer that proves both.

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
import logging
import math
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import PIL
from filelock import FileLock, Timeout
from PIL import Image, ImageFilter

from mlmeta.data.image_ops import ImageOps
from mlmeta.errors import BadInputError, shorten
from mlmeta.files import cache_folder

MAX_BYTES = 10 * 10**9
FORMAT = 1

MODES = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})

_MAGIC = b"mlmetaR\n"
_TRAILER = len(_MAGIC) + 8 + 32


"""The limit where MLMETA_CACHE_GB says nothing, and the disk has five times as much free."""


FREE_SHARE = 0.2


# Left free on the disk for everything else.
_SPARE_BYTES = 64 * 2**20


# A file that was not written to for so long is one that a killed attempt left.
_STALE_S = 3600


_LOG = logging.getLogger(__name__)


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


_in_use: weakref.WeakSet[PictureRows] = weakref.WeakSet()


class CacheFullError(OSError):
    """The cache's limit, or the disk, does not take an entry."""


@dataclass(frozen=True)
class Entry:
    """One file of the cache.

    Attributes:
        source: Where the pictures come from, in words; says so where the file is damaged.
        shape: (n, height, width, channels); empty where the file is damaged.
        size_bytes: Of the file.
        used_s: When it was last used, in seconds since 1970.
    """

    file: Path
    source: str
    shape: tuple[int, ...]
    size_bytes: int
    used_s: float


def read_limit(folder: Path, *, used_bytes: int = 0) -> int:
    """Return how many bytes the cache may take: ``$MLMETA_CACHE_GB``, else `MAX_BYTES` or 20 % of the free disk.

    Args:
        folder: The cache folder; it need not be there.
        used_bytes: What the cache takes already, which counts as free.

    Raises:
        BadInputError: If MLMETA_CACHE_GB is not a number from 0.
    """
    given = os.environ.get("MLMETA_CACHE_GB", "").strip()
    if given:
        with contextlib.suppress(ValueError):
            if 0 <= (gigabytes := float(given)) < math.inf:
                return int(gigabytes * 10**9)
        raise BadInputError(f"MLMETA_CACHE_GB: must be a number of gigabytes from 0 (no cache); got {shorten(given)}")
    return min(MAX_BYTES, int(FREE_SHARE * (_free_bytes(folder) + used_bytes)))


def _free_bytes(folder: Path) -> int:
    there = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path())
    return shutil.disk_usage(there).free


def make_key(digests: Iterable[str], image_ops: ImageOps, *, reader: str) -> str | None:
    """Return the name of an entry, or None where an operation draws at random.

    Args:
        digests: SHA-256 (hex) of the pictures' contents; their order does not matter.
        image_ops: The picture operations.
        reader: How contents become pictures, where that is not the content's own: ``file``, ``torchvision GTSRB``.
    """
    if any(op.name == "effect_spread" for op in image_ops.ops):
        return None
    # Another Pillow may decode or resize a little differently.
    head = [FORMAT, PIL.__version__, reader, [[op.name, op.arguments] for op in image_ops.ops]]
    text = json.dumps([head, sorted(set(digests))], sort_keys=True, default=_describe_value)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _describe_value(value: Any) -> Any:
    """Return what JSON has no word for, among the values that `mlmeta.data.image_ops` reads."""
    if isinstance(value, ImageFilter.Filter):
        return [type(value).__name__, vars(value)]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no canonical form")


@dataclass(frozen=True)
class PictureCache:
    """The entries of one folder.

    Attributes:
        folder: Made when it is first written to.
    """

    folder: Path

    @property
    def limit_bytes(self) -> int:
        """What all entries together may take; 0 for no cache."""
        return read_limit(self.folder, used_bytes=sum(self._sizes().values()))

    def _sizes(self) -> dict[Path, int]:
        """Return the entries' sizes, the least recently used first."""
        states = {}
        for file in self.folder.glob("*.rows"):
            with contextlib.suppress(OSError):
                states[file] = file.stat()
        return {file: states[file].st_size for file in sorted(states, key=lambda file: states[file].st_mtime_ns)}

    def entries(self) -> list[Entry]:
        """Return all entries, the least recently used first."""
        found = []
        for file, size in self._sizes().items():
            with contextlib.suppress(FileNotFoundError):
                source, shape = _describe_file(file)
                found.append(Entry(file, source, shape, size, file.stat().st_mtime))
        return found

    def clear(self) -> int:
        """Remove all entries, and what killed attempts left; return how many entries there were.

        An entry that is being made is not there yet, and stays.
        """
        sizes = self._sizes()
        for file in sizes:
            self._remove(file)
        self._remove_leftovers()
        return len(sizes)

    def make_room(self, n_bytes: int) -> None:
        """Remove the least recently used entries until `n_bytes` more fit.

        Raises:
            CacheFullError: If they do not fit all the same.
        """
        self._remove_leftovers()
        sizes, limit = self._sizes(), self.limit_bytes
        in_use = {rows.file for rows in _in_use}
        for file in [file for file in sizes if file not in in_use]:
            if sum(sizes.values()) + n_bytes <= limit:
                break
            self._remove(file)
            del sizes[file]
        if sum(sizes.values()) + n_bytes > limit:
            raise CacheFullError(f"{_gigabytes(n_bytes)} do not fit its limit, {_gigabytes(limit)} (MLMETA_CACHE_GB)")
        free = _free_bytes(self.folder)
        if n_bytes + _SPARE_BYTES > free:
            raise CacheFullError(f"{_gigabytes(n_bytes)} are needed, and the disk has {_gigabytes(free)} free")

    def _remove(self, file: Path) -> None:
        with contextlib.suppress(OSError):
            file.unlink()
        with contextlib.suppress(OSError):
            file.with_suffix(".lock").unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        for file in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime >= _STALE_S:
                    file.unlink()


def _describe_file(file: Path) -> tuple[str, tuple[int, ...]]:
    try:
        rows = read_rows(file)
    except DamagedFileError as error:
        return f"damaged: {error}", ()
    return rows.source, rows.pixels.shape


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 10**9:.3g} GB" if n_bytes >= 10**8 else f"{n_bytes / 10**6:.3g} MB"


def format_entries(cache: PictureCache) -> str:
    """Return the entries as a table for people, the most recently used first, and what they take of the limit."""
    entries = cache.entries()[::-1]
    head = ("last used", "pictures", "shape", "size", "source")
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s)),
            f"{entry.shape[0]:,}" if entry.shape else "",
            "×".join(map(str, entry.shape[1:])),
            _gigabytes(entry.size_bytes),
            " ".join(entry.source.split()),
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)] if rows else ["no entries"]
    total = sum(entry.size_bytes for entry in entries)
    return "\n".join([*lines, f"{_gigabytes(total)} of at most {_gigabytes(cache.limit_bytes)} in {cache.folder}"])


@dataclass(frozen=True)
class CacheSlot:
    """The place of one entry, which may be there or not.

    Attributes:
        key: From `make_key`.
        source: Where the pictures come from, in words.
        wait_s: How long to wait for another process that is making the entry.
    """

    cache: PictureCache
    key: str
    source: str
    wait_s: float = 3600

    @property
    def file(self) -> Path:
        """Where the entry lies, or would."""
        return self.cache.folder / f"{self.key}.rows"

    def find(self, digests: Iterable[str]) -> PictureRows | None:
        """Return the entry and mark it as used; None where there is none, or it is damaged or lacks a picture."""
        try:
            rows = read_rows(self.file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (DamagedFileError, OSError) as error:
            _LOG.warning("mlmeta: %s in the picture cache cannot be used (%s); it is made again", self.file, error)
            return None
        if not all(digest in rows.rows or digest in rows.skipped for digest in digests):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.file)
        _in_use.add(rows)
        return rows

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Wait until nobody else makes the entry; gives whether this process may, which it may not without a lock."""
        with contextlib.ExitStack() as stack:
            yield self._acquire(stack)

    def _acquire(self, stack: contextlib.ExitStack) -> bool:
        lock = FileLock(self.file.with_suffix(".lock"), is_singleton=False)
        try:
            self.cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _LOG.warning("mlmeta: another attempt is decoding the same pictures; waiting for it")
                lock.acquire(timeout=self.wait_s)
        except (OSError, NotImplementedError) as error:  # Timeout is an OSError
            self.warn(error)
            return False
        stack.callback(lock.release)
        return True

    def open_writer(self, *, mode: str, shape: tuple[int, int, int], n_rows: int) -> RowWriter:
        """Return a writer for the entry; room has been made for all of it.

        Raises:
            CacheFullError: If there is no room.
            OSError: If the folder cannot be written to.
        """
        self.cache.make_room(n_rows * math.prod(shape))
        return RowWriter(self.cache.folder, mode=mode, shape=shape)

    def warn(self, error: Exception) -> None:
        """Say in one line that the cache does not help this time."""
        reason = " ".join(str(error).split()) or type(error).__name__
        _LOG.warning(
            "mlmeta: pictures go without the cache in %s (%s): they are kept in memory as far as they fit, and decoded "
            "again in every epoch beyond that", self.cache.folder, reason,
        )  # fmt: skip


def pictures_folder() -> Path:
    """Return the folder of the pictures that are kept decoded on this machine."""
    return cache_folder() / "pictures"


def find_slot(digests: Iterable[str], image_ops: ImageOps, *, reader: str, source: str) -> CacheSlot | None:
    """Return the place of pictures in this machine's cache, or None where they cannot be cached or must not be.

    Raises:
        BadInputError: If MLMETA_CACHE_GB is not a number from 0.
    """
    cache = PictureCache(pictures_folder())
    key = make_key(digests, image_ops, reader=reader)
    return CacheSlot(cache, key, source) if key and cache.limit_bytes else None


"""Raised whenever a file of an older mlmeta would give other pixels than this one."""


"""Pillow's modes of whole bytes whose pixels need nothing else, such as a palette, to be understood."""


class DamagedFileError(Exception):
    """A file is not one that `RowWriter` made, or no longer all of it."""


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
