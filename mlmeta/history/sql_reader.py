"""The reader of MLflow's own tables, for SQLite and PostgreSQL: a hundred times faster than the public interface.

It only reads, in one transaction, and only from stores whose schema version it knows; for others there is
`mlmeta.history.api_reader`. What has changed since the last reading is found by comparing: the row of every run,
and every tag but those that mlmeta and MLflow write once; in SQLite by digests of blocks of rows first.
Metrics and params that somebody adds to a run that has ended are seen with the next whole reading.

Which runs of a SQLite store may have changed, found without carrying every row into Python.

The rows of `runs` and of the tags that may be edited are taken in blocks by their rowid; SQLite writes each block out
as one text, of which a digest is kept. Only the runs of blocks with another digest are looked at. What was removed
cannot be told from what is left: a block that has lost rows, or a last row that is another one (SQLite gives its
number again), asks for a comparison of everything. The last block alone may lose rows and gain others, so its runs
are kept by their ids.

Params and tags of a whole SQLite store, read in blocks that SQLite itself writes out as one text each.

A store of 100,000 attempts has millions of them. To fetch a row costs a microsecond, and about as much again to put it
into its column; a block is split, told apart by key and turned into Arrow in a third of that.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, Engine, bindparam, create_engine, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from mlmeta.errors import MlmetaError
from mlmeta.history.reader import UNREAD_TAGS, Changes, Known, RunRows
from mlmeta.tracking.store import sqlite_file

# MLflow's schema versions (alembic revisions) from 3.10 on, between which the tables read here did not change.
KNOWN_SCHEMAS = frozenset(
    "1b5f0d9ad7c1 e1f2a3b4c5d6 76601a5f987d c3d6457b6d8a a5b4c3d2e1f0 ae8bbe7743c9 7d34483879f0 da6fb0208061 "
    "89d3d66ed43f b7e4c1a90f23 a8b9c0d1e2f3 c1d2e3f4a5b6 c3d9e7f1a2b4 6f8d9c3b2a1e 1971f2d9a75b 17e22815139b "
    "b7e2c1a4d9f3 75868b020152 dc11669786a5".split()
)
_WRITTEN_ONCE = (
    "mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit", "mlflow.project.env",
    "mlflow.project.entryPoint", "mlflow.project.backend", "mlmeta.kind", "mlmeta.version", "mlmeta.host",
    "mlmeta.heartbeat", "mlmeta.device", "mlmeta.task", "mlmeta.task_digest", "mlmeta.training_losses",
    "mlmeta.commands_digest", "mlmeta.commands_dir", "mlmeta.weights_sha256", "mlmeta.import_digest",
    "mlmeta.import_batch", "mlmeta.imported", *sorted(UNREAD_TAGS),
)  # fmt: skip
# Not of these: what makes a run an attempt.
_NEVER_EDITED = tuple(key for key in _WRITTEN_ONCE if key != "mlmeta.kind")
_AT_WORK = ("RUNNING", "SCHEDULED")
_AT_ONCE = 500
# A file's time of change is trusted when it is older than what clocks and file systems can tell apart.
_RACE_S = 2.0

_RUNS = """
SELECT runs.run_uuid, runs.name, runs.experiment_id, experiments.name, runs.status, runs.start_time, runs.end_time
FROM runs JOIN experiments ON experiments.experiment_id = runs.experiment_id
WHERE runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
AND experiments.workspace = :workspace
"""
_ATTEMPTS = """
AND EXISTS (SELECT 1 FROM tags WHERE tags.key = 'mlmeta.kind' AND tags.value = 'attempt'
            AND tags.run_uuid = runs.run_uuid)
