"""Params and tags of a whole SQLite store, read in blocks that SQLite itself writes out as one text each.

A store of 100,000 attempts has millions of them. To fetch a row costs a microsecond, and about as much again to put it
into its column; a block is split, told apart by key and turned into Arrow in a third of that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Of a table: a block's texts are held twice while it is split.
TEXT_ROWS = 10_000
_RECORD_SEPARATOR = "\x1e"

Block = tuple[Sequence[str], Sequence[str], Sequence[str | None]]
Places = npt.NDArray[np.int64]


def read_text_columns(
    connection: sqlite3.Connection, table: str, position: Mapping[str, int], *, unread: Sequence[str] = ()
) -> dict[str, tuple[Places, pa.ChunkedArray]]:
    """Return the texts of all keys of a table: by key the places of the runs that have one, and their texts.

    Args:
        connection: To the database, in a transaction.
        table: ``params`` or ``tags``.
        position: The place of each run by its id; other runs are left out.
        unread: Keys that are left out.
    """
    places: dict[str, list[Places]] = {}
    texts: dict[str, list[pa.Array]] = {}
    for run_ids, keys, values in _read_blocks(connection, table, unread):
        at = np.fromiter(map(position.get, run_ids, repeat(-1)), np.int64, len(run_ids))
        named = pa.array(keys, pa.string()).dictionary_encode()
        codes = named.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        order = order[at[order] >= 0]
        bounds = np.searchsorted(codes[order], np.arange(len(named.dictionary) + 1))
        at, sorted_values = at[order], pa.array(values, pa.string()).take(pa.array(order))
        for code, key in enumerate(named.dictionary.to_pylist()):
            first, end = bounds[code], bounds[code + 1]
            if first < end:
                places.setdefault(key, []).append(at[first:end])
                texts.setdefault(key, []).append(sorted_values.slice(first, end - first))
    return {key: (np.concatenate(places[key]), pa.chunked_array(texts[key])) for key in places}


def _read_blocks(connection: sqlite3.Connection, table: str, unread: Sequence[str]) -> Iterator[Block]:
    """Yield run ids, keys and values of the rows of a table, all of one length, block by block."""
    last = connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()[0] or 0  # noqa: S608
    rows = f"FROM {table} WHERE rowid BETWEEN ? AND ? AND key NOT IN ({', '.join('?' * len(unread))})"
    written = ", ".join(
        f"group_concat({column}, char({ord(_RECORD_SEPARATOR)}))" for column in ("run_uuid", "key", "value")
    )
    for first in range(0, last + 1, TEXT_ROWS):
        given = (first, first + TEXT_ROWS - 1, *unread)
        count, n_values, *columns = connection.execute(
            f"SELECT count(*), count(value), {written} {rows}",
            given,
        ).fetchone()
        if not count:
            continue
        split = [column.split(_RECORD_SEPARATOR) for column in columns] if n_values == count else []
        if split and all(len(column) == count for column in split):
            yield split[0], split[1], split[2]
        else:
            # A value is missing, or a text has the separator in it.
            plain = connection.execute(f"SELECT run_uuid, key, value {rows}", given).fetchall()
            run_ids, keys, values = zip(*plain, strict=True)
            yield run_ids, keys, values
