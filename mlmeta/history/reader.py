"""What the history asks of a tracking store, and what it is told.

There are two that answer: `mlmeta.history.api_reader` by MLflow's public interface, and `mlmeta.history.sql_reader`,
faster, from MLflow's tables. They give, and the history cache keeps, runs as an Arrow table of text and numbers. A
column is a fact of the run (`FACT_TYPES`), ``param:<key>`` or ``tag:<key>`` (text as MLflow has it), ``metric:<key>``
(float64), or ``curve`` (a list of float64). What a column means for people is decided in `mlmeta.history.table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlmeta.commands.params import CURVE_TAG, parse_curve

FACT_TYPES: Mapping[str, pa.DataType] = {
    "run_id": pa.string(),
    "name": pa.string(),
    "experiment_id": pa.string(),
    "experiment": pa.string(),
    "run_status": pa.string(),
    "started_ms": pa.int64(),
    "ended_ms": pa.int64(),
}
# Long texts for people, and what says the same in another place: no part of the history, and read when they are named.
UNREAD_TAGS = frozenset({"mlflow.note.content", "mlmeta.commands", "mlflow.log-model.history", "mlflow.runName"})
# MLflow stores an infinite metric as the largest number of a float64, or near it.
INFINITE = 1.79e308
_CURVES = pa.list_(pa.float64())
_NUMBER = r"(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|null)"
_USUAL_CURVE = rf"^\[{_NUMBER}(, {_NUMBER})*\]$"


@dataclass(frozen=True)
class Changes:
    """What is other than at the last reading.

    Attributes:
        runs: New and changed ones, see `mlmeta.history.reader`.
        gone: The ids of runs that are deleted.
        cursor: To be given back the next time; JSON.
    """

    runs: pa.Table
    gone: list[str]
    cursor: dict[str, Any]


def empty_table() -> pa.Table:
    """Return the table of no runs."""
    return RunRows().to_arrow()


@dataclass(frozen=True)
class Known:
    """What the last reading gave: empty before the first."""

    table: pa.Table = field(default_factory=empty_table)
    cursor: Mapping[str, Any] = field(default_factory=dict)


class Reader(Protocol):
    """What the history asks of a tracking store."""

    def is_unchanged(self, cursor: Mapping[str, Any]) -> bool:
        """Return whether nothing at all was written since, as far as that can be told at once."""

    def read_changes(self, known: Known) -> Changes:
        """Return what is other than at the last reading; everything where there was none."""

    def read_curves(self, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
        """Yield (run id, step, value) of a metric's whole history."""

    def read_tag(self, key: str) -> Iterator[tuple[str, str]]:
        """Yield (run id, value) of every run that has a tag."""


# The places of values among the runs, and the values: one by one or as arrays.
Column = tuple[Any, Any]


@dataclass
class RunRows:
    """Runs on their way from a store: facts by run, everything else by column.

    Attributes:
        facts: Every name of `FACT_TYPES` with one value a run.
        texts: ``param:<key>`` or ``tag:<key>``.
        numbers: ``metric:<key>``.
    """

    facts: dict[str, Any] = field(default_factory=lambda: {name: [] for name in FACT_TYPES})
    texts: dict[str, Column] = field(default_factory=dict)
    numbers: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of runs."""
        return len(self.facts["run_id"])

    def add_text(self, column: str, row: int, value: str | None) -> None:
        """Add one param or tag of a run."""
        rows, values = self.texts.setdefault(column, ([], []))
        rows.append(row)
        values.append(value)

    def add_number(self, column: str, row: int, value: float) -> None:
        """Add one metric of a run."""
        rows, values = self.numbers.setdefault(column, ([], []))
        rows.append(row)
        values.append(value)

    def to_arrow(self) -> pa.Table:
        """Return the runs as a table."""
        n = len(self)
        columns = {name: _chunk(self.facts[name], kind) for name, kind in FACT_TYPES.items()}
        columns["curve"] = _read_curves(*self.texts.pop(f"tag:{CURVE_TAG}", ([], [])), n_rows=n)
        for name, (rows, texts) in self.texts.items():
            columns[name] = spread(rows, texts, n_rows=n)
        for name, (rows, numbers) in self.numbers.items():
            present = np.zeros(n, dtype=bool)
            present[rows] = True
            values = np.full(n, np.nan)
            values[rows] = numbers
            columns[name] = pa.array(restore_infinite(values), mask=~present)
        return pa.table(columns)


def restore_infinite(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return metrics as they were logged, float64 (n,)."""
    return np.where(np.abs(values) >= INFINITE, np.copysign(np.inf, values), values)


def _chunk(values: Any, kind: pa.DataType) -> pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([pa.array(values, type=kind)])


def spread(rows: Any, texts: Any, *, n_rows: int) -> pa.Array:
    """Return texts at their rows, as a dictionary; the other rows are missing."""
    if not len(rows):
        return pa.nulls(n_rows, pa.dictionary(pa.int32(), pa.string()))
    # All chunks come with one dictionary.
    encoded = _chunk(texts, pa.string()).dictionary_encode().chunks
    codes = np.full(n_rows, -1, dtype=np.int32)
    codes[rows] = np.concatenate([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded])
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), encoded[0].dictionary)


def _read_curves(rows: Any, texts: Any, *, n_rows: int) -> pa.ChunkedArray:
    curves = pa.chunked_array(map(_parse_curves, _chunk(texts, pa.string()).chunks), _CURVES)
    at = np.full(n_rows, -1)
    at[rows] = np.arange(len(curves))
    return curves.take(pa.array(at, mask=at < 0))


def _parse_curves(texts: pa.Array) -> pa.Array:
    """Return what `parse_curve` gives for each text; those that are written as usual are read at once."""
    texts = pc.fill_null(texts, "")
    usual = pc.match_substring_regex(texts, _USUAL_CURVE)
    lists = pc.split_pattern(pc.utf8_slice_codeunits(texts.filter(usual), 1, -1), ", ")
    numbers = pc.if_else(pc.equal(lists.values, "null"), "nan", lists.values).cast(pa.float64())
    others = [parse_curve(text) for text in texts.filter(pc.invert(usual)).to_pylist()]
    curves = pa.concat_arrays([pa.ListArray.from_arrays(lists.offsets, numbers), pa.array(others, _CURVES)])
    order = np.argsort(pc.invert(usual).to_numpy(zero_copy_only=False), kind="stable")
    return curves.take(pa.array(np.argsort(order)))


def join_tables(tables: Iterable[pa.Table]) -> pa.Table:
    """Return tables one after the other; a column that one of them lacks is missing there."""
    plain = [_with_one_width(table) for table in tables]
    return pa.concat_tables(plain, promote_options="default")


def _with_one_width(table: pa.Table) -> pa.Table:
    """Return a table whose dictionaries all have indices of 32 bits, as Parquet gives them back."""
    kind = pa.dictionary(pa.int32(), pa.string())
    fields = [f.with_type(kind) if pa.types.is_dictionary(f.type) else f for f in table.schema]
    schema = pa.schema(fields)
    return table if table.schema.equals(schema) else table.cast(schema)
