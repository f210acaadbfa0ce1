"""The commands import and export as a user meets them: what is printed, where, and the exit code."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from attempt_table import read_documents
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlmeta.exchange.cli import COMMANDS, ImportBar
from mlmeta.exchange.importing import ImportResult, import_attempts


def call(*arguments: str) -> Result:
    group = click.Group(commands={str(command.name): command for command in COMMANDS})
    return CliRunner().invoke(group, list(arguments))


def write_lines(*documents: Any, name: str = "a.jsonl") -> str:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in documents]
    Path(name).write_text("\n".join(lines), encoding="utf-8")
    return name


@pytest.mark.usefixtures("store")
def test_documents_go_in_and_come_out_as_json_lines() -> None:
    file = write_lines(*read_documents()[:3])
    result = call("import", file)
    assert (result.exit_code, result.stdout) == (0, "3 imported\n")
    assert call("import", file).stdout == "0 imported, 3 known already\n"
    exported = call("export", "--all")
    assert exported.exit_code == 0
    assert sorted(exported.stdout.splitlines()) == sorted(Path(file).read_text(encoding="utf-8").splitlines())
    assert exported.stderr == ""


@pytest.mark.usefixtures("store")
def test_tasks_without_pictures_are_told_in_one_line() -> None:
    result = call("import", write_lines(*read_documents()[::100]))
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if "% read" not in line]
    assert "tasks were imported without meta-features" in line
    assert "--pictures" in line


@pytest.mark.usefixtures("store")
def test_pictures_are_found_where_the_option_says(toy_document: dict[str, Any], colours: Path) -> None:
    commands = {**toy_document, "data": {"source": "folder", "path": colours.name}}
    file = write_lines({"name": "x", "training_commands": commands})
    result = call("import", file, "--pictures", str(colours.parent), "--experiment", "here")
    assert (result.exit_code, result.stderr) == (0, "")
    experiment = MlflowClient().get_experiment_by_name("here")
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    assert run.data.tags["mlmeta.task_source"] == "pictures"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("documents", "others", "exit_code"),
    [
        ([read_documents()[0], "{"], [], 1),
        (['{"', "[]"], [], 2),
        ([read_documents()[0]], ["missing.jsonl"], 2),
    ],
)
def test_the_exit_code_tells_how_much_was_bad(documents: list[Any], others: list[str], exit_code: int) -> None:
    result = call("import", write_lines(*documents), *others)
    assert result.exit_code == exit_code


@pytest.mark.usefixtures("store")
def test_faults_are_listed_to_the_twentieth_and_counted_beyond() -> None:
    result = call("import", write_lines(*['{"'] * 25, read_documents()[0]))
    assert result.exit_code == 1
    assert result.stdout == "1 imported, 25 left out\n"
    faults = [line for line in result.stderr.splitlines() if "is not JSON" in line]
    assert [fault.split(":")[1] for fault in faults] == [f" a.jsonl, line {number}" for number in range(1, 21)]
    assert result.stderr.splitlines()[-1] == "mlmeta: … and 5 more"


def test_a_log_gets_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    moments = itertools.count(0, 3)
    monkeypatch.setattr("time.monotonic", lambda: float(next(moments)))
    with ImportBar() as bar:
        for number in range(1000):
            bar.advance(number / 1000, ImportResult(n_new=number))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "mlmeta: 10% read, 100 imported"
    assert len(lines) == 9


@pytest.mark.usefixtures("store")
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with ImportBar() as bar:
        import_attempts([write_lines(*read_documents()[:2], "{")], progress=bar)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "2 imported, 1 left out" in shown


@pytest.mark.usefixtures("store")
def test_columns_are_mapped_on_the_command_line() -> None:
    write_lines("Name,Learning rate,acc", "x,0.1,0.9", name="runs.csv")
    mapping = ["--map", "Learning rate=training_commands.optimizer.lr", "--map", "acc=accuracy"]
    assert call("import", "runs.csv", *mapping).exit_code == 0
    (run,) = MlflowClient().search_runs(["0"])
    assert run.data.params == {"optimizer.lr": "0.1"}
    assert run.data.metrics == {"accuracy": 0.9}


@pytest.mark.usefixtures("store")
def test_a_mapping_that_is_none_is_bad_input() -> None:
    result = call("import", write_lines("Name", "x", name="runs.csv"), "--map", "Name")
    assert result.exit_code == 2
    assert "column=field" in result.stderr


@pytest.mark.usefixtures("store")
def test_a_dry_run_says_what_would_be() -> None:
    result = call("import", write_lines(*read_documents()[:2]), "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "2 would be imported\n")
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_the_output_is_written_whole_or_not_at_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call("import", write_lines(*read_documents()[:2]))
    result = call("export", "--all", "--output", name)
    assert (result.exit_code, result.stdout) == (0, "")
    content = Path(name).read_bytes()
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode()
    assert {json.loads(line)["id"] for line in text.splitlines()} == {row["id"] for row in read_documents()[:2]}
    monkeypatch.setattr("mlmeta.exchange.exporting.read_document", _break)
    assert call("export", "--all", "--output", name).exit_code == 1
    assert Path(name).read_bytes() == content
    assert [file.name for file in Path().glob(".out*")] == []


def _break(*_: Any) -> None:
    raise RuntimeError("the power failed")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "there is no attempt named 'nobody'"),
        ([], "not both"),
        (["--all", "--output", "nowhere/x.jsonl"], "the folder of nowhere/x.jsonl is not there"),
        (["--all", "--experiment", "none"], "no experiment 'none'"),
    ],
)
def test_an_export_that_cannot_be_made_is_bad_input(arguments: list[str], message: str) -> None:
    result = call("export", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_commands_load_neither_mlflow_nor_torch_nor_pandas() -> None:
    program = "import sys, mlmeta.exchange.cli; print([n for n in ('mlflow', 'torch', 'pandas') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
