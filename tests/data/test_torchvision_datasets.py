"""The data sets of torchvision, read from small files written as each class keeps them."""

from __future__ import annotations

import bz2
import csv
import inspect
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from mlmeta.commands.documents import TorchvisionData
from mlmeta.data.pictures import PictureSet, find_pictures
from mlmeta.data.sources import Found
from mlmeta.data.torchvision_datasets import DATASETS, NOT_DOWNLOADED, read_torchvision
from mlmeta.errors import PicturesError


def data(name: str, **options: Any) -> TorchvisionData:
    return TorchvisionData(source="torchvision", name=name, path="tv", **options)


def find(root: Path, name: str, *labels: str, **options: Any) -> PictureSet:
    return find_pictures(data(name, **options), labels, base_dir=root)


def facts(found: list[Found]) -> list[tuple[str | None, str, int]]:
    """Return (part, label, first grey value) of every picture, in the order of ids."""
    opened = [(picture, picture.open().convert("L")) for picture in sorted(found, key=lambda picture: picture.id)]
    return [(picture.part, picture.label, int(np.asarray(image)[0, 0])) for picture, image in opened]


def digits(n: int, *, start: int = 0) -> np.ndarray:
    """Return n small pictures, each of one grey value that tells which it is."""
    return np.stack([np.full((4, 4), 10 * (start + index), dtype=np.uint8) for index in range(n)])


def write_idx(file: Path, array: np.ndarray) -> None:
    """Write an array in the format of the MNIST files: magic number, sizes, numbers, all big-endian."""
    kind = {np.dtype(np.uint8): 8, np.dtype(np.int32): 12}[array.dtype]
    file.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{array.ndim + 1}I", kind * 256 + array.ndim, *array.shape)
    file.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_mnist(root: Path, name: str = "MNIST") -> None:
    raw = root / "tv" / name / "raw"
    for part, n, start in (("train", 6, 0), ("t10k", 4, 10)):
        write_idx(raw / f"{part}-images-idx3-ubyte", digits(n, start=start))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8) % 3)


def write_emnist(root: Path) -> None:
    raw = root / "tv" / "EMNIST" / "raw"
    for part in ("train", "test"):
        write_idx(raw / f"emnist-balanced-{part}-images-idx3-ubyte", digits(3))
        write_idx(raw / f"emnist-balanced-{part}-labels-idx1-ubyte", np.array([0, 10, 46], dtype=np.uint8))


def write_qmnist(root: Path) -> None:
    raw = root / "tv" / "QMNIST" / "raw"
    for part in ("train", "test"):
        write_idx(raw / f"qmnist-{part}-images-idx3-ubyte", digits(3))
        rows = np.array([[7, 1, 2, 3, 4, 5, 0, 0], [1, 9, 9, 9, 9, 9, 9, 9], [4] * 8], dtype=np.int32)
        write_idx(raw / f"qmnist-{part}-labels-idx2-int", rows)


