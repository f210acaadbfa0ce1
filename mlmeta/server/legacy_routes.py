"""The verbs of the older tool's HTTP service, with its documents as bodies and answers.

Its programs know attempts by their names. Here a name may have several attempts, none of which is ever overwritten: by
name the newest is meant, and to delete a name deletes all of its attempts (MLflow can restore them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from mlmeta.commands.documents import NAME_RULE, Attempt, TrainCommands, is_model_name
from mlmeta.commands.parsing import parse_attempt
from mlmeta.errors import BadInputError, NotFoundError, shorten
from mlmeta.server.callers import Asking
from mlmeta.server.job_answers import describe_job
from mlmeta.server.questions import ask_history
from mlmeta.server.queue import JobState
from mlmeta.server.queued_runs import (
    change_run,
    create_run,
    delete_run,
    describe_attempt,
    describe_test,
    find_runs,
    get_run,
    make_document,
    set_tags,
    write_test,
)
from mlmeta.server.responses import FAULTS, RefusedError, describe_body
from mlmeta.server.submitting import check_train_commands, find_experiment, queue_test, queue_training, read_body
from mlmeta.tracking.attempts import QUEUED_TAG

router = APIRouter(prefix="/ajax-api/mlmeta", tags=["the older tool's verbs"], responses=FAULTS)
Name = Annotated[str, Query(max_length=250, description="Of the attempt.")]
Experiment = Annotated[str | None, Query(max_length=250, description="Name or id; by default MLflow's own.")]


@router.post("/train", status_code=202, openapi_extra=describe_body("train"))
async def train(request: Request, caller: Asking, test: bool = False, experiment: Experiment = None) -> JSONResponse:
    """Train an attempt in the background; the body holds train commands. ``?test=true`` tests it right after."""
    document = await read_body(request, caller)
    job = await queue_training(caller, document, with_test=test, experiment=experiment)
    return JSONResponse(await describe_job(caller, job), status_code=202)


@router.post("/test", status_code=202, openapi_extra=describe_body("test"))
async def test(request: Request, caller: Asking) -> JSONResponse:
    """Test an attempt in the background; the body holds test commands, of which the name or run id is enough."""
    job = await queue_test(caller, await read_body(request, caller))
    return JSONResponse(await describe_job(caller, job), status_code=202)


@router.post("/create_attempt", status_code=201, openapi_extra=describe_body("attempt"))
async def create_attempt(request: Request, caller: Asking, experiment: Experiment = None) -> JSONResponse:
    """Describe an attempt without training it; the body is an Attempt document. A name that exists is refused (409)."""
    attempt, commands, base_dir = await _read_attempt(request, caller)
    experiment_id = await find_experiment(caller, experiment)
    await _refuse_known(caller, attempt.name, experiment_id)
    run = await create_run(
        caller, attempt.name, commands, base_dir, experiment_id=experiment_id, tags={QUEUED_TAG: "0"}
    )
    await describe_test(caller, run, attempt.testing_commands)
    await describe_attempt(caller, run, await read_body(request, caller))
    return JSONResponse(await make_document(caller, await get_run(caller, run.run_id)), status_code=201)


async def _read_attempt(request: Request, caller: Asking) -> tuple[Attempt, TrainCommands | None, Path]:
    """Return the Attempt document that a request brings, its train commands, and what their paths are relative to."""
    document = await read_body(request, caller)
    attempt = await caller.server.work(parse_attempt, document, source="the request")
    if attempt.training_commands is None:
        if not is_model_name(attempt.name):
            raise BadInputError(f"name: {NAME_RULE}; got {shorten(attempt.name)}")
        return attempt, None, Path()
    commands, base_dir = await check_train_commands(caller, document)
    if attempt.name != commands.model_name:
        raise BadInputError(
            f"name: must be the model_name of the training commands, {commands.model_name!r}; got {attempt.name!r}"
        )
    if attempt.testing_commands:
        write_test(attempt.testing_commands)
    return attempt, commands, base_dir


async def _refuse_known(caller: Asking, name: str, experiment_id: str) -> None:
    try:
        known = await find_runs(caller, name, experiment_id=experiment_id)
    except NotFoundError:
        return
    raise RefusedError(409, f"there is an attempt named {name!r} already ({known[0].run_id}, {known[0].status})")


@router.post("/find_attempt")
@router.get("/find_attempt")
async def find_attempt(caller: Asking, name: Name) -> dict[str, Any]:
    """Return the Attempt document of the newest attempt of a name."""
    return await make_document(caller, (await find_runs(caller, name))[0])


@router.post("/update_attempt", openapi_extra=describe_body("attempt"))
async def update_attempt(request: Request, caller: Asking) -> dict[str, Any]:
    """Change the commands of an attempt that is not trained yet; the body is an Attempt document.

    What was trained is never overwritten: train the name again for a new attempt.
    """
    attempt, commands, base_dir = await _read_attempt(request, caller)
    run = (await find_runs(caller, attempt.name))[0]
    if run.tags.get(QUEUED_TAG) != "0":
        state = "in the queue" if run.is_untrained else run.status
        raise RefusedError(
            409,
            f"the attempt {attempt.name!r} ({run.run_id}) is {state}; only one that nobody has begun to train can be "
            "changed",
        )
    await change_run(caller, run, commands, base_dir, {})
    await describe_test(caller, run, attempt.testing_commands)
    await describe_attempt(caller, run, await read_body(request, caller))
    return await make_document(caller, await get_run(caller, run.run_id))


@router.delete("/delete_attempt")
@router.post("/delete_attempt")
async def delete_attempt(caller: Asking, name: Name) -> dict[str, Any]:
    """Delete all attempts of a name; one that is being trained has to be cancelled before."""
    queue, work = caller.server.queue, caller.server.work
    runs = await find_runs(caller, name)
    jobs = {run.run_id: job for run in runs if (job := await work(queue.find, run.run_id))}
    if at_work := [job for job in jobs.values() if job.state == JobState.RUNNING]:
        raise RefusedError(409, f"the attempt {name!r} ({at_work[0].run_id}) is being trained; cancel it first")
    for run in runs:
        # Sets nothing: where MLflow refuses one of them to the caller, none is deleted.
        await set_tags(caller, run.run_id, {})
    for run in runs:
        # MLflow decides whether the caller may; only then it leaves the queue.
        await delete_run(caller, run.run_id)
        if run.run_id in jobs and jobs[run.run_id].state == JobState.QUEUED:
            await work(queue.request_cancel, run.run_id)
    return {"deleted": [run.run_id for run in runs]}


@router.post("/latest_attempt_index")
@router.get("/latest_attempt_index")
async def latest_attempt_index(caller: Asking) -> dict[str, int]:
    """Return how many attempts there are: the number of the newest one, from 1; 0 where there is none."""
    return {"latest_attempt_index": await ask_history(caller, len, fresh=True)}
