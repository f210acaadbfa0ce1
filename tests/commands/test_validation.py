from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlmeta.commands import validation
from mlmeta.commands.validation import Located

LINEAR = {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}
RELU = {"name": "ReLU"}
NAME_A_FILTER = 'must name a filter, such as "BLUR" or {"name": "GaussianBlur", "radius": 2}'


def tell(located: Iterator[Located]) -> list[str]:
    """Return faults as "location: text"."""
    return [f"{'.'.join(map(str, location))}: {fault}" for location, fault in located]


def sequential(depth: int) -> list[dict[str, Any]]:
    layers = [RELU]
    for _ in range(depth - 1):
        layers = [{"name": "Sequential", "layers": layers}]
    return layers


def nested(depth: int, *, objects: bool) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if objects else [value]
    return value


@pytest.mark.parametrize(
    "layers",
    [
        [RELU, LINEAR],
        [{"name": "Concat", "layers": [RELU, {"name": "Residual", "layers": [LINEAR]}], "dim": -1}],
        [{"name": "Conv2d", "in_channels": "auto", "out_channels": 6, "kernel_size": "(5, 5)", "bias": "True"}],
        [
            {
                "name": "TransformerEncoder",
                "encoder_layer": {"name": "TransformerEncoderLayer", "d_model": "auto", "nhead": 2},
                "num_layers": 2,
                "norm": {"name": "LayerNorm", "normalized_shape": "auto"},
            }
        ],
        [
            {
                "name": "TransformerEncoder",
                "encoder_layer": {"name": "TransformerEncoderLayer", "d_model": 8, "nhead": 2},
                "num_layers": 2,
                "norm": "None",
            }
        ],
        sequential(validation.MAX_DEPTH),
        [RELU] * validation.MAX_LAYERS,
    ],
    ids=["plain", "branches", "older values", "a layer in a layer", "an older null", "as deep as allowed", "as many"],
)
def test_good_layers_have_no_fault(layers: list[Any]) -> None:
    assert tell(validation.check_layers(layers)) == []


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (None, ": must be a list of layers, at least one; got null"),
        ([], ": must be a list of layers, at least one; got []"),
        ({"0": RELU}, ": must be a list of layers, at least one; got {'0': {'name': 'ReLU'}}"),
        (["ReLU"], '0: write {"name": "ReLU"}; got \'ReLU\''),
        (["ReLu"], '0: must be an object such as {"name": "ReLU"}; got \'ReLu\''),
        ([5], '0: must be an object such as {"name": "ReLU"}; got 5'),
        ([{}], '0: needs a "name", such as {"name": "ReLU"}; got {}'),
        ([{"ReLU": {}}], '0: needs a "name", such as {"name": "ReLU"}; got {\'ReLU\': {}}'),
        ([RELU, {"name": "relu6"}], "1.name: unknown layer; got 'relu6'. Did you mean 'ReLU6'?"),
        ([{"name": None}], "0.name: the layer's name must be a string; got null"),
        (
            [{"name": "Residual", "layers": [RELU, {"name": "Tanhh"}]}],
            "0.layers.1.name: unknown layer; got 'Tanhh'. Did you mean 'Tanh'?",
        ),
        ([{"name": "Sequential", "layers": []}], "0.layers: must be a list of layers, at least one; got []"),
        ([{"name": "Sequential", "layers": RELU}], "0.layers: must be a list of layers; got {'name': 'ReLU'}"),
        ([{"name": "Sequential"}], "0.layers: Sequential needs this argument: a list of layers"),
        (
            [{"name": "Sequential", "layers": [{"name": "'ReLU'"}]}],
            "0.layers.0.name: unknown layer; got \"'ReLU'\". Did you mean 'ReLU'?",
        ),
        ([{**LINEAR, "out_features": 0}], "0.out_features: must be 1 or above for Linear; got 0"),
        ([{**LINEAR, "out_features": -1}], "0.out_features: must be 1 or above for Linear; got -1"),
        (
            [{**LINEAR, "out_features": 10**30}],
            "0.out_features: must lie between -1,099,511,627,776 and 1,099,511,627,776; got "
            "1000000000000000000000000000000",
        ),
        (
            [{**LINEAR, "out_features": 10**400}],
            "0.out_features: must lie between -1,099,511,627,776 and 1,099,511,627,776; got "
            "a number of about 400 digits",
        ),
        ([{"name": "Dropout", "p": float("nan")}], "0.p: must be a finite number; got nan"),
        ([{"name": "Dropout", "p": float("inf")}], "0.p: must be a finite number; got inf"),
        ([{"name": "Dropout", "p": "(1e999)"}], "0.p: must be a finite number; got inf"),
        ([{"name": "MaxPool2d", "kernel_size": [2, 0]}], "0.kernel_size.1: must be 1 or above for MaxPool2d; got 0"),
        (
            [{"name": "LSTM", "input_size": "auto", "hidden_size": 8, "num_layers": 10**9}],
            "0.num_layers: must be at most 1,000; got 1000000000",
        ),
        (
            [{"name": "LSTM", "input_size": "auto", "hidden_size": 8, "num_layers": "n_labels"}],
            "0.num_layers: must be a whole number; got 'n_labels'",
        ),
        (
            [{"name": "TransformerEncoder", "num_layers": 2, "encoder_layer": {"name": "TransformerEncoder"}}],
            "0.encoder_layer.name: must be TransformerEncoderLayer; got 'TransformerEncoder'",
        ),
        (
            [{"name": "TransformerEncoder", "num_layers": 2, "encoder_layer": {"d_model": 2}}],
            '0.encoder_layer: needs a "name", such as {"name": "ReLU"}; got {\'d_model\': 2}',
        ),
        (sequential(25), ": layers lie in each other more than 20 deep"),
        ([RELU] * 3_000, ": there may be at most 2,000 layers; got 3,000 layers"),
        (
            [{"name": "GRU", "input_size": 1, "hidden_size": 1, "num_layers": 900}] * 3,
            ": there may be at most 2,000 layers; got 2,700 layers",
        ),
        (
            [{"name": "GRU", "input_size": 1, "hidden_size": 1, "num_layers": "(900)"}] * 3,
            ": there may be at most 2,000 layers; got 2,700 layers",
        ),
        ([{"name": "Residual", "layers": [RELU] * 2_000}], ": there may be at most 2,000 layers; got 2,001 layers"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_fault_in_layers_is_told_with_its_place(layers: Any, says: str) -> None:
    assert tell(validation.check_layers(layers)) == [says]


def test_all_faults_of_a_layer_are_told_at_once() -> None:
    layer = {"name": "Conv2d", "kernal_size": 3, "out_channels": "abc", "groups": 0}
    assert [line.partition(":")[0] for line in tell(validation.check_layers([layer]))] == [
        "0.kernal_size",
        "0.out_channels",
        "0.in_channels",
        "0.kernel_size",
        "0.groups",
    ]


@pytest.mark.parametrize(
    "transform",
    [
        {},
        [],
        {"ToTensor": True, "Normalize": {"mean": [0.5], "std": [0.5]}},
        {"ToTensor": {}, "Grayscale": None},
        ["ToTensor", {"Resize": {"size": [5, 5], "interpolation": "InterpolationMode.BILINEAR"}}],
        {"RandomApply": {"transforms": [{"ColorJitter": {"hue": 0.1}}, "Grayscale"]}},
    ],
)
def test_good_transforms_have_no_fault(transform: Any) -> None:
    assert tell(validation.check_transform(transform)) == []


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        (5, ': must be an object such as {"ToTensor": true}, or a list of such objects; got 5'),
        ("ToTensor", ": must be an object such as {\"ToTensor\": true}, or a list of such objects; got 'ToTensor'"),
        (
            {"ToTensor": False},
            "ToTensor: must be true or an object of arguments; leave it out to do without it; got false",
        ),
        ({"ToTensor": 1}, "ToTensor: must be true or an object of arguments; got 1"),
        ({"Resize": [5, 5]}, "Resize: must be true or an object of arguments; got [5, 5]"),
        ({"ToTensr": 1}, "ToTensr: unknown transform; got 'ToTensr'. Did you mean 'ToTensor'?"),
        ({"": True}, ": unknown transform; got ''"),
        (["totensor"], "0.totensor: unknown transform; got 'totensor'. Did you mean 'ToTensor'?"),
        (["convert"], "0.convert: unknown transform: this is the name of an image op; got 'convert'"),
        ([["ToTensor"]], "0: must be an object with one key, the transform's name; got ['ToTensor']"),
        ([{}], "0: must be an object with one key, the transform's name; got {}"),
        (
            [{"name": "Resize", "size": 5}],
            "0: the transform's name is the key: write {\"Resize\": {…}}; got {'name': 'Resize', 'size': 5}",
        ),
        (
            {"Grayscale": {"name": "x"}},
            "Grayscale.name: Grayscale has no such argument; it has: num_output_channels; got 'x'",
        ),
        (
            {"CenterCrop": True},
            "CenterCrop.size: CenterCrop needs this argument: a whole number or a list of whole numbers",
        ),
        (
            {"Lambda": {"lambd": "x"}},
            "Lambda: transform Lambda cannot be used: it needs a function, which cannot stand in a file; got 'Lambda'",
        ),
        (
            {"RandomOrder": {"transforms": [{"RandomOrder": {"transforms": [{"Gray": True}]}}]}},
            "RandomOrder.transforms.0.RandomOrder.transforms.0.Gray: unknown transform; got 'Gray'. "
            "Did you mean 'Grayscale'?",
        ),
        ({"RandomOrder": {"transforms": "Pad"}}, "RandomOrder.transforms: must be a list of transforms; got 'Pad'"),
        (["ToTensor"] * 501, ": there may be at most 500 transforms; got 501"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_fault_in_transforms_is_told_with_its_place(transform: Any, says: str) -> None:
    assert tell(validation.check_transform(transform)) == [says]


@pytest.mark.parametrize(
    "image_ops",
    [
        [],
        [{"resize": {"size": [500, 500], "resample": "Image.ANTIALIAS"}}, {"convert": {"mode": "'RGB'"}}],
        [{"copy": True}, {"copy": {}}, {"copy": None}],
        [{"filter": "BLUR"}, {"filter": {"name": "GaussianBlur", "radius": 2}}, {"filter": {"filter": "BLUR"}}],
    ],
)
def test_good_image_ops_have_no_fault(image_ops: Any) -> None:
    assert tell(validation.check_image_ops(image_ops)) == []


@pytest.mark.parametrize(
    ("image_ops", "says"),
    [
        (
            {"resize": {"size": [5, 5]}},
            ': must be a list, because their order counts, such as [{"convert": {"mode": "RGB"}}]; '
            "got {'resize': {'size': [5, 5]}}",
        ),
        (["copy"], "0: write {\"copy\": true}, or an object of arguments in place of true; got 'copy'"),
        ([{"rezise": {}}], "0.rezise: unknown image op; got 'rezise'. Did you mean 'resize'?"),
        ([{"Resize": 5}], "0.Resize: unknown image op; got 'Resize'. Did you mean 'resize'?"),
        ([{"__class__": {}}], "0.__class__: unknown image op; got '__class__'"),
        ([{"save": {"fp": "/x"}}], "0.save: unknown image op; got 'save'"),
        (
            [{"resize": {"size": [5, 5]}, "copy": True}],
            "0: must be an object with one key, the image op's name; got {'resize': {'size': [5, 5]}, 'copy': true}",
        ),
        ([{"resize": {}}], "0.resize.size: resize needs this argument"),
        (
            [{"resize": {"size": [5, 10**30]}}],
            "0.resize.size.1: must lie between -1,099,511,627,776 and 1,099,511,627,776; got "
            "1000000000000000000000000000000",
        ),
        ([{"filter": True}], f"0.filter: {NAME_A_FILTER}; got {{}}"),
        ([{"filter": {"radius": 2}}], f"0.filter: {NAME_A_FILTER}; got {{'radius': 2}}"),
        ([{"filter": 5}], f"0.filter: {NAME_A_FILTER}; got 5"),
        (
            [{"filter": {"name": "GaussianBlur", "radius": float("inf")}}],
            "0.filter.radius: must be a finite number; got inf",
        ),
        ([{"copy": True}] * 501, ": there may be at most 500 image ops; got 501"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_fault_in_image_ops_is_told_with_its_place(image_ops: Any, says: str) -> None:
    assert tell(validation.check_image_ops(image_ops)) == [says]


@pytest.mark.parametrize(
    "model",
    [
        {"layers": [RELU]},
        {"name": "", "layers": [RELU], "weights": None},
        {"name": "resnet18"},
        {"name": "resnet18", "layers": [], "weights": "weights/resnet18 v1.pt"},
    ],
)
def test_a_good_model_has_no_fault(model: Any) -> None:
    assert tell(validation.check_model(model)) == []


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (5, [': must be an object with "layers" or a "name"; got 5']),
        ([RELU], [": must be an object with \"layers\" or a \"name\"; got [{'name': 'ReLU'}]"]),
        ("resnet18", [': write {"name": "resnet18"}; got \'resnet18\'']),
        ({}, [': needs "layers", or the "name" of a torchvision model']),
        ({"name": ""}, [': needs "layers", or the "name" of a torchvision model']),
        ({"layers": []}, ["layers: must be a list of layers, at least one; got []"]),
        ({"layers": 5}, ["layers: must be a list of layers, at least one; got 5"]),
        ({"name": "resnet18", "layers": [RELU]}, ["name: must be empty where there are layers; got 'resnet18'"]),
        (
            {"name": "resnet19", "layers": [{"name": "Relu"}]},
            [
                "name: unknown model; got 'resnet19'. Did you mean 'resnet18'?",
                "name: must be empty where there are layers; got 'resnet19'",
                "layers.0.name: unknown layer; got 'Relu'. Did you mean 'ReLU'?",
            ],
        ),
        ({"name": 0, "layers": [RELU]}, ["name: must be a string; empty where there are layers; got 0"]),
        ({"name": ["resnet18"]}, ["name: the model's name must be a string; got ['resnet18']"]),
        (
            {"layer": [RELU], "layers": [RELU]},
            ["layer: unknown key; a model has: name, layers, weights; got [{'name': 'ReLU'}]. Did you mean 'layers'?"],
        ),
        (
            {"layers": [RELU], "weights": "a.pt"},
            ["weights: are for a model with a name; one of layers has none; got 'a.pt'"],
        ),
        ({"name": "resnet18", "weights": True}, ["weights: must be a file's path; got true"]),
        ({"name": "resnet18", "weights": ""}, ["weights: must be a file's path; got ''"]),
        ({"name": "resnet18", "weights": "a\0b"}, ["weights: must be a file's path; got 'a\\x00b'"]),
    ],
    ids=str,
)
def test_faults_of_a_model_are_told_with_their_places(model: Any, says: list[str]) -> None:
    assert tell(validation.check_model(model)) == says


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        ({"name": "SGD", "lr": 0.1, "momentum": 0, "weight_decay": 0}, []),
        ({"name": "SGD", "lr": 0}, ["lr: must be a number above 0; got 0"]),
        ({"name": "SGD", "lr": -1}, ["lr: must be a number above 0; got -1"]),
        ({"name": "SGD", "lr": float("nan")}, ["lr: must be a finite number; got nan"]),
        ({"name": "SGD", "lr": float("inf")}, ["lr: must be a finite number; got inf"]),
        ({"name": "SGD", "lr": "0.1"}, ["lr: must be a number; got '0.1'"]),
        ({"name": "SGD", "lr": True}, ["lr: must be a number; got true"]),
        (
            {"name": "SGD", "momentum": -0.1, "weight_decay": -1},
            ["weight_decay: must be 0 or above; got -1", "momentum: must be 0 or above; got -0.1"],
        ),
        ("Adam", [': write {"name": "Adam"}; got \'Adam\'']),
        (None, [': must be an object such as {"name": "Adam"}; got null']),
    ],
    ids=str,
)
def test_the_rates_of_an_optimizer_are_checked(optimizer: Any, says: list[str]) -> None:
    assert tell(validation.check_optimizer(optimizer)) == says


@pytest.mark.parametrize(
    ("role", "spec", "says"),
    [
        ("criterion", "CrossEntropyLoss", ': write {"name": "CrossEntropyLoss"}; got \'CrossEntropyLoss\''),
        (
            "criterion",
            {"name": "CrossEntropy"},
            "name: unknown criterion; got 'CrossEntropy'. Did you mean 'CrossEntropyLoss'?",
        ),
        ("criterion", {"name": "ReLU"}, "name: unknown criterion: this is the name of a layer; got 'ReLU'"),
        (
            "scheduler",
            {"name": "LambdaLR"},
            "name: scheduler LambdaLR cannot be used: it needs a function, which a file of data cannot hold; "
            "got 'LambdaLR'",
        ),
        ("scheduler", {"name": "StepLR"}, "step_size: StepLR needs this argument: a whole number"),
        (
            "scheduler",
            {"name": "ChainedScheduler", "schedulers": [{"name": "StepLR", "step_size": 5}, {"name": "Stp"}]},
            "schedulers.1.name: unknown scheduler; got 'Stp'. Did you mean 'StepLR'?",
        ),
        (
            "scheduler",
            {"name": "ChainedScheduler", "schedulers": [{"name": "ConstantLR"}] * 501},
            "schedulers: there may be at most 500 schedulers; got 501",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:60],
)
def test_a_fault_of_a_named_object_is_told_with_its_place(role: str, spec: Any, says: str) -> None:
    assert tell(validation.check_named(role, spec)) == [says]


@pytest.mark.parametrize("value", [None, 1, 0.5, "äß犬", [1, {"a": (None, True)}], nested(64, objects=True)])
def test_plain_json_has_no_fault(value: Any) -> None:
    assert tell(validation.check_plain(value)) == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (nested(65, objects=False), ": lists and objects lie in each other more than 64 deep"),
        (nested(65, objects=True), ": lists and objects lie in each other more than 64 deep"),
        (nested(100_000, objects=False), ": lists and objects lie in each other more than 64 deep"),
        (nested(100_000, objects=True), ": lists and objects lie in each other more than 64 deep"),
        ({"a": ["\ud800"]}, ": holds text that is not Unicode; got '\\ud800'"),
        ({"\udfff": 1}, ": holds text that is not Unicode; got '\\udfff'"),
        ([{1, 2}], ": holds a value that JSON does not have; got {1, 2}"),
        ({"a": b"x"}, ": holds a value that JSON does not have; got b'x'"),
    ],
    ids=["65 lists", "65 objects", "100,000 lists", "100,000 objects", "text", "a key", "a set", "bytes"],
)
def test_what_no_rule_can_walk_through_is_refused_first(value: Any, says: str) -> None:
    assert tell(validation.check_plain(value)) == [says]


@pytest.mark.parametrize("text", ["__import__('os').system('x')", "2*3", "lambda x: x", "open('/etc/passwd')"])
@pytest.mark.parametrize(
    ("check", "place"),
    [
        (validation.check_layers, lambda text: [{**LINEAR, "out_features": text}]),
        (validation.check_layers, lambda text: [{"name": text}]),
        (validation.check_layers, lambda text: [{"name": "MaxPool2d", "kernel_size": [2, text]}]),
        (validation.check_optimizer, lambda text: {"name": "Adam", "lr": text}),
        (validation.check_optimizer, lambda text: {"name": "Adam", text: 1}),
        (validation.check_transform, lambda text: {"Resize": {"size": text}}),
        (validation.check_transform, lambda text: {text: True}),
        (validation.check_image_ops, lambda text: [{text: True}]),
        (validation.check_model, lambda text: {"name": text}),
    ],
)
def test_python_expressions_are_names_and_values_of_nothing(
    check: Callable[[Any], Iterator[Located]], place: Callable[[str], Any], text: str
) -> None:
    told = tell(check(place(text)))
    assert len(told) == 1
    assert text in told[0]
