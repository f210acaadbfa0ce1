"""Keeps a runner of the queue at work while the server runs: one for all its worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from mlmeta.job_queue import JobQueue
from mlmeta.job_runner import is_runner_at_work
from mlmeta.plugin.settings import ServerSettings

# How often it is looked at whether the runner is still there, and how long a new one may take to be, in seconds.
_WATCH_S = 2.0
_START_S = 30.0
# What is the server's own affair; its secret key above all.
_NOT_PASSED_ON = ("_MLFLOW_", "MLFLOW_FLASK_", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")


class RunnerKeeper:
    """Starts a runner where none is at work, until it is stopped; the runner ends with the server by itself."""

    def __init__(self, queue: JobQueue, settings: ServerSettings) -> None:
        self._queue = queue
        self._settings = settings
        self._server_pid = find_server_pid()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="mlmeta-runner-keeper", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a runner that is at work ends when the server has ended."""
        self._stopped.set()

    def _keep(self) -> None:
        # A worker process whose supervisor was killed has another parent: there is no server any more.
        while not self._stopped.is_set() and find_server_pid() == self._server_pid:
            if not is_runner_at_work(self._queue):
                with contextlib.suppress(Timeout, OSError), FileLock(self._queue.folder / "start.lock", timeout=0):
                    self._start()
            self._stopped.wait(_WATCH_S)

    def _start(self) -> None:
        """Start a runner and wait until it is at work, so that no other worker process starts one too."""
        process = subprocess.Popen(  # noqa: S603 - our own command line
            make_command(self._queue.folder, self._settings.at_once, self._server_pid),
            env=make_environment(os.environ),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(int(_START_S / 0.1)):
            if self._stopped.wait(0.1) or process.poll() is not None or is_runner_at_work(self._queue):
                return


def find_server_pid() -> int:
    """Return the process whose end is the server's end: the supervisor of the worker processes, if there is one."""
    return os.getpid() if multiprocessing.parent_process() is None else os.getppid()


def make_command(folder: Path, at_once: int, server_pid: int) -> list[str]:
    """Return the command line of a runner."""
    options = {"--queue": folder, "--at-once": at_once, "--while-pid": server_pid}
    return [sys.executable, "-m", "mlmeta", "worker", *(str(word) for pair in options.items() for word in pair)]


def make_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a runner: the server's, without what is the server's own affair."""
    return {key: value for key, value in environ.items() if not key.startswith(_NOT_PASSED_ON)}
