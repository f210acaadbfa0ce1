"""A map of tasks: places in the plane whose distances are like those of the tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.history.table import Floats
from mlmeta.report_data import escape_markup, round_values
from mlmeta.report_figures import PALETTE, new_figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

_N_STEPS = 300


def place_tasks(distances: npt.ArrayLike) -> tuple[Floats, float]:
    """Return a place for each task and how much of the distances the map loses.

    Starts from classical scaling (Torgerson 1952) and lowers the stress by majorization (SMACOF, de Leeuw 1977).
    The same distances always give the same map.

    Args:
        distances: Shape (n, n), symmetric, 0 on the diagonal; NaN, not known, counts as 1.

    Returns:
        Places, float64 of shape (n, 2), centred; and Kruskal's stress-1, 0 for a faithful map.
    """
    wanted = np.nan_to_num(np.asarray(distances, dtype=np.float64), nan=1.0)
    places = _scale_classically(wanted)
    for _ in range(_N_STEPS):
        places = _majorize(wanted, places)
    lost = np.square(wanted - measure_distances(places)).sum()
    return places, float(np.sqrt(lost / max(np.square(wanted).sum(), 1e-300)))


def _scale_classically(distances: Floats) -> Floats:
    n = len(distances)
    centring = np.eye(n) - 1 / max(n, 1)
    values, vectors = np.linalg.eigh(-0.5 * centring @ np.square(distances) @ centring)
    values, vectors = values[::-1][:2], vectors[:, ::-1][:, :2]
    # An eigenvector has no sign of its own: its largest part points up, on every machine.
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), range(vectors.shape[1])])
    places = np.zeros((n, 2))
    places[:, : len(values)] = vectors * signs * np.sqrt(np.clip(values, 0, None))
    return places


def measure_distances(places: Floats) -> Floats:
    """Return the distance of each place to each, shape (n, n)."""
    distances: Floats = np.linalg.norm(places[:, None] - places[None, :], axis=2)
    return distances


def _majorize(wanted: Floats, places: Floats) -> Floats:
    """Return better places: the Guttman transform with equal weights."""
    now = measure_distances(places)
    ratios = np.divide(wanted, now, out=np.zeros_like(now), where=now > 1e-12)
    step = -ratios
    step[np.diag_indices_from(step)] = ratios.sum(axis=1)
    better: Floats = step @ places / len(places)
    return better


def plot_task_map(tasks: pd.DataFrame, distances: pd.DataFrame, texts: list[str]) -> tuple[go.Figure, float]:
    """Return the map of tasks, and how much of the distances it loses (stress-1, 0..1).

    Args:
        tasks: As `mlmeta.similarity.task_table` gives it, n rows.
        distances: As `mlmeta.similarity.task_distances` gives it, (n, n) in the same order.
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
