"""The resource forms of the API: attempts, curves, questions across them, recommendations, jobs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from mlmeta import meta_query
from mlmeta.errors import NotFoundError
from mlmeta.history.reader import INFINITE
from mlmeta.server import questions
from mlmeta.server.callers import Asking
from mlmeta.server.job_answers import describe_job, describe_jobs, link_to_run
from mlmeta.server.questions import ask_history, ask_kept
from mlmeta.server.queue import OPEN, Job, JobState
from mlmeta.server.queued_runs import end_waiting_run, get_run, make_document, set_tags
from mlmeta.server.recommending import recommend
from mlmeta.server.responses import FAULTS, RefusedError, answer_rows, describe_body
from mlmeta.server.submitting import queue_training, read_body

router = APIRouter(prefix="/ajax-api/mlmeta", tags=["mlmeta"], responses=FAULTS)
Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many.")]
Offset = Annotated[int, Query(ge=0, le=10**15, description="Leave out so many first.")]
Metric = Annotated[str, Query(max_length=250, description="A metric; its name says whether lower is better.")]
Filter = Annotated[str, Query(max_length=10_000, description="As `mlmeta query` takes it.")]
TaskName = Annotated[str | None, Query(max_length=250, description="Name or digest of a task; none for all.")]


@router.get("/attempts")
async def list_attempts(
    caller: Asking,
    filter: Filter = "",
    order_by: Annotated[list[str], Query(description="`accuracy DESC`; may be repeated.")] = ["started DESC"],  # noqa: B006
    columns: Annotated[str, Query(description="Names with commas between; all that are not empty by default.")] = "",
    limit: Limit = 50,
    offset: Offset = 0,
) -> Response:
    """Find attempts: one row each, and how many there are in all."""
    names = [name.strip() for name in columns.split(",") if name.strip()] or None
    question = partial(
        questions.page_attempts, filter=filter, order_by=order_by, columns=names, limit=limit, offset=offset,
        store_uri=caller.server.store_uri,
    )  # fmt: skip
    page, total = await ask_history(caller, question)
    following = offset + limit if offset + limit < total else None
    return answer_rows("attempts", page, total=total, offset=offset, next_offset=following)


@router.post("/attempts", status_code=202, openapi_extra=describe_body("train"))
async def add_attempt(
    request: Request, caller: Asking, experiment: Annotated[str | None, Query(max_length=250)] = None
) -> JSONResponse:
    """Train and test an attempt in the background; the body holds train commands."""
    document = await read_body(request, caller)
    job = await queue_training(caller, document, with_test=True, experiment=experiment)
    return JSONResponse(await describe_job(caller, job), status_code=202)


@router.post("/attempts/read-anew")
async def read_anew(caller: Asking) -> dict[str, int]:
    """Read all attempts again, also what was changed by hand in runs that have ended; return how many there are."""
    return {"n_attempts": await ask_history(caller, len, full=True)}


@router.get("/attempts/{run_id}")
async def get_attempt(caller: Asking, run_id: str) -> dict[str, Any]:
    """Return an attempt: its document, the account of its data, its job if it has one here, a link into MLflow's UI.

    Of a test by itself the document is that of its attempt; metrics, job and link are the test's own.
    """
    run = await get_run(caller, run_id)
    attempt = await get_run(caller, run.tags["mlmeta.attempt"]) if "mlmeta.attempt" in run.tags else run
    job = await caller.server.work(caller.server.queue.find, run_id)
    return {
        "attempt": await make_document(caller, attempt),
        "run_id": attempt.run_id,
        # JSON has no number for what is infinite.
        "metrics": {
            name: value if abs(value) < INFINITE else None for name, value in run.metrics.items() if value == value
        },
        "data": run.tags.get("mlmeta.data_account", ""),
        "job": await describe_job(caller, job) if job else None,
        "ui": link_to_run(caller.server, run.experiment_id, run_id),
    }


@router.post("/attempts/{run_id}/cancel")
async def cancel_attempt(caller: Asking, run_id: str) -> dict[str, Any]:
    """End an attempt that waits or is trained; what it has learnt is kept, and it can be resumed."""
    run = await get_run(caller, run_id)
    job: Job | None = await caller.server.work(caller.server.queue.find, run_id)
    if job is None:
        raise NotFoundError(f"the run {run_id} has no job in this server's queue")
    if job.state not in OPEN:
        raise RefusedError(409, f"the job of {job.name} has ended already: {job.state}")
    # MLflow decides whether the caller may change this run.
    await set_tags(caller, run_id, {"mlmeta.cancelled_by": caller.login or "the page"})
    cancelled = await caller.server.work(caller.server.queue.request_cancel, run_id)
    if cancelled.state == JobState.CANCELLED:
        await end_waiting_run(caller, run)
    return await describe_job(caller, cancelled)


@router.get("/curves")
async def list_curves(
    caller: Asking,
    run_id: Annotated[list[str], Query(description="May be repeated, at most 50 times.", max_length=50)],
    metric: Metric = "train_loss",
) -> dict[str, Any]:
    """Return a metric by epoch, of attempts at work too."""
    store_uri, queue = caller.server.store_uri, caller.server.queue
    # An attempt of ours that waits or is trained may be newer than the kept table, and somebody watches it grow.
    jobs = await caller.server.work(lambda: [queue.find(one) for one in run_id])
    is_open = any(job is not None and job.state in OPEN for job in jobs)
    curves = await ask_history(
        caller, lambda table: questions.list_curves(table, run_id, metric, store_uri), fresh=is_open
    )
    return {"metric": metric, "curves": curves}


@router.get("/leaderboard")
async def show_leaderboard(
    caller: Asking, task: TaskName = None, metric: Metric = "accuracy", limit: Limit = 20
) -> Response:
    """Return the best attempts on a task."""
    table = await ask_history(
        caller, lambda history: meta_query.leaderboard(task, metric=metric, limit=limit, history=history)
    )
    return answer_rows("attempts", table, task=task, metric=metric)


@router.get("/importance")
async def show_importance(caller: Asking, metric: Metric = "accuracy", task: TaskName = None) -> Response:
    """Return how much each hyperparameter matters."""
    table = await ask_kept(
        caller, lambda history: meta_query.hyperparameter_importance(metric, task=task, history=history), "importance",
        metric, task,
    )  # fmt: skip
    return answer_rows("importance", table, metric=metric, task=task)


@router.get("/similar")
async def list_similar(caller: Asking, task: Annotated[str, Query(max_length=250)], limit: Limit = 10) -> Response:
    """Return the tasks most like one, with the terms that make them near."""
    table = await ask_history(caller, lambda history: questions.find_similar(history, task, limit))
    return answer_rows("tasks", table, task=task)


@router.get("/tasks")
async def map_tasks(caller: Asking, metric: Metric = "accuracy") -> dict[str, Any]:
    """Return all tasks with their places on a map and their distances."""
    return await ask_kept(caller, lambda history: questions.map_tasks(history, metric), "tasks", metric)


@router.post("/recommend", openapi_extra=describe_body())
async def recommend_next(request: Request, caller: Asking) -> dict[str, Any]:
    """Say what to try next on the task of some commands: ``{"commands": {…}, "n": 5}``; takes some seconds."""
    document = await read_body(request, caller)
    n = document.get("n", 5)
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= 20:
        raise RefusedError(422, f"n must be a whole number from 1 to 20; got {n!r}")
    return await recommend(caller, document.get("commands", document), n=n)


@router.get("/jobs")
async def list_jobs(
    caller: Asking,
    state: Annotated[list[JobState] | None, Query(description="May be repeated; all by default.")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
) -> dict[str, Any]:
    """Return the queue: what runs, what waits in its order, then what has ended, the newest first; with progress."""
    return await describe_jobs(caller, state, limit=limit, offset=offset)


@router.get("/jobs/{run_id}/log")
async def read_log(caller: Asking, run_id: str, offset: Offset = 0) -> dict[str, Any]:
    """Return what an attempt's process has printed, from a byte offset on."""
    await get_run(caller, run_id)
    text, following = await caller.server.work(caller.server.queue.read_log, run_id, offset=offset)
    return {"text": text, "next_offset": following}
