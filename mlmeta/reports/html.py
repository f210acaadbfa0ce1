"""The HTML of a report: text, data and figures put into one page that loads nothing and runs only its own scripts.

Whatever comes from the data passes `escape_text` or `embed_json`. Scripts run only if the page's content security
policy holds their SHA-256, and the policy allows no request at all. The plots that WebGL draws compile their own
code, so that ``unsafe-eval`` is needed; only the scripts of the page can use it.

The tables of a report, the best of each task and a leaderboard for each, are made here too.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlmeta.history.table import is_numeric, lower_is_better
from mlmeta.reports.figure_data import order_by_score, read_column
from mlmeta.reports.tables import format_cell

if TYPE_CHECKING:
    import plotly.graph_objects as go


_FOLDER = Path(__file__).parent
_PLACEHOLDER = re.compile("@@([a-z]+)@@")
MAX_ROWS = 2000
MIN_ROWS_PER_TASK = 20

_LONGEST = 48
_LONGEST_HINT = 500


def escape_text(value: object) -> str:
    """Return text for an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def embed_json(value: Any) -> str:
    """Return JSON that may stand in a script element: no ``<``, ``>`` or ``&``, and null for what is not finite."""
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(value, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def embed_figure(figure: go.Figure, *, label: str, caption: str = "", group: str = "") -> str:
    """Return a figure element; the page's script draws it when it is scrolled to.

    The texts of attempts are left out, for the page holds them once: see ``texts`` in `fill_page`.

    Args:
        figure: Points with ``customdata`` belong to the attempt of that row.
        label: Says what is seen, for those who do not see it.
        caption: HTML below it.
        group: Figures of one group follow the same controls.
    """
    spec = figure.to_plotly_json()
    layout = {name: value for name, value in spec["layout"].items() if name != "template"}
    data = [_without_texts(trace) for trace in spec["data"]]
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return (
        f'<figure><div data-figure data-group="{escape_text(group)}" role="img" aria-label="{escape_text(label)}"'
        f' style="min-height:{int(layout["height"])}px"></div>{below}'
        f'<script type="application/json">{embed_json({"data": data, "layout": layout})}</script></figure>'
    )


def _without_texts(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in trace.items() if name != "text" or "customdata" not in trace}


def fill_page(
    *, title: str, summary: str, sections: Iterable[tuple[str, str, str]], texts: Iterable[str], rows: Any
) -> str:
    """Return the whole page.

    Args:
        title: Text.
        summary: HTML below the title.
        sections: Anchor, title (text) and body (HTML) of each.
        texts: For each attempt, in the order of its row, what is shown when it is pointed at (HTML).
        rows: The attempts as data, for programs that read the page.
    """
    sections = list(sections)
    scripts = [_read_plotly(), _read("report.js")]
    parts = {
        "title": escape_text(title),
        "policy": _make_policy(scripts),
        "style": _read("report.css"),
        "summary": summary,
        "contents": "\n".join(f'<li><a href="#{a}">{escape_text(name)}</a></li>' for a, name, _ in sections),
        "sections": "\n".join(_section(*section) for section in sections),
        "attempts": embed_json({"texts": list(texts), "rows": rows}),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # One pass: what is put in is never searched for placeholders itself.
    return _PLACEHOLDER.sub(lambda match: parts[match[1]], _read("report.html"))


def _section(anchor: str, title: str, body: str) -> str:
    heading = f'<h2 id="{anchor}-title">{escape_text(title)}</h2>'
    return f'<section id="{anchor}" aria-labelledby="{anchor}-title">{heading}\n{body}</section>'


def _make_policy(scripts: Iterable[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def _read_plotly() -> str:
    """Return plotly.js; browsers read its line ends as line feeds, and so does the digest."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def make_overview(table: pd.DataFrame, params: Sequence[str], *, metric: str) -> str:
    """Return one table: each task with its number of attempts, its median and its best attempt with some params."""
    shown = list(params)[:4]
    heads = [("task", False), ("attempts", True), (f"best {metric}", True), (f"median {metric}", True)]
    heads += [("best attempt", False), *((name, is_numeric(table[name])) for name in shown), ("seconds", True)]
    scores, lines = read_column(table, metric), []
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
    heads += [*((name, is_numeric(table[name])) for name in names), ("seconds", True), ("started (UTC)", False)]
    scores = read_column(table, metric)
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
    text = format_cell(value)
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