def write_usps(root: Path) -> None:
    (root / "tv").mkdir()
    for name in ("usps.bz2", "usps.t.bz2"):
        lines = [f"{label} " + " ".join(f"{i + 1}:{value}" for i in range(256)) for label, value in ((1, -1), (10, 1))]
        (root / "tv" / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def picture(file: Path, value: int, kind: str | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(file, kind, **({"quality": 100} if kind == "JPEG" else {}))


def write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def write_dtd(root: Path) -> None:
    base = root / "tv" / "dtd" / "dtd"
    for part, number in (("train", 0), ("val", 1), ("test", 2)):
        lines = [f"{cls}/{number}.jpg" for cls in ("dotted", "banded")]
        write_text(base / "labels" / f"{part}1.txt", "\n".join(lines) + "\n")
        for value, line in enumerate(lines):
            picture(base / "images" / line, 100 * value, "JPEG")


def write_food(root: Path) -> None:
    base = root / "tv" / "food-101"
    for part in ("train", "test"):
        names = {cls: [f"{cls}/{part}{index}" for index in range(2)] for cls in ("waffles", "beignets")}
        write_text(base / "meta" / f"{part}.json", json.dumps(names))
        for value, name in enumerate(name for of_class in names.values() for name in of_class):
            picture(base / "images" / f"{name}.jpg", 60 * value, "JPEG")


def write_aircraft(root: Path) -> None:
    base = root / "tv" / "fgvc-aircraft-2013b" / "data"
    write_text(base / "variants.txt", "707-320\nA 310\n")
    for number, part in enumerate(("train", "val", "test")):
        write_text(base / f"images_variant_{part}.txt", f"{number}0 A 310\n{number}1 707-320\n")
        picture(base / "images" / f"{number}0.jpg", 0, "JPEG")
        picture(base / "images" / f"{number}1.jpg", 100, "JPEG")


def write_gtsrb(root: Path) -> None:
    base = root / "tv" / "gtsrb"
    for label in range(2):
        picture(base / "GTSRB" / "Training" / f"{label:05}" / "0.ppm", 50 * label, "PPM")
        picture(base / "GTSRB" / "Final_Test" / "Images" / f"{label}.ppm", 50 * label, "PPM")
    with (base / "GT-final_test.csv").open("w", newline="") as stream:
        csv.writer(stream, delimiter=";").writerows([["Filename", "ClassId"], ["0.ppm", 0], ["1.ppm", 1]])


def write_pets(root: Path) -> None:
    base = root / "tv" / "oxford-iiit-pet"
    for part in ("trainval", "test"):
        write_text(base / "annotations" / f"{part}.txt", f"Maine_Coon_{part} 1 1 1\npug_{part} 2 2 1\n")
        picture(base / "images" / f"Maine_Coon_{part}.jpg", 0, "JPEG")
        picture(base / "images" / f"pug_{part}.jpg", 100, "JPEG")


def write_folders(*parts: str, suffix: str, kind: str, classes: tuple[str, ...]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for part in parts:
            for value, cls in enumerate(classes):
                picture(root / "tv" / part / cls / f"image_0001{suffix}", 100 * value, kind)

    return write


def write_caltech_256(root: Path) -> None:
    for value, cls in enumerate(("001.ak47", "002.bat")):
        picture(root / "tv/caltech256/256_ObjectCategories" / cls / f"{value + 1:03d}_0001.jpg", 100 * value, "JPEG")


def write_caltech_101(root: Path) -> None:
    for value, cls in enumerate(("BACKGROUND_Google", "ant", "bass")):
        picture(root / "tv/caltech101/101_ObjectCategories" / cls / "image_0001.jpg", 100 * value - 100, "JPEG")


def write_sun(root: Path) -> None:
    write_text(root / "tv/SUN397/ClassName.txt", "/a/abbey\n/b/balcony/exterior\n")
    picture(root / "tv/SUN397/b/balcony/exterior/sun_b.jpg", 100, "JPEG")
    picture(root / "tv/SUN397/a/abbey/sun_a.jpg", 0, "JPEG")


def write_clevr(root: Path) -> None:
    base = root / "tv" / "clevr" / "CLEVR_v1.0"
    for part in ("train", "val"):
        scenes = [{"image_filename": f"{n}.png", "objects": [{}] * n} for n in (3, 4)]
        write_text(base / "scenes" / f"CLEVR_{part}_scenes.json", json.dumps({"scenes": scenes}))
        picture(base / "images" / part / "3.png", 0)
        picture(base / "images" / part / "4.png", 100)


def write_cars(root: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    base = root / "tv" / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["Audi A5", "BMW M3"], dtype=object)
    scipy_io.savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    rows = np.array([("0.jpg", 2), ("1.jpg", 1)], dtype=[("fname", object), ("class", int)])
    for file, folder in (
        ("devkit/cars_train_annos.mat", "cars_train"),
        ("cars_test_annos_withlabels.mat", "cars_test"),
    ):
        scipy_io.savemat(base / file, {"annotations": rows})
        picture(base / folder / "0.jpg", 100, "JPEG")
        picture(base / folder / "1.jpg", 0, "JPEG")


TWO = ("train", "test")
# By class: what writes its files, the parts, and the labels with the grey value of their pictures.
FILES: dict[str, tuple[Callable[[Path], None], tuple[str | None, ...], dict[str, int]]] = {
    "EMNIST": (write_emnist, TWO, {"0": 0, "A": 10, "t": 20}),
    "QMNIST": (write_qmnist, TWO, {"7 - seven": 0, "1 - one": 10, "4 - four": 20}),
    "USPS": (write_usps, TWO, {"0": 0, "9": 255}),
    "DTD": (write_dtd, ("train", "validation", "test"), {"dotted": 0, "banded": 100}),
    "FGVCAircraft": (write_aircraft, ("train", "validation", "test"), {"A 310": 0, "707-320": 100}),
    "GTSRB": (write_gtsrb, TWO, {"0": 0, "1": 50}),
    "OxfordIIITPet": (write_pets, TWO, {"Maine Coon": 0, "Pug": 100}),
    "Country211": (
        write_folders("country211/train", "country211/valid", "country211/test", suffix=".jpg", kind="JPEG",
                      classes=("AD", "AE")),
        ("train", "validation", "test"), {"AD": 0, "AE": 100},
    ),
    "RenderedSST2": (
        write_folders("rendered-sst2/train", "rendered-sst2/valid", "rendered-sst2/test", suffix=".png", kind="PNG",
                      classes=("negative", "positive")),
        ("train", "validation", "test"), {"negative": 0, "positive": 100},
    ),
    "EuroSAT": (
        write_folders("eurosat/2750", suffix=".jpg", kind="JPEG", classes=("Forest", "River")),
        (None,), {"Forest": 0, "River": 100},
    ),
    "Imagenette": (
        write_folders("imagenette2/train", "imagenette2/val", suffix=".JPEG", kind="JPEG",
                      classes=("n01440764", "n02979186")),
        TWO, {"tench": 0, "cassette player": 100},
    ),
    "Caltech101": (write_caltech_101, (None,), {"ant": 0, "bass": 100}),
    "Caltech256": (write_caltech_256, (None,), {"001.ak47": 0, "002.bat": 100}),
    "SUN397": (write_sun, (None,), {"abbey": 0, "balcony/exterior": 100}),
    "CLEVRClassification": (write_clevr, TWO, {"3": 0, "4": 100}),
    "StanfordCars": (write_cars, TWO, {"Audi A5": 0, "BMW M3": 100}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_parts_labels_and_pictures_go_together(tmp_path: Path, name: str) -> None:
    write, parts, labels = FILES[name]
    write(tmp_path)
    found = facts(read_torchvision(data(name), root=tmp_path / "tv"))
    assert sorted(found, key=str) == sorted(
        ((part, label, value) for part in parts for label, value in labels.items()), key=str
    )


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("MNIST", ("0 - zero", "1 - one", "2 - two")),
        ("FashionMNIST", ("T-shirt/top", "Trouser", "Pullover")),
        ("KMNIST", ("o", "ki", "su")),
    ],
)
def test_mnist_and_its_kin_are_read_from_their_own_files(tmp_path: Path, name: str, labels: tuple[str, ...]) -> None:
    write_mnist(tmp_path, name)
    found = find(tmp_path, name)
    assert found.label_names == tuple(sorted(labels))
    assert [(p.id, p.part) for p in found.pictures[3:5]] == [(f"{name}/test/3", "test"), (f"{name}/train/0", "train")]
    for part, n, start in (("train", 6, 0), ("test", 4, 100)):
        chosen = found.select(part)  # type: ignore[arg-type]
        assert [found.label_names[p.label] for p in chosen] == [labels[index % 3] for index in range(n)]
        assert [p.open().getpixel((0, 0)) for p in chosen] == [start + 10 * index for index in range(n)]


def test_some_labels_in_an_order_of_ones_own(tmp_path: Path) -> None:
    write_mnist(tmp_path, "FashionMNIST")
    found = find(tmp_path, "FashionMNIST", "Pullover", "T-shirt/top")
    assert [p.label for p in found.select("train")] == [1, 0, 1, 0]


def test_a_test_part_is_drawn_where_the_class_has_none(tmp_path: Path) -> None:
    for label in ("Forest", "River"):
        for index in range(40):
            picture(tmp_path / f"tv/eurosat/2750/{label}/{index}.jpg", 3 * index + (label == "River"), "JPEG")
    found = find(tmp_path, "EuroSAT", test_fraction=0.3)
    assert 8 <= len(found.select("test")) <= 40


def test_the_digest_of_the_files_does_not_depend_on_their_place(tmp_path: Path) -> None:
    write_dtd(tmp_path / "one")
    write_dtd(tmp_path / "other" / "place")
    assert find(tmp_path / "one", "DTD").digest == find(tmp_path / "other" / "place", "DTD").digest


def test_labels_are_read_without_decoding_a_picture(tmp_path: Path) -> None:
    write_food(tmp_path)
    for file in (tmp_path / "tv").rglob("*.jpg"):
        file.write_bytes(file.as_posix().encode())
    found = find(tmp_path, "Food101")
    assert [found.label_names[p.label] for p in found.select("test")] == ["beignets"] * 2 + ["waffles"] * 2


def test_the_order_of_files_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    write_food(tmp_path)
    read = read_torchvision(data("Food101"), root=tmp_path / "tv")
    assert [picture.id for picture in read] == [f"Food101/{part}/{n}" for part in TWO for n in range(4)]
    assert [picture.label for picture in read[:4]] == ["beignets", "beignets", "waffles", "waffles"]


def test_a_file_of_a_format_that_is_not_read_is_not_opened(tmp_path: Path) -> None:
    write_dtd(tmp_path)
    for file in (tmp_path / "tv").rglob("*.jpg"):
        Image.new("RGB", (16, 16)).save(file, "ICO")
    with pytest.raises(OSError, match="not a picture of the formats"):
        find(tmp_path, "DTD").pictures[0].open()


@pytest.mark.parametrize("name", DATASETS)
def test_each_class_takes_the_arguments_that_it_is_given(name: str) -> None:
    signature = inspect.signature(getattr(torchvision.datasets, name))
    for call in DATASETS[name].values():
        signature.bind("root", **call, **({} if name in NOT_DOWNLOADED else {"download": False}))
    assert set(DATASETS[name]) in ({None}, {"train", "test"}, {"train", "test", "validation"})


@pytest.mark.parametrize("name", sorted(set(DATASETS) - NOT_DOWNLOADED))
def test_missing_files_are_told_with_what_fetches_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        PicturesError, match=rf'^data: {name} cannot be read in .*tv \("download": true fetches the files'
    ):
        read_torchvision(data(name), root=tmp_path / "tv")


@pytest.mark.parametrize("name", sorted(NOT_DOWNLOADED))
def test_files_that_nobody_fetches_are_told_as_such(tmp_path: Path, name: str) -> None:
    with pytest.raises(PicturesError, match=rf"^data: {name} cannot be read in .*torchvision cannot fetch the files"):
        read_torchvision(data(name, download=True), root=tmp_path / "tv")


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08\x03", b"no idx file at all", b"\0\0\x08\x03\0\0\0\x09" + b"\0" * 8]
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    write_mnist(tmp_path)
    (tmp_path / "tv/MNIST/raw/train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(PicturesError, match="data: MNIST cannot be read in"):
        find(tmp_path, "MNIST")


@pytest.mark.parametrize(
    ("name", "nearest"), [("CIFAR", "CIFAR10"), ("Mnist", "MNIST"), ("OxfordPet", "OxfordIIITPet")]
)
def test_an_unknown_name_is_told_with_the_nearest(tmp_path: Path, name: str, nearest: str) -> None:
    with pytest.raises(PicturesError, match=rf"data\.name: '{name}' is not one of .*\. Did you mean '{nearest}'\?"):
        find(tmp_path, name)


@pytest.mark.parametrize("name", ["VOCDetection", "FakeData", "ImageFolder", "VisionDataset"])
def test_what_does_not_classify_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PicturesError, match=f"'{name}' is not one of"):
        find(tmp_path, name)
