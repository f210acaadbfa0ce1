"""The whole job: train an attempt, test it, and record both as one MLflow run; go on with one that was stopped.

The MLproject entry points ``main`` and ``train`` are ``python -m mlmeta.train``. torch and MLflow are imported when a
job begins, after its commands have been read, so that a faulty file is answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlmeta.console import changing_commands, refuse_changes, reporting_errors, terminating_gently
from mlmeta.errors import BadInputError
from mlmeta.models.compiler import put_off_compiler
from mlmeta.tracking.store import current_uri, hide_password

if TYPE_CHECKING:
    from mlmeta.commands.documents import TrainCommands
    from mlmeta.training.loop import Metrics, Trained
    from mlmeta.training.progress import TrainingProgress


def run_attempt(
    commands: TrainCommands,
    *,
    base_dir: Path,
    test: bool = True,
    resume_run_id: str | None = None,
    until_epoch: int | None = None,
    tags: Mapping[str, str] | None = None,
    progress: TrainingProgress | None = None,
) -> tuple[str, Trained, Metrics]:
    """Train an attempt and, if wanted, test it, recorded as one MLflow run.

    Args:
        commands: What to do.
        base_dir: What relative paths are relative to.
        test: Whether to test right after the training.
        resume_run_id: The run of an attempt with these commands that was stopped, to go on with.
        until_epoch: Train up to this epoch only, and leave the attempt Interrupted, to be resumed; None for all.
        tags: More tags for the run.
        progress: Is told of every epoch; None shows them on standard error.

    Returns:
        The run id, what the training gave, and the test's metrics: empty without a test, and where the training did
        not come to its end (Pruned by the rule `stop`, or Interrupted; it can be resumed).

    Raises:
        BadInputError: If anything cannot be used, before a run is started.
        DivergedError: If the loss stopped being finite; everything up to there is recorded.
        AttemptFailedError: If the training broke.
        KeyboardInterrupt: At SIGINT or SIGTERM; the attempt is Interrupted, and can be resumed.
    """
    from mlmeta.tracking.runs import record_attempt
    from mlmeta.training.evaluation import check_test, test_trained
    from mlmeta.training.preparation import prepare_training
    from mlmeta.training.progress import EpochProgress
    from mlmeta.training.recording import look_up_run, take_up, train_recorded

    prepared = prepare_training(commands, base_dir=base_dir)
    if test:
        check_test(prepared)
    resumed, start = look_up_run(prepared, resume_run_id)
    recording = record_attempt(commands, base_dir=base_dir, resume_run_id=resumed, tags=tags)
    with terminating_gently(), recording as recorder:
        job = take_up(prepared, recorder, start, is_resumed=bool(resumed), until_epoch=until_epoch)
        with progress or EpochProgress(commands.model_name, commands.n_epoch) as shown:
            train_recorded(job, shown)
        metrics = test_trained(prepared, job.trained.state, recorder) if test and job.is_finished else {}
    if job.is_finished:
        job.checkpoint.remove()
    return recorder.run_id, job.trained, metrics


def resume_attempt(
    name_or_run_id: str, *, test: bool = True, base_dir: Path | None = None
) -> tuple[str, Trained, Metrics]:
    """Go on with an attempt that was stopped, in its own run, after its last finished epoch.

    Args:
        name_or_run_id: Its run id, or its name (the newest attempt of that name).
        test: As for `run_attempt`.
        base_dir: What relative paths are relative to; None for where they were.

    Raises:
        NotFoundError: If there is no such attempt, or this machine has no checkpoint of it.
        BadInputError: If it is complete or running, or its pictures have changed.
    """
    from mlmeta.tracking.recovery import find_stopped_attempt

    attempt = find_stopped_attempt(name_or_run_id)
    folder = base_dir or attempt.commands_dir
    return run_attempt(attempt.commands, base_dir=folder, test=test, resume_run_id=attempt.run_id)


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--test/--no-test", default=True, show_default=True, help="Test right after the training.")
@click.option("--resume", metavar="RUN_ID|NAME", help="Go on with an attempt that was stopped, in its own run.")
@changing_commands
@reporting_errors
def train(config: Path | None, test: bool, resume: str | None, base_dir: Path | None, changes: tuple[str, ...]) -> None:
    """Train (and test) one attempt from the train commands in CONFIG, or go on with one."""
    if (config is None) == (resume is None):
        raise BadInputError("train needs either a commands file, or --resume with a run id or a name")
    put_off_compiler()
    if config is not None:
        from mlmeta.commands.parsing import load_train_commands

        result = run_attempt(load_train_commands(config, changes), base_dir=base_dir or config.parent, test=test)
    else:
        refuse_changes(changes)
        result = resume_attempt(str(resume), test=test, base_dir=base_dir)
    _show_result(*result)


def _show_result(run_id: str, trained: Trained, metrics: dict[str, float]) -> None:
    from mlmeta.evaluate import format_metrics

    click.echo(format_metrics(metrics) if metrics else f"training loss {trained.train_losses[-1]:.4g}")
    if trained.stopped:
        click.echo(f"stopped early, not tested: {trained.stopped}; for all epochs: mlmeta train --resume {run_id}")
    click.echo(f"run {run_id} in {hide_password(current_uri())}")


def main() -> None:
    """Run ``mlmeta train`` with the arguments of this process."""
    train(prog_name="mlmeta train")


if __name__ == "__main__":
    main()
