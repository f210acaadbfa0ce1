"""Imports Attempt documents: makes one MLflow run a document, with its own times and curves, without training."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import mlflow

from mlmeta.attempt_files import Entry, is_table, read_entries
from mlmeta.attempt_records import make_record
from mlmeta.attempt_tables import check_mapping
from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.exchange_documents import ExchangedAttempt, parse_exchanged
from mlmeta.import_tasks import TaskReader
from mlmeta.imported_runs import ImportedRuns, RefusedError, choose_experiment, only_import
from mlmeta.tracking.store import open_client, sqlite_file

# More faults are counted, not kept.
MAX_FAULTS = 1000


@dataclass
class ImportResult:
    """What came of an import.

    Attributes:
        n_new: Attempts that were imported (or would be, in a dry run).
        n_known: Documents that were there already, or stood in the files before.
        faults: What was wrong with the documents that were left out, the first `MAX_FAULTS`; each names its file and
            line.
        n_faults: Documents and files that were left out.
        n_unreadable: Files among them that could not be read, or not to their end.
        tasks_without_pictures: Task (its name, or its data) to why its pictures are not reachable.
    """

    n_new: int = 0
    n_known: int = 0
    faults: list[MlmetaError] = field(default_factory=list)
    n_faults: int = 0
    n_unreadable: int = 0
    tasks_without_pictures: dict[str, str] = field(default_factory=dict)


class ImportProgress(Protocol):
    """Is told of every document."""

    def advance(self, share: float, result: ImportResult) -> None:
        """Take the share of all bytes that has been read (0..1) and what has come of it so far."""


def import_attempts(
    files: Iterable[str | Path],
    *,
    pictures: str | Path | None = None,
    experiment: str | None = None,
    mapping: Mapping[str, str] | None = None,
    progress: ImportProgress | None = None,
    dry_run: bool = False,
) -> ImportResult:
    """Make MLflow runs from files of Attempt documents.

    A document that is in the tracking store already, as the digest of its content tells, is not imported again; one
    that is faulty is left out and reported. An import that was interrupted is finished by importing again.

    Args:
        files: JSON documents, lists, JSON lines or CSV tables; see `mlmeta.attempt_files`.
        pictures: The folder that relative paths of the commands' data are relative to; None for each file's own.
        experiment: Name of the experiment to import into, made where it is missing; None as MLflow's settings say.
        mapping: Column to field, for tables; see `mlmeta.attempt_tables`.
        progress: Is told of every document.
        dry_run: Check and count only; nothing is written.

    Raises:
        BadInputError: If the mapping or the folder of pictures cannot be used.
        MlmetaError: If the tracking store cannot be used; what was imported before stays.
    """
    paths = [Path(file) for file in files]
    _check_arguments(paths, pictures, mapping)
    tasks = TaskReader(None if pictures is None else Path(pictures))
    if dry_run:
        importer = _Importer(tasks, _open_runs_to_read(), None)
        return importer.run(paths, mapping, progress)
    with only_import(mlflow.get_tracking_uri()):
        client = open_client()
        runs = ImportedRuns(client)
        runs.remove_half_made()
        experiment_id = choose_experiment(client, experiment)
        importer = _Importer(tasks, runs, experiment_id)
        try:
            return importer.run(paths, mapping, progress)
        finally:
            if importer.result.n_new:
                runs.register(experiment_id)


def _check_arguments(paths: list[Path], pictures: str | Path | None, mapping: Mapping[str, str] | None) -> None:
    if not paths:
        raise BadInputError("there is no file to import")
    if pictures is not None and not Path(pictures).is_dir():
        raise BadInputError(f"the folder of the pictures, {pictures}, is not there")
    if mapping:
        check_mapping(mapping)
        if not any(map(is_table, paths)):
            raise BadInputError("a mapping is for tables, and none of the files is a .csv or .tsv file")


def _open_runs_to_read() -> ImportedRuns | None:
    """Return what has been imported, without making a store that is not there yet."""
    file = sqlite_file(mlflow.get_tracking_uri())
    return ImportedRuns(open_client()) if file is None or file.is_file() else None


class _Importer:
    def __init__(self, tasks: TaskReader, runs: ImportedRuns | None, experiment_id: str | None) -> None:
        self._tasks = tasks
        self._runs = runs
        self._experiment_id = experiment_id
        self._digests = set() if runs is None else set(runs.digests)
        self.result = ImportResult()

    def run(
        self, paths: list[Path], mapping: Mapping[str, str] | None, progress: ImportProgress | None
    ) -> ImportResult:
        sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        for index, path in enumerate(paths):
            for entry in read_entries(path, mapping=mapping):
                self._take(entry, path)
                if progress is not None:
                    progress.advance((sum(sizes[:index]) + entry.n_bytes) / max(sum(sizes), 1), self.result)
        return self.result

    def _take(self, entry: Entry, file: Path) -> None:
        """Import one document, or note what is wrong with it."""
        if isinstance(entry.content, MlmetaError):
            self._note_fault(entry, entry.content)
            return
        try:
            attempt = parse_exchanged(entry.content, source=entry.source)
            if attempt.digest in self._digests:
                self.result.n_known += 1
                return
            self._import(attempt, file)
        except RefusedError as error:
            self._note_fault(entry, BadInputError(f"{entry.source}: {error}"))
        except BadInputError as error:
            self._note_fault(entry, error)
        else:
            self._digests.add(attempt.digest)
            self.result.n_new += 1

    def _note_fault(self, entry: Entry, error: MlmetaError) -> None:
        self.result.n_faults += 1
        self.result.n_unreadable += entry.number == 0
        if len(self.result.faults) < MAX_FAULTS:
            self.result.faults.append(error)

    def _import(self, attempt: ExchangedAttempt, file: Path) -> None:
        if self._experiment_id is None or self._runs is None:
            return
        task = self._tasks.describe_task(attempt, file)
        if task.reason:
            self.result.tasks_without_pictures.setdefault(_name_task(attempt), task.reason)
        record = make_record(
            attempt, task=task, network=self._tasks.describe_network(attempt, task),
            file_name=file.name, now_s=time.time(),
        )  # fmt: skip
        base_dir = self._tasks.base_dir(file)
        self._runs.add(record, digest=attempt.digest, base_dir=base_dir, experiment_id=self._experiment_id)


def _name_task(attempt: ExchangedAttempt) -> str:
    note = attempt.facts.task
    if note is not None and note.name:
        return note.name
    return "" if attempt.commands is None else attempt.commands.model_name
