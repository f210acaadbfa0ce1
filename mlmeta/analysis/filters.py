"""Filters and sorts the table of attempts, by texts that users of MLflow know how to write.

What a filter may say stands in `mlmeta.analysis.filter_grammar`. A condition on a missing value is neither true nor
false (Kleene's three-valued logic), and what is not true in the end is not found: ``accuracy != 1`` does not find an
attempt without accuracy, nor does ``NOT accuracy = 1``.

Values are compared as what they are. In a column of text a value in quotes is a text (``code = '001'`` does not find
``1``), and one without quotes a number, which is compared with the texts that are numbers: ``<`` and ``>`` see these
only. In a column of numbers a value in quotes may be a number too; a param can only equal one that is written as
programs write it, see `mlmeta.history.table.make_frame`. Times are compared with dates in UTC, where a date alone means
the whole day.

``task.best`` is the best value that any attempt on the same task has of the column that it is compared with, and
``task.chance`` the accuracy of guessing there, 1 / K for K labels. Beside a number both are about ``accuracy``.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlmeta.analysis.filter_grammar import (
    OF_TASK,
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
    parse_filter,
    parse_order,
    read_number,
)
from mlmeta.errors import shorten
from mlmeta.history.table import (
    ColumnValues,
    Kind,
    explain_unknown,
    is_plain_number,
    lower_is_better,
    read_numbers,
    resolve_column,
    to_bools,
)

MAX_PATTERN = 1_000
_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?")
_Bools = npt.NDArray[np.bool_]
_SIGNS = {
    "=": (operator.eq, pc.equal),
    "!=": (operator.ne, pc.not_equal),
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}
_SHIFTS: dict[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {sign: compare for sign, (compare, _) in _SIGNS.items()}
_COMPARE_TEXTS = {sign: compare for sign, (_, compare) in _SIGNS.items()}


def match_filter(table: pd.DataFrame, text: str) -> pd.Series[bool]:
    """Return which rows a filter finds: bool, with the table's index. An empty filter finds all.

    Raises:
        FilterError: If the filter cannot be understood, names a column that is not there, or compares what cannot
            be compared; it names the position and the nearest column.
    """
    condition = parse_filter(text)
    if condition is None:
        return pd.Series(True, index=table.index, dtype=bool)
    mask = _Evaluation(table, text).evaluate(condition)
    return pd.Series(mask.fillna(False).to_numpy(dtype=bool), index=table.index)


def sort_rows(table: pd.DataFrame, order_by: Sequence[str] | str) -> npt.NDArray[np.int64]:
    """Return the positions of the rows in another order, int64 (n,).

    Of several orders the first counts most. Missing values come last, and equal ones keep their order; text that is a
    number goes by its number, before other text.

    Raises:
        FilterError: If an order cannot be understood or names a column that is not there.
    """
    keys: list[npt.NDArray[Any]] = []
    for text in [order_by] if isinstance(order_by, str) else order_by:
        for order in parse_order(text):
            name = find_column(table, order.column, text=text, what="order_by")
            values = ColumnValues(name, table[name])
            if values.kind is Kind.OTHER:
                raise FilterError(f"{name} holds {values.describe()}", text, order.column.position, what="order_by")
            keys += [values.missing, np.where(values.missing, 0, -values.ranks if order.descending else values.ranks)]
    # The last key of lexsort is the first to sort by.
    return np.lexsort(keys[::-1]).astype(np.int64) if keys else np.arange(len(table))


def find_column(table: pd.DataFrame, column: Column | str, *, text: str = "", what: str = "column") -> str:
    """Return the table's own name of a column that was named as MLflow's users do.

    Raises:
        FilterError: If there is no such column; names the nearest, and points into `text`, which is a `what`.
    """
    wanted = Column(column) if isinstance(column, str) else column
    name = resolve_column(wanted.name, table.columns, kinds=table.attrs.get("kinds", {}))
    if name is None:
        known = [*table.columns, *(OF_TASK if what == "filter" and wanted.name.startswith("task.") else ())]
        raise FilterError(explain_unknown(wanted.name, known), text or wanted.name, wanted.position, what=what)
    return name


class _Evaluation:
    """One filter over one table of n rows."""

    def __init__(self, table: pd.DataFrame, text: str) -> None:
        self.table = table
        self.text = text
        self.columns: dict[str, ColumnValues] = {}

    def fail(self, message: str, position: int) -> NoReturn:
        raise FilterError(message, self.text, position)

    def read(self, column: Column, beside: Column | None = None) -> ColumnValues:
        if column.name in OF_TASK and column.name not in self.table.columns:
            if beside is None or beside.name in OF_TASK:
                beside = Column("accuracy", column.position)
            return self._read_of_task(column, beside)
        if column.name.partition("-")[0] in OF_TASK and column.name not in self.table.columns:
            self.fail(f"blanks stand around a sign: {column.name.replace('-', ' - ', 1)}", column.position)
        if column.name not in self.columns:
            name = find_column(self.table, column, text=self.text, what="filter")
            self.columns[column.name] = ColumnValues(name, self.table[name])
        return self.columns[column.name]

    def _read_of_task(self, column: Column, beside: Column) -> ColumnValues:
        """Return what is known of each attempt's task: the best of a column, or the accuracy of guessing."""
        values = self.read(beside)
        if values.kind is not Kind.NUMBERS:
            self.fail(f"{column.name} is a number; {values.name} holds {values.describe()}", column.position)
        numbers = np.where(values.missing, np.nan, values.numbers)
        if column.name == "task.chance":
            if not values.name.endswith("accuracy"):
                self.fail(f"task.chance is the accuracy of guessing; {values.name} is none", column.position)
            n_labels = read_numbers(self.table, "task.n_labels")
            if np.isnan(n_labels).all():
                self.fail("no attempt says how many labels its task has (task.n_labels)", column.position)
            numbers = 1 / np.where(n_labels > 0, n_labels, np.nan)
        by_task = pd.Series(numbers, dtype="float64").groupby(self.table["task"].to_numpy())
        least = lower_is_better(values.name) or column.name == "task.chance"
        return ColumnValues(column.name, by_task.transform("min" if least else "max"))

    def evaluate(self, condition: Condition) -> pd.arrays.BooleanArray:
        """Return true, false or unknown for each row."""
        match condition:
            case And(parts):
                return functools.reduce(operator.and_, map(self.evaluate, parts))
            case Or(parts):
                return functools.reduce(operator.or_, map(self.evaluate, parts))
            case Not(part):
                return ~self.evaluate(part)
            case Missing(column):
                missing = self.read(column).missing
                return pd.arrays.BooleanArray(missing.copy(), np.zeros_like(missing))
            case Comparison(column, sign, Column() as other):
                return self._compare_columns(column, sign, other)
        values = self.read(condition.column)
        unknown = values.missing.copy()
        found = np.zeros_like(unknown)
        if values.kind is not Kind.NOTHING:
            match condition:
                case Comparison(_, sign, Literal() as literal):
                    found = self._compare(values, sign, literal, unknown)
                case Membership(_, literals):
                    found = self._find_members(values, literals, unknown)
                case Like(_, pattern, ignore_case):
                    found = self._find_like(values, pattern, ignore_case=ignore_case)
        return pd.arrays.BooleanArray(found, unknown)

    def _compare(self, values: ColumnValues, sign: str, literal: Literal, unknown: _Bools) -> _Bools:
        """Compare a column with a value; sets `unknown` where neither true nor false can be said."""
        match values.kind:
            case Kind.NUMBERS:
                number = self._as_number(values, literal, is_order=sign not in ("=", "!="))
                return np.asarray(_COMPARE[sign](values.numbers, number))
            case Kind.TEXT:
                return self._compare_text(values, sign, literal, unknown)
            case Kind.TIMES:
                return _compare_times(values.times, sign, self._as_times(values, literal))
            case Kind.BOOLEANS:
                truth = _as_boolean(literal.value)
                if truth is None:
                    self._fail_type(values, literal)
                self._refuse_order(values, sign, literal.position)
                return np.asarray(_COMPARE[sign](values.booleans, truth))
            case _:
                self._fail_type(values, literal)

    def _compare_text(self, values: ColumnValues, sign: str, literal: Literal, unknown: _Bools) -> _Bools:
        if isinstance(literal.value, bool):
            return self._compare_words(values, sign, literal)
        if isinstance(literal.value, str):
            return to_bools(_COMPARE_TEXTS[sign](values.texts, literal.value))
        is_number = ~np.isnan(values.numbers)
        if not is_number.any():
            self._fail_type(values, literal)
        if sign not in ("=", "!="):
            unknown |= ~is_number
        return np.asarray(_COMPARE[sign](values.numbers, literal.value))

    def _compare_words(self, values: ColumnValues, sign: str, literal: Literal) -> _Bools:
        """Compare text with true or false."""
        words = pc.utf8_lower(values.texts)
        if not pc.any(pc.is_in(words, value_set=pa.array(["true", "false"], words.type))).as_py():
            self._fail_type(values, literal)
        self._refuse_order(values, sign, literal.position)
        return to_bools(_COMPARE_TEXTS[sign](words, str(literal.value).lower()))

    def _find_members(self, values: ColumnValues, literals: Sequence[Literal], unknown: _Bools) -> _Bools:
        if values.kind not in (Kind.NUMBERS, Kind.TEXT) or any(isinstance(one.value, bool) for one in literals):
            return functools.reduce(np.logical_or, (self._compare(values, "=", one, unknown) for one in literals))
        numbers: list[int | float] = []
        for literal in literals:
            if values.kind is Kind.NUMBERS:
                numbers.append(self._as_number(values, literal))
            elif not isinstance(literal.value, str):
                if np.isnan(values.numbers).all():
                    self._fail_type(values, literal)
                numbers.append(literal.value)
        found: _Bools = np.zeros(len(values.missing), dtype=bool)
        for kind in (int, float):
            if same := [number for number in numbers if type(number) is kind]:
                found |= np.isin(values.numbers, np.array(same))
        if values.kind is Kind.TEXT:
            texts = pa.array([literal.value for literal in literals if isinstance(literal.value, str)], pa.string())
            found |= to_bools(pc.is_in(values.texts, value_set=texts.cast(values.texts.type)))
        return found

    def _as_number(self, values: ColumnValues, literal: Literal, *, is_order: bool = False) -> int | float:
        """Return the number that a value means beside a column of numbers."""
        if isinstance(literal.value, bool):
            self._fail_type(values, literal)
        if not isinstance(literal.value, str):
            return literal.value
        if not _NUMBER.fullmatch(literal.value):
            self._fail_type(values, literal)
        is_param = self.table.attrs.get("kinds", {}).get(values.name) == "param"
        if is_param and not is_order and not is_plain_number(literal.value):
            shown, plain = shorten(literal.value, 40), f"{read_number(literal.value):g}"
            hint = f"none written {shown}; the number is {plain}, without quotes"
            self.fail(f"{values.name} holds {values.describe()}, {hint}", literal.position)
        return read_number(literal.value)

    def _find_like(self, values: ColumnValues, pattern: Literal, *, ignore_case: bool) -> _Bools:
        text = str(pattern.value)
        if values.kind is not Kind.TEXT:
            self.fail(f"LIKE looks into text; {values.name} holds {values.describe()}", pattern.position)
        if len(text) > MAX_PATTERN:
            self.fail(f"the pattern is longer than {MAX_PATTERN:,} characters", pattern.position)
        # Arrow takes any backslash as an escape; here it is one before % _ and itself only.
        escaped = re.sub(r"\\(\\|%|_)?", lambda match: match.group() if match.group(1) else r"\\", text)
        # Arrow's matcher takes time linear in the text.
        return to_bools(pc.match_like(values.texts, escaped, ignore_case=ignore_case))

    def _compare_columns(self, left: Column, sign: str, right: Column) -> pd.arrays.BooleanArray:
        a, b = self.read(left, right), self.read(right, left)
        if right.shift is not None:
            b = self._shift(b, right)
        unknown = a.missing | b.missing
        kinds = {a.kind, b.kind}
        if Kind.NOTHING in kinds:
            found = np.zeros_like(unknown)
        elif kinds == {Kind.TEXT}:
            both = ~np.isnan(a.numbers) & ~np.isnan(b.numbers)
            as_texts = to_bools(_COMPARE_TEXTS[sign](a.texts, b.texts))
            found = np.where(both, _COMPARE[sign](a.numbers, b.numbers), as_texts)
        elif kinds <= {Kind.TEXT, Kind.NUMBERS}:
            found = np.asarray(_COMPARE[sign](a.numbers, b.numbers))
            if sign not in ("=", "!="):
                unknown |= np.isnan(a.numbers) | np.isnan(b.numbers)
        elif kinds == {Kind.TIMES}:
            found = np.asarray(_COMPARE[sign](a.times, b.times))
        elif kinds == {Kind.BOOLEANS}:
            self._refuse_order(a, sign, right.position)
            found = np.asarray(_COMPARE[sign](a.booleans, b.booleans))
        else:
            self.fail(f"{a.name} holds {a.describe()}, {b.name} holds {b.describe()}", right.position)
        return pd.arrays.BooleanArray(found, unknown)

    def _shift(self, values: ColumnValues, column: Column) -> ColumnValues:
        """Return a column of numbers after what a filter does to it."""
        sign, number = column.shift or ("+", 0)
        if values.kind not in (Kind.NUMBERS, Kind.NOTHING):
            self.fail(f"{sign} {number:g} needs numbers; {values.name} holds {values.describe()}", column.position)
        numbers = np.where(values.missing, np.nan, values.numbers.astype(np.float64))
        return ColumnValues(values.name, pd.Series(_SHIFTS[sign](numbers, float(number)), dtype="float64"))

    def _as_times(self, values: ColumnValues, literal: Literal) -> tuple[float, float]:
        """Return the first and last millisecond since 1970 that a literal means."""
        if isinstance(literal.value, bool):
            self._fail_type(values, literal)
        if isinstance(literal.value, int | float):
            return literal.value, literal.value
        try:
            return _read_times(literal.value)
        except (ValueError, OverflowError):
            shown = shorten(literal.value, 40)
            message = f"{values.name} holds times; {shown} is no date like '2026-11-01' or '2026-11-01T14:30'"
            self.fail(message, literal.position)

    def _refuse_order(self, values: ColumnValues, sign: str, position: int) -> None:
        if sign not in ("=", "!="):
            self.fail(f"{values.name} is compared with true or false by = and != only", position)

    def _fail_type(self, values: ColumnValues, literal: Literal) -> NoReturn:
        self.fail(f"{values.name} holds {values.describe()}, got {shorten(literal.value, 40)}", literal.position)


def _as_boolean(value: bool | int | float | str) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.casefold())
    return value if isinstance(value, bool) else None


def _read_times(text: str) -> tuple[int, int]:
    moment = datetime.fromisoformat(text)
    start = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
    try:
        date.fromisoformat(text)
    except ValueError:
        return start, start
    return start, start + _DAY_MS - 1


def _compare_times(times: npt.NDArray[np.int64], sign: str, span: tuple[float, float]) -> _Bools:
    """Compare with all that lies between the first and the last moment of a span."""
    first, last = span
    inside = (times >= first) & (times <= last)
    by_sign = {"=": inside, "!=": ~inside, "<": times < first, ">": times > last}
    return by_sign[sign] if sign in by_sign else times <= last if sign == "<=" else times >= first
