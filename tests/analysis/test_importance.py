from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score

from mlmeta.analysis.importance import COLUMNS, measure_held_out, measure_importance, measure_shuffled_squares
from mlmeta.analysis.marginal_effects import marginal_effect
from mlmeta.analysis.sample import TooFewAttemptsError, draw_sample, fit_forest, split_folds
from mlmeta.errors import BadInputError, NotFoundError


@pytest.fixture(scope="module")
def attempts() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def of_real_attempts(attempts: pd.DataFrame) -> pd.DataFrame:
    return measure_importance(attempts)


def made_table(scores: Any, *, task: Any = "t", status: Any = "Complete", **params: Any) -> pd.DataFrame:
    table = pd.DataFrame(params | {"accuracy": scores, "task": task, "status": status})
    table.attrs["kinds"] = dict.fromkeys(params, "param")
    return table


def additive_table(n: int = 600, *, n_tasks: int = 1) -> pd.DataFrame:
    """Scores 2x + y, which are normal, so that their rank quantiles are theirs but for the scale; z does nothing."""
    x, y, z = np.random.default_rng(0).normal(size=(3, n))
    return made_table(2 * x + y, task=[f"task {i % n_tasks}" for i in range(n)], x=x, y=y, z=z)


def importance_of(frame: pd.DataFrame) -> pd.Series[float]:
    return frame.set_index("param")["importance"]


@pytest.mark.parametrize("n_tasks", [1, 6])
def test_shares_of_an_additive_score_are_those_of_its_terms(n_tasks: int) -> None:
    frame = measure_importance(additive_table(n_tasks=n_tasks), n_repeats=8)
    assert frame["param"].tolist() == ["x", "y", "z"]
    np.testing.assert_allclose(frame["importance"], [0.8, 0.2, 0.0], atol=0.06)
    assert frame["importance"].iloc[2] < 0.01
    assert abs(frame["permutation"].iloc[2]) < 0.02
    assert frame.attrs["r2"] > 0.85
    assert frame.attrs["interactions"] == pytest.approx(1 - frame["importance"].sum())


def test_a_product_is_all_interaction() -> None:
    x, y = np.random.default_rng(0).choice([-1.0, 1.0], size=(2, 400))
    frame = measure_importance(made_table(x * y + np.random.default_rng(1).normal(0, 0.01, 400), x=x, y=y), n_repeats=8)
    assert frame["importance"].max() < 0.15
    assert frame.attrs["interactions"] > 0.75


def test_intervals_hold_the_importance(of_real_attempts: pd.DataFrame) -> None:
    frame = of_real_attempts
    assert (frame["importance_low"] <= frame["importance"]).all()
    assert (frame["importance"] <= frame["importance_high"]).all()
    assert frame["importance"].between(0, 1).all()
    assert (frame["permutation_low"] <= frame["permutation"]).all()
    assert (frame["permutation"] <= frame["permutation_high"]).all()


def test_learning_rate_batch_norm_and_optimizer_matter_most_in_real_attempts(of_real_attempts: pd.DataFrame) -> None:
    frame = of_real_attempts.set_index("param")
    assert frame.index[0] == "optimizer.lr"
    assert set(frame["permutation"].nlargest(3).index) == {"optimizer.lr", "arch.batch_norm", "optimizer.name"}
    assert frame.loc["optimizer.lr", "permutation_low"] > 0
    assert importance_of(of_real_attempts)["batch_size"] < 0.03


def test_the_table_says_what_it_rests_on(of_real_attempts: pd.DataFrame) -> None:
    frame = of_real_attempts
    assert tuple(frame.columns) == COLUMNS
    assert frame["importance"].is_monotonic_decreasing
    assert frame.set_index("param")["n_attempts"][["optimizer.lr", "optimizer.momentum"]].tolist() == [832, 338]
    assert (frame["n_tasks"] == 13).all()
    assert (frame.attrs["n_attempts"], frame.attrs["n_tasks"], frame.attrs["note"]) == (832, 13, "")
    assert 0.15 < frame.attrs["r2"] < 0.5


def test_one_task_is_looked_at_by_itself(attempts: pd.DataFrame) -> None:
    frame = measure_importance(attempts, task="omniglot-Latin", n_repeats=5)
    assert (frame["n_tasks"] == 1).all()
    assert frame.attrs["n_attempts"] == 64


