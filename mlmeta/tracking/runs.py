"""The only writer to MLflow: starts, adopts or resumes the run of an attempt or a test, and ends it in every case.

One attempt is one run; a test on its own is a child run of its attempt. What stands where is the contract that
docs/in_mlflow.md shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

import mlmeta
from mlmeta.commands.documents import TestCommands, TrainCommands
from mlmeta.commands.params import MAX_TAG, flatten_params
from mlmeta.errors import MlmetaError
from mlmeta.files import hold_run
from mlmeta.status import FOLLOWS, MLFLOW_STATUS, Status
from mlmeta.tracking.attempts import COMMANDS_TAG, QUEUED_TAG, AttemptRecord
from mlmeta.tracking.recorder import MlflowRecorder, read_flush_s
from mlmeta.tracking.recovery import (
    check_resumable,
    find_resumable,
    missing_run,
    send_kept,
    take_from_queue,
)
from mlmeta.tracking.store import open_client, telling


@contextlib.contextmanager
def record_attempt(
    commands: TrainCommands,
    *,
    base_dir: Path,
    resume_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[MlflowRecorder]:
    """Start the run of an attempt, adopt the one that ``mlflow run`` started, or go on in one; end it in every case.

    Inside, the caller logs. Afterwards the run has its note and its Attempt document, and a state that says how
    it went: a `KeyboardInterrupt` makes it Interrupted, any other error Failed. While it lasts, a lock tells other
    processes of this machine that the attempt is alive.

    Where no `resume_run_id` is given, MLFLOW_RUN_ID may name the run of an attempt to go on with, see
    `mlmeta.tracking.recovery.find_resumable`. Paths in the commands are relative to `base_dir`.

    Raises:
        NotFoundError: If there is no such run.
        BadInputError: If the attempt to resume has ended, has other commands, or is being worked on.
        MlmetaError: If the tracking store cannot be used; nothing has been recorded by then.
    """
    flush_s = read_flush_s()
    client = open_client()
    resumed = resume_run_id or find_resumable(commands)
    all_tags = _attempt_tags(commands, base_dir, tags or {})
    with contextlib.ExitStack() as held:
        with telling("the attempt cannot be started"):
            if resumed:
                send_kept(client, resumed)
                held.enter_context(hold_run(resumed))
                run_id = resumed
                has_commands = _take_up(client, check_resumable(client, run_id, commands), all_tags)
            else:
                run_id = start_run(client, commands.model_name, all_tags | _commands_tag(commands), held=held)
                has_commands = False
            recorder = MlflowRecorder(client, run_id, flush_s=flush_s)
        with _ending(recorder):
            if not has_commands:
                recorder.log_document("train_commands.json", commands.document(), frees_tag=COMMANDS_TAG)
            recorder.log_params(flatten_params(commands.model_dump(mode="json", exclude={"schema_url"})))
            yield recorder


def first_tags(kind: str) -> dict[str, str]:
    """Return the tags that a run of a kind has from its first moment, so that it is found if its process dies."""
    return {
        "mlmeta.kind": kind,
        "mlmeta.version": mlmeta.__version__,
        "mlmeta.host": socket.gethostname(),
        "mlmeta.heartbeat": str(int(time.time())),
    }


def _attempt_tags(commands: TrainCommands, base_dir: Path, more: Mapping[str, str]) -> dict[str, str]:
    return first_tags("attempt") | {
        **more,
        "mlmeta.status": Status.INCOMPLETE,
        "mlmeta.commands_digest": commands.digest(),
        "mlmeta.commands_dir": str(base_dir.resolve()),
    }


def queued_tags(commands: TrainCommands | TestCommands | None, *, base_dir: Path) -> dict[str, str]:
    """Return the tags of a run that is made for a job, before its process begins; MLflow is to call it SCHEDULED.

    The process that `MLFLOW_RUN_ID` names it to takes the run over, and `mlmeta.queued` off it. Should it never come
    to that, an attempt has all that `mlmeta train --resume` needs. Paths in the commands are relative to `base_dir`.
    Without commands it is an attempt that is only described.
    """
    queued = {QUEUED_TAG: "1"}
    if isinstance(commands, TrainCommands):
        tags = _attempt_tags(commands, base_dir, queued) | _commands_tag(commands)
    else:
        kind = "attempt" if commands is None else "test"
        tags = first_tags(kind) | {"mlmeta.status": Status.INCOMPLETE, **queued}
    return {key: value[:MAX_TAG] for key, value in tags.items()}


def _commands_tag(commands: TrainCommands) -> dict[str, str]:
    """Return the tag that holds the commands until their artifact is there, if they are short enough for one."""
    text = json.dumps(commands.document(), ensure_ascii=False)
    return {COMMANDS_TAG: text} if len(text) <= MAX_TAG else {}


def _take_up(client: MlflowClient, run: Run, tags: Mapping[str, str]) -> bool:
    """Make a run one that is at work again; return whether it has its commands."""
    kept = {key: value for key, value in tags.items() if key != "mlmeta.commands_dir"}
    client.update_run(run.info.run_id, status="RUNNING")
    client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in kept.items()])
    for key in {"mlmeta.error", "mlmeta.stop_reason"} & run.data.tags.keys():
        client.delete_tag(run.info.run_id, key)
    return COMMANDS_TAG not in run.data.tags and bool(run.data.params)


def start_run(
    client: MlflowClient,
    name: str,
    tags: Mapping[str, str],
    *,
    held: contextlib.ExitStack,
    experiment_id: str | None = None,
) -> str:
    """Return the id of the run to record in, named, running and locked: the one of MLFLOW_RUN_ID, or a new one.

    `tags` are `first_tags` and more, `held` keeps the lock, and without an `experiment_id` MLflow's settings say where
    a new run is made.
    """
    tags = {key: value[:MAX_TAG] for key, value in tags.items()}
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and (free := _find_free(client, run_id, kind=tags["mlmeta.kind"])):
        held.enter_context(hold_run(run_id))
        client.update_run(run_id, status="RUNNING", name=name)
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        take_from_queue(client, free)
        return run_id
    run: Run = client.create_run(experiment_id or _experiment_id(client), run_name=name, tags=resolve_tags() | tags)
    held.enter_context(hold_run(run.info.run_id))
    return str(run.info.run_id)


def _find_free(client: MlflowClient, run_id: str, *, kind: str | None = None) -> Run | None:
    """Return the run of MLFLOW_RUN_ID if something of a kind may adopt it; without a kind, anything.

    It may where no attempt has used it, or where it was queued for one.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise missing_run(run_id, error) from error
    tags = run.data.tags
    is_queued = QUEUED_TAG in tags and kind in (None, tags.get("mlmeta.kind"))
    return run if is_queued or "mlmeta.kind" not in tags else None


