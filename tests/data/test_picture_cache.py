"""The picture cache: made once, shared, bounded, and never the reason why an attempt fails."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlmeta.commands.documents import FolderData
from mlmeta.data import picture_cache
from mlmeta.data.decoding import DecodedPictures, decode_pictures
from mlmeta.data.image_ops import build_image_ops
from mlmeta.data.picture_cache import (
    MODES,
    CacheFullError,
    CacheSlot,
    DamagedFileError,
    PictureCache,
    RowWriter,
    find_slot,
    format_entries,
    make_key,
    pictures_folder,
    read_limit,
    read_rows,
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
    images = decoded.images(range(len(decoded.pictures)))
    return [(p.id, image.mode, image.tobytes()) for p, image in zip(decoded.pictures, images, strict=True)]


def plainly(pictures: Sequence[Picture]) -> list[tuple[str, str, bytes]]:
    return pixels_of(decode_pictures(pictures, NO_OPS))


def files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.suffix != ".lock")


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
    assert again.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert not opened


@pytest.mark.parametrize("mode", sorted(MODES))
def test_arrays_from_the_cache_are_those_without_it(opened: list[str], mode: str) -> None:
    pictures = make_pictures(opened, mode=mode)
    for cached, plain in zip(decode(pictures).arrays, decode_pictures(pictures, NO_OPS).arrays, strict=True):
        assert np.array_equal(cached, plain)


def test_the_rows_are_memory_mapped_and_cannot_be_written(opened: list[str]) -> None:
    rows = decode(make_pictures(opened)).rows
    assert rows is not None
    assert rows.pixels.shape == (6, 5, 6, 3)
    assert isinstance(rows.pixels.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows.pixels[0] = 0


def test_skipped_pictures_and_their_reasons_are_remembered(opened: list[str]) -> None:
    pictures = make_pictures(opened, 10)
    pictures.insert(3, bad_picture(opened, "bad"))
    first = decode(pictures)
    opened.clear()
    again = decode(pictures)
    assert not opened
    assert [(one.id, one.reason) for one in again.skipped] == [("bad", "broken")]
    assert again.skipped == first.skipped
    assert [p.id for p in again.pictures] == [p.id for p in pictures if p.id != "bad"]


def test_too_many_bad_pictures_are_an_error_each_time_and_leave_nothing(opened: list[str], folder: Path) -> None:
    pictures = [*make_pictures(opened, 3), bad_picture(opened, "bad")]
    for _ in range(2):
        with pytest.raises(PicturesError, match="1 of 4 pictures cannot be read: bad: broken"):
            decode(pictures)
        assert files(folder) == []


def test_a_picture_operation_that_fails_leaves_nothing(opened: list[str], folder: Path) -> None:
    with pytest.raises(BadInputError, match=r"image_ops\.0\.crop"):
        decode(make_pictures(opened), [{"crop": {"box": [5, 5, 1, 1]}}])
    assert files(folder) == []


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
    assert files(folder) == []


def test_memory_keeps_to_its_budget_where_the_cache_does_not_take_the_pictures(opened: list[str]) -> None:
    pictures = [*make_pictures(opened), *make_pictures(opened, 3, seed=1, size=(3, 3))]
    decoded = decode(pictures, budget_bytes=2 * 4 * 30)
    assert not decoded.at_hand
    assert len(decoded._kept) <= 2
    assert pixels_of(decoded) == plainly(pictures)


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
    assert read_limit(folder) == n_bytes


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
    assert read_limit(folder, used_bytes=used) == limit


def test_a_limit_of_nothing_is_no_cache(opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", "0")
    assert decode(make_pictures(opened)).at_hand
    assert not folder.exists()


def entry_bytes(folder: Path) -> int:
    return max(file.stat().st_size for file in files(folder))


def set_limit(monkeypatch: pytest.MonkeyPatch, n_bytes: float) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", repr(n_bytes / 10**9))


def age(file: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(file, (then, then))


def test_the_least_recently_used_goes_first(opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [make_pictures(opened, 40, seed=seed) for seed in range(4)]
    entries = []
    for days, pictures in zip((3, 2, 1), sets, strict=False):
        before = set(files(folder))
        decode(pictures)
        entries.append((set(files(folder)) - before).pop())
        age(entries[-1], days)
    decode(sets[0])  # now it is the newest
    set_limit(monkeypatch, 3.2 * entry_bytes(folder))
    decode(sets[3])
    assert [file.exists() for file in entries] == [True, False, True]
    assert len(files(folder)) == 3


def test_an_entry_that_this_process_uses_does_not_go(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = decode(make_pictures(opened, 40))
    assert used.rows is not None
    age(used.rows.file, 9)
    decode(make_pictures(opened, 40, seed=1))
    set_limit(monkeypatch, 2.2 * entry_bytes(folder))
    third = decode(make_pictures(opened, 40, seed=2))
    assert third.rows is not None
    assert set(files(folder)) == {used.rows.file, third.rows.file}


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
    assert files(folder) == []


def test_a_disk_without_room_is_seen_before_anything_is_written(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert decode(make_pictures(opened)).rows is None
    assert "the disk has 0.001 MB free" in caplog.text
    assert files(folder) == []


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("n_rows", [0, 3, 6], ids=["first row", "fourth row", "index"])
def test_a_disk_that_fills_up_costs_one_line_and_no_second_decoding(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, n_rows: int
) -> None:
    write = RowWriter._write

    def write_some(writer: RowWriter, data: bytes) -> None:
        full_disk() if len(writer.rows) >= n_rows else write(writer, data)

    pictures = make_pictures(opened)
    expected = plainly(pictures)
    opened.clear()
    monkeypatch.setattr(RowWriter, "_write", write_some)
    decoded = decode(pictures)
    assert decoded.rows is None
    assert pixels_of(decoded) == expected
    assert len(opened) == 6
    assert len(caplog.messages) == 1
    assert "No space left on device" in caplog.text
    assert files(folder) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_at_the_end_costs_no_more(
    opened: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, function: str
) -> None:
    monkeypatch.setattr(*((picture_cache.os, "fsync") if function == "fsync" else (Path, "replace")), full_disk)
    decoded = decode(make_pictures(opened))
    monkeypatch.undo()
    assert decoded.at_hand
    assert len(opened) == 6
    assert len(caplog.messages) == 1
    assert files(folder) == []


def test_a_folder_that_cannot_be_made_costs_one_line(
    opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.write_text("a file stands where the folder should")
    decoded = decode(make_pictures(opened))
    assert decoded.at_hand
    assert len(caplog.messages) == 1


# Damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def cut_front(file: Path) -> None:
    file.write_bytes(file.read_bytes()[100:])


def change_index(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"mode": "RGB"', b'"mode": "HSV"'))


def rewrite_index(file: Path, **changes: Any) -> None:
    """Write another index with the checksum that belongs to it."""
    content = file.read_bytes()
    index = json.loads(content[content.rindex(b'{"format"') : content.rindex(b"mlmetaR\n")]) | changes
    text = json.dumps(index).encode()
    digest = picture_cache.hashlib.sha256(text).digest()
    rows = content[: content.rindex(b'{"format"')]
    file.write_bytes(rows + text + b"mlmetaR\n" + len(text).to_bytes(8, "little") + digest)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no rows " * 100),
    "cut": cut,
    "cut in front": cut_front,
    "changed index": change_index,
    "older format": partial(rewrite_index, format=0),
    "unknown mode": partial(rewrite_index, mode="P"),
    "missing digest": partial(rewrite_index, digests=["a"]),
    "wrong shape": partial(rewrite_index, shape=[6, 5, 6, 4]),
    "huge shape": partial(rewrite_index, shape=[10**30, 5, 6, 3]),
    "shape of text": partial(rewrite_index, shape="rows"),
    "no dict": partial(rewrite_index, skipped=7),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_told_and_made_again(
    opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    pictures = make_pictures(opened)
    decode(pictures)
    (file,) = files(folder)
    DAMAGE[damage](file)
    with pytest.raises(DamagedFileError):
        read_rows(file)
    opened.clear()
    assert pixels_of(decode(pictures)) == plainly(pictures)
    assert all("cannot be used" in message for message in caplog.messages)
    opened.clear()
    assert decode(pictures).rows is not None
    assert not opened


def test_an_entry_that_lacks_a_picture_is_made_again(opened: list[str], folder: Path) -> None:
    pictures = make_pictures(opened)
    decode(pictures)
    (file,) = files(folder)
    rewrite_index(file, digests=[f"{index:064x}" for index in range(90, 96)])
    assert pixels_of(decode(pictures)) == plainly(pictures)


def test_a_folder_in_an_entrys_place_is_no_reason_to_fail(
    opened: list[str], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = make_pictures(opened)
    decode(pictures)
    (file,) = files(folder)
    file.unlink()
    file.mkdir()
    assert pixels_of(decode(pictures)) == plainly(pictures)
    assert "go without the cache" in caplog.text


def test_what_a_killed_attempt_left_is_removed_after_a_while(opened: list[str], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, days in (("old.tmp", 1.0), ("new.tmp", 0.0)):
        (folder / name).write_bytes(b"rows")
        age(folder / name, days)
    decode(make_pictures(opened))
    assert [file.name for file in files(folder, "*.tmp")] == ["new.tmp"]


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
    assert len(files(folder)) == 1


def test_a_process_that_is_killed_while_it_writes_is_no_trouble(tmp_path: Path, folder: Path) -> None:
    log, again = tmp_path / "log", tmp_path / "again"
    killed = start(log)
    while not log.exists() or log.read_text().count("\n") < 8:
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    assert files(folder, "*.rows") == []
    assert start(again).communicate()[0] == f"{list(range(20))}\n"
    assert len(files(folder, "*.rows")) == 1


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
    assert files(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a mapped file cannot be removed there")
def test_pictures_stay_readable_when_another_process_clears_the_cache(opened: list[str], folder: Path) -> None:
    pictures = make_pictures(opened)
    decoded = decode(pictures)
    expected = plainly(pictures)
    done = subprocess.run([sys.executable, "-m", "mlmeta", "cache", "--clear"], capture_output=True, text=True)
    assert done.stdout == f"1 entries removed from {folder}\n"
    assert files(folder) == []
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
    first, second = files(folder, "*.rows")
    age(first, 3)
    cut(second)
    head, *lines, total = format_entries(cache).splitlines()
    assert head.split() == ["last", "used", "pictures", "shape", "size", "source"]
    assert "damaged: it is cut off" in lines[0]
    assert lines[1].endswith("folder x")
    assert re.search(r" 5×6×[13] ", lines[1])
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


def test_room_is_refused_by_an_error_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_CACHE_GB", "0.001")
    with pytest.raises(CacheFullError, match="do not fit its limit"):
        PictureCache(folder).make_room(10**6 + 1)


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
