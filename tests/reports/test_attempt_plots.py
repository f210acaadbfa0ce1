from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from mlmeta.errors import BadInputError
from mlmeta.reports import attempt_plots
from mlmeta.reports.attempt_plots import Mistake, plot_confusion_matrix, plot_loss_curve, plot_mistakes

DOGS = [
    "Boston Terrier imagesize:500x500",
    "Alaskan Malamute imagesize:500x500",
    "American Water Spaniel imagesize:500x500",
    "Chesapeake Bay Retriever imagesize:500x500",
    "Black and Tan Coonhound imagesize:500x500",
    "American Staffordshire Terrier imagesize:500x500",
    "Plott_Hound $5_x$ \\frac{",
    "Catahoula Leopard Dog",
    "日本スピッツ \U0001f415\n\ud800\x07",
]


def _matrix(n: int, *, most: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, (n, n)) + np.diag(rng.integers(most // 2, most, n))


def _photos(n: int) -> list[Image.Image]:
    """Square cuts of the real photos that scikit-learn ships."""
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    corners = [(40 * (i // 2), 20 * (i // 2)) for i in range(n)]
    return [photos[i % 2].crop((x, y, x + 200, y + 200)) for i, (x, y) in enumerate(corners)]


def _mistakes(n: int) -> list[Mistake]:
    return [
        Mistake(photo, DOGS[i % 9], DOGS[(i + 1) % 9], i / n, f"pictures/of/dogs/in/folders/{i}.jpg")
        for i, photo in enumerate(_photos(n))
    ]


def _size_of_png(path: Path) -> tuple[int, int]:
    """Return width and height after decoding every pixel."""
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert len(set(picture.convert("L").tobytes())) > 5
        return picture.size


class Drawn:
    """Gives the figures that are written, before they become pixels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.figure = Figure()
        monkeypatch.setattr(attempt_plots, "save_plot", lambda figure, _path: setattr(self, "figure", figure))

    def losses(self, train, val=(), accuracies=(), *, kept=None, chance_loss=None) -> Figure:
        curves = {"train_losses": train, "val_losses": val, "val_accuracies": accuracies}
        plot_loss_curve("x.png", **curves, kept_epoch=kept, title="losses", chance_loss=chance_loss)
        return self.figure

    def matrix(self, matrix, names, *, title="pets", note="") -> Figure:
        plot_confusion_matrix("x.png", matrix, label_names=names, title=title, note=note)
        return self.figure

    def mistakes(self, mistakes) -> Figure:
        plot_mistakes("x.png", mistakes, title="pets")
        return self.figure

    def shown(self, image) -> np.ndarray:
        """The pixels of a picture that got a wrong label."""
        return self.mistakes([Mistake(image, "a", "b", 0.5, "x")]).axes[0].images[0].get_array()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    return Drawn(monkeypatch)


def _width_points(text: str, size: float) -> float:
    font = FontProperties(family=attempt_plots.literal()["family"], size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def _line(figure: Figure, label: str, panel: int = 0) -> tuple[list[float], list[float]]:
    (line,) = [line for line in figure.axes[panel].lines if str(line.get_label()).startswith(label)]
    return list(line.get_xdata()), list(line.get_ydata())


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("train", "val", "accuracies"),
    [
        ([2.1], [2.0], [0.3]),
        (list(np.exp(-np.arange(30) / 8)), list(np.exp(-np.arange(30) / 9)), [0.5] * 30),
        ([2.3, 2.4, 2.9, 14, 300, 1e6, math.nan], [2.3, 2.4, 3, 20, 500, math.inf, None], [0.1] * 7),
        ([math.nan], [], []),
        ([], [], []),
        ([1e308, -1.7e308, 1.0], [1.7e308], []),
        ([1e308, 1e-300], [], []),
        ([0.0, 0.0], [None, None], [None, None]),
    ],
    ids=["1 epoch", "30 epochs", "diverged", "nan at once", "none", "huge", "huge and tiny", "zeros"],
)
def test_loss_curve_is_a_small_png(tmp_path, train, val, accuracies):
    path = tmp_path / "loss_curve.png"
    plot_loss_curve(
        path,
        train_losses=train,
        val_losses=val,
        val_accuracies=accuracies,
        kept_epoch=1,
        title="a_$b$: losses " + "of very many epochs " * 9,
        chance_loss=math.log(9),
    )
    width, height = _size_of_png(path)
    assert (width, height) == (704, 616 if any(accuracies) else 473)
    assert path.stat().st_size < 100_000


def test_loss_curve_shows_each_epoch_from_1_and_accuracy_in_percent(drawn):
    figure = drawn.losses([2.0, 1.5, 1.2], [2.1, None, 1.4], [0.25, None, 0.5])
    assert _line(figure, "training") == ([1, 2, 3], [2.0, 1.5, 1.2])
    assert _line(figure, "validation") == ([1, 3], [2.1, 1.4])
    assert _line(figure, "_", panel=1) == ([1, 3], [25, 50])


def test_loss_curve_names_its_axes_with_units(drawn):
    figure = drawn.losses([2.0, 1.5], [], [0.1, 0.2])
    upper, lower = figure.axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("loss", "validation\naccuracy (%)")
    assert lower.get_xlabel() == "epoch"
    assert figure.get_suptitle() == "losses"


def test_loss_curve_marks_the_kept_epoch_in_both_panels(drawn):
    figure = drawn.losses([2.0, 1.5, 1.7], [2.1, 1.6, 1.9], [0.1, 0.4, 0.3], kept=2)
    assert [_line(figure, "kept: epoch 2", panel)[0] for panel in (0, 1)] == [[2, 2], [2, 2]]


def test_loss_curve_draws_the_loss_of_guessing_as_a_dotted_line(drawn):
    figure = drawn.losses([2.0, 1.5], chance_loss=math.log(9))
    (line,) = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("guessing")]
    assert list(line.get_ydata()) == [math.log(9)] * 2
    assert line.get_linestyle() == ":"
    assert _legend(figure) == ["training", "guessing (2.20)"]


def test_loss_curve_marks_the_first_epoch_whose_loss_is_not_finite(drawn):
    figure = drawn.losses([2.0, 3.0, 9.0, math.nan, math.nan], [2.0, 3.0, math.inf, None, None])
    assert _line(figure, "loss not finite from epoch 3")[0] == [3, 3]
    assert _line(figure, "training")[0] == [1, 2, 3]
    assert _line(figure, "validation")[0] == [1, 2]


def test_loss_curve_marks_no_epoch_where_all_is_well(drawn):
    assert _legend(drawn.losses([2.0, 1.0], [2.0, None])) == ["training", "validation"]


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([2.0, 1.0], "linear"), ([2.0, 900.0], "log"), ([-1.0, 900.0], "linear"), ([0.0, 900.0], "linear")],
)
def test_loss_axis_is_logarithmic_where_positive_losses_span_over_a_hundred(drawn, losses, scale):
    assert drawn.losses(losses).axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    ("matrix", "names"),
    [
        (np.array([[5]]), ["only"]),
        (np.array([[9120, 80], [1234, 8800]]), ["automobile", "truck"]),
        (_matrix(9), DOGS),
        (_matrix(20, most=600), [f"label {i}" for i in range(20)]),
        (_matrix(100), [f"n{i:05} a very long name of a label, number {i}" for i in range(100)]),
        (np.zeros((3, 3), dtype=np.int64), ["", " ", "_"]),
    ],
    ids=["1 label", "2 labels", "9 dogs", "20 labels", "100 labels", "no pictures"],
)
def test_confusion_matrix_is_a_small_png(tmp_path, matrix, names):
    path = tmp_path / "confusion_matrix.png"
    plot_confusion_matrix(path, matrix, label_names=names, title="dogs: true against predicted label")
    assert all(300 < pixels < 1000 for pixels in _size_of_png(path))
    assert path.stat().st_size < 100_000


def test_confusion_matrix_colours_shares_of_the_row_and_writes_counts(drawn):
    figure = drawn.matrix(np.array([[30, 10], [0, 0]]), ["cat", "dog"], title="pets")
    axes, bar = figure.axes
    shares = axes.images[0].get_array()
    assert shares[0].tolist() == [75.0, 25.0]
    assert shares.mask[1].all()
    assert [text.get_text() for text in axes.texts] == ["30", "10", "0", "0"]
    assert bar.get_ylabel() == "share of the true label's pictures (%)"
    assert axes.images[0].get_clim() == (0, 100)


def test_confusion_matrix_has_true_labels_in_rows_and_predicted_ones_in_columns(drawn):
    figure = drawn.matrix(_matrix(2), ["cat", "dog"], title="pets")
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true label", "predicted label")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat", "dog"]


def test_confusion_matrix_of_a_hundred_labels_names_some_and_writes_no_counts(drawn):
    names = [f"label {i}" for i in range(100)]
    axes = drawn.matrix(_matrix(100), names, title="many").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names[::5]
    assert list(axes.get_yticks()) == list(range(0, 100, 5))
    assert axes.get_ylabel() == "true label (every 5th is named)"
    assert not axes.texts


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2,), (0, 0)])
def test_confusion_matrix_that_does_not_fit_its_labels_is_refused(tmp_path, shape):
    names = ["cat", "dog"] if sum(shape) else []
    with pytest.raises(BadInputError, match="a row and a column for each label"):
        plot_confusion_matrix(tmp_path / "m.png", np.ones(shape, dtype=int), label_names=names, title="x")
    assert not (tmp_path / "m.png").exists()


@pytest.mark.parametrize(("n", "columns", "rows"), [(1, 3, 1), (4, 4, 1), (5, 4, 2), (16, 4, 4), (18, 4, 4)])
def test_mistakes_are_a_small_png(tmp_path, n, columns, rows):
    path = tmp_path / "mistakes.png"
    plot_mistakes(path, _mistakes(n), title="dogs: worst mistakes")
    width, height = _size_of_png(path)
    assert width == pytest.approx(1.75 * columns * 110, abs=1)
    assert height == pytest.approx((0.65 + 2.3 * rows) * 110, abs=1)
    assert path.stat().st_size < 100_000


def test_no_mistakes_at_all_is_a_small_picture_that_says_so(drawn):
    figure = drawn.mistakes([])
    assert (figure.get_size_inches() * figure.dpi).tolist() == [440, 165]
    assert "No mistakes" in [text.get_text() for text in figure.texts]


def test_the_surest_mistakes_come_first_with_both_labels_and_confidence(drawn):
    mistakes = [Mistake(p, "cat", f"dog {i}", i / 20, f"{i}.jpg") for i, p in enumerate(_photos(20))]
    figure = drawn.mistakes(mistakes)
    captions = [axes.get_xlabel() for axes in figure.axes]
    assert captions[0] == "true: cat\npredicted: dog 19\nconfidence: 95 %"
    assert captions[15] == "true: cat\npredicted: dog 4\nconfidence: 20 %"
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"{i}.jpg" for i in range(19, 3, -1)]
    assert figure.get_supxlabel() == "the 16 most confident of 20 mistakes"


@pytest.mark.parametrize(
    ("image", "corner"),
    [
        (np.full((4, 4, 1), 90, np.uint8), [90, 90, 90]),
        (np.full((4, 4, 3), [10, 20, 30], np.uint8), [10, 20, 30]),
        (np.full((4, 4, 4), [10, 20, 30, 0], np.uint8), [255, 255, 255]),
        (Image.new("P", (4, 4)), [0, 0, 0]),
        (Image.new("1", (4, 4), 1), [255, 255, 255]),
    ],
    ids=["grey", "colour", "transparent", "palette", "one bit"],
)
def test_mistakes_show_pictures_of_any_mode_on_white(drawn, image, corner):
    shown = drawn.shown(image)
    assert shown.shape == (4, 4, 3)
    assert shown[0, 0].tolist() == corner


def test_a_wide_picture_keeps_its_shape_on_a_white_square(drawn):
    image = np.zeros((10, 40, 3), np.uint8)
    shown = drawn.shown(image)
    assert shown.shape == (40, 40, 3)
    dark_rows = np.flatnonzero((shown == 0).all(axis=(1, 2)))
    assert dark_rows.tolist() == list(range(15, 25))


def test_small_pictures_such_as_digits_are_shown_pixel_by_pixel(drawn):
    digit = np.round(load_digits().images[3] * 255 / 16).astype(np.uint8)
    assert np.array_equal(drawn.shown(digit[..., None])[..., 0], digit)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_$b_2$ \\frac{", "a_$b_2$ \\frac{"),
        ("two\nlines\tand  gaps", "two lines and gaps"),
        ("bell \x07, lone \ud800, \U000f0000", "bell □, lone □, □"),
        ("Größe, λ, é", "Größe, λ, é"),
    ],
)
def test_names_are_drawn_as_written_and_what_no_font_has_is_a_box(text, expected):
    assert attempt_plots.shorten_label(text, width_points=1e6, size=9) == expected


def test_what_the_usual_font_lacks_is_drawn_in_another_that_has_it():
    # matplotlib itself ships DejaVu Serif, which has this sign, and DejaVu Sans has not.
    assert attempt_plots.shorten_label("low \u02ef", width_points=1e6, size=9) == "low \u02ef"
    families = attempt_plots.literal()["family"]
    assert families[0] == "DejaVu Sans"
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    assert [bool(font.get_char_index(0x2EF)) for font in fonts].count(True) >= 1


def test_labels_that_no_font_has_are_numbered_as_in_the_table_and_a_note_says_so(drawn):
    names = ["cat", "\U000f0000", "dog \U000f0001", "□"]
    shown, note = attempt_plots.number_labels(names)
    assert shown == ["cat", "no. 2", "no. 3 dog", "□"]
    assert note.startswith("no. 2: the label in row 2 of per_class.csv;")
    figure = drawn.matrix(_matrix(4), shown, title="x", note=note)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == shown
    assert " ".join(figure.get_supxlabel().split()) == note
    assert attempt_plots.number_labels(["Größe", "λ"]) == (["Größe", "λ"], "")


@pytest.mark.parametrize("name", [*DOGS, "W" * 500, "i" * 500])
def test_long_names_end_with_an_ellipsis_within_the_given_width(name):
    cut = attempt_plots.shorten_label(name, width_points=80, size=9)
    whole = attempt_plots.shorten_label(name, width_points=1e6, size=9)
    assert _width_points(cut, 9) <= 80
    assert cut.removesuffix("…").rstrip() == whole[: len(cut.removesuffix("…"))]
    assert cut.endswith("…") == (_width_points(whole, 9) > 80)


def test_long_picture_names_keep_their_end():
    cut = attempt_plots.shorten_label("a/very/long/path/" * 30 + "rex.jpg", width_points=80, size=6, keep_end=True)
    assert cut.startswith("…")
    assert cut.endswith("/rex.jpg")


def test_dollars_in_titles_and_labels_are_no_mathematics(drawn):
    names = ["$a_1$", "b"]
    figure = drawn.matrix(_matrix(2), names, title="$x$ against $y$")
    labels = figure.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == names
    assert [label.get_parse_math() for label in labels] == [False, False]
    assert figure.get_suptitle() == "$x$ against $y$"
    assert not figure._suptitle.get_parse_math()


def test_nothing_reaches_beyond_the_edge_of_the_picture(drawn):
    figure = drawn.matrix(_matrix(9), DOGS, title="dogs " * 60)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_importing_the_module_loads_neither_matplotlib_nor_torch_nor_mlflow():
    code = "import sys, mlmeta.reports.attempt_plots; print({'matplotlib', 'torch', 'mlflow'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_drawing_never_loads_pyplot(tmp_path):
    code = (
        "import sys; from mlmeta.reports.attempt_plots import plot_mistakes; "
        f"plot_mistakes({str(tmp_path / 'm.png')!r}, [], title='x'); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
