"""What is watched while an attempt trains: where its curve leads, whether it goes on, whether it learns at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import click

from mlmeta.commands.documents import StopRule, TrainCommands
from mlmeta.curves import Forecast, PastCurve
from mlmeta.past_curves import can_read_quickly, load_past_curves
from mlmeta.stopping import Watch

Curve = Sequence[dict[str, float]]

# A loss as near to that of guessing as this has not learnt anything.
_NEAR_CHANCE = 0.01


class EpochWatch:
    """Looks at every epoch of one training.

    Args:
        commands: Of the training.
        past: From `mlmeta.past_curves`, this task having the name `task` in it.
        task: The digest of the task.
        n_labels: Its labels.
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
        chance_loss: float | None,
        rule: StopRule | None,
    ) -> None:
        self._name, self._n_epoch = commands.model_name, commands.n_epoch
        self._chance_loss = chance_loss
        self._watch = Watch(past, task=task, n_labels=n_labels, n_epoch=commands.n_epoch, rule=rule)
        self._forecast: Forecast | None = None
        self._is_warned = False
        if lack := self._watch.explain_lack():
            click.echo(f"mlmeta: {lack}", err=True)

    def look(self, curve: Curve) -> None:
        """Add ``expected_accuracy`` and its ``_std`` to the last epoch's metrics; warn where nothing is learnt."""
        self._forecast = self._watch.forecast(_accuracies(curve))
        if self._forecast is not None:
            curve[-1]["expected_accuracy"] = self._forecast.mean
            curve[-1]["expected_accuracy_std"] = self._forecast.std
        if not self._is_warned and self._learns_nothing(curve):
            self._is_warned = True
            click.echo(
                f"mlmeta: {self._name}: learns nothing so far: train_loss stays at that of guessing, "
                f"{self._chance_loss:.4g}",
                err=True,
            )

    def decide(self, curve: Curve) -> str:
        """Return why the training is to stop after the epoch that was looked at last; empty where it goes on."""
        return self._watch.decide(_accuracies(curve), self._forecast)

    def _learns_nothing(self, curve: Curve) -> bool:
        """Return whether half the epochs are over, and in the second quarter the loss was that of guessing."""
        if not self._chance_loss or 2 * len(curve) < self._n_epoch:
            return False
        losses = [metrics["train_loss"] for metrics in curve[self._n_epoch // 4 :]]
        return all(abs(loss / self._chance_loss - 1) <= _NEAR_CHANCE for loss in losses)


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
