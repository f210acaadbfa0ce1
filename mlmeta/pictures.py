"""Find the pictures of a task, check them, and split them into training, validation and test.

A source (folder, manifest, torchvision, sample) gives `Found` pictures; `find_pictures` keeps those of the wanted
labels and decides each one's part. Where the source names no test part, the picture's content decides: the SHA-256
of its bytes, read as a number in [0, 1), lies below the wanted share or not. So equal pictures never stand on both
sides, and adding pictures moves no other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image, ImageOps

from mlmeta.commands import Data, FolderData, ManifestData, SampleData
from mlmeta.errors import PicturesError, nearest_name
from mlmeta.samples import list_samples

Part: TypeAlias = Literal["train", "validation", "test"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PARTS: dict[str, Part] = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
_OPERATOR = re.compile(r"\s+[A-Za-z_]+:\S+")


@dataclass(frozen=True)
class Found:
    """A picture as its source gives it.

    Attributes:
        id: Its name within the source, the same on every machine.
        label: Its label's name in the source.
        part: The part that the source puts it in; None where it does not say.
        read_content: Gives the bytes that identify the picture.
        open: Gives the decoded picture.
    """

    id: str
    label: str
    part: Part | None
    read_content: Callable[[], bytes]
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class Picture:
    """A picture of a task: its id, the index of its label, its part, the SHA-256 (hex) of its content."""

    id: str
    label: int
    part: Part
    digest: str
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class PictureSet:
    """The pictures of a task, in the order of their ids.

    Attributes:
        label_names: In the order of the label indices, as the commands give them.
        pictures: All parts.
        digest: SHA-256 (hex) over labels, parts (train or test) and contents, whatever the order.
        source: Where they come from, in words.
    """

    label_names: tuple[str, ...]
    pictures: tuple[Picture, ...]
    digest: str
    source: str

    @property
    def task_digest(self) -> str:
        """SHA-256 (hex) of the task: its labels, whatever their order, its pictures, and the score, accuracy."""
        task = {
            "labels": sorted(map(strip_operators, self.label_names)),
            "data": self.digest,
            "score": "accuracy",
        }
        return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()

    def select(self, part: Part) -> list[Picture]:
        """Return the pictures of one part."""
        return [picture for picture in self.pictures if picture.part == part]


def strip_operators(label: str) -> str:
    """Return a label without its query operators: ``Boston Terrier imagesize:500x500`` → ``Boston Terrier``."""
    return _OPERATOR.sub("", label).strip() or label


def find_pictures(
    data: Data, label_names: Sequence[str] = (), *, base_dir: Path, validation: float = 0.0
) -> PictureSet:
    """Find the pictures of the commands' data.

    Args:
        data: Where they are.
        label_names: The wanted labels in order; empty for every label that the source has.
        base_dir: What relative paths are relative to.
        validation: Share of the training pictures to keep for validation, where the source has no such part.

    Raises:
        PicturesError: If there is no such place, no picture, or a label without (training) pictures.
    """
    found = _read_source(data, label_names, base_dir)
    if not found:
        raise PicturesError(f"data: {describe_source(data, base_dir)} holds no picture ({', '.join(sorted(SUFFIXES))})")
    labels = tuple(label_names) or tuple(sorted({picture.label for picture in found}))
    if len(labels) < 2:
        raise PicturesError(f"data: {describe_source(data, base_dir)} has one label only ({labels[0]}); two are needed")
    index = _match_labels(labels, found)
    has_test = any(picture.part == "test" for picture in found)
    has_validation = any(picture.part == "validation" for picture in found)
    chooser = _PartChooser(0.0 if has_test else data.test_fraction, 0.0 if has_validation else validation)
    pictures = [
        _place(picture, index[picture.label], chooser)
        for picture in sorted(found, key=lambda picture: picture.id)
        if picture.label in index
    ]
    _check_training_pictures(pictures, labels)
    return PictureSet(labels, tuple(pictures), _digest_pictures(pictures, labels), describe_source(data, base_dir))


def describe_source(data: Data, base_dir: Path) -> str:
    """Return in words where pictures come from."""
    if isinstance(data, FolderData | ManifestData):
        return f"{data.source} {base_dir / data.path}"
    return f"{data.source} {data.name}"


def _read_source(data: Data, label_names: Sequence[str], base_dir: Path) -> list[Found]:
    if isinstance(data, FolderData):
        return read_folder(base_dir / data.path, label_names)
    if isinstance(data, SampleData):
        return _read_sample(data)
    if isinstance(data, ManifestData):
        from mlmeta.manifest import read_manifest

        return read_manifest(base_dir / data.path)
    from mlmeta.torchvision_data import read_torchvision

    return read_torchvision(data, root=base_dir / data.path)


def open_file(path: Path) -> Image.Image:
    """Open and decode a picture file, turned upright as its EXIF says.

    Raises:
        OSError: If it is damaged, or of a format that mlmeta does not read.
    """
    with Image.open(path, formats=FORMATS) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def file_picture(path: Path, *, id: str, label: str, part: Part | None) -> Found:
    """Return a file as a picture."""
    return Found(id, label, part, path.read_bytes, lambda: open_file(path))


def read_folder(root: Path, label_names: Sequence[str] = ()) -> list[Found]:
    """Return the pictures of ``<root>/<label>/…`` or ``<root>/train|test|validation/<label>/…``.

    Raises:
        PicturesError: If there is no such folder, or a wanted label has none.
    """
    if not root.is_dir():
        siblings = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        near = nearest_name(root.name, siblings)
        raise PicturesError(f"data.path: there is no folder {root}" + (f". Did you mean {near!r}?" if near else ""))
    folders = _subfolders(root)
    parts = {name: PARTS[name.lower()] for name in folders if name.lower() in PARTS and name not in label_names}
    if "train" not in parts.values():
        return _read_labels(root, label_names, None, root)
    found = []
    for name, part in parts.items():
        found += _read_labels(root / name, label_names if part == "train" else (), part, root)
    return found


def _subfolders(root: Path) -> dict[str, Path]:
    return {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def _read_labels(root: Path, label_names: Sequence[str], part: Part | None, top: Path) -> list[Found]:
    folders = _subfolders(root)
    missing = [label for label in label_names if label not in folders and strip_operators(label) not in folders]
    if missing:
        lines = "; ".join(_explain_missing(label, folders) for label in missing[:5])
        raise PicturesError(f"label_names: {len(missing)} label(s) without a folder in {root}: {lines}")
    return [
        file_picture(path, id=path.relative_to(top).as_posix(), label=label, part=part)
        for label, folder in folders.items()
        for path in _picture_files(folder)
    ]


def _explain_missing(label: str, folders: Iterable[str]) -> str:
    near = nearest_name(strip_operators(label), folders)
    return f"{label!r}" + (f" (did you mean {near!r}?)" if near else "")


def _picture_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _read_sample(data: SampleData) -> list[Found]:
    samples = list_samples(data.name, size=data.size, n_per_label=data.n_per_label)
    return [Found(s.id, s.label, None, partial(attrgetter("key"), s), s.draw) for s in samples]


def _match_labels(labels: Sequence[str], found: Sequence[Found]) -> dict[str, int]:
    """Return the index of each label's name in the source.

    Raises:
        PicturesError: If a label has no pictures, or two labels mean the same ones.
    """
    counts = Counter(picture.label for picture in found)
    index: dict[str, int] = {}
    for position, label in enumerate(labels):
        name = label if label in counts else strip_operators(label)
        if name not in counts:
            raise PicturesError(f"label_names.{position}: no picture has the label {_explain_missing(label, counts)}")
        if name in index:
            raise PicturesError(f"label_names.{position}: {label!r} and {labels[index[name]]!r} name the same pictures")
        index[name] = position
    return index


@dataclass(frozen=True)
class _PartChooser:
    """Decides a picture's part from its content, where the source does not."""

    test: float
    validation: float

    def choose(self, given: Part | None, digest: str) -> Part:
        if given in ("test", "validation"):
            return given
        if self.test and content_share(digest, "test") < self.test:
            return "test"
        if self.validation and content_share(digest, "validation") < self.validation:
            return "validation"
        return "train"


