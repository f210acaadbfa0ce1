"""Tables and questions that went wrong without a word: what each of them has to give."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from mlmeta.analysis.filter_grammar import FilterError
from mlmeta.analysis.filters import match_filter
from mlmeta.analysis.leaderboards import compare_table, find_best_values
from mlmeta.cli import cli
from mlmeta.history import loading
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
        f"{['0.10', '0.5', '0.25', '0.3'][i % 4]},{0.5 + i / 200}"
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
    def test_a_piped_table_shows_what_a_person_asks_for(self, store: str, tmp_path: Path) -> None:
        layers = {f"model.layers.{i}.name": [f"L{i}", f"M{i}"] for i in range(40)}
        table = pd.DataFrame({"name": ["a", "b"], "accuracy": [0.5, 0.6], "optimizer.lr": [0.1, 0.2], **layers})
        table.to_csv(tmp_path / "wide.csv", index=False)
        assert run("import", tmp_path / "wide.csv").exit_code == 0
        shown = run("query", "accuracy > 0.1")
        assert {"model_name", "status", "accuracy", "optimizer.lr"} <= set(shown.stdout.splitlines()[0].split())
        assert "layers" not in shown.stdout
        assert "--columns '*'" in shown.stderr
        for arguments in (["--columns", "*"], ["--format", "csv"]):
            assert "model.layers.39.name" in run("query", *arguments).stdout
        assert "layers" not in run("leaderboard").stdout
        nothing = run("query", "accuracy > 1")
        assert nothing.stdout.split()[:3] == ["model_name", "task", "status"]
        assert "left out" not in nothing.stderr

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
        table = {"name": ["=1+1", "@x", "plain"], "accuracy": 0.5, "test_loss": [-0.5, 0.1, 0.2]}
        pd.DataFrame(table).to_csv(tmp_path / "e.csv")
        assert run("import", tmp_path / "e.csv").exit_code == 0
        asked = ("query", "--columns", "model_name,test_loss", "--format", "csv")
        assert "\n=1+1," in run(*asked).stdout
        escaped = run(*asked, "--escape-formulas").stdout
        assert "'=1+1,-0.5" in escaped
        assert "'@x,0.1" in escaped
        assert "\nplain," in escaped


class TestTimes:
    @pytest.fixture(autouse=True)
    def berlin(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "Europe/Berlin")
            time.tzset()
            yield
        time.tzset()

    def test_a_heading_names_the_zone_and_local_time_may_be_asked_for(self, store: str, tmp_path: Path) -> None:
        client = MlflowClient()
        moments = [pd.Timestamp("2026-01-01T10:00Z"), pd.Timestamp("2026-07-01T10:00Z")]
        for name, moment in zip("ab", moments, strict=True):
            tags = {"mlmeta.kind": "attempt", "mlmeta.status": "Complete"}
            run_id = client.create_run("0", int(moment.timestamp() * 1000), tags, name).info.run_id
            client.log_metric(run_id, "accuracy", {"a": 0.5, "b": 0.75}[name])
        asked = ("query", "--columns", "started,model_name")
        assert run(*asked).stdout.splitlines() == [
            "started (UTC)     model_name", "2026-07-01 10:00  b", "2026-01-01 10:00  a",
        ]  # fmt: skip
        assert run(*asked, "--local-time").stdout.splitlines() == [
            "started (CEST/CET)  model_name", "2026-07-01 12:00    b", "2026-01-01 11:00    a",
        ]  # fmt: skip
        written = run(*asked, "--local-time", "--format", "csv").stdout.splitlines()
        assert written[1:] == ["2026-07-01T12:00:00.000+02:00,b", "2026-01-01T11:00:00.000+01:00,a"]
        assert run(*asked, "--format", "csv").stdout.splitlines()[1] == "2026-07-01T10:00:00.000Z,b"
        assert "2026-07-01 12:00 CEST" in run("compare", "a", "b", "--local-time").stdout
        assert "2026-07-01 10:00 UTC" in run("compare", "a", "b").stdout
        for arguments, zone in (((), "UTC"), (("--local-time",), "CEST/CET")):
            assert run("report", "--output", tmp_path / "r.html", *arguments).exit_code == 0
            page = (tmp_path / "r.html").read_text()
            assert f">started ({zone})<" in page


def make_stacks(*stacks: list[dict[str, object]]) -> pd.DataFrame:
    """Return attempts with these layers, the first the best."""
    rows = [
        {"run_id": f"{n:032x}", "model_name": f"m{n}", "accuracy": 0.9 - n / 10}
        | {f"model.layers.{i}.{key}": value for i, layer in enumerate(stack) for key, value in layer.items()}
        for n, stack in enumerate(stacks)
    ]
    facts = {
        "status": "Complete",
        "task": "t",
        "experiment": "e",
        "started": pd.Timestamp(0, tz="UTC"),
        "duration_s": 1.0,
    }
    table = pd.DataFrame(rows).assign(**facts)
    table.attrs["kinds"] = {name: "param" for name in table if name.startswith("model.")} | {"accuracy": "metric"}
    return table


def list_layer_rows(table: pd.DataFrame, **options: bool) -> dict[str, list[object]]:
    found = compare_table(table, table["run_id"].tolist(), **options).set_index("field").drop(columns="best")
    return {field: list(row) for field, row in zip(found.index, found.to_numpy(), strict=True) if "layers" in field}


BLOCKS = [
    {"name": name, **more}
    for width in (16, 32, 64, 128)
    for name, more in (
        ("Conv2d", {"out_channels": width, "kernel_size": 3}),
        ("ReLU", {}),
        ("MaxPool2d", {"kernel_size": 2}),
        ("Dropout", {"p": width / 1000}),
    )
]


class TestCompare:
    @pytest.mark.parametrize("place", [0, 1, 7, 16])
    def test_an_inserted_layer_is_one_row(self, place: int) -> None:
        longer = [*BLOCKS[:place], {"name": "BatchNorm2d", "eps": 0.1}, *BLOCKS[place:]]
        (row,) = list_layer_rows(make_stacks(BLOCKS, longer)).values()
        assert row == [None, "BatchNorm2d(eps=0.1)"]
        assert list_layer_rows(make_stacks(longer, BLOCKS)) == {f"model.layers.{place}": row[::-1]}

    def test_an_inserted_block_leaves_the_others_in_their_places(self) -> None:
        rows = list_layer_rows(make_stacks(BLOCKS, [*BLOCKS[:4], *BLOCKS]))
        assert len(rows) == 4
        assert all(row[0] is None for row in rows.values())

    def test_other_widths_are_rows_of_their_params(self) -> None:
        wider = [layer | {"out_channels": 512} if "out_channels" in layer else layer for layer in BLOCKS]
        assert list_layer_rows(make_stacks(BLOCKS, wider)) == {
            f"model.layers.{4 * n}.out_channels": [width, 512] for n, width in enumerate((16, 32, 64, 128))
        }

    def test_another_layer_in_its_place_is_one_row(self) -> None:
        other = [{"name": "GELU"} if layer["name"] == "ReLU" else layer for layer in BLOCKS[:4]]
        assert list_layer_rows(make_stacks(BLOCKS[:4], other)) == {"model.layers.1": ["ReLU()", "GELU()"]}

    @given(st.lists(st.lists(st.sampled_from(BLOCKS), max_size=8), min_size=2, max_size=4))
    def test_no_layer_is_lost_and_their_order_is_kept(self, stacks: list[list[dict[str, object]]]) -> None:
        rows = list_layer_rows(make_stacks(*stacks), all_columns=True)
        names = {field: row for field, row in rows.items() if field.count(".") == 2 or field.endswith(".name")}
        for place, stack in enumerate(stacks):
            shown = [str(row[place]).partition("(")[0] for row in names.values() if row[place] is not None]
            assert shown == [layer["name"] for layer in stack]

    @pytest.mark.usefixtures("imported")
    def test_the_best_of_a_task_need_no_names(self) -> None:
        found = pd.read_csv(io.StringIO(run("compare", "--best", "2", "t", "--format", "csv").stdout))
        assert found.columns.tolist() == ["field", "a59", "a58", "best"]
        assert run("compare", "--best", "2", "t", "u").exit_code == 2
        assert "no task 'u'" in run("compare", "--best", "2", "u").output


class TestFiltersThatCompareWithTheTask:
    @pytest.fixture
    def table(self) -> pd.DataFrame:
        columns = {
            "task": ["t", "t", "t", "u", "u", None],
            "accuracy": [0.9, 0.7, np.nan, 0.55, 0.5, 0.9],
            "train_loss": [0.5, 0.2, 0.1, 2.0, 3.0, 0.0],
            "task.n_labels": pd.array([2, None, 2, 4, 4, None], dtype="Int64"),
        }
        return pd.DataFrame({"run_id": list("abcdef"), **columns})

    @pytest.mark.parametrize(
        ("filter", "found"),
        [
            ("accuracy < task.best - 0.1", "b"),
            ("accuracy < task.best -0.1", "b"),
            ("accuracy >= task.best * 0.5", "abde"),
            ("accuracy = task.best", "ad"),
            ("train_loss <= task.best", "cd"),
            ("train_loss > task.best + 0.1 and not task = 'u'", "a"),
            ("task.best < .6", "de"),
            ("accuracy > task.chance + .25", "ad"),
            ("accuracy > task.chance", "abde"),
            ("task.chance = .25", "de"),
            ("task.best > task.chance", "abcde"),
            ("accuracy > train_loss + .1", "abf"),
            ("task.best IS NULL", "f"),
            ("train_loss > -1", "abcdef"),
        ],
    )
    def test_they_find(self, table: pd.DataFrame, filter: str, found: str) -> None:
        assert "".join(table["run_id"][match_filter(table, filter)]) == found

    @pytest.mark.parametrize(
        ("filter", "fault"),
        [
            ("train_loss < task.chance", "the accuracy of guessing"),
            ("accuracy < task.best-0.1", "blanks stand around a sign: task.best - 0.1"),
            ("accuracy < task.best -", "expected a number"),
            ("accuracy < task.bes", "Did you mean 'task.best'"),
            ("run_id = task.best", "run_id holds text"),
            ("accuracy < run_id + 1", "needs numbers"),
        ],
    )
    def test_a_fault_is_said(self, table: pd.DataFrame, filter: str, fault: str) -> None:
        with pytest.raises(FilterError, match=fault):
            match_filter(table, filter)

    def test_chance_that_nobody_knows_is_said(self, table: pd.DataFrame) -> None:
        with pytest.raises(FilterError, match="how many labels"):
            match_filter(table.drop(columns="task.n_labels"), "accuracy > task.chance")

    @pytest.mark.usefixtures("imported")
    def test_they_see_all_attempts_whatever_is_shown(self) -> None:
        assert len(search_attempts("accuracy >= task.best - 0.001")) == 1
        assert run("leaderboard", "--filter", "accuracy = task.best", "--format", "csv").stdout.count("\n") == 2
        # An attempt that is named is compared with those that are not.
        assert run("curves", "a3", "--filter", "accuracy = task.best").exit_code == 2


def test_a_recorded_value_that_mlflow_cut_is_marked(store: str, tmp_path: Path) -> None:
    client = MlflowClient()
    for name, end in (("a", "x"), ("b", "y")):
        run_id = client.create_run("0", tags={"mlmeta.kind": "attempt"}, run_name=name).info.run_id
        client.log_param(run_id, "long", "l" * 7000 + end)
        client.log_param(run_id, "short", "s" * 5999)
        client.log_metric(run_id, "accuracy", 0.5)
    shown = run("query", "--columns", "long,short,accuracy")
    assert shown.stdout.splitlines()[1].split("  ")[0] == "l" * 57 + "… [cut]"
    assert shown.stdout.count("[cut]") == 2
    assert "MLflow takes no more: values of long\n" in shown.stderr
    # That they look alike does not say that they were.
    compared = run("compare", "a", "b").stdout.splitlines()
    assert next(line for line in compared if line.startswith("long")).count("[cut]") == 2
    assert "values of long" in run("query", "--format", "csv").stderr
    assert "values of" not in run("query", "--columns", "short").stderr
    assert run("report", "--output", tmp_path / "r.html").exit_code == 0


class TestNotes:
    @pytest.fixture
    def run_ids(self, store: str) -> list[str]:
        client = MlflowClient()
        tags = {"mlmeta.kind": "attempt", "mlmeta.status": "Complete", "mlflow.user": "ada"}
        made = [client.create_run("0", tags=tags, run_name=name).info.run_id for name in "ab"]
        for run_id in made:
            client.log_metric(run_id, "accuracy", 0.5)
        client.set_tag(made[0], "mlflow.note.content", "a blurred\ntest set")
        return made

    @pytest.mark.parametrize("api", [False, True])
    def test_they_are_found_as_they_are_now(
        self, run_ids: list[str], api: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if api:
            monkeypatch.setattr(loading, "open_sql_reader", lambda *_, **__: None)
        found = search_attempts("tags.mlflow.note.content LIKE '%blurred%'")
        assert found["run_id"].tolist() == run_ids[:1]
        assert found["tags.mlflow.note.content"].tolist() == ["a blurred\ntest set"]
        # Whoever writes a note later changes a run that was read before.
        MlflowClient().set_tag(run_ids[1], "mlflow.note.content", "blurred too")
        assert len(search_attempts("tags.`mlflow.note.content` LIKE '%blurred%'")) == 2
        assert search_attempts("tags.mlflow.note.content IS NULL").empty
        assert len(search_attempts("tags.mlflow.user = 'ada' and tags.mlflow.runName = 'b'")) == 1

    @pytest.mark.usefixtures("run_ids")
    def test_they_are_columns_and_choose_for_others(self) -> None:
        shown = run(
            "query", "--columns", "model_name,tags.mlflow.note.content,tags.mlflow.user", "--order-by", "model_name"
        )
        rows = [line.split() for line in shown.stdout.splitlines()[1:]]
        assert rows == [["a", "a", "blurred", "test", "set", "ada"], ["b", "ada"]]
        board = run("leaderboard", "--filter", "tags.mlflow.note.content LIKE '%blurred%'", "--format", "csv").stdout
        assert len(board.splitlines()) == 2
        assert "note.content" not in run("query", "--format", "csv").stdout
        assert "Did you mean 'tags.mlflow.note.content'" in run("query", "mlflow.note.content = 'x'").output


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
