"""Attempts from CSV tables: mapped columns, those of Weights & Biases, and rows that are faulty."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmeta.errors import BadInputError, CommandsError
from mlmeta.exchange.csv_tables import map_columns, parse_mapping, read_table
from mlmeta.exchange.documents import parse_exchanged

WANDB = """\
"Name","State","Notes","User","Tags","Created","Runtime","Sweep","lr","optimizer","_step","val_accuracy","best/acc"
"brisk-sun-1","finished","","ada","","2021-06-04T12:52:41.000Z","5231","","0.001","adam","99","0.81","0.82"
"dim-moon-2","crashed","oops","ada","","2021-06-05T12:52:41.000Z","1h 2m 3s","","0.1","sgd","","NaN",""
"""


def read(text: str, **mapping: str) -> dict[int, Any]:
    return dict(read_table(text.splitlines(keepends=True), source="t.csv", stem="t", mapping=mapping))


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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_the_delimiter(delimiter: str) -> None:
    rows = read(f"name{delimiter}accuracy\nx{delimiter}0.5\n")
    assert rows[2] == {"name": "x", "accuracy": 0.5, "params": {}, "metrics": {}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,high,1,Complete", "accuracy: must be a number; got 'high'"),
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
        (["a", "a"], {}, "both go to params.a"),
        (["a"], {"a": "acuracy"}, "Did you mean 'accuracy'"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(columns: list[str], mapping: dict[str, str], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        map_columns(columns, mapping)


def test_a_known_column_gives_way_to_one_that_is_mapped() -> None:
    assert map_columns(["accuracy", "final"], {"final": "accuracy"}) == ["params.accuracy", "accuracy"]


def test_a_mapping_is_read_from_its_last_sign() -> None:
    assert parse_mapping(["a=b=metrics.c", "Notes="]) == {"a=b": "metrics.c", "Notes": ""}
    with pytest.raises(BadInputError, match="column=field"):
        parse_mapping(["lr"])


@given(text=st.text(alphabet=st.characters(blacklist_categories=[])), header=st.text(min_size=1))
def test_no_table_raises(text: str, header: str) -> None:
    for line, row in read(f"name,{header}\n{text}").items():
        assert isinstance(row, dict | BadInputError)
        assert line >= 0
