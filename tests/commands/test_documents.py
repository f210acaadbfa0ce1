from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import strategies
from hypothesis import HealthCheck, given, settings

from mlmeta.commands.documents import TestCommands, TrainCommands, digest_document
from mlmeta.commands.parsing import parse_attempt, parse_test_commands, parse_train_commands
from mlmeta.errors import CommandsError
from mlmeta.status import Status

DATA = Path(__file__).parent.parent / "data"
OLDER = json.loads((DATA / "american_dog_species_3.attempt.json").read_text(encoding="utf-8"))
SAMPLE = [json.loads(line) for line in (DATA / "attempts_sample.jsonl").read_text(encoding="utf-8").splitlines()]
MINIMAL: dict[str, Any] = {"model_name": "dogs", "model": {"layers": [{"name": "Flatten"}]}}
slow_to_draw = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def faults_of(document: Any, parse: Any = parse_train_commands) -> list[str]:
    with pytest.raises(CommandsError) as caught:
        parse(document)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("attempt", [OLDER, *SAMPLE], ids=lambda attempt: attempt["name"])
def test_attempt_documents_load_and_come_back_unchanged(attempt: dict[str, Any]) -> None:
    read = parse_attempt(attempt)
    assert read.document() == attempt
    assert read.training_commands.document() == attempt["training_commands"]
    assert read.testing_commands is not None
    assert read.testing_commands.document() == attempt["testing_commands"]


@pytest.mark.parametrize("attempt", [OLDER, *SAMPLE], ids=lambda attempt: attempt["name"])
def test_the_commands_of_attempt_documents_can_be_read_on_their_own(attempt: dict[str, Any]) -> None:
    assert parse_train_commands(attempt).document() == attempt["training_commands"]
    assert parse_train_commands(attempt["training_commands"]).document() == attempt["training_commands"]
    assert parse_test_commands(attempt).document() == attempt["testing_commands"]


def test_a_loss_that_was_not_finite_is_null_in_a_document() -> None:
    assert None in parse_attempt(SAMPLE[0]).training_losses


def test_the_status_of_an_attempt_is_one_of_the_closed_set() -> None:
    assert parse_attempt(OLDER).status is Status.COMPLETE


@slow_to_draw
@given(strategies.train_documents())
def test_train_commands_come_back_from_json_as_they_were(document: dict[str, Any]) -> None:
    commands = parse_train_commands(json.loads(json.dumps(document)))
    written = json.dumps(commands.document())
    assert json.loads(written) == document
    assert parse_train_commands(json.loads(written)) == commands


@slow_to_draw
@given(strategies.test_documents())
def test_test_commands_come_back_from_json_as_they_were(document: dict[str, Any]) -> None:
    commands = parse_test_commands(json.loads(json.dumps(document)))
    written = json.dumps(commands.document())
    assert json.loads(written) == document
    assert parse_test_commands(json.loads(written)) == commands


@slow_to_draw
@given(strategies.train_documents())
def test_a_digest_depends_on_no_order_and_no_schema(document: dict[str, Any]) -> None:
    backwards = dict(reversed(document.items())) | {"$schema": "https://example.org/x.json"}
    assert parse_train_commands(document).digest() == parse_train_commands(backwards).digest()


def test_a_digest_is_the_sha256_of_canonical_json() -> None:
    text = '{"a":[1,"ä"],"b":{"c":null,"d":0.1}}'
    document = {"b": {"d": 0.1, "c": None}, "a": [1, "ä"], "$schema": "x"}
    assert digest_document(document) == hashlib.sha256(text.encode()).hexdigest()


def test_another_learning_rate_gives_another_digest() -> None:
    first, second = ({**MINIMAL, "optimizer": {"name": "Adam", "lr": lr}} for lr in (0.1, 0.2))
    assert parse_train_commands(first).digest() != parse_train_commands(second).digest()


