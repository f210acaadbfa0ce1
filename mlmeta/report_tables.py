"""The tables of a report: the best of each task, and a leaderboard for each, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlmeta.history.table import lower_is_better
from mlmeta.report_data import format_value, is_number_column, order_by_score, read_numbers
from mlmeta.report_html import escape_text

MAX_ROWS = 2000
MIN_ROWS_PER_TASK = 20

_LONGEST = 48
_LONGEST_HINT = 500


def make_overview(table: pd.DataFrame, params: Sequence[str], *, metric: str) -> str:
    """Return one table: each task with its number of attempts, its median and its best attempt with some params."""
    shown = list(params)[:4]
    heads = [("task", False), ("attempts", True), (f"best {metric}", True), (f"median {metric}", True)]
    heads += [("best attempt", False), *((name, is_number_column(table[name])) for name in shown), ("seconds", True)]
    scores, lines = read_numbers(table, metric), []
    ordered = order_by_score(table, metric)
    for task, part in ordered.groupby("task", sort=True):
        best, own = part.index[0], scores.loc[part.index]
        cells = [_cell(task), _cell(len(part)), _cell(scores[best]), _cell(own.median())]
        cells.append(_name_cell(str(table.at[best, "model_name"])))
        cells += [_cell(table.at[best, name]) for name in [*shown, "duration_s"]]
        lines.append(f'<tr data-row="{best}">{"".join(cells)}</tr>')
    return _table(heads, lines)


def make_leaderboards(table: pd.DataFrame, params: Sequence[str], *, metric: str) -> tuple[str, int]:
    """Return a leaderboard of each task with its attempts, best first, and the number of attempts in them.

    At most 2,000 attempts are shown in all, but at least the best 20 of each task.
    """
    ordered = order_by_score(table, metric)
    counts = ordered["task"].value_counts()
    limit = len(table) if len(table) <= MAX_ROWS else max(MIN_ROWS_PER_TASK, MAX_ROWS // len(counts))
    parts: list[str] = []
    n_shown = 0
    for task, part in ordered.groupby("task", sort=True):
        shown = part.head(limit)
        n_shown += len(shown)
        parts.append(_leaderboard(str(task), shown, params, metric, n_all=len(part), is_open=not parts))
    return "\n".join(parts), n_shown


def _leaderboard(
    task: str, table: pd.DataFrame, params: Sequence[str], metric: str, *, n_all: int, is_open: bool
) -> str:
    names = [name for name in params if name != metric]
    heads = [("rank", True), ("attempt", False), (metric, True), ("status", False)]
    heads += [*((name, is_number_column(table[name])) for name in names), ("seconds", True), ("started (UTC)", False)]
    scores = read_numbers(table, metric)
    ranks = scores.rank(method="min", ascending=lower_is_better(metric))
    columns = [table[name] for name in ("model_name", "status", *names, "duration_s", "started")]
    lines = []
    for row, rank, score, (name, status, *values) in zip(
        table.index, ranks, scores, zip(*columns, strict=True), strict=True
    ):
        cells = [_cell(rank), _name_cell(name), _cell(score), _cell(status), *(_cell(value) for value in values)]
        lines.append(f'<tr data-row="{row}">{"".join(cells)}</tr>')
    count = f"{n_all:,} attempts" if n_all > 1 else "1 attempt"
    note = count if len(table) == n_all else f"the best {len(table):,} of {count}"
    is_open_text = " open" if is_open else ""
    head = f"<summary>{escape_text(_cut(task))} <small>{note}</small></summary>"
    return f'<details data-task="{escape_text(_cut(task))}"{is_open_text}>{head}{_table(heads, lines)}</details>'


def _table(heads: Sequence[tuple[str, bool]], lines: Sequence[str]) -> str:
    cells = "".join(
        f'<th scope="col"{_number_class(is_number)}><button type="button">{escape_text(_cut(name))}</button></th>'
        for name, is_number in heads
    )
    body = "\n".join(lines)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="table"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    """Return a cell; a number keeps its full value for sorting, a long text its beginning as a hint."""
    text = format_value(value)
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    if is_number and text:
        exact = repr(float(value)).replace("inf", "Infinity")
        return f'<td class="number" data-value="{exact}">{escape_text(text)}</td>'
    hint = f' title="{escape_text(text[:_LONGEST_HINT])}"' if len(text) > _LONGEST else ""
    return f"<td{hint}>{escape_text(_cut(text))}</td>"


def _name_cell(name: str) -> str:
    hint = f' title="{escape_text(name[:_LONGEST_HINT])}"' if len(name) > _LONGEST else ""
    text = escape_text(_cut(name)) or "(no name)"
    return f'<td{hint}><button type="button" aria-pressed="false">{text}</button></td>'


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""
