"""The training loop: it learns, it repeats, it keeps the right weights, and it says when it diverged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MemoryRecorder
from torch import Tensor, nn

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data import task
from mlmeta.errors import AttemptFailedError, CommandsError, PicturesError
from mlmeta.spec_builder import describe_model
from mlmeta.train import run_attempt
from mlmeta.training import preparation
from mlmeta.training.loop import Trained, find_batch_size, is_kept, shuffle_seed, train_attempt
from mlmeta.training.preparation import prepare_training
from mlmeta.training.recording import log_training


def prepare(document: dict[str, Any], **changes: Any) -> Any:
    return prepare_training(parse_train_commands({**document, **changes}), base_dir=Path())


def train(document: dict[str, Any], **changes: Any) -> Trained:
    return train_attempt(prepare(document, **changes), MemoryRecorder())


def test_the_loss_falls_and_the_labels_are_learnt(toy_document: dict[str, Any]) -> None:
    curve = train(toy_document, n_epoch=8).curve
    assert curve[-1]["train_loss"] < 0.5 * curve[0]["train_loss"]
    assert curve[-1]["val_accuracy"] > 0.9


def test_two_trainings_of_one_document_give_equal_losses_and_weights(toy_document: dict[str, Any]) -> None:
    document = {**toy_document, "transform": [{"RandomCrop": {"size": 6}}, "ToTensor"]}
    first, second = train(document), train(document)
    assert first.train_losses == second.train_losses
    assert [m["val_loss"] for m in first.curve] == [m["val_loss"] for m in second.curve]
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)


def test_another_seed_gives_other_losses(toy_document: dict[str, Any]) -> None:
    assert train(toy_document).train_losses != train(toy_document, seed=1).train_losses


def test_every_epoch_is_recorded_at_its_number(toy_document: dict[str, Any], recorder: MemoryRecorder) -> None:
    train_attempt(prepare(toy_document), recorder)
    assert [step for step, _ in recorder.metrics] == [1, 2, 3, 4]
    assert set(recorder.metrics[0][1]) == {
        "train_loss", "val_loss", "val_accuracy", "val_predicted_labels", "learning_rate", "epoch_seconds",
        "pictures_per_second",
    }  # fmt: skip


def test_an_epoch_is_the_plain_loop_of_pytorch(toy_document: dict[str, Any]) -> None:
    """The same network, data and order in ten lines of plain PyTorch give the same losses."""
    prepared = prepare(toy_document, optimizer={"name": "SGD", "lr": 0.1, "momentum": 0.9}, scheduler=None)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    training = prepared.task.select("train")
    x = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in training.arrays])
    y = training.labels
    expected = []
    for epoch in (1, 2, 3, 4):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(shuffle_seed(0, epoch)))
        total = 0.0
        chunks = list(torch.split(order, 8))
        if len(chunks[-1]) == 1:
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for chunk in chunks:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chunk]), y[chunk])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chunk)
        expected.append(total / len(y))
    assert train_attempt(prepared, MemoryRecorder()).train_losses == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_an_epoch_is_the_mean_over_pictures_also_for_a_summed_loss(toy_document: dict[str, Any]) -> None:
    frozen = {"optimizer": {"name": "SGD", "lr": 1e-12}, "n_epoch": 1}
    mean = train(toy_document, **frozen)
    summed = train(toy_document, criterion={"name": "CrossEntropyLoss", "reduction": "sum"}, **frozen)
    assert summed.train_losses == pytest.approx(mean.train_losses, rel=1e-5)


def test_the_best_epoch_is_the_one_with_the_least_validation_loss(toy_document: dict[str, Any]) -> None:
    trained = train(toy_document, n_epoch=10, optimizer={"name": "Adam", "lr": 0.3}, keep="best")
    losses = [metrics["val_loss"] for metrics in trained.curve]
    assert trained.kept_epoch == 1 + losses.index(min(losses))


def test_the_last_epoch_is_kept_where_asked_for_or_where_nothing_is_validated(toy_document: dict[str, Any]) -> None:
    assert train(toy_document, keep="last").kept_epoch == 4
    assert train(toy_document, validation=0).kept_epoch == 4


def test_kept_weights_are_those_of_the_kept_epoch(toy_document: dict[str, Any]) -> None:
    trained = train(toy_document, n_epoch=10, optimizer={"name": "Adam", "lr": 0.3})
    again = train(toy_document, n_epoch=trained.kept_epoch, optimizer={"name": "Adam", "lr": 0.3}, keep="last")
    assert all(torch.equal(trained.state[key], again.state[key]) for key in trained.state)


def test_a_nan_never_replaces_a_kept_epoch() -> None:
    trained = Trained(curve=[{"train_loss": 1.0, "val_loss": 1.0}, {"train_loss": 1.0, "val_loss": math.nan}])
    trained.kept_epoch = 1
    assert not is_kept("best", trained)


def test_a_loss_that_is_not_finite_ends_the_training(toy_document: dict[str, Any]) -> None:
    trained = train(toy_document, n_epoch=50, optimizer={"name": "SGD", "lr": 1e30})
    assert len(trained.curve) < 50
    assert not math.isfinite(trained.train_losses[-1])
    assert trained.kept_epoch < len(trained.curve)


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_schedulers_that_count_batches_are_stepped_every_batch(toy_document: dict[str, Any], name: str) -> None:
    arguments = {"OneCycleLR": {"max_lr": 0.1}, "CyclicLR": {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 3}}[name]
    prepared = prepare(toy_document, scheduler={"name": name, **arguments})
    train_attempt(prepared, MemoryRecorder())
    assert prepared.scheduler.last_epoch == 4 * prepared.batches.n_batches


def test_step_lr_is_stepped_every_epoch(toy_document: dict[str, Any]) -> None:
    curve = train(toy_document, scheduler={"name": "StepLR", "step_size": 2, "gamma": 0.1}).curve
    assert [metrics["learning_rate"] for metrics in curve] == pytest.approx([0.02, 0.02, 0.002, 0.002])


def test_reduce_on_plateau_watches_the_training_loss(toy_document: dict[str, Any]) -> None:
    stuck = {"optimizer": {"name": "SGD", "lr": 1e-4}, "n_epoch": 4}
    curve = train(toy_document, scheduler={"name": "ReduceLROnPlateau", "patience": 0, "threshold": 0.5}, **stuck).curve
    assert curve[-1]["learning_rate"] < curve[0]["learning_rate"]


@pytest.mark.parametrize("optimizer", ["LBFGS", "Rprop", "Adafactor", "ASGD"])
def test_unusual_optimizers_train_too(toy_document: dict[str, Any], optimizer: str) -> None:
    curve = train(toy_document, optimizer={"name": optimizer}, batch_size=64).curve
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]


@pytest.mark.parametrize(
    "criterion", ["MSELoss", "BCELoss", "KLDivLoss", "MultiLabelMarginLoss", "TripletMarginLoss", "HingeEmbeddingLoss"]
)
def test_criteria_of_every_form_of_target_teach_the_labels(toy_document: dict[str, Any], criterion: str) -> None:
    trained = train(toy_document, criterion={"name": criterion}, n_epoch=15)
    assert trained.curve[trained.kept_epoch - 1]["val_accuracy"] > 0.8


def test_crops_are_averaged_in_training_and_validation(toy_document: dict[str, Any]) -> None:
    trained = train(toy_document, transform=[{"FiveCrop": {"size": 4}}, "ToTensor"], n_epoch=8)
    assert trained.curve[-1]["val_accuracy"] > 0.9


def test_batch_normalisation_trains_though_the_last_batch_has_one_picture(toy_document: dict[str, Any]) -> None:
    n_train = len(prepare(toy_document).batches)
    layers = [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": 8}, {"name": "LazyBatchNorm1d"},
              {"name": "LazyLinear", "out_features": "n_labels"}]  # fmt: skip
    trained = train(toy_document, model={"layers": layers}, batch_size=n_train - 1)
    assert len(trained.curve) == 4


def test_what_a_training_leaves(toy_document: dict[str, Any], recorder: MemoryRecorder) -> None:
    prepared = prepare(toy_document)
    trained = train_attempt(prepared, recorder)
    log_training(prepared, trained, recorder)
    assert set(recorder.files) == {"loss_curve.png", "models/colours.pt", "models/colours.safetensors"}
    assert json.loads(recorder.tags["mlmeta.training_losses"]) == pytest.approx(trained.train_losses, rel=1e-5)


def test_a_label_without_training_pictures_is_refused(toy_document: dict[str, Any]) -> None:
    with pytest.raises(PicturesError, match="grey"):
        prepare(toy_document, label_names=["red", "grey"])


def test_the_architecture_of_a_torchvision_model_is_described(toy_document: dict[str, Any]) -> None:
    image_ops = [{"resize": {"size": [32, 32]}}]
    prepared = prepare(toy_document, model={"name": "resnet18"}, image_ops=image_ops)
    described = describe_model(prepared.commands, prepared.model)
    assert described["batch_norm"] is True
    assert described["activation"] == "ReLU"
    assert described["width"] == 512
    assert described["n_parameters"] == 11_178_051


class Hungry(nn.Module):
    """A model whose memory is enough for so many pictures at once."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        super().__init__()
        self.model = model
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        output: Tensor = self.model(x)
        return output


