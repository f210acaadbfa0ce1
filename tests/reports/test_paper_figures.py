"""Figures for papers: their size, their ink, their text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from PIL import Image

from mlmeta.errors import BadInputError
from mlmeta.reports.paper_figures import DPI, WIDTH_INCHES, write_paper_figures

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
