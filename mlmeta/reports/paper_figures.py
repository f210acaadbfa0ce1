"""Figures over attempts for papers: one column wide, 300 dots per inch, in colours for the colour-blind too.

Drawn without pyplot, as `mlmeta.reports.attempt_plots` does. There are no titles: a paper has captions. In SVG and PDF
text stays text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.analysis.task_similarity import place_tasks
from mlmeta.errors import BadInputError, MlmetaError, shorten
from mlmeta.reports.attempt_plots import PALETTE, literal, new_plot, save_plot, shorten_label, style_axes
from mlmeta.reports.curve_figures import MAX_CURVES, has_curve, measure_losses
from mlmeta.reports.figure_data import (
    find_fronts,
    prepare_table,
    rank_scores,
    read_points,
    spans_decades,
    thin_attempts,
)
from mlmeta.reports.figures import GREY, SCORE_SCALE, group_names
from mlmeta.reports.report import Attempts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


DPI = 300
WIDTH_INCHES = 3.35
SUFFIXES = (".png", ".svg", ".pdf")
MAX_PANELS = 24

_SIZE, _SMALL = 7.0, 6.0
_LINES = ("-", "--", ":", "-.")
_MAX_BARS = 10
_RATE, _OPTIMIZER = "optimizer.lr", "optimizer.name"
_MAX_NAMED = len(PALETTE)


def write_paper_figures(
    table: pd.DataFrame, folder: str | Path, *, metric: str = "accuracy", suffix: str = ".png"
) -> list[Path]:
    """Write learning_curves, importance, learning_rates, task_map and pareto_front, each one column (3.35 inches) wide.

    Where there is too little data for one of them, it is left out.

    Args:
        table: Attempts as `mlmeta.history.loading.load_attempts` gives them.
        folder: Made where it is missing; files of these names are replaced.
        metric: What attempts are compared by.
        suffix: ".png", ".svg" or ".pdf".

    Returns:
        The files that were written.

    Raises:
        BadInputError: There is no such metric or suffix, or too little data for any of the figures.
    """
    if suffix not in SUFFIXES:
        raise BadInputError(f"figures are written as {', '.join(SUFFIXES)}; got {shorten(suffix)}")
    attempts = Attempts(prepare_table(table, metric=metric), metric)
    drawings: dict[str, Callable[[Attempts], Figure]] = {
        "learning_curves": _draw_curves,
        "importance": _draw_importance,
        "learning_rates": _draw_rates,
        "task_map": _draw_map,
        "pareto_front": _draw_pareto,
    }
    written, reasons = [], []
    for name, draw in drawings.items():
        try:
            figure = draw(attempts)
        except MlmetaError as error:
            reasons.append(f"{name}: {error}")
            continue
        file = Path(folder) / f"{name}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        _save(figure, file)
        written.append(file)
    if not written:
        raise BadInputError("\n".join(["there is too little data for figures", *(f"  {reason}" for reason in reasons)]))
    return written


def _draw_curves(attempts: Attempts) -> Figure:
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import MaxNLocator

    known = attempts.table[has_curve(attempts.table)]
    if known.empty:
        raise BadInputError("no attempt has a learning curve")
    kept = thin_attempts(known, attempts.metric, limit=MAX_CURVES)
    ranks = rank_scores(attempts.table, attempts.metric).loc[kept.index].sort_values(na_position="first")
    figure, axes = _new_axes(height=2.4)
    points = [np.column_stack([np.arange(1, len(c) + 1), _drawable(c)]) for c in kept["curve"][ranks.index]]
    alpha = 0.8 if len(points) <= 100 else 0.4
    lines = LineCollection(points, cmap=_score_colours(), linewidths=0.5, alpha=alpha, rasterized=True)
    lines.set_array(np.ma.masked_invalid(ranks.to_numpy()))
    lines.set_clim(0, 1)
    axes.add_collection(lines)
    low, high, logarithmic = measure_losses(kept["curve"])
    if logarithmic:
        axes.set_yscale("log")
    axes.set(xlim=(1, max(2, *(len(p) for p in points))), xlabel="epoch", ylabel="training loss")
    axes.set_ylim(
        *((low / 1.3, high * 1.3) if low > 0 else (low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-9))
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    bar = figure.colorbar(lines, ax=axes, aspect=30, pad=0.02)
    bar.set_label(f"rank by {_text(attempts.metric, 90)} (1 = best)", fontsize=_SMALL, **literal())
    bar.ax.tick_params(labelsize=_SMALL, width=0.6, length=2)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    return figure


def _draw_importance(attempts: Attempts) -> Figure:
    rows = attempts.importance.head(_MAX_BARS).iloc[::-1]
    figure, axes = _new_axes(height=0.75 + 0.24 * len(rows))
    places = np.arange(len(rows), dtype=np.float64)
    bars = (
        ("importance", "share of variance explained", PALETTE[0], 0.2),
        ("permutation", "loss of R²", PALETTE[1], -0.2),
    )
    for column, label, colour, shift in bars:
        means = rows[column].to_numpy(dtype=np.float64)
        ends = [means - rows[f"{column}_low"].to_numpy(), rows[f"{column}_high"].to_numpy() - means]
        style: dict[str, Any] = {"ecolor": "black", "error_kw": {"elinewidth": 0.6, "capsize": 1.5, "capthick": 0.6}}
        axes.barh(places + shift, means, 0.38, xerr=np.clip(ends, 0, None), color=colour, label=label, **style)
    axes.set_yticks(places, [_text(name, 90) for name in rows["param"]], fontsize=_SMALL, **literal())
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_xlabel("importance, with 95 % intervals")
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=_SMALL, frameon=False, loc="lower right")
    return figure


def _draw_rates(attempts: Attempts) -> Figure:
    table, metric = attempts.table, attempts.metric
    points = read_points(table, _RATE, metric)
    points["group"] = group_names(table, _OPTIMIZER)
    tasks = sorted(points["task"].unique())[:MAX_PANELS]
    n_columns = min(3, len(tasks))
    n_rows = math.ceil(len(tasks) / n_columns)
    figure = _new_figure(0.75 + (1.9 if n_columns == 1 else 0.95) * n_rows)
    panels = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    groups = sorted(points["group"].unique())
    for axes, task in zip(panels, tasks, strict=False):
        _draw_panel(axes, points[points["task"] == task], groups)
        axes.set_title(_text(task, 66), fontsize=_SMALL, pad=2, **literal())
    if spans_decades(points["x"]):
        panels[0].set_xscale("log")
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(tasks) - n_columns) : len(tasks)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("learning rate", fontsize=_SIZE)
    figure.supylabel(_text(metric, 110), fontsize=_SIZE, **literal())
    _add_legend(figure, panels[0], loc="outside upper center", ncols=4)
    return figure


def _draw_panel(axes: Axes, points: pd.DataFrame, groups: Sequence[str]) -> None:
    for group, colour, marker in zip(groups, PALETTE, "osD^vPX", strict=False):
        part = points[points["group"] == group]
        style: dict[str, Any] = {"s": 5, "linewidths": 0, "color": colour, "marker": marker, "alpha": 0.8}
        axes.scatter(part["x"], part["y"], label=_text(group, 60), **style)
    _style_axes(axes)


def _draw_map(attempts: Attempts) -> Figure:
    tasks, distances = attempts.place_tasks()
    places, stress = place_tasks(distances.to_numpy(dtype=np.float64))
    figure, axes = _new_axes(height=2.8)
    axes.scatter(places[:, 0], places[:, 1], s=14, color=PALETTE[0])
    axes.set(xlabel=f"task distance (stress-1 {stress:.2f})", ylabel="task distance")
    axes.margins(x=0.2, y=0.1)
    axes.set_aspect("equal", adjustable="datalim")
    figure.draw_without_rendering()
    _name_points(axes, places, [_text(name, 75) for name in tasks["task"]])
    return figure


def _name_points(axes: Axes, places: npt.NDArray[np.float64], names: Sequence[str]) -> None:
    """Write the name beside each point, where it covers the fewest points and names."""
    from matplotlib.transforms import Bbox

    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(places)]
    for place, name in zip(places, names, strict=True):
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 5, "va": "center", **literal()}
        tries = [
            axes.annotate(name, place, (dx, dy), ha="left" if dx > 0 else "right", **style)
            for dy in (0, 4, -4, 8, -8, 12, -12)
            for dx in (4, -4)
        ]
        boxes = [text.get_window_extent() for text in tries]
        inside = axes.bbox
        costs = [
            sum(box.overlaps(other) for other in taken) + (box.x0 < inside.x0 or box.x1 > inside.x1) for box in boxes
        ]
        best = int(np.argmin(costs))
        taken.append(boxes[best])
        for text in tries[:best] + tries[best + 1 :]:
            text.remove()


def _draw_pareto(attempts: Attempts) -> Figure:
    table, metric = attempts.table, attempts.metric
    points = read_points(table, "duration_s", metric)
    points["front"] = find_fronts(table, metric)
    tasks = sorted(points["task"].unique())[:MAX_PANELS]
    figure, axes = _new_axes(height=2.3 + 0.13 * math.ceil(len(tasks) / 3))
    axes.scatter(points["x"], points["y"], s=2, color=GREY, alpha=0.35, linewidths=0, rasterized=True)
    for number, task in enumerate(tasks):
        front = points[points["front"] & (points["task"] == task)].sort_values("x")
        style: dict[str, Any] = {"color": PALETTE[number % 7], "linestyle": _LINES[number // 7 % len(_LINES)]}
        axes.step(front["x"], front["y"], where="post", marker="o", ms=2, lw=1, label=_text(task, 62), **style)
    if spans_decades(points["x"]):
        axes.set_xscale("log")
    axes.set_xlabel("training time (s)")
    axes.set_ylabel(_text(metric, 110), **literal())
    _add_legend(figure, axes, loc="outside lower center", ncols=3)
    return figure


def _add_legend(figure: Figure, axes: Axes, *, loc: str, ncols: int) -> None:
    from matplotlib.font_manager import FontProperties

    style: dict[str, Any] = {"frameon": False, "handletextpad": 0.3, "columnspacing": 0.9, "handlelength": 1.8}
    prop = FontProperties(family=literal()["family"], size=5.5)
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc=loc, ncols=ncols, prop=prop, **style)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _text(value: object, width_points: float) -> str:
    """Return a name of strangers as it can be drawn, on one line."""
    return shorten_label(str(value), width_points=width_points, size=_SMALL)


def _new_figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((WIDTH_INCHES, height), dpi=DPI, layout="constrained", facecolor="white")


def _new_axes(*, height: float) -> tuple[Figure, Axes]:
    figure = _new_figure(height)
    axes = figure.subplots()
    _style_axes(axes)
    return figure, axes


def _style_axes(axes: Axes) -> None:
    style_axes(axes)
    axes.spines[["left", "bottom"]].set_linewidth(0.6)
    axes.tick_params(labelsize=_SMALL, width=0.6, length=2)
    axes.xaxis.label.set_fontsize(_SIZE)
    axes.yaxis.label.set_fontsize(_SIZE)


def _score_colours() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("score", list(SCORE_SCALE)).with_extremes(bad=GREY)


def _save(figure: Figure, file: Path) -> None:
    import matplotlib

    # Fonts as text that can be selected and edited, not as outlines.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "mlmeta"}):
        figure.savefig(file, dpi=DPI, metadata={"Software": None} if file.suffix == ".png" else None)


def plot_learning_curves(path: str | Path, curves: pd.DataFrame, *, title: str = "") -> None:
    """Write one line an attempt as a small PNG.

    Up to seven attempts have a colour and a name each; more are coloured by their task, where there are at most
    seven tasks. Where a value is not finite a line has a gap, and what exceeds most others tenfold is cut off. The axis
    is logarithmic where the values are positive and span a factor over 100.

    Args:
        path: The PNG file to write.
        curves: As `mlmeta.meta_query.learning_curves` gives them, of one metric.
        title: Says what is seen; empty for the metric and the number of attempts.
    """
    drawn = curves.assign(value=_drawable(curves["value"].to_numpy(dtype=np.float64)))
    n_attempts = curves["run_id"].nunique()
    metric = str(curves["metric"].iloc[0]) if len(curves) else "curve"
    title = title or f"{metric} of {n_attempts:,} attempt{'' if n_attempts == 1 else 's'}"
    figure = new_plot(7.2, 4.6, title=title)
    axes = figure.subplots()
    groups = _group_attempts(drawn)
    colours = dict(zip(dict.fromkeys(groups.values()), PALETTE, strict=False)) if groups else {}
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


def _drawable(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return values that can be drawn, NaN, which is a gap, for those that are not finite."""
    return np.clip(np.where(np.isfinite(values), values, np.nan), -1e100, 1e100)


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
        shades.append(colours.get(str(run_id), PALETTE[0]))
    thin = len(lines) > _MAX_NAMED
    # All lines are one artist, so that a thousand cost little more than one.
    collection = LineCollection(lines, colors=shades, linewidths=0.8 if thin else 1.6, alpha=0.55 if thin else 1.0)
    axes.add_collection(collection, autolim=True)
    for line, shade in zip(lines, shades, strict=True):
        alone = _find_alone(line)
        axes.scatter(alone[:, 0], alone[:, 1], s=12, color=shade)


def _to_points(points: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return steps and values, shape (m, 2)."""
    return np.column_stack([points["step"].to_numpy(dtype=np.float64), points["value"].to_numpy(dtype=np.float64)])


def _find_alone(line: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the points of a line that have a gap on either side, and would not be seen."""
    is_gap = np.isnan(np.pad(line[:, 1], 1, constant_values=np.nan))
    return line[~is_gap[1:-1] & is_gap[:-2] & is_gap[2:]]


def _scale_axes(axes: Axes, curves: pd.DataFrame, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    curves = curves.dropna(subset=["value"])
    values = curves["value"].to_numpy(dtype=np.float64)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel(shorten_label(metric, width_points=200, size=9), **literal())
    if not len(values):
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no curve to show", transform=axes.transAxes, ha="center", color=GREY)
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
