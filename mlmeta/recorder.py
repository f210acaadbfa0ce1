"""What a training needs of the place that records it; the loop knows nothing of MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mlmeta.status import Status


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
