"""Attempt documents are checked as a whole, with the facts beside the commands."""

from __future__ import annotations

from typing import Any

import pytest
from attempt_table import read_documents

from mlmeta.errors import BadInputError, CommandsError
from mlmeta.exchange.documents import parse_exchanged, read_moment


def document(**changes: Any) -> dict[str, Any]:
    return {**read_documents()[0], **changes}


def test_a_real_document_gives_its_facts_and_commands() -> None:
    attempt = parse_exchanged(document())
    assert attempt.document == document()
    assert attempt.commands is not None
    assert attempt.commands.document() == document()["training_commands"]
    assert attempt.facts.accuracy == document()["accuracy"]
    assert attempt.facts.n_parameters == document()["n_parameters"]
    assert attempt.facts.task is not None
    assert attempt.facts.task.name == document()["task"]["name"]


def test_the_digest_knows_every_part_and_no_order() -> None:
    turned = dict(reversed(document().items()))
    assert parse_exchanged(turned).digest == parse_exchanged(document()).digest
    assert parse_exchanged(document(config_id=-1)).digest != parse_exchanged(document()).digest


def test_all_faults_are_told_at_once_and_each_once() -> None:
    faulty = document(accuracy="high", seconds=-1, test_losses=[1.0, "x"], started="yesterday", params={"a": [1]})
    faulty["training_commands"] = {**faulty["training_commands"], "batch_size": 0}
    with pytest.raises(CommandsError) as error:
        parse_exchanged(faulty, source="a.jsonl, line 3")
    paths = [fault.path for fault in error.value.faults]
    assert sorted(paths) == [
        "accuracy", "params", "seconds", "started", "test_losses.1", "training_commands.batch_size",
    ]  # fmt: skip
    assert str(error.value).startswith("a.jsonl, line 3: 6 faults")


def test_a_document_of_another_tool_has_params_and_metrics_in_place_of_commands() -> None:
    attempt = parse_exchanged({"name": "x", "params": {"lr": "0.1", "big": True}, "metrics": {"auc": 1, "f1": None}})
    assert attempt.commands is None
    assert attempt.facts.params == {"lr": "0.1", "big": True}
    assert attempt.facts.metrics == {"auc": 1.0, "f1": None}


def test_without_commands_params_and_metrics_the_commands_are_missing() -> None:
    with pytest.raises(CommandsError, match="training_commands: is required and missing"):
        parse_exchanged({"name": "x"})


@pytest.mark.parametrize("value", [[], 3, "text", None])
def test_what_is_no_object_is_no_document(value: Any) -> None:
    with pytest.raises(CommandsError, match="must be a JSON object"):
        parse_exchanged(value)


@pytest.mark.parametrize(("extra", "message"), [("\ud800", "not Unicode"), (float("inf"), "number that is too large")])
def test_what_cannot_be_written_again_is_refused(extra: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_exchanged(document(remark=[extra]))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1970-01-02T00:00:00Z", 86400.0),
        ("1970-01-02 01:00:00+01:00", 86400.0),
        ("1970-01-02", 86400.0),
        ("2021-06-04T12:52:41.500Z", 1622811161.5),
        (1622811161.5, 1622811161.5),
        (1622811161500, 1622811161.5),
        (None, None),
    ],
)
def test_a_moment_is_read_in_every_form(value: Any, seconds: float | None) -> None:
    assert read_moment(value) == seconds


@pytest.mark.parametrize("value", ["now", "", -1, 1e300, True, [], "1969-12-31", float("nan")])
def test_what_is_no_moment_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="must be a moment"):
        read_moment(value)
