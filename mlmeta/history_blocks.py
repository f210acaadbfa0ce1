"""Which runs of a SQLite store may have changed, found without carrying every row into Python.

The rows of `runs` and of the tags that may be edited are taken in blocks by their rowid; SQLite writes each block out
as one text, of which a digest is kept. Only the runs of blocks with another digest are looked at. What was removed
cannot be told from what is left: a block that has lost rows, or a last row that is another one (SQLite gives its
number again), asks for a comparison of everything. The last block alone may lose rows and gain others, so its runs
are kept by their ids.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

# Rows of a block: few are read again for one that changed, and the digests of 100,000 attempts take some 50 kB.
BLOCK_ROWS = 512
# By table: what tells a row from all others, and what may change of it; `_SEPARATOR` is in no name.
_SEPARATOR = "char(31)"
_IDENTITY = {"runs": ("run_uuid",), "tags": ("run_uuid", "key")}
_CONTENT = {
    "runs": ("name", "experiment_id", "status", "start_time", "end_time", "lifecycle_stage"),
    "tags": ("value",),
}


def read_blocks(connection: sqlite3.Connection, unread_tags: Sequence[str]) -> dict[str, Any]:
    """Return what is to be kept of a store: blocks and last rows by table, and the experiments; JSON.

    Args:
        connection: To the database, in a transaction.
        unread_tags: Keys of tags that are never edited.
    """
    experiments = connection.execute(
        "SELECT experiment_id, name, lifecycle_stage, workspace FROM experiments ORDER BY experiment_id"
    ).fetchall()
    found: dict[str, Any] = {"experiments": _digest(repr(experiments)), "block_rows": BLOCK_ROWS}
    for table, identity in _IDENTITY.items():
        last = connection.execute(
            f"SELECT rowid, {_join(identity)} FROM {table} ORDER BY rowid DESC LIMIT 1"  # noqa: S608
        ).fetchone()
        condition, values = _leave_out(table, unread_tags)
        query = (
            f"SELECT count(*), group_concat({_join(identity + _CONTENT[table])}, char(30)) FROM {table} "  # noqa: S608
            f"WHERE rowid BETWEEN ? AND ? {condition}"
        )
        blocks = {}
        # Block by block, in the order of the table: to group all rows at once SQLite would sort them first.
        for block in range(last[0] // BLOCK_ROWS + 1 if last else 0):
            count, content = connection.execute(query, (*_rows(block), *values)).fetchone()
            if count:
                blocks[str(block)] = [count, _digest(content)]
        runs = _runs_of(connection, table, last[0] // BLOCK_ROWS, unread_tags) if last else set()
        found[table] = {"blocks": blocks, "last": list(last or ()), "last_runs": sorted(runs)}
    return found


def find_changed_runs(
    connection: sqlite3.Connection, before: Mapping[str, Any], now: Mapping[str, Any], unread_tags: Sequence[str]
) -> set[str] | None:
    """Return the ids of the runs that may be new or other, or None where only comparing everything tells."""
    if any(before.get(key) != now[key] for key in ("experiments", "block_rows")):
        return None
    changed: set[str] = set()
    for table, identity in _IDENTITY.items():
        old, new = before[table], now[table]
        if any(new["blocks"].get(block, (0,))[0] < count for block, (count, _) in old["blocks"].items()):
            return None
        last = f"SELECT rowid, {_join(identity)} FROM {table} WHERE rowid = ?"  # noqa: S608
        if old["last"] and connection.execute(last, old["last"][:1]).fetchone() != tuple(old["last"]):
            return None
        for block, content in new["blocks"].items():
            if old["blocks"].get(block) != content:
                changed |= _runs_of(connection, table, int(block), unread_tags)
                if int(block) == max(map(int, old["blocks"]), default=-1):
                    changed.update(old["last_runs"])
    return changed


def _runs_of(connection: sqlite3.Connection, table: str, block: int, unread_tags: Sequence[str]) -> set[str]:
    condition, values = _leave_out(table, unread_tags)
    query = f"SELECT DISTINCT run_uuid FROM {table} WHERE rowid BETWEEN ? AND ? {condition}"  # noqa: S608
    return {run_id for (run_id,) in connection.execute(query, (*_rows(block), *values))}


def _join(columns: Sequence[str]) -> str:
    return f" || {_SEPARATOR} || ".join(f"coalesce({column}, '')" for column in columns)


def _leave_out(table: str, tags: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return a condition and its values."""
    if table != "tags":
        return "", ()
    return f"AND key NOT IN ({', '.join('?' * len(tags))})", tuple(tags)


def _rows(block: int) -> tuple[int, int]:
    """Return the first and the last rowid of a block."""
    return block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS - 1


def _digest(content: str) -> str:
    return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=8).hexdigest()
