"""Lessons: every attempt teaches what it can, a test most, a pruned training least."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from mlmeta.errors import BadInputError
from mlmeta.tuning.lessons import STD_COLUMN, add_lessons

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
