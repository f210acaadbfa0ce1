"""Situations out of bug reports in which a training used to go wrong without a word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mlmeta.cli import cli
from mlmeta.commands.parsing import parse_train_commands

LINEAR = [
    {"name": "Flatten"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]


def write_case(folder: Path, labels: Sequence[str] = ("cat", "dog"), *, n_pictures: int = 12, **changed: Any) -> Path:
    """Write bright and dark pictures of noise under each label, and commands beside them; return their file."""
    rng = np.random.default_rng(0)
    for number, label in enumerate(labels):
        (folder / "pictures" / label).mkdir(parents=True)
        for index in range(n_pictures):
            pixels = rng.integers(0, 100, (12, 12, 3)) + 150 * number // (len(labels) - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / label / f"{index:03}.png")
    document = {
        "model_name": "case",
        "data": {"source": "folder", "path": "pictures"},
        "model": {"layers": LINEAR},
        "optimizer": {"name": "Adam", "lr": 0.01},
        "batch_size": 8,
        "n_epoch": 3,
    }
    file = folder / "run.json"
    file.write_text(json.dumps(document | changed), encoding="utf-8")
    return file


def call(*arguments: object) -> Result:
    """Run a command of mlmeta."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)


def count_runs() -> int:
    """Return the runs of the store."""
    from mlflow import MlflowClient

    return len(MlflowClient().search_runs(["0"]))


@pytest.mark.parametrize("command", ["check", "train"])
def test_a_plateau_scheduler_that_waits_for_the_loss_to_rise_is_refused(
    command: str, store: str, tmp_path: Path
) -> None:
    file = write_case(tmp_path, scheduler={"name": "ReduceLROnPlateau", "mode": "max", "patience": 0})
    result = call(command, file)
    assert result.exit_code == 2
    assert "scheduler.mode: must be 'min', since ReduceLROnPlateau watches the training loss" in result.stderr
    assert count_runs() == 0


@pytest.mark.parametrize(
    "part",
    [
        {"scheduler.mode": {"choices": ["min", "max"]}},
        {"scheduler": {"choices": [None, {"name": "ReduceLROnPlateau", "mode": "max"}]}},
    ],
)
def test_a_space_may_not_lead_to_such_a_scheduler(part: dict[str, Any], tmp_path: Path) -> None:
    result = call("tune", write_case(tmp_path, space=part), "--attempts", 1)
    assert result.exit_code == 2
    assert "cannot stand there: must be 'min'" in result.stderr


def test_commands_that_were_recorded_with_such_a_scheduler_can_be_read() -> None:
    scheduler = {"name": "ReduceLROnPlateau", "mode": "max"}
    commands = parse_train_commands({"model_name": "old", "model": {"layers": LINEAR}, "scheduler": scheduler})
    assert commands.scheduler == scheduler
