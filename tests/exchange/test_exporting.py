"""Recorded attempts come out as Attempt documents. All on a real SQLite store."""

from __future__ import annotations

import json
import math
import shutil
import uuid
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import pytest
from attempt_table import read_documents
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mlmeta.commands.params import describe_architecture, flatten_params, format_param, walk_layers
from mlmeta.commands.parsing import parse_attempt, parse_test_commands, parse_train_commands
from mlmeta.errors import BadInputError, MlmetaError, NotFoundError
from mlmeta.evaluate import evaluate_attempt
from mlmeta.exchange.exporting import export_attempts
from mlmeta.exchange.importing import import_attempts
from mlmeta.tracking.attempts import make_document, read_text
from mlmeta.train import run_attempt

pytestmark = pytest.mark.usefixtures("store")


def put_in(*documents: dict[str, Any], experiment: str | None = None) -> None:
    Path("in.json").write_text(json.dumps(documents), encoding="utf-8")
    result = import_attempts(["in.json"], experiment=experiment)
    assert result.n_new == len(documents)


def document(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {**read_documents()[number], **changes}


def find_run_id(name: str, experiment_id: str = "0") -> str:
    (run,) = MlflowClient().search_runs([experiment_id], f"attributes.run_name = '{name}'")
    return str(run.info.run_id)


def test_a_trained_attempt_comes_out_as_its_document(toy_document: dict[str, Any]) -> None:
    run_id, _, _ = run_attempt(parse_train_commands({**toy_document, "n_epoch": 1}), base_dir=Path())
    (exported,) = export_attempts(run_id)
    assert exported == make_document(run_id)
    assert parse_attempt(exported).training_commands.n_epoch == 1


def test_an_attempt_is_found_by_run_id_and_by_name() -> None:
    put_in(document(0), document(1))
    by_id = list(export_attempts(find_run_id(document(1)["name"])))
    assert by_id == list(export_attempts(document(1)["name"])) == [document(1)]


def test_named_attempts_come_in_the_order_of_their_names() -> None:
    put_in(document(0), document(1), document(2))
    names = [document(number)["name"] for number in (2, 0)]
    assert [exported["name"] for exported in export_attempts(*names)] == names


def test_a_name_stands_for_its_newest_attempt() -> None:
    put_in(document(started="2026-02-01"), document(started="2026-03-01"), document(started="2026-01-01"))
    assert [exported["started"] for exported in export_attempts(document()["name"])] == ["2026-03-01"]


@pytest.mark.parametrize("name", ["it's", 'a "b"', "a`b", "100%", "ü {x}", "0123456789abcdef0123456789abcdef"])
def test_odd_names_are_found(name: str) -> None:
    put_in(document(name=name), document(1))
    assert list(export_attempts(name)) == [document(name=name)]


def test_all_attempts_come_oldest_first() -> None:
    moments = ["2026-02-01", "2026-03-01", "2026-01-01"]
    put_in(*(document(number, started=moment) for number, moment in enumerate(moments)))
    assert [exported["started"] for exported in export_attempts(all=True)] == sorted(moments)


def test_only_attempts_are_exported() -> None:
    put_in(document())
    MlflowClient().create_run("0", run_name="of another tool")
    assert list(export_attempts(all=True)) == [document()]


def test_experiments_narrow_the_search() -> None:
    put_in(document(0), experiment="one")
    put_in(document(1), experiment="two")
    assert list(export_attempts(all=True, experiments=["two"])) == [document(1)]
    with pytest.raises(NotFoundError, match="Did you mean 'two'"):
        list(export_attempts(all=True, experiments=["twoo"]))


def test_pages_of_attempts_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(*(document(number) for number in range(5)))
    search = MlflowClient.search_runs
    # As a store answers that gives two at a time, however many it is asked for.
    monkeypatch.setattr(
        MlflowClient, "search_runs", lambda *given, **options: search(*given, **options | {"max_results": 2})
    )
    assert sorted(exported["id"] for exported in export_attempts(all=True)) == sorted(
        document(number)["id"] for number in range(5)
    )


def test_an_empty_store_has_nothing_to_export() -> None:
    assert list(export_attempts(all=True)) == []


@pytest.mark.parametrize("wanted", ["cifar-dev-0-c0000", "ffffffffffffffffffffffffffffffff"])
def test_an_attempt_that_is_not_there_is_told(wanted: str) -> None:
    put_in(document())
    with pytest.raises(NotFoundError, match=r"no attempt named|has no run"):
        list(export_attempts(wanted))


@pytest.mark.parametrize(("names", "everything"), [((), False), (("x",), True)])
def test_either_names_or_all_must_be_asked_for(names: tuple[str, ...], everything: bool) -> None:
    with pytest.raises(BadInputError, match="not both"):
        list(export_attempts(*names, all=everything))


def test_an_attempt_without_a_document_is_told_and_the_others_come() -> None:
    put_in(document(0), document(1))
    client = MlflowClient()
    lost = client.get_run(find_run_id(document(0)["name"]))
    shutil.rmtree(client.get_run(lost.info.run_id).info.artifact_uri.removeprefix("file://"))
    told: list[MlmetaError] = []
    assert list(export_attempts(all=True, on_fault=told.append)) == [document(1)]
    assert lost.info.run_id in str(told[0])
    with pytest.raises(NotFoundError, match=r"no artifact attempt\.json"):
        list(export_attempts(all=True))


def test_what_was_exported_can_be_imported_elsewhere(toy_document: dict[str, Any]) -> None:
    run_id, _, _ = run_attempt(parse_train_commands({**toy_document, "n_epoch": 1}), base_dir=Path(), test=False)
    (exported,) = export_attempts(run_id)
    put_in(exported, experiment="copy")
    copied = list(export_attempts(all=True, experiments=["copy"]))
    assert copied == [exported]


COMMANDS = {"model_name": "moved", "n_epoch": 4, "model": {"layers": [{"name": "Flatten"}]}}
NUMBERS = st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf])
LOSSES = st.lists(NUMBERS, max_size=4)
POINTS = st.lists(st.tuples(st.integers(-3, 9), NUMBERS), min_size=1, max_size=4)


