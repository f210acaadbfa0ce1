"""Params and tags read block by block are what a plain query gives, whatever stands in them."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from mlmeta.history import sql_reader
from mlmeta.history.sql_reader import read_text_columns


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    monkeypatch.setattr(sql_reader, "TEXT_ROWS", 7)
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE tags (key VARCHAR, value VARCHAR, run_uuid VARCHAR, PRIMARY KEY (key, run_uuid))")
    return connection


def read_plainly(connection: sqlite3.Connection, position: dict[str, int], unread: tuple[str, ...]) -> dict[str, dict]:
    found: dict[str, dict] = {}
    for run_id, key, value in connection.execute("SELECT run_uuid, key, value FROM tags"):
        if run_id in position and key not in unread:
            found.setdefault(key, {})[position[run_id]] = value
    return found


def test_columns_are_those_of_a_plain_query(connection: sqlite3.Connection) -> None:
    draw = np.random.default_rng(0)
    odd = ["", "ü", "a\x1eb", "\x1e", None, "x" * 5000, "line\nbreak", "0.1", "\x1f", "日本"]
    rows = [(f"key {k}", odd[draw.integers(len(odd))], f"run {r}") for r in range(40) for k in range(draw.integers(6))]
    connection.executemany("INSERT INTO tags VALUES (?, ?, ?)", rows)
    # Blocks with holes, and one without any row.
    connection.execute("DELETE FROM tags WHERE rowid % 5 = 0 OR rowid BETWEEN 14 AND 28")
    position = {f"run {r}": place for place, r in enumerate(draw.permutation(40)[:30])}
    columns = read_text_columns(connection, "tags", position, unread=("key 1",))
    found = {key: dict(zip(rows.tolist(), texts.to_pylist(), strict=True)) for key, (rows, texts) in columns.items()}
    assert found == read_plainly(connection, position, ("key 1",))
    assert any("\x1e" in (text or "") for texts in found.values() for text in texts.values())


def test_an_empty_table_has_no_columns(connection: sqlite3.Connection) -> None:
    assert read_text_columns(connection, "tags", {"run": 0}) == {}
