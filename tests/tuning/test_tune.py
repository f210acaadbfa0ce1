"""Tuning: rounds that are cut, a state that lies in MLflow alone, an incumbent by validation, and what it cost."""

from __future__ import annotations

import io
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlmeta.cli import cli
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import BadInputError, NotFoundError
from mlmeta.tuning.cli import parse_duration
from mlmeta.tuning.progress import TuningProgress
from mlmeta.tuning.recording import TunedAttempt, list_attempts
from mlmeta.tuning.tune import Tuned, TuningSettings, choose_incumbent, rank_attempts, resume_tuning, tune_task

HOT = {"name": "SGD", "lr": 1e30}
DIVERGING = {"optimizer": HOT, "space": {"optimizer": {"choices": [HOT]}, "batch_size": {"low": 4, "high": 9}}}


def tune(document: dict[str, Any], **settings: Any) -> Tuned:
    commands = parse_train_commands(document | {"n_epoch": 3})
    return tune_task(commands, base_dir=Path(), settings=TuningSettings(**settings))


def made(name: str, accuracy: float, loss: float = 1.0, status: str = "Trained", number: int = 1) -> TunedAttempt:
    return TunedAttempt(f"id-{name}", name, status, number, 1, accuracy, loss)


def test_attempts_are_ranked_by_validation_and_ties_by_loss() -> None:
    attempts = [made("a", 0.5), made("b", math.nan), made("c", 0.7, 0.9), made("d", 0.7, 0.8)]
    assert [one.name for one in rank_attempts(attempts)] == ["d", "c", "a", "b"]


def test_the_incumbent_is_finished_if_any_is() -> None:
    pruned = made("pruned", 0.9, status="Pruned")
    assert choose_incumbent([pruned, made("done", 0.8, status="Complete")]) == made("done", 0.8, status="Complete")
    assert choose_incumbent([pruned]) == pruned
    assert choose_incumbent([made("failed", math.nan, status="Failed")]) is None


def test_rounds_are_cut_and_the_best_is_finished_and_tested(toy_document: dict[str, Any], store: str) -> None:
    tuned = tune(toy_document, attempts=5, round_size=3, keep=0.3)
    rounds = [attempt.round for attempt in tuned.attempts]
    assert rounds == [1, 1, 1, 2, 2]
    for number in (1, 2):
        members = [attempt for attempt in tuned.attempts if attempt.round == number]
        finished = [attempt for attempt in members if attempt.status == "Trained" or attempt.status == "Complete"]
        assert len(finished) == 1
        assert finished[0].n_epochs == 3
        assert all(one.n_epochs == 1 and one.status == "Pruned" for one in members if one not in finished)
    assert tuned.n_epochs == 3 * 1 + 2 * 3
    best = tuned.incumbent
    assert best is not None
    assert best.val_accuracy == max(one.val_accuracy for one in tuned.attempts if one.n_epochs == 3)
    assert tuned.metrics["accuracy"] == MlflowClient().get_run(best.run_id).data.metrics["accuracy"]
    others = [one for one in tuned.attempts if one.run_id != best.run_id]
    assert not any("accuracy" in MlflowClient().get_run(one.run_id).data.metrics for one in others)


