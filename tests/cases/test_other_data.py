"""A test on data of its own: all of them are tested, some of the labels are enough, and others are accounted for."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlmeta.cli import cli


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(store_template: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that has the attempt ``colours``."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(store_template, folder / "mlflow.db")
    linear = {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}
    document = {
        "model_name": "colours", "label_names": ["red", "green", "blue"],
        "data": {"source": "folder", "path": str(colours)},
        "model": {"layers": [{"name": "Flatten"}, linear]}, "optimizer": {"name": "Adam", "lr": 0.02}, "n_epoch": 1,
    }  # fmt: skip
    (folder / "train.json").write_text(json.dumps(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        assert invoke("train", folder / "train.json", "--no-test").exit_code == 0
    return folder


@pytest.fixture
def folder(trained: Path, colours: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained}/mlflow.db")
    shutil.rmtree(trained / "other", ignore_errors=True)
    shutil.copytree(colours, trained / "other")
    return trained


def evaluate(folder: Path, **more: Any) -> tuple[Result, list[dict[str, str]]]:
    """Return what testing the pictures in ``other`` says, and the rows of predictions.csv."""
    document = {"model_name": "colours", "data": {"source": "folder", "path": "other"}, **more}
    (folder / "test.json").write_text(json.dumps(document))
    result = invoke("evaluate", folder / "test.json")
    if result.exit_code:
        return result, []
    run_id = result.stdout.split("run ")[1].split()[0]
    file = MlflowClient().download_artifacts(run_id, "predictions.csv", str(folder))
    with Path(file).open(encoding="utf-8", newline="") as stream:
        return result, list(csv.DictReader(stream))


def test_all_of_other_data_is_tested_and_its_number_said(folder: Path) -> None:
    result, rows = evaluate(folder)
    assert len(rows) == 90
    assert "3 labels; 0 training, 0 validation, 90 test pictures" in result.stderr


@pytest.mark.parametrize("more", [{}, {"label_names": ["green"]}])
def test_pictures_of_one_label_are_enough(folder: Path, more: dict[str, Any]) -> None:
    for label in ("red", "blue"):
        shutil.rmtree(folder / "other" / label)
    _, rows = evaluate(folder, **more)
    assert {row["label"] for row in rows} == {"green"}
    assert len(rows) == 30


def test_a_part_that_is_named_test_is_what_is_tested_of_other_data(folder: Path) -> None:
    for label in ("red", "green", "blue"):
        for index in range(30):
            file = folder / "other" / label / f"{index:02}.png"
            target = folder / "other" / ("test_set" if index < 7 else "training_set") / label / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
        (folder / "other" / label).rmdir()
    result, rows = evaluate(folder)
    assert len(rows) == 21
    assert "69 left out: 69 not in the test part" in result.stderr


def test_labels_that_the_attempt_does_not_know_are_left_out_and_said(folder: Path) -> None:
    (folder / "other" / "red").rename(folder / "other" / "pink")
    result, rows = evaluate(folder)
    assert len(rows) == 60
    assert "30 left out: 30 of a label that is not asked for" in result.stderr
    for label in ("green", "blue"):
        shutil.rmtree(folder / "other" / label)
    refused, _ = evaluate(folder)
    assert refused.exit_code == 2
    assert "no label of folder" in refused.output
    assert "('pink') is one of the attempt's ('red', 'green', 'blue')" in refused.output
