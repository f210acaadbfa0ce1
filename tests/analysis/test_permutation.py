from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score

from mlmeta.analysis.importance import measure_held_out, measure_shuffled_squares
from mlmeta.analysis.sample import draw_sample, fit_forest, split_folds

PARAMS = ("x", "y", "z")


def made_table(n: int, *, noise: float = 0.1) -> pd.DataFrame:
    """One task whose score is 2x + y and some noise, with a z that does nothing."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(n, 3)), columns=list(PARAMS))
    table["accuracy"] = 2 * table["x"] + table["y"] + rng.normal(0, noise, n)
    table["status"], table["task"] = "Complete", "t"
    table.attrs["kinds"] = dict.fromkeys(PARAMS, "param")
    return table


def test_shuffled_errors_are_those_of_scikit_learn() -> None:
    sample = draw_sample(made_table(300), "accuracy", task=None)
    model = RandomForestRegressor(30, random_state=0).fit(sample.encoded.matrix, sample.scores)
    rows = np.arange(150)
    squares = measure_shuffled_squares(
        model, sample.encoded, rows, sample.scores[rows], params=PARAMS, n_repeats=60, rng=np.random.default_rng(0)
    )
    matrix, scores = sample.encoded.matrix[rows], sample.scores[rows]
    expected = permutation_importance(
        model, matrix, scores, scoring="neg_mean_squared_error", n_repeats=60, random_state=1
    ).importances_mean
    unshuffled = np.mean((scores - model.predict(matrix)) ** 2)
    np.testing.assert_allclose(squares.mean(axis=0) - unshuffled, expected, rtol=0.05, atol=0.003)


def test_shuffling_a_param_means_any_value_of_it_with_equal_chance() -> None:
    sample = draw_sample(made_table(40), "accuracy", task=None)
    model = RandomForestRegressor(5, random_state=0).fit(sample.encoded.matrix, sample.scores)
    rows = np.arange(40)
    squares = measure_shuffled_squares(
        model, sample.encoded, rows, sample.scores, params=PARAMS, n_repeats=2000, rng=np.random.default_rng(0)
    )
    for i in range(len(PARAMS)):
        crossed = np.repeat(sample.encoded.matrix[:, None], 40, axis=1)
        crossed[:, :, i] = sample.encoded.matrix[None, :, i]
        predicted = model.predict(crossed.reshape(1600, -1)).reshape(40, 40)
        expected = ((sample.scores[:, None] - predicted) ** 2).mean(axis=1)
        np.testing.assert_allclose(squares[:, i].mean(), expected.mean(), rtol=0.02)


def test_held_out_r2_is_that_of_predictions_by_models_that_have_not_seen_them() -> None:
    sample = draw_sample(made_table(200), "accuracy", task=None)
    held_out = measure_held_out(sample, n_repeats=2, seed=0)
    rng, predicted = np.random.default_rng(0), np.empty(200)
    for fitted, held in split_folds(sample, seed=0):
        model = fit_forest(sample, fitted, n_trees=200, seed=int(rng.integers(2**31)))
        predicted[held] = model.predict(sample.encoded.matrix[held])
    assert held_out.r2 == pytest.approx(r2_score(sample.scores, predicted), abs=0.02)
    assert held_out.r2 > 0.85


def test_what_matters_costs_r2_and_what_does_not_costs_none() -> None:
    held_out = measure_held_out(draw_sample(made_table(300), "accuracy", task=None), n_repeats=10, seed=0)
    # Shuffled, 2x differs from itself by a variance of 2 * 4, of the 5 that the score has; y by 2 * 1. The forest's
    # own predictions vary less.
    np.testing.assert_allclose(held_out.drops / held_out.r2, [1.6, 0.4, 0.0], atol=0.25)
    assert (held_out.low > 0.0).tolist()[:2] == [True, True]
    assert held_out.low[2] < 0.01
    assert (held_out.low < held_out.drops).all()
    assert (held_out.drops < held_out.high).all()


def test_commands_that_are_known_by_heart_from_other_tasks_explain_nothing() -> None:
    rng = np.random.default_rng(0)
    values, luck = rng.random((40, 3)), rng.random(40)
    table = pd.DataFrame(np.tile(values, (8, 1)), columns=list(PARAMS))
    table["accuracy"] = np.tile(luck, 8) + rng.normal(0, 0.01, 320)
    table["status"], table["task"] = "Complete", np.repeat([f"task {i}" for i in range(8)], 40)
    table.attrs["kinds"] = dict.fromkeys(PARAMS, "param")
    assert measure_held_out(draw_sample(table, "accuracy", task=None), n_repeats=2, seed=0).r2 < 0.1


def test_equal_scores_leave_nothing_to_explain() -> None:
    table = made_table(40)
    table["accuracy"] = 0.5
    held_out = measure_held_out(draw_sample(table, "accuracy", task=None), n_repeats=2, seed=0)
    assert np.isnan(held_out.r2)
    assert held_out.drops.tolist() == [0.0, 0.0, 0.0]


def test_a_shuffled_optimizer_takes_learning_rates_of_its_own_range() -> None:
    sample = draw_sample(make_table(20), "accuracy", task=None)
    seen = []

    class Watcher:
        def predict(self, matrix: np.ndarray) -> np.ndarray:
            seen.append(matrix)
            return np.zeros(len(matrix))

    rows = np.arange(len(sample.scores))
    names = ["optimizer.lr", "optimizer.name"]
    measure_shuffled_squares(
        Watcher(), sample.encoded, rows, sample.scores, params=names, n_repeats=3, rng=np.random.default_rng(0)
    )
    for matrix in seen:
        np.testing.assert_allclose(sample.encoded.relate_rates(matrix), matrix, atol=1e-12)
        assert not np.allclose(matrix, np.tile(sample.encoded.matrix, (3, 1)))