def test_what_stands_in_mlflow(toy_document: dict[str, Any], store: str) -> None:
    tuned = tune(toy_document, attempts=2, round_size=2, seed=3)
    client = MlflowClient()
    parent = client.get_run(tuned.run_id)
    assert (parent.info.run_name, parent.info.status) == ("tuning of colours", "FINISHED")
    assert parent.data.tags["mlmeta.kind"] == "tuning"
    assert parent.data.params["tuning.seed"] == "3"
    assert "Best: colours-" in parent.data.tags["mlflow.note.content"]
    steps = [metric.step for metric in client.get_metric_history(tuned.run_id, "incumbent_val_accuracy")]
    assert sorted(set(steps)) == [1, 2]
    best = tuned.incumbent
    assert best is not None
    assert parent.data.tags["mlmeta.incumbent"] == best.name
    assert parent.data.tags["mlmeta.incumbent_run_id"] == best.run_id
    metrics = parent.data.metrics
    assert (metrics["tuning_attempts"], metrics["tuning_epochs"]) == (2, tuned.n_epochs)
    assert metrics["incumbent_val_accuracy"] == best.val_accuracy
    assert metrics["incumbent_accuracy"] == tuned.metrics["accuracy"]
    assert 0 < metrics["tuning_seconds"] <= tuned.seconds
    # Tested by now.
    assert f"| {best.name} | 1 | 3 | {best.val_accuracy:.1%} | Complete |" in parent.data.tags["mlflow.note.content"]
    pruned = next(one for one in tuned.attempts if one.status == "Pruned")
    child = client.get_run(pruned.run_id)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == tuned.run_id
    assert child.data.tags["mlmeta.stop_reason"].startswith("place 2 of 2 in round 1 after 1 epoch")
    document = json.loads(Path(client.download_artifacts(pruned.run_id, "attempt.json")).read_text(encoding="utf-8"))
    assert (document["status"], document["n_epoch"]) == ("Pruned", 1)


class BrokenOff(TuningProgress):
    """Breaks off where the third epoch would be shown, as Ctrl-C does."""

    n_epochs = 0

    def say(self, line: str) -> None:
        self.n_epochs += ": epoch " in line
        if self.n_epochs == 3:
            raise KeyboardInterrupt


def break_off(document: dict[str, Any]) -> str:
    """Begin a tuning that is stopped with two attempts begun, of which the second has not ended; return its run."""
    commands = parse_train_commands(document | {"n_epoch": 3})
    settings = TuningSettings(attempts=4, round_size=2, keep=0.5)
    with pytest.raises(KeyboardInterrupt):
        tune_task(commands, base_dir=Path(), settings=settings, progress=BrokenOff(commands))
    (parent,) = MlflowClient().search_runs(["0"], "tags.`mlmeta.kind` = 'tuning'")
    return str(parent.info.run_id)


def move_to_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")


def read_facts(run_id: str) -> tuple[str, str, dict[str, str], dict[str, float]]:
    run = MlflowClient().get_run(run_id)
    return run.info.status, run.data.tags["mlmeta.status"], run.data.tags, run.data.metrics