@pytest.mark.parametrize(("limit", "expected"), [(7, 4), (4, 4), (1, 1), (0, 0)])
def test_out_of_memory_is_answered_with_the_batch_size_that_fits(
    toy_document: dict[str, Any], limit: int, expected: int
) -> None:
    prepared = prepare_training(parse_train_commands(toy_document), base_dir=Path())
    prepared.model = Hungry(prepared.model, limit)
    assert find_batch_size(prepared) == expected


@pytest.mark.usefixtures("store")
def test_an_attempt_that_runs_out_of_memory_fails_with_that_advice(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepare_training

    def prepare(*args: Any, **options: Any) -> Any:
        prepared = real(*args, **options)
        prepared.model = Hungry(prepared.model, 5)
        return prepared

    monkeypatch.setattr(preparation, "prepare_training", prepare)
    with pytest.raises(AttemptFailedError, match=r"memory of cpu is used up by batch_size 8; batch_size 4 would fit"):
        run_attempt(parse_train_commands(toy_document), base_dir=Path())


def test_a_batch_that_memory_could_not_hold_is_refused_before_pictures_are_decoded(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    convolution = {"name": "Conv2d", "in_channels": 3, "out_channels": 8, "kernel_size": 3}
    last = {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}
    document = toy_document | {"batch_size": 60, "model": {"layers": [convolution, {"name": "Flatten"}, last]}}
    # 8×8×3 floats a picture, and 6×6×8 + 3 outputs that a training keeps.
    monkeypatch.setenv("MLMETA_MEMORY_BYTES", str(50 * 4 * (8 * 8 * 3 + 6 * 6 * 8 + 3)))
    monkeypatch.setattr(task, "decode_pictures", None)
    with pytest.raises(CommandsError, match=r"batch_size: a batch of 60 pictures .* at most 50 would fit"):
        prepare_training(parse_train_commands(document), base_dir=Path())
