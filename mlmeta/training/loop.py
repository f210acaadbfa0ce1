"""The training loop: `train_attempt` reads top to bottom and knows nothing of MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mlmeta.models.layers import forward_pictures
from mlmeta.models.optimizers import steps_per_batch
from mlmeta.training.evaluation import measure_model
from mlmeta.training.preparation import Prepared, seed_everything
from mlmeta.training.progress import EpochRecorder, Progress

Metrics = dict[str, float]


@dataclass
class Trained:
    """What a training gave: its curve, and the weights that are kept.

    Attributes:
        curve: The metrics of every epoch, the first first.
        kept_epoch: The epoch (from 1) whose weights are kept; 0 before any.
        state: Those weights, on the CPU.
        stopped: Why the training was stopped before its last epoch; empty where it was not.
        ignores_stop: Whether nothing stops it any more: it was stopped once, and somebody wants the rest.
        initial_weights: What it started from and why, as params; empty where that was not asked for.
    """

    curve: list[Metrics] = field(default_factory=list)
    kept_epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    stopped: str = ""
    ignores_stop: bool = False
    initial_weights: dict[str, Any] = field(default_factory=dict)

    @property
    def train_losses(self) -> list[float]:
        """The training loss of every epoch."""
        return [metrics["train_loss"] for metrics in self.curve]


def train_attempt(
    prepared: Prepared,
    recorder: EpochRecorder,
    *,
    trained: Trained | None = None,
    progress: Progress | None = None,
    after_epoch: Callable[[Trained], None] | None = None,
    stop: Callable[[Trained], str | None] | None = None,
    until_epoch: int | None = None,
) -> Trained:
    """Train for all epochs, recording each, and keep the weights of the best epoch or the last.

    Args:
        prepared: From `prepare_training`.
        recorder: Gets train_loss, val_loss, val_accuracy, val_predicted_labels, learning_rate, epoch_seconds and
            pictures_per_second of every epoch, with the epoch's number as the step.
        trained: What is filled in and returned; whoever holds it has the epochs so far after an exception too. With
            a curve in it (see `restore_state`) the training goes on after its last epoch.
        progress: Is told of every epoch.
        after_epoch: Called when an epoch is finished, before it is recorded: to add to its metrics, the last of the
            curve, or to save a checkpoint.
        stop: Asked after each recorded epoch but the last; a sentence ends the training, and is kept in `stopped`.
        until_epoch: Train up to this epoch only; None for all that are commanded.

    Returns:
        The curve and the kept weights. Where the loss stopped being finite, the curve ends with that epoch and
        `kept_epoch` is the best before it (0 where the first epoch diverged).
    """
    trained = Trained() if trained is None else trained
    if not trained.curve:
        seed_everything(prepared.commands.seed)
    n_epoch = prepared.commands.n_epoch
    for epoch in range(len(trained.curve) + 1, min(until_epoch or n_epoch, n_epoch) + 1):
        metrics = run_epoch(prepared, epoch)
        finish_epoch(prepared, trained, metrics)
        if after_epoch:
            after_epoch(trained)
        recorder.log_metrics(metrics, step=epoch)
        if progress:
            progress.epoch(epoch, metrics)
        if has_diverged(metrics):
            break
        if stop and epoch < n_epoch and not trained.ignores_stop and (reason := stop(trained)):
            trained.stopped = reason
            break
    return trained


def finish_epoch(prepared: Prepared, trained: Trained, metrics: Metrics) -> None:
    """Add an epoch to the curve, and keep its weights where they are the ones to keep."""
    trained.curve.append(metrics)
    if not has_diverged(metrics) and is_kept(prepared.keep, trained):
        trained.kept_epoch = len(trained.curve)
        trained.state = {key: value.detach().cpu().clone() for key, value in prepared.model.state_dict().items()}


def run_epoch(prepared: Prepared, epoch: int) -> Metrics:
    """Train on every picture once, then look at the validation pictures; return the epoch's metrics."""
    started = time.perf_counter()
    learning_rate = float(prepared.optimizer.param_groups[0]["lr"])
    metrics = {"train_loss": train_epoch(prepared, epoch), "learning_rate": learning_rate}
    seconds = time.perf_counter() - started
    if len(prepared.validation) and math.isfinite(metrics["train_loss"]):
        measured = measure_model(prepared.model, prepared.criterion, prepared.validation)
        metrics |= {"val_loss": measured.loss, "val_accuracy": measured.accuracy}
        metrics["val_predicted_labels"] = measured.n_predicted
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


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the device's memory, or the machine's, is used up."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def find_batch_size(prepared: Prepared) -> int:
    """Return the largest half, quarter, eighth, … of the batch size with which a step fits in memory; 0 for none."""
    batch_size = prepared.commands.batch_size // 2
    while batch_size:
        try:
            _try_step(prepared, batch_size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                return 0
            batch_size //= 2
        else:
            return batch_size
    return 0


def _try_step(prepared: Prepared, batch_size: int) -> None:
    pictures = torch.zeros((batch_size, *prepared.task.input_shape), device=prepared.device)
    labels = torch.zeros(batch_size, dtype=torch.int64, device=prepared.device)
    prepared.criterion(forward_pictures(prepared.model, pictures), labels).backward()