def make_run(drawn: dict[str, Any]) -> str:
    """Return the run of an attempt as mlmeta's own training and testing write it."""
    client, commands = MlflowClient(), parse_train_commands(COMMANDS)
    tags = {
        "mlmeta.kind": "attempt", "mlmeta.commands": json.dumps(COMMANDS), "mlmeta.heartbeat": "5",
        "mlmeta.task_digest": "d" * 64, "mlmeta.task": json.dumps({"width": 8, "spread": 0.25}),
        "mlflow.note.content": "**good**",
    }  # fmt: skip
    started = 1_700_000_000_123
    run_id = client.create_run("0", run_name="moved", start_time=started, tags=tags | drawn["tags"]).info.run_id
    params = flatten_params(commands.model_dump(mode="json", exclude={"schema_url"}))
    shape = describe_architecture(walk_layers(commands.model["layers"]), n_parameters=7)
    params |= {f"arch.{key}": format_param(value) for key, value in shape.items()} | drawn["params"]
    curves = {"epoch_seconds": [(1, 0.5)], "train_loss": list(enumerate(drawn["losses"], start=1)), **drawn["curves"]}
    metrics = [
        Metric(key, value, started + number, step)
        for key, points in curves.items()
        for number, (step, value) in enumerate(points)
    ]
    client.log_batch(run_id, metrics=metrics, params=[Param(*one) for one in params.items()])
    if drawn["seconds"] is None:
        client.update_run(run_id, "FINISHED")
    else:
        client.set_terminated(run_id, "FINISHED", started + drawn["seconds"])
    return str(run_id)


def export_from(uri: str) -> list[dict[str, Any]]:
    mlflow.set_tracking_uri(uri)
    return [json.loads(json.dumps(one, allow_nan=False)) for one in export_attempts(all=True)]


# Each example fills three stores, so that to make a failing one smaller would take minutes.
@settings(
    max_examples=8, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    drawn=st.fixed_dictionaries(
        {
            "losses": LOSSES,
            "curves": st.dictionaries(st.sampled_from(["accuracy", "val_loss", "macro_f1", "best/x", "loss"]), POINTS),
            "seconds": st.none() | st.integers(1, 10**9),
            "params": st.dictionaries(st.sampled_from(["task.n_train", "test.seed", "n_labels"]), st.just("12")),
            "tags": st.fixed_dictionaries(
                {"mlmeta.status": st.sampled_from(["Complete", "Pruned", "Diverged", "Trained", "Interrupted"])},
                optional={"team": st.text(min_size=1), "mlmeta.stop_reason": st.just("too slow"),
                          "mlmeta.weights_sha256": st.just("w")},
            ),
        }
    )
)  # fmt: skip
def test_a_history_that_moves_says_the_same_in_every_store(
    drawn: dict[str, Any], store_template: Path, tmp_path: Path
) -> None:
    # MLflow keeps a store open by its name, so each example has its own.
    files = [tmp_path / f"{uuid.uuid4().hex}.db" for _ in range(3)]
    stores = [f"sqlite:///{shutil.copy(store_template, file)}" for file in files]
    mlflow.set_tracking_uri(stores[0])
    make_run(drawn)
    for before, after in pairwise(stores):
        documents = export_from(before)
        Path("moving.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
        mlflow.set_tracking_uri(after)
        assert import_attempts(["moving.jsonl"]).n_new == 1
        assert export_from(after) == documents
        # The run itself holds all of it too, not only the document that lies in it.
        held = json.loads(json.dumps(make_document(find_run_id("moved"))))
        assert held | {"id": 0, "weights_sha256": 0} == documents[0] | {"id": 0, "weights_sha256": 0}


def test_an_attempt_that_was_tested_twice_keeps_both_results(toy_document: dict[str, Any]) -> None:
    run_id, _, _ = run_attempt(parse_train_commands({**toy_document, "n_epoch": 1}), base_dir=Path())
    evaluate_attempt(parse_test_commands({"run_id": run_id}), base_dir=Path())
    (first,) = export_attempts(run_id)
    assert len(first["curves"]["accuracy"]) == len(first["curves"]["macro_f1"]) == 2
    assert first["ended"] > first["started"]
    assert json.loads(read_text(MlflowClient(), run_id, "attempt.json")) == first
