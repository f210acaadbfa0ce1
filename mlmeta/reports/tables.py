"""Tables: for people as text fitted to the width of a terminal, for programs as CSV, JSON and Parquet.

Names of columns are never altered, and only tables for people cut long values.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd

from mlmeta.errors import BadInputError
from mlmeta.files import replacing
from mlmeta.history.table import is_cut, is_numeric

MAX_WIDTH = 32
MAX_ROWS = 100
_ID_WIDTH = 8
_GOOD_WIDTH = 16
# As many dots as the name of no param that says much has.
_DEEP = 5
_GAP = 2
FORMATS = ("table", "csv", "json", "parquet", "xlsx")
_SUFFIXES = {
    ".csv": "csv", ".json": "json", ".parquet": "parquet", ".pq": "parquet", ".xlsx": "xlsx", ".txt": "table",
    "": "table",
}  # fmt: skip
_TIME = "%Y-%m-%d %H:%M"
# The zone of this machine, as pandas calls it.
_LOCAL = "tzlocal()"
_CUT = " [cut]"
# What a spreadsheet takes for the beginning of a formula.
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
# What a workbook cannot hold.
_NO_CELL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


def format_cell(value: Any, *, limit: int | None = None) -> str:
    """Return a value as people write it, on one line: four significant digits, nothing for missing.

    What was cut where it was recorded, since MLflow takes no more, ends with a mark of it.

    Args:
        value: A cell of a DataFrame.
        limit: Cut to so many characters.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, np.ndarray | list | tuple):
        text = f"[{', '.join(format_cell(item) for item in value[:limit])}]"
    elif value is None or pd.isna(value):
        text = ""
    elif isinstance(value, bool | np.bool_):
        text = "true" if value else "false"
    elif isinstance(value, float | np.floating):
        text = f"{value:.4g}"
    elif isinstance(value, pd.Timestamp):
        text = f"{value:{_TIME}} {_name_zone(value)}"
    else:
        text = str(value)
    mark = _CUT if is_cut(value) else ""
    if limit is not None and len(text) + len(mark) > limit:
        # A narrow column has no place for the mark.
        mark = mark if limit > 2 * len(mark) else ""
        text = f"{text[: limit - 1 - len(mark)]}…"
    text += mark
    return _printable(text)


def name_heading(series: pd.Series[Any]) -> str:
    """Return a column's name on one line, with the zone where it holds times: ``started (UTC)``.

    Where summer time begins or ends between two of the times both names stand there.
    """
    name = _printable(str(series.name))
    if not _holds_times(series):
        return name
    zones = series.dropna().map(_name_zone).unique() if _is_local(series) else ()
    return f"{name} ({'/'.join(zones) or _name_zone(pd.Timestamp.now(series.dt.tz))})"


def _name_zone(moment: pd.Timestamp) -> str:
    """Return the short name of a time's zone; without one it is UTC."""
    name = moment.tzname() or "UTC"
    return f"UTC{name}" if name.startswith(("+", "-")) else name


def _is_local(times: pd.Series[Any]) -> bool:
    return str(times.dt.tz or "UTC") != "UTC"


def _holds_times(series: pd.Series[Any]) -> bool:
    return pd.api.types.is_datetime64_any_dtype(series.dtype)


