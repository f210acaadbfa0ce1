"""A program that reads a SQLite file by Apache Arrow's driver: lines of JSON ask, streams of Arrow answer.

It has a process of its own, because the driver brings a SQLite of its own. Two copies of SQLite in one process undo
each other's locks: a file that the one closes is unlocked for the other too, another process may then take the
write-ahead log away, and what MLflow writes in this one is lost. It is run by its path, and knows nothing of mlmeta.
"""

from __future__ import annotations

import json
import sys

import adbc_driver_sqlite
import pyarrow as pa
from adbc_driver_manager import AdbcConnection, AdbcStatement

_BATCH = {adbc_driver_sqlite.StatementOptions.BATCH_ROWS.value: "65536"}
# Few differ in a batch.
_ENCODED = ("run_uuid", "key")


def main() -> None:
    """Answer queries until there are no more, all of them from the state at the first."""
    with adbc_driver_sqlite.connect(sys.argv[1]) as database, AdbcConnection(database) as connection:
        connection.set_autocommit(False)
        for line in sys.stdin:
            sql, values = json.loads(line)
            with AdbcStatement(connection) as statement:
                statement.set_options(**_BATCH)
                statement.set_sql_query(sql)
                if values:
                    statement.prepare()
                    statement.bind(pa.record_batch({name: [value] for name, value in values.items()}))
                _answer(pa.RecordBatchReader.from_stream(statement.execute_query()[0]))


def _answer(reader: pa.RecordBatchReader) -> None:
    encoded = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([field.with_type(encoded) if field.name in _ENCODED else field for field in reader.schema])
    with pa.ipc.new_stream(sys.stdout.buffer, schema) as writer:
        for batch in reader:
            columns = zip(batch.columns, schema, strict=True)
            arrays = [
                column.dictionary_encode() if field.type == encoded else column.cast(field.type)
                for column, field in columns
            ]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
