"""Situations out of bug reports in which a training used to go wrong without a word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from mlmeta.cli import cli
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.reports import attempt_plots
from mlmeta.training.learning_curves import Forecast

LINEAR = [
    {"name": "Flatten"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]

# Outputs that are all but even, and outputs that always say one label.
EVEN = [{"name": "AvgPool2d", "kernel_size": 12}, *LINEAR, *[{"name": "Softmax", "dim": 1}] * 4]
LOPSIDED = [{"name": "AvgPool2d", "kernel_size": 12}, {"name": "Hardtanh", "min_val": 50.0, "max_val": 51.0}, *LINEAR]
SMALL_STEPS = {"name": "SGD", "lr": 1e-12}
GUESSED = "train_loss stays at that of guessing, 0.69"


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


def write_parts(folder: Path, *, n_validation: int, **changed: Any) -> Path:
    """Write a case whose pictures stand in parts, so many of them for validation; return its file."""
    file = write_case(folder, n_pictures=30, **changed)
    pictures = sorted(folder.glob("pictures/*/*.png"), key=lambda picture: (picture.name, picture.parent.name))
    for number, picture in enumerate(pictures):
        part = "val" if number < n_validation else "test" if number % 3 == 0 else "train"
        target = folder / "parts" / part / picture.parent.name / picture.name
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.rename(target)
    document = json.loads(file.read_text(encoding="utf-8")) | {"data": {"source": "folder", "path": "parts"}}
    file.write_text(json.dumps(document), encoding="utf-8")
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


NORMED = [
    {"name": "Flatten"},
    {"name": "Linear", "in_features": "auto", "out_features": 8},
    {"name": "BatchNorm1d", "num_features": "auto"},
    {"name": "Linear", "in_features": "auto", "out_features": "n_labels"},
]
POOLED = {"name": "AdaptiveAvgPool2d", "output_size": 1}
ALONE = "more than one picture at a time where"


@pytest.mark.parametrize("command", ["check", "train"])
def test_batch_normalisation_of_single_pictures_is_refused(command: str, store: str, tmp_path: Path) -> None:
    result = call(command, write_case(tmp_path, model={"layers": NORMED}, batch_size=1))
    assert result.exit_code == 2
    assert f"model.layers.2: BatchNorm1d needs {ALONE} (n, 8) arrives, but batch_size is 1" in result.stderr
    assert count_runs() == 0


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        ({"name": "Residual", "layers": [POOLED, {"name": "BatchNorm2d", "num_features": "auto"}]}, "0.layers.1"),
        ({"name": "Sequential", "layers": [POOLED, {"name": "GroupNorm", "num_groups": 3, "num_channels": 3}]},
         "0.layers.1"),
    ],
)  # fmt: skip
def test_the_layer_that_refuses_a_single_picture_is_named(layer: dict[str, Any], place: str, tmp_path: Path) -> None:
    result = call("check", write_case(tmp_path, model={"layers": [layer, *LINEAR]}, batch_size=1))
    assert result.exit_code == 2
    assert f"model.layers.{place}: " in result.stderr
    assert f"Norm{'' if 'GroupNorm' in str(layer) else '2d'} needs {ALONE} (n, 3, 1, 1) arrives" in result.stderr


def test_a_layer_of_a_torchvision_model_is_named_too(tmp_path: Path) -> None:
    result = call("check", write_case(tmp_path, model={"name": "resnet18"}, batch_size=1))
    assert result.exit_code == 2
    assert (
        "model.layer3.0.bn1: BatchNorm2d needs" in result.stderr or "model.layer4.0.bn1: BatchNorm2d" in result.stderr
    )


def test_a_single_validation_picture_is_refused_where_a_layer_needs_two(tmp_path: Path) -> None:
    normed = [POOLED, {"name": "BatchNorm2d", "num_features": "auto", "track_running_stats": False}, *LINEAR]
    file = write_parts(tmp_path, n_validation=1, model={"layers": normed})
    result = call("check", file)
    assert result.exit_code == 2
    assert f"BatchNorm2d needs {ALONE} (n, 3, 1, 1) arrives, but there is only 1 validation picture" in result.stderr


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 1},
        {"model": {"layers": NORMED}, "batch_size": 23},
        {"model": {"layers": NORMED}, "batch_size": 1, "transform": [{"FiveCrop": {"size": 8}}]},
    ],
)
def test_what_can_be_trained_on_single_pictures_is_trained(changed: dict[str, Any], store: str, tmp_path: Path) -> None:
    result = call("train", write_case(tmp_path, **changed, n_epoch=1))
    assert result.exit_code == 0, result.output


def test_labels_in_any_script_are_told_apart_in_plots(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    save = attempt_plots.save_plot

    def save_and_keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(attempt_plots, "save_plot", save_and_keep)
    labels = ["\u0e01", "\u72ac", "\u732b"]
    assert call("train", write_case(tmp_path, labels)).exit_code == 0
    (matrix,) = [figure for figure in figures if figure.axes and figure.axes[0].get_ylabel() == "true label"]
    shown = [label.get_text() for label in matrix.axes[0].get_yticklabels()]
    note = matrix.get_supxlabel()
    for place, (text, label) in enumerate(zip(shown, labels, strict=True), start=1):
        assert text == label or (text == f"no. {place}" and "per_class.csv" in note)


def test_three_validation_pictures_leave_a_wide_interval() -> None:
    low, high = Forecast(1.0, 0.0, 1.0, n_pictures=3).interval
    assert (low, high) == (pytest.approx(0.526, abs=0.001), 1.0)
    assert Forecast(1.0, 0.0, 1.0).interval == (1.0, 1.0)


@given(mean=st.floats(0, 1), std=st.floats(0, 0.5), reached=st.floats(0, 1), n_pictures=st.integers(1, 100_000))
def test_an_interval_holds_its_mean_and_narrows_with_pictures(
    mean: float, std: float, reached: float, n_pictures: int
) -> None:
    low, high = Forecast(max(mean, reached), std, reached, n_pictures).interval
    assert -1e-9 <= low <= max(mean, reached) + 1e-9
    assert max(mean, reached) - 1e-9 <= high <= 1
    more_low, more_high = Forecast(max(mean, reached), std, reached, 4 * n_pictures).interval
    assert more_high - more_low <= high - low + 1e-9


KEPT_LAST = "keep: 3 validation pictures are too few to choose the best epoch by (20 are needed)"


@pytest.mark.parametrize(
    ("keep", "line"),
    [
        ({}, f"{KEPT_LAST}: the weights of the last are kept"),
        ({"keep": "best"}, f"{KEPT_LAST}, which the commands ask for"),
        ({"keep": "last"}, ""),
    ],
)
def test_by_few_validation_pictures_no_epoch_is_chosen(
    keep: dict[str, str], line: str, store: str, tmp_path: Path
) -> None:
    file = write_parts(tmp_path, n_validation=3, n_epoch=5, optimizer={"name": "Adam", "lr": 5.0}, **keep)
    checked, trained = call("check", file), call("train", file)
    for output in (checked.output, trained.stderr):
        assert [one.removeprefix("mlmeta: ") for one in output.splitlines() if "keep:" in one] == (
            [line] if line else []
        )
    from mlflow import MlflowClient

    (run,) = MlflowClient().search_runs(["0"])
    losses = [metric.value for metric in MlflowClient().get_metric_history(run.info.run_id, "val_loss")]
    best = 1 + losses.index(min(losses))
    assert best < 5
    assert run.data.tags["mlmeta.kept_epoch"] == str(best if keep == {"keep": "best"} else 5)


def test_by_twenty_validation_pictures_the_best_epoch_is_kept(tmp_path: Path) -> None:
    assert "keep:" not in call("check", write_parts(tmp_path, n_validation=20)).output


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"model": {"layers": EVEN}}, GUESSED),
        ({"model": {"layers": [*EVEN, {"name": "LogSoftmax"}]}, "criterion": {"name": "NLLLoss"}}, GUESSED),
        ({"model": {"layers": [*EVEN, {"name": "LogSoftmax"}]}, "criterion": {"name": "KLDivLoss"}}, GUESSED),
        ({"model": {"layers": LOPSIDED}}, "all 20 validation pictures are taken for one label"),
    ],
)
def test_learning_nothing_is_said_once_while_it_can_be_helped(
    changed: dict[str, Any], why: str, store: str, tmp_path: Path
) -> None:
    changed |= {"optimizer": SMALL_STEPS, "scheduler": None}
    result = call("train", write_parts(tmp_path, n_validation=20, n_epoch=12, **changed))
    lines = result.stderr.splitlines()
    told = [place for place, line in enumerate(lines) if "learns nothing so far" in line]
    assert len(told) == 1
    assert f"mlmeta: case: learns nothing so far: {why}" in lines[told[0]]
    assert "epoch 3/12" in lines[told[0] + 1]


def test_a_training_that_learns_is_not_told_otherwise(store: str, tmp_path: Path) -> None:
    result = call("train", write_parts(tmp_path, n_validation=20, n_epoch=12))
    assert "learns nothing" not in result.stderr
