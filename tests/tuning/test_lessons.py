"""Lessons: every attempt teaches what it can, a test most, a pruned training least; and those that come with mlmeta."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table

from mlmeta.analysis.task_similarity import task_table
from mlmeta.errors import BadInputError
from mlmeta.tuning.lessons import STD_COLUMN, add_lessons, read_shipped
from mlmeta.tuning.surrogate import MOST_ATTEMPTS, Surrogate
from mlmeta.tuning.training_features import describe_trainings

NAN = math.nan


def attempts() -> pd.DataFrame:
    rows = {
        "tested": ("Complete", 0.8, 0.9, 0.85, NAN, NAN),
        "trained": ("Trained", NAN, 0.5, 0.6, NAN, NAN),
        "without kept": ("Trained", NAN, 0.7, NAN, NAN, NAN),
        "pruned": ("Pruned", NAN, 0.3, 0.3, 0.55, 0.08),
        "pruned early": ("Pruned", NAN, 0.3, 0.35, NAN, NAN),
        "failed": ("Failed", NAN, 0.2, NAN, NAN, NAN),
        "at work": ("Training", NAN, 0.2, NAN, 0.4, 0.1),
        "nothing": ("Interrupted", NAN, NAN, NAN, NAN, NAN),
    }
    names = ["status", "accuracy", "val_accuracy", "kept_val_accuracy", "expected_accuracy", "expected_accuracy_std"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names)
    table["task.n_validation"] = 96
    table.attrs["kinds"] = {"accuracy": "metric"}
    return table


def test_each_attempt_teaches_what_it_can() -> None:
    taught = add_lessons(attempts(), "accuracy")
    assert taught["accuracy"].to_list() == pytest.approx([0.8, 0.6, 0.7, 0.55, 0.35, NAN, NAN, NAN], nan_ok=True)
    spread = taught[STD_COLUMN]
    assert spread["tested"] == 0
    assert spread["trained"] == pytest.approx(math.sqrt(0.6 * 0.4 / 96))
    assert spread["pruned"] == 0.08
    assert spread["pruned early"] > spread["pruned"]


def test_another_metric_stays_as_it_is() -> None:
    taught = add_lessons(attempts(), "val_accuracy")
    assert taught["val_accuracy"].equals(attempts()["val_accuracy"])
    assert not taught[STD_COLUMN].any()


def test_the_table_is_left_as_it_was_and_its_kinds_are_kept() -> None:
    table = attempts()
    taught = add_lessons(table, "accuracy")
    assert table.equals(attempts())
    assert taught.attrs == table.attrs


def test_attempts_none_of_which_was_tested_teach_all_the_same() -> None:
    taught = add_lessons(attempts().drop(columns="accuracy"), "accuracy")
    assert taught["accuracy"]["trained"] == 0.6


def test_a_metric_that_nobody_has_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"no attempt has the metric 'acuracy'\. Did you mean 'accuracy'"):
        add_lessons(attempts(), "acuracy")
    with pytest.raises(BadInputError, match="no attempt has the metric 'test_loss'"):
        add_lessons(attempts()[["status"]], "test_loss")


def test_attempts_without_any_accuracy_still_teach_by_their_state() -> None:
    taught = add_lessons(attempts()[["status"]], "accuracy")
    assert taught["accuracy"].isna().all()
    assert taught["status"].tolist() == attempts()["status"].tolist()


# Attempts that come with mlmeta.


def test_the_file_holds_the_real_attempts() -> None:
    table = make_table().sort_values(["task", "model_name"], ignore_index=True)
    shipped = read_shipped()
    assert shipped.attempts["accuracy"].tolist() == table["accuracy"].tolist()
    here = describe_trainings(shipped.attempts, shipped.tasks)
    np.testing.assert_allclose(here, describe_trainings(table, task_table(table)), atol=0.01)


def test_what_a_history_has_too_is_left_out() -> None:
    shipped = read_shipped()
    digest = shipped.tasks["task_digest"].iloc[0]
    table = make_table().iloc[:100]
    digests = dict(zip(shipped.tasks["task"], shipped.tasks["task_digest"], strict=True))
    unseen = table.assign(**{"tags.mlmeta.task_digest": "of pictures that were not there"})
    assert len(shipped.without(unseen).attempts) == 832 - 100
    table["tags.mlmeta.task_digest"] = ("mlmeta's " + table["task"]).map(digests)
    assert len(shipped.without(table).attempts) == 832 - 100
    assert len(shipped.without(table.assign(task="by another name")).attempts) == 832 - 100
    assert len(shipped.without(table.assign(model_name="another")).attempts) == 832
    assert len(shipped.without(table.iloc[:0], digest).attempts) == 832 - 64
    left = shipped.without(table.iloc[:0], digest)
    assert set(left.tasks["task"]) == set(left.attempts["task"])


def test_without_a_past_the_shipped_attempts_rank_the_new_ones() -> None:
    table = make_table()
    here = table[table["task"] == "omniglot-Greek"].reset_index(drop=True)
    scores = here["accuracy"].to_numpy()
    new = here.drop(columns="accuracy").assign(task="new")
    tasks = task_table(here).assign(task="new")
    digests = read_shipped().tasks.set_index("task")["task_digest"]
    shipped = read_shipped().without(table.iloc[:0], digests["mlmeta's omniglot-Greek"])
    surrogate = Surrogate(table.iloc[:0], new, tasks, "new", shipped=shipped)
    predicted = surrogate.predict()
    assert np.corrcoef(predicted.z, scores)[0, 1] > 0.7
    assert np.mean(np.abs(scores - predicted.mean) <= 1.645 * predicted.std) > 0.6
    assert len(surrogate.past) == 0
    assert surrogate.find_evidence(0, 3) == []


def test_a_long_history_leaves_the_shipped_attempts_no_room() -> None:
    table = make_table()
    is_here = table["task"] == "digits-0"
    past, here = table[~is_here], table[is_here].reset_index(drop=True)
    many = past.loc[past.index.repeat(2)].reset_index(drop=True)
    assert len(many) > MOST_ATTEMPTS
    tasks = task_table(table)
    alone = Surrogate(many, here, tasks, "digits-0").predict()
    beside = Surrogate(many, here, tasks, "digits-0", shipped=read_shipped()).predict()
    assert np.corrcoef(alone.z, beside.z)[0, 1] > 0.99
