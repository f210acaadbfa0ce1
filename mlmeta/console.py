"""What a command line shows while it works, and how it ends: one sentence and an exit code.

The run that waits for it is told too. SIGTERM ends what is done here as SIGINT does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

import click

from mlmeta.errors import BadInputError, MlmetaError


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
            _fail("\n".join([str(error), *getattr(error, "__notes__", ())]), error.exit_code)
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


def changing_commands(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that reads a commands file the options ``--base-dir`` and ``--set``."""
    command = click.option(
        "--set", "changes", multiple=True, metavar="PATH=VALUE", help="Change a value of the commands, such as "
        "data.path=pictures or optimizer.lr=0.1; may be repeated.",
    )(command)  # fmt: skip
    return click.option(
        "--base-dir", metavar="DIR", type=click.Path(path_type=Path),
        help="Where relative paths of the commands begin; by default beside the file.",
    )(command)  # fmt: skip


def refuse_changes(changes: Sequence[str]) -> None:
    """Refuse ``--set`` where something goes on.

    Raises:
        BadInputError: If there are changes.
    """
    if changes:
        raise BadInputError("--set goes with a commands file; what goes on keeps its commands (--base-dir says where)")


@functools.cache
def say_once(text: str) -> None:
    """Write a text to standard error, unless this process did: a tuning looks at the same pictures again and again."""
    click.echo(text, err=True)


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


class ProgressBar:
    """Shows on standard error how far something is: a bar on a terminal, plain lines in a log.

    Args:
        name: Of what is done, before the bar.
        total: What there is to do.
        in_percent: Whether the bar says ``40%``, and not ``6/15``.
    """

    def __init__(self, name: str, total: float, *, in_percent: bool = False) -> None:
        self._bar = _make_bar(in_percent=in_percent) if sys.stderr.isatty() else None
        self._task = self._bar.add_task(name, total=total, text="") if self._bar else None

    def __enter__(self) -> Self:
        """Start the bar where there is a terminal."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()

    def update(self, done: float, text: str, *, line: str = "") -> None:
        """Show how much is done, with `text` beside the bar; a log gets `line`, and nothing where that is empty."""
        if self._bar:
            self._bar.update(self._task, completed=done, text=text)
        elif line:
            click.echo(line, err=True)


def _make_bar(*, in_percent: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn() if in_percent else MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
    )
