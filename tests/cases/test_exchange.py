"""Histories that moved, and tables of other tools, of which something went missing without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlmeta.cli import cli
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.meta_query import learning_curves, pareto_front, search_attempts
from mlmeta.train import run_attempt

COMMANDS = {
    "data": {"source": "sample", "name": "digits"},
    "model": {"layers": [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]},
}
WANDB = """\
"Name","State","Notes","Created","Runtime","Sweep","optimizer.lr","config.dropout","test/acc","val_loss","GPU Type"
"happy-sun-1","finished","-","2024-03-01T10:00:00.000Z","125","","0.001","0.25","0.91","0.31","A100"
"brave-fox-2","finished","lr too high","2024-03-01T11:00:00.000Z","118","sweep1","0.1","NaN","NaN","NaN","A100"
"calm-sea-3","crashed","","2024-03-02T11:00:00.000Z","12","sweep1","0.01","","","Infinity","A100"
"odd-cat-4","running","","2024-03-03T11:00:00.000Z","","","0.01","0.5","0.5","0.9","A100"
"happy-sun-1","failed","","2024-03-04T11:00:00.000Z","10","","1e-4","0.5","0.85","0.42","A100"
"""
WANDB_API = """\
,summary,config,name
0,"{'accuracy': 0.91, 'loss': 0.3, '_runtime': 125.2, '_timestamp': 1709287325.1}","{'lr': 0.001,'opt':{'k':'Adam'}}",a
1,"{'accuracy': 0.88, 'loss': 'NaN', '_runtime': 100.0, '_timestamp': 1709288325.1}","{'lr': 0.01, 'opt': None}",b
"""


@pytest.fixture
def elsewhere(store: str, store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a second store, empty and not yet in use."""
    return f"sqlite:///{shutil.copy(store_template, tmp_path / 'elsewhere.db')}"


def run(*arguments: str, uri: str = "") -> Result:
    if uri:
        mlflow.set_tracking_uri(uri)
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def exported() -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("export", "--all").stdout.splitlines()]


def attempts() -> dict[str, dict[str, Any]]:
    return {str(row["model_name"]): row for row in search_attempts().to_dict("records")}


def test_export_and_import_move_times_curves_and_metrics(elsewhere: str, toy_document: dict[str, Any]) -> None:
    run_attempt(parse_train_commands(toy_document), base_dir=Path())
    table, curves = search_attempts(), learning_curves(metric="val_accuracy")
    told = run("export", "--all", "--output", "moved.jsonl").stderr
    assert "the weights, plots and tables of 1 attempt stay where they are" in told
    documents = [json.loads(line) for line in Path("moved.jsonl").read_text().splitlines()]
    assert "the weights" in run("import", "moved.jsonl", uri=elsewhere).stderr
    assert exported() == documents
    moved = search_attempts()
    same = ["model_name", "status", "task", "started", "duration_s", "accuracy", "macro_f1", "val_loss",
            "epoch_seconds", "arch.n_parameters", "task.n_train", "test.n_pictures"]  # fmt: skip
    assert moved[same].to_dict("records") == table[same].to_dict("records")
    assert learning_curves(metric="val_accuracy")["value"].tolist() == curves["value"].tolist()


def test_old_documents_have_no_duration_and_do_not_win_by_it(elsewhere: str) -> None:
    known = {"name": "digits", "training_commands": COMMANDS | {"model_name": "digits"}, "training_losses": [2.0, 1.0],
             "n_epoch": 2, "accuracy": 0.9, "status": "Complete", "limit": 0}  # fmt: skip
    boom = {**known, "name": "boom", "training_losses": [None], "accuracy": None, "status": "Diverged"}
    slow = {**known, "name": "slow", "accuracy": 0.8, "seconds": 60}
    Path("old.jsonl").write_text("\n".join(map(json.dumps, [known, boom, slow])))
    run("import", "old.jsonl")
    assert sorted(exported(), key=str) == sorted([known, boom, slow], key=str)
    table = search_attempts()
    assert table["duration_s"].dropna().tolist() == [60.0]
    assert pareto_front(history=table)["model_name"].tolist() == ["slow"]


