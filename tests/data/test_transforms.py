from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import autoaugment, v2
from torchvision.transforms import functional as v1_functional
from torchvision.transforms import transforms as v1_transforms

from mlmeta.data.transform_plan import SUPPORTED, UNSUPPORTED
from mlmeta.data.transforms import build_target_transform, build_transform
from mlmeta.errors import BadInputError

BILINEAR = v1.InterpolationMode.BILINEAR
NEAREST = v1.InterpolationMode.NEAREST


def make_picture(mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    pixels = np.random.default_rng(3).integers(20, 220, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """v1's ToTensor, the reference."""
    return v1_functional.to_tensor(picture)


def run(transform: object, *, training: bool = True, picture: Image.Image | None = None) -> torch.Tensor:
    listing = json.loads(json.dumps(transform))
    return build_transform(listing, training=training)(make_picture() if picture is None else picture)


def identity_matrix(size: int) -> list[list[float]]:
    return torch.eye(size).mul(2).tolist()


# JSON arguments of every transform that draws at random, and the shape that it leaves of a 40 x 32 picture
RANDOM_CASES = {
    "RandomCrop": ({"size": 30, "padding": [1, 2], "fill": [1, 2, 3]}, (3, 30, 30)),
    "RandomResizedCrop": ({"size": [28, 22], "scale": [0.3, 0.9], "interpolation": "BICUBIC"}, (3, 28, 22)),
    "RandomHorizontalFlip": (True, (3, 32, 40)),
    "RandomVerticalFlip": ({"p": 0.4}, (3, 32, 40)),
    "RandomRotation": ({"degrees": [-30, 30], "center": [3, 4], "fill": [9, 8, 7]}, (3, 32, 40)),
    "RandomAffine": (
        {"degrees": 10, "translate": [0.1, 0.2], "scale": [0.9, 1.1], "shear": [1, 2, 3, 4], "fill": 3},
        (3, 32, 40),
    ),
    "RandomPerspective": ({"distortion_scale": 0.4, "p": 0.9, "interpolation": "nearest"}, (3, 32, 40)),
    "ElasticTransform": ({"alpha": [20.0, 30.0], "sigma": 2.0}, (3, 32, 40)),
    "RandomGrayscale": (True, (3, 32, 40)),
    "ColorJitter": ({"brightness": 0.2, "contrast": [0.5, 1.5], "saturation": 0.1, "hue": 0.1}, (3, 32, 40)),
    "RandomInvert": ({}, (3, 32, 40)),
    "RandomPosterize": ({"bits": 3}, (3, 32, 40)),
    "RandomSolarize": ({"threshold": 100}, (3, 32, 40)),
    "RandomAdjustSharpness": ({"sharpness_factor": 2}, (3, 32, 40)),
    "RandomAutocontrast": (True, (3, 32, 40)),
    "RandomEqualize": (True, (3, 32, 40)),
    "GaussianBlur": ({"kernel_size": [3, 5], "sigma": [0.1, 2.0]}, (3, 32, 40)),
    "AutoAugment": ({"policy": "cifar10"}, (3, 32, 40)),
    "RandAugment": ({"num_ops": 3, "fill": [1.0, 2.0, 3.0]}, (3, 32, 40)),
    "TrivialAugmentWide": ({"interpolation": "InterpolationMode.BILINEAR"}, (3, 32, 40)),
    "AugMix": ({"severity": 2}, (3, 32, 40)),
    "RandomApply": ({"transforms": [{"Grayscale": {"num_output_channels": 3}}], "p": 0.3}, (3, 32, 40)),
    "RandomChoice": ({"transforms": ["RandomHorizontalFlip", "RandomInvert"], "p": [1, 2]}, (3, 32, 40)),
    "RandomOrder": ({"transforms": [{"Resize": {"size": [8, 8]}}, {"Pad": {"padding": 2}}]}, None),
    "RandomErasing": ({"p": 1, "value": "random"}, (3, 32, 40)),
}

# name, JSON arguments, the same done by torchvision
FIXED_CASES = [
    ("ToPILImage", True, to_tensor),
    ("Resize", {"size": [10, 20]}, lambda im: to_tensor(v2.Resize((10, 20), BILINEAR)(im))),
    (
        "Resize",
        {"size": 10, "max_size": 11, "interpolation": "'InterpolationMode.NEAREST'", "antialias": True},
        lambda im: to_tensor(v2.Resize(10, NEAREST, max_size=11)(im)),
    ),
    ("CenterCrop", {"size": 50}, lambda im: to_tensor(v2.CenterCrop(50)(im))),
    (
        "Pad",
        {"padding": [1, 2, 3, 4], "fill": [5, 6, 7]},
        lambda im: to_tensor(v2.Pad([1, 2, 3, 4], fill=(5, 6, 7))(im)),
    ),
    (
        "Pad",
        {"padding": "(1, 2)", "padding_mode": "'reflect'"},
        lambda im: to_tensor(v2.Pad([1, 2], padding_mode="reflect")(im)),
    ),
    ("FiveCrop", {"size": 8}, lambda im: torch.stack([to_tensor(crop) for crop in v2.FiveCrop(8)(im)])),
    (
        "TenCrop",
        {"size": [8, 6], "vertical_flip": True},
        lambda im: torch.stack([to_tensor(crop) for crop in v2.TenCrop((8, 6), vertical_flip=True)(im)]),
    ),
    ("Grayscale", True, lambda im: to_tensor(v2.Grayscale()(im))),
    (
        "GaussianBlur",
        {"kernel_size": 3, "sigma": 1.5},
        lambda im: to_tensor(v2.GaussianBlur(3, (1.5, 1.5))(im)),
    ),
    (
        "GaussianBlur",
        {"kernel_size": 3, "sigma": [2, 2]},
        lambda im: to_tensor(v2.GaussianBlur(3, (2.0, 2.0))(im)),
    ),
    (
        "Compose",
        {
            "transforms": [
                {"Resize": {"size": [4, 5]}},
                "ToTensor",
                {"Normalize": {"mean": [0.5], "std": [0.1]}},
            ]
        },
        lambda im: v1.Normalize((0.5,), (0.1,))(to_tensor(v2.Resize((4, 5))(im))),
    ),
    ("PILToTensor", True, v1_functional.pil_to_tensor),
    ("ToTensor", True, to_tensor),
    ("ConvertImageDtype", {"dtype": "torch.float64"}, lambda im: to_tensor(im).double()),
    (
        "Normalize",
        {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.2, 0.1], "inplace": True},
        lambda im: v1.Normalize((0.5, 0.4, 0.3), (0.5, 0.2, 0.1))(to_tensor(im)),
    ),
    (
        "Normalize",
        {"mean": [0.5, 1, 0.3], "std": [0.3, 2, 0.1]},
        lambda im: v1.Normalize((0.5, 1, 0.3), (0.3, 2, 0.1))(to_tensor(im)),
    ),
    (
        "Compose",
        {"transforms": [{"ConvertImageDtype": {"dtype": "float64"}}, {"Normalize": {"mean": [0.1], "std": [0.3]}}]},
        lambda im: v1.Normalize((0.1,), (0.3,))(to_tensor(im).double()),
    ),
]

ALL_NAMES = [
    *(name for name in v1_transforms.__all__ if name not in autoaugment.__all__),
    *autoaugment.__all__,
]


@pytest.mark.parametrize("name", ALL_NAMES)
def test_every_public_name_of_torchvision_is_either_supported_or_not_with_a_reason(name: str) -> None:
    assert (name in SUPPORTED) != (name in UNSUPPORTED)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_supported_transform_is_torchvisions_and_has_a_case_below(name: str) -> None:
    assert name in ALL_NAMES
    assert name == "LinearTransformation" or name in {*RANDOM_CASES, *(case[0] for case in FIXED_CASES)}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_name_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(BadInputError, match=rf"^transform\.{name}: cannot be used: it {UNSUPPORTED[name]}"):
        build_transform({name: True})


@pytest.mark.parametrize(("name", "arguments", "by_torchvision"), FIXED_CASES)
def test_a_deterministic_transform_gives_what_torchvision_gives(name, arguments, by_torchvision) -> None:
    transform = build_transform({name: arguments})
    expected = by_torchvision(make_picture())
    assert not transform.random
    assert type(transform(make_picture())) is torch.Tensor
    torch.testing.assert_close(transform(make_picture()), expected, rtol=0, atol=0)
    torch.testing.assert_close(run({name: arguments}, training=False), expected, rtol=0, atol=0)


def test_linear_transformation_multiplies_the_flat_picture_by_its_matrix() -> None:
    picture = make_picture(size=(4, 2))
    arguments = {"transformation_matrix": identity_matrix(24), "mean_vector": [0.25] * 24}
    expected = (to_tensor(picture) - 0.25) * 2
    torch.testing.assert_close(run({"LinearTransformation": arguments}, picture=picture), expected)


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_a_random_transform_gives_a_tensor_and_draws_with_the_seed_of_torch(name: str) -> None:
    arguments, shape = RANDOM_CASES[name]
    transform = build_transform([{name: arguments}])
    outcomes = []
    for _ in range(2):
        torch.manual_seed(5)
        outcomes.append([transform(make_picture()) for _ in range(12)])
    assert transform.random
    for first, second in zip(*outcomes, strict=True):
        assert type(first) is torch.Tensor
        assert first.dtype == torch.float32
        assert shape is None or first.shape == shape
        assert torch.equal(first, second)
    assert any(not torch.equal(*pair) for pair in itertools.pairwise(outcomes[0]))


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_nothing_random_is_left_outside_training(name: str) -> None:
    transform = build_transform([{name: RANDOM_CASES[name][0]}], training=False)
    assert not transform.random
    assert torch.equal(transform(make_picture()), transform(make_picture()))


@pytest.mark.parametrize("name", sorted(set(RANDOM_CASES) - {"RandomCrop", "RandomResizedCrop", "RandomOrder"}))
def test_a_random_transform_is_left_out_outside_training(name: str) -> None:
    assert torch.equal(run([{name: RANDOM_CASES[name][0]}], training=False), to_tensor(make_picture()))


@pytest.mark.parametrize(
    ("transform", "by_torchvision"),
    [
        ({"RandomCrop": {"size": 12, "padding": 4, "fill": 3}}, v2.CenterCrop(12)),
        ({"RandomCrop": {"size": [50, 10]}}, v2.CenterCrop((50, 10))),
        ({"RandomResizedCrop": {"size": 12, "scale": [0.1, 0.2]}}, v2.Resize((12, 12))),
        ({"RandomResizedCrop": {"size": [12]}}, v2.Resize((12, 12))),
        ({"RandomResizedCrop": {"size": [12, 7], "interpolation": "NEAREST"}}, v2.Resize((12, 7), NEAREST)),
        (
            {"RandomOrder": {"transforms": [{"Pad": {"padding": 2}}, "RandomInvert", {"RandomCrop": {"size": 9}}]}},
            v2.Compose([v2.Pad(2), v2.CenterCrop(9)]),
        ),
        (
            [{"Compose": {"transforms": [{"Compose": {"transforms": ["RandomInvert", {"Pad": {"padding": 1}}]}}]}}],
            v2.Pad(1),
        ),
    ],
)
def test_what_sets_the_size_at_random_has_a_fixed_counterpart_outside_training(transform, by_torchvision) -> None:
    assert torch.equal(run(transform, training=False), to_tensor(by_torchvision(make_picture())))


@pytest.mark.parametrize(("p", "expected"), [(1, v1_functional.hflip(make_picture())), (0, make_picture())])
def test_a_flip_that_is_certain_is_not_random_and_stays_outside_training(p: int, expected: Image.Image) -> None:
    transform = build_transform({"RandomHorizontalFlip": {"p": p}}, training=False)
    assert not transform.random
    assert torch.equal(transform(make_picture()), to_tensor(expected))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "P", "1", "I", "F", "I;16"])
