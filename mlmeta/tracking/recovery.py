"""What is left of attempts that did not end by themselves: finds them, marks them, sends what they kept.

The run of a queued job is looked at here too: where it stands when a process comes to fill it, perhaps not the first.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from mlmeta.commands.documents import TrainCommands
from mlmeta.errors import BadInputError, MlmetaError, NotFoundError, one_line
from mlmeta.files import hold_run, is_held
from mlmeta.status import MLFLOW_STATUS, Status
from mlmeta.tracking.attempts import QUEUED_TAG, get_attempt_run, newest_runs, read_commands, write_document, write_note
from mlmeta.tracking.operations import join_operations, may_pass, send_operation, take_joinable
from mlmeta.tracking.outbox import Spool, list_spools
from mlmeta.tracking.store import open_client, search_all_runs, store_key, telling

# Where a run in one of these is RUNNING and its process dead, its work is not done; in another state only its end is.
_UNFINISHED = (Status.INCOMPLETE, Status.TRAINING, Status.TRAINED, Status.TESTING)
_RESUMABLE = (Status.INTERRUPTED, Status.FAILED, Status.PRUNED)
STALE_AFTER_S = 3600.0
_OPEN = ("RUNNING", "SCHEDULED")
_STOPPED = (Status.INCOMPLETE, *_RESUMABLE)


@dataclass(frozen=True)
class StaleAttempt:
    """A run (``kind`` attempt or test) whose process is dead, though MLflow says that it runs.

    Its last `status` is of work that is not done, unless it died while it was being closed.
    """

    run_id: str
    name: str
    kind: str
    status: str


def find_stale_attempts(*, older_than_s: float = STALE_AFTER_S) -> list[StaleAttempt]:
    """Return the attempts and tests that are being worked on as MLflow says, but whose process is dead.

    On the machine of the attempt its lock tells. Elsewhere it is dead after a silence of `older_than_s` and of five
    epochs. An attempt whose last records wait on this machine to be sent is none.

    Raises:
        MlmetaError: If the tracking store cannot be read.
    """
    client = open_client()
    waiting = {spool.run_id for spool in list_spools()}
    with telling("the tracking store cannot be read"):
        runs = list(search_all_runs(client, "attributes.status = 'RUNNING' and tags.`mlmeta.status` != ''"))
    return [
        StaleAttempt(
            run_id=run.info.run_id,
            name=run.info.run_name,
            kind=run.data.tags.get("mlmeta.kind", ""),
            status=run.data.tags["mlmeta.status"],
        )
        for run in runs
        if run.info.run_id not in waiting and is_stale(run, older_than_s=older_than_s)
    ]


def is_stale(run: Run, *, older_than_s: float = STALE_AFTER_S) -> bool:
    """Return whether a run is at work as MLflow says, but its process is dead."""
    if run.info.status != "RUNNING" or not run.data.tags.get("mlmeta.status"):
        return False
    held = is_held(run.info.run_id)
    if held is not None and (held or run.data.tags.get("mlmeta.host") == socket.gethostname()):
        return not held
    return bool(_silence(run) > max(older_than_s, 5 * run.data.metrics.get("epoch_seconds", 0.0)))


def find_worker(run: Run) -> str:
    """Return the other machine that works on a run, as far as its signs of life say; empty where none does."""
    host = str(run.data.tags.get("mlmeta.host", ""))
    at_work = host != socket.gethostname() and run.info.status == "RUNNING" and not is_stale(run)
    return host if at_work else ""


def refuse_elsewhere(run: Run) -> None:
    """Refuse to go on with a run that another machine works on.

    Raises:
        BadInputError: Says which machine, and what to do if its process is dead.
    """
    if host := find_worker(run):
        raise BadInputError(
            f"{run.info.run_name} ({run.info.run_id}) is being worked on by the machine {host}, heard of "
            f"{_silence(run):,.0f} s ago; stop it there, or, if its process is dead: mlmeta recover --older-than 60"
        )


def has_epochs(run_id: str) -> bool:
    """Return whether epochs of a run were recorded.

    Raises:
        NotFoundError: If there is no such run.
        MlmetaError: If the tracking store does not answer.
    """
    client = open_client()
    with telling("the tracking store cannot be read"):
        return "train_loss" in get_attempt_run(client, run_id).data.metrics


def _silence(run: Run) -> float:
    heartbeat = run.data.tags.get("mlmeta.heartbeat", "")
    last_s = float(heartbeat) if heartbeat.isdecimal() else run.info.start_time / 1000
    return max(time.time() - last_s, 0.0)


def mark_interrupted(run_id: str) -> Status:
    """Close a run whose process is dead: its note and, for an attempt, its document; Interrupted if it was at work.

    A run that waits for its process, made by a server, is closed too; no process takes it over any more.

    Returns:
        Its status now; another than Interrupted where it had done its work, and died while it was being closed.

    Raises:
        BadInputError: If a living process of this machine works on it, or it has ended already.
        NotFoundError: If there is no such run.
        MlmetaError: If MLflow cannot take it.
    """
    client = open_client()
    with hold_run(run_id), telling(f"the run {run_id} cannot be marked"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if may_pass(error):
                raise
            raise NotFoundError(f"run_id: the tracking store has no run {run_id!r}") from None
        status = run.data.tags.get("mlmeta.status", "")
        if run.info.status not in _OPEN or status not in MLFLOW_STATUS:
            raise BadInputError(f"the run {run_id} is not at work; its status is {status or 'not of mlmeta'}")
        ended = Status.INTERRUPTED if status in _UNFINISHED else Status(status)
        take_from_queue(client, run)
        _close(client, run, ended)
    return ended


def take_from_queue(client: MlflowClient, run: Run) -> None:
    """Take the mark off a run that waited for its process, if it did."""
    if QUEUED_TAG in run.data.tags:
        client.delete_tag(run.info.run_id, QUEUED_TAG)


def _close(client: MlflowClient, run: Run, status: Status) -> None:
    """Give a run its last status, its note and, for an attempt, its document."""
    run_id = run.info.run_id
    client.set_tag(run_id, "mlmeta.status", status)
    kind = run.data.tags.get("mlmeta.kind")
    if kind in ("attempt", "test"):
        write_note(client, run_id)
    client.set_terminated(run_id, MLFLOW_STATUS[status])
    if kind == "attempt":
        # A run that was killed before its commands were written has no document.
        with contextlib.suppress(NotFoundError):
            write_document(client, run_id)


def prune_attempt(run_id: str, reason: str) -> None:
    """Make an interrupted attempt a pruned one: others are gone on with, and it teaches what it has learnt.

    Raises:
        BadInputError: If a living process of this machine works on it.
        MlmetaError: If MLflow cannot take it.
    """
    client = open_client()
    with hold_run(run_id), telling(f"the run {run_id} cannot be marked"):
        client.set_tag(run_id, "mlmeta.stop_reason", reason)
        _close(client, client.get_run(run_id), Status.PRUNED)


def find_resumable(commands: TrainCommands) -> str | None:
    """Return the run of MLFLOW_RUN_ID if it is an attempt with these commands that can go on.

    None if there is none: nothing is named, the run is free to be adopted, or its attempt has ended or is at work, so
    that a new one is to be started.

    Raises:
        NotFoundError: If the tracking store does not have the run.
        BadInputError: If its attempt can go on, but has other commands.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    try:
        run = open_client().get_run(run_id)
    except MlflowException as error:
        raise missing_run(run_id, error) from error
    if run.data.tags.get("mlmeta.kind") != "attempt" or not _can_go_on(run):
        return None
    _check_digest(run, commands, source="MLFLOW_RUN_ID")
    return run_id


