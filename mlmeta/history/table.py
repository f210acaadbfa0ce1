"""The history as people read it: Arrow's text and numbers to a DataFrame of typed columns.

Its vocabulary is here too: which columns are facts, params or metrics, how a name is found among them, and how their
values are read.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlmeta.commands.params import MAX_TAG, MAX_VALUE
from mlmeta.errors import NO_ATTEMPT_HAS, NO_COLUMN, BadInputError, nearest_name, shorten, suggest
from mlmeta.status import Status

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FACTS = ("run_id", "model_name", "status", "task", "started", "duration_s")
FACT_COLUMNS = ("run_id", "model_name", "status", "task", "experiment", "started", "duration_s")
_OWN_COLUMNS = {*FACT_COLUMNS, "curve"}
FAILED = (Status.FAILED, Status.DIVERGED)
_KINDS = ("param", "metric", "tag")
_DIGEST = "tag:mlmeta.task_digest"
_METRIC = re.compile(r"metrics\..*|.*(loss|accuracy|_std|_f1|seconds|per_second)|learning_rate")
_LOWER_IS_BETTER = re.compile(r"loss|seconds|duration|error|regret")
_ENTITIES = {
    **dict.fromkeys(("params", "param", "parameters", "parameter"), "param"),
    **dict.fromkeys(("metrics", "metric"), "metric"),
    **dict.fromkeys(("tags", "tag"), "tag"),
    **dict.fromkeys(("attributes", "attribute", "attr", "run"), "fact"),
}
# What MLflow calls the facts of a run.
_MLFLOW_NAMES = {"run_name": "model_name", "start_time": "started", "created": "started"}
_WHOLE = r"(0|-?[1-9][0-9]*)"
_EXPONENT = "([eE][-+]?[0-9]+)?"
_INFINITE = "[-+]?(inf|Inf|infinity|Infinity)"
# A number as programs write it, and one that a person may have written: 0.10, .5, +3. Neither begins with 00 or 01.
_PLAIN = rf"^(({_WHOLE}|-?(0|[1-9][0-9]*)\.(0|[0-9]*[1-9])){_EXPONENT}|{_INFINITE})$"
_LOOSE = rf"^([-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+){_EXPONENT}|{_INFINITE})$"
_NO_DIGITS = r"^[-+]?0*\.?0*|[eE].*$|\."
# What a float64 tells apart: digits of a number, and whole numbers.
_MOST_DIGITS = 17
_MOST_WHOLE = 2**53


def make_frame(table: pa.Table) -> pd.DataFrame:
    """Return runs as a typed DataFrame, newest first.

    A param's column is Int64, float64 or boolean where each of its texts is one as programs write it, else text;
    missing stays missing. ``1``, ``1.0``, ``0.001``, ``1e-3``, ``1e-05`` and ``inf`` are numbers as programs write
    them. ``001``, ``1.10``, ``+1``, ``nan`` and what a float64 cannot hold are not: where one of these occurs all texts
    of the column stay what they are, so that ``001`` and ``1`` are two values; see `read_texts`.
    Where a param and a metric have one name they become ``params.<name>`` and ``metrics.<name>``.

    Args:
        table: See `mlmeta.history.reader`.

    Returns:
        `FACT_COLUMNS`, params, metrics, ``tags.<key>`` and ``curve``; ``attrs["kinds"]`` says of each of the middle
        ones which it is.
    """
    table = table.take(pc.sort_indices(table, [("started_ms", "descending"), ("run_id", "ascending")]))
    columns: dict[str, Any] = dict(_make_facts(table))
    kinds = {}
    for source, name, kind in _name_columns(table.column_names):
        column = table[source]
        if column.null_count == len(column):
            # Left by runs that are gone.
            continue
        columns[name] = _READERS[kind](column)
        kinds[name] = kind
    columns["curve"] = _split_curves(table["curve"])
    frame = pd.DataFrame(columns, copy=False)
    frame.attrs["kinds"] = kinds
    return frame


def _name_columns(sources: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (column of the table, name for people, kind): params by name as they come, then metrics, then tags."""
    named = [(source, *source.split(":", 1)) for source in sources if source.split(":", 1)[0] in _KINDS]
    params = {name for _, kind, name in named if kind == "param"}
    metrics = {name for _, kind, name in named if kind == "metric"}
    for source, kind, name in sorted(named, key=lambda row: (_KINDS.index(row[1]), _natural_key(row[2]))):
        clashes = name in _OWN_COLUMNS or (kind == "metric" and name in params) or (kind == "param" and name in metrics)
        yield source, f"{kind}s.{name}" if clashes or kind == "tag" else name, kind


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts ``model.layers.2`` before ``model.layers.10``."""
    parts = re.split(r"(\d{1,9})", name)
    return [(1, int(part), "") if part.isascii() and part.isdigit() else (0, 0, part) for part in parts]


def _make_facts(table: pa.Table) -> Iterator[tuple[str, Any]]:
    yield "run_id", _to_text(table["run_id"])
    yield "model_name", _to_text(table["name"])
    yield "status", _to_text(_column(table, "tag:mlmeta.status", table["run_status"]))
    yield "task", _name_tasks(table)
    yield "experiment", _to_text(table["experiment"])
    yield "started", table["started_ms"].cast(pa.timestamp("ms", tz="UTC")).to_pandas()
    duration = (_to_numbers(table["ended_ms"]) - _to_numbers(table["started_ms"])) / 1000
    # Imports of older versions gave an end to what nobody had timed: its start.
    yield "duration_s", np.where(duration == 0, np.nan, duration)


def _column(table: pa.Table, name: str, default: Any = None) -> Any:
    if name not in table.column_names:
        return pa.nulls(len(table), pa.string()) if default is None else default
    column = _decode(table[name])
    return column if default is None else pc.coalesce(column, default)


def _name_tasks(table: pa.Table) -> pd.Series:
    """Return a short name for every run's task, given or the data's; unlike tasks never share one."""
    given = _to_text(_column(table, "tag:mlmeta.task_name"))
    name = given.fillna(_to_text(_column(table, "param:data.name")))
    path = _to_text(_column(table, "param:data.path"))
    name = name.fillna(path.str.rstrip("/\\").str.replace(r"^.*[/\\]", "", regex=True))
    digest = _to_text(_column(table, _DIGEST))
    # One task has one name, whatever way led to its pictures.
    first = name.groupby(digest).transform("first")
    name = first.fillna(name).fillna(digest.str[:8])
    tasks = pd.DataFrame({"name": name, "digest": digest}).drop_duplicates().dropna()
    shared = tasks["name"][tasks["name"].duplicated(keep=False)]
    ambiguous = name.isin(shared) & digest.notna()
    return name.where(~ambiguous, name + " @" + digest.str[:6])


def _decode(column: Any) -> Any:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _to_text(column: Any) -> pd.Series:
    return pd.Series(_decode(column).to_pandas(), dtype="str")


def _to_numbers(column: Any) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _type(column: pa.ChunkedArray) -> Any:
    """Return a param's values in the type that all of them have."""
    texts, codes, missing = _encode(column)
    if set(texts[:5].to_pylist()) <= {"true", "false", "True", "False"}:
        values = pc.equal(pc.utf8_lower(texts), "true").to_numpy(zero_copy_only=False)
        return pd.arrays.BooleanArray(values[codes] & ~missing, missing)
    if _all(pc.match_substring_regex(texts, f"^{_WHOLE}$")):
        with contextlib.suppress(pa.ArrowInvalid):
            integers = texts.cast(pa.int64()).to_numpy(zero_copy_only=False)
            return pd.arrays.IntegerArray(np.where(missing, 0, integers[codes]), missing)
    if _all(pc.match_substring_regex(texts, _PLAIN)):
        numbers = _parse(texts)
        if _are_exact(texts, numbers).all():
            return np.where(missing, np.nan, numbers[codes])
    return _to_text(column)


def _all(mask: pa.BooleanArray) -> bool:
    return pc.all(mask, min_count=0).as_py() is True


def _parse(texts: pa.Array) -> Floats:
    """Return the numbers of texts, NaN where one is missing."""
    numbers: Floats = pc.utf8_ltrim(texts, "+").cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _are_exact(texts: pa.Array, numbers: Floats) -> npt.NDArray[np.bool_]:
    """Return which numbers say all that their texts do: no digit is lost, and none became 0 or infinite."""
    exact = np.isfinite(numbers) | to_bools(pc.match_substring_regex(texts, f"^{_INFINITE}$"))
    digits = pc.replace_substring_regex(texts, _NO_DIGITS, "")
    exact &= (numbers != 0) | to_bools(pc.equal(digits, ""))
    exact &= to_bools(pc.less_equal(pc.utf8_length(digits), _MOST_DIGITS))
    is_whole = to_bools(pc.match_substring_regex(texts, f"^{_WHOLE}$"))
    return exact & ~(is_whole & (np.abs(numbers) >= _MOST_WHOLE))


def to_bools(mask: pa.Array) -> npt.NDArray[np.bool_]:
    """Return a mask of Arrow's, (n,), with False for what is missing."""
    return np.asarray(mask.fill_null(False).to_numpy(zero_copy_only=False), dtype=bool)


def read_texts(texts: pa.Array) -> Floats:
    """Return the numbers that texts stand for, float64 (n,), NaN for all other texts.

    A number as programs write it (see `make_frame`) is one. So is one that a person may write, such as ``0.10``, ``.5``
    or ``+3``, as long as no other text here has the same number: ``1.10`` beside ``1.1`` is a word. ``001`` never is.

    Args:
        texts: Strings, missing ones too.
    """
    encoded = texts.dictionary_encode()
    words = encoded.dictionary
    loose = pc.match_substring_regex(words, _LOOSE)
    numbers = _parse(pc.if_else(loose, words, None))
    plain = to_bools(pc.match_substring_regex(words, _PLAIN)) & _are_exact(words, numbers)
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    numbers = np.where(~plain & (counts[place.ravel()] > 1), np.nan, numbers)
    places = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    read: Floats = np.append(numbers, np.nan)[places]
    return read


def is_plain_number(text: str) -> bool:
    """Return whether a text is a number as programs write it; see `make_frame`."""
    return bool(re.fullmatch(_PLAIN[1:-1], text))


def _encode(column: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the texts that occur, which of them each row has (0 where it has none), and which rows have none."""
    encoded = pa.chunked_array(column.unify_dictionaries().chunks, column.type).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    missing = encoded.indices.is_null().to_numpy(zero_copy_only=False)
    codes = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    # Runs that are gone leave their texts in the dictionary.
    occurs = np.bincount(codes[~missing], minlength=len(encoded.dictionary)) > 0
    return encoded.dictionary.filter(pa.array(occurs)), np.where(missing, 0, np.cumsum(occurs)[codes] - 1), missing


_READERS: dict[str, Callable[[Any], Any]] = {"param": _type, "metric": _to_numbers, "tag": _to_text}


def _split_curves(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    curves = np.full(len(column), None, dtype=object)
    start = 0
    for chunk in column.chunks:
        values = chunk.values.to_numpy(zero_copy_only=False)
        offsets, present = chunk.offsets.to_numpy(), chunk.is_valid().to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(present):
            curves[start + row] = values[offsets[row] : offsets[row + 1]]
        start += len(chunk)
    return curves


def find_kinds(table: pd.DataFrame) -> dict[str, str]:
    """Return column → kind; where pandas has lost it, as the columns' names and types say."""
    kinds: dict[str, str] | None = table.attrs.get("kinds")
    if kinds is not None:
        return kinds
    params = set(list_params(table))
    kinds = {name: "param" if name in params or not is_numeric(table[name]) else "metric" for name in table.columns}
    kinds |= {name: "tag" for name in table.columns if name.startswith("tags.")}
    return {name: kind for name, kind in kinds.items() if name not in _OWN_COLUMNS}


def with_kinds(table: pd.DataFrame, kinds: dict[str, str]) -> pd.DataFrame:
    """Return the table, sharing its columns, with what each of them is."""
    table = table.copy(deep=False)
    table.attrs = {**table.attrs, "kinds": kinds}
    return table


def is_numeric(series: pd.Series[Any]) -> bool:
    """Return whether a column's type is one of numbers, booleans left out."""
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


def holds_numbers(series: pd.Series[Any]) -> bool:
    """Return whether a column's values are numbers, by their type or, of text, all as `read_texts` reads them."""
    column = ColumnValues("", series)
    if column.kind is not Kind.TEXT:
        return is_numeric(series)
    return not np.isnan(column.numbers[~column.missing]).any()


def list_params(table: pd.DataFrame) -> list[str]:
    """Return the columns that hold params, by ``table.attrs["kinds"]``, or by their names where that is lost."""
    kinds = table.attrs.get("kinds")
    if kinds:
        return [name for name in table.columns if kinds.get(name) == "param"]
    names = [str(name) for name in table.columns if name not in _OWN_COLUMNS]
    return [name for name in names if not name.startswith("tags.") and not _METRIC.fullmatch(name)]


def check_column(table: pd.DataFrame, name: str, *, what: str) -> None:
    """Check that a table has a column.

    Raises:
        BadInputError: If not; it says which column's name is nearest. `what` is "param" or "metric".
    """
    if name not in table.columns:
        raise BadInputError(f"{NO_ATTEMPT_HAS} {what} {shorten(name)}{suggest(name, map(str, table.columns))}")


def lower_is_better(metric: str) -> bool:
    """Return whether the smaller of two values of a metric is the better one, as its name says (losses, seconds)."""
    return _LOWER_IS_BETTER.search(metric.casefold()) is not None


def read_numbers(table: pd.DataFrame, name: str) -> Floats:
    """Return a column's finite numbers, float64, shape (n,); NaN where it has none, or where there is no column."""
    if name not in table.columns:
        return np.full(len(table), np.nan)
    column = ColumnValues(name, table[name])
    if column.kind is Kind.TEXT:
        values: Floats = column.numbers
    else:
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def read_scores(table: pd.DataFrame, metric: str) -> Floats:
    """Return a metric's values as they are, float64, shape (n,); NaN where there is none.

    Raises:
        BadInputError: If the table lacks the metric, or it is no number.
    """
    check_column(table, metric, what="metric")
    if not pd.api.types.is_numeric_dtype(table[metric]):
        raise BadInputError(f"attempts can be compared by numbers only, and {shorten(metric)} is none")
    return table[metric].to_numpy(dtype=np.float64, na_value=np.nan)


def is_cut(value: Any) -> bool:
    """Return whether a value was cut where it was recorded: a text as long as MLflow takes, of a param or of a tag."""
    return isinstance(value, str) and len(value) in (MAX_VALUE, MAX_TAG)


def list_cut(table: pd.DataFrame) -> list[str]:
    """Return the columns that hold a value that was cut where it was recorded."""
    texts = [n for n in table.columns if table[n].dtype == object or isinstance(table[n].dtype, pd.StringDtype)]
    return [str(name) for name in texts if table[name].map(is_cut, na_action="ignore").eq(True).any()]


class Kind(StrEnum):
    """What a column holds."""

    NUMBERS = "numbers"
    TEXT = "text"
    BOOLEANS = "booleans"
    TIMES = "times"
    NOTHING = "nothing"
    OTHER = "other"


def resolve_column(name: str, columns: Iterable[str], *, kinds: Mapping[str, str]) -> str | None:
    """Return the column that a name means, or None.

    A column's own name always means it. ``params.``, ``metrics.``, ``tags.`` and ``attributes.`` say which of
    several is meant, and MLflow's ``run_name`` and ``start_time`` are `model_name` and `started`.

    Args:
        name: As a user writes it.
        columns: Those of the table.
        kinds: Column → "param", "metric" or "tag"; what is not in it is a fact of the run.
    """
    known = set(columns)
    if name in known:
        return name
    prefix, _, key = name.partition(".")
    kind = _ENTITIES.get(prefix.casefold())
    if kind is None or not key:
        fact = _MLFLOW_NAMES.get(name, "")
        return fact if fact in known else None
    if f"{kind}s.{key}" in known:
        return f"{kind}s.{key}"
    if kind == "fact":
        key = _MLFLOW_NAMES.get(key, key)
    # Without kinds, a plain name may be of any kind.
    is_of_kind = kinds.get(key, "fact") in (kind, "fact") or not kinds
    return key if key in known and is_of_kind and kind != "tag" else None


def explain_unknown(name: str, columns: Iterable[str]) -> str:
    """Return in words that there is no such column, and which ones may be meant."""
    known = [str(column) for column in columns]
    if {f"params.{name}", f"metrics.{name}"} <= set(known):
        return f"{name!r} is a param and a metric; write params.{name} or metrics.{name}"
    head, _, key = name.partition(".")
    key = key if head.casefold() in _ENTITIES and key else name
    ending = [column for column in known if column.casefold().endswith(f".{key.casefold()}")]
    near = ending[:3] or [found for found in (nearest_name(name, known) or nearest_name(key, known),) if found]
    hint = f". Did you mean {' or '.join(map(repr, near))}?" if near else f"; there are {len(known):,} others"
    return f"{NO_COLUMN} {shorten(name)}{hint}"


def find_kind(series: pd.Series[Any]) -> Kind:
    """Return what a column holds; a column without any value holds nothing, whatever its type."""
    if series.isna().all():
        return Kind.NOTHING
    if pd.api.types.is_bool_dtype(series.dtype):
        return Kind.BOOLEANS
    if is_numeric(series):
        return Kind.NUMBERS
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        return Kind.TIMES
    is_text = isinstance(series.dtype, pd.StringDtype) or pd.api.types.infer_dtype(series, skipna=True) == "string"
    return Kind.TEXT if is_text else Kind.OTHER


@dataclass
class ColumnValues:
    """One column, n rows; its arrays are made when they are first asked for, and mean nothing where it is missing."""

    name: str
    series: pd.Series[Any]

    @cached_property
    def kind(self) -> Kind:
        """What it holds."""
        return find_kind(self.series)

    @cached_property
    def missing(self) -> npt.NDArray[np.bool_]:
        """Where there is no value, bool (n,)."""
        return self.series.isna().to_numpy(dtype=bool)

    @cached_property
    def numbers(self) -> npt.NDArray[Any]:
        """Numbers (n,): int64 or float64; of text float64, NaN where the text is no number (see `read_texts`)."""
        if self.kind is Kind.TEXT:
            return read_texts(self.texts)
        if pd.api.types.is_signed_integer_dtype(self.series.dtype):
            return self.series.to_numpy(dtype=np.int64, na_value=0)
        return self.series.to_numpy(dtype=np.float64, na_value=np.nan)

    @cached_property
    def booleans(self) -> npt.NDArray[np.bool_]:
        """True and false, bool (n,)."""
        return self.series.to_numpy(dtype=bool, na_value=False)

    @cached_property
    def times(self) -> npt.NDArray[np.int64]:
        """Milliseconds since 1970 in UTC, int64 (n,); times without a zone are in UTC."""
        series = self.series if self.series.dt.tz is None else self.series.dt.tz_convert("UTC").dt.tz_localize(None)
        return series.to_numpy(dtype="datetime64[ms]").view(np.int64)

    @cached_property
    def texts(self) -> pa.Array:
        """Text (n,) as an Arrow array of large strings."""
        texts = pa.array(self.series, from_pandas=True).cast(pa.large_string())
        return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts

    @cached_property
    def ranks(self) -> npt.NDArray[np.int64]:
        """The place of each value among the different ones, int64 (n,); text that is a number goes by its number."""
        if self.kind is Kind.TEXT:
            return self._text_ranks()
        values = {Kind.NUMBERS: "numbers", Kind.BOOLEANS: "booleans", Kind.TIMES: "times"}.get(self.kind)
        if values is None:
            return np.zeros(len(self.series), dtype=np.int64)
        return np.unique(getattr(self, values), return_inverse=True)[1].astype(np.int64)

    def _text_ranks(self) -> npt.NDArray[np.int64]:
        encoded = self.texts.dictionary_encode()
        words = ColumnValues(self.name, pd.Series(encoded.dictionary.to_pylist(), dtype="str"))
        order = sorted(range(len(words.series)), key=lambda i: (np.isnan(words.numbers[i]), *words.sort_key(i)))
        ranks = np.empty(len(order) + 1, dtype=np.int64)
        ranks[order] = np.arange(len(order))
        ranks[-1] = 0
        places: npt.NDArray[np.int64] = ranks[encoded.indices.fill_null(len(order)).to_numpy()]
        return places

    def sort_key(self, index: int) -> tuple[float, str]:
        """Return what one text is sorted by: its number, if it is one, and itself."""
        number = float(self.numbers[index])
        return (0.0 if np.isnan(number) else number), str(self.series.iloc[index])

    def describe(self) -> str:
        """Return in words what the column holds, with examples."""
        if self.kind is Kind.NOTHING:
            return "nothing"
        if self.kind is Kind.BOOLEANS:
            return "true and false"
        if self.kind is Kind.NUMBERS:
            return f"numbers ({self.series.min():g} to {self.series.max():g})"
        if self.kind is Kind.TIMES:
            return f"times ({self.series.min():%Y-%m-%d} to {self.series.max():%Y-%m-%d}, UTC)"
        if self.kind is Kind.TEXT:
            first = pc.unique(self.texts.drop_null()).slice(0, 3).to_pylist()
            return f"text ({', '.join(shorten(word, 30) for word in first)}, …)"
        return "values that cannot be compared"