def to_local_time(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with its times in the zone of this machine; times without a zone are in UTC."""
    changed: dict[str, Any] = {}
    for name in table.columns:
        column = table[name]
        if _holds_times(column):
            aware = column if column.dt.tz is not None else column.dt.tz_localize(UTC)
            changed[name] = aware.dt.tz_convert(_LOCAL)
        elif any(isinstance(value, pd.Timestamp) for value in column):
            cells = [value.tz_convert(_LOCAL) if isinstance(value, pd.Timestamp) else value for value in column]
            changed[name] = pd.Series(cells, index=column.index, dtype=object)
    return table.assign(**changed)


def format_plain(table: pd.DataFrame) -> Iterator[str]:
    """Yield a table's lines: every column, aligned, long values cut.

    Raises nothing: an empty table is its header.
    """
    columns = []
    for _, series in table.items():
        cells = [name_heading(series), *_format_column(series, MAX_WIDTH * 2)]
        width, is_right = max(map(_width, cells)), is_numeric(series)
        spaces = [" " * (width - _width(cell)) for cell in cells]
        columns.append(
            [f"{space}{cell}" if is_right else f"{cell}{space}" for cell, space in zip(cells, spaces, strict=True)]
        )
    for row in zip(*columns, strict=True):
        yield (" " * _GAP).join(row).rstrip()


def print_fitted(table: pd.DataFrame, *, important: Sequence[str] = ()) -> None:
    """Print a table on the terminal, as much of it as fits; a line below says how much was left out.

    Args:
        table: At most `MAX_ROWS` rows are shown.
        important: Columns to keep as long as any.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    shown = table.head(MAX_ROWS)
    widths = fit_columns(shown, width=console.width, important=important)
    grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name, width in widths.items():
        justify: Literal["left", "right"] = "right" if is_numeric(shown[name]) else "left"
        # A long name goes on in the next line.
        grid.add_column(Text(name_heading(shown[name]), overflow="fold"), justify=justify, width=width)
    for row in zip(*(_format_column(shown[name], width) for name, width in widths.items()), strict=True):
        grid.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    console.print(grid)
    if left_out := describe_left_out(len(table) - len(shown), len(table.columns) - len(widths)):
        console.print(Text(left_out, style="dim"))


def choose_shown(table: pd.DataFrame, important: Sequence[str], *, limit: int = 12) -> list[str]:
    """Return the columns that people ask for: the important ones, then the params that differ most.

    Args:
        table: What is to be shown.
        important: Columns to show in any case, where the table has them.
        limit: At most so many, but for the important ones.
    """
    shown = [name for name in dict.fromkeys(important) if name in table.columns]
    kinds = table.attrs.get("kinds", {})
    params = [name for name in table.columns if kinds.get(name) == "param" and name not in shown]
    # What stands deeper is of single layers, and a fact that was recorded as a param too says nothing new.
    params = [name for name in params if name.count(".") < 2 and name.removeprefix("params.") not in shown]
    # A param that most attempts lack says little, and so does one that is the same in all.
    counts = {name: table[name].map(format_cell).nunique() for name in params if table[name].notna().mean() >= 0.5}
    params = [name for name in counts if counts[name] > 1]
    params.sort(key=lambda name: (name.startswith("task.") or name == "seed", -counts[name]))
    return [*shown, *params[: max(0, limit - len(shown))]]


def fit_columns(table: pd.DataFrame, *, width: int, important: Sequence[str] = ()) -> dict[str, int]:
    """Return the columns that fit into a width, in their order, each with its own.

    Where not all fit, those come in first that say most: first the important ones, then facts and metrics, then
    params, short ones before those of single layers. A column without a value, or with the same in all rows,
    says nothing. Long columns are narrowed.

    Args:
        table: What is to be shown.
        width: In characters.
        important: Columns to keep as long as any.
    """
    wanted = {str(name): _natural_width(table[name]) for name in table.columns}
    if _total(wanted, _GOOD_WIDTH) <= width:
        return _narrow(wanted, width)
    kept: dict[str, int] = {}
    for name in sorted(wanted, key=lambda name: _rank_column(table, wanted, important, name)):
        says_nothing = name not in important and _is_uniform(table[name])
        if not kept or (not says_nothing and _total({**kept, name: wanted[name]}, _GOOD_WIDTH) <= width):
            kept[name] = wanted[name]
    return _narrow({name: kept[name] for name in wanted if name in kept}, width)


def _rank_column(
    table: pd.DataFrame, widths: Mapping[str, int], important: Sequence[str], name: str
) -> tuple[int, int, int]:
    """Return what is greater for a column that says less."""
    is_param = table.attrs.get("kinds", {}).get(name) == "param"
    is_long = max(map(len, _format_column(table[name], MAX_WIDTH)), default=0) > _GOOD_WIDTH
    depth = name.count(".") + (_DEEP if is_long else 0) if is_param else -1
    return important.index(name) if name in important else len(important), depth, list(widths).index(name)


def _is_uniform(series: pd.Series[Any]) -> bool:
    """Return whether all of at least two rows look the same."""
    return len(series) > 1 and series.map(format_cell).nunique() <= 1


def _natural_width(series: pd.Series[Any]) -> int:
    limit = _ID_WIDTH if series.name == "run_id" else MAX_WIDTH
    return min(limit, max(map(_width, [name_heading(series), *_format_column(series, limit)])))


def _total(widths: Mapping[str, int], limit: int) -> int:
    return sum(min(width, limit) + _GAP for width in widths.values()) - _GAP


def _narrow(widths: Mapping[str, int], width: int) -> dict[str, int]:
    """Return widths that fit together: the longest columns give way first."""
    limit = MAX_WIDTH
    while limit > 1 and _total(widths, limit) > width:
        limit -= 1
    return {name: min(own, limit) for name, own in widths.items()}


def describe_left_out(n_rows: int, n_columns: int) -> str:
    """Return in words what a terminal does not show; nothing where it shows all."""
    parts = [f"{n:,} more {what}{'' if n == 1 else 's'}" for n, what in ((n_rows, "row"), (n_columns, "column")) if n]
    return f"… {' and '.join(parts)}: --format csv has all" if parts else ""


def _format_column(series: pd.Series[Any], limit: int) -> list[str]:
    if series.name == "run_id" and limit <= _ID_WIDTH:
        return [_printable(str(value)[:limit]) for value in series]
    if _holds_times(series):
        # The heading names their zone.
        return ["" if pd.isna(value) else f"{value:{_TIME}}" for value in series]
    return [format_cell(value, limit=limit) for value in series]


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)


