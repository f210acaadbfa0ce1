"""How one picture's file is opened, and every fault's text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlmeta.data.sources import DAMAGED, open_file


def rotate_by_exif(file: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3)).save(file, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_a_picture_stands_upright_as_its_exif_says(
    tmp_path: Path, orientation: int, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    rotate_by_exif(tmp_path / "x.png", orientation)
    expected = turn(np.arange(0, 240, 40).reshape(2, 3))
    assert np.asarray(open_file(tmp_path / "x.png")).tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_picture_with_damaged_exif_is_still_a_picture(tmp_path: Path) -> None:
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(256))
    Image.new("RGB", (4, 3), "red").save(tmp_path / "x.jpg", exif=damaged)
    assert open_file(tmp_path / "x.jpg").size == (4, 3)


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "SGI"])
def test_formats_that_are_not_allowed_are_refused_whatever_the_suffix(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png", kind)
    with pytest.raises(OSError, match="not a picture of the formats JPEG, PNG"):
        open_file(tmp_path / "x.png")


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"], ids=["nothing", "text", "a signature"])
def test_what_is_no_picture_raises_what_the_decoder_expects(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DAMAGED):
        open_file(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_random_damage_gives_a_picture_or_an_error_that_the_decoder_expects(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(tmp_path / "x", kind)
    whole = (tmp_path / "x").read_bytes()
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        for position in rng.integers(0, len(damaged), 4):
            damaged[position] = rng.integers(256)
        (tmp_path / "x").write_bytes(damaged)
        try:
            outcomes.add(type(open_file(tmp_path / "x")))
        except DAMAGED as error:
            outcomes.add(type(error))
    assert outcomes
