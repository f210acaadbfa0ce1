"""Optuna's samplers: told of what lies in the search space, as Optuna itself has it then, and never the same twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from mlmeta.commands.params import flatten_params
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.task import prepare_task
from mlmeta.tuning.proposals import digest_training, take_training
from mlmeta.tuning.samplers import make_sampler

RATE = {"low": 1e-4, "high": 0.1, "log": True}
SPACE = {
    "optimizer.name": {"choices": ["SGD", "Adam"]},
    "optimizer.momentum": {"low": 0.0, "high": 0.9},
    "optimizer.lr": RATE,
}


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[optuna.Study]:
    """Every study that is made from now on."""
    made: list[optuna.Study] = []
    create = optuna.create_study

    def creating(**options: Any) -> optuna.Study:
        made.append(create(**options))
        return made[-1]

    monkeypatch.setattr(optuna, "create_study", creating)
    return made


def remember(document: dict[str, Any], *attempts: dict[str, Any]) -> None:
    """Record attempts on the task of a document, each differing from it in some keys, the newest last."""
    digest = prepare_task(parse_train_commands(document), base_dir=Path()).pictures.task_digest
    client = MlflowClient()
    for number, changes in enumerate(attempts):
        given = {"accuracy": 0.5 + number / 100, "status": "Complete"} | changes
        accuracy, status = given.pop("accuracy"), given.pop("status")
        training = take_training(parse_train_commands({**document, "space": None} | given))
        tags = {"mlmeta.kind": "attempt", "mlmeta.status": status, "mlmeta.task_digest": digest}
        run_id = client.create_run("0", run_name=f"past-{number}", tags=tags).info.run_id
        for key, value in flatten_params(training).items():
            client.log_param(run_id, key, value)
        if accuracy is not None:
            client.log_metric(run_id, "accuracy", accuracy)
        client.set_terminated(run_id)


def propose(document: dict[str, Any], n: int, *, name: str = "tpe", seed: int = 0) -> list[dict[str, Any]]:
    sampler = make_sampler(name, parse_train_commands(document), base_dir=Path())
    return [take_training(one.commands) for one in sampler.propose(n, seed=seed)]


def test_attempts_of_every_optimizer_are_told_with_the_values_that_they_have(
    toy_document: dict[str, Any], studies: list[optuna.Study], store: str
) -> None:
    document = toy_document | {"space": SPACE}
    adam, sgd = {"name": "Adam", "lr": 0.01}, {"name": "SGD", "lr": 0.05, "momentum": 0.5}
    remember(document, {"optimizer": adam}, {"optimizer": sgd})
    propose(document, 1)
    told = sorted((trial for trial in studies[0].trials if trial.value is not None), key=lambda trial: trial.value or 0)
    assert [trial.params for trial in told] == [
        {"optimizer.name": 1, "optimizer.lr": 0.01},
        {"optimizer.name": 0, "optimizer.lr": 0.05, "optimizer.momentum": 0.5},
    ]
    assert [trial.value for trial in told] == [0.5, 0.51]


def test_attempts_that_lie_outside_of_the_space_are_not_told(
    toy_document: dict[str, Any], studies: list[optuna.Study], store: str
) -> None:
    document = toy_document | {"optimizer": {"name": "Adam", "lr": 0.01}, "space": SPACE}
    remember(
        document,
        {"optimizer": {"name": "RMSprop", "lr": 0.01}},
        {"optimizer": {"name": "Adam", "lr": 0.5}},
        # The score of another model or batch size says nothing about these learning rates.
        {"batch_size": 4},
        {"model": {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": 3}]}},
    )
    propose(document, 1)
    assert not [trial for trial in studies[0].trials if trial.value is not None]


def test_a_failed_attempt_counts_as_the_worst(
    toy_document: dict[str, Any], studies: list[optuna.Study], store: str
) -> None:
    document = toy_document | {"space": {"optimizer.lr": RATE}}
    failed = {"optimizer": {"name": "Adam", "lr": 0.1}, "status": "Diverged", "accuracy": None}
    remember(document, {"accuracy": 0.7}, {"accuracy": 0.4, "optimizer": {"name": "Adam", "lr": 0.03}}, failed)
    propose(document, 1)
    assert sorted(trial.value for trial in studies[0].trials if trial.value is not None) == [0.4, 0.4, 0.7]


@pytest.mark.parametrize("name", ["tpe", "gp", "random"])
def test_what_was_tried_is_not_proposed_again(toy_document: dict[str, Any], store: str, name: str) -> None:
    # As a user writes it who knows his pictures; proposals have "auto" there.
    convolution = {"name": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3}
    layers = [convolution, *toy_document["model"]["layers"]]
    document = toy_document | {"model": {"layers": layers}, "space": {"batch_size": {"choices": [2, 3, 4]}}}
    remember(document, {"batch_size": 2}, {"batch_size": 4})
    assert [one["batch_size"] for one in propose(document, 3, name=name)] == [3]


def test_a_whole_part_is_known_by_what_the_space_leaves_of_it(
    toy_document: dict[str, Any], studies: list[optuna.Study], store: str
) -> None:
    parts = [{"name": "SGD", "lr": 0.1, "momentum": 0.9}, {"name": "Adam", "lr": 0.1}]
    document = toy_document | {"space": {"optimizer": {"choices": parts}, "optimizer.lr": RATE}}
    remember(document, {"optimizer": {"name": "SGD", "lr": 0.02, "momentum": 0.9}})
    assert propose(document, 4)
    assert studies[0].trials[0].params == {"optimizer": 0, "optimizer.lr": 0.02}


def test_the_same_seed_gives_the_same_proposals(toy_document: dict[str, Any], store: str) -> None:
    document = toy_document | {"space": SPACE}
    first, again, other = (propose(document, 3, name="random", seed=seed) for seed in (1, 1, 2))
    assert [digest_training(one) for one in first] == [digest_training(one) for one in again]
    assert first != other
    assert all(("momentum" in one["optimizer"]) == (one["optimizer"]["name"] == "SGD") for one in first)
