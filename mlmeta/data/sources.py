"""The files of a task: what a folder or a manifest lists, with labels and parts, and how a file of a picture is opened.

- folder: ``<root>/<label>/…`` or ``<root>/train|test|validation/<label>/…``;
- manifest: CSV or Parquet with the columns path, label and, if wanted, split and id.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from PIL import Image, ImageOps, UnidentifiedImageError

from mlmeta.commands.documents import strip_operators
from mlmeta.commands.validation import CONTROL
from mlmeta.data.image_ops import REFUSALS
from mlmeta.data.roots import OutsideRootsError, confine_path, list_folder, open_confined
from mlmeta.errors import PicturesError, nearest_name, shorten, suggest

Part: TypeAlias = Literal["train", "validation", "test"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PARTS: dict[str, Part] = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
# No picture that Pillow opens (at most 178,956,970 pixels) needs a larger file.
MAX_FILE_BYTES = 2**31
# What reading a damaged picture raises, in Pillow and below it.
DAMAGED = (*REFUSALS, EOFError, SyntaxError, struct.error, zlib.error)
_COLUMNS = ("path", "label", "split", "id")
_Row = Mapping[str, Any]


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


def refuse_labels(labels: Sequence[str], names: Iterable[str], *, lack: str) -> PicturesError:
    """Return the error for wanted labels that lack something, each with the name most like it where one is near."""
    near = {label: nearest_name(strip_operators(label), names) for label in labels[:5]}
    lines = "; ".join(f"{label!r}" + (f" (did you mean {name!r}?)" if name else "") for label, name in near.items())
    return PicturesError(f"label_names: {len(labels)} label(s) without {lack}: {lines}")


def _explain_absence(path: Path, wanted: Literal["folder", "manifest"]) -> PicturesError:
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


# Manifests


def read_manifest(file: Path) -> list[Found]:
    """Return the pictures that a manifest lists; their paths are relative to its folder.

    It is a Parquet table if its suffix is .parquet or .pq, else a CSV table in UTF-8. A picture's id is its ``id`` or
    else its ``path``. Rows are counted from 1, below the header.

    Raises:
        PicturesError: If the file is missing, unreadable or empty, lacks a column, a row is faulty, or pictures
            are missing; names the first row.
    """
    try:
        if not confine_path(file).is_file():
            raise _explain_absence(file, "manifest")
    except OutsideRootsError as error:
        raise PicturesError(f"data.path: {file} cannot be read: {error}") from None
    columns, rows = _read_parquet(file) if file.suffix.lower() in (".parquet", ".pq") else _read_csv(file)
    _check_columns(file, columns)
    if not rows:
        raise PicturesError(f"data.path: {file} lists no picture")
    found = [_to_picture(row, number, file) for number, row in enumerate(rows, start=1)]
    _check_repeated([os.path.normpath(str(row["path"])) for row in rows], "path", file)
    _check_repeated([picture.id for picture in found], "id", file)
    missing = [number for number, row in enumerate(rows) if _is_missing(_locate(row, file))]
    if missing:
        raise PicturesError(
            f"data.path: {len(missing)} of the {len(rows)} pictures of {file} are not there, the first in row "
            f"{missing[0] + 1}: {_locate(rows[missing[0]], file)}"
        )
    return found


def _read_csv(file: Path) -> tuple[Sequence[str], Sequence[_Row]]:
    try:
        with open_confined(file) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            return list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise PicturesError(f"data.path: {file} is not a CSV table in UTF-8: {error}") from None


def _read_parquet(file: Path) -> tuple[Sequence[str], Sequence[_Row]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with open_confined(file) as stream, ParquetFile(stream) as table:
            columns = table.schema_arrow.names
            rows: list[_Row] = table.read(columns=[name for name in _COLUMNS if name in columns]).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise PicturesError(f"data.path: {file} is not a Parquet table: {shorten(str(error), 300)}") from None
    return columns, rows


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    for name in ("path", "label"):
        if name not in columns:
            near = nearest_name(name, [column for column in columns if column not in _COLUMNS])
            hint = f" (is {near!r} meant to be it?)" if near else ""
            raise PicturesError(f"data.path: {file} has no column {name!r}{hint}; it may have {', '.join(_COLUMNS)}")


def _to_picture(row: _Row, number: int, file: Path) -> Found:
    path, label, picture_id = (_read_text(row.get(name)) for name in ("path", "label", "id"))
    if not path or not label:
        raise PicturesError(f"data.path: row {number} of {file} has no {'label' if path else 'path'}")
    split = _read_text(row.get("split"))
    if split and split.lower() not in PARTS:
        raise PicturesError(f"data.path: row {number} of {file} has the split {split!r}; allowed: {', '.join(PARTS)}")
    return _file_picture(_locate(row, file), id=picture_id or path, label=label, part=PARTS.get(split.lower()))


def _read_text(value: object) -> str:
    """Return a cell's text without spaces around it; nothing and not-a-number are empty."""
    return "" if value is None or value != value else str(value).strip()


def _locate(row: _Row, file: Path) -> Path:
    return file.parent / _read_text(row["path"])


