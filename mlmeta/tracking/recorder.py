"""Records in one MLflow run without waiting for MLflow; keeps on this machine what MLflow does not take."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from mlmeta.commands.params import MAX_TAG, format_param
from mlmeta.errors import BadInputError
from mlmeta.status import FOLLOWS, MLFLOW_STATUS, Status
from mlmeta.tracking.operations import Operation, make_batches, may_pass, send_operation
from mlmeta.tracking.outbox import Outbox, Spool, open_spool
from mlmeta.tracking.store import store_key, telling

FLUSH_S = 60.0


class MlflowRecorder:
    """Records one attempt, or one test of it, in one MLflow run; see `mlmeta.training.progress.Recorder`.

    Its methods queue what they are given and return at once; `close` sends the rest.

    Args:
        client: Of the tracking store.
        run_id: The run, already there.
        mirror: Another run, the attempt, that gets the metrics of a test too.
        flush_s: How long `close` goes on trying when MLflow is away, in seconds.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, *, mirror: str | None = None, flush_s: float = FLUSH_S
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.mirror = mirror
        self.status = Status.TRAINED if mirror else Status.INCOMPLETE
        self.params = dict(client.get_run(run_id).data.params)
        self._flush_s = flush_s
        self._spool = _open_spool(run_id, client)
        self._outbox = Outbox(self._send, is_outside=may_pass)

    def _send(self, operation: Operation) -> None:
        send_operation(self.client, operation, folder=self._spool.folder if self._spool else Path())

    def _put(self, kind: str, content: Mapping[str, Any], *, run_id: str | None = None) -> None:
        self._outbox.put([Operation(kind, run_id or self.run_id, content)])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record params; one that is there already is left as it is, since MLflow's params cannot change."""
        new = {key: format_param(value) for key, value in params.items() if key not in self.params}
        self.params |= new
        self._outbox.put(make_batches(self.run_id, params=list(new.items())))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Record metrics; with a step also the heartbeat."""
        now = time.time()
        items = [(key, float(value), int(now * 1000), step or 0) for key, value in metrics.items()]
        tags = [] if step is None else [("mlmeta.heartbeat", str(int(now)))]
        self._outbox.put(make_batches(self.run_id, metrics=items, tags=tags))
        if self.mirror:
            self._outbox.put(make_batches(self.mirror, metrics=items))

    def set_tags(self, tags: Mapping[str, str], *, run_id: str | None = None) -> None:
        """Record tags; text beyond MLflow's 8,000 characters is cut."""
        items = [(key, str(value)[:MAX_TAG]) for key, value in tags.items()]
        self._outbox.put(make_batches(run_id or self.run_id, tags=items))

    def set_status(self, status: Status) -> None:
        """Record the state; MLflow's own status stays RUNNING until `finish`, so that a run killed before is found.

        Raises:
            ValueError: If the state may not follow the one before.
        """
        if status not in FOLLOWS[self.status]:
            raise ValueError(f"an attempt that is {self.status} cannot become {status}")
        self.status = status
        self.set_tags({"mlmeta.status": status, "mlmeta.heartbeat": str(int(time.time()))})

    def log_data(self, *, name: str, digest: str, source: str, context: str) -> None:
        """Record the pictures as an MLflow data set."""
        self._put("dataset", {"name": name, "digest": digest, "source": source, "context": context})

    def log_files(self, folder: Path) -> None:
        """Record a folder's files as artifacts; the folder may be gone afterwards."""
        try:
            if self._spool is None:
                raise FileNotFoundError("there is no folder to keep them in")
            self._put("files", {"folder": self._spool.stage(folder)})
        except OSError:
            # They cannot be taken over, so they are sent from where they are.
            self._put("files", {"folder": str(folder.absolute())})
            self._outbox.flush(limit_s=self._flush_s)

    def log_document(
        self, file_name: str, document: Any, *, run_id: str | None = None, frees_tag: str | None = None
    ) -> None:
        """Record a document as a JSON artifact, unchanged; then remove the tag that stood for it."""
        text = json.dumps(document, indent=2, ensure_ascii=False)
        self._put("text", {"path": file_name, "text": text, "frees_tag": frees_tag}, run_id=run_id)

    def recorded_steps(self, key: str) -> set[int]:
        """Return the steps of a metric that the run has, with those that were queued here.

        Raises:
            MlmetaError: If the tracking store does not answer.
        """
        self._outbox.flush(limit_s=self._flush_s)
        with telling(f"the metrics of run {self.run_id} cannot be read"):
            return {int(metric.step) for metric in self.client.get_metric_history(self.run_id, key)}

    def finish(self) -> None:
        """Record what a run ends with: its note, its end time, and its document, which tells both."""
        self._put("note", {})
        if MLFLOW_STATUS[self.status] != "RUNNING":
            self._put("status", {"status": MLFLOW_STATUS[self.status]})
        if self.mirror is None:
            self._put("document", {})

    def finish_mirror(self, status: Status) -> None:
        """Record in the attempt that a test of it is done, with the state that the attempt has now."""
        self.set_tags({"mlmeta.status": status}, run_id=self.mirror)
        self._put("note", {}, run_id=self.mirror)
        self._put("status", {"status": MLFLOW_STATUS[status]}, run_id=self.mirror)
        self._put("document", {}, run_id=self.mirror)

    def close(self) -> None:
        """Send what is queued; what cannot be sent is kept on this machine, and one line tells so."""
        try:
            self._outbox.flush(limit_s=self._flush_s)
        finally:
            self._keep(self._outbox.stop())

    def _keep(self, unsent: list[Operation]) -> None:
        refused = self._outbox.rejected
        told = []
        if unsent:
            told.append(f"MLflow does not take the records of run {self.run_id} ({self._outbox.error or 'no answer'})")
        if refused:
            told.append(f"MLflow refused {len(refused)} records of run {self.run_id} (the first: {refused[0][1]})")
        kept = "there is no folder to keep them in"
        try:
            if self._spool is not None:
                self._spool.write(unsent, refused)
                kept = f"they are kept in {self._spool.folder}"
                kept += ", and `mlmeta recover` sends them" if unsent else ""
        except OSError as error:
            kept = f"they cannot be kept: {error}"
        if told:
            sys.stderr.write(f"mlmeta: {'; '.join(told)}; {kept}\n")


def read_flush_s() -> float:
    """Return the seconds of MLMETA_FLUSH_S, or `FLUSH_S`.

    Raises:
        BadInputError: If it is no number.
    """
    text = os.environ.get("MLMETA_FLUSH_S", "") or str(FLUSH_S)
    try:
        return max(float(text), 0.0)
    except ValueError:
        raise BadInputError(f"MLMETA_FLUSH_S must be a number of seconds; got {text!r}") from None


def _open_spool(run_id: str, client: MlflowClient) -> Spool | None:
    with contextlib.suppress(OSError, RuntimeError):
        return open_spool(run_id, store_key(client.tracking_uri))
    return None
