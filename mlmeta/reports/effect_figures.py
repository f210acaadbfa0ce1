"""Figures of what params do to the score: importance, the effect of one param, the effect of two together."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.errors import BadInputError, shorten
from mlmeta.history.table import holds_numbers
from mlmeta.reports.attempt_plots import PALETTE
from mlmeta.reports.figure_data import (
    describe_attempts,
    escape_markup,
    rank_scores,
    read_column,
    round_values,
    thin_attempts,
)
from mlmeta.reports.figures import GREY, add_attempts, add_ranks, bin_edges, name_bins, new_figure, set_log_axis
from mlmeta.reports.tables import format_cell

if TYPE_CHECKING:
    import plotly.graph_objects as go


MAX_BARS = 12
MAX_EFFECT_POINTS = 1000

_POINT = {"color": GREY, "size": 5, "opacity": 0.35}
_MAX_BINS = 8
_MAX_NAMES = 8
_MISSING = "none"
_RANK = "rank (1 = best)"


def plot_importance(importance: pd.DataFrame) -> go.Figure:
    """Return two bars for each param with 95 % intervals: share of variance explained, and loss of R² without it.

    Args:
        importance: As `mlmeta.analysis.importance.measure_importance` gives it; the first 12 rows are shown.
    """
    from plotly.graph_objects import Bar

    rows = importance.head(MAX_BARS).iloc[::-1]
    names = [escape_markup(name, limit=34) for name in rows["param"]]
    figure = new_figure(height=130 + 34 * len(rows), x="importance")
    bars = (("permutation", "R² lost on held-out attempts when shuffled", PALETTE[1]),)
    for column, label, colour in (*bars, ("importance", "share of the variance explained", PALETTE[0])):
        means = rows[column].astype("float64")
        figure.add_trace(
            Bar(
                x=round_values(means),
                y=names,
                orientation="h",
                name=label,
                marker={"color": colour},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": round_values((rows[f"{column}_high"] - means).clip(lower=0)),
                    "arrayminus": round_values((means - rows[f"{column}_low"]).clip(lower=0)),
                    "color": GREY,
                    "thickness": 1.3,
                },
                hovertemplate="%{y}: %{x:.3f}<extra>" + label + "</extra>",
            )
        )
    figure.update_layout(barmode="group", showlegend=True, legend={"traceorder": "reversed"})
    figure.update_layout(yaxis={"type": "category"})
    return figure


def plot_marginal_effect(
    table: pd.DataFrame, effect: pd.DataFrame, param: str, *, metric: str = "accuracy", ranks: bool = True
) -> go.Figure:
    """Return the mean effect of one param with its 95 % band, over the attempts that it was learned from.

    Args:
        table: Attempts.
        effect: As `mlmeta.analysis.marginal_effects.marginal_effect` gives it for them.
        param: Its param.
        metric: Its score.
        ranks: The effect is on normal quantiles of ranks (task None), drawn as ranks 0..1; else on the metric itself.

    Raises:
        BadInputError: The effect has no row.
    """
    if effect.empty:
        raise BadInputError(f"{shorten(param)} has no value to draw an effect for")
    effect = _undo_quantiles(effect) if ranks else effect
    scores = rank_scores(table, metric) if ranks else read_column(table, metric)
    kept = thin_attempts(table, metric, limit=MAX_EFFECT_POINTS)
    points = pd.DataFrame({"y": scores[kept.index], "text": describe_attempts(kept, metric)}, index=kept.index)
    points = points.dropna(subset=["y"])
    title = _RANK if ranks else escape_markup(metric)
    figure = new_figure(height=300, x=escape_markup(param), y=title)
    numeric = effect.assign(value=pd.to_numeric(effect["value"], errors="coerce")).dropna(subset=["value"])
    if holds_numbers(table[param]) and len(numeric) > 1:
        points["x"] = read_column(table, param)
        add_attempts(figure, points.dropna(subset=["x"]), marker=_POINT)
        _draw_band(figure, numeric.astype({"value": "float64"}))
        set_log_axis(figure, numeric["value"].astype("float64"))
    else:
        _draw_names(figure, points, table[param], effect)
    return figure


def _undo_quantiles(effect: pd.DataFrame) -> pd.DataFrame:
    """Return an effect on normal quantiles z as one on ranks, Φ(z)."""
    columns = {name: [NormalDist().cdf(z) for z in effect[name]] for name in ("mean", "low", "high")}
    return effect.assign(**columns)


def _draw_band(figure: go.Figure, effect: pd.DataFrame) -> None:
    from plotly.graph_objects import Scatter

    effect = effect.sort_values("value")
    values, style = round_values(effect["value"]), {"mode": "lines", "hoverinfo": "skip"}
    figure.add_trace(Scatter(x=values, y=round_values(effect["low"]), line={"width": 0}, **style))
    band = {"line": {"width": 0}, "fill": "tonexty", "fillcolor": "rgba(213,94,0,0.25)"}
    figure.add_trace(Scatter(x=values, y=round_values(effect["high"]), **band, **style))
    figure.add_trace(
        Scatter(
            x=values,
            y=round_values(effect["mean"]),
            mode="lines",
            line={"color": PALETTE[1], "width": 3},
            hovertext=_describe_effect(effect),
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )


def _draw_names(figure: go.Figure, points: pd.DataFrame, values: pd.Series, effect: pd.DataFrame) -> None:
    """Draw names at places 0, 1, ...: the attempts beside each other, by chance, and the mean with its interval."""
    from plotly.graph_objects import Scatter

    is_truth = pd.api.types.is_bool_dtype(values)
    names = [_name_level(value, is_truth=is_truth) for value in effect["value"]]
    places = {name: float(i) for i, name in enumerate(names)}
    own = values.map(lambda value: _name_level(value, is_truth=is_truth))
    points["x"] = own.map(places) + np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
    add_attempts(figure, points.dropna(subset=["x"]), marker=_POINT)
    means = effect["mean"].astype("float64")
    figure.add_trace(
        Scatter(
            x=list(range(len(names))),
            y=round_values(means),
            mode="markers",
            marker={"color": PALETTE[1], "size": 11, "symbol": "diamond"},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": round_values(effect["high"] - means),
                "arrayminus": round_values(means - effect["low"]),
                "color": PALETTE[1],
                "thickness": 2,
            },
            hovertext=_describe_effect(effect.assign(value=names)),
            hovertemplate="%{hovertext}<extra></extra>",
        )
    )
    ticks = {"tickvals": list(range(len(names))), "ticktext": [escape_markup(name, limit=16) for name in names]}
    figure.update_layout(xaxis=ticks | {"range": [-0.6, len(names) - 0.4]})


def _name_level(value: object, *, is_truth: bool) -> str:
    """Return a value as a name; a truth may have come as the number 0 or 1."""
    if is_truth and isinstance(value, int | float | np.number) and value in (0, 1):
        return "true" if value else "false"
    return format_cell(value) or _MISSING


def _describe_effect(effect: pd.DataFrame) -> list[str]:
    columns = (effect[name] for name in ("value", "mean", "low", "high", "n_attempts"))
    return [
        f"{escape_markup(format_cell(value))}: {mean:.3f} ({low:.3f} to {high:.3f}; {n} attempts near it)"
        for value, mean, low, high, n in zip(*columns, strict=True)
    ]


def plot_pair(table: pd.DataFrame, first: str, second: str, *, metric: str = "accuracy") -> go.Figure:
    """Return a heat map of two params: colour is the mean rank of the attempts within their tasks, 0..1.

    Numbers stand in at most 8 bins and the 8 most frequent names are shown; a cell without attempts is empty.

    Raises:
        BadInputError: No attempt has both params and a score.
    """
    (x, columns), (y, rows) = _make_levels(table, first), _make_levels(table, second)
    cells = pd.DataFrame({"x": x, "y": y, "rank": rank_scores(table, metric)}).dropna()
    if cells.empty:
        raise BadInputError(f"no attempt has {shorten(first)}, {shorten(second)} and a score")
    parts = cells.groupby(["y", "x"])["rank"]
    means, counts = (
        found.unstack().reindex(index=range(len(rows)), columns=range(len(columns))).to_numpy(dtype=np.float64)
        for found in (parts.mean(), parts.count())
    )
    texts = [
        [
            f"{columns[i]} and {rows[j]}<br>mean rank {means[j, i]:.2f} of {counts[j, i]:.0f} attempts"
            if counts[j, i] > 0
            else ""
            for i in range(len(columns))
        ]
        for j in range(len(rows))
    ]
    figure = new_figure(height=320, x=escape_markup(first), y=escape_markup(second))
    add_ranks(figure, columns, rows, means, texts)
    figure.update_layout(xaxis={"type": "category"})
    return figure


def _make_levels(table: pd.DataFrame, param: str) -> tuple[pd.Series, list[str]]:
    """Return the number of the bin or name of each attempt, NaN where it has none, and the text of each for plotly."""
    values, numbers = table[param], read_column(table, param)
    numeric = holds_numbers(values)
    if numeric and numbers.nunique() > _MAX_BINS:
        edges = _even_edges(numbers)
        bins = pd.cut(numbers, list(edges), labels=False, include_lowest=True)
        return bins.astype("float64"), name_bins(edges)
    names = values.map(format_cell)
    shown = list(names[names != ""].value_counts().index[:_MAX_NAMES])
    if numeric:
        shown.sort(key=float)
    numbered = names.map({name: float(i) for i, name in enumerate(shown)})
    return numbered, [escape_markup(name, limit=22) for name in shown]


def _even_edges(numbers: pd.Series) -> npt.NDArray[np.float64]:
    """Return the edges of at most 8 bins: of the decades where there are few, else with even counts."""
    edges = bin_edges(numbers.dropna())
    if len(edges) <= _MAX_BINS + 1:
        return edges
    quantiles = np.quantile(numbers.dropna(), np.linspace(0, 1, _MAX_BINS + 1))
    return np.unique(quantiles)
