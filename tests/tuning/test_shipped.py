"""The attempts that come with mlmeta: read as they were, and never counted beside the same ones of a history."""

from __future__ import annotations

import json

import numpy as np
from attempt_table import make_table

from mlmeta.analysis.task_similarity import task_table
from mlmeta.tuning.lessons import describe_attempts, parse_shipped, read_shipped
from mlmeta.tuning.surrogate import MOST_ATTEMPTS, Surrogate
from mlmeta.tuning.training_features import describe_trainings


def test_the_file_holds_the_real_attempts() -> None:
    table = make_table().sort_values(["task", "model_name"], ignore_index=True)
    shipped = read_shipped()
    assert shipped.attempts["accuracy"].tolist() == table["accuracy"].tolist()
    here = describe_trainings(shipped.attempts, shipped.tasks)
    np.testing.assert_allclose(here, describe_trainings(table, task_table(table)), atol=0.01)


def test_attempts_are_read_as_they_were_described() -> None:
    table = make_table(5)
    table.loc[3, "accuracy"] = np.nan
    tasks = task_table(table)
    shipped = parse_shipped(json.loads(json.dumps(describe_attempts(table, tasks))))
    np.testing.assert_allclose(
        describe_trainings(shipped.attempts, shipped.tasks), describe_trainings(table, tasks), atol=1e-4
    )
    assert shipped.attempts["status"].tolist()[3] == "Failed"
    np.testing.assert_array_equal(shipped.attempts["accuracy"], table["accuracy"])


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
    many.attrs = here.attrs = table.attrs
    assert len(many) > MOST_ATTEMPTS
    tasks = task_table(table)
    alone = Surrogate(many, here, tasks, "digits-0").predict()
    beside = Surrogate(many, here, tasks, "digits-0", shipped=read_shipped()).predict()
    assert np.corrcoef(alone.z, beside.z)[0, 1] > 0.99
