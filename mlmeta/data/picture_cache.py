"""The picture cache: pictures after the picture operations, decoded once for all attempts on this machine.

An entry is a folder. Its name is a digest of the pictures' contents, the picture operations and whatever else decides
the pixels:

    index.json      the format, the source, the mode, the shape, the pictures' digests in the order of the rows, and
                    what was skipped
    <digest>.npy    the pixels, uint8 (n, height, width, channels), named by the digest of this very index

It is made under a file lock, so attempts that start together make it once, and it comes to its name only when it is
whole: what is found is whole, or was damaged later. That shows in the index's digest or in the size; the pixels have no
checksum, since to read them all at every start would cost what the cache saves.

The least recently used entries go when the limit is reached, never one that this process uses; one that another process
uses may go, since POSIX keeps a mapped file until it is closed.

Only pictures that come out in one shape and one mode of whole bytes are cached: an array has one shape, and a training
needs one shape anyway. Where a later transform makes unlike pictures equal, they go without this cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import secrets
import shutil
import tempfile
import time
import tokenize
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from filelock import FileLock, Timeout
from numpy.lib import format as npy
from PIL import Image, ImageFilter

from mlmeta.data.image_ops import ImageOps
from mlmeta.errors import BadInputError, one_line, shorten
from mlmeta.files import NO_LOCKS, cache_folder, replacing

# Raised whenever an entry of an older mlmeta would give other pixels than this one, or be read in another way.
FORMAT = 3
# Pillow's modes of whole bytes whose pixels need nothing else, such as a palette, to be understood.
MODES = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})
# The limit where MLMETA_CACHE_GB says nothing, and the disk has five times as much free.
MAX_BYTES = 10 * 10**9
FREE_SHARE = 0.2
# Left free on the disk for everything else.
_SPARE_BYTES = 64 * 2**20
# What was not written to for so long was left by a killed attempt.
_STALE_S = 3600
# An entry's folder; before format 2 it was a file.
_SUFFIX, _OLD_SUFFIX = ".pictures", ".rows"
_INDEX = "index.json"
# What reading a damaged index, or NumPy's header of the pixels, raises.
_FAULTS = (KeyError, TypeError, ValueError, ArithmeticError, SyntaxError, tokenize.TokenError)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PictureRows:
    """The pictures of one entry, by the digest of their content.

    Attributes:
        entry: The folder that they lie in.
        source: Where they come from, in words.
        mode: Pillow's mode, one of `MODES`.
        pixels: uint8 (n, height, width, channels), memory-mapped and read-only.
        rows: The row of each digest.
        skipped: The digests of pictures that could not be read, with the reasons.
    """

    entry: Path
    source: str
    mode: str
    pixels: npt.NDArray[np.uint8]
    rows: Mapping[str, int]
    skipped: Mapping[str, str]

    def image(self, digest: str) -> Image.Image:
        """Return a picture; it must not be changed in place."""
        return _to_image(self.mode, self.pixels[self.rows[digest]])


_in_use: weakref.WeakSet[PictureRows] = weakref.WeakSet()


def _to_image(mode: str, pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Return a picture of pixels (height, width, channels), which have to be contiguous."""
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)


def read_rows(entry: Path) -> PictureRows:
    """Open an entry; nothing but its index is read.

    Raises:
        OSError: If it is not there, cannot be opened, or is not (or no longer) a whole entry of this format.
    """
    text = (entry / _INDEX).read_bytes()
    file = entry / _pixels_name(text)
    if not file.exists():
        raise OSError("it has no pixels that belong to its index")
    try:
        index = json.loads(text)
        pixels = np.asarray(npy.open_memmap(file, mode="r"))
        if index["format"] != FORMAT or pixels.dtype != np.uint8 or pixels.shape != tuple(index["shape"]):
            raise OSError("its pixels do not fit its index")
        rows = {digest: row for row, digest in enumerate(index["digests"])}
        return PictureRows(entry, index["source"], index["mode"], pixels, rows, index["skipped"])
    except _FAULTS as error:
        raise OSError(f"it is cut off, or something else: {error}") from None


def _pixels_name(index: bytes) -> str:
    return f"{hashlib.sha256(index).hexdigest()[:40]}.npy"


