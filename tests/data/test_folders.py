"""Pictures in folders: which are read, under which label and part, and every fault's text."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlmeta.commands.documents import FolderData
from mlmeta.data.folders import read_folder
from mlmeta.data.pictures import PictureSet, find_pictures
from mlmeta.errors import PicturesError


def write_pictures(root: Path, names: Iterable[str]) -> Path:
    """Write a picture of noise for each name, every one of another content."""
    for name in names:
        seed = int.from_bytes(name.encode()[-8:]) + len(name)
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "png" if file.suffix.lower() == ".png" else None)
    return root


def write_labels(root: Path, *labels: str, n: int = 3) -> Path:
    return write_pictures(root, [f"{label}/{index}.png" for label in labels for index in range(n)])


def find(root: Path, *labels: str, test_fraction: float = 0.0, validation: float = 0.0) -> PictureSet:
    data = FolderData(source="folder", path=root.name, test_fraction=test_fraction)
    return find_pictures(data, labels, base_dir=root.parent, validation=validation)


def ids(pictures: PictureSet) -> list[str]:
    return [picture.id for picture in pictures.pictures]


def test_each_folder_is_a_label_and_ids_are_paths_below_the_root(tmp_path: Path) -> None:
    found = find(write_labels(tmp_path / "d", "cat", "ant", n=2))
    assert found.label_names == ("ant", "cat")
    assert ids(found) == ["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png"]
    assert [picture.label for picture in found.pictures] == [0, 0, 1, 1]


def test_labels_keep_the_order_of_the_commands_and_others_are_left_out(tmp_path: Path) -> None:
    found = find(write_labels(tmp_path / "d", "a", "b", "c"), "c", "a")
    assert found.label_names == ("c", "a")
    assert {picture.id[0]: picture.label for picture in found.pictures} == {"c": 0, "a": 1}


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [f"{label}/{index}.png" for label in "ab" for index in range(20)]
    one, other = write_pictures(tmp_path / "one", names), write_pictures(tmp_path / "other", reversed(names))
    assert ids(find(one)) == ids(find(other)) == sorted(names)
    assert find(one).digest == find(other).digest


def test_parts_are_read_from_folders_of_their_names(tmp_path: Path) -> None:
    root = write_labels(tmp_path / "d", *(f"{part}/{label}" for part in ("train", "test", "val") for label in "ab"))
    found = find(root, validation=0.5, test_fraction=0.5)
    assert {(picture.id.split("/")[0], picture.part) for picture in found.pictures} == {
        ("train", "train"), ("test", "test"), ("val", "validation"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("test", "test"),
        ("Testing", "test"),
        ("validation", "validation"),
        ("valid", "validation"),
        ("VAL", "validation"),
    ],
)
def test_parts_have_several_names_in_any_case(tmp_path: Path, folder: str, part: str) -> None:
    root = write_labels(tmp_path / "d", "Training/a", "Training/b", f"{folder}/a", f"{folder}/b")
    parts = {picture.id.split("/")[0]: picture.part for picture in find(root).pictures}
    assert parts == {"Training": "train", folder: part}


def test_where_only_train_is_there_the_test_is_drawn_from_it(tmp_path: Path) -> None:
    found = find(write_labels(tmp_path / "d", "train/a", "train/b", n=40), test_fraction=0.3)
    assert 8 <= len(found.select("test")) <= 40
    assert len(found.select("train")) + len(found.select("test")) == 80


def test_the_test_part_may_lack_a_label(tmp_path: Path) -> None:
    found = find(write_labels(tmp_path / "d", "train/a", "train/b", "test/a"), "a", "b")
    assert {picture.label for picture in found.select("test")} == {0}


def test_a_label_of_the_test_part_alone_is_left_out_when_it_is_not_wanted(tmp_path: Path) -> None:
    found = find(write_labels(tmp_path / "d", "train/a", "train/b", "test/a", "test/c"), "a", "b")
    assert "c" not in {picture.id.split("/")[1] for picture in found.pictures}


@pytest.mark.parametrize("wanted", [(), ("train", "plane")], ids=["all labels", "named labels"])
def test_train_may_be_a_label(tmp_path: Path, wanted: tuple[str, ...]) -> None:
    found = find(write_labels(tmp_path / "d", "train", "plane"), *wanted)
    assert set(found.label_names) == {"train", "plane"}
    assert len(found.pictures) == 6


def test_labels_train_and_test_are_read_as_labels_when_the_commands_name_them(tmp_path: Path) -> None:
    found = find(write_labels(tmp_path / "d", "train", "test"), "train", "test")
    assert [picture.label for picture in found.pictures] == [1, 1, 1, 0, 0, 0]
    assert len(found.select("train")) == 6


def test_labels_train_and_test_may_stand_inside_the_parts(tmp_path: Path) -> None:
    root = write_labels(
        tmp_path / "d", *(f"{part}/{label}" for part in ("train", "test") for label in ("train", "test"))
    )
    found = find(root, "train", "test")
    assert {(p.id.rpartition("/")[0], p.part, p.label) for p in found.pictures} == {
        ("train/train", "train", 0), ("train/test", "train", 1), ("test/train", "test", 0), ("test/test", "test", 1),
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["Boston Terrier", "Boston Terrier imagesize:500x500"])
@pytest.mark.parametrize("label", ["Boston Terrier", "Boston Terrier imagesize:500x500"])
def test_query_operators_are_not_needed_in_the_folders_name(tmp_path: Path, folder: str, label: str) -> None:
    found = find(write_labels(tmp_path / "d", folder, "Pug"), "Pug", label)
    assert found.label_names == ("Pug", label)
    assert len([picture for picture in found.pictures if picture.label == 1]) == 3


def test_both_folders_of_a_label_are_read(tmp_path: Path) -> None:
    root = write_labels(tmp_path / "d", "Boston Terrier", "Boston Terrier imagesize:500x500", "Pug")
    found = find(root, "Boston Terrier imagesize:500x500", "Pug")
    assert [picture.label for picture in found.pictures].count(0) == 6


def test_operators_may_differ_between_the_parts(tmp_path: Path) -> None:
    found = find(write_labels(tmp_path / "d", "train/a", "train/b", "test/a size:9", "test/b"), "a", "b")
    assert [picture.label for picture in found.select("test")] == [0, 0, 0, 1, 1, 1]


def test_labels_that_only_operators_tell_apart_have_their_own_folders(tmp_path: Path) -> None:
    found = find(
        write_labels(tmp_path / "d", "rose color:red", "rose color:white"), "rose color:white", "rose color:red"
    )
    assert [picture.label for picture in found.pictures] == [1, 1, 1, 0, 0, 0]


def test_pictures_are_found_at_any_depth(tmp_path: Path) -> None:
    found = find(write_pictures(tmp_path / "d", ["a/0.png", "a/x/y/1.png", "b/z/2.png"]))
    assert ids(found) == ["a/0.png", "a/x/y/1.png", "b/z/2.png"]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    names = ["a/0.png", "b/1.png", "a/._0.png", "a/.thumbs/0.png", ".trash/0.png"]
    root = write_pictures(tmp_path / "d", names)
    for name in ("a/notes.txt", "b/Thumbs.db", "b/png", "list.csv"):
        (root / name).write_text("no picture")
    (root / "b" / "folder.png").mkdir()
    assert ids(find(root)) == ["a/0.png", "b/1.png"]


@pytest.mark.parametrize("suffix", [".PNG", ".Jpg", ".JPEG", ".jpe", ".webp", ".bmp", ".gif", ".TIF", ".tiff"])
def test_suffixes_count_in_any_case(tmp_path: Path, suffix: str) -> None:
    assert len(find(write_pictures(tmp_path / "d", ["a/0.png", f"b/1{suffix}"])).pictures) == 2


def test_a_linked_label_folder_is_followed(tmp_path: Path) -> None:
    root = write_labels(tmp_path / "d", "a")
    (root / "b").symlink_to(write_labels(tmp_path / "elsewhere", "c") / "c")
    assert ids(find(root))[3:] == ["b/0.png", "b/1.png", "b/2.png"]


def test_folders_that_lie_in_each_other_by_links_end(tmp_path: Path) -> None:
    root = write_labels(tmp_path / "d", "a", "b")
    (root / "a" / "again").symlink_to(root)
    assert len(find(root).pictures) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="only here may a file's name be any bytes")
def test_a_name_that_is_not_utf_8_gives_an_id_that_can_be_written(tmp_path: Path) -> None:
    root = write_labels(tmp_path / "d", "a", "b", n=1)
    (root / "a" / "0.png").rename(root / "a" / os.fsdecode(b"caf\xe9.png"))
    found = find(root)
    assert ids(found) == ["a/caf\\xe9.png", "b/0.png"]
    assert found.pictures[0].open().size == (8, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="only here may a file's name be any bytes")
def test_two_pictures_of_one_id_are_refused(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "d", ["a/0.png", "a/caf\\xe9.png", "b/0.png"])
    (root / "a" / "0.png").rename(root / "a" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(PicturesError, match="two pictures have the id"):
        find(root)


@pytest.mark.parametrize(
    ("folders", "labels", "message"),
    [
        (["a", "b"], ("a", "xy", "c"), r"2 label\(s\) without a folder in .*'xy'; 'c'"),
        (["Boston Terrier", "b"], ("boston terier", "b"), r"'boston terier' \(did you mean 'Boston Terrier'\?\)"),
        (
            ["train/cat", "train/dog"],
            ("cat", "dgo"),
            r"without a folder in .* \(train\): 'dgo' \(did you mean 'dog'",
        ),
        (["a"], (), r"one label only \(a\); two are needed"),
        (["train/a", "test/a"], (), "one label only"),
        (["Pug", "x"], ("Pug", "Pug size:9"), "'Pug' and 'Pug size:9' name the same pictures, those of 'Pug'"),
        (["Pug", "x"], ("Pug size:8", "Pug size:9"), "'Pug size:8' and 'Pug size:9' name the same pictures"),
        (["train/a", "test/a", "test/b"], (), r"1 label\(s\) have no picture to train on: 'b'; add pictures, or lower"),
    ],
)
def test_labels_that_do_not_make_a_task_are_one_clear_error(
    tmp_path: Path, folders: list[str], labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(PicturesError, match=message):
        find(write_labels(tmp_path / "d", *folders), *labels)


def test_a_label_whose_folder_is_empty_is_named(tmp_path: Path) -> None:
    root = write_labels(tmp_path / "d", "cat", "dog")
    (root / "cats").mkdir()
    with pytest.raises(PicturesError, match=r"1 label\(s\) without a picture in folder .*: 'cats'$"):
        find(root, "cat", "dog", "cats")


@pytest.mark.parametrize("names", [[], ["loose.png"]], ids=["nothing", "no label folder"])
def test_a_folder_without_pictures_under_labels_is_an_error(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(PicturesError, match=r"d holds no picture \(.*\.png.*\) under a label"):
        find(write_pictures(tmp_path / "d", names))


def test_a_missing_folder_is_told_with_its_nearest_sibling(tmp_path: Path) -> None:
    write_labels(tmp_path / "dogs", "a")
    with pytest.raises(PicturesError, match=r"there is no folder .*dgos\. Did you mean 'dogs'\?"):
        find(tmp_path / "dgos")


def test_a_folder_in_a_folder_that_is_missing_too_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PicturesError, match=r"there is no folder .*y$"):
        find(tmp_path / "x" / "y")


def test_a_file_in_the_folders_place_is_an_error_that_names_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("path,label")
    with pytest.raises(PicturesError, match=r'is a file, not a folder .*"source": "manifest"'):
        find(tmp_path / "d.csv")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    root = write_labels(tmp_path / "d", "a", "b")
    (root / "a").chmod(0)
    with pytest.raises(PicturesError, match="cannot be read"):
        read_folder(root)
