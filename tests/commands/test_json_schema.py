from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator

from mlmeta.commands import catalog
from mlmeta.commands.documents import TestCommands, TrainCommands
from mlmeta.commands.json_schema import complete_schema
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import CommandsError

TESTS = Path(__file__).parent.parent
OLDER = json.loads((TESTS / "data" / "american_dog_species_3.attempt.json").read_text(encoding="utf-8"))
SAMPLE = [
    json.loads(line) for line in (TESTS / "data" / "attempts_sample.jsonl").read_text(encoding="utf-8").splitlines()
]
DIGITS = json.loads((TESTS.parent / "digits.json").read_text(encoding="utf-8"))
TRAIN_SCHEMA = complete_schema(TrainCommands.model_json_schema())
TEST_SCHEMA = complete_schema(TestCommands.model_json_schema())
TRAIN = Draft202012Validator(TRAIN_SCHEMA)
TEST = Draft202012Validator(TEST_SCHEMA)
RELU = {"name": "ReLU"}
slow_to_draw = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def with_layer(**layer: Any) -> dict[str, Any]:
    return {"model": {"layers": [layer]}}


@pytest.mark.parametrize("schema", [TRAIN_SCHEMA, TEST_SCHEMA], ids=["train", "test"])
def test_it_is_a_valid_schema_of_draft_2020_12(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("schema", [TRAIN_SCHEMA, TEST_SCHEMA], ids=["train", "test"])
def test_every_reference_leads_to_a_definition(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    used = {part.partition('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert {"layer", "transform", "model", "criterion"} <= used <= schema["$defs"].keys()
    assert "x-mlmeta" not in text


def test_every_name_of_the_catalog_is_offered() -> None:
    text = json.dumps(TRAIN_SCHEMA)
    assert [n for role in catalog.ROLES for n in catalog.list_names(role) if f'"{n}"' not in text] == []


@pytest.mark.parametrize("document", [DIGITS, OLDER["training_commands"], *(a["training_commands"] for a in SAMPLE)])
def test_it_accepts_real_train_commands(document: dict[str, Any]) -> None:
    assert list(TRAIN.iter_errors(document)) == []


@pytest.mark.parametrize("document", [OLDER["testing_commands"], *(a["testing_commands"] for a in SAMPLE)])
def test_it_accepts_real_test_commands(document: dict[str, Any]) -> None:
    assert list(TEST.iter_errors(document)) == []


@slow_to_draw
@given(strategies.train_documents())
def test_it_accepts_all_train_commands_that_mlmeta_accepts(document: dict[str, Any]) -> None:
    parse_train_commands(document)
    assert list(TRAIN.iter_errors(document)) == []


@slow_to_draw
@given(strategies.test_documents())
def test_it_accepts_all_test_commands_that_mlmeta_accepts(document: dict[str, Any]) -> None:
    assert list(TEST.iter_errors(document)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"$schema": "https://example.org/schema.json"},
        with_layer(
            name="Conv2d", in_channels="auto", out_channels="n_labels", kernel_size="(5, 5)", padding_mode="zeros"
        ),
        with_layer(name="AdaptiveAvgPool2d", output_size=[None, 7]),
        with_layer(name="Residual", layers=[{"name": "Concat", "layers": [RELU], "dim": 2}]),
        {"model": {"name": "resnet18"}},
        {"model": {"name": "resnet18", "layers": [], "weights": "a.pt"}},
        {"transform": ["ToTensor", {"Resize": {"size": 5}}, {"Grayscale": True}]},
        {"transform": {"ToTensor": None, "Grayscale": {}}},
        {"target_transform": None},
        {"image_ops": [{"filter": "BLUR"}, {"filter": {"name": "GaussianBlur", "radius": 2}}, {"copy": True}]},
        {"image_ops": [{"filter": {"filter": "BLUR"}}]},
        {"scheduler": None},
        {"scheduler": {"name": "ChainedScheduler", "schedulers": [{"name": "StepLR", "step_size": 5}]}},
        {"optimizer": {"name": "Adam", "betas": "(0.9, 0.999)"}},
        {"data": {"source": "sample", "name": "dogs"}},
    ],
    ids=str,
)
def test_it_and_mlmeta_accept(changes: dict[str, Any]) -> None:
    document = {**DIGITS, **changes}
    parse_train_commands(document)
    assert list(TRAIN.iter_errors(document)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": {"name": "Adam"}},
        {"model_name": ""},
        {"model_name": 5},
        {"label_names": ["a", "a"]},
        with_layer(name="Conv2D", in_channels=3, out_channels=6, kernel_size=3),
        with_layer(name="Linear", in_features="auto", out_features="auto"),
        with_layer(name="Linear", in_features="auto"),
        with_layer(name="ReLU", inplaze=True),
        with_layer(name="ReLU", inplace=1),
        with_layer(name="MaxPool2d", kernel_size=[]),
        with_layer(name="MaxPool2d", kernel_size=["a"]),
        with_layer(name="MaxPool2d", kernel_size="2*3"),
        with_layer(name="LSTM", input_size="auto", hidden_size=5, num_layers="n_labels"),
        with_layer(name="Sequential", layers=[{"name": "Relu"}]),
        with_layer(name="TransformerEncoder", encoder_layer="ReLU", num_layers=2),
        {"model": {"layers": []}},
        {"model": {}},
        {"model": {"name": ""}},
        {"model": {"name": "resnet19"}},
        {"model": {"name": "resnet18", "layers": [RELU]}},
        {"model": {"layers": [RELU], "layer": []}},
        {"criterion": "CrossEntropyLoss"},
        {"criterion": {"name": "CrossEntropy"}},
        {"optimizer": {"name": "Adam", "momentum": 0.9}},
        {"optimizer": {"name": "SparseAdam"}},
        {"scheduler": {"name": "StepLR"}},
        {"transform": {"ToTensor": False}},
        {"transform": {"ToTensr": True}},
        {"transform": {"CenterCrop": True}},
        {"transform": [{"Grayscale": True, "ToTensor": True}]},
        {"transform": ["CenterCrop"]},
        {"image_ops": {"resize": {"size": [5, 5]}}},
        {"image_ops": [{"resize": {"size": [5, 5]}, "copy": True}]},
        {"image_ops": [{"resize": {"sise": [5, 5]}}]},
        {"image_ops": [{"filter": True}]},
        {"n_epoch": 0},
        {"n_epoch": 1.5},
        {"n_epoch": "10"},
        {"batch_size": True},
        {"data": {"source": "foldr"}},
        {"data": {"path": "dogs"}},
        {"data": {"source": "folder", "pth": "dogs"}},
        {"keep": "bset"},
        {"test": {"limits": 5}},
    ],
    ids=str,
)
def test_it_and_mlmeta_refuse(changes: dict[str, Any]) -> None:
    document = {**DIGITS, **changes}
    with pytest.raises(CommandsError):
        parse_train_commands(document)
    assert not TRAIN.is_valid(document)


@pytest.mark.parametrize(
    "document",
    [
        {"model_name": "a", "limt": 5},
        {"model_name": "a", "limit": -1},
        {"model_name": "a", "criterion": {"name": "X"}},
        {"model_name": "a", "model": {"layers": [{"name": "X"}]}},
        {"model_name": "a", "ids": [5]},
        {"run_id": 5},
    ],
    ids=str,
)
def test_it_refuses_faulty_test_commands(document: dict[str, Any]) -> None:
    assert not TEST.is_valid(document)


@pytest.mark.parametrize(
    ("layer", "argument", "default"), [("Conv2d", "stride", 1), ("Dropout", "p", 0.5), ("Linear", "bias", True)]
)
def test_defaults_are_shown_to_editors(layer: str, argument: str, default: Any) -> None:
    [definition] = [option for option in TRAIN_SCHEMA["$defs"]["layer"]["anyOf"] if option["title"] == layer]
    assert definition["properties"][argument]["default"] == default
