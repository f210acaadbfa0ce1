"""A map of tasks: places in the plane whose distances are like those of the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlmeta.analysis.task_similarity import measure_distances, place_tasks
from mlmeta.history.table import Floats
from mlmeta.report_data import escape_markup, round_values
from mlmeta.report_figures import PALETTE, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go


def plot_task_map(tasks: pd.DataFrame, distances: pd.DataFrame, texts: list[str]) -> tuple[go.Figure, float]:
    """Return the map of tasks, and how much of the distances it loses (stress-1, 0..1).

    Args:
        tasks: As `mlmeta.analysis.task_similarity.task_table` gives it, n rows.
        distances: As `mlmeta.analysis.task_similarity.task_distances` gives it, (n, n) in the same order.
        texts: What is shown when a task is pointed at, without markup of strangers.
    """
    from plotly.graph_objects import Scatter

    places, stress = place_tasks(distances.to_numpy(dtype=np.float64))
    sizes = 8 + 8 * np.sqrt(tasks["n_attempts"] / max(1, tasks["n_attempts"].max()))
    figure = new_figure(height=460, margin={"l": 16, "r": 16, "t": 16, "b": 16})
    figure.add_trace(
        Scatter(
            x=round_values(places[:, 0]),
            y=round_values(places[:, 1]),
            mode="markers+text",
            text=[escape_markup(name, limit=26) for name in tasks["task"]],
            textposition=_spread_labels(places),
            hovertext=texts,
            hovertemplate="%{hovertext}<extra></extra>",
            marker={"size": round_values(sizes, digits=3), "color": PALETTE[0], "opacity": 0.8},
            cliponaxis=False,
        )
    )
    bare = {"showticklabels": False, "title": {"text": ""}}
    figure.update_layout(xaxis=bare | {"range": _widen(places[:, 0])}, yaxis=bare | {"scaleanchor": "x"})
    return figure, stress


def _widen(values: Floats) -> list[float]:
    """Return a range with room for the names beside the outermost points."""
    room = 0.25 * (values.max() - values.min()) or 0.5
    return [float(values.min() - room), float(values.max() + room)]


def _spread_labels(places: Floats) -> list[str]:
    """Return where each name stands: on the side that faces away from the nearest other task."""
    distances = measure_distances(places)
    np.fill_diagonal(distances, np.inf)
    if len(places) < 2:
        return ["top center"] * len(places)
    away = places - places[distances.argmin(axis=1)]
    return [f"{'top' if y >= 0 else 'bottom'} {'right' if x > 0 else 'left'}" for x, y in away]
