"""The meta-learning benchmark on a small table: what it hides from the methods, and what it counts."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table, read_documents
from make_defaults import choose_defaults
from meta_data import TRAINING, Scene, Trials, ship
from meta_learning import Scenes, evaluate
from meta_methods import DefaultList, Mlmeta, choose_at_random, choose_by_portfolio
from meta_pruning import Curves, Rounds, play

from mlmeta.analysis.task_similarity import task_table
from mlmeta.tuning.training_features import describe_trainings

TASK = "digits-0"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    table = make_table(12)
    parts = {one["name"]: {key: one["training_commands"].get(key) for key in TRAINING} for one in read_documents()}
    return table.assign(commands=[json.dumps(parts[name], sort_keys=True) for name in table["model_name"]])


@pytest.fixture(scope="module")
def scenes(table: pd.DataFrame) -> Scenes:
    return Scenes(table, task_table(table))


def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def test_nothing_of_the_held_out_task_is_seen(scenes: Scenes) -> None:
    for make in (scenes.thin_past(25), scenes.halve_commands(25), scenes.hold_out_family()):
        scene = make(TASK, draw())
        assert TASK not in set(scene.past["task"])
        assert f"mlmeta's {TASK}" not in set(scene.shipped.attempts["task"])
        assert "accuracy" not in scene.trials.candidates
    assert not scene.past["task"].str.startswith("digits").any()


def test_attempts_are_read_as_they_were_described() -> None:
    table = make_table(5)
    table.loc[3, "accuracy"] = np.nan
    tasks = task_table(table)
    shipped = ship(table, tasks)
    np.testing.assert_allclose(
        describe_trainings(shipped.attempts, shipped.tasks), describe_trainings(table, tasks), atol=1e-4
    )
    assert shipped.attempts["status"].tolist()[3] == "Failed"
    np.testing.assert_array_equal(shipped.attempts["accuracy"], table["accuracy"])


def test_what_ships_shares_no_commands_with_the_others(scenes: Scenes) -> None:
    scene = scenes.halve_commands(10)(TASK, draw())
    commands = scenes.table.set_index("model_name")["commands"]
    shipped = set(commands[scene.shipped.attempts["model_name"]])
    assert len(shipped) == len(scene.trials.scores) == 6
    assert not shipped & {*scene.past["commands"], *scene.trials.rows["commands"]}


def test_every_method_orders_candidates(scenes: Scenes, table: pd.DataFrame) -> None:
    scene = scenes.thin_past(75)(TASK, draw())
    methods = (
        choose_at_random, choose_by_portfolio, DefaultList(list(read_documents()), table),
        Mlmeta({}, with_shipped=True), Mlmeta({}, with_shipped=False),
    )  # fmt: skip
    for method in methods:
        order = method(scene, draw())
        assert len(set(order)) == len(order) >= 10


def test_regret_and_attempts_are_counted(table: pd.DataFrame, scenes: Scenes) -> None:
    trials = Trials(table, TASK)
    trials.scores = np.array([0.5, 0.99, 1.0, 0.0])
    assert trials.measure([0, 3, 1, 2]) == (pytest.approx([0.5, 0.5, 0.01, 0.0, 0.0]), 3)

    def choose_best(scene: Scene, draw: np.random.Generator) -> list[int]:
        return np.argsort(-scene.trials.scores).tolist()

    row = evaluate(choose_best, scenes.thin_past(0), [TASK, "cifar-dev-0"], 0, 2)
    assert row["regret"]["1"] == 0
    assert row["attempts_to_2_points"] == 1


def test_rounds_train_as_many_epochs_as_they_say(scenes: Scenes) -> None:
    curves = Curves(list(read_documents()))
    scene = scenes.thin_past(75)(TASK, draw())
    ask = Mlmeta({}, with_shipped=False).ask
    regret, share = play(Rounds(6, 1), ask, scene, curves)
    assert share == pytest.approx((6 + 11) / (6 * 12))
    assert np.isnan(regret[1])
    regret, share = play(Rounds(1, 1), ask, scene, curves)
    assert share == 1
    assert np.isfinite(regret).tolist() == [True, True, True, False]
    assert 0 <= regret[2] <= regret[1] <= regret[0]


def test_a_final_score_is_expected_as_the_past_teaches() -> None:
    documents = [dict(one) for one in read_documents()[:40]]
    for number, one in enumerate(documents):
        first = 0.5 + number / 100
        one["test_accuracies"] = [first, 0.5 * first + 0.4]
    curves = Curves(documents)
    names = [one["name"] for one in documents]
    score, std = curves.expect(names[3], curves.fit(names))
    assert score == pytest.approx(documents[3]["test_accuracies"][1])
    assert std == pytest.approx(0, abs=1e-6)


def test_the_default_list_begins_with_the_training_that_is_best_on_most_tasks() -> None:
    documents = [one for one in read_documents() if one["config_id"] in (3, 5, 28)]
    chosen = choose_defaults(documents)
    scores = pd.DataFrame(documents).assign(task=[one["task"]["name"] for one in documents])
    scores = scores.pivot_table(index="task", columns="config_id", values="accuracy")
    quality = scores.sub(scores.min(axis=1), axis=0).div(scores.max(axis=1) - scores.min(axis=1), axis=0)
    best = int(quality.mean().idxmax())
    expected = next(one for one in documents if one["config_id"] == best)["training_commands"]
    assert chosen[0]["optimizer"] == expected["optimizer"]
    assert len(chosen) == 3
