"""The picture cache: made once, shared, bounded, and never the reason why an attempt fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlmeta.commands.documents import FolderData
from mlmeta.data.decoding import DecodedPictures, decode_pictures
from mlmeta.data.image_ops import build_image_ops
from mlmeta.data.picture_cache import (
    MODES,
    CacheSlot,
    PictureCache,
    find_slot,
    format_entries,
    make_key,
    pictures_folder,
)
from mlmeta.data.pictures import Picture, find_pictures
from mlmeta.data.sources import open_file
from mlmeta.errors import BadInputError, PicturesError

NO_OPS = build_image_ops([])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache."""
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MLMETA_CACHE_GB", raising=False)
    return tmp_path / "cache" / "pictures"


@pytest.fixture
def opened() -> list[str]:
    """The ids of pictures that were decoded, in the order that they were."""
    return []


def make_pixels(index: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 4)
    pixels = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
    if mode in ("CMYK", "RGBA"):
        return Image.frombytes(mode, size, pixels.tobytes())
    image = Image.fromarray(pixels[:, :, :3])
    return Image.frombytes(mode, size, image.tobytes()) if mode in ("LAB", "HSV", "YCbCr") else image.convert(mode)


def make_pictures(opened: list[str], n: int = 6, *, seed: int = 0, **form: Any) -> list[Picture]:
    def make(index: int) -> Picture:
        name = f"{seed}/{index:03}"

        def open() -> Image.Image:
            opened.append(name)
            return make_pixels(1000 * seed + index, **form)

        return Picture(name, index % 3, "train", f"{seed:032x}{index:032x}", open)

    return [make(index) for index in range(n)]


def bad_picture(opened: list[str], name: str) -> Picture:
    def open() -> Image.Image:
        opened.append(name)
        raise OSError("broken")

    return Picture(name, 0, "train", f"{name:>064}", open)


def decode(pictures: Sequence[Picture], ops: Sequence[dict[str, Any]] = (), **options: Any) -> DecodedPictures:
    image_ops = build_image_ops(list(ops))
    slot = find_slot([picture.digest for picture in pictures], image_ops, reader="file", source="folder x")
    return decode_pictures(pictures, image_ops, slot=slot, **options)


def pixels_of(decoded: DecodedPictures) -> list[tuple[str, str, bytes]]:
    images = decoded.load(range(len(decoded.pictures)))
    return [(p.id, image.mode, image.tobytes()) for p, image in zip(decoded.pictures, images, strict=True)]


def plainly(pictures: Sequence[Picture]) -> list[tuple[str, str, bytes]]:
    return pixels_of(decode_pictures(pictures, NO_OPS))


