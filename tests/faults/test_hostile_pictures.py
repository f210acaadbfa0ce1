"""Hostile files beside good ones in one folder: each costs nothing but itself, and is listed with the reason."""

from __future__ import annotations

import csv
import io
import os
import re
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MemoryRecorder
from PIL import Image

from mlmeta.commands.documents import FolderData, TrainCommands
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.decoding import SkippedPicture, decode_pictures
from mlmeta.data.image_ops import build_image_ops
from mlmeta.data.pictures import PictureSet, find_conflicts, find_pictures
from mlmeta.data.sources import MAX_FILE_BYTES, open_file, open_regular, read_file
from mlmeta.data.task import Task, prepare_task
from mlmeta.errors import PicturesError
from mlmeta.reports.attempt_files import write_conflicts, write_skipped
from mlmeta.training.loop import train_attempt
from mlmeta.training.preparation import prepare_training

resource = pytest.importorskip("resource", reason="needs POSIX, pipes and all")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes, /dev/zero or sparse files")
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs pipes, sockets and links")
N_GOOD = 80
TO_RGB = build_image_ops([{"resize": {"size": [8, 8]}}, {"convert": {"mode": "RGB"}}])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture cache of its own."""
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_pixels(seed: int, *, size: tuple[int, int] = (9, 7)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of good pictures of two labels, each of another content."""
    folder = tmp_path / "pictures"
    for index in range(N_GOOD):
        file = folder / "ab"[index % 2] / f"good{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_pixels(index)).save(file)
    return folder


def read_commands(root: Path, **others: Any) -> TrainCommands:
    return parse_train_commands(
        {
            "model_name": "hostile",
            "data": {"source": "folder", "path": str(root)},
            "image_ops": [{"resize": {"size": [8, 8]}}, {"convert": {"mode": "RGB"}}],
            "model": {
                "layers": [
                    {"name": "Flatten"},
                    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
                ]
            },
            "batch_size": 16,
            "n_epoch": 1,
            **others,
        }
    )


def prepare(root: Path, **others: Any) -> Task:
    return prepare_task(read_commands(root, **others), base_dir=root.parent)