def test_to_tensor_gives_the_values_of_v1(mode: str) -> None:
    picture = make_picture("L").convert("I;16") if mode == "I;16" else make_picture(mode)
    result = run({"ToTensor": True}, picture=picture)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    assert torch.equal(result, to_tensor(picture).to(torch.float32))


def test_to_tensor_keeps_large_16_bit_values() -> None:
    picture = Image.fromarray(np.array([[1, 40_000]], dtype=np.uint16))
    assert run({"ToTensor": True}, picture=picture).tolist() == [[[1.0, 40_000.0]]]


@pytest.mark.parametrize("nothing", [None, {}, []])
def test_no_transform_is_to_tensor(nothing: object) -> None:
    assert torch.equal(run(nothing), to_tensor(make_picture()))


SHUFFLED = {
    "Normalize": {"mean": [0.5] * 3, "std": [0.25] * 3},
    "CenterCrop": {"size": 12},
    "ToTensor": True,
    "Resize": {"size": 16},
    "Grayscale": {"num_output_channels": 3},
}


@pytest.mark.parametrize("order", list(itertools.permutations(SHUFFLED)))
def test_the_keys_of_a_dict_give_the_same_transform_in_any_order(order: tuple[str, ...]) -> None:
    transform = build_transform({name: SHUFFLED[name] for name in order})
    assert [step.name for step in transform.steps] == [
        "Resize",
        "CenterCrop",
        "Grayscale",
        "ToTensor",
        "Normalize",
    ]


