"""Writes imported attempts as MLflow runs, each whole or, where an import broke, found and made anew by the next.

A run gets what makes it an attempt (``mlmeta.kind``, ``mlmeta.status``, ``mlmeta.import_digest``) last, in one request:
without these it is half-made, and no reader takes it for an attempt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

import mlmeta
from mlmeta.errors import BadInputError, MlmetaError
from mlmeta.exchange.records import ROW_TAG, RunRecord
from mlmeta.files import hold_run
from mlmeta.history.api_reader import BATCH_TAG, BATCHES_TAG, read_batches
from mlmeta.status import MLFLOW_STATUS
from mlmeta.tracking.operations import make_batches, may_pass, send_operation
from mlmeta.tracking.recovery import STALE_AFTER_S
from mlmeta.tracking.store import search_all_runs, store_key, telling

MAX_BATCHES = 50


class RefusedError(BadInputError):
    """MLflow does not take an attempt, whatever the circumstances."""


class ImportedRuns:
    """The imported attempts of a tracking store.

    Attributes:
        digests: Of the documents that are there.
        rows: Of tables: the digest of a row to the run that was made of it, and the digest of its document.
        batch: The random id of this import; every run that it makes has it as a tag.

    Raises:
        MlmetaError: If the store cannot be read.
    """

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self.digests: set[str] = set()
        self.rows: dict[str, tuple[str, str]] = {}
        self.batch = uuid.uuid4().hex
        self._half_made: list[Run] = []
        self._batches: dict[str, list[str]] = {}
        with telling("the tracking store cannot be read"):
            for run in search_all_runs(client, f"tags.`{BATCH_TAG}` != ''"):
                self._note(run)

    def _note(self, run: Run) -> None:
        digest = run.data.tags.get("mlmeta.import_digest")
        if digest is None:
            self._half_made.append(run)
            return
        self.digests.add(digest)
        if row := run.data.tags.get(ROW_TAG):
            self.rows[row] = run.info.run_id, digest
        batches = self._batches.setdefault(run.info.experiment_id, [])
        if run.data.tags[BATCH_TAG] not in batches:
            batches.append(run.data.tags[BATCH_TAG])

    def remove_half_made(self) -> None:
        """Delete the runs of imports that broke: of this machine, and of others after an hour of silence.

        Call it while `only_import` holds.
        """
        for run in self._half_made:
            heartbeat = run.data.tags.get("mlmeta.heartbeat", "")
            silence_s = time.time() - (float(heartbeat) if heartbeat.isdecimal() else 0.0)
            if run.data.tags.get("mlmeta.host") == socket.gethostname() or silence_s > STALE_AFTER_S:
                with telling(f"the half-made run {run.info.run_id} cannot be removed"):
                    self._client.delete_run(run.info.run_id)

    def add(self, record: RunRecord, *, digest: str, base_dir: Path, experiment_id: str) -> None:
        """Make the run of an attempt; the one that was made of the same row of a table is deleted then.

        Raises:
            RefusedError: If MLflow does not take it.
            MlmetaError: If MLflow does not answer.
        """
        tags = record.tags | {
            BATCH_TAG: self.batch,
            "mlmeta.version": mlmeta.__version__,
            "mlmeta.host": socket.gethostname(),
            "mlmeta.heartbeat": str(int(time.time())),
            "mlmeta.commands_dir": str(base_dir.resolve()),
        }
        last = {"mlmeta.kind": "attempt", "mlmeta.status": str(record.status), "mlmeta.import_digest": digest}
        run_id = None
        try:
            run = self._client.create_run(experiment_id, start_time=record.start_ms, tags=tags, run_name=record.name)
            run_id = str(run.info.run_id)
            self._write(run_id, record, last)
        except (MlflowException, OSError) as error:
            if run_id is not None:
                with contextlib.suppress(MlflowException):
                    self._client.delete_run(run_id)
            message = f"MLflow does not take the attempt {record.name}: {error}"
            raise (MlmetaError if may_pass(error) else RefusedError)(message) from error
        if row := record.tags.get(ROW_TAG):
            before, self.rows[row] = self.rows.get(row), (run_id, digest)
            if before is not None:
                with telling(f"the run {before[0]}, which {run_id} replaces, cannot be deleted"):
                    self._client.delete_run(before[0])

    def _write(self, run_id: str, record: RunRecord, last: Mapping[str, str]) -> None:
        # MLflow reads the whole run for all but the last of these, so it is filled after them.
        for name, document in record.documents.items():
            self._client.log_text(run_id, json.dumps(document, indent=2, ensure_ascii=False), name)
        # Nothing is at work on a run that was imported, whatever its attempt was doing when the document was written.
        status = MLFLOW_STATUS[record.status]
        status = "KILLED" if status == "RUNNING" else status
        if record.end_ms is None:
            self._client.update_run(run_id, status)
        else:
            self._client.set_terminated(run_id, status, record.end_ms)
        # MLflow writes the tags of a request after its metrics and params.
        params, tags = list(record.params.items()), list(last.items())
        for operation in make_batches(run_id, metrics=record.metrics, params=params, tags=tags):
            send_operation(self._client, operation, folder=Path())

    def register(self, experiment_id: str) -> None:
        """Add this import to the experiment's list of imports, the newest last.

        Runs with their own, old times are found by it. An import that died before it could do this is added now.
        """
        with telling("the import cannot be written to its experiment"):
            experiment = self._client.get_experiment(experiment_id)
            listed = read_batches(experiment)
            # A full list has lost its oldest; nothing can be said of those that are missing then.
            before = self._batches.get(experiment_id, []) if len(listed) < MAX_BATCHES else []
            batches = [*listed, *(batch for batch in [*before, self.batch] if batch not in listed)]
            self._client.set_experiment_tag(experiment_id, BATCHES_TAG, json.dumps(batches[-MAX_BATCHES:]))


def choose_experiment(client: MlflowClient, name: str | None) -> str:
    """Return the id of an experiment by its name, made where it is missing, or of the one that MLflow's settings name.

    Raises:
        MlmetaError: If it can neither be found nor made.
    """
    wanted = name or ("" if os.environ.get("MLFLOW_EXPERIMENT_ID") else os.environ.get("MLFLOW_EXPERIMENT_NAME", ""))
    if not wanted:
        return os.environ.get("MLFLOW_EXPERIMENT_ID") or "0"
    with telling(f"the experiment {wanted!r} cannot be used"):
        experiment = client.get_experiment_by_name(wanted)
        if experiment is None:
            return str(client.create_experiment(wanted))
        if experiment.lifecycle_stage == "deleted":
            raise BadInputError(f"the experiment {wanted!r} is deleted; restore it, or name another")
        return str(experiment.experiment_id)


@contextlib.contextmanager
def only_import(tracking_uri: str) -> Iterator[None]:
    """Keep other imports of this machine out of a tracking store, so that none takes another's runs for half-made.

    Raises:
        BadInputError: If another one is at work.
    """
    name = f"import-{hashlib.sha256(store_key(tracking_uri).encode()).hexdigest()[:16]}"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold_run(name))
        except BadInputError:
            raise BadInputError("another import into this tracking store is at work; wait until it has ended") from None
        yield
