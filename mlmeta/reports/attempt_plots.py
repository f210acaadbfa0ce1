"""Pictures of one attempt: its loss curve, its confusion matrix and its worst mistakes, as small PNG files.

Figures are drawn without pyplot, so that nothing is shared between threads and no display is needed.
Colours are those of Okabe and Ito (2008), which colour-blind people can tell apart. Names are drawn as they
are written: ``$`` and ``_`` mean nothing. What the usual font lacks is drawn in another one that matplotlib knows; a
label that no font has is numbered, and any other such character becomes a small box.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mlmeta.errors import BadInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


DPI = 110
MAX_MISTAKES = 16
MAX_BYTES = 100_000

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C7AE6")
GREY = "#6B6B6B"

_TRAIN, _VAL, _KEPT, _DIVERGED = PALETTE[:4]
_N_COLUMNS = 4
_THUMBNAIL_PIXELS = 64
_MAX_CHARACTERS = 200
_BOLD = 1.12
_NO_GLYPH = "\u25a1"
_FAMILY = "DejaVu Sans"
# Families that have what the usual one lacks, in the order in which they were needed; and who has which character.
_OTHER_FAMILIES: dict[str | None, None] = {}
_FAMILY_OF: dict[int, str] = {}
_Curve = Sequence[float | None]


@dataclass(frozen=True)
class Mistake:
    """A picture that got another label than its own.

    Attributes:
        image: A PIL image, or uint8 of shape (height, width, channels) with 1, 3 or 4 channels.
        true_label: The name of its own label.
        predicted_label: The name of the label that it got.
        confidence: Probability that the model gave the predicted label, 0..1.
        picture_id: Names the picture.
    """

    image: npt.NDArray[np.uint8] | Image.Image
    true_label: str
    predicted_label: str
    confidence: float
    picture_id: str


def plot_loss_curve(
    path: str | Path,
    *,
    train_losses: Sequence[float],
    val_losses: Sequence[float | None] = (),
    val_accuracies: Sequence[float | None] = (),
    kept_epoch: int | None = None,
    title: str,
    chance_loss: float | None = None,
) -> None:
    """Write the losses of each epoch, and below them the validation accuracy where there is one.

    Losses that are not finite are left out, and a line marks the first epoch that had one. The loss axis is
    logarithmic where the losses are positive and span a factor over 100.

    Args:
        path: The PNG file to write.
        train_losses: Mean training loss of epoch 1, 2, ...
        val_losses: Validation loss of epoch 1, 2, ...; None where it was not measured.
        val_accuracies: Validation accuracy of epoch 1, 2, ... as a share, 0..1; drawn in percent.
        kept_epoch: The epoch whose weights were kept, from 1.
        title: Says what is seen.
        chance_loss: The loss of guessing, ln K for cross entropy with K labels.
    """
    n_panels = 2 if len(_finite_points(val_accuracies)) else 1
    figure = new_plot(6.4, 3.0 + 1.3 * n_panels, title=title)
    heights = [2, 1][:n_panels]
    panels = list(figure.subplots(n_panels, 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    _draw_losses(panels[0], train_losses, val_losses, chance_loss=chance_loss)
    if n_panels == 2:
        _draw_curve(panels[1], _finite_points(val_accuracies) * [1, 100], colour=_VAL, marker="s", label="_")
        panels[1].set_ylabel("validation\naccuracy (%)")
    for axes in panels:
        _mark_epochs(axes, kept=kept_epoch, diverged=_first_not_finite(train_losses, val_losses))
        style_axes(axes)
    panels[-1].set_xlim(0.5, max(1, len(train_losses), len(val_losses), len(val_accuracies)) + 0.5)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True, nbins=10, min_n_ticks=1)
    handles, labels = panels[0].get_legend_handles_labels()
    n_columns = 3 if len(labels) == 5 else 4
    figure.legend(handles, labels, loc="outside lower center", ncols=n_columns, frameon=False, fontsize=8.5)
    save_plot(figure, path)


def plot_confusion_matrix(
    path: str | Path, matrix: npt.NDArray[np.int64], *, label_names: Sequence[str], title: str, note: str = ""
) -> None:
    """Write a confusion matrix: colour is the share of the row in percent, numbers are counts.

    Where the cells are too small the numbers are left out and only every second, fifth, ... label is named.
    A row without pictures is grey.

    Args:
        path: The PNG file to write.
        matrix: Counts, shape (K, K): row the true label, column the predicted one.
        label_names: The K names, in the order of the rows.
        title: Says what is seen.
        note: Stands below, on as many lines as it needs.

    Raises:
        BadInputError: The matrix does not have one row and one column for each name.
    """
    n = len(label_names)
    if n == 0 or matrix.shape != (n, n):
        raise BadInputError(
            f"a confusion matrix has a row and a column for each label; got {matrix.shape} for {n} labels"
        )
    side = min(5.5, max(2.2, 0.55 * n))
    cell_points = 72 * side / n
    figure = new_plot(side + 3.2, side + 2.2, title=title)
    axes = figure.subplots()
    image = axes.imshow(_row_percentages(matrix), cmap=_blues(), vmin=0, vmax=100)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("share of the true label's pictures (%)", fontsize=9)
    bar.outline.set_visible(False)
    _name_labels(axes, label_names, cell_points=cell_points)
    _write_counts(axes, matrix, cell_points=cell_points)
    figure.supxlabel(_wrap(note, figure), x=0.02, ha="left", fontsize=8, color=GREY)
    save_plot(figure, path)


def plot_mistakes(path: str | Path, mistakes: Sequence[Mistake], *, title: str, note: str = "") -> None:
    """Write the 16 mistakes that the model was surest of, or a small picture that says that there are none.

    Args:
        path: The PNG file to write.
        mistakes: All mistakes, in any order.
        title: Says what is seen.
        note: Stands below, on as many lines as it needs.
    """
    if not mistakes:
        figure = new_plot(4.0, 1.5, title=title)
        figure.text(0.5, 0.4, "No mistakes", ha="center", va="center", fontsize=14, color=GREY)
        return save_plot(figure, path)
    worst = sorted(mistakes, key=lambda mistake: -mistake.confidence)[:MAX_MISTAKES]
    n_columns = min(_N_COLUMNS, max(3, len(worst)))
    n_rows = math.ceil(len(worst) / n_columns)
    figure = new_plot(1.75 * n_columns, 0.65 + 2.3 * n_rows, title=title)
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, mistake in zip(grid, worst, strict=False):
        _draw_mistake(axes, mistake)
    for axes in grid[len(worst) :]:
        axes.set_axis_off()
    below = "\n".join(filter(None, [_count_text(len(worst), len(mistakes)), _wrap(note, figure)]))
    figure.supxlabel(below, x=0.02, ha="left", fontsize=8, color=GREY)
    save_plot(figure, path)


def _finite_points(values: _Curve) -> npt.NDArray[np.float64]:
    """Return the epochs, from 1, and values that are finite, shape (m, 2); cut to ±1e100 for the axes."""
    finite = [(i, v) for i, v in enumerate(values, start=1) if v is not None and math.isfinite(v)]
    return np.clip(np.array(finite, dtype=np.float64).reshape(-1, 2), -1e100, 1e100)


def _first_not_finite(*curves: _Curve) -> int | None:
    numbered = (pair for curve in curves for pair in enumerate(curve, start=1))
    return min((i for i, v in numbered if v is not None and not math.isfinite(v)), default=None)


def _draw_losses(axes: Axes, train: _Curve, val: _Curve, *, chance_loss: float | None) -> None:
    train_points, val_points = _finite_points(train), _finite_points(val)
    if len(train_points):
        _draw_curve(axes, train_points, colour=_TRAIN, marker="o", label="training")
    if len(val_points):
        _draw_curve(axes, val_points, colour=_VAL, marker="s", label="validation")
    if chance_loss is not None and math.isfinite(chance_loss):
        axes.axhline(chance_loss, color=GREY, linestyle=":", label=f"guessing ({chance_loss:.2f})")
    _scale_losses(axes, np.concatenate([train_points[:, 1], val_points[:, 1]]))


def _draw_curve(axes: Axes, points: npt.NDArray[np.float64], *, colour: str, marker: str, label: str) -> None:
    size = 4.0 if len(points) <= 40 else 0.0
    axes.plot(*points.T, color=colour, marker=marker, markersize=size, linewidth=1.6, label=label)


def _scale_losses(axes: Axes, losses: npt.NDArray[np.float64]) -> None:
    axes.set_ylabel("loss")
    if not len(losses):
        axes.set_yticks([])
        box = {"facecolor": "white", "edgecolor": "none"}
        axes.text(0.5, 0.75, "no finite loss", transform=axes.transAxes, ha="center", color=GREY, bbox=box)
    elif 0 < losses.min() < losses.max() / 100:
        axes.set_yscale("log")
        axes.set_ylabel("loss (logarithmic)")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")


def _mark_epochs(axes: Axes, *, kept: int | None, diverged: int | None) -> None:
    if kept is not None:
        axes.axvline(kept, color=_KEPT, linestyle="--", zorder=1, label=f"kept: epoch {kept}")
    if diverged is not None:
        label = f"loss not finite from epoch {diverged}"
        axes.axvline(diverged, color=_DIVERGED, linestyle="-.", linewidth=2, zorder=1, label=label)


def _row_percentages(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return each row in percent of its sum; NaN for a row that sums to 0."""
    sums = matrix.sum(axis=1, keepdims=True).astype(np.float64)
    sums[sums == 0] = np.nan
    shares: npt.NDArray[np.float64] = 100 * matrix / sums
    return shares


