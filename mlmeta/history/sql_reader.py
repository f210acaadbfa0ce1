"""The reader of MLflow's own tables, for SQLite and PostgreSQL: a hundred times faster than the public interface.

It only reads, in one transaction, and only from stores whose schema version it knows; for others there is
`mlmeta.history.api_reader`. What has changed since the last reading is found by comparing: the row of every run,
and every tag but those that mlmeta and MLflow write once. Metrics and params that somebody adds to a run that has
ended are seen with the next whole reading.

A large SQLite file is read by Apache Arrow's driver, in a process of its own (see `mlmeta.history.sqlite_scan`), in a
third of the time that its rows take in Python. Where the driver is missing or fails, and for a small file or another
database, rows are fetched by SQLAlchemy; both give the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from mlmeta.errors import MlmetaError
from mlmeta.history.reader import FACT_TYPES, UNREAD_TAGS, Changes, Column, Known, RunRows, spread
from mlmeta.tracking.store import sqlite_file

_LOG = logging.getLogger(__name__)
# MLflow's schema versions (alembic revisions) from 3.10 on, between which the tables read here did not change.
KNOWN_SCHEMAS = frozenset(
    "1b5f0d9ad7c1 e1f2a3b4c5d6 76601a5f987d c3d6457b6d8a a5b4c3d2e1f0 ae8bbe7743c9 7d34483879f0 da6fb0208061 "
    "89d3d66ed43f b7e4c1a90f23 a8b9c0d1e2f3 c1d2e3f4a5b6 c3d9e7f1a2b4 6f8d9c3b2a1e 1971f2d9a75b 17e22815139b "
    "b7e2c1a4d9f3 75868b020152 dc11669786a5".split()
)
_WRITTEN_ONCE = (
    "mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit", "mlflow.project.env",
    "mlflow.project.entryPoint", "mlflow.project.backend", "mlmeta.version", "mlmeta.host",
    "mlmeta.heartbeat", "mlmeta.device", "mlmeta.task", "mlmeta.task_digest", "mlmeta.training_losses",
    "mlmeta.commands_digest", "mlmeta.commands_dir", "mlmeta.weights_sha256", "mlmeta.import_digest",
    "mlmeta.import_batch", "mlmeta.import_row", "mlmeta.imported", *sorted(UNREAD_TAGS),
)  # fmt: skip
_AT_WORK = pa.array(["RUNNING", "SCHEDULED"])
# A file's time of change is trusted when it is older than what clocks and file systems can tell apart.
_RACE_S = 2.0


_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()


class Query(NamedTuple):
    """A query and the types of its columns; ``:name`` is a value of a run of it."""

    sql: str
    types: tuple[pa.DataType, ...]


# Arrow's driver takes a column's type from its first rows, and so would take text for numbers where these have none.
_FACTS = Query(
    "SELECT runs.run_uuid AS run_id, coalesce(runs.name, ''), runs.experiment_id, experiments.name, "
    "coalesce(runs.status, ''), runs.start_time, runs.end_time, experiments.workspace "
    "FROM runs JOIN experiments ON experiments.experiment_id = runs.experiment_id "
    "WHERE runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'",
    (_TEXT, _TEXT, _WHOLE, _TEXT, _TEXT, _WHOLE, _WHOLE, _TEXT),
)
_NUMBER = "coalesce(value, 0.0), CASE WHEN is_nan OR value IS NULL THEN 1 ELSE 0 END"
_COLUMNS = {
    "param": Query("SELECT run_uuid, key, value FROM params WHERE value IS NOT NULL", (_TEXT, _TEXT, _TEXT)),
    "tag": Query("SELECT run_uuid, key, value FROM tags WHERE value IS NOT NULL", (_TEXT, _TEXT, _TEXT)),
    "metric": Query(
        f"SELECT run_uuid, key, {_NUMBER} FROM latest_metrics WHERE true",  # noqa: S608
        (_TEXT, _TEXT, _REAL, _WHOLE),
    ),
}
# The empty text keeps databases from the index of keys, through which they would read the metric of all runs.
_CURVES = Query(
    f"SELECT run_uuid, step, {_NUMBER} FROM metrics WHERE key || '' = :metric",  # noqa: S608
    (_TEXT, _WHOLE, _REAL, _WHOLE),
)
_TAG = Query("SELECT run_uuid, value FROM tags WHERE value IS NOT NULL AND key = :key", (_TEXT, _TEXT))
_CHOSEN = {
    "sqlite": " AND run_uuid IN (SELECT value FROM json_each(:ids))",
    "postgresql": " AND run_uuid IN (SELECT json_array_elements_text(CAST(:ids AS json)))",
}
# Some 4,000 attempts: with fewer, a process of its own takes longer to start than it saves.
SCAN_BYTES = 100_000_000
_ROWS = 20_000
_SCAN = Path(__file__).with_name("sqlite_scan.py")


Read = Callable[..., Iterator[list[pa.Array]]]


def open_sql_reader(uri: str, *, all_runs: bool = False) -> SqlReader | None:
    """Return a reader of a store's tables, or None where it has none that are known.

    Raises:
        MlmetaError: If a PostgreSQL server does not answer; MLflow itself would try for minutes.
    """
    file = sqlite_file(uri)
    if file is not None:
        if not file.is_file():
            return None
        uri = f"sqlite:///{sqlite_uri(file)}&uri=true"
    elif uri.partition(":")[0].partition("+")[0] != "postgresql":
        return None
    try:
        engine = create_engine(uri, poolclass=NullPool)
        with engine.connect() as connection:
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except OperationalError as error:
        if file is not None:
            return None
        raise MlmetaError(f"the tracking store cannot be opened: {explain(error)}") from None
    except (SQLAlchemyError, ImportError):
        return None
    return SqlReader(engine, file=file, all_runs=all_runs) if version in KNOWN_SCHEMAS else None


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
        self._all_runs = all_runs
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
        cursor = {"stamp": self._read_stamp(), "workspace": self._workspace}
        if self.file is not None and can_scan(self.file):
            try:
                with open_scan(self.file) as read:
                    return self._compare(read, known, cursor)
            except (OSError, pa.ArrowException) as error:
                _LOG.info("mlmeta: %s is read row by row, since Arrow's driver fails: %s", self.file, error)
        with open_rows(self.engine) as read:
            return self._compare(read, known, cursor)

    def _compare(self, read: Read, known: Known, cursor: Mapping[str, Any]) -> Changes:
        runs = self._read_facts(read)
        tags = _gather(read(_without(_COLUMNS["tag"], _WRITTEN_ONCE)), runs["run_id"])
        if not self._all_runs:
            kinds = spread(*tags.get("mlmeta.kind", ([], [])), n_rows=len(runs))
            counts = pc.equal(_to_texts(kinds), "attempt")
        changed = _find_changed(runs, tags, known.table)
        if not self._all_runs:
            changed = pc.and_(changed, counts)
            runs, changed = runs.filter(counts), changed.filter(counts)
        still = pc.is_in(known.table["run_id"], value_set=runs["run_id"].combine_chunks())
        gone = known.table["run_id"].filter(pc.invert(still)).to_pylist()
        rows = self._read_rows(read, runs.filter(changed), known)
        return Changes(rows.to_arrow(), sorted(gone), dict(cursor))

    def _read_facts(self, read: Read) -> pa.Table:
        """Return the facts of all runs that are there."""
        names = [*FACT_TYPES, "workspace"]
        batches = [pa.record_batch(columns, names) for columns in read(_FACTS)]
        table = pa.Table.from_batches(batches, pa.schema(list(zip(names, _FACTS.types, strict=True))))
        table = table.filter(pc.equal(table["workspace"], self._workspace)).drop_columns("workspace")
        name = pc.if_else(pc.equal(table["name"], ""), None, table["name"])
        return table.set_column(1, "name", name).cast(pa.schema(list(FACT_TYPES.items())))

    def _read_rows(self, read: Read, runs: pa.Table, known: Known) -> RunRows:
        rows = RunRows({name: runs[name] for name in FACT_TYPES})
        # Most rows are read faster with all others than one by one.
        everything = len(runs) > len(known.table) / 2
        ids = {} if everything else {"ids": json.dumps(runs["run_id"].to_pylist())}
        for kind, query in _COLUMNS.items():
            query = _without(query, sorted(UNREAD_TAGS)) if kind == "tag" else query
            batches = read(query if everything else self._of_chosen(query), **ids)
            columns = rows.texts if kind != "metric" else rows.numbers
            found = map(_read_nan, batches) if kind == "metric" else batches
            columns.update({f"{kind}:{key}": column for key, column in _gather(found, runs["run_id"]).items()})
        return rows

    def _of_chosen(self, query: Query) -> Query:
        return Query(query.sql + _CHOSEN[self.engine.dialect.name], query.types)

    def read_curves(self, run_ids: Sequence[str], metric: str) -> Iterator[tuple[str, int, float]]:
        """Yield (run id, step, value) of a metric's whole history.

        Raises:
            MlmetaError: If the database does not answer.
        """
        with open_rows(self.engine) as read:
            for batch in read(self._of_chosen(_CURVES), metric=metric, ids=json.dumps(list(run_ids))):
                yield from zip(*(column.to_pylist() for column in _read_nan(batch)), strict=True)

    def read_tag(self, key: str) -> Iterator[tuple[str, str]]:
        """Yield (run id, value) of every run that has a tag.

        Raises:
            MlmetaError: If the database does not answer.
        """
        with open_rows(self.engine) as read:
            for batch in read(_TAG, key=key):
                yield from zip(*(column.to_pylist() for column in batch), strict=True)


def _without(query: Query, keys: Iterable[str]) -> Query:
    """Return a query that leaves keys out."""
    listed = ", ".join(f"'{key}'" for key in keys)
    return Query(f"{query.sql} AND key NOT IN ({listed})", query.types)


def _read_nan(batch: Sequence[pa.Array]) -> list[pa.Array]:
    """Return columns whose last but one are numbers, which are NaN where the last says so."""
    *others, numbers, missing = batch
    return [*others, pc.if_else(pc.equal(missing, 1), np.nan, numbers)]


def _gather(batches: Iterable[Sequence[pa.Array]], run_ids: pa.ChunkedArray) -> dict[str, Column]:
    """Return by key the places of its rows, and their values.

    Args:
        batches: Of run ids, keys and values; other runs are left out.
        run_ids: The runs at their places.
    """
    position = {run_id: place for place, run_id in enumerate(run_ids.to_pylist())}
    places: dict[str, list[Any]] = {}
    values: dict[str, list[pa.Array]] = {}
    for ids, keys, found in batches:
        ids, keys = _encode(ids), _encode(keys)
        at = np.array([position.get(run_id, -1) for run_id in ids.dictionary.to_pylist()], dtype=np.int64)
        at, codes = at[ids.indices.to_numpy()], keys.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        order = order[at[order] >= 0]
        bounds = np.searchsorted(codes[order], np.arange(len(keys.dictionary) + 1))
        at, found = at[order], found.take(pa.array(order))
        for key, first, end in zip(keys.dictionary.to_pylist(), bounds, bounds[1:], strict=False):
            if first < end:
                places.setdefault(key, []).append(at[first:end])
                values.setdefault(key, []).append(found.slice(first, end - first))
    return {key: (np.concatenate(places[key]), pa.chunked_array(values[key])) for key in places}


def _find_changed(runs: pa.Table, tags: Mapping[str, Column], known: pa.Table) -> pa.ChunkedArray:
    """Return for each run whether it is new, at work, or other than it was."""
    at = pc.index_in(runs["run_id"], value_set=known["run_id"].combine_chunks())
    changed = pc.or_(pc.is_null(at), pc.is_in(runs["run_status"], value_set=_AT_WORK))
    if not len(known):
        return changed
    pairs = [(name, runs[name]) for name in ("name", "experiment_id", "experiment", "run_status", "ended_ms")]
    kept = {name.removeprefix("tag:") for name in known.column_names if name.startswith("tag:")}
    for key in sorted({*tags, *kept} - set(_WRITTEN_ONCE)):
        pairs.append((f"tag:{key}", spread(*tags.get(key, ([], [])), n_rows=len(runs))))
    for name, now in pairs:
        before = known[name] if name in known.column_names else pa.nulls(len(known), _TEXT)
        changed = pc.or_(changed, pc.not_equal(_to_texts(_decode(before).take(at)), _to_texts(now)))
    return changed


def _to_texts(column: Any) -> Any:
    """Return text that can be compared: a missing one is other than an empty one."""
    return pc.fill_null(column.cast(_TEXT), "\0")


def _encode(column: pa.Array) -> pa.DictionaryArray:
    return column if pa.types.is_dictionary(column.type) else column.dictionary_encode()


def _decode(column: Any) -> Any:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def sqlite_uri(file: Path) -> str:
    """Return what opens a file so that it can only be read."""
    return f"file:{quote(str(file.resolve()))}?mode=ro"


def can_scan(file: Path | None) -> bool:
    """Return whether a store is one for Arrow's driver: a large SQLite file, with the driver installed."""
    return (
        file is not None
        and file.stat().st_size >= SCAN_BYTES
        and importlib.util.find_spec("adbc_driver_sqlite") is not None
        and bool(sys.executable)
    )


