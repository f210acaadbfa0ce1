"""HTML from templates, in which all that is written is escaped; and the tables of a report.

A report is one file that asks nobody for anything: its policy refuses every request, and allows the scripts by their
digests alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlmeta.history.table import is_numeric, lower_is_better
from mlmeta.reports.figure_data import order_by_score, read_column
from mlmeta.reports.tables import format_cell, name_heading

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from jinja2 import Environment
    from markupsafe import Markup


FOLDER = Path(__file__).parent
SCRIPTS = ("parallel.js", "report.js")
MAX_ROWS = 2000
MIN_ROWS_PER_TASK = 20

_LONGEST = 48
_LONGEST_HINT = 500


def open_templates(folder: Path, *, asynchronous: bool = False) -> Environment:
    """Return the templates of a folder; what they write is escaped, and a value that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, enable_async=asynchronous,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


@functools.cache
def _templates() -> Environment:
    from plotly.utils import PlotlyJSONEncoder

    templates = open_templates(FOLDER / "templates")
    # Jinja's own `tojson` writes <, > and & so that the text may stand in a script; what is not finite becomes null.
    templates.policies["json.dumps_kwargs"] = {"cls": PlotlyJSONEncoder, "separators": (",", ":")}
    templates.filters |= {"cell": _read_cell, "count": _count, "cut": _cut, "spec": _read_spec}
    return templates


def fill_template(name: str, values: Mapping[str, object]) -> Markup:
    """Return a template of this package, filled."""
    from markupsafe import Markup

    return Markup(_templates().get_template(f"{name}.html").render(values))  # noqa: S704 - the template escapes


def fill_body(section: str, **values: object) -> Markup:
    """Return the body of a section, by the macro of that name."""
    macro: Callable[..., Markup] = getattr(_bodies(), section)
    return macro(**values)


@functools.cache
def _bodies() -> object:
    return _templates().get_template("bodies.html").module


def fill_page(values: Mapping[str, object]) -> str:
    """Return a whole page: style, scripts and their policy, around the values of the template."""
    from markupsafe import Markup

    scripts = [_read_plotly(), *(_read(name) for name in SCRIPTS)]
    style = f"{_read('report.css')}\n{_read('sections.css')}"
    # Files of ours, not to be escaped: their policy holds by their very bytes.
    own = {"style": Markup(style), "scripts": [Markup(script) for script in scripts]}  # noqa: S704
    return str(fill_template("report", {**values, **own, "policy": _make_policy(scripts)}))


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _make_policy(scripts: Iterable[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _read_plotly() -> str:
    """Return plotly.js; browsers read its line ends as line feeds, and so does the digest."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def _read_spec(figure: go.Figure) -> dict[str, Any]:
    """Return what the page's script draws; the texts of attempts are left out, for the page holds them once."""
    spec = figure.to_plotly_json()
    layout = {name: value for name, value in spec["layout"].items() if name != "template"}
    data = [{k: v for k, v in trace.items() if k != "text" or "customdata" not in trace} for trace in spec["data"]]
    return {"data": data, "layout": layout}


def _read_cell(value: Any) -> tuple[str, str, str]:
    """Return a cell's text; of a number all its digits, to sort by; of a text that was cut its beginning."""
    text = format_cell(value)
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    exact = repr(float(value)).replace("inf", "Infinity") if is_number and text else ""
    shown = format_cell(value, limit=_LONGEST)
    return shown, exact, text[:_LONGEST_HINT] if len(text) > _LONGEST else ""


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def make_overview(table: pd.DataFrame, params: Sequence[str], *, metric: str) -> dict[str, Any]:
    """Return one table: each task with its number of attempts, its median and its best attempt with some params."""
    shown = list(params)[:4]
    heads = [("task", "text"), ("attempts", "number"), (f"best {metric}", "number"), (f"median {metric}", "number")]
    heads += [("best attempt", "name"), *_name_columns(table, shown), ("seconds", "number")]
    scores, rows = read_column(table, metric), []
    for task, part in order_by_score(table, metric).groupby("task", sort=True):
        best = part.index[0]
        facts = [table.at[best, name] for name in ("model_name", *shown, "duration_s")]
        rows.append((best, [task, len(part), scores[best], scores[part.index].median(), *facts]))
    return {"heads": heads, "rows": rows}


def make_leaderboards(table: pd.DataFrame, params: Sequence[str], *, metric: str) -> dict[str, Any]:
    """Return a leaderboard of each task with its attempts, best first, and the number of attempts in them.

    At most 2,000 attempts are shown in all, but at least the best 20 of each task.
    """
    names = [name for name in params if name != metric]
    heads = [("rank", "number"), ("attempt", "name"), (metric, "number"), ("status", "text")]
    heads += [*_name_columns(table, names), ("seconds", "number"), (name_heading(table["started"]), "text")]
    limit = len(table) if len(table) <= MAX_ROWS else max(MIN_ROWS_PER_TASK, MAX_ROWS // table["task"].nunique())
    boards = []
    for task, part in order_by_score(table, metric).groupby("task", sort=True):
        shown = part.head(limit)
        scores = read_column(shown, metric)
        ranks = scores.rank(method="min", ascending=lower_is_better(metric))
        cells = [ranks, shown["model_name"], scores, shown["status"], *(shown[name] for name in names)]
        cells += [shown["duration_s"], shown["started"].dt.strftime("%Y-%m-%d %H:%M")]
        note = (
            _count(len(part), "attempt")
            if len(shown) == len(part)
            else f"the best {len(shown):,} of {len(part):,} attempts"
        )
        boards.append(
            {"task": str(task), "note": note, "rows": list(zip(shown.index, zip(*cells, strict=True), strict=True))}
        )
    n_shown = sum(len(board["rows"]) for board in boards)
    return {"heads": heads, "boards": boards, "n_shown": n_shown, "n": len(table)}


def _name_columns(table: pd.DataFrame, names: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, "number" if is_numeric(table[name]) else "text") for name in names]
