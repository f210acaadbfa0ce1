"""The split by content, the digests, the draw for the test, and files that are opened."""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlmeta.commands.documents import Data, FolderData, SampleData, strip_operators
from mlmeta.data.pictures import Picture, PictureSet, choose_pictures, content_share, find_pictures
from mlmeta.errors import PicturesError

DIGESTS = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(2000)]


def write_bytes(root: Path, contents: dict[str, bytes]) -> Path:
    """Write files whose content is not looked at: finding and splitting decodes nothing."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def make_contents(n: int = 60, *, labels: str = "ab", name: str = "{}.png") -> dict[str, bytes]:
    return {f"{label}/{name.format(index)}": f"{label}{index}".encode() for label in labels for index in range(n)}


def find(root: Path, *labels: str, test_fraction: float = 0.2, validation: float = 0.1) -> PictureSet:
    data = FolderData(source="folder", path=str(root), test_fraction=test_fraction)
    return find_pictures(data, labels, base_dir=Path(), validation=validation)


def parts_by_digest(found: PictureSet) -> dict[str, str]:
    return {picture.digest: picture.part for picture in found.pictures}


def make_set(n: int = 50, *, part: str = "test") -> PictureSet:
    pictures = [
        Picture(f"{index:03}.png", index % 2, part, digest, partial(Image.new, "L", (1, 1)))  # type: ignore[arg-type]
        for index, digest in enumerate(DIGESTS[:n])
    ]
    return PictureSet(("a", "b"), tuple(pictures), "0" * 64, "folder toys")


@pytest.mark.parametrize(("salt", "share"), [("test", 0.2), ("validation", 0.1), ("test", 0.5)])
def test_the_split_takes_the_share_that_is_asked_for(salt: str, share: float) -> None:
    n_drawn = sum(content_share(digest, salt) < share for digest in DIGESTS)
    # Four standard deviations of the binomial distribution.
    assert abs(n_drawn - 2000 * share) < 4 * math.sqrt(2000 * share * (1 - share))


def test_the_draws_for_test_and_validation_are_independent() -> None:
    tested, validated = (
        np.array([content_share(digest, salt) < 0.5 for digest in DIGESTS]) for salt in ("test", "validation")
    )
    assert abs(np.corrcoef(tested, validated)[0, 1]) < 4 / math.sqrt(2000)


def test_content_share_is_the_first_eight_bytes_of_a_sha_256() -> None:
    expected = int(hashlib.sha256(b"test:" + DIGESTS[0].encode()).hexdigest()[:16], 16) / 2**64
    assert content_share(DIGESTS[0], "test") == expected


def test_equal_pictures_never_stand_on_both_sides(tmp_path: Path) -> None:
    contents = make_contents(100)
    copies = {f"{name.partition('/')[0]}/copy of {index}.png": c for index, (name, c) in enumerate(contents.items())}
    found = find(write_bytes(tmp_path, contents | copies), validation=0.2)
    parts: dict[str, set[str]] = {}
    for picture in found.pictures:
        parts.setdefault(picture.digest, set()).add(picture.part)
    assert len(found.pictures) == 400
    assert all(len(of_one_content) == 1 for of_one_content in parts.values())
    assert set.union(*parts.values()) == {"train", "validation", "test"}


def test_adding_pictures_moves_others_only_for_the_shares(tmp_path: Path) -> None:
    few = parts_by_digest(find(write_bytes(tmp_path, make_contents(40))))
    many = parts_by_digest(find(write_bytes(tmp_path, make_contents(90))))
    assert len(many) == 180
    # One or two a label and part, as shares of 40 pictures were missed by chance; a draw anew would move a third.
    assert sum(many[digest] != few[digest] for digest in few) <= 8


def test_the_split_depends_on_neither_names_nor_labels_order(tmp_path: Path) -> None:
    one = find(write_bytes(tmp_path / "one", make_contents()), "a", "b")
    other = find(write_bytes(tmp_path / "two", make_contents(name="renamed-{}.jpg")), "b", "a")
    assert parts_by_digest(one) == parts_by_digest(other)


def test_the_validation_share_does_not_move_the_test_part(tmp_path: Path) -> None:
    root = write_bytes(tmp_path, make_contents())
    without, with_validation = (find(root, validation=share) for share in (0.0, 0.5))
    assert [p.id for p in without.select("test")] == [p.id for p in with_validation.select("test")]
    assert not without.select("validation")


def test_no_part_is_drawn_where_the_share_is_nought(tmp_path: Path) -> None:
    found = find(write_bytes(tmp_path, make_contents()), test_fraction=0.0, validation=0.0)
    assert len(found.select("train")) == len(found.pictures) == 120


def test_a_source_with_a_test_part_is_not_split_again(tmp_path: Path) -> None:
    contents = {f"{part}/{name}": content for part in ("train", "test") for name, content in make_contents(30).items()}
    found = find(write_bytes(tmp_path, contents), test_fraction=0.9, validation=0.0)
    assert all(picture.id.startswith(picture.part) for picture in found.pictures)


def test_a_source_with_a_validation_part_keeps_it_and_gives_a_test_part(tmp_path: Path) -> None:
    contents = {f"{part}/{name}": f"{part}{name}".encode() for part in ("train", "val") for name in make_contents(60)}
    found = find(write_bytes(tmp_path, contents), validation=0.9)
    assert all(picture.id.startswith("val/") for picture in found.select("validation"))
    assert all(picture.id.startswith("train/") for picture in found.select("test"))
    assert len(found.select("validation")) == 120


def test_the_data_digest_knows_contents_only(tmp_path: Path) -> None:
    one = find(write_bytes(tmp_path / "one", make_contents()), "a", "b")
    other = find(write_bytes(tmp_path / "elsewhere", make_contents(name="x{}.gif")), "b", "a", validation=0.4)
    assert one.digest == other.digest
    assert one.task_digest == other.task_digest


def test_query_operators_do_not_change_the_digests(tmp_path: Path) -> None:
    plain = find(write_bytes(tmp_path / "one", make_contents()), "a", "b")
    contents = {f"{name[0]} imagesize:500x500{name[1:]}": content for name, content in make_contents().items()}
    searched = find(write_bytes(tmp_path / "two", contents), "a imagesize:500x500", "b imagesize:9x9")
    assert plain.digest == searched.digest
    assert plain.task_digest == searched.task_digest


def drop_one(contents: dict[str, bytes]) -> dict[str, bytes]:
    return dict(list(contents.items())[1:])


def change_one(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {**contents, "a/0.png": b"other"}


def move_one(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {**drop_one(contents), "b/moved.png": contents["a/0.png"]}


def rename_label(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name.replace("b/", "c/"): content for name, content in contents.items()}


@pytest.mark.parametrize("change", [drop_one, change_one, move_one, rename_label])
def test_another_picture_or_label_is_another_digest(
    tmp_path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    contents = make_contents()
    one, other = write_bytes(tmp_path / "1", contents), write_bytes(tmp_path / "2", change(contents))
    assert find(one).digest != find(other).digest
    assert find(one).task_digest != find(other).task_digest


def test_another_test_part_is_another_digest(tmp_path: Path) -> None:
    root = write_bytes(tmp_path, make_contents())
    assert find(root, test_fraction=0.2).digest != find(root, test_fraction=0.4).digest


def test_a_subset_of_the_labels_is_another_task(tmp_path: Path) -> None:
    root = write_bytes(tmp_path, make_contents(labels="abc"))
    assert find(root, "a", "b").task_digest != find(root).task_digest


@pytest.mark.parametrize(
    ("label", "bare"),
    [
        ("Boston Terrier imagesize:500x500", "Boston Terrier"),
        ("Boston Terrier imagesize:500x500 site:example.com", "Boston Terrier"),
        ("Boston Terrier", "Boston Terrier"),
        ("imagesize:500x500", "imagesize:500x500"),
        ("time 10:30", "time 10:30"),
    ],
)
def test_operators_are_stripped_from_labels(label: str, bare: str) -> None:
    assert strip_operators(label) == bare


def test_the_samples_of_mlmeta_are_a_source(tmp_path: Path) -> None:
    data: Data = SampleData(source="sample", name="digits", n_per_label=20)
    found = find_pictures(data, (), base_dir=tmp_path, validation=0.1)
    assert len(found.label_names) == 10
    assert len(found.pictures) == 200
    assert found.source == "sample digits"
    assert found.pictures[0].open().width >= 8


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_a_picture_that_cannot_be_read_is_left_for_the_decoder_to_name(tmp_path: Path) -> None:
    root = write_bytes(tmp_path, make_contents())
    for label in "ab":
        (root / label / "0.png").unlink()
        (root / label / "0.png").symlink_to("nowhere")
    found = find(root)
    assert len({picture.digest for picture in found.pictures}) == len(found.pictures) == 120


def test_without_a_limit_all_of_the_test_part_is_chosen() -> None:
    found = make_set()
    assert choose_pictures(found) == choose_pictures(found, limit=50) == choose_pictures(found, limit=99)
    assert choose_pictures(found) == list(found.pictures)


def test_a_limit_draws_without_replacement_and_by_the_seed() -> None:
    found = make_set()
    drawn = choose_pictures(found, limit=20, seed=1)
    assert len({picture.id for picture in drawn}) == 20
    assert drawn == sorted(drawn, key=lambda picture: picture.id)
    assert drawn == choose_pictures(found, limit=20, seed=1)
    assert drawn != choose_pictures(found, limit=20, seed=2)


def test_a_smaller_limit_draws_some_of_the_same_pictures() -> None:
    found = make_set()
    few, many = ({p.id for p in choose_pictures(found, limit=limit, seed=3)} for limit in (5, 20))
    assert few < many


def test_a_draw_does_not_depend_on_the_pictures_order() -> None:
    found = make_set()
    shuffled = list(found.pictures)
    random.Random(0).shuffle(shuffled)
    other = PictureSet(found.label_names, tuple(shuffled), found.digest, found.source)
    assert choose_pictures(found, limit=9) == choose_pictures(other, limit=9)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_ids_choose_pictures_of_any_part_in_their_order(part: str) -> None:
    chosen = choose_pictures(make_set(part=part), ids=["004.png", "001.png", "004.png"])
    assert [picture.id for picture in chosen] == ["004.png", "001.png"]


def test_an_unknown_id_is_told_with_the_nearest() -> None:
    with pytest.raises(PicturesError, match=r"2 picture\(s\) are not there, such as '01\.png'\. Did you mean '001"):
        choose_pictures(make_set(2), ids=["01.png", "000.png", "zzz"])


def test_an_empty_test_part_is_told_with_what_helps() -> None:
    with pytest.raises(PicturesError, match=r"no picture of folder toys \(5 in all\) falls into the test part"):
        choose_pictures(make_set(5, part="train"))
