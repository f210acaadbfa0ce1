"""The surrogate on real attempts: what it learns from other tasks, from this one, and how sure it says to be."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table

from mlmeta.analysis.task_similarity import task_table
from mlmeta.data.metafeatures import META_FEATURES
from mlmeta.errors import BadInputError
from mlmeta.tuning.surrogate import MOST_ATTEMPTS, Surrogate
from mlmeta.tuning.training_features import LENGTHS, describe_trainings, name_features

TASKS = ("cifar-dev-0", "cifar-dev-4", "digits-0", "omniglot-Greek")


def split(task: str, n_per_task: int = 64) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return past attempts, those of one task, and the tasks."""
    table = make_table(n_per_task)
    is_here = (table["task"] == task).to_numpy()
    past, here = table[~is_here].reset_index(drop=True), table[is_here].reset_index(drop=True)
    return past, here, task_table(table)


def ask(task: str) -> tuple[Surrogate, np.ndarray]:
    """Return a surrogate that knows all tasks but one, and has the attempts on that one before it; and their scores."""
    past, here, tasks = split(task)
    return Surrogate(past, here.drop(columns="accuracy"), tasks, task), here["accuracy"].to_numpy()


def regret(scores: np.ndarray, row: int) -> float:
    return float((scores.max() - scores[row]) / (scores.max() - scores.min()))


@pytest.mark.parametrize("task", TASKS)
def test_the_first_choice_on_a_task_never_seen_is_among_the_best(task: str) -> None:
    surrogate, scores = ask(task)
    assert regret(scores, surrogate.choose(1, len(scores))[0]) < 0.2


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_a_task_never_seen_are_predicted_with_an_honest_spread(task: str) -> None:
    surrogate, scores = ask(task)
    predicted = surrogate.predict()
    assert np.corrcoef(predicted.mean, scores)[0, 1] > 0.4
    assert np.mean(np.abs(scores - predicted.mean) <= 1.645 * predicted.std) > 0.6
    assert np.all((predicted.mean >= 0) & (predicted.mean <= 1) & (predicted.std > 0))


def test_attempts_on_the_task_itself_make_predictions_better_and_surer() -> None:
    surrogate, scores = ask("cifar-dev-4")
    before = surrogate.predict()
    for row in range(0, 64, 2):
        surrogate.observe(row, float(scores[row]))
    after = surrogate.predict()
    others = np.arange(1, 64, 2)
    assert np.abs(after.mean - scores)[others].mean() < np.abs(before.mean - scores)[others].mean()
    assert after.std.mean() < before.std.mean()


def test_a_task_of_unknown_labels_has_the_usual_chance() -> None:
    _, here, tasks = split("cifar-dev-0")
    past = here.assign(task="the same, labels unknown")
    own = tasks[tasks["task"] == "cifar-dev-0"]
    both = pd.concat([own.assign(task="the same, labels unknown", ln_n_labels=np.nan), own], ignore_index=True)
    predicted = Surrogate(past, here.drop(columns="accuracy"), both, "cifar-dev-0").predict()
    assert abs(predicted.mean.mean() - here["accuracy"].mean()) < 0.03


def test_candidates_that_were_tried_are_not_chosen_again() -> None:
    surrogate, _ = ask("cifar-dev-0")
    first = surrogate.choose(3, 64)
    assert not set(first) & set(surrogate.choose(61, 64, tried=first))
    assert surrogate.choose(5, 64, tried=range(64)) == []


def test_a_copy_observes_for_itself() -> None:
    surrogate, _ = ask("cifar-dev-0")
    before = surrogate.predict()
    copy.copy(surrogate).observe(0, 0.1)
    np.testing.assert_array_equal(surrogate.predict().mean, before.mean)
    np.testing.assert_array_equal(surrogate.predict().std, before.std)


def test_what_a_proposal_does_not_tell_is_no_difference() -> None:
    past, here, tasks = split("cifar-dev-0")
    untold = [name for name in here.columns if name.startswith(("transform.", "image_ops.", "data."))]
    told = Surrogate(past, here, tasks, "cifar-dev-0")
    short = Surrogate(past, here.drop(columns=untold), tasks, "cifar-dev-0")
    assert untold
    np.testing.assert_allclose(short.mean, told.mean)


def test_a_failed_attempt_speaks_against_its_like() -> None:
    surrogate, _ = ask("digits-0")
    first = surrogate.choose(1, 64)[0]
    before = surrogate.predict().z
    surrogate.observe(first, None)
    assert surrogate.predict().z[first] < before[first]
    assert surrogate.choose(1, 64)[0] != first


