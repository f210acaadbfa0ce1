"""A training that is stopped and resumed is the training that was never stopped, to the last digit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MemoryRecorder

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import BadInputError
from mlmeta.training.checkpoints import Checkpoint, capture_state, restore_state
from mlmeta.training.loop import Trained, train_attempt
from mlmeta.training.preparation import Prepared, prepare_training


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def prepare(document: dict[str, Any]) -> Prepared:
    return prepare_training(parse_train_commands(document), base_dir=Path())


class StopError(Exception):
    """Ends a training in the middle, as a signal would."""


def train_in_two_parts(document: dict[str, Any], stop_after: int) -> Trained:
    """Train up to an epoch, forget everything but the checkpoint, and go on from it."""
    checkpoint = Checkpoint("a", every_s=0)
    first = prepare(document)

    def save(trained: Trained) -> None:
        checkpoint.save(capture_state(first, trained))
        if len(trained.curve) == stop_after:
            raise StopError

    with pytest.raises(StopError):
        train_attempt(first, MemoryRecorder(), after_epoch=save)
    torch.rand(17)
    second = prepare(document)
    state = checkpoint.load()
    assert state is not None
    return train_attempt(second, MemoryRecorder(), trained=restore_state(second, state))


def losses(trained: Trained) -> list[tuple[float, ...]]:
    keys = ("train_loss", "val_loss", "val_accuracy", "learning_rate")
    return [tuple(metrics[key] for key in keys) for metrics in trained.curve]


RANDOM = [{"RandomHorizontalFlip": {"p": 0.5}}, {"RandomCrop": {"size": 8, "padding": 2}}, "ToTensor"]
NOISY_LAYERS = [
    {"name": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 3},
    {"name": "BatchNorm2d", "num_features": "auto"},
    {"name": "RReLU"},
    {"name": "Flatten"},
    {"name": "Dropout", "p": 0.3},
    {"name": "LazyLinear", "out_features": "n_labels"},
]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"transform": RANDOM, "model": {"layers": NOISY_LAYERS}},
        {"optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True}},
        {"optimizer": {"name": "LBFGS", "lr": 0.1, "max_iter": 3}, "batch_size": 64},
        {"optimizer": {"name": "RAdam"}},
        {"optimizer": {"name": "Rprop"}},
        {"optimizer": {"name": "ASGD"}},
        {"optimizer": {"name": "Adafactor"}},
        {"optimizer": {"name": "Adagrad"}},
        {"scheduler": {"name": "ReduceLROnPlateau", "patience": 0, "threshold": 0.5}},
        {"scheduler": {"name": "OneCycleLR", "max_lr": 0.05}},
        {"scheduler": {"name": "CyclicLR", "base_lr": 0.001, "max_lr": 0.05, "step_size_up": 7}},
        {"scheduler": {"name": "MultiStepLR", "milestones": [1, 2, 4]}},
        {"scheduler": {"name": "CosineAnnealingLR"}},
        {"scheduler": {"name": "CosineAnnealingWarmRestarts", "T_0": 2}},
        {
            "scheduler": {
                "name": "SequentialLR",
                "schedulers": [{"name": "LinearLR", "total_iters": 2}, {"name": "ExponentialLR", "gamma": 0.5}],
                "milestones": [2],
            }
        },
        {
            "scheduler": {
                "name": "ChainedScheduler",
                "schedulers": [{"name": "ConstantLR", "total_iters": 3}, {"name": "StepLR", "step_size": 2}],
            }
        },
        {"scheduler": None, "validation": 0.3, "keep": "last"},
    ],
    ids=lambda changes: "-".join(str(value.get("name", key)) if isinstance(value, dict) else key
                                 for key, value in changes.items()) or "plain",
)  # fmt: skip
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_training_equals_one_that_was_never_stopped(
    toy_document: dict[str, Any], changes: dict[str, Any], stop_after: int
) -> None:
    document = {**toy_document, "n_epoch": 5, **changes}
    whole = train_attempt(prepare(document), MemoryRecorder())
    parts = train_in_two_parts(document, stop_after)
    assert losses(parts) == losses(whole)
    assert parts.kept_epoch == whole.kept_epoch
    assert parts.state.keys() == whole.state.keys()
    assert all(torch.equal(parts.state[key], whole.state[key]) for key in whole.state)


def test_pictures_that_changed_are_refused(toy_document: dict[str, Any]) -> None:
    first = prepare(toy_document)
    state = capture_state(first, train_attempt(first, MemoryRecorder())) | {"pictures": "others"}
    with pytest.raises(BadInputError, match="have changed"):
        restore_state(prepare(toy_document), state)


def test_a_write_that_fails_leaves_the_checkpoint_before(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint("a")
    checkpoint.save({"epoch": 1})

    def fill_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fill_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"epoch": 2})
    assert checkpoint.load() == {"epoch": 1}
    assert list(checkpoint.file.parent.iterdir()) == [checkpoint.file]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_process_killed_while_writing_leaves_is_removed_with_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = Checkpoint("a")
    checkpoint.save({"epoch": 1})
    child = os.fork()
    if child == 0:
        monkeypatch.setattr("os.fsync", lambda _: os._exit(9))
        checkpoint.save({"epoch": 2})
    os.waitpid(child, 0)
    assert len(list(checkpoint.file.parent.iterdir())) == 2
    assert checkpoint.load() == {"epoch": 1}
    Checkpoint("a").remove()
    assert list(checkpoint.file.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused(content: bytes) -> None:
    checkpoint = Checkpoint("a")
    checkpoint.save({"epoch": 1})
    checkpoint.file.write_bytes(content)
    with pytest.raises(BadInputError, match="is damaged"):
        checkpoint.load()


def test_there_may_be_no_checkpoint() -> None:
    checkpoint = Checkpoint("a")
    assert checkpoint.load() is None
    checkpoint.remove()


def test_short_epochs_are_not_all_written() -> None:
    checkpoint = Checkpoint("a", every_s=3600)
    assert checkpoint.is_due()
    checkpoint.save({})
    assert not checkpoint.is_due()
    assert Checkpoint("a", every_s=0).is_due()
