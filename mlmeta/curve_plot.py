"""The learning curves of many attempts in one picture, in the style of `mlmeta.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.plots import literal, new_plot, save_plot, shorten_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008); yellow is too light on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#6B6B6B"
_MAX_NAMED = len(_COLOURS)


def plot_learning_curves(path: str | Path, curves: pd.DataFrame, *, title: str = "") -> None:
    """Write one line an attempt as a small PNG.

    Up to seven attempts have a colour and a name each; more are coloured by their task, where there are at most
    seven tasks. Values that are not finite are left out, and what exceeds most others tenfold is cut off. The axis
    is logarithmic where the values are positive and span a factor over 100.

    Args:
        path: The PNG file to write.
        curves: As `mlmeta.meta_query.learning_curves` gives them, of one metric.
        title: Says what is seen; empty for the metric and the number of attempts.
    """
    values = curves["value"].to_numpy(dtype=np.float64)
    drawn = curves[np.isfinite(values)].assign(value=np.clip(values[np.isfinite(values)], -1e100, 1e100))
    n_attempts = curves["run_id"].nunique()
    metric = str(curves["metric"].iloc[0]) if len(curves) else "curve"
    title = title or f"{metric} of {n_attempts:,} attempt{'' if n_attempts == 1 else 's'}"
    figure = new_plot(7.2, 4.6, title=title)
    axes = figure.subplots()
    groups = _group_attempts(drawn)
    colours = dict(zip(dict.fromkeys(groups.values()), _COLOURS, strict=False)) if groups else {}
    _draw_lines(axes, drawn, {run_id: colours[group] for run_id, group in groups.items()})
    _scale_axes(axes, drawn, metric)
    for group, colour in colours.items():
        axes.plot([], [], color=colour, label=shorten_label(group, width_points=130, size=8))
    if colours:
        legend = figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set(**literal())
            text.set_fontsize(8)
    save_plot(figure, path)


def _group_attempts(curves: pd.DataFrame) -> dict[str, str]:
    """Return run id → what its colour stands for; nothing where there are too many of it."""
    attempts = curves.drop_duplicates("run_id")
    names = attempts["model_name"].fillna("").tolist()
    if len(attempts) <= _MAX_NAMED:
        are_unique = len(set(names)) == len(names)
        ids = attempts["run_id"].str[:6].tolist()
        named = names if are_unique else [f"{n} ({i})" for n, i in zip(names, ids, strict=True)]
        return dict(zip(attempts["run_id"], named, strict=True))
    tasks = attempts["task"].fillna("unknown task")
    return dict(zip(attempts["run_id"], tasks, strict=True)) if tasks.nunique() <= _MAX_NAMED else {}


def _draw_lines(axes: Axes, curves: pd.DataFrame, colours: Mapping[str, str]) -> None:
    from matplotlib.collections import LineCollection

    lines, shades = [], []
    for run_id, points in curves.groupby("run_id", sort=False):
        lines.append(_to_points(points))
        shades.append(colours.get(str(run_id), _COLOURS[0]))
    thin = len(lines) > _MAX_NAMED
    # All lines are one artist, so that a thousand cost little more than one.
    collection = LineCollection(lines, colors=shades, linewidths=0.8 if thin else 1.6, alpha=0.55 if thin else 1.0)
    axes.add_collection(collection, autolim=True)
    singles = np.array([line[0] for line in lines if len(line) == 1]).reshape(-1, 2)
    axes.scatter(
        singles[:, 0],
        singles[:, 1],
        s=12,
        color=[shade for line, shade in zip(lines, shades, strict=True) if len(line) == 1],
    )


def _to_points(points: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return steps and values, shape (m, 2)."""
    return np.column_stack([points["step"].to_numpy(dtype=np.float64), points["value"].to_numpy(dtype=np.float64)])


def _scale_axes(axes: Axes, curves: pd.DataFrame, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    values = curves["value"].to_numpy(dtype=np.float64)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("epoch")
    axes.set_ylabel(shorten_label(metric, width_points=200, size=9), **literal())
    if not len(values):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no curve to show", transform=axes.transAxes, ha="center", color=_GREY)
        return
    bottom, top = values.min(), _find_top(values)
    if is_wide := 0 < bottom < top / 100:
        axes.set_yscale("log")
    if top < values.max():
        axes.set_ylim(bottom / 1.3 if is_wide else bottom - 0.05 * (top - bottom), 1.3 * top)
        n_high = curves["run_id"][values > top].nunique()
        axes.set_xlabel(f"epoch ({n_high:,} attempt{'' if n_high == 1 else 's'} beyond the top at times)")


def _find_top(values: npt.NDArray[np.float64]) -> float:
    """Return the greatest value, or where a few are ten times those of most others, the greatest of most."""
    most = float(np.quantile(values, 0.98))
    return most if 0 < 10 * most < values.max() else float(values.max())
