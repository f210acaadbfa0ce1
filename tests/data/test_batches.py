"""Pictures to batches: what is left out, what is kept, and that a batch is what the transform gives by hand."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlmeta.data import batches
from mlmeta.data.batches import Batches, choose_device, count_batches, read_input_shape, use_channels_last
from mlmeta.data.decoding import DecodedPictures, SkippedPicture, decode_first, decode_pictures
from mlmeta.data.image_ops import ImageOps, build_image_ops
from mlmeta.data.picture_cache import CacheSlot, PictureCache
from mlmeta.data.pictures import Picture
from mlmeta.data.sources import open_file
from mlmeta.data.transforms import Transform, build_transform
from mlmeta.errors import BadInputError, PicturesError

CPU = torch.device("cpu")
AS_THEY_ARE = build_image_ops([])
TO_RGB = build_image_ops([{"convert": {"mode": "RGB"}}])
NORMALIZED = {"ToTensor": True, "Normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
FLIPPED = {"RandomHorizontalFlip": True, **NORMALIZED}


def make_pixels(index: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def make_picture(open: Callable[[], Image.Image], index: int = 0) -> Picture:
    return Picture(f"{index:03}", index % 3, "train", f"{index:064x}", open)


def make_pictures(n: int, *, size: tuple[int, int] = (6, 5)) -> list[Picture]:
    return [make_picture(partial(Image.fromarray, make_pixels(index, size)), index) for index in range(n)]


def from_file(path: Path, index: int = 0) -> Picture:
    return make_picture(partial(open_file, path), index)


def decode(pictures: Sequence[Picture], ops: ImageOps = AS_THEY_ARE, **options: Any) -> DecodedPictures:
    return decode_pictures(pictures, ops, **options)


def make_batches(
    pictures: Sequence[Picture], transform: Any = None, *, training: bool = False, **options: Any
) -> Batches:
    built = build_transform(NORMALIZED if transform is None else transform, training=training)
    return wrap(decode(pictures), built, **options)


def wrap(decoded: DecodedPictures, transform: Transform, **options: Any) -> Batches:
    options = {"batch_size": 4, "device": CPU, "fixed": not transform.random, **options}
    return Batches(decoded, transform, **options)


def stack(batches: Any) -> torch.Tensor:
    return torch.cat([pictures for pictures, _ in batches])


def count_reads(batches: Batches) -> int:
    """How many of the pictures an epoch asks for again, and does not have as the model gets them."""
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, read in (("load", DecodedPictures.load), ("stack", DecodedPictures.stack)):
            patch.setattr(DecodedPictures, name, lambda self, i, read=read: (asked.extend(i), read(self, i))[1])
        stack(batches.in_order())
    return len(asked)


# Decoding


@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 200])
def test_pictures_keep_their_order(n: int) -> None:
    decoded = decode(make_pictures(n))
    assert [picture.id for picture in decoded.pictures] == [f"{index:03}" for index in range(n)]
    assert all(np.array_equal(decoded.array(index), make_pixels(index)) for index in range(n))
    assert decoded.labels.tolist() == [index % 3 for index in range(n)]


def write_truncated(file: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(make_pixels(0, (64, 64))).save(stream, "JPEG")
    file.write_bytes(stream.getvalue()[: stream.tell() // 2])


def write_cut_png(file: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(make_pixels(0, (64, 64))).save(stream, "PNG")
    file.write_bytes(stream.getvalue()[:200])


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated.jpg": (write_truncated, "image file is truncated"),
    "cut.png": (write_cut_png, "image file is truncated|broken|end of"),
    "empty.png": (lambda file: file.write_bytes(b""), "not a picture: empty"),
    "text.png": (lambda file: file.write_text("no picture"), "not a picture of the formats JPEG"),
    "ico.png": (lambda file: Image.new("RGB", (16, 16)).save(file, "ICO"), "not a picture of the formats JPEG, PNG"),
    "gone.png": (lambda file: None, "No such file"),
    "folder.png": (Path.mkdir, "directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_left_out_with_the_reason(tmp_path: Path, name: str) -> None:
    write, reason = BAD[name]
    write(tmp_path / name)
    pictures = make_pictures(9)
    pictures.insert(4, from_file(tmp_path / name, 99))
    decoded = decode(pictures)
    assert [picture.id for picture in decoded.pictures] == [f"{index:03}" for index in range(9)]
    assert [skipped.id for skipped in decoded.skipped] == ["099"]
    assert re.search(reason, decoded.skipped[0].reason)
    assert np.array_equal(decoded.array(4), make_pixels(4))


@pytest.mark.parametrize(("n_good", "n_bad", "refused"), [(8, 2, False), (4, 1, False), (7, 2, True), (0, 1, True)])
def test_more_than_a_fifth_of_bad_pictures_is_an_error(tmp_path: Path, n_good: int, n_bad: int, refused: bool) -> None:
    pictures = make_pictures(n_good) + [from_file(tmp_path / "gone.png", 100 + index) for index in range(n_bad)]
    if not refused:
        assert len(decode(pictures).skipped) == n_bad
        return
    n = n_good + n_bad
    with pytest.raises(PicturesError, match=rf"{n_bad} of {n} pictures cannot be used.*such as 100: .*No such"):
        decode(pictures)


@pytest.mark.parametrize("limit", [10, 15, 29], ids=["far over", "at twice", "just over"])
def test_a_decompression_bomb_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("L", (10, 6)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    decoded = decode([*make_pictures(5), from_file(tmp_path / "bomb.png", 9)])
    (skipped,) = decoded.skipped
    assert (skipped.id, skipped.reason[:27]) == ("009", "damaged: Image size (60 pix")


def test_a_picture_up_to_twice_pillows_limit_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (10, 6)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    assert decode([from_file(tmp_path / "large.png")]).array(0).shape == (6, 10, 1)


def warn(category: type[Warning]) -> Image.Image:
    warnings.warn("odd", category, stacklevel=1)
    return Image.new("L", (1, 1))


@pytest.mark.parametrize("budget", [0, 1000], ids=["decoded each time", "kept"])
@pytest.mark.parametrize("n", [1, 3])
def test_pillows_warnings_about_odd_files_are_silent(tmp_path: Path, n: int, budget: int) -> None:
    palette = Image.fromarray(make_pixels(0)).quantize(8)
    palette.save(tmp_path / "x.png", transparency=bytes([0, 32, 64, 96, 128, 160, 192, 224]))
    with pytest.warns(UserWarning, match="Palette images with Transparency"), Image.open(tmp_path / "x.png") as image:
        image.convert("RGB")
    decoded = decode([from_file(tmp_path / "x.png", index) for index in range(n)], TO_RGB, budget_bytes=budget)
    assert decoded.image(0).mode == "RGB"


def test_the_warnings_of_others_are_not_silenced() -> None:
    with pytest.warns(UserWarning, match="odd"):
        decode([make_picture(partial(warn, UserWarning))])


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_pixels(0)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(decode([from_file(tmp_path / "x.png")]).array(0), np.rot90(make_pixels(0), -1))


def test_a_refused_picture_operation_is_bad_input() -> None:
    with pytest.raises(BadInputError, match=r"image_ops\.0\.crop"):
        decode(make_pictures(3), build_image_ops([{"crop": {"box": [5, 5, 1, 1]}}]))


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"]


def make_mode(mode: str) -> Image.Image:
    grey = Image.fromarray(make_pixels(1)[:, :, 0])
    if mode == "I;16":
        return Image.fromarray(make_pixels(1)[:, :, 0].astype(np.uint16) * 257)
    if mode == "HSV":
        return Image.fromarray(make_pixels(1)).convert("HSV")
    return grey.convert(mode) if mode in ("1", "I", "F", "L") else Image.fromarray(make_pixels(1)).convert(mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("wanted", "shape"), [("RGB", (5, 6, 3)), ("L", (5, 6, 1)), ("RGBA", (5, 6, 4))])
def test_any_mode_becomes_what_convert_asks_for(mode: str, wanted: str, shape: tuple[int, ...]) -> None:
    first = [] if mode not in ("I", "I;16", "F", "HSV") or wanted != "RGBA" else [{"convert": {"mode": "RGB"}}]
    ops = build_image_ops([*first, {"convert": {"mode": wanted}}])
    decoded = decode([make_picture(partial(make_mode, mode))], ops)
    assert decoded.image(0).mode == wanted
    assert decoded.array(0).shape == shape
    assert decoded.array(0).dtype == np.uint8


@pytest.mark.parametrize(
    ("mode", "n_channels"),
    [("1", 1), ("L", 1), ("I", 1), ("I;16", 1), ("F", 1), ("RGBA", 4), ("LAB", 3), ("La", 3), ("RGBa", 3),
     *((mode, 3) for mode in ("LA", "P", "PA", "RGB", "CMYK", "YCbCr", "HSV"))],
)  # fmt: skip
def test_an_array_is_eight_bit_channels_of_any_mode(mode: str, n_channels: int) -> None:
    array = decode([make_picture(partial(Image.new, mode, (6, 5)))]).array(0)
    assert array.shape == (5, 6, n_channels)
    assert array.dtype == np.uint8


def test_the_array_of_a_16_bit_picture_is_scaled_and_not_cut_off() -> None:
    array = decode([make_picture(partial(make_mode, "I;16"))]).array(0)
    assert np.array_equal(array[:, :, 0], make_pixels(1)[:, :, 0])


def test_arrays_are_a_sequence_of_all_pictures() -> None:
    arrays = decode(make_pictures(5)).arrays
    assert len(arrays) == 5
    assert [np.array_equal(one, make_pixels(index)) for index, one in enumerate(arrays)] == [True] * 5
    assert np.array_equal(arrays[1:3][1], make_pixels(2))


@pytest.mark.parametrize("budget", [0, 4 * 30 * 3, 10**9], ids=["nothing", "three pictures", "all"])
def test_the_budget_changes_no_result(budget: int) -> None:
    decoded = decode(make_pictures(10), TO_RGB, budget_bytes=budget)
    assert all(np.array_equal(decoded.array(index), make_pixels(index)) for index in range(10))
    batches = wrap(decoded, build_transform(FLIPPED), fixed=False, budget_bytes=budget)
    torch.manual_seed(0)
    found = stack(batches.in_order())
    torch.manual_seed(0)
    assert torch.equal(found, stack(make_batches(make_pictures(10), FLIPPED, training=True).in_order()))


def test_a_picture_is_opened_once_where_the_budget_keeps_it() -> None:
    opened = []

    def open_picture() -> Image.Image:
        opened.append(1)
        return Image.new("RGB", (4, 4))

    pictures = [make_picture(open_picture)]
    kept, not_kept = decode(pictures, budget_bytes=64), decode(pictures, budget_bytes=63)
    opened.clear()
    kept.image(0)
    assert not opened
    not_kept.image(0)
    assert opened


def test_a_picture_that_vanishes_later_is_one_clear_error(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "x.png")
    decoded = decode([from_file(tmp_path / "x.png")], budget_bytes=0)
    (tmp_path / "x.png").unlink()
    with pytest.raises(PicturesError, match=r"data: 000 can no longer be read: .*No such file"):
        decoded.image(0)


def test_selected_pictures_share_what_is_kept_and_lack_the_bad_ones(tmp_path: Path) -> None:
    pictures = [*make_pictures(6), from_file(tmp_path / "gone.png", 9)]
    decoded = decode(pictures)
    chosen = decoded.select([pictures[6], pictures[4], pictures[2]])
    assert [picture.id for picture in chosen.pictures] == ["004", "002"]
    assert chosen.image(0) is decoded.image(4)
    assert decoded.skipped == [SkippedPicture("009", decoded.skipped[0].reason, lasting=False)]


def test_the_first_readable_picture_is_enough_to_know_the_shape(tmp_path: Path) -> None:
    pictures = [from_file(tmp_path / "gone.png", 9), *make_pictures(3)]
    decoded = decode_first(pictures, AS_THEY_ARE)
    assert [picture.id for picture in decoded.pictures] == ["000"]
    assert [skipped.id for skipped in decoded.skipped] == ["009"]
    with pytest.raises(PicturesError, match="1 of 1 pictures cannot be used"):
        decode_first(pictures[:1], AS_THEY_ARE)


# Batches


@pytest.mark.parametrize("budget", [0, 10**9], ids=["made each time", "kept"])
@pytest.mark.parametrize(
    "transform",
    [
        {"ToTensor": True},
        NORMALIZED,
        {"Resize": {"size": [3, 4]}, **NORMALIZED},
        {"Grayscale": True, "ToTensor": True},
        {"FiveCrop": {"size": 3}, **NORMALIZED},
        {"Resize": {"size": [8, 8]}, "TenCrop": {"size": 4}, "ToTensor": True},
        ["PILToTensor", {"ConvertImageDtype": {"dtype": "float32"}}],
        ["ToTensor", {"ConvertImageDtype": {"dtype": "float64"}}],
        ["ToTensor", {"Normalize": {"mean": [0.5], "std": [0.5], "inplace": True}}],
    ],
    ids=str,
)
def test_a_batch_is_what_the_transform_gives_by_hand(transform: Any, budget: int) -> None:
    built = build_transform(transform, training=False)
    expected = torch.stack([built(Image.fromarray(make_pixels(index))) for index in range(7)])
    batches = make_batches(make_pictures(7), transform, batch_size=3, budget_bytes=budget)
    for _ in range(2):
        found = list(batches.in_order())
        assert torch.equal(torch.cat([pictures for pictures, _ in found]), expected)
        assert torch.cat([labels for _, labels in found]).tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert all(pictures.is_contiguous() for pictures, _ in found)


def test_five_crops_of_a_picture_stand_in_a_dimension_of_their_own() -> None:
    batches = make_batches(make_pictures(5), {"FiveCrop": {"size": [3, 4]}, "ToTensor": True}, batch_size=5)
    assert next(batches.in_order())[0].shape == (5, 5, 3, 3, 4)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (0, 4, []), (1, 4, [1]), (3, 4, [3]), (5, 4, [5]), (6, 4, [4, 2]), (9, 4, [4, 5]), (3, 1, [1, 1, 1]),
        (3, 2, [3]), (5, 1000, [5]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("transform", [NORMALIZED, FLIPPED], ids=["fixed", "random"])
def test_a_last_batch_of_one_joins_the_one_before(n: int, batch_size: int, sizes: list[int], transform: Any) -> None:
    batches = make_batches(make_pictures(n), transform, training=True, batch_size=batch_size)
    assert [len(pictures) for pictures, _ in batches.in_order()] == sizes
    assert [len(labels) for _, labels in batches.shuffled(0)] == sizes
    assert batches.n_batches == len(sizes)
    assert len(batches) == n


def test_shuffled_is_a_permutation_that_the_seed_alone_decides() -> None:
    batches = make_batches(make_pictures(40))
    torch.manual_seed(1)
    first = stack(batches.shuffled(7))
    torch.manual_seed(2)
    again, other = stack(batches.shuffled(7)), stack(batches.shuffled(8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    in_order = stack(batches.in_order())
    assert not torch.equal(first, in_order)
    assert torch.equal(first.flatten(1).sum(1).sort().values, in_order.flatten(1).sum(1).sort().values)


@pytest.mark.parametrize("transform", [{"ToTensor": True}, FLIPPED], ids=["fixed", "random"])
def test_labels_go_with_their_pictures_when_shuffled(transform: Any) -> None:
    plain = [make_picture(partial(Image.new, "RGB", (4, 4), (60 * (index % 3),) * 3), index) for index in range(30)]
    batches = make_batches(plain, transform, training=True)
    found = [
        (label.item(), round(float(picture[0, 0, 0]), 4))
        for pictures, labels in batches.shuffled(3)
        for picture, label in zip(pictures, labels, strict=True)
    ]
    assert len(found) == 30
    assert len(set(found)) == 3


@pytest.mark.parametrize("transform", [NORMALIZED, FLIPPED], ids=["fixed", "random"])
def test_a_batch_may_be_changed_in_place(transform: Any) -> None:
    batches = make_batches(make_pictures(6), transform, training=True, batch_size=6)
    torch.manual_seed(0)
    before = [tensor.clone() for tensor in next(batches.in_order())]
    torch.manual_seed(0)
    for pictures, labels in batches.in_order():
        pictures.zero_()
        labels.fill_(-1)
    torch.manual_seed(0)
    after = next(batches.in_order())
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


# From the cache, in another layout, and streamed


def decode_cached(pictures: Sequence[Picture], folder: Path) -> DecodedPictures:
    decoded = decode(pictures, slot=CacheSlot(PictureCache(folder), "key", "x"))
    assert decoded.rows is not None
    return decoded


CACHED = [
    {"ToTensor": True},
    NORMALIZED,
    ["ToTensor", {"ConvertImageDtype": {"dtype": "float64"}}],
    ["ToTensor", {"Normalize": {"mean": [0.5], "std": [0.5], "inplace": True}}],
    {"Resize": {"size": [3, 4]}, **NORMALIZED},
    {"FiveCrop": {"size": 3}, **NORMALIZED},
    ["PILToTensor", {"ConvertImageDtype": {"dtype": "float32"}}],
    {"Grayscale": True, "ToTensor": True},
    FLIPPED,
    {"RandomHorizontalFlip": True, "FiveCrop": {"size": 3}, "ToTensor": True},
]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("budget", [0, 10**9], ids=["made each time", "kept"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transform", CACHED, ids=str)
def test_cached_pictures_give_what_the_transform_gives_by_hand(
    tmp_path: Path, transform: Any, channels_last: bool, budget: int, mode: str
) -> None:
    if mode != "RGB" and transform is not CACHED[0] and transform is not CACHED[3]:
        transform = [{"Normalize": {"mean": [0.5], "std": [0.3]}}, "ToTensor"][::-1]
    ops = build_image_ops([{"convert": {"mode": mode}}])
    decoded = decode(make_pictures(7), ops, slot=CacheSlot(PictureCache(tmp_path), "key", "x"))
    assert decoded.rows is not None
    built = build_transform(transform, training=True)
    torch.manual_seed(3)
    images = [ops(Image.fromarray(make_pixels(index))) for index in range(7)]
    expected = torch.stack([built(image) for image in images])
    batches = wrap(decoded, built, batch_size=3, budget_bytes=budget, channels_last=channels_last)
    torch.manual_seed(3)
    found = list(batches.in_order())
    assert torch.equal(torch.cat([pictures for pictures, _ in found]), expected)
    assert all(_lies(pictures, channels_last) for pictures, _ in found)
    assert torch.cat([labels for _, labels in found]).tolist() == [0, 1, 2, 0, 1, 2, 0]


def _lies(batch: torch.Tensor, channels_last: bool) -> bool:
    return (batch.movedim(-3, -1) if channels_last else batch).is_contiguous()


def test_cached_pictures_whose_numbers_do_not_fit_are_not_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build_transform(NORMALIZED)
    monkeypatch.setattr(batches, "CACHED_BUDGET_BYTES", 7 * 90 * 4)
    assert count_reads(wrap(decode_cached(make_pictures(7), tmp_path / "7"), built)) == 0
    assert count_reads(wrap(decode_cached(make_pictures(8), tmp_path / "8"), built)) == 8
    assert count_reads(make_batches(make_pictures(8))) == 0


@pytest.mark.parametrize("budget", [0, 10**9], ids=["made each time", "kept"])
def test_a_batch_of_cached_pictures_may_be_changed_in_place(tmp_path: Path, budget: int) -> None:
    batches = wrap(decode_cached(make_pictures(6), tmp_path), build_transform(NORMALIZED), budget_bytes=budget)
    before = stack(batches.in_order())
    for pictures, _ in batches.in_order():
        pictures.zero_()
    assert torch.equal(stack(batches.in_order()), before)


def test_a_models_outputs_do_not_depend_on_the_layout() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    plain, other = (
        stack(make_batches(make_pictures(9), channels_last=channels_last).in_order()) for channels_last in (False, True)
    )
    torch.testing.assert_close(model(plain), model(other))


@pytest.mark.parametrize(
    ("model", "device", "expected"),
    [
        (torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), "cpu", True),
        (torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3)), "cuda", False),
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2)), "cpu", False),
        (torch.nn.Sequential(torch.nn.Conv1d(3, 8, 3)), "cpu", False),
    ],
    ids=["convolutions", "elsewhere", "rows of numbers", "rows"],
)
def test_channels_last_is_for_convolutions_on_the_cpu(model: torch.nn.Module, device: str, expected: bool) -> None:
    assert use_channels_last(model, torch.device(device)) is expected


@pytest.mark.parametrize("transform", [NORMALIZED, FLIPPED], ids=["fixed", "random"])
def test_pictures_that_are_not_kept_are_decoded_a_batch_ahead_and_no_more(transform: Any) -> None:
    opened: list[int] = []

    def open_picture(index: int) -> Image.Image:
        opened.append(index)
        return Image.fromarray(make_pixels(index))

    pictures = [make_picture(partial(open_picture, index), index) for index in range(12)]
    batches = wrap(decode(pictures, budget_bytes=0), build_transform(transform), batch_size=3, budget_bytes=0)
    opened.clear()
    iterator = batches.in_order()
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]  # a generator
    assert sorted(opened) == list(range(6))
    opened.clear()
    assert len(list(batches.in_order())) == 4
    assert sorted(opened) == list(range(12))


def test_what_the_model_draws_between_batches_does_not_move_when_pictures_are_streamed() -> None:
    def run(budget: int) -> list[torch.Tensor]:
        decoded = decode(make_pictures(12), budget_bytes=budget)
        batches = wrap(decoded, build_transform(FLIPPED), budget_bytes=budget)
        torch.manual_seed(2)
        return [part for pictures, _ in batches.in_order() for part in (pictures, torch.rand(3))]

    assert all(torch.equal(kept, streamed) for kept, streamed in zip(run(10**9), run(0), strict=True))


def test_a_picture_that_vanishes_while_it_is_streamed_is_one_clear_error(tmp_path: Path) -> None:
    for index in range(6):
        Image.new("RGB", (6, 5)).save(tmp_path / f"{index}.png")
    pictures = [from_file(tmp_path / f"{index}.png", index) for index in range(6)]
    batches = wrap(decode(pictures, budget_bytes=0), build_transform(NORMALIZED), batch_size=2, budget_bytes=0)
    (tmp_path / "3.png").unlink()
    with pytest.raises(PicturesError, match="data: 003 can no longer be read"):
        list(batches.in_order())


RANDOM = [
    FLIPPED,
    {"Resize": {"size": [8, 8]}, "RandomCrop": {"size": 5}, "ToTensor": True},
    {"RandomHorizontalFlip": True, "ToTensor": True, "RandomErasing": {"p": 0.9}},
    {"ColorJitter": {"brightness": 0.5}, "FiveCrop": {"size": 3}, "ToTensor": True},
    ["ToTensor", "RandomErasing", {"Normalize": {"mean": [0.5], "std": [0.5]}}],
]


@pytest.mark.parametrize("transform", RANDOM, ids=str)
def test_random_transforms_draw_anew_each_epoch_and_repeat_with_the_seed(transform: Any) -> None:
    batches = make_batches(make_pictures(20), transform, training=True)
    torch.manual_seed(5)
    first, second = stack(batches.in_order()), stack(batches.in_order())
    torch.manual_seed(5)
    assert torch.equal(first, stack(batches.in_order()))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("budget", [0, 10**9], ids=["made each time", "kept"])
@pytest.mark.parametrize("transform", RANDOM, ids=str)
def test_random_transforms_give_what_they_give_picture_by_picture(transform: Any, budget: int) -> None:
    built = build_transform(transform, training=True)
    torch.manual_seed(11)
    expected = torch.stack([built(Image.fromarray(make_pixels(index))) for index in range(9)])
    batches = make_batches(make_pictures(9), transform, training=True, budget_bytes=budget)
    torch.manual_seed(11)
    assert torch.equal(stack(batches.in_order()), expected)


def test_what_is_the_same_every_time_is_done_once() -> None:
    resized = make_batches(make_pictures(3), {"Resize": {"size": [3, 3]}, "RandomHorizontalFlip": True}, training=True)
    assert count_reads(resized) == 0
    assert count_reads(make_batches(make_pictures(3), {"RandomHorizontalFlip": True}, training=True)) == 3


def test_pictures_of_several_depths_may_stand_in_one_batch() -> None:
    pictures = [make_picture(partial(make_mode, mode), index) for index, mode in enumerate(["L", "I;16", "1", "F"])]
    built = build_transform(["RandomHorizontalFlip", "ToTensor"], training=True)
    torch.manual_seed(0)
    expected = torch.stack([built(picture.open()) for picture in pictures])
    batches = wrap(decode(pictures), built)
    torch.manual_seed(0)
    assert torch.equal(stack(batches.in_order()), expected)


@pytest.mark.parametrize("budget", [0, 10**9], ids=["made each time", "kept"])
@pytest.mark.parametrize("transform", [{"ToTensor": True}, ["RandomHorizontalFlip", "ToTensor"]], ids=str)
def test_pictures_of_other_sizes_are_an_error_that_names_two_and_the_remedy(transform: Any, budget: int) -> None:
    odd = make_picture(partial(Image.new, "RGB", (9, 9)), 7)
    message = (
        r"image_ops: pictures must come out in one shape: 007 gives \(3, 9, 9\), 000 gives \(3, 5, 6\); "
        r'add \{"resize": \{"size": \[width, height\]\}\} and'
    )
    with pytest.raises(BadInputError, match=message):
        list(make_batches([*make_pictures(7), odd], transform, training=True, budget_bytes=budget).in_order())


def test_pictures_of_other_modes_are_an_error_that_names_two(tmp_path: Path) -> None:
    odd = make_picture(partial(Image.new, "L", (6, 5)), 7)
    with pytest.raises(BadInputError, match=r"007 gives \(1, 5, 6\), 000 gives \(3, 5, 6\)"):
        make_batches([*make_pictures(7), odd], {"ToTensor": True})


def test_sizes_that_differ_between_batches_only_are_found_too() -> None:
    pictures = [*make_pictures(4), *(make_picture(partial(Image.new, "RGB", (9, 9)), index) for index in range(4, 8))]
    batches = make_batches(pictures, ["RandomHorizontalFlip", "ToTensor"], training=True)
    with pytest.raises(BadInputError, match=r"004 gives \(3, 9, 9\), 000 gives"):
        list(batches.in_order())


@pytest.mark.parametrize("transform", [{"ToTensor": True}, {"FiveCrop": {"size": [4, 3]}, "ToTensor": True}], ids=str)
def test_the_input_shape_is_that_of_one_picture_or_crop(transform: Any) -> None:
    shape = read_input_shape(decode(make_pictures(2)), build_transform(transform, training=False))
    assert shape == ((3, 4, 3) if "FiveCrop" in transform else (3, 5, 6))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (["PILToTensor"], r"gives torch\.uint8, a model needs torch\.float32; use ToTensor"),
        (["ToTensor", {"ConvertImageDtype": {"dtype": "float64"}}], r"gives torch\.float64"),
    ],
)
def test_numbers_that_a_model_does_not_take_are_refused(transform: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        read_input_shape(decode(make_pictures(1)), build_transform(transform))


def test_there_is_a_device() -> None:
    assert torch.zeros(1, device=choose_device()).sum() == 0


@pytest.mark.parametrize(
    ("n_pictures", "batch_size", "expected"),
    [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 1), (6, 4, 2), (8, 4, 2), (9, 4, 2), (3, 1, 3)],
)
def test_a_last_picture_by_itself_makes_no_batch(n_pictures: int, batch_size: int, expected: int) -> None:
    assert count_batches(n_pictures, batch_size) == expected