def test_a_dict_runs_in_the_documented_order_whatever_it_holds() -> None:
    flat = [name for name in SUPPORTED if name in RANDOM_CASES or name in SHUFFLED]
    arguments = {name: RANDOM_CASES[name][0] for name in flat if name in RANDOM_CASES} | SHUFFLED
    transform = build_transform({name: arguments[name] for name in sorted(flat)})
    assert [step.name for step in transform.steps] == flat


def test_the_older_documents_transform_loads_as_it_is() -> None:
    older = {"Normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "ToTensor": True}
    expected = v1.Compose([v1.ToTensor(), v1.Normalize((0.5,) * 3, (0.5,) * 3)])(make_picture())
    assert torch.equal(run(older), expected)


def test_a_list_runs_in_its_order_and_may_repeat() -> None:
    listing = [
        {"Pad": {"padding": 2}},
        {"CenterCrop": {"size": 10}},
        {"Pad": {"padding": 2}},
        {"ToTensor": {}},
    ]
    expected = to_tensor(v2.Pad(2)(v2.CenterCrop(10)(v2.Pad(2)(make_picture()))))
    assert torch.equal(run(listing), expected)


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        (["Grayscale", {"Normalize": {"mean": [0.5], "std": [0.5]}}], ["Grayscale", "ToTensor", "Normalize"]),
        (["ToTensor", "Grayscale"], ["ToTensor", "Grayscale"]),
        (["ToTensor", "ToPILImage", "Grayscale"], ["ToTensor", "ToPILImage", "Grayscale", "ToTensor"]),
        (["ToPILImage", "Grayscale"], ["Grayscale", "ToTensor"]),
        (["PILToTensor", {"ConvertImageDtype": {"dtype": "float32"}}], ["PILToTensor", "ConvertImageDtype"]),
        ([{"RandomApply": {"transforms": ["RandomErasing"]}}], ["ToTensor", "RandomApply"]),
        ({"ToTensor": True, "PILToTensor": True}, ["PILToTensor", "ToTensor"]),
        ({"RandomApply": {"transforms": ["RandomErasing"]}, "ToTensor": True}, ["ToTensor", "RandomApply"]),
        ({"Compose": {"transforms": ["ToTensor"]}, "Pad": {"padding": 1}}, ["Pad", "ToTensor"]),
    ],
)
def test_to_tensor_stands_where_a_picture_has_to_become_a_tensor(listing: object, names: list[str]) -> None:
    transform = build_transform(listing)
    assert [step.name for step in transform.steps] == names
    assert transform(make_picture()).dtype == torch.float32


