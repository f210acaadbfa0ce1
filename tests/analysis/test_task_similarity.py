from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table, read_tasks
from scipy.spatial.distance import cityblock

from mlmeta.analysis.task_similarity import (
    NEW_TASK,
    RANK_COLUMNS,
    TASK_COLUMNS,
    describe_new_task,
    rank_similar_tasks,
    task_distances,
    task_table,
)
from mlmeta.data.metafeatures import META_FEATURES
from mlmeta.errors import NotFoundError


@pytest.fixture(scope="module")
def attempts() -> pd.DataFrame:
    return make_table(3)


@pytest.fixture(scope="module")
def tasks(attempts: pd.DataFrame) -> pd.DataFrame:
    return task_table(attempts)


def make_tasks(**described: tuple[dict[str, float], list[str]]) -> pd.DataFrame:
    return pd.concat([describe_new_task(*task, task=name) for name, task in described.items()], ignore_index=True)


def some_attempts(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"task": "t", "accuracy": [0.2, 0.6, np.nan]} | columns, index=range(3))


def test_every_task_has_a_row(attempts: pd.DataFrame, tasks: pd.DataFrame) -> None:
    assert tuple(tasks.columns) == TASK_COLUMNS
    assert tasks["task"].tolist() == attempts["task"].unique().tolist()
    assert (tasks["n_attempts"] == 3).all()
    digits = tasks.set_index("task").loc["digits-0"]
    assert digits["label_names"] == ("0", "1", "2", "3", "4")
    assert digits["best_score"] == attempts.query("task == 'digits-0'")["accuracy"].max()
    assert digits[list(META_FEATURES)].tolist() == list(read_tasks()["digits-0"].values())


def test_the_best_loss_is_the_lowest(attempts: pd.DataFrame) -> None:
    best = task_table(attempts, "train_loss").set_index("task")["best_score"]
    pd.testing.assert_series_equal(
        best.sort_index(), attempts.groupby("task")["train_loss"].min().sort_index(), check_names=False
    )


def test_what_one_attempt_lacks_another_has() -> None:
    table = some_attempts(
        label_names=[None, '["cat", "dog"]', None],
        **{"tags.mlmeta.task": [None, '{"ln_n": 5.0}', '{"ln_n": 9.0, "width": 32, "unknown": 1}']},
    )
    task = task_table(table).iloc[0]
    assert (task["label_names"], task["ln_n"], task["width"]) == (("cat", "dog"), 5.0, 32.0)
    assert math.isnan(task["height"])
    assert (task["n_attempts"], task["best_score"]) == (3, 0.6)


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        "[1, 2]",
        '{"ln_n": "five"}',
        '{"ln_n": NaN}',
        '{"ln_n": 1e999}',
        '{"ln_n": null}',
        f'{{"ln_n": {10**400}}}',
        "[" * 10**5,
    ],
)
def test_a_tag_that_is_no_description_counts_as_missing(text: str) -> None:
    task = task_table(some_attempts(**{"tags.mlmeta.task": text, "label_names": text})).iloc[0]
    assert task[list(META_FEATURES)].isna().all()


def test_labels_that_were_cut_to_the_limit_of_mlflow_are_read_as_far_as_they_go() -> None:
    text = json.dumps([f"label, number {i}" for i in range(500)], ensure_ascii=False)[:5999] + "…"
    labels = task_table(some_attempts(label_names=text)).iloc[0]["label_names"]
    assert labels == tuple(f"label, number {i}" for i in range(len(labels)))
    assert len(labels) > 250


def test_attempts_of_no_known_task_make_no_row() -> None:
    assert task_table(some_attempts(task=["a", None, "a"]))["n_attempts"].tolist() == [2]


def test_a_history_without_attempts_has_no_tasks(attempts: pd.DataFrame) -> None:
    tasks = task_table(attempts.iloc[:0].drop(columns="accuracy"))
    assert tuple(tasks.columns) == TASK_COLUMNS
    assert task_distances(tasks).shape == (0, 0)