def test_a_table_of_mlflow_is_recognised(elsewhere: str) -> None:
    client = MlflowClient()
    for name, accuracy in (("first", 0.5), ("second", 0.75)):
        run_id = client.create_run("0", run_name=name, start_time=1_700_000_000_000, tags={"team": "blue"}).info.run_id
        client.log_metric(run_id, "accuracy", accuracy)
        client.log_metric(run_id, "loss", 0.25)
        client.log_param(run_id, "lr", 0.1)
        client.set_terminated(run_id, end_time=1_700_000_090_000)
    mlflow.search_runs().to_csv("mlflow.csv", index=False)
    dry = run("import", "mlflow.csv", "--dry-run", uri=elsewhere)
    shown = dict(line.split(None, 1) for line in dry.stdout.splitlines()[2:])
    assert shown["'metrics.accuracy'"] == "accuracy"
    assert (shown["'tags.mlflow.runName'"], shown["'params.lr'"], shown["'end_time'"]) == ("name", "params.lr", "ended")
    assert (shown["'artifact_uri'"], shown["'tags.team'"]) == ("(left out)", "tags.team")
    run("import", "mlflow.csv")
    found = attempts()
    assert {name: row["accuracy"] for name, row in found.items()} == {"first": 0.5, "second": 0.75}
    assert found["first"]["duration_s"] == 90.0
    assert found["first"]["started"].timestamp() == 1_700_000_000
    assert (found["first"]["lr"], found["first"]["loss"]) == (0.1, 0.25)
    assert len(search_attempts("tags.team = 'blue'")) == 2
    assert run("import", "mlflow.csv").stdout == "0 imported, 2 known already\n"


def test_a_table_of_weights_and_biases_warns_until_a_score_is_named(elsewhere: str) -> None:
    Path("ui.csv").write_text(WANDB)
    assert "no row of 5 has an accuracy" in run("import", "ui.csv", "--dry-run").stderr
    first = run("import", "ui.csv")
    assert "--map COLUMN=accuracy says which column has it; perhaps ['test/acc']" in first.stderr
    better = run("import", "ui.csv", "--map", "test/acc=accuracy", "--map", "val_loss=metrics.val_loss")
    assert better.stdout == "0 imported, 4 replaced, 1 known already\n"
    assert "accuracy" not in better.stderr
    table = search_attempts()
    assert len(table) == 5
    assert sorted(table["accuracy"].dropna()) == [0.5, 0.85, 0.91]
    found = attempts()
    assert found["odd-cat-4"]["status"] == "Interrupted"
    assert found["odd-cat-4"]["duration_s"] != found["odd-cat-4"]["duration_s"]
    assert found["calm-sea-3"]["val_loss"] == float("inf")
    assert found["calm-sea-3"]["duration_s"] == 12.0
    assert search_attempts("tags.Notes = 'lr too high'")["model_name"].tolist() == ["brave-fox-2"]


def test_a_table_of_weights_and_biases_may_have_objects_in_its_cells(elsewhere: str) -> None:
    Path("api.csv").write_text(WANDB_API)
    assert "'config.opt.k'" in run("import", "api.csv", "--dry-run").stdout
    run("import", "api.csv")
    first = attempts()["a"]
    assert (first["accuracy"], first["loss"], first["lr"], first["opt.k"]) == (0.91, 0.3, 0.001, "Adam")
    assert first["duration_s"] == 125.2
    assert first["started"].timestamp() == pytest.approx(1709287325.1 - 125.2, abs=0.01)
    assert (
        run("import", "api.csv", "--map", "loss=metrics.val_loss").stdout == "0 imported, 1 replaced, 1 known already\n"
    )
    assert attempts()["a"]["val_loss"] == 0.3


def test_texts_that_a_spreadsheet_would_run_stay_texts(elsewhere: str) -> None:
    rows = (
        '"=HYPERLINK(""http://evil"",""x"")",t,"+1+1",007,0.123456789012345678\n"a;b\ttab\nnew",t,"@SUM(1)",1e400,0.1\n'
    )
    Path("evil.csv").write_text(f"name,task,note,code,accuracy\n{rows}")
    run("import", "evil.csv")
    found = attempts()
    assert set(found) == {'=HYPERLINK("http://evil","x")', "a;b\ttab\nnew"}
    assert {str(row["note"]) for row in found.values()} == {"+1+1", "@SUM(1)"}
    assert {str(row["code"]) for row in found.values()} == {"007", "1e400"}
