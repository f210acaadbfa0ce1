from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mlmeta.data import image_ops
from mlmeta.data.image_ops import build_image_ops
from mlmeta.errors import BadInputError


def make_picture(mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def assert_same(result: Image.Image, expected: Image.Image) -> None:
    assert result.mode == expected.mode
    assert result.size == expected.size
    assert result.tobytes() == expected.tobytes()
    assert result.getpalette() == expected.getpalette()


def list_methods_that_give_an_image() -> list[str]:
    members = inspect.getmembers(Image.Image, inspect.isfunction)
    public = ((name, member) for name, member in members if not name.startswith("_"))
    return [name for name, member in public if member.__annotations__.get("return") == "Image"]


RED_TO_HALF = [value // 2 for value in range(256)]
MATRIX = [0.4, 0.3, 0.3, 0.0]
LANCZOS = Image.Resampling.LANCZOS

# name of the operation, JSON arguments, mode of the picture, the same done by Pillow
CASES = [
    ("convert", {"mode": "L"}, "RGB", lambda im: im.convert("L")),
    ("convert", {"mode": "'RGB'"}, "RGBA", lambda im: im.convert("RGB")),
    ("convert", {"mode": "L", "matrix": MATRIX}, "RGB", lambda im: im.convert("L", tuple(MATRIX))),
    ("convert", {"mode": "1", "dither": "NONE"}, "L", lambda im: im.convert("1", dither=Image.Dither.NONE)),
    (
        "convert",
        {"mode": "P", "palette": "Image.ADAPTIVE", "colors": 8},
        "RGB",
        lambda im: im.convert("P", palette=Image.Palette.ADAPTIVE, colors=8),
    ),
    ("copy", True, "RGB", lambda im: im.copy()),
    ("copy", {}, "F", lambda im: im.copy()),
    ("crop", {"box": [1, 2, 8, 7]}, "RGB", lambda im: im.crop((1, 2, 8, 7))),
    ("crop", {"box": "(1, 2, 8, 7)"}, "RGB", lambda im: im.crop((1, 2, 8, 7))),
    ("effect_spread", {"distance": 0}, "RGB", lambda im: im.effect_spread(0)),
    ("filter", "SHARPEN", "RGB", lambda im: im.filter(ImageFilter.SHARPEN)),
    ("filter", {"filter": "ImageFilter.EMBOSS"}, "L", lambda im: im.filter(ImageFilter.EMBOSS)),
    (
        "filter",
        {"filter": {"name": "BoxBlur", "radius": 1}},
        "L",
        lambda im: im.filter(ImageFilter.BoxBlur(1)),
    ),
    ("getchannel", {"channel": 1}, "RGB", lambda im: im.getchannel(1)),
    ("getchannel", {"channel": "'A'"}, "RGBA", lambda im: im.getchannel("A")),
    ("point", {"lut": RED_TO_HALF}, "RGB", lambda im: im.point(RED_TO_HALF * 3)),
    ("point", {"lut": RED_TO_HALF * 3}, "RGB", lambda im: im.point(RED_TO_HALF * 3)),
    ("point", {"lut": RED_TO_HALF, "mode": "1"}, "L", lambda im: im.point(RED_TO_HALF, "1")),
    ("quantize", {"colors": 5}, "RGB", lambda im: im.quantize(5)),
    (
        "quantize",
        {"colors": 5, "method": "FASTOCTREE", "kmeans": 1, "dither": "NONE"},
        "RGBA",
        lambda im: im.quantize(5, Image.Quantize.FASTOCTREE, 1, dither=Image.Dither.NONE),
    ),
    ("reduce", {"factor": 2}, "RGB", lambda im: im.reduce(2)),
    ("reduce", {"factor": [2, 3], "box": [0, 0, 8, 6]}, "L", lambda im: im.reduce((2, 3), (0, 0, 8, 6))),
    (
        "remap_palette",
        {"dest_map": list(range(255, -1, -1))},
        "P",
        lambda im: im.remap_palette(list(range(255, -1, -1))),
    ),
    (
        "remap_palette",
        {"dest_map": [1, 0], "source_palette": [0, 0, 0, 9, 9, 9]},
        "L",
        lambda im: im.remap_palette([1, 0], bytes([0, 0, 0, 9, 9, 9])),
    ),
    ("resize", {"size": [5, 7]}, "RGB", lambda im: im.resize((5, 7))),
    (
        "resize",
        {"size": [5, 7], "resample": "BOX", "box": [0, 0, 6, 6], "reducing_gap": 2.0},
        "F",
        lambda im: im.resize((5, 7), Image.Resampling.BOX, (0, 0, 6, 6), 2.0),
    ),
    ("rotate", {"angle": 90}, "RGB", lambda im: im.rotate(90)),
    (
        "rotate",
        {
            "angle": 30,
            "resample": "BICUBIC",
            "expand": True,
            "center": [1, 2],
            "translate": [3, 4],
            "fillcolor": [9, 8, 7],
        },
        "RGB",
        lambda im: im.rotate(30, Image.Resampling.BICUBIC, True, (1, 2), (3, 4), (9, 8, 7)),
    ),
    ("rotate", {"angle": 30, "fillcolor": "white"}, "L", lambda im: im.rotate(30, fillcolor="white")),
    ("rotate", {"angle": 30}, "1", lambda im: im.rotate(30)),
    (
        "transform",
        {
            "size": [4, 6],
            "method": "EXTENT",
            "data": [0, 0, 8, 8],
            "resample": "BILINEAR",
            "fillcolor": [1, 2, 3],
        },
        "RGB",
        lambda im: im.transform(
            (4, 6), Image.Transform.EXTENT, (0, 0, 8, 8), Image.Resampling.BILINEAR, fillcolor=(1, 2, 3)
        ),
    ),
    (
        "transform",
        {"size": [4, 6], "method": "Image.Transform.AFFINE", "data": [1, 0.5, 0, 0, 1, 0]},
        "L",
        lambda im: im.transform((4, 6), Image.Transform.AFFINE, (1, 0.5, 0, 0, 1, 0)),
    ),
    (
        "transform",
        {"size": [4, 6], "method": "MESH", "data": [[[0, 0, 4, 6], [0, 0, 0, 8, 8, 8, 8, 0]]]},
        "RGB",
        lambda im: im.transform((4, 6), Image.Transform.MESH, [((0, 0, 4, 6), (0, 0, 0, 8, 8, 8, 8, 0))]),
    ),
    (
        "transpose",
        {"method": "FLIP_LEFT_RIGHT"},
        "RGB",
        lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    ),
    ("transpose", {"method": "Image.ROTATE_90"}, "RGB", lambda im: im.transpose(Image.Transpose.ROTATE_90)),
    ("transpose", {"method": 6}, "RGB", lambda im: im.transpose(Image.Transpose.TRANSVERSE)),
]


@pytest.mark.parametrize("name", list_methods_that_give_an_image())
def test_every_method_that_gives_an_image_is_either_supported_or_not_with_a_reason(name: str) -> None:
    assert (name in image_ops.SUPPORTED) != (name in image_ops.UNSUPPORTED)


def test_the_generated_listing_finds_the_methods_of_pillow() -> None:
    assert {"resize", "convert", "crop", "rotate", "transpose"} <= set(list_methods_that_give_an_image())


@pytest.mark.parametrize("name", image_ops.UNSUPPORTED)
def test_an_unsupported_method_is_one_of_pillows_and_is_refused_with_its_reason(name: str) -> None:
    assert callable(getattr(Image.Image, name))
    reason = image_ops.UNSUPPORTED[name]
    with pytest.raises(BadInputError, match=rf"^image_ops\.0\.{name}: cannot be used: it {reason}"):
        build_image_ops([{name: {}}])


@pytest.mark.parametrize("name", image_ops.SUPPORTED)
def test_every_supported_operation_has_a_case_below(name: str) -> None:
    assert name == "thumbnail" or name in {case[0] for case in CASES}


@pytest.mark.parametrize(("name", "arguments", "mode", "by_pillow"), CASES)
def test_an_operation_gives_what_pillow_gives(name, arguments, mode, by_pillow) -> None:
    listing = json.loads(json.dumps([{name: arguments}]))
    picture = make_picture(mode)
    assert_same(build_image_ops(listing)(picture), by_pillow(make_picture(mode)))
    assert_same(picture, make_picture(mode))


@pytest.mark.parametrize("size", [(5, 5), (40, 3), (4000, 4000)])
def test_thumbnail_gives_a_new_picture_and_leaves_the_old_one(size: tuple[int, int]) -> None:
    picture, expected = make_picture(size=(40, 30)), make_picture(size=(40, 30))
    expected.thumbnail(size, Image.Resampling.BOX)
    result = build_image_ops([{"thumbnail": {"size": list(size), "resample": "BOX"}}])(picture)
    assert_same(result, expected)
    assert picture.size == (40, 30)


def test_effect_spread_only_moves_pixels_inside_the_picture() -> None:
    picture = make_picture("L", (64, 64))
    result = build_image_ops([{"effect_spread": {"distance": 3}}])(picture)
    assert result.size == picture.size
    assert set(result.tobytes()) <= set(picture.tobytes())
    assert result.tobytes() != picture.tobytes()


@pytest.mark.parametrize("resample", [*Image.Resampling.__members__, *map(int, Image.Resampling)])
def test_every_resampling_filter_is_named_by_its_member_or_number(resample: str | int) -> None:
    expected = Image.Resampling[resample] if isinstance(resample, str) else Image.Resampling(resample)
    result = build_image_ops([{"resize": {"size": [5, 4], "resample": resample}}])(make_picture())
    assert_same(result, make_picture().resize((5, 4), expected))


@pytest.mark.parametrize(
    "resample",
    [
        "ANTIALIAS",
        "Image.ANTIALIAS",
        "Image.Resampling.LANCZOS",
        "Resampling.LANCZOS",
        "'Image.ANTIALIAS'",
        "lanczos",
        1,
    ],
)
def test_older_spellings_of_lanczos_are_lanczos(resample: str | int) -> None:
    result = build_image_ops([{"resize": {"size": [5, 4], "resample": resample}}])(make_picture())
    assert_same(result, make_picture().resize((5, 4), LANCZOS))


FILTERS = [
    *((name, name, getattr(ImageFilter, name)) for name in image_ops.FILTERS if name.isupper()),
    ("GaussianBlur", {"name": "GaussianBlur", "radius": 2}, ImageFilter.GaussianBlur(2)),
    ("GaussianBlur", {"name": "GaussianBlur", "radius": [1, 3]}, ImageFilter.GaussianBlur((1, 3))),
    ("BoxBlur", {"name": "BoxBlur", "radius": 1.5}, ImageFilter.BoxBlur(1.5)),
    ("UnsharpMask", {"name": "UnsharpMask", "radius": 1, "percent": 90}, ImageFilter.UnsharpMask(1, 90)),
    ("MedianFilter", "MedianFilter", ImageFilter.MedianFilter()),
    ("MinFilter", {"name": "MinFilter", "size": 5}, ImageFilter.MinFilter(5)),
    ("MaxFilter", {"name": "MaxFilter"}, ImageFilter.MaxFilter()),
    ("ModeFilter", {"name": "ModeFilter", "size": 3}, ImageFilter.ModeFilter(3)),
    ("RankFilter", {"name": "RankFilter", "size": 3, "rank": 4}, ImageFilter.RankFilter(3, 4)),
    (
        "Kernel",
        {"name": "Kernel", "size": [3, 3], "kernel": [0, 1, 0, 1, 2, 1, 0, 1, 0], "offset": 3},
        ImageFilter.Kernel((3, 3), (0, 1, 0, 1, 2, 1, 0, 1, 0), offset=3),
    ),
]


@pytest.mark.parametrize("name", image_ops.FILTERS)
def test_every_filter_has_a_case_below(name: str) -> None:
    assert name in {case[0] for case in FILTERS}


@pytest.mark.parametrize(("name", "given", "expected"), FILTERS)
def test_a_filter_gives_what_pillow_gives(name: str, given: object, expected: ImageFilter.Filter) -> None:
    assert_same(build_image_ops([{"filter": given}])(make_picture()), make_picture().filter(expected))


def test_operations_run_in_their_order() -> None:
    crop, turn = {"crop": {"box": [0, 0, 4, 2]}}, {"rotate": {"angle": 90, "expand": True}}
    assert build_image_ops([crop, turn])(make_picture()).size == (2, 4)
    assert build_image_ops([turn, crop])(make_picture()).size == (4, 2)


@pytest.mark.parametrize("nothing", [None, []])
def test_no_operation_gives_the_picture_itself(nothing: list | None) -> None:
    assert_same(build_image_ops(nothing)(make_picture()), make_picture())


def test_operations_can_be_pickled() -> None:
    ops = build_image_ops(
        [{"resize": {"size": [5, 4], "resample": "BOX"}}, {"filter": {"name": "BoxBlur", "radius": 1}}]
    )
    assert_same(pickle.loads(pickle.dumps(ops))(make_picture()), ops(make_picture()))


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (
            ["copy", {"rezise": {}}],
            r"^image_ops\.1\.rezise: unknown image op; got 'rezise'. Did you mean 'resize'\?$",
        ),
        ([{"copy": {}, "crop": {}}], r"^image_ops\.0: must be a dict of one name"),
        ([{}], r"^image_ops\.0: must be"),
        ([3], r"^image_ops\.0: must be"),
        ([{"resize": [1, 2]}], r"^image_ops\.0\.resize: must be a dict of arguments"),
        ([{"copy": False}], r"^image_ops\.0\.copy: must be a dict of arguments"),
        ([{"__class__": {}}], r"^image_ops\.0\.__class__: unknown image op"),
        ([{"resize": {"resample": "LANCZO"}}], r"resample: must be one of NEAREST.*mean 'LANCZOS'\?"),
        ([{"resize": {"resample": True}}], r"resample: must be one of NEAREST"),
        ([{"resize": {"resample": 99}}], r"resample: must be one of NEAREST"),
        (
            [{"transpose": {"method": "FLIP"}}],
            r"^image_ops\.0\.transpose\.method: must be one of FLIP_LEFT_RIGHT",
        ),
        ([{"filter": "SHARPENED"}], r"^image_ops\.0\.filter\.filter: must be one of BLUR.*mean 'SHARPEN'\?"),
        ([{"filter": {"name": "__init__"}}], r"^image_ops\.0\.filter\.filter: must be one of BLUR"),
        ([{"filter": {"filter": None}}], r"^image_ops\.0\.filter\.filter: must be one of BLUR"),
        (
            [{"filter": {"name": "BoxBlur", "radius": -1}}],
            r"Pillow refuses this: radius must be >= 0; got .*-1",
        ),
        ([{"filter": {"name": "BoxBlur", "size": 1}}], r"Pillow refuses this: .*unexpected keyword .*'size'"),
        ([{"quantize": {"palette": "x"}}], r"^image_ops\.0\.quantize\.palette: cannot be given in a file"),
        ([{"remap_palette": {"source_palette": [300]}}], r"source_palette: must be a list of numbers"),
    ],
)
def test_a_fault_in_the_listing_is_told_with_its_place(listing: list, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        build_image_ops(listing)


@pytest.mark.parametrize(
    ("item", "mode", "words"),
    [
        ({"resize": {"size": [0, 3]}}, "RGB", "height and width must be > 0; got {'size': [0, 3]}"),
        ({"resize": {"size": [2.5, 3]}}, "RGB", "'float' object cannot be interpreted as an integer"),
        ({"resize": {"size": 3}}, "RGB", "Pillow refuses this"),
        ({"resize": {}}, "RGB", "missing 1 required positional argument: 'size'"),
        ({"resize": {"size": [3, 3], "self": 1}}, "RGB", "multiple values for argument 'self'"),
        ({"convert": {"mode": "nope"}}, "RGB", "image has wrong mode"),
        ({"getchannel": {"channel": "A"}}, "RGB", 'has no channel "A"'),
        ({"point": {"lut": [1, 2, 3]}}, "RGB", "wrong number of lut entries"),
        ({"point": {"lut": 3}}, "RGB", "not iterable"),
        ({"remap_palette": {"dest_map": [0]}}, "RGB", "illegal image mode"),
        ({"reduce": {"factor": 0}}, "RGB", "scale must be > 0"),
        ({"effect_spread": {"distance": 2**40}}, "RGB", "greater than maximum"),
        ({"rotate": {"angle": "a"}}, "RGB", "Pillow refuses this"),
    ],
)
def test_what_pillow_refuses_comes_back_with_its_place_and_pillows_words(item: dict, mode: str, words: str) -> None:
    ops = build_image_ops([item])
    with pytest.raises(BadInputError) as caught:
        ops(make_picture(mode))
    name = next(iter(item))
    assert str(caught.value).startswith(f"image_ops.0.{name}: for a picture of mode {mode} and 13x9 pixels Pillow")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "item",
    [
        {"resize": {"size": [20_000, 9_000]}},
        {"resize": {"size": [178_956_970, 1]}},
        {"resize": {"size": [10**400, 2]}},
        {"resize": {"size": [-20_000, -9_000]}},
        {"transform": {"size": [20_000, 9_000], "method": "AFFINE", "data": [1, 0, 0, 0, 1, 0]}},
        {"crop": {"box": [0, 0, 20_000, 9_000]}},
        {"crop": {"box": [0, 0, 1e300, 1e300]}},
    ],
)
def test_a_picture_beyond_the_limit_is_refused_before_it_is_made(item: dict) -> None:
    with pytest.raises(BadInputError, match=r"would make a picture of more than 178,956,970 pixels; got"):
        build_image_ops([item])(make_picture())


def test_a_thin_picture_that_a_turn_would_blow_up_is_refused() -> None:
    thin = Image.new("L", (40_000, 1))
    with pytest.raises(BadInputError, match=r"rotate: would make a picture of more than"):
        build_image_ops([{"rotate": {"angle": 45, "expand": True}}])(thin)
    assert build_image_ops([{"rotate": {"angle": 90, "expand": True}}])(thin).size == (1, 40_000)


def test_a_file_that_cannot_be_decoded_is_not_taken_for_faulty_commands(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    make_picture(size=(64, 64)).save(whole)
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    with Image.open(cut) as picture, pytest.raises(OSError, match="truncated"):
        build_image_ops([{"convert": {"mode": "L"}}])(picture)


def test_an_error_keeps_its_text_when_a_loader_process_sends_it() -> None:
    with pytest.raises(BadInputError) as caught:
        build_image_ops([{"reduce": {"factor": 0}}])(make_picture())
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_module_needs_no_torch() -> None:
    code = "import sys, mlmeta.data.image_ops; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
