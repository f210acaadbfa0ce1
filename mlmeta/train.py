"""Train one attempt: `train_attempt` reads top to bottom and knows nothing of MLflow.

`run_attempt` is the whole job: train, then test, recorded as one MLflow run. The MLproject entry points ``main``
and ``train`` are ``python -m mlmeta.train``.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlmeta.architecture import describe_architecture, walk_layers
from mlmeta.commands import TrainCommands
from mlmeta.criteria import Criterion
from mlmeta.documents import make_test_commands
from mlmeta.errors import AttemptFailedError, DivergedError
from mlmeta.evaluate import TestPlan, measure_model, test_model
from mlmeta.layers import forward_pictures
from mlmeta.metafeatures import describe_pictures
from mlmeta.pictures import choose_pictures
from mlmeta.plots import plot_loss_curve
from mlmeta.preparation import Task, prepare_criterion, prepare_model, prepare_task
from mlmeta.progress import EpochProgress, Progress
from mlmeta.recorder import Recorder
from mlmeta.reports import write_skipped
from mlmeta.spec_builder import build_optimizer, build_scheduler, output_form, steps_per_batch
from mlmeta.status import Status
from mlmeta.tensors import Batches, choose_device
from mlmeta.weights import save_weights

Metrics = dict[str, float]


@dataclass
class Prepared:
    """Everything that a training needs, built and checked before it starts."""

    commands: TrainCommands
    task: Task
    device: torch.device
    model: nn.Module
    criterion: Criterion
    optimizer: Optimizer
    scheduler: LRScheduler | None
    batches: Batches
    validation: Batches


@dataclass
class Trained:
    """What a training gave: its curve, and the weights that are kept.

    Attributes:
        curve: The metrics of every epoch, the first first.
        kept_epoch: The epoch (from 1) whose weights are kept; 0 before any.
        state: Those weights, on the CPU.
    """

    curve: list[Metrics] = field(default_factory=list)
    kept_epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def train_losses(self) -> list[float]:
        """The training loss of every epoch."""
        return [metrics["train_loss"] for metrics in self.curve]


def prepare_training(commands: TrainCommands, *, base_dir: Path) -> Prepared:
    """Find the pictures and build model, criterion, optimizer and scheduler.

    Raises:
        BadInputError: If anything cannot be used; nothing has been recorded by then.
    """
    seed_everything(commands.seed)
    task = prepare_task(commands, base_dir=base_dir)
    device = choose_device()
    model = prepare_model(commands, n_labels=task.n_labels, input_shape=task.input_shape, base_dir=base_dir).to(device)
    criterion = prepare_criterion(commands, n_labels=task.n_labels).to(device)
    optimizer = build_optimizer(commands.optimizer, model.parameters())
    batches = task.training_batches(batch_size=commands.batch_size, device=device)
    validation = task.batches(task.select("validation"), batch_size=commands.batch_size, device=device)
    scheduler = None
    if commands.scheduler is not None:
        scheduler = build_scheduler(
            commands.scheduler, optimizer, n_epoch=commands.n_epoch, n_batches=batches.n_batches
        )
    return Prepared(commands, task, device, model, criterion, optimizer, scheduler, batches, validation)


def seed_everything(seed: int) -> None:
    """Seed all generators that a training draws from, and ask CUDA for algorithms that repeat."""
    random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def train_attempt(
    prepared: Prepared, recorder: Recorder, *, trained: Trained | None = None, progress: Progress | None = None
) -> Trained:
    """Train for all epochs, recording each, and keep the weights of the best epoch or the last.

    Args:
        prepared: From `prepare_training`.
        recorder: Gets train_loss, val_loss, val_accuracy, learning_rate, epoch_seconds and
            pictures_per_second of every epoch, with the epoch's number as the step.
        trained: What is filled in and returned; whoever holds it has the epochs so far after an exception too.
        progress: Is told of every epoch.

    Returns:
        The curve and the kept weights. Where the loss stopped being finite, the curve ends with that epoch and
        `kept_epoch` is the best before it (0 where the first epoch diverged).
    """
    trained = Trained() if trained is None else trained
    seed_everything(prepared.commands.seed)
    for epoch in range(1, prepared.commands.n_epoch + 1):
        metrics = run_epoch(prepared, epoch)
        trained.curve.append(metrics)
        recorder.log_metrics(metrics, step=epoch)
        if progress:
            progress.epoch(epoch, metrics)
        if has_diverged(metrics):
            break
        if is_kept(prepared.commands.keep, trained):
            trained.kept_epoch = epoch
            trained.state = {key: value.detach().cpu().clone() for key, value in prepared.model.state_dict().items()}
    return trained


def run_epoch(prepared: Prepared, epoch: int) -> Metrics:
    """Train on every picture once, then look at the validation pictures; return the epoch's metrics."""
    started = time.perf_counter()
    learning_rate = float(prepared.optimizer.param_groups[0]["lr"])
    metrics = {"train_loss": train_epoch(prepared, epoch), "learning_rate": learning_rate}
    seconds = time.perf_counter() - started
    if len(prepared.validation) and math.isfinite(metrics["train_loss"]):
        measured = measure_model(prepared.model, prepared.criterion, prepared.validation)
        metrics |= {"val_loss": measured.loss, "val_accuracy": measured.accuracy}
    _step_after_epoch(prepared, metrics["train_loss"])
    metrics["epoch_seconds"] = time.perf_counter() - started
    metrics["pictures_per_second"] = len(prepared.batches) / max(seconds, 1e-9)
    return metrics


