"""Attempts that are interrupted, terminated and killed, and what is left of them: all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

PROGRAM = Path(__file__).parent / "attempts_in_processes.py"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")]


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "state"


def run_program(mode: str, config: Path, number: int) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), mode, str(config), str(number)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr})


def attempts(status: str | None = None) -> list[Run]:
    runs = MlflowClient().search_runs(["0"], order_by=["attributes.start_time"])
    return [run for run in runs if status in (None, run.data.tags.get("mlmeta.status"))]


def curve(run: Run, key: str) -> list[tuple[int, float]]:
    history = MlflowClient().get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in history)


def test_twenty_kills_lose_nothing_and_change_no_digit(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path], state_folder: Path
) -> None:
    transform = [{"RandomHorizontalFlip": {"p": 0.5}}, "ToTensor"]
    config = write_json({**toy_document, "n_epoch": 60, "transform": transform})
    result = run_program("kill", config, 20)
    assert result["kills"] >= 20
    assert result["failures"] == [], result["stderr"]
    reference = run_program("together", config, 1)
    assert reference["exit_codes"] == [0]
    complete = attempts("Complete")
    whole = complete[-1]
    assert len(complete) >= 2
    for run in complete:
        assert curve(run, "train_loss") == curve(whole, "train_loss")
        assert curve(run, "val_loss") == curve(whole, "val_loss")
        assert run.data.metrics["accuracy"] == whole.data.metrics["accuracy"]
        assert run.data.tags["mlmeta.weights_sha256"] == whole.data.tags["mlmeta.weights_sha256"]
    assert [step for step, _ in curve(whole, "train_loss")] == list(range(1, 61))
    assert run_cli("recover").returncode == 0
    left = {file.stem for file in (state_folder / "checkpoints").iterdir()}
    assert not {run.info.run_id: (run.info.status, run.data.tags) for run in attempts() if run.info.run_id in left}
    assert not left


def test_eight_attempts_at_once_on_a_new_store_all_end_well(
    toy_document: dict[str, Any], write_json: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    uri = f"sqlite:///{tmp_path / 'new.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(uri)
    result = run_program("together", write_json({**toy_document, "n_epoch": 10}), 8)
    assert result["exit_codes"] == [0] * 8, result["stderr"]
    assert "locked" not in result["stderr"]
    assert [len(curve(run, "train_loss")) for run in attempts("Complete")] == [10] * 8


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mlmeta", *arguments], capture_output=True, text=True)


def start_cli(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlmeta", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_epoch(process: subprocess.Popen[str], epoch: int) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if f"epoch {epoch}/" in line:
            return
    pytest.fail("the training ended early")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_an_attempt_as_interrupted_and_it_can_go_on(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path], number: signal.Signals
) -> None:
    config = write_json({**toy_document, "n_epoch": 3000})
    process = start_cli("train", str(config))
    wait_for_epoch(process, 20)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    (run,) = attempts()
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("KILLED", "Interrupted")
    n_before = len(curve(run, "train_loss"))
    assert n_before >= 20
    resumed = start_cli("train", "--resume", "colours")
    wait_for_epoch(resumed, n_before + 5)
    resumed.send_signal(signal.SIGTERM)
    resumed.communicate()
    (run,) = attempts()
    steps = [step for step, _ in curve(run, "train_loss")]
    assert len(steps) > n_before
    assert steps == list(range(1, len(steps) + 1))


def test_recover_finds_a_killed_attempt_and_leaves_a_living_one_alone(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    killed = start_cli("train", str(write_json({**toy_document, "n_epoch": 3000, "model_name": "killed"}, "a.json")))
    living = start_cli("train", str(write_json({**toy_document, "n_epoch": 30000, "model_name": "living"}, "b.json")))
    wait_for_epoch(killed, 5)
    wait_for_epoch(living, 5)
    killed.kill()
    killed.communicate()
    recovered = run_cli("recover")
    assert recovered.returncode == 0
    assert "killed: marked Interrupted; go on with: mlmeta train --resume" in recovered.stdout
    assert "living" not in recovered.stdout
    states = {run.info.run_name: run.data.tags["mlmeta.status"] for run in attempts()}
    assert states == {"killed": "Interrupted", "living": "Training"}
    living.send_signal(signal.SIGTERM)
    living.communicate()


def test_a_complete_attempt_cannot_be_resumed(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    assert run_cli("train", str(write_json(toy_document))).returncode == 0
    refused = run_cli("train", "--resume", "colours")
    assert refused.returncode == 2
    assert "Complete" in refused.stderr
    assert "Traceback" not in refused.stderr