def test_a_picture_comes_back_unchanged_through_to_pil_image() -> None:
    assert torch.equal(run(["ToTensor", "ToPILImage"]), to_tensor(make_picture()))


def test_transforms_after_a_crop_work_on_each_crop() -> None:
    listing = [
        {"FiveCrop": {"size": 8}}, {"Grayscale": True}, "ToTensor", {"TenCrop": {"size": 4}},
        {"Normalize": {"mean": [0.5], "std": [0.5]}},
    ]  # fmt: skip
    to_crops, normalize = v2.TenCrop(4), v1.Normalize((0.5,), (0.5,))
    expected = [
        normalize(small)
        for crop in v2.FiveCrop(8)(make_picture())
        for small in to_crops(to_tensor(v2.Grayscale()(crop)))
    ]
    result = run(listing)
    assert result.shape == (50, 1, 4, 4)
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize("value", ["BILINEAR", "bilinear", "InterpolationMode.BILINEAR", "Image.BILINEAR", 2, None])
def test_interpolation_is_read_in_all_its_spellings(value: object) -> None:
    expected = to_tensor(v2.Resize((9, 9), BILINEAR)(make_picture()))
    if value is not None:
        assert torch.equal(run({"Resize": {"size": [9, 9], "interpolation": value}}), expected)
    assert torch.equal(run({"Resize": {"size": [9, 9]}}), expected)


