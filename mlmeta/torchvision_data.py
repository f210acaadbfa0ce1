"""The classifying data sets of ``torchvision.datasets`` as pictures of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mlmeta.commands import TorchvisionData
from mlmeta.errors import PicturesError, nearest_name
from mlmeta.pictures import Found, Part

_Calls = Mapping[Part | None, Mapping[str, Any]]

_FLAG: _Calls = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: _Calls = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: _Calls = {**_SPLIT, "validation": {"split": "val"}}
_WHOLE: _Calls = {None: {}}
# How each class is asked for its parts.
DATASETS: Mapping[str, _Calls] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": {**_SPLIT, "validation": {"split": "valid"}},
    "DTD": _THREE,
    "EMNIST": {"train": {"split": "balanced", "train": True}, "test": {"split": "balanced", "train": False}},
    "EuroSAT": _WHOLE,
    "FGVCAircraft": _THREE,
    "FashionMNIST": _FLAG,
    "Flowers102": _THREE,
    "Food101": _SPLIT,
    "GTSRB": _SPLIT,
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "PCAM": _THREE,
    "QMNIST": _FLAG,
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "STL10": _SPLIT,
    "SVHN": _SPLIT,
    "StanfordCars": _SPLIT,
    "USPS": _FLAG,
}


def read_torchvision(data: TorchvisionData, *, root: Path) -> list[Found]:
    """Return the pictures of a data set of torchvision, of all its parts.

    Raises:
        PicturesError: If it is not one that classifies, or its files are missing, damaged or out of reach.
    """
    if data.name not in DATASETS:
        near = nearest_name(data.name, DATASETS)
        hint = f". Did you mean {near!r}?" if near else ""
        raise PicturesError(f"data.name: {data.name!r} is not one of {', '.join(DATASETS)}{hint}")
    found = []
    for part, call in DATASETS[data.name].items():
        dataset = _open_dataset(data, root, call)
        found += _list_pictures(dataset, data.name, part)
    return found


def _open_dataset(data: TorchvisionData, root: Path, call: Mapping[str, Any]) -> Any:
    import torchvision

    cls = getattr(torchvision.datasets, data.name)
    try:
        if data.name == "StanfordCars":
            return cls(root, **call)
        return cls(root, download=data.download, **call)
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        hint = "" if data.download else ' ("download": true fetches them)'
        reason = " ".join(str(error).split())[:300]
        raise PicturesError(f"data: {data.name} cannot be opened in {root}{hint}: {reason}") from None


def _list_pictures(dataset: Any, name: str, part: Part | None) -> list[Found]:
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    targets = _read_targets(dataset)
    width = len(str(len(targets)))
    return [
        Found(
            id=f"{name}/{part or 'all'}/{index:0{width}d}",
            label=str(classes[target]) if classes else str(target),
            part=part,
            read_content=_reader(dataset, index),
            open=_opener(dataset, index),
        )
        for index, target in enumerate(targets)
    ]


def _read_targets(dataset: Any) -> Sequence[int]:
    """Return the class index of every picture, from the list that the class keeps where it keeps one."""
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return [int(value) for value in values]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _opener(dataset: Any, index: int) -> Callable[[], Image.Image]:
    def open_picture() -> Image.Image:
        image: Image.Image = dataset[index][0]
        return image

    return open_picture


def _reader(dataset: Any, index: int) -> Callable[[], bytes]:
    def read_content() -> bytes:
        image: Image.Image = dataset[index][0]
        return f"{image.mode} {image.size} ".encode() + image.tobytes()

    return read_content
