"""Attempt documents are checked as a whole, with the facts beside the commands, and read from files of every form."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from attempt_table import read_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlmeta.errors import BadInputError, CommandsError, MlmetaError, NotFoundError
from mlmeta.exchange.documents import Entry, parse_exchanged, read_entries, read_moment


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


@pytest.mark.parametrize("told", [{}, {"training_commands": {}, "n_epoch": 3}, {"training_commands": None}])
def test_an_attempt_may_have_no_commands_at_all(told: dict[str, Any]) -> None:
    attempt = parse_exchanged({"name": "x", **told})
    assert attempt.commands is None
    assert attempt.facts.n_epoch == told.get("n_epoch", 0)


@pytest.mark.parametrize("key", ["training_comands", "optimizer", "model"])
def test_commands_that_do_not_stand_in_their_place_are_told(key: str) -> None:
    with pytest.raises(CommandsError, match=f"{key}: is no key of an Attempt document without training_commands"):
        parse_exchanged({"name": "x", key: {"name": "SGD"}})


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


# Files.

DOCUMENTS: list[dict[str, Any]] = [{"name": "a", "n": 1.5}, {"name": "ü", "n": None}, {"name": "c", "deep": [{}]}]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def contents(file: Path) -> list[Any]:
    return [entry.content for entry in read_entries(file)]


def numbered(entries: list[Entry]) -> list[tuple[int, str]]:
    return [(entry.number, str(entry.content)) for entry in entries if isinstance(entry.content, MlmetaError)]


LINES = "\n".join(json.dumps(document, ensure_ascii=False) for document in DOCUMENTS)
FORMS = {
    "lines.jsonl": LINES,
    "lines.json": LINES + "\n",
    "windows.jsonl": LINES.replace("\n", "\r\n\r\n"),
    "list.json": json.dumps(DOCUMENTS, indent=2),
    "list.jsonl": json.dumps(DOCUMENTS),
    "no_suffix": f"\n\n{LINES}",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_gives_the_same_documents(tmp_path: Path, name: str, bom: str, packed: bool) -> None:
    content = (bom + FORMS[name]).encode()
    file = write(tmp_path, f"{name}.gz" if packed else name, gzip.compress(content) if packed else content)
    assert contents(file) == DOCUMENTS


@pytest.mark.parametrize("name", ["one.json", "one.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_one_document_is_read(tmp_path: Path, name: str, indent: int | None) -> None:
    assert contents(write(tmp_path, name, json.dumps(DOCUMENTS[2], indent=indent))) == [DOCUMENTS[2]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"name": "x"', "is not JSON"),
        (b'{"name": NaN}', "has no NaN"),
        (b'{"name": 1, "name": 2}', "more than once"),
        (b"[1, 2]", "must be a JSON object"),
        (b'{"name": "\xff"}', "is not UTF-8 text"),
        (b'"text"', "must be a JSON object"),
        (b"[" * 100_000, "too deep"),
    ],
)
def test_a_bad_line_is_told_with_its_number_and_the_others_go_in(tmp_path: Path, bad: bytes, message: str) -> None:
    good = json.dumps(DOCUMENTS[0]).encode()
    file = write(tmp_path, "a.jsonl", good + b"\n\n" + bad + b"\n" + good)
    entries = list(read_entries(file))
    assert [entry.number for entry in entries] == [1, 3, 4]
    ((number, text),) = numbered(entries)
    assert number == 3
    assert text.startswith(f"{file}, line 3")
    assert message in text
    assert entries[1].source == f"{file}, line 3"


def test_a_bad_item_of_a_list_is_told_with_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, "a.json", '[{"name": "a"},\n{"name": NaN},\n3, {"name": "b"}]')
    entries = list(read_entries(file))
    assert [entry.content for entry in entries if isinstance(entry.content, dict)] == [{"name": "a"}, {"name": "b"}]
    assert [number for number, _ in numbered(entries)] == [2, 3]
    assert "item 2 (from line 2)" in numbered(entries)[0][1]


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_a_list_may_hold_any_signs(tmp_path: Path, indent: int | None) -> None:
    items = [{"a": '],}"[{', "\\": ["]", '\\"', {}]}, {"ü\n": [[], [1.5, -2, 10**30]]}, {}]
    file = write(tmp_path, "a.json", f"\n {json.dumps(items, indent=indent)}\n\n")
    assert contents(file) == items
    assert list(read_entries(write(tmp_path, "a.json", " [\n ] "))) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"name": "a"},\n {"name": ', "after item 1, it is not JSON: Expecting value at line 2, column 11"),
        ('[{"name": "a"}', "after item 1, it is not JSON: the list is not closed at line 1, column 15"),
        ('[{"name": "a"}}, {}]', "after item 1, it is not JSON: the list is not closed at line 1, column 15"),
        ('[{"name": "a"},, {}]', "after item 1, it is not JSON: Expecting value"),
        ('[{"name": "a"}] [2]', "after item 1, it is not JSON: something stands behind the end of the list"),
        ('[{"name": "a"}, ' + "[" * 100_000, "after item 1, lists and objects lie in each other too deep"),
    ],
)
def test_of_a_list_that_is_no_json_what_stands_before_is_read(tmp_path: Path, text: str, message: str) -> None:
    entries = list(read_entries(write(tmp_path, "a.json", text)))
    assert entries[0].content == {"name": "a"}
    assert [number for number, _ in numbered(entries)] == [0]
    assert message in numbered(entries)[0][1]


def test_a_list_that_is_too_long_is_for_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlmeta.exchange.documents.MAX_LIST_BYTES", 40)
    (entry,) = read_entries(write(tmp_path, "a.json", json.dumps(DOCUMENTS, indent=1)))
    assert entry.number == 0
    assert "more than 40 bytes" in str(entry.content)
    assert "JSON lines" in str(entry.content)


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlmeta.exchange.documents.MAX_FILE_BYTES", 40)
    file = write(tmp_path, "a.jsonl", '{"name": "a"}\n{"name": "' + "x" * 200 + '"}\n{"name": "b"}\n')
    entries = list(read_entries(file))
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert "too large" in numbered(entries)[0][1]
    assert entries[2].content == {"name": "b"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.json", b"", "it is empty"),
        ("empty.jsonl.gz", gzip.compress(b"", mtime=0), "it is empty"),
        ("blank.jsonl", b" \n\n", "it is empty"),
        ("utf16.csv", "name,lr".encode("utf-16"), "UTF-16"),
        ("cut.jsonl.gz", gzip.compress(LINES.encode() * 100, mtime=0)[:-20], "damaged or cut off"),
        ("empty.csv", b"", "it is empty"),
        ("headless.csv", b"\n\n", "the header, is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_entry(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    entries = list(read_entries(write(tmp_path, name, content)))
    assert entries[-1].number == 0
    assert message in str(entries[-1].content)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "attempts.jsonl", LINES)
    (entry,) = read_entries(tmp_path / "atempts.jsonl")
    assert isinstance(entry.content, NotFoundError)
    assert "attempts.jsonl" in str(entry.content).partition("Did you mean")[2]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (entry,) = read_entries(tmp_path)
    assert isinstance(entry.content, BadInputError)


def test_a_table_is_read_by_its_name(tmp_path: Path) -> None:
    file = write(tmp_path, "runs.csv.gz", gzip.compress(b"\xef\xbb\xbfName,lr\nx,0.1\n,\xff\n"))
    entries = list(read_entries(file, mapping={"lr": "params.optimizer.lr"}))
    assert isinstance(entries[0].content, dict)
    assert entries[0].content.pop("row_digest")
    assert entries[0].content == {"name": "x", "params": {"optimizer.lr": "0.1"}, "metrics": {}}
    assert numbered(entries)[0][0] == 3


def test_the_place_in_the_file_is_told(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", LINES)
    places = [entry.n_bytes for entry in read_entries(file)]
    assert places == sorted(places)
    assert places[-1] == len(LINES.encode())
    text = json.dumps([{"name": name} for name in "abcde"])
    assert [entry.n_bytes for entry in read_entries(write(tmp_path, "a.json", text))] == [14, 29, 44, 59, 74]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | st.text().map(str.encode), suffix=st.sampled_from([".json", ".jsonl", ".csv", ".json.gz"]))
def test_no_content_raises(tmp_path: Path, content: bytes, suffix: str) -> None:
    for entry in read_entries(write(tmp_path, f"a{suffix}", content)):
        assert isinstance(entry.content, dict | MlmetaError)
