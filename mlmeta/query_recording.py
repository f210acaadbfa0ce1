"""Writes an answer into the run that ``mlflow run -e query`` or ``-e recommend`` started; that run is no attempt."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from mlflow.entities import RunTag

from mlmeta.table_output import write_output
from mlmeta.text_table import format_cell
from mlmeta.tracking.recorder import telling
from mlmeta.tracking.store import open_client

MAX_CURVES = 50
_SHOWN_ROWS = 10
_MAX_NOTE = 8000


def record_query(
    table: pd.DataFrame,
    *,
    filter: str,
    n_attempts: int,
    shown: Sequence[str],
    load_curves: Callable[[], pd.DataFrame],
) -> None:
    """Log query.csv, query.parquet and query.json, curves.png for up to 50 attempts, and a note.

    Nothing is done where MLFLOW_RUN_ID names no run.

    Args:
        table: The result.
        filter: What was asked.
        n_attempts: How many attempts were looked at.
        shown: The columns that the note shows.
        load_curves: Gives the learning curves of the result.

    Raises:
        MlmetaError: If the tracking store does not take it.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    client = open_client()
    with tempfile.TemporaryDirectory() as name, telling(f"the result cannot be written into run {run_id}"):
        folder = Path(name)
        for form in ("csv", "parquet", "json"):
            write_output(table, folder / f"query.{form}", form=form)
        if 0 < len(table) <= MAX_CURVES:
            from mlmeta.curve_plot import plot_learning_curves

            plot_learning_curves(folder / "curves.png", load_curves())
        client.log_artifacts(run_id, str(folder))
        note = write_query_note(table, filter=filter, n_attempts=n_attempts, shown=shown)
        client.update_run(run_id, name="query")
        client.log_batch(run_id, tags=[RunTag("mlmeta.kind", "query"), RunTag("mlflow.note.content", note)])


def record_recommendations(table: pd.DataFrame, files: Mapping[str, str], *, reasons: Sequence[str]) -> None:
    """Log recommendations.csv and .json, the commands under ``next/``, and a note.

    Nothing is done where MLFLOW_RUN_ID names no run.

    Args:
        table: One row a recommendation.
        files: The text of the commands by the name of their file.
        reasons: Of each recommendation, a sentence.

    Raises:
        MlmetaError: If the tracking store does not take it.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    client = open_client()
    with tempfile.TemporaryDirectory() as name, telling(f"the result cannot be written into run {run_id}"):
        folder = Path(name)
        for form in ("csv", "json"):
            write_output(table, folder / f"recommendations.{form}", form=form)
        (folder / "next").mkdir()
        for file, text in files.items():
            (folder / "next" / file).write_text(text, encoding="utf-8")
        client.log_artifacts(run_id, str(folder))
        note = "\n".join(f"{rank}. {_escape(reason)}" for rank, reason in enumerate(reasons, start=1))[:_MAX_NOTE]
        client.update_run(run_id, name="recommend")
        client.log_batch(run_id, tags=[RunTag("mlmeta.kind", "recommendation"), RunTag("mlflow.note.content", note)])


def write_query_note(table: pd.DataFrame, *, filter: str, n_attempts: int, shown: Sequence[str]) -> str:
    """Return a short Markdown summary: how many attempts were found, and the first ten."""
    words = "1 attempt" if n_attempts == 1 else f"{n_attempts:,} attempts"
    head = f"**{len(table):,} of {words}**: query.csv, query.json and query.parquet have them."
    fence = "`" * (max(3, filter.count("`") + 1))
    asked = f"\n\n{fence}\n{filter[:1000]}\n{fence}" if filter else ""
    names = [name for name in dict.fromkeys(shown) if name in table.columns]
    rows = [names, ["---"] * len(names), *table[names].head(_SHOWN_ROWS).itertuples(index=False, name=None)]
    grid = "\n".join("| " + " | ".join(_escape(format_cell(cell, limit=60)) for cell in row) + " |" for row in rows)
    rest = "" if len(table) <= _SHOWN_ROWS else f"\n\n… and {len(table) - _SHOWN_ROWS:,} more."
    return f"{head}{asked}\n\n{grid}{rest}"[:_MAX_NOTE]


def _escape(text: str) -> str:
    """Return text in which Markdown finds nothing of its own."""
    return "".join(f"\\{c}" if c in "\\|`*_[]<>" else c for c in text)
