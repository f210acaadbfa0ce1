"""Writes tables: for people on a terminal, for programs as CSV, JSON and Parquet.

Names of columns are never altered, and only tables for people cut long values.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from mlmeta.errors import BadInputError
from mlmeta.text_table import format_plain, print_fitted

FORMATS = ("table", "csv", "json", "parquet")
_SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".pq": "parquet"}


def choose_format(wanted: str | None, file: Path | None) -> str:
    """Return the format that was asked for, else the one of the file's suffix, else "table"."""
    return wanted or _SUFFIXES.get(file.suffix.lower() if file else "", "table")


def write_output(
    table: pd.DataFrame, file: Path | None = None, *, form: str | None = None, important: Sequence[str] = ()
) -> None:
    """Write a table to a file, whole or not at all, or to standard output.

    A table on a terminal is fitted to its width: what says least is left out, and a line says how much. Elsewhere
    a table has every column, aligned.

    Args:
        table: Any DataFrame; ``attrs["kinds"]`` helps to choose what a terminal shows.
        file: Where to; None for standard output.
        form: One of `FORMATS`; None to go by the file's suffix.
        important: Columns that a terminal keeps as long as any.

    Raises:
        BadInputError: If the file cannot be written, or Parquet, which is binary, would go to a terminal.
    """
    form = choose_format(form, file)
    if file is not None:
        with _replacing(file) as stream:
            write_stream(table, stream, form=form)
    elif form == "table" and sys.stdout.isatty():
        print_fitted(table, important=important)
    elif form == "parquet" and sys.stdout.isatty():
        raise BadInputError("Parquet is binary and nothing for a terminal; add --output FILE.parquet")
    else:
        try:
            write_stream(table, sys.stdout.buffer, form=form)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # The reader has seen enough; Python would complain again when it closes the pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_stream(table: pd.DataFrame, stream: IO[bytes], *, form: str) -> None:
    """Write a table in one of `FORMATS` to a binary stream, text in UTF-8.

    CSV and Parquet keep infinite numbers, and a missing value is an empty cell of CSV. JSON is a list of objects;
    what JSON has no number for (NaN, infinite) is null there. Times are ISO 8601 in UTC.
    """
    if form == "parquet":
        _make_uniform(table).to_parquet(stream, index=False)
    elif form == "csv":
        _write_text(stream, [_as_text_columns(table).to_csv(index=False, lineterminator="\n")])
    elif form == "json":
        _write_text(stream, _write_json(table))
    else:
        _write_text(stream, (f"{line}\n" for line in format_plain(table)))


def _write_text(stream: IO[bytes], pieces: Iterable[str]) -> None:
    for piece in pieces:
        stream.write(piece.encode("utf-8", errors="backslashreplace"))


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[IO[bytes]]:
    """Give a stream whose content becomes the file when all of it is written."""
    temporary = file.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
        temporary.replace(file)
    except OSError as error:
        raise BadInputError(f"{file}: cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_json(table: pd.DataFrame) -> Iterator[str]:
    """Yield a list of objects, one a line."""
    names = [str(name) for name in table.columns]
    columns = [_jsonable(table.iloc[:, place]) for place in range(len(names))]
    yield "["
    for number, row in enumerate(zip(*columns, strict=True)):
        text = json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False)
        yield f"{',' if number else ''}\n{text}"
    yield "\n]\n"


def _jsonable(series: pd.Series[Any]) -> list[Any]:
    """Return a column's values as JSON has them."""
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        series = _format_times(series)
    return [_jsonable_value(value) for value in series.astype(object).tolist()]


def _jsonable_value(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray | list | tuple):
        return [_jsonable_value(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, int | float) else _format_exactly(value)


def _format_times(series: pd.Series[Any]) -> pd.Series[Any]:
    """Return times as ``2026-01-01T12:00:00.000Z``."""
    naive = series if series.dt.tz is None else series.dt.tz_convert("UTC").dt.tz_localize(None)
    texts = np.datetime_as_string(naive.to_numpy(dtype="datetime64[ms]"), unit="ms")
    return pd.Series(texts, index=series.index, dtype="str").add("Z").mask(series.isna())


def _as_text_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with times and odd objects as the text that CSV shows."""
    changed = {}
    for name in table.columns:
        series = table[name]
        if pd.api.types.is_datetime64_any_dtype(series.dtype):
            changed[name] = _format_times(series)
        elif pd.api.types.is_bool_dtype(series.dtype):
            changed[name] = series.map({True: "true", False: "false"}, na_action="ignore")
        elif pd.api.types.is_object_dtype(series.dtype):
            changed[name] = series.map(_format_exactly, na_action="ignore")
    return table.assign(**changed)


def _format_exactly(value: Any) -> str:
    """Return one value of a column of mixed values as text, every digit kept."""
    if isinstance(value, np.ndarray | list | tuple | bool | np.bool_):
        return json.dumps(_jsonable_value(value))
    if isinstance(value, pd.Timestamp):
        return str(_format_times(pd.Series([value])).iloc[0])
    return str(value)


def _make_uniform(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with columns of one type each: where Python values are mixed, all become text."""
    mixed = {}
    for name in [name for name in table.columns if pd.api.types.is_object_dtype(table[name].dtype)]:
        kind = pd.api.types.infer_dtype(table[name], skipna=True)
        are_lists = table[name].map(lambda value: isinstance(value, np.ndarray | list) or value is None).all()
        if kind not in ("string", "empty", "floating", "integer", "boolean") and not are_lists:
            mixed[name] = table[name].map(_format_exactly, na_action="ignore").astype("str")
    uniform = table.assign(**mixed)
    # Only what any reader understands goes into the file.
    uniform.attrs = {"kinds": table.attrs["kinds"]} if "kinds" in table.attrs else {}
    return uniform