def _check_repeated(values: Sequence[str], column: str, file: Path) -> None:
    rows: dict[str, int] = {}
    for number, value in enumerate(values, start=1):
        if value in rows:
            raise PicturesError(
                f"data.path: {file} lists the {column} {value!r} twice, in the rows {rows[value]} and {number}"
            )
        rows[value] = number


def _is_missing(picture: Path) -> bool:
    try:
        return not confine_path(picture).is_file()
    except OutsideRootsError:
        # It is left out as a picture that cannot be read, be it there or not.
        return False


# Folders


def read_folder(root: Path, label_names: Sequence[str] = ()) -> list[Found]:
    """Return the pictures of ``<root>/<label>/…`` or ``<root>/train|test|validation/<label>/…``.

    Hidden files and folders, files without a picture's suffix, and links that lead back to the folder are left out.
    What has a picture's suffix and is no file (a pipe, a link to nowhere) is given as a picture that cannot be read.
    `label_names` are the wanted labels; empty for every folder.

    Raises:
        PicturesError: If there is no such folder, it cannot be read, or a wanted label has no folder.
    """
    try:
        if not confine_path(root).is_dir():
            raise _explain_absence(root, "folder")
        folders = _subfolders(root)
        if not _has_parts(folders, label_names):
            return list(_read_labels(folders, label_names, part=None, root=root))
        parts = [(PARTS[name.lower()], folder) for name, folder in folders.items() if name.lower() in PARTS]
        inner = {name for part, folder in parts if part == "train" for name in _subfolders(folder)}
        _check_label_folders(label_names, inner, f"{root} (train)")
        return [
            picture for part, folder in parts
            for picture in _read_labels(_subfolders(folder), label_names, part=part, root=root)
        ]  # fmt: skip
    except OSError as error:
        raise PicturesError(f"data.path: {root} cannot be read: {error}") from None


def _subfolders(root: Path) -> dict[str, Path]:
    names = (name for name, is_folder in list_folder(root) if is_folder and not name.startswith("."))
    return {name: root / name for name in names if not _leads_back(root / name, root)}


def _leads_back(folder: Path, root: Path) -> bool:
    """Return whether a folder is a link to the one it lies in, or above: it would hold all other labels' pictures."""
    return folder.is_symlink() and root.resolve().is_relative_to(folder.resolve())


def _has_parts(folders: Mapping[str, Path], label_names: Sequence[str]) -> bool:
    """Return whether the folders are parts (train, test) and not labels, which may bear the same names."""
    train = [folder for name, folder in folders.items() if PARTS.get(name.lower()) == "train"]
    inner = {name for folder in train for name in _subfolders(folder)}
    if label_names and not _without_folder(label_names, inner):
        return True
    if not inner or (label_names and not _without_folder(label_names, folders)):
        return False
    holds_pictures = any(
        Path(name).suffix.lower() in SUFFIXES and Path(folder, name).is_file()
        for folder in train for name, is_folder in list_folder(folder) if not is_folder
    )  # fmt: skip
    return not holds_pictures or all(name.lower() in PARTS for name in folders)


def _without_folder(label_names: Sequence[str], folders: Iterable[str]) -> list[str]:
    there = {name for folder in folders for name in (folder, strip_operators(folder))}
    return [label for label in label_names if label not in there and strip_operators(label) not in there]


def _check_label_folders(label_names: Sequence[str], folders: Iterable[str], where: object) -> None:
    missing = _without_folder(label_names, folders)
    if missing:
        raise refuse_labels(missing, folders, lack=f"a folder in {where}")


def _read_labels(
    folders: Mapping[str, Path], label_names: Sequence[str], *, part: Part | None, root: Path
) -> Iterator[Found]:
    if part is None:
        _check_label_folders(label_names, folders, root)
    wanted = {strip_operators(label) for label in label_names}
    for label, folder in folders.items():
        if wanted and strip_operators(label) not in wanted:
            continue
        for path in _picture_files(folder):
            picture_id = _printable(path.relative_to(root).as_posix())
            yield _file_picture(path, id=picture_id, label=_printable(label), part=part)


def _printable(name: str) -> str:
    """Return a file's name on one line, as UTF-8 can write it, whatever bytes it has on disk."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _picture_files(folder: Path) -> Iterator[Path]:
    """Yield the pictures in a folder, then those in the folders below; links to other folders are not followed."""
    folders = [folder]
    while folders:
        here = folders.pop()
        entries = [(here / name, is_folder) for name, is_folder in list_folder(here) if not name.startswith(".")]
        yield from (path for path, is_folder in entries if not is_folder and path.suffix.lower() in SUFFIXES)
        folders += [path for path, is_folder in reversed(entries) if is_folder and not path.is_symlink()]


# Files of pictures


def _file_picture(path: Path, *, id: str, label: str, part: Part | None) -> Found:
    return Found(id, label, part, partial(read_file, path), partial(open_file, path), is_file=True)


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
            turn_upright(image)
            return image
    except UnidentifiedImageError:
        raise OSError(f"not a picture of the formats {', '.join(formats)}") from None


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