def kept(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in the cache folder, but for locks."""
    return sorted(path for path in folder.glob(pattern) if path.suffix != ".lock")


# What is cached


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_second_attempt_decodes_nothing_and_sees_the_same_pixels(opened: list[str], mode: str) -> None:
    pictures = make_pictures(opened, mode=mode)
    expected = plainly(pictures)
    opened.clear()
    assert pixels_of(decode(pictures)) == expected
    assert sorted(opened) == [picture.id for picture in pictures]
    opened.clear()
    again = decode(pictures)
    assert pixels_of(again) == expected
    arrays = list(again.arrays)
    assert again.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert not opened
    for cached, plain in zip(arrays, decode_pictures(pictures, NO_OPS).arrays, strict=True):
        assert np.array_equal(cached, plain)


def test_the_rows_are_memory_mapped_and_cannot_be_written(opened: list[str]) -> None:
    rows = decode(make_pictures(opened)).rows
    assert rows is not None
    assert rows.pixels.shape == (6, 5, 6, 3)
    (file,) = rows.entry.glob("*.npy")
    assert np.array_equal(np.load(file), rows.pixels)
    assert isinstance(rows.pixels.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows.pixels[0] = 0


def test_skipped_pictures_and_their_reasons_are_remembered(opened: list[str]) -> None:
    pictures = make_pictures(opened, 10)
    pictures[3] = bad_picture(opened, "bad")
    expected = plainly([picture for picture in pictures if picture.id != "bad"])
    first = decode(pictures)
    opened.clear()
    again = decode(pictures)
    assert pixels_of(again) == expected
    assert not opened
    assert [(one.id, one.reason) for one in again.skipped] == [("bad", "damaged: broken")]
    assert again.skipped == first.skipped
    assert [p.id for p in again.pictures] == [p.id for p in pictures if p.id != "bad"]


def test_too_many_bad_pictures_are_an_error_each_time_and_leave_nothing(opened: list[str], folder: Path) -> None:
    pictures = [*make_pictures(opened, 3), bad_picture(opened, "bad")]
    for _ in range(2):
        with pytest.raises(PicturesError, match=r"1 of 4 pictures cannot be used.*: 1 damaged, such as bad: broken"):
            decode(pictures)
        assert kept(folder) == []


def test_a_picture_operation_that_fails_leaves_nothing(opened: list[str], folder: Path) -> None:
    with pytest.raises(BadInputError, match=r"image_ops\.0\.crop"):
        decode(make_pictures(opened), [{"crop": {"box": [5, 5, 1, 1]}}])
    assert kept(folder) == []


def test_equal_pictures_are_kept_once(opened: list[str]) -> None:
    one, other = make_pictures(opened, 2)
    twin = Picture("twin", 1, "train", one.digest, one.open)
    decoded = decode([one, twin, other])
    assert decoded.rows is not None
    assert len(decoded.rows.pixels) == 2
    assert decoded.image(0).tobytes() == decoded.image(1).tobytes()
    stacked = decoded.stack([0, 1, 2])
    assert stacked is not None
    assert [pixels.tobytes() for pixels in stacked] == [decoded.image(index).tobytes() for index in range(3)]


def test_another_order_of_the_pictures_finds_the_same_entry(opened: list[str]) -> None:
    pictures = make_pictures(opened)
    decode(pictures)
    opened.clear()
    assert pixels_of(decode(pictures[::-1])) == plainly(pictures)[::-1]
    assert sorted(opened) == [picture.id for picture in pictures]  # all of them by `plainly`


def test_a_selection_shares_the_rows(opened: list[str]) -> None:
    pictures = make_pictures(opened)
    decoded = decode(pictures)
    chosen = decoded.select([pictures[4], pictures[1]])
    assert chosen.rows is decoded.rows
    assert pixels_of(chosen) == [pixels_of(decoded)[4], pixels_of(decoded)[1]]


@pytest.mark.parametrize(
    "odd", [{"size": (9, 9)}, {"mode": "L"}, {"mode": "P"}, {"mode": "1"}], ids=["size", "L", "P", "1"]
)
@pytest.mark.parametrize("position", [0, 3, 6])
def test_unlike_pictures_are_kept_in_memory(
    opened: list[str], folder: Path, odd: dict[str, Any], position: int
) -> None:
    pictures = make_pictures(opened)
    pictures.insert(position, make_pictures(opened, 1, seed=1, **odd)[0])
    decoded = decode(pictures)
    assert opened.count(pictures[0].id) == 1
    assert decoded.rows is None
    assert decoded.at_hand
    assert pixels_of(decoded) == plainly(pictures)
    assert kept(folder) == []


def test_memory_keeps_to_its_budget_where_the_cache_does_not_take_the_pictures(opened: list[str]) -> None:
    pictures = [*make_pictures(opened), *make_pictures(opened, 3, seed=1, size=(3, 3))]
    expected = plainly(pictures)
    decoded = decode(pictures, budget_bytes=2 * 4 * 30)
    assert not decoded.at_hand
    opened.clear()
    assert pixels_of(decoded) == expected
    assert len(opened) == len(pictures) - 2


# Keys


OPS = [{"resize": {"size": [4, 4], "resample": "BILINEAR"}}, {"convert": {"mode": "RGB"}}]


@pytest.mark.parametrize(
    ("ops", "same"),
    [
        ([{"resize": {"resample": "Image.BILINEAR", "size": [4, 4]}}, {"convert": {"mode": "'RGB'"}}], True),
        ([{"resize": {"size": [4, 4], "resample": 2}}, {"convert": {"mode": "RGB"}}], True),
        ([{"resize": {"size": [4, 5], "resample": "BILINEAR"}}, {"convert": {"mode": "RGB"}}], False),
        ([{"resize": {"size": [4, 4], "resample": "BICUBIC"}}, {"convert": {"mode": "RGB"}}], False),
        (OPS[::-1], False),
        (OPS[:1], False),
    ],
)
def test_operations_that_mean_the_same_share_an_entry(ops: list[dict[str, Any]], same: bool) -> None:
    keys = [make_key(["a"], build_image_ops(one), reader="file") for one in (OPS, ops)]
    assert (keys[0] == keys[1]) is same


FILTERED = ["BLUR", "DETAIL", {"name": "GaussianBlur", "radius": 2}, {"name": "GaussianBlur", "radius": 3},
            {"name": "Kernel", "size": [3, 3], "kernel": [1] * 9},
            {"name": "Kernel", "size": [3, 3], "kernel": [2] * 9},
            {"name": "MedianFilter", "size": 3}, {"name": "MedianFilter", "size": 5}]  # fmt: skip


def test_filters_are_told_apart_by_name_and_values() -> None:
    keys = [make_key(["a"], build_image_ops([{"filter": one}]), reader="file") for one in [*FILTERED, *FILTERED]]
    assert len(set(keys)) == len(FILTERED)
    assert keys[: len(FILTERED)] == keys[len(FILTERED) :]


@pytest.mark.parametrize("digests", [["a"], ["a", "c"], ["a", "b", "c"]])
def test_other_pictures_or_another_reader_have_another_entry(digests: list[str]) -> None:
    key = make_key(["a", "b"], NO_OPS, reader="file")
    assert make_key(digests, NO_OPS, reader="file") != key
    assert make_key(["b", "a"], NO_OPS, reader="torchvision GTSRB") != key
    assert make_key(["b", "a", "b"], NO_OPS, reader="file") == key


def test_another_pillow_has_another_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(["a"], NO_OPS, reader="file")
    monkeypatch.setattr("PIL.__version__", "1.0")
    assert make_key(["a"], NO_OPS, reader="file") != key


def test_what_draws_at_random_is_not_cached(opened: list[str], folder: Path) -> None:
    assert decode(make_pictures(opened), [{"effect_spread": {"distance": 2}}]).rows is None
    assert not folder.exists()


# The folder and its limit


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MLMETA_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a/pictures"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/mlmeta/pictures"),
        ({"XDG_CACHE_HOME": "not/absolute"}, "/home/someone/.cache/mlmeta/pictures"),
        ({"MLMETA_CACHE_DIR": "", "XDG_CACHE_HOME": ""}, "/home/someone/.cache/mlmeta/pictures"),
    ],
)
def test_the_folder_is_where_the_platform_wants_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("MLMETA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/someone", **environment}.items():
        monkeypatch.setenv(name, value)
    assert pictures_folder() == Path(expected)


@pytest.mark.parametrize(("given", "n_bytes"), [("2", 2 * 10**9), (" 0.5 ", 5 * 10**8), ("0", 0)])
def test_the_limit_is_what_the_environment_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, n_bytes: int
) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", given)
    assert PictureCache(folder).limit_bytes == n_bytes


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_bad_input(opened: list[str], monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", given)
    with pytest.raises(BadInputError, match=f"MLMETA_CACHE_GB: must be a number of gigabytes .* got '{given}'"):
        decode(make_pictures(opened))


@pytest.mark.parametrize(
    ("free", "used", "limit"), [(10**9, 0, 2 * 10**8), (8 * 10**8, 2 * 10**8, 2 * 10**8), (10**12, 0, 10**10)]
)
def test_without_a_word_the_limit_is_a_share_of_the_free_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: int, used: int, limit: int
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**13, 0, free))
    folder.mkdir(parents=True)
    (folder / "a.rows").touch()
    os.truncate(folder / "a.rows", used)
    assert PictureCache(folder).limit_bytes == limit


def test_a_limit_of_nothing_is_no_cache(opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", "0")
    assert decode(make_pictures(opened)).at_hand
    assert not folder.exists()


def entry_bytes(folder: Path) -> int:
    return max(entry.size_bytes for entry in PictureCache(folder).entries())


def set_limit(monkeypatch: pytest.MonkeyPatch, n_bytes: float) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", repr(n_bytes / 10**9))


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(path, (then, then))


def test_the_least_recently_used_goes_first(opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [make_pictures(opened, 40, seed=seed) for seed in range(4)]
    entries = []
    for days, pictures in zip((3, 2, 1), sets, strict=False):
        before = set(kept(folder))
        decode(pictures)
        entries.append((set(kept(folder)) - before).pop())
        age(entries[-1], days)
    decode(sets[0])  # now it is the newest
    set_limit(monkeypatch, 3.2 * entry_bytes(folder))
    decode(sets[3])
    assert [entry.exists() for entry in entries] == [True, False, True]
    assert len(kept(folder)) == 3


def test_an_entry_that_this_process_uses_does_not_go(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = decode(make_pictures(opened, 40))
    assert used.rows is not None
    age(used.rows.entry, 9)
    decode(make_pictures(opened, 40, seed=1))
    set_limit(monkeypatch, 2.2 * entry_bytes(folder))
    third = decode(make_pictures(opened, 40, seed=2))
    assert third.rows is not None
    assert set(kept(folder)) == {used.rows.entry, third.rows.entry}


def test_pictures_beyond_the_limit_are_kept_in_memory_with_one_line_that_says_so(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_limit(monkeypatch, 500)
    pictures = make_pictures(opened)
    decoded = decode(pictures)
    assert decoded.rows is None
    assert decoded.at_hand
    assert len(opened) == 6
    assert pixels_of(decoded) == plainly(pictures)
    message = r"mlmeta: pictures go without the cache in .* \(0.00054 MB do not fit its limit, 0.0005 MB "
    assert re.match(message, caplog.messages[0])
    assert len(caplog.messages) == 1
    assert kept(folder) == []


def test_a_disk_without_room_is_seen_before_anything_is_written(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert decode(make_pictures(opened)).rows is None
    assert "the disk has 0.001 MB free" in caplog.text
    assert kept(folder) == []


@contextlib.contextmanager
def disk_for_files_of(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond that: what is written goes in half, and the rest is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


HEADER_BYTES, ROW_BYTES = 128, 6 * 5 * 3


@pytest.mark.parametrize(
    ("n_bytes", "form"),
    [(HEADER_BYTES, {}), (HEADER_BYTES + 3 * ROW_BYTES + 7, {}), (500, {"size": (1, 1)})],
    ids=["first row", "fourth row", "index"],
)
def test_a_disk_that_fills_up_costs_one_line_and_no_second_decoding(
    opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture, n_bytes: int, form: dict[str, Any]
) -> None:
    pictures = make_pictures(opened, **form)
    expected = plainly(pictures)
    opened.clear()
    with disk_for_files_of(n_bytes):
        decoded = decode(pictures)
    assert decoded.rows is None
    assert pixels_of(decoded) == expected
    assert len(opened) == 6
    assert len(caplog.messages) == 1
    assert "File too large" in caplog.text
    assert kept(folder) == []


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("where", "function"), [(os, "fsync"), (Path, "replace"), (Path, "rename")])
def test_a_failure_at_the_end_costs_no_more(
    opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture, where: object, function: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, function, full_disk)
        decoded = decode(make_pictures(opened))
    assert decoded.at_hand
    assert len(opened) == 6
    assert len(caplog.messages) == 1
    assert kept(folder) == []


def test_a_folder_that_cannot_be_made_costs_one_line(
    opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.write_text("a file stands where the folder should")
    decoded = decode(make_pictures(opened))
    assert decoded.at_hand
    assert len(caplog.messages) == 1


# Damage


def parts(entry: Path) -> tuple[Path, Path]:
    """The files of an entry: its index and its pixels."""
    (pixels,) = entry.glob("*.npy")
    return entry / "index.json", pixels


def change(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))


def rewrite_index(entry: Path, **changes: Any) -> None:
    """Write another index, and name the pixels as those that belong to it."""
    index, pixels = parts(entry)
    text = json.dumps(json.loads(index.read_text()) | changes)
    index.write_text(text)
    pixels.rename(pixels.with_name(f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npy"))


def claim_more(entry: Path) -> None:
    """Let index and pixels agree on more rows than there are."""
    change(parts(entry)[1], b"(6, 5, 6, 3), } ", b"(99, 5, 6, 3), }")
    rewrite_index(entry, shape=[99, 5, 6, 3])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty index": lambda entry: parts(entry)[0].write_bytes(b""),
    "index cut": lambda entry: os.truncate(parts(entry)[0], 100),
    "index of text": lambda entry: parts(entry)[0].write_text("no index " * 100),
    "changed index": lambda entry: change(parts(entry)[0], b'"RGB"', b'"HSV"'),
    "other format": partial(rewrite_index, format=1),
    "other shape": partial(rewrite_index, shape=[6, 5, 6, 4]),
    "shape of none": partial(rewrite_index, shape=None),
    "no pixels": lambda entry: parts(entry)[1].unlink(),
    "empty pixels": lambda entry: parts(entry)[1].write_bytes(b""),
    "pixels cut": lambda entry: os.truncate(parts(entry)[1], HEADER_BYTES + 5 * ROW_BYTES),
    "pixels cut in front": lambda entry: parts(entry)[1].write_bytes(parts(entry)[1].read_bytes()[100:]),
    "pixels of text": lambda entry: parts(entry)[1].write_text("no pixels " * 100),
    "more pixels claimed": claim_more,
    "other type": lambda entry: change(parts(entry)[1], b"|u1", b"|i1"),
    "broken header": lambda entry: change(parts(entry)[1], b"(6, 5, 6, 3)", b"(6, 5, 6, 3("),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_told_and_made_again(
    opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    pictures = make_pictures(opened)
    expected = plainly(pictures)
    decode(pictures)
    (entry,) = kept(folder)
    DAMAGE[damage](entry)
    assert "  damaged: it" in format_entries(PictureCache(folder))
    opened.clear()
    assert pixels_of(decode(pictures)) == expected
    assert len(opened) == 6
    assert {message.partition(" (")[0] for message in caplog.messages} == {
        f"mlmeta: {entry} in the picture cache cannot be used"
    }
    opened.clear()
    assert pixels_of(decode(pictures)) == expected
    assert not opened
    assert kept(folder) == [entry]


def leave_a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("a file stands where the entry should")


LACKING: dict[str, Callable[[Path], Any]] = {
    "no index": lambda entry: (entry / "index.json").unlink(),
    "empty folder": lambda entry: [file.unlink() for file in parts(entry)],
    "a file": leave_a_file,
    "other pictures": partial(rewrite_index, digests=[f"{index:064x}" for index in range(90, 96)]),
}


@pytest.mark.parametrize("change_entry", LACKING.values(), ids=LACKING)
def test_what_is_no_entry_of_these_pictures_is_made_again(
    opened: list[str], folder: Path, change_entry: Callable[[Path], Any]
) -> None:
    pictures = make_pictures(opened)
    decode(pictures)
    (entry,) = kept(folder)
    change_entry(entry)
    assert pixels_of(decode(pictures)) == plainly(pictures)
    opened.clear()
    decode(pictures)
    assert not opened
    assert kept(folder) == [entry]


def test_what_a_killed_attempt_left_is_removed_after_a_while(opened: list[str], folder: Path) -> None:
    for name, folder_days, file_days in (("old", 1.0, 1.0), ("new", 0.0, 0.0), ("long at it", 1.0, 0.0)):
        part = folder / f"{name}.tmp"
        part.mkdir(parents=True)
        (part / "pixels").write_bytes(b"rows")
        age(part / "pixels", file_days)
        age(part, folder_days)
    # Before format 2 an attempt that was killed left a file.
    (folder / "older.tmp").write_bytes(b"rows")
    age(folder / "older.tmp", 1.0)
    decode(make_pictures(opened))
    assert [part.stem for part in kept(folder, "*.tmp")] == ["long at it", "new"]


# What an older mlmeta kept


@pytest.fixture
def older(folder: Path) -> Path:
    """A file of pictures as formats before 2 were."""
    folder.mkdir(parents=True)
    file = folder / f"{'a' * 40}.rows"
    file.write_bytes(b"rows" * 2500)
    age(file, 3)
    return file


def test_what_an_older_mlmeta_kept_is_listed_and_counted(folder: Path, older: Path) -> None:
    _, line, total = format_entries(PictureCache(folder)).splitlines()
    assert re.search(r" 0\.01 MB +kept by an older mlmeta, no longer used$", line)
    assert total.startswith("0.01 MB of at most")
    assert older.exists()


def test_what_an_older_mlmeta_kept_goes_as_other_entries_do(
    opened: list[str], folder: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(make_pictures(opened))
    assert older.exists()
    set_limit(monkeypatch, 10_000)
    decode(make_pictures(opened, seed=1))
    assert not older.exists()
    assert len(kept(folder)) == 2


def test_clearing_removes_what_an_older_mlmeta_kept(folder: Path, older: Path) -> None:
    older.with_suffix(".lock").touch()
    assert PictureCache(folder).clear() == 1
    assert list(folder.iterdir()) == []


# Several processes

PROGRAM = """
import os, sys, time
from PIL import Image
from mlmeta.data.decoding import decode_pictures
from mlmeta.data.image_ops import build_image_ops
from mlmeta.data.picture_cache import find_slot
from mlmeta.data.pictures import Picture

def opener(index):
    def open_picture():
        with open(sys.argv[1], "a") as log:
            log.write(f"{index}\\n")
        time.sleep(0.02)
        return Image.new("RGB", (4, 4), (index, 0, 0))
    return open_picture

pictures = [Picture(str(i), 0, "train", f"{i:064x}", opener(i)) for i in range(20)]
ops = build_image_ops([])
slot = find_slot([p.digest for p in pictures], ops, reader="file", source="x")
decoded = decode_pictures(pictures, ops, slot=slot)
assert decoded.rows is not None
print([decoded.image(i).getpixel((0, 0))[0] for i in range(20)])
"""


def start(log: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(log)], stdout=subprocess.PIPE, text=True)


def test_attempts_that_start_together_decode_once(tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "log"
    processes = [start(log) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == [f"{list(range(20))}\n"] * 3
    assert sorted(map(int, log.read_text().split())) == list(range(20))
    assert len(kept(folder)) == 1


def test_a_process_that_is_killed_while_it_writes_is_no_trouble(tmp_path: Path, folder: Path) -> None:
    log, again = tmp_path / "log", tmp_path / "again"
    killed = start(log)
    while not log.exists() or log.read_text().count("\n") < 8:
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    assert kept(folder, "*.pictures") == []
    assert start(again).communicate()[0] == f"{list(range(20))}\n"
    assert len(kept(folder, "*.pictures")) == 1


def test_who_waits_too_long_goes_without(opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = make_pictures(opened)
    holder = find_slot([picture.digest for picture in pictures], NO_OPS, reader="file", source="x")
    assert holder is not None
    waiter = CacheSlot(holder.cache, holder.key, "x", wait_s=0.05)
    with holder.lock() as locked:
        assert locked
        decoded = decode_pictures(pictures, NO_OPS, slot=waiter)
    assert decoded.rows is None
    assert decoded.at_hand
    assert [message[:30] for message in caplog.messages] == [
        "mlmeta: another attempt is dec",
        "mlmeta: pictures go without th",
    ]
    assert kept(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be removed there")
def test_pictures_stay_readable_when_another_process_clears_the_cache(opened: list[str], folder: Path) -> None:
    pictures = make_pictures(opened)
    decoded = decode(pictures)
    expected = plainly(pictures)
    done = subprocess.run([sys.executable, "-m", "mlmeta", "cache", "--clear"], capture_output=True, text=True)
    assert done.stdout == f"1 entries removed from {folder}\n"
    assert kept(folder) == []
    assert pixels_of(decoded) == expected


# What people see


def test_the_table_shows_entries_and_the_limit(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", "1")
    cache = PictureCache(folder)
    assert format_entries(cache) == f"no entries\n0 MB of at most 1 GB in {folder}"
    decode(make_pictures(opened))
    decode(make_pictures(opened, 3, seed=1, mode="L"))
    age(kept(folder)[0], 3)
    head, *lines, total = format_entries(cache).splitlines()
    assert head.split() == ["last", "used", "(UTC)", "pictures", "shape", "size", "source"]
    line_form = r"\d{4}-\d\d-\d\d \d\d:\d\d +(\S+) +(\S+) +\S+ MB +folder x"
    found = [re.fullmatch(line_form, line) for line in lines]
    assert {one[1]: one[2] for one in found if one} == {"6": "5×6×3", "3": "5×6×1"}
    assert lines == sorted(lines, reverse=True)
    assert re.fullmatch(rf"0\.00\d+ MB of at most 1 GB in {folder}", total)


def test_the_table_needs_neither_torch_nor_mlflow(folder: Path) -> None:
    program = (
        "import sys; from mlmeta.cli import cli; cli(['cache'], standalone_mode=False);"
        "print(sorted({'torch', 'mlflow', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["no entries", done.stdout.splitlines()[1], "[]"]


def test_clearing_leaves_an_empty_folder(opened: list[str], folder: Path) -> None:
    decode(make_pictures(opened))
    decode(make_pictures(opened, seed=1))
    assert PictureCache(folder).clear() == 2
    assert list(folder.iterdir()) == []
    assert PictureCache(folder / "missing").clear() == 0


def test_real_files_come_back_as_they_are_decoded(tmp_path: Path) -> None:
    for index in range(3):
        make_pixels(index, (20, 12)).save(tmp_path / f"{index}.jpg")
    pictures = [
        Picture(f"{i}.jpg", 0, "train", f"{i:064x}", partial(open_file, tmp_path / f"{i}.jpg")) for i in range(3)
    ]
    ops = [{"resize": {"size": [8, 8]}}, {"convert": {"mode": "L"}}]
    expected = pixels_of(decode_pictures(pictures, build_image_ops(ops)))
    assert pixels_of(decode(pictures, ops)) == expected
    shutil.rmtree(tmp_path / "cache", ignore_errors=False)
    assert pixels_of(decode(pictures, ops)) == expected


def test_a_picture_that_was_away_for_a_moment_is_read_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    for label, shade in (("a", 50), ("b", 200)):
        (folder / label).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (4, 4), shade + index).save(folder / label / f"{index}.png")
    found = find_pictures(FolderData(source="folder", path=str(folder)), base_dir=tmp_path)
    slot = find_slot([p.digest for p in found.pictures], build_image_ops([]), reader="folder", source="test")
    gone = folder / "a" / "3.png"
    content = gone.read_bytes()
    gone.unlink()
    first = decode_pictures(found.pictures, build_image_ops([]), slot=slot)
    assert [skipped.id for skipped in first.skipped] == ["a/3.png"]
    gone.write_bytes(content)
    assert decode_pictures(found.pictures, build_image_ops([]), slot=slot).skipped == []
