from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table

from mlmeta.analysis.sample import (
    MOST_ATTEMPTS,
    Sample,
    TooFewAttemptsError,
    draw_sample,
    draw_times,
    make_factors,
    split_folds,
)
from mlmeta.errors import BadInputError


@pytest.fixture(scope="module")
def attempts() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def sample(attempts: pd.DataFrame) -> Sample:
    return draw_sample(attempts, "accuracy", task=None)


def made_table(n: int, *, task: Any = "t", status: Any = "Complete", **columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    facts = {"status": status, "task": task, "accuracy": rng.random(n), "x": rng.random(n)}
    table = pd.DataFrame(facts | columns, index=range(n))
    table.attrs["kinds"] = {name: "param" for name in table.columns if name not in ("status", "task", "accuracy")}
    return table


def test_attempts_of_one_task_are_chosen_by_name_or_digest(attempts: pd.DataFrame) -> None:
    digest = attempts.loc[attempts["task"] == "digits-1", "tags.mlmeta.task_digest"].iloc[0]
    by_name, by_digest = (draw_sample(attempts, "accuracy", task=task) for task in ("digits-1", digest))
    assert set(by_name.table["task"]) == {"digits-1"}
    assert by_digest.table["run_id"].tolist() == by_name.table["run_id"].tolist()


def test_too_few_attempts_are_counted(attempts: pd.DataFrame) -> None:
    few = attempts[attempts["task"] == "digits-1"].iloc[:19]
    with pytest.raises(TooFewAttemptsError, match=r"at least 20 attempts of the task 'digits-1'.*'accuracy'; got 19$"):
        draw_sample(few, "accuracy", task="digits-1")
    assert issubclass(TooFewAttemptsError, BadInputError)


def test_attempts_of_no_known_task_are_counted_where_they_are_missed() -> None:
    table = made_table(40, task=["t"] * 10 + [None] * 30)
    with pytest.raises(TooFewAttemptsError, match=r"got 10 \(30 more are of no known task\)"):
        draw_sample(table, "accuracy", task=None)


def test_an_empty_history_has_too_few_attempts(attempts: pd.DataFrame) -> None:
    with pytest.raises(TooFewAttemptsError, match="got 0"):
        draw_sample(attempts.iloc[:0], "accuracy", task=None)


def test_attempts_without_a_score_are_left_out() -> None:
    table = made_table(30)
    table.loc[:4, "accuracy"] = np.nan
    assert len(draw_sample(table, "accuracy", task=None).scores) == 25


def test_scores_of_one_task_stay_as_they_are_and_failures_get_the_worst() -> None:
    table = made_table(30)
    table.loc[3, "status"] = "Diverged"
    table.loc[4, "accuracy"] = -np.inf
    sample = draw_sample(table, "accuracy", task="t", as_ranks=False)
    scores = pd.Series(sample.scores, index=sample.table["x"])[table["x"]].to_numpy()
    expected = table["accuracy"].to_numpy().copy()
    expected[[3, 4]] = expected[np.isfinite(expected)].min()
    np.testing.assert_array_equal(scores, expected)


def test_of_losses_the_worst_is_the_highest() -> None:
    table = made_table(30).rename(columns={"accuracy": "val_loss"})
    table.loc[3, "val_loss"] = np.inf
    sample = draw_sample(table, "val_loss", task="t", as_ranks=False)
    failed = sample.table["x"] == table.loc[3, "x"]
    assert sample.scores[failed].tolist() == [table["val_loss"].drop(index=3).max()]


def test_more_attempts_than_a_forest_needs_are_drawn_with_the_seed() -> None:
    table = made_table(MOST_ATTEMPTS + 500)
    first, again, other = (draw_sample(table, "accuracy", task=None, seed=seed) for seed in (0, 0, 1))
    assert len(first.scores) == MOST_ATTEMPTS
    assert first.table["x"].tolist() == again.table["x"].tolist() != other.table["x"].tolist()


@pytest.mark.parametrize("n", [832, MOST_ATTEMPTS + 500])
def test_the_order_of_the_attempts_says_nothing(attempts: pd.DataFrame, n: int) -> None:
    table = attempts if n == 832 else made_table(n)
    mixed = table.sample(frac=1, random_state=0)
    one, other = (draw_sample(each, "accuracy", task=None) for each in (table, mixed))
    np.testing.assert_array_equal(one.encoded.matrix, other.encoded.matrix)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.tasks, other.tasks)
    np.testing.assert_array_equal(one.commands, other.commands)


