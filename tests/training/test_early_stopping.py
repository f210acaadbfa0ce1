"""Trainings that past attempts end early: pruned by each rule, recorded, gone on with; and those that go on."""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import MemoryRecorder

from mlmeta.commands.documents import CurveRule, MedianRule, StopRule, TopFractionRule, TrainCommands
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import CommandsError
from mlmeta.training.checkpoints import MOST_ASIDE, Checkpoint, list_checkpoints
from mlmeta.training.early_stopping import Watch
from mlmeta.training.learning_curves import PastCurve
from mlmeta.training.loop import train_attempt
from mlmeta.training.preparation import prepare_training
from mlmeta.training.progress import describe_epoch

RULES = [{"rule": "median"}, {"rule": "top_fraction"}, {"rule": "curve"}]
BAD = {"name": "SGD", "lr": 1e-7}
N_EPOCH = 8


def make_commands(colours: Path, name: str, **changes: Any) -> TrainCommands:
    layers = [{"name": "Flatten"}, {"name": "Linear", "in_features": "auto", "out_features": 16}, {"name": "ReLU"},
              {"name": "Linear", "in_features": "auto", "out_features": "n_labels"}]  # fmt: skip
    document = {
        "model_name": name,
        "label_names": ["red", "green", "blue"],
        "data": {"source": "folder", "path": str(colours)},
        "model": {"layers": layers},
        "optimizer": {"name": "Adam", "lr": 0.01},
        "scheduler": None,
        "batch_size": 8,
        "n_epoch": N_EPOCH,
        "validation": 0.4,
    }
    return parse_train_commands({**document, **changes})


