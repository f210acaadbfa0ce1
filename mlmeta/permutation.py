"""Permutation importance on held-out attempts: how much worse a model predicts when one param's values are shuffled.

After L. Breiman, "Random Forests", Machine Learning 45, 2001, section 10, with held-out attempts in place of those out
of the bag: R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)² over all attempts, each predicted by a model that has seen neither its task
(where there are several) nor its commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlmeta.attempt_features import EncodedAttempts
from mlmeta.attempt_sample import Sample, draw_times, fit_forest, split_folds
from mlmeta.history.table import Floats, Ints

_N_TREES = 50
_N_RESAMPLES = 500
# The mean over many attempts needs fewer repeats of each.
_MOST_PREDICTIONS = 10_000


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What models say of attempts that they have not seen.

    Attributes:
        r2: Held-out R², at most 1; below 0 where the mean predicts better; NaN where all scores are equal.
        drops: By how much it falls when a param is shuffled, shape (n_params,).
        low: Lower end of the 95 % interval of each drop: how far it depends on which tasks and commands there are.
        high: The upper end.
    """

    r2: float
    drops: Floats
    low: Floats
    high: Floats


def measure_held_out(sample: Sample, *, n_repeats: int, seed: int) -> HeldOut:
    """Return held-out R² and its drop for each of the sample's params, in their order.

    Args:
        sample: The attempts.
        n_repeats: How often each param is shuffled, at least 2; of more than 500 attempts less often.
        seed: Decides folds, models and shuffling.
    """
    rng = np.random.default_rng(seed)
    n, params = len(sample.scores), sample.params
    n_repeats = max(2, min(n_repeats, _MOST_PREDICTIONS // n))
    squares, rises = np.zeros(n), np.zeros((n, len(params)))
    for fitted, held in split_folds(sample, seed=seed):
        matrix, scores = sample.encoded.matrix, sample.scores
        model = fit_forest(sample, fitted, n_trees=_N_TREES, seed=int(rng.integers(2**31)))
        squares[held] = (scores[held] - model.predict(matrix[held])) ** 2
        shuffled = measure_shuffled_squares(
            model, sample.encoded, held, scores[held], params=params, n_repeats=n_repeats, rng=rng
        )
        rises[held] = shuffled - squares[held, None]
    spread = (sample.scores - sample.scores.mean()) ** 2
    return _summarise(squares, rises, spread, draw_times(sample, _N_RESAMPLES, rng))


def measure_shuffled_squares(
    model: Any,
    encoded: EncodedAttempts,
    rows: Ints,
    scores: Floats,
    *,
    params: Sequence[str],
    n_repeats: int,
    rng: np.random.Generator,
) -> Floats:
    """Return the squared error of each row when one param's values are shuffled among them, the mean over repeats.

    All features of a param move together. Learning rates stay what they are relative to their optimizer's median when
    the optimizer is shuffled, and move to another optimizer as that when they are.

    Returns:
        Shape (n_rows, n_params).
    """
    matrix, n = encoded.matrix[rows], len(rows)
    squares = np.empty((n, len(params)))
    for i, param in enumerate(params):
        columns = encoded.columns_of(param, relative=True)
        order = rng.permuted(np.tile(np.arange(n), (n_repeats, 1)), axis=1).ravel()
        shuffled = np.tile(matrix, (n_repeats, 1))
        shuffled[:, columns] = matrix[order][:, columns]
        predicted = model.predict(encoded.restore_rates(shuffled)).reshape(n_repeats, n)
        squares[:, i] = ((scores - predicted) ** 2).mean(axis=0)
    return squares


def _summarise(squares: Floats, rises: Floats, spread: Floats, times: Ints) -> HeldOut:
    """Return R² and its drops, with intervals over resamples; `times` says how often each holds an attempt."""
    total = float(spread.sum())
    if not total > 0:
        nothing = np.zeros(rises.shape[1])
        return HeldOut(float("nan"), nothing, nothing, nothing)
    totals = times @ spread
    # A resample without any spread says nothing.
    drops = (times @ rises)[totals > 0] / totals[totals > 0, None]
    low, high = np.quantile(drops, [0.025, 0.975], axis=0)
    return HeldOut(1.0 - float(squares.sum()) / total, rises.sum(axis=0) / total, low, high)
