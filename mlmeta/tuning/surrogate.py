"""What score commands can be expected to reach on a task: a Gaussian process over attempts on all tasks.

Notation: x the features of an attempt (`mlmeta.tuning.training_features`), t its task, d(t, t') the distance of two
tasks (`mlmeta.analysis.task_similarity`), m the Matérn 5/2 function of the Euclidean distance of two attempts, z the
score of an attempt as a normal quantile of its rank within its task. The covariance of z of two attempts is

    m(x, x') · (shared + similar · exp(-d(t, t') / length) + own · [t = t']) + commands · [x = x'] + noise

so that all tasks teach something and like tasks teach more. The score that a z stands for is read from the past tasks:
the score at that quantile on each, weighted by likeness. On the new task itself attempts count by their scores, with an
unknown level and the unit that is usual among tasks.

Far from all attempts a Gaussian process goes back to its median, as if a learning rate of 1e9 were as good as most.
What is out of reach of everything that was tried without failing is therefore taken for a failure, the surer the
farther it is: its z goes to that of a failed attempt, its score to chance. (Rasmussen and Williams, Gaussian Processes
for Machine Learning, 2006, chapters 2 and 4; Bonilla et al., Multi-task Gaussian Process Prediction, 2007.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from mlmeta.analysis.features import score_quantiles, score_ranks
from mlmeta.analysis.task_similarity import task_distances
from mlmeta.history.table import FAILED, Floats, Ints, lower_is_better, read_scores
from mlmeta.tuning.lessons import Shipped
from mlmeta.tuning.training_features import (
    LENGTHS,
    PLAIN_SHIFT,
    REACH,
    fill_unknown,
    measure_defaults,
    name_features,
    scale_features,
)

# Of more past attempts this many are learnt from: a fit grows with their cube.
MOST_ATTEMPTS = 1_200
# The variance of a new task's level, in units of z: next to nothing is known of it.
_LEVEL = 3.0
# For the level of a new task only its nearest tasks count: at 5 the 90 % intervals hold about as many of the real
# scores, at 2 nearly none of the easiest tasks.
_SHARPNESS = 5
# What a failed attempt on the new task counts as: one of the worst hundredth.
_FAILED_Z = -2.3
# From this doubt on a proposal is told to be unlike what was tried.
DOUBTFUL = 0.2
# Where no past task says it: that of accuracies above chance on the 13 tasks of the examples.
_USUAL_UNIT = 0.16
# What shipped accuracies may stand for as they are.
_SHIPPED_METRICS = ("accuracy", "val_accuracy")


@dataclass(frozen=True)
class KernelSettings:
    """The numbers of the covariance, see the module; learnt by benchmarks/learn_kernel.py."""

    lengths: Mapping[str, float] = field(default_factory=lambda: LENGTHS)
    shift: float = PLAIN_SHIFT
    shared: float = 0.56
    similar: float = 0.21
    own: float = 0.013
    commands: float = 0.012
    noise: float = 0.15
    task_length: float = 0.69


@dataclass(frozen=True)
class Prediction:
    """Scores that can be expected.

    Attributes:
        mean: In the metric's own unit, shape (n,).
        std: Standard deviation of a score about the mean, shape (n,).
        z: What the attempts are ranked by, higher is better, shape (n,).
    """

    mean: Floats
    std: Floats
    z: Floats


class Surrogate:
    """Predicts the scores of attempts on one task from attempts on others, and from what is observed on it.

    Args:
        past: Attempts on other tasks, as `mlmeta.history.loading.load_attempts` gives them.
        new: Attempts on this task, done or proposed: one row each, with the same columns.
        tasks: As `mlmeta.analysis.task_similarity.task_table` gives them, with this task.
        task: The name of this task.
        metric: The score; its name says whether lower is better.
        settings: The kernel.
        seed: Decides which past attempts are drawn where there are more than `MOST_ATTEMPTS`.
        shipped: Attempts that come with mlmeta; they are learnt from as far as the past leaves room, and by their
            ranks only where `metric` is no accuracy.

    Attributes:
        past: The past attempts that are learnt from, without the shipped ones.

    Raises:
        BadInputError: If `past` lacks the metric, or it is no number.
    """

    def __init__(
        self, past: pd.DataFrame, new: pd.DataFrame, tasks: pd.DataFrame, task: str, *,
        metric: str = "accuracy", settings: KernelSettings | None = None, seed: int = 0, shipped: Shipped | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings or KernelSettings()
        self._sign = -1.0 if lower_is_better(metric) else 1.0
        self.past, z = _draw(past, score_quantiles(past, metric) if len(past) else np.zeros(0), MOST_ATTEMPTS, seed)
        scores = _read_usable(self.past, metric)
        learnt = self.past
        if shipped:
            ranks = score_ranks(shipped.attempts, "accuracy")
            known, known_z = _draw(shipped.attempts, ranks, MOST_ATTEMPTS - len(learnt), seed)
            known_scores = _read_usable(known, "accuracy")
            if metric not in _SHIPPED_METRICS:
                known_scores[:] = np.nan
            z, scores = np.concatenate([z, known_z]), np.concatenate([scores, known_scores])
            tasks = pd.concat([tasks, shipped.tasks], ignore_index=True)
            learnt = _join(learnt, known)
        chances = _read_chances(tasks, metric)
        names = [str(name) for name in tasks["task"]]
        place, code = {name: i for i, name in enumerate(names)}, names.index(task)
        codes = np.array([place[str(name)] for name in learnt["task"]], dtype=np.int64)
        closeness = _measure_closeness(tasks, self._settings.task_length)
        self._chance = chances[code]
        scores = self._sign * _correct(scores, chances[codes])
        self._levels = _Levels(scores, z, codes, closeness[code])
        self._fit(learnt, new, tasks, codes, code, z, closeness)
        self._measure_reach(_read_failed(learnt), new)
        # Row, score above chance, and what it weighs beside one that is certain.
        self._observed: list[tuple[int, float, float]] = []

    def _fit(
        self, past: pd.DataFrame, new: pd.DataFrame, tasks: pd.DataFrame,
        codes: Ints, code: int, z: Floats, closeness: Floats,
    ) -> None:  # fmt: skip
        """Compute mean and covariance of z of the new attempts, shapes (m,) and (m, m)."""
        settings, n = self._settings, len(past)
        own = new.assign(task=str(tasks["task"].iloc[code]))
        features = name_features(_join(past, own), tasks, shift=settings.shift)
        points = scale_features(features, settings.lengths)
        self._reached = {name: values for name, values in features if name in REACH}
        all_codes = np.concatenate([codes, np.full(len(new), code)])
        covariance = _make_covariance(points, all_codes, closeness, settings)
        inside, across = covariance[:n, :n], covariance[:n, n:]
        self.mean, self.covariance = np.zeros(len(new)), covariance[n:, n:]
        if n:
            factor = cho_factor(inside + settings.noise * np.eye(n), lower=True, overwrite_a=True)
            self.mean = across.T @ cho_solve(factor, z)
            explained = solve_triangular(factor[0], across, lower=True)
            self.covariance = self.covariance - explained.T @ explained
        self._likeness = across[: len(self.past)]
        self._ranked, self._with_level = self.mean.copy(), self.covariance + _LEVEL

    def _measure_reach(self, has_failed: npt.NDArray[np.bool_], new: pd.DataFrame) -> None:
        """Compute how far each of what decides is from the nearest past value, beyond what is allowed, in its unit."""
        self._new = {name: values[len(has_failed) :] for name, values in self._reached.items()}
        self._nearest = {
            name: _find_nearest(self._new[name], values[: len(has_failed)][~has_failed])
            for name, values in self._reached.items()
        }
        # Whoever has tried little may try what is usual.
        for name, values in {**self._new, "rate": measure_defaults(new)}.items():
            self._nearest[name] = np.fmin(self._nearest[name], REACH[name].measure_usual(values))

    def _measure_excess(self) -> dict[str, Floats]:
        """Return by name of `REACH` how far the new attempts are out of reach, shape (m,); 0: within it."""
        rows = [row for row, *_ in self._observed]
        excess = {}
        for name, values in self._new.items():
            nearest = np.fmin(self._nearest[name], _find_nearest(values, values[rows]))
            excess[name] = np.maximum(np.where(np.isfinite(nearest), nearest, 0.0) - REACH[name].allowed, 0.0)
        return excess

    def _doubt(self) -> Floats:
        """Return how sure it is that each new attempt is unlike everything that was tried, 0 to 1, shape (m,)."""
        squares = [(values / REACH[name].scale) ** 2 for name, values in self._measure_excess().items()]
        return np.asarray(1 - np.exp(-np.sum(squares, axis=0)), dtype=np.float64)

    def explain_doubt(self, row: int) -> str:
        """Return what of a new attempt is unlike everything that was tried, a clause; empty where nothing is."""
        if self._doubt()[row] < DOUBTFUL:
            return ""
        apart = {
            name: values[row] + REACH[name].allowed for name, values in self._measure_excess().items() if values[row]
        }
        amounts = {
            name: f"{by:.2g}" if name == "dropout" else f"a factor of {_round(by):,.0f}" for name, by in apart.items()
        }
        return " and ".join(f"in {REACH[name].word} by at least {amount}" for name, amount in amounts.items())

    def observe(self, row: int, score: float | None, *, std: float = 0.0) -> None:
        """Take in that a new attempt has reached a score.

        Args:
            row: Which of the new attempts.
            score: In the metric's own unit; None for one that failed or diverged.
            std: Standard deviation of the score, where it is itself only expected (of an attempt that was pruned, or
                after its first epoch); in the metric's own unit. Its square is added to the noise.
        """
        if score is None or not np.isfinite(score):
            # It says nothing of the task's level.
            gain = self.covariance[:, row] / (self.covariance[row, row] + self._settings.noise)
            shift = gain * (_FAILED_Z - self.mean[row])
            self.mean, self._ranked = self.mean + shift, self._ranked + shift
        else:
            value = float(self._sign * _correct(np.array([score]), np.array([self._chance]))[0])
            scale = 1.0 if np.isnan(self._chance) else 1 - self._chance
            noise = self._settings.noise + (std / scale / self._levels.unit) ** 2
            # A new list: a shallow copy of a surrogate (copy.copy) then stays as it was.
            self._observed = [*self._observed, (row, value, self._settings.noise / noise)]
            level_gain = self._with_level[:, row] / (self._with_level[row, row] + noise)
            self._ranked = self._ranked + level_gain * (value / self._levels.unit - self._ranked[row])
            self._with_level = self._with_level - np.outer(level_gain, self._with_level[row])
            gain = self.covariance[:, row] / (self.covariance[row, row] + noise)
        self.covariance = self.covariance - np.outer(gain, self.covariance[row])

    def choose(self, n: int, n_candidates: int, *, tried: Collection[int] = ()) -> list[int]:
        """Return the first candidates to try together, each chosen as if those before had reached what is expected.

        Args:
            n: At most so many.
            n_candidates: Only the first so many of the new attempts are candidates.
            tried: Candidates that are not to be chosen again.
        """
        covariance = self.covariance[:n_candidates, :n_candidates]
        doubt, ranked = self._doubt()[:n_candidates], self._rank()[:n_candidates]
        chosen: list[int] = []
        while len(chosen) < min(n, n_candidates - len(tried)):
            spread = np.sqrt(np.maximum(np.diag(covariance), 0.0))
            # From the second one on, what is less sure is worth more.
            value = ranked + ((1 - doubt) * spread if chosen else 0.0)
            value[[*chosen, *tried]] = -np.inf
            row = int(np.argmax(value))
            chosen.append(row)
            gain = covariance[:, row] / (covariance[row, row] + self._settings.noise)
            covariance = covariance - np.outer(gain, covariance[row])
        return chosen

    def find_evidence(self, row: int, n: int) -> list[int]:
        """Return the places in `past` of the attempts that say most about a new one, the most telling first."""
        return [int(place) for place in np.argsort(-self._likeness[:, row], kind="stable")[:n]]

    def _rank(self) -> Floats:
        """Return z with doubt taken in."""
        doubt = self._doubt()
        return (1 - doubt) * self._ranked + doubt * np.minimum(self._ranked, _FAILED_Z)

    def predict(self) -> Prediction:
        """Return what can be expected of every new attempt."""
        spread = np.sqrt(np.maximum(np.diag(self.covariance), 0.0) + self._settings.noise)
        if not self._observed:
            value, deviation = self._levels.read(self.mean, spread)
        else:
            # Attempts on this task say what its level is; where they are few, the other tasks say so too.
            level, level_deviation = self._levels.read(self.mean, np.zeros_like(spread))
            rows = [row for row, *_ in self._observed]
            shares = np.array([share for *_, share in self._observed])
            ranked = self._ranked - np.average(self._ranked[rows], weights=shares)
            observed = np.average([value for _, value, _ in self._observed], weights=shares)
            weight = shares.sum() / (shares.sum() + 1.0)
            here = observed + ranked * self._levels.unit
            value = np.where(np.isnan(level), here, weight * here + (1 - weight) * level)
            deviation = np.hypot(spread * self._levels.unit, (1 - weight) * np.nan_to_num(level_deviation))
        doubt = self._doubt()
        bad = self._levels.read(np.full(1, _FAILED_Z), np.zeros(1))[0] if np.isnan(self._chance) else np.zeros(1)
        bad = np.where(np.isnan(bad), value, np.minimum(value, bad))
        # Two things may be: as good as it looks, or as bad as what fails.
        deviation = np.hypot(deviation, np.sqrt(doubt * (1 - doubt)) * (value - bad))
        mean = _restore(self._sign * ((1 - doubt) * value + doubt * bad), self._chance)
        scale = 1.0 if np.isnan(self._chance) else 1 - self._chance
        return Prediction(mean, deviation * scale, self._rank())


class _Levels:
    """What score a z stands for on each past task.

    Attributes:
        unit: The score that one unit of z stands for on most tasks: z of many attempts has a standard deviation of 1.
    """

    def __init__(self, scores: Floats, z: Floats, codes: Ints, closeness: Floats) -> None:
        self._curves = []
        spreads = []
        for code in np.unique(codes):
            known = (codes == code) & np.isfinite(scores) & np.isfinite(z)
            if np.count_nonzero(known) >= 2:
                order = np.argsort(z[known])
                self._curves.append((z[known][order], scores[known][order], closeness[code] ** _SHARPNESS))
                spreads.append(np.std(scores[known], ddof=1))
        finite = scores[np.isfinite(scores)]
        self._spread = float(np.std(finite)) if finite.size else 0.0
        self.unit = max(float(np.median(spreads)), 1e-6) if spreads else _USUAL_UNIT

    def read(self, z: Floats, spread: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the score over tasks and over z ± spread."""
        if not self._curves:
            return np.full(len(z), np.nan), np.full(len(z), np.nan)
        weights = np.array([weight for *_, weight in self._curves])
        weights = weights / weights.sum()
        at = np.stack([np.interp(z, *curve[:2]) for curve in self._curves])
        low = np.stack([np.interp(z - spread, *curve[:2]) for curve in self._curves])
        high = np.stack([np.interp(z + spread, *curve[:2]) for curve in self._curves])
        mean = weights @ at
        within = weights @ ((high - low) / 2) ** 2
        # From few tasks that count, the mean itself is uncertain, by the spread among tasks; so is that spread.
        among = (self._spread**2 + np.sum((at - at.mean(axis=0)) ** 2, axis=0)) / len(at)
        return mean, np.sqrt(weights @ (at - mean) ** 2 + within + among * np.sum(weights**2))


