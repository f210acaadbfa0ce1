"""Recommendations: runnable commands with evidence, whatever the history is."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from attempt_table import make_table, read_documents
from click.testing import CliRunner

from mlmeta.cli import cli
from mlmeta.commands.params import read_training
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.data.task import prepare_task
from mlmeta.errors import BadInputError
from mlmeta.history.table import list_params, with_kinds
from mlmeta.training.loop import train_attempt
from mlmeta.training.preparation import prepare_training
from mlmeta.tuning.proposals import derive_space, find_winners, number_name, read_defaults, take_training, vary
from mlmeta.tuning.recommend import Recommendation, recommend_commands


@pytest.fixture(scope="module")
def history() -> pd.DataFrame:
    return make_table(64)


def recommend(document: dict[str, Any], history: pd.DataFrame, **options: Any) -> list[Recommendation]:
    return recommend_commands(parse_train_commands(document), history=history, **options)


@pytest.fixture
def digest(toy_document: dict[str, Any]) -> str:
    """What the history knows the task of the toy document by."""
    return prepare_task(parse_train_commands(toy_document), base_dir=Path()).pictures.task_digest


def join(history: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    return with_kinds(pd.concat([history, more], ignore_index=True), history.attrs["kinds"])


def trainings(found: list[Recommendation]) -> list[str]:
    return [json.dumps(take_training(one.commands), sort_keys=True) for one in found]


# Proposals.


def test_a_training_is_read_back_from_its_params(history: pd.DataFrame) -> None:
    params = list_params(history)
    documents = {document["name"]: document["training_commands"] for document in read_documents()}
    for _, row in history.iloc[::29].iterrows():
        training = read_training(row, params)
        given = documents[row["model_name"]]
        assert training["model"]["layers"] == given["model"]["layers"]
        assert training["optimizer"] == given["optimizer"]
        assert training["batch_size"] == given["batch_size"]


def test_winners_are_the_best_of_each_task_near_tasks_first(history: pd.DataFrame) -> None:
    winners = find_winners(history, "accuracy", {"digits-1": 1.0})
    assert winners[0].origin.endswith("on digits-1")
    row = history[history["run_id"] == winners[0].run_ids[0]].iloc[0]
    assert row["accuracy"] == history[history["task"] == "digits-1"]["accuracy"].max()
    assert len({json.dumps(one.training, sort_keys=True) for one in winners}) == len(winners)


def test_a_failed_attempt_is_no_winner(history: pd.DataFrame) -> None:
    assert find_winners(history.assign(status="Failed"), "accuracy", {}) == []


def test_variations_stay_near_what_they_are_made_of() -> None:
    defaults = read_defaults()
    rates = [one.training["optimizer"]["lr"] for one in defaults]
    for one in vary(defaults, np.random.default_rng(0), 200):
        assert min(rates) / 30 < one.training["optimizer"]["lr"] < 30 * max(rates)
        assert 1 <= one.training["batch_size"] <= 1024
    assert list(vary([], np.random.default_rng(0))) == []


def test_variations_leave_their_origin_as_it_was() -> None:
    defaults = read_defaults()
    before = json.dumps([one.training for one in defaults])
    list(vary(defaults, np.random.default_rng(0), 100))
    assert json.dumps([one.training for one in defaults]) == before


# Recommendations.


def test_recommended_commands_run_as_they_are(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    # Small pictures, for which some winners have too many pooling layers.
    found = recommend(toy_document, history, n=4)
    assert len(found) == 4
    assert len(set(trainings(found))) == 4
    for one in found:
        document = one.commands.document() | {"n_epoch": 1}
        prepared = prepare_training(parse_train_commands(document), base_dir=Path())
        trained = train_attempt(prepared, _Silent())
        assert math.isfinite(trained.train_losses[0])


class _Silent:
    def log_metrics(self, metrics: Any, *, step: int | None = None) -> None:
        """Forget the metrics."""


def test_a_recommendation_says_what_it_expects_and_why(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    for one in recommend(toy_document, history, n=3):
        assert 1 / 3 < one.score_mean <= 1
        assert 0 < one.score_std < 0.5
        assert one.seconds > 0
        assert len(one.evidence) == 3
        for evidence in one.evidence:
            row = history[history["run_id"] == evidence.run_id].iloc[0]
            assert (row["model_name"], row["accuracy"]) == (evidence.model_name, evidence.score)
            assert 0 <= evidence.distance <= 1
        assert "832 attempts on 13 other tasks" in one.reason


def test_what_is_not_recommended_stays_as_the_commands_say(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    toy_document |= {"n_epoch": 7, "seed": 5, "validation": 0.2}
    (one,) = recommend(toy_document, history, n=1)
    document = one.commands.document()
    for key in ("data", "label_names", "n_epoch", "seed", "validation", "transform"):
        assert document.get(key) == toy_document.get(key)
    assert document["model_name"] == "colours-1"


def test_the_same_question_has_the_same_answer(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    assert trainings(recommend(toy_document, history)) == trainings(recommend(toy_document, history))


def test_without_a_history_the_default_list_is_named(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    found = recommend(toy_document, history.iloc[:0], n=2)
    assert [one.reason for one in found] == [
        "There is no past attempt of yours to learn from: this is mlmeta's default list."
    ] * 2
    # By the attempts that come with mlmeta.
    assert 1 / 3 < found[0].score_mean < 1
    assert found[0].score_std > 0.05
    assert math.isnan(found[0].seconds)
    assert found[0].evidence == ()


def test_only_candidates_are_chosen_where_there_are_some(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    rates = (1e-6, 1e-3, 10.0)
    documents = [toy_document | {"optimizer": {"name": "Adam", "lr": lr}} for lr in rates]
    found = recommend(toy_document, history, candidates=[parse_train_commands(one) for one in documents])
    assert sorted(one.commands.optimizer["lr"] for one in found) == list(rates)
    assert found[0].commands.optimizer["lr"] == 1e-3


def test_without_a_history_candidates_are_ordered_by_what_comes_with_mlmeta(
    toy_document: dict[str, Any], history: pd.DataFrame
) -> None:
    default = read_defaults()[0].training["optimizer"]
    optimizers = [{"name": "SGD", "lr": 50.0}, {**default, "lr": default["lr"] * 1.2}, {"name": "Adam", "lr": 1e-8}]
    documents = [parse_train_commands(toy_document | {"optimizer": one, "batch_size": 8}) for one in optimizers]
    found = recommend(toy_document, history.iloc[:0], candidates=documents)
    assert found[0].commands.optimizer == optimizers[1]
    assert len(found) == 3


def test_candidates_that_do_not_fit_the_pictures_are_refused(
    toy_document: dict[str, Any], history: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    layers = [{"name": "Flatten"}, {"name": "Linear", "in_features": 5, "out_features": "n_labels"}]
    unfit = parse_train_commands(toy_document | {"model": {"layers": layers}})
    with pytest.raises(BadInputError, match=r"candidates: none of them can be built .* model.layers.1: Linear"):
        recommend(toy_document, history, candidates=[unfit])
    found = recommend(toy_document, history, candidates=[unfit, parse_train_commands(toy_document)])
    assert len(found) == 1
    assert "the candidate colours cannot be built for these pictures and is left out" in caplog.text


def test_a_space_of_which_nothing_fits_the_pictures_is_refused(
    toy_document: dict[str, Any], history: pd.DataFrame
) -> None:
    # Pictures of 8 pixels have no room for such a kernel.
    convolution = {"name": "Conv2d", "in_channels": 3, "out_channels": 4, "kernel_size": 2}
    layers = [convolution, *toy_document["model"]["layers"]]
    space = {"model.layers.0.kernel_size": {"low": 50, "high": 60}}
    with pytest.raises(
        BadInputError, match=r"space: none of .* trainings drawn from it can be built for these pictures"
    ):
        recommend(toy_document | {"model": {"layers": layers}, "space": space}, history)


def test_attempts_on_the_task_itself_count_and_are_not_proposed_again(
    toy_document: dict[str, Any], history: pd.DataFrame, digest: str
) -> None:
    first = recommend(toy_document, history, n=3)
    rows = []
    for number, one in enumerate(first):
        params = {f"optimizer.{key}": value for key, value in one.commands.optimizer.items()}
        source = history[history["run_id"] == one.evidence[0].run_id].iloc[0].to_dict()
        rows.append(
            source
            | params
            | {"run_id": f"own-{number}", "task": "colours", "status": "Diverged", "accuracy": np.nan}
            | {"tags.mlmeta.task_digest": digest, "batch_size": one.commands.batch_size}
        )
    second = recommend(toy_document, join(history, pd.DataFrame(rows)), n=3)
    assert "and 3 on this task" in second[0].reason
    assert trainings(second)[0] != trainings(first)[0]


def test_of_many_tasks_the_nearest_are_learnt_from(
    toy_document: dict[str, Any], history: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlmeta.tuning.new_task.MOST_TASKS", 3)
    (one,) = recommend(toy_document, history, n=1)
    assert "by 192 attempts on 3 other tasks" in one.reason
    assert len({evidence.task for evidence in one.evidence}) <= 3


def test_an_attempt_that_was_not_tested_is_no_failure(
    toy_document: dict[str, Any], history: pd.DataFrame, digest: str
) -> None:
    best = history[history["accuracy"] == history["accuracy"].max()].head(1)
    own = best.assign(**{"run_id": "own", "accuracy": np.nan, "tags.mlmeta.task_digest": digest})
    before, after = (recommend(toy_document, table, n=1)[0] for table in (history, join(history, own)))
    assert after.score_mean == pytest.approx(before.score_mean, abs=0.02)


@pytest.mark.parametrize("n_past", [1, 2, 5])
def test_a_history_of_next_to_nothing_is_enough(
    toy_document: dict[str, Any], history: pd.DataFrame, n_past: int
) -> None:
    assert len(recommend(toy_document, history.iloc[:n_past], n=3)) == 3


def test_attempts_of_which_all_failed_leave_the_defaults(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    assert len(recommend(toy_document, history.assign(status="Failed", accuracy=np.nan), n=3)) == 3


@pytest.mark.parametrize("n_past", [1, 6])
def test_a_first_attempt_that_failed_is_no_hindrance(
    toy_document: dict[str, Any], history: pd.DataFrame, n_past: int, caplog: pytest.LogCaptureFixture
) -> None:
    # Nothing has ever been tested: the table has no such column.
    failed = history.iloc[:n_past].drop(columns=["accuracy", "test_accuracy"], errors="ignore").assign(status="Failed")
    assert len(recommend(toy_document, failed, n=3)) == 3
    assert f"none of {n_past} past attempts has the metric 'accuracy' to learn from" in caplog.text
    with pytest.raises(BadInputError, match="no attempt has the metric 'macro_f1'"):
        recommend(toy_document, failed, metric="macro_f1")


def test_attempts_on_the_task_itself_are_the_first_evidence(
    toy_document: dict[str, Any], history: pd.DataFrame, digest: str
) -> None:
    own = history[history["task"] == "digits-0"].head(20)
    own = own.assign(**{"task": "colours", "tags.mlmeta.task_digest": digest, "model_name": "own-" + own["model_name"]})
    found = recommend(toy_document, join(history, own), n=3)
    for one in found:
        assert [evidence.task == "colours" for evidence in one.evidence] == [True, False, False]
        first = one.evidence[0]
        assert (first.distance, first.score) == (0.0, own.set_index("model_name")["accuracy"][first.model_name])
        assert f"{first.model_name} on colours (distance 0.00)" in one.reason
    assert not any("new task" in one.reason for one in found)


def test_attempts_that_were_pruned_do_not_make_a_training_seem_short(
    toy_document: dict[str, Any], history: pd.DataFrame
) -> None:
    pruned = history.assign(status=[*["Pruned"] * 3, "Complete"] * 208)
    pruned["duration_s"] = pruned["duration_s"].mask(pruned["status"] == "Pruned", 1e-6)
    whole, half = (recommend(toy_document, table, n=1)[0].seconds for table in (history, pruned))
    assert half > whole / 20


def test_attempts_without_meta_features_are_a_history_too(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    plain = history.drop(columns=[name for name in history.columns if name.startswith("tags.mlmeta.task")])
    assert len(recommend(toy_document, plain, n=2)) == 2


# The command line.


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


def test_the_command_writes_files_that_check_out(
    store: str, toy_document: dict[str, Any], write_json: Any, tmp_path: Path
) -> None:
    toy_document["data"]["path"] = os.path.relpath(toy_document["data"]["path"], tmp_path)
    config = write_json(toy_document)
    result = run("recommend", str(config), "-n", "2", "--write", str(tmp_path / "next" / "round"))
    assert result.exit_code == 0, result.output
    files = sorted((tmp_path / "next" / "round").iterdir())
    assert [file.name for file in files] == ["colours-1.json", "colours-2.json"]
    assert run("check", str(files[0])).exit_code == 0
    again = run("recommend", str(config), "--write", str(tmp_path / "next" / "round"))
    assert (again.exit_code, "is there already" in again.output) == (2, True)


def test_the_table_can_be_read_by_programs(store: str, toy_document: dict[str, Any], write_json: Any) -> None:
    result = run("recommend", str(write_json(toy_document)), "--format", "json", "-n", "2")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["rank"] for row in rows] == [1, 2]
    assert {"expected", "std", "seconds", "optimizer", "lr", "batch_size", "model", "evidence"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json"], "there is no such file"),
        (["--candidate", "missing.json"], "there is no such file"),
        (["-n", "0"], "0 is not in the range"),
    ],
)
def test_bad_input_is_one_message(
    store: str, toy_document: dict[str, Any], write_json: Any, arguments: list[str], message: str
) -> None:
    config = [] if arguments[0] == "missing.json" else [str(write_json(toy_document))]
    result = run("recommend", *config, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_recommendations_stay_in_the_space_of_the_commands(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    rates = {"optimizer.lr": {"low": 0.02, "high": 0.05}, "optimizer.name": {"choices": ["AdamW"]}}
    for past in (history, history.iloc[:0]):
        given = toy_document | {"optimizer": {"name": "AdamW", "lr": 0.02}, "space": rates}
        found = recommend(given, past, n=4)
        assert len(found) == 4
        assert len(set(trainings(found))) == 4
        for one in found:
            assert one.commands.optimizer["name"] == "AdamW"
            assert 0.02 <= one.commands.optimizer["lr"] <= 0.05
            assert one.commands.space is None


def test_the_commands_own_model_is_varied_too(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    space = {"model.layers.1.out_features": {"low": 4, "high": 64}}
    found = recommend(toy_document | {"space": space}, history, n=5)
    widths = [one.commands.model["layers"][1]["out_features"] for one in found]
    assert len(set(widths)) > 1
    assert all(4 <= width <= 64 for width in widths)


def test_a_candidate_is_trained_as_it_says(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    document = {**toy_document, "seed": 5, "keep": "last", "n_epoch": 3}
    few, many = (parse_train_commands({**document, "model_name": f"for {n}", "n_epoch": n}) for n in (3, 30))
    found = recommend({**toy_document, "n_epoch": 7}, history, candidates=[few, many])
    assert {one.commands.n_epoch for one in found} == {3, 30}
    assert {(one.commands.seed, one.commands.keep) for one in found} == {(5, "last")}
    assert all(one.commands.data == parse_train_commands(toy_document).data for one in found)


def test_named_weights_keep_the_model_that_they_fit(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    commands = parse_train_commands(toy_document)
    found = recommend({**toy_document, "initial_weights": "earlier"}, history, n=10)
    assert len(found) == 10
    assert all(one.commands.model == commands.model for one in found)
    assert {one.commands.initial_weights for one in found} == {"earlier"}


def test_attempts_alone_on_their_tasks_teach(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    lone = history.groupby("task", as_index=False).head(1).reset_index(drop=True)
    lone["optimizer.name"] = "Adagrad"
    lone["accuracy"] = 0.99
    found = recommend(toy_document, lone, n=100)
    assert "Adagrad" in {one.commands.optimizer["name"] for one in found}
    assert any(one.evidence for one in found)


def test_rates_at_which_trainings_diverged_are_not_drawn(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    document = {**toy_document, "optimizer": {"name": "Adam", "lr": 0.001}}
    bad = history.head(8).assign(**{"status": "Diverged", "optimizer.name": "Adam", "optimizer.lr": 1e15})
    training = take_training(parse_train_commands(document))
    assert derive_space(training, bad)["optimizer.lr"] == derive_space(training, history.head(0))["optimizer.lr"]


def test_what_it_is_taken_from_is_the_first_evidence(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    for one in recommend(toy_document, history, n=5):
        if one.reason.startswith("From ") and " on " in one.reason and "default list" not in one.reason:
            assert one.reason.startswith(f"From {one.evidence[0].model_name}"), one.reason


@pytest.mark.parametrize("options", [{"n": 0}, {"n": -1}, {"seed": -1}])
def test_numbers_that_cannot_be_meant_are_refused(
    toy_document: dict[str, Any], history: pd.DataFrame, options: dict[str, int]
) -> None:
    with pytest.raises(BadInputError, match="n must be 1 or above"):
        recommend(toy_document, history, **options)


def test_of_no_candidates_none_is_chosen_and_an_empty_table_is_no_history(toy_document: dict[str, Any]) -> None:
    assert recommend(toy_document, pd.DataFrame(), candidates=[]) == []
    assert recommend(toy_document, pd.DataFrame(), n=2)


def test_a_long_name_is_cut_for_its_number(toy_document: dict[str, Any], history: pd.DataFrame) -> None:
    (found,) = recommend({**toy_document, "model_name": "ü" * 100}, history, n=1)
    assert found.commands.model_name == "ü" * 99 + "-1"
    assert number_name("short", 12) == "short-12"


def test_what_differs_is_told(store: str, toy_document: dict[str, Any], tmp_path: Path) -> None:
    del store
    other = {**toy_document, "optimizer": {**toy_document["optimizer"], "weight_decay": 0.125}, "n_epoch": 9}
    for name, document in (("given", toy_document), ("other", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    given, candidate = (str(tmp_path / f"{name}.json") for name in ("given", "other"))
    done = run("recommend", given, "--candidate", candidate, "--format", "json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["differs"] == "optimizer.weight_decay 0.125, n_epoch 9"


def test_written_paths_hold_through_a_linked_folder(store: str, toy_document: dict[str, Any], tmp_path: Path) -> None:
    del store
    for folder in ("deep/down", "others"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    pictures = Path(toy_document["data"]["path"])
    given = toy_document | {
        "data": {"source": "folder", "path": os.path.relpath(pictures, tmp_path)},
        "image_ops": [{"resize": {"size": [32, 32]}}],
    }
    other = given | {"model": {"name": "squeezenet1_1", "weights": "w.pt"}}
    for name, document in (("given.json", given), ("others/other.json", other)):
        (tmp_path / name).write_text(json.dumps(document))
    candidate = str(tmp_path / "others" / "other.json")
    done = run("recommend", str(tmp_path / "given.json"), "--candidate", candidate, "--write", str(tmp_path / "link"))
    assert done.exit_code == 0, done.output
    (file,) = (tmp_path / "link").iterdir()
    written = json.loads(file.read_text(encoding="utf-8"))
    assert (file.parent / written["data"]["path"]).resolve() == pictures.resolve()
    assert (file.parent / written["model"]["weights"]).resolve() == tmp_path / "others" / "w.pt"
