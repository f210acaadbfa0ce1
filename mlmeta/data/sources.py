"""What a source of pictures gives, and how a file of a picture is opened.

Sources are `mlmeta.data.folders`, `mlmeta.data.manifests`, `mlmeta.data.torchvision_datasets` and
`mlmeta.data.samples`. A file is told by its suffix, and read by its content: a JPEG named .png is a JPEG.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mlmeta.commands.documents import strip_operators
from mlmeta.data.account import Item, Rank, Reason, Warned, name_some
from mlmeta.data.image_ops import REFUSALS
from mlmeta.data.roots import list_folder, open_confined
from mlmeta.data.splits import Part
from mlmeta.errors import PicturesError, nearest_name, suggest

# The formats that are read, by Pillow's names, each with its suffixes.
_SUFFIXES = {
    "JPEG": ".jpg .jpeg .jpe .jfif .jif",
    "PNG": ".png",
    "WEBP": ".webp",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "AVIF": ".avif",
    "JPEG2000": ".jp2 .j2k .jpx .jpf",
    "PPM": ".ppm .pgm .pbm .pnm",
}
_HEIC = (".heic", ".heif", ".hif")
FORMATS = tuple(_SUFFIXES)
SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes.split())
# Suffixes of pictures that are not read, and the first bytes of pictures: a format's name by its signature.
_UNREAD_SUFFIXES = frozenset(
    ".svg .psd .ai .eps .pdf .raw .cr2 .cr3 .nef .arw .dng .orf .rw2 .exr .hdr .dcm .nii .tga .ico .icns .xcf .jxl "
    ".djvu .emf .wmf .pcx .fits .mpo .npy .mp4 .mov .avi .webm".split()
)
_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"), (0, b"\x89PNG\r\n\x1a\n", "PNG"), (0, b"GIF8", "GIF"), (8, b"WEBP", "WEBP"),
    (0, b"II*\0", "TIFF"), (0, b"MM\0*", "TIFF"), (4, b"ftypavi", "AVIF"), (0, b"\0\0\0\x0cjP  ", "JPEG2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG2000"), (4, b"ftyphei", "HEIC"), (4, b"ftyphev", "HEIC"), (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"), (0, b"8BPS", "PSD"), (0, b"\xff\x0a", "JPEG XL"), (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (128, b"DICM", "DICOM"), (0, b"\x76\x2f\x31\x01", "OpenEXR"),
)  # fmt: skip
# No picture that Pillow opens (at most 178,956,970 pixels) needs a larger file.
MAX_FILE_BYTES = 2**31
# What reading a damaged picture raises, in Pillow and below it.
DAMAGED = (*REFUSALS, EOFError, SyntaxError, struct.error, zlib.error)

_FLOAT_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65_535.0))

# What a folder or a split may be called, beside numbers and words such as set, data and images.
PARTS: dict[str, Part] = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "holdout": "test",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "development": "validation",
}  # fmt: skip
_FILLERS = "set|sets|data|dataset|images?|imgs?|pictures?|photos?|split|part|folder"
_PART_NAME = re.compile(rf"(hold[ _-]?out|[a-z]+?)(?:[ _.-]*(?:{_FILLERS}))*[ _.-]*\d*")


def read_part(name: str) -> Part | None:
    """Return the part that a folder's or split's name means, in any case: ``TEST``, ``training_set``, ``val2017``."""
    found = _PART_NAME.fullmatch(name.strip().casefold())
    return PARTS.get(re.sub("[ _-]", "", found[1])) if found else None


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
        group: Whose picture it is, if the commands name groups: a group stands in one part. Empty for none.
    """

    id: str
    label: str
    part: Part | None
    read_content: Callable[[], bytes]
    open: Callable[..., Image.Image]
    is_file: bool = False
    group: str = ""


@dataclass
class Listing:
    """What a source gives: its pictures, and all else that it looked at.

    Attributes:
        found: The pictures.
        items: Folders and columns, and whatever is left out; the pictures themselves are not among them.
        warnings: What only the source knows to warn of.
        kind: What a picture is an item of.
    """

    found: list[Found] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    warnings: list[Warned] = field(default_factory=list)
    kind: Literal["file", "row", "picture"] = "file"