@pytest.mark.parametrize("policy", ["svhn", "SVHN", "AutoAugmentPolicy.SVHN", "'AutoAugmentPolicy.SVHN'"])
def test_a_policy_is_read_in_all_its_spellings(policy: str) -> None:
    torch.manual_seed(1)
    result = run({"AutoAugment": {"policy": policy}})
    torch.manual_seed(1)
    assert torch.equal(result, to_tensor(v2.AutoAugment(v1.AutoAugmentPolicy.SVHN)(make_picture())))


def test_a_transform_can_be_pickled() -> None:
    transform = build_transform([{name: arguments} for name, (arguments, _) in RANDOM_CASES.items()])
    large = make_picture(size=(120, 90))
    torch.manual_seed(2)
    expected = transform(large)
    copy = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(2)
    assert torch.equal(copy(large), expected)


def nest(depth: int) -> list:
    listing: list = ["ToTensor"]
    for _ in range(depth):
        listing = [{"Compose": {"transforms": listing}}]
    return listing


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("ToTensor", r"^transform: must be a dict or a list of transforms; got 'ToTensor'"),
        ([{"Resize": {}, "Pad": {}}], r"^transform\.0: must be a dict of one name"),
        ([["Resize"]], r"^transform\.0: must be a dict of one name"),
        (
            {"Resise": {"size": 3}},
            r"^transform\.Resise: unknown transform; got 'Resise'\. Did you mean 'Resize'\?",
        ),
        ({"Resize": 3}, r"^transform\.Resize: must be a dict of arguments"),
        ({"__init__": True}, r"^transform\.__init__: unknown transform"),
        (
            {"Resize": {"size": 3, "interpolation": "BILINAR"}},
            r"Resize\.interpolation: must be .*mean 'BILINEAR'\?",
        ),
        (
            {"AutoAugment": {"policy": "mnist"}},
            r"AutoAugment\.policy: must be one of IMAGENET, CIFAR10, SVHN",
        ),
        ({"ConvertImageDtype": {"dtype": "float33"}}, r"dtype: must be one of .*Did you mean 'float32'\?"),
        ({"ConvertImageDtype": {"dtype": "load"}}, r"ConvertImageDtype\.dtype: must be one of"),
        (
            {"LinearTransformation": {"mean_vector": ["a"]}},
            r"mean_vector: torch refuses this: .*got \('a',\)",
        ),
        ({"Resize": {}}, r"^transform\.Resize: torchvision refuses this: .*'size'"),
        (
            {"Normalize": {"mean": [1]}},
            r"^transform\.Normalize: torchvision refuses this: .*'std'.*got {'mean'",
        ),
        ({"RandomRotation": {"degrees": -3}}, r"^transform\.RandomRotation: torchvision refuses this: "),
        (
            {"RandomApply": {"transforms": []}},
            r"^transform\.RandomApply: torchvision refuses this: Pass at least one",
        ),
        (
            [{"Normalize": {"mean": [0.5], "std": [0.5]}}, "ToTensor"],
            r"^transform\.0\.Normalize: Normalize works on tensors and stands before ToTensor$",
        ),
        (
            [{"Compose": {"transforms": ["RandomErasing"]}}, "PILToTensor"],
            r"^transform\.0\.Compose\.transforms\.0\.RandomErasing: RandomErasing works on tensors",
        ),
        (
            [{"RandomApply": {"transforms": ["Grayscale", {"Compose": {"transforms": ["ToTensor"]}}]}}],
            r"^transform\.0\.RandomApply\.transforms\.1\.Compose: ToTensor cannot stand inside RandomApply",
        ),
        (
            [{"RandomChoice": {"transforms": [{"FiveCrop": {"size": 3}}]}}],
            r"FiveCrop cannot stand inside",
        ),
        (
            [{"RandomOrder": {"transforms": ["Invert"]}}],
            r"^transform\.0\.RandomOrder\.transforms\.0\.Invert: unknown",
        ),
        (
            [{"RandomOrder": {"transforms": "Grayscale"}}],
            r"^transform\.0\.RandomOrder\.transforms: must be a dict or",
        ),
        (
            {"GaussianBlur": {"kernel_size": [3, 100_001]}},
            r"GaussianBlur\.kernel_size: must be at most 4,095",
        ),
        ({"ElasticTransform": {"sigma": 1e9}}, r"ElasticTransform\.sigma: must be at most 512"),
        ({"RandAugment": {"num_magnitude_bins": 10**12}}, r"num_magnitude_bins: must be at most 10,000"),
        (nest(40), r"transforms lie in each other at most 16 deep"),
    ],
)
def test_a_fault_in_the_listing_is_told_with_its_place(transform: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        build_transform(transform)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {"FiveCrop": {"size": 50}},
            r"^transform\.FiveCrop: torchvision refuses this: Requested crop size \(50, 50\)",
        ),
        (
            {"RandomCrop": {"size": 50}},
            r"^transform\.RandomCrop: torchvision refuses this: Required crop size",
        ),
        (
            {"Normalize": {"mean": [0.5] * 3, "std": [0, 0, 0]}},
            r"^transform\.Normalize: torchvision refuses this: std evaluated to zero",
        ),
        (
            {"PILToTensor": True, "Normalize": {"mean": [0.5], "std": [0.5]}},
            r"^transform\.Normalize: torchvision refuses this: Input tensor should be a float tensor",
        ),
        (
            {"Grayscale": True, "Normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}},
            r"^transform\.Normalize: mean and std do not fit 1 channels; got",
        ),
        (
            [{"RandomOrder": {"transforms": [{"RandomCrop": {"size": 50}}]}}],
            r"^transform\.0\.RandomOrder\.transforms\.0\.RandomCrop: torchvision refuses this",
        ),
    ],
)
def test_what_torchvision_refuses_comes_back_with_its_place_and_words(transform: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        run(transform)


@pytest.mark.parametrize(
    "transform",
    [
        {"Resize": {"size": [20_000, 9_000]}},
        {"Resize": {"size": 13_000}},
        {"Resize": {"size": [13_000]}},
        {"Resize": {"size": None, "max_size": 20_000}},
        {"Pad": {"padding": 7_000}},
        {"Pad": {"padding": [7_000, 7_000]}},
        {"Pad": {"padding": [0, 0, 14_000, 14_000]}},
        {"CenterCrop": {"size": 14_000}},
        {"RandomCrop": {"size": 8, "padding": 7_000}},
        {"RandomResizedCrop": {"size": 14_000}},
        {"RandomApply": {"transforms": [{"Pad": {"padding": 7_000}}], "p": 1}},
        ["ToTensor", {"Pad": {"padding": 7_000}}],
    ],
)
def test_a_picture_beyond_the_limit_is_refused_before_it_is_made(transform: object) -> None:
    with pytest.raises(BadInputError, match=r"would make a picture of more than 178,956,970 pixels; got"):
        run(transform)


def test_a_thin_picture_that_a_turn_would_blow_up_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"RandomRotation: would make a picture of more than"):
        run({"RandomRotation": {"degrees": 45, "expand": True}}, picture=Image.new("L", (40_000, 1)))