def _make_positive(matrix: Floats) -> Floats:
    """Return the nearest symmetric matrix without negative eigenvalues: distances that are not known may give some."""
    values, vectors = np.linalg.eigh(matrix)
    nearest: Floats = (vectors * np.maximum(values, 0.0)) @ vectors.T if values.min() < 0 else matrix
    return nearest


def _make_covariance(points: Floats, codes: Ints, closeness: Floats, settings: KernelSettings) -> Floats:
    squares = np.sum(points**2, axis=1)
    distances = np.sqrt(np.maximum(5 * (squares[:, None] + squares - 2 * points @ points.T), 0.0))
    matern = (1 + distances + distances**2 / 3) * np.exp(-distances)
    same = codes[:, None] == codes
    tasks = settings.shared + settings.similar * closeness[np.ix_(codes, codes)] + settings.own * same
    return np.asarray(matern * tasks + settings.commands * (distances < 1e-6), dtype=np.float64)


def _measure_closeness(tasks: pd.DataFrame, length: float) -> Floats:
    closeness = np.exp(-np.nan_to_num(task_distances(tasks).to_numpy(), nan=1.0) / length)
    np.fill_diagonal(closeness, 1.0)
    return _make_positive(closeness)


def _draw(past: pd.DataFrame, z: Floats, n: int, seed: int) -> tuple[pd.DataFrame, Floats]:
    """Return at most n attempts to learn from, those that have a rank, and of too many a fair share a task."""
    places = np.flatnonzero(np.isfinite(z))
    if len(places) > n:
        order = np.random.default_rng(seed).permutation(places)
        drawn = past["task"].iloc[order]
        nth = drawn.groupby(drawn.to_numpy()).cumcount().to_numpy()
        places = np.sort(order[np.argsort(nth, kind="stable")[:n]])
    return past.iloc[places], z[places]


