from __future__ import annotations

import pickle

import pytest

from mlmeta import errors
from mlmeta.errors import CommandsError, Fault, nearest_name, shorten


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("n_epoch", "must be 1 or above"), "n_epoch: must be 1 or above"),
        (Fault("", "must be a JSON object", "5"), "must be a JSON object; got 5"),
        (Fault("keep", "bad", "'bset'", "best"), "keep: bad; got 'bset'. Did you mean 'best'?"),
    ],
)
def test_a_fault_is_one_line_with_path_message_value_and_nearest_name(fault: Fault, text: str) -> None:
    assert str(fault) == text


def test_all_faults_stand_in_one_message_that_names_the_document() -> None:
    error = CommandsError([Fault("a", "one"), Fault("b", "two")], source="dogs.json")
    assert str(error) == "dogs.json: 2 faults\n  a: one\n  b: two"


def test_a_single_fault_is_not_plural() -> None:
    assert str(CommandsError([Fault("a", "one")])).startswith("the commands: 1 fault\n")


def test_a_message_shows_50_faults_and_counts_the_others() -> None:
    error = CommandsError([Fault(f"k{i}", "bad") for i in range(60)], n_more=1000)
    lines = str(error).splitlines()
    assert len(error.faults) == 60
    assert (lines[0], lines[-1], len(lines)) == ("the commands: 1,060 faults", "  … and 1,010 more", 52)


def test_a_commands_error_survives_the_way_from_another_process() -> None:
    error = CommandsError([Fault("a", "one", "5", "b")], source="dogs.json", n_more=2)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.faults, copy.source) == (str(error), error.faults, error.source)


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("MlmetaError", 1),
        ("BadInputError", 2),
        ("CommandsError", 2),
        ("PicturesError", 2),
        ("NotFoundError", 2),
        ("WeightsError", 2),
        ("QueueFullError", 1),
        ("AttemptFailedError", 1),
        ("DivergedError", 1),
    ],
)
def test_each_error_has_its_exit_code_and_stands_in_the_documented_tree(name: str, exit_code: int) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.MlmetaError)
    assert kind.exit_code == exit_code
    assert name in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("conv2D", "Conv2d"),
        ("LINEAR", "Linear"),
        ("Liner", "Linear"),
        ("quux", ""),
        ("", ""),
        pytest.param("Linear" * 1_000_000, "", id="very long"),
    ],
)
def test_the_nearest_name_is_found_whatever_the_case(name: str, nearest: str) -> None:
    assert nearest_name(name, ["Conv2d", "Linear", "ReLU"]) == nearest


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (5, "5"),
        (0.5, "0.5"),
        ("it's\n", '"it\'s\\n"'),
        ("\ud800\x1b", "'\\ud800\\x1b'"),
        ([1, None, "a"], "[1, null, 'a']"),
        ((1,), "(1,)"),
        ((), "()"),
        ({}, "{}"),
        ({"a": [True], "b": {}}, "{'a': [true], 'b': {}}"),
        (range(3), "range(0, 3)"),
        pytest.param(10**400, "a number of about 400 digits", id="400 digits"),
        pytest.param(10**5000, "a number of about 5000 digits", id="5,000 digits"),
    ],
)
def test_a_value_is_shown_on_one_line(value: object, text: str) -> None:
    assert shorten(value) == text


def nested(depth: int) -> object:
    value: object = "x"
    for index in range(depth):
        value = [value] if index % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000_000, list(range(10**6)), nested(100_000), {"a" * 1000: 1}],
    ids=["a long string", "a long list", "a deep value", "a long key"],
)
def test_a_long_or_deep_value_is_cut(value: object) -> None:
    text = shorten(value, 40)
    assert len(text) == 40
    assert text.endswith("…")
