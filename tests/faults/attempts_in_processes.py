"""Runs attempts in processes of their own, forked from one that has imported everything, and kills them.

A program, not a module of tests: ``python attempts_in_processes.py kill|together COMMANDS N``. It prints one JSON
document. Forking saves the seconds that torch and MLflow take to be imported, twenty times over.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import mlmeta.training.checkpoints
from mlmeta.commands.parsing import load_train_commands
from mlmeta.evaluate import evaluate_attempt  # noqa: F401  # imported before the first fork
from mlmeta.tracking.recovery import find_stale_attempts, mark_interrupted
from mlmeta.tracking.store import open_client, search_all_runs
from mlmeta.train import resume_attempt, run_attempt


def start(action: Any) -> int:
    """Run `action` in a forked process; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    except BaseException as error:  # noqa: BLE001  # this process ends here, whatever happened in it
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def in_child(action: Any) -> Any:
    """Run `action` in a forked process that ends by itself; return what it gives, a JSON value."""
    reader, writer = os.pipe()
    child = start(lambda: os.write(writer, json.dumps(action()).encode()))
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)


def find_stopped() -> list[str]:
    """Close every attempt whose process is dead; return the run ids of those that can go on."""
    for attempt in find_stale_attempts(older_than_s=0):
        mark_interrupted(attempt.run_id)
    # Also one that was killed before it went on: it is what it was.
    runs = search_all_runs(open_client(), "tags.`mlmeta.status` = 'Interrupted'")
    return [run.info.run_id for run in runs]


def kill_and_resume(config: Path, n_kills: int) -> dict[str, Any]:
    """Start an attempt, kill it after a random time, go on with it, kill it again; start anew when it is complete."""
    mlmeta.training.checkpoints.EVERY_S = 0
    commands = load_train_commands(config)
    drawn = random.Random(0)
    kills, stopped, failures = 0, [], []
    while True:
        last = kills == n_kills
        action = (
            partial(resume_attempt, stopped[0]) if stopped else partial(run_attempt, commands, base_dir=config.parent)
        )
        child = start(action)
        if not last:
            time.sleep(drawn.uniform(0, 2.5))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            failures.append(kills)
        kills += os.WIFSIGNALED(status)
        if last:
            return {"kills": kills, "failures": failures}
        stopped = in_child(find_stopped)


def run_together(config: Path, n: int) -> dict[str, Any]:
    """Start `n` attempts at the same time; return their exit codes."""
    commands = load_train_commands(config)
    children = [start(partial(run_attempt, commands, base_dir=config.parent)) for _ in range(n)]
    return {"exit_codes": [os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children]}


if __name__ == "__main__":
    mode, config, number = sys.argv[1:]
    result = {"kill": kill_and_resume, "together": run_together}[mode](Path(config), int(number))
    sys.stdout.write(json.dumps(result) + "\n")