def train_epoch(prepared: Prepared, epoch: int) -> float:
    """Train on every training picture once; return the mean over pictures of the loss they were trained with."""
    model, criterion, optimizer = prepared.model, prepared.criterion, prepared.optimizer
    per_batch = prepared.scheduler if steps_per_batch(prepared.commands.scheduler) else None
    model.train()
    total = torch.zeros((), device=prepared.device)
    for pictures, labels in prepared.batches.shuffled(shuffle_seed(prepared.commands.seed, epoch)):

        def compute_loss(pictures: Tensor = pictures, labels: Tensor = labels) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = criterion(forward_pictures(model, pictures), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        # Given as a closure, so that optimizers that look at a batch more than once (LBFGS) can.
        loss = optimizer.step(compute_loss)  # type: ignore[arg-type]  # torch's stub says float
        total += criterion.batch_sum(torch.as_tensor(loss).detach().to(prepared.device), len(labels))
        if per_batch:
            per_batch.step()
    return float(total) / len(prepared.batches)


def shuffle_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch's order, so that an epoch's order does not depend on the ones before."""
    return (seed * 1_000_003 + epoch) % 2**63


def _step_after_epoch(prepared: Prepared, train_loss: float) -> None:
    scheduler = prepared.scheduler
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(train_loss)
    elif scheduler is not None and not steps_per_batch(prepared.commands.scheduler):
        scheduler.step()


def has_diverged(metrics: Mapping[str, float]) -> bool:
    """Return whether a loss is no longer a finite number."""
    return not all(math.isfinite(metrics.get(key, 0.0)) for key in ("train_loss", "val_loss"))


def is_kept(keep: str, trained: Trained) -> bool:
    """Return whether the newest epoch's weights replace the kept ones."""
    newest = trained.curve[-1]
    if keep == "last" or trained.kept_epoch == 0 or "val_loss" not in newest:
        return True
    return newest["val_loss"] < trained.curve[trained.kept_epoch - 1]["val_loss"]


def describe_task(task: Task) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the params ``task.*`` and the meta-features of a task."""
    channels, height, width = task.input_shape
    training = task.select("train")
    params = {
        "n_labels": task.n_labels,
        "n_train": len(training.pictures),
        "n_validation": len(task.select("validation").pictures),
        "n_test": len(task.select("test").pictures),
        "n_skipped": len(task.decoded.skipped),
        "height": height,
        "width": width,
        "channels": channels,
    }
    labels = [picture.label for picture in training.pictures]
    return params, describe_pictures(training.arrays, labels, n_labels=task.n_labels)


def describe_model(prepared: Prepared) -> dict[str, Any]:
    """Return the params ``arch.*`` of the built model."""
    n_parameters = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
    if layers := prepared.commands.model.get("layers"):
        return describe_architecture(walk_layers(layers), n_parameters=n_parameters)
    leaves = [(type(m).__name__, vars(m)) for m in prepared.model.modules() if not list(m.children())]
    return describe_architecture(leaves, n_parameters=n_parameters)


def run_attempt(commands: TrainCommands, *, base_dir: Path, test: bool = True) -> tuple[str, Trained, Metrics]:
    """Train an attempt and, if wanted, test it, recorded as one MLflow run.

    Args:
        commands: What to do.
        base_dir: What relative paths are relative to.
        test: Whether to test right after the training.

    Returns:
        The run id, what the training gave, and the test's metrics (empty without a test).

    Raises:
        BadInputError: If anything cannot be used, before a run is started.
        DivergedError: If the loss stopped being finite; everything up to there is recorded.
        AttemptFailedError: If the training broke.
    """
    from mlmeta import tracking

    prepared = prepare_training(commands, base_dir=base_dir)
    section = commands.test
    if test:
        # Looked at now, so that a test without pictures is refused before hours of training.
        choose_pictures(prepared.task.pictures, limit=section.limit, ids=section.ids, seed=commands.seed)
    with tracking.record_attempt(commands, base_dir=base_dir) as recorder:
        trained = _train_recorded(prepared, recorder)
        if not test:
            return recorder.run_id, trained, {}
        recorder.log_document("test_commands.json", make_test_commands(commands).document())
        prepared.model.load_state_dict(trained.state)
        plan = TestPlan(section.limit, tuple(section.ids), commands.seed, commands.batch_size)
        metrics = test_model(
            prepared.model, prepared.criterion, prepared.task, plan,
            form=output_form(commands.model), recorder=recorder, name=commands.model_name,
        )  # fmt: skip
    return recorder.run_id, trained, metrics


def _train_recorded(prepared: Prepared, recorder: Recorder) -> Trained:
    commands, pictures = prepared.commands, prepared.task.pictures
    params, features = describe_task(prepared.task)
    recorder.log_params({f"task.{key}": value for key, value in params.items()})
    recorder.log_params({f"arch.{key}": value for key, value in describe_model(prepared).items()})
    recorder.log_document("label_names.json", list(pictures.label_names))
    recorder.set_tags(
        {
            "mlmeta.task": json.dumps(features),
            "mlmeta.task_digest": pictures.task_digest,
            "mlmeta.device": str(prepared.device),
        }
    )
    recorder.log_data(name=commands.model_name, digest=pictures.digest, source=pictures.source, context="training")
    recorder.set_status(Status.TRAINING)
    trained = Trained()
    try:
        with EpochProgress(commands.model_name, commands.n_epoch) as progress:
            _train_guarded(prepared, recorder, trained, progress)
    finally:
        log_training(prepared, trained, recorder)
    if has_diverged(trained.curve[-1]):
        recorder.set_status(Status.DIVERGED)
        raise DivergedError(
            f"{commands.model_name}: the loss is no longer a finite number in epoch {len(trained.curve)}; a smaller "
            f"optimizer.lr usually helps (it was {trained.curve[-1]['learning_rate']:g}). The run keeps the curve."
        )
    recorder.set_status(Status.TRAINED)
    return trained


def _train_guarded(prepared: Prepared, recorder: Recorder, trained: Trained, progress: Progress) -> None:
    try:
        train_attempt(prepared, recorder, trained=trained, progress=progress)
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise AttemptFailedError(f"{prepared.commands.model_name}: the training broke: {reason}") from error


def log_training(prepared: Prepared, trained: Trained, recorder: Recorder) -> None:
    """Record the curve, its plot, and the kept weights, of as many epochs as there are."""
    if not trained.curve:
        return
    recorder.set_tags({"mlmeta.training_losses": json.dumps(thin_curve(trained.train_losses))})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plot_loss_curve(
            folder / "loss_curve.png",
            train_losses=trained.train_losses,
            val_losses=[metrics.get("val_loss") for metrics in trained.curve],
            val_accuracies=[metrics.get("val_accuracy") for metrics in trained.curve],
            kept_epoch=trained.kept_epoch or None,
            title=prepared.commands.model_name,
            chance_loss=chance_loss(prepared),
        )
        if prepared.task.decoded.skipped:
            write_skipped(folder / "skipped_pictures.csv", prepared.task.decoded.skipped)
        if trained.state:
            sha256 = save_weights(trained.state, folder / "models", prepared.commands.model_name)
            recorder.set_tags({"mlmeta.weights_sha256": sha256, "mlmeta.kept_epoch": str(trained.kept_epoch)})
        recorder.log_files(folder)


def chance_loss(prepared: Prepared) -> float | None:
    """Return the loss of guessing, ln K, where the criterion is one that it is known for."""
    return math.log(prepared.task.n_labels) if prepared.commands.criterion["name"] == "CrossEntropyLoss" else None


def thin_curve(values: list[float], *, max_characters: int = 8000) -> list[float | None]:
    """Return a curve short enough for a tag: every k-th value and the last; what is not finite is null."""
    rounded = [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
    every = 1
    while len(json.dumps(kept := _every(rounded, every))) > max_characters:
        every += 1
    return kept


def _every(values: list[float | None], every: int) -> list[float | None]:
    if every == 1 or not values:
        return values
    return [*values[:-1:every], values[-1]]


def main() -> None:
    """Run ``mlmeta train`` with the arguments of this process."""
    from mlmeta.cli import run_command

    run_command("train")


if __name__ == "__main__":
    main()
