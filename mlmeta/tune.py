"""Tune: make attempts on one task until they, or the time, are used up, learning from each, and test the best.

In rounds (`mlmeta.tuning_rounds`): what to try is recommended from all that is known by then. The MLproject entry point
``tune`` is ``python -m mlmeta tune``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.parsing import make_test_commands
from mlmeta.console import terminating_gently
from mlmeta.data.pictures import choose_pictures
from mlmeta.data.task import prepare_task
from mlmeta.errors import BadInputError
from mlmeta.evaluate import evaluate_attempt
from mlmeta.samplers import make_sampler
from mlmeta.status import Status
from mlmeta.training.preparation import check_batch
from mlmeta.tuning_progress import TuningProgress
from mlmeta.tuning_rounds import FINISHED, Tuning, TuningSettings, choose_incumbent, rank_attempts
from mlmeta.tuning_runs import TunedAttempt, find_tuning, record_tuning


@dataclass(frozen=True)
class Tuned:
    """What a tuning gave.

    Attributes:
        run_id: Its run, the parent of its attempts.
        attempts: In the order in which they were begun.
        incumbent: The best by validation accuracy of those that were finished, else of all; None where none learnt.
        metrics: Of its test; empty where it was not tested.
        seconds: What it took, without the time in which it was stopped.
    """

    run_id: str
    attempts: Sequence[TunedAttempt]
    incumbent: TunedAttempt | None
    metrics: Mapping[str, float]
    seconds: float

    @property
    def n_epochs(self) -> int:
        """Epochs trained, of all attempts."""
        return sum(attempt.n_epochs for attempt in self.attempts)


def tune_task(
    commands: TrainCommands,
    *,
    base_dir: Path,
    settings: TuningSettings | None = None,
    resume_run_id: str | None = None,
    progress: TuningProgress | None = None,
) -> Tuned:
    """Make attempts on the task of some commands, each better informed, and test the best one.

    Args:
        commands: Say what the task is, how many epochs a whole training has and, by `space`, what may be tried.
        base_dir: What relative paths are relative to.
        settings: How; None for the defaults.
        resume_run_id: The run of a tuning to go on with.
        progress: Shows it; None shows it on standard error.

    Raises:
        BadInputError: If commands, pictures or settings cannot be used, before a run is started.
        MlmetaError: If the tracking store cannot be used.
        KeyboardInterrupt: At SIGINT or SIGTERM; everything can be gone on with.
    """
    settings = settings or TuningSettings()
    settings.check()
    if commands.validation == 0:
        raise BadInputError("validation: tuning chooses by validation pictures; make it more than 0")
    _look_at_pictures(commands, base_dir)
    sampler = make_sampler(settings.sampler, commands, base_dir=base_dir)
    # Whatever cannot be used shows here, before a run is started.
    first = [] if resume_run_id else sampler.propose(settings.round_left(0), seed=settings.seed)
    if not first and not resume_run_id:
        raise BadInputError("nothing is left to try: every training in the space of the commands was tried")
    with (
        terminating_gently(),
        record_tuning(commands, base_dir=base_dir, settings=asdict(settings), resume_run_id=resume_run_id) as recorder,
        progress or TuningProgress(commands) as shown,
    ):
        tuning = Tuning(commands.model_name, settings, base_dir, recorder, sampler, shown, commands.n_epoch)
        try:
            while tuning.go_on():
                proposals = first or tuning.propose()
                first = []
                if not tuning.run_round(proposals):
                    shown.say("nothing is left to try in the search space")
                    break
            metrics = _test(choose_incumbent(tuning.attempts()), commands, base_dir)
        except KeyboardInterrupt:
            _conclude(tuning, {})
            raise
        return _conclude(tuning, metrics)


def _look_at_pictures(commands: TrainCommands, base_dir: Path) -> None:
    """Refuse pictures of which there are none to train or to test on, before hours of training."""
    pictures = prepare_task(commands, base_dir=base_dir, probe=True, check_shape=check_batch(commands)).pictures
    choose_pictures(pictures, limit=commands.test.limit, ids=commands.test.ids, seed=commands.seed)


def _conclude(tuning: Tuning, metrics: Mapping[str, float]) -> Tuned:
    """Record what came of a tuning, so far or at last, and return it."""
    attempts, incumbent = tuning.log_progress()
    tuned = Tuned(tuning.recorder.run_id, attempts, incumbent, metrics, tuning.recorder.seconds)
    tuning.recorder.log_note(write_note(tuned))
    return tuned


def resume_tuning(name_or_run_id: str, *, changes: Mapping[str, Any] | None = None) -> Tuned:
    """Go on with a tuning that was stopped, or ask more of one that was not, in its own run.

    Args:
        name_or_run_id: Its run id, or the name of its commands (the newest tuning of that name).
        changes: Fields of `TuningSettings` that are other now.

    Raises:
        NotFoundError: If there is no such tuning.
        BadInputError: As `tune_task`.
    """
    tuning = find_tuning(name_or_run_id)
    try:
        settings = TuningSettings(**{**tuning.settings, **(changes or {})})
        settings.check()
    except TypeError as error:
        raise BadInputError(f"resume: the settings of the tuning {tuning.run_id} cannot be read: {error}") from None
    return tune_task(tuning.commands, base_dir=tuning.commands_dir, settings=settings, resume_run_id=tuning.run_id)


def _test(incumbent: TunedAttempt | None, commands: TrainCommands, base_dir: Path) -> Mapping[str, float]:
    """Test the incumbent if it is finished; one that was tested before has its accuracy."""
    if incumbent is not None and not math.isnan(incumbent.accuracy):
        return {"accuracy": incumbent.accuracy}
    if incumbent is None or incumbent.status != Status.TRAINED:
        return {}
    _, metrics = evaluate_attempt(make_test_commands(commands, run_id=incumbent.run_id), base_dir=base_dir)
    return metrics


def write_note(tuned: Tuned) -> str:
    """Return what came of a tuning in Markdown: the incumbent, what it cost, all attempts."""
    lines = [describe_result(tuned), "", "| attempt | round | epochs | val_accuracy | state |", "|---|---|---|---|---|"]
    for attempt in rank_attempts(tuned.attempts):
        accuracy = "" if math.isnan(attempt.val_accuracy) else f"{attempt.val_accuracy:.1%}"
        lines.append(f"| {attempt.name} | {attempt.round} | {attempt.n_epochs} | {accuracy} | {attempt.status} |")
    return "\n".join(lines)


def describe_result(tuned: Tuned) -> str:
    """Return in a sentence or two which attempt is best, and what it cost to find it."""
    n = len(tuned.attempts)
    cost = f"{n} attempt{'s' if n != 1 else ''}, {tuned.n_epochs} epochs, {tuned.seconds:.0f} s"
    if tuned.incumbent is None:
        return f"No attempt learnt anything ({cost})."
    best = tuned.incumbent
    tested = f", accuracy {tuned.metrics['accuracy']:.1%} of the test pictures" if tuned.metrics else ""
    unfinished = "" if best.status in FINISHED else f" after {best.n_epochs} epochs ({best.status})"
    return f"Best: {best.name}{unfinished}, val_accuracy {best.val_accuracy:.1%}{tested}. It cost {cost}."
