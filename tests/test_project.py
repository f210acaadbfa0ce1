"""The project's own files agree with each other, and its entry points run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from attempt_table import read_documents
from mlflow import MlflowClient

from mlmeta.commands.parsing import load_train_commands
from mlmeta.exchange.importing import import_attempts

ROOT = Path(__file__).parent.parent
CONFIGS = sorted([*ROOT.glob("*.json"), *(ROOT / "examples").glob("*.json")])


def test_conda_installs_what_pyproject_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(item["pip"] for item in conda if isinstance(item, dict))
    assert sorted(pip) == sorted(project["dependencies"])
    assert f"python{project['requires-python']}" in conda


def test_the_version_stands_in_one_form_everywhere() -> None:
    import mlmeta

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == mlmeta.__version__


def test_config_is_a_string_in_every_entry_point() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))
    assert {"main", "train", "evaluate"} <= project["entry_points"].keys()
    entry_points = {name: point["parameters"] for name, point in project["entry_points"].items() if name != "query"}
    assert {parameters["config"]["type"] for parameters in entry_points.values()} == {"string"}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_every_example_is_valid(file: Path) -> None:
    assert load_train_commands(file).model_name


def write_documents(folder: Path) -> Path:
    """Write some of the real attempts on two tasks into a file, and return it."""
    tasks = ("digits-0", "digits-1")
    chosen = [one for one in read_documents() if one["config_id"] < 20 and one["task"]["name"] in tasks]
    file = folder / "some.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in chosen), encoding="utf-8")
    return file


@pytest.mark.slow
def test_mlflow_run_answers_a_query(store: str, tmp_path: Path) -> None:
    import_attempts([write_documents(tmp_path)])
    done = mlflow_run("-e", "query", "-P", "filter=accuracy > .9 and task = 'digits-0'", "-P", "limit=5", uri=store)
    assert done.returncode == 0, done.stderr
    (run,) = MlflowClient(store).search_runs(["0"], "tags.`mlmeta.kind` = 'query'")
    folder = MlflowClient(store).download_artifacts(run.info.run_id, "", str(tmp_path))
    assert {file.name for file in Path(folder).iterdir()} >= {"query.csv", "query.json", "query.parquet", "curves.png"}
    rows = (Path(folder) / "query.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 6
    assert "mlmeta.status" not in run.data.tags


@pytest.mark.slow
def test_mlflow_run_recommends(store: str, tmp_path: Path) -> None:
    import_attempts([write_documents(tmp_path)])
    done = mlflow_run("-e", "recommend", "-P", "config=digits.json", "-P", "number=2", uri=store)
    assert done.returncode == 0, done.stderr
    (run,) = MlflowClient(store).search_runs(["0"], "tags.`mlmeta.kind` = 'recommendation'")
    folder = Path(MlflowClient(store).download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert len((folder / "recommendations.csv").read_text(encoding="utf-8").splitlines()) == 3
    for name in ("digits-1", "digits-2"):
        assert load_train_commands(folder / "next" / f"{name}.json").model_name == name
    assert run.data.tags["mlflow.note.content"].startswith("1. ")


@pytest.mark.slow
def test_mlflow_run_tunes(toy_document: dict[str, Any], store: str, tmp_path: Path) -> None:
    config = tmp_path / "colours.json"
    config.write_text(json.dumps(toy_document | {"n_epoch": 2}), encoding="utf-8")
    done = mlflow_run("-e", "tune", "-P", f"config={config}", "-P", "attempts=2", uri=store)
    assert done.returncode == 0, done.stderr
    (run,) = MlflowClient(store).search_runs(["0"], "tags.`mlmeta.kind` = 'tuning'")
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("FINISHED", "Complete")
    assert run.data.params["config"] == str(config)
    children = MlflowClient(store).search_runs(["0"], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert len(children) == 2
    assert {child.info.status for child in children} == {"FINISHED"}


def mlflow_run(*arguments: str, uri: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": uri,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_mlflow_run_trains_and_tests_in_the_run_that_it_started(store: str, tmp_path: Path) -> None:
    document = json.loads((ROOT / "digits.json").read_text()) | {"n_epoch": 1}
    (tmp_path / "digits.json").write_text(json.dumps(document))
    done = mlflow_run("-P", f"config={tmp_path / 'digits.json'}", uri=store)
    assert done.returncode == 0, done.stderr
    runs = MlflowClient().search_runs(["0"])
    assert len(runs) == 1
    assert runs[0].info.run_name == "digits"
    assert runs[0].data.tags["mlmeta.status"] == "Complete"
    assert runs[0].data.params["config"].endswith("digits.json")


@pytest.mark.slow
def test_mlflow_run_with_a_missing_file_leaves_a_failed_run_that_says_why(store: str) -> None:
    done = mlflow_run("-P", "config=nothing.json", uri=store)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr.split("mlmeta: ")[0]
    run = MlflowClient().search_runs(["0"])[0]
    assert run.info.status == "FAILED"
    assert "there is no such file" in run.data.tags["mlflow.note.content"]
