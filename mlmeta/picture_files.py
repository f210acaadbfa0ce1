"""One picture: how a source gives it, how its file is opened, and how its label is read."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from PIL import Image, ImageOps, UnidentifiedImageError

from mlmeta.commands.documents import strip_operators
from mlmeta.data_roots import confine_path, open_descriptor
from mlmeta.errors import nearest_name
from mlmeta.image_ops import REFUSALS

Part: TypeAlias = Literal["train", "validation", "test"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PARTS: dict[str, Part] = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
# No picture that Pillow opens (at most 178,956,970 pixels) needs a larger file.
MAX_FILE_BYTES = 2**31
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}  # fmt: skip
# What reading a damaged picture raises, in Pillow and below it.
DAMAGED = (*REFUSALS, EOFError, SyntaxError, struct.error, zlib.error)


@dataclass(frozen=True)
class Found:
    """A picture as its source gives it.

    Attributes:
        id: Its name within the source, the same on every machine.
        label: Its label's name in the source.
        part: The part that the source puts it in; None where it does not say.
        read_content: Gives the bytes that identify the picture.
        open: Gives the decoded picture; of a file, with ``sha256=`` only if it still has that content.
        is_file: Whether it is a file, which may change between the two.
    """

    id: str
    label: str
    part: Part | None
    read_content: Callable[[], bytes]
    open: Callable[..., Image.Image]
    is_file: bool = False


class ChangedFileError(OSError):
    """A picture file has another content than when its pictures were found."""


def open_file(path: Path, *, formats: tuple[str, ...] = FORMATS, sha256: str | None = None) -> Image.Image:
    """Open and decode a picture file, turned upright as its EXIF says; of an animation the first frame.

    Args:
        path: The file.
        formats: Pillow's names of the formats that may be opened, whatever the suffix.
        sha256: What its SHA-256 (hex) must be; None for any.

    Raises:
        ChangedFileError: If it has another SHA-256.
        OSError: If it is damaged, or of another format; Pillow's decoders raise more, see `DAMAGED`.
    """
    try:
        # A stream and no name: Pillow would map a file, and a file that shrinks while it is mapped ends the process.
        with _open_content(path, sha256) as stream, Image.open(stream, formats=formats) as image:
            image.load()
            with suppress(*DAMAGED):
                # In place: a copy would double what a large picture takes.
                ImageOps.exif_transpose(image, in_place=True)
            return image
    except UnidentifiedImageError:
        raise OSError(f"not a picture of the formats {', '.join(formats)}") from None


def _open_content(path: Path, sha256: str | None) -> BinaryIO:
    if sha256 is None:
        return open_regular(path)
    content = read_file(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ChangedFileError("the file has changed since the pictures were listed")
    return io.BytesIO(content)


def open_regular(path: Path) -> BinaryIO:
    """Open a file that is one: a pipe would wait for a writer, and some devices never end.

    Raises:
        OSError: If it cannot be read, is of another kind, is larger than a picture can be, or lies outside the data
            roots where MLMETA_DATA_ROOT is set.
    """
    path = confine_path(path)
    _check_regular(path.stat())
    # The name may mean something else by now.
    stream = open(path, "rb", opener=_open_without_waiting)
    try:
        _check_regular(os.fstat(stream.fileno()))
    except OSError:
        stream.close()
        raise
    return stream


def _open_without_waiting(path: str, flags: int) -> int:
    return open_descriptor(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")
    if status.st_size > MAX_FILE_BYTES:
        raise OSError(f"the file has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")


def read_file(path: Path) -> bytes:
    """Return a file's bytes; raises what `open_regular` does."""
    with open_regular(path) as stream:
        return stream.read(MAX_FILE_BYTES)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about odd files: what matters raises, and the rest would come once a picture."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def turn_upright(image: Image.Image) -> Image.Image:
    """Return a copy turned as its EXIF says; a picture whose EXIF is damaged stays as it is."""
    try:
        return ImageOps.exif_transpose(image)
    except DAMAGED:
        return image.copy()


def file_picture(path: Path, *, id: str, label: str, part: Part | None) -> Found:
    """Return a file as a picture."""
    return Found(id, label, part, partial(read_file, path), partial(open_file, path), is_file=True)


def explain_missing(label: str, names: Iterable[str]) -> str:
    """Return a label for error text, with the name most like it where one is near."""
    near = nearest_name(strip_operators(label), names)
    return f"{label!r}" + (f" (did you mean {near!r}?)" if near else "")
