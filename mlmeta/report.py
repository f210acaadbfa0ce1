"""All attempts as one HTML page: leaderboards, curves, parallel coordinates, importance, effects and a map of tasks.

The page holds everything it needs, also plotly.js: it can be sent, kept and opened without a network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from mlmeta.report_data import (
    UNKNOWN_TASK,
    describe_attempts,
    is_number_column,
    prepare_table,
    round_values,
    thin_attempts,
)
from mlmeta.report_html import escape_text, fill_page
from mlmeta.report_sections import Attempts, make_sections

MAX_ATTEMPTS = 20_000

_EMPTY = """<p class="lack">No attempt has been recorded here yet.</p>
<p>Make the first one, on the handwritten digits that come with scikit-learn, and write this page again:</p>
<pre>mlmeta train digits.json
mlmeta report</pre>
<p>Attempts that were made elsewhere come in with <code>mlmeta import FILE</code>.</p>"""


def write_report(
    table: pd.DataFrame,
    file: str | Path,
    *,
    title: str = "mlmeta report",
    metric: str = "accuracy",
    tasks: Sequence[str] | None = None,
    store: str | None = None,
) -> None:
    """Write one self-contained HTML file about attempts; a file of that name is replaced in one step.

    Large histories are thinned, and the page says where: 20,000 attempts, 1,000 curves, 3,000 lines, 2,000 rows.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        file: The file to write; its folder must be there.
        title: Of the page.
        metric: What attempts are compared by.
        tasks: Names of the tasks to show; None for all.
        store: Where the attempts were read, for the page's head; None for ``table.attrs["tracking_uri"]``. A
            password in it is left out.

    Raises:
        BadInputError: The table has no such metric.
        NotFoundError: It has no such task.
    """
    source = store if store is not None else str(table.attrs.get("tracking_uri", ""))
    if table.empty and not tasks:
        sections = [("start", "The first attempt", _EMPTY)]
        page = fill_page(title=title, summary=_tell_source(source), sections=sections, texts=[], rows=[])
    else:
        prepared = prepare_table(table, metric=metric, tasks=tasks)
        shown = thin_attempts(prepared, metric, limit=MAX_ATTEMPTS).reset_index(drop=True)
        shown.attrs = dict(prepared.attrs)
        attempts = Attempts(shown, metric)
        page = fill_page(
            title=title,
            summary=_summarise(prepared, metric, source),
            sections=make_sections(attempts),
            texts=describe_attempts(shown, metric),
            rows=_list_rows(attempts),
        )
    _write_in_one_step(Path(file), page.encode("utf-8", errors="replace"))


def _summarise(table: pd.DataFrame, metric: str, source: str) -> str:
    n_tasks = int((table["task"].drop_duplicates() != UNKNOWN_TASK).sum())
    first, last = table["started"].min(), table["started"].max()
    when = "" if pd.isna(first) else f", started {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    states = ", ".join(f"{escape_text(name)} {n:,}" for name, n in table["status"].value_counts().items())
    unknown = int((table["task"] == UNKNOWN_TASK).sum())
    lines = [f"<p><strong>{_count(len(table), 'attempt')} on {_count(n_tasks, 'task')}</strong>{when}.</p>"]
    lines.append(f'<p class="facts">Status: {states}. Compared by <code>{escape_text(metric)}</code>.</p>')
    if unknown:
        lines.append(f'<p class="facts">{_count(unknown, "attempt")} without a known task.</p>')
    if len(table) > MAX_ATTEMPTS:
        which = "of each task the best and evenly spaced others"
        lines.append(f"<p>All below is of {MAX_ATTEMPTS:,} of them: {which}. Name tasks to see all of theirs.</p>")
    return "\n".join([*lines, _tell_source(source)])


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _tell_source(source: str) -> str:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    where = f" from <code>{escape_text(_without_password(source))}</code>" if source else ""
    return f'<p class="facts">Read{where} on {now}.</p>'


def _without_password(uri: str) -> str:
    """Return an address without the user and password of a database or server."""
    try:
        place = urlsplit(uri).netloc
    except ValueError:
        return "(an address that cannot be read)"
    return uri.replace(place, place.rpartition("@")[2], 1) if "@" in place else uri


def _list_rows(attempts: Attempts) -> dict[str, list[Any]]:
    """Return the columns of the attempts that the page shows, for programs that read it."""
    table = attempts.table
    names = ["run_id", "model_name", "status", "task", "started", "duration_s", *attempts.columns, attempts.metric]
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for name in names if name in table):
        values = table[name]
        if is_number_column(values):
            columns[name] = round_values(values.astype("Float64").astype("float64"), digits=9)
        else:
            columns[name] = [None if pd.isna(value) else str(value)[:500] for value in values]
    return columns


def _write_in_one_step(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name[:40]}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
