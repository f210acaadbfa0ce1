from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table
from scipy.stats import norm, rankdata

from mlmeta.analysis.features import EncodedAttempts, encode_attempts, score_ranks
from mlmeta.errors import BadInputError
from mlmeta.history.table import list_params


@pytest.fixture(scope="module")
def attempts() -> pd.DataFrame:
    return make_table()


@pytest.fixture(scope="module")
def encoded(attempts: pd.DataFrame) -> EncodedAttempts:
    return encode_attempts(attempts)


def params_table(**columns: Any) -> pd.DataFrame:
    """A table of params only, its names written with `__` for a dot."""
    table = pd.DataFrame({name.replace("__", "."): values for name, values in columns.items()})
    table.attrs["kinds"] = dict.fromkeys(table.columns, "param")
    return table


def feature(encoded: EncodedAttempts, name: str) -> list[float]:
    return encoded.matrix[:, encoded.names.index(name)].tolist()


def test_learning_rates_and_weight_decays_are_told_by_decades() -> None:
    encoded = encode_attempts(params_table(optimizer__lr=[0.1, 0.01, 0.01], optimizer__weight_decay=[1e-4, 1e-2, 0.0]))
    assert feature(encoded, "log10 optimizer.lr") == pytest.approx([-1, -2, -2])
    assert feature(encoded, "log10 optimizer.weight_decay") == pytest.approx([-4, -2, -5])


@pytest.mark.parametrize("name", ["batch_size", "arch.width", "arch.n_parameters", "arch.hidden"])
def test_sizes_are_told_by_doublings(name: str) -> None:
    encoded = encode_attempts(params_table(**{name: [8, 64, 8192]}))
    assert feature(encoded, f"log2 {name}") == pytest.approx([3, 6, 13])


@pytest.mark.parametrize(
    ("values", "name"),
    [([1.0, 99.0, 5.0], "x"), ([1.0, 101.0, 5.0], "log10 x"), ([0.0, 101.0, 5.0], "x"), ([-1.0, 500.0, 5.0], "x")],
)
def test_what_is_positive_and_spans_two_decades_is_told_by_decades(values: list[float], name: str) -> None:
    encoded = encode_attempts(params_table(x=values))
    assert encoded.names == (name,)
    assert feature(encoded, name) == pytest.approx(np.log10(values) if name.startswith("log10") else values)


def test_missing_is_minus_one_with_an_indicator() -> None:
    encoded = encode_attempts(params_table(optimizer__momentum=[0.9, np.nan, 0.5]))
    assert encoded.names == ("optimizer.momentum", "optimizer.momentum is missing")
    assert encoded.matrix.tolist() == [[0.9, 0], [-1, 1], [0.5, 0]]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([True, False, pd.NA], dtype="boolean"),
        pd.Series(["true", "false", None], dtype="str"),
        pd.Series([True, False, None], dtype=object),
        pd.Series([1, 0, pd.NA], dtype="Int64"),
    ],
)
def test_booleans_are_one_and_zero(column: pd.Series[Any]) -> None:
    assert encode_attempts(params_table(x=column)).matrix.tolist() == [[1, 0], [0, 0], [-1, 1]]


def test_words_are_one_hot_and_rare_ones_are_pooled() -> None:
    words = ["SGD"] * 3 + ["Adam"] * 2 + ["LBFGS", "Rprop"]
    encoded = encode_attempts(params_table(optimizer__name=words))
    assert encoded.names == ("optimizer.name=SGD", "optimizer.name=Adam", "optimizer.name is rare")
    assert encoded.matrix.argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert (encoded.matrix.sum(axis=1) == 1).all()


def test_at_most_twenty_words_get_a_feature() -> None:
    encoded = encode_attempts(params_table(x=[f"word {i % 30}" for i in range(90)]))
    assert len(encoded.names) == 21
    assert encoded.matrix[:, -1].sum() == 10 * 3


def test_a_param_of_numbers_and_words_has_features_of_both() -> None:
    encoded = encode_attempts(params_table(x=["0.5", "auto", "1", "auto", None, "3"]))
    assert encoded.names == ("x", "x=auto", "x is missing")
    assert encoded.matrix.tolist() == [[0.5, 0, 0], [-1, 1, 0], [1, 0, 0], [-1, 1, 0], [-1, 0, 1], [3, 0, 0]]


def test_a_few_numbers_among_words_are_words() -> None:
    assert encode_attempts(params_table(x=["same", "same", "valid", "valid", "1"])).names == (
        "x=same",
        "x=valid",
        "x is rare",
    )


