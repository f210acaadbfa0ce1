"""Finds the attempts, the task and the metric that a user names in the table of attempts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mlmeta.column_values import explain_unknown, find_kind, resolve_column
from mlmeta.errors import BadInputError, NotFoundError, nearest_name, shorten

FACTS = ("run_id", "model_name", "status", "task", "started", "duration_s")
_DIGEST = "tags.mlmeta.task_digest"
_PART_OF_ID = re.compile(r"[0-9a-f]{6,}")


def find_attempts(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return one row for each name, in their order; an attempt that is named twice comes once.

    Args:
        table: Attempts.
        names: A run id, a model name (then its newest attempt), or the first six or more characters of a run id.

    Raises:
        NotFoundError: If there is no such attempt; names the nearest.
        BadInputError: If several run ids begin so.
    """
    by_id = {run_id: row for row, run_id in enumerate(table["run_id"])}
    rows = dict.fromkeys(by_id[name] if name in by_id else _find_row(table, name) for name in names)
    return table.iloc[list(rows)]


def _find_row(table: pd.DataFrame, name: str) -> int:
    rows = (table["model_name"] == name).to_numpy(dtype=bool, na_value=False).nonzero()[0]
    if len(rows):
        newest = table["started"].iloc[rows].reset_index(drop=True)
        return int(rows[0 if newest.isna().all() else newest.argmax()])
    if _PART_OF_ID.fullmatch(name):
        rows = table["run_id"].str.startswith(name).to_numpy(dtype=bool, na_value=False).nonzero()[0]
        if len(rows) > 1:
            raise BadInputError(f"{len(rows):,} attempts have run ids that begin with {name!r}; write more of it")
        if len(rows):
            return int(rows[0])
    known = [*table["model_name"].dropna().unique(), *table["run_id"].dropna()]
    raise NotFoundError(f"there is no attempt {shorten(name)}{_hint(name, known)}")


def find_task(table: pd.DataFrame, name: str) -> str:
    """Return the short name of a task that is named by it or by (the first six or more characters of) its digest.

    Raises:
        NotFoundError: If no attempt has such a task; names the nearest.
    """
    tasks = table["task"].dropna().unique().tolist()
    if name in tasks:
        return name
    if _DIGEST in table.columns and _PART_OF_ID.fullmatch(name):
        found = table["task"][table[_DIGEST].str.startswith(name).to_numpy(dtype=bool, na_value=False)]
        if found.nunique() == 1:
            return str(found.dropna().iloc[0])
    raise NotFoundError(f"there is no task {shorten(name)}{_hint(name, tasks)}")


def select_task(table: pd.DataFrame, name: str | None) -> pd.DataFrame:
    """Return the attempts on one task, or all where none is named; raises as `find_task`."""
    return table if name is None else table[(table["task"] == find_task(table, name)).to_numpy(dtype=bool)]


def find_name(table: pd.DataFrame, name: str) -> str:
    """Return the column that a user means.

    Raises:
        NotFoundError: If there is no such column; names the nearest.
    """
    column = resolve_column(name, table.columns, kinds=table.attrs.get("kinds", {}))
    if column is None:
        raise NotFoundError(explain_unknown(name, table.columns))
    return column


def find_numbers(table: pd.DataFrame, name: str) -> str:
    """Return the column of numbers that a user means: a metric, a duration, a param.

    Raises:
        NotFoundError: If there is no such column; names the nearest.
        BadInputError: If it holds no numbers.
    """
    column = find_name(table, name)
    if not is_numeric(table[column]):
        raise BadInputError(f"attempts are ranked by numbers; {column} holds {find_kind(table[column])}")
    return column


def is_numeric(series: pd.Series[Any]) -> bool:
    """Return whether a column's type is one of numbers, booleans left out."""
    return pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype)


def list_differing(table: pd.DataFrame, *, kind: str) -> list[str]:
    """Return the columns of a kind ("param", "metric", "tag") in which the rows differ; missing counts as a value."""
    kinds = table.attrs.get("kinds", {})
    named = [name for name in table.columns if kinds.get(name) == kind]
    return [name for name in named if table[name].nunique(dropna=False) > 1]


def _hint(name: str, known: Sequence[str]) -> str:
    near = nearest_name(name, known)
    if near:
        return f". Did you mean {near!r}?"
    shown = ", ".join(shorten(one, 40) for one in known[:5])
    return f"; there are {shown}{', …' if len(known) > 5 else ''}" if known else "; there are none at all"
