"""Tune: make attempts on one task until they, or the time, are used up, learning from each, and test the best.

A tuning goes in rounds: begin what is recommended from all that is known by then, cut after the first epochs, train the
best to their end. The MLproject entry point ``tune`` is ``python -m mlmeta tune``.

A round is successive halving with one cut (Jamieson and Talwalkar, Non-stochastic Best Arm Identification and
Hyperparameter Optimization, 2016), only that the best are those which should end best by all that is known, of which
the first epochs' validation accuracy is a part. How far a tuning is stands in MLflow alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlmeta.commands.documents import TrainCommands
from mlmeta.commands.parsing import make_test_commands
from mlmeta.console import terminating_gently
from mlmeta.data.pictures import choose_pictures
from mlmeta.data.task import prepare_task
from mlmeta.errors import AttemptFailedError, BadInputError, DivergedError
from mlmeta.evaluate import evaluate_attempt
from mlmeta.status import Status
from mlmeta.tracking.recovery import find_stopped_attempt, mark_interrupted, prune_attempt
from mlmeta.train import run_attempt
from mlmeta.training.checkpoints import Checkpoint
from mlmeta.training.preparation import check_batch
from mlmeta.tuning.lessons import FINISHED
from mlmeta.tuning.progress import TuningProgress
from mlmeta.tuning.proposals import digest_training, number_name, take_training
from mlmeta.tuning.recommend import Recommendation
from mlmeta.tuning.recording import (
    PARENT_TAG,
    ROUND_TAG,
    TunedAttempt,
    TuningRecorder,
    find_tuning,
    list_attempts,
    record_tuning,
)
from mlmeta.tuning.samplers import SAMPLERS, Sampler, make_sampler

_AT_WORK = (Status.INCOMPLETE, Status.TRAINING, Status.TESTING)


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
    anew: bool = False,
    progress: TuningProgress | None = None,
) -> Tuned:
    """Make attempts on the task of some commands, each better informed, and test the best one.

    Args:
        commands: Say what the task is, how many epochs a whole training has and, by `space`, what may be tried.
        base_dir: What relative paths are relative to.
        settings: How; None for the defaults.
        resume_run_id: The run of a tuning to go on with.
        anew: Begin attempts anew whose checkpoints are not on this machine; they are left as they are.
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
        tuning = Tuning(commands, settings, base_dir, recorder, sampler, shown)
        try:
            tuning.run(first, anew=anew)
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


def resume_tuning(
    name_or_run_id: str,
    *,
    changes: Mapping[str, Any] | None = None,
    anew: bool = False,
    base_dir: Path | None = None,
) -> Tuned:
    """Go on with a tuning that was stopped, or ask more of one that was not, in its own run.

    Args:
        name_or_run_id: Its run id, or the name of its commands (the newest tuning of that name).
        changes: Fields of `TuningSettings` that are other now.
        anew: As for `tune_task`.
        base_dir: What relative paths are relative to; None for where they were.

    Raises:
        NotFoundError: If there is no such tuning.
        BadInputError: As `tune_task`, and if another machine works on it.
    """
    tuning = find_tuning(name_or_run_id)
    try:
        settings = TuningSettings(**{**tuning.settings, **(changes or {})})
        settings.check()
    except TypeError as error:
        raise BadInputError(f"resume: the settings of the tuning {tuning.run_id} cannot be read: {error}") from None
    folder = base_dir or tuning.commands_dir
    return tune_task(tuning.commands, base_dir=folder, settings=settings, resume_run_id=tuning.run_id, anew=anew)


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
    cost = f"{n} attempt{'s'[: n != 1]}, {tuned.n_epochs} epochs, {tuned.seconds:.0f} s"
    if tuned.incumbent is None:
        return f"No attempt learnt anything ({cost})."
    best = tuned.incumbent
    tested = f", accuracy {tuned.metrics['accuracy']:.1%} of the test pictures" if tuned.metrics else ""
    unfinished = "" if best.status in FINISHED else f" after {best.n_epochs} epochs ({best.status})"
    return f"Best: {best.name}{unfinished}, val_accuracy {best.val_accuracy:.1%}{tested}. It cost {cost}."