def test_max_size_keeps_a_resize_within_the_limit() -> None:
    result = run({"Resize": {"size": 13_000, "max_size": 13_001}}, picture=Image.new("L", (13_001, 1)))
    assert result.shape == (1, 1, 13_001)


@pytest.mark.parametrize("nothing", [None, {}, [], {"ToTensor": True}, ["ToTensor"], {"PILToTensor": True}])
def test_a_target_without_more_than_to_tensor_stays_one_hot(nothing: object) -> None:
    assert build_target_transform(nothing, n_labels=4) is None


@pytest.mark.parametrize(
    "target_transform",
    [
        {"Normalize": {"std": [0.5], "mean": [0.5]}, "ToTensor": True},
        ["ToTensor", {"Normalize": {"std": [0.5], "mean": [0.5]}}],
    ],
)
def test_a_normalized_target_is_plus_and_minus_one(target_transform: object) -> None:
    matrix = build_target_transform(target_transform, n_labels=3)
    assert matrix is not None
    assert matrix.dtype == torch.float32
    assert matrix.tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]


def test_each_row_of_the_target_matrix_is_the_transformed_column_of_its_label() -> None:
    blur = {"GaussianBlur": {"kernel_size": [1, 3], "sigma": 1.0}}
    matrix = build_target_transform(blur, n_labels=5)
    columns = torch.eye(5).reshape(5, 1, 5, 1)
    expected = torch.stack([v2.GaussianBlur((1, 3), (1.0, 1.0))(column).flatten() for column in columns])
    torch.testing.assert_close(matrix, expected)
    assert not torch.equal(expected, torch.eye(5))


