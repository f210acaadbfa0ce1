"""Learning curves of past attempts, and what they say about one that is still being trained.

Two attempts are compared at an epoch by the best validation accuracy that each has had by then (as in the median rule
of Golovin et al., Google Vizier, KDD 2017). How far a training will still come is predicted by a Gaussian process over
past curves. Notation, accuracies as shares of the way from chance to 1:

    e, n  the epoch of the partial curve, and of its end
    b     the best accuracy up to e
    g     the gain, as a share of what was left: (best up to n - b) / (1 - b)
    x     what is seen of a curve: b, the mean of its last three epochs, the gain of b since half the epochs

The covariance of g of two curves of the tasks t, t' with K, K' labels, m the Matérn 5/2 function, is

    m(x, x') · (shared · exp(-(ln K - ln K')² / 2) + own · [t = t']) + level · [t = t'] + noise · [same curve]

times a scale that is estimated with the mean of g (Rasmussen and Williams, Gaussian Processes for Machine Learning,
2006, sections 2.7 and 5.4.1).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlmeta.commands.documents import MAX_EPOCHS
from mlmeta.history.loading import load_attempts, load_curves
from mlmeta.history.sql_reader import open_sql_reader
from mlmeta.status import Status
from mlmeta.tracking.store import current_uri

Floats = npt.NDArray[np.float64]

# More past curves make the prediction no better, and its cost grows with their cube.
MOST_CURVES = 240
# From fewer past curves nothing is predicted.
FEWEST_CURVES = 5
# The 95 % quantile of the normal distribution: an interval of so many standard deviations to each side holds 90 %.
Z_90 = 1.645
# Ranges of x over which gains are alike; the covariance; chosen on 13 real tasks, where no other choice within a factor
# of two changed the error by more than 3 % (benchmarks/stopping.py).
_LENGTHS = np.array([0.4, 0.5, 0.3])
_SHARED, _OWN, _LEVEL, _NOISE = 1.0, 0.2, 0.2, 0.8
# Before any curve is seen: the scale, as if from five curves, and the mean gain, half of what the rest of the budget
# allows, as if from half a curve.
_PRIOR_SCALE, _PRIOR_CURVES, _PRIOR_MEAN = 0.05, 5.0, 0.5
# Near the top the gain has no scale of its own.
_LEAST_LEFT = 0.1
# Of more tasks the latest are looked at.
MOST_TASKS = 60
# An attempt on this task counts by validation pictures only. Curves on other tasks teach how curves go, and imported
# attempts have none but those of the test.
_METRICS = ("val_accuracy", "test_accuracy")
_DIGEST = "tags.mlmeta.task_digest"
# Of a curve whose epochs are not known.
_LONGEST = 10_000
_STOPPED = {Status.PRUNED}
_FINISHED = {Status.TRAINED, Status.TESTING, Status.COMPLETE, Status.DIVERGED}


@dataclass(frozen=True)
class PastCurve:
    """The validation accuracy of a past attempt, epoch by epoch.

    Attributes:
        values: One an epoch, the first first, shape (m,), m >= 1; NaN where one is not known.
        n_epoch: The epochs that were commanded.
        task: Its task, by any name.
        n_labels: The labels of the task, at least 1.
        end: ``finished``: trained to its end, or diverged; ``stopped`` early, by a rule; ``open``: it may go on.
    """

    values: Floats
    n_epoch: int
    task: str
    n_labels: int
    end: Literal["finished", "stopped", "open"] = "finished"

    @cached_property
    def bests(self) -> Floats:
        """The best value up to each epoch, shape (m,)."""
        bests: Floats = np.fmax.accumulate(self.values)
        return bests

    def best_at(self, epoch: int) -> float:
        """Return the best value up to an epoch; NaN where an open attempt has not come so far.

        One that has ended counts with the best that it had: were it left out, the others would seem better and better.
        """
        if epoch > len(self.values) and self.end == "open":
            return math.nan
        return float(self.bests[min(epoch, len(self.values)) - 1])


@dataclass(frozen=True)
class Forecast:
    """The best validation accuracy that a training can be expected to have at its end.

    Attributes:
        mean: Expected, at least what is reached, at most 1.
        std: Standard deviation.
        reached: The best so far.
        n_pictures: On how many validation pictures; by default so many that an accuracy is certain.
    """

    mean: float
    std: float
    reached: float
    n_pictures: float = math.inf

    @property
    def interval(self) -> tuple[float, float]:
        """The 90 % interval of the accuracy on pictures of the same kind.

        That of the curve's end, joined with Wilson's for a share of so few pictures (Wilson, Probable Inference, the
        Law of Succession, and Statistical Inference, 1927): 3 of 3 right may be 53 % of all.
        """
        centre, width = _score_interval(self.mean, self.n_pictures)
        spread = math.hypot(width, Z_90 * self.std)
        reached, least = _score_interval(self.reached, self.n_pictures)
        return max(centre - spread, reached - least), min(centre + spread, 1.0)

    def chance_above(self, value: float) -> float:
        """Return the probability of ending above a value."""
        if self.reached > value:
            return 1.0
        return 0.5 * math.erfc((value - self.mean) / (self.std * math.sqrt(2)))


def _score_interval(share: float, n: float) -> tuple[float, float]:
    """Return centre and half width of Wilson's 90 % interval for a share of n pictures."""
    own = Z_90**2 / n
    return (share + own / 2) / (1 + own), Z_90 * math.sqrt((share * (1 - share) + own / 4) / n) / (1 + own)


