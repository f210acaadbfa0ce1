"""What changed in a SQLite store is found by the digests of blocks, whatever was done to its rows."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mlmeta.history import sql_reader
from mlmeta.history.sql_reader import find_changed_runs, read_blocks

UNREAD = ("mlflow.note.content",)
RUNS = "SELECT run_uuid, name, experiment_id, status, start_time, end_time, lifecycle_stage FROM runs"
TAGS = "SELECT run_uuid, key, value FROM tags WHERE key != 'mlflow.note.content'"


@pytest.fixture
def database(store_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    monkeypatch.setattr(sql_reader, "BLOCK_ROWS", 8)
    shutil.copy(store_template, tmp_path / "mlflow.db")
    return sqlite3.connect(tmp_path / "mlflow.db")


def add_run(database: sqlite3.Connection, run_id: str) -> None:
    columns = "run_uuid, name, source_type, user_id, status, start_time, lifecycle_stage, artifact_uri, experiment_id"
    values = (run_id, f"model {run_id}", "LOCAL", "me", "FINISHED", 1, "active", "", 0)
    database.execute(f"INSERT INTO runs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    for key in ("mlmeta.kind", "colour", *UNREAD):
        set_tag(database, run_id, key, "x")


def add_runs(database: sqlite3.Connection) -> None:
    """Add the runs "00" to "49"."""
    for number in range(50):
        add_run(database, f"{number:02}")


def set_tag(database: sqlite3.Connection, run_id: str, key: str, value: str | None) -> None:
    database.execute("DELETE FROM tags WHERE run_uuid = ? AND key = ?", (run_id, key))
    if value is not None:
        database.execute("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", (key, value, run_id))


def read_runs(database: sqlite3.Connection) -> dict[str, Any]:
    """Return what is known of each run, by its id."""
    runs: dict[str, Any] = {row[0]: [row, {}] for row in database.execute(RUNS)}
    for run_id, key, value in database.execute(TAGS):
        if run_id in runs:
            runs[run_id][1][key] = value
    return runs


def changed_since(database: sqlite3.Connection, before: dict[str, Any]) -> set[str] | None:
    kept = json.loads(json.dumps(before))
    return find_changed_runs(database, kept, read_blocks(database, UNREAD), UNREAD)


def test_an_unchanged_store_has_no_changed_run(database: sqlite3.Connection) -> None:
    assert changed_since(database, read_blocks(database, UNREAD)) == set()
    add_runs(database)
    assert changed_since(database, read_blocks(database, UNREAD)) == set()


def test_only_the_blocks_of_new_runs_are_read_again(database: sqlite3.Connection) -> None:
    add_runs(database)
    before = read_blocks(database, UNREAD)
    add_run(database, "new")
    changed = changed_since(database, before)
    assert changed is not None
    assert "new" in changed
    assert len(changed) < 10


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET name = 'other' WHERE run_uuid = '07'",
        "UPDATE runs SET name = NULL WHERE run_uuid = '07'",
        "UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = '07'",
        "UPDATE runs SET end_time = 9 WHERE run_uuid = '07'",
        "UPDATE tags SET value = 'y' WHERE run_uuid = '07' AND key = 'colour'",
        "INSERT INTO tags (key, value, run_uuid) VALUES ('late', '1', '07')",
    ],
)
def test_a_changed_run_is_among_the_few_that_are_looked_at(database: sqlite3.Connection, statement: str) -> None:
    add_runs(database)
    before = read_blocks(database, UNREAD)
    database.execute(statement)
    changed = changed_since(database, before)
    assert changed is not None
    assert "07" in changed
    assert len(changed) < 10


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tags WHERE run_uuid = '07' AND key = 'colour'",
        "DELETE FROM tags WHERE run_uuid = '49' AND key = 'colour'",
        "DELETE FROM runs WHERE run_uuid = '07'",
        "DELETE FROM runs WHERE run_uuid = '49'",
        "UPDATE experiments SET name = 'renamed' WHERE experiment_id = 0",
        "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE experiment_id = 0",
    ],
)
@pytest.mark.parametrize("then", ["", "new"])
def test_what_cannot_be_told_from_the_blocks_asks_for_everything(
    database: sqlite3.Connection, statement: str, then: str
) -> None:
    add_runs(database)
    before = read_blocks(database, UNREAD)
    database.execute(statement)
    if then:
        add_run(database, then)
    changed = changed_since(database, before)
    assert changed is None or (then and "49" in statement and "49" in changed)


def test_unread_tags_are_not_looked_at(database: sqlite3.Connection) -> None:
    add_run(database, "a")
    before = read_blocks(database, UNREAD)
    database.execute("UPDATE tags SET value = 'a longer note' WHERE key = 'mlflow.note.content'")
    assert changed_since(database, before) == set()


def change_something(database: sqlite3.Connection, draw: random.Random, run_id: str, step: int) -> None:
    kind = draw.randrange(5)
    if kind == 0:
        add_run(database, f"{step}-{draw.random()}")
    elif kind == 1:
        set_tag(database, run_id, draw.choice(["colour", "late"]), draw.choice(["x", "y", None]))
    elif kind == 2:
        database.execute("UPDATE runs SET status = 'FAILED' WHERE run_uuid = ?", (run_id,))
    elif kind == 3:
        database.execute("UPDATE tags SET value = ? WHERE run_uuid = ?", (str(step), run_id))
    else:
        database.execute("DELETE FROM runs WHERE run_uuid = ?", (run_id,))


@pytest.mark.parametrize("seed", range(40))
def test_no_change_is_missed(database: sqlite3.Connection, seed: int) -> None:
    draw = random.Random(seed)
    for number in range(30):
        add_run(database, f"{number:02}")
    kept, known = read_blocks(database, UNREAD), read_runs(database)
    for step in range(30):
        for _ in range(draw.randrange(1, 4)):
            change_something(database, draw, draw.choice(sorted(known)), step)
        now = read_runs(database)
        changed = changed_since(database, kept)
        if changed is not None:
            assert {run_id for run_id in {*known, *now} if known.get(run_id) != now.get(run_id)} <= changed
        kept, known = read_blocks(database, UNREAD), now
