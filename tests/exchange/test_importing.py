"""Attempt documents become MLflow runs, each once, as if they had been trained here. All on a real SQLite store."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from attempt_table import DATA, read_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.exchange.exporting import export_attempts
from mlmeta.exchange.imported_runs import MAX_BATCHES, ImportedRuns, only_import
from mlmeta.exchange.importing import ImportResult, import_attempts
from mlmeta.history.api_reader import read_batches
from mlmeta.meta_query import pareto_front, search_attempts
from mlmeta.tracking.attempts import make_document
from mlmeta.train import run_attempt

pytestmark = pytest.mark.usefixtures("store")


def write_lines(documents: Iterable[Any], name: str = "a.jsonl") -> Path:
    file = Path(name)
    lines = (item if isinstance(item, str) else json.dumps(item) for item in documents)
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def all_runs() -> list[Run]:
    client = MlflowClient()
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, order_by=["attributes.start_time ASC"]))


def counts(result: ImportResult) -> tuple[int, int, int]:
    return result.n_new, result.n_known, result.n_faults


def listed_batches(experiment_id: str = "0") -> list[str]:
    return read_batches(MlflowClient().get_experiment(experiment_id))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    name=st.text(),
    losses=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=5),
)
def test_whatever_a_document_holds_comes_out_unchanged(extra: Any, name: str, losses: list[float | None]) -> None:
    commands = {"model_name": "x", "model": {"layers": [{"name": "Flatten"}]}}
    document = {"remark": extra, "name": name, "training_losses": losses, "training_commands": commands}
    assert import_attempts([write_lines([document])]).n_faults == 0
    assert document in list(export_attempts(all=True))


def test_an_imported_attempt_lies_in_mlflow_as_a_trained_one(toy_document: dict[str, Any]) -> None:
    run_id, _, _ = run_attempt(parse_train_commands(toy_document), base_dir=Path())
    trained = MlflowClient().get_run(run_id)
    import_attempts([write_lines([make_document(run_id)])], experiment="elsewhere")
    (imported,) = [run for run in all_runs() if run.info.run_id != run_id]
    assert imported.data.params == trained.data.params
    assert imported.info.run_name == trained.info.run_name
    assert imported.info.status == trained.info.status
    same = ("mlmeta.kind", "mlmeta.status", "mlmeta.commands_digest", "mlmeta.task_digest", "mlmeta.task",
            "mlmeta.training_losses", "mlmeta.version")  # fmt: skip
    assert {key: imported.data.tags[key] for key in same} == {key: trained.data.tags[key] for key in same}
    assert imported.data.tags["mlmeta.task_source"] == "pictures"
    for key in ("train_loss", "accuracy"):
        assert imported.data.metrics[key] == trained.data.metrics[key]
    history = MlflowClient().get_metric_history(imported.info.run_id, "train_loss")
    expected = MlflowClient().get_metric_history(run_id, "train_loss")
    assert [(m.step, m.value) for m in history] == [(m.step, m.value) for m in expected]


def test_a_named_model_is_described_as_when_it_is_trained(toy_document: dict[str, Any]) -> None:
    document = {**toy_document, "model": {"name": "squeezenet1_1"}, "n_epoch": 1, "batch_size": 32,
                "image_ops": [{"resize": {"size": [32, 32]}}]}  # fmt: skip
    run_id, _, _ = run_attempt(parse_train_commands(document), base_dir=Path())
    import_attempts([write_lines([make_document(run_id)])])
    (imported,) = [run for run in all_runs() if run.info.run_id != run_id]
    assert imported.data.params == MlflowClient().get_run(run_id).data.params


def test_pictures_are_looked_up_beside_the_file_or_where_they_are_said_to_be(
    toy_document: dict[str, Any], colours: Path
) -> None:
    commands = {**toy_document, "data": {"source": "folder", "path": colours.name}}
    first = {"name": "far", "training_commands": commands, "task": {"name": "toys"}, "accuracy": 0.5}
    result = import_attempts([write_lines([first])])
    assert list(result.tasks_without_pictures) == ["toys"]
    assert import_attempts([write_lines([{**first, "name": "near"}])], pictures=colours.parent).n_new == 1
    far, near = sorted(all_runs(), key=lambda run: str(run.info.run_name))
    assert far.data.tags["mlmeta.task_source"] == "document"
    assert "mlmeta.task" not in far.data.tags
    assert far.data.params["task.n_labels"] == "3"
    assert "arch.n_parameters" not in far.data.params
    assert near.data.tags["mlmeta.task_source"] == "pictures"
    assert json.loads(near.data.tags["mlmeta.task"])["width"] == 8
    assert near.data.tags["mlmeta.task_name"] == far.data.tags["mlmeta.task_name"] == "toys"
    assert near.data.tags["mlmeta.task_digest"] != far.data.tags["mlmeta.task_digest"]
    assert near.data.params["arch.n_parameters"] == str(192 * 16 + 16 + 16 * 3 + 3)


def test_pictures_that_are_no_task_leave_the_attempt_without_meta_features(
    toy_document: dict[str, Any], colours: Path
) -> None:
    document = {"name": "x", "training_commands": {**toy_document, "label_names": ["red", "pink"]}}
    result = import_attempts([write_lines([document])], pictures=colours)
    assert counts(result) == (1, 0, 0)
    assert "pink" in result.tasks_without_pictures["colours"]


def test_an_import_has_its_own_times_and_states() -> None:
    base = read_documents()[0]
    states = {"Complete": "FINISHED", "Failed": "FAILED", "Interrupted": "KILLED", "Diverged": "FAILED",
              "Pruned": "FINISHED", "Training": "KILLED", "incomplete": "KILLED"}  # fmt: skip
    started = "2026-01-0{}T00:00:00Z"
    documents = [
        {**base, "status": status, "started": started.format(day), "seconds": 90}
        for day, status in enumerate(states, start=1)
    ]
    import_attempts([write_lines(documents)])
    runs = all_runs()
    seen = [run.data.tags["mlmeta.status"] for run in runs]
    # Nobody is at work on it here.
    assert seen == [{"Training": "Interrupted"}.get(state, state) for state in states]
    assert [run.info.status for run in runs] == list(states.values())
    assert {run.info.end_time - run.info.start_time for run in runs} == {90_000}
    assert runs[1].info.start_time - runs[0].info.start_time == 86_400_000


def test_an_attempt_without_times_ended_now() -> None:
    before = time.time()
    import_attempts([write_lines([{**read_documents()[0], "seconds": 100}])])
    (run,) = all_runs()
    assert before - 0.01 <= run.info.end_time / 1000 <= time.time()
    assert run.info.end_time - run.info.start_time == 100_000


def test_an_attempt_of_which_nobody_knows_how_long_it_took_has_no_duration() -> None:
    slow = {**read_documents()[0], "seconds": 100}
    import_attempts([write_lines([{**read_documents()[1], "seconds": None, "accuracy": 0.99}, slow])])
    assert [run.info.status for run in all_runs()] == ["FINISHED", "FINISHED"]
    table = search_attempts()
    assert sorted(table["duration_s"].dropna()) == [100.0]
    assert pareto_front(history=table)["duration_s"].tolist() == [100.0]


def test_importing_again_adds_nothing() -> None:
    file = write_lines(read_documents()[:3])
    import_attempts([file])
    first = {run.info.run_id for run in all_runs()}
    assert counts(import_attempts([file, file], experiment="other")) == (0, 6, 0)
    assert {run.info.run_id for run in all_runs()} == first
    assert len(listed_batches()) == 1


def test_a_file_that_has_grown_adds_what_is_new() -> None:
    import_attempts([write_lines(read_documents()[:2])])
    assert counts(import_attempts([write_lines(read_documents()[:3])])) == (1, 2, 0)


def test_a_deleted_attempt_is_imported_again() -> None:
    file = write_lines(read_documents()[:2])
    import_attempts([file])
    MlflowClient().delete_run(all_runs()[0].info.run_id)
    assert counts(import_attempts([file])) == (1, 1, 0)


def test_a_document_that_stands_twice_is_imported_once() -> None:
    document = read_documents()[0]
    assert counts(import_attempts([write_lines([document, dict(reversed(document.items())), document])])) == (1, 2, 0)


def test_a_bad_line_in_the_middle_is_reported_and_the_others_go_in() -> None:
    good = read_documents()
    faulty = {**good[1], "training_commands": {**good[1]["training_commands"], "batch_size": "many"}}
    result = import_attempts([write_lines([good[0], faulty, '{"name":', good[2]])])
    assert counts(result) == (2, 0, 2)
    assert str(result.faults[0]).startswith("a.jsonl, line 2: 1 fault\n  training_commands.batch_size: must be")
    assert str(result.faults[1]).startswith("a.jsonl, line 3: is not JSON")
    assert result.n_unreadable == 0


def test_a_file_that_cannot_be_read_keeps_no_other_out() -> None:
    Path("empty.json").touch()
    result = import_attempts(["missing.jsonl", "empty.json", write_lines(read_documents()[:1])])
    assert counts(result) == (1, 0, 2)
    assert result.n_unreadable == 2


def test_an_import_that_broke_is_finished_by_importing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_lines(read_documents()[:4])
    with monkeypatch.context() as patch:
        patch.setattr(ImportedRuns, "_write", _killed_at_the_third(ImportedRuns._write))
        with pytest.raises(KeyboardInterrupt):
            import_attempts([file])
    (half_made,) = [run for run in all_runs() if "mlmeta.kind" not in run.data.tags]
    assert "mlmeta.import_digest" not in half_made.data.tags
    assert len(listed_batches()) == 1
    assert counts(import_attempts([file])) == (2, 2, 0)
    assert {run.data.tags["mlmeta.kind"] for run in all_runs()} == {"attempt"}
    assert len(all_runs()) == 4
    assert MlflowClient().get_run(half_made.info.run_id).info.lifecycle_stage == "deleted"
    assert sorted(document["id"] for document in export_attempts(all=True)) == sorted(
        document["id"] for document in read_documents()[:4]
    )


def _killed_at_the_third(write: Callable[..., None]) -> Callable[..., None]:
    made: list[str] = []

    def killed(runs: ImportedRuns, run_id: str, *rest: Any) -> None:
        made.append(run_id)
        if len(made) == 3:
            raise KeyboardInterrupt
        write(runs, run_id, *rest)

    return killed


@pytest.mark.parametrize(
    ("host", "silence_s", "gone"),
    [(socket.gethostname(), 0, True), ("another", 60, False), ("another", 4000, True)],
)
def test_a_half_made_run_of_another_machine_is_left_alone_for_an_hour(host: str, silence_s: int, gone: bool) -> None:
    tags = {"mlmeta.import_batch": "x", "mlmeta.host": host, "mlmeta.heartbeat": str(int(time.time()) - silence_s)}
    run_id = MlflowClient().create_run("0", tags=tags).info.run_id
    import_attempts([write_lines(read_documents()[:1])])
    assert (MlflowClient().get_run(run_id).info.lifecycle_stage == "deleted") == gone


def test_an_attempt_that_mlflow_refuses_is_a_fault_and_leaves_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    good = read_documents()
    monkeypatch.setattr("mlmeta.exchange.records.legal_key", lambda key: key)
    result = import_attempts([write_lines([good[0], {"name": "x", "params": {"a[0]": "1"}}, good[1]])])
    assert counts(result) == (2, 0, 1)
    assert str(result.faults[0]).startswith("a.jsonl, line 2: MLflow does not take the attempt x")
    assert len(all_runs()) == 2


def test_a_store_of_artifacts_that_cannot_be_written_ends_the_import() -> None:
    Path("blocked").touch()
    MlflowClient().create_experiment("blocked", artifact_location=f"file://{Path('blocked').resolve()}")
    with pytest.raises(MlmetaError, match="MLflow does not take the attempt") as error:
        import_attempts([write_lines(read_documents()[:2])], experiment="blocked")
    assert not isinstance(error.value, BadInputError)
    assert all_runs() == []


def test_every_import_stands_in_its_experiment() -> None:
    for document in read_documents()[:2]:
        import_attempts([write_lines([document])])
    assert [run.data.tags["mlmeta.import_batch"] for run in sorted(all_runs(), key=lambda run: run.info.end_time)] == (
        listed_batches()
    )


def test_an_import_that_was_killed_is_listed_by_the_next_one() -> None:
    import_attempts([write_lines(read_documents()[:1])])
    (first,) = listed_batches()
    MlflowClient().set_experiment_tag("0", "mlmeta.import_batches", "[]")
    import_attempts([write_lines(read_documents()[1:2])])
    assert listed_batches()[0] == first
    assert len(listed_batches()) == 2


def test_only_the_newest_imports_are_listed() -> None:
    MlflowClient().set_experiment_tag("0", "mlmeta.import_batches", json.dumps([str(n) for n in range(MAX_BATCHES)]))
    import_attempts([write_lines(read_documents()[:1])])
    batches = listed_batches()
    assert len(batches) == MAX_BATCHES
    assert batches[:2] == ["1", "2"]
    assert batches[-1] == all_runs()[0].data.tags["mlmeta.import_batch"]


@pytest.mark.parametrize("text", ["", "{", "7", "{}"])
def test_a_damaged_list_of_imports_is_begun_anew(text: str) -> None:
    MlflowClient().set_experiment_tag("0", "mlmeta.import_batches", text)
    import_attempts([write_lines(read_documents()[:1])])
    assert len(listed_batches()) == 1


def test_two_imports_do_not_run_at_once(store: str) -> None:
    with only_import(store), pytest.raises(BadInputError, match="another import"):
        import_attempts([write_lines(read_documents()[:1])])


def test_the_experiment_is_made_or_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import_attempts([write_lines(read_documents()[:1])], experiment="new")
    import_attempts([write_lines(read_documents()[1:2])], experiment="new")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from settings")
    import_attempts([write_lines(read_documents()[2:3])])
    client = MlflowClient()
    names = [client.get_experiment(run.info.experiment_id).name for run in all_runs()]
    assert sorted(names) == ["from settings", "new", "new"]
    client.delete_experiment(client.get_experiment_by_name("new").experiment_id)
    with pytest.raises(BadInputError, match="is deleted"):
        import_attempts([write_lines(read_documents()[:1])], experiment="new")


def test_a_dry_run_counts_and_writes_nothing() -> None:
    import_attempts([write_lines(read_documents()[:1])])
    result = import_attempts([write_lines([*read_documents()[:2], "{"])], dry_run=True)
    assert counts(result) == (1, 1, 1)
    assert len(all_runs()) == 1


def test_a_dry_run_makes_no_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/new.db")
    assert counts(import_attempts([write_lines(read_documents()[:2])], dry_run=True)) == (2, 0, 0)
    assert not (tmp_path / "new.db").exists()


def test_a_table_becomes_runs() -> None:
    Path("runs.csv").write_text("Name,State,Runtime,lr,acc\na,finished,60,0.1,0.9\nb,crashed,5,1,\n", encoding="utf-8")
    result = import_attempts(["runs.csv"], mapping={"acc": "accuracy", "lr": "training_commands.optimizer.lr"})
    assert counts(result) == (2, 0, 0)
    first, second = sorted(all_runs(), key=lambda run: str(run.info.run_name))
    assert first.data.params == {"optimizer.lr": "0.1"}
    assert first.data.metrics == {"accuracy": 0.9}
    assert first.data.tags["mlmeta.status"] == "Complete"
    assert second.data.tags["mlmeta.status"] == "Failed"
    assert second.info.end_time - second.info.start_time == 5000
    assert counts(import_attempts(["runs.csv"], mapping={"acc": "accuracy", "lr": "params.optimizer.lr"})) == (0, 2, 0)


def test_a_row_that_is_imported_with_other_fields_replaces_its_attempt() -> None:
    file = Path("t.csv")
    file.write_text("name,best,lr\nx,0.5,1\ny,0.6,2\n", encoding="utf-8")
    assert counts(import_attempts([file])) == (2, 0, 0)
    before = {run.info.run_id for run in all_runs()}
    planned = import_attempts([file], mapping={"best": "accuracy"}, dry_run=True)
    assert (planned.n_new, planned.n_replaced) == (0, 2)
    result = import_attempts([file], mapping={"best": "accuracy"})
    assert (result.n_new, result.n_replaced, result.n_known) == (0, 2, 0)
    assert [run.data.metrics["accuracy"] for run in sorted(all_runs(), key=lambda run: str(run.info.run_name))] == [
        0.5,
        0.6,
    ]
    assert not before & {run.info.run_id for run in all_runs()}
    assert import_attempts([file], mapping={"best": "accuracy"}).n_known == 2
    assert import_attempts([file]).n_replaced == 2
    assert len(all_runs()) == 2


def test_names_that_mlflow_does_not_take_are_listed() -> None:
    document = {"name": " x ", "params": {"a[0]": 1, "b": 2}, "metrics": {"../m": 1.0}, "tags": {"é": "x", "t!": "y"}}
    result = import_attempts([write_lines([document])], dry_run=True)
    assert result.renamed == {" x ": "x", "a[0]": "a_0_", "../m": "_m", "t!": "t_"}


def test_the_document_of_the_older_tool_goes_in() -> None:
    file = DATA / "american_dog_species_3.attempt.json"
    import_attempts([file])
    (run,) = all_runs()
    assert run.info.run_name == "american_dog_species_3"
    assert len(MlflowClient().get_metric_history(run.info.run_id, "train_loss")) == 100
    assert list(export_attempts("american_dog_species_3")) == [json.loads(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pictures": "nowhere"}, "nowhere"),
        ({"mapping": {"a": "accuracy"}}, "none of the files"),
        ({"mapping": {"a": "acuracy"}}, "Did you mean 'accuracy'"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_written(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        import_attempts([write_lines(read_documents()[:1])], **arguments)
    assert all_runs() == []


def test_no_file_is_refused() -> None:
    with pytest.raises(BadInputError, match="no file"):
        import_attempts([])
