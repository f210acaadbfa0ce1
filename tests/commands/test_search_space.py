"""The search space: contradictions are refused, and whatever is drawn or fitted lies inside and can be run."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.commands.search_space import TRAINING_KEYS, Range, draw_training, fit_training, get_value, read_space
from mlmeta.errors import CommandsError
from mlmeta.tuning.proposals import derive_space, draw_proposals, keep_in_space, read_defaults

LOG_RATE = {"optimizer.lr": {"low": 1e-4, "high": 0.1, "log": True}}
FLAT = {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]}
OPTIMIZERS = {
    "optimizer.name": {"choices": ["SGD", "Adam"]},
    "optimizer.momentum": {"low": 0, "high": 0.9},
    "optimizer.lr": {"low": 0.001, "high": 0.01},
}


def training_of(document: dict[str, Any]) -> dict[str, Any]:
    whole = parse_train_commands(document).model_dump(mode="json")
    return {key: whole[key] for key in TRAINING_KEYS}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "space: must be an object such as"),
        ([1], "space: must be an object such as"),
        ({"n_epoch": {"low": 1, "high": 2}}, "space.n_epoch: must be a path that begins with one of model"),
        ({"*": "closed"}, "space.*: must be \"open\", or be left out; got 'closed'"),
        ({"*": {"low": 1, "high": 2}}, 'space.*: must be "open", or be left out'),
        ({"optimizer.lr": {"low": 0.1}}, 'space.optimizer.lr: must be {"low"'),
        ({"optimizer.lr": {"low": 0.1, "high": 1, "lg": True}}, 'space.optimizer.lr: must be {"low"'),
        ({"optimizer.lr": {"low": 1, "high": 0.1}}, "low must not be above high; low is 1, high is 0.1"),
        ({"optimizer.lr": {"low": 0, "high": 0.1, "log": True}}, "space.optimizer.lr.low: must be above 0"),
        ({"optimizer.lr": {"low": 0.0, "high": 0.1}}, "0.0 cannot stand there: must be a number above 0"),
        ({"optimizer.lr": {"low": "a", "high": 1}}, "space.optimizer.lr.low: must be a finite number; got 'a'"),
        ({"optimizer.lr": {"low": 0.1, "high": 10**300}}, "space.optimizer.lr.high: must be at most"),
        ({"optimizer.lr": {"low": 0.1, "high": 1, "log": 3}}, "space.optimizer.lr.log: must be true or false; got 3"),
        ({"optimizer.name": {"choices": []}}, "space.optimizer.name.choices: must be a list of 1 to 100 values"),
        ({"optimizer.name": {"choices": ["Adm"]}}, "'Adm' cannot stand there: unknown optimizer"),
        ({"optimizer.momentum": {"low": 0, "high": 1}}, "0 cannot stand there: Adam has no such argument"),
        ({"batch_size": {"low": 0, "high": 4}}, "0 cannot stand there: must be a whole number of 1 or above"),
        ({"batch_size": {"low": 1.5, "high": 4}}, "1.5 cannot stand there: must be a whole number"),
        ({"model.layers.99.p": {"low": 0.1, "high": 0.5}}, "the commands have no model.layers.99.p"),
        ({"optimizer": {"choices": [{"name": "SGD", "lr": -1}]}}, "cannot stand there: must be a number above 0"),
        (
            {"optimizer": {"choices": [{"name": "Adam", "lr": 0.1}]}, "optimizer.name": {"choices": ["SGD"]}},
            "space.optimizer: {'name': 'Adam', 'lr': 0.1} is none of the names that optimizer.name may have",
        ),
        (
            {"optimizer.name": {"choices": ["SGD"]}, "optimizer.amsgrad": {"choices": [True]}},
            "space.optimizer.amsgrad: true cannot stand there: SGD has no such argument",
        ),
        (
            {"model": {"choices": [FLAT]}, "model.layers.3.p": {"low": 0.1, "high": 0.5}},
            "space.model.layers.3.p: 0.1 cannot stand there: the commands have no model.layers.3.p",
        ),
    ],
)
def test_a_space_that_contradicts_itself_is_refused(toy_document: dict[str, Any], space: Any, words: str) -> None:
    document = toy_document | {"optimizer": {"name": "Adam", "lr": 0.01}, "space": space}
    with pytest.raises(CommandsError) as caught:
        parse_train_commands(document)
    assert words in str(caught.value)


def test_all_faults_of_a_space_are_said_beside_others(toy_document: dict[str, Any]) -> None:
    faulty = {"batch_size": {"low": 2, "high": 1}, "optimizer.lr": {"low": 0, "high": 1}}
    with pytest.raises(CommandsError) as caught:
        parse_train_commands(toy_document | {"space": faulty | {"x": 1}, "n_epoch": 0})
    text = str(caught.value)
    assert all(word in text for word in ("space.batch_size", "space.x", "n_epoch"))


def test_a_value_may_belong_to_one_of_the_optimizers_only(toy_document: dict[str, Any]) -> None:
    commands = parse_train_commands(toy_document | {"optimizer": {"name": "Adam", "lr": 0.01}, "space": OPTIMIZERS})
    assert commands.space == OPTIMIZERS
    space = read_space(OPTIMIZERS)
    seen = set()
    for seed in range(40):
        drawn = draw_training(space, training_of(toy_document), np.random.default_rng(seed))
        optimizer = drawn["optimizer"]
        seen.add(optimizer["name"])
        assert ("momentum" in optimizer) == (optimizer["name"] == "SGD")
        assert 0.001 <= optimizer["lr"] <= 0.01
        parse_train_commands(toy_document | drawn)
    assert seen == {"SGD", "Adam"}


def test_a_value_may_belong_to_one_of_the_whole_parts_only(toy_document: dict[str, Any]) -> None:
    parts = {"choices": [{"name": "SGD", "lr": 0.1, "momentum": 0.9}, {"name": "Adam", "lr": 0.1}]}
    space = {"optimizer": parts, "optimizer.momentum": {"low": 0.5, "high": 0.9}}
    assert parse_train_commands(toy_document | {"space": space}).space == space


def test_draws_fill_a_range_on_its_scale() -> None:
    rng = np.random.default_rng(0)
    logarithmic = [Range(1e-4, 1.0, log=True).draw(rng) for _ in range(4000)]
    assert np.quantile(np.log10(logarithmic), [0.25, 0.5, 0.75]) == pytest.approx([-3, -2, -1], abs=0.12)
    linear = [Range(0.0, 4.0).draw(rng) for _ in range(4000)]
    assert np.quantile(linear, [0.25, 0.5, 0.75]) == pytest.approx([1, 2, 3], abs=0.15)
    whole = [Range(1, 4).draw(rng) for _ in range(4000)]
    assert np.unique(whole, return_counts=True)[1] == pytest.approx([1000] * 4, abs=120)
    assert {Range(8, 64, log=True).draw(rng) for _ in range(4000)} == set(range(8, 65))
    assert Range(3, 3).draw(rng) == 3


def test_drawing_changes_nothing_that_was_given(toy_document: dict[str, Any]) -> None:
    training = training_of(toy_document)
    before = copy.deepcopy(training)
    space = read_space(OPTIMIZERS | {"model.layers.1.out_features": {"choices": [2, 3]}})
    draw_training(space, training, np.random.default_rng(0))
    fit_training(space, training, np.random.default_rng(0))
    assert training == before


def test_proposals_outside_the_space_are_brought_in_or_left_out(toy_document: dict[str, Any]) -> None:
    space = read_space(OPTIMIZERS | {"batch_size": {"choices": [7]}, "optimizer.name": {"choices": ["Adam"]}})
    defaults = read_defaults()
    kept = list(keep_in_space(defaults, training_of(toy_document), space, np.random.default_rng(0), opened=True))
    adam = [one for one in defaults if one.training["optimizer"]["name"] == "Adam"]
    assert 0 < len(kept) == len(adam) < len(defaults)
    for one, other in zip(kept, adam, strict=True):
        assert one.training["batch_size"] == 7
        assert 0.001 <= one.training["optimizer"]["lr"] <= 0.01
        assert one.training["model"] == other.training["model"]
        assert one.origin.endswith("within the search space")


def test_a_space_of_the_model_keeps_the_commands_own_model(toy_document: dict[str, Any]) -> None:
    training = training_of(toy_document)
    space = read_space({"model.layers.1.out_features": {"low": 2, "high": 5}})
    for one in keep_in_space(read_defaults(), training, space, np.random.default_rng(0), opened=True):
        layers = copy.deepcopy(one.training["model"]["layers"])
        assert 2 <= layers[1].pop("out_features") <= 5
        own = copy.deepcopy(training["model"]["layers"])
        own[1].pop("out_features")
        assert layers == own


def test_without_a_space_the_commands_own_values_are_varied(toy_document: dict[str, Any]) -> None:
    import pandas as pd

    training = training_of(toy_document | {"optimizer": {"name": "SGD", "lr": 0.01, "weight_decay": 1e-4}})
    space = derive_space(training, pd.DataFrame())
    assert {path: (one.low, one.high) for path, one in space.items() if isinstance(one, Range)} == {
        "optimizer.lr": (0.001, 0.1),
        "optimizer.weight_decay": (1e-6, 0.01),
        "batch_size": (max(1, training["batch_size"] // 4), training["batch_size"] * 4),
    }
    past = pd.DataFrame({"optimizer.name": ["SGD"] * 50 + ["Adam"], "optimizer.lr": [3.0] * 50 + [99.0]})
    rate = derive_space(training, past)["optimizer.lr"]
    assert isinstance(rate, Range)
    assert (rate.low, rate.high) == (0.001, 3.0)
    for one in draw_proposals(training, space, np.random.default_rng(0), 50):
        assert space["optimizer.lr"].holds(get_value(one.training, "optimizer.lr")[1])
        parse_train_commands(toy_document | dict(one.training))


def test_the_schema_knows_spaces() -> None:
    import jsonschema

    from mlmeta.commands.documents import TrainCommands
    from mlmeta.commands.json_schema import complete_schema

    schema = complete_schema(TrainCommands.model_json_schema())
    part = next(one for one in schema["properties"]["space"]["anyOf"] if one.get("type") == "object")
    jsonschema.validate(LOG_RATE, part)
    jsonschema.validate({**LOG_RATE, "*": "open"}, part)
    for faulty in ({"*": "closed"}, {"n_epoch": LOG_RATE["optimizer.lr"]}, {"optimizer.lr": {"low": 1}}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(json.dumps(faulty)), part)