def test_what_is_left_out_has_its_default() -> None:
    commands = parse_train_commands(MINIMAL)
    assert (commands.batch_size, commands.n_epoch, commands.seed, commands.keep) == (32, 10, 0, "best")
    assert commands.criterion == {"name": "CrossEntropyLoss"}
    assert (commands.data.source, commands.transform) == ("folder", {"ToTensor": True})
    assert commands.test.limit == 0
    assert commands.document() == MINIMAL


@pytest.mark.parametrize(
    "name", ["dogs", "american_dog_species_3", "Dogs v1.2 (new)", "犬", "Überhund", "1", "a" * 200, "a=b,c@d+e"]
)
def test_a_safe_file_name_may_be_a_models_name(name: str) -> None:
    assert parse_train_commands({**MINIMAL, "model_name": name}).model_name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "a\nb",
        "a\n",
        "a\0b",
        "a\x1b[31m",
        " a",
        "a ",
        ".hidden",
        "-rf",
        "~",
        "a*",
        "C:x",
        "a" * 201,
        "a" * 300,
        "犬" * 67,
        "\ud800",
        "a\u2028b",
        "$HOME",
        "a;b",
    ],
    ids=lambda name: ascii(name)[:20],
)
@pytest.mark.parametrize("parse", [parse_train_commands, parse_test_commands])
def test_no_other_name_may_be_a_models_name(parse: Any, name: str) -> None:
    document = {**MINIMAL, "model_name": name} if parse is parse_train_commands else {"model_name": name}
    [fault] = faults_of(document, parse)
    assert fault.startswith("model_name: must be a safe file name of 1 to 200 bytes: letters, digits, spaces and ")


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["cat", "dog", "cat"], ["label_names: a label may stand once only; this one stands 2 times; got 'cat'"]),
        (["cat", ""], ["label_names.1: a label must be one line of 1 to 500 characters; got ''"]),
        (["cat", " \t "], ["label_names.1: a label must be one line of 1 to 500 characters; got ' \\t '"]),
        (["cat", "a\nb"], ["label_names.1: a label must be one line of 1 to 500 characters; got 'a\\nb'"]),
        (["cat", "a\u2028b"], ["label_names.1: a label must be one line of 1 to 500 characters; got 'a\\u2028b'"]),
        (["cat", "a\x85b"], ["label_names.1: a label must be one line of 1 to 500 characters; got 'a\\x85b'"]),
        (["cat", 5, None], ["label_names.1: must be a string; got 5", "label_names.2: must be a string; got null"]),
        ("cat", ["label_names: must be a list of strings; got 'cat'"]),
        ({"cat": 1}, ["label_names: must be a list of strings; got {'cat': 1}"]),
        (["cat", "\ud800"], ["label_names: holds text that is not Unicode; got '\\ud800'"]),
        (
            ["cat", "cat", "a\nb", 5],
            [
                "label_names.3: must be a string; got 5",
                "label_names: a label may stand once only; this one stands 2 times; got 'cat'",
                "label_names.2: a label must be one line of 1 to 500 characters; got 'a\\nb'",
            ],
        ),
    ],
    ids=lambda value: ascii(value)[:40] if isinstance(value, list) else "",
)
def test_all_faults_of_the_labels_are_told(labels: Any, says: list[str]) -> None:
    assert faults_of({**MINIMAL, "label_names": labels}) == says
    assert faults_of({"model_name": "dogs", "label_names": labels}, parse_test_commands) == says


def test_one_label_is_enough_for_a_test_and_not_for_a_training() -> None:
    says = (
        "label_names: there must be at least two labels to tell apart (or none: every label of the data); got ['cat']"
    )
    assert faults_of({**MINIMAL, "label_names": ["cat"]}) == [says]
    assert parse_test_commands({"model_name": "dogs", "label_names": ["cat"]}).label_names == ["cat"]


def test_a_label_may_hold_query_operators_spaces_and_any_script() -> None:
    labels = ["Boston Terrier imagesize:500x500", "cup/mug", "犬", "é", ".."]
    assert parse_train_commands({**MINIMAL, "label_names": labels}).label_names == labels


