"""Recorded attempts come out as Attempt documents. All on a real SQLite store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from attempt_table import read_documents
from mlflow import MlflowClient

from mlmeta.commands.parsing import parse_attempt, parse_train_commands
from mlmeta.errors import BadInputError, MlmetaError, NotFoundError
from mlmeta.exchange.exporting import export_attempts
from mlmeta.exchange.importing import import_attempts
from mlmeta.tracking.attempts import make_document
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