@contextlib.contextmanager
def open_scan(file: Path) -> Iterator[Read]:
    """Give a function that reads a SQLite file by Arrow's driver: batch by batch, a query at a time to its end.

    Raises:
        OSError: If the driver fails, there or in the function; or an `ArrowException`.
    """
    command = [sys.executable, "-P", str(_SCAN), sqlite_uri(file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:  # noqa: S603 - our own command line
        asked, answered = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)

        def read(query: Query, **values: str) -> Iterator[list[pa.Array]]:
            asked.write(json.dumps([query.sql, values]).encode() + b"\n")
            asked.flush()
            for batch in pa.ipc.open_stream(answered):
                yield [_cast(column, kind) for column, kind in zip(batch.columns, query.types, strict=True)]

        try:
            yield read
        finally:
            process.kill()
            # What was not sent any more.
            with contextlib.suppress(OSError):
                asked.close()


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    return column if pa.types.is_dictionary(column.type) else column.cast(kind)


@contextlib.contextmanager
def open_rows(engine: Engine) -> Iterator[Read]:
    """Give a function that reads a database by its rows, batch by batch.

    Raises:
        MlmetaError: If the database does not answer, here or in the function.
    """
    try:
        with engine.connect() as connection:
            is_sqlite = engine.dialect.name == "sqlite"
            if is_sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True, "yield_per": _ROWS}
                connection = connection.execution_options(**options)

            def read(query: Query, **values: str) -> Iterator[list[pa.Array]]:
                with connection.execute(text(query.sql), values) as result:
                    # SQLAlchemy takes as long to pass a row on as SQLite to read it.
                    parts = iter(lambda: result.cursor.fetchmany(_ROWS), []) if is_sqlite else result.partitions()
                    for rows in parts:
                        columns = zip(*rows, strict=True)
                        yield [pa.array(column, kind) for column, kind in zip(columns, query.types, strict=True)]

            yield read
    except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error, pa.ArrowException) as error:
        raise MlmetaError(f"the tracking store cannot be read: {explain(error)}") from None


def explain(error: Exception) -> str:
    """Return in one short line what a database says."""
    return " ".join(str(error).partition("(Background on")[0].split())[:300]
