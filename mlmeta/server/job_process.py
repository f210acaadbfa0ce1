"""One job in a process of its own: ``python -m mlmeta.server.job_process QUEUE_FOLDER JOB_ID``.

It holds the job's lock while it lives, fills the job's run, and writes into the queue how it ended, so that a runner
which died meanwhile loses nothing. SIGTERM ends it gently: the attempt keeps what it has, and the job is cancelled if
that was asked for, else put back to go on later.
"""

from __future__ import annotations

import os
import sys
import traceback
import urllib.request
from pathlib import Path

from mlmeta.console import terminating_gently
from mlmeta.data.roots import ROOTS_VARIABLE, join_roots
from mlmeta.errors import BadInputError, DivergedError, MlmetaError
from mlmeta.models.compiler import put_off_compiler
from mlmeta.server.queue import Job, JobKind, JobQueue, JobState
from mlmeta.status import Status
from mlmeta.tracking.store import EXPERIMENTS_VARIABLE

INTERRUPTED_CODE = 130
_FAILED = (Status.FAILED, Status.DIVERGED)


def work_on(queue: JobQueue, job_id: int) -> int:
    """Do a job and write down how it ended.

    Returns:
        The exit code of the process: 0, that of the error, or 130 where it was interrupted.

    Raises:
        NotFoundError: If there is no such job.
        BadInputError: If another process works on it, or it is not to be worked on.
    """
    with queue.hold(job_id):
        # Now, as whatever SIGTERM breaks off in an import stays half imported. Until then it ends the process, and the
        # runner takes care of the job.
        import mlmeta.evaluate
        import mlmeta.tracking.recovery  # noqa: F401
        from mlmeta.tracking.runs import fail_adopted_run

        job = queue.get(job_id)
        if job.state != JobState.RUNNING:
            raise BadInputError(f"the job {job_id} is not to be worked on: it is {job.state}")
        queue.note_process(job_id, os.getpid())
        try:
            with terminating_gently():
                _set_environment(queue, job)
                state, error = _do(job)
        except KeyboardInterrupt:
            _stop(queue, job_id)
            return INTERRUPTED_CODE
        except MlmetaError as fault:
            sys.stderr.write(f"mlmeta: {fault}\n")
            if _wait_for_server(queue, job_id):
                return fault.exit_code
            if not isinstance(fault, DivergedError):
                # An attempt that was begun says itself how it ended.
                fail_adopted_run(fault)
            queue.end(job_id, JobState.FAILED, exit_code=fault.exit_code, error=str(fault))
            return fault.exit_code
        except Exception as fault:  # noqa: BLE001 - whatever a library raises is written down
            traceback.print_exc()
            if not _wait_for_server(queue, job_id):
                queue.end(job_id, JobState.FAILED, exit_code=1, error=f"{type(fault).__name__}: {fault}")
            return 1
        code = int(state == JobState.FAILED)
        queue.end(job_id, state, exit_code=code, error=error)
        return code


def _set_environment(queue: JobQueue, job: Job) -> None:
    address = queue.address()
    if address is None:
        raise MlmetaError("nobody has said yet where the tracking server is")
    os.environ |= {
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_RUN_ID": job.run_id,
        "MLFLOW_EXPERIMENT_ID": job.experiment_id,
        ROOTS_VARIABLE: join_roots([Path(root) for root in job.data_roots]),
    }
    if job.owner:
        # This process has the server's login, which may read what the owner may not.
        os.environ[EXPERIMENTS_VARIABLE] = job.experiment_id


def _do(job: Job) -> tuple[JobState, str]:
    """Return the state in which a job ends, and why."""
    from mlmeta.commands.parsing import parse_test_commands, parse_train_commands
    from mlmeta.evaluate import evaluate_attempt
    from mlmeta.tracking.recovery import prepare_run
    from mlmeta.train import run_attempt

    ended = prepare_run(job.run_id, is_restart=job.n_starts > 1)
    if ended is not None:
        return (JobState.FAILED, f"its run is {ended}") if ended in _FAILED else (JobState.DONE, "")
    base_dir = Path(job.base_dir)
    put_off_compiler()
    if job.kind == JobKind.TEST:
        evaluate_attempt(parse_test_commands(job.document), base_dir=base_dir)
    else:
        run_attempt(parse_train_commands(job.document), base_dir=base_dir, test=job.with_test)
    return JobState.DONE, ""


def is_server_there(address: str) -> bool:
    """Return whether the tracking server answers."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:  # noqa: S310 - the server's own
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def _wait_for_server(queue: JobQueue, job_id: int) -> bool:
    """Put a job back that failed while the server is away, and return whether it is: the server may be the reason."""
    address = queue.address()
    if address is None or is_server_there(address):
        return False
    sys.stderr.write("mlmeta: the tracking server does not answer; the job waits for it\n")
    queue.put_back(job_id, was_stopped=True)
    return True


def _stop(queue: JobQueue, job_id: int) -> None:
    """Write down that a job was interrupted: by whoever cancelled it, else with its runner."""
    job = queue.put_back(job_id, was_stopped=True)
    if job.state == JobState.CANCELLED:
        from mlmeta.tracking.recovery import close_run

        close_run(job.run_id)


def main() -> None:
    """Do the job that the arguments name."""
    folder, number = sys.argv[1:]
    try:
        code = work_on(JobQueue(Path(folder)), int(number))
    except MlmetaError as error:
        sys.stderr.write(f"mlmeta: {error}\n")
        code = error.exit_code
    raise SystemExit(code)


if __name__ == "__main__":
    main()
