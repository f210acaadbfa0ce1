"""Attempts whose tracking server, artifact store or process went away: nothing is lost, and they can go on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from servers import Server

import mlmeta.tracking.outbox
from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import BadInputError, MlmetaError, NotFoundError
from mlmeta.files import hold_run
from mlmeta.status import Status
from mlmeta.tracking.attempts import make_document
from mlmeta.tracking.outbox import list_spools
from mlmeta.tracking.recorder import MlflowRecorder
from mlmeta.tracking.recovery import (
    find_resumable,
    find_stale_attempts,
    find_stopped_attempt,
    mark_interrupted,
    send_spool,
)
from mlmeta.tracking.runs import queued_tags, record_attempt

LAYERS = [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": "n_labels"}]
EPOCHS = range(1, 6)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLMETA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MLMETA_FLUSH_S", "0")
    return tmp_path / "state"


def commands(**changes: Any) -> TrainCommands:
    document = {"model_name": "toy", "label_names": ["a", "b"], "model": {"layers": LAYERS}}
    return parse_train_commands({**document, **changes})


def log_epochs(recorder: MlflowRecorder, steps: Any = EPOCHS) -> None:
    for step in steps:
        recorder.log_metrics({"train_loss": 1 / step, "epoch_seconds": 0.1}, step=step)


def log_files(recorder: MlflowRecorder, folder: Path) -> None:
    """Record files that are gone at once, as a training does."""
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "toy.pt").write_bytes(b"weights")
    recorder.log_files(folder)
    shutil.rmtree(folder)


def losses(run_id: str) -> list[float]:
    return [value for value in make_document(run_id)["training_losses"] if value is not None]


def artifact(run_id: str, path: str, folder: Path) -> bytes:
    return Path(MlflowClient().download_artifacts(run_id, path, str(folder))).read_bytes()


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(store_template, folder / "mlflow.db")
    server = Server(folder, f"sqlite:///{folder / 'mlflow.db'}")
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    if one_server.process is None:
        one_server.start()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", one_server.uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    mlflow.set_tracking_uri(one_server.uri)
    return one_server


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_loses_nothing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with record_attempt(commands(), base_dir=Path()) as recorder:
        recorder.set_status(Status.TRAINING)
        log_epochs(recorder, [1, 2])
        assert recorder.recorded_steps("train_loss") == {1, 2}
        server.kill()
        log_epochs(recorder, [3, 4, 5])
        recorder.log_document("label_names.json", ["a", "ü"])
        log_files(recorder, tmp_path / "files")
        recorder.set_status(Status.TRAINED)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mlmeta:")]
    assert len(lines) == 1
    assert "`mlmeta recover` sends them" in lines[0]
    with pytest.raises(MlmetaError, match="cannot be opened"):
        send_spool()
    assert [spool.run_id for spool in list_spools()] == [recorder.run_id]
    server.start()
    assert find_stale_attempts(older_than_s=0) == []
    assert send_spool() == [recorder.run_id]
    assert send_spool() == []
    run = MlflowClient().get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("FINISHED", "Trained")
    assert losses(recorder.run_id) == [1 / step for step in EPOCHS]
    assert artifact(recorder.run_id, "models/toy.pt", tmp_path) == b"weights"
    assert json.loads(artifact(recorder.run_id, "label_names.json", tmp_path)) == ["a", "ü"]
    assert json.loads(artifact(recorder.run_id, "attempt.json", tmp_path))["status"] == "Trained"
    assert list((tmp_path / "state" / "spool").iterdir()) == []


@pytest.mark.slow
def test_a_server_that_comes_back_gets_everything_without_a_word(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLMETA_FLUSH_S", "60")
    with record_attempt(commands(), base_dir=Path()) as recorder:
        recorder.set_status(Status.TRAINING)
        log_epochs(recorder, [1, 2])
        server.kill()
        log_epochs(recorder, [3, 4])
        server.start()
        log_epochs(recorder, [5])
        recorder.set_status(Status.TRAINED)
    assert losses(recorder.run_id) == [1 / step for step in EPOCHS]
    assert MlflowClient().get_run(recorder.run_id).info.status == "FINISHED"
    assert "mlmeta:" not in capsys.readouterr().err
    assert list_spools() == []


@pytest.fixture
def artifact_store(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact store that can be put away by a file in its place."""
    folder = tmp_path / "mount"
    folder.mkdir()
    experiment = MlflowClient().create_experiment("away", artifact_location=str(folder / "artifacts"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    return folder


def test_an_artifact_store_that_is_away_holds_up_no_metric(
    artifact_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(artifact_store)
    artifact_store.write_text("in its place")
    with record_attempt(commands(), base_dir=Path()) as recorder:
        recorder.set_status(Status.TRAINING)
        log_epochs(recorder)
        log_files(recorder, tmp_path / "files")
        assert recorder.recorded_steps("train_loss") == set(EPOCHS)
        recorder.set_status(Status.TRAINED)
    run = MlflowClient().get_run(recorder.run_id)
    assert run.data.tags["mlmeta.status"] == "Trained"
    assert "they are kept in" in capsys.readouterr().err
    assert send_spool() == []
    artifact_store.unlink()
    assert send_spool() == [recorder.run_id]
    assert artifact(recorder.run_id, "models/toy.pt", tmp_path) == b"weights"
    assert losses(recorder.run_id) == [1 / step for step in EPOCHS]


def test_a_full_disk_under_the_artifacts_is_gone_around(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(LocalArtifactRepository, "log_artifacts", fail)
        with record_attempt(commands(), base_dir=Path()) as recorder:
            recorder.set_status(Status.TRAINING)
            log_files(recorder, tmp_path / "files")
            recorder.set_status(Status.TRAINED)
    assert "No space left on device" in capsys.readouterr().err
    assert send_spool() == [recorder.run_id]
    assert artifact(recorder.run_id, "models/toy.pt", tmp_path) == b"weights"


def test_a_full_disk_under_the_state_folder_still_lets_files_through(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mlmeta.tracking.outbox.Spool, "stage", fail)
    with record_attempt(commands(), base_dir=Path()) as recorder:
        log_files(recorder, tmp_path / "files")
    assert artifact(recorder.run_id, "models/toy.pt", tmp_path) == b"weights"


def test_what_mlflow_refuses_is_told_once_and_put_aside(
    store: str, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with record_attempt(commands(), base_dir=Path()) as recorder:
        recorder.set_status(Status.TRAINING)
        recorder.log_metrics({"train_loss": 1.0, "no[brackets]": 1.0})
        recorder.log_metrics({"also[bad]": 1.0})
        log_epochs(recorder)
        recorder.set_status(Status.TRAINED)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "refused 2 records" in told[0]
    assert losses(recorder.run_id)[-5:] == [1 / step for step in EPOCHS]
    rejected = (state / "spool" / recorder.run_id / "rejected.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["content"]["metrics"]) for line in rejected] == [2, 1]
    assert list_spools() == []


def test_the_records_of_another_store_are_left_alone(artifact_store: Path, tmp_path: Path) -> None:
    shutil.rmtree(artifact_store)
    artifact_store.write_text("in its place")
    with record_attempt(commands(), base_dir=Path()):
        pass
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "other.db")
    before = [(spool, [operation.kind for operation in spool.read()]) for spool in list_spools()]
    assert before
    assert send_spool(MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'other.db'}")) == []
    assert [(spool, [operation.kind for operation in spool.read()]) for spool in list_spools()] == before


def test_sending_again_after_a_break_changes_nothing(artifact_store: Path, tmp_path: Path, state: Path) -> None:
    shutil.rmtree(artifact_store)
    artifact_store.write_text("in its place")
    with record_attempt(commands(), base_dir=Path()) as recorder:
        log_files(recorder, tmp_path / "files")
    artifact_store.unlink()
    kept = tmp_path / "copy"
    shutil.copytree(state / "spool", kept)
    assert send_spool() == [recorder.run_id]
    document = make_document(recorder.run_id)
    shutil.copytree(kept, state / "spool", dirs_exist_ok=True)
    assert send_spool() == [recorder.run_id]
    assert make_document(recorder.run_id) == document


def test_a_server_that_is_away_at_the_start_is_one_clear_error(store: str) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(MlmetaError, match="cannot be opened"), record_attempt(commands(), base_dir=Path()):
        pytest.fail("the training must not start")


PROGRAM = """
import os, signal
from pathlib import Path
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.status import Status
from mlmeta.tracking.runs import record_attempt
layers = [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": "n_labels"}]
document = {"model_name": "toy", "label_names": ["a", "b"], "model": {"layers": layers}}
with record_attempt(parse_train_commands(document), base_dir=Path()) as recorder:
    recorder.set_status(Status.TRAINING)
    for step in range(1, 4):
        recorder.log_metrics({"train_loss": 1 / step, "epoch_seconds": 0.1}, step=step)
    recorder.recorded_steps("train_loss")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def killed(store: str, tmp_path: Path) -> str:
    """The run of an attempt that was killed after three epochs, in a process of its own."""
    process = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path)
    assert process.returncode == -signal.SIGKILL
    (run,) = MlflowClient().search_runs(["0"])
    assert run.info.status == "RUNNING"
    return str(run.info.run_id)


def test_a_killed_attempt_is_found_marked_and_gone_on_with(killed: str, tmp_path: Path) -> None:
    (stale,) = find_stale_attempts()
    assert (stale.run_id, stale.name, stale.kind, stale.status) == (killed, "toy", "attempt", "Training")
    mark_interrupted(killed)
    run = MlflowClient().get_run(killed)
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("KILLED", "Interrupted")
    assert "Interrupted" in run.data.tags["mlflow.note.content"]
    assert json.loads(artifact(killed, "attempt.json", tmp_path))["n_epoch"] == 3
    assert find_stale_attempts(older_than_s=0) == []
    attempt = find_stopped_attempt("toy")
    assert (attempt.run_id, attempt.commands.digest()) == (killed, commands().digest())
    with record_attempt(attempt.commands, base_dir=attempt.commands_dir, resume_run_id=killed) as recorder:
        assert recorder.run_id == killed
        missing = [step for step in EPOCHS if step not in recorder.recorded_steps("train_loss")]
        assert missing == [4, 5]
        recorder.set_status(Status.TRAINING)
        log_epochs(recorder, missing)
        recorder.set_status(Status.TRAINED)
    assert losses(killed) == [1 / step for step in EPOCHS]
    run = MlflowClient().get_run(killed)
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("FINISHED", "Trained")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("status", "marked", "ended"),
    [("Trained", "Interrupted", "KILLED"), ("Testing", "Interrupted", "KILLED"), ("Complete", "Complete", "FINISHED"),
     ("Diverged", "Diverged", "FAILED")],
)  # fmt: skip
def test_an_attempt_killed_after_its_training_is_closed_too(
    status: str, marked: str, ended: str, tmp_path: Path
) -> None:
    run_id = stopped(KeyboardInterrupt())
    client = MlflowClient()
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "mlmeta.status", status)
    (tmp_path / "state" / "locks").mkdir(exist_ok=True)
    (tmp_path / "state" / "locks" / f"{run_id}.lock").touch()
    assert [stale.run_id for stale in find_stale_attempts()] == [run_id]
    assert mark_interrupted(run_id) == marked
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["mlmeta.status"]) == (ended, marked)
    assert find_stale_attempts() == []


@pytest.mark.usefixtures("store")
def test_a_queued_run_is_not_stale_but_can_be_closed_and_gone_on_with(tmp_path: Path) -> None:
    client = MlflowClient()
    run_id = client.create_run("0", run_name="toy", tags=queued_tags(commands(), base_dir=tmp_path)).info.run_id
    client.update_run(run_id, status="SCHEDULED")
    client.set_tag(run_id, "mlmeta.heartbeat", "1")
    assert find_stale_attempts(older_than_s=0) == []
    assert mark_interrupted(run_id) == "Interrupted"
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["mlmeta.status"]) == ("KILLED", "Interrupted")
    assert "mlmeta.queued" not in run.data.tags
    assert json.loads(artifact(run_id, "attempt.json", tmp_path))["status"] == "Interrupted"
    attempt = find_stopped_attempt(run_id)
    assert (attempt.commands.digest(), attempt.commands_dir) == (commands().digest(), tmp_path)
    with record_attempt(attempt.commands, base_dir=tmp_path, resume_run_id=run_id) as recorder:
        assert recorder.run_id == run_id


@pytest.mark.usefixtures("store")
def test_mlflow_says_running_until_the_last_record(tmp_path: Path) -> None:
    with record_attempt(commands(), base_dir=tmp_path) as recorder:
        recorder.set_status(Status.TRAINING)
        recorder.set_status(Status.TRAINED)
        recorder.recorded_steps("train_loss")
        run = MlflowClient().get_run(recorder.run_id)
        assert (run.info.status, run.data.tags["mlmeta.status"]) == ("RUNNING", "Trained")
    assert MlflowClient().get_run(recorder.run_id).info.status == "FINISHED"


def test_a_killed_attempt_goes_on_without_being_marked_first(killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", killed)
    assert find_resumable(commands()) == killed
    with record_attempt(commands(), base_dir=Path()) as recorder:
        assert recorder.run_id == killed


def stopped(error: BaseException | None = None, **changes: Any) -> str:
    """Return the run of an attempt that ended with an error, or well."""
    run_id = ""
    with (
        contextlib.suppress(KeyboardInterrupt, RuntimeError),
        record_attempt(commands(**changes), base_dir=Path()) as r,
    ):
        run_id = r.run_id
        r.set_status(Status.TRAINING)
        log_epochs(r)
        if error:
            raise error
        r.set_status(Status.TRAINED)
    return run_id


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broke")], ids=["Interrupted", "Failed"])
def test_the_named_run_of_a_stopped_attempt_is_gone_on_with(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stopped(error)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert find_resumable(commands()) == run_id
    assert stopped() == run_id
    tags = MlflowClient().get_run(run_id).data.tags
    assert tags["mlmeta.status"] == "Trained"
    assert "mlmeta.error" not in tags
    assert "mlmeta.commands" not in tags


@pytest.mark.usefixtures("store")
def test_other_commands_do_not_go_on_in_the_named_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = stopped(KeyboardInterrupt())
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(BadInputError, match="other commands"):
        find_resumable(commands(seed=7))
    with (
        pytest.raises(BadInputError, match="other commands"),
        record_attempt(commands(seed=7), base_dir=Path(), resume_run_id=run_id),
    ):
        pytest.fail("the training must not start")


@pytest.mark.usefixtures("store")
def test_an_attempt_that_ended_well_is_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = stopped()
    with pytest.raises(BadInputError, match="is Trained and cannot be resumed"):
        find_stopped_attempt(run_id)
    with (
        pytest.raises(BadInputError, match="is Trained"),
        record_attempt(commands(), base_dir=Path(), resume_run_id=run_id),
    ):
        pytest.fail("the training must not start")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert find_resumable(commands()) is None
    assert stopped() != run_id


@pytest.mark.usefixtures("store")
def test_a_living_attempt_is_neither_marked_nor_resumed() -> None:
    with record_attempt(commands(), base_dir=Path()) as recorder:
        recorder.set_status(Status.TRAINING)
        recorder.set_tags({"mlmeta.heartbeat": "1", "mlmeta.host": "elsewhere"})
        assert recorder.recorded_steps("train_loss") == set()
        assert find_stale_attempts(older_than_s=0) == []
        with pytest.raises(BadInputError, match="worked on by another process"):
            mark_interrupted(recorder.run_id)
        with pytest.raises(BadInputError, match="worked on by another process"):
            find_stopped_attempt("toy")
        with (
            pytest.raises(BadInputError, match="worked on"),
            record_attempt(commands(), base_dir=Path(), resume_run_id=recorder.run_id),
        ):
            pytest.fail("the training must not start")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("silent_s", "epoch_s", "found"), [(5000, 10, True), (1000, 10, False), (5000, 2000, False), (11000, 2000, True)]
)
def test_an_attempt_of_another_machine_is_dead_after_a_long_silence(silent_s: int, epoch_s: float, found: bool) -> None:
    heartbeat = str(int(time.time()) - silent_s)
    tags = {"mlmeta.kind": "attempt", "mlmeta.status": "Training", "mlmeta.host": "elsewhere"}
    client = MlflowClient()
    run_id = client.create_run("0", tags={**tags, "mlmeta.heartbeat": heartbeat}).info.run_id
    client.log_metric(run_id, "epoch_seconds", epoch_s)
    assert [stale.run_id for stale in find_stale_attempts()] == [run_id] * found


@pytest.mark.usefixtures("store")
def test_a_run_of_another_tool_is_left_alone() -> None:
    run_id = MlflowClient().create_run("0", start_time=1).info.run_id
    assert find_stale_attempts(older_than_s=0) == []
    with pytest.raises(BadInputError, match="not of mlmeta"):
        mark_interrupted(run_id)
    with pytest.raises(NotFoundError):
        mark_interrupted("0" * 32)


def test_the_lock_of_a_run_is_held_once_and_leaves_nothing(state: Path) -> None:
    with hold_run("r"), pytest.raises(BadInputError), hold_run("r"):
        pytest.fail("held twice")
    with hold_run("r"):
        pass
    assert list((state / "locks").iterdir()) == []


@pytest.mark.usefixtures("store")
def test_a_waiting_time_that_is_no_number_is_refused_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_FLUSH_S", "soon")
    with pytest.raises(BadInputError, match="MLMETA_FLUSH_S"), record_attempt(commands(), base_dir=Path()):
        pytest.fail("the training must not start")
    assert list(MlflowClient().search_runs(["0"])) == []


@pytest.mark.usefixtures("store")
def test_an_interrupt_while_the_rest_is_sent_keeps_it(artifact_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLMETA_FLUSH_S", "600")
    shutil.rmtree(artifact_store)
    artifact_store.write_text("in its place")
    with pytest.raises(KeyboardInterrupt), record_attempt(commands(), base_dir=Path()) as recorder:
        threading.Thread(target=interrupt_when_sending, args=(recorder,), daemon=True).start()
    assert [spool.run_id for spool in list_spools()] == [recorder.run_id]


def interrupt_when_sending(recorder: MlflowRecorder) -> None:
    """Press Ctrl-C as soon as the recorder waits for the rest to be sent."""
    while not recorder._outbox._hurry:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