def test_a_score_that_no_attempt_has_is_not_known(attempts: pd.DataFrame) -> None:
    assert task_table(attempts, "macro_f1")["best_score"].isna().all()


def test_distances_are_a_metric_table_between_nought_and_one(tasks: pd.DataFrame) -> None:
    distances = task_distances(tasks)
    assert distances.index.tolist() == distances.columns.tolist() == tasks["task"].tolist()
    matrix = distances.to_numpy()
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 0.0)
    assert ((matrix >= 0) & (matrix <= 1)).all()


def test_distances_are_l1_over_scaled_meta_features_and_jaccard_over_words(tasks: pd.DataFrame) -> None:
    values = tasks.set_index("task")[list(META_FEATURES)]
    ranges = values.max() - values.min()
    # Of these tasks only the shares of labels and the size are nearly equal everywhere.
    scales = ranges.mask(values.columns == "imbalance", 0.1).mask(values.columns == "height", 3.2)
    scales = scales.mask(values.columns == "width", 3.2).clip(lower=1e-9)
    scales["channels"] = max(ranges["channels"], 0.3)
    scaled = values / scales
    pictures = cityblock(scaled.loc["cifar-dev-2"], scaled.loc["cifar-dev-3"]) / 16
    words = 1 - 4 / 6
    assert task_distances(tasks).loc["cifar-dev-2", "cifar-dev-3"] == pytest.approx((pictures + words) / 2, abs=1e-9)


def test_photos_are_like_photos_and_letters_like_letters(tasks: pd.DataFrame) -> None:
    distances = task_distances(tasks)
    np.fill_diagonal(distances_matrix := distances.to_numpy(copy=True), np.inf)
    nearest = [tasks["task"].iloc[i] for i in distances_matrix.argmin(axis=1)]
    assert [name.split("-")[0] for name in nearest] == [name.split("-")[0] for name in tasks["task"]]


def test_the_ranking_is_that_of_the_distances_and_shows_its_terms(tasks: pd.DataFrame) -> None:
    ranked = rank_similar_tasks(tasks, "cifar-dev-0")
    assert tuple(ranked.columns) == RANK_COLUMNS
    assert "cifar-dev-0" not in ranked["task"].tolist()
    assert ranked["distance"].is_monotonic_increasing
    expected = task_distances(tasks).loc["cifar-dev-0", ranked["task"]]
    np.testing.assert_allclose(ranked["distance"], expected)
    np.testing.assert_allclose(ranked["distance"], (ranked["pictures"] + ranked["words"]) / 2)
    terms = ranked.set_index("task").loc["omniglot-Korean", "terms"]
    assert terms.startswith("ln_n_labels 0.693 here, 3.69 there (1.00), ")
    assert terms.count(" here, ") == 3


def test_a_new_task_is_ranked_against_the_history(tasks: pd.DataFrame) -> None:
    new = describe_new_task(read_tasks()["digits-0"], ["seven", "eight", "nine"])
    ranked = rank_similar_tasks(pd.concat([tasks, new], ignore_index=True), NEW_TASK)
    assert len(ranked) == 13
    first = ranked.iloc[0]
    assert (first["task"], first["pictures"], first["words"]) == ("digits-0", 0.0, 1.0)


def test_of_two_tasks_of_one_name_the_last_is_meant(tasks: pd.DataFrame) -> None:
    both = pd.concat([tasks, describe_new_task({}, ["a"], task="digits-0")], ignore_index=True)
    assert rank_similar_tasks(both, "digits-0")["distance"].isna().all()


def test_words_are_compared_without_case_operators_and_signs() -> None:
    tasks = make_tasks(
        a=({"ln_n": 1.0}, ["Boston Terrier imagesize:500x500", "Alaskan_Malamute"]),
        b=({"ln_n": 1.0}, ["boston-terrier", "alaskan malamute filetype:png"]),
        c=({"ln_n": 1.0}, ["Boston"]),
    )
    assert rank_similar_tasks(tasks, "a")["words"].tolist() == [0.0, 0.75]


