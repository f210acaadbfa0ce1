"""The classifying data sets of ``torchvision.datasets`` as pictures of a task.

The classes keep their pictures in three ways: as arrays, as files that they open when asked, or as pairs of file
and class index. The class indices are read from what each keeps, so that no picture is decoded for its label; a
file's content is its bytes, an array's its pixels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlmeta.commands.documents import TorchvisionData
from mlmeta.data.roots import check_tree, read_roots
from mlmeta.data.sources import DAMAGED, FORMATS, Found, open_file, read_file, turn_upright
from mlmeta.data.splits import Part
from mlmeta.errors import PicturesError, one_line, suggest

_CALLS = json.loads((resources.files("mlmeta.data") / "torchvision_datasets.json").read_text(encoding="utf-8"))
# How each class is asked for its parts; None is a class without parts. Where the test part has no public labels, the
# validation part is the test.
DATASETS: Mapping[str, Mapping[Part | None, Mapping[str, Any]]] = {
    name: {None if part == "all" else part: call for part, call in calls.items()} for name, calls in _CALLS.items()
}
# Those whose files torchvision cannot fetch.
NOT_DOWNLOADED = frozenset({"FER2013", "ImageNet", "StanfordCars"})
# The attributes in which a class may keep its classes, its pairs and its files.
_TARGETS = ("targets", "labels", "_labels", "y")
_CLASSES = ("classes", "categories", "_characters")
_PAIRS = ("_samples", "samples", "imgs", "_flat_character_images")
_FILES = ("_image_files", "_images")


def read_torchvision(data: TorchvisionData, *, root: Path) -> list[Found]:
    """Return the pictures of a data set of torchvision, of all its parts.

    Raises:
        PicturesError: If it is not one that classifies, or its files are missing, damaged or out of reach.
    """
    if data.name not in DATASETS:
        hint = suggest(data.name, DATASETS)
        raise PicturesError(f"data.name: {data.name!r} is not one of {', '.join(DATASETS)}{hint}")
    if data.download and read_roots() is not None:
        raise PicturesError("data.download: must be false where MLMETA_DATA_ROOT is set: nothing is fetched")
    try:
        # torchvision opens files itself.
        check_tree(root)
    except OSError as error:
        raise PicturesError(f"data.path: {data.path} cannot be read: {error}") from None
    import torchvision

    found = []
    for part, call in DATASETS[data.name].items():
        try:
            download = {} if data.name in NOT_DOWNLOADED else {"download": data.download}
            dataset = getattr(torchvision.datasets, data.name)(root, **download, **call)
            found += _list_pictures(dataset, data.name, part)
        except (*DAMAGED, ImportError) as error:
            raise _explain_refusal(data, root, error) from None
    return found


def _explain_refusal(data: TorchvisionData, root: Path, error: BaseException) -> PicturesError:
    hint = ' ("download": true fetches the files)'
    if data.name in NOT_DOWNLOADED:
        hint = " (torchvision cannot fetch the files; its documentation says where they must lie)"
    elif data.download:
        hint = ""
    return PicturesError(f"data: {data.name} cannot be read in {root}{hint}: {one_line(error)}")


def _list_pictures(dataset: Any, name: str, part: Part | None) -> list[Found]:
    targets, files = _read_targets(dataset), _read_files(dataset)
    labels = _name_classes(_first_attribute(dataset, _CLASSES), targets)
    # Some classes list a folder in the file system's order.
    order = sorted(range(len(targets)), key=lambda index: (labels[index], str(files[index])) if files else index)
    width = len(str(len(targets)))
    found = []
    for number, index in enumerate(order):
        picture_id = f"{name}/{part or 'all'}/{number:0{width}d}"
        if files:
            read, open_picture = partial(read_file, files[index]), partial(_open_file, files[index])
        else:
            read, open_picture = partial(_read_pixels, dataset, index), partial(_open_picture, dataset, index)
        found.append(Found(picture_id, labels[index], part, read, open_picture, is_file=bool(files)))
    return found


def _first_attribute(dataset: Any, names: Sequence[str]) -> Any:
    return next((value for name in names if (value := getattr(dataset, name, None)) is not None), None)


def _read_targets(dataset: Any) -> list[int]:
    """Return the class index of every picture, from what the class keeps where it keeps something."""
    values = _first_attribute(dataset, _TARGETS)
    if values is None and (pairs := _first_attribute(dataset, _PAIRS)) is not None:
        values = [target for _, target in pairs]
    if values is None and hasattr(dataset, "h5py"):
        with dataset.h5py.File(dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]) as file:
            values = file["y"][:]
    if values is None or any(value is None for value in values):
        raise ValueError("its files hold no labels")
    # QMNIST keeps a row of facts a picture, whose first is the class; PCAM keeps arrays of one number.
    table = np.asarray(values).reshape(len(values), -1)
    return [int(target) for target in table[:, 0]] if len(values) else []


def _name_classes(classes: Sequence[Any] | None, targets: Sequence[int]) -> list[str]:
    """Return the label of every picture: its class's name, or its index where the classes have no names.

    Where a class has several names (ImageNet's synonyms), it is the first if no other class has that too.
    """
    if not classes:
        return [str(target) for target in targets]
    rows = [(one,) if isinstance(one, str) else tuple(one) for one in classes]
    counts = Counter(row[0] for row in rows)
    names = [row[0] if counts[row[0]] == 1 else ", ".join(row) for row in rows]
    return [names[target] for target in targets]


def _read_files(dataset: Any) -> list[Path]:
    """Return the file of every picture, or nothing where the class keeps no files."""
    files = _first_attribute(dataset, _FILES)
    if files is None:
        pairs = _first_attribute(dataset, _PAIRS) or ()
        files = [file for file, _ in pairs if isinstance(file, str | Path)]
    if hasattr(dataset, "_flat_character_images"):
        names = dataset._characters
        files = [Path(dataset.target_folder, names[t], file) for file, t in dataset._flat_character_images]
    return [Path(file) for file in files]


def _open_file(path: Path, *, sha256: str | None = None) -> Image.Image:
    # GTSRB's files are in the format PPM.
    return open_file(path, formats=(*FORMATS, "PPM"), sha256=sha256).convert("RGB")


def _open_picture(dataset: Any, index: int) -> Image.Image:
    image: Image.Image
    with dataset[index][0] as image:
        image.load()
        turn_upright(image)
        return image


def _read_pixels(dataset: Any, index: int) -> bytes:
    image = _open_picture(dataset, index)
    return f"{image.mode} {image.size} ".encode() + image.tobytes()
