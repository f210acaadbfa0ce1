"""Whether one training goes on: its predicted end, and the rule of its commands, by the curves of past attempts.

A training is watched for where its curve leads, whether it goes on, and whether it learns at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import click
import numpy as np

from mlmeta.commands.documents import CurveRule, MedianRule, StopRule, TopFractionRule, TrainCommands
from mlmeta.training.learning_curves import (
    FEWEST_CURVES,
    CurvePredictor,
    Forecast,
    PastCurve,
    bests_at,
    can_read_quickly,
    load_past_curves,
)

# A forecast takes milliseconds, which for long trainings of short epochs would add up.
MOST_FORECASTS = 100
Curve = Sequence[dict[str, float]]

# A loss as near to that of guessing as this has not learnt anything.
_NEAR_CHANCE = 0.01
# A loss that changes by less than this share of it over several epochs stands still.
_STANDS = 0.02


class Watch:
    """Watches one training.

    Args:
        past: Curves of past attempts on this task and on others.
        task: The task, by the name that it has in `past`.
        n_labels: Its labels.
        n_epoch: The epochs that are commanded.
        rule: When to stop; None: never.
        n_pictures: Its validation pictures; by default so many that an accuracy is certain.
    """

    def __init__(
        self,
        past: Sequence[PastCurve],
        *,
        task: str,
        n_labels: int,
        n_epoch: int,
        rule: StopRule | None,
        n_pictures: float = math.inf,
    ) -> None:
        self.rule = rule
        self._n_pictures = n_pictures
        self._own = [curve for curve in past if curve.task == task]
        self._n_past = len(past)
        self._task = task
        self._n_epoch = n_epoch
        self._predictor = CurvePredictor(past, task=task, n_labels=n_labels)

    def forecast(self, values: Sequence[float]) -> Forecast | None:
        """Return what the training can be expected to reach; None where nothing can be said, or it is at its end.

        Args:
            values: Its validation accuracy, epoch by epoch.
        """
        epoch = len(values)
        if epoch >= self._n_epoch or epoch % math.ceil(self._n_epoch / MOST_FORECASTS) or not np.isfinite(values).any():
            return None
        forecast = self._predictor.predict(values, self._n_epoch)
        return forecast and replace(forecast, n_pictures=self._n_pictures)

    def decide(self, values: Sequence[float], forecast: Forecast | None) -> str:
        """Return why the training is to stop now, one clause; empty where it goes on.

        Args:
            values: Its validation accuracy, epoch by epoch.
            forecast: From `forecast`, of the same values.
        """
        epoch = len(values)
        if self.rule is None or epoch >= self._n_epoch or epoch < self.rule.after * self._n_epoch:
            return ""
        best = float(np.fmax.reduce(values))
        if math.isnan(best):
            return ""
        if isinstance(self.rule, CurveRule):
            reason = self._judge_forecast(self.rule, forecast)
        else:
            reason = self._judge_rank(self.rule, best, epoch)
        return f"val_accuracy {best:.1%} after {epoch} of {self._n_epoch} epochs {reason}" if reason else ""

    def _judge_rank(self, rule: MedianRule | TopFractionRule, best: float, epoch: int) -> str:
        others = bests_at(self._own, self._task, epoch)
        if len(others) < rule.min_attempts:
            return ""
        if isinstance(rule, MedianRule):
            median = float(np.median(others))
            return f"is below {median:.1%}, the median of {len(others)} past attempts" if best < median else ""
        rank = int(np.count_nonzero(others > best)) + 1
        allowed = max(1, math.floor(rule.fraction * (len(others) + 1)))
        n = len(others) + 1
        return f"ranks {rank} of {n} attempts, of which {allowed} may go on" if rank > allowed else ""

    def _judge_forecast(self, rule: CurveRule, forecast: Forecast | None) -> str:
        best_known = self.best_known()
        if forecast is None or best_known is None:
            return ""
        chance = forecast.chance_above(best_known)
        if chance >= rule.probability:
            return ""
        low, high = forecast.interval
        return (
            f"leads to {forecast.mean:.1%} ({low:.1%} to {high:.1%}); the chance to exceed {best_known:.1%}, the "
            f"best of {len(self._own)} past attempts, is {chance:.1%}"
        )

    def best_known(self) -> float | None:
        """Return the best validation accuracy of the past attempts on this task; None where there is none."""
        best = np.fmax.reduce([curve.bests[-1] for curve in self._own], initial=-math.inf)
        return float(best) if math.isfinite(best) else None

    def explain_lack(self) -> str:
        """Return why the rule cannot stop anything; empty where it can, or there is none."""
        if self.rule is None:
            return ""
        name, least = self.rule.rule, 1 if isinstance(self.rule, CurveRule) else self.rule.min_attempts
        needed = f"{least} past attempt{'' if least == 1 else 's'} on this task with val_accuracy by epoch"
        n = len(self._own)
        if isinstance(self.rule, CurveRule) and n and self._n_past < FEWEST_CURVES:
            least, n, needed = FEWEST_CURVES, self._n_past, f"{FEWEST_CURVES} past learning curves on any tasks"
        if n >= least:
            return ""
        return f"stop: the rule {name!r} needs {needed}; there {'is' if n == 1 else 'are'} {n or 'none'}: nothing stops"


class EpochWatch:
    """Looks at every epoch of one training.

    Args:
        commands: Of the training.
        past: From `mlmeta.training.learning_curves`, this task having the name `task` in it.
        task: The digest of the task.
        n_labels: Its labels.
        validation: The labels of its validation pictures.
        chance_loss: The loss of guessing; None where it is not known.
        rule: When to stop; None: never.
    """

    def __init__(
        self,
        commands: TrainCommands,
        past: Sequence[PastCurve],
        *,
        task: str,
        n_labels: int,
        validation: Sequence[int],
        chance_loss: float | None,
        rule: StopRule | None,
    ) -> None:
        self._name, self._n_epoch = commands.model_name, commands.n_epoch
        self._chance_loss = chance_loss
        self._validation = validation
        self._watch = Watch(
            past, task=task, n_labels=n_labels, n_epoch=commands.n_epoch, rule=rule, n_pictures=len(validation)
        )
        self._forecast: Forecast | None = None
        self._is_warned = False
        if lack := self._watch.explain_lack():
            click.echo(f"mlmeta: {lack}", err=True)

    def look(self, curve: Curve) -> None:
        """Add what is expected to the last epoch, with ``_std``, ``_low`` and ``_high``; warn if nothing is learnt."""
        self._forecast = self._watch.forecast(_accuracies(curve))
        if self._forecast is not None:
            curve[-1]["expected_accuracy"] = self._forecast.mean
            curve[-1]["expected_accuracy_std"] = self._forecast.std
            curve[-1]["expected_accuracy_low"], curve[-1]["expected_accuracy_high"] = self._forecast.interval
        if not self._is_warned and (why := self._explain_nothing_learnt(curve)):
            self._is_warned = True
            click.echo(f"mlmeta: {self._name}: learns nothing so far: {why}", err=True)

    def decide(self, curve: Curve) -> str:
        """Return why the training is to stop after the epoch that was looked at last; empty where it goes on."""
        return self._watch.decide(_accuracies(curve), self._forecast)

    def _explain_nothing_learnt(self, curve: Curve) -> str:
        """Return what shows that nothing was learnt in a quarter of the epochs; empty where something was."""
        quarter = max(2, math.ceil(self._n_epoch / 4))
        if len(curve) < quarter:
            return ""
        newest = curve[-quarter:]
        chance = self._chance_loss
        losses = [metrics["train_loss"] for metrics in newest]
        if chance and all(abs(loss / chance - 1) <= _NEAR_CHANCE for loss in losses):
            return f"train_loss stays at that of guessing, {chance:.4g}"
        stands = max(losses) - min(losses) <= _STANDS * abs(min(losses))
        one_label = all(metrics.get("val_predicted_labels") == 1 for metrics in newest)
        if stands and one_label and len(set(self._validation)) > 1:
            return f"all {len(self._validation):,} validation pictures are taken for one label"
        return ""


def _accuracies(curve: Curve) -> list[float]:
    return [metrics.get("val_accuracy", math.nan) for metrics in curve]


def read_past(commands: TrainCommands, *, task: str, run_id: str, rule: StopRule | None) -> list[PastCurve]:
    """Return the curves of past attempts that a training is watched by; none where nothing can be said by them.

    For the prediction alone only a store is read that answers in fractions of a second.

    Args:
        commands: Of the training.
        task: The digest of its task.
        run_id: Its own run.
        rule: When to stop; None: never.
    """
    if commands.validation == 0 or commands.n_epoch == 1:
        return []
    try:
        return load_past_curves(task, without=run_id) if rule or can_read_quickly() else []
    except Exception as error:  # noqa: BLE001 - whatever a store's library raises, the training goes on
        if rule:
            reason = " ".join(str(error).split())[:300]
            click.echo(f"mlmeta: stop: past attempts cannot be read, so nothing stops: {reason}", err=True)
        return []
