"""How an attempt lies in MLflow: the layout, adopted runs, states, documents. All on a real SQLite store."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from mlmeta.commands.parsing import parse_test_commands, parse_train_commands
from mlmeta.errors import AttemptFailedError, DivergedError, NotFoundError
from mlmeta.evaluate import evaluate_attempt
from mlmeta.status import Status
from mlmeta.tracking.attempts import find_attempt, make_document
from mlmeta.tracking.recorder import MlflowRecorder
from mlmeta.tracking.runs import fail_adopted_run, queued_tags, record_attempt
from mlmeta.train import run_attempt

pytestmark = pytest.mark.usefixtures("store")


def run(document: dict[str, Any], **changes: Any) -> Run:
    run_id, _, _ = run_attempt(parse_train_commands({**document, **changes}), base_dir=Path())
    return MlflowClient().get_run(run_id)


def list_files(run_id: str, folder: str = "") -> set[str]:
    found = MlflowClient().list_artifacts(run_id, folder)
    inside = [list_files(run_id, item.path) for item in found if item.is_dir]
    return {item.path for item in found if not item.is_dir}.union(*inside)


def test_an_attempt_lies_in_mlflow_as_the_design_says(toy_document: dict[str, Any]) -> None:
    attempt = run(toy_document, test={"limit": 10})
    params, metrics, tags = attempt.data.params, attempt.data.metrics, attempt.data.tags
    assert attempt.info.run_name == "colours"
    assert attempt.info.status == "FINISHED"
    assert params["optimizer.lr"] == "0.02"
    assert params["model.layers.1.name"] == "Linear"
    assert json.loads(params["label_names"]) == ["red", "green", "blue"]
    assert params["scheduler.name"] == "ReduceLROnPlateau"
    assert params["arch.n_parameters"] == str(192 * 16 + 16 + 16 * 3 + 3)
    assert {"arch.depth", "arch.width", "arch.batch_norm", "arch.dropout", "arch.activation"} <= params.keys()
    assert {
        "task.n_labels",
        "task.n_train",
        "task.n_test",
        "task.height",
        "task.width",
        "task.channels",
    } <= params.keys()
    assert params["test.limit"] == "10"
    assert params["data_account.left_out"] == "0"
    account = tags["mlmeta.data_account"]
    assert account.startswith(f"3 labels; {params['task.n_train']} training, ")
    assert account.splitlines()[0] in tags["mlflow.note.content"]
    assert {"train_loss", "val_loss", "val_accuracy", "learning_rate", "epoch_seconds", "pictures_per_second"} <= set(
        metrics
    )
    assert {"accuracy", "test_loss", "macro_f1"} <= metrics.keys()
    assert "top5_accuracy" not in metrics
    assert tags["mlmeta.status"] == "Complete"
    assert tags["mlflow.note.content"].startswith("**Complete: accuracy ")
    assert json.loads(tags["mlmeta.task"])["ln_n_labels"] == pytest.approx(math.log(3))
    assert len(json.loads(tags["mlmeta.training_losses"])) == 4
    assert {"mlmeta.task_digest", "mlmeta.commands_digest", "mlmeta.weights_sha256", "mlmeta.heartbeat"} <= tags.keys()
    assert list_files(attempt.info.run_id) == {
        "train_commands.json", "test_commands.json", "label_names.json", "attempt.json",
        "models/colours.pt", "models/colours.safetensors", "loss_curve.png", "confusion_matrix.png",
        "confusion_matrix.csv", "per_class.csv", "predictions.csv", "mistakes.png", "data_account.csv",
    }  # fmt: skip
    assert {item.tags[0].value for item in attempt.inputs.dataset_inputs} == {"training", "test"}


def test_every_epoch_is_a_step_of_each_metric(toy_document: dict[str, Any]) -> None:
    attempt = run(toy_document)
    history = MlflowClient().get_metric_history(attempt.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]


def test_the_document_of_a_run_equals_what_went_in(toy_document: dict[str, Any]) -> None:
    document = {**toy_document, "$schema": "x.json", "n_labels": 3, "scheduler": None}
    attempt = run(document)
    made = make_document(attempt.info.run_id)
    assert made["training_commands"] == document
    assert made["name"] == "colours"
    assert made["status"] == "Complete"
    assert made["n_epoch"] == 4
    assert made["accuracy"] == attempt.data.metrics["accuracy"]
    assert made["training_losses"][-1] == attempt.data.metrics["train_loss"]


JSON_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,30}[A-Za-z0-9]", fullmatch=True)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=JSON_NAMES,
    labels=st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=2, max_size=5, unique=True),
    lr=st.floats(1e-9, 10),
    seed=st.integers(0, 2**63 - 1),
)
def test_commands_come_back_from_mlflow_unchanged(name: str, labels: list[str], lr: float, seed: int) -> None:
    document = {
        "model_name": name,
        "label_names": labels,
        "model": {"name": "", "layers": [{"name": "Flatten"}, {"name": "LazyLinear", "out_features": "n_labels"}]},
        "optimizer": {"name": "SGD", "lr": lr},
        "seed": seed,
    }
    with record_attempt(parse_train_commands(document), base_dir=Path()) as recorder:
        pass
    made = make_document(recorder.run_id)
    assert made["training_commands"] == document
    assert made["name"] == name


def test_training_a_name_again_is_a_new_attempt_and_the_newest_is_found(toy_document: dict[str, Any]) -> None:
    first, second = run(toy_document), run(toy_document, n_epoch=2)
    assert first.info.run_id != second.info.run_id
    assert find_attempt(name="colours").run_id == second.info.run_id
    assert find_attempt(run_id=first.info.run_id).run_id == first.info.run_id


def test_the_run_of_mlflow_run_is_adopted_and_params_set_before_are_left(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    given_run = client.create_run("0")
    client.log_param(given_run.info.run_id, "config", "dogs.json")
    monkeypatch.setenv("MLFLOW_RUN_ID", given_run.info.run_id)
    attempt = run(toy_document)
    assert attempt.info.run_id == given_run.info.run_id
    assert attempt.info.run_name == "colours"
    assert attempt.data.params["config"] == "dogs.json"


def test_a_run_that_holds_an_attempt_is_not_adopted_again(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(toy_document)
    monkeypatch.setenv("MLFLOW_RUN_ID", first.info.run_id)
    assert run(toy_document).info.run_id != first.info.run_id


def queue_run(document: dict[str, Any], *, kind: str = "train") -> str:
    """Return a run as a server makes it for a job."""
    parse = parse_train_commands if kind == "train" else parse_test_commands
    client = MlflowClient()
    queued = client.create_run("0", tags=queued_tags(parse(document), base_dir=Path()))
    client.update_run(queued.info.run_id, status="SCHEDULED")
    return str(queued.info.run_id)


def test_a_run_that_a_server_queued_is_adopted(toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = queue_run(toy_document)
    assert make_document(run_id)["training_commands"] == toy_document
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    attempt = run(toy_document)
    assert attempt.info.run_id == run_id
    assert (attempt.info.status, attempt.data.tags["mlmeta.status"]) == ("FINISHED", "Complete")
    assert "mlmeta.queued" not in attempt.data.tags
    assert run(toy_document).info.run_id != run_id


def test_a_test_adopts_the_run_that_was_queued_for_a_test_only(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = run(toy_document)
    document = {"run_id": attempt.info.run_id}
    for_training, for_test = queue_run(toy_document), queue_run(document, kind="test")
    monkeypatch.setenv("MLFLOW_RUN_ID", for_training)
    assert evaluate_attempt(parse_test_commands(document), base_dir=Path())[0] not in (for_training, for_test)
    monkeypatch.setenv("MLFLOW_RUN_ID", for_test)
    assert evaluate_attempt(parse_test_commands(document), base_dir=Path())[0] == for_test
    tags = MlflowClient().get_run(for_test).data.tags
    assert (tags["mlflow.parentRunId"], tags["mlmeta.status"]) == (attempt.info.run_id, "Complete")
    assert "mlmeta.queued" not in tags


def test_a_queued_run_whose_commands_fail_is_failed_with_the_reason(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = queue_run(toy_document)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    fail_adopted_run(NotFoundError("no such folder"))
    failed = MlflowClient().get_run(run_id)
    assert (failed.info.status, failed.data.tags["mlmeta.status"]) == ("FAILED", "Failed")
    assert "no such folder" in failed.data.tags["mlflow.note.content"]
    assert "mlmeta.queued" not in failed.data.tags


def test_an_unknown_run_id_in_the_environment_is_named(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "a" * 32)
    with pytest.raises(NotFoundError, match="MLFLOW_RUN_ID"):
        run(toy_document)


def test_the_experiment_of_the_environment_is_used(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "pictures")
    experiment = MlflowClient().get_experiment(run(toy_document).info.experiment_id)
    assert experiment.name == "pictures"


def test_a_diverged_attempt_keeps_its_curve_and_fails(toy_document: dict[str, Any]) -> None:
    with pytest.raises(DivergedError, match=r"optimizer\.lr"):
        run(toy_document, optimizer={"name": "SGD", "lr": 1e30}, n_epoch=30)
    attempt = MlflowClient().search_runs(["0"])[0]
    assert attempt.data.tags["mlmeta.status"] == "Diverged"
    assert attempt.info.status == "FAILED"
    assert json.loads(attempt.data.tags["mlmeta.training_losses"])[-1] is None
    assert {"attempt.json", "loss_curve.png"} <= list_files(attempt.info.run_id)
    assert make_document(attempt.info.run_id)["status"] == "Diverged"


def test_an_interrupted_attempt_keeps_the_epochs_so_far(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlmeta.training.loop

    run_epoch = mlmeta.training.loop.run_epoch

    def interrupt(prepared: Any, epoch: int) -> dict[str, float]:
        if epoch == 3:
            raise KeyboardInterrupt
        return run_epoch(prepared, epoch)

    monkeypatch.setattr(mlmeta.training.loop, "run_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(toy_document)
    attempt = MlflowClient().search_runs(["0"])[0]
    assert (attempt.data.tags["mlmeta.status"], attempt.info.status) == ("Interrupted", "KILLED")
    assert len(json.loads(attempt.data.tags["mlmeta.training_losses"])) == 2
    assert "models/colours.pt" in list_files(attempt.info.run_id)


def test_a_training_that_breaks_is_failed_with_the_reason(
    toy_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlmeta.training.loop

    def break_down(prepared: Any, epoch: int) -> dict[str, float]:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(mlmeta.training.loop, "run_epoch", break_down)
    with pytest.raises(AttemptFailedError, match="out of luck"):
        run(toy_document)
    attempt = MlflowClient().search_runs(["0"])[0]
    assert (attempt.data.tags["mlmeta.status"], attempt.info.status) == ("Failed", "FAILED")
    assert "out of luck" in attempt.data.tags["mlflow.note.content"]


def test_the_note_says_what_differs_from_the_best_other_attempt(toy_document: dict[str, Any]) -> None:
    run(toy_document)
    second = run(toy_document, optimizer={"name": "SGD", "lr": 0.5}, model_name="other")
    note = second.data.tags["mlflow.note.content"]
    assert "The best other attempt on this task: colours" in note
    assert "`optimizer.name` SGD (there Adam)" in note


def test_a_status_that_may_not_follow_is_refused() -> None:
    recorder = MlflowRecorder(MlflowClient(), MlflowClient().create_run("0").info.run_id)
    with pytest.raises(ValueError, match="cannot become Complete"):
        recorder.set_status(Status.COMPLETE)


def test_an_adopted_run_that_never_started_is_failed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    fail_adopted_run(NotFoundError("no such file"))
    failed = MlflowClient().get_run(run_id)
    assert failed.info.status == "FAILED"
    assert "no such file" in failed.data.tags["mlflow.note.content"]


def test_more_params_than_one_request_takes_are_all_recorded(toy_document: dict[str, Any]) -> None:
    layers = [{"name": "Flatten"}, *[{"name": "LazyLinear", "out_features": 8, "bias": True}] * 60]
    layers.append({"name": "LazyLinear", "out_features": "n_labels"})
    params = run(toy_document, model={"layers": layers}, n_epoch=1).data.params
    assert params["model.layers.60.out_features"] == "8"


def test_long_labels_are_cut_in_params_and_whole_in_the_artifact(toy_document: dict[str, Any], colours: Path) -> None:
    attempt = run(toy_document, label_names=[f"{name} {'size:9 ' * 70}" for name in ("red", "green", "blue")])
    record = find_attempt(run_id=attempt.info.run_id)
    assert record.label_names[0].startswith("red size:9")


@pytest.mark.parametrize("name", ["colour", "nothing like it"])
def test_an_unknown_attempt_is_not_found(toy_document: dict[str, Any], name: str) -> None:
    run(toy_document)
    hint = "Did you mean 'colours'" if name == "colour" else "1 attempts of other names"
    with pytest.raises(NotFoundError, match=hint):
        find_attempt(name=name)


def test_a_run_of_another_tool_is_no_attempt() -> None:
    run_id = MlflowClient().create_run("0", run_name="other").info.run_id
    with pytest.raises(NotFoundError, match="no attempt of mlmeta"):
        find_attempt(run_id=run_id)
    with pytest.raises(NotFoundError, match="no attempt named"):
        find_attempt(name="other")


def test_nothing_is_left_active_in_mlflow_itself(toy_document: dict[str, Any]) -> None:
    run(toy_document)
    assert mlflow.active_run() is None
