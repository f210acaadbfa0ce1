"""What the run of an imported attempt holds, made from its document without MLflow."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from attempt_table import read_documents
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param, _validate_tag

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.params import describe_architecture, flatten_params, walk_layers
from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import CommandsError
from mlmeta.exchange.documents import AttemptFacts, parse_exchanged
from mlmeta.exchange.records import (
    RunRecord,
    TaskFacts,
    describe_network,
    describe_unseen_task,
    legal_key,
    make_record,
    settle_status,
    settle_times,
)
from mlmeta.status import Status

NOW = 1_700_000_000.0


def record(document: dict[str, Any], *, task: TaskFacts | None = None, **network: Any) -> RunRecord:
    attempt = parse_exchanged(document)
    task = task or describe_unseen_task(attempt)
    return make_record(attempt, task=task, network=network, file_name="a.jsonl", now_s=NOW)


def facts(**given: Any) -> AttemptFacts:
    return AttemptFacts.model_validate({"name": "x", **given})


def steps(made: RunRecord, key: str) -> dict[int, float]:
    return {step: value for name, value, _, step in made.metrics if name == key}


def test_params_are_the_commands_flattened_and_what_is_known_of_task_and_model() -> None:
    document = read_documents()[0]
    commands = parse_train_commands(document["training_commands"])
    task = TaskFacts("d", "pictures", {"n_labels": 2, "n_train": 7})
    made = record(document, task=task, n_parameters=5, batch_norm=True, dropout=0.5)
    expected = flatten_params(commands.model_dump(mode="json", exclude={"schema_url"}))
    expected |= {"task.n_labels": "2", "task.n_train": "7"}
    expected |= {"arch.n_parameters": "5", "arch.batch_norm": "true", "arch.dropout": "0.5"}
    assert made.params == expected


def test_curves_are_metrics_with_an_epoch_a_step() -> None:
    document = {
        **read_documents()[0],
        "training_losses": [2.0, None, 1.0],
        "val_losses": [3.0],
        "val_accuracies": [0.5],
    }
    made = record(document)
    assert steps(made, "train_loss") == {1: 2.0, 3: 1.0}
    assert steps(made, "val_loss") == {1: 3.0}
    assert steps(made, "val_accuracy") == {1: 0.5}
    assert steps(made, "test_accuracy") == dict(enumerate(document["test_accuracies"], start=1))
    assert steps(made, "accuracy") == {0: document["accuracy"]}
    assert steps(made, "epoch_seconds") == {12: document["seconds"] / 12}
    assert json.loads(made.tags["mlmeta.training_losses"]) == [2.0, None, 1.0]


def test_curves_keep_every_point_and_what_json_has_no_number_for() -> None:
    told = {
        "training_losses": [2.0, None],
        "metrics": {"best": "-Infinity", "regret": None},
        "curves": {"train_loss": [[1, 2.0], [2, "NaN"]], "accuracy": [[0, 0.5], [0, 0.5], [0, 0.6]], "gap": []},
    }
    made = record({**read_documents()[0], **told, "accuracy": 0.6, "started": 100, "seconds": None})
    assert made.end_ms is None
    assert math.isnan(steps(made, "train_loss")[2])
    assert steps(made, "best") == {0: -math.inf}
    points = [(moment, step, value) for key, value, moment, step in made.metrics if key == "accuracy"]
    assert points == [(100_001, 0, 0.5), (100_002, 0, 0.5), (100_003, 0, 0.6)]


@pytest.mark.parametrize("curve", [[[1]], [["1", 2.0]], [[1, "Inf"]], [[2**63, 1.0]], {"1": 2.0}])
def test_a_curve_that_is_none_is_told(curve: Any) -> None:
    with pytest.raises(CommandsError, match=r"curves\.loss"):
        record({"name": "x", "params": {}, "curves": {"loss": curve}})


def test_what_is_true_in_every_store_moves_along() -> None:
    digest = "0" * 64
    task = {"name": "pets", "digest": digest, "features": {"width": 8, "spread": 0.5}, "n_train": 9}
    tags = {"mlflow.note.content": "good", "mlmeta.device": "cpu", "mlmeta.heartbeat": "5", "team": "blue"}
    made = record({**read_documents()[0], "task": task, "tags": tags, "params": {"test.seed": "3", "n_epoch": "1"}})
    assert made.params.items() >= {"test.seed": "3", "task.n_train": "9", "n_epoch": "12"}.items()
    assert made.tags.items() >= {
        "mlflow.note.content": "good", "mlmeta.device": "cpu", "team": "blue", "mlmeta.task_digest": digest,
        "mlmeta.task": '{"width": 8, "spread": 0.5}', "mlmeta.task_source": "pictures",
    }.items()  # fmt: skip
    assert "mlmeta.heartbeat" not in made.tags


def test_the_moments_of_a_curve_lie_between_start_and_end() -> None:
    document = {**read_documents()[0], "started": "2026-01-01T00:00:00Z", "seconds": 12.0}
    made = record(document)
    moments = [moment for key, _, moment, _ in made.metrics if key == "test_loss"]
    assert made.end_ms == made.start_ms + 12_000
    assert moments == [made.start_ms + 1000 * epoch for epoch in range(1, 13)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (NOW, None)),
        ({"seconds": 5}, (NOW - 5, NOW)),
        ({"started": 100}, (100, None)),
        ({"started": 100, "seconds": 5.5}, (100, 105.5)),
        ({"ended": 100, "seconds": 5}, (95, 100)),
        ({"started": 100, "ended": 110, "seconds": 5}, (100, 110)),
        ({"started": 100, "ended": 90}, (100, None)),
        ({"started": 100, "seconds": 0}, (100, None)),
        ({"ended": 3, "seconds": 5}, (0, 3)),
    ],
)
def test_times_are_those_of_the_document_or_end_now(
    given: dict[str, Any], expected: tuple[float, float | None]
) -> None:
    started, ended = expected
    assert settle_times(facts(**given), now_s=NOW) == (round(started * 1000), ended and round(ended * 1000))


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"status": "Diverged", "accuracy": 0.1}, Status.DIVERGED),
        ({"accuracy": 0.0}, Status.COMPLETE),
        ({"metrics": {"accuracy": 0.5}}, Status.COMPLETE),
        ({"training_losses": [1.0]}, Status.TRAINED),
        ({"status": "Training", "accuracy": 0.1}, Status.INTERRUPTED),
        ({"status": "Testing"}, Status.INTERRUPTED),
        ({}, Status.INCOMPLETE),
    ],
)
def test_a_state_that_is_not_said_is_told_by_the_results(given: dict[str, Any], status: Status) -> None:
    assert settle_status(facts(**given)) == status


def test_the_digest_of_an_unseen_task_knows_its_name_and_labels_in_any_order() -> None:
    document = read_documents()[0]

    def digest(name: str, labels: list[str]) -> str:
        task = {"name": name, "label_names": labels}
        return describe_unseen_task(parse_exchanged({**document, "task": task})).digest

    assert digest("a", ["x", "y"]) == digest("a", ["y size:5x5", "x"])
    assert len({digest("a", ["x", "y"]), digest("b", ["x", "y"]), digest("a", ["x", "z"])}) == 3
    task = describe_unseen_task(parse_exchanged(document))
    assert task.counts == {"n_labels": 2, "n_train": 300, "n_test": 120}
    assert task.source == "document"


def test_an_attempt_without_name_and_labels_has_no_task() -> None:
    made = record({"name": "x", "params": {"lr": 0.1}})
    assert "mlmeta.task_digest" not in made.tags
    assert made.params == {"lr": "0.1"}


def test_another_tools_attempt_says_just_what_its_document_says() -> None:
    made = record(
        {
            "name": "x", "n_epoch": 3, "n_parameters": 9, "accuracy": 0.5,
            "params": {"lr": "1e-3", "flag": True, "none": None, "a[0]": "1", "a(0)": "2", "long": "y" * 7000},
            "metrics": {"auc": 0.7, "lost": None},
            "tags": {"team": "blue", "mlmeta.kind": "cat", "mlflow.user": "eve"},
        }
    )  # fmt: skip
    assert made.params.pop("long") == "y" * 5999 + "…"
    assert made.params == {
        "lr": "1e-3", "flag": "true", "a_0_": "1", "a_0_ 2": "2", "n_epoch": "3", "arch.n_parameters": "9"
    }  # fmt: skip
    assert {key: value for key, value, _, _ in made.metrics} == {"auc": 0.7, "accuracy": 0.5}
    assert made.tags["team"] == "blue"
    assert not {"mlmeta.kind", "mlflow.user", "mlmeta.commands_digest"} & made.tags.keys()
    assert set(made.documents) == {"attempt.json"}


def test_a_metric_is_recorded_once_where_a_curve_has_it_too() -> None:
    made = record({**read_documents()[0], "metrics": {"train_loss": 9.0, "accuracy": 0.1, "epoch_seconds": 1.0}})
    keys_and_steps = [(key, step) for key, _, _, step in made.metrics]
    assert len(keys_and_steps) == len(set(keys_and_steps))
    assert 9.0 not in steps(made, "train_loss").values()


def test_the_documents_are_kept_as_they_came() -> None:
    document = read_documents()[0]
    made = record(document)
    assert made.documents == {
        "attempt.json": document,
        "train_commands.json": document["training_commands"],
        "test_commands.json": document["testing_commands"],
    }


def test_the_note_says_the_result_first() -> None:
    document = {**read_documents()[0], "status": "Complete", "accuracy": 0.795, "test_losses": [0.7765]}
    made = record(document, n_parameters=64808)
    lines = made.tags["mlflow.note.content"].splitlines()
    assert lines[0] == "**Complete: accuracy 79.5%**, test loss 0.7765"
    assert lines[2] == "2 labels, 300 training pictures, 120 test pictures, 64,808 parameters."
    assert lines[4] == "Imported from a.jsonl."


def test_a_name_that_is_too_long_is_cut() -> None:
    assert record({"name": "n" * 300, "metrics": {}}).name == "n" * 250
    assert record({"name": " ", "metrics": {}}).name == "unnamed"


def test_the_shape_of_a_model_is_read_from_its_layers() -> None:
    commands = parse_train_commands(read_documents()[0]["training_commands"])
    full = describe_architecture(walk_layers(commands.model["layers"]), n_parameters=11)
    assert describe_network(commands, 11) == full
    assert describe_network(commands, None) == {key: full[key] for key in full if key != "n_parameters"}
    named = TrainCommands.model_validate({"model_name": "x", "model": {"name": "resnet18"}})
    assert describe_network(named, 11) == {"n_parameters": 11}
    assert describe_network(named, None) == {}


@given(key=st.text(max_size=300) | st.text(alphabet="./a ", max_size=8))
def test_every_key_becomes_one_that_mlflow_takes(key: str) -> None:
    legal = legal_key(key)
    _validate_param(legal, "x")
    _validate_tag(legal, "x")
    _validate_metric_name(legal)


@pytest.mark.parametrize("key", ["optimizer.lr", "best/acc", "a b", "läuft:1", "model.layers.0.name"])
def test_a_key_that_mlflow_takes_stays_as_it_is(key: str) -> None:
    assert legal_key(key) == key
