"""From commands to a job in the queue: checked, described in MLflow, queued."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request

from mlmeta.commands.documents import TestCommands, TrainCommands
from mlmeta.commands.parsing import parse_json, parse_test_commands, parse_train_commands
from mlmeta.data.roots import confine_commands
from mlmeta.errors import BadInputError, MlmetaError, NotFoundError, QueueFullError
from mlmeta.server.callers import Caller
from mlmeta.server.queue import Job, JobKind, JobState
from mlmeta.server.queued_runs import RunRecord, change_run, create_run, delete_run, find_runs, get_run, read_commands
from mlmeta.server.responses import RefusedError
from mlmeta.tracking.attempts import QUEUED_TAG

_SOURCE = "the request"
RUN_ID = re.compile("[0-9a-f]{32}")


async def read_body(request: Request, caller: Caller) -> dict[str, Any]:
    """Return the JSON object that a request brings.

    Raises:
        BadInputError: If it is none.
        RefusedError: If it is larger than commands may be.
    """
    content = await request.body()
    limit = caller.server.settings.max_commands_bytes
    if len(content) > limit:
        raise RefusedError(413, f"{_SOURCE}: has {len(content):,} bytes; commands may have {limit:,}")
    # The guard lets no other encoding pass.
    document = parse_json(content.decode("utf-8"), source=_SOURCE)
    if not isinstance(document, dict):
        raise BadInputError(f"{_SOURCE}: must be a JSON object; got {type(document).__name__}")
    return document


async def check_train_commands(caller: Caller, document: Mapping[str, Any]) -> tuple[TrainCommands, Path]:
    """Return train commands that this server may run, and the folder that their paths are relative to.

    Raises:
        CommandsError: With every fault; among them data that lie where strangers may not look.
    """
    commands = await caller.server.work(parse_train_commands, document, source=_SOURCE)
    return commands, await caller.server.work(confine_commands, commands, caller.server.settings.data_roots)


async def find_experiment(caller: Caller, name_or_id: str | None) -> str:
    """Return the id of an experiment: the given one, else MLflow's default.

    Raises:
        NotFoundError: If there is no such experiment.
    """
    if not name_or_id:
        return "0"
    try:
        found = await caller.get("experiments/get-by-name", experiment_name=name_or_id)
    except NotFoundError:
        if re.fullmatch("[0-9]{1,20}", name_or_id):
            return name_or_id
        raise
    return str(found["experiment"]["experiment_id"])


async def queue_training(
    caller: Caller, document: Mapping[str, Any], *, with_test: bool, experiment: str | None = None
) -> Job:
    """Put a training into the queue.

    An attempt of that name that was only described so far becomes this one; any other stays, and this is a new one.

    Args:
        caller: Whose it is.
        document: Train commands.
        with_test: Whether it is tested right after.
        experiment: Name or id.

    Raises:
        CommandsError: If the commands cannot be used.
        RefusedError: If MLflow does not let the caller.
        QueueFullError: If there are too many jobs.
    """
    commands, base_dir = await check_train_commands(caller, document)
    commands = await _fix_source(caller, commands)
    await _check_room(caller)
    experiment_id = await find_experiment(caller, experiment)
    run = await _find_described(caller, commands.model_name, experiment_id)
    is_new = run is None
    tags = {"mlmeta.page": f"{caller.server.prefix}/mlmeta/"}
    if run is None:
        run = await create_run(caller, commands.model_name, commands, base_dir, experiment_id=experiment_id, tags=tags)
    else:
        await change_run(caller, run, commands, base_dir, tags | {QUEUED_TAG: "1"})
    return await _add(
        caller, run, is_new, kind=JobKind.TRAIN, document=commands.document(), base_dir=str(base_dir),
        with_test=with_test, name=commands.model_name,
    )  # fmt: skip


async def _fix_source(caller: Caller, commands: TrainCommands) -> TrainCommands:
    """Return the commands with the run id of the attempt whose weights they name, one that the caller may read.

    The training process has another login: by the name it could find an attempt of somebody else.
    """
    source = commands.initial_weights
    if not caller.server.needs_login or source is None:
        return commands
    if source == "auto":
        raise RefusedError(422, "initial_weights: with logins only an attempt's run id or name; got 'auto'")
    if RUN_ID.fullmatch(source):
        await get_run(caller, source)
        return commands
    found = await find_runs(caller, source)
    usable = next((run for run in found if "mlmeta.weights_sha256" in run.tags), None)
    if usable is None:
        raise RefusedError(422, f"initial_weights: no attempt named {source!r} has weights")
    return commands.model_copy(update={"initial_weights": usable.run_id})


async def _find_described(caller: Caller, name: str, experiment_id: str) -> RunRecord | None:
    try:
        newest = (await find_runs(caller, name, experiment_id=experiment_id))[0]
    except NotFoundError:
        return None
    return newest if newest.tags.get(QUEUED_TAG) == "0" else None


async def queue_test(caller: Caller, document: Mapping[str, Any]) -> Job:
    """Put a test of an attempt into the queue; of one that is not trained yet it waits behind the training.

    Raises:
        CommandsError: If the commands cannot be used.
        NotFoundError: If there is no such attempt.
        RefusedError: If MLflow does not let the caller.
        QueueFullError: If there are too many jobs.
    """
    commands = await caller.server.work(parse_test_commands, document, source=_SOURCE)
    attempt = await _find_tested(caller, commands)
    train = await caller.server.work(parse_train_commands, await read_commands(caller, attempt))
    # What a test would read: its own pictures or those of the training, and the weights.
    wanted = train.model_copy(update={"data": commands.data or train.data})
    base_dir = await caller.server.work(confine_commands, wanted, caller.server.settings.data_roots)
    await _check_room(caller)
    by_id = commands.model_copy(update={"run_id": attempt.run_id, "model_name": None})
    run = await create_run(
        caller, f"test of {attempt.name}", by_id, base_dir, experiment_id=attempt.experiment_id,
        tags={"mlmeta.attempt": attempt.run_id, "mlflow.parentRunId": attempt.run_id},
    )  # fmt: skip
    return await _add(
        caller, run, True, kind=JobKind.TEST, document=by_id.document(), base_dir=str(base_dir), with_test=False,
        name=attempt.name,
    )  # fmt: skip


async def _find_tested(caller: Caller, commands: TestCommands) -> RunRecord:
    if commands.run_id:
        return await get_run(caller, commands.run_id)
    found = await find_runs(caller, str(commands.model_name))
    attempt = next((run for run in found if run.is_untrained or "mlmeta.weights_sha256" in run.tags), found[0])
    if attempt.tags.get(QUEUED_TAG) == "0":
        raise RefusedError(409, f"the attempt {attempt.name} ({attempt.run_id}) is not trained yet, nor in the queue")
    return attempt


async def _check_room(caller: Caller) -> None:
    """Refuse before a run is made for nothing."""
    queue, most = caller.server.queue, caller.server.settings.max_queue
    if await caller.server.work(queue.count, (JobState.QUEUED,)) >= most:
        raise QueueFullError(f"the queue is full: {most:,} jobs wait; try again when some are done")


async def _add(caller: Caller, run: RunRecord, is_new: bool, **job: Any) -> Job:
    server = caller.server
    roots = tuple(str(root) for root in server.settings.data_roots)
    try:
        added: Job = await server.work(
            server.queue.add, run_id=run.run_id, data_roots=roots, owner=caller.login,
            experiment_id=run.experiment_id, **job,
        )  # fmt: skip
    except MlmetaError:
        if is_new:
            await delete_run(caller, run.run_id)
        raise
    return added
