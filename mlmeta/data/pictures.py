"""Find the pictures of a task, check them, and split them into training, validation and test.

A source (folder, manifest, torchvision, sample) gives `Found` pictures and accounts for all else that it looked at;
`find_pictures` keeps those of the wanted labels. Where the source names no test or validation part, that is drawn
(`mlmeta.data.splits`).
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

from PIL import Image

from mlmeta.commands.documents import Data, FolderData, ManifestData, SampleData, strip_operators
from mlmeta.data.account import Item, Kind, Reason, Warned, check_bad
from mlmeta.data.folders import read_folder
from mlmeta.data.manifests import read_manifest
from mlmeta.data.samples import list_samples
from mlmeta.data.sources import DAMAGED, FORMATS, SUFFIXES, Found, Listing, quiet_pillow, refuse_labels
from mlmeta.data.splits import Drawn, Part, content_share, draw_parts
from mlmeta.data.torchvision_datasets import read_torchvision
from mlmeta.errors import PicturesError, suggest


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
        kind: What a picture is an item of, in the account.
        items: All else that the source looked at.
        warnings: What the source warns of.
        n_deep: How many files have more than 8 bits a channel.
        n_transparent: How many have transparency.
        drawn: The parts that mlmeta drew, with their shares.
    """

    label_names: tuple[str, ...]
    pictures: tuple[Picture, ...]
    digest: str
    source: str
    kind: Kind = "file"
    items: tuple[Item, ...] = ()
    warnings: tuple[Warned, ...] = ()
    n_deep: int = 0
    n_transparent: int = 0
    drawn: tuple[tuple[Part, float], ...] = ()

    @property
    def task_digest(self) -> str:
        """SHA-256 (hex) of the task: its labels, whatever their order, its pictures, and the score, accuracy."""
        task = {"labels": sorted(_name_labels(self.label_names)), "data": self.digest, "score": "accuracy"}
        return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()

    def select(self, part: Part) -> list[Picture]:
        """Return the pictures of one part."""
        return [picture for picture in self.pictures if picture.part == part]


def find_pictures(
    data: Data,
    label_names: Sequence[str] = (),
    *,
    base_dir: Path,
    validation: float = 0.0,
    training: bool = True,
    test_all: bool = False,
) -> PictureSet:
    """Find the pictures of the commands' data.

    Args:
        data: Where they are.
        label_names: The wanted labels in order; empty for every label that the source has.
        base_dir: What relative paths are relative to.
        validation: Share of the training pictures to keep for validation, where the source has no such part.
        training: Whether they are to train on, so that every label needs a training picture, and two are needed.
        test_all: Put every picture into the test part; where the source names a test part, only that is kept.

    Raises:
        PicturesError: If there is no such place, no picture, a label without (training) pictures, or too much that was
            meant to be a picture and is none.
    """
    source = describe_source(data, base_dir)
    listing = _list_pictures(data, label_names, base_dir, source)
    labels = tuple(label_names) or tuple(sorted({picture.label for picture in listing.found}))
    if len(labels) < 2 and training:
        raise PicturesError(f"data: {source} has one label only ({labels[0]}); two are needed")
    index = _match_labels(labels, {picture.label for picture in listing.found}, source)
    wanted = _order(picture for picture in listing.found if picture.label in index)
    items = [*listing.items, *_leave_out(listing, index.keys(), Reason.OTHER_LABEL)]
    if test_all and any(picture.part == "test" for picture in wanted):
        items += [Item(listing.kind, p.id, Reason.NOT_TESTED, p.label) for p in wanted if p.part != "test"]
        wanted = [picture for picture in wanted if picture.part == "test"]
    shares: dict[Part, float] = {} if test_all else {"test": data.test_fraction, "validation": validation}
    shares = {part: share for part, share in shares.items() if share and all(one.part != part for one in wanted)}
    read = _read_all(wanted)
    drawn = iter(_draw(wanted, read, labels, index, shares))
    parts = ["test" if test_all else next(drawn) if one.part in (None, "train") else one.part for one in wanted]
    pictures = tuple(
        Picture(one.id, index[one.label], part or "train", content.digest, content.open)
        for one, part, content in zip(wanted, parts, read, strict=True)
    )
    if training:
        check_training_pictures(pictures, labels)
    return PictureSet(
        labels, pictures, _digest_pictures(pictures, labels), source, listing.kind, tuple(items),
        tuple(listing.warnings), sum(content.is_deep for content in read), sum(c.is_transparent for c in read),
        tuple(shares.items()),
    )  # fmt: skip


def _read_all(found: Sequence[Found]) -> list[_Content]:
    with quiet_pillow():
        return [_read(picture) for picture in found]


def _list_pictures(data: Data, label_names: Sequence[str], base_dir: Path, source: str) -> Listing:
    listing = _read_source(data, label_names, base_dir)
    check_bad(listing.items, len(listing.found))
    if not listing.found:
        raise PicturesError(f"data: {source} holds no picture ({', '.join(sorted(SUFFIXES))}) under a label")
    return listing


def _order(found: Iterable[Found]) -> list[Found]:
    ordered = sorted(found, key=lambda picture: picture.id)
    for one, other in itertools.pairwise(ordered):
        if one.id == other.id:
            raise PicturesError(f"data: two pictures have the id {one.id!r}, labels {one.label!r} and {other.label!r}")
    return ordered


def _leave_out(listing: Listing, labels: Iterable[str], reason: Reason) -> list[Item]:
    kept = set(labels)
    return [
        Item(listing.kind, picture.id, reason, picture.label) for picture in listing.found if picture.label not in kept
    ]


