"""What figures are drawn from, against plain references."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from scipy.stats import rankdata

from mlmeta.errors import BadInputError
from mlmeta.reports.figure_data import (
    choose_params,
    escape_markup,
    find_fronts,
    order_by_score,
    prepare_table,
    rank_scores,
    read_column,
    spans_decades,
    thin_attempts,
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return prepare_table(make_table(12), metric="accuracy")


def test_ranks_are_those_of_scipy_within_each_task(table: pd.DataFrame) -> None:
    ranks = rank_scores(table, "accuracy")
    for _, part in table.groupby("task"):
        np.testing.assert_allclose(ranks[part.index], (rankdata(part["accuracy"]) - 0.5) / len(part), rtol=1e-9)


def test_the_least_loss_has_the_best_rank(table: pd.DataFrame) -> None:
    own = table[table["task"] == "digits-0"]
    assert rank_scores(own, "train_loss").idxmax() == own["train_loss"].idxmin()


def test_a_front_holds_what_no_other_attempt_of_the_task_beats(table: pd.DataFrame) -> None:
    front = find_fronts(table, "accuracy")
    for _, part in table.groupby("task"):
        costs, scores = part["duration_s"].to_numpy(), part["accuracy"].to_numpy()
        no_worse = (costs[None] <= costs[:, None]) & (scores[None] >= scores[:, None])
        better = no_worse & ((costs[None] < costs[:, None]) | (scores[None] > scores[:, None]))
        np.testing.assert_array_equal(front[part.index], ~better.any(axis=1))


def test_thinning_keeps_the_best_of_each_task_and_the_spread(table: pd.DataFrame) -> None:
    thin = thin_attempts(table, "accuracy", limit=60)
    assert 60 <= len(thin) <= 60 + 13
    assert set(table.groupby("task")["accuracy"].max()) <= set(thin["accuracy"])
    assert abs(thin["accuracy"].median() - table["accuracy"].median()) < 0.1
    assert list(thin.index) == sorted(thin.index)


def test_few_attempts_are_not_thinned(table: pd.DataFrame) -> None:
    assert thin_attempts(table, "accuracy", limit=len(table)) is table


def test_attempts_without_a_score_come_last(table: pd.DataFrame) -> None:
    some = table[table["task"] == "digits-0"].copy()
    some.loc[some.index[0], "accuracy"] = np.nan
    ordered = order_by_score(some, "accuracy")
    assert ordered.index[-1] == some.index[0]
    assert ordered["accuracy"].iloc[:-1].is_monotonic_decreasing


def test_params_of_single_layers_and_of_the_task_are_no_choices(table: pd.DataFrame) -> None:
    params = choose_params(table, limit=50)
    assert params[:2] == ["optimizer.lr", "optimizer.name"]
    assert not [name for name in params if name.startswith(("model.", "task.", "data.", "seed"))]


def test_words_are_no_numbers() -> None:
    table = pd.DataFrame({"a": ["1", "x", None, "inf"], "b": pd.array([1, None, 2, 3], dtype="Int64")})
    np.testing.assert_array_equal(read_column(table, "a"), [1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(read_column(table, "b"), [1, np.nan, 2, 3])
    np.testing.assert_array_equal(read_column(table, "c"), [np.nan] * 4)


def test_a_metric_of_words_cannot_rank() -> None:
    table = make_table(1).assign(words="x")
    with pytest.raises(BadInputError, match="by numbers only, and 'words' is none"):
        prepare_table(table, metric="words")


@pytest.mark.parametrize(
    ("values", "is_wide"), [([1e-4, 1e-1], True), ([1, 2, 3], False), ([0, 1e9], False), ([], False), ([np.nan], False)]
)
def test_an_axis_is_logarithmic_for_positive_numbers_of_many_decades(values: list[float], is_wide: bool) -> None:
    assert spans_decades(values) == is_wide


def test_long_text_is_cut_before_it_is_escaped() -> None:
    assert escape_markup("<b>" * 30, limit=5) == "&lt;b&gt;&lt;…"