def bests_at(past: Sequence[PastCurve], task: str, epoch: int) -> Floats:
    """Return the best values up to an epoch of the past attempts on a task that have one, ascending."""
    values = np.array([curve.best_at(epoch) for curve in past if curve.task == task], dtype=np.float64)
    return np.sort(values[np.isfinite(values)])


def share_fairly(tasks: Sequence[str], task: str, *, most: int = MOST_CURVES) -> list[int]:
    """Return which attempts to take where there are too many: those on `task`, then the first of each other in turn.

    Args:
        tasks: The task of each attempt.
        task: The one that all is for.
        most: So many at most.
    """
    seen: Counter[str] = Counter()
    turns = []
    for name in tasks:
        turns.append(0 if name == task else seen[name] + 1)
        seen[name] += 1
    return sorted(np.argsort(turns, kind="stable")[:most].tolist())


class CurvePredictor:
    """Predicts the end of a training from its first epochs and from past curves; see the module.

    A past curve that is long enough is read at the same epochs; a shorter one at the same shares of its own budget.

    Args:
        past: Curves of this task and of others; the cost of a prediction grows with the cube of their number, see
            `share_fairly`.
        task: The task of the training.
        n_labels: Its labels.
    """

    def __init__(self, past: Sequence[PastCurve], *, task: str, n_labels: int) -> None:
        self._past = [curve for curve in past if np.isfinite(curve.values).any()]
        self._task = task
        self._n_labels = n_labels

    def predict(self, values: Sequence[float], n_epoch: int) -> Forecast | None:
        """Return what a training can be expected to reach.

        Args:
            values: Its validation accuracy, epoch by epoch, at least one finite.
            n_epoch: The epoch of its end.

        Returns:
            None where fewer than `FEWEST_CURVES` past curves say anything.
        """
        epoch, chance = len(values), _chance(self._n_labels)
        seen = (np.asarray(values, dtype=np.float64) - chance) / (1 - chance)
        x = _describe(seen)
        points, gains, past = self._read_past(epoch, n_epoch)
        if len(past) < FEWEST_CURVES or not np.isfinite(x).all():
            return None
        mean, std = self._regress(points, gains, past, x, 1 - epoch / n_epoch)
        left = float(max(1 - x[0], _LEAST_LEFT)) * (1 - chance)
        reached = float(np.nanmax(values))
        return Forecast(min(max(reached + mean * left, reached), 1.0), std * left, reached)

    def _read_past(self, epoch: int, n_epoch: int) -> tuple[Floats, Floats, list[PastCurve]]:
        """Return x, shape (m, 3), and g, shape (m,), of the past curves that reach an end like this one's."""
        points, gains, past = [], [], []
        for curve in self._past:
            length = max(len(curve.values), curve.n_epoch) if curve.end == "finished" else len(curve.values)
            if length < n_epoch and curve.end != "finished":
                continue
            end = min(length, n_epoch)
            at = epoch if end == n_epoch else max(1, round(epoch * end / n_epoch))
            chance = _chance(curve.n_labels)
            x = _describe((curve.values[:at] - chance) / (1 - chance))
            best = (curve.best_at(end) - chance) / (1 - chance)
            if np.isfinite(x).all():
                points.append(x)
                gains.append((best - x[0]) / max(1 - x[0], _LEAST_LEFT))
                past.append(curve)
        return np.array(points), np.array(gains), past

    def _regress(
        self, points: Floats, gains: Floats, past: Sequence[PastCurve], x: Floats, share_left: float
    ) -> tuple[float, float]:
        """Return mean and standard deviation of g at x."""
        from scipy.linalg import solve_triangular

        own = np.array([curve.task == self._task for curve in past])
        labels = np.log([curve.n_labels for curve in past])
        names = {curve.task: code for code, curve in enumerate(past)}
        codes = np.array([names[curve.task] for curve in past])
        among = _covariance(points, points, labels[:, None] - labels, codes[:, None] == codes)
        across = _covariance(points, x[None], labels[:, None] - math.log(self._n_labels), own[:, None])[:, 0]
        factor = np.linalg.cholesky(among + _NOISE * np.eye(len(past)))
        whitened = solve_triangular(factor, np.column_stack([np.ones(len(past)), gains, across]), lower=True)
        ones, seen, toward = whitened.T
        precision = ones @ ones + _PRIOR_MEAN
        level = (ones @ seen + _PRIOR_MEAN * share_left / 2) / precision
        rest = seen - ones * level
        scale = (_PRIOR_CURVES * _PRIOR_SCALE * share_left + rest @ rest) / (_PRIOR_CURVES + len(past))
        unexplained = _SHARED + _OWN + _LEVEL + _NOISE - toward @ toward + (1 - toward @ ones) ** 2 / precision
        return float(level + toward @ rest), math.sqrt(max(scale * unexplained, 1e-8))


