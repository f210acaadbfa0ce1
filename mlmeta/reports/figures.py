"""Figures over attempts for the screen: learning rates by task, accuracy against seconds, and the style of all.

Every figure is a `plotly.graph_objects.Figure`. Points carry the row of their attempt as ``customdata`` and the
name of their task as ``meta["task"]``, so that a page can show one attempt or one task in all figures at once.
Attempts are those of `mlmeta.reports.figure_data.prepare_table`. Colours are those of Okabe and Ito (2008); the scale
of scores goes from blue over grey to orange, which is readable on white and on black.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial.distance import cdist

from mlmeta.analysis.task_similarity import place_tasks
from mlmeta.errors import BadInputError, shorten
from mlmeta.history.table import Floats
from mlmeta.reports.attempt_plots import PALETTE
from mlmeta.reports.figure_data import (
    describe_attempts,
    escape_markup,
    find_fronts,
    rank_scores,
    read_column,
    read_points,
    round_values,
    spans_decades,
    thin_attempts,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go


GREY = "#8A8A8A"
SCORE_SCALE = ((0.0, "#2478C4"), (0.5, "#B4ABA1"), (1.0, "#EE6C1A"))
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")
MAX_POINTS = 3000

_MAX_BINS = 24
_MAX_GROUPS = 6
_N_NEAREST = 3
_OTHER = "other"


def new_figure(*, height: int, x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """Return an empty figure with the style of the report.

    Args:
        height: In pixels; the width is that of the page.
        x: Title of the x axis.
        y: Title of the y axis.
        layout: Other settings of `plotly.graph_objects.Layout`.
    """
    import plotly.graph_objects as go

    base = {
        "template": "none",
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 34, "b": 48},
        "hovermode": "closest",
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y}, "automargin": True, "zeroline": False},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    }
    return go.Figure(layout=base | layout)


def style_groups(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Return colour, dash and marker symbol of each name; no two of 28 names look the same."""
    return {
        name: (PALETTE[i % 7], DASHES[i // 7 % len(DASHES)], SYMBOLS[i // 7 % len(SYMBOLS)])
        for i, name in enumerate(names)
    }


def name_metric(metric: str) -> str:
    """Return a metric as the title of an axis, with its unit where that is known."""
    units = {"accuracy": "accuracy (share, 0 to 1)", "duration_s": "seconds"}
    return units.get(metric, escape_markup(metric))


def set_log_axis(figure: go.Figure, values: npt.ArrayLike, *, axis: str = "x") -> bool:
    """Make an axis logarithmic where its values span decades, and say whether it became so."""
    logarithmic = spans_decades(values)
    if logarithmic:
        figure.update_layout({f"{axis}axis": {"type": "log", "dtick": 1, "exponentformat": "power"}})
    return logarithmic


def add_attempts(figure: go.Figure, points: pd.DataFrame, **style: Any) -> None:
    """Add attempts to a figure: `x`, `y` and `text` of each, its row as the index.

    Args:
        figure: The figure.
        points: The attempts.
        style: Other settings of `plotly.graph_objects.Scatter`.
    """
    from plotly.graph_objects import Scatter

    base = {"mode": "markers", "customdata": points.index.tolist(), "text": points["text"].tolist()}
    places = {"x": round_values(points["x"]), "y": round_values(points["y"])}
    figure.add_trace(Scatter(base | places | {"hovertemplate": "%{text}<extra></extra>"} | style))


def add_ranks(
    figure: go.Figure, x: list[Any], y: list[str], ranks: npt.NDArray[np.float64], texts: list[list[str]]
) -> None:
    """Add a heat map of ranks 0..1, shape (len(y), number of columns), NaN where there is none; and name its rows."""
    from plotly.graph_objects import Heatmap

    cells = {
        "z": [round_values(row, digits=3) for row in ranks],
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
    }
    style = {"colorscale": SCORE_SCALE, "zmin": 0, "zmax": 1, "xgap": 2, "ygap": 2, "showscale": False}
    figure.add_trace(Heatmap({"x": x, "y": y} | cells | style))
    figure.update_layout(xaxis={"showgrid": False}, yaxis={"type": "category", "showgrid": False})


def plot_param_by_task(table: pd.DataFrame, *, metric: str = "accuracy", param: str = "optimizer.lr") -> go.Figure:
    """Return a heat map: which values of a number worked on which tasks.

    Colour is the median rank of the attempts within their task, 0 the worst and 1 the best; a cell without
    attempts is empty. Bins of a param that spans decades end at 1, 2 and 5 of each decade.

    Args:
        table: Attempts.
        metric: Ranks the attempts.
        param: A param that is a number.

    Raises:
        BadInputError: No attempt has both.
    """
    cells = _read_cells(table, metric, param)
    edges = bin_edges(cells["value"])
    cells["bin"] = np.clip(np.searchsorted(edges, cells["value"], side="right") - 1, 0, len(edges) - 2)
    middle = cells[cells["rank"] >= 0.75].groupby("task")["value"].median()
    order = sorted(cells["task"].unique(), key=lambda task: (-middle.get(task, np.inf), task))
    grid = cells.pivot_table(index="task", columns="bin", values="rank", aggfunc="median").reindex(order)
    grid = grid.reindex(columns=range(len(edges) - 1))
    figure = new_figure(height=110 + 26 * len(order), x=escape_markup(param))
    texts = [[_describe_cell(cells, task, b, edges, metric) for b in range(len(edges) - 1)] for task in order]
    names = [escape_markup(task, limit=28) for task in order]
    add_ranks(figure, round_values(edges), names, grid.to_numpy(), texts)
    set_log_axis(figure, edges)
    return figure


def _read_cells(table: pd.DataFrame, metric: str, param: str) -> pd.DataFrame:
    """Return value, rank, score, task and run of the attempts that have a value and a rank."""
    cells = pd.DataFrame({"value": read_column(table, param), "rank": rank_scores(table, metric)})
    cells["score"] = read_column(table, metric)
    cells["task"] = table["task"]
    cells = cells.dropna(subset=["value", "rank"])
    if cells.empty:
        raise BadInputError(f"no task has two attempts to compare with {shorten(param)} and {shorten(metric)}")
    return cells


def bin_edges(values: pd.Series) -> npt.NDArray[np.float64]:
    """Return rising edges of at most 24 bins around numbers: 1, 2, 5 of each decade, decades, or even steps."""
    low, high = float(values.min()), float(values.max())
    if not spans_decades(values):
        return np.linspace(low, high if high > low else low + 1, min(8, max(1, values.nunique())) + 1)
    for steps in ((1, 2, 5), (1,)):
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        edges = np.array([float(f"{step}e{decade}") for decade in decades for step in steps])
        first, last = np.searchsorted(edges, low, side="right") - 1, np.searchsorted(edges, high, side="right")
        edges = edges[max(0, first) : last + 1]
        if len(edges) - 1 <= _MAX_BINS:
            return edges
    return np.geomspace(low, high, _MAX_BINS + 1)


def name_bins(edges: npt.NDArray[np.float64]) -> list[str]:
    """Return the text of each bin, such as ``0.002 to 0.005``."""
    return [f"{_shorten_number(low)} to {_shorten_number(high)}" for low, high in pairwise(edges)]


def _shorten_number(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}" if 1e3 <= abs(value) < 1e12 else f"{value:.2g}"


def _describe_cell(cells: pd.DataFrame, task: str, number: int, edges: npt.NDArray[np.float64], metric: str) -> str:
    here = cells[(cells["task"] == task) & (cells["bin"] == number)]
    if here.empty:
        return ""
    scores = here["score"].dropna()
    lines = [f"<b>{escape_markup(task)}</b>", f"{name_bins(edges)[number]}: {len(here)} attempts"]
    lines.append(f"median rank {here['rank'].median():.2f}")
    if len(scores):
        lines.append(f"{escape_markup(metric)}: median {scores.median():.3g}, {scores.min():.3g} to {scores.max():.3g}")
    return "<br>".join(lines)


def plot_param_on_task(
    table: pd.DataFrame,
    task: str,
    *,
    metric: str = "accuracy",
    param: str = "optimizer.lr",
    colour_by: str = "optimizer.name",
) -> go.Figure:
    """Return one small panel: a number against the score of one task's attempts, coloured by a name.

    Axes have the range of all tasks, so that panels side by side can be compared.

    Args:
        table: Attempts on any tasks.
        task: The one to show.
        metric: The score, on the y axis.
        param: A param that is a number, on the x axis; logarithmic where it spans decades.
        colour_by: A param with names; the six most frequent ones get a colour.
    """
    points = read_points(table, param, metric)
    points["group"] = group_names(table, colour_by)
    figure = new_figure(height=230, y=escape_markup(metric), margin={"l": 48, "r": 8, "t": 30, "b": 34})
    figure.update_layout(title={"text": escape_markup(task, limit=34), "font": {"size": 13}, "x": 0.02, "y": 0.97})
    x = np.log10(points["x"]) if set_log_axis(figure, points["x"]) else points["x"]
    figure.update_layout(xaxis={"range": pad_range(x, 0.04)}, yaxis={"range": pad_range(points["y"], 0.04)})
    styles = style_groups(sorted(points["group"].unique()))
    own = thin_attempts(table[table["task"] == task], metric, limit=MAX_POINTS)
    points["text"] = pd.Series(describe_attempts(own, metric), index=own.index)
    for group, part in points[points.index.isin(own.index)].groupby("group"):
        colour, _, symbol = styles[str(group)]
        marker = {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.75}
        add_attempts(figure, part, name=escape_markup(group), marker=marker, meta={"task": task})
    return figure


def list_groups(table: pd.DataFrame, colour_by: str = "optimizer.name") -> dict[str, str]:
    """Return the colour of each group that `plot_param_on_task` shows, for a legend beside the panels."""
    return {name: style[0] for name, style in style_groups(sorted(group_names(table, colour_by).unique())).items()}


def group_names(table: pd.DataFrame, column: str) -> pd.Series:
    """Return a name of each attempt's group: its value in a column, or "other" beside the six most frequent ones."""
    if column not in table:
        return pd.Series("attempts", index=table.index)
    names = table[column].astype("object").where(table[column].notna(), "none").astype(str)
    return names.where(names.isin(names.value_counts().index[:_MAX_GROUPS]), _OTHER)


def pad_range(values: npt.ArrayLike, share: float) -> list[float]:
    """Return the range of an axis with some of it as room at each end."""
    low, high = float(np.min(values)), float(np.max(values))
    room = share * (high - low) or 0.5
    return [low - room, high + room]


def plot_pareto(table: pd.DataFrame, *, metric: str = "accuracy", cost: str = "duration_s") -> go.Figure:
    """Return the score against the seconds of each attempt, with the Pareto front of each task as a line.

    Raises:
        BadInputError: No attempt has both.
    """
    points = read_points(table, cost, metric)
    points["front"] = find_fronts(table, metric, cost=cost)
    points["text"] = pd.Series(describe_attempts(table, metric), index=table.index)
    figure = new_figure(height=480, x="seconds of training" if cost == "duration_s" else escape_markup(cost))
    figure.update_layout(yaxis={"title": {"text": name_metric(metric)}})
    set_log_axis(figure, points["x"])
    kept = thin_attempts(table.loc[points.index], metric, limit=MAX_POINTS).index
    styles = style_groups(sorted(points["task"].unique()))
    for front in (False, True):
        for task, part in points[(points["front"] == front) & (front | points.index.isin(kept))].groupby("task"):
            colour, dash, symbol = styles[str(task)]
            style: dict[str, Any] = {"marker": {"color": colour, "symbol": symbol, "size": 5}, "opacity": 0.35}
            if front:
                style = {"mode": "lines+markers", "line": {"color": colour, "dash": dash, "width": 2, "shape": "hv"}}
                style["marker"] = {"color": colour, "symbol": symbol, "size": 8}
                style["hovertemplate"] = "%{text}<extra></extra><br>on the front"
            add_attempts(figure, part.sort_values("x"), name=escape_markup(task), meta={"task": task}, **style)
    return figure


def plot_task_map(
    tasks: pd.DataFrame, distances: pd.DataFrame, texts: list[str], *, chosen: str | None = None
) -> tuple[go.Figure, float]:
    """Return the map of tasks, and how much of the distances it loses (stress-1, 0..1).

    Args:
        tasks: As `mlmeta.analysis.task_similarity.task_table` gives it, n rows.
        distances: As `mlmeta.analysis.task_similarity.task_distances` gives it, (n, n) in the same order.
        texts: What is shown when a task is pointed at, without markup of strangers.
        chosen: The task whose nearest ones lines lead to.
    """
    from plotly.graph_objects import Scatter

    places, stress = place_tasks(distances.to_numpy(dtype=np.float64))
    sizes = 8 + 8 * np.sqrt(tasks["n_attempts"] / max(1, tasks["n_attempts"].max()))
    figure = new_figure(height=460, margin={"l": 16, "r": 16, "t": 16, "b": 16})
    is_chosen = (tasks["task"] == chosen).to_numpy(dtype=bool)
    for start in is_chosen.nonzero()[0]:
        far = distances.iloc[start].where(~is_chosen).to_numpy(dtype=np.float64)
        for end in [place for place in far.argsort()[:_N_NEAREST] if np.isfinite(far[place])]:
            x, y = places[[start, end]].T
            line = {"color": PALETTE[1], "width": 1.5, "dash": "dot"}
            figure.add_trace(Scatter(x=round_values(x), y=round_values(y), mode="lines", line=line, hoverinfo="skip"))
    figure.add_trace(
        Scatter(
            ids=list(tasks["task"]),
            x=round_values(places[:, 0]),
            y=round_values(places[:, 1]),
            mode="markers+text",
            text=[escape_markup(name, limit=26) for name in tasks["task"]],
            textposition=_spread_labels(places),
            hovertext=texts,
            hovertemplate="%{hovertext}<extra></extra>",
            marker={
                "size": round_values(sizes, digits=3),
                "color": [PALETTE[1] if own else PALETTE[0] for own in is_chosen],
                "opacity": 0.8,
            },
            cliponaxis=False,
        )
    )
    bare = {"showticklabels": False, "title": {"text": ""}}
    figure.update_layout(xaxis=bare | {"range": pad_range(places[:, 0], 0.25)}, yaxis=bare | {"scaleanchor": "x"})
    return figure, stress


def _spread_labels(places: Floats) -> list[str]:
    """Return where each name stands: on the side that faces away from the nearest other task."""
    distances = cdist(places, places)
    np.fill_diagonal(distances, np.inf)
    if len(places) < 2:
        return ["top center"] * len(places)
    away = places - places[distances.argmin(axis=1)]
    # Of tasks at one place every other name stands on the other side.
    sides = np.where(np.abs(away).max(axis=1) < 1e-3, np.arange(len(away)) % 2, away[:, 0]) > 0
    return [
        f"{'top' if y >= -1e-3 else 'bottom'} {'right' if right else 'left'}"
        for y, right in zip(away[:, 1], sides, strict=True)
    ]
