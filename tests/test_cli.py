"""The command line: exit codes, one message a fault, nothing imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlmeta.cli import cli


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_train_trains_tests_and_names_the_run(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    result = invoke("train", write_json(toy_document))
    assert result.exit_code == 0, result.output
    assert "epoch 4/4" in result.stderr
    assert "accuracy" in result.stdout
    run = MlflowClient().search_runs(["0"])[0]
    assert run.info.run_id in result.stdout
    assert run.data.tags["mlmeta.status"] == "Complete"


def test_no_test_trains_only_and_evaluate_tests(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    assert invoke("train", write_json(toy_document), "--no-test").exit_code == 0
    result = invoke("evaluate", write_json({"model_name": "colours", "limit": 6}, "test.json"))
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout


def test_check_shows_the_models_table_and_trains_nothing(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    result = invoke("check", write_json(toy_document))
    assert result.exit_code == 0, result.output
    assert f"{192 * 16 + 16:,}" in result.stdout
    assert "3 labels" in result.stdout
    assert MlflowClient().search_runs(["0"]) == []


def test_pictures_that_lie_elsewhere_are_named_by_base_dir_or_set(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path], colours: Path
) -> None:
    document = {**toy_document, "data": {"source": "folder", "path": colours.name}}
    file = write_json(document)
    assert "there is no folder" in invoke("train", file).output
    changes = (f"data.path={colours}", "batch_size=5", "model.layers.1.out_features=7")
    shown = invoke("check", file, *(word for change in changes for word in ("--set", change)))
    assert "a batch has 5" in shown.stdout
    assert "1,351" in shown.stdout  # 192 x 7 + 7
    assert invoke("train", file, "--base-dir", colours.parent).exit_code == 0
    write_json({"model_name": "colours"}, "test.json")
    assert invoke("evaluate", file.with_name("test.json"), "--base-dir", colours.parent).exit_code == 0
    assert "--set goes with a commands file" in invoke("train", "--resume", "colours", "--set", "n_epoch=9").output


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("n_epoch", "must be PATH=VALUE"),
        ("model.layers.9.p=1", "there is no '9' in a list of 4"),
        ("n_epoch.x=1", "there is no 'x' in 4"),
        ("n_epoch=many", "n_epoch: must be a whole number; got 'many'"),
    ],
)
def test_a_change_that_cannot_be_made_is_told(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path], change: str, says: str
) -> None:
    result = invoke("train", write_json(toy_document), "--set", change)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize("kind", ["train", "test"])
def test_schema_is_json(kind: str) -> None:
    assert "properties" in json.loads(invoke("schema", "--kind", kind).stdout)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimiser": {}}, "Did you mean 'optimizer'?"),
        ({"model": {"layers": [{"name": "Linaer", "in_features": 1}]}}, "Did you mean 'Linear'?"),
        ({"model": {"layers": [{"name": "__class__"}]}}, "model.layers.0.name: unknown layer"),
        ({"model": {"layers": [{"name": "torch.nn.Linear"}]}}, "model.layers.0.name: unknown layer"),
        ({"model": {"layers": [{"name": "Linear", "in_features": "2*3", "out_features": 3}]}}, "a whole number"),
        (
            {"model": {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": 5, "out_features": 3}]}},
            "in_features would have to be 192, not 5",
        ),
        (
            {"model": {"layers": [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": 10**10}]}},
            "this machine has",
        ),
        ({"model": {"layers": [{"name": "Conv2d", "in_channels": 3, "out_channels": -1, "kernel_size": 3}]}}, "Conv2d"),
        ({"label_names": ["red", "grey"]}, "'grey'"),
        ({"label_names": ["red"]}, "two labels"),
        ({"data": {"source": "folder", "path": "nowhere"}}, "there is no folder"),
        ({"n_epoch": 0}, "n_epoch: must be 1 or above"),
        ({"optimizer": {"name": "SGD", "lr": -0.1}}, "optimizer.lr: must be a number above 0"),
        ({"model_name": "../colours"}, "model_name: must be a safe file name"),
        ({"model_name": "a\nb"}, "model_name: must be a safe file name"),
        ({"optimizer": {"name": "Adam", "betas": [2, 3]}}, "Invalid beta"),
        ({"criterion": {"name": "CrossEntropyLoss", "weight": [1, 2]}}, "2 entries"),
        ({"test": {"ids": ["nothing.png"]}}, "nothing.png"),
    ],
)
def test_bad_commands_get_one_message_and_exit_code_2_and_no_run(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path], changes: dict[str, Any], says: str
) -> None:
    result = invoke("train", write_json({**toy_document, **changes}))
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "there is no such file"), ("{", "line 1, column 2"), ("[]", "must be a JSON object"), ("{}", "model_name")],
)
def test_files_that_are_no_commands_get_one_message(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "commands.json"
    if content is not None:
        file.write_text(content)
    for command in ("train", "evaluate", "check"):
        result = invoke(command, file)
        assert result.exit_code == 2
        assert says in result.stderr


def test_an_unknown_attempt_cannot_be_tested(store: str, write_json: Callable[..., Path]) -> None:
    result = invoke("evaluate", write_json({"model_name": "nobody"}))
    assert result.exit_code == 2
    assert "no attempt named 'nobody'" in result.stderr


def test_a_diverged_attempt_exits_with_1(
    store: str, toy_document: dict[str, Any], write_json: Callable[..., Path]
) -> None:
    result = invoke("train", write_json({**toy_document, "optimizer": {"name": "SGD", "lr": 1e30}, "n_epoch": 20}))
    assert result.exit_code == 1
    assert "no longer a finite number" in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = invoke("train", tmp_path / "nothing.json", "--debug")
    assert result.exception is not None
    assert not isinstance(result.exception, SystemExit)


def test_a_run_that_mlflow_started_is_failed_by_a_faulty_file(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert invoke("train", tmp_path / "nothing.json").exit_code == 2
    run = MlflowClient().get_run(run_id)
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("FAILED", "Failed")


def imported_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["schema"], ["train", "faulty.json"], ["train", "nothing.json"]]
)
def test_help_and_faults_need_neither_torch_nor_mlflow(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "faulty.json").write_text('{"model_name": "x", "model": {"layers": [{"name": "Conv2D"}]}}')
    given = [str(tmp_path / part) if part.endswith(".json") else part for part in arguments]
    code = f"from mlmeta.cli import cli\ntry:\n    cli({given!r})\nexcept SystemExit:\n    pass"
    assert not {"torch", "mlflow", "sklearn", "matplotlib", "numpy"} & imported_by(code)


def test_importing_the_package_needs_no_library_at_all() -> None:
    assert not {"torch", "mlflow", "pydantic", "numpy", "PIL"} & imported_by("import mlmeta")
