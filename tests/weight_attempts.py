"""Small real attempts whose weights may carry over: tasks of drawn 8×8 pictures, in a store made once."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.parsing import parse_train_commands

SIZE = 8
STRIPES = ("rows", "columns", "diagonal", "checks")
N_PICTURES = 30


def draw_stripes(root: Path, *, prefix: str = "", size: int = SIZE, seed: int = 0) -> Path:
    """Write a folder of grey, noisy patterns; `prefix` stands before the labels' names."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    patterns = {"rows": y // 2, "columns": x // 2, "diagonal": (x + y) // 2, "checks": x + y}
    for label in STRIPES:
        pictures = []
        for _ in range(N_PICTURES):
            on = (patterns[label] + rng.integers(0, 2)) % 2
            pictures.append((rng.normal(100, 40, (size, size, 1)) + 70 * on[..., None]).repeat(3, axis=2))
        _save(root / f"{prefix}{label}", pictures)
    return root


def draw_hues(root: Path) -> Path:
    """Write a folder of pictures without any pattern, told apart by their colour alone."""
    rng = np.random.default_rng(1)
    for channel, label in enumerate(("red", "green", "blue")):
        pictures = rng.normal(90, 30, (N_PICTURES, SIZE, SIZE, 3))
        pictures[..., channel] += 60
        _save(root / label, list(pictures))
    return root


def _save(folder: Path, pictures: Sequence[np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(pictures):
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{index:02}.png")


def make_commands(name: str, folder: Path, **changes: Any) -> TrainCommands:
    """Return commands of two small convolutions on all labels of a folder."""
    conv = {"name": "Conv2d", "in_channels": "auto", "out_channels": 12, "kernel_size": 3, "padding": 1}
    document = {
        "model_name": name,
        "label_names": sorted(path.name for path in folder.iterdir()),
        "data": {"source": "folder", "path": str(folder)},
        "transform": {"ToTensor": True, "Normalize": {"mean": [0.5], "std": [0.2]}},
        "model": {
            "layers": [
                conv, {"name": "BatchNorm2d", "num_features": "auto"}, {"name": "ReLU"},
                conv, {"name": "ReLU"}, {"name": "AdaptiveMaxPool2d", "output_size": 1}, {"name": "Flatten"},
                {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
            ]
        },
        "optimizer": {"name": "Adam", "lr": 0.01},
        "scheduler": None,
        "batch_size": 8,
        "n_epoch": 3,
        "validation": 0.3,
    }  # fmt: skip
    return parse_train_commands({**document, **changes})


def make_past_store(folder: Path, template: Path) -> Path:
    """Return a store with three trainings: on stripes, on hues, and on stripes of 12×12 pixels.

    Args:
        folder: Gets pictures (``stripes``, ``hues``, ``large``), artifacts and the store.
        template: An empty store.
    """
    import mlflow

    from mlmeta.train import run_attempt

    shutil.copy(template, folder / "mlflow.db")
    tasks = {
        "stripes": draw_stripes(folder / "stripes"),
        "hues": draw_hues(folder / "hues"),
        "large": draw_stripes(folder / "large", size=12, seed=2),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        for name, pictures in tasks.items():
            run_attempt(make_commands(name, pictures, n_epoch=12), base_dir=Path(), test=False)
        with contextlib.closing(sqlite3.connect("mlflow.db")) as connection:
            # The newest rows lie in a second file beside it.
            connection.execute("VACUUM INTO 'whole.db'")
    return folder / "whole.db"


def find_run_id(name: str, *, without: Sequence[str] = ()) -> str:
    """Return the run id of the newest attempt of a name in the store in use, but for some."""
    from mlmeta.tracking.attempts import newest_runs
    from mlmeta.tracking.store import open_client

    return next(run.info.run_id for run in newest_runs(open_client(), name) if run.info.run_id not in without)


def read_params(run_id: str) -> dict[str, str]:
    """Return the params of a run that tell of its initial weights, without their prefix."""
    from mlflow import MlflowClient

    params = MlflowClient().get_run(run_id).data.params
    return {key.partition(".")[2]: params[key] for key in params if key.startswith("initial_weights.")}