"""
_TAGS = "SELECT key, run_uuid, value FROM tags WHERE key NOT IN :written_once"
_COLUMNS = {
    "param": "SELECT run_uuid, key, value FROM params",
    "tag": "SELECT run_uuid, key, value FROM tags",
    "metric": "SELECT run_uuid, key, CASE WHEN is_nan THEN NULL ELSE value END FROM latest_metrics",
}
# Rows of a block: few are read again for one that changed, and the digests of 100,000 attempts take some 50 kB.
BLOCK_ROWS = 512
# By table: what tells a row from all others, and what may change of it; `_SEPARATOR` is in no name.
_SEPARATOR = "char(31)"
_IDENTITY = {"runs": ("run_uuid",), "tags": ("run_uuid", "key")}
_CONTENT = {
    "runs": ("name", "experiment_id", "status", "start_time", "end_time", "lifecycle_stage"),
    "tags": ("value",),
}
# Of a table: a block's texts are held twice while it is split.
TEXT_ROWS = 10_000
_RECORD_SEPARATOR = "\x1e"

Block = tuple[Sequence[str], Sequence[str], Sequence[str | None]]
Places = npt.NDArray[np.int64]


def open_sql_reader(uri: str, *, all_runs: bool = False) -> SqlReader | None:
    """Return a reader of a store's tables, or None where it has none that are known.

    Raises:
        MlmetaError: If a PostgreSQL server does not answer; MLflow itself would try for minutes.
    """
    file = sqlite_file(uri)
    if file is not None:
        if not file.is_file():
            return None
        uri = f"sqlite:///file:{quote(str(file.resolve()))}?mode=ro&uri=true"
    elif uri.partition(":")[0].partition("+")[0] != "postgresql":
        return None
    try:
        engine = create_engine(uri, poolclass=NullPool)
        with engine.connect() as connection:
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except OperationalError as error:
        if file is not None:
            return None
        raise MlmetaError(f"the tracking store cannot be opened: {_explain(error)}") from None
    except (SQLAlchemyError, ImportError):
        return None
    return SqlReader(engine, file=file, all_runs=all_runs) if version in KNOWN_SCHEMAS else None


def _explain(error: Exception) -> str:
    return " ".join(str(error).partition("(Background on")[0].split())[:300]


class SqlReader:
    """Reads MLflow's tables; see the module.

    Args:
        engine: Of the store's database.
        file: Where it is one file.
        all_runs: Whether runs that are no attempts of mlmeta count too.
    """

    def __init__(self, engine: Engine, *, file: Path | None = None, all_runs: bool = False) -> None:
        self.engine = engine
        self.file = file
        self._query = _RUNS if all_runs else _RUNS + _ATTEMPTS
        self._workspace = os.environ.get("MLFLOW_WORKSPACE") or "default"

    def is_unchanged(self, cursor: Mapping[str, Any]) -> bool:
        """Return whether the database's file is the one of the last reading, to the byte as far as one can tell."""
        stamp = self._read_stamp()
        return bool(stamp) and cursor.get("stamp") == stamp and cursor.get("workspace") == self._workspace

    def _read_stamp(self) -> list[list[int]]:
        """Return size and time of change of the file and its write-ahead log; nothing where they are too young."""
        if self.file is None:
            return []
        stamp = []
        for name in (self.file, self.file.with_name(f"{self.file.name}-wal")):
            status = name.stat() if name.is_file() else None
            if status and time.time() - status.st_mtime < _RACE_S:
                return []
            stamp.append([status.st_size, status.st_mtime_ns] if status and status.st_size else [])
        return stamp

    def read_changes(self, known: Known) -> Changes:
        """Return what is other than at the last reading; everything where there was none.

        Raises:
            MlmetaError: If the database does not answer.
        """
        cursor: dict[str, Any] = {"stamp": self._read_stamp(), "workspace": self._workspace}
        try:
            with self._connect() as connection:
                if self.file is not None:
                    cursor["blocks"] = read_blocks(_sqlite(connection), _NEVER_EDITED)
                candidates = self._find_candidates(connection, known, cursor)
                if candidates is None:
                    runs, gone = self._compare_all(connection, known)
                else:
                    runs = self._read_facts(connection, candidates)
                    gone = set(candidates) & set(known.table["run_id"].to_pylist()) - set(runs["run_id"])
                # Most rows are read faster with all others than one by one.
                rows = self._read_rows(connection, runs, everything=len(runs) > len(known.table) / 2)
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise MlmetaError(f"the tracking store cannot be read: {_explain(error)}") from None
        return Changes(rows.to_arrow(), sorted(gone), cursor)

    def _find_candidates(self, connection: Connection, known: Known, cursor: Mapping[str, Any]) -> list[str] | None:
        """Return the ids of the only runs that can be other than they were, or None where it may be any."""
        before = known.cursor.get("blocks")
        if not before or "blocks" not in cursor or known.cursor.get("workspace") != self._workspace:
            return None
        changed = find_changed_runs(_sqlite(connection), before, cursor["blocks"], _NEVER_EDITED)
        if changed is None:
            return None
        at_work = pc.is_in(known.table["run_status"], value_set=pa.array(_AT_WORK))
        return sorted({*changed, *known.table["run_id"].filter(at_work).to_pylist()})

    def _read_facts(self, connection: Connection, run_ids: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the rows of runs that count, of all or of some."""
        values = {"workspace": self._workspace}
        rows = _select(
            connection, self._query, run_ids or (), everything=run_ids is None, column="runs.run_uuid", **values
        )
        return _make_frame(list(rows), list(RunRows().facts))

    def _compare_all(self, connection: Connection, known: Known) -> tuple[pd.DataFrame, set[str]]:
        """Return the rows of the runs that are new or other than they were, and the ids of those that are gone."""
        runs = self._read_facts(connection)
        gone = set(known.table["run_id"].to_pylist()) - set(runs["run_id"])
        return runs[self._find_changed(connection, runs, known)], gone

    def _connect(self) -> Connection:
        connection = self.engine.connect()
        if self.file is not None:
            connection.exec_driver_sql("BEGIN")
        else:
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        return connection

    def _find_changed(self, connection: Connection, runs: pd.DataFrame, known: Known) -> npt.NDArray[np.bool_]:
        """Return for each run whether it is new, at work, or other than it was."""
        index = pd.Index(known.table["run_id"].to_numpy(zero_copy_only=False))
        at = index.get_indexer(pd.Index(runs["run_id"]))
        changed: npt.NDArray[np.bool_] = (at < 0) | runs["run_status"].isin(_AT_WORK).to_numpy()
        if not len(index):
            return changed
        old = at >= 0
        for name in ("name", "experiment_id", "experiment", "run_status", "ended_ms"):
            before = known.table[name].to_pandas().to_numpy(dtype=object)[at]
            after = runs[name].astype(str if name == "experiment_id" else object).to_numpy(dtype=object)
            both_missing = pd.isna(before) & pd.isna(after)
            changed |= old & ~both_missing & (before != after)
        retagged = self._find_retagged(connection, known, index)
        changed |= old & retagged[at]
        return changed

    def _find_retagged(self, connection: Connection, known: Known, index: pd.Index) -> npt.NDArray[np.bool_]:
        """Return for each known run whether a tag of it was set, changed or removed since."""
        query = text(_TAGS).bindparams(bindparam("written_once", expanding=True))
        rows = connection.execute(query, {"written_once": list(_WRITTEN_ONCE)}).all()
        found = _make_frame(rows, ["key", "run_id", "value"])
        columns = {name for name in known.table.column_names if name.startswith("tag:")}
        retagged = np.zeros(len(index), dtype=bool)
        for key, group in found.groupby("key", sort=False):
            at = index.get_indexer(pd.Index(group["run_id"]))
            now = np.full(len(index), None, dtype=object)
            now[at[at >= 0]] = group["value"].to_numpy(dtype=object)[at >= 0]
            name = f"tag:{key}"
            before = known.table[name].to_pandas().to_numpy(dtype=object) if name in columns else [None] * len(index)
            retagged |= pd.Series(now).fillna("").to_numpy() != pd.Series(before, dtype=object).fillna("").to_numpy()
            columns.discard(name)
        for name in columns - {f"tag:{key}" for key in _WRITTEN_ONCE}:
            retagged |= known.table[name].is_valid().to_numpy()
        return retagged

    def _read_rows(self, connection: Connection, runs: pd.DataFrame, *, everything: bool) -> RunRows:
        rows = RunRows()
        for name, column in rows.facts.items():
            values = runs[name].to_numpy(dtype=object)
            column.extend(None if pd.isna(value) else value for value in values)
        rows.facts["experiment_id"] = [str(value) for value in rows.facts["experiment_id"]]
        position = {run_id: row for row, run_id in enumerate(rows.facts["run_id"])}
        queries = dict(_COLUMNS)
        if everything and self.file is not None:
            for kind, table, unread in (("param", "params", ()), ("tag", "tags", tuple(UNREAD_TAGS))):
                columns = read_text_columns(_sqlite(connection), table, position, unread=unread)
                rows.texts |= {f"{kind}:{key}": column for key, column in columns.items()}
                del queries[kind]
        for kind, query in queries.items():
            for run_id, key, value in _select(connection, query, position, everything=everything):
                row = position.get(run_id)
                if row is None or (kind == "tag" and key in UNREAD_TAGS):
                    continue
                if kind == "metric":
                    rows.add_number(f"metric:{key}", row, np.nan if value is None else value)
                else:
                    rows.add_text(f"{kind}:{key}", row, value)
        return rows

    def read_curves(self, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
        """Yield (run id, step, value) of a metric's whole history.

        Raises:
            MlmetaError: If the database does not answer.
        """
        # The empty text keeps databases from the index of keys, through which they would read the metric of all runs.
        query = (
            "SELECT run_uuid, step, CASE WHEN is_nan THEN NULL ELSE value END FROM metrics WHERE key || '' = :metric"
        )
        try:
            with self._connect() as connection:
                for run_id, step, value in _select(connection, query, run_ids, everything=False, metric=metric):
                    yield run_id, int(step), np.nan if value is None else float(value)
        except SQLAlchemyError as error:
            raise MlmetaError(f"the tracking store cannot be read: {_explain(error)}") from None


def _sqlite(connection: Connection) -> sqlite3.Connection:
    driver: sqlite3.Connection = connection.connection.dbapi_connection  # type: ignore[assignment]
    return driver


def _make_frame(rows: Sequence[Any], names: Sequence[str]) -> pd.DataFrame:
    """Return a query's rows as a table; pandas itself takes ten times as long for SQLAlchemy's rows."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in zip(names, columns, strict=True)})


def _select(
    connection: Connection,
    query: str,
    run_ids: Iterable[str],
    *,
    everything: bool,
    column: str = "run_uuid",
    **values: Any,
) -> Iterator[Any]:
    """Yield a query's rows: all of them, or those of some runs."""
    if everything and isinstance(connection.connection.dbapi_connection, sqlite3.Connection):
        # SQLAlchemy takes as long to pass a row on as SQLite to read it.
        yield from _sqlite(connection).execute(query, values)
        return
    if everything:
        yield from connection.execution_options(yield_per=10_000).execute(text(query), values)
        return
    ids = list(run_ids)
    chosen = f"{query} {'AND' if 'WHERE' in query else 'WHERE'} {column} IN :ids"
    statement = text(chosen).bindparams(bindparam("ids", expanding=True))
    for start in range(0, len(ids), _AT_ONCE):
        yield from connection.execute(statement, {**values, "ids": ids[start : start + _AT_ONCE]})


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
