from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import strategies
from hypothesis import HealthCheck, given, settings

from mlmeta.commands.params import MAX_KEY, MAX_VALUE, flatten_params, format_param

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
