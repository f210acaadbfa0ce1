"""Figures of many attempts: their size, their ink, their text, and a line for each curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from PIL import Image

from mlmeta.errors import BadInputError
from mlmeta.meta_query import learning_curves
from mlmeta.reports.paper_figures import DPI, WIDTH_INCHES, plot_learning_curves, write_paper_figures

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
NAMES = ["learning_curves", "importance", "learning_rates", "task_map", "pareto_front"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_table(4)


@pytest.fixture(scope="module")
def files(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_paper_figures(table, tmp_path_factory.mktemp("paper") / "new")


@pytest.fixture
def few(table: pd.DataFrame) -> pd.DataFrame:
    return table.head(8).copy()


def test_every_figure_is_written(files: list[Path]) -> None:
    assert [file.name for file in files] == [f"{name}.png" for name in NAMES]


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_a_figure_is_one_column_wide_at_300_dots_per_inch_and_not_blank(files: list[Path], number: int) -> None:
    with Image.open(files[number]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
        assert picture.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    assert pixels.shape[1] == round(DPI * WIDTH_INCHES)
    assert 500 < pixels.shape[0] < 3000
    is_ink = (pixels < 250).any(axis=2)
    assert 0.005 < is_ink.mean() < 0.8
    assert (pixels[0, 0] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF-")])
def test_vector_figures_keep_their_text(few: pd.DataFrame, tmp_path: Path, suffix: str, start: bytes) -> None:
    written = write_paper_figures(few, tmp_path, suffix=suffix)
    contents = [file.read_bytes() for file in written]
    assert all(content.startswith(start) for content in contents)
    if suffix == ".svg":
        assert b"training time (s)</text>" in contents[-1]


def test_what_has_too_little_data_is_left_out(few: pd.DataFrame, tmp_path: Path) -> None:
    written = write_paper_figures(few.assign(curve=None), tmp_path)
    assert [file.stem for file in written] == ["learning_rates", "task_map", "pareto_front"]


@pytest.mark.parametrize(
    "make", [lambda table: table.iloc[:0], lambda table: table.assign(task="one", accuracy=np.nan, curve=None)]
)
def test_a_history_without_scores_and_curves_gives_the_reasons(
    few: pd.DataFrame, tmp_path: Path, make: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    with pytest.raises(BadInputError, match="learning_curves: no attempt has a learning curve"):
        write_paper_figures(make(few), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_refused(few: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"\.png, \.svg, \.pdf; got '\.exe'"):
        write_paper_figures(few, tmp_path, suffix=".exe")


@pytest.mark.parametrize("name", ["$x_{1", "a$b$c", "\U0001f415 犬", "<script>", "%s\\n" * 40, ""])
def test_odd_names_are_drawn_as_they_are(few: pd.DataFrame, tmp_path: Path, name: str) -> None:
    changed = few.assign(task=[name] * 4 + ["b"] * 4, **{"optimizer.name": name})
    written = write_paper_figures(changed, tmp_path)
    assert [file.stem for file in written] == ["learning_curves", "learning_rates", "task_map", "pareto_front"]


def test_odd_metrics_are_left_out(few: pd.DataFrame, tmp_path: Path) -> None:
    few["accuracy"] = [np.nan, np.inf, -np.inf, 1.0, 0.5, 0.0, 0.25, 0.75]
    few.at[0, "curve"] = np.array([np.nan, 1e308, np.inf])
    assert len(write_paper_figures(few, tmp_path)) >= 3


def test_forty_tasks_fit(table: pd.DataFrame, tmp_path: Path) -> None:
    many = table.head(40).assign(task=[f"task {i:02}" for i in range(40)])
    written = write_paper_figures(many, tmp_path)
    with Image.open(tmp_path / "learning_rates.png") as picture:
        assert picture.size == (round(DPI * WIDTH_INCHES), 2505)
    assert "task_map" in {file.stem for file in written}


def make_curves(*curves: list[float], name: str = "m", n_tasks: int = 1) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {"run_id": f"{i:032x}", "model_name": f"{name}{i}", "task": f"task {i % n_tasks}", "metric": "train_loss",
             "step": range(1, len(values) + 1), "value": values}
        )
        for i, values in enumerate(curves)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def draw(file: Path, curves: pd.DataFrame) -> Image.Image:
    plot_learning_curves(file, curves)
    with Image.open(file) as picture:
        return picture.convert("RGB")


def count_colour(picture: Image.Image, colour: tuple[int, int, int], *, rows: slice = slice(None)) -> int:
    close = np.abs(np.asarray(picture, dtype=np.int64)[rows] - colour).sum(axis=2) < 30
    return int(close.sum())


def test_two_attempts_have_a_colour_each(tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png", make_curves([3.0, 2.0, 1.0], [3.0, 2.5, 2.2]))
    assert count_colour(picture, BLUE) > 300
    assert count_colour(picture, ORANGE) > 300


@pytest.mark.parametrize(
    "values",
    [[1.0], [np.nan, np.inf], [1.0, np.nan, 2.0], [0.0, 0.0], [-1.0, 5.0], [1e300, 1.0], [1e-9, 1e9], [np.nan]],
)
def test_odd_values_are_drawn_as_far_as_they_can_be(tmp_path: Path, values: list[float]) -> None:
    picture = draw(tmp_path / "a.png", make_curves(values))
    has_line = sum(np.isfinite(values)) > 0
    assert (count_colour(picture, BLUE, rows=slice(0, 420)) > 10) == has_line


def test_a_few_diverged_attempts_do_not_hide_the_others(tmp_path: Path) -> None:
    usual = [[2.0, 1.5 + i / 100, 1.0 + i / 100] for i in range(60)]
    picture = draw(tmp_path / "a.png", make_curves(*usual, [2.0, 1e20, 1e20], n_tasks=60))
    lines = np.abs(np.asarray(picture, dtype=np.int64)[40:380, 80:] - 255).sum(axis=2) > 60
    # The usual curves fill most of the height, not one line of it.
    assert lines.any(axis=1).mean() > 0.5


def test_odd_names_and_no_curves_make_a_picture_too(tmp_path: Path) -> None:
    odd = draw(tmp_path / "a.png", make_curves([1.0, 2.0], [2.0, 1.0], name="$x_{\\ \n日本"))
    assert count_colour(odd, BLUE) > 300
    assert draw(tmp_path / "b.png", make_curves([1.0]).iloc[:0]).size == odd.size


def test_hundreds_of_real_curves_make_a_small_file(tmp_path: Path) -> None:
    plot_learning_curves(tmp_path / "a.png", learning_curves(history=make_table()))
    assert 20_000 < (tmp_path / "a.png").stat().st_size < 300_000