@dataclass(frozen=True)
class TuningSettings:
    """How to tune.

    Attributes:
        attempts: At most so many; None for as many as the time allows.
        seconds: No training is begun, and none goes on, that would end later; None for no limit.
        round_size: Attempts begun together.
        keep: The share of a round that is trained to its end, at least one attempt.
        first_epochs: Epochs after which a round is cut.
        sampler: One of `mlmeta.tuning.samplers.SAMPLERS`.
        seed: Of the proposals.
    """

    attempts: int | None = 10
    seconds: float | None = None
    round_size: int = 5
    keep: float = 0.2
    first_epochs: int = 1
    sampler: str = "mlmeta"
    seed: int = 0

    def round_left(self, n_made: int) -> int:
        """Return how many attempts the next round may begin where so many are made."""
        left = self.round_size if self.attempts is None else self.attempts - n_made
        return max(0, min(self.round_size, left))

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            BadInputError: With what is allowed.
        """
        if self.attempts is None and self.seconds is None:
            raise BadInputError("tune needs a number of attempts, or a time limit, or both")
        allowed = {
            "attempts": (self.attempts is None or self.attempts > 0, "above 0"),
            "seconds": (self.seconds is None or self.seconds > 0, "above 0"),
            "round_size": (self.round_size >= 1, "1 or above"),
            "first_epochs": (self.first_epochs >= 1, "1 or above"),
            "keep": (0 < self.keep <= 1, "a share above 0 and at most 1"),
            "sampler": (self.sampler in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
        }
        for name, (is_good, words) in allowed.items():
            if not is_good:
                raise BadInputError(f"tune: {name} must be {words}; got {getattr(self, name)!r}")


def choose_incumbent(attempts: Sequence[TunedAttempt]) -> TunedAttempt | None:
    """Return the best attempt by validation accuracy, of those that were finished, else of all."""
    measured = [attempt for attempt in rank_attempts(attempts) if not math.isnan(attempt.val_accuracy)]
    return next((one for one in measured if one.status in FINISHED), measured[0] if measured else None)


def rank_attempts(attempts: Sequence[TunedAttempt]) -> list[TunedAttempt]:
    """Return attempts by validation accuracy, the best first; equal ones by their loss."""

    def worth(attempt: TunedAttempt) -> tuple[float, float]:
        accuracy = -math.inf if math.isnan(attempt.val_accuracy) else attempt.val_accuracy
        return accuracy, -math.inf if math.isnan(attempt.val_loss) else -attempt.val_loss

    return sorted(attempts, key=worth, reverse=True)


def _is_left(attempt: TunedAttempt) -> bool:
    """Return whether an attempt is left as it is: another machine works on it, or has what is needed to go on."""
    is_missing = attempt.n_epochs > 0 and not Checkpoint(attempt.run_id).is_there()
    return attempt.is_elsewhere or (attempt.status == Status.INTERRUPTED and is_missing)


@dataclass
class Tuning:
    """One tuning at work; what is not in MLflow is lost without harm."""

    commands: TrainCommands
    settings: TuningSettings
    base_dir: Path
    recorder: TuningRecorder
    sampler: Sampler
    shown: TuningProgress
    epoch_s: float = 0.0
    epoch_s_of: dict[str, float] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def attempts(self) -> list[TunedAttempt]:
        """Return its attempts as they are now; one whose process died is marked Interrupted first."""
        found = list_attempts(self.recorder.run_id)
        dead = [attempt for attempt in found if attempt.status in _AT_WORK and not attempt.is_elsewhere]
        for attempt in dead:
            mark_interrupted(attempt.run_id)
        return list_attempts(self.recorder.run_id) if dead else found

    def run(self, first: Sequence[Recommendation], *, anew: bool) -> None:
        """Make attempts, of the first round those that are proposed by now, until nothing is left to do."""
        self.take_over(anew=anew)
        while self.go_on():
            proposals, first = first or self.propose(), []
            if not self.run_round(proposals):
                self.shown.say("nothing is left to try in the search space")
                break

    def take_over(self, *, anew: bool) -> None:
        """Say which attempts are left as they are, since their checkpoints are elsewhere; begin them anew if asked."""
        until = min(self.settings.first_epochs, self.commands.n_epoch)
        for attempt in self.attempts():
            if attempt.status != Status.INTERRUPTED or not _is_left(attempt):
                continue
            how = "begun anew" if anew else "left as it is; --anew begins it anew"
            self.shown.mark(attempt.name, f"its checkpoint is not on this machine (it was on {attempt.host}): {how}")
            if anew:
                one, (number, _) = find_stopped_attempt(attempt.run_id), self._find_round(self.attempts())
                self._train(one.commands, self.base_dir, until, round_number=number, tags=self._tag(number))

    def _tag(self, round_number: int) -> dict[str, str]:
        return {PARENT_TAG: self.recorder.run_id, ROUND_TAG: str(round_number)}

    def n_wanted(self) -> int:
        """Return how many attempts are to be begun in the present round."""
        attempts = self.attempts()
        _, members = self._find_round(attempts)
        n_before = len(attempts) - len(members)
        return max(0, self.settings.round_left(n_before + len(self.refused)) - len(members))

    def go_on(self) -> bool:
        """Return whether there is anything to do: attempts to begin, or to finish."""
        _, members = self._find_round(self.attempts())
        if members and not self._is_over(final=True):
            return True
        return self.n_wanted() > 0 and not self._is_over()

    def _find_round(self, attempts: Sequence[TunedAttempt]) -> tuple[int, list[TunedAttempt]]:
        """Return the number of the round at work, and its attempts: the last, or a new one if that is finished."""
        last = max((attempt.round for attempt in attempts), default=1)
        members = [attempt for attempt in attempts if attempt.round == last]
        is_done = members and all(_is_left(one) or one.status not in (Status.INTERRUPTED, *_AT_WORK) for one in members)
        return (last + 1, []) if is_done else (last, members)

    def _is_over(self, *, final: bool = False) -> bool:
        """Return whether the time is used up; unless `final`, all but what the best of the round still needs."""
        return self._left() <= (0.0 if final else self.epoch_s * self.commands.n_epoch)

    def _left(self) -> float:
        # With what it had taken before it was stopped.
        return (self.settings.seconds or math.inf) - self.recorder.seconds

    def propose(self) -> Sequence[Recommendation]:
        """Return what to begin in the present round, without what could not be begun before."""
        wanted = self.n_wanted()
        if not wanted:
            return []
        seed = self.settings.seed + len(self.attempts())
        found = self.sampler.propose(wanted + len(self.refused), seed=seed)
        return [one for one in found if digest_training(take_training(one.commands)) not in self.refused][:wanted]

    def run_round(self, proposals: Sequence[Recommendation]) -> bool:
        """Train the first epochs of what is proposed, cut, and train the best; return whether there was anything."""
        number, members = self._find_round(self.attempts())
        until = min(self.settings.first_epochs, self.commands.n_epoch)
        for attempt in members:
            if attempt.status == Status.INTERRUPTED and attempt.n_epochs < until and not _is_left(attempt):
                self._go_on_with(attempt, until)
        for proposal in proposals[: self.n_wanted()]:
            if members and self._is_over():
                break
            self._begin(proposal, number, until)
            members = [attempt for attempt in self.log_progress()[0] if attempt.round == number]
        self._cut(number)
        return bool(members or proposals)

    def _begin(self, proposal: Recommendation, number: int, until: int) -> None:
        made = len(self.attempts()) + len(self.refused)
        commands = proposal.commands.model_copy(update={"model_name": number_name(self.commands.model_name, made + 1)})
        tags = self._tag(number)
        if not self._train(commands, self.base_dir, until, round_number=number, tags=tags, proposal=proposal):
            self.refused.add(digest_training(take_training(commands)))

    def _go_on_with(self, attempt: TunedAttempt, until: int) -> None:
        one, number = find_stopped_attempt(attempt.run_id), attempt.round
        self._train(one.commands, self.base_dir, until, round_number=number, resume_run_id=attempt.run_id)

    def _train(
        self, commands: TrainCommands, base_dir: Path, until: int, *,
        round_number: int, proposal: Recommendation | None = None, **options: Any,
    ) -> bool:  # fmt: skip
        """Train an attempt up to an epoch; return whether it was begun at all."""
        with self.shown.attempt(commands, round_number, proposal) as shown:
            try:
                run_id, trained, _ = run_attempt(
                    commands, base_dir=base_dir, test=False, until_epoch=until, progress=shown, **options
                )
                shown.end(trained.stopped or f"{len(trained.curve)} of {commands.n_epoch} epochs")
                self.epoch_s = self.epoch_s_of[run_id] = float(trained.curve[-1]["epoch_seconds"])
            except (DivergedError, AttemptFailedError) as error:
                shown.end(str(error))
            except BadInputError as error:
                shown.end(f"left out: {error}")
                return False
        return True

    def _cut(self, number: int) -> None:
        """Prune all but the best of a round, and train those to their end."""
        members = [attempt for attempt in self.attempts() if attempt.round == number]
        n_kept = max(1, math.ceil(self.settings.keep * len(members) - 1e-9))
        n_kept -= sum(attempt.status in FINISHED for attempt in members)
        stopped = [attempt for attempt in members if attempt.status == Status.INTERRUPTED and not _is_left(attempt)]
        waiting, how = self._rank(stopped)
        for place, attempt in enumerate(waiting[max(n_kept, 0) :], start=n_kept + 1):
            epochs = f"{attempt.n_epochs} epoch{'s'[: attempt.n_epochs != 1]}"
            prune_attempt(attempt.run_id, f"place {place} of {len(members)} in round {number} after {epochs}, by {how}")
            Checkpoint(attempt.run_id).put_aside()
            self.shown.mark(attempt.name, Status.PRUNED)
        for attempt in waiting[: max(n_kept, 0)]:
            if (until := self._affordable(attempt)) > attempt.n_epochs:
                self._go_on_with(attempt, until)
        self.log_progress()

    def _rank(self, waiting: Sequence[TunedAttempt]) -> tuple[list[TunedAttempt], str]:
        """Return attempts, the best first, and in words by what: all that is known, or validation accuracy alone."""
        ranked = rank_attempts(waiting)
        worth = self.sampler.judge() if len(waiting) > 1 else {}
        if any(attempt.run_id not in worth for attempt in waiting):
            return ranked, "validation accuracy"
        return sorted(ranked, key=lambda attempt: -worth[attempt.run_id]), "validation accuracy and what is known"

    def _affordable(self, attempt: TunedAttempt) -> int:
        """Return up to which epoch the time allows to train an attempt."""
        left, epoch_s = self._left(), self.epoch_s_of.get(attempt.run_id, self.epoch_s)
        if math.isinf(left) or not epoch_s:
            return self.commands.n_epoch
        return min(self.commands.n_epoch, attempt.n_epochs + max(0, int(left / epoch_s)))

    def log_progress(self) -> tuple[list[TunedAttempt], TunedAttempt | None]:
        """Record how far it is; return its attempts and the incumbent."""
        attempts = self.attempts()
        incumbent = choose_incumbent(attempts)
        self.recorder.log_progress(attempts, incumbent)
        return attempts, incumbent
