"""Columns of the table of attempts: found by the names that MLflow gives them, and read as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlmeta.errors import nearest_name, shorten

_ENTITIES = {
    **dict.fromkeys(("params", "param", "parameters", "parameter"), "param"),
    **dict.fromkeys(("metrics", "metric"), "metric"),
    **dict.fromkeys(("tags", "tag"), "tag"),
    **dict.fromkeys(("attributes", "attribute", "attr", "run"), "fact"),
}
# What MLflow calls the facts of a run.
_MLFLOW_NAMES = {"run_name": "model_name", "start_time": "started", "created": "started"}
_NUMBER = r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"


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
    return f"there is no column {shorten(name)}{hint}"


def find_kind(series: pd.Series[Any]) -> Kind:
    """Return what a column holds; a column without any value holds nothing, whatever its type."""
    if series.isna().all():
        return Kind.NOTHING
    if pd.api.types.is_bool_dtype(series.dtype):
        return Kind.BOOLEANS
    if pd.api.types.is_numeric_dtype(series.dtype):
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
        """Numbers (n,): int64 or float64; of text float64, NaN where the text is no number."""
        if self.kind is Kind.TEXT:
            is_number = pc.match_substring_regex(self.texts, _NUMBER)
            numbers = pc.if_else(is_number, self.texts, None).cast(pa.float64())
            return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)
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
