"""Tables: whole and exact for programs, cut and fitted for people."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table

from mlmeta.errors import BadInputError
from mlmeta.reports.tables import (
    FORMATS,
    MAX_WIDTH,
    choose_format,
    describe_left_out,
    fit_columns,
    format_cell,
    format_plain,
    write_output,
    write_stream,
)

LONG = "x" * 5_000
FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
ODD = 'a "name", é\n[/b]`\''


def make_odd() -> pd.DataFrame:
    """Values of every type that a history holds, and what is hard to write."""
    table = pd.DataFrame(
        {
            "run_id": pd.Series(["0123456789abcdef" * 2, "f" * 32, "a" * 32], dtype="str"),
            "started": pd.to_datetime(["2026-11-01T10:00:00.123Z", None, "1999-12-31T23:59:59.000Z"]).as_unit("ms"),
            "duration_s": [1.5, np.nan, 1 / 3],
            "seed": pd.Series([2**53 + 1, None, -1], dtype="Int64"),
            "bias": pd.Series([True, None, False], dtype="boolean"),
            "loss": [np.inf, -np.inf, 1e-300],
            ODD: pd.Series([LONG, None, 'a,"b"\nc'], dtype="str"),
            "plain": [True, False, True],
        }
    )
    table["curve"] = pd.Series([np.array([1.0, np.nan]), None, np.array([])], dtype=object)
    table.attrs["kinds"] = {"seed": "param", "loss": "metric"}
    return table


def written(table: pd.DataFrame, form: str) -> bytes:
    stream = io.BytesIO()
    write_stream(table, stream, form=form)
    return stream.getvalue()


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def test_json_is_valid_and_exact() -> None:
    rows = json.loads(written(make_odd(), "json"), parse_constant=refuse)
    assert [list(row) for row in rows] == [list(make_odd().columns)] * 3
    assert rows[0] == {
        "run_id": "0123456789abcdef" * 2, "started": "2026-11-01T10:00:00.123Z", "duration_s": 1.5, "seed": 2**53 + 1,
        "bias": True, "loss": None, ODD: LONG, "plain": True, "curve": [1.0, None],
    }  # fmt: skip
    assert rows[1]["started"] is rows[1]["seed"] is rows[1]["bias"] is rows[1][ODD] is rows[1]["curve"] is None
    assert (rows[2]["duration_s"], rows[2]["loss"], rows[2]["curve"]) == (1 / 3, 1e-300, [])


def test_parquet_gives_the_table_back() -> None:
    found = pd.read_parquet(io.BytesIO(written(make_odd(), "parquet")))
    pd.testing.assert_frame_equal(found, make_odd(), check_column_type=False)
    assert found.attrs["kinds"] == {"seed": "param", "loss": "metric"}


def test_csv_gives_the_values_back() -> None:
    text = written(make_odd(), "csv").decode()
    types = {"seed": "Int64", "bias": "boolean"}
    found = pd.read_csv(io.StringIO(text), dtype=types, parse_dates=["started"], float_precision="round_trip")
    expected = make_odd()
    assert list(found.columns) == list(expected.columns)
    for name in ("run_id", "duration_s", "seed", "bias", "loss", ODD, "plain"):
        pd.testing.assert_series_equal(found[name], expected[name], check_dtype=False)
    assert found["started"].tolist()[::2] == expected["started"].tolist()[::2]
    assert found["curve"].tolist()[::2] == ["[1.0, null]", "[]"]


@pytest.mark.parametrize("form", FORMATS)
def test_real_attempts_are_written_in_every_format(form: str) -> None:
    table = make_table(n_per_task=2)
    assert len(written(table, form)) > 10_000
    assert written(table.iloc[:0], form)


def test_mixed_python_values_keep_all_their_digits() -> None:
    when = pd.Timestamp("2026-01-02T03:04:05", tz="UTC")
    table = pd.DataFrame({"field": ["a"] * 5, "x": pd.Series([1 / 3, True, "w", None, when], dtype=object)})
    texts = [f"{1 / 3}", "true", "w", None, "2026-01-02T03:04:05.000Z"]
    from_parquet = pd.read_parquet(io.BytesIO(written(table, "parquet")))["x"]
    assert [None if pd.isna(value) else value for value in from_parquet] == texts
    assert written(table, "csv").decode().split() == ["field,x", *(f"a,{text or ''}" for text in texts)]
    assert [row["x"] for row in json.loads(written(table, "json"))] == [1 / 3, True, *texts[2:]]


def test_a_plain_table_is_aligned_and_shows_every_column_on_one_line_a_row() -> None:
    lines = list(format_plain(make_odd()))
    assert len(lines) == 4
    assert "0123456789abcdef0123456789abcdef" in lines[1]
    assert f"{'x' * 63}…" in lines[1]
    assert lines[0].index("seed") + len("seed") == lines[3].index("  -1  ") + len("  -1")
    assert all(name in lines[0] for name in ("run_id", "bias", "curve"))


def test_wide_characters_take_two_places() -> None:
    lines = list(format_plain(pd.DataFrame({"a": ["日本", "x"], "b": ["y", "z"]})))
    assert lines[1:] == ["日本  y", "x     z"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00402612, "0.004026"), (1e-5, "1e-05"), (12345.678, "1.235e+04"), (np.float64(2), "2"), (np.nan, ""),
        (np.inf, "inf"), (None, ""), (pd.NA, ""), (pd.NaT, ""), (True, "true"), (np.bool_(False), "false"),
        (2**60, str(2**60)), ("a\nb\x1b[31m", "a b [31m"), (np.array([1.0, np.nan]), "[1, ]"), ("abcdefg", "abcde…"),
        (pd.Timestamp("2026-01-02T03:04:05", tz="UTC"), "2026-…"),
    ],
)  # fmt: skip
def test_cells_are_short_and_safe(value: Any, text: str) -> None:
    assert format_cell(value, limit=6 if text.endswith("…") else None) == text


def test_columns_that_say_least_are_left_out_first() -> None:
    table = make_table(n_per_task=4)
    table = table[table["task"] == "digits-0"]
    shown = fit_columns(table, width=100, important=["accuracy"])
    assert {"model_name", "accuracy", "duration_s"} <= shown.keys()
    # The same in all rows, without any value, of one layer only.
    assert not {"experiment", "task", "status", "criterion.name", "model.layers.0.name"} & shown.keys()
    assert sum(shown.values()) + 2 * (len(shown) - 1) <= 100
    assert shown["run_id"] == 8


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200, 5_000])
def test_columns_fit_any_width(width: int) -> None:
    shown = fit_columns(make_table(n_per_task=1), width=width, important=["accuracy"])
    assert sum(shown.values()) + 2 * (len(shown) - 1) <= max(width, 1)
    assert "accuracy" in shown
    assert max(shown.values()) <= MAX_WIDTH


def test_what_is_left_out_is_counted() -> None:
    assert describe_left_out(0, 0) == ""
    assert describe_left_out(1, 0).startswith("… 1 more row:")
    assert describe_left_out(1_200, 3).startswith("… 1,200 more rows and 3 more columns:")


SCRIPT = """
import sys
sys.path[:0] = {folders!r}
from test_tables import make_odd, make_table
from mlmeta.errors import BadInputError
from mlmeta.reports.tables import write_output
try:
    write_output({table}, form={form!r}, important=["accuracy"])
