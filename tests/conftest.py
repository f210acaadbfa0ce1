"""What the tests share: toy pictures, a recorder in memory, a ready-made SQLite store."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Before NumPy and torch are imported, here and in the processes that tests start: several run at once, and each with as
# many threads as there are cores would wait for the others'.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from mlmeta.console import say_once
from mlmeta.status import Status


@pytest.fixture(autouse=True, scope="session")
def no_folder_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what mlmeta keeps on this machine out of the user's own folders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STATE", "CACHE"):
            patch.setenv(f"MLMETA_{name}_DIR", str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    """What an earlier test said once is said again."""
    say_once.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def interrupts_that_arrive() -> None:
    """Shells start what runs in the background with Ctrl-C ignored, and so would the tests' own processes be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class MemoryRecorder:
    """Keeps what a training records, in lists and dicts."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.metrics: list[tuple[int | None, dict[str, float]]] = []
        self.tags: dict[str, str] = {}
        self.statuses: list[Status] = []
        self.data: list[tuple[str, str]] = []
        self.files: dict[str, bytes] = {}
        self.documents: dict[str, Any] = {}

    def log_params(self, params: Mapping[str, Any]) -> None:
        self.params |= params

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def set_status(self, status: Status) -> None:
        self.statuses.append(status)

    def log_data(self, *, name: str, digest: str, source: str, context: str) -> None:
        self.data.append((context, digest))

    def log_document(self, file_name: str, document: Any) -> None:
        self.documents[file_name] = document

    def log_files(self, folder: Path) -> None:
        for file in folder.rglob("*"):
            if file.is_file():
                self.files[file.relative_to(folder).as_posix()] = file.read_bytes()


@pytest.fixture
def recorder() -> MemoryRecorder:
    return MemoryRecorder()


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8×8 pictures: red, green and blue ones, 30 each, told apart by any network that learns."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for channel, label in enumerate(("red", "green", "blue")):
        (root / label).mkdir()
        for index in range(30):
            pixels = rng.normal(90, 30, (8, 8, 3))
            pixels[:, :, channel] += 60
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / label / f"{index:02}.png")
    return root


@pytest.fixture
def toy_document(colours: Path) -> dict[str, Any]:
    """Valid train commands on the colours, small enough to train in a second."""
    return {
        "model_name": "colours",
        "label_names": ["red", "green", "blue"],
        "data": {"source": "folder", "path": str(colours)},
        "transform": {"ToTensor": True},
        "model": {
            "layers": [
                {"name": "Flatten"},
                {"name": "Linear", "in_features": "auto", "out_features": 16},
                {"name": "ReLU"},
                {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
            ]
        },
        "optimizer": {"name": "Adam", "lr": 0.02},
        "batch_size": 8,
        "n_epoch": 4,
        "validation": 0.2,
    }


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store, made once: it takes MLflow seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def store(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh store, which MLflow uses for the rest of the test."""
    import mlflow

    file = tmp_path / "mlflow.db"
    shutil.copy(store_template, file)
    uri = f"sqlite:///{file}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MLMETA_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(uri)
    return uri


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a document into a file and gives its path."""

    def write(document: Any, name: str = "commands.json") -> Path:
        file = tmp_path / name
        file.write_text(json.dumps(document), encoding="utf-8")
        return file

    return write