def train(root: Path, recorder: MemoryRecorder, **others: Any) -> Task:
    prepared = prepare_training(read_commands(root, **others), base_dir=root.parent)
    trained = train_attempt(prepared, recorder)
    assert trained.state
    return prepared.task


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def claim_size(width: int, height: int) -> bytes:
    """Return a PNG that has the header of a large picture and one row of it."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"IDAT": zlib.compress(bytes(3 * width + 1)),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def make_socket(file: Path) -> None:
    # The path of a socket may have 108 bytes.
    before = Path.cwd()
    os.chdir(file.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(file.name)
    finally:
        os.chdir(before)


def make_sparse(file: Path) -> None:
    """A file of a terabyte that takes no disk and begins as a picture."""
    file.write_bytes(encode(Image.new("RGB", (4, 4)), "PNG"))
    os.truncate(file, 2**40)


PHOTO = encode(Image.fromarray(make_pixels(500, size=(64, 64))), "JPEG")
# Name: how it is made, and the reason for which it is left out.
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated.jpg": (lambda file: file.write_bytes(PHOTO[: len(PHOTO) // 2]), "truncated"),
    "zero.jpg": (lambda file: file.write_bytes(b""), "not a picture: empty"),
    "text.png": (lambda file: file.write_text("<html>404"), "not a picture of the formats JPEG, PNG"),
    "bomb.png": (lambda file: file.write_bytes(claim_size(50_000, 50_000)), "decompression bomb"),
    "header.png": (lambda file: file.write_bytes(claim_size(3_000, 3_000)[:-30]), "truncated"),
}
SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe.png": (lambda file: os.mkfifo(file), "is a pipe, not a file"),
    "socket.png": (make_socket, "is a socket, not a file"),
    "device.png": (lambda file: file.symlink_to("/dev/zero"), "is a device, not a file"),
    "loop.png": (lambda file: file.symlink_to(file.name), "Too many levels of symbolic links"),
    "nowhere.png": (lambda file: file.symlink_to("gone"), "No such file"),
    "huge.png": (make_sparse, "the file has 1,099,511,627,776 bytes; at most"),
    os.fsdecode(b"caf\xe9\n.png"): (lambda file: file.write_text("x"), "not a picture"),
}


def assert_left_out(task: Task, root: Path, bad: dict[str, tuple[Any, str]], tmp_path: Path) -> None:
    write_skipped(tmp_path / "skipped_pictures.csv", task.decoded.skipped)
    with (tmp_path / "skipped_pictures.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["id", "reason"]
    assert all("\n" not in cell for row in rows for cell in row)
    reasons = {re.sub(r"^a/", "", name): reason for name, reason in rows[1:]}
    names = {os.fsencode(name).decode("utf-8", "backslashreplace").replace("\n", "\\n"): name for name in bad}
    assert reasons.keys() == names.keys()
    assert all(bad[names[name]][1] in reason for name, reason in reasons.items())
    assert len(task.decoded.pictures) == N_GOOD


def test_bad_pictures_are_left_out_and_listed_and_the_training_goes_on(
    root: Path, tmp_path: Path, recorder: MemoryRecorder
) -> None:
    for name, (make, _) in BAD.items():
        make(root / "a" / name)
    task = train(root, recorder)
    assert_left_out(task, root, BAD, tmp_path)
    assert [step for step, _ in recorder.metrics] == [1]


@LINUX
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(
    root: Path, tmp_path: Path, recorder: MemoryRecorder
) -> None:
    for name, (make, _) in SPECIAL.items():
        make(root / "a" / name)
    assert_left_out(train(root, recorder), root, SPECIAL, tmp_path)


def test_a_second_attempt_finds_the_same_bad_pictures(root: Path, tmp_path: Path) -> None:
    for name, (make, _) in BAD.items():
        make(root / "a" / name)
    first, second = prepare(root), prepare(root)
    assert first.decoded.skipped == second.decoded.skipped
    assert_left_out(second, root, BAD, tmp_path)


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_left_out(root: Path) -> None:
    (root / "a" / "good00.png").chmod(0)
    (skipped,) = prepare(root).decoded.skipped
    assert skipped.id == "a/good00.png"
    assert "Permission denied" in skipped.reason


@POSIX
def test_a_name_that_becomes_a_pipe_after_it_was_listed_is_not_waited_for(root: Path) -> None:
    found = find_all(root)
    (root / "a" / "good00.png").unlink()
    os.mkfifo(root / "a" / "good00.png")
    assert decode_pictures(found.pictures, TO_RGB).skipped == [
        SkippedPicture("a/good00.png", "damaged: is a pipe, not a file")
    ]


@LINUX
@pytest.mark.parametrize("read", [open_regular, read_file, open_file])
def test_a_file_larger_than_a_picture_can_be_is_not_read(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    (tmp_path / "x.png").touch()
    os.truncate(tmp_path / "x.png", MAX_FILE_BYTES + 1)
    with pytest.raises(OSError, match=f"{MAX_FILE_BYTES + 1:,} bytes; at most"):
        read(tmp_path / "x.png")


def find_all(root: Path) -> PictureSet:
    return find_pictures(FolderData(source="folder", path=str(root)), base_dir=root)


# What is odd and no fault.


def make_palette() -> Image.Image:
    return Image.fromarray(make_pixels(600)).quantize(8)


def make_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


ODD: dict[str, tuple[bytes, Callable[[], np.ndarray] | None]] = {
    "cmyk.jpg": (encode(Image.fromarray(make_pixels(600)).convert("CMYK"), "JPEG"), None),
    "grey16.png": (encode(Image.fromarray(np.full((5, 6), 300, np.uint16)), "PNG"), None),
    "bit.png": (encode(Image.fromarray(make_pixels(601)[:, :, 0]).convert("1"), "PNG"), None),
    "palette.png": (encode(make_palette(), "PNG", transparency=bytes(range(0, 256, 32))), None),
    "one.png": (encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), lambda: np.array([[[9, 8, 7]]])),
    "animated.gif": (
        encode(
            Image.new("RGB", (4, 3), "red"),
            "GIF", save_all=True, append_images=[Image.new("RGB", (4, 3), c) for c in ("lime", "blue")],
        ),
        lambda: np.full((3, 4, 3), (255, 0, 0)),
    ),
    "turned.png": (
        encode(Image.fromarray(make_pixels(602)), "PNG", exif=make_exif(6)),
        lambda: np.rot90(make_pixels(602), -1),
    ),
    "turned.tif": (
        encode(Image.fromarray(make_pixels(603)), "TIFF", exif=make_exif(3)),
        lambda: np.rot90(make_pixels(603), 2),
    ),
}  # fmt: skip


def test_odd_pictures_are_pictures(root: Path, recorder: MemoryRecorder) -> None:
    for name, (content, _) in ODD.items():
        (root / "b" / name).write_bytes(content)
    task = train(root, recorder)
    assert not task.decoded.skipped
    assert len(task.decoded.pictures) == N_GOOD + len(ODD)


@pytest.mark.parametrize("name", [name for name, (_, pixels) in ODD.items() if pixels])
def test_odd_pictures_have_their_pixels(root: Path, name: str) -> None:
    content, make_expected = ODD[name]
    (root / "b" / name).write_bytes(content)
    decoded = prepare(root, image_ops=[{"convert": {"mode": "RGB"}}], transform={"Resize": {"size": [8, 8]}}).decoded
    index = next(index for index, picture in enumerate(decoded.pictures) if picture.id == f"b/{name}")
    assert make_expected is not None
    assert np.array_equal(decoded.array(index), make_expected())


@POSIX
def test_folders_and_links_with_a_pictures_name_are_folders(root: Path, recorder: MemoryRecorder) -> None:
    (root / "a" / "folder.png").mkdir()
    Image.fromarray(make_pixels(700)).save(root / "a" / "folder.png" / "inside.png")
    (root / "a" / "up.png").symlink_to(root)
    (root / "loop").symlink_to(root)
    (root / "above").symlink_to(root.parent)
    (root / "itself").symlink_to("itself")
    task = train(root, recorder)
    assert task.pictures.label_names == ("a", "b")
    assert "a/folder.png/inside.png" in {picture.id for picture in task.decoded.pictures}
    assert len(task.decoded.pictures) == N_GOOD + 1
    assert not task.decoded.skipped


@LINUX
def test_names_of_any_bytes_are_read_and_stand_on_one_line(root: Path, recorder: MemoryRecorder) -> None:
    names = [b"caf\xe9.png", b"two\nlines.png", b"\x1b[31mred\r.png", "\u2028犬 .png".encode(), b'",=1+1.png']
    for index, name in enumerate(names):
        Image.fromarray(make_pixels(800 + index)).save(root / "a" / os.fsdecode(name))
    task = train(root, recorder)
    odd = {picture.id for picture in task.pictures.pictures if "good" not in picture.id}
    assert odd == {
        "a/caf\\xe9.png", "a/two\\nlines.png", "a/\\x1b[31mred\\r.png", "a/\\u2028犬 .png", 'a/",=1+1.png'
    }  # fmt: skip
    assert not task.decoded.skipped


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def test_a_photo_of_a_hundred_megapixels_is_read_in_bounded_memory(root: Path, recorder: MemoryRecorder) -> None:
    Image.new("RGB", (10_000, 10_000), (10, 200, 30)).save(root / "a" / "large.jpg", quality=50)
    before = peak_bytes()
    task = train(root, recorder)
    # It was written out of 400 MB, 4 bytes a pixel, and is read into as much once, never twice.
    assert peak_bytes() - before < 300 * 10**6
    index = next(index for index, picture in enumerate(task.decoded.pictures) if picture.id == "a/large.jpg")
    assert np.abs(task.decoded.array(index).astype(int) - (10, 200, 30)).max() < 4


# A folder that changes while it is read.


def test_a_file_that_vanishes_between_listing_and_reading_is_left_out(root: Path) -> None:
    found = find_all(root)
    (root / "a" / "good00.png").unlink()
    (skipped,) = decode_pictures(found.pictures, TO_RGB).skipped
    assert skipped.id == "a/good00.png"
    assert "No such file" in skipped.reason


def test_a_file_that_is_written_anew_while_it_is_read_is_still_a_picture_or_left_out(root: Path) -> None:
    found = find_all(root)
    (root / "a" / "good00.png").write_bytes((root / "a" / "good02.png").read_bytes()[:60])
    decoded = decode_pictures(found.pictures, TO_RGB)
    assert [skipped.id for skipped in decoded.skipped] == ["a/good00.png"]


def test_a_file_with_another_picture_than_was_listed_is_not_kept_under_the_old_ones_name(root: Path) -> None:
    file = root / "a" / "good00.png"
    first, second = file.read_bytes(), (root / "a" / "good02.png").read_bytes()
    found = find_all(root)
    file.write_bytes(second)
    (skipped,) = decode_pictures(found.pictures, TO_RGB).skipped
    assert (skipped.id, skipped.lasting) == ("a/good00.png", False)
    assert "has changed since the pictures were listed" in skipped.reason
    file.write_bytes(first)
    assert not decode_pictures(found.pictures, TO_RGB).skipped


def test_a_file_that_vanishes_after_decoding_is_not_missed(root: Path, recorder: MemoryRecorder) -> None:
    prepared = prepare_training(read_commands(root), base_dir=root.parent)
    for file in root.glob("*/*.png"):
        file.unlink()
    assert train_attempt(prepared, recorder).state


def test_a_file_that_vanishes_where_nothing_is_kept_is_one_clear_error(root: Path) -> None:
    decoded = decode_pictures(find_all(root).pictures, TO_RGB, budget_bytes=0)
    (root / "a" / "good00.png").unlink()
    with pytest.raises(PicturesError, match=r"data: a/good00\.png can no longer be read: .*No such file"):
        decoded.load(range(N_GOOD))


def test_the_folder_itself_may_vanish(root: Path) -> None:
    root.rename(root.parent / "away")
    with pytest.raises(PicturesError, match="there is no folder"):
        prepare(root)


# Too many of them, and the same picture twice.


def test_more_bad_pictures_than_the_share_are_an_error_before_the_training(
    root: Path, recorder: MemoryRecorder
) -> None:
    for index in range(N_GOOD // 4 + 1):
        (root / "a" / f"bad{index}.png").write_text("x")
    with pytest.raises(
        PicturesError, match=r"21 of 101 pictures cannot be used.*: 21 not a picture, such as a/bad0\.png"
    ):
        train(root, recorder)
    assert not recorder.metrics


def test_bad_pictures_are_summed_up_on_one_line(capfd: pytest.CaptureFixture[str], root: Path) -> None:
    for name, (make, _) in BAD.items():
        make(root / "a" / name)
    account = prepare(root).account()
    assert "; 5 left out: " in account.describe()[0]
    (warned,) = [warned.text for warned in account.warnings if "cannot be used" in warned.text]
    assert warned.startswith("5 picture(s) cannot be used: ")
    assert len(warned) < 500
    assert capfd.readouterr() == ("", "")


def test_nothing_odd_is_left_out_of_nothing(root: Path) -> None:
    assert not prepare(root).account().left_out


def test_a_picture_under_two_labels_is_reported_and_stays(root: Path, tmp_path: Path, recorder: MemoryRecorder) -> None:
    (root / "b" / "copy.png").write_bytes((root / "a" / "good00.png").read_bytes())
    (root / "a" / "twin.png").write_bytes((root / "a" / "good02.png").read_bytes())
    for label in "ab":
        (root / label / "empty.png").write_bytes(b"")
    task = train(root, recorder)
    conflicts = find_conflicts(task.decoded.pictures)
    assert [(picture.id, picture.label) for picture in conflicts] == [("a/good00.png", 0), ("b/copy.png", 1)]
    assert {picture.id for picture in conflicts} <= {picture.id for picture in task.decoded.pictures}
    write_conflicts(tmp_path / "conflicts.csv", conflicts, task.pictures.label_names)
    rows = (tmp_path / "conflicts.csv").read_text(encoding="utf-8").splitlines()
    digest = conflicts[0].digest
    assert rows == ["content_sha256,label,id", f"{digest},a,a/good00.png", f"{digest},b,b/copy.png"]
    assert any("1 picture(s) stand under more than one label" in w.text for w in task.account().warnings)


def test_tables_are_utf_8_whatever_stands_in_them(tmp_path: Path) -> None:
    write_skipped(tmp_path / "x.csv", [SkippedPicture("caf\udce9\r\n.png", 'a "quoted", reason')])
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream))[1] == ["caf\\udce9\r\n.png", 'a "quoted", reason']
