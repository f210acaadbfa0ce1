from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from mlmeta.commands.params import describe_architecture, walk_layers

OLDER = json.loads(
    (Path(__file__).parent.parent / "data" / "american_dog_species_3.attempt.json").read_text(encoding="utf-8")
)
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
