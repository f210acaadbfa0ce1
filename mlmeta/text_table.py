"""Tables as text for people: aligned, cut where values are long, fitted to the width of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

MAX_WIDTH = 32
MAX_ROWS = 100
_ID_WIDTH = 8
_GOOD_WIDTH = 16
# As many dots as the name of no param that says much has.
_DEEP = 5
_GAP = 2


def format_cell(value: Any, *, limit: int | None = None) -> str:
    """Return a value as people write it, on one line: four significant digits, nothing for missing.

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
        text = f"{value:%Y-%m-%d %H:%M}"
    else:
        text = str(value)
    if limit is not None and len(text) > limit:
        text = f"{text[: limit - 1]}…"
    return _printable(text)


def format_plain(table: pd.DataFrame) -> Iterator[str]:
    """Yield a table's lines: every column, aligned, long values cut.

    Raises nothing: an empty table is its header.
    """
    names = [str(name) for name in table.columns]
    columns = [_format_column(table.iloc[:, place], MAX_WIDTH * 2) for place in range(len(names))]
    widths = [max([_width(name), *map(_width, cells)]) for name, cells in zip(names, columns, strict=True)]
    right = [_is_number(table.iloc[:, place]) for place in range(len(names))]
    for row in [names, *zip(*columns, strict=True)]:
        cells = [_align(cell, width, right=to) for cell, width, to in zip(row, widths, right, strict=True)]
        yield (" " * _GAP).join(cells).rstrip()


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
    columns = []
    for name, width in widths.items():
        justify: Literal["left", "right"] = "right" if _is_number(shown[name]) else "left"
        # A long name goes on in the next line.
        grid.add_column(Text(_printable(name)), justify=justify, overflow="fold", width=width)
        columns.append(_format_column(shown[name], width))
    for row in zip(*columns, strict=True):
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)
    if left_out := describe_left_out(len(table) - len(shown), len(table.columns) - len(widths)):
        console.print(Text(left_out, style="dim"))


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
    wanted = {str(name): _natural_width(table[name], str(name)) for name in table.columns}
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


def _natural_width(series: pd.Series[Any], name: str) -> int:
    limit = _ID_WIDTH if name == "run_id" else MAX_WIDTH
    cells = _format_column(series, limit)
    return max([min(_width(name), limit), *map(_width, cells)])


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
    return f"… {' and '.join(parts)}: --format csv or a pipe shows all" if parts else ""


def _format_column(series: pd.Series[Any], limit: int) -> list[str]:
    if series.name == "run_id" and limit <= _ID_WIDTH:
        return [_printable(str(value)[:limit]) for value in series]
    return [_cut(format_cell(value, limit=limit), limit) for value in series]


def _is_number(series: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)


def _cut(text: str, limit: int) -> str:
    """Return text cut to a width in terminal cells; wide characters take two."""
    if _width(text) <= limit:
        return text
    while text and _width(text) > limit - 1:
        text = text[:-1]
    return f"{text}…"


def _align(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