def content_share(digest: str, salt: str) -> float:
    """Return a number in [0, 1) that a picture's content and a salt decide, evenly spread."""
    value = hashlib.sha256(f"{salt}:{digest}".encode()).digest()
    return int.from_bytes(value[:8]) / 2**64


def _place(found: Found, label: int, chooser: _PartChooser) -> Picture:
    digest = hashlib.sha256(found.read_content()).hexdigest()
    return Picture(found.id, label, chooser.choose(found.part, digest), digest, found.open)


def _check_training_pictures(pictures: Sequence[Picture], labels: Sequence[str]) -> None:
    trained = {picture.label for picture in pictures if picture.part == "train"}
    bare = [label for index, label in enumerate(labels) if index not in trained]
    if bare:
        names = ", ".join(repr(label) for label in bare[:5])
        raise PicturesError(f"data: {len(bare)} label(s) have no picture to train on: {names}")


def _digest_pictures(pictures: Sequence[Picture], labels: Sequence[str]) -> str:
    names = [strip_operators(label) for label in labels]
    lines = sorted(f"{names[p.label]}\t{'test' if p.part == 'test' else 'train'}\t{p.digest}" for p in pictures)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def choose_pictures(pictures: PictureSet, *, limit: int = 0, ids: Sequence[str] = (), seed: int = 0) -> list[Picture]:
    """Return the pictures to test on.

    Args:
        pictures: The task's.
        limit: How many to draw from the test part without replacement; 0 takes all.
        ids: The pictures by id, of any part; empty takes the test part.
        seed: Of the draw.

    Raises:
        PicturesError: If an id is unknown, or there is no picture to test on.
    """
    chosen = _choose_ids(pictures, ids) if ids else pictures.select("test")
    if not chosen:
        raise PicturesError(
            f"data: no picture of {pictures.source} ({len(pictures.pictures)} in all) falls into the test part; add "
            "pictures, name a test part, or raise data.test_fraction"
        )
    if not limit or limit >= len(chosen):
        return chosen
    # Ordered by a hash of seed and content: the draw does not depend on the machine or on other pictures.
    drawn = sorted(chosen, key=lambda picture: (content_share(picture.digest, f"limit {seed}"), picture.id))[:limit]
    return sorted(drawn, key=lambda picture: picture.id)


def _choose_ids(pictures: PictureSet, ids: Sequence[str]) -> list[Picture]:
    by_id = {picture.id: picture for picture in pictures.pictures}
    unknown = [name for name in ids if name not in by_id]
    if unknown:
        near = nearest_name(unknown[0], by_id)
        hint = f". Did you mean {near!r}?" if near else ""
        raise PicturesError(f"ids: {len(unknown)} picture(s) are not there, such as {unknown[0]!r}{hint}")
    return [by_id[name] for name in dict.fromkeys(ids)]
