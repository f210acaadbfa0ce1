"""The space of the commands: what it does not name stays as the commands say, whoever proposes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from click.testing import CliRunner

from mlmeta.cli import cli
from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.task import prepare_task
from mlmeta.tuning.recommend import recommend_commands
from mlmeta.tuning.samplers import SAMPLERS, make_sampler

RATE = {"optimizer.lr": {"low": 0.001, "high": 0.3, "log": True}}
ONLY_RATE = {
    "model_name": "onlylr",
    "data": {"source": "sample", "name": "digits"},
    "transform": {"ToTensor": True, "Normalize": {"mean": [0.5], "std": [0.5]}},
    "model": {
        "layers": [
            {"name": "Conv2d", "in_channels": 1, "out_channels": 12, "kernel_size": 5},
            {"name": "Tanh"},
            {"name": "Flatten"},
            {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
        ]
    },
    "optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.5, "weight_decay": 0.003},
    "scheduler": {"name": "StepLR", "step_size": 2, "gamma": 0.7},
    "batch_size": 48,
    "n_epoch": 3,
    "space": RATE,
}


def without_rate(document: dict[str, Any]) -> dict[str, Any]:
    """Return commands without what may differ: their name, their space and the learning rate."""
    kept = {key: value for key, value in document.items() if key not in ("model_name", "space")}
    return kept | {"optimizer": {key: value for key, value in kept["optimizer"].items() if key != "lr"}}


def digest_task(commands: TrainCommands) -> str:
    """Return the digest of the task of some commands."""
    return prepare_task(commands, base_dir=Path(), probe=True).pictures.task_digest


@pytest.mark.parametrize("n_past", [0, 64])
def test_all_recommendations_differ_in_what_the_space_names_alone(n_past: int) -> None:
    found = recommend_commands(parse_train_commands(ONLY_RATE), history=make_table(64).iloc[: 13 * n_past], n=30)
    assert len(found) == 30
    assert len({one.commands.optimizer["lr"] for one in found}) == 30
    for one in found:
        assert 0.001 <= one.commands.optimizer["lr"] <= 0.3
        assert without_rate(one.commands.document()) == without_rate(ONLY_RATE)


def test_the_command_writes_files_that_differ_in_the_learning_rate_alone(store: str, tmp_path: Path) -> None:
    del store
    (tmp_path / "only_lr.json").write_text(json.dumps(ONLY_RATE))
    done = CliRunner().invoke(cli, ["recommend", "only_lr.json", "-n", "3", "--write", "next"])
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "next").iterdir())
    assert len(files) == 3
    for file in files:
        assert without_rate(json.loads(file.read_text(encoding="utf-8"))) == without_rate(ONLY_RATE)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_a_tuning_keeps_to_the_space(store: str, name: str) -> None:
    del store
    found = make_sampler(name, parse_train_commands(ONLY_RATE), base_dir=Path()).propose(4, seed=0)
    assert len(found) == 4
    for one in found:
        assert without_rate(one.commands.document()) == without_rate(ONLY_RATE)


def test_an_open_space_leaves_the_rest_open() -> None:
    commands = parse_train_commands(ONLY_RATE | {"space": {**RATE, "*": "open"}})
    found = recommend_commands(commands, history=make_table(64), n=10)
    assert all(0.001 <= one.commands.optimizer["lr"] <= 0.3 for one in found)
    assert any(one.commands.model != commands.model for one in found)
    assert len({one.commands.batch_size for one in found}) > 1


def test_optuna_draws_what_an_open_space_does_not_name_too(store: str) -> None:
    del store
    commands = parse_train_commands(ONLY_RATE | {"space": {**RATE, "*": "open"}})
    found = make_sampler("random", commands, base_dir=Path()).propose(6, seed=0)
    assert len({one.commands.batch_size for one in found}) > 1
    assert all(0.001 <= one.commands.optimizer["lr"] <= 0.3 for one in found)


def test_another_optimizer_keeps_the_arguments_that_it_knows() -> None:
    commands = parse_train_commands(ONLY_RATE | {"space": {"optimizer.name": {"choices": ["SGD", "Adam"]}}})
    for one in recommend_commands(commands, history=make_table(64), n=2):
        adam = {"name": "Adam", "lr": 0.01, "weight_decay": 0.003}
        assert one.commands.optimizer in (ONLY_RATE["optimizer"], adam)
        assert one.commands.document()["model"] == ONLY_RATE["model"]


def with_rate(rate: float, **optimizer: Any) -> TrainCommands:
    return parse_train_commands(ONLY_RATE | {"space": None, "optimizer": {"name": "Adam", "lr": rate} | optimizer})


@pytest.mark.parametrize("n_past", [0, 64])
def test_what_is_far_from_all_that_was_tried_is_expected_to_be_chance(n_past: int) -> None:
    absurd = [with_rate(1e9), with_rate(10.0), with_rate(1e-9), with_rate(0.002, weight_decay=1e6)]
    found = recommend_commands(
        with_rate(0.002), history=make_table(64).iloc[: 13 * n_past], candidates=[*absurd, with_rate(0.002)], n=5
    )
    assert found[0].commands.optimizer == {"name": "Adam", "lr": 0.002}
    assert "Warning" not in found[0].reason
    assert found[0].score_mean > 0.3
    for one in found[1:]:
        assert one.score_mean < 0.2
        assert one.score_std > 0.1
        assert "Warning: nothing like it was tried without failing; the nearest is away in " in one.reason


def test_the_default_of_an_optimizer_counts_as_tried() -> None:
    candidates = [with_rate(1.0, name="Adadelta"), with_rate(1e4, name="Adadelta")]
    found = recommend_commands(with_rate(0.002), history=make_table(64), candidates=candidates)
    assert [one.commands.optimizer["lr"] for one in found] == [1.0, 1e4]
    assert ["Warning" in one.reason for one in found] == [False, True]


def test_after_four_diverged_attempts_no_absurd_rate_is_next() -> None:
    space = {
        "optimizer.name": {"choices": ["Adam", "RMSprop", "SGD"]},
        "optimizer.lr": {"low": 1e-4, "high": 1e12, "log": True},
    }
    commands = parse_train_commands(ONLY_RATE | {"space": space})
    history = make_table(64)
    own = history.iloc[:4].assign(
        **{"run_id": list("abcd"), "status": "Diverged", "accuracy": np.nan, "task": "mine",
           "optimizer.name": "Adam", "optimizer.lr": [1e2, 1e4, 1e7, 1e10],
           "tags.mlmeta.task_digest": digest_task(commands)}
    )  # fmt: skip
    joined = pd.concat([history, own], ignore_index=True)
    joined.attrs = dict(history.attrs)
    found = recommend_commands(commands, history=joined, n=5)
    assert len(found) == 5
    for one in found:
        assert one.commands.optimizer["lr"] < 10


def test_a_scheduler_that_waits_for_a_rise_is_not_proposed_again() -> None:
    history = make_table(64)
    plateau = {"scheduler.name": "ReduceLROnPlateau", "scheduler.mode": "max"}
    kinds = dict(history.attrs["kinds"]) | dict.fromkeys(plateau, "param")
    kept = [name for name in history.columns if not name.startswith("scheduler.")]
    history = history[kept].assign(**plateau)
    history.attrs["kinds"] = kinds
    commands = parse_train_commands(ONLY_RATE | {"space": {"*": "open"}})
    found = recommend_commands(commands, history=history, n=10)
    assert len(found) == 10
    assert all((one.commands.scheduler or {}).get("mode", "min") == "min" for one in found)