def test_a_metric_does_not_explain_itself() -> None:
    table = made_table(30)
    table.attrs["kinds"] = {"accuracy": "param", "x": "param"}
    assert draw_sample(table, "accuracy", task=None).params == ["x"]


def test_the_same_commands_on_several_tasks_are_known_as_such(sample: Sample) -> None:
    config_ids = sample.table["model_name"].str[-3:]
    assert sample.n_tasks == 13
    pairs = pd.DataFrame({"config": config_ids, "commands": sample.commands}).drop_duplicates()
    assert len(pairs) == config_ids.nunique() == 64


@pytest.mark.parametrize(("n_values", "n_commands"), [(1, 100), (19, 100), (20, 20), (50, 50)])
def test_of_a_small_grid_each_attempt_counts_for_itself(n_values: int, n_commands: int) -> None:
    sample = draw_sample(made_table(100, x=np.arange(100) % n_values), "accuracy", task=None, extra="x")
    assert sample.n_commands == n_commands


@pytest.mark.parametrize("task", [None, "digits-1"])
def test_every_attempt_is_held_out_once(attempts: pd.DataFrame, task: str | None) -> None:
    sample = draw_sample(attempts, "accuracy", task=task)
    held = np.concatenate([held for _, held in split_folds(sample, seed=0)])
    assert sorted(held) == list(range(len(sample.scores)))


def test_neither_tasks_nor_commands_that_are_held_out_are_known(sample: Sample) -> None:
    for fitted, held in split_folds(sample, seed=0):
        assert fitted.size
        assert not set(sample.tasks[fitted]) & set(sample.tasks[held])
        assert not set(sample.commands[fitted]) & set(sample.commands[held])


def test_where_no_commands_are_repeated_only_tasks_are_held_out() -> None:
    sample = draw_sample(made_table(60, task=["a", "b", "c"] * 20), "accuracy", task=None)
    folds = split_folds(sample, seed=0)
    assert sorted(len(fitted) for fitted, _ in folds) == [40, 40, 40]
    assert all(len(set(sample.tasks[held])) == 1 for _, held in folds)


def test_repeated_commands_on_one_task_are_held_out_together() -> None:
    sample = draw_sample(made_table(40, x=np.repeat(np.arange(20.0), 2)), "accuracy", task=None)
    for fitted, held in split_folds(sample, seed=0):
        assert not set(sample.commands[fitted]) & set(sample.commands[held])


def test_resamples_draw_tasks_and_commands(sample: Sample) -> None:
    times = draw_times(sample, 400, np.random.default_rng(0))
    assert times.shape == (400, 832)
    assert times.sum(axis=1).mean() == pytest.approx(832, rel=0.05)
    # The chance of an attempt to be in: both its task and its commands are drawn.
    assert (times > 0).mean() == pytest.approx((1 - (12 / 13) ** 13) * (1 - (63 / 64) ** 64), rel=0.05)


def test_factors_hold_the_shares_of_the_values(attempts: pd.DataFrame, sample: Sample) -> None:
    factors = {name: factor for factor in make_factors(sample.encoded) for name in factor.places}
    assert set(factors) == set(sample.params)
    shares = attempts["arch.depth"].value_counts(normalize=True).sort_index()
    np.testing.assert_allclose(factors["arch.depth"].rows[:, 0], shares.index.to_numpy(dtype=float))
    np.testing.assert_allclose(factors["arch.depth"].weights, shares.to_numpy(dtype=float))


def test_learning_rate_and_optimizer_make_one_factor_of_independent_inputs(sample: Sample) -> None:
    factor = next(factor for factor in make_factors(sample.encoded) if "optimizer.lr" in factor.places)
    assert set(factor.places) == {"optimizer.lr", "optimizer.name"}
    weights = np.outer(factor.weigh_values("optimizer.lr"), factor.weigh_values("optimizer.name"))
    np.testing.assert_allclose(factor.weights, weights.ravel())
    matrix = np.zeros((len(factor.rows), len(sample.encoded.names)))
    matrix[:, factor.columns] = factor.rows
    np.testing.assert_allclose(sample.encoded.relate_rates(matrix), matrix, atol=1e-12)


def test_of_too_many_values_quantiles_are_taken() -> None:
    sample = draw_sample(made_table(1000, x=np.linspace(0, 1, 1000)), "accuracy", task=None)
    (factor,) = make_factors(sample.encoded)
    np.testing.assert_allclose(factor.rows[:, 0], np.arange(0.005, 1, 0.01), atol=0.001)
    assert factor.weights.tolist() == [0.01] * 100
