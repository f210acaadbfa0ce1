"""The MLflow run of a job: where it stands when a process comes to fill it, perhaps not the first one."""

from __future__ import annotations

import contextlib

from mlflow.exceptions import MlflowException

from mlmeta.errors import MlmetaError
from mlmeta.recovery import QUEUED_TAG, mark_interrupted, missing_run, send_kept
from mlmeta.status import Status
from mlmeta.store import open_client

_OPEN = ("RUNNING", "SCHEDULED")
_STOPPED = (Status.INCOMPLETE, Status.INTERRUPTED, Status.FAILED, Status.PRUNED)


def prepare_run(run_id: str, *, is_restart: bool) -> Status | None:
    """Make the run of a job ready to be adopted or gone on with; the caller is the only one who works on it.

    Args:
        run_id: The run of MLFLOW_RUN_ID.
        is_restart: Whether a process of this job has died before: what it ended in MLflow has ended.

    Returns:
        None if there is work to do, else how the run has ended.

    Raises:
        NotFoundError: If there is no such run.
        BadInputError: If another process of this machine works on it.
        MlmetaError: If MLflow cannot be read or written.
    """
    client = open_client()
    send_kept(client, run_id)
    try:
        run = client.get_run(run_id)
        tags = run.data.tags
        if QUEUED_TAG in tags or "mlmeta.kind" not in tags:
            return None
        status = mark_interrupted(run_id) if run.info.status in _OPEN else Status(tags["mlmeta.status"])
        if status not in (Status.INCOMPLETE, Status.INTERRUPTED) if is_restart else status not in _STOPPED:
            return status
        if tags["mlmeta.kind"] == "test":
            # A test is short: it is made anew, in the same run.
            client.set_tag(run_id, QUEUED_TAG, "1")
    except MlflowException as error:
        raise missing_run(run_id, error) from error
    return None


def close_run(run_id: str) -> None:
    """Close the run of a job whose process is dead, or never was, unless it has ended or MLflow does not answer."""
    with contextlib.suppress(MlmetaError):
        mark_interrupted(run_id)
