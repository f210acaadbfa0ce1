"""Queries of a tracking store's tables, answered in Arrow from one transaction that only reads.

A large SQLite file is read by Apache Arrow's driver, in a process of its own (see `mlmeta.history.sqlite_scan`), in a
third of the time that its rows take in Python. Where the driver is missing or fails, and for a small file or another
database, rows are fetched by SQLAlchemy; both give the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast
from urllib.parse import quote

import pyarrow as pa
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from mlmeta.errors import MlmetaError

# Some 4,000 attempts: with fewer, a process of its own takes longer to start than it saves.
SCAN_BYTES = 100_000_000
_ROWS = 20_000
_SCAN = Path(__file__).with_name("sqlite_scan.py")


class Query(NamedTuple):
    """A query and the types of its columns; ``:name`` is a value of a run of it."""

    sql: str
    types: tuple[pa.DataType, ...]


Read = Callable[..., Iterator[list[pa.Array]]]


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
