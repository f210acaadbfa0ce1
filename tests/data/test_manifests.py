"""Pictures listed in a table: its columns, rows and every fault's text."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlmeta.commands.documents import ManifestData
from mlmeta.data.account import Reason
from mlmeta.data.manifests import read_manifest
from mlmeta.data.pictures import find_pictures
from mlmeta.errors import PicturesError

ROWS = [("p/0.png", "a"), ("p/1.png", "a"), ("p/2.png", "b"), ("p/3.png", "b")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p").mkdir()
    for index in range(4):
        Image.new("L", (2, 2), index).save(tmp_path / "p" / f"{index}.png")
    return tmp_path


def write_csv(folder: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], **options: Any) -> Path:
    file = folder / "list.csv"
    with file.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as stream:
        writer = csv.writer(stream, **options)
        writer.writerow(header)
        writer.writerows(rows)
    return file


def write_parquet(folder: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = folder / "list.parquet"
    columns = list(zip(*rows, strict=True)) or [[] for _ in header]
    parquet.write_table(pyarrow.table(dict(zip(header, map(list, columns), strict=True))), file)
    return file


WRITERS = pytest.mark.parametrize("write", [write_csv, write_parquet], ids=["CSV", "Parquet"])


@WRITERS
def test_pictures_labels_and_ids_come_from_the_table(folder: Path, write: Any) -> None:
    found = read_manifest(write(folder, ["path", "label"], ROWS)).found
    assert [(p.id, p.label, p.part) for p in found] == [(path, label, None) for path, label in ROWS]
    assert [p.open().getpixel((0, 0)) for p in found] == [0, 1, 2, 3]


@WRITERS
def test_the_split_column_names_the_parts(folder: Path, write: Any) -> None:
    splits = ["train", "Validation", "test", None]
    file = write(folder, ["path", "label", "split"], [(*row, s) for row, s in zip(ROWS, splits, strict=True)])
    assert [p.part for p in read_manifest(file).found] == ["train", "validation", "test", None]


@WRITERS
def test_the_id_column_names_the_pictures(folder: Path, write: Any) -> None:
    file = write(folder, ["id", "label", "path"], [(name, label, path) for (path, label), name in
                                                   zip(ROWS, ["w", "x", None, "z"], strict=True)])  # fmt: skip
    assert [p.id for p in read_manifest(file).found] == ["w", "x", "p/2.png", "z"]


@WRITERS
def test_other_columns_are_not_read(folder: Path, write: Any) -> None:
    file = write(folder, ["path", "note", "label"], [(path, "x", label) for path, label in ROWS])
    listing = read_manifest(file)
    assert len(listing.found) == 4
    assert [(item.name, item.reason) for item in listing.items if item.reason] == [("note", Reason.COLUMN)]


def test_a_task_is_found_through_its_manifest(folder: Path) -> None:
    write_csv(folder, ["path", "label"], ROWS)
    data = ManifestData(source="manifest", path="list.csv", test_fraction=0.0)
    found = find_pictures(data, ["b", "a"], base_dir=folder)
    assert [(p.id, p.label) for p in found.pictures] == [("p/0.png", 1), ("p/1.png", 1), ("p/2.png", 0), ("p/3.png", 0)]


def test_a_label_that_no_row_has_is_told_with_the_nearest(folder: Path) -> None:
    write_csv(folder, ["path", "label"], [(path, f"label {label}") for path, label in ROWS])
    data = ManifestData(source="manifest", path="list.csv")
    with pytest.raises(PicturesError, match=r"without a picture in manifest .*'lable b' \(did you mean 'label b'\?\)"):
        find_pictures(data, ["label a", "lable b"], base_dir=folder)


@pytest.mark.parametrize("options", [{"encoding": "utf-8-sig"}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}])
def test_csv_comes_in_several_dresses(folder: Path, options: dict[str, Any]) -> None:
    assert len(read_manifest(write_csv(folder, ["path", "label"], ROWS, **options)).found) == 4


@pytest.mark.parametrize("text", ["sep=;\r\npath;label\r\np/0.png;a, b\r\n", "\npath;label\np/0.png;a, b\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_spreadsheets_write_is_read(folder: Path, text: str, encoding: str) -> None:
    (folder / "list.csv").write_bytes(text.encode(encoding))
    assert [(p.id, p.label) for p in read_manifest(folder / "list.csv").found] == [("p/0.png", "a, b")]


def test_quoted_labels_may_hold_commas_and_other_alphabets(folder: Path) -> None:
    file = write_csv(folder, ["path", "label"], [("p/0.png", 'Kuvasz, "white"'), ("p/1.png", "Ньюфаундленд")])
    assert [p.label for p in read_manifest(file).found] == ['Kuvasz, "white"', "Ньюфаундленд"]


def test_spaces_around_a_cell_do_not_count(folder: Path) -> None:
    assert read_manifest(write_csv(folder, ["path", "label"], [(" p/0.png", "a ")])).found[0].label == "a"


def test_labels_may_be_numbers(folder: Path) -> None:
    found = read_manifest(write_parquet(folder, ["path", "label"], [("p/0.png", 0), ("p/1.png", 7)])).found
    assert [p.label for p in found] == ["0", "7"]


def test_absolute_paths_are_taken_as_they_are(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    file = write_csv(elsewhere, ["path", "label"], [(folder / path, label) for path, label in ROWS])
    assert read_manifest(file).found[0].open().size == (2, 2)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            ["path", "lable"],
            ROWS,
            r"has no column 'label' \(is 'lable' meant to be it\?\); the columns are 'path', 'lable'; it may",
        ),
        (["label", "split"], ROWS, "has no column 'path'; the columns are 'label', 'split'; it may have"),
        (["x"], [], "has no column 'path'"),
        (["path", "label"], [], "lists no picture$"),
        (["path", "label"], [ROWS[0], ("p/1.png", "")], "row 2 of .* has no label"),
        (["path", "label"], [(None, "a")], "row 1 of .* has no path"),
        (["path", "label"], [("  ", "a")], "row 1 of .* has no path"),
        (
            ["path", "label", "split"],
            [(*ROWS[0], "trian")],
            "row 1 of .* has the split 'trian'; allowed: train,",
        ),
        (["path", "label"], [*ROWS, ("p/1.png", "b")], "lists the path 'p/1.png' twice, in the rows 2 and 5"),
        (["path", "label"], [ROWS[0], ("./p/0.png", "a")], "lists the path 'p/0.png' twice, in the rows 1 and 2"),
        (["path", "label", "id"], [(*ROWS[0], "x"), (*ROWS[1], "x")], "lists the id 'x' twice, in the rows 1 and 2"),
        (["path", "label"], [ROWS[0], ("p/8.png", "a"), ("p/9.png", "a")], "2 of the 3 pictures .* row 2: .*p/8.png"),
        (["path", "label"], [("p", "a")], "1 of the 1 pictures .* are not there, the first in row 1"),
    ],
)
@WRITERS
def test_a_fault_is_told_with_its_row(folder: Path, write: Any, header: Any, rows: Any, message: str) -> None:
    with pytest.raises(PicturesError, match=message):
        read_manifest(write(folder, header, [row[: len(header)] for row in rows]))


def test_a_row_that_ends_early_is_told(folder: Path) -> None:
    (folder / "list.csv").write_text("path,label\np/0.png,a\np/1.png\n")
    with pytest.raises(PicturesError, match=r"row 2 of .* has no label"):
        read_manifest(folder / "list.csv")


def test_not_a_number_is_no_label(folder: Path) -> None:
    with pytest.raises(PicturesError, match=r"row 2 of .* has no label"):
        read_manifest(write_parquet(folder, ["path", "label"], [("p/0.png", 1.0), ("p/1.png", math.nan)]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"", "has no column 'path'"),
        ("list.csv", b"\x89PNG\xff\xfe", "not a CSV table in UTF-8"),
        ("list.csv", b'path,label\n"p/0.png,a\n', "not a CSV table in UTF-8: unexpected end of data"),
        ("list.csv", b"path,label\n" + b"x" * 200_000 + b",a\n", "not a CSV table in UTF-8: field larger than"),
        ("list.csv", b"just some text", "has no column 'path'"),
        ("list.parquet", b"", "not a Parquet table"),
        ("list.pq", b"PAR1 nothing PAR1", "not a Parquet table"),
    ],
)
def test_what_is_no_table_is_one_clear_error(folder: Path, name: str, content: bytes, message: str) -> None:
    if name != "list.csv":
        pytest.importorskip("pyarrow")
    (folder / name).write_bytes(content)
    with pytest.raises(PicturesError, match=message):
        read_manifest(folder / name)


def test_a_missing_manifest_is_told_with_the_nearest_file(folder: Path) -> None:
    write_csv(folder, ["path", "label"], ROWS)
    with pytest.raises(PicturesError, match=r"there is no manifest .*lst\.csv\. Did you mean 'list\.csv'\?"):
        read_manifest(folder / "lst.csv")


def test_a_folder_in_the_manifests_place_names_the_other_source(folder: Path) -> None:
    with pytest.raises(PicturesError, match=r'is a folder, not a table .*"source": "folder"'):
        read_manifest(folder)