class RowWriter:
    """Writes pictures one by one into a temporary folder, which `publish` brings to its name and `close` removes.

    The pixels go through the file, never through a map of it: a disk that is full would end the process.

    Args:
        folder: Where the entry will lie.
        like: A picture of the mode, one of `MODES`, and the shape of all.

    Raises:
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: Path, like: Image.Image) -> None:
        self.rows: dict[str, int] = {}
        self._mode, self._shape = like.mode, _shape(like)
        self._start = len(_npy_header((0, *self._shape)))
        self._part = Path(tempfile.mkdtemp(suffix=".tmp", dir=folder))
        self._file = self._part / "pixels"
        # Unbuffered: a row that was taken can be read back, whatever the disk does to the next one.
        self._stream = open(self._file, "wb", buffering=0)
        self._stream.seek(self._start)

    def append(self, digest: str, image: Image.Image) -> bool:
        """Write one picture, unless its digest is there already; False where it is of another mode or shape.

        Raises:
            OSError: If the disk takes no more; the rows before stay readable.
        """
        if (image.mode, _shape(image)) != (self._mode, self._shape):
            return False
        if digest not in self.rows:
            self._write(image.tobytes())
            self.rows[digest] = len(self.rows)
        return True

    def image(self, digest: str) -> Image.Image:
        """Return a picture that was written."""
        n_bytes = math.prod(self._shape)
        pixels = np.fromfile(self._file, np.uint8, n_bytes, offset=self._start + n_bytes * self.rows[digest])
        return _to_image(self._mode, pixels.reshape(self._shape))

    def publish(self, entry: Path, *, source: str, skipped: Mapping[str, str]) -> None:
        """Put all of it on the disk, and give it its name.

        Raises:
            OSError: If the disk does not take it; the rows stay readable.
        """
        shape = (len(self.rows), *self._shape)
        self._stream.seek(0)
        self._write(_npy_header(shape))
        os.fsync(self._stream.fileno())
        self._stream.close()
        index = {"format": FORMAT, "source": source, "mode": self._mode, "shape": shape,
                 "digests": list(self.rows), "skipped": skipped}  # fmt: skip
        text = json.dumps(index).encode()
        with replacing(self._part / _INDEX, durable=True) as stream:
            stream.write(text)
        name = _pixels_name(text)
        self._file = self._file.rename(self._part / name)
        _remove(entry)
        self._part.rename(entry)
        self._file = entry / name

    def close(self) -> None:
        """Remove what was not published."""
        self._stream.close()
        shutil.rmtree(self._part, ignore_errors=True)

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._stream.write(left) :]


def _shape(image: Image.Image) -> tuple[int, int, int]:
    """Return (height, width, channels)."""
    return image.height, image.width, len(image.getbands())


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return what stands before the pixels; NumPy makes it equally long for any number of rows."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _remove(path: Path) -> None:
    """Remove an entry, all at once for those who look for it, as far as the system lets."""
    gone = path.with_name(f"{secrets.token_hex(8)}.tmp")
    with contextlib.suppress(OSError):
        path.rename(gone)
        gone.unlink() if gone.is_file() else shutil.rmtree(gone)


def _free_bytes(folder: Path) -> int:
    there = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path())
    return shutil.disk_usage(there).free


@dataclass(frozen=True, order=True)
class Entry:
    """Pictures in the cache, last used at `used_s` seconds since 1970; sorted, the next to go comes first."""

    used_s: float
    path: Path
    size_bytes: int

    def describe(self) -> tuple[str, tuple[int, ...]]:
        """Return in words where the pictures come from or what is wrong, and (n, height, width, channels) if known."""
        if self.path.suffix == _OLD_SUFFIX:
            return "kept by an older mlmeta, no longer used", ()
        try:
            rows = read_rows(self.path)
        except OSError as error:
            return f"damaged: {error}", ()
        return rows.source, rows.pixels.shape


@dataclass(frozen=True)
class PictureCache:
    """The entries of one folder, which is made when it is first written to."""

    folder: Path

    @property
    def limit_bytes(self) -> int:
        """What all entries together may take; 0 for no cache.

        It is ``$MLMETA_CACHE_GB``, else `MAX_BYTES` or a share of the disk that they leave free.

        Raises:
            BadInputError: If MLMETA_CACHE_GB is not a number from 0.
        """
        if given := os.environ.get("MLMETA_CACHE_GB", "").strip():
            with contextlib.suppress(ValueError):
                if 0 <= (gigabytes := float(given)) < math.inf:
                    return int(gigabytes * 10**9)
            raise BadInputError(
                f"MLMETA_CACHE_GB: must be a number of gigabytes from 0 (no cache); got {shorten(given)}"
            )
        used_bytes = sum(entry.size_bytes for entry in self.entries())
        return min(MAX_BYTES, int(FREE_SHARE * (_free_bytes(self.folder) + used_bytes)))

    def entries(self) -> list[Entry]:
        """Return all entries, the least recently used first."""
        found = []
        for path in self.folder.glob("*"):
            with contextlib.suppress(OSError):
                if path.suffix in (_SUFFIX, _OLD_SUFFIX):
                    size = sum(file.stat().st_size for file in (path, *path.glob("*")) if file.is_file())
                    found.append(Entry(path.stat().st_mtime, path, size))
        return sorted(found)

    def clear(self) -> int:
        """Remove all entries, and what killed attempts left; return how many entries there were.

        An entry that is being made is not there yet, and stays.
        """
        entries = self.entries()
        for entry in entries:
            self._evict(entry)
        self._remove_leftovers()
        return len(entries)

    def make_room(self, n_bytes: int) -> None:
        """Remove the least recently used entries until `n_bytes` more fit.

        Raises:
            OSError: If they do not fit all the same.
        """
        self._remove_leftovers()
        entries, limit = self.entries(), self.limit_bytes
        needed = n_bytes + sum(entry.size_bytes for entry in entries)
        in_use = {rows.entry for rows in _in_use}
        for entry in entries:
            if needed > limit and entry.path not in in_use:
                self._evict(entry)
                needed -= entry.size_bytes
        if needed > limit:
            raise OSError(f"{_gigabytes(n_bytes)} do not fit its limit, {_gigabytes(limit)} (MLMETA_CACHE_GB)")
        free = _free_bytes(self.folder)
        if n_bytes + _SPARE_BYTES > free:
            raise OSError(f"{_gigabytes(n_bytes)} are needed, and the disk has {_gigabytes(free)} free")

    def _evict(self, entry: Entry) -> None:
        _remove(entry.path)
        with contextlib.suppress(OSError):
            entry.path.with_suffix(".lock").unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        for part in self.folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                written_s = max(file.stat().st_mtime for file in (part, *part.glob("*")))
                if time.time() - written_s >= _STALE_S:
                    _remove(part)


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 10**9:.3g} GB" if n_bytes >= 10**8 else f"{n_bytes / 10**6:.3g} MB"


def format_entries(cache: PictureCache) -> str:
    """Return the entries as a table for people, the most recently used first, and what they take of the limit."""
    entries = cache.entries()[::-1]
    table = [["last used (UTC)", "pictures", "shape", "size", "source"] if entries else ["no entries"]]
    for entry in entries:
        source, shape = entry.describe()
        used = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.used_s))
        n, form = (f"{shape[0]:,}", "×".join(map(str, shape[1:]))) if shape else ("", "")
        table.append([used, n, form, _gigabytes(entry.size_bytes), " ".join(source.split())])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
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
    def entry(self) -> Path:
        """Where the entry lies, or would."""
        return self.cache.folder / f"{self.key}{_SUFFIX}"

    def find(self, digests: Iterable[str]) -> PictureRows | None:
        """Return the entry and mark it as used; None where there is none, or it is damaged or lacks a picture."""
        try:
            rows = read_rows(self.entry)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            _LOG.warning("mlmeta: %s in the picture cache cannot be used (%s); it is made again", self.entry, error)
            return None
        if not all(digest in rows.rows or digest in rows.skipped for digest in digests):
            return None
        with contextlib.suppress(OSError):
            os.utime(self.entry)
        _in_use.add(rows)
        return rows

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Wait until nobody else makes the entry; gives whether this process may, which it may not without a lock."""
        lock = FileLock(self.entry.with_suffix(".lock"), is_singleton=False)
        try:
            self.cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _LOG.warning("mlmeta: another attempt is decoding the same pictures; waiting for it")
                lock.acquire(timeout=self.wait_s)
        except NO_LOCKS as error:
            self.warn(error)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def open_writer(self, like: Image.Image, n_rows: int) -> RowWriter:
        """Return a writer for so many pictures like this one; raises `OSError` where room cannot be made for them."""
        self.cache.make_room(n_rows * math.prod(_shape(like)))
        return RowWriter(self.cache.folder, like)

    def warn(self, error: Exception) -> None:
        """Say in one line that the cache does not help this time."""
        _LOG.warning(
            "mlmeta: pictures go without the cache in %s (%s): they are kept in memory as far as they fit, and decoded "
            "again in every epoch beyond that", self.cache.folder, one_line(error),
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


def make_key(digests: Iterable[str], image_ops: ImageOps, *, reader: str) -> str | None:
    """Return the name of an entry, or None where an operation draws at random.

    `digests` are the SHA-256 (hex) of the pictures' contents, in any order; `reader` says how contents become pictures,
    where that is not the content's own: ``file``, ``torchvision GTSRB``.
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
