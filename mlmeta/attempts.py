"""The whole job: train an attempt, test it, and record both as one MLflow run; go on with one that was stopped."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click
from torch import nn

from mlmeta.architecture import describe_architecture, walk_layers
from mlmeta.checkpoints import Checkpoint
from mlmeta.commands import TrainCommands
from mlmeta.documents import make_test_commands
from mlmeta.errors import AttemptFailedError, DivergedError, NotFoundError
from mlmeta.evaluate import TestPlan, test_model
from mlmeta.initial_weights import Start, look_up_start, start_training
from mlmeta.loss_curve import CURVE_TAG, write_curve
from mlmeta.metafeatures import describe_pictures
from mlmeta.pictures import choose_pictures, find_conflicts
from mlmeta.plots import plot_loss_curve
from mlmeta.preparation import Task
from mlmeta.progress import EpochProgress, Progress
from mlmeta.recorder import EpochRecorder, Recorder
from mlmeta.reports import summarise_odd_pictures, write_conflicts, write_skipped
from mlmeta.spec_builder import output_form
from mlmeta.status import Status
from mlmeta.train import (
    Metrics,
    Prepared,
    Trained,
    capture_state,
    find_batch_size,
    has_diverged,
    is_out_of_memory,
    prepare_training,
    restore_state,
    train_attempt,
)
from mlmeta.weights import save_weights


def describe_task(task: Task) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the params ``task.*`` and the meta-features of a task."""
    channels, height, width = task.input_shape
    training = task.select("train")
    params = {
        "n_labels": task.n_labels,
        "n_train": len(training.pictures),
        "n_validation": len(task.select("validation").pictures),
        "n_test": len(task.select("test").pictures),
        "n_skipped": len(task.decoded.skipped),
        "height": height,
        "width": width,
        "channels": channels,
    }
    labels = [picture.label for picture in training.pictures]
    return params, describe_pictures(training.arrays, labels, n_labels=task.n_labels)


def describe_model(commands: TrainCommands, model: nn.Module) -> dict[str, Any]:
    """Return the params ``arch.*`` of the built model."""
    n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if layers := commands.model.get("layers"):
        return describe_architecture(walk_layers(layers), n_parameters=n_parameters)
    leaves = [(type(m).__name__, vars(m)) for m in model.modules() if not list(m.children())]
    return describe_architecture(leaves, n_parameters=n_parameters)


def run_attempt(
    commands: TrainCommands, *, base_dir: Path, test: bool = True, resume_run_id: str | None = None
) -> tuple[str, Trained, Metrics]:
    """Train an attempt and, if wanted, test it, recorded as one MLflow run.

    Args:
        commands: What to do.
        base_dir: What relative paths are relative to.
        test: Whether to test right after the training.
        resume_run_id: The run of an attempt with these commands that was stopped, to go on with.

    Returns:
        The run id, what the training gave, and the test's metrics (empty without a test).

    Raises:
        BadInputError: If anything cannot be used, before a run is started.
        DivergedError: If the loss stopped being finite; everything up to there is recorded.
        AttemptFailedError: If the training broke.
        KeyboardInterrupt: At SIGINT or SIGTERM; the attempt is Interrupted, and can be resumed.
    """
    from mlmeta import tracking

    prepared = prepare_training(commands, base_dir=base_dir)
    section = commands.test
    if test:
        # Looked at now, so that a test without pictures is refused before hours of training.
        choose_pictures(prepared.task.pictures, limit=section.limit, ids=section.ids, seed=commands.seed)
    resumed = resume_run_id or tracking.find_resumable(commands)
    # A checkpoint has all that the attempt began with.
    start = None if resumed and Checkpoint(resumed).file.is_file() else look_up_start(prepared)
    metrics: Metrics = {}
    with (
        terminating_gently(),
        tracking.record_attempt(commands, base_dir=base_dir, resume_run_id=resumed) as recorder,
    ):
        checkpoint = Checkpoint(recorder.run_id)
        recorded = recorder.recorded_steps("train_loss") if resumed else set()
        trained = _go_on(prepared, checkpoint, recorded) if resumed else Trained()
        _train_recorded(prepared, recorder, trained, checkpoint, recorded, start)
        if test:
            recorder.log_document("test_commands.json", make_test_commands(commands).document())
            prepared.model.load_state_dict(trained.state)
            plan = TestPlan(section.limit, tuple(section.ids), commands.seed, commands.batch_size)
            metrics = test_model(
                prepared.model, prepared.criterion, prepared.task, plan,
                form=output_form(commands.model), recorder=recorder, name=commands.model_name,
            )  # fmt: skip
    checkpoint.remove()
    return recorder.run_id, trained, metrics