def test_the_seed_decides_all(attempts: pd.DataFrame) -> None:
    first, again, other = (measure_importance(attempts, task="digits-0", n_repeats=3, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(importance_of(first), importance_of(other)[first["param"]])


def test_losses_are_better_when_they_are_lower(attempts: pd.DataFrame) -> None:
    frame = measure_importance(attempts, "train_loss", task="digits-0", n_repeats=3)
    assert frame.attrs["n_attempts"] == 64 - int(attempts.query("task == 'digits-0'")["train_loss"].isna().sum())


def test_what_makes_attempts_fail_matters() -> None:
    rng = np.random.default_rng(0)
    lr, x = 10.0 ** rng.uniform(-4, 0, 80), rng.random(80)
    status = np.where(lr > 0.1, "Diverged", "Complete")
    table = made_table(
        np.where(lr > 0.1, np.nan, x), status=status, **{"optimizer.lr": lr, "x": x + rng.normal(0, 2, 80)}
    )
    frame = measure_importance(table, n_repeats=5)
    assert frame["param"].iloc[0] == "optimizer.lr"
    assert frame.attrs["n_attempts"] == 80


def test_chance_is_said_to_be_chance() -> None:
    rng = np.random.default_rng(0)
    frame = measure_importance(made_table(rng.random(60), x=rng.random(60), y=rng.random(60)), n_repeats=3)
    assert frame.attrs["r2"] < 0.1
    assert "their order means little" in frame.attrs["note"]


def test_equal_scores_are_said_to_be_equal() -> None:
    frame = measure_importance(made_table([0.5] * 30, x=np.arange(30.0)), n_repeats=2)
    assert frame[["importance", "permutation"]].to_numpy().tolist() == [[0.0, 0.0]]
    assert np.isnan(frame.attrs["r2"])
    assert frame.attrs["note"] == "all attempts have the same score"


def test_where_no_param_differs_there_is_nothing_to_tell() -> None:
    frame = measure_importance(made_table(np.arange(30.0), x=1.0))
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 0
    assert frame.attrs["note"] == "no param differs among the attempts"


def test_attempts_that_were_imported_again_give_the_same_answers(attempts: pd.DataFrame) -> None:
    again = attempts.assign(run_id=[hashlib.sha256(name.encode()).hexdigest()[:32] for name in attempts["run_id"]])
    again = again.sort_values("run_id", ignore_index=True)
    again.attrs = attempts.attrs
    for ask in (partial(measure_importance, n_repeats=2), partial(marginal_effect, param="optimizer.name")):
        pd.testing.assert_frame_equal(ask(again), ask(attempts), check_exact=True)


@pytest.mark.parametrize("ask", [measure_importance, lambda table: marginal_effect(table, "batch_size")])
def test_too_few_attempts_are_refused_everywhere(attempts: pd.DataFrame, ask: Any) -> None:
    with pytest.raises(TooFewAttemptsError, match="at least 20"):
        ask(attempts.iloc[:10])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metric": "acuracy"}, BadInputError, "Did you mean 'accuracy'"),
        ({"task": "digits"}, NotFoundError, "Did you mean 'digits-"),
    ],
)
def test_names_that_are_not_there_are_refused_with_the_nearest(
    attempts: pd.DataFrame, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure_importance(attempts, **arguments)


def test_hand_made_runs_with_half_the_params_count_too(attempts: pd.DataFrame) -> None:
    table = attempts[attempts["task"] == "digits-0"].copy()
    table.loc[table.index[::2], ["optimizer.lr", "batch_size", "arch.depth"]] = pd.NA
    table["note"] = ["x" * 5000 + str(i) for i in range(len(table))]
    table.attrs["kinds"] = attempts.attrs["kinds"] | {"note": "param"}
    frame = measure_importance(table, n_repeats=3).set_index("param")
    assert frame.loc["optimizer.lr", "n_attempts"] == 32
    assert "note" not in frame.index


def test_shuffled_errors_are_those_of_scikit_learn() -> None:
    sample = draw_sample(additive_table(300), "accuracy", task=None)
    model = RandomForestRegressor(30, random_state=0).fit(sample.encoded.matrix, sample.scores)
    rows = np.arange(150)
    squares = measure_shuffled_squares(
        model,
        sample.encoded,
        rows,
        sample.scores[rows],
        params=["x", "y", "z"],
        n_repeats=60,
        rng=np.random.default_rng(0),
    )
    matrix, scores = sample.encoded.matrix[rows], sample.scores[rows]
    expected = permutation_importance(
        model, matrix, scores, scoring="neg_mean_squared_error", n_repeats=60, random_state=1
    ).importances_mean
    unshuffled = np.mean((scores - model.predict(matrix)) ** 2)
    np.testing.assert_allclose(squares.mean(axis=0) - unshuffled, expected, rtol=0.05, atol=0.003)


def test_shuffling_a_param_means_any_value_of_it_with_equal_chance() -> None:
    sample = draw_sample(additive_table(40), "accuracy", task=None)
    model = RandomForestRegressor(5, random_state=0).fit(sample.encoded.matrix, sample.scores)
    rows = np.arange(40)
    squares = measure_shuffled_squares(
        model, sample.encoded, rows, sample.scores, params=["x", "y", "z"], n_repeats=2000, rng=np.random.default_rng(0)
    )
    for i in range(3):
        crossed = np.repeat(sample.encoded.matrix[:, None], 40, axis=1)
        crossed[:, :, i] = sample.encoded.matrix[None, :, i]
        predicted = model.predict(crossed.reshape(1600, -1)).reshape(40, 40)
        expected = ((sample.scores[:, None] - predicted) ** 2).mean(axis=1)
        np.testing.assert_allclose(squares[:, i].mean(), expected.mean(), rtol=0.02)


def test_held_out_r2_is_that_of_predictions_by_models_that_have_not_seen_them() -> None:
    sample = draw_sample(additive_table(200), "accuracy", task=None)
    held_out = measure_held_out(sample, n_repeats=2, seed=0)
    rng, predicted = np.random.default_rng(0), np.empty(200)
    for fitted, held in split_folds(sample, seed=0):
        model = fit_forest(sample, fitted, n_trees=200, seed=int(rng.integers(2**31)))
        predicted[held] = model.predict(sample.encoded.matrix[held])
    assert held_out.r2 == pytest.approx(r2_score(sample.scores, predicted), abs=0.02)
    assert held_out.r2 > 0.85


def test_what_matters_costs_r2_and_what_does_not_costs_none() -> None:
    held_out = measure_held_out(draw_sample(additive_table(300), "accuracy", task=None), n_repeats=10, seed=0)
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
    x, y, z = np.tile(values, (8, 1)).T
    tasks = np.repeat([f"task {i}" for i in range(8)], 40)
    table = made_table(np.tile(luck, 8) + rng.normal(0, 0.01, 320), task=tasks, x=x, y=y, z=z)
    assert measure_held_out(draw_sample(table, "accuracy", task=None), n_repeats=2, seed=0).r2 < 0.1


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
