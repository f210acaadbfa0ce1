"""Test an attempt: how well its weights do on pictures that no training saw.

`measure_model` and `test_model` know nothing of MLflow; `evaluate_attempt` looks an attempt up, loads its weights
and records the test as a child run. The MLproject entry point ``evaluate`` is ``python -m mlmeta.evaluate``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mlmeta.commands.documents import TestCommands, TrainCommands, strip_operators
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.batches import Batches, choose_device, use_channels_last
from mlmeta.data.pictures import choose_pictures
from mlmeta.data.task import Task, prepare_criterion, prepare_model, prepare_task
from mlmeta.errors import CommandsError, Fault, PicturesError, nearest_name, shorten
from mlmeta.models.criteria import Criterion
from mlmeta.models.layers import forward_pictures
from mlmeta.models.weights import load_weights, read_weights
from mlmeta.recorder import Recorder
from mlmeta.reports.attempt_files import write_test_report
from mlmeta.spec_builder import output_form
from mlmeta.status import Status


@dataclass(frozen=True)
class Measured:
    """A model's answers for some pictures.

    Attributes:
        outputs: float32 (n, n_labels), as the model gives them.
        labels: int64 (n,), the true class indices.
        loss: Mean of the criterion over pictures.
    """

    outputs: Tensor
    labels: Tensor
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of pictures whose greatest output is that of their label, 0 to 1."""
        return float((self.outputs.argmax(dim=1) == self.labels).float().mean())


@torch.inference_mode()
def measure_model(model: nn.Module, criterion: Criterion, batches: Batches) -> Measured:
    """Run a model over pictures without training it.

    Args:
        model: On the batches' device.
        criterion: Likewise.
        batches: At least one picture.
    """
    model.eval()
    outputs, labels = [], []
    total = torch.zeros((), device=batches.device)
    for pictures, truth in batches.in_order():
        given = forward_pictures(model, pictures).float()
        total += criterion.batch_sum(criterion(given, truth), len(truth))
        outputs.append(given.cpu())
        labels.append(truth.cpu())
    return Measured(torch.cat(outputs), torch.cat(labels), float(total) / len(batches))


def score_probabilities(outputs: Tensor, form: str) -> npt.NDArray[np.float64]:
    """Return the share of each label, (n, n_labels), rows adding up to 1, from outputs of any form."""
    given = outputs.double()
    if form == "probabilities":
        given = given.clamp_min(1e-12).log()
    return torch.softmax(given, dim=1).numpy()