def test_meta_features_that_one_lacks_do_not_count() -> None:
    tasks = make_tasks(
        a=({"ln_n": 1.0, "mean_red": 0.2}, ["x"]), b=({"ln_n": 3.0}, ["x"]), c=({"mean_red": 0.7, "ln_n": 1.0}, ["x"])
    )
    assert rank_similar_tasks(tasks, "b")["pictures"].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(rank_similar_tasks(tasks, "a")["pictures"], [0.5, 1.0])


def test_tasks_with_nothing_in_common_come_last() -> None:
    tasks = make_tasks(
        a=({"ln_n": 1.0}, ["x"]), none=({}, ["y"]), words=({"width": 9.0}, ["x"]), far=({"ln_n": 9.0}, ["y"])
    )
    ranked = rank_similar_tasks(tasks, "a")
    assert ranked["task"].tolist() == ["far", "words", "none"]
    assert ranked["distance"].isna().tolist() == [False, True, True]
    assert ranked["words"].tolist() == [1.0, 0.0, 1.0]


def test_where_labels_are_not_known_the_pictures_decide() -> None:
    ranked = rank_similar_tasks(make_tasks(a=({"ln_n": 1.0}, []), b=({"ln_n": 2.0}, ["x"])), "a")
    assert ranked["distance"].tolist() == ranked["pictures"].tolist() == [1.0]
    assert ranked["words"].isna().all()


def test_two_nearly_equal_tasks_are_near_even_if_there_are_no_others() -> None:
    features = read_tasks()["digits-0"]
    other = {name: value * 1.001 for name, value in features.items()}
    assert rank_similar_tasks(make_tasks(a=(features, ["x"]), b=(other, ["x"])), "a")["distance"].iloc[0] < 0.01


def test_a_bat_among_birds_is_said_to_disagree() -> None:
    tasks = make_tasks(
        bat=({"mean_red": 0.5}, ["bat", "owl"]),
        owls=({"mean_red": 0.1}, ["owl", "bat"]),
        swifts=({"mean_red": 0.5}, ["swift"]),
        finches=({"mean_red": 0.4}, ["finch", "owl"]),
        gulls=({"mean_red": 0.3}, ["gull", "bat", "tern", "skua"]),
        cars=({"mean_red": 1.0}, ["car"]),
    )
    ranked = rank_similar_tasks(tasks, "bat").set_index("task")
    assert ranked.index[ranked["disagrees"]].tolist() == ["owls", "swifts"]
    assert ranked["alike"][["owls", "swifts", "cars"]].tolist() == ["'bat', 'owl'", "mean_red (0.00)", ""]


def test_words_that_no_task_shares_disagree_with_nothing(tasks: pd.DataFrame) -> None:
    assert not rank_similar_tasks(tasks, "digits-0")["disagrees"].any()


@pytest.mark.parametrize("n", [1, 2])
def test_few_tasks_can_be_ranked(tasks: pd.DataFrame, n: int) -> None:
    ranked = rank_similar_tasks(tasks.iloc[:n], tasks["task"].iloc[0])
    assert len(ranked) == n - 1
    assert not ranked["disagrees"].any()


def test_a_task_that_is_not_there_is_named_with_the_nearest(tasks: pd.DataFrame) -> None:
    with pytest.raises(NotFoundError, match=r"no task 'digits0'. Did you mean 'digits-0'\?"):
        rank_similar_tasks(tasks, "digits0")


def test_what_can_be_counted_is_known_without_pictures() -> None:
    table = make_table(2).drop(columns="tags.mlmeta.task")
    tasks = task_table(table).set_index("task")
    assert math.exp(tasks.loc["digits-0", "ln_n_labels"]) == pytest.approx(5)
    assert tasks["ln_n"].notna().all()
    assert tasks["knn_accuracy"].isna().all()
