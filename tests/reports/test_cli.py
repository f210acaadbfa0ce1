"""The commands that ask about attempts: what they print, write and refuse."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from attempt_table import make_table
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from PIL import Image

import mlmeta.history.loading
from mlmeta.reports.cli import COMMANDS, query, write_query_note

CLI = click.Group("mlmeta", commands=COMMANDS)
TASK = "omniglot-Latin"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(CLI, [str(argument) for argument in arguments])


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    result = invoke(*arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


@pytest.fixture
def attempts(store: str) -> str:
    """A store with six attempts on two tasks."""
    client = MlflowClient()
    for number in range(6):
        tags = {"mlmeta.kind": "attempt", "mlmeta.status": "Complete", "mlmeta.task_digest": f"{number % 2}" * 64}
        run = client.create_run("0", run_name=f"m{number}", tags=tags, start_time=1_790_000_000_000 + number)
        params = [Param("optimizer.lr", str(10.0**-number)), Param("data.name", f"task-{number % 2}"), Param("n", "3")]
        losses = RunTag("mlmeta.training_losses", json.dumps([1.0, 0.5 / (number + 1)]))
        client.log_batch(run.info.run_id, [Metric("accuracy", 0.4 + number / 10, 0, 0)], params, [losses])
        client.set_terminated(run.info.run_id, end_time=1_790_000_060_000 - 1_000 * number)
    return store


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch, store: str) -> pd.DataFrame:
    """832 real attempts, as if a store had them."""
    table = make_table()
    monkeypatch.setattr(mlmeta.history.loading, "load_attempts", lambda **_: table)
    return table


def test_query_prints_a_plain_table_into_a_pipe(attempts: str) -> None:
    result = invoke("query", "optimizer.lr < 1e-3 or accuracy = .4", "--order-by", "accuracy desc", "--limit", 2)
    assert result.exit_code == 0, result.output
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["model_name", "task", "status", "accuracy", "optimizer.lr", "data.name"]
    assert [line.split()[0] for line in lines] == ["m5", "m4"]


def test_query_gives_the_columns_that_are_named(attempts: str) -> None:
    rows = rows_of("query", "model_name = 'm3'", "--columns", "metrics.accuracy, `optimizer.lr`,tags.mlmeta.kind")
    assert rows == [{"accuracy": 0.7, "optimizer.lr": 0.001, "tags.mlmeta.kind": "attempt"}]


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_query_writes_files_in_every_format(attempts: str, form: str, tmp_path: Path) -> None:
    file = tmp_path / f"found.{form}"
    assert invoke("query", "--output", file).stdout == ""
    readers = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}
    assert readers[form](file)["model_name"].tolist() == ["m5", "m4", "m3", "m2", "m1", "m0"]
    piped = CliRunner().invoke(CLI, ["query", "--format", form]).stdout_bytes
    assert piped == file.read_bytes()


def test_query_says_when_nothing_is_found(attempts: str) -> None:
    result = invoke("query", "accuracy > 2")
    assert result.exit_code == 0
    assert result.stderr.startswith("mlmeta: none of 6 attempts is so; ")
    assert result.stdout.startswith("model_name")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["query", "acuracy > .5"], "Did you mean 'accuracy'?\n  acuracy > .5\n  ^\n"),
        (["query", "accuracy >"], "filter, character 11: expected a number"),
        (["query", "--order-by", "acuracy"], "order_by, character 1"),
        (["query", "--columns", "a b"], "columns, character 3"),
        (["query", "--experiment", "Defalt"], "Did you mean 'Default'"),
        (["query", "--output", "no/such/folder.csv"], "cannot be written"),
        (["compare", "m1"], "2 to 100 different attempts"),
        (["compare", "m1", "m9"], "no attempt 'm9'"),
        (["curves", "--metric", "val_los"], "none of these attempts has 'val_los' by epoch"),
        (["curves", "m1", "--plot", "no/such/folder.png"], "cannot be written"),
        (["leaderboard", "task-2"], "no task 'task-2'. Did you mean 'task-"),
        (["leaderboard", "--metric", "acc"], "no column 'acc'"),
        (["importance", "--task", "task-1"], "20"),
        (["importance", "acuracy"], "Did you mean 'accuracy'"),
        (["similar", "task-2"], "no task 'task-2'"),
        (["report", "--task", "task-2"], "no task 'task-2'"),
        (["report", "--output", "no/such/folder.html"], "cannot be written"),
    ],
)  # fmt: skip
def test_faults_end_in_one_message(attempts: str, arguments: list[str], says: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("mlmeta: ")
    assert says in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [["query"], ["compare", "a", "b"], ["curves"], ["importance"], ["leaderboard"], ["similar", "a"], ["report"]],
)
def test_an_empty_history_says_how_to_begin(store: str, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "there are no attempts yet; make the first one with `mlmeta train digits.json`" in result.stderr


def test_full_reads_again_what_was_edited_by_hand(attempts: str) -> None:
    client = MlflowClient()
    run_id = rows_of("query", "model_name = 'm3'")[0]["run_id"]
    client.set_tag(run_id, "mlmeta.status", "Failed")
    assert [row["model_name"] for row in rows_of("query", "status = 'Failed'", "--full")] == ["m3"]
    client.log_metric(run_id, "by_hand", 0.5)
    for arguments in (["query", "by_hand = 0.5"], ["leaderboard", "--metric", "by_hand"], ["query", "accuracy > 2"]):
        offered = invoke(*arguments)
        assert "is seen with --full" in offered.stderr.splitlines()[-1], arguments
    assert [row["model_name"] for row in rows_of("query", "by_hand = 0.5", "--full")] == ["m3"]
    assert "--full" not in invoke("query", "no_such = 1", "--full").output


def test_only_named_experiments_are_searched(attempts: str) -> None:
    client = MlflowClient()
    other = client.create_experiment("other")
    client.set_terminated(client.create_run(other, run_name="x", tags={"mlmeta.kind": "attempt"}).info.run_id)
    assert [row["model_name"] for row in rows_of("query", "--experiment", "other")] == ["x"]
    assert len(rows_of("query", "--experiment", "other", "--experiment", "Default")) == 7
    assert len(rows_of("query")) == 7


def test_compare_shows_what_differs(attempts: str) -> None:
    rows = {row["field"]: row for row in rows_of("compare", "m1", "m5")}
    assert rows["accuracy"] == {"field": "accuracy", "m5": 0.9, "m1": 0.5, "best": "m5"}
    assert rows["optimizer.lr"]["m1"] == 0.1
    assert "n" not in rows
    assert "n" in {row["field"] for row in rows_of("compare", "m1", "m5", "--all")}


def test_curves_are_printed_and_drawn(attempts: str, tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    rows = rows_of("curves", "m1", "m2", "--plot", plot)
    assert [(row["model_name"], row["step"], row["value"]) for row in rows] == [
        ("m1", 1, 1.0), ("m1", 2, 0.25), ("m2", 1, 1.0), ("m2", 2, 0.5 / 3),
    ]  # fmt: skip
    with Image.open(plot) as picture:
        assert picture.size[0] > 500
    assert {row["model_name"] for row in rows_of("curves", "--filter", "accuracy > .75")} == {"m4", "m5"}


def test_a_leaderboard_is_printed(attempts: str) -> None:
    assert [row["model_name"] for row in rows_of("leaderboard", "task-1")] == ["m5", "m3", "m1"]
    assert [row["model_name"] for row in rows_of("leaderboard", "0" * 64, "--limit", 1)] == ["m4"]
    assert [row["model_name"] for row in rows_of("leaderboard", "--pareto")] == ["m5"]


def test_importance_and_the_effect_of_one_param_are_printed(many: pd.DataFrame) -> None:
    rows = rows_of("importance", "--task", TASK)
    assert rows[0]["importance"] == max(row["importance"] for row in rows)
    effect = rows_of("importance", "--effect", "optimizer.lr", "--task", TASK)
    assert len(effect) > 5
    assert {"value", "mean", "low", "high"} <= effect[0].keys()


def test_similar_tasks_are_printed(many: pd.DataFrame) -> None:
    rows = rows_of("similar", TASK, "--limit", 3)
    assert [row["task"].split("-")[0] for row in rows] == ["omniglot"] * 3


def test_similar_tasks_come_with_what_makes_them_so_and_a_warning(many: pd.DataFrame, write_json: Any) -> None:
    config = write_json(
        {
            "model_name": "terriers",
            "label_names": ["American Hairless Terrier", "Boston Terrier", "Toy Fox Terrier"],
            "data": {"source": "sample", "name": "dogs", "size": 32, "n_per_label": 8},
            "model": {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": 3}]},
        }
    )
    rows = rows_of("similar", config)
    lines = invoke("similar", config).stdout.splitlines()
    for row in rows:
        assert f"{row['task']}: alike in {row['alike'] or 'nothing'}; unlike in {row['terms']}" in lines
    warned = [line.split()[5] for line in lines if line.startswith("warning: the ")]
    assert warned == [row["task"] for row in rows if row["disagrees"]]


def test_a_report_and_figures_are_written(many: pd.DataFrame, tmp_path: Path) -> None:
    result = invoke("report", "--output", tmp_path / "report.html", "--task", TASK, "--figures", tmp_path / "figures")
    assert result.exit_code == 0, result.output
    assert TASK in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert list((tmp_path / "figures").glob("*.png"))


def test_a_query_of_mlflow_run_leaves_its_result_in_the_run(attempts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    result = invoke("query", "accuracy > .65", "--order-by", "accuracy", "--limit", 2, "--to-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.split()[:4] == ["model_name", "task", "status", "accuracy"]
    assert {item.path for item in client.list_artifacts(run_id)} == {
        "query.csv", "query.json", "query.parquet", "curves.png",
    }  # fmt: skip
    rows = json.loads(Path(client.download_artifacts(run_id, "query.json")).read_text())
    assert [row["model_name"] for row in rows] == ["m3", "m4"]
    tags = client.get_run(run_id).data.tags
    assert tags["mlmeta.kind"] == "query"
    assert tags["mlflow.note.content"].startswith("**2 of 6 attempts**")
    assert len(rows_of("query")) == 6


def test_a_faulty_query_of_mlflow_run_fails_the_run(attempts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert invoke("query", "acuracy > .65", "--to-run").exit_code == 2
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert "Did you mean 'accuracy'" in run.data.tags["mlflow.note.content"]


def test_a_query_without_a_run_changes_no_run(attempts: str) -> None:
    before = [run.info.run_id for run in MlflowClient().search_runs(["0"])]
    assert invoke("query", "--to-run").exit_code == 0
    assert [run.info.run_id for run in MlflowClient().search_runs(["0"])] == before


def test_the_note_of_a_query_shows_markup_as_it_is_written() -> None:
    table = pd.DataFrame({"model_name": ["a|b_[x](y)"] * 12, "accuracy": [0.5] * 12})
    note = write_query_note(table, filter="`a` = '```'", n_attempts=12, shown=["model_name", "none", "accuracy"])
    assert "\n``````\n`a` = '```'\n``````\n" in note
    assert "| model\\_name | accuracy |" in note
    assert "| a\\|b\\_\\[x\\](y) | 0.5 |" in note
    assert note.endswith("… and 2 more.")


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import sys, click, mlmeta.reports.cli as q\n"
        f"try:\n    click.Group('mlmeta', commands=q.COMMANDS)({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "arguments", [[], ["query", "--help"], ["report", "--help"], ["query", "accuracy >"], ["query", "--columns", "a b"]]
)
def test_help_and_faulty_filters_need_no_library(arguments: list[str]) -> None:
    assert not {"torch", "mlflow", "pandas", "numpy", "pyarrow", "sklearn", "plotly"} & imported_by(*arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_explains_itself(command: click.Command) -> None:
    result = invoke(str(command.name), "--help")
    assert result.exit_code == 0
    assert command.help
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--experiment", "--full", "--output", "--debug"} <= options
    assert ("--format" in options) == (command.name != "report")


def test_the_help_of_query_shows_a_filter_that_works(many: pd.DataFrame) -> None:
    lines = [line.strip() for line in str(query.help).splitlines() if line.strip().startswith("mlmeta query")]
    assert len(lines) == 2
    for line in lines:
        assert invoke(*shlex.split(line.replace("`", ""))[1:]).exit_code == 0


def test_a_piped_table_reads_back_as_csv_reads(many: pd.DataFrame) -> None:
    text = invoke("query", f"task = '{TASK}'", "--format", "csv", "--limit", 5).stdout
    assert len(pd.read_csv(io.StringIO(text))) == 5
