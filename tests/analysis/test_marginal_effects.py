from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table

from mlmeta.analysis.marginal_effects import marginal_effect
from mlmeta.analysis.sample import draw_sample, fit_resampled
from mlmeta.errors import BadInputError


@pytest.fixture(scope="module")
def attempts() -> pd.DataFrame:
    return make_table()


def made_table(n: int = 120) -> pd.DataFrame:
    """One task, three params of few values, independent of each other."""
    rng = np.random.default_rng(0)
    columns = {"a": rng.choice([0.0, 1.0, 2.0], n), "b": rng.choice([1.0, 2.0], n), "c": rng.choice(["u", "v"], n)}
    table = pd.DataFrame(columns)
    table["accuracy"] = table["a"] * (table["c"] == "u") + table["b"] + rng.normal(0, 0.1, n)
    table["task"], table["status"] = "t", "Complete"
    table.attrs["kinds"] = dict.fromkeys(columns, "param")
    return table


def predict_grid(table: pd.DataFrame) -> np.ndarray:
    """The forests' mean prediction for all values of a, b and c, shape (3, 2, 2)."""
    sample = draw_sample(table, "accuracy", task="t", as_ranks=False)
    grid = pd.DataFrame(list(product([0.0, 1.0, 2.0], [1.0, 2.0], ["u", "v"])), columns=["a", "b", "c"])
    matrix = sample.encoded.encode(grid)
    forests = fit_resampled(sample, n_forests=20, seed=0)
    return np.mean([forest.predict(matrix) for forest in forests], axis=0).reshape(3, 2, 2)


def test_the_effect_of_one_param_is_the_mean_over_all_values_of_the_others() -> None:
    table = made_table()
    shares = [table[name].value_counts(normalize=True).sort_index().to_numpy() for name in "bc"]
    expected = np.einsum("abc,b,c->a", predict_grid(table), *shares)
    frame = marginal_effect(table, "a", task="t")
    assert frame["value"].tolist() == [0.0, 1.0, 2.0]
    np.testing.assert_allclose(frame["mean"], expected, atol=1e-9)
    assert (frame["low"] <= frame["mean"]).all()
    assert (frame["mean"] <= frame["high"]).all()


@pytest.mark.parametrize("param", ["optimizer.lr", "optimizer.name", "arch.batch_norm", "optimizer.momentum"])
def test_effects_can_be_kept_in_a_parquet_file(attempts: pd.DataFrame, tmp_path: Path, param: str) -> None:
    frame = marginal_effect(attempts, param)
    frame.to_parquet(tmp_path / "effects.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "effects.parquet"), frame)


def test_learning_rates_stand_evenly_on_their_logarithm(attempts: pd.DataFrame) -> None:
    frame = marginal_effect(attempts, "optimizer.lr", n_points=10)
    steps = np.diff(np.log10(frame["value"].to_numpy(dtype=float)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert frame["value"].iloc[[0, -1]].tolist() == pytest.approx(
        [attempts["optimizer.lr"].min(), attempts["optimizer.lr"].max()]
    )
    assert frame["n_attempts"].sum() == 832


def test_real_attempts_with_a_middling_learning_rate_do_best(attempts: pd.DataFrame) -> None:
    frame = marginal_effect(attempts, "optimizer.lr", n_points=7)
    assert 1e-4 < frame.loc[frame["mean"].idxmax(), "value"] < 1e-2
    assert frame["mean"].iloc[-1] < -0.3


def test_a_learning_rate_comes_with_the_optimizers_that_have_it() -> None:
    rng = np.random.default_rng(0)
    name = rng.choice(["SGD", "Adam"], 200)
    lr = 10.0 ** (rng.uniform(-1, 1, 200) + np.where(name == "SGD", -1, -4))
    table = pd.DataFrame({"optimizer.name": name, "optimizer.lr": lr, "task": "t", "status": "Complete"})
    table["accuracy"] = np.where(name == "SGD", 0.8, 0.2) + rng.normal(0, 0.01, 200)
    table.attrs["kinds"] = {"optimizer.name": "param", "optimizer.lr": "param"}
    frame = marginal_effect(table, "optimizer.lr", task="t", n_points=7)
    np.testing.assert_allclose(frame["mean"].iloc[[0, -1]], [0.2, 0.8], atol=0.05)


def test_of_one_task_scores_are_told_in_their_own_unit(attempts: pd.DataFrame) -> None:
    frame = marginal_effect(attempts, "arch.batch_norm", task="digits-0")
    accuracy = attempts.loc[attempts["task"] == "digits-0", "accuracy"]
    assert frame["mean"].between(accuracy.min(), accuracy.max()).all()


@pytest.mark.parametrize(
    ("param", "values"),
    [
        ("arch.batch_norm", [False, True]),
        ("batch_size", [8.0, 16.0, 32.0, 64.0]),
        ("optimizer.name", ["SGD", "Adam", "AdamW", "RMSprop"]),
        ("arch.dropout", [0.0, 0.25, 0.5]),
        ("n_epoch", [12.0]),
    ],
)
def test_few_values_have_a_row_each(attempts: pd.DataFrame, param: str, values: list[Any]) -> None:
    frame = marginal_effect(attempts, param, task="digits-0")
    assert frame["value"].tolist() == values
    counts = attempts.loc[attempts["task"] == "digits-0", param].value_counts()
    assert frame["n_attempts"].tolist() == [counts[value] for value in values]


def test_attempts_without_the_param_are_the_last_row(attempts: pd.DataFrame) -> None:
    frame = marginal_effect(attempts, "optimizer.momentum")
    assert frame["value"].iloc[:3].tolist() == [0.0, 0.9, 0.95]
    assert np.isnan(frame["value"].iloc[3])
    assert frame["n_attempts"].iloc[3] == 494


def test_numbers_come_before_words_and_rare_words_share_a_row() -> None:
    table = made_table(40)
    table["d"] = ["1"] * 21 + ["auto"] * 12 + ["one", "two", "three"] + [None] * 4
    table.attrs["kinds"]["d"] = "param"
    frame = marginal_effect(table, "d", task="t")
    assert frame["value"].tolist()[:3] == ["1", "auto", "rare"]
    assert frame["value"].isna().tolist() == [False, False, False, True]
    assert frame["n_attempts"].tolist() == [21, 12, 3, 4]


def test_a_param_that_is_usually_left_out_can_be_asked_for(attempts: pd.DataFrame) -> None:
    frame = marginal_effect(attempts, "seed", n_points=5)
    assert frame["value"].tolist() == pytest.approx([0, 15.75, 31.5, 47.25, 63])


def test_a_param_that_no_attempt_has_is_refused_with_the_nearest(attempts: pd.DataFrame) -> None:
    with pytest.raises(BadInputError, match=r"the param 'batchsize'. Did you mean 'batch_size'\?"):
        marginal_effect(attempts, "batchsize")
