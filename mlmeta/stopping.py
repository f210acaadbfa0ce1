"""Whether one training goes on: its predicted end, and the rule of its commands, by the curves of past attempts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mlmeta.commands.documents import CurveRule, MedianRule, StopRule, TopFractionRule
from mlmeta.curves import FEWEST_CURVES, CurvePredictor, Forecast, PastCurve, bests_at

# A forecast takes milliseconds, which for long trainings of short epochs would add up.
MOST_FORECASTS = 100


class Watch:
    """Watches one training.

    Args:
        past: Curves of past attempts on this task and on others.
        task: The task, by the name that it has in `past`.
        n_labels: Its labels.
        n_epoch: The epochs that are commanded.
        rule: When to stop; None: never.
    """

    def __init__(
        self, past: Sequence[PastCurve], *, task: str, n_labels: int, n_epoch: int, rule: StopRule | None
    ) -> None:
        self.rule = rule
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
        return self._predictor.predict(values, self._n_epoch)

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
