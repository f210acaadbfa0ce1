"""Who is told of an epoch: a bar on a terminal or plain lines in a log, and the `Recorder` that keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from mlmeta.console import ProgressBar
from mlmeta.status import Status


class Progress(Protocol):
    """Is told of every epoch that ends."""

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take the number of the epoch (from 1) and its metrics."""


class TrainingProgress(Progress, AbstractContextManager["TrainingProgress"], Protocol):
    """Shows one training, from before its first epoch till after its last."""


class EpochProgress(ProgressBar):
    """Shows the epochs of one training on standard error."""

    def __init__(self, name: str, n_epoch: int) -> None:
        super().__init__(name, n_epoch)
        self.name = name
        self.n_epoch = n_epoch

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Show the epoch's metrics."""
        line = f"{self.name}: epoch {epoch}/{self.n_epoch}  {describe_epoch(metrics)}"
        self.update(epoch, describe_epoch(metrics, short=True), line=line)


def describe_epoch(metrics: Mapping[str, float], *, short: bool = False) -> str:
    """Return an epoch's metrics in words; where it is to be short and an end is predicted, only the accuracies."""
    expected = [f"expected {_describe_expected(metrics)}"] if "expected_accuracy" in metrics else []
    accuracy = [f"val_accuracy {metrics['val_accuracy']:.1%}"] if "val_accuracy" in metrics else []
    if short and expected:
        return "  ".join([*accuracy, *expected])
    losses = [f"{key} {metrics[key]:.4f}" for key in ("train_loss", "val_loss") if key in metrics]
    return "  ".join([*losses, *accuracy, *expected, f"{metrics['epoch_seconds']:.1f} s"])


def _describe_expected(metrics: Mapping[str, float]) -> str:
    """Return the predicted end with its 90 % interval."""
    mean, low, high = (metrics[f"expected_accuracy{suffix}"] for suffix in ("", "_low", "_high"))
    return f"{mean:.1%} ({low:.1%} to {high:.1%})"


class EpochRecorder(Protocol):
    """Takes down the epochs of a training."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Record numbers, those of an epoch with its number (from 1) as the step."""


class Recorder(EpochRecorder, Protocol):
    """Takes down one attempt, or one test of it."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record values that do not change, under dotted keys."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record text that may change."""

    def set_status(self, status: Status) -> None:
        """Record the attempt's state; it must be one that may follow the state before."""

    def log_data(self, *, name: str, digest: str, source: str, context: str) -> None:
        """Record which pictures were used for what (`context`: training or test)."""

    def log_document(self, file_name: str, document: Any) -> None:
        """Record a JSON document unchanged."""

    def log_files(self, folder: Path) -> None:
        """Record every file of a folder, under its path in the folder."""