def test_lr_is_also_told_relative_to_its_optimizer() -> None:
    table = params_table(
        optimizer__name=["SGD", "SGD", "SGD", "Adam", "Adam"], optimizer__lr=[1.0, 0.1, 0.01, 0.001, 0.0001]
    )
    encoded = encode_attempts(table)
    within = "log10 optimizer.lr within optimizer.name"
    assert feature(encoded, within) == pytest.approx([1, 0, -1, 0.5, -0.5])
    assert encoded.params[encoded.names.index(within)] == "optimizer.lr"


def test_relative_rates_give_the_rates_back(encoded: EncodedAttempts) -> None:
    rate = encoded.names.index("log10 optimizer.lr")
    damaged = encoded.matrix.copy()
    damaged[:, rate] = 99.0
    np.testing.assert_allclose(encoded.restore_rates(damaged), encoded.matrix, atol=1e-12)
    damaged = encoded.matrix.copy()
    damaged[:, -1] = 99.0
    np.testing.assert_allclose(encoded.relate_rates(damaged), encoded.matrix, atol=1e-12)


def test_a_missing_lr_stays_missing_either_way() -> None:
    table = params_table(optimizer__name=["SGD", "SGD", "Adam", "Adam"], optimizer__lr=[0.1, np.nan, 0.001, 0.002])
    encoded = encode_attempts(table)
    assert encoded.matrix[1, encoded.params.index("optimizer.lr")] == -1
    assert encoded.matrix[1, -1] == -1
    np.testing.assert_allclose(encoded.restore_rates(encoded.matrix), encoded.matrix)


def test_layers_names_paths_seeds_and_constants_are_left_out(encoded: EncodedAttempts) -> None:
    assert set(encoded.params) == {
        "optimizer.name", "optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "batch_size",
        "arch.n_parameters", "arch.depth", "arch.width", "arch.batch_norm", "arch.dropout", "arch.activation",
        "arch.hidden",
    }  # fmt: skip


def test_what_is_asked_for_is_encoded_even_if_it_is_constant(attempts: pd.DataFrame) -> None:
    encoded = encode_attempts(attempts, ["seed", "n_epoch", "model.layers.1.name"])
    assert set(encoded.params) == {"seed", "n_epoch", "model.layers.1.name"}
    assert feature(encoded, "n_epoch") == [12.0] * 832


def test_a_param_that_no_attempt_has_is_named_with_the_nearest(attempts: pd.DataFrame) -> None:
    with pytest.raises(BadInputError, match=r"'optimiser.lr'. Did you mean 'optimizer.lr'\?"):
        encode_attempts(attempts, ["optimiser.lr"])


def test_new_rows_are_encoded_like_the_old_ones(attempts: pd.DataFrame, encoded: EncodedAttempts) -> None:
    assert (encoded.encode(attempts) == encoded.matrix).all()
    assert (encoded.encode(attempts.iloc[[7]]) == encoded.matrix[[7]]).all()


def test_commands_as_plain_values_are_encoded_like_attempts(attempts: pd.DataFrame, encoded: EncodedAttempts) -> None:
    row = attempts.iloc[0]
    commands = {name: row[name] for name in dict.fromkeys(encoded.params) if pd.notna(row[name])}
    assert (encoded.encode(pd.DataFrame([commands])) == encoded.matrix[[0]]).all()


def test_a_new_word_is_rare_and_a_lost_column_is_missing() -> None:
    table = params_table(name=["a", "a", "b", "b", "c"], x=[1.0, 2.0, 3.0, 4.0, np.nan])
    encoded = encode_attempts(table)
    assert encoded.encode(pd.DataFrame({"name": ["never seen"]})).tolist() == [[0, 0, 1, -1, 1]]


def test_a_new_word_is_none_of_the_known_where_none_was_rare() -> None:
    encoded = encode_attempts(params_table(name=["a", "a", "b", "b"]))
    assert encoded.encode(pd.DataFrame({"name": ["new", "b"]})).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("value", [1.8e308, np.inf, "1.8e308", "inf", 10**20])
def test_numbers_beyond_all_measure_stay_finite_in_float32(value: Any) -> None:
    matrix = encode_attempts(params_table(x=[0.0, value, -3.0], optimizer__lr=[0.1, value, 0.2])).matrix
    assert np.isfinite(matrix.astype(np.float32)).all()


def test_values_of_thousands_of_characters_keep_short_names_apart() -> None:
    long, other = "a" * 5000, "a" * 4999 + "b"
    encoded = encode_attempts(params_table(x=[long, long, other, other]))
    assert len(set(encoded.names)) == 2
    assert max(map(len, encoded.names)) < 100


@pytest.mark.parametrize("name", ["a b", "quote \" and '", "ünï.cödé 🐕", "x" * 250, "a=b"])
def test_odd_names_are_params_like_others(name: str) -> None:
    assert encode_attempts(params_table(**{name: [1.0, 2.0]})).params == (name,)