class ChangedFileError(OSError):
    """A picture file has another content than when its pictures were found."""


def refuse_labels(labels: Sequence[str], names: Iterable[str], *, lack: str) -> PicturesError:
    """Return the error for wanted labels that lack something, each with the name most like it where one is near."""
    near = {label: nearest_name(strip_operators(label), names) for label in labels[:5]}
    lines = "; ".join(f"{label!r}" + (f" (did you mean {name!r}?)" if name else "") for label, name in near.items())
    return PicturesError(f"label_names: {len(labels)} label(s) without {lack}: {lines}")


def explain_absence(path: Path, wanted: Literal["folder", "manifest"]) -> PicturesError:
    """Return the error for a source that is not there, or is of the other kind."""
    siblings: list[str] = []
    if wanted == "manifest" and path.is_dir():
        text = f'{path} is a folder, not a table (pictures in folders are {{"source": "folder"}})'
    elif wanted == "folder" and path.exists():
        text = f'{path} is a file, not a folder (a table of pictures is {{"source": "manifest"}})'
    else:
        with suppress(OSError):
            siblings = [name for name, is_folder in list_folder(path.parent) if is_folder == (wanted == "folder")]
        text = f"there is no {wanted} {path}{suggest(path.name, siblings)}"
    return PicturesError(f"data.path: {text}")


def make_grouping(pattern: str | None) -> Callable[[str], str]:
    """Return what gives a file's group by its name: what the pattern's first group (or all of it) matches.

    A name that does not match is in no group.
    """
    if pattern is None:
        return lambda name: ""
    compiled = re.compile(pattern)

    def find_group(name: str) -> str:
        found = compiled.search(name)
        return (found[1] if compiled.groups else found[0]) or "" if found else ""

    return find_group


def warn_ungrouped(found: Sequence[Found], given: str | None) -> Iterator[Warned]:
    """Warn of pictures without a group where groups are asked for; where none has one, refuse.

    Raises:
        PicturesError: If no picture has a group.
    """
    alone = [picture.id for picture in found if not picture.group]
    if given is None or not alone:
        return
    if len(alone) == len(found):
        raise PicturesError(f"data.group: {given!r} gives no picture a group, such as {alone[0]!r}")
    yield Warned(
        Rank.LEAK,
        f"{len(alone):,} picture(s) have no group by data.group, and are drawn by themselves: {name_some(alone)}",
    )


# Files of pictures


def file_picture(path: Path, *, id: str, label: str, part: Part | None, group: str = "") -> Found:
    """Return the picture of a file."""
    return Found(id, label, part, partial(read_file, path), partial(open_file, path), is_file=True, group=group)


@cache
def _reads_heic() -> bool:
    """Return whether the extra mlmeta[heic] is there, and have Pillow use it."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def name_format(head: bytes) -> str:
    """Return the name of the format of a picture that begins with these bytes (256 are enough), or ``""``."""
    if re.match(rb"P[1-6]\s+(#.*\s+)*\d", head):
        return "PPM"
    if head.startswith(b"BM") and head[6:10] == bytes(4):
        return "BMP"
    return next((name for start, sign, name in _SIGNATURES if head.startswith(sign, start)), "")


def is_picture_name(name: str) -> bool:
    """Return whether a file's suffix is one of pictures that are read here."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in SUFFIXES or (suffix in _HEIC and _reads_heic())