def _blues() -> Colormap:
    import matplotlib

    return matplotlib.colormaps["Blues"].with_extremes(bad="#E3E3E3")


def _name_labels(axes: Axes, label_names: Sequence[str], *, cell_points: float) -> None:
    size = 9.0 if cell_points > 20 else 7.5
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if s * 10**e * cell_points >= 1.3 * size)
    places = range(0, len(label_names), step)
    names = [shorten_label(label_names[i], width_points=125, size=size) for i in places]
    flat = all(_width_points(name, size=size) < 0.9 * cell_points for name in names)
    turn: dict[str, Any] = {}
    if not flat and cell_points < 20:
        turn = {"rotation": 90, "ha": "right", "va": "center", "rotation_mode": "anchor"}
    elif not flat:
        turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(places, names, fontsize=size, **turn, **literal())
    axes.set_yticks(places, names, fontsize=size, **literal())
    note = "" if step == 1 else f" (every {step}{'nd' if step == 2 else 'th'} is named)"
    axes.set_xlabel(f"predicted label{note}")
    axes.set_ylabel(f"true label{note}")
    axes.spines[:].set_visible(False)


def _write_counts(axes: Axes, matrix: npt.NDArray[np.int64], *, cell_points: float) -> None:
    n_digits = len(str(matrix.max()))
    size = min(10.0, 0.55 * cell_points, 0.85 * cell_points / (0.64 * n_digits))
    if size < 5:
        return
    shares = _row_percentages(matrix)
    for (row, column), count in np.ndenumerate(matrix):
        dark = shares[row, column] > 55
        colour = "white" if dark else "#9A9A9A" if count == 0 else "black"
        axes.text(column, row, f"{count}", ha="center", va="center", fontsize=size, color=colour)