def _chance(n_labels: int) -> float:
    return 1 / max(n_labels, 2)


def _describe(seen: Floats) -> Floats:
    """Return x of a partial curve, shape (3,)."""
    bests = np.fmax.accumulate(seen)
    known = seen[np.isfinite(seen)][-3:]
    recent = float(known.mean()) if known.size else math.nan
    return np.array([bests[-1], recent, bests[-1] - bests[max(len(seen) // 2, 1) - 1]])


def _covariance(left: Floats, right: Floats, labels: Floats, same_task: npt.NDArray[np.bool_]) -> Floats:
    """Return the covariance without noise and scale, shape (n, m)."""
    left, right = left / _LENGTHS, right / _LENGTHS
    squares = np.sum(left**2, axis=1)[:, None] + np.sum(right**2, axis=1) - 2 * left @ right.T
    distances = np.sqrt(5 * np.maximum(squares, 0.0))
    matern = (1 + distances + distances**2 / 3) * np.exp(-distances)
    covariance: Floats = matern * (_SHARED * np.exp(-(labels**2) / 2) + _OWN * same_task) + _LEVEL * same_task
    return covariance


def can_read_quickly() -> bool:
    """Return whether the tracking store is one that the history reads in fractions of a second, not by a server's API.

    Raises:
        MlmetaError: If the store does not answer.
    """
    return open_sql_reader(current_uri()) is not None


def load_past_curves(task: str, *, without: str = "", tracking_uri: str | None = None) -> list[PastCurve]:
    """Return the validation accuracies by epoch of past attempts: on a task all, the latest on others.

    Args:
        task: The digest of the task, as the tag ``mlmeta.task_digest`` has it.
        without: The id of a run that is left out.
        tracking_uri: The store; None for the one that MLflow's own settings name.

    Returns:
        At most `mlmeta.training.learning_curves.MOST_CURVES`, `task` being the digest. What is no accuracy between 0
        and 1 is not known.

    Raises:
        MlmetaError: If the store cannot be read.
    """
    chosen = _choose(load_attempts(tracking_uri), task, without)
    curves = {metric: _load(chosen, metric, tracking_uri) for metric in _METRICS}
    return list(_make_curves(chosen, curves))


def _choose(attempts: pd.DataFrame, task: str, without: str) -> pd.DataFrame:
    """Return the attempts to learn from, with the column ``metric``."""
    present = [metric for metric in _METRICS if metric in attempts]
    if _DIGEST not in attempts or not present:
        return attempts.iloc[:0].assign(metric="", digest="")
    metric = pd.Series(pd.NA, index=attempts.index, dtype="str")
    for name in present:
        metric = metric.mask(metric.isna() & attempts[name].notna(), name)
    known = attempts.assign(metric=metric, digest=attempts[_DIGEST])
    known = known[known["metric"].notna() & known["digest"].notna() & (known["run_id"] != without)]
    known = known[(known["digest"] != task) | (known["metric"] == "val_accuracy")]
    others = known["digest"].drop_duplicates()
    latest = known[known["digest"].isin({task, *others[others != task][:MOST_TASKS]})]
    return latest.iloc[share_fairly(latest["digest"].tolist(), task, most=MOST_CURVES)]


def _load(chosen: pd.DataFrame, metric: str, tracking_uri: str | None) -> dict[str, pd.DataFrame]:
    run_ids = chosen["run_id"][chosen["metric"] == metric].tolist()
    if not run_ids:
        return {}
    points = load_curves(run_ids, metric=metric, tracking_uri=tracking_uri)
    return {str(run_id): group for run_id, group in points[points["step"] >= 1].groupby("run_id")}


def _make_curves(chosen: pd.DataFrame, curves: dict[str, dict[str, pd.DataFrame]]) -> Iterator[PastCurve]:
    counts = (_read_counts(chosen, column) for column in ("n_epoch", "task.n_labels"))
    facts = (chosen[column].tolist() for column in ("run_id", "metric", "digest", "status"))
    for run_id, metric, digest, status, n_epoch, n_labels in zip(*facts, *counts, strict=True):
        points = curves[metric].get(run_id)
        values = None if points is None else _arrange(points, n_epoch or _LONGEST)
        if values is not None:
            yield PastCurve(values, n_epoch or len(values), digest, n_labels or 2, _end(status))


def _arrange(points: pd.DataFrame, longest: int) -> Floats | None:
    """Return the values by epoch; None where none is an accuracy. Tools that count batches have steps beyond."""
    steps, values = points["step"].to_numpy(dtype=np.int64), points["value"].to_numpy(dtype=np.float64)
    known = (steps <= longest) & (values >= 0) & (values <= 1)
    if not known.any():
        return None
    arranged = np.full(steps[known].max(), np.nan)
    arranged[steps[known] - 1] = values[known]
    return arranged


def _end(status: str) -> Literal["finished", "stopped", "open"]:
    return "stopped" if status in _STOPPED else "finished" if status in _FINISHED else "open"


def _read_counts(attempts: pd.DataFrame, column: str) -> list[int]:
    """Return a column's whole numbers, 0 where there is none."""
    if column not in attempts:
        return [0] * len(attempts)
    numbers = pd.to_numeric(attempts[column], errors="coerce").astype("float64")
    return [int(number) for number in numbers.where(numbers.between(1, MAX_EPOCHS), 0)]