def judge_file(path: Path, name: str, label: str = "") -> Item:
    """Return the item of a file that is left out, as its suffix is not one of pictures: why, by its content.

    Text beside the pictures (notes, annotations) is no bad picture; everything else was meant to be read.
    """
    suffix = path.suffix.lower()
    try:
        with open_regular(path) as stream:
            head = stream.read(512)
    except OSError as error:
        return Item("file", name, Reason.UNREADABLE, label, detail=error.strerror or str(error), bad=True)
    found = name_format(head) or (suffix[1:].upper() if suffix in _UNREAD_SUFFIXES | set(_HEIC) else "")
    if found in FORMATS:
        return Item("file", name, Reason.SUFFIX, label, detail=found, bad=True)
    if found:
        return Item("file", name, Reason.FORMAT, label, detail=explain_format(found), bad=True)
    return Item("file", name, Reason.NOT_A_PICTURE, label, bad=bool(head) and not _is_text(head))


def explain_format(name: str) -> str:
    """Return a format that is not read, with what would read it."""
    return f"{name}: pip install 'mlmeta[heic]' reads it" if name in ("HEIC", "HEIF", "HIF") else name


def _is_text(head: bytes) -> bool:
    return b"\0" not in head and not head.translate(None, bytes({*range(32, 256), 7, 8, 9, 10, 12, 13, 27}))


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
    _reads_heic()
    allowed = (*formats, "HEIF") if "HEIF" in Image.OPEN else formats
    # A stream and no name: Pillow would map a file, and a file that shrinks while it is mapped ends the process.
    with _open_content(path, sha256) as stream:
        try:
            with Image.open(stream, formats=allowed) as image:
                image.load()
                turn_upright(image)
                return to_plain_mode(image)
        except UnidentifiedImageError:
            stream.seek(0)
            raise _explain_unidentified(stream.read(512), formats) from None


class UnreadError(OSError):
    """A file is no picture that is read.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _explain_unidentified(head: bytes, formats: Sequence[str]) -> UnreadError:
    name = name_format(head)
    if name and name not in formats:
        return UnreadError(Reason.FORMAT, explain_format(name))
    if name:
        return UnreadError(Reason.DAMAGED, f"its header is that of {name}, and damaged")
    return UnreadError(
        Reason.NOT_A_PICTURE, "empty" if not head else f"not a picture of the formats {', '.join(formats)}"
    )


def to_plain_mode(image: Image.Image) -> Image.Image:
    """Return a picture in a mode whose numbers are brightnesses of 8 bits.

    Palettes become colours, with alpha where an entry is transparent; bits become grey; 16 bits, 32 bits and floats
    are scaled to 8 bits, see `scale_pixels`.
    """
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(scale_pixels(np.asarray(image)))
    return image


def scale_pixels(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return pixels (height, width) of more than 8 bits as uint8, their range scaled to 0..255.

    Integers of 0 to 65,535 have 16 bits. Of floats the range is the narrowest of 0..1, -1..1, 0..255 and 0..65,535
    that holds all of them. All other numbers have the range that they take in this picture.
    """
    numbers = pixels.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    ranges = [(0.0, 65_535.0)] if pixels.dtype.kind in "iu" else _FLOAT_RANGES
    low, high = next(((low, high) for low, high in ranges if low <= least and most <= high), (least, most))
    scaled = (np.nan_to_num(numbers, nan=low, posinf=high, neginf=low) - low) * (255 / ((high - low) or 1))
    return (scaled + 0.5).clip(0, 255).astype(np.uint8)


def turn_upright(image: Image.Image) -> None:
    """Turn a picture as its EXIF says, if that is not damaged; in place, as a copy would double what it takes."""
    with suppress(*DAMAGED):
        ImageOps.exif_transpose(image, in_place=True)


def _open_content(path: Path, sha256: str | None) -> BinaryIO:
    if sha256 is None:
        return open_regular(path)
    content = read_file(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ChangedFileError("the file has changed since the pictures were listed")
    return io.BytesIO(content)


def open_regular(path: Path) -> BinaryIO:
    """Open a file as `open_confined` does, if it is no larger than a picture can be.

    Raises:
        OSError: If it cannot be read, or is too large.
    """
    stream = open_confined(path)
    n_bytes = os.fstat(stream.fileno()).st_size
    if n_bytes > MAX_FILE_BYTES:
        stream.close()
        raise OSError(f"the file has {n_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    return stream


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