except BadInputError as error:
    print("refused:", error)
"""


def on_terminal(table: str, form: str, *, width: int = 100) -> str:
    """Return what a process shows on a real (pseudo-)terminal."""
    code = SCRIPT.format(folders=FOLDERS, table=table, form=form)
    master, slave = pty.openpty()
    environment = os.environ | {"COLUMNS": str(width), "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                piece = os.read(master, 65_536)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(master)
    assert process.returncode == 0, shown
    # What makes text bold or dim takes no place.
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


def test_a_terminal_gets_what_fits_and_is_told_of_the_rest() -> None:
    lines = on_terminal("make_table()", "table").splitlines()
    assert all(len(line.rstrip()) <= 100 for line in lines)
    assert len(lines) < 110
    assert "accuracy" in " ".join(lines[:4])
    assert "732 more rows and" in " ".join(lines[-2:])


def test_a_terminal_shows_names_whole_and_no_markup_or_control_character() -> None:
    shown = on_terminal("make_odd()[[make_odd().columns[6], 'run_id']]", "table", width=80)
    assert "[/b]" in shown
    assert "\x1b" not in shown
    assert f"{'x' * 31}…" in shown


def test_parquet_is_not_poured_on_a_terminal() -> None:
    assert "refused: Parquet is binary" in on_terminal("make_odd()", "parquet")


def test_a_pipe_gets_every_column_and_may_be_closed_early() -> None:
    code = SCRIPT.format(folders=FOLDERS, table="make_table()", form="table")
    head = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" | head -n 2', sys.executable, code], capture_output=True, text=True
    )
    assert len(head.stdout.splitlines()) == 2
    assert "arch.hidden" in head.stdout
    assert head.stderr == ""


def test_a_file_is_written_whole_in_the_format_of_its_name(tmp_path: Path) -> None:
    for name in ("a.csv", "a.json", "a.parquet", "a.txt"):
        write_output(make_odd(), tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "a.json", "a.parquet", "a.txt"]
    assert (tmp_path / "a.csv").read_bytes() == written(make_odd(), "csv")
    assert (tmp_path / "a.txt").read_bytes() == written(make_odd(), "table")
    assert len(pd.read_parquet(tmp_path / "a.parquet")) == 3


@pytest.mark.parametrize(
    ("form", "file", "chosen"),
    [
        (None, None, "table"),
        (None, "x.CSV", "csv"),
        ("json", "x.csv", "json"),
        (None, "x.pq", "parquet"),
        (None, "x", "table"),
    ],
)
def test_the_format_is_the_one_asked_for_or_that_of_the_name(form: str | None, file: str | None, chosen: str) -> None:
    assert choose_format(form, Path(file) if file else None) == chosen


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    file.write_text("old")
    with pytest.raises(NotImplementedError, match="complex"):
        write_output(pd.DataFrame({"a": [1j]}), file)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for file in (tmp_path / "no" / "a.csv", tmp_path / "folder.csv", tmp_path / ("n" * 300 + ".csv")):
        with pytest.raises(BadInputError, match="cannot be written"):
            write_output(make_odd(), file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.csv"]
