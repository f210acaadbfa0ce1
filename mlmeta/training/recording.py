"""One training recorded in a run: its task, its epochs, its checkpoints, its weights, and how it ended."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from mlmeta.commands.params import CURVE_TAG, MAX_TAG, write_curve
from mlmeta.console import say_once
from mlmeta.data.pictures import find_conflicts
from mlmeta.data.task import Task, describe_task
from mlmeta.errors import AttemptFailedError, DivergedError, NotFoundError
from mlmeta.models.weights import save_weights
from mlmeta.reports.attempt_files import write_account, write_conflicts, write_skipped
from mlmeta.reports.attempt_plots import plot_loss_curve
from mlmeta.spec_builder import describe_model, guess_loss
from mlmeta.status import Status
from mlmeta.tracking.recorder import MlflowRecorder
from mlmeta.tracking.recovery import find_resumable, has_epochs
from mlmeta.training.checkpoints import Checkpoint, capture_state, restore_state
from mlmeta.training.early_stopping import EpochWatch, read_past
from mlmeta.training.initial_weights import Start, look_up_start, start_training
from mlmeta.training.loop import Trained, find_batch_size, has_diverged, is_out_of_memory, train_attempt
from mlmeta.training.preparation import Prepared, choose_keep
from mlmeta.training.progress import EpochRecorder, Progress, Recorder

# Outputs for which the loss of guessing is computed.
_MOST_GUESSED = 1_000_000


class _NewEpochs:
    """Passes on the metrics of epochs that the run does not have yet, so that a resumed curve has each once."""

    def __init__(self, recorder: EpochRecorder, recorded: set[int]) -> None:
        self._recorder = recorder
        self._recorded = recorded

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        if step not in self._recorded:
            self._recorder.log_metrics(metrics, step=step)


@dataclass(frozen=True)
class Job:
    """One training, and what it has to do with.

    Attributes:
        prepared: From `mlmeta.training.preparation.prepare_training`.
        recorder: Of its run.
        checkpoint: Of its run.
        trained: The epochs so far; is filled in.
        recorded: The epochs that the run has already.
        start: What it is to start from; None for a training that goes on, and for one from scratch.
        until_epoch: The last epoch that is trained now.
    """

    prepared: Prepared
    recorder: MlflowRecorder
    checkpoint: Checkpoint
    trained: Trained
    recorded: set[int]
    start: Start | None
    until_epoch: int

    @property
    def is_finished(self) -> bool:
        """Whether all epochs that are commanded have been trained."""
        return len(self.trained.curve) == self.prepared.commands.n_epoch and not self.trained.stopped


def look_up_run(prepared: Prepared, resume_run_id: str | None) -> tuple[str | None, Start | None]:
    """Return the run to go on in, and what a training is to start from; each is None where there is none.

    Raises:
        NotFoundError: If the run has epochs, and this machine has no checkpoint of them; the run is left as it is.
        BadInputError: If what the commands name cannot be used, see `look_up_start`.
    """
    resumed = resume_run_id or find_resumable(prepared.commands)
    if resumed and not Checkpoint(resumed).is_there() and has_epochs(resumed):
        raise _miss_checkpoint(prepared, Checkpoint(resumed))
    # A checkpoint has all that the attempt began with.
    return resumed, None if resumed and Checkpoint(resumed).is_there() else look_up_start(prepared)


def _miss_checkpoint(prepared: Prepared, checkpoint: Checkpoint) -> NotFoundError:
    return NotFoundError(
        f"{prepared.commands.model_name}: this machine has no checkpoint of the attempt ({checkpoint.file}); "
        "resume it where it was trained, or start a new one"
    )


def take_up(
    prepared: Prepared, recorder: MlflowRecorder, start: Start | None, *, is_resumed: bool, until_epoch: int | None
) -> Job:
    """Return the training of a run, with the epochs of its checkpoint where it goes on.

    Raises:
        NotFoundError: If the run has epochs, and this machine has no checkpoint of them.
        BadInputError: If the checkpoint is damaged, or the pictures have changed.
    """
    checkpoint = Checkpoint(recorder.run_id)
    recorded = recorder.recorded_steps("train_loss") if is_resumed else set()
    state = checkpoint.load() if is_resumed else None
    if state is None and recorded:
        raise _miss_checkpoint(prepared, checkpoint)
    trained = Trained() if state is None else restore_state(prepared, state)
    return Job(prepared, recorder, checkpoint, trained, recorded, start, until_epoch or prepared.commands.n_epoch)


def train_recorded(job: Job, progress: Progress) -> None:
    """Train an attempt up to where it is wanted, and record all of it but the test.

    Args:
        job: What is done.
        progress: Is told of every epoch.

    Raises:
        DivergedError: If the loss stopped being finite; everything up to there is recorded.
        AttemptFailedError: If the training broke.
    """
    prepared, recorder, trained, start = job.prepared, job.recorder, job.trained, job.start
    _record_task(prepared, recorder)
    recorder.set_status(Status.TRAINING)
    if start:
        with _telling_what_broke(prepared):
            start_training(prepared, trained, start)
        # Saved before anything of it is recorded, so that an attempt that goes on does not choose anew.
        save_checkpoint(job)
    recorder.log_params({f"initial_weights.{key}": value for key, value in trained.initial_weights.items()})
    _, too_few = choose_keep(prepared.commands, len(prepared.validation), n_labels=prepared.task.n_labels)
    if too_few:
        say_once(f"mlmeta: {too_few}")
    watch = _watch_training(job)
    if start and trained.curve:
        # The epoch that won the race, shown like every other.
        watch.look(trained.curve)
        progress.epoch(1, trained.curve[0])
    epochs = _NewEpochs(recorder, job.recorded)
    for epoch, metrics in enumerate(trained.curve, start=1):
        epochs.log_metrics(metrics, step=epoch)
    try:
        _train_guarded(job, epochs, watch, progress)
    finally:
        log_training(prepared, trained, recorder)
    _record_end(job)


def _record_end(job: Job) -> None:
    trained, recorder = job.trained, job.recorder
    if has_diverged(trained.curve[-1]):
        job.checkpoint.remove()
        recorder.set_status(Status.DIVERGED)
        raise DivergedError(
            f"{job.prepared.commands.model_name}: the loss is no longer a finite number in epoch {len(trained.curve)}; "
            f"a smaller optimizer.lr usually helps (it was {trained.curve[-1]['learning_rate']:g}). The run keeps the "
            "curve."
        )
    if trained.stopped:
        save_checkpoint(job)
        job.checkpoint.put_aside()
        recorder.set_tags({"mlmeta.stop_reason": trained.stopped})
        recorder.set_status(Status.PRUNED)
    else:
        recorder.set_status(Status.TRAINED if job.is_finished else Status.INTERRUPTED)


def _watch_training(job: Job) -> EpochWatch:
    commands, task = job.prepared.commands, job.prepared.task
    rule = None if job.trained.ignores_stop else commands.stop
    digest = task.pictures.task_digest
    return EpochWatch(
        commands, read_past(commands, task=digest, run_id=job.recorder.run_id, rule=rule),
        task=digest, n_labels=task.n_labels, validation=job.prepared.validation.labels.tolist(),
        chance_loss=chance_loss(job.prepared), rule=rule,
    )  # fmt: skip


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
    record_account(prepared.task, recorder)
    name = prepared.commands.model_name
    recorder.log_data(name=name, digest=pictures.digest, source=pictures.source, context="training")


def record_account(task: Task, recorder: Recorder, *, training: bool = True) -> None:
    """Say and record what became of all data that was looked at; list odd pictures by themselves, too."""
    account = task.account(training=training)
    say_once(account.describe_all())
    recorder.log_params({f"data_account.{key}": value for key, value in account.params().items()})
    recorder.set_tags({"mlmeta.data_account": account.describe_all()[:MAX_TAG]})
    skipped, conflicts = task.decoded.skipped, find_conflicts(task.decoded.pictures)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_account(folder / "data_account.csv", account)
        if skipped:
            write_skipped(folder / "skipped_pictures.csv", skipped)
        if conflicts:
            write_conflicts(folder / "conflicting_pictures.csv", conflicts, task.pictures.label_names)
        recorder.log_files(folder)


def _train_guarded(job: Job, recorder: EpochRecorder, watch: EpochWatch, progress: Progress) -> None:
    """Train, watched, with a checkpoint after the epochs; make one message of whatever torch raises."""

    def look_and_save(trained: Trained) -> None:
        watch.look(trained.curve)
        if job.checkpoint.is_due() or len(trained.curve) in (job.until_epoch, job.prepared.commands.n_epoch):
            save_checkpoint(job)

    with _telling_what_broke(job.prepared):
        train_attempt(
            job.prepared, recorder, trained=job.trained, progress=progress, after_epoch=look_and_save,
            stop=lambda trained: watch.decide(trained.curve), until_epoch=job.until_epoch,
        )  # fmt: skip


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


def save_checkpoint(job: Job) -> None:
    """Save a checkpoint; where that is not possible, a full disk say, the training goes on without."""
    try:
        job.checkpoint.save(capture_state(job.prepared, job.trained))
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
            kept = trained.curve[trained.kept_epoch - 1]
            if "val_accuracy" in kept:
                recorder.log_metrics({"kept_val_accuracy": kept["val_accuracy"]})
        recorder.log_files(folder)


def chance_loss(prepared: Prepared) -> float | None:
    """Return the loss of guessing, that of even outputs, where the criterion is one of shares; ln K for most."""
    if prepared.commands.criterion["name"] not in ("CrossEntropyLoss", "NLLLoss", "KLDivLoss"):
        return None
    n_labels = prepared.task.n_labels
    return guess_loss(prepared.criterion, max(2, min(n_labels, _MOST_GUESSED // n_labels)), device=prepared.device)
