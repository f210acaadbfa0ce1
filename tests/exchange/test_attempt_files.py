"""Files of Attempt documents in every form, whole and broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlmeta.errors import BadInputError, MlmetaError, NotFoundError
from mlmeta.exchange.documents import Entry, read_entries

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


def test_a_list_that_is_cut_off_gives_what_is_whole(tmp_path: Path) -> None:
    file = write(tmp_path, "a.json", '[{"name": "a"}, {"name": ')
    entries = list(read_entries(file))
    assert entries[0].content == {"name": "a"}
    assert "after item 1: the list is not closed" in numbered(entries)[0][1]


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlmeta.commands.parsing.MAX_FILE_BYTES", 40)
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
    assert entries[0].content == {"name": "x", "params": {"optimizer.lr": "0.1"}, "metrics": {}}
    assert numbered(entries)[0][0] == 3


def test_the_place_in_the_file_is_told(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jsonl", LINES)
    places = [entry.n_bytes for entry in read_entries(file)]
    assert places == sorted(places)
    assert places[-1] == len(LINES.encode())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | st.text().map(str.encode), suffix=st.sampled_from([".json", ".jsonl", ".csv", ".json.gz"]))
def test_no_content_raises(tmp_path: Path, content: bytes, suffix: str) -> None:
    for entry in read_entries(write(tmp_path, f"a{suffix}", content)):
        assert isinstance(entry.content, dict | MlmetaError)