def test_on_another_machine_what_has_its_checkpoint_elsewhere_is_left_as_it_is(
    toy_document: dict[str, Any], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run_id = break_off(toy_document)
    before = {one.run_id: read_facts(one.run_id) for one in list_attempts(run_id) if one.status == "Interrupted"}
    assert before
    move_to_another_machine(tmp_path, monkeypatch)
    capsys.readouterr()
    tuned = resume_tuning(run_id)
    assert {one: read_facts(one) for one in before} == before
    assert all(one.status in ("Trained", "Complete", "Pruned") or one.run_id in before for one in tuned.attempts)
    assert len(tuned.attempts) == 4
    said = capsys.readouterr().err
    assert said.count("its checkpoint is not on this machine") == len(before)
    assert "--anew begins it anew" in said


def test_on_another_machine_attempts_are_begun_anew_where_that_is_asked_for(
    toy_document: dict[str, Any], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = break_off(toy_document)
    before = {one.run_id: one for one in list_attempts(run_id) if one.status == "Interrupted"}
    move_to_another_machine(tmp_path, monkeypatch)
    result = CliRunner().invoke(cli, ["tune", "--resume", run_id, "--anew"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    attempts = list_attempts(run_id)
    assert {one.run_id: one for one in attempts if one.run_id in before} == before
    for old in before.values():
        (new,) = [one for one in attempts if one.name == old.name and one.run_id != old.run_id]
        assert new.status in ("Trained", "Complete", "Pruned")
    resume_tuning(run_id, anew=True)
    newest = [one for one in list_attempts(run_id) if one.run_id not in {one.run_id for one in attempts}]
    assert [one.name for one in newest] == [one.name for one in before.values()]
    assert all(one.status in ("Trained", "Complete", "Pruned") for one in newest)


def test_anew_goes_with_resume_only(toy_document: dict[str, Any], write_json: Any) -> None:
    result = CliRunner().invoke(cli, ["tune", str(write_json(toy_document)), "--anew"])
    assert result.exit_code == 2
    assert "--anew goes with --resume only" in result.stderr


def test_a_tuning_that_another_machine_works_on_is_refused_until_it_is_silent(
    toy_document: dict[str, Any], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, client = break_off(toy_document), MlflowClient()
    at_work = list_attempts(run_id)[-1].run_id
    host = client.get_run(at_work).data.tags["mlmeta.host"]
    client.update_run(at_work, status="RUNNING")
    client.set_tag(at_work, "mlmeta.status", "Training")
    client.set_tag(at_work, "mlmeta.heartbeat", str(int(time.time())))
    move_to_another_machine(tmp_path, monkeypatch)
    before = read_facts(at_work)
    for command in (
        ["tune", "--resume", run_id],
        ["tune", "--resume", run_id, "--anew"],
        ["train", "--resume", at_work],
    ):
        result = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert result.exit_code == 2
        assert f"is being worked on by the machine {host}, heard of " in result.stderr
    assert read_facts(at_work) == before
    assert len(list_attempts(run_id)) == 2
    client.set_tag(at_work, "mlmeta.heartbeat", str(int(time.time()) - 7200))
    resume_tuning(run_id)
    assert read_facts(at_work)[:2] == ("KILLED", "Interrupted")


def test_an_attempt_is_not_failed_by_a_machine_that_cannot_go_on_with_it(
    toy_document: dict[str, Any], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stopped, *_) = [one.run_id for one in list_attempts(break_off(toy_document)) if one.status == "Interrupted"]
    before = read_facts(stopped)
    move_to_another_machine(tmp_path, monkeypatch)
    result = CliRunner().invoke(cli, ["train", "--resume", stopped], catch_exceptions=False)
    assert result.exit_code == 2
    assert "this machine has no checkpoint of the attempt" in result.stderr
    assert read_facts(stopped) == before


def test_a_tuning_that_was_stopped_goes_on_where_it_was(toy_document: dict[str, Any], store: str) -> None:
    commands = parse_train_commands(toy_document | {"n_epoch": 3})
    settings = TuningSettings(attempts=4, round_size=2, keep=0.5)
    with pytest.raises(KeyboardInterrupt) as caught:
        tune_task(commands, base_dir=Path(), settings=settings, progress=BrokenOff(commands))
    parent = MlflowClient().search_runs(["0"], "tags.`mlmeta.kind` = 'tuning'")[0]
    assert parent.data.tags["mlmeta.status"] == "Interrupted"
    assert "It cost 2 attempts, 3 epochs" in parent.data.tags["mlflow.note.content"]
    assert caught.value.__notes__ == [f"go on with: mlmeta tune --resume {parent.info.run_id}"]
    spent = parent.data.metrics["tuning_seconds"]
    assert len(list_attempts(parent.info.run_id)) == 2
    tuned = resume_tuning("colours")
    assert tuned.seconds > spent
    assert tuned.run_id == parent.info.run_id
    assert [one.round for one in tuned.attempts] == [1, 1, 2, 2]
    assert sorted(one.n_epochs for one in tuned.attempts) == [1, 1, 3, 3]
    again = resume_tuning(tuned.run_id)
    assert (len(again.attempts), again.metrics["accuracy"]) == (4, tuned.metrics["accuracy"])
    assert again.seconds >= tuned.seconds
    more = resume_tuning(tuned.run_id, changes={"attempts": 6})
    assert len(more.attempts) == 6
    assert MlflowClient().get_run(tuned.run_id).info.status == "FINISHED"


def test_a_killed_attempt_of_a_tuning_is_taken_up(toy_document: dict[str, Any], store: str) -> None:
    tuned = tune(toy_document, attempts=2, round_size=2)
    pruned = next(one for one in tuned.attempts if one.status == "Pruned")
    client = MlflowClient()
    # As a process that was killed in the middle of a training leaves it.
    client.set_tag(pruned.run_id, "mlmeta.status", "Training")
    client.update_run(pruned.run_id, status="RUNNING")
    again = resume_tuning(tuned.run_id)
    assert {one.status for one in again.attempts} <= {"Complete", "Pruned", "Trained"}


def test_an_attempt_that_diverges_is_a_lesson(toy_document: dict[str, Any], store: str) -> None:
    tuned = tune(toy_document | DIVERGING, attempts=2, round_size=2)
    assert {one.status for one in tuned.attempts} == {"Diverged"}
    assert tuned.incumbent is None


def test_a_time_limit_ends_it(toy_document: dict[str, Any], store: str) -> None:
    tuned = tune(toy_document, attempts=None, seconds=1e-9)
    assert tuned.attempts == []


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_optuna_proposes_from_the_space_and_is_told(toy_document: dict[str, Any], store: str, sampler: str) -> None:
    space = {"optimizer.lr": {"low": 0.005, "high": 0.05, "log": True}, "batch_size": {"choices": [8, 16]}}
    tuned = tune(toy_document | {"space": space}, attempts=3, round_size=2, sampler=sampler)
    assert len(tuned.attempts) == 3
    for one in tuned.attempts:
        params = MlflowClient().get_run(one.run_id).data.params
        assert 0.005 <= float(params["optimizer.lr"]) <= 0.05
        assert params["batch_size"] in ("8", "16")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attempts": None}, "a number of attempts, or a time limit"),
        ({"attempts": 0}, "attempts must be above 0; got 0"),
        ({"round_size": 0}, "round_size must be 1 or above"),
        ({"keep": 0.0}, "keep must be a share above 0"),
        ({"sampler": "tpee"}, "sampler must be one of mlmeta, tpe, gp, random; got 'tpee'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        TuningSettings(**settings).check()


def test_nothing_is_recorded_of_a_tuning_that_cannot_begin(toy_document: dict[str, Any], store: str) -> None:
    with pytest.raises(BadInputError, match="validation"):
        tune(toy_document | {"validation": 0.0})
    with pytest.raises(BadInputError):
        tune(toy_document | {"data": {"source": "folder", "path": "nowhere"}})
    with pytest.raises(BadInputError, match="ids"):
        tune(toy_document | {"test": {"ids": ["no such picture"]}})
    with pytest.raises(NotFoundError, match="there is no tuning of 'colours'"):
        resume_tuning("colours")
    assert MlflowClient().search_runs(["0"]) == []


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), (" 2 m ", 120), ("1d", 86400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "h", "-3s", "3 weeks", "1e9", "9" * 30])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(BadInputError, match="time-limit: must be a time above 0"):
        parse_duration(text)


def test_the_command(toy_document: dict[str, Any], store: str, tmp_path: Path) -> None:
    config, best = tmp_path / "colours.json", tmp_path / "best.json"
    config.write_text(json.dumps(toy_document | {"n_epoch": 2}), encoding="utf-8")
    arguments = ["tune", str(config), "--attempts", "2", "--round", "2", "--write", str(best)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "Best: colours-" in result.output
    assert "2 attempts, 3 epochs" in result.output
    assert parse_train_commands(json.loads(best.read_text(encoding="utf-8"))).n_epoch == 2
    again = CliRunner().invoke(cli, arguments)
    assert (again.exit_code, "is there already" in again.output) == (2, True)
    assert CliRunner().invoke(cli, ["tune"]).exit_code == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_table(toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    commands = parse_train_commands(toy_document)
    with TuningProgress(commands) as shown, shown.attempt(commands, 1, None) as attempt:
        attempt.epoch(1, {"train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "epoch_seconds": 0.1})
        attempt.end("1 of 4 epochs")
    text = terminal.getvalue()
    assert "tuning of colours" in text
    assert "50.0%" in text
    assert "1/4" in text


@pytest.mark.parametrize("n_columns", [100, 150])
def test_the_table_shows_results_before_how_they_came_about(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, n_columns: int
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(n_columns))
    monkeypatch.setenv("LINES", "20")
    layers = [{"name": "Linear", "in_features": "auto", "out_features": 7}] * 30
    document = toy_document | {"model": {"layers": [{"name": "Flatten"}, *layers]}}
    expected = {
        "expected_accuracy": 0.75,
        "expected_accuracy_low": 0.6,
        "expected_accuracy_high": 0.9,
        "epoch_seconds": 0.1,
    }
    with TuningProgress(parse_train_commands(toy_document)) as shown:
        for number in range(40):
            commands = parse_train_commands(document | {"model_name": f"colours-{number}"})
            with shown.attempt(commands, 1, None) as attempt:
                attempt.epoch(1, expected | {"val_accuracy": 0.9 if number == 3 else 0.5})
                attempt.end("Pruned")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    last = plain.rpartition("tuning of colours")[2].splitlines()
    rows = [line.split() for line in last if line.split()[:1] and line.split()[0].startswith("colours-")]
    names = [row[0] for row in rows]
    assert names[0] == "colours-3"
    assert names[1:] == [f"colours-{number}" for number in range(40 - len(names) + 1, 40)]
    assert "attempts not shown" in last[0]
    assert len(last) <= 20
    for row in rows:
        assert row[-4:] == ["1/4", "90.0%" if row[0] == "colours-3" else "50.0%", "75.0%", "Pruned"]


def test_a_tuning_in_which_nothing_learnt_fails(
    toy_document: dict[str, Any], store: str, write_json: Any, tmp_path: Path
) -> None:
    config = write_json(toy_document | DIVERGING)
    result = CliRunner().invoke(cli, ["tune", str(config), "--attempts", "1", "--write", str(tmp_path / "best.json")])
    assert (result.exit_code, "No attempt learnt anything" in result.output) == (1, True)
    assert not (tmp_path / "best.json").exists()


@pytest.mark.parametrize("sampler", ["mlmeta", "random"])
def test_a_small_space_is_used_up(toy_document: dict[str, Any], store: str, sampler: str) -> None:
    whole = {"optimizer": {"choices": [{"name": "Adam", "lr": 0.02}]}, "batch_size": {"choices": [8, 30]}}
    models = {"model": {"choices": [toy_document["model"]]}, "scheduler": {"choices": [None]}}
    tuned = tune(toy_document | {"scheduler": None, "space": whole | models}, attempts=5, round_size=5, sampler=sampler)
    assert len(tuned.attempts) == 2


def test_nothing_left_to_try_is_one_sentence_and_no_run(toy_document: dict[str, Any], store: str) -> None:
    space = {"batch_size": {"choices": [4, 8]}}
    tune({**toy_document, "space": space}, attempts=3, sampler="random")
    client = MlflowClient(store)
    n_runs = len(client.search_runs(["0"]))
    with pytest.raises(BadInputError, match="nothing is left to try"):
        tune({**toy_document, "space": space}, attempts=3, sampler="random")
    assert len(client.search_runs(["0"])) == n_runs


def test_what_cannot_be_begun_is_not_proposed_again(toy_document: dict[str, Any], store: str) -> None:
    """Weights that do not fit: every proposal is refused, each once, and the tuning ends."""
    del store
    tuned = tune({**toy_document, "initial_weights": "nobody"}, attempts=4)
    assert (list(tuned.attempts), tuned.incumbent) == ([], None)


def test_the_time_limit_holds_over_stops(toy_document: dict[str, Any], store: str) -> None:
    first = tune(toy_document, attempts=None, seconds=3.0)
    again = resume_tuning(first.run_id)
    assert len(again.attempts) == len(first.attempts)
    assert len(resume_tuning(first.run_id, changes={"seconds": first.seconds + 15}).attempts) > len(first.attempts)
    client = MlflowClient(store)
    for tag in ("[]", "xx", '{"foo": 1}', '{"attempts": "many"}'):
        client.set_tag(first.run_id, "mlmeta.tuning", tag)
        with pytest.raises(BadInputError, match="resume"):
            resume_tuning(first.run_id)