def _draw(
    wanted: Sequence[Found], read: Sequence[_Content], labels: Sequence[str], index: Mapping[str, int],
    shares: Mapping[Part, float],
) -> list[Part]:  # fmt: skip
    """Return the parts of the pictures that their source puts into training, or nowhere."""
    return draw_parts(
        [
            Drawn(strip_operators(labels[index[one.label]]), content.digest, one.group)
            for one, content in zip(wanted, read, strict=True)
            if one.part in (None, "train")
        ],
        shares,
    )


def describe_source(data: Data, base_dir: Path) -> str:
    """Return in words where pictures come from."""
    if isinstance(data, FolderData | ManifestData):
        return f"{data.source} {base_dir / data.path}"
    return f"{data.source} {data.name}"


def _read_source(data: Data, label_names: Sequence[str], base_dir: Path) -> Listing:
    if isinstance(data, FolderData):
        return read_folder(base_dir / data.path, label_names, group=data.group)
    if isinstance(data, SampleData):
        samples = list_samples(data.name, size=data.size, n_per_label=data.n_per_label)
        return Listing(
            [Found(s.id, s.label, None, partial(attrgetter("key"), s), s.draw) for s in samples], kind="picture"
        )
    if isinstance(data, ManifestData):
        return read_manifest(base_dir / data.path, columns=data.columns, group=data.group)
    return Listing(read_torchvision(data, root=base_dir / data.path), kind="picture")


def _match_labels(labels: Sequence[str], names: Iterable[str], source: str) -> dict[str, int]:
    """Return for each label's name in the source, with or without query operators, the index of the label.

    Raises:
        PicturesError: If a label has no pictures, or two labels mean the same ones.
    """
    exact = {label: position for position, label in enumerate(labels)}
    by_bare: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        by_bare.setdefault(strip_operators(label), []).append(position)
    index: dict[str, int] = {}
    for name in sorted(names):
        positions = [exact[name]] if name in exact else by_bare.get(strip_operators(name), [])
        if len(positions) > 1:
            raise _same_pictures(labels[positions[0]], labels[positions[1]], name)
        if positions:
            index[name] = positions[0]
    matched = set(index.values())
    bare = [label for position, label in enumerate(labels) if position not in matched]
    names_by_bare = {strip_operators(name): name for name in index}
    for label in bare:
        if other := names_by_bare.get(strip_operators(label)):
            raise _same_pictures(labels[index[other]], label, other)
    if bare:
        raise refuse_labels(bare, set(names) - index.keys(), lack=f"a picture in {source}")
    return index


def _same_pictures(first: str, second: str, name: str) -> PicturesError:
    return PicturesError(f"label_names: {first!r} and {second!r} name the same pictures, those of {name!r}")


@dataclass(frozen=True)
class _Content:
    """What the bytes of a picture say, and how it is opened."""

    digest: str
    open: Callable[[], Image.Image]
    is_deep: bool = False
    is_transparent: bool = False


def _read(found: Found) -> _Content:
    try:
        content = found.read_content()
    except DAMAGED as error:
        # It is left out with the reason when the pictures are decoded.
        return _Content(hashlib.sha256(f"unreadable {found.id}".encode()).hexdigest(), partial(_refuse, error))
    digest = hashlib.sha256(content).hexdigest()
    if not found.is_file:
        return _Content(digest, found.open)
    is_deep, is_transparent = _look_at_header(content)
    # Pixels are kept under their content's digest, and a file may change meanwhile.
    return _Content(digest, partial(found.open, sha256=digest), is_deep, is_transparent)


def _look_at_header(content: bytes) -> tuple[bool, bool]:
    """Return whether a file's picture has more than 8 bits a channel, and whether it has transparency."""
    if content.startswith(b"\xff\xd8"):
        return False, False
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.mode == "F" or image.mode.startswith("I"), image.has_transparency_data
    except DAMAGED:
        return False, False


def _refuse(error: Exception) -> Image.Image:
    raise error


def find_conflicts(pictures: Iterable[Picture]) -> list[Picture]:
    """Return the pictures whose content stands under more than one label, those of one content side by side.

    Give it those that can be read, such as ``DecodedPictures.pictures``: two empty files are no picture.
    """
    by_digest: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_digest.setdefault(picture.digest, []).append(picture)
    groups = (group for group in by_digest.values() if len({picture.label for picture in group}) > 1)
    return [picture for group in groups for picture in group]


def check_training_pictures(pictures: Iterable[Picture], labels: Sequence[str]) -> None:
    """Check that every label has a picture to train on.

    Raises:
        PicturesError: If some have none.
    """
    trained = {picture.label for picture in pictures if picture.part == "train"}
    bare = [label for index, label in enumerate(labels) if index not in trained]
    if bare:
        names = ", ".join(repr(label) for label in bare[:5])
        raise PicturesError(
            f"data: {len(bare)} label(s) have no picture to train on: {names}; add pictures, or lower "
            "data.test_fraction or validation"
        )


def _digest_pictures(pictures: Sequence[Picture], labels: Sequence[str]) -> str:
    names = _name_labels(labels)
    lines = sorted(json.dumps([names[p.label], "test" if p.part == "test" else "train", p.digest]) for p in pictures)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _name_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels without operators; with them only where they alone tell two labels apart."""
    counts = Counter(map(strip_operators, labels))
    return [bare if counts[bare := strip_operators(label)] == 1 else label for label in labels]


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
        hint = suggest(unknown[0], by_id)
        raise PicturesError(f"ids: {len(unknown)} picture(s) are not there, such as {unknown[0]!r}{hint}")
    return [by_id[name] for name in dict.fromkeys(ids)]