def _round(decades: float) -> float:
    """Return a power of ten, rounded to two digits."""
    return float(f"{10 ** min(decades, 300.0):.2g}")


def _find_nearest(values: Floats, known: Floats) -> Floats:
    """Return the distance of each value from the nearest that is known, shape (m,); NaN where none is."""
    if not len(known):
        return np.full(len(values), np.nan)
    return np.asarray(np.abs(values[:, None] - known).min(axis=1), dtype=np.float64)


def _read_failed(past: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return past["status"].isin(FAILED).to_numpy(dtype=bool) if len(past) else np.zeros(0, dtype=bool)


def _join(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both, with the params of both."""
    joined = pd.concat([first, second], ignore_index=True) if len(first) else second.reset_index(drop=True)
    joined.attrs["kinds"] = {**(first.attrs.get("kinds") or {}), **(second.attrs.get("kinds") or {})}
    return joined


def _read_usable(past: pd.DataFrame, metric: str) -> Floats:
    """Return the scores, NaN where an attempt failed."""
    if not len(past):
        return np.zeros(0)
    return np.where(_read_failed(past), np.nan, read_scores(past, metric))


def _read_chances(tasks: pd.DataFrame, metric: str) -> Floats:
    """Return the score of guessing on each task: 1 / K where the metric is an accuracy, NaN for others.

    Where K is not known chance is taken to be the usual one, so that the scores of all tasks have one meaning.
    """
    if not metric.endswith("accuracy"):
        return np.full(len(tasks), np.nan)
    return fill_unknown(np.minimum(np.exp(-tasks["ln_n_labels"].to_numpy(dtype=np.float64)), 0.99))


def _correct(scores: Floats, chances: Floats) -> Floats:
    """Return scores as shares of the way from chance to 1, where chance is known."""
    return np.where(np.isnan(chances), scores, (scores - chances) / (1 - chances))


def _restore(values: Floats, chance: float) -> Floats:
    return values if np.isnan(chance) else np.clip(values * (1 - chance) + chance, 0.0, 1.0)