def _wrap(note: str, figure: Figure) -> str:
    """Return a note of the size 8 in lines that are not longer than the figure."""
    return textwrap.fill(note, int(72 * figure.get_figwidth() / 4.2))


def _count_text(n_shown: int, n_all: int) -> str:
    if n_shown < n_all:
        return f"the {n_shown} most confident of {n_all} mistakes"
    return "the only mistake" if n_all == 1 else f"all {n_all} mistakes, the most confident first"


def _draw_mistake(axes: Axes, mistake: Mistake) -> None:
    axes.imshow(_square_thumbnail(mistake.image), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#C8C8C8")
    lines = [
        shorten_label(f"true: {mistake.true_label}", width_points=112, size=7.5),
        shorten_label(f"predicted: {mistake.predicted_label}", width_points=112, size=7.5),
        f"confidence: {100 * mistake.confidence:.0f} %",
    ]
    axes.set_xlabel("\n".join(lines), loc="left", fontsize=7.5, linespacing=1.3, **literal())
    name = shorten_label(mistake.picture_id, width_points=112, size=6, keep_end=True)
    axes.set_title(name, loc="left", pad=2.5, fontsize=6, color=GREY, **literal())


def _square_thumbnail(image: npt.NDArray[np.uint8] | Image.Image) -> npt.NDArray[np.uint8]:
    """Return red, green and blue of a small picture on a white square, uint8 of shape (side, side, 3)."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(np.squeeze(image, axis=2) if image.shape[2] == 1 else image)
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image.convert("RGBA"))
    picture = opaque.convert("RGB")
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    side = max(picture.size)
    return np.asarray(ImageOps.pad(picture, (side, side), Image.Resampling.NEAREST, color="white"))


def new_plot(width_inches: float, height_inches: float, *, title: str) -> Figure:
    """Return an empty figure with its title."""
    from matplotlib.figure import Figure

    figure = Figure((width_inches, height_inches), dpi=DPI, layout="constrained", facecolor="white")
    text = shorten_label(title, width_points=0.95 * 72 * width_inches / _BOLD, size=11)
    figure.suptitle(text, x=0.02, ha="left", fontsize=11, fontweight="bold", **literal())
    return figure


def style_axes(axes: Axes) -> None:
    """Draw a faint grid below what is drawn, and no frame."""
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_plot(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG of at most `MAX_BYTES`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    Path(path).write_bytes(_encode(picture))


def _encode(picture: Image.Image) -> bytes:
    """Return a PNG of at most `MAX_BYTES`, or of 64 colours where noise needs more."""
    png = _png(picture)
    for n_colours in (256, 128, 64):
        if len(png) <= MAX_BYTES:
            break
        png = _png(picture.quantize(n_colours, dither=Image.Dither.NONE))
    return png


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True, dpi=(DPI, DPI))
    return file.getvalue()


def literal() -> dict[str, Any]:
    """Return the text settings for names, which may hold anything; after `shorten_label` of them."""
    return {"parse_math": False, "usetex": False, "family": [_FAMILY, *_OTHER_FAMILIES]}


def number_labels(label_names: Sequence[str]) -> tuple[list[str], str]:
    """Return labels as they can be drawn: one that no font has by its number, from 1, and a note that explains it."""
    drawn = [_drawable(name) for name in label_names]
    lacking = [text.count(_NO_GLYPH) > name.count(_NO_GLYPH) for text, name in zip(drawn, label_names, strict=True)]
    if not any(lacking):
        return drawn, ""
    for place in np.flatnonzero(lacking):
        drawn[place] = f"no. {place + 1} {drawn[place].replace(_NO_GLYPH, '').strip()}".strip()
    first = lacking.index(True) + 1
    return drawn, f"no. {first}: the label in row {first} of per_class.csv; no font of this machine has its characters"


@functools.cache
def _unread_fonts() -> Iterator[tuple[str, str]]:
    """Return a file of each family, the usual family first; one of last resort has a box for every character."""
    from matplotlib.font_manager import fontManager

    fonts = sorted(
        fontManager.ttflist, key=lambda font: (font.weight == 400, font.style == "normal", "Sans" in font.name)
    )
    files = {font.name: font.fname for font in fonts if "resort" not in font.name.lower()}
    return iter([(_FAMILY, files.pop(_FAMILY)), *reversed(files.items())])


def _find_family(character: str) -> str | None:
    """Return a family of fonts that has a character, the usual one if it does; None where there is none.

    Fonts are read as far as that needs. Of the others only characters that can be seen count: some have symbols of
    their own at the places of the rest.
    """
    from matplotlib.font_manager import get_font

    while ord(character) not in _FAMILY_OF and (character.isprintable() or not _FAMILY_OF):
        family, file = next(_unread_fonts(), ("", ""))
        if not family:
            return None
        with contextlib.suppress(OSError, RuntimeError):
            for code in get_font(file).get_charmap():
                if family == _FAMILY or chr(code).isprintable():
                    _FAMILY_OF.setdefault(code, family)
    return _FAMILY_OF.get(ord(character))


def _drawable(text: str) -> str:
    """Return the text on one line, with a box for each character that no font has."""
    line = " ".join(text.split())
    families = {c: _find_family(c) for c in line}
    _OTHER_FAMILIES.update(dict.fromkeys(family for family in families.values() if family not in (None, _FAMILY)))
    return "".join(c if families[c] else _NO_GLYPH for c in line)


def shorten_label(text: str, *, width_points: float, size: float, keep_end: bool = False) -> str:
    """Return the text, drawable, cut with an ellipsis to a width in points (1/72 inch)."""
    line = _drawable(text[-_MAX_CHARACTERS:] if keep_end else text[:_MAX_CHARACTERS])
    if _width_points(line, size=size) <= width_points:
        return line
    shorter = (f"…{line[i:]}" if keep_end else f"{line[:-i].rstrip()}…" for i in range(1, len(line)))
    return next((cut for cut in shorter if _width_points(cut, size=size) <= width_points), "…")


def _width_points(text: str, *, size: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    properties = FontProperties(family=literal()["family"], size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text, properties, ismath=False)
    return float(width)
