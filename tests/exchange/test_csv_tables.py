"""Attempts from CSV tables: mapped columns, those of Weights & Biases, and rows that are faulty."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmeta.errors import BadInputError, CommandsError
from mlmeta.exchange.csv_tables import TableAccount, map_columns, parse_mapping, read_table
from mlmeta.exchange.documents import parse_exchanged

WANDB = """\
"Name","State","Notes","User","Tags","Created","Runtime","Sweep","lr","optimizer","_step","val_accuracy","best/acc"
"brisk-sun-1","finished","","ada","","2021-06-04T12:52:41.000Z","5231","","0.001","adam","99","0.81","0.82"
"dim-moon-2","crashed","oops","ada","","2021-06-05T12:52:41.000Z","1h 2m 3s","","0.1","sgd","","NaN",""
"""


def read(text: str, *, account: TableAccount | None = None, **mapping: str) -> dict[int, Any]:
    """Return what a table gives by its lines, without what tells the row again."""
    lines = text.splitlines(keepends=True)
    rows = dict(read_table(lines, source="t.csv", stem="t", mapping=mapping, account=account))
    digests = [row.pop("row_digest") for row in rows.values() if isinstance(row, dict)]
    assert len(digests) == len(set(digests))
    return rows


def fields(text: str, **mapping: str) -> dict[str, str]:
    account = TableAccount("t.csv")
    read(text, account=account, **mapping)
    return account.fields


def test_an_export_of_weights_and_biases_needs_no_mapping() -> None:
    rows = read(WANDB)
    assert rows[2] == {
        "name": "brisk-sun-1",
        "status": "Complete",
        "started": "2021-06-04T12:52:41.000Z",
        "seconds": 5231.0,
        "tags": {"User": "ada"},
        "params": {"lr": "0.001", "optimizer": "adam", "best/acc": "0.82"},
        "metrics": {"_step": 99.0, "val_accuracy": 0.81},
    }
    assert rows[3]["status"] == "Failed"
    assert rows[3]["seconds"] == 3723
    assert rows[3]["tags"] == {"User": "ada", "Notes": "oops"}
    assert rows[3]["metrics"] == {}
    assert parse_exchanged(rows[3]).commands is None


def test_columns_are_mapped_to_fields() -> None:
    mapping = {"Best": "accuracy", "LR": "training_commands.optimizer.lr", "F1": "metrics.macro_f1", "Note": ""}
    rows = read("Best,LR,F1,Note,dataset\n0.9,1e-3,.8,x,cats\n", **mapping, dataset="task.name")
    assert rows[2] == {
        "name": "t-2",
        "accuracy": 0.9,
        "params": {"optimizer.lr": "0.001"},
        "metrics": {"macro_f1": 0.8},
        "task": {"name": "cats"},
    }


def test_whole_commands_are_taken_as_commands() -> None:
    columns = {"opt": "optimizer.name", "lr": "optimizer.lr", "bs": "batch_size", "ep": "n_epoch", "net": "model.name"}
    mapping = {column: f"training_commands.{field}" for column, field in columns.items()}
    rows = read("name,opt,lr,bs,ep,net\nfirst,SGD,0.01,32.0,5,resnet18\nsecond,SGD,0.01,32,,resnet18\n", **mapping)
    commands = parse_exchanged(rows[2]).commands
    assert commands is not None
    assert commands.document() == {
        "model_name": "first",
        "optimizer": {"name": "SGD", "lr": 0.01},
        "batch_size": 32,
        "n_epoch": 5,
        "model": {"name": "resnet18"},
    }
    assert "training_commands" not in rows[3]
    assert rows[3]["params"]["model.name"] == "resnet18"


def test_layers_are_put_together_from_their_columns() -> None:
    columns = ("model.layers.0.name", "model.layers.1.name", "model.layers.1.out_features", "optimizer.name")
    mapping = {column: f"training_commands.{column}" for column in (*columns, "batch_size", "n_epoch")}
    rows = read(f"{','.join(mapping)}\nFlatten,Linear,n_labels,Adam,8,2\n", **mapping)
    assert rows[2]["training_commands"]["model"]["layers"] == [
        {"name": "Flatten"},
        {"name": "Linear", "out_features": "n_labels"},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(delimiter: str) -> None:
    rows = read(f"name{delimiter}accuracy\nx{delimiter}0.5\n")
    assert rows[2] == {"name": "x", "accuracy": 0.5, "params": {}, "metrics": {}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,high,1,Complete", "accuracy: must be a number; got 'high'"),
        ("x,1_0,1,Complete", "accuracy: must be a number; got '1_0'"),
        ("x,91,1,Complete", "accuracy: must be a share from 0 to 1, or end in %"),
        ("x,inf%,1,Complete", "accuracy: must be a share"),
        ("x\0,1,1,Complete", "name: holds a NUL character"),
        ("x,1,soon,Complete", "seconds: must be a number; got 'soon'"),
        ("x,1,1,finnished", r"status: is no state of an attempt \(perhaps 'finished'\?\)"),
        ("x,1,1", "has 3 fields; the header has 4"),
        ("x,1,1,Complete,5", "has 5 fields; the header has 4"),
        ('x,"1"2,1,Complete', "is not CSV"),
        ("\udcff,1,1,Complete", "name: is not UTF-8 text"),
    ],
)
def test_a_faulty_row_is_told_with_its_line_and_the_others_go_in(row: str, message: str) -> None:
    rows = read(f"name,accuracy,seconds,status\nfirst,1,1,Complete\n{row}\nlast,1,1,killed\n")
    assert rows[2]["name"] == "first"
    assert isinstance(rows[3], BadInputError)
    with pytest.raises(BadInputError, match=f"t.csv, line 3: (1 fault\n  )?{message}"):
        raise rows[3]
    assert rows[4]["status"] == "Interrupted"


def test_all_faults_of_a_row_are_told_at_once() -> None:
    error = read("name,accuracy,n_epoch\nx,a,b\n")[2]
    assert isinstance(error, CommandsError)
    assert [fault.path for fault in error.faults] == ["accuracy", "n_epoch"]


def test_a_line_number_counts_lines_inside_quotes_too() -> None:
    rows = read('name,note\n"a","two\nlines"\n\nb,c\n')
    assert {line: row["name"] for line, row in rows.items()} == {2: "a", 5: "b"}


def test_curves_stand_in_a_cell_as_json() -> None:
    assert read('name,training_losses\nx,"[1.5, null]"\n')[2]["training_losses"] == [1.5, None]
    assert isinstance(read('name,training_losses\nx,"[1.5, NaN]"\n')[2], CommandsError)


@pytest.mark.parametrize(
    ("columns", "mapping", "message"),
    [
        (["lr"], {"LR": "params.lr"}, "Did you mean 'lr'"),
        (["a", "b"], {"a": "accuracy", "b": "accuracy"}, "both go to accuracy"),
        (["a", "a"], {}, "both go to params.a; rename one"),
        (["a", "b"], {"a": "accuracy", "b": "accuracy"}, "--map COLUMN=FIELD gives one another field"),
        (["a"], {"a": "acuracy"}, "Did you mean 'accuracy'"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(columns: list[str], mapping: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        map_columns(columns, mapping)


def test_a_known_column_gives_way_to_one_that_is_mapped() -> None:
    assert map_columns(["accuracy", "final"], {"final": "accuracy"}) == ["params.accuracy", "accuracy"]
    assert map_columns(["lr", "config.lr"], {}) == ["params.lr", "params.config.lr"]


def test_a_mapping_is_read_from_its_last_sign() -> None:
    assert parse_mapping(["a=b=metrics.c", "Notes="]) == {"a=b": "metrics.c", "Notes": ""}
    with pytest.raises(BadInputError, match="column=field"):
        parse_mapping(["lr"])


def test_a_table_of_mlflow_needs_no_mapping() -> None:
    header = (
        "run_id,experiment_id,status,artifact_uri,start_time,end_time,metrics.accuracy,metrics.train_loss,params.lr,"
        "tags.mlflow.runName,tags.mlflow.user,tags.mlmeta.status,tags.mlmeta.task_name,tags.team"
    )
    row = "0a,7,FAILED,/x,2026-11-28 21:24:46.140+00:00,NaT,0.5,0.1,1e-3,first,eve,Diverged,pets,blue"
    assert read(f"{header}\n{row}\n")[2] == {
        "name": "first",
        "id": "0a",
        "status": "Diverged",
        "started": "2026-11-28 21:24:46.140+00:00",
        "ended": None,
        "accuracy": 0.5,
        "metrics": {"train_loss": 0.1},
        "params": {"lr": "1e-3"},
        "tags": {"team": "blue", "experiment_id": "7", "status": "FAILED"},
        "task": {"name": "pets"},
    }
    assert fields(f"{header}\n{row}\n")["tags.mlflow.user"] == ""


DICTS = """\
,summary,config,name
0,"{'acc': nan, 'loss': inf, 'best': 'a.pt', '_runtime': 12.5,'_timestamp': 17e8}","{'lr': 0.1, 'opt': {'b': [1, 2]}}",a
1,"{""acc"": 0.5, ""loss"": 1, ""accuracy"": 0.25}","{""lr"": {""value"": 0.2, ""desc"": null}, ""none"": null}",b
2,{},,c
"""


def test_objects_in_cells_are_opened() -> None:
    rows = read(DICTS)
    assert rows[2] == {
        "name": "a",
        "seconds": 12.5,
        "ended": 17e8,
        "metrics": {"loss": "Infinity"},
        "params": {"lr": "0.1", "opt.b": "[1, 2]", "summary.best": "a.pt"},
    }
    assert rows[3] == {"name": "b", "accuracy": 0.25, "metrics": {"acc": 0.5, "loss": 1.0}, "params": {"lr": "0.2"}}
    assert rows[4] == {"name": "c", "metrics": {}, "params": {}}
    named = fields(DICTS)
    assert named["column 1"] == ""
    assert (named["summary.loss"], named["config.opt.b"]) == ("metrics.loss", "params.opt.b")


@pytest.mark.parametrize("column", ["acc", "summary.acc"])
def test_what_lies_in_a_cell_may_be_mapped(column: str) -> None:
    assert read(DICTS, **{column: "accuracy"})[3]["accuracy"] == 0.5


def test_a_column_of_the_mapping_that_no_cell_has_is_told_at_the_end() -> None:
    rows = read(DICTS, **{"akk": "accuracy"})
    assert "'akk'" in str(rows[0])
    assert rows[3]["name"] == "b"


@pytest.mark.parametrize(
    "cell", ["{broken", "{'a': open('x')}", "{'a': " + "[" * 3000, "{1", '"{""' + "k" * 300 + '"": 1}"']
)
def test_a_cell_that_holds_no_object_is_told(cell: str) -> None:
    assert "summary: " in str(read(f"name,summary\nx,{cell}\n")[2])


def test_what_came_out_may_be_a_number_here_and_a_text_there() -> None:
    cells = ["{'best': 'a.pt'}", "{'best': 3, 'accuracy': 0}", "{'best': 'b'}"]
    account = TableAccount("t.csv")
    rows = read("name,summary\n" + "".join(f'{n},"{cell}"\n' for n, cell in enumerate(cells)), account=account)
    assert [row["metrics"] for row in rows.values()] == [{}, {"best": 3.0}, {}]
    assert [row["params"] for row in rows.values()] == [{"summary.best": "a.pt"}, {}, {"summary.best": "b"}]
    assert account.fields["summary.best (where it is no number)"] == "params.summary.best"
    assert not [*account.warnings()]


def test_a_column_of_texts_is_no_column_of_objects() -> None:
    assert read("name,config\nx,small\ny,{1}\n")[2]["params"] == {"config": "small"}
    assert "must hold an object" in str(read("name,setup\nx,small\n", setup="params")[2])


def test_names_of_columns_may_have_lines_and_separators_in_them() -> None:
    assert fields('name,"a\n;b;c;d",Start Time\nx,1,2026-01-01\n') == {
        "name": "name",
        "a\n;b;c;d": "params.a\n;b;c;d",
        "Start Time": "started",
    }


@pytest.mark.parametrize("header", ["sep=;\n", '"sep=;"\r\n', ""])
def test_decimal_commas_and_the_line_of_a_spreadsheet_are_read(header: str) -> None:
    account = TableAccount("t.csv")
    rows = read(f'{header}name;lr;accuracy;note\nx;0,01;91 %;"a;b"\ny;1;0,5;1,5 kg\n', account=account)
    first, second = rows.values()
    assert (first["params"], first["accuracy"]) == ({"lr": "0.01", "note": "a;b"}, 0.91)
    assert (second["params"], second["accuracy"]) == ({"lr": "1", "note": "1,5 kg"}, 0.5)
    assert list(rows) == ([3, 4] if header else [2, 3])
    assert [*account.warnings()] == ["t.csv: the comma in 2 cells was read as a decimal point"]


def test_a_table_without_any_score_is_warned_of() -> None:
    account = TableAccount("t.csv")
    read("name,test/acc,lr\nx,0.5,1\ny,0.6,2\n", account=account)
    (warning,) = account.warnings()
    assert "no row of 2 has an accuracy" in warning
    assert "['test/acc']" in warning
    read("name,test/acc,lr\nx,0.5,1\n", account=(mapped := TableAccount("t.csv")), **{"test/acc": "accuracy"})
    assert not [*mapped.warnings()]


def test_a_table_without_rows_is_warned_of() -> None:
    account = TableAccount("t.csv")
    assert read("name,accuracy\n", account=account) == {}
    assert [*account.warnings()] == ["t.csv: it has no row that can be read"]


def test_the_same_row_is_known_again_however_its_columns_are_mapped() -> None:
    def digests(text: str, **mapping: str) -> list[str]:
        lines = text.splitlines(keepends=True)
        return [row["row_digest"] for _, row in read_table(lines, source="t", stem="t", mapping=mapping)]  # type: ignore[index]

    first = digests("name,acc\nx,0.5\ny,0.5\n")
    assert len(set(first)) == 2
    assert digests("name,acc\nx,0.5\ny,0.5\n", acc="accuracy") == first
    assert digests("acc,name\n0.5,y\n") == first[1:]
    run_id = "0" * 31 + "a"
    assert digests(f"run_id,state\n{run_id},running\n") == digests(f"run_id,state\n{run_id},finished\n")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h 2m 3s", 3723), ("1.5min", 90), ("250ms", 0.25), ("0:01:05", 65), ("12", 12), ("2d", 172800)],
)
def test_durations_are_read_as_tools_write_them(text: str, seconds: float) -> None:
    assert read(f"name,Duration\nx,{text}\n")[2]["seconds"] == seconds


@given(text=st.text(alphabet=st.characters(blacklist_categories=[])), header=st.text(min_size=1))
def test_no_table_raises(text: str, header: str) -> None:
    for line, row in read(f"name,{header}\n{text}").items():
        assert isinstance(row, dict | BadInputError)
        assert line >= 0