def test_an_uncertain_score_says_less_than_a_certain_one() -> None:

    def expect(**options: float) -> tuple[float, float]:
        surrogate, _ = ask("digits-0")
        surrogate.observe(0, 0.9)
        before = surrogate.predict()
        surrogate.observe(1, 0.2, **options)
        after = surrogate.predict()
        return float(before.z[1] - after.z[1]), float(before.std[1] - after.std[1])

    certain, vague, void = expect(), expect(std=0.3), expect(std=1e6)
    assert certain[0] > vague[0] > void[0] > -1e-6
    assert certain[1] > vague[1] > void[1] > -1e-6
    assert void[0] < 1e-3


def test_a_loss_is_better_when_it_is_lower() -> None:
    past, here, tasks = split("cifar-dev-0")
    surrogate = Surrogate(past, here, tasks, "cifar-dev-0", metric="train_loss")
    predicted = surrogate.predict()
    assert np.corrcoef(predicted.z, predicted.mean)[0, 1] < 0
    assert predicted.mean[np.argmax(predicted.z)] < predicted.mean[np.argmin(predicted.z)]


def test_choices_to_try_together_differ() -> None:
    surrogate, _ = ask("cifar-dev-0")
    chosen = surrogate.choose(10, 64)
    assert len(set(chosen)) == 10
    everything = surrogate.choose(100, 64)
    assert sorted(everything) == list(range(64))
    assert everything[:10] == chosen


def test_the_evidence_is_the_same_training_on_other_tasks_where_there_is_one() -> None:
    past, here, tasks = split("omniglot-Greek")
    surrogate = Surrogate(past, here, tasks, "omniglot-Greek")
    row = 5
    evidence = surrogate.past.iloc[surrogate.find_evidence(row, 3)]
    assert set(evidence["optimizer.lr"]) == {here["optimizer.lr"].iloc[row]}


@pytest.mark.parametrize("n_past", [0, 1, 2])
def test_next_to_no_past_is_enough_to_go_on(n_past: int) -> None:
    past, here, tasks = split("digits-0")
    surrogate = Surrogate(past.iloc[:n_past], here, tasks, "digits-0")
    assert len(surrogate.choose(3, 64)) == 3
    surrogate.observe(0, 0.5)
    surrogate.observe(1, 0.9)
    predicted = surrogate.predict()
    assert predicted.z[1] > predicted.z[0]
    assert np.isfinite(predicted.mean).all()
    assert np.isfinite(predicted.std).all()


def test_tasks_that_cannot_all_be_compared_are_a_past_too() -> None:
    past, here, tasks = split("digits-0")
    features = list(META_FEATURES)
    draw = np.random.default_rng(0)
    tasks.loc[:, features] = tasks[features].where(draw.random((len(tasks), len(features))) < 0.1)
    surrogate = Surrogate(past, here, tasks, "digits-0")
    assert np.isfinite(surrogate.predict().z).all()
    assert np.linalg.eigvalsh(surrogate.covariance).min() > -1e-6


def test_attempts_that_all_failed_are_a_past_too() -> None:
    past, here, tasks = split("digits-0")
    surrogate = Surrogate(past.assign(status="Failed", accuracy=np.nan), here, tasks, "digits-0")
    assert np.isfinite(surrogate.predict().z).all()


def test_of_a_long_history_every_task_keeps_its_share() -> None:
    past, here, tasks = split("digits-0")
    many = past.loc[past.index.repeat(3)].reset_index(drop=True)
    surrogate = Surrogate(many, here, tasks, "digits-0")
    assert len(surrogate.past) == MOST_ATTEMPTS
    assert surrogate.past["task"].value_counts().min() >= MOST_ATTEMPTS // 12 - 1


def test_a_metric_that_nobody_has_is_refused() -> None:
    past, here, tasks = split("digits-0")
    with pytest.raises(BadInputError, match="no attempt has the metric"):
        Surrogate(past, here, tasks, "digits-0", metric="f2")


def test_a_learning_rate_is_told_by_optimizer_and_momentum() -> None:
    table = make_table(4)
    rows = table.iloc[[0, 0, 0]].assign(
        **{"optimizer.name": ["SGD", "SGD", "Adam"], "optimizer.lr": 0.01, "optimizer.momentum": [0.9, 0.0, None]}
    )
    rates = dict(name_features(rows, task_table(table), shift=2.0))["rate"]
    np.testing.assert_allclose(rates, [-2 + 1 - 2, -2 - 2, -2], atol=1e-9)


def test_features_are_finite_whatever_is_missing_or_odd() -> None:
    table = make_table(4)
    tasks = task_table(table)
    odd = table.assign(**{"batch_size": pd.NA, "optimizer.lr": 0.0, "arch.width": pd.NA, "optimizer.momentum": 1.0})
    assert np.isfinite(describe_trainings(odd, tasks)).all()
    assert np.isfinite(describe_trainings(table[["run_id", "task", "status"]], tasks)).all()
    assert {name.partition("=")[0] for name, _ in name_features(table, tasks)} <= set(LENGTHS)