def compute_metrics(measured: Measured, shares: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return accuracy, test_loss, macro_f1 and, for more than five labels, top5_accuracy, by scikit-learn.

    macro_f1 is the mean over the labels that occur among the true ones.
    """
    from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

    truth, n_labels = measured.labels.numpy(), shares.shape[1]
    predicted = measured.outputs.argmax(dim=1).numpy()
    metrics = {
        "accuracy": float(accuracy_score(truth, predicted)),
        "test_loss": measured.loss,
        "macro_f1": float(f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0)),
    }
    if n_labels > 5:
        finite = np.nan_to_num(shares, nan=0.0)
        metrics["top5_accuracy"] = float(top_k_accuracy_score(truth, finite, k=5, labels=np.arange(n_labels)))
    return metrics


@dataclass(frozen=True)
class TestPlan:
    """What a test runs on, beside the model: draw and batch."""

    __test__ = False  # not a test case, whatever its name says to pytest

    limit: int
    ids: tuple[str, ...]
    seed: int
    batch_size: int


def test_model(
    model: nn.Module,
    criterion: Criterion,
    task: Task,
    plan: TestPlan,
    *,
    form: str,
    recorder: Recorder,
    name: str,
) -> dict[str, float]:
    """Test a model on the test part of a task and record all that a test gives.

    Args:
        model: With its weights, on the device to test on.
        criterion: Gives test_loss.
        task: The pictures.
        plan: Which of them.
        form: What the model's outputs are, see `mlmeta.spec_builder.output_form`.
        recorder: Takes metrics, params ``test.*``, tables and plots.
        name: Of the attempt, for titles.

    Returns:
        The metrics.

    Raises:
        PicturesError: If there is no picture to test on.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    chosen = task.decoded.select(choose_pictures(task.pictures, limit=plan.limit, ids=plan.ids, seed=plan.seed))
    if not chosen.pictures:
        raise PicturesError("data: none of the pictures to test on can be read")
    recorder.set_status(Status.TESTING)
    batches = task.batches(
        chosen, batch_size=plan.batch_size, device=device, channels_last=use_channels_last(model, device)
    )
    measured = measure_model(model, criterion, batches)
    shares = score_probabilities(measured.outputs, form)
    metrics = compute_metrics(measured, shares)
    recorder.log_data(name=f"{name} test", digest=task.pictures.digest, source=task.pictures.source, context="test")
    recorder.log_params(
        {f"test.{key}": value for key, value in
         {"limit": plan.limit, "seed": plan.seed, "n_pictures": len(chosen.pictures)}.items()}
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_test_report(Path(folder), chosen, measured.labels.numpy(), shares, task.pictures.label_names, title=name)
        recorder.log_files(Path(folder))
    recorder.log_metrics({key: value for key, value in metrics.items() if math.isfinite(value)})
    recorder.set_status(Status.COMPLETE)
    return metrics


test_model.__test__ = False  # type: ignore[attr-defined]  # not a test case


def merge_commands(train: TrainCommands, test: TestCommands) -> TrainCommands:
    """Return the attempt's train commands with what the test commands say put in.

    Raises:
        CommandsError: If they do not go together.
    """
    given = test.document()
    keys = ("data", "image_ops", "transform", "target_transform", "model", "criterion", "batch_size", "seed")
    document = train.document() | {key: given[key] for key in keys if given.get(key) is not None}
    return parse_train_commands(document)


def _check_labels_known(tested: list[str], trained: list[str]) -> None:
    known = {strip_operators(label) for label in trained}
    faults = [
        Fault(f"label_names.{index}", "is not a label of the attempt", shorten(label), nearest_name(label, known))
        for index, label in enumerate(tested)
        if strip_operators(label) not in known
    ]
    if faults:
        raise CommandsError(faults, source="the test commands")


def evaluate_attempt(test: TestCommands, *, base_dir: Path) -> tuple[str, dict[str, float]]:
    """Test an attempt that MLflow knows, as a child run; its figures go to the attempt too.

    Args:
        test: Which attempt, and on what.
        base_dir: What relative paths in the test commands are relative to.

    Returns:
        The run id of the test, and its metrics.

    Raises:
        NotFoundError: If there is no such attempt, or it has no weights.
        WeightsError: If the weights are not those that were recorded, or do not fit.
        BadInputError: If pictures or commands cannot be used.
    """
    from mlmeta.tracking.attempts import download_weights, find_attempt
    from mlmeta.tracking.runs import record_test

    attempt = find_attempt(name=test.model_name, run_id=test.run_id)
    _check_labels_known(test.label_names or [], attempt.label_names)
    commands = merge_commands(attempt.commands, test)
    folder = base_dir if test.data is not None else attempt.commands_dir
    chosen = _with_labels(commands, test.label_names or attempt.label_names)
    task = _relabel(prepare_task(chosen, base_dir=folder, training=False), attempt.label_names)
    with tempfile.TemporaryDirectory() as temporary:
        file = download_weights(attempt, Path(temporary))
        state = read_weights(file, sha256=attempt.weights_sha256)
        model = prepare_model(
            _without_weights(commands), n_labels=task.n_labels, input_shape=task.input_shape, base_dir=folder
        )
        load_weights(model, state, source=file.name)
    device = choose_device()
    criterion = prepare_criterion(commands, n_labels=task.n_labels).to(device)
    plan = TestPlan(test.limit, tuple(test.ids), commands.seed if test.seed is None else test.seed, commands.batch_size)
    with record_test(attempt, test.document()) as recorder:
        metrics = test_model(
            model.to(device), criterion, task, plan,
            form=output_form(commands.model), recorder=recorder, name=attempt.name,
        )  # fmt: skip
    return recorder.run_id, metrics


def _with_labels(commands: TrainCommands, label_names: list[str]) -> TrainCommands:
    """Return the commands with the labels to test on; the number of labels is the attempt's own."""
    return commands.model_copy(update={"label_names": label_names, "n_labels": 0})


def _without_weights(commands: TrainCommands) -> TrainCommands:
    model: Mapping[str, Any] = {key: value for key, value in commands.model.items() if key != "weights"}
    return commands.model_copy(update={"model": model})


def _relabel(task: Task, label_names: list[str]) -> Task:
    """Return the task with the label indices of the attempt, whose order the weights know."""
    index = {strip_operators(label): position for position, label in enumerate(label_names)}
    index |= {label: position for position, label in enumerate(label_names)}
    to_attempt = [index.get(label, index[strip_operators(label)]) for label in task.pictures.label_names]
    pictures = tuple(replace(picture, label=to_attempt[picture.label]) for picture in task.pictures.pictures)
    return replace(task, pictures=replace(task.pictures, label_names=tuple(label_names), pictures=pictures))


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return a test's figures on one line, for people."""
    shares = {key: value for key, value in metrics.items() if key != "test_loss"}
    words = [f"{key.replace('_', ' ')} {value:.1%}" for key, value in shares.items()]
    return ", ".join([*words, f"test loss {metrics['test_loss']:.4g}"])


def main() -> None:
    """Run ``mlmeta evaluate`` with the arguments of this process."""
    from mlmeta.cli import run_command

    run_command("evaluate")


if __name__ == "__main__":
    main()
