"""Attempts side by side: one column an attempt, one row for each thing in which they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from mlmeta.errors import BadInputError
from mlmeta.history.table import FACTS, is_numeric, lower_is_better
from mlmeta.selection import find_attempts, find_numbers

MAX_ATTEMPTS = 100
# Numbers of a run that are no goal: none of them is the best.
_NO_GOALS = ("learning_rate", "epoch")
_KINDS = ("metric", "param")


def compare_table(
    table: pd.DataFrame, names: Sequence[str], *, metric: str = "accuracy", all_columns: bool = False
) -> pd.DataFrame:
    """Return attempts side by side, the one with the best metric first.

    Args:
        table: Attempts.
        names: Two or more attempts by run id, by the beginning of one, or by name.
        metric: What decides the order; its row is always there. Where no attempt at all has an accuracy, they stand
            as they were named.
        all_columns: Also what all of them have in common.

    Returns:
        `field`; one column an attempt, named as it is (with the beginning of its run id where names are equal); and
        `best`, the name of the column with the best value in rows of metrics and of `duration_s`, missing where all
        are equal. Cells hold Python values, None where one is missing. Rows are facts, metrics, params.

    Raises:
        NotFoundError: If there is no such attempt or metric; names the nearest.
        BadInputError: If fewer than 2 or more than 100 attempts are named, or a run id is not clear.
    """
    ordering = [find_numbers(table, metric)] if metric != "accuracy" or metric in table.columns else []
    chosen = find_attempts(table, names)
    if not 2 <= len(chosen) <= MAX_ATTEMPTS:
        raise BadInputError(f"2 to {MAX_ATTEMPTS} different attempts can be compared; got {len(chosen)}")
    for name in ordering:
        chosen = chosen.sort_values(name, ascending=lower_is_better(name), kind="stable", na_position="last")
    kinds = table.attrs.get("kinds", {})
    rows = {name: [_plain(value) for value in chosen[name]] for name in _list_fields(table)}
    always = {"run_id", *ordering}
    shown = {name: values for name, values in rows.items() if all_columns or name in always or _differ(values)}
    attempts = _name_attempts(chosen)
    result = pd.DataFrame.from_dict(shown, orient="index", columns=attempts, dtype=object)
    has_goal = [(kinds.get(name) == "metric" and name not in _NO_GOALS) or name == "duration_s" for name in shown]
    goals = [name if goal and is_numeric(table[name]) else None for name, goal in zip(shown, has_goal, strict=True)]
    best = [_find_best(shown[goal], goal, attempts) if goal else None for goal in goals]
    result.insert(0, "field", list(shown))
    result.insert(len(result.columns), "best", pd.Series(best, dtype=object).to_numpy())
    return result.reset_index(drop=True)


def _list_fields(table: pd.DataFrame) -> list[str]:
    kinds = table.attrs.get("kinds", {})
    facts = [*FACTS, "experiment"]
    others = [name for kind in _KINDS for name in table.columns if kinds.get(name) == kind]
    return [name for name in [*facts, *others] if name in table.columns]


def _name_attempts(chosen: pd.DataFrame) -> list[str]:
    names = ["" if pd.isna(name) else str(name) for name in chosen["model_name"]]
    return [
        f"{name} ({run_id[:8]})".strip() if names.count(name) > 1 or name in ("", "field", "best") else name
        for name, run_id in zip(names, chosen["run_id"], strict=True)
    ]


def _plain(value: Any) -> Any:
    """Return a cell as a Python value, None where it is missing."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _differ(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values[1:])


def _find_best(values: Sequence[Any], field: str, attempts: Sequence[str]) -> str | None:
    """Return the attempt with the best value; None where all are equal, or only one has any."""
    sign = -1.0 if lower_is_better(field) else 1.0
    scores = [-math.inf if value is None else sign * float(value) for value in values]
    best = max(scores)
    is_shared = scores.count(best) == len(scores)
    return None if is_shared or sum(value is not None for value in values) < 2 else attempts[scores.index(best)]
