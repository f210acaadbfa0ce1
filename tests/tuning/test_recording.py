"""The run of a tuning: found by name or id, worked on by one process, and closed in whatever way it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mlmeta.commands.parsing import parse_train_commands
from mlmeta.errors import BadInputError, NotFoundError
from mlmeta.tuning.recording import TunedAttempt, find_tuning, list_attempts, record_tuning


def record(document: dict[str, Any], **options: Any) -> Any:
    return record_tuning(parse_train_commands(document), base_dir=Path(), settings={"attempts": 3}, **options)


def test_the_newest_tuning_of_a_name_is_found(toy_document: dict[str, Any], store: str) -> None:
    run_ids = []
    for _ in range(2):
        with record(toy_document) as recorder:
            run_ids.append(recorder.run_id)
    found = find_tuning("colours")
    assert (found.run_id, found.settings) == (run_ids[1], {"attempts": 3})
    assert found.commands == parse_train_commands(toy_document)
    assert find_tuning(run_ids[0]).run_id == run_ids[0]
    assert list_attempts(run_ids[0]) == []
    with pytest.raises(NotFoundError, match="Did you mean 'colours'"):
        find_tuning("colour")


def test_two_processes_cannot_work_on_one_tuning(toy_document: dict[str, Any], store: str) -> None:
    with record(toy_document) as recorder, pytest.raises(BadInputError):
        with record(toy_document, resume_run_id=recorder.run_id):
            pytest.fail("both work on it")
    assert MlflowClient().get_run(recorder.run_id).data.tags["mlmeta.status"] == "Complete"


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt(), ("KILLED", "Interrupted")), (ValueError("why"), ("FAILED", "Failed"))]
)
def test_a_tuning_that_breaks_says_how_to_go_on(
    toy_document: dict[str, Any], store: str, error: BaseException, state: tuple[str, str]
) -> None:
    with pytest.raises(type(error)) as caught, record(toy_document) as recorder:
        raise error
    assert caught.value.__notes__ == [f"go on with: mlmeta tune --resume {recorder.run_id}"]
    run = MlflowClient().get_run(recorder.run_id)
    assert (run.info.status, run.data.tags["mlmeta.status"]) == state
    assert run.data.tags.get("mlmeta.error") == (None if state[0] == "KILLED" else "why")


def test_what_a_tuning_cost_adds_up_over_its_stops(toy_document: dict[str, Any], store: str) -> None:
    best = TunedAttempt("id", "colours-1", "Complete", 1, 4, 0.75, 0.5, 0.7)
    with record(toy_document) as recorder:
        recorder.log_progress([best], best)
        spent = recorder.seconds
    with record(toy_document, resume_run_id=recorder.run_id) as again:
        assert 0 < MlflowClient().get_run(again.run_id).data.metrics["tuning_seconds"] <= spent
        assert again.seconds > MlflowClient().get_run(again.run_id).data.metrics["tuning_seconds"]
    data = MlflowClient().get_run(again.run_id).data
    assert data.tags["mlmeta.incumbent"] == "colours-1"
    assert (data.metrics["incumbent_accuracy"], data.metrics["tuning_epochs"]) == (0.7, 4.0)


def test_without_an_incumbent_only_the_cost_is_recorded(toy_document: dict[str, Any], store: str) -> None:
    with record(toy_document) as recorder:
        recorder.log_progress([TunedAttempt("id", "colours-1", "Failed", 1, 0, math.nan, math.nan)], None)
    data = MlflowClient().get_run(recorder.run_id).data
    assert set(data.metrics) == {"tuning_attempts", "tuning_epochs", "tuning_seconds"}
    assert "mlmeta.incumbent" not in data.tags
