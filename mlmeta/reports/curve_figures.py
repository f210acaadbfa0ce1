"""Figures in which every attempt is one line: learning curves and parallel coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.errors import BadInputError, shorten
from mlmeta.history.table import holds_numbers
from mlmeta.reports.figure_data import (
    cut_text,
    describe_attempts,
    escape_markup,
    is_share,
    rank_scores,
    read_column,
    round_values,
    spans_decades,
    thin_attempts,
)
from mlmeta.reports.figures import GREY, SCORE_SCALE, new_figure, pad_range, style_groups
from mlmeta.reports.tables import format_cell

if TYPE_CHECKING:
    import plotly.graph_objects as go


MAX_CURVES = 1000
MAX_LINES = 3000

_MAX_CURVE_POINTS = 40_000
_N_RANK_GROUPS = 5
_MAX_NAMES = 12
_MISSING = "none"
_MAX_LOSS = 1e12


def plot_learning_curves(table: pd.DataFrame, *, metric: str = "accuracy") -> go.Figure:
    """Return the training loss by epoch of at most 1,000 attempts, coloured by their rank within their task.

    Attempts of one task and one fifth of the ranks are one line with gaps, so that thousands stay fluid; its
    ``meta`` holds both colours, by task and by rank. The axis shows the middle 98 % of the losses.

    Args:
        table: Attempts with the column ``curve``.
        metric: Ranks the attempts.

    Raises:
        BadInputError: No attempt has a curve.
    """
    from plotly.graph_objects import Scatter

    known = table[has_curve(table)]
    if known.empty:
        raise BadInputError("no attempt has a learning curve: none has finished an epoch")
    kept = thin_attempts(known, metric, limit=MAX_CURVES)
    ranks, texts = rank_scores(table, metric), dict(zip(kept.index, describe_attempts(kept, metric), strict=True))
    groups = np.ceil(ranks.loc[kept.index] * _N_RANK_GROUPS).clip(1, _N_RANK_GROUPS).fillna(0).astype(int)
    styles = style_groups(sorted(kept["task"].unique()))
    figure = new_figure(height=480, x="epoch", y="training loss")
    n_points = max(10, min(200, _MAX_CURVE_POINTS // len(kept)))
    for key, part in kept.groupby([groups, "task"]):
        group, task = int(str(key[0])), str(key[1])
        columns = _join_curves(part["curve"], n_points=n_points)
        colours = {"task": styles[task][0], "rank": _rank_colour(group)}
        figure.add_trace(
            Scatter(
                x=columns["epoch"],
                y=columns["loss"],
                customdata=columns["row"],
                text=["" if row is None else texts[row] for row in columns["row"]],
                hovertemplate="%{text}<br>epoch %{x}: loss %{y}<extra></extra>",
                mode="lines",
                connectgaps=False,
                line={"color": colours["rank"], "width": 1.2, "dash": "solid"},
                opacity=0.75 if len(kept) <= 200 else 0.5,
                name=escape_markup(task),
                meta={"task": task, "colours": colours},
            )
        )
    _scale_losses(figure, kept["curve"])
    return figure


def has_curve(table: pd.DataFrame) -> pd.Series:
    """Say for each attempt whether it has a finite loss of some epoch."""
    return table["curve"].map(lambda curve: curve is not None and bool(np.isfinite(curve).any())).astype(bool)


def _join_curves(curves: pd.Series, *, n_points: int) -> dict[str, list[Any]]:
    """Return epochs, losses and rows of curves one after the other, with a gap after each."""
    columns: dict[str, list[Any]] = {"epoch": [], "loss": [], "row": []}
    for row, curve in curves.items():
        epochs = np.unique(np.linspace(1, len(curve), min(n_points, len(curve))).round().astype(int))
        columns["epoch"] += [*epochs.tolist(), None]
        columns["loss"] += [*round_values(curve[epochs - 1]), None]
        columns["row"] += [*[row] * len(epochs), None]
    return columns


def _rank_colour(group: int) -> str:
    """Return the colour of a fifth of the ranks, 1 the worst; grey for 0, attempts without a score."""
    from plotly.colors import sample_colorscale

    if group == 0:
        return GREY
    return str(sample_colorscale([list(stop) for stop in SCORE_SCALE], [(group - 1) / (_N_RANK_GROUPS - 1)])[0])


def measure_losses(curves: pd.Series) -> tuple[float, float, bool]:
    """Return the ends of the middle 98 % of the finite losses, at most 1e12, and whether their axis is logarithmic."""
    losses = np.concatenate([curve[np.isfinite(curve)] for curve in curves]).clip(-_MAX_LOSS, _MAX_LOSS)
    low, high = (float(end) for end in np.quantile(losses, [0.01, 0.99], method="nearest"))
    return low, high, bool(losses.min() > 1 / _MAX_LOSS and high / low > 30)


def _scale_losses(figure: go.Figure, curves: pd.Series) -> None:
    low, high, logarithmic = measure_losses(curves)
    axis: dict[str, Any] = {"range": pad_range(np.log10([low, high]) if logarithmic else [low, high], 0.05)}
    if logarithmic:
        axis |= {"type": "log", "dtick": 1, "title": {"text": "training loss (logarithmic)"}}
    figure.update_layout(yaxis=axis)


def place_lines(table: pd.DataFrame, params: Sequence[str], *, metric: str = "accuracy") -> dict[str, Any]:
    """Return each attempt as a line over axes for params and its score, as the page's script draws it.

    Numbers that span decades have a logarithmic axis, names are evenly spaced, and missing values stand below
    the least one.

    Args:
        table: Attempts.
        params: Columns, from left to right.
        metric: The last axis.

    Returns:
        ``rows``: of the attempts, at most 3,000, the worst first. ``ranks``: theirs within the task, 0..1. ``axes``:
        of each its label, the value of each attempt, the range of values, and which values have which text.

    Raises:
        BadInputError: No attempt has a finite score, or there is no param.
    """
    scored = table[read_column(table, metric).notna()]
    if scored.empty or not params:
        raise BadInputError(f"no attempt has params to compare and a score in {shorten(metric)}")
    kept = thin_attempts(scored, metric, limit=MAX_LINES)
    ranks = rank_scores(table, metric).loc[kept.index].sort_values()
    kept = kept.loc[ranks.index]
    axes = [*(_make_axis(kept, name) for name in params if name != metric)]
    axes.append(_make_axis(kept, metric, logarithmic=not is_share(kept[metric])))
    return {"rows": kept.index.tolist(), "ranks": round_values(ranks.fillna(0.5), digits=3), "axes": axes}


def _make_axis(table: pd.DataFrame, column: str, *, logarithmic: bool = True) -> dict[str, Any]:
    label = cut_text(column, limit=22)
    numbers = read_column(table, column)
    if holds_numbers(table[column]):
        return {"label": label} | _number_axis(numbers, logarithmic=logarithmic and spans_decades(numbers))
    return {"label": label} | _name_axis(table[column])


def _number_axis(numbers: pd.Series, *, logarithmic: bool) -> dict[str, Any]:
    places = np.log10(numbers) if logarithmic else numbers
    low, high = (0.0, 0.0) if places.isna().all() else (float(places.min()), float(places.max()))
    below = low - 0.12 * ((high - low) or 1.0)
    has_missing = bool(places.isna().any())
    ticks = [(below, _MISSING)] if has_missing else []
    return {
        "values": round_values(places.fillna(below), digits=5),
        "range": [below if has_missing else low, high if high > low else low + 1.0],
        "ticks": [*ticks, *_choose_ticks(low, high, logarithmic)],
    }


def _choose_ticks(low: float, high: float, logarithmic: bool) -> Iterator[tuple[float, str]]:
    if not logarithmic:
        for place in np.unique(np.linspace(low, high, 6)):
            yield float(place), f"{place:.3g}"
        return
    for decade in range(int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1):
        yield float(decade), f"{10.0**decade:g}"


def _name_axis(values: pd.Series) -> dict[str, Any]:
    names = values.map(format_cell).replace("", _MISSING)
    shown = list(names.value_counts().index[:_MAX_NAMES])
    places: npt.NDArray[np.float64] = names.map({name: i for i, name in enumerate(shown)}).to_numpy(dtype=np.float64)
    texts = [cut_text(name, limit=16) for name in shown]
    if np.isnan(places).any():
        places = np.nan_to_num(places, nan=float(len(shown)))
        texts.append("other")
    return {"values": places.tolist(), "range": [0, max(1, len(texts) - 1)], "ticks": list(enumerate(texts))}