def _experiment_id(client: MlflowClient) -> str:
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if not name:
        return "0"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Another process may have been faster.
        with contextlib.suppress(MlflowException):
            return str(client.create_experiment(name))
        experiment = client.get_experiment_by_name(name)
    if experiment is None:
        raise MlmetaError(f"the experiment {name!r} of MLFLOW_EXPERIMENT_NAME can neither be found nor made")
    return str(experiment.experiment_id)


@contextlib.contextmanager
def _ending(recorder: MlflowRecorder) -> Iterator[None]:
    """Give a run its last state, note and document, whatever happens inside, and send or keep all that is left."""
    try:
        try:
            yield
        except BaseException as error:
            ended = Status.INTERRUPTED if isinstance(error, KeyboardInterrupt) else Status.FAILED
            if ended in FOLLOWS[recorder.status]:
                recorder.set_status(ended)
            if not isinstance(error, KeyboardInterrupt):
                recorder.set_tags({"mlmeta.error": str(error) or type(error).__name__})
            raise
        finally:
            recorder.finish()
    finally:
        recorder.close()


@contextlib.contextmanager
def record_test(attempt: AttemptRecord, document: Mapping[str, Any]) -> Iterator[MlflowRecorder]:
    """Start the run of a test on its own, a child of the attempt, and end it in every case.

    Raises:
        MlmetaError: If the tracking store cannot be used.
    """
    flush_s = read_flush_s()
    client = open_client()
    tags = first_tags("test") | {
        "mlmeta.status": Status.INCOMPLETE,
        "mlmeta.attempt": attempt.run_id,
        "mlflow.parentRunId": attempt.run_id,
    }
    name = f"test of {attempt.name}"
    with contextlib.ExitStack() as held:
        with telling("the test cannot be started"):
            run_id = start_run(client, name, tags, experiment_id=attempt.experiment_id, held=held)
            recorder = MlflowRecorder(client, run_id, mirror=attempt.run_id, flush_s=flush_s)
        with _ending(recorder):
            recorder.log_params(flatten_params(document))
            for run in (run_id, attempt.run_id):
                recorder.log_document("test_commands.json", document, run_id=run)
            yield recorder
            left_as_is = attempt.status in (Status.DIVERGED, Status.PRUNED)
            recorder.finish_mirror(Status(attempt.status) if left_as_is else Status.COMPLETE)


def fail_adopted_run(error: MlmetaError) -> None:
    """Mark the run that ``mlflow run`` started as Failed, with the reason as its note.

    Nothing is done where there is none, where an attempt has used it, or where MLflow does not answer.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    with contextlib.suppress(MlmetaError, MlflowException):
        client = open_client()
        free = _find_free(client, run_id)
        if free is None:
            return
        client.set_tag(run_id, "mlmeta.status", Status.FAILED)
        client.set_tag(run_id, "mlmeta.error", str(error)[:MAX_TAG])
        note = f"**Failed**: nothing was trained.\n\n```\n{str(error)[:7000]}\n```"
        client.set_tag(run_id, "mlflow.note.content", note)
        take_from_queue(client, free)
        client.set_terminated(run_id, MLFLOW_STATUS[Status.FAILED])


def record_answer(kind: str, *, name: str, note: str, write_files: Callable[[Path], None]) -> None:
    """Log the files of an answer, and a note, into the run that ``mlflow run`` started for it; it is no attempt.

    Nothing is done where MLFLOW_RUN_ID names no run. The note is Markdown, and cut to what MLflow takes.

    Raises:
        MlmetaError: If the tracking store does not take it.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    client = open_client()
    with tempfile.TemporaryDirectory() as folder, telling(f"the result cannot be written into run {run_id}"):
        write_files(Path(folder))
        client.log_artifacts(run_id, folder)
        client.update_run(run_id, name=name)
        client.log_batch(run_id, tags=[RunTag("mlmeta.kind", kind), RunTag("mlflow.note.content", note[:MAX_TAG])])