def test_a_whitened_target_uses_the_matrix() -> None:
    linear = {"transformation_matrix": [[0, 1], [2, 0]], "mean_vector": [0, 0]}
    matrix = build_target_transform({"LinearTransformation": linear}, n_labels=2)
    assert matrix is not None
    assert matrix.tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize(
    ("target_transform", "message"),
    [
        ({"RandomErasing": True}, r"^target_transform\.RandomErasing: draws at random"),
        (["RandomHorizontalFlip"], r"^target_transform\.0\.RandomHorizontalFlip: draws at random"),
        ({"Resize": {"size": [3, 3]}}, r"^target_transform\.Resize: must leave a label's target one column"),
        ({"FiveCrop": {"size": 1}}, r"^target_transform\.FiveCrop: must leave a label's target one column"),
        ({"ToPILImage": True}, r"^target_transform\.ToPILImage: must leave a label's target one column"),
        (
            {"Normalize": {"mean": [0, 0], "std": [1, 1]}},
            r"^target_transform\.Normalize: mean and std do not fit 1",
        ),
        ({"Lambda": True}, r"^target_transform\.Lambda: cannot be used"),
        ("ToTensor", r"^target_transform: must be a dict or a list"),
    ],
)
def test_a_target_transform_must_be_fixed_and_keep_the_shape(target_transform: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        build_target_transform(target_transform, n_labels=4)


def test_a_target_matrix_beyond_the_limit_is_refused_before_it_is_made() -> None:
    with pytest.raises(BadInputError, match=r"^target_transform: would make"):
        build_target_transform({"Normalize": {"mean": [0.5], "std": [0.5]}}, n_labels=10**6)
