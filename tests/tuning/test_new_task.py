"""A new task: its own attempts are told from others, and what cannot be built for its pictures is left out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from attempt_table import make_table

from mlmeta.analysis.task_similarity import NEW_TASK
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.task import prepare_task
from mlmeta.tuning.new_task import NewTask, explain_unfit, fit_proposals, look_at_task
from mlmeta.tuning.proposals import Proposal, take_training

DENSE = {"name": "Linear", "in_features": 5, "out_features": "n_labels"}


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    return make_table(4)


def look(document: dict[str, Any], history: pd.DataFrame) -> NewTask:
    return look_at_task(parse_train_commands(document), Path(), history, "accuracy")


def test_attempts_on_the_same_pictures_are_its_own(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    digest = prepare_task(parse_train_commands(toy_document), base_dir=Path()).pictures.task_digest
    mine = history["task"] == "digits-1"
    digests = history["tags.mlmeta.task_digest"].mask(mine, digest)
    task = look(toy_document, history.assign(**{"tags.mlmeta.task_digest": digests}))
    assert set(task.own["run_id"]) == set(history["run_id"][mine])
    assert len(task.past) == len(history) - len(task.own)
    assert "digits-1" not in set(task.tasks["task"])
    assert task.tasks["task"].iloc[-1] == NEW_TASK
    assert task.n_scored("accuracy") == history["accuracy"].notna().sum()
    assert task.distances.between(0, 1).all()


def test_only_what_can_be_built_is_kept_and_the_rest_says_why(
    toy_document: dict[str, Any], history: pd.DataFrame
) -> None:
    task = look(toy_document, history)
    fit = Proposal(take_training(parse_train_commands(toy_document)), "fit")
    unfit = Proposal({**fit.training, "model": {"layers": [{"name": "Flatten"}, DENSE]}}, "unfit")
    kept, rows = fit_proposals(task, [unfit, fit, unfit])
    assert [one.origin for one in kept] == ["fit"]
    assert (rows[0]["batch_size"], rows[0]["task.n_labels"], rows[0]["task"]) == (8.0, 3, NEW_TASK)
    assert explain_unfit(task, fit) == ""
    assert "in_features would have to be" in explain_unfit(task, unfit)


def test_no_more_is_fitted_than_is_wanted(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    forever = itertools.repeat(Proposal(take_training(parse_train_commands(toy_document)), "fit"))
    assert len(fit_proposals(look(toy_document, history), forever, at_most=3)[0]) == 3