def resume_attempt(name_or_run_id: str, *, test: bool = True) -> tuple[str, Trained, Metrics]:
    """Go on with an attempt that was stopped, in its own run, after its last finished epoch.

    Args:
        name_or_run_id: Its run id, or its name (the newest attempt of that name).
        test: As for `run_attempt`.

    Raises:
        NotFoundError: If there is no such attempt, or this machine has no checkpoint of it.
        BadInputError: If it is complete or running, or its pictures have changed.
    """
    from mlmeta import tracking

    attempt = tracking.find_stopped_attempt(name_or_run_id)
    return run_attempt(attempt.commands, base_dir=attempt.commands_dir, test=test, resume_run_id=attempt.run_id)


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


def _go_on(prepared: Prepared, checkpoint: Checkpoint, recorded: set[int]) -> Trained:
    state = checkpoint.load()
    if state is not None:
        return restore_state(prepared, state)
    if recorded:
        raise NotFoundError(
            f"{prepared.commands.model_name}: this machine has no checkpoint of the attempt ({checkpoint.file}); "
            "resume it where it was trained, or start a new one"
        )
    return Trained()


class _NewEpochs:
    """Passes on the metrics of epochs that the run does not have yet, so that a resumed curve has each once."""

    def __init__(self, recorder: EpochRecorder, recorded: set[int]) -> None:
        self._recorder = recorder
        self._recorded = recorded

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        if step not in self._recorded:
            self._recorder.log_metrics(metrics, step=step)


def _train_recorded(
    prepared: Prepared,
    recorder: Recorder,
    trained: Trained,
    checkpoint: Checkpoint,
    recorded: set[int],
    start: Start | None,
) -> None:
    commands = prepared.commands
    _record_task(prepared, recorder)
    recorder.set_status(Status.TRAINING)
    if start:
        with _telling_what_broke(prepared):
            start_training(prepared, trained, start)
        # Saved before anything of it is recorded, so that an attempt that goes on does not choose anew.
        save_checkpoint(prepared, trained, checkpoint)
    recorder.log_params({f"initial_weights.{key}": value for key, value in trained.initial_weights.items()})
    epochs = _NewEpochs(recorder, recorded)
    for epoch, metrics in enumerate(trained.curve, start=1):
        epochs.log_metrics(metrics, step=epoch)
    try:
        with EpochProgress(commands.model_name, commands.n_epoch) as progress:
            _train_guarded(prepared, epochs, trained, progress, checkpoint)
    finally:
        log_training(prepared, trained, recorder)
    if has_diverged(trained.curve[-1]):
        checkpoint.remove()
        recorder.set_status(Status.DIVERGED)
        raise DivergedError(
            f"{commands.model_name}: the loss is no longer a finite number in epoch {len(trained.curve)}; a smaller "
            f"optimizer.lr usually helps (it was {trained.curve[-1]['learning_rate']:g}). The run keeps the curve."
        )
    recorder.set_status(Status.TRAINED)


