"""Pictures of many learning curves: there is a line for each, whatever the values and names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from PIL import Image

from mlmeta.meta_query import learning_curves
from mlmeta.reports.paper_figures import plot_learning_curves

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


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
