"""Filters: every one beside a plain evaluation row by row; faults point at their place; no text does harm."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from hypothesis import given, settings
from hypothesis import strategies as st

from mlmeta.analysis.filter_grammar import (
    MAX_DEPTH,
    MAX_LENGTH,
    And,
    Column,
    Comparison,
    Condition,
    FilterError,
    Like,
    Literal,
    Membership,
    Missing,
    Not,
    Or,
    Order,
    list_columns,
    parse_columns,
    parse_filter,
    parse_order,
)
from mlmeta.analysis.filters import MAX_PATTERN, find_column, match_filter, sort_rows
from mlmeta.errors import BadInputError
from mlmeta.history.table import Kind, find_kind, resolve_column

NA = None
DAY = datetime(2026, 11, 1, tzinfo=UTC)
ODD = "odd `name`, \"100 %\" or 'é'"
ROWS: dict[str, list[Any]] = {
    "status": ["Complete", "Diverged", "complete", NA, "Trained", "a_b%c", "a.b\nc", "Ünïcode"],
    "optimizer.lr": [1e-3, 0.01, NA, 0.1, 1e-5, 0.01, 3.0, -2.5],
    "batch_size": [32, 64, NA, 8, 32, 128, 1, 2**53 + 1],
    "arch.batch_norm": [True, False, NA, True, True, False, NA, False],
    "kernel_size": ["3", "auto", "11", NA, "0.5", "1e1", "03", "True"],
    "started": [DAY, DAY + timedelta(hours=23, minutes=59), NA, DAY - timedelta(seconds=1), *[DAY + timedelta(2)] * 4],
    ODD: [1.0, 2.0, 3.0, NA, 4.0, np.inf, -np.inf, 0.0],
    "accuracy": [0.5, 0.8, 0.9, 1.0, NA, 0.0, 0.8, 0.8],
    "nothing": [NA] * 8,
    "tags.mlmeta.task": ["{}", '{"n": 1}', NA, "x", "%", "_", "\\", "a'b"],
}
TYPES = {
    "status": "str", "kernel_size": "str", "tags.mlmeta.task": "str", "batch_size": "Int64",
    "arch.batch_norm": "boolean", "started": "datetime64[ms, UTC]",
}  # fmt: skip
TABLE = pd.DataFrame({name: pd.Series(values, dtype=TYPES.get(name, "float64")) for name, values in ROWS.items()})
TABLE.attrs["kinds"] = {
    "optimizer.lr": "param", "batch_size": "param", "arch.batch_norm": "param", "kernel_size": "param", ODD: "param",
    "accuracy": "metric", "nothing": "metric", "tags.mlmeta.task": "tag",
}  # fmt: skip
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)


# The plain evaluation: one row, one condition, True, False or None.
Row = dict[str, Any]
Test = Callable[[Row], bool | None]


def number_of(value: Any) -> float | int | None:
    if isinstance(value, str) and re.fullmatch(r"[-+]?([1-9][0-9]*|0)", value):
        return int(value)
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) and not re.match("0[0-9]", value) else None
    return None if isinstance(value, bool) else value


def compare(value: Any, sign: str, literal: Any) -> bool | None:
    is_order = sign not in ("=", "==", "!=", "<>")
    if value is None:
        return None
    if isinstance(value, datetime):
        return compare_times(value, sign, literal)
    if isinstance(literal, bool):
        return SIGNS[sign](str(value).lower(), str(literal).lower())
    if isinstance(value, bool):
        return SIGNS[sign](value, literal.lower() == "true")
    if isinstance(value, str) and isinstance(literal, str):
        return SIGNS[sign](value.encode(), literal.encode())
    left, right = number_of(value), number_of(literal)
    if left is not None and right is not None:
        return SIGNS[sign](left, right)
    if isinstance(literal, str):
        return SIGNS[sign](value.encode(), literal.encode())
    return None if is_order else SIGNS[sign](value, literal)


def compare_times(value: datetime, sign: str, text: str) -> bool:
    first = datetime.fromisoformat(text)
    first = first if first.tzinfo else first.replace(tzinfo=UTC)
    after = first + timedelta(days=1) if len(text) == 10 else first + timedelta(microseconds=1)
    is_inside = first <= value < after
    sides = {"<": value < first, "<=": value < after, ">": value >= after, ">=": value >= first}
    return sides.get(sign, is_inside if sign in ("=", "==") else not is_inside)


def like(value: str | None, pattern: str, *, ignore_case: bool) -> bool | None:
    if value is None:
        return None
    pieces = re.findall(r"\\[%_\\]|.", pattern, re.DOTALL)
    translated = {"%": ".*", "_": "."}
    regex = "".join(translated.get(piece, re.escape(piece[-1])) for piece in pieces)
    return re.fullmatch(regex, value, re.DOTALL | (re.IGNORECASE if ignore_case else 0)) is not None


def negate(test: Test) -> Test:
    return lambda row: None if (found := test(row)) is None else not found


def all_of(tests: list[Test]) -> Test:
    def test(row: Row) -> bool | None:
        found = [one(row) for one in tests]
        return False if False in found else None if None in found else True

    return test


def any_of(tests: list[Test]) -> Test:
    return negate(all_of([negate(test) for test in tests]))


# What hypothesis draws: the text of a filter, and the plain evaluation of the same.
WRITTEN = {
    "status": ["status", "`status`", "attributes.status", '"status"', "attr.`status`"],
    "optimizer.lr": ["optimizer.lr", "params.optimizer.lr", "param.`optimizer.lr`", "`optimizer.lr`"],
    "batch_size": ["batch_size", "params.batch_size", "PARAMS.batch_size"],
    "arch.batch_norm": ["arch.batch_norm", 'params."arch.batch_norm"'],
    "kernel_size": ["kernel_size", "parameters.kernel_size"],
    "started": ["started", "attributes.start_time", "run.started"],
    ODD: ["`odd ``name``, \"100 %\" or 'é'`", "params.`odd ``name``, \"100 %\" or 'é'`"],
    "accuracy": ["accuracy", "metrics.accuracy", "metric.`accuracy`"],
    "nothing": ["nothing", "metrics.nothing"],
    "tags.mlmeta.task": ["tags.`mlmeta.task`", "tags.mlmeta.task", 'tag."mlmeta.task"'],
}
NUMBERS = st.sampled_from(["1e-3", ".8", "0.01", "32", "+32", "-2.5", "3.", "0", "1E1", "9007199254740993", "1e999"])
LOOSE = (".8", "+32", "3.", "1e999")
WORDS = ["Complete", "complete", "", "a_b%c", "auto", "3", "0.010", "it's", "Ünïcode", "zz", "%", "1e-3", "TRUE", "\\"]
TEXTS = st.sampled_from(WORDS)
TIMES = ["2026-11-01", "2026-11-01T23:59", "2026-11-01T00:00:00Z", "2026-11-03 01:00+01:00", "2026-10-31"]
PATTERNS = st.text(st.sampled_from("%_\\abcCOMPLETE.\né*("), max_size=6)


def quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def any_case(*words: str) -> st.SearchStrategy[str]:
    return st.sampled_from([form for word in words for form in (word, word.lower(), word.title())])


def literals(column: str) -> st.SearchStrategy[tuple[str, Any]]:
    """Draw a value that may stand beside a column: as it is written, and itself."""
    numbers = NUMBERS.map(lambda text: (text, int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)))
    texts = TEXTS.map(lambda text: (quote(text), text))
    quoted_numbers = NUMBERS.map(lambda text: (quote(text), text))
    booleans = st.sampled_from([("true", True), ("FALSE", False)])
    if column == "started":
        return st.sampled_from(TIMES).map(lambda text: (quote(text), text))
    if column == "arch.batch_norm":
        return st.one_of(booleans, st.sampled_from([("'True'", "True"), ("'false'", "false")]))
    if column == "kernel_size":
        return st.one_of(numbers, texts, quoted_numbers, booleans)
    if column in ("status", "tags.mlmeta.task"):
        return texts
    if TABLE.attrs["kinds"].get(column) == "param":
        return st.one_of(numbers, quoted_numbers.filter(lambda one: one[1] not in LOOSE))
    return st.one_of(numbers, quoted_numbers)


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, Test]:
    column = draw(st.sampled_from(sorted(WRITTEN)))
    name = draw(st.sampled_from(WRITTEN[column]))
    kind = draw(st.sampled_from(["sign", "in", "null", "like", "between"]))
    no = draw(any_case("NOT ") | st.just(""))
    wrap = negate if no else lambda test: test
    if kind == "null":
        verb = f"{name} {draw(any_case('IS'))} {no}{draw(any_case('NULL'))}"
        return verb, wrap(lambda row: row[column] is None)
    if kind == "like" and TYPES.get(column) == "str":
        word, pattern = draw(any_case("LIKE", "ILIKE")), draw(PATTERNS)
        ignore = word.upper() == "ILIKE"
        return f"{name} {no}{word} {quote(pattern)}", wrap(lambda row: like(row[column], pattern, ignore_case=ignore))
    if kind == "in":
        many = draw(st.lists(literals(column), min_size=1, max_size=4))
        text = f"{name} {no}{draw(any_case('IN'))} ({', '.join(written for written, _ in many)})"
        return text, wrap(any_of([lambda row, v=v: compare(row[column], "=", v) for _, v in many]))
    is_ordered = column != "arch.batch_norm"
    if kind == "between" and is_ordered and (pair := draw(st.tuples(*[literals(column)] * 2))):
        (low_text, low), (high_text, high) = pair
        if not isinstance(low, bool) and not isinstance(high, bool):
            tests = [lambda row: compare(row[column], ">=", low), lambda row: compare(row[column], "<=", high)]
            return f"{name} {no}{draw(any_case('BETWEEN'))} {low_text} and {high_text}", wrap(all_of(tests))
    written, value = draw(literals(column))
    signs = SIGNS if is_ordered and not isinstance(value, bool) else ["=", "==", "!=", "<>"]
    sign = draw(st.sampled_from(sorted(signs)))
    space = draw(st.sampled_from(["", " ", "\n\t"]))
    return f"{name}{space}{sign}{space}{written}", lambda row: compare(row[column], sign, value)


def combine(inner: st.SearchStrategy[tuple[str, Test]]) -> st.SearchStrategy[tuple[str, Test]]:
    def join(parts: list[tuple[str, Test]], word: str) -> tuple[str, Test]:
        tests = [test for _, test in parts]
        joined = all_of(tests) if word.upper() == "AND" else any_of(tests)
        return f" {word} ".join(f"({text})" for text, _ in parts), joined

    lists = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        st.builds(join, lists, any_case("AND", "OR")), inner.map(lambda part: (f"not({part[0]})", negate(part[1])))
    )


FILTERS = st.recursive(conditions(), combine, max_leaves=6)


@given(FILTERS)
@settings(max_examples=300, deadline=None)
def test_a_filter_finds_what_a_plain_evaluation_of_each_row_finds(drawn: tuple[str, Test]) -> None:
    text, test = drawn
    rows = [{name: values[i] for name, values in ROWS.items()} for i in range(8)]
    assert match_filter(TABLE, text).tolist() == [test(row) is True for row in rows]


def write(condition: Condition) -> str:
    """A filter as text, a parenthesis around every part."""
    match condition:
        case And(parts) | Or(parts):
            return f" {type(condition).__name__} ".join(f"({write(part)})" for part in parts)
        case Not(part):
            return f"NOT ({write(part)})"
        case Comparison(column, sign, value):
            return f"{write_column(column)} {sign} {write_value(value)}"
        case Membership(column, values):
            return f"{write_column(column)} IN ({', '.join(map(write_value, values))})"
        case Like(column, pattern, ignore_case):
            return f"{write_column(column)} {'ILIKE' if ignore_case else 'LIKE'} {write_value(pattern)}"
    return f"{write_column(condition.column)} IS NULL"


def write_column(column: Column) -> str:
    return "`" + column.name.replace("`", "``") + "`"


def write_value(value: Literal | Column) -> str:
    if isinstance(value, Column):
        return write_column(value)
    return quote(value.value) if isinstance(value.value, str) else str(value.value)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
COLUMNS = st.builds(Column, ANY_TEXT)
VALUES = st.builds(
    Literal,
    st.booleans() | st.integers(-9, 10**18 - 1) | st.floats(allow_nan=False, allow_infinity=False, width=16) | ANY_TEXT,
)
COMPARISONS = st.builds(Comparison, COLUMNS, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), VALUES | COLUMNS)
LEAVES = (
    COMPARISONS
    | st.builds(Membership, COLUMNS, st.lists(VALUES, min_size=1, max_size=3).map(tuple))
    | st.builds(Like, COLUMNS, st.builds(Literal, ANY_TEXT), st.booleans())
    | st.builds(Missing, COLUMNS)
)


def combine_trees(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.builds(And, several) | st.builds(Or, several) | st.builds(Not, inner)


@given(st.recursive(LEAVES, combine_trees, max_leaves=8))
@settings(max_examples=300, deadline=None)
def test_a_tree_that_is_written_is_read_as_itself(tree: Condition) -> None:
    found = re.sub(r"position=\d+", "position=0", repr(parse_filter(write(tree))))
    assert found == repr(tree)


PIECES = [
    *"()',\"`.%_-<>=!é\0", "and", "or ", " NOT ", "in", "like", "is", "null", "between", "true", "accuracy", "params.",
    "kernel_size", "status", "started", "1e3", ".5", "'x'", "'2026-11-01'", "`", " ", "\n", "\ud800", "9" * 30, "tags",
]  # fmt: skip


def position_of_fault(read: Callable[[str], Any], text: str) -> int:
    try:
        read(text)
    except FilterError as error:
        return error.position
    return 0


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=25).map("".join)))
@settings(max_examples=600, deadline=None)
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    for read in (parse_filter, parse_order, parse_columns, lambda text: match_filter(TABLE, text)):
        assert 0 <= position_of_fault(read, text) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 9_999, "not " * 2_400, "9" * 10_000, "a" * 10_000, "a." * 5_000, "1.1." * 2_500, "'" * 9_999, "`" * 9_999,
        " " * 10_000, "-" * 10_000, "a=1 or " * 1_400, "status like '" + "%a" * 499 + "'",
        "status like '" + "_" * 999 + "'",
        f"accuracy in ({','.join(['1'] * 4_900)})", f"started > '{'9' * 9_000}'", f"batch_size = {'9' * 9_000}",
        "started = '0001-01-01T00:00+23:59'", "started >= '9999-12-31'", "started = 1e999", "started > 1793491200000",
    ],
    ids=lambda text: f"{text[:20]}…",
)  # fmt: skip
def test_a_hostile_text_ends_soon(text: str) -> None:
    assert 0 <= position_of_fault(lambda text: match_filter(TABLE, text), text) <= len(text)


def test_what_is_too_long_or_too_deep_is_refused() -> None:
    with pytest.raises(FilterError, match="longer than 10,000 characters"):
        parse_filter(" " * (MAX_LENGTH + 1))
    assert parse_filter("(" * (MAX_DEPTH - 1) + "a = 1" + ")" * (MAX_DEPTH - 1)) is not None
    with pytest.raises(FilterError, match="nested deeper than 100"):
        parse_filter("(" * MAX_DEPTH + "a = 1" + ")" * MAX_DEPTH)
    with pytest.raises(FilterError, match="pattern is longer"):
        match_filter(TABLE, f"status like '{'x' * (MAX_PATTERN + 1)}'")


@pytest.mark.parametrize(
    ("text", "says", "position"),
    [
        ("accuracy >", "expected a number, true, false, or a text in quotes, got the end", 10),
        ("accuracy > .5 accuracy", "expected AND, OR or the end", 14),
        ("(accuracy > 1", "expected ')'", 13),
        ("accuracy = 'x", "' is never closed", 11),
        ("tags.`mlmeta", "` is never closed", 4),
        ("accuracy ~ 1", "'~' means nothing here", 9),
        ("accuracy = null", "found by IS NULL", 11),
        ("1 = accuracy", "expected a column", 0),
        ("and", "expected a column", 0),
        ("accuracy not 1", "expected an operator", 13),
        ("accuracy is 1", "expected NULL", 12),
        ("accuracy between 1", "expected AND", 18),
        ("status like 5", "expected a text in quotes, got '5'", 12),
        ("accuracy in 1", "expected '('", 12),
        ("acuracy > 1", "no column 'acuracy'. Did you mean 'accuracy'?", 0),
        ("status = 'x' or lr < 1", "no column 'lr'. Did you mean 'optimizer.lr'?", 16),
        ("params.accuracy > 1", "Did you mean 'accuracy'?", 0),
        ("metrics.optimizer.lr > 1", "Did you mean 'optimizer.lr'?", 0),
        ("tags.status = 'x'", "no column 'tags.status'", 0),
        ("zzzzzz = 1", "there are 10 others", 0),
        ("optimizer.lr = 'fast'", "holds numbers (-2.5 to 3), got 'fast'", 15),
        ("optimizer.lr in (1, 'x')", "got 'x'", 20),
        ("optimizer.lr = true", "got true", 15),
        ("optimizer.lr = '0.010'", "none written '0.010'; the number is 0.01, without quotes", 15),
        ("batch_size in (32, '032')", "none written '032'; the number is 32, without quotes", 19),
        ("status > 3", "status holds text ('Complete', 'Diverged', 'complete', …), got 3", 9),
        ("status in (3)", "got 3", 11),
        ("status = true", "got true", 9),
        ("arch.batch_norm = 1", "holds true and false, got 1", 18),
        ("arch.batch_norm > true", "by = and != only", 18),
        ("kernel_size < false", "by = and != only", 14),
        ("started > 'soon'", "no date like '2026-11-01'", 10),
        ("started = true", "holds times (2026-10-31 to 2026-11-03, UTC), got true", 10),
        ("accuracy like '%'", "LIKE looks into text; accuracy holds numbers", 14),
        ("accuracy > started", "started holds times", 11),
        ("accuracy = '\ud800'", "no text", 12),
        ("(accuracy > 1 2", "expected ')', AND or OR, got '2'", 14),
        ("accuracy in (1 2", "expected ',' or ')'", 15),
    ],
)  # fmt: skip
def test_an_error_says_what_and_points_where(text: str, says: str, position: int) -> None:
    with pytest.raises(FilterError, match=re.escape(says)) as caught:
        match_filter(TABLE, text)
    lines = str(caught.value).splitlines()
    assert isinstance(caught.value, BadInputError)
    assert f"character {position + 1}:" in lines[0]
    assert lines[-1].index("^") == position + 2


def test_an_error_far_in_a_long_filter_shows_its_surroundings() -> None:
    text = "accuracy > 0.5 and " * 50 + "acuracy > 1" + " or accuracy < 2" * 50
    with pytest.raises(FilterError) as caught:
        match_filter(TABLE, text)
    _, shown, caret = str(caught.value).splitlines()
    assert shown[caret.index("^") :].startswith("acuracy > 1")
    assert len(shown) < 120


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("accuracy > optimizer.lr", [0, 1, 3, 7]),
        ("kernel_size = batch_size", []),
        ("kernel_size < batch_size", [0, 4, 5]),
        ("kernel_size != status", [0, 1, 2, 4, 5, 6, 7]),
        ("started = attributes.start_time", [0, 1, 3, 4, 5, 6, 7]),
        ("arch.batch_norm = arch.batch_norm", [0, 1, 3, 4, 5, 7]),
        ("nothing < accuracy", []),
        ("nothing like '%'", []),
        ("nothing = 'text of any kind' or accuracy = 1", [3]),
        ("accuracy != 1", [0, 1, 2, 5, 6, 7]),
        ("not accuracy = 1", [0, 1, 2, 5, 6, 7]),
        ("", list(range(8))),
        ("  \n", list(range(8))),
    ],
)
def test_a_filter_finds_rows(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(match_filter(TABLE, text)).tolist() == rows


def test_the_issues_example_finds_what_pandas_finds() -> None:
    table = make_table()
    text = "optimizer.lr < 1e-3 and (accuracy >= .8 or status = 'Diverged') and arch.batch_norm = true"
    good = (table["accuracy"] >= 0.8) | (table["status"] == "Diverged")
    expected = table[(table["optimizer.lr"] < 1e-3) & good & table["arch.batch_norm"]]
    found = table[match_filter(table, text)]
    assert len(expected) > 5
    pd.testing.assert_frame_equal(found, expected)
    assert found.attrs["kinds"] == table.attrs["kinds"]


def test_names_that_a_param_and_a_metric_share_must_be_told_apart() -> None:
    table = pd.DataFrame(
        {"params.lr": [1.0, 2.0], "metrics.lr": [3.0, 1.0], "status": ["a", "b"], "params.status": ["b", "b"]}
    )
    table.attrs["kinds"] = {"params.lr": "param", "metrics.lr": "metric", "params.status": "param"}
    assert match_filter(table, "params.lr = 1 and metric.`lr` = 3").tolist() == [True, False]
    assert match_filter(table, "status = 'b'").tolist() == [False, True]
    assert match_filter(table, "param.status = 'b'").tolist() == [True, True]
    with pytest.raises(FilterError, match=r"param and a metric; write params\.lr or metrics\.lr"):
        match_filter(table, "lr > 1")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("run_name", "model_name"), ("attributes.run_name", "model_name"), ("attributes.start_time", "started"),
        ("params.x", "x"), ("metrics.x", None), ("metrics.model_name", "model_name"), ("tags.x", "tags.x"),
        ("attributes.x", None), ("params.", None), ("run.tags.x", None), ("", None),
    ],
)  # fmt: skip
def test_names_of_mlflow_mean_columns(name: str, found: str | None) -> None:
    columns = ["model_name", "started", "x", "tags.x"]
    assert resolve_column(name, columns, kinds={"x": "param", "tags.x": "tag"}) == found


def test_a_column_is_found_outside_of_a_filter_too() -> None:
    assert find_column(TABLE, "metrics.accuracy") == "accuracy"
    with pytest.raises(FilterError, match="columns, character 1: there is no column 'acc'"):
        find_column(TABLE, "acc", what="columns")


def test_a_column_of_odd_objects_can_be_asked_for_missing_values_only() -> None:
    table = pd.DataFrame({"curve": [np.array([1.0]), None]})
    assert find_kind(table["curve"]) is Kind.OTHER
    assert match_filter(table, "curve is null").tolist() == [False, True]
    for fault in ("curve = 1", "curve = 'x'", "curve like 'x'", "curve in (1)"):
        with pytest.raises(FilterError, match="cannot be compared"):
            match_filter(table, fault)
    with pytest.raises(FilterError, match="cannot be compared"):
        sort_rows(table, "curve")


@pytest.mark.parametrize("kind", ["object", "string", "str"])
def test_text_of_every_type_of_pandas_is_text(kind: str) -> None:
    table = pd.DataFrame({"a": pd.Series(["x", None, "10"], dtype=kind)})
    assert match_filter(table, "a like '1%' or a = 'x'").tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("order", "column", "expected"),
    [
        ("optimizer.lr", "optimizer.lr", [-2.5, 1e-5, 1e-3, 0.01, 0.01, 0.1, 3.0, NA]),
        ("params.optimizer.lr DESC", "optimizer.lr", [3.0, 0.1, 0.01, 0.01, 1e-3, 1e-5, -2.5, NA]),
        ("kernel_size asc", "kernel_size", ["0.5", "3", "1e1", "11", "03", "True", "auto", NA]),
        ("`arch.batch_norm` desc", "arch.batch_norm", [True, True, True, False, False, False, NA, NA]),
        (f"`{ODD.replace('`', '``')}`", ODD, [-np.inf, 0.0, 1.0, 2.0, 3.0, 4.0, np.inf, NA]),
    ],
)
def test_rows_are_sorted_and_missing_ones_come_last(order: str, column: str, expected: list[Any]) -> None:
    found = TABLE[column].iloc[sort_rows(TABLE, order)]
    assert [None if pd.isna(value) else value for value in found] == expected


def test_equal_rows_go_by_the_next_order_and_then_stay() -> None:
    by_both = [3, 2, 7, 6, 1, 0, 5, 4]
    assert sort_rows(TABLE, ["accuracy desc", "started desc, optimizer.lr"]).tolist() == by_both
    assert sort_rows(TABLE, "accuracy DESC").tolist() == [3, 2, 1, 6, 7, 0, 5, 4]
    assert sort_rows(TABLE, "nothing").tolist() == list(range(8))
    assert sort_rows(TABLE, []).tolist() == list(range(8))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("acc desc", "order_by, character 1: there is no column"),
        ("accuracy down", "expected ',' or the end, got 'down'"),
        ("accuracy desc down", "expected ',' or the end"),
        ("accuracy,", "expected a column"),
        ("'accuracy'", "expected a column"),
    ],
)
def test_a_faulty_order_is_an_error(text: str, says: str) -> None:
    with pytest.raises(FilterError, match=says):
        sort_rows(TABLE, text)


def test_lists_of_columns_and_orders_are_read() -> None:
    assert parse_columns("a, params.`b, c`") == (Column("a", 0), Column("params.b, c", 3))
    assert parse_order("a DESC,b") == (Order(Column("a", 0), True), Order(Column("b", 7), False))
    assert parse_columns("") == ()


def test_the_columns_of_a_filter_are_listed() -> None:
    condition = parse_filter("not (a = 1 or b > c) and d in (2) and e like 'x' and f is null")
    assert [column.name for column in list_columns(condition)] == list("abcdef")
    assert list_columns(None) == ()
    assert isinstance(parse_filter("not a = 1"), Not)


def test_an_empty_table_has_no_row_to_find() -> None:
    assert match_filter(TABLE.iloc[:0], "accuracy > 1 or status like 'x%'").tolist() == []
    assert sort_rows(TABLE.iloc[:0], "accuracy, kernel_size").tolist() == []
