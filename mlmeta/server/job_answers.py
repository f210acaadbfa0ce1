"""How jobs are told: their state, how far they are, where to look at them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mlmeta.server.callers import Caller
from mlmeta.server.queue import Job, JobKind, JobState
from mlmeta.server.state import Server

_SHOWN_PARTS = ("optimizer", "batch_size", "n_epoch")


def link_to_run(server: Server, experiment_id: str, run_id: str) -> str:
    """Return where MLflow's UI shows a run, with its side bar for training."""
    return f"{server.prefix}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


async def describe_job(caller: Caller, job: Job) -> dict[str, Any]:
    """Return what is told of one job."""
    (described,) = await caller.server.work(_describe, caller.server, [job])
    return described


async def describe_jobs(
    caller: Caller, states: Sequence[JobState] | None, *, limit: int, offset: int
) -> dict[str, Any]:
    """Return a page of the queue, of what the caller may read, and how many jobs there are in each state."""
    server = caller.server

    def answer() -> dict[str, Any]:
        readable = None if caller.experiments is None else list(caller.experiments)
        jobs = server.queue.list_jobs(states=states, experiments=readable, limit=limit, offset=offset)
        counts = {str(state): server.queue.count((state,), readable) for state in JobState}
        return {"jobs": _describe(server, jobs), "counts": counts, "at_once": server.settings.at_once}

    return await server.work(answer)


def _describe(server: Server, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    at_work = [job for job in jobs if job.state == JobState.RUNNING and job.kind == JobKind.TRAIN]
    finished = _count_epochs(server, [job.run_id for job in at_work])
    return [
        {
            "run_id": job.run_id,
            "name": job.name,
            "job": job.job_id,
            "kind": job.kind,
            "state": job.state,
            "position": server.queue.position(job) if job.state == JobState.QUEUED else None,
            "epochs": finished.get(job.run_id),
            "n_epoch": job.document.get("n_epoch"),
            "commands": {key: job.document[key] for key in _SHOWN_PARTS if key in job.document},
            "submitted": _format_time(job.submitted_s),
            "started": _format_time(job.started_s),
            "ended": _format_time(job.ended_s),
            "cancel_requested": job.cancel_requested,
            "error": job.error,
            "owner": job.owner,
            "ui": link_to_run(server, job.experiment_id, job.run_id),
        }
        for job in jobs
    ]


def _count_epochs(server: Server, run_ids: list[str]) -> dict[str, int]:
    """Return how many epochs of each run have been recorded."""
    if not run_ids:
        return {}
    from mlmeta.history.loading import load_curves

    points = load_curves(run_ids, metric="train_loss", tracking_uri=server.store_uri)
    return dict.fromkeys(run_ids, 0) | {str(run): len(own) for run, own in points.groupby("run_id", sort=False)}


def _format_time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