def choose_format(wanted: str | None, file: Path | None) -> str:
    """Return the format that was asked for, else the one of the file's suffix; "table" where there is none.

    Raises:
        BadInputError: If the suffix is none that is known.
    """
    suffix = file.suffix.lower() if file else ""
    if wanted is None and suffix not in _SUFFIXES:
        known = ", ".join(filter(None, _SUFFIXES))
        raise BadInputError(f"{file}: there is no format for the ending {suffix}; allowed are {known}, or add --format")
    return wanted or _SUFFIXES[suffix]


def write_output(
    table: pd.DataFrame, file: Path | None = None, *, form: str | None = None, important: Sequence[str] = ()
) -> None:
    """Write a table to a file, whole or not at all, or to standard output.

    A table on a terminal is fitted to its width: what says least is left out, and a line says how much. Elsewhere
    it has every column that is given, aligned.

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
        with writing(file), replacing(file) as stream:
            write_stream(table, stream, form=form)
    elif form == "table" and sys.stdout.isatty():
        print_fitted(table, important=important)
    elif form in ("parquet", "xlsx") and sys.stdout.isatty():
        raise BadInputError(f"{form.capitalize()} is binary and nothing for a terminal; add --output FILE.{form}")
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
    what JSON has no number for (NaN, infinite) is null there. Times are ISO 8601 with their zone: ``Z``, or an offset.
    """
    if form == "parquet":
        _make_uniform(table).to_parquet(stream, index=False)
    elif form == "xlsx":
        _write_workbook(table, stream)
    elif form == "csv":
        _write_text(stream, [_as_text_columns(table).to_csv(index=False, lineterminator="\n")])
    elif form == "json":
        _write_text(stream, _write_json(table))
    else:
        _write_text(stream, (f"{line}\n" for line in format_plain(table)))


def escape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with an apostrophe before texts and names that a spreadsheet would compute."""
    changed = {}
    for name in table.columns:
        if not is_numeric(table[name]) and not _holds_times(table[name]):
            changed[name] = table[name].map(_escape_formula, na_action="ignore")
    return table.assign(**changed).rename(columns=_escape_formula)


def _escape_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def _write_workbook(table: pd.DataFrame, stream: IO[bytes]) -> None:
    """Write a workbook of one sheet, in which text is text, never a formula; control characters become blanks.

    Raises:
        BadInputError: If the package for it is missing, or a sheet cannot hold so many rows or columns.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
    except ImportError:
        raise BadInputError("a workbook needs openpyxl; install it with: pip install 'mlmeta[excel]'") from None
    if len(table) >= 1_048_576 or len(table.columns) > 16_384:
        raise BadInputError("a sheet of a workbook holds 1,048,575 rows and 16,384 columns; write .csv or .parquet")
    book = Workbook(write_only=True)
    sheet = book.create_sheet("attempts")
    sheet.freeze_panes = "A2"
    columns = [_jsonable(table.iloc[:, place]) for place in range(len(table.columns))]
    for row in [[str(name) for name in table.columns], *zip(*columns, strict=True)]:
        cells = []
        for value in row:
            cell = WriteOnlyCell(sheet)
            if isinstance(value, str | list):
                text = value if isinstance(value, str) else json.dumps(value)
                cell.value = _NO_CELL.sub(" ", text)
                cell.data_type = "s"
            elif isinstance(value, int) and abs(value) > 2**53:
                cell.value, cell.data_type = str(value), "s"
            else:
                cell.value = value
            cells.append(cell)
        sheet.append(cells)
    book.save(stream)


def _write_text(stream: IO[bytes], pieces: Iterable[str]) -> None:
    for piece in pieces:
        stream.write(piece.encode("utf-8", errors="backslashreplace"))


@contextlib.contextmanager
def writing(file: Path) -> Iterator[None]:
    """Say in one sentence that a file cannot be written.

    Raises:
        BadInputError: Where an OSError came.
    """
    try:
        yield
    except OSError as error:
        raise BadInputError(f"{file}: cannot be written: {error.strerror or error}") from None


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
    if _holds_times(series):
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
    """Return times as ``2026-01-01T12:00:00.000Z``, with their offset where they are in another zone than UTC."""
    if _is_local(series):
        local = series.map(lambda time: time.isoformat(timespec="milliseconds"), na_action="ignore")
        return local.astype("str").mask(series.isna())
    naive = series if series.dt.tz is None else series.dt.tz_convert("UTC").dt.tz_localize(None)
    texts = np.datetime_as_string(naive.to_numpy(dtype="datetime64[ms]"), unit="ms")
    return pd.Series(texts, index=series.index, dtype="str").add("Z").mask(series.isna())


def _as_text_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with times and odd objects as the text that CSV shows."""
    changed = {}
    for name in table.columns:
        series = table[name]
        if _holds_times(series):
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


def escape_markdown(text: str) -> str:
    """Return text in which Markdown finds nothing of its own."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>" else c for c in text)
