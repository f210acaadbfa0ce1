"""The history on disk: what was read from one tracking store, in Parquet files that are never changed.

A manifest names the files in their order; each adds runs, supersedes runs of those before it by their ids, and may
say which are gone. A file and the manifest are written whole and renamed, so that readers need no lock and a crash
leaves the state before; writers hold a file lock. A small file is joined with the one before it as soon as that is
less than four times as large, so that there are few and a run is written again a few times in all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from mlmeta.files import NO_LOCKS, replacing
from mlmeta.history.reader import empty_table, join_tables

FORMAT = 1
_LOG = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_GROWTH = 4
# A file that no manifest names is left by a writer that was killed; younger ones may be in the making.
_STALE_S = 3600
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)


@dataclass(frozen=True)
class Segment:
    """One Parquet file.

    Attributes:
        gone: The ids of runs in the files before it that are there no longer.
    """

    file: str
    n_rows: int
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class CachedHistory:
    """What the cache holds.

    Attributes:
        table: One row a run, see `mlmeta.history.reader`.
        cursor: What the reader needs to ask only for what has changed since.
    """

    table: pa.Table
    cursor: Mapping[str, Any]
    segments: tuple[Segment, ...] = field(default=(), repr=False)


class HistoryCache:
    """The files of one tracking store.

    Args:
        folder: Made when it is first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> CachedHistory | None:
        """Return what is kept, or None where there is nothing, or nothing that can be read."""
        for _ in range(3):
            # A writer may join files between the reading of the manifest and of a file it names.
            try:
                cursor, segments = self.read_manifest()
                table = _stack([self._read_segment(one) for one in segments], [one.gone for one in segments])
                return CachedHistory(table, cursor, segments)
            except FileNotFoundError:
                continue
            except _UNREADABLE:
                return None
        return None

    def read_manifest(self) -> tuple[Mapping[str, Any], tuple[Segment, ...]]:
        """Return the cursor and the files.

        Raises:
            OSError: If there is no manifest.
            ValueError: If it is damaged, or another version's; KeyError or TypeError where a part is missing.
        """
        manifest = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError("another version's")
        rows = manifest["segments"]
        segments = tuple(Segment(str(row["file"]), int(row["n_rows"]), tuple(row["gone"])) for row in rows)
        return manifest["cursor"], segments

    def _read_segment(self, segment: Segment) -> pa.Table:
        file = self.folder / segment.file
        texts = [name for name in pq.read_schema(file).names if name.startswith(("param:", "tag:"))]
        table = pq.read_table(file, read_dictionary=texts, page_checksum_verification=True)
        if len(table) != segment.n_rows:
            raise ValueError(f"{file} does not hold what it held")
        return table

    @contextlib.contextmanager
    def lock(self, *, wait_s: float = 60.0) -> Iterator[bool]:
        """Hold the right to write; gives whether it could be had."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock")
            lock.acquire(timeout=wait_s)
        except NO_LOCKS as error:
            _LOG.warning("mlmeta: the history is not kept in %s: %s", self.folder, error)
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def append(
        self, cached: CachedHistory, changed: pa.Table, gone: Sequence[str], cursor: Mapping[str, Any]
    ) -> CachedHistory:
        """Add runs to what is kept, and return all of it; the lock is held.

        Args:
            cached: What `read` gave under this lock; empty to begin anew.
            changed: Runs that are new, or supersede those of their ids.
            gone: The ids of runs that are there no longer.
            cursor: What the reader wants back the next time.

        Raises:
            OSError: If it cannot be written; what was kept is as it was.
        """
        table = merge_runs(cached.table, changed, gone)
        segments = list(cached.segments)
        if len(changed) or gone or not segments:
            segments = self._add(segments, table, changed, tuple(gone))
        self._write_manifest(cursor, segments)
        return CachedHistory(table, cursor, tuple(segments))

    def _add(
        self, segments: Sequence[Segment], table: pa.Table, changed: pa.Table, gone: tuple[str, ...]
    ) -> list[Segment]:
        """Return the files with what is added, the small ones before it joined with it."""
        n_kept, n_rows = len(segments), len(changed)
        while n_kept and segments[n_kept - 1].n_rows < _GROWTH * n_rows:
            n_kept -= 1
            n_rows += segments[n_kept].n_rows
        if not n_kept:
            return [self._write(table, ())]
        joined = segments[n_kept:]
        stacked = _stack([*map(self._read_segment, joined), changed], [*(one.gone for one in joined), gone])
        return [*segments[:n_kept], self._write(stacked, sum((one.gone for one in joined), gone))]

    def _write(self, table: pa.Table, gone: tuple[str, ...]) -> Segment:
        name = f"{secrets.token_hex(8)}.parquet"
        with replacing(self.folder / name, durable=True, part=self.folder / f"{name}.tmp") as stream:
            pq.write_table(table, stream, compression="zstd", write_page_checksum=True)
        return Segment(name, len(table), gone)

    def _write_manifest(self, cursor: Mapping[str, Any], segments: Sequence[Segment]) -> None:
        rows = [{"file": one.file, "n_rows": one.n_rows, "gone": list(one.gone)} for one in segments]
        with replacing(self.folder / _MANIFEST, durable=True) as stream:
            stream.write(json.dumps({"format": FORMAT, "cursor": dict(cursor), "segments": rows}).encode())
        self._remove_unnamed({one.file for one in segments})

    def _remove_unnamed(self, named: set[str]) -> None:
        """Remove files that are no longer named; a reader that has them open goes on."""
        for file in self.folder.glob("*.parquet*"):
            with contextlib.suppress(OSError):
                if file.name not in named and (
                    file.suffix == ".parquet" or time.time() - file.stat().st_mtime > _STALE_S
                ):
                    file.unlink()


def merge_runs(table: pa.Table, changed: pa.Table, gone: Sequence[str]) -> pa.Table:
    """Return runs with those that changed in place of their old rows, and without those that are gone."""
    return _stack([table, changed], [(), gone])


def _stack(tables: Sequence[pa.Table], gone: Sequence[Sequence[str]]) -> pa.Table:
    """Return tables as one: of the rows of one run the last, and none that is gone since.

    Args:
        tables: In their order.
        gone: For each the ids of runs in those before it that are there no longer.
    """
    kept: list[pa.Table] = []
    superseded: set[str] = set()
    for index in reversed(range(len(tables))):
        table = tables[index]
        if superseded:
            is_old = pc.is_in(table["run_id"], value_set=pa.array(sorted(superseded), type=pa.string()))
            table = table.filter(pc.invert(is_old))
        kept.insert(0, table)
        superseded.update(gone[index], table["run_id"].to_pylist() if index else ())
    return join_tables(kept) if kept else empty_table()
