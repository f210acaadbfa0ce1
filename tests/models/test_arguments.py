from __future__ import annotations

from typing import Any

import pytest

from mlmeta.commands import catalog
from mlmeta.errors import CommandsError
from mlmeta.models.arguments import arriving_size, check_arriving, fill_arguments, format_shape, wanted_dimensions

MAPS = (2, 3, 8, 9)
ROWS = (2, 5, 6)
FEATURES = (2, 7)


def fill(spec: dict[str, Any], shape: tuple[int, ...] = MAPS) -> tuple[str, dict[str, Any]]:
    return fill_arguments(spec, shape, n_labels=4, path="model.layers.0")


def refuse(name: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> str:
    with pytest.raises(CommandsError) as caught:
        check_arriving(name, arguments, shape, path="model.layers.0")
    assert {fault.path for fault in caught.value.faults} == {"model.layers.0"}
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "shape", "expected"),
    [
        ("in_channels", MAPS, 3),
        ("num_features", FEATURES, 7),
        ("num_channels", ROWS, 5),
        ("num_parameters", MAPS, 3),
        ("in_features", MAPS, 9),
        ("in1_features", FEATURES, 7),
        ("input_size", ROWS, 6),
        ("embed_dim", ROWS, 6),
        ("d_model", ROWS, 6),
        ("normalized_shape", MAPS, [3, 8, 9]),
        ("normalized_shape", ROWS, [6]),
        ("normalized_shape", FEATURES, [7]),
    ],
)
def test_auto_is_the_size_that_the_argument_counts(argument: str, shape: tuple[int, ...], expected: object) -> None:
    assert arriving_size(argument, shape) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "Linear", "in_features": "auto", "out_features": "n_labels"}, {"in_features": 9, "out_features": 4}),
        ({"name": "AdaptiveAvgPool2d", "output_size": ["n_labels", 2]}, {"output_size": [4, 2]}),
        ({"name": "AvgPool2d", "kernel_size": "(2, 3)"}, {"kernel_size": (2, 3)}),
        ({"name": "Softmax"}, {"dim": 1}),
        ({"name": "LogSoftmax", "dim": None}, {"dim": 1}),
        ({"name": "Softmin", "dim": -1}, {"dim": -1}),
        ({"name": "Upsample", "mode": "auto"}, {"mode": "auto"}),
        ({"name": "LSTM", "input_size": 9, "hidden_size": 2}, {"input_size": 9, "hidden_size": 2, "batch_first": True}),
        ({"name": "LSTMCell", "input_size": 9, "hidden_size": 2}, {"input_size": 9, "hidden_size": 2}),
    ],
)
def test_arguments_are_filled_in(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    assert fill(spec) == (spec["name"], expected)


def test_a_lazy_layer_is_the_plain_one_with_its_own_defaults() -> None:
    name, arguments = fill({"name": "LazyInstanceNorm2d", "eps": 0.1})
    assert name == "InstanceNorm2d"
    # torch's lazy one learns and tracks, its plain one does neither.
    expected = {"num_features": 3, "eps": 0.1, "affine": True, "track_running_stats": True}
    assert expected.items() <= arguments.items()


def test_layers_inside_a_layer_are_filled_in_too() -> None:
    block = {"name": "TransformerEncoderLayer", "d_model": "auto", "nhead": 2}
    norm = {"name": "LayerNorm", "normalized_shape": "auto"}
    spec = {"name": "TransformerEncoder", "encoder_layer": block, "norm": norm, "num_layers": 1}
    _, arguments = fill(spec, ROWS)
    assert arguments["encoder_layer"] == {**block, "d_model": 6, "batch_first": True}
    assert arguments["norm"] == {**norm, "normalized_shape": [6]}


@pytest.mark.parametrize(
    ("argument", "inside"),
    [
        ("encoder_layer", {"name": "Linear", "in_features": 6, "out_features": 6}),
        ("encoder_layer", {"name": "TransformerDecoderLayer", "d_model": 6, "nhead": 2}),
        ("norm", {"name": "Residual", "layers": []}),
        ("norm", {"name": "TransformerEncoder"}),
        ("norm", {}),
    ],
)
def test_a_layer_that_cannot_stand_inside_another_is_refused(argument: str, inside: dict[str, Any]) -> None:
    with pytest.raises(CommandsError, match=f"{argument} of TransformerEncoder must be one of: ") as caught:
        fill({"name": "TransformerEncoder", argument: inside, "num_layers": 1}, ROWS)
    assert caught.value.faults[0].path == f"model.layers.0.{argument}"


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("Conv2d", FEATURES, r"\(n, 7\) arrives, it wants \(n, channels, height, width\); put it before Flatten"),
        ("Conv1d", FEATURES, r"it wants \(n, channels, length\)"),
        ("Conv2d", (2, 8, 8), r"\(n, 8, 8\) arrives, it wants \(n, channels, height, width\)"),
        ("Conv3d", MAPS, r"it wants \(n, channels, depth, height, width\)"),
        ("LazyConvTranspose3d", MAPS, r"it wants \(n, channels, depth, height, width\)"),
        ("BatchNorm2d", FEATURES, r"\(n, 7\) arrives, it wants \(n, channels, height, width\)"),
        ("BatchNorm1d", MAPS, r"it wants \(n, features\) or \(n, channels, length\)"),
        ("InstanceNorm2d", ROWS, r"it wants \(n, channels, height, width\)"),
        ("MaxPool2d", FEATURES, r"it wants \(n, channels, height, width\)"),
        ("Dropout1d", FEATURES, r"it wants \(n, channels, length\)"),
        ("LSTM", FEATURES, r"\(n, 7\) arrives, it wants \(n, rows, features\)"),
        ("LSTM", MAPS, r'it wants \(n, rows, features\); put {"name": "Flatten", "end_dim": 2} before it'),
        ("TransformerDecoder", FEATURES, r"it wants \(n, rows, features\)"),
        ("MultiheadAttention", FEATURES, r"it wants \(n, rows, features\)"),
        ("GRUCell", MAPS, r'it wants \(n, features\); put {"name": "Flatten"} before it'),
        ("Softmax2d", ROWS, r"it wants \(n, channels, height, width\)"),
        ("Unfold", ROWS, r"it wants \(n, channels, height, width\)"),
    ],
)
def test_what_is_no_batch_of_pictures_for_a_layer_is_refused(name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(CommandsError, match=f"model.layers.0: {name.removeprefix('Lazy')} does not fit: .*{said}"):
        check_arriving(name.removeprefix("Lazy"), {}, shape, path="model.layers.0")


@pytest.mark.parametrize("name", ["AvgPool1d", "MaxPool2d", "AdaptiveMaxPool3d"])
def test_a_pooling_takes_maps_without_channels(name: str) -> None:
    n = int(name[-2])
    assert wanted_dimensions(name)[0] == (n + 1, n + 2)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "said"),
    [
        ("Softmax", {"dim": 0}, MAPS, "dim 0 is the pictures' own dimension, and pictures must stay apart"),
        ("GLU", {"dim": -4}, MAPS, "dim -4 is the pictures' own dimension"),
        ("Flatten", {"start_dim": 0}, MAPS, "start_dim 0 is the pictures' own dimension"),
        ("Unflatten", {"dim": -2, "unflattened_size": [2, 1]}, FEATURES, "dim -2 is the pictures' own dimension"),
        ("LogSoftmax", {"dim": 4}, MAPS, "dim must lie between 1 and 3, or between -3 and -1; it is 4"),
        ("LayerNorm", {"normalized_shape": [2, 7]}, FEATURES, "normalized_shape has at most 1 sizes, not"),
        ("RMSNorm", {"normalized_shape": (2, 7)}, FEATURES, "normalized_shape has at most 1 sizes, not"),
    ],
)
def test_what_would_mix_pictures_is_refused(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    assert said in refuse(name, arguments, shape)


CONV = {"in_channels": 3, "out_channels": 4, "kernel_size": 3}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"in_channels": 4}, '(n, 3, 8, 9) arrives, so in_channels would have to be 3, not 4 (write "auto"'),
        ({"kernel_size": [3, 3, 3]}, "kernel_size must be a whole number or a list of 2, not [3, 3, 3]"),
        ({"stride": (2,)}, "stride must be a whole number or a list of 2, not (2"),
        ({"padding": -1}, "padding must be 0 or above, not -1"),
        ({"output_padding": [0, -1]}, "output_padding must be 0 or above, not [0, -1]"),
        ({"stride": 2**31}, "stride must lie between -2147483647 and 2147483647"),
        ({"dilation": [1, 10**13]}, "dilation must lie between -2147483647 and 2147483647"),
    ],
)
@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_what_a_convolution_refuses_only_when_it_computes_is_refused(
    name: str, changed: dict[str, Any], said: str
) -> None:
    check_arriving(name, CONV, MAPS, path="model.layers.0")
    assert said in refuse(name, {**CONV, **changed}, MAPS)


def test_all_misfits_are_told_at_once() -> None:
    assert refuse("Conv2d", {**CONV, "in_channels": 4, "stride": [1]}, MAPS).startswith("the commands: 2 faults")


@pytest.mark.parametrize("name", catalog.list_names("layer"))
def test_the_dimensions_that_a_layer_wants_have_words(name: str) -> None:
    n_dims, words = wanted_dimensions(name)
    assert bool(n_dims) == bool(words)
    assert all(n >= 2 for n in n_dims)


@pytest.mark.parametrize(("shape", "expected"), [((2, 3, 4), "(n, 3, 4)"), ((2,), "(n)"), ((2, 7), "(n, 7)")])
def test_shapes_are_written_for_people(shape: tuple[int, ...], expected: str) -> None:
    assert format_shape(shape) == expected