def test_columns_all_missing_give_no_feature() -> None:
    table = params_table(x=[None, None], y=[np.nan, np.nan], z=pd.Series([pd.NA, pd.NA], dtype="Int64"))
    assert encode_attempts(table).matrix.shape == (2, 0)


@pytest.mark.parametrize("n", [0, 1])
def test_a_table_with_nothing_to_compare_gives_no_feature(attempts: pd.DataFrame, n: int) -> None:
    encoded = encode_attempts(attempts.iloc[:n])
    assert encoded.matrix.shape == (n, 0)
    assert encoded.encode(attempts).shape == (832, 0)


def test_one_row_is_encoded_where_its_params_are_asked_for(attempts: pd.DataFrame) -> None:
    encoded = encode_attempts(attempts.iloc[:1], ["optimizer.lr", "batch_size"])
    assert encoded.matrix.tolist() == [[np.log10(0.004026), 6.0]]


def test_a_hundred_thousand_rows_are_encoded_like_the_first(attempts: pd.DataFrame, encoded: EncodedAttempts) -> None:
    many = pd.concat([attempts] * 120, ignore_index=True)
    many.attrs = attempts.attrs
    assert (encode_attempts(many).matrix[-832:] == encoded.matrix).all()


def test_params_are_known_by_their_names_where_the_kinds_are_lost(attempts: pd.DataFrame) -> None:
    bare = attempts.copy()
    bare.attrs = {}
    assert list_params(bare) == list_params(attempts)


def test_a_param_that_shares_its_name_with_a_metric_is_known() -> None:
    table = params_table(**{"params.optimizer.lr": [0.1, 0.001], "metrics.optimizer.lr": [1.0, 2.0]})
    table.attrs["kinds"]["metrics.optimizer.lr"] = "metric"
    assert encode_attempts(table).names == ("log10 params.optimizer.lr",)


@pytest.mark.parametrize("metric", ["accuracy", "train_loss"])
def test_scores_are_normal_quantiles_of_ranks_within_the_task(attempts: pd.DataFrame, metric: str) -> None:
    z = score_ranks(attempts, metric)
    of_task = (attempts["task"] == "digits-0").to_numpy() & attempts[metric].notna().to_numpy()
    sign = -1 if metric == "train_loss" else 1
    scores = attempts.loc[of_task, metric].to_numpy() * sign
    np.testing.assert_allclose(z[of_task], norm.ppf((rankdata(scores) - 0.5) / of_task.sum()), atol=1e-9)


def score_table(scores: list[float], **columns: Any) -> pd.DataFrame:
    facts = {"status": "Complete", "task": "t"} | columns
    return pd.DataFrame({"accuracy": np.array(scores, dtype=float), **facts}, index=range(len(scores)))


@pytest.mark.parametrize("status", ["Failed", "Diverged"])
@pytest.mark.parametrize("score", [np.nan, 0.9])
def test_a_failed_attempt_has_the_worst_rank(status: str, score: float) -> None:
    z = score_ranks(score_table([0.1, score, 0.5], status=["Complete", status, "Complete"]), "accuracy")
    np.testing.assert_allclose(z, norm.ppf([0.5, 1 / 6, 5 / 6]), atol=1e-12)


def test_an_attempt_without_a_score_that_has_not_failed_is_not_ranked() -> None:
    z = score_ranks(score_table([0.1, np.nan, 0.5], status=["Complete", "Training", "Complete"]), "accuracy")
    np.testing.assert_allclose(z, norm.ppf([0.25, np.nan, 0.75]))


def test_infinite_losses_are_the_worst() -> None:
    table = score_table([np.inf, 1.0, 2.0]).rename(columns={"accuracy": "val_loss"})
    np.testing.assert_allclose(score_ranks(table, "val_loss"), norm.ppf([1 / 6, 5 / 6, 0.5]), atol=1e-12)


def test_the_only_attempt_of_a_task_and_those_of_none_are_not_ranked() -> None:
    z = score_ranks(score_table([0.1, 0.2, 0.3, 0.4], task=["a", None, "b", "b"]), "accuracy")
    np.testing.assert_array_equal(np.isnan(z), [True, True, False, False])


def test_an_empty_table_has_no_ranks() -> None:
    assert score_ranks(score_table([]), "accuracy").shape == (0,)


@pytest.mark.parametrize("metric", ["acuracy", "status"])
def test_a_score_that_is_none_is_refused(metric: str) -> None:
    with pytest.raises(BadInputError, match=metric):
        score_ranks(score_table([0.1, 0.2]), metric)