def test_a_number_of_labels_that_disagrees_is_told_beside_all_other_faults() -> None:
    document = {**MINIMAL, "label_names": ["a", "b"], "n_labels": 3, "n_epoch": 0}
    assert faults_of(document) == [
        "n_epoch: must be 1 or above; got 0",
        "n_labels: label_names has 2 labels: make the two equal, or n_labels 0; got 3",
    ]


@pytest.mark.parametrize("changes", [{"label_names": ["a", "b"]}, {}, {"label_names": ["a", "b", "c"], "n_labels": 0}])
def test_a_number_of_labels_that_agrees_is_taken(changes: dict[str, Any]) -> None:
    assert parse_train_commands({**MINIMAL, "n_labels": 2, **changes}).n_labels in (0, 2)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({}, "run_id: either model_name or run_id must say which attempt to test, and not both"),
        (
            {"model_name": "a", "run_id": "b"},
            "run_id: either model_name or run_id must say which attempt to test, and not both; got 'b'",
        ),
        ({"run_id": "../x"}, "run_id: must be the id of a run: 1 to 64 letters, digits, - and _; got '../x'"),
        ({"run_id": ""}, "run_id: must be the id of a run: 1 to 64 letters, digits, - and _; got ''"),
        (
            {"run_id": "a" * 65},
            f"run_id: must be the id of a run: 1 to 64 letters, digits, - and _; got '{'a' * 65}'",
        ),
        ({"run_id": 5}, "run_id: must be a string; got 5"),
        (
            {"model_name": "a", "n_labels": 3, "label_names": ["a", "b"]},
            "n_labels: label_names has 2 labels: make the two equal, or n_labels 0; got 3",
        ),
    ],
)
def test_test_commands_name_one_attempt(document: dict[str, Any], says: str) -> None:
    assert faults_of(document, parse_test_commands) == [says]


@pytest.mark.parametrize("path", ["", "  ", "a\0b", "a\nb", "x" * 4001, "\ud800"], ids=lambda path: ascii(path)[:20])
@pytest.mark.parametrize("source", ["folder", "manifest"])
def test_a_path_is_one_line(source: str, path: str) -> None:
    [fault] = faults_of({**MINIMAL, "data": {"source": source, "path": path}})
    assert fault.startswith(("data.path: must be a path: one line of ", "data: holds text that is not Unicode"))


@pytest.mark.parametrize("name", ["oxford", "a.b", "__class__", "Oxford-Pet", ""])
def test_a_data_set_of_torchvision_is_named_by_its_class(name: str) -> None:
    [fault] = faults_of({**MINIMAL, "data": {"source": "torchvision", "name": name}})
    assert fault == (
        f"data.name: must be the name of a class of torchvision.datasets, such as OxfordIIITPet; got {name!r}"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"status": "complete"}, "Did you mean 'Complete'?"),
        ({"accuracy": "0.5"}, "accuracy: must be a number; got '0.5'"),
        ({"accuracy": float("nan")}, "accuracy: must be a finite number; got nan"),
        ({"training_losses": [1.0, "x"]}, "training_losses.1: must be a number; got 'x'"),
        ({"name": 5}, "name: must be a string; got 5"),
        ({"limit": -1}, "limit: must be 0 or above; got -1"),
        (
            {"testing_commands": {"model_name": "a", "data": {"source": "folder", "pth": 1}}},
            "testing_commands.data.pth: ",
        ),
        ({"training_commands": {**MINIMAL, "data": {"source": "sample"}}}, "training_commands.data.name: is required"),
    ],
)
def test_a_fault_of_an_attempt_document_is_told_with_its_place(changes: dict[str, Any], says: str) -> None:
    [fault] = faults_of({"name": "a", "training_commands": MINIMAL, **changes}, parse_attempt)
    assert says in fault


def test_unknown_keys_of_an_attempt_are_kept() -> None:
    document = {"name": "a", "training_commands": MINIMAL, "task": {"name": "t"}, "seconds": 5}
    assert parse_attempt(document).document() == document


@pytest.mark.parametrize("kind", [TrainCommands, TestCommands])
def test_every_field_of_the_commands_is_described_for_editors(kind: Any) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []
