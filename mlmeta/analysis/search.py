"""Finds the attempts, the task and the metric that a user names in the table of attempts."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.analysis.filter_grammar import list_columns, parse_filter, parse_order
from mlmeta.analysis.filters import find_column, match_filter, sort_rows
from mlmeta.errors import BadInputError, NotFoundError, shorten, suggest
from mlmeta.history.table import FACTS, explain_unknown, find_kind, find_kinds, is_numeric, resolve_column, with_kinds

_DIGEST = "tags.mlmeta.task_digest"
# The history keeps curves up to this length whole; longer ones are read from the metric.
_WHOLE_CURVE = 300
_PART_OF_ID = re.compile(r"[0-9a-f]{6,}")


def find_attempts(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return one row for each name, in their order; an attempt that is named twice comes once.

    A name is a run id, a model name (then its newest attempt), or the first six or more characters of a run id.

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


def list_differing(table: pd.DataFrame, *, kind: str) -> list[str]:
    """Return the columns of a kind ("param", "metric", "tag") in which the rows differ; missing counts as a value."""
    kinds = table.attrs.get("kinds", {})
    named = [name for name in table.columns if kinds.get(name) == kind]
    return [name for name in named if table[name].nunique(dropna=False) > 1]


def _hint(name: str, known: Sequence[str]) -> str:
    shown = ", ".join(shorten(one, 40) for one in known[:5])
    there = f"; there are {shown}{', …' if len(known) > 5 else ''}" if known else "; there are none at all"
    return suggest(name, known, there)


def find_matching(
    table: pd.DataFrame,
    filter: str = "",
    *,
    order_by: Sequence[str] | str = ("started DESC",),
    limit: int | None = None,
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the attempts that a filter finds; the arguments are those of `mlmeta.meta_query.search_attempts`.

    Raises:
        FilterError: If a filter, an order or a column is not understood or not there; names the nearest column.
        BadInputError: If the limit is less than 1.
    """
    orders = check_search(filter, order_by=order_by, limit=limit)
    if table.empty:
        # Nothing can be said about columns that no attempt has yet.
        return table[list(FACTS)]
    rows = sort_rows(table, orders)
    rows = rows[match_filter(table, filter).to_numpy()[rows]][:limit]
    asked = [*list_columns(parse_filter(filter)), *(order.column for text in orders for order in parse_order(text))]
    named = [find_column(table, column.name) for column in asked]
    result = table[_choose_answer(table, columns, named)].iloc[rows].reset_index(drop=True)
    return with_kinds(result, {name: kind for name, kind in find_kinds(table).items() if name in result.columns})


def add_named(
    table: pd.DataFrame,
    filter: str = "",
    *,
    order_by: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return the table with what a search names and the table lacks; see `mlmeta.history.loading.add_unread`.

    Raises:
        FilterError: If the filter or an order is not understood.
        MlmetaError: If the store cannot be read.
    """
    named = [column.name for column in list_columns(parse_filter(filter))]
    named += [order.column.name for text in order_by for order in parse_order(text)]
    from mlmeta.history.loading import add_unread

    return add_unread(table, [*named, *(columns or ())], tracking_uri=tracking_uri)


def check_search(filter: str, *, order_by: Sequence[str] | str, limit: int | None) -> list[str]:
    """Return the orders as a list, after what can be said of a search before the history is read.

    Raises:
        FilterError: If the filter or an order is not understood.
        BadInputError: If the limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise BadInputError(f"limit must be 1 or more; got {limit}")
    orders = [order_by] if isinstance(order_by, str) else list(order_by)
    parse_filter(filter)
    for text in orders:
        parse_order(text)
    return orders


def _choose_answer(table: pd.DataFrame, columns: Sequence[str] | None, named: Sequence[str]) -> list[str]:
    if columns is not None:
        return list(dict.fromkeys(find_column(table, name, what="columns") for name in columns))
    kinds = find_kinds(table)
    usual = [name for name in table.columns if kinds.get(name) in ("param", "metric")]
    return list(dict.fromkeys([*FACTS, *usual, *named]))


def collect_curves(
    table: pd.DataFrame,
    names_or_run_ids: Sequence[str] = (),
    *,
    filter: str = "",
    metric: str = "train_loss",
    tracking_uri: str | None = None,
) -> pd.DataFrame:
    """Return a metric of every epoch; see `mlmeta.meta_query.learning_curves`.

    Raises:
        NotFoundError: If there is no such attempt; names the nearest.
        FilterError: If the filter is not understood.
    """
    table = add_named(table, filter, tracking_uri=tracking_uri)
    # The filter compares with all attempts on a task.
    found = table[match_filter(table, filter).to_numpy()] if len(table) else table
    if names_or_run_ids:
        named = find_attempts(table, names_or_run_ids)
        found = with_kinds(named[named["run_id"].isin(found["run_id"])], find_kinds(table))
    table = found
    is_kept = _find_kept_curves(table) if metric == "train_loss" else np.zeros(len(table), dtype=bool)
    points = _unfold_curves(table[is_kept])
    if not is_kept.all():
        from mlmeta.history.loading import load_curves

        rest = load_curves(table["run_id"][~is_kept].tolist(), metric=metric, tracking_uri=tracking_uri)
        points = pd.concat([points, rest], ignore_index=True)
    return _join_facts(table, points, metric)


def _find_kept_curves(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return of which attempts the table has the whole curve, or nothing is to be had."""
    lengths = table["curve"].map(lambda curve: len(curve) if isinstance(curve, np.ndarray) else -1)
    has_loss = table["train_loss"].notna() if "train_loss" in table.columns else pd.Series(False, index=table.index)
    # While an attempt is trained, its curve stands in its metric only.
    return ((lengths < _WHOLE_CURVE) & ~((lengths < 0) & has_loss)).to_numpy(dtype=bool)


def _unfold_curves(table: pd.DataFrame) -> pd.DataFrame:
    curves = [curve if isinstance(curve, np.ndarray) else np.empty(0) for curve in table["curve"]]
    lengths = np.array([len(curve) for curve in curves], dtype=np.int64)
    steps = [np.arange(1, length + 1) for length in lengths]
    return pd.DataFrame(
        {
            "run_id": table["run_id"].iloc[np.repeat(np.arange(len(table)), lengths)].reset_index(drop=True),
            "step": pd.array(np.concatenate([np.empty(0, np.int64), *steps]), dtype="Int64"),
            "value": np.concatenate([np.empty(0), *curves]),
        }
    )


def _join_facts(table: pd.DataFrame, points: pd.DataFrame, metric: str) -> pd.DataFrame:
    facts = table[list(FACTS)].reset_index(drop=True)
    place = points["run_id"].map(pd.Series(facts.index, index=facts["run_id"])).to_numpy(dtype=np.int64)
    order = np.lexsort([points["step"].to_numpy(dtype=np.int64), place])
    points, facts = points.iloc[order].reset_index(drop=True), facts.iloc[place[order]].reset_index(drop=True)
    return facts.assign(
        metric=pd.Series(metric, index=facts.index, dtype="str"), step=points["step"], value=points["value"]
    )
