from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mlmeta.commands.params import (
    MAX_KEY,
    MAX_VALUE,
    describe_architecture,
    flatten_params,
    format_param,
    parse_curve,
    walk_layers,
    write_curve,
)

OLDER = json.loads(
    (Path(__file__).parent.parent / "data" / "american_dog_species_3.attempt.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize(
    ("document", "params"),
    [
        ({"optimizer": {"name": "SGD", "lr": 0.001}}, {"optimizer.name": "SGD", "optimizer.lr": "0.001"}),
        (
            {"model": {"layers": [{"name": "ReLU", "inplace": True}, {"name": "Conv2d", "kernel_size": [5, 3]}]}},
            {
                "model.layers.0.name": "ReLU",
                "model.layers.0.inplace": "true",
                "model.layers.1.name": "Conv2d",
                "model.layers.1.kernel_size": "[5, 3]",
            },
        ),
        (
            {"image_ops": [{"resize": {"size": [500, 500], "resample": "Image.ANTIALIAS"}}]},
            {"image_ops.0.resize.size": "[500, 500]", "image_ops.0.resize.resample": "Image.ANTIALIAS"},
        ),
        ({"label_names": ["cat", "köter"]}, {"label_names": '["cat", "köter"]'}),
        ({"transform": {"ToTensor": True}}, {"transform.ToTensor": "true"}),
        (
            {"transform": ["ToTensor", {"Resize": {"size": 5}}]},
            {"transform.0": "ToTensor", "transform.1.Resize.size": "5"},
        ),
        ({"transform": ["ToTensor", "Grayscale"]}, {"transform": '["ToTensor", "Grayscale"]'}),
        ({"image_ops": [{"copy": {}}]}, {"image_ops.0.copy": "{}"}),
        ({"scheduler": None, "test": {"ids": []}, "model": {"name": ""}}, {}),
        (
            {"n_labels": 0, "download": False, "validation": 0.0},
            {"n_labels": "0", "download": "false", "validation": "0.0"},
        ),
        ({"matrix": [[1, 0], [0, 1]]}, {"matrix": "[[1, 0], [0, 1]]"}),
        ({}, {}),
    ],
    ids=str,
)
def test_a_document_lies_flat(document: dict[str, Any], params: dict[str, str]) -> None:
    assert flatten_params(document) == params


def test_a_prefix_stands_before_every_key() -> None:
    assert flatten_params({"lr": 0.1, "a": {"b": 1}}, prefix="test") == {"test.lr": "0.1", "test.a.b": "1"}


def test_the_commands_of_the_older_tool_lie_flat() -> None:
    params = flatten_params(OLDER["training_commands"])
    assert params["model.layers.0.kernel_size"] == "5"
    assert params["model.layers.14.out_features"] == "n_labels"
    assert params["image_ops.1.convert.mode"] == "'RGB'"
    assert params["transform.Normalize.mean"] == "[0.5, 0.5, 0.5]"
    assert "model.name" not in params
    assert json.loads(params["label_names"]) == OLDER["training_commands"]["label_names"]


@pytest.mark.parametrize(("length", "end"), [(MAX_VALUE, "x"), (MAX_VALUE + 1, "…"), (100_000, "…")])
def test_a_value_longer_than_mlflow_takes_is_cut(length: int, end: str) -> None:
    value = flatten_params({"a": "x" * length})["a"]
    assert len(value) == MAX_VALUE
    assert value[-1] == end


def test_layers_that_lie_too_deep_for_a_key_are_one_param() -> None:
    layers: list[dict[str, Any]] = [{"name": "ReLU"}]
    for _ in range(40):
        layers = [{"name": "Sequential", "layers": layers}]
    params = flatten_params({"model": {"layers": layers}})
    longest = max(params, key=len)
    assert len(longest) <= MAX_KEY
    deep: Any = json.loads(params[longest])
    for _ in range(100):
        if not isinstance(deep, dict | list):
            break
        deep = deep[0] if isinstance(deep, list) else deep.get("layers", deep["name"])
    assert deep == "ReLU"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(strategies.train_documents())
def test_all_commands_fit_mlflows_limits(document: dict[str, Any]) -> None:
    for key, value in flatten_params(document).items():
        assert 0 < len(key) <= MAX_KEY
        assert 0 < len(value) <= MAX_VALUE


@pytest.mark.parametrize(
    ("value", "text"),
    [("SGD", "SGD"), ("", ""), (True, "true"), (None, "null"), (0.001, "0.001"), (1e-05, "1e-05"), ([5, 5], "[5, 5]")],
)
def test_strings_stay_and_all_else_is_json(value: Any, text: str) -> None:
    assert format_param(value) == text


RESIDUAL_AND_CONCAT = [
    {"name": "Conv2d", "in_channels": 3, "out_channels": 16, "kernel_size": 3},
    {"name": "Residual", "layers": [
        {"name": "Conv2d", "in_channels": 16, "out_channels": 24, "kernel_size": 3, "padding": 1},
        {"name": "BatchNorm2d", "num_features": 24},
        {"name": "GELU"},
    ]},
    {"name": "Concat", "layers": [
        {"name": "Conv2d", "in_channels": 24, "out_channels": 8, "kernel_size": 1},
        {"name": "Sequential", "layers": [
            {"name": "LazyConv2d", "out_channels": 48, "kernel_size": 1},
            {"name": "GELU"},
            {"name": "Dropout2d", "p": 0.1},
            {"name": "LazyConv2d", "out_channels": 8, "kernel_size": 1},
        ]},
    ]},
    {"name": "ReLU"},
    {"name": "AdaptiveAvgPool2d", "output_size": 1},
    {"name": "Flatten"},
    {"name": "Linear", "in_features": "auto", "out_features": 32},
    {"name": "Dropout"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]  # fmt: skip
RECURRENT = [
    {"name": "Flatten", "start_dim": 1, "end_dim": 2},
    {"name": "LSTM", "input_size": "auto", "hidden_size": 64, "num_layers": 3, "dropout": 0.3},
    {"name": "Flatten"},
    {"name": "Tanh"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]
TRANSFORMER = [
    {"name": "Linear", "in_features": "auto", "out_features": 32},
    {
        "name": "TransformerEncoder",
        "encoder_layer": {"name": "TransformerEncoderLayer", "d_model": 96, "nhead": 4},
        "num_layers": 6,
    },
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]
ALL_CONVOLUTIONS = [
    {"name": "Conv2d", "in_channels": 3, "out_channels": 20, "kernel_size": 3},
    {"name": "MaxUnpool2d", "kernel_size": 2},
    {"name": "Conv2d", "in_channels": 20, "out_channels": "n_labels", "kernel_size": 1},
    {"name": "AdaptiveAvgPool2d", "output_size": 1},
    {"name": "AvgPool2d", "kernel_size": 1},
    {"name": "AvgPool2d", "kernel_size": 1},
]
LINEAR = [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]


@pytest.mark.parametrize(
    ("layers", "depth", "width", "batch_norm", "dropout", "activation", "pooling", "hidden"),
    [
        (OLDER["training_commands"]["model"]["layers"], 6, 120, False, 0.0, "ReLU", "MaxPool2d", 84),
        (RESIDUAL_AND_CONCAT, 7, 48, True, 0.5, "GELU", "AdaptiveAvgPool2d", 32),
        (RECURRENT, 4, 64, False, 0.3, "Tanh", "none", 0),
        (TRANSFORMER, 8, 96, False, 0.1, "none", "none", 32),
        (ALL_CONVOLUTIONS, 2, 20, False, 0.0, "none", "AvgPool2d", 0),
        (LINEAR, 1, 0, False, 0.0, "none", "none", 0),
        ([{"name": "Flatten"}], 0, 0, False, 0.0, "none", "none", 0),
    ],
    ids=["plain", "residual and concat", "LSTM", "transformer", "all convolutions", "linear", "no weights"],
)
def test_a_network_is_described_as_counted_by_hand(
    layers: list[Any],
    depth: int,
    width: int,
    batch_norm: bool,
    dropout: float,
    activation: str,
    pooling: str,
    hidden: int,
) -> None:
    assert describe_architecture(walk_layers(layers), n_parameters=1234) == {
        "n_parameters": 1234,
        "depth": depth,
        "width": width,
        "batch_norm": batch_norm,
        "dropout": dropout,
        "activation": activation,
        "pooling": pooling,
        "hidden": hidden,
    }


@pytest.mark.parametrize(
    ("name", "depth", "width", "batch_norm", "pooling", "hidden"),
    [
        # He et al. 2016, table 1: 17 convolutions and one Linear, and three projections.
        ("resnet18", 21, 512, True, "MaxPool2d", 0),
        # Simonyan and Zisserman 2015, configuration A: 8 convolutions and three Linear.
        ("vgg11", 11, 4096, False, "MaxPool2d", 4096),
    ],
)
def test_a_torchvision_model_is_described_by_its_leaf_layers(
    name: str, depth: int, width: int, batch_norm: bool, pooling: str, hidden: int
) -> None:
    with torch.device("meta"):
        model: nn.Module = torchvision.models.get_model(name)
    leaves = [(type(m).__name__, vars(m)) for m in model.modules() if not list(m.children())]
    described = describe_architecture(leaves, n_parameters=0)
    found = {key: described[key] for key in ("depth", "width", "batch_norm", "pooling", "hidden")}
    assert found == {"depth": depth, "width": width, "batch_norm": batch_norm, "pooling": pooling, "hidden": hidden}


def test_layers_are_walked_in_order_those_inside_others_too() -> None:
    assert [name for name, _ in walk_layers(RESIDUAL_AND_CONCAT)][:8] == [
        "Conv2d",
        "Residual",
        "Conv2d",
        "BatchNorm2d",
        "GELU",
        "Concat",
        "Conv2d",
        "Sequential",
    ]


@pytest.mark.parametrize("n", [1, 100, 700, 5000])
def test_a_thinned_curve_fits_a_tag_and_keeps_both_ends(n: int) -> None:
    values = [1 / (index + 3) for index in range(n)]
    text = write_curve(values)
    kept = json.loads(text)
    assert len(text) <= 8000
    assert kept[0] == pytest.approx(values[0], rel=1e-5)
    assert kept[-1] == pytest.approx(values[-1], rel=1e-5)


def test_a_thinned_curve_has_null_where_the_loss_is_not_finite() -> None:
    assert write_curve([1.0, math.nan, math.inf, None]) == "[1.0, null, null, null]"
    assert write_curve([]) == "[]"


@given(st.lists(st.floats(width=32) | st.none(), max_size=300))
def test_a_curve_that_fits_is_read_back_to_six_digits(values: list[float | None]) -> None:
    read = parse_curve(write_curve(values))
    assert read is not None
    expected = [math.nan if value is None or not math.isfinite(value) else value for value in values]
    np.testing.assert_allclose(read, expected, rtol=1e-5)


@pytest.mark.parametrize("text", ["", "null", "no curve", '{"a": 1}', "[[1]]", '["x"]', "[" * 100_000, "5"])
def test_what_is_no_curve_is_none(text: str) -> None:
    assert parse_curve(text) is None
