"""The runner of a queue: starts its jobs, a few at once, each in a process of its own; ends those that are cancelled.

One runner a queue. What it knows stands in the queue: a runner that comes after one that was killed watches the jobs
that still live, and puts those back whose process is dead; after three starts such a job has failed.

While the server runs, `keeping_runner` keeps one runner at work for all its worker processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from mlmeta.files import hold_lock, is_lock_held
from mlmeta.server import job_process
from mlmeta.server.queue import Job, JobQueue, JobState
from mlmeta.server.settings import ServerSettings

MOST_STARTS = 3
_LOOK_S = 0.3
# A process that was begun so lately may not hold its lock yet.
_BEGINNING_S = 20.0
# How often a server that does not answer is asked again.
_ASK_S = 2.0
# How often it is looked at whether the runner is still there, and how long a new one may take to be, in seconds.
_WATCH_S = 2.0
_START_S = 30.0
# What is the server's own affair; its secret key above all.
_NOT_PASSED_ON = ("_MLFLOW_", "MLFLOW_FLASK_", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")


def is_runner_at_work(queue: JobQueue) -> bool:
    """Return whether a runner works on a queue."""
    return bool(is_lock_held(_lock_file(queue)))


def _lock_file(queue: JobQueue) -> Path:
    return queue.folder / "runner.lock"


class JobRunner:
    """Works on a queue until it is told to stop.

    Args:
        queue: Of this machine.
        at_once: So many jobs at once, at most.
        grace_s: How long a process that is told to end may take, in seconds, before it is killed.
        while_pid: A process with whose end the runner ends; None for none.
    """

    def __init__(
        self, queue: JobQueue, *, at_once: int = 1, grace_s: float = 30.0, while_pid: int | None = None
    ) -> None:
        self._queue = queue
        self._at_once = at_once
        self._grace_s = grace_s
        self._while_pid = while_pid
        self._stopped = False
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        # When a job's process was told to end.
        self._told_at: dict[int, float] = {}
        self._ask_at = 0.0

    def run(self) -> None:
        """Work until SIGTERM, SIGINT or the end of the process that it was given.

        Raises:
            BadInputError: If another runner works on this queue.
        """
        taken = f"another runner works on the queue {self._queue.folder}"
        with hold_lock(_lock_file(self._queue), taken), self._stopping_gently():
            while not self._stopped and (self._while_pid is None or _lives(self._while_pid)):
                self.step()
                time.sleep(_LOOK_S)
            self._end_all()

    @contextlib.contextmanager
    def _stopping_gently(self) -> Iterator[None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            self._stopped = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def step(self) -> None:
        """Look once after all jobs that run, and start those for which there is room."""
        running = self._queue.list_jobs(states=(JobState.RUNNING,), limit=10_000)
        for job in running:
            if self._is_dead(job):
                self._take_care_of_dead(job)
            elif job.cancel_requested:
                self._tell_to_end(job)
        at_work = self._queue.count((JobState.RUNNING,))
        while at_work < self._at_once and self._queue.count((JobState.QUEUED,)) and self._server_answers():
            if (taken := self._queue.take()) is None:
                break
            self._start(taken)
            at_work += 1

    def _server_answers(self) -> bool:
        address = self._queue.address()
        if address is None or time.monotonic() < self._ask_at:
            return False
        if job_process.is_server_there(address):
            return True
        self._ask_at = time.monotonic() + _ASK_S
        return False

    def _start(self, job: Job) -> None:
        log = self._queue.log_file(job.run_id)
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self._at_once)), **os.environ}
        with log.open("ab") as stream:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, "-m", job_process.__name__, str(self._queue.folder), str(job.job_id)],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, start_new_session=True,
            )  # fmt: skip
        self._children[job.job_id] = process
        self._queue.note_process(job.job_id, process.pid)

    def _is_dead(self, job: Job) -> bool:
        child = self._children.get(job.job_id)
        if child is not None:
            return child.poll() is not None
        if self._queue.is_alive(job):
            return False
        is_new = time.time() - (job.started_s or 0) < _BEGINNING_S
        return not (is_new and job.pid is not None and _lives(job.pid))

    def _take_care_of_dead(self, job: Job) -> None:
        """End or put back a job whose process died without a word."""
        child = self._children.pop(job.job_id, None)
        self._told_at.pop(job.job_id, None)
        code = child.returncode if child else None
        # Between the list and now it may have written down its end.
        job = self._queue.get(job.job_id)
        if job.state != JobState.RUNNING:
            return
        if job.cancel_requested:
            self._queue.end(job.job_id, JobState.CANCELLED, exit_code=code)
        elif job.n_starts >= MOST_STARTS:
            error = f"its process died {job.n_starts} times without a word; the last exit code was {code}"
            self._queue.end(job.job_id, JobState.FAILED, exit_code=code, error=error)
        else:
            self._queue.put_back(job.job_id)
            return
        self._close_run(job)

    def _close_run(self, job: Job) -> None:
        from mlmeta.tracking.recovery import close_run

        if address := self._queue.address():
            os.environ["MLFLOW_TRACKING_URI"] = address
            close_run(job.run_id)

    def _tell_to_end(self, job: Job) -> None:
        """Tell a job's process group to end; kill it where it has been told long ago."""
        told_at = self._told_at.setdefault(job.job_id, time.monotonic())
        is_first = time.monotonic() - told_at < _LOOK_S / 2
        if is_first or time.monotonic() - told_at > self._grace_s:
            self._send(job, signal.SIGTERM if is_first else signal.SIGKILL)

    def _send(self, job: Job, number: signal.Signals) -> None:
        if job.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, number)

    def _end_all(self) -> None:
        """Interrupt all jobs; each puts itself back, and the runner those that cannot."""
        until = time.monotonic() + self._grace_s
        number = signal.SIGTERM
        told: set[int] = set()
        while running := self._queue.list_jobs(states=(JobState.RUNNING,), limit=10_000):
            if number == signal.SIGTERM and time.monotonic() > until:
                number, told = signal.SIGKILL, set()
            for job in running:
                if self._is_dead(job):
                    self._children.pop(job.job_id, None)
                    self._queue.put_back(job.job_id, was_stopped=True)
                elif job.job_id not in told:
                    self._send(job, number)
                    told.add(job.job_id)
            time.sleep(_LOOK_S / 3)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def keeping_runner(queue: JobQueue, settings: ServerSettings) -> Iterator[None]:
    """Start a runner where none is at work, while this lasts and if the settings want one; it ends with the server."""
    ended = threading.Event()
    if settings.run_worker:
        arguments = (queue, settings.at_once, ended)
        threading.Thread(target=_keep_runner, args=arguments, name="mlmeta-runner-keeper", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _keep_runner(queue: JobQueue, at_once: int, ended: threading.Event) -> None:
    server_pid = _find_server_pid()
    # A worker process whose supervisor was killed has another parent: there is no server any more.
    while not ended.is_set() and _find_server_pid() == server_pid:
        if not is_runner_at_work(queue):
            with contextlib.suppress(Timeout, OSError), FileLock(queue.folder / "start.lock", timeout=0):
                _start_runner(queue, at_once, server_pid, ended)
        ended.wait(_WATCH_S)


def _start_runner(queue: JobQueue, at_once: int, server_pid: int, ended: threading.Event) -> None:
    """Start a runner and wait until it is at work, so that no other worker process starts one too."""
    options = {"--queue": queue.folder, "--at-once": at_once, "--while-pid": server_pid}
    command = [sys.executable, "-m", "mlmeta", "worker", *(str(word) for pair in options.items() for word in pair)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_PASSED_ON)}
    process = subprocess.Popen(  # noqa: S603 - our own command line
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    )
    for _ in range(int(_START_S / 0.1)):
        if ended.wait(0.1) or process.poll() is not None or is_runner_at_work(queue):
            return


def _find_server_pid() -> int:
    """Return the process whose end is the server's end: the supervisor of the worker processes, if there is one."""
    return os.getpid() if multiprocessing.parent_process() is None else os.getppid()
