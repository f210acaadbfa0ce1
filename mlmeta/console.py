"""How a command line ends: one sentence and an exit code, and the run that waits for it is told.

SIGTERM ends what is done here as SIGINT does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import click

from mlmeta.errors import MlmetaError


def reporting_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command end every fault in one message: exit code 2 for bad input, 1 for a failed attempt.

    With ``--debug`` the traceback is shown instead.
    """

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except MlmetaError as error:
            _mark_run_failed(error)
            if debug:
                raise
            _fail(str(error), error.exit_code)
        except BrokenPipeError:
            # Whoever read the output has seen enough; click ends quietly.
            raise
        except Exception as error:  # the last place where a user can be told in one sentence
            if debug:
                raise
            reason = " ".join(str(error).split())[:500]
            _fail(f"unexpected {type(error).__name__}: {reason} (--debug shows where)", 1)
        except KeyboardInterrupt as error:
            hints = getattr(error, "__notes__", [])
            _fail("; ".join(["interrupted; the run keeps what was recorded", *hints]), 130)

    return wrapped


def _fail(message: str, exit_code: int) -> NoReturn:
    click.echo(f"mlmeta: {message}", err=True)
    sys.exit(exit_code)


def _mark_run_failed(error: MlmetaError) -> None:
    """Tell the run that ``mlflow run`` started what went wrong; MLflow is not even imported where there is none."""
    if os.environ.get("MLFLOW_RUN_ID"):
        from mlmeta.tracking.runs import fail_adopted_run

        fail_adopted_run(error)


@contextlib.contextmanager
def terminating_gently() -> Iterator[None]:
    """Make SIGTERM end what is inside as SIGINT does, so that the run is closed; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
