"""The account of the data: everything that was looked at is used or left out, and what is odd is warned of."""

from __future__ import annotations

import atexit
import csv
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from mlmeta.commands.documents import TrainCommands
from mlmeta.data.account import Account
from mlmeta.data.splits import ENOUGH, Drawn, draw_parts
from mlmeta.data.task import prepare_task
from mlmeta.errors import PicturesError

MODEL = {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]}
RESIZE = [{"convert": {"mode": "RGB"}}, {"resize": {"size": [6, 6]}}]


@pytest.fixture(autouse=True, scope="module")
def nothing_kept() -> Iterator[None]:
    """Thousands of data sets are looked at once each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLMETA_CACHE_GB", "0")
        yield


def write_picture(file: Path, seed: int, **options: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, options.get("format", "png"))


def write_tree(root: Path, counts: dict[str, int], suffix: str = ".png") -> Path:
    for place, (folder, n) in enumerate(counts.items()):
        for index in range(n):
            write_picture(root / folder / f"{index:03}{suffix}", 1000 * place + index)
    return root


def look(root: Path, **data: object) -> Account:
    source = {"source": "folder", "path": root.name} if root.is_dir() else {"source": "manifest", "path": root.name}
    commands = TrainCommands.model_validate(
        {"model_name": "x", "model": MODEL, "image_ops": RESIZE, "data": source | data}, strict=False
    )
    return prepare_task(commands, base_dir=root.parent).account()


def warned(account: Account) -> str:
    return "\n".join(warning.text for warning in account.warnings)


def test_the_account_in_three_lines(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {"cat": 30, "dog": 30})
    (root / "cat" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (root / "cat" / "notes.txt").write_text("mine")
    first = look(root).describe()[0]
    assert first.startswith("2 labels; ")
    assert first.endswith("2 left out: 1 not a picture, 1 damaged") or first.endswith("1 damaged, 1 not a picture")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG"])
def test_jpegs_by_any_of_their_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    root = write_tree(tmp_path / "d", {"cat": 10, "dog": 10})
    for index in range(10):
        write_picture(root / "bird" / f"{index}{suffix}", 9000 + index, format="jpeg")
    assert look(root).label_names == ("bird", "cat", "dog")


def test_a_format_that_is_not_read_is_an_error_and_never_a_smaller_task(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {"cat": 12, "dog": 12, "bird": 0})
    (root / "bird").mkdir()
    for index in range(12):
        (root / "bird" / f"IMG_{index}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    with pytest.raises(PicturesError, match=r"12 of 36 pictures cannot be used.*bird/IMG_0\.HEIC"):
        look(root)


@pytest.mark.parametrize(("train", "test"), [("training_set", "test_set"), ("Train", "TEST"), ("train2017", "holdout")])
def test_folders_of_parts_are_parts(tmp_path: Path, train: str, test: str) -> None:
    root = write_tree(tmp_path / "d", {f"{train}/cat": 9, f"{train}/dog": 9, f"{test}/cat": 4, f"{test}/dog": 4})
    account = look(root)
    assert account.label_names == ("cat", "dog")
    assert account.count_parts()["test"] == 8


def test_labels_that_all_hold_the_same_folders_are_asked_about(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {f"{fold}/{label}": 3 for fold in ("fold1", "fold2") for label in ("cat", "dog")})
    with pytest.raises(PicturesError, match="hold the same sub-folders"):
        look(root)


def test_a_folder_beside_the_parts_is_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {"train/cat": 9, "train/dog": 9, "evaluation/cat": 4, "evaluation/dog": 4})
    assert "'evaluation' stands beside the parts and is none: it has 8 pictures" in warned(look(root))


def write_table(file: Path, text: str) -> Path:
    for place, label in enumerate("ab"):
        for index in range(12):
            write_picture(file.parent / label / f"{index}.png", 100 * place + index)
    file.write_text(text, encoding="utf-8")
    return file


def rows(cells: str) -> str:
    return "".join(cells.format(label=label, index=index) for label in "ab" for index in range(12))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_are_found(tmp_path: Path, separator: str) -> None:
    text = f"path{separator}label\n" + rows("{label}/{index}.png" + separator + "{label}\n")
    assert look(write_table(tmp_path / "d.csv", text)).label_names == ("a", "b")


@pytest.mark.parametrize("column", ["Split", "split ", "SPLIT"])
def test_columns_are_found_in_any_case(tmp_path: Path, column: str) -> None:
    text = f"path,label,{column}\n" + "".join(
        f"{label}/{index}.png,{label},{'test' if index < 6 else 'train'}\n" for label in "ab" for index in range(12)
    )
    assert look(write_table(tmp_path / "d.csv", text)).count_parts()["test"] == 12


def test_a_column_that_looks_like_a_split_is_warned_of_and_may_be_named(tmp_path: Path) -> None:
    text = "path,label,is_valid\n" + "".join(
        f"{label}/{index}.png,{label},{index < 6}\n" for label in "ab" for index in range(12)
    )
    file = write_table(tmp_path / "d.csv", text)
    assert "'is_valid' looks like a split" in warned(look(file))
    assert look(file, columns={"split": "is_valid"}).count_parts()["validation"] == 12


def test_a_row_with_more_cells_than_the_header_is_refused_with_its_number(tmp_path: Path) -> None:
    text = "path,label\n" + rows("{label}/{index}.png,{label}\n") + "x.png,a,b\n"
    with pytest.raises(PicturesError, match=r"row 25 of .* has 3 cells, and the header 2"):
        look(write_table(tmp_path / "d.csv", text))


def test_groups_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for place, label in enumerate(("ill", "well")):
        for index in range(40):
            write_picture(root / label / f"p{index // 4}_{index}.png", 100 * place + index)
    account = look(root, group=r"(p\d+)_")
    parts: dict[str, set[str]] = {}
    for item in account.pictures:
        parts.setdefault(Path(item.name).name.split("_")[0], set()).add(item.part)
    assert all(len(found) == 1 for found in parts.values())
    assert all(account.count_parts().values())


def test_a_picture_that_an_operation_refuses_is_left_out_and_named(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", {"cat": 12, "dog": 12})
    Image.new("RGB", (3, 3), 7).save(root / "cat" / "0small.png")
    commands = TrainCommands.model_validate(
        {"model_name": "x", "model": MODEL, "data": {"source": "folder", "path": "d"},
         "transform": [{"RandomCrop": {"size": 6}}, "ToTensor"]},
    )  # fmt: skip
    account = prepare_task(commands, base_dir=tmp_path).account()
    assert [item.name for item in account.left_out] == ["cat/0small.png"]
    assert "cat/0small.png" in warned(account)


def test_16_bits_are_scaled_and_transparency_lies_on_white(tmp_path: Path) -> None:
    from mlmeta.data.image_ops import build_image_ops
    from mlmeta.data.sources import open_file

    Image.fromarray(np.full((4, 4), 6000, dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    convert = build_image_ops([{"convert": {"mode": "RGB"}}])
    assert convert(open_file(tmp_path / "deep.png")).getpixel((0, 0)) == (23, 23, 23)
    assert convert(open_file(tmp_path / "clear.png")).getpixel((0, 0)) == (255, 255, 255)
    on_red = build_image_ops([{"convert": {"mode": "RGB", "background": "red"}}])
    assert on_red(open_file(tmp_path / "clear.png")).getpixel((0, 0)) == (255, 0, 0)


def copy_across_parts(root: Path) -> None:
    write_tree(root, {"train/cat": 6, "train/dog": 6, "test/cat": 6, "test/dog": 6})
    shutil.copy(root / "train/cat/000.png", root / "test/cat/copy.png")


def copy_across_labels(root: Path) -> None:
    write_tree(root, {"cat": 6, "dog": 6})
    shutil.copy(root / "cat/000.png", root / "dog/copy.png")


def empty_a_label(root: Path) -> None:
    write_tree(root, {"cat": 6, "dog": 6})
    (root / "bird").mkdir()
    (root / "bird" / "notes.txt").write_text("later")


def paint_all(root: Path, *, equal: bool) -> None:
    for label in ("cat", "dog"):
        for index in range(6):
            (root / label).mkdir(parents=True, exist_ok=True)
            colour = 7 if equal else 20 * index + 5 * (label == "dog")
            Image.new("L", (8, 8), colour).save(root / label / f"{index}.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            copy_across_parts,
            "1 picture(s) stand in more than one part, equal by content: 'test/cat/copy.png = ",
        ),
        (copy_across_labels, "1 picture(s) stand under more than one label"),
        (empty_a_label, "the label folder 'bird' holds no readable picture: 1 left out: 1 not a picture"),
        (
            lambda root: write_tree(root, {"cat": 6, "Cat": 6}),
            "'Cat', 'cat' differ only by case",
        ),
        (lambda root: write_tree(root, {"café": 6, "cafe": 6}), "differ only by case, blanks or accents"),
        (
            lambda root: write_tree(root, {"cat": 6, "dog": 6, "cat dog": 6}),
            "'cat dog' read like several labels",
        ),
        (lambda root: write_tree(root, {"cat": 60, "dog": 5}), "the label 'cat' has 45 training pictures, 'dog' has 2"),
        (lambda root: write_tree(root, {"cat": 30, "dog": 6}), "1 label(s) have fewer than 5 test pictures: 'dog (2)'"),
        (lambda root: write_tree(root, {"cat": 30, "dog": 3}), "1 label(s) have no validation picture: 'dog'"),
        (partial(paint_all, equal=True), "all of 12 pictures that were looked at come out equal"),
        (partial(paint_all, equal=False), "each of 12 pictures that were looked at comes out in one colour"),
    ],
)
def test_what_may_spoil_a_result_is_warned_of(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    make(tmp_path / "d")
    account = look(tmp_path / "d")
    assert says in warned(account)
    ranks = [warning.rank for warning in account.warnings]
    assert ranks == sorted(ranks)


DRAWS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), min_size=1, max_size=150, unique=True)


def draw(pictures: list[tuple[str, int]]) -> dict[tuple[str, int], str]:
    drawn = [Drawn(label, f"{label}{number:032x}") for label, number in pictures]
    return dict(zip(pictures, draw_parts(drawn, {"test": 0.2, "validation": 0.1}), strict=True))


@given(DRAWS)
def test_every_label_has_its_share(pictures: list[tuple[str, int]]) -> None:
    parts = draw(pictures)
    for label in {label for label, _ in pictures}:
        counts = Counter(part for (name, _), part in parts.items() if name == label)
        n = sum(counts.values())
        assert counts["train"] >= 1
        assert abs(counts["test"] - 0.2 * n) <= 1
        if n >= ENOUGH:
            assert counts["test"] >= 1
            assert counts["validation"] >= 1


@given(DRAWS, DRAWS)
def test_adding_a_picture_moves_at_most_one_other_of_each_draw(
    pictures: list[tuple[str, int]], more: list[tuple[str, int]]
) -> None:
    before = draw(pictures)
    added = next((one for one in more if one not in before), None)
    if added is not None:
        after = draw([*pictures, added])
        moved = [one for one in pictures if before[one] != after[one]]
        assert all(one[0] == added[0] for one in moved)
        assert len(moved) <= 3


NAMES = st.sampled_from(
    [
        "a.png",
        "b.JPG",
        "c.jfif",
        "notes.txt",
        ".hidden",
        "Thumbs.db",
        "x.heic",
        "raw",
        "d.webp",
        "0.png",
        "Ä.png",
        "e.png/f",
    ]
)
FOLDERS = st.sampled_from(
    [
        "cat",
        "dog",
        "Cat ",
        "train/cat",
        "train/dog",
        "TEST/cat",
        "dev/dog",
        "holdout/cat",
        ".git",
        "cat/deep/er",
        "odd",
        "",
    ]
)
CONTENTS = st.sampled_from(["picture", "picture", "picture", "same", "text", "noise", "empty", "heic", "folder"])
MADE = {"text": b"words", "noise": bytes(range(256)), "heic": b"\0\0\0\x18ftypheic" + bytes(99), "empty": b""}
# Together more than two thousand trees and tables that are a task; the rest has too many bad pictures, and is refused.
MANY = settings(max_examples=1600, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def make_content(file: Path, content: str, seed: int) -> None:
    if content == "folder":
        file.mkdir(parents=True, exist_ok=True)
    elif content in ("picture", "same"):
        write_picture(file, seed if content == "picture" else 0)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(MADE[content])


@cache
def good_tree() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    write_tree(Path(folder), {"cat": 12, "dog": 12})
    return folder


def hold_identity(account: Account) -> list[str]:
    """Return the names of all that was seen, after seeing that each is used or left out, and none twice."""
    names = [f"{item.kind} {item.name}" for item in account.items]
    assert len(names) == len(set(names))
    _, *rows = account.rows()
    uses = Counter(row[2] for row in rows)
    assert (uses["used"], uses["left out"]) == (account.params()["used"], account.params()["left_out"])
    assert all(bool(row[5]) == (row[2] == "left out") for row in rows)
    assert sum(account.count_parts().values()) == len(account.pictures)
    assert {item.label for item in account.pictures} <= set(account.label_names)
    return [item.name for item in account.items]


@MANY
@given(st.dictionaries(st.tuples(FOLDERS, NAMES), CONTENTS, max_size=12), st.sampled_from(["", "", "train/"]))
def test_all_that_is_seen_of_a_tree_is_used_or_left_out_once(tree: dict[tuple[str, str], str], above: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "d")
        shutil.copytree(good_tree(), root / above, copy_function=os.link)
        for place, ((folder, name), content) in enumerate(tree.items()):
            with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                make_content(root / folder / name, content, 5000 + place)
        try:
            account = look(root)
        except PicturesError:
            event("refused")
            return
        event("accounted for")
        names = hold_identity(account)
        closed = tuple(f"{item.name}/" for item in account.left_out if item.kind == "folder")
        there = [
            (Path(path) / name).relative_to(root).as_posix()
            for path, folders, files in os.walk(root) for name in (*folders, *files)
        ]  # fmt: skip
        assert sorted(name for name in there if not closed or not name.startswith(closed)) == sorted(names)


CELLS = st.tuples(
    st.sampled_from(["picture", "picture", "same", "text", "noise", "empty"]),
    st.sampled_from(["cat", "dog", " cat ", "dog ", "Dog"]),
    st.sampled_from(["train", "TEST", "val", "", "training set"]), st.booleans(),
)  # fmt: skip
HEADERS = st.tuples(
    st.sampled_from(["path", "Path ", "PATH"]), st.sampled_from(["label", "Label"]),
    st.sampled_from(["split", "Split", "note", "fold", "path2"]), st.sampled_from(["x", "is_valid", "", "note"]),
)  # fmt: skip


@MANY
@given(st.lists(CELLS, max_size=12), HEADERS, st.sampled_from(",;\t|"), st.booleans())
def test_all_that_is_seen_of_a_table_is_used_or_left_out_once(
    rows: list[tuple[str, str, str, bool]], header: tuple[str, ...], separator: str, blank: bool
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        names = [path.relative_to(good_tree()) for path in sorted(Path(good_tree()).rglob("*.png"))]
        lines = [[f"{good_tree()}/{name}", name.parts[0], "train", "0"] for name in names]
        for place, (content, label, split, flag) in enumerate(rows):
            make_content(root / "odd" / f"{place}.png", content, 5000 + place)
            lines.append([f"odd/{place}.png", label, split, str(int(flag))])
        if blank:
            lines.insert(3, ["", " ", "", ""])
        with (root / "d.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter=separator).writerows([header, *lines])
        try:
            account = look(root / "d.csv")
        except PicturesError:
            event("refused")
            return
        event("accounted for")
        hold_identity(account)
        kinds = Counter(item.kind for item in account.items)
        assert kinds == {"row": len(lines), "column": 4}
