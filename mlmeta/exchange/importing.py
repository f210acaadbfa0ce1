"""Imports Attempt documents: makes one MLflow run a document, with its own times and curves, without training.

The pictures of a task are read once for all attempts on it, where they are reachable.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import mlflow

from mlmeta.commands.documents import SampleData, TorchvisionData, TrainCommands
from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.exchange.csv_tables import TableAccount, check_mapping
from mlmeta.exchange.documents import Entry, ExchangedAttempt, is_table, parse_exchanged, read_entries
from mlmeta.exchange.imported_runs import ImportedRuns, RefusedError, choose_experiment, only_import
from mlmeta.exchange.records import TaskFacts, describe_network, describe_unseen_task, find_renamed, make_record
from mlmeta.tracking.store import open_client, sqlite_file

# More faults are counted, not kept.
MAX_FAULTS = 1000
# What decides which pictures a task has, how they look, and which of them are to train on.
_DECIDING = ("data", "label_names", "n_labels", "image_ops", "transform", "validation")


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
        n_replaced: Attempts of rows that had been imported with other fields, and were made anew.
        n_without_weights: New attempts whose weights lie elsewhere.
        tasks_without_pictures: Task (its name, or its data) to why its pictures are not reachable.
        tables: What was made of the columns of each table.
        renamed: Names that MLflow does not take, and what they became.
    """

    n_new: int = 0
    n_known: int = 0
    faults: list[MlmetaError] = field(default_factory=list)
    n_faults: int = 0
    n_unreadable: int = 0
    n_replaced: int = 0
    n_without_weights: int = 0
    tasks_without_pictures: dict[str, str] = field(default_factory=dict)
    tables: list[TableAccount] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)


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
        files: JSON documents, lists, JSON lines or CSV tables; see `mlmeta.exchange.documents`.
        pictures: The folder that relative paths of the commands' data are relative to; None for each file's own.
        experiment: Name of the experiment to import into, made where it is missing; None as MLflow's settings say.
        mapping: Column to field, for tables; see `mlmeta.exchange.csv_tables`.
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
            if importer.result.n_new or importer.result.n_replaced:
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
        self._digests = set() if runs is None else runs.digests
        self._rows = {} if runs is None else dict(runs.rows)
        self.result = ImportResult()

    def run(
        self, paths: list[Path], mapping: Mapping[str, str] | None, progress: ImportProgress | None
    ) -> ImportResult:
        sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        for index, path in enumerate(paths):
            account = TableAccount(str(path))
            if is_table(path):
                self.result.tables.append(account)
            for entry in read_entries(path, mapping=mapping, account=account):
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
            self._note_success(attempt)

    def _note_success(self, attempt: ExchangedAttempt) -> None:
        result, row = self.result, attempt.facts.row_digest
        if row is not None and row in self._rows:
            self._digests.discard(self._rows[row][1])
            result.n_replaced += 1
        else:
            result.n_new += 1
        self._digests.add(attempt.digest)
        if row is not None:
            self._rows[row] = "", attempt.digest
        result.n_without_weights += attempt.facts.weights_sha256 is not None
        result.renamed |= find_renamed(attempt)

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
            note, commands = attempt.facts.task, attempt.commands
            named = (note and note.name) or (commands and commands.model_name) or ""
            self.result.tasks_without_pictures.setdefault(named, task.reason)
        record = make_record(
            attempt, task=task, network=self._tasks.describe_network(attempt, task),
            file_name=file.name, now_s=time.time(),
        )  # fmt: skip
        base_dir = self._tasks.base_dir(file)
        self._runs.add(record, digest=attempt.digest, base_dir=base_dir, experiment_id=self._experiment_id)


class TaskReader:
    """Describes the tasks of attempts; torch is imported when the first pictures are found.

    Args:
        pictures: The folder that relative paths of the commands' data are relative to; None for that of the document.
    """

    def __init__(self, pictures: Path | None = None) -> None:
        self._pictures = pictures
        self._tasks: dict[str, TaskFacts | str] = {}
        self._networks: dict[str, dict[str, Any] | None] = {}

    def base_dir(self, file: Path) -> Path:
        """Return what relative paths in the documents of a file are relative to."""
        return self._pictures or file.parent

    def describe_task(self, attempt: ExchangedAttempt, file: Path) -> TaskFacts:
        """Return what is known of the task of an attempt that stands in a file."""
        commands, note = attempt.commands, attempt.facts.task
        if commands is None or (note and note.digest):
            return describe_unseen_task(attempt)
        base_dir = self.base_dir(file)
        key = _key(commands.model_dump(mode="json", include=set(_DECIDING)), str(base_dir))
        if key not in self._tasks:
            self._tasks[key] = _read_task(commands, base_dir)
        known = self._tasks[key]
        return describe_unseen_task(attempt, reason=known) if isinstance(known, str) else known

    def describe_network(self, attempt: ExchangedAttempt, task: TaskFacts) -> dict[str, Any]:
        """Return the params ``arch.*`` of an attempt, without the prefix.

        A model whose layers or number of parameters the document does not tell is built, if its input is known.
        """
        commands = attempt.commands
        if commands is None:
            return {}
        n_parameters = attempt.facts.n_parameters
        if task.input_shape is None or (n_parameters is not None and commands.model.get("layers")):
            return describe_network(commands, n_parameters)
        n_labels = int(task.counts["n_labels"])
        key = _key(commands.model, n_labels, task.input_shape)
        if key not in self._networks:
            self._networks[key] = _build_network(commands, n_labels, task.input_shape)
        return self._networks[key] or describe_network(commands, n_parameters)


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def _read_task(commands: TrainCommands, base_dir: Path) -> TaskFacts | str:
    """Return what the pictures of the commands tell, or why they cannot be read."""
    data = commands.data
    if not isinstance(data, SampleData) and not os.path.exists(base_dir / data.path):
        return f"{base_dir / data.path} is not there"
    if isinstance(data, TorchvisionData):
        # An import fetches nothing.
        data = data.model_copy(update={"download": False})
    from mlmeta.data.task import describe_task, prepare_task

    try:
        task = prepare_task(commands.model_copy(update={"data": data}), base_dir=base_dir, training=False)
        counts, features = describe_task(task)
    except (MlmetaError, OSError, MemoryError) as error:
        return str(error)
    return TaskFacts(task.pictures.task_digest, "pictures", counts, features, task.input_shape)


def _build_network(commands: TrainCommands, n_labels: int, input_shape: tuple[int, int, int]) -> dict[str, Any] | None:
    """Return the params ``arch.*`` of the built model, as of a trained one; None if it cannot be built."""
    import torch

    from mlmeta.spec_builder import build_model, describe_model

    try:
        with torch.random.fork_rng(devices=()):
            model = build_model(commands.model, n_labels=n_labels, input_shape=input_shape)
    except (MlmetaError, MemoryError, RuntimeError):
        return None
    return describe_model(commands, model)