@dataclass(frozen=True)
class StoppedAttempt:
    """An attempt that can go on; relative paths in its commands are relative to `commands_dir`."""

    run_id: str
    name: str
    commands: TrainCommands
    commands_dir: Path


def find_stopped_attempt(name_or_run_id: str) -> StoppedAttempt:
    """Return an attempt to go on with: by its run id, or the newest of that name.

    Raises:
        NotFoundError: If there is no such attempt, or nothing of it was recorded.
        BadInputError: If it has ended or is at work, here or on another machine.
    """
    client = open_client()
    with telling("the tracking store cannot be read"):
        run = _find_run(client, name_or_run_id)
    run_id = run.info.run_id
    if is_held(run_id):
        raise BadInputError(f"the run {run_id} is being worked on by another process of this machine")
    refuse_elsewhere(run)
    _check_state(run)
    return StoppedAttempt(
        run_id=run_id,
        name=run.info.run_name,
        commands=read_commands(client, run),
        commands_dir=Path(run.data.tags["mlmeta.commands_dir"]),
    )


def _find_run(client: MlflowClient, name_or_run_id: str) -> Run:
    if re.fullmatch("[0-9a-f]{32}", name_or_run_id):
        return get_attempt_run(client, name_or_run_id)
    return max(newest_runs(client, name_or_run_id), key=lambda run: run.info.start_time)