@pytest.fixture(scope="module")
def past_store(store_template: Path, tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Iterator[Path]:
    """A store with seven attempts on the colours, of which two learnt nothing."""
    import mlflow

    from mlmeta.train import run_attempt

    folder = tmp_path_factory.mktemp("past")
    file = folder / "mlflow.db"
    shutil.copy(store_template, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        mlflow.set_tracking_uri(f"sqlite:///{file}")
        for seed, lr in enumerate((0.001, 0.002, 0.003, 0.004, 0.005, 0, 0)):
            optimizer = {"name": "Adam", "lr": lr} if lr else BAD
            run_attempt(make_commands(colours, "past", optimizer=optimizer, seed=seed), base_dir=Path(), test=False)
        whole = folder / "whole.db"
        with contextlib.closing(sqlite3.connect(file)) as connection:
            # The newest rows lie in a second file beside it.
            connection.execute("VACUUM INTO ?", (str(whole),))
        yield whole


@pytest.fixture
def history(past_store: Path, store: str) -> str:
    """A fresh copy of that store, in use."""
    shutil.copy(past_store, store.removeprefix("sqlite:///"))
    return store


def get_run(run_id: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient().get_run(run_id)


def get_steps(run_id: str, metric: str) -> list[int]:
    from mlflow import MlflowClient

    return [point.step for point in MlflowClient().get_metric_history(run_id, metric)]


class TestTrainings:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rule"])
    def test_each_rule_prunes_a_training_that_does_not_learn(
        self, history: str, colours: Path, rule: dict[str, Any]
    ) -> None:
        from mlmeta.train import run_attempt

        commands = make_commands(colours, "bad", optimizer=BAD, stop=rule)
        run_id, trained, metrics = run_attempt(commands, base_dir=Path())
        run = get_run(run_id)
        assert 2 <= len(trained.curve) < N_EPOCH
        assert metrics == {}
        assert (run.data.tags["mlmeta.status"], run.info.status) == ("Pruned", "FINISHED")
        assert run.data.tags["mlmeta.stop_reason"] == trained.stopped
        assert "past attempts" in trained.stopped or "may go on" in trained.stopped
        assert run.data.tags["mlflow.note.content"].startswith("**Pruned**: val_accuracy")
        assert "accuracy" not in run.data.metrics
        assert "mlmeta.weights_sha256" in run.data.tags
        assert run.data.params["stop.rule"] == rule["rule"]

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["rule"])
    def test_a_good_training_goes_on_to_its_end(self, history: str, colours: Path, rule: dict[str, Any]) -> None:
        from mlmeta.train import run_attempt

        run_id, trained, metrics = run_attempt(make_commands(colours, "good", stop=rule), base_dir=Path())
        assert (len(trained.curve), trained.stopped) == (N_EPOCH, "")
        assert "accuracy" in metrics
        assert get_run(run_id).data.tags["mlmeta.status"] == "Complete"
        assert list_checkpoints() == []

    def test_the_expected_end_is_recorded_by_epoch_and_shown(
        self, history: str, colours: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from mlmeta.train import run_attempt

        run_id, trained, _ = run_attempt(make_commands(colours, "seen"), base_dir=Path(), test=False)
        assert get_steps(run_id, "expected_accuracy") == list(range(1, N_EPOCH))
        assert get_steps(run_id, "expected_accuracy_std") == list(range(1, N_EPOCH))
        assert all(m["val_accuracy"] <= m["expected_accuracy"] <= 1 for m in trained.curve[:-1])
        for metrics in trained.curve[:-1]:
            mean, low, high = (metrics[f"expected_accuracy{suffix}"] for suffix in ("", "_low", "_high"))
            assert low <= mean <= high <= 1
            assert high - low >= 0.05
        lines = [line for line in capsys.readouterr().err.splitlines() if "train_loss" in line]
        assert describe_epoch(trained.curve[0]) in lines[0]
        assert f"expected {trained.curve[0]['expected_accuracy']:.1%} (" in lines[0]
        assert "expected" not in lines[N_EPOCH - 1]

    def test_without_past_attempts_nothing_is_predicted_and_one_line_says_why_nothing_stops(
        self, store: str, colours: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from mlmeta.train import run_attempt

        commands = make_commands(colours, "first", optimizer=BAD, stop={"rule": "median"})
        _, trained, _ = run_attempt(commands, base_dir=Path(), test=False)
        error = capsys.readouterr().err
        assert len(trained.curve) == N_EPOCH
        assert "expected_accuracy" not in trained.curve[0]
        assert error.count("val_accuracy by epoch; there are none: nothing stops") == 1

    def test_of_fewer_attempts_than_asked_for_nothing_stops(self, history: str, colours: Path) -> None:
        from mlmeta.train import run_attempt

        commands = make_commands(colours, "bad", optimizer=BAD, stop={"rule": "median", "min_attempts": 8})
        assert len(run_attempt(commands, base_dir=Path(), test=False)[1].curve) == N_EPOCH

    def test_nothing_stops_before_its_share_of_the_budget(self, history: str, colours: Path) -> None:
        from mlmeta.train import run_attempt

        commands = make_commands(colours, "bad", optimizer=BAD, stop={"rule": "median", "after": 0.6})
        assert len(run_attempt(commands, base_dir=Path(), test=False)[1].curve) == 5

    def test_a_resumed_one_is_stopped_no_more_and_has_the_curve_of_a_whole_training(
        self, history: str, colours: Path
    ) -> None:
        from mlmeta.train import resume_attempt, run_attempt

        pruned = make_commands(colours, "bad", optimizer=BAD, stop={"rule": "median"})
        run_id, first, _ = run_attempt(pruned, base_dir=Path())
        assert len(first.curve) == 2
        resumed_id, trained, metrics = resume_attempt("bad")
        whole = train_attempt(prepare_training(pruned, base_dir=Path()), MemoryRecorder())
        run = get_run(run_id)
        assert resumed_id == run_id
        assert trained.train_losses == whole.train_losses
        assert get_steps(run_id, "train_loss") == list(range(1, N_EPOCH + 1))
        assert "accuracy" in metrics
        assert (trained.stopped, run.data.tags["mlmeta.status"]) == ("", "Complete")
        assert "mlmeta.stop_reason" not in run.data.tags
        assert Checkpoint(run_id).load() is None

    def test_one_that_was_pruned_is_a_lesson_for_the_next(self, history: str, colours: Path) -> None:
        from mlmeta.train import run_attempt
        from mlmeta.training.learning_curves import load_past_curves

        commands = make_commands(colours, "bad", optimizer=BAD, stop={"rule": "median"})
        run_id, *_ = run_attempt(commands, base_dir=Path())
        digest = get_run(run_id).data.tags["mlmeta.task_digest"]
        past = load_past_curves(digest)
        assert sorted(curve.end for curve in past) == ["finished"] * 7 + ["stopped"]
        assert {(curve.task, curve.n_labels, curve.n_epoch) for curve in past} == {(digest, 3, N_EPOCH)}
        assert len(load_past_curves(digest, without=run_id)) == 7

    def test_the_command_says_in_one_line_why_it_stopped_and_succeeds(
        self, history: str, colours: Path, write_json: Any
    ) -> None:
        from mlmeta.cli import cli

        document = make_commands(colours, "bad", optimizer=BAD, stop={"rule": "median"}).document()
        result = CliRunner().invoke(cli, ["train", str(write_json(document))])
        assert result.exit_code == 0
        assert result.stdout.count("stopped early, not tested: val_accuracy") == 1
        assert "mlmeta train --resume" in result.stdout

    def test_recover_keeps_what_a_pruned_attempt_can_go_on_from(self, history: str, colours: Path) -> None:
        from mlmeta.cli import cli
        from mlmeta.train import run_attempt

        commands = make_commands(colours, "bad", optimizer=BAD, stop={"rule": "median"})
        run_id, *_ = run_attempt(commands, base_dir=Path())
        assert CliRunner().invoke(cli, ["recover"]).output == "no attempt was left behind\n"
        assert Checkpoint(run_id).load() is not None

    def test_a_loss_like_that_of_guessing_is_told_once_and_never_ends_a_training(
        self, store: str, colours: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from mlmeta.train import run_attempt

        softmax = {"name": "Softmax", "dim": 1}
        layers = [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": "n_labels"}, *[softmax] * 3]
        commands = make_commands(colours, "still", model={"layers": layers}, optimizer=BAD)
        _, trained, _ = run_attempt(commands, base_dir=Path(), test=False)
        assert trained.train_losses == pytest.approx([math.log(3)] * N_EPOCH, rel=0.01)
        lines = capsys.readouterr().err.splitlines()
        told = [index for index, line in enumerate(lines) if "learns nothing so far" in line]
        assert len(trained.curve) == N_EPOCH
        assert len(told) == 1
        assert "epoch 2/8" in lines[told[0] + 1]


class TestImportedCurves:
    def test_curves_of_test_accuracy_teach_for_other_tasks_only(self, store: str) -> None:
        from mlflow import MlflowClient

        from mlmeta.training.learning_curves import load_past_curves

        client = MlflowClient()
        for task in ("a", "b"):
            tags = {"mlmeta.kind": "attempt", "mlmeta.status": "Complete", "mlmeta.task_digest": task}
            run_id = client.create_run("0", tags=tags).info.run_id
            for step, value in enumerate((0.2, 0.4, 0.6), start=1):
                client.log_metric(run_id, "test_accuracy", value, step=step)
            client.set_terminated(run_id)
        past = load_past_curves("a")
        assert [(curve.task, curve.values.tolist(), curve.n_epoch) for curve in past] == [("b", [0.2, 0.4, 0.6], 3)]

    def test_what_is_no_accuracy_or_no_epoch_is_left_out(self, store: str) -> None:
        from mlflow import MlflowClient

        from mlmeta.training.learning_curves import load_past_curves

        client = MlflowClient()
        for points in ({1: 0.5, 2: 1e308, 10**12: 0.9}, {1: 85.0, 2: 90.0}, {0: 0.5}):
            tags = {"mlmeta.kind": "attempt", "mlmeta.status": "Complete", "mlmeta.task_digest": "b"}
            run_id = client.create_run("0", tags=tags).info.run_id
            for step, value in points.items():
                client.log_metric(run_id, "val_accuracy", value, step=step)
        assert [curve.values.tolist() for curve in load_past_curves("a")] == [[0.5]]

    def test_a_store_that_cannot_be_read_stops_nothing_and_says_so(
        self, store: str, colours: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import mlflow

        from mlmeta.training.early_stopping import read_past

        mlflow.set_tracking_uri("postgresql://nobody@127.0.0.1:1/none")
        commands = make_commands(colours, "a", stop={"rule": "median"})
        assert read_past(commands, task="a", run_id="", rule=commands.stop) == []
        assert read_past(commands, task="a", run_id="", rule=None) == []
        assert capsys.readouterr().err.count("past attempts cannot be read, so nothing stops") == 1


def watch(rule: StopRule | None, bests: list[float], *, n_epoch: int = 8) -> Watch:
    past = [PastCurve(np.linspace(best / 2, best, n_epoch), n_epoch, "a", 3) for best in bests]
    return Watch(past, task="a", n_labels=3, n_epoch=n_epoch, rule=rule)


class TestRules:
    def test_the_median_is_of_the_best_values_by_that_epoch(self) -> None:
        watched = watch(MedianRule(rule="median"), [0.2, 0.4, 0.6, 0.8, 1.0])
        median = 0.3 + 0.3 / 7
        assert watched.decide([0.0, median - 0.01], None).endswith(
            f"is below {median:.1%}, the median of 5 past attempts"
        )
        assert watched.decide([median + 0.01, 0.0], None) == ""

    def test_the_best_fraction_goes_on(self) -> None:
        watched = watch(TopFractionRule(rule="top_fraction", fraction=0.4), [0.2, 0.4, 0.6, 0.8])
        assert watched.decide([0.0, 0.5], None) == ""  # too few attempts
        watched = watch(TopFractionRule(rule="top_fraction", fraction=0.4), [0.2, 0.4, 0.6, 0.8, 1.0])
        second, third = 0.4 + 0.4 / 7 + 0.01, 0.3 + 0.3 / 7 + 0.01
        assert watched.decide([0.0, second], None) == ""
        assert watched.decide([0.0, third], None).endswith("ranks 3 of 6 attempts, of which 2 may go on")

    def test_the_curve_rule_stops_by_the_chance_to_become_the_best(self) -> None:
        bests = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
        values = [0.1, 0.11, 0.12]
        reasons = []
        for probability in (0.0, 1.0):
            watched = watch(CurveRule(rule="curve", probability=probability), bests)
            reasons.append(watched.decide(values, watched.forecast(values)))
        assert reasons[0] == ""
        assert "the chance to exceed 75.0%, the best of 6 past attempts, is" in reasons[1]

    @pytest.mark.parametrize(
        ("rule", "n", "words"),
        [
            (
                MedianRule(rule="median"),
                4,
                "needs 5 past attempts on this task with val_accuracy by epoch; there are 4",
            ),
            (
                CurveRule(rule="curve"),
                0,
                "needs 1 past attempt on this task with val_accuracy by epoch; there are ",
            ),
            (CurveRule(rule="curve"), 1, "needs 5 past learning curves on any tasks; there is 1:"),
        ],
    )
    def test_a_rule_says_what_it_lacks(self, rule: StopRule, n: int, words: str) -> None:
        assert words in watch(rule, [0.5] * n).explain_lack()
        assert watch(rule, [0.5] * 5).explain_lack() == ""

    @pytest.mark.parametrize("rule", [MedianRule(rule="median"), TopFractionRule(rule="top_fraction")])
    def test_nothing_stops_at_the_last_epoch_or_before_the_first_quarter(self, rule: StopRule) -> None:
        watched = watch(rule, [0.9] * 6)
        assert watched.decide([0.0], None) == ""
        assert watched.decide([0.0] * 2, None) != ""
        assert watched.decide([0.0] * 7, None) != ""
        assert watched.decide([0.0] * 8, None) == ""

    def test_long_trainings_are_predicted_a_hundred_times_at_most(self) -> None:
        watched = watch(None, [0.5] * 6, n_epoch=1000)
        assert sum(watched.forecast([0.2] * epoch) is not None for epoch in range(1, 1000)) == 99


class TestCheckpointsAside:
    def test_only_the_newest_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "state"))
        for index in range(MOST_ASIDE + 2):
            checkpoint = Checkpoint(f"run{index:02}")
            checkpoint.save({"epoch": index})
            checkpoint.put_aside()
        assert list_checkpoints() == []
        assert len(list((tmp_path / "state" / "checkpoints" / "pruned").iterdir())) == MOST_ASIDE
        assert Checkpoint("run21").load() == {"epoch": 21}
        Checkpoint("run21").remove()
        assert Checkpoint("run21").load() is None


class TestProgress:
    def test_a_terminal_shows_the_accuracies_and_a_log_everything(self) -> None:
        metrics = {"train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.6, "epoch_seconds": 0.5,
                   "expected_accuracy": 0.74, "expected_accuracy_std": 0.1,
                   "expected_accuracy_low": 0.552, "expected_accuracy_high": 0.905}  # fmt: skip
        expected = "val_accuracy 60.0%  expected 74.0% (55.2% to 90.5%)"
        assert describe_epoch(metrics, short=True) == expected
        assert describe_epoch(metrics) == f"train_loss 1.0000  val_loss 2.0000  {expected}  0.5 s"
        assert describe_epoch({"train_loss": 1.0, "epoch_seconds": 0.5}, short=True) == "train_loss 1.0000  0.5 s"


class TestFaults:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"stop": {"rule": "mediam"}}, "stop.rule: must be one of median, top_fraction, curve; got 'mediam'. Did"),
            ({"stop": {"after": 0.5}}, "stop.rule: is required and missing; must be one of median, top_fraction, cu"),
            ({"stop": {"rule": "median", "min_attempt": 3}}, "Did you mean 'min_attempts'?"),
            (
                {"stop": {"rule": "curve", "fraction": 0.2}},
                "stop.fraction: unknown key; allowed are: rule, after,",
            ),
            ({"stop": {"rule": "curve", "probability": 2}}, "stop.probability: must be 1 or below; got 2"),
            ({"stop": {"rule": "median", "after": "half"}}, "stop.after: must be a number; got 'half'"),
            ({"stop": {"rule": "median"}, "validation": 0}, "stop: goes by validation pictures: make validation more"),
        ],
    )
    def test_each_is_told_in_a_sentence(self, colours: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(CommandsError) as caught:
            make_commands(colours, "faulty", **changes)
        assert message in str(caught.value)

    def test_without_a_rule_no_validation_is_needed(self, colours: Path) -> None:
        assert make_commands(colours, "plain", stop=None, validation=0).stop is None


class TestTheLoop:
    def test_a_sentence_ends_it_but_not_after_the_last_epoch(self, colours: Path) -> None:
        asked = []

        def stop(trained: Any) -> str | None:
            asked.append(len(trained.curve))
            return "enough" if len(trained.curve) == 3 else None

        prepared = prepare_training(make_commands(colours, "a"), base_dir=Path())
        trained = train_attempt(prepared, MemoryRecorder(), stop=stop)
        assert (asked, trained.stopped, len(trained.curve)) == ([1, 2, 3], "enough", 3)
        assert trained.kept_epoch in (1, 2, 3)

    def test_until_an_epoch_and_on_from_there_is_the_whole_training(self, colours: Path) -> None:
        commands = make_commands(colours, "a")
        whole = train_attempt(prepare_training(commands, base_dir=Path()), MemoryRecorder())
        prepared = prepare_training(commands, base_dir=Path())
        trained = train_attempt(prepared, MemoryRecorder(), until_epoch=3)
        assert len(trained.curve) == 3
        recorder = MemoryRecorder()
        trained = train_attempt(prepared, recorder, trained=trained, until_epoch=99)
        assert trained.train_losses == whole.train_losses
        assert [step for step, _ in recorder.metrics] == [4, 5, 6, 7, 8]