def _record_task(prepared: Prepared, recorder: Recorder) -> None:
    pictures = prepared.task.pictures
    params, features = describe_task(prepared.task)
    recorder.log_params({f"task.{key}": value for key, value in params.items()})
    recorder.log_params(
        {f"arch.{key}": value for key, value in describe_model(prepared.commands, prepared.model).items()}
    )
    recorder.log_document("label_names.json", list(pictures.label_names))
    recorder.set_tags(
        {
            "mlmeta.task": json.dumps(features),
            "mlmeta.task_digest": pictures.task_digest,
            "mlmeta.device": str(prepared.device),
        }
    )
    _record_odd_pictures(prepared.task, recorder)
    name = prepared.commands.model_name
    recorder.log_data(name=name, digest=pictures.digest, source=pictures.source, context="training")


def _record_odd_pictures(task: Task, recorder: Recorder) -> None:
    """Record which pictures were left out or stand under several labels, and say so in one line."""
    skipped, conflicts = task.decoded.skipped, find_conflicts(task.decoded.pictures)
    if line := summarise_odd_pictures(skipped, conflicts):
        click.echo(f"mlmeta: {line}", err=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if skipped:
            write_skipped(folder / "skipped_pictures.csv", skipped)
        if conflicts:
            write_conflicts(folder / "conflicting_pictures.csv", conflicts, task.pictures.label_names)
        if skipped or conflicts:
            recorder.log_files(folder)


def _train_guarded(
    prepared: Prepared, recorder: EpochRecorder, trained: Trained, progress: Progress, checkpoint: Checkpoint
) -> None:
    """Train with a checkpoint after the epochs; make one message of whatever torch raises."""

    def save(trained: Trained) -> None:
        last = len(trained.curve) == prepared.commands.n_epoch
        if checkpoint.is_due() or last:
            save_checkpoint(prepared, trained, checkpoint)

    with _telling_what_broke(prepared):
        train_attempt(prepared, recorder, trained=trained, progress=progress, after_epoch=save)


@contextlib.contextmanager
def _telling_what_broke(prepared: Prepared) -> Iterator[None]:
    name = prepared.commands.model_name
    try:
        yield
    except (ArithmeticError, IndexError, MemoryError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise AttemptFailedError(f"{name}: {_explain_memory(prepared)}") from error
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise AttemptFailedError(f"{name}: the training broke: {reason}") from error


def save_checkpoint(prepared: Prepared, trained: Trained, checkpoint: Checkpoint) -> None:
    """Save a checkpoint; where that is not possible, a full disk say, the training goes on without."""
    try:
        checkpoint.save(capture_state(prepared, trained))
    except OSError as error:
        click.echo(f"mlmeta: no checkpoint was saved, the training goes on: {error}", err=True)


def _explain_memory(prepared: Prepared) -> str:
    batch_size = find_batch_size(prepared)
    advice = f"batch_size {batch_size} would fit" if batch_size else "not even a batch of one picture would fit"
    return f"the memory of {prepared.device} is used up by batch_size {prepared.commands.batch_size}; {advice}"


def log_training(prepared: Prepared, trained: Trained, recorder: Recorder) -> None:
    """Record the curve, its plot, and the kept weights, of as many epochs as there are."""
    if not trained.curve:
        return
    recorder.set_tags({CURVE_TAG: write_curve(trained.train_losses)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plot_loss_curve(
            folder / "loss_curve.png",
            train_losses=trained.train_losses,
            val_losses=[metrics.get("val_loss") for metrics in trained.curve],
            val_accuracies=[metrics.get("val_accuracy") for metrics in trained.curve],
            kept_epoch=trained.kept_epoch or None,
            title=prepared.commands.model_name,
            chance_loss=chance_loss(prepared),
        )
        if trained.state:
            sha256 = save_weights(trained.state, folder / "models", prepared.commands.model_name)
            recorder.set_tags({"mlmeta.weights_sha256": sha256, "mlmeta.kept_epoch": str(trained.kept_epoch)})
        recorder.log_files(folder)


def chance_loss(prepared: Prepared) -> float | None:
    """Return the loss of guessing, ln K, where the criterion is one that it is known for."""
    return math.log(prepared.task.n_labels) if prepared.commands.criterion["name"] == "CrossEntropyLoss" else None