def missing_run(run_id: str, error: MlflowException) -> MlmetaError:
    """Return what to raise where the run of MLFLOW_RUN_ID cannot be read."""
    if may_pass(error):
        return MlmetaError(f"the tracking store does not answer: {error.message}")
    return NotFoundError(f"MLFLOW_RUN_ID names the run {run_id}, which the tracking store does not have")


def _can_go_on(run: Run) -> bool:
    status = run.data.tags.get("mlmeta.status")
    return status in _RESUMABLE or (status in _UNFINISHED and is_stale(run))


def _check_digest(run: Run, commands: TrainCommands, *, source: str) -> None:
    if run.data.tags.get("mlmeta.commands_digest") != commands.digest():
        raise BadInputError(
            f"{source}: the attempt {run.info.run_name} ({run.info.run_id}) has other commands than these; only an "
            "attempt with the same commands can be resumed"
        )


def check_resumable(client: MlflowClient, run_id: str, commands: TrainCommands) -> Run:
    """Return the run of an attempt that is to go on; its lock is held by the caller.

    Raises:
        NotFoundError: If there is no such attempt.
        BadInputError: If it has ended well or diverged, or has other commands.
    """
    run = get_attempt_run(client, run_id)
    _check_state(run)
    _check_digest(run, commands, source="run_id")
    return run


def _check_state(run: Run) -> None:
    status = run.data.tags.get("mlmeta.status", "")
    if not (status in _RESUMABLE or (run.info.status == "RUNNING" and status in _UNFINISHED)):
        raise BadInputError(
            f"the attempt {run.info.run_name} ({run.info.run_id}) is {status} and cannot be resumed; train it again"
        )


def send_kept(client: MlflowClient, run_id: str) -> None:
    """Send what one run kept on this machine, so that it can be gone on with.

    Raises:
        MlmetaError: If it cannot be sent now.
    """
    send_spool(client, run_id=run_id)
    key = store_key(client.tracking_uri)
    if any((spool.run_id, spool.tracking_uri) == (run_id, key) for spool in list_spools()):
        raise MlmetaError(f"what the run {run_id} kept on this machine cannot be sent now, so it cannot go on")


def send_spool(client: MlflowClient | None = None, *, run_id: str | None = None) -> list[str]:
    """Send what attempts kept on this machine because the tracking store was away.

    Only what is for the present tracking store is sent, in its order; what is sent is taken off at once, so that
    nothing is lost or lies twice when this is broken off. A run that is at work is left to its own process.
    With a `run_id` only that run is looked at.

    Returns:
        The ids of the runs that have everything now. What a run could not be sent is told on standard error.
    """
    client = client or open_client()
    key = store_key(client.tracking_uri)
    sent = []
    for spool in list_spools():
        if spool.tracking_uri != key or run_id not in (None, spool.run_id):
            continue
        try:
            with hold_run(spool.run_id):
                _send(client, spool)
            sent.append(spool.run_id)
        except BadInputError:
            continue
        except Exception as error:  # noqa: BLE001 - whatever a store's library raises, the records stay
            sys.stderr.write(
                f"mlmeta: the records of run {spool.run_id} are still kept in {spool.folder}: {one_line(error)}\n"
            )
    return sent


def _send(client: MlflowClient, spool: Spool) -> None:
    """Send one run's operations; the ones refused are put aside.

    Raises:
        Exception: What keeps the rest from being sent.
    """
    left = spool.read()
    n_single = 0
    while left:
        # Of several that are refused together only the faulty one is put aside.
        group = left[:1] if n_single else next(take_joinable(left))
        refused = []
        try:
            send_operation(client, join_operations(group), folder=spool.folder)
        except Exception as error:
            if may_pass(error):
                raise
            if len(group) > 1:
                n_single = len(group)
                continue
            refused = [(group[0], str(error))]
        left = left[len(group) :]
        n_single = max(n_single - 1, 0)
        spool.write(left, refused)


def prepare_run(run_id: str, *, is_restart: bool) -> Status | None:
    """Make the run of a job ready to be adopted or gone on with; the caller is the only one who works on it.

    At a restart a process of this job has died before: what it ended in MLflow has ended.

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
