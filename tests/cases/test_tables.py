"""Tables and questions that went wrong without a word: what each of them has to give."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from mlmeta.analysis.leaderboards import find_best_values
from mlmeta.cli import cli
from mlmeta.meta_query import hyperparameter_importance, learning_curves, marginal_effect, search_attempts
from mlmeta.reports import paper_figures

CODES = ["1", "001", "010"]
VERSIONS = ["1.10", "1.1", "1.9"]
MIXED = ["True", "auto", "2.5", "1"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def best_of(param: str) -> pd.DataFrame:
    return find_best_values(search_attempts(), param, share=1.0)


def write_table(file: Path) -> Path:
    rows = [
        f"a{i},t,{10 ** -(1 + i % 4)},{CODES[i % 3]},{VERSIONS[i % 3]},{MIXED[i % 4]},{['10', 'inf'][i % 2]},"
        f"{['0.10', '0.5', '0.25', '0.3'][i % 4]},{0.5 + i / 100}"
        for i in range(60)
    ]
    file.write_text("\n".join(["name,task,optimizer.lr,code,version,mixed,limit,dropout,accuracy", *rows]))
    return file


@pytest.fixture
def imported(store: str, tmp_path: Path) -> None:
    assert run("import", write_table(tmp_path / "mixed.csv")).exit_code == 0


@pytest.mark.usefixtures("imported")
class TestTextsThatLookLikeNumbers:
    @pytest.mark.parametrize(
        ("filter", "n_found"),
        [
            ("params.code = '001'", 20),
            ("params.code = '1'", 20),
            ("code = 1", 20),
            ("code in ('001', '010')", 40),
            ("code != '001'", 40),
            ("version = '1.10'", 20),
            ("version = '1.1'", 20),
            ("version = 1.1", 20),
            ("dropout < 0.2", 15),
            ("dropout = '0.10'", 15),
            ("limit > 100", 30),
            ("mixed = '1'", 15),
        ],
    )
    def test_a_quoted_value_is_compared_as_text(self, filter: str, n_found: int) -> None:
        assert len(search_attempts(filter)) == n_found

    def test_they_stay_apart_in_every_answer(self) -> None:
        values = best_of("code")
        assert set(values["common"][0].split(", ")) == {"1 20", "001 20", "010 20"}
        assert set(best_of("version")["common"][0].split(", ")) == {
            "1.10 20",
            "1.1 20",
            "1.9 20",
        }
        for param, words in (("code", CODES), ("version", VERSIONS), ("mixed", MIXED)):
            effect = marginal_effect(param)
            assert sorted(map(str, effect["value"])) == sorted(words)
            assert sorted(effect["n_attempts"]) == [60 // len(words)] * len(words)
        assert {"code", "version", "mixed"} <= set(hyperparameter_importance()["param"])

    def test_a_number_that_a_person_wrote_is_still_one(self) -> None:
        row = best_of("dropout").iloc[0]
        assert (row["low"], row["high"]) == (0.1, 0.5)
        assert "0.10" in set(search_attempts()["dropout"])

    def test_the_answer_of_the_command_line_has_them_as_they_are(self) -> None:
        lines = run("query", "params.code = '001'", "--columns", "code,version", "--format", "csv").output.splitlines()
        assert set(lines[1:]) == {"001,1.1"}
        assert len(lines) == 21


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "2.0", "1e-3", "0.001", "inf", "1E5", "-0.5"], "float64"),
        (["32", "-4", "0"], "Int64"),
        (["True", "false"], "boolean"),
        (["0.10", "0.2"], "str"),
        (["nan", "0.2"], "str"),
        (["12e4567", "1"], "str"),
        (["1e-400", "1"], "str"),
        (["12345678901234567890", "1"], "str"),
        (["9007199254740993", "0.5"], "str"),
        (["1_000", "1"], "str"),
        (["٣", "1"], "str"),
        (["-0", "0"], "str"),
    ],
)
def test_a_column_is_of_numbers_where_no_text_says_more(
    store: str, tmp_path: Path, texts: list[str], expected: str
) -> None:
    pd.DataFrame({"name": "a", "params.x": texts, "accuracy": 0.5}).to_csv(tmp_path / "t.csv", index=False)
    assert run("import", tmp_path / "t.csv").exit_code == 0
    found = search_attempts()
    column = next(name for name in found.columns if name in ("x", "params.x"))
    assert str(found[column].dtype) == expected


class TestOutput:
    @pytest.mark.usefixtures("imported")
    def test_an_ending_that_is_not_known_is_refused(self, tmp_path: Path) -> None:
        result = run("query", "--output", tmp_path / "out.docx")
        assert result.exit_code == 2
        assert "allowed are .csv, .json, .parquet" in result.output
        assert not (tmp_path / "out.docx").exists()

    @pytest.mark.usefixtures("imported")
    def test_a_workbook_is_one(self, tmp_path: Path) -> None:
        openpyxl = pytest.importorskip("openpyxl")
        assert run("query", "--output", tmp_path / "out.xlsx", "--columns", "code,accuracy").exit_code == 0
        rows = list(openpyxl.load_workbook(tmp_path / "out.xlsx").active.values)
        assert rows[0] == ("code", "accuracy")
        assert len(rows) == 61
        assert {row[0] for row in rows[1:]} == set(CODES)

    def test_formulas_are_neutralised_when_asked_for(self, store: str, tmp_path: Path) -> None:
        pd.DataFrame({"name": ["=1+1", "@x", "plain"], "accuracy": [-0.5, 0.1, 0.2]}).to_csv(tmp_path / "e.csv")
        assert run("import", tmp_path / "e.csv").exit_code == 0
        asked = ("query", "--columns", "model_name,accuracy", "--format", "csv")
        assert "\n=1+1," in run(*asked).stdout
        escaped = run(*asked, "--escape-formulas").stdout
        assert "'=1+1,-0.5" in escaped
        assert "'@x,0.1" in escaped
        assert "\nplain," in escaped


@pytest.mark.usefixtures("imported")
def test_values_and_others_take_a_filter() -> None:
    assert run("values", "mixed", "--filter", "dropout = '0.10'").stdout.splitlines()[1].split()[:2] == ["t", "15"]
    assert "mean rank 1.00 on 1 task" in run("values", "code").stdout
    board = run("leaderboard", "--filter", "code = '001'", "--limit", "50", "--format", "csv").stdout
    assert len(board.splitlines()) == 21
    refused = run("importance", "--filter", "code = 'none'")
    assert refused.exit_code == 2
    assert "none of 60 attempts is so" in refused.output


@pytest.mark.parametrize("command", ["values", "importance", "leaderboard", "report"])
def test_a_faulty_filter_is_said_before_the_store_is_looked_for(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    result = run(*([command, "code"] if command == "values" else [command]), "--filter", "accuracy >")
    assert result.exit_code == 2
    assert "accuracy >" in result.output


def test_infinite_metrics_are_infinite_in_tables_and_curves(store: str) -> None:
    client = MlflowClient()
    run_id = client.create_run("0", tags={"mlmeta.kind": "attempt", "mlmeta.status": "Diverged"}).info.run_id
    for step, value in enumerate([0.5, math.inf, 0.25, -math.inf], start=1):
        client.log_metric(run_id, "train_loss", value, step=step)
    assert search_attempts("train_loss < -1e308")["train_loss"].tolist() == [-math.inf]
    assert learning_curves(run_id)["value"].tolist() == [0.5, math.inf, 0.25, -math.inf]


def test_a_point_between_gaps_is_drawn() -> None:
    values = np.array([1.0, np.inf, 2.0, np.nan, 3.0, 4.0])
    line = np.column_stack([np.arange(6), paper_figures._drawable(values)])
    assert paper_figures._find_alone(line).tolist() == [[0.0, 1.0], [2.0, 2.0]]
